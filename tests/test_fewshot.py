"""Few-shot fine-tuning of MMFS: what is trained, exact resume, cancel, references, source faces, sessions."""

import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from oneshot_atelier.models import rng
from oneshot_atelier.models.checkpoints import CheckpointError, store
from oneshot_atelier.models.features.encoder import EncoderKeys
from oneshot_atelier.models.mmfs import MMFS, MapperConfig, MMFSConfig
from oneshot_atelier.models.rng import seeded
from oneshot_atelier.models.style import fingerprint, styled
from oneshot_atelier.models.stylegan2 import StyleGAN2, StyleGAN2Config, random_noise
from oneshot_atelier.tests import tiny
from oneshot_atelier.train import fewshot, losses, source_faces
from oneshot_atelier.train.data import augment, random_augment, to_bytes, to_unit
from oneshot_atelier.train.fewshot import FewShotConfig, Reference, tune_mmfs
from oneshot_atelier.train.loop import Checkpointing, Hooks, snapshot
from oneshot_atelier.train.presets import MMFS_PRESETS
from oneshot_atelier.train.source_faces import FaceNetworks, Samples, Source, known_faces

MODEL = MMFSConfig((8, 16, 24), (24, 16, 8), w_dim=tiny.CLIP.embed, mapping_layers=2, mapper=MapperConfig(2, 32))
CONFIG = FewShotConfig(iterations=4, batch=4, lr=1e-2, seed=3)
TEXT = Reference("red cartoon")


class Stop(Exception):
    """Raised by a hook, as a cancelled prompt does."""


def mmfs(seed=0, config=MODEL):
    with seeded(seed, "weights"):
        return MMFS(config).eval().requires_grad_(False)


def stylegan2():
    with seeded(5, "weights"):
        return StyleGAN2(StyleGAN2Config((8, 8, 8, 8), 16, 2)).eval().requires_grad_(False)


def structure_net():
    return EncoderKeys(tiny.diffae().encoder, image_size=32)


def reference(seed=2):
    return ((tiny.pictures(1, seed, 40)[0] + 1) * 127.5).byte()


def by_picture(*seeds):
    return Reference(pictures=[reference(s) for s in seeds or (2,)])


def networks(net=None):
    net = net or mmfs()
    return FaceNetworks(net, tiny.clip(), structure_net(), fingerprint(net))


def tuned(target=None, config=CONFIG, photos=None, net=None, checkpointing=Checkpointing(), **hooks):
    """(style, run); everything is built anew."""
    photos = tiny.pictures(6, 5) if photos is None else photos
    return tune_mmfs(networks(net), target or by_picture(), photos, config, checkpointing, Hooks(**hooks))


def state(run):
    return snapshot(run)[0]


def trainer(target=None, config=CONFIG, photos=None):
    nets, target = networks(), target or by_picture()
    source = Source(nets, tiny.pictures(6, 5) if photos is None else photos, config)
    features = fewshot.read_reference(nets.mmfs, nets.clip, target, config)
    return fewshot.Trainer(nets, features, source, config, target)


# --- what is trained -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", [by_picture(), TEXT])
def test_gradient_reaches_every_weight_of_the_decoder_and_nothing_else(target):
    t = trainer(target)
    run = fewshot.start(t.nets.mmfs, CONFIG)
    frozen = (t.nets.mmfs, t.nets.clip, t.nets.structure_net, t.mapper)
    before = [tiny.copy_of(net) for net in frozen]
    fewshot.update(t, run, 0)
    decoder = run.nets["decoder"]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in decoder.parameters())
    assert all(p.grad.abs().sum() > 0 for p in decoder.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(decoder.parameters(), t.nets.mmfs.decoder.parameters()))
    assert all(tiny.same(b, net.state_dict()) for b, net in zip(before, frozen))
    assert all(p.grad is None for net in frozen for p in net.parameters())
    assert {id(p) for group in run.optimizers["decoder"].param_groups for p in group["params"]} == {
        id(p) for p in decoder.parameters()}
    assert {name.split(".")[0] for name in decoder.state_dict()} == {"blocks"}  # convolutions and rgb layers, no more


