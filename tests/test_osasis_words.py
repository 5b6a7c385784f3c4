"""OSASIS from words: the losses, what is trained, resume, and the code that the style gets."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from oneshot_atelier.models import graphs
from oneshot_atelier.models.features.encoder import EncoderDistance
from oneshot_atelier.models.loading import load_style, save_style
from oneshot_atelier.models.osasis import SamplingSettings, stylize
from oneshot_atelier.models.style import check_osasis_style, fingerprint
from oneshot_atelier.tests import tiny
from oneshot_atelier.train import losses, osasis
from oneshot_atelier.train.content import content_source, first_content
from oneshot_atelier.train.loop import Checkpointing, Hooks, snapshot
from oneshot_atelier.train.osasis import FrozenNetworks, OSASISConfig
from oneshot_atelier.train.osasis_words import TextAim, WordsConfig, tune_to_words

CONFIG = OSASISConfig(iterations=3, batch=2, lr=1e-3, lr_spn=1e-3, forward_steps=4, reverse_steps=4, latent_steps=2,
                      generate_steps=2, seed=3, clip_preprocessing="openai")
WORDS = WordsConfig("cartoon")


def networks():
    frozen = tiny.diffae()
    return FrozenNetworks(frozen, tiny.clip(), EncoderDistance(frozen.encoder), fingerprint(frozen))


def one_update(config, words=WORDS):
    """(trainer, run, losses, predictions) of one optimiser step from the start."""
    nets = networks()
    aim = TextAim(words.direction(nets.clip), words.photo_weight, words.pixel_weight)
    t = osasis.Trainer(nets, aim, config, content_source(nets.diffae, config, tiny.pictures(config.batch, 5)))
    run, content = osasis.start(nets.diffae, config), t.content(0)
    streams = aim.streams(0, content, t.embed(content.picture), config)
    values, predictions, _ = osasis.update(t, run, streams, 1)
    return t, run, values, predictions


@pytest.mark.parametrize("pixel_weight", (1.0, 0.5, 0.0))
def test_the_total_is_the_sum_of_the_three_weighted_terms(pixel_weight):
    config = replace(CONFIG, dropout=False)
    t, _, values, x0 = one_update(config, WordsConfig("cartoon", photo_weight=2.0, pixel_weight=pixel_weight))
    assert set(values) == {"cross", "in", "photo", "loss"} and x0.shape == (2, 3, 32, 32)
    photo, direction = t.content(0).picture, t.aim.direction
    before, after = t.embed(photo), t.embed(x0)
    cross = losses.text_edit_loss(before, after, direction).mean()
    assert float(values["cross"]) == pytest.approx(float(cross), rel=1e-3)
    mean = before.mean(0)
    moved = [mean + (b - a).norm() * direction[0] for a, b in zip(before, after)]
    within = [1 - F.cosine_similarity(a - mean, b - m, dim=0) for a, b, m in zip(before, after, moved)]
    assert float(values["in"]) == pytest.approx(0.5 * float(sum(within)) / 2, rel=1e-3)
    apart = pixel_weight * (x0 - photo).abs().mean() + t.perceptual(x0, photo).mean()
    assert float(values["photo"]) == pytest.approx(2 * float(apart), rel=1e-4)
    assert float(values["loss"]) == pytest.approx(sum(float(v) for k, v in values.items() if k != "loss"), rel=1e-5)


def test_the_in_domain_loss_is_zero_for_a_change_along_the_text_and_not_for_another():
    t, *_ = one_update(CONFIG)
    before = F.normalize(torch.randn(3, 24, generator=torch.Generator().manual_seed(1)), dim=1)
    part = osasis.Streams(*[torch.zeros(3, 3, 4, 4)] * 4, before, (t.aim.direction, before.mean(0, keepdim=True)))
    aim, x0 = TextAim(t.aim.direction, 0.0, 1.0), torch.zeros(3, 3, 4, 4)
    along = aim.losses(t, part, x0, before + 0.7 * t.aim.direction, 3)
    assert float(along["in"]) < 1e-5 and float(along["cross"]) < 1e-5 and set(along) == {"cross", "in"}
    other = aim.losses(t, part, x0, before - 0.7 * t.aim.direction, 3)
    assert float(other["in"]) > 0.1 and float(other["cross"]) == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("rows", [1, 2])
def test_micro_batches_change_memory_and_nothing_else(rows):
    config = replace(CONFIG, batch=3, dropout=False)
    whole, parts = one_update(config)[1:], one_update(replace(config, micro_batch=rows))[1:]
    assert all(torch.allclose(whole[1][k], parts[1][k], rtol=1e-4, atol=1e-6) for k in whole[1])
    assert torch.allclose(whole[2], parts[2], atol=1e-4)


def test_training_turns_predictions_to_the_text():
    nets, photos = networks(), tiny.pictures(2, 5)
    config = replace(CONFIG, iterations=12, dropout=False)
    _, run = tune_to_words(nets, WordsConfig("cartoon", photo_weight=0.0), config, photos)
    history = run.loss_history["cross"]
    assert len(history) == 12 and sum(history[-2:]) < 0.8 * sum(history[:2])


@pytest.mark.parametrize("photos", [None, tiny.pictures(3, 5)])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, photos):
    class Stop(Exception):
        pass

    def stop(result):
        if (result.iteration, result.index) == (1, 1):
            raise Stop

    whole, run = tune_to_words(networks(), WORDS, CONFIG, photos)
    saved = Checkpointing(tmp_path / "a.snapshot")
    with pytest.raises(Stop):
        tune_to_words(networks(), WORDS, CONFIG, photos, saved, Hooks(on_step=stop))
    assert saved.path.is_file()
    style, again = tune_to_words(networks(), WORDS, CONFIG, photos, saved)
    assert tiny.same(snapshot(run)[0], snapshot(again)[0]) and run.loss_history == again.loss_history
    assert torch.equal(style.z_style, whole.z_style) and style.settings == whole.settings
    for changes, message in (({"target": "red"}, "target was 'cartoon' and is 'red' now"),
                             ({"photo_weight": 2.0}, "photo_weight was 0.3 and is 2.0 now")):
        with pytest.raises(ValueError, match=message):
            tune_to_words(networks(), replace(WORDS, **changes), CONFIG, photos, saved)
    unused = replace(CONFIG, clip_weight=1.0, l1_weight=1.0, style_spn_weight=0.0, clip_preprocessing="osasis")
    assert tiny.same(dict(tune_to_words(networks(), WORDS, unused, photos, saved)[0].unet), dict(style.unet))


def test_the_memory_of_graphs_is_given_back_whatever_ends_a_training(monkeypatch):
    class Stop(Exception):
        pass

    def stop(result):
        raise Stop

    released = []
    monkeypatch.setattr(graphs, "release", released.append)
    nets = networks()
    with pytest.raises(Stop):
        tune_to_words(nets, WORDS, CONFIG, tiny.pictures(3, 5), hooks=Hooks(on_step=stop))
    assert released == [nets.diffae], "on a GPU a copy of its own"
    tune_to_words(nets, WORDS, CONFIG, tiny.pictures(3, 5))
    assert released == 3 * [nets.diffae], "the training's, and that of the style's code"


def test_the_style_s_code_is_the_mean_code_of_pictures_in_the_style(tmp_path):
    nets, photos = networks(), tiny.pictures(3, 5)
    style, _ = tune_to_words(nets, WORDS, CONFIG, photos)
    content = first_content(nets.diffae, CONFIG, photos)
    unet, spn = style.networks()
    with torch.no_grad():
        pictures = stylize(unet, content.x, content.z, steps=4, settings=SamplingSettings.of(style.settings), spn=spn,
                           picture=content.picture)
        expected = nets.diffae.encode(pictures.clamp(-1, 1)).mean(0, keepdim=True)
    assert torch.allclose(style.z_style, expected, atol=1e-5) and style.z_style.shape == (1, 32)
    found = load_style(save_style(tmp_path / "words.safetensors", style))
    check_osasis_style(found, nets.diffae.config.unet, nets.fingerprint)
    assert found.style_image is None and torch.allclose(found.semantic_code().float(), style.z_style, atol=2e-3)
    assert {found.settings[name] for name in ("source", "target")} == {"photo", "cartoon"}


def test_the_first_content_is_what_the_training_takes_it_from():
    frozen = tiny.diffae()
    assert torch.equal(first_content(frozen, CONFIG).picture[:2], content_source(frozen, CONFIG)(0).picture)
    cached = replace(CONFIG, cached_content=4, batch=4)
    found = {p.numpy().tobytes() for p in first_content(frozen, cached).picture}
    assert {p.numpy().tobytes() for p in content_source(frozen, cached)(0).picture} <= found


@pytest.mark.parametrize(("changes", "message"), [
    ({"target": " "}, "target is empty"), ({"source": ""}, "source is empty"),
    ({"templates": "many"}, "templates is 'many'"), ({"photo_weight": -1.0}, "photo_weight is -1.0"),
    ({"pixel_weight": -1.0}, "pixel_weight is -1.0")])
def test_words_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(WORDS, **changes)


def test_a_fine_tune_without_the_text_s_loss_is_refused():
    with pytest.raises(ValueError, match="cross_weight is 0, so nothing would be learned"):
        tune_to_words(networks(), WORDS, replace(CONFIG, cross_weight=0.0))
    with pytest.raises(ValueError, match="dog"):
        tune_to_words(networks(), replace(WORDS, target="dog"), CONFIG)