def test_the_networks_and_inputs_are_left_alone():
    net, photos = mmfs(), tiny.pictures(6, 5)
    before, kept = tiny.copy_of(net), photos.clone()
    tuned(photos=photos, net=net)
    assert tiny.same(before, net.state_dict()) and torch.equal(photos, kept)
    assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_official_defaults():
    c = FewShotConfig()
    assert (c.iterations, c.batch, c.lr, c.beta1, c.beta2, c.ema_decay) == (200, 8, 2e-4, 0.9, 0.999, 0.99)
    assert (c.structure_weight, c.clip_weight, c.projection_weight) == (0.5, 1.0, 100.0)
    assert (c.structure_norm, c.token_block) == ("mse", 3)
    assert (c.mapper_dropout, c.anchor, c.mean, c.cached_content) == (True, "photo", "batch", 0)
    assert not c.ema_ramp  # B.2, B.6: it starts as a copy, and its decay is constant
    group = fewshot.start(mmfs(), c).optimizers["decoder"].param_groups[0]
    assert group["lr"] == 2e-4 and group["betas"] == (0.9, 0.999)


def test_presets_are_settings():
    made = {name: FewShotConfig(**fields) for name, fields in MMFS_PRESETS.items()}
    assert made["official"] == FewShotConfig()
    assert (made["paper"].beta1, made["paper"].structure_norm) == (0.99, "frobenius")
    assert {name for name, config in made.items() if config.ema_ramp} == {"demo", "demo text"}


@pytest.mark.parametrize(("changes", "message"), [
    ({"structure_norm": "x"}, "structure_norm is 'x'; take one of mse"), ({"mean": "x"}, "mean is 'x'"),
    ({"precision": "int8"}, "precision is 'int8'"), ({"iterations": 0}, "at least 1"), ({"batch": 0}, "at least 1"),
    ({"cached_content": -1}, "at least 0"), ({"beta1": 1.0}, "below 1"), ({"ema_decay": 1.0}, "below 1"),
    ({"clip_weight": -1.0}, "at least 0"),
    ({"clip_weight": 0.0, "structure_weight": 0.0, "projection_weight": 0.0}, "all be 0")])
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


# --- one step --------------------------------------------------------------------------------------------------------
def test_the_losses_are_those_of_the_generated_pictures():
    config = replace(CONFIG, mapper_dropout=False, palette_weight=3.0)
    t = trainer(config=config)
    values, pictures = fewshot.update(t, fewshot.start(t.nets.mmfs, config), 0)
    faces = t.source.faces(0)
    with torch.no_grad():
        inputs = t.nets.clip.preprocess(pictures, "mmfs")
        embeddings, tokens = t.nets.clip.encode_with_tokens(inputs, config.token_block)
        expected = {
            "structure": 0.5 * losses.structure_loss(t.nets.structure_net.keys(pictures), faces.keys),
            "clip": losses.clip_loss(faces.embeddings, F.normalize(embeddings, dim=1),
                                       faces.embeddings.mean(0, keepdim=True), t.features.embedding),
            "projection": 100 * losses.projection_loss(t.features.projection, tokens),
            "palette": 3 * t.features.palette.loss(pictures)}
    assert set(values) == {*expected, "loss"}
    assert all(float(values[name]) == pytest.approx(float(v), rel=1e-4) for name, v in expected.items())
    assert float(values["loss"]) == pytest.approx(sum(map(float, expected.values())), rel=1e-4)
    assert pictures.shape == (4, 3, 32, 32) and pictures.abs().max() <= 1 and not pictures.requires_grad


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_the_gradient_is_that_of_the_sum_of_all_losses(monkeypatch, rows):
    """However many pictures the structure network sees at a time."""
    monkeypatch.setattr(fewshot, "STRUCTURE_ROWS", rows)
    config = replace(CONFIG, mapper_dropout=False, palette_weight=3.0)
    t = trainer(config=config)
    run, faces = fewshot.start(t.nets.mmfs, config), t.source.faces(0)
    decoder = run.nets["decoder"]
    noise = random_noise(decoder.noise_shapes(8, 8), 4, rng.generator(config.seed, "noise", 0))
    pictures = F.hardtanh(decoder(faces.features, t.codes(), noise))
    embeddings, tokens = t.nets.clip.encode_with_tokens(t.nets.clip.preprocess(pictures, "mmfs"), config.token_block)
    loss = (0.5 * losses.structure_loss(t.nets.structure_net.keys(pictures), faces.keys)
            + losses.clip_loss(faces.embeddings, F.normalize(embeddings, dim=1), t.anchor(faces), t.features.embedding)
            + 100 * losses.projection_loss(t.features.projection, tokens) + 3 * t.features.palette.loss(pictures))
    wanted = torch.autograd.grad(loss, list(decoder.parameters()))
    values, _ = fewshot.update(t, run, 0)
    largest = max(float(g.abs().max()) for g in wanted)
    assert float(values["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert all(torch.allclose(p.grad, g, rtol=1e-3, atol=1e-5 * largest) for p, g in zip(decoder.parameters(), wanted))


def test_the_losses_of_a_step_are_read_once_and_kept_as_numbers_in_main_memory():
    t, told = trainer(), []
    fewshot.fine_tune(t, fewshot.start(t.nets.mmfs, CONFIG), hooks=Hooks(on_step=told.append))
    assert [set(result.losses) for result in told] == [{"structure", "clip", "projection", "loss"}] * 4
    assert all(value.device.type == "cpu" and value.ndim == 0 for value in told[-1].losses.values())


def test_text_has_no_projection_and_starts_at_the_anchor_s_text():
    t = trainer(TEXT)
    values, _ = fewshot.update(t, fewshot.start(t.nets.mmfs, CONFIG), 0)
    assert set(values) == {"structure", "clip", "loss"}
    texts = F.normalize(t.nets.clip.embed_text(["red cartoon", "photo"]), dim=1)
    assert torch.equal(t.features.embedding, texts[:1]) and torch.equal(t.anchor(t.source.faces(0)), texts[1:])
    assert torch.allclose(t.features.w_plus, t.nets.mmfs.styles_of(texts[:1]))


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_micro_batches_change_memory_and_nothing_else(rows):
    t, runs = trainer(), []
    found = []
    for micro in (0, rows):
        t.config = replace(CONFIG, mapper_dropout=False, micro_batch=micro, palette_weight=3.0)
        t.mapper.train(False)
        runs.append(fewshot.start(t.nets.mmfs, t.config))
        found.append(fewshot.update(t, runs[-1], 0))
    (values, pictures), (values_too, pictures_too) = found
    assert all(torch.allclose(values[k], values_too[k], rtol=1e-4, atol=1e-6) for k in values)
    assert torch.allclose(pictures, pictures_too, atol=1e-5)
    gradients, others = ([p.grad for p in run.nets["decoder"].parameters()] for run in runs)
    largest = max(float(g.abs().max()) for g in gradients)
    assert all(torch.allclose(g, h, rtol=1e-3, atol=1e-4 * largest) for g, h in zip(gradients, others))


def test_dropout_jitters_the_style_code_of_every_row_and_can_be_off():
    t = trainer()
    with seeded(0, "dropout"):
        codes = t.codes()
    assert codes.shape == (4, 6, 24) and not torch.allclose(codes[0], codes[1]) and not t.nets.mmfs.mapper.training
    off = trainer(config=replace(CONFIG, mapper_dropout=False)).codes()
    assert torch.allclose(off, t.features.w_plus.expand(4, -1, -1), atol=1e-6)


def test_a_small_batch_takes_the_mean_of_all_faces():
    t = trainer(config=replace(CONFIG, batch=2))
    every = F.normalize(t.nets.clip.embed(tiny.pictures(6, 5), "mmfs"), dim=1).mean(0, keepdim=True)
    assert torch.allclose(t.anchor(t.source.faces(0)), every, atol=1e-6)
    large = trainer()
    faces = large.source.faces(0)
    assert torch.equal(large.anchor(faces), faces.embeddings.mean(0, keepdim=True))
    large.config = replace(CONFIG, mean="all")
    assert torch.allclose(large.anchor(faces), every, atol=1e-6)


def test_training_lowers_the_loss_and_the_average_is_what_comes_out():
    style, run = tuned(config=replace(CONFIG, iterations=25, mapper_dropout=False))
    history = run.loss_history["loss"]
    assert len(history) == 25 and sum(history[-3:]) < 0.8 * sum(history[:3])
    average = run.ema["decoder"].state_dict()
    assert all(torch.equal(style.decoder[name], value.half()) for name, value in average.items())
    assert any(not torch.equal(average[name], value) for name, value in run.nets["decoder"].state_dict().items())


# --- determinism and resume ------------------------------------------------------------------------------------------
def test_a_seed_gives_the_same_weights_again_whatever_the_global_generator_does():
    first, nets = tuned()[1], networks()
    others = by_picture(), tiny.pictures(6, 5), CONFIG
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = tune_mmfs(nets, *others)[1]
    assert torch.equal(before, torch.get_rng_state())
    assert tiny.same(state(first), state(second)) and first.loss_history == second.loss_history
    assert not tiny.same(state(first), state(tuned(config=replace(CONFIG, seed=4))[1]))


@pytest.mark.parametrize("photos", [None, "samples"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, photos):
    photos = photos and Samples(stylegan2())
    whole_style, whole = tuned(photos=photos)
    path = tmp_path / "a.snapshot"

    def stop(progress):
        if progress.step == 3:
            raise Stop

    with pytest.raises(Stop):
        tuned(photos=photos, checkpointing=Checkpointing(path, 2), on_iteration=stop)
    torch.manual_seed(99)
    seen = []
    style, run = tuned(photos=photos, checkpointing=Checkpointing(path, 2), on_start=lambda r: seen.append(r.step))
    assert seen == [3] and run.step == 4 and tiny.same(state(run), state(whole))
    assert run.loss_history == whole.loss_history
    assert tiny.same(dict(style.decoder), dict(whole_style.decoder)) and style.settings == whole_style.settings


def test_a_snapshot_of_before_the_ramp_was_a_setting_goes_on_with_it(tmp_path):
    """Also when it was saved and resumed once more; that is said, and a new training has what is asked for."""
    whole, said = state(tuned(config=replace(CONFIG, ema_ramp=True))[1]), []
    path = tmp_path / "a.snapshot"
    tuned(config=replace(CONFIG, iterations=1, ema_ramp=True), checkpointing=Checkpointing(path))
    old = store.load(path)
    store.save(path, old.tensors, "snapshot", {k: v for k, v in old.config.items() if k != "ema_ramp"}, old.meta,
               dtype=None)
    for iterations in (2, 4):
        style, run = tuned(config=replace(CONFIG, iterations=iterations), checkpointing=Checkpointing(path),
                           warn=said.append)
        assert "ema_ramp" not in style.settings
    assert tiny.same(state(run), whole) and len(said) == 2 and "goes on as it began, with ema_ramp True" in said[0]
    assert not tiny.same(state(tuned()[1]), whole)
    with pytest.raises(CheckpointError, match="ema_ramp was True and is False now"):
        tuned(config=replace(CONFIG, ema_ramp=True), checkpointing=Checkpointing(tmp_path / "b"))
        tuned(checkpointing=Checkpointing(tmp_path / "b"))


def test_photos_are_augmented_a_few_at_a_time_to_the_same_faces(monkeypatch):
    photos, sizes = to_bytes(tiny.pictures(3, 5)), []
    rows = torch.arange(8) % 3
    whole = to_bytes(random_augment(to_unit(photos[rows]), source_faces.OWN_AUGMENTATIONS,
                                    rng.generator(CONFIG.seed, "augmented faces")))
    monkeypatch.setattr(source_faces, "AUGMENTED_AT_ONCE", 3)
    monkeypatch.setattr(source_faces, "augment", lambda x, *given: (sizes.append(len(x)), augment(x, *given))[1])
    found = Source(networks(), photos, replace(CONFIG, cached_content=11)).photos
    assert torch.equal(found, torch.cat([photos, whole])) and max(sizes) == 3


def test_cancelling_takes_effect_within_one_step():
    calls, told = [], []

    def check():
        calls.append(len(told))
        if len(told) == 2:
            raise Stop

    with pytest.raises(Stop):
        tuned(check_interrupt=check, on_step=told.append)
    assert len(told) == 2 and calls[-1] == 2
    assert told[0].predictions.shape == (4, 3, 32, 32) and "loss" in told[0].losses


def test_cancelling_takes_effect_while_faces_are_prepared():
    calls = []

    def check():
        calls.append(1)
        raise Stop

    for photos in (None, Samples(stylegan2())):
        with pytest.raises(Stop):
            tuned(photos=photos, config=replace(CONFIG, cached_content=8), check_interrupt=check)
    assert len(calls) == 2


def test_more_iterations_resume_where_fewer_ended(tmp_path):
    path = tmp_path / "a.snapshot"
    tuned(config=replace(CONFIG, iterations=2), checkpointing=Checkpointing(path, 5))
    style, run = tuned(checkpointing=Checkpointing(path, 5))
    assert run.step == 4 and tiny.same(state(run), state(tuned()[1])) and style.settings["iterations"] == 4


def test_a_finished_run_is_shown_once_and_nothing_is_done(tmp_path):
    path, told = tmp_path / "a.snapshot", []
    _, run = tuned(checkpointing=Checkpointing(path, 3))
    style, again = tuned(checkpointing=Checkpointing(path, 3), on_step=told.append)
    assert len(told) == 1 and told[0].iteration == 3 and told[0].predictions.shape == (4, 3, 32, 32)
    assert again.step == 4 and tiny.same(state(run), state(again)) and style.settings["iterations"] == 4


@pytest.mark.parametrize(("changes", "message"), [
    ({"config": replace(CONFIG, lr=2e-2)}, "lr was 0.01 and is 0.02"),
    ({"config": replace(CONFIG, clip_weight=2.0)}, "clip_weight was 1.0 and is 2.0"),
    ({"target": by_picture(4)}, "learned from"),
    ({"target": by_picture(2, 4)}, "learned from"), ({"target": TEXT}, "prompt was ''"),
    ({"photos": tiny.pictures(6, 6)}, "source faces"), ({"net": mmfs(1)}, "model it starts from")])
def test_a_snapshot_of_another_session_is_refused(tmp_path, changes, message):
    path = tmp_path / "a.snapshot"
    tuned(config=replace(CONFIG, iterations=1), checkpointing=Checkpointing(path, 1))
    with pytest.raises(CheckpointError, match=message):
        tuned(checkpointing=Checkpointing(path, 1), **changes)
    again = tuned(config=replace(CONFIG, iterations=1, lr=2e-2), checkpointing=Checkpointing(path, resume=False))
    assert again[1].step == 1


# --- references ------------------------------------------------------------------------------------------------------
def test_several_references_are_averaged_and_projected_together():
    one, two, both = (trainer(by_picture(*seeds)).features for seeds in ((2,), (4,), (2, 4)))
    assert torch.allclose(both.embedding, (one.embedding + two.embedding) / 2, atol=1e-6)
    ranks = [round(float(g.projection.trace())) for g in (one, two, both)]
    assert ranks[0] == ranks[1] == 16 and ranks[2] == 32 and both.projection.shape == (64, 64)


def test_pictures_may_be_floats_of_any_size():
    exact = ((tiny.pictures(1, 2, 40)[0] + 1) * 127.5).round().byte()
    a, b = (trainer(Reference(pictures=[p])).features for p in (exact, exact.float() / 127.5 - 1))
    assert torch.equal(a.embedding, b.embedding)
    wide = torch.randint(0, 255, (3, 33, 90), generator=torch.Generator().manual_seed(0)).byte()
    assert torch.isfinite(trainer(Reference(pictures=[wide])).features.embedding).all()


@pytest.mark.parametrize(("target", "message"), [
    (Reference(""), "prompt is empty"), (Reference("  "), "prompt is empty"), (Reference("zzz"), "does not know 'zzz'"),
    (Reference("red " * 7), "9 tokens and this CLIP reads at most 8"),
    (Reference("red", [reference()]), "not both"),
    (Reference(pictures=[torch.full((3, 20, 20), 90, dtype=torch.uint8)]), "reference 1 is one flat colour"),
    (Reference(pictures=[reference(), torch.full((3, 20, 20), 0.5)]), "reference 2 is one flat colour"),
    (Reference("red", w_plus=torch.zeros(2, 6, 24)), "one code only")])
def test_a_target_that_cannot_be_used_is_refused_before_any_work(target, message):
    net, calls = mmfs(), []
    with pytest.raises(ValueError, match=message):
        tuned(target, net=net, check_interrupt=lambda: calls.append(1), on_start=calls.append)
    assert not calls


def test_an_anchor_that_clip_does_not_know_is_refused_for_text_only():
    config = replace(CONFIG, iterations=1, anchor="zzz")
    with pytest.raises(ValueError, match="does not know 'zzz'"):
        tuned(TEXT, config)
    tuned(config=config)


def test_a_model_without_mapping_needs_a_style_code():
    net = mmfs(config=replace(MODEL, mapper=None))
    with pytest.raises(ValueError, match="no CLIP mapping"):
        tuned(net=net)
    w = net.styles(torch.randn(1, 24, generator=torch.Generator().manual_seed(0)))
    style, run = tuned(replace(by_picture(), w_plus=w), net=net)
    assert torch.equal(style.w_plus, w) and run.step == 4


def test_a_clip_of_another_width_is_refused():
    net = mmfs(config=replace(MODEL, w_dim=32))
    with pytest.raises(ValueError, match="CLIP gives 24 numbers"):
        tuned(net=net)


# --- source faces ----------------------------------------------------------------------------------------------------
def source(photos, net=None, **options):
    return Source(networks(net), photos, replace(CONFIG, **options))


def same_faces(a, b):
    return all(torch.allclose(getattr(a, n), getattr(b, n), atol=1e-5) for n in ("features", "embeddings", "keys"))


def test_photos_are_encoded_once_or_in_every_step_with_the_same_result(monkeypatch):
    photos = tiny.pictures(6, 5)
    kept = source(photos)
    monkeypatch.setattr(source_faces, "CACHE_BYTES", 1)
    fresh = source(photos)
    assert kept.cached is not None and fresh.cached is None
    assert all(same_faces(kept.faces(k), fresh.faces(k)) for k in range(3))


def test_photos_may_be_bytes():
    photos = (tiny.pictures(6, 5) + 1).mul(127.5).round().byte()
    assert same_faces(source(photos).faces(1), source(photos.float() / 127.5 - 1).faces(1))


def test_the_faces_of_a_step_depend_on_seed_and_step_alone_and_repeat_nobody_before_all_had_a_turn():
    faces = source(tiny.pictures(6, 5))
    first = faces.faces(0)
    faces.faces(7)
    assert torch.equal(first.features, faces.faces(0).features)
    assert not torch.equal(first.features, faces.faces(1).features)
    assert len({row.numpy().tobytes() for row in first.embeddings}) == 4
    few = source(tiny.pictures(3, 5)).faces(0)
    assert len(few.embeddings) == 4 and len({row.numpy().tobytes() for row in few.embeddings}) == 3


def test_samples_of_a_stylegan2_are_new_in_every_step_or_generated_once():
    samples = Samples(stylegan2())
    net = mmfs(config=replace(MODEL, encoder=(8, 24), decoder=(24, 8)))
    fresh = source(samples, net)
    assert fresh.cached is None and fresh.faces(0).features.shape == (4, 24, 32, 32)  # 32 px samples, a model of 64
    assert not torch.equal(fresh.faces(0).features, fresh.faces(1).features)
    assert torch.equal(fresh.faces(0).features, source(samples, net).faces(0).features)
    cached = source(samples, net, cached_content=6)
    assert cached.photos.shape == (6, 3, 64, 64) and cached.photos.dtype == torch.uint8 and cached.cached is not None
    assert fresh.mean.shape == (1, 24) and torch.equal(fresh.mean, fresh.mean)


def test_cached_content_adds_augmentations_to_few_photos_and_leaves_many_alone():
    photos = tiny.pictures(2, 5)
    cached = source(photos, cached_content=7).photos
    assert cached.shape == (7, 3, 32, 32) and len({p.numpy().tobytes() for p in cached}) == 7
    assert torch.equal(cached[:2], ((photos + 1) * 127.5).round().byte())
    assert len(source(tiny.pictures(9, 5), cached_content=7).photos) == 9


@pytest.mark.parametrize("cached_content", [0, 7])
@pytest.mark.parametrize("sampled", [False, True])
def test_fine_tunes_of_the_same_faces_share_them_bit_for_bit(monkeypatch, sampled, cached_content):
    photos, known = Samples(stylegan2()) if sampled else tiny.pictures(3, 5), known_faces()
    net = mmfs(config=replace(MODEL, encoder=(8, 24), decoder=(24, 8))) if sampled else None

    def faces(**options):
        return Source(networks(net), photos, replace(CONFIG, cached_content=cached_content, **options), known=known)
    alone, first = source(photos, net, cached_content=cached_content), faces()
    encoded = []
    encode = Source._encode
    monkeypatch.setattr(Source, "_encode", lambda *given: encoded.append(0) or encode(*given))
    second = faces()
    shared = not (sampled and not cached_content)  # new samples in every step are nobody else's
    assert not encoded and ("photos" not in vars(second)) and (known.bytes > 0) == shared
    for k in range(3):
        for found in (first, second):
            assert all(map(torch.equal, found.faces(k).tensors, alone.faces(k).tensors))
    assert torch.equal(second.mean, alone.mean)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"batch": 3}, {"cached_content": 8}, {"psi": 0.5}, {"net": 1},
                                     {"faces": 1}, {"clip": 1}, {"structure_net": 1}])
def test_other_faces_are_not_taken_for_the_same(changes):
    """Networks that differ in a bit that 16-bit numbers do not tell are others, too."""
    known, options = known_faces(), {"cached_content": 6}

    def prepare(changes):
        nets = networks(mmfs(config=replace(MODEL, encoder=(8, 24), decoder=(24, 8))))
        samples = Samples(stylegan2(), changes.get("psi", 0.7))
        changed = {"net": nets.mmfs, "faces": samples.net, "clip": nets.clip, "structure_net": nets.structure_net}
        for name in changed.keys() & changes.keys():
            next(changed[name].parameters()).data.view(-1)[0] *= 1 + 2 ** -20
        settings = options | {n: v for n, v in changes.items() if n in ("seed", "batch", "cached_content")}
        Source(nets, samples, replace(CONFIG, **settings), known=known)
        return known.bytes
    assert 0 < prepare({}) == prepare({}) < prepare(changes)


def test_faces_that_do_not_fit_are_not_shared(monkeypatch):
    monkeypatch.setattr(source_faces, "CACHE_BYTES", 1)
    known, photos = known_faces(), tiny.pictures(6, 5)
    found = [Source(networks(), photos, CONFIG, known=known) for _ in range(2)]
    assert all(one.cached is None for one in found) and not known.bytes
    assert same_faces(found[0].faces(1), found[1].faces(1))


@pytest.mark.parametrize(("photos", "message"), [
    (torch.zeros(0, 3, 32, 32), "one picture at least"), (torch.zeros(2, 1, 32, 32), r"must be \(N, 3, H, W\)"),
    (torch.zeros(2, 3, 30, 32), "multiples of 4 px, best 128 x 128")])
def test_photos_that_cannot_be_used_are_refused(photos, message):
    with pytest.raises(ValueError, match=message):
        tuned(photos=photos)


# --- the style that comes out ----------------------------------------------------------------------------------------
def test_the_style_holds_all_that_is_needed_to_use_it_and_to_tell_how_it_was_made():
    net = mmfs()
    style, run = tuned(Reference(pictures=[torch.randint(0, 255, (3, 300, 600)).byte()]), net=net)
    assert style.config == MODEL and style.model == fingerprint(net) and style.prompt == ""
    assert style.style_image.shape == (3, 300, 600) and style.w_plus.shape == (1, 6, 24)
    assert all(value.dtype == torch.float16 for value in style.decoder.values())
    assert json.loads(json.dumps(style.settings)) == style.settings
    assert style.settings["source"] == "6 photos" and asdict(CONFIG).items() <= style.settings.items()
    x = tiny.pictures(1, 7)
    with torch.no_grad():
        average = F.hardtanh(run.ema["decoder"](net.encode(x), style.w_plus))
        assert torch.allclose(styled(net, style)(x, style.w_plus), average, atol=2e-2)
    text = tuned(Reference("red face"), photos=Samples(stylegan2()), config=replace(CONFIG, iterations=1))[0]
    assert text.prompt == "red face" and text.style_image is None and "StyleGAN2" in text.settings["source"]
