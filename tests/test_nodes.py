"""Every node, executed as ComfyUI does it (under inference mode), with tiny networks."""
from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from oneshot_atelier.models.osasis import SamplingSettings
from oneshot_atelier.tests import golden_cases, mmfs_files, tiny_models
from oneshot_atelier.tests.node_tools import interrupt_after, picture, same

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("comfy")]
PX = tiny_models.PX
TUNE = {"iterations": 2, "batch": 2, "lr": 1e-3, "lr_spn": 1e-3, "spn": "timed", "spn_weight": 0.1, "seed": 3,
        "save_every": 0, "resume": True}
QUICK = {"forward_steps": 10, "reverse_steps": 10, "latent_steps": 10, "generate_steps": 10}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_models.write(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def loaded(nodes):
    """One of each network, as the loaders give them."""
    diffae = nodes.LoadDiffAE.execute("demo")[0]
    return SimpleNamespace(
        diffae=diffae, ddpm=nodes.LoadDDPM.execute("demo")[0], clip=nodes.LoadCLIP.execute("demo", "auto")[0],
        perceptual=nodes.LoadPerceptual.execute("encoder of the DiffAE", diffae)[0])


@pytest.fixture
def tune(nodes, loaded):
    """tune(name, **changes) -> NodeOutput of Fine-Tune with quick options."""
    def run(name="style", options=QUICK, **changes):
        settings = TUNE | {"twin": picture(1), "style_image": picture(2), "name": name} | changes
        return nodes.OSASISFineTune.execute(loaded.diffae, loaded.clip, loaded.perceptual,
                                      options=nodes.sockets.TuneOptions(options), **settings)
    return run


def encoded(nodes, loaded, count=2, t0=0.5):
    photos = picture(5, count)
    semantic = nodes.SemanticEncode.execute(loaded.diffae, photos)[0]
    return photos, semantic, nodes.StructuralEncode.execute(loaded.diffae, photos, 10, t0, semantic)[0]


def stylized(nodes, style, structure, mix, **changes):
    settings = {"steps": 10, "use_spn": True, "spn_weight": 0.1, "batch": 8, "spn_time": "index",
                "noise_level": "official"} | changes
    return nodes.OSASISStylize.execute(style, structure, mix, **settings)[0]


def weights_of(style):
    return {**style.style.unet, **{f"spn.{k}": v for k, v in (style.style.spn or {}).items()}}


# --- the whole chain -----------------------------------------------------------------------------------------------
def test_from_style_image_to_stylized_batch(nodes, loaded, tune):
    twin, ranked, scores = nodes.PhotoTwin.execute(loaded.ddpm, loaded.perceptual, picture(2), 3, 0.5, 10, 0, 7,
                                                   "official").args
    assert twin.shape == (1, PX, PX, 3) and ranked.shape == (3, PX, PX, 3) and len(scores.splitlines()) >= 3
    style, code, predictions, curve, losses = tune(twin=twin).args
    assert predictions.shape == (3, PX, PX, 3) and curve.ndim == 4 and len(losses["loss"]) == 2
    photos, semantic, structure = encoded(nodes, loaded, count=3)
    mix = nodes.MixCodes.execute(semantic, code, 32, False, "")[0]
    result = stylized(nodes, style, structure, mix)
    assert result.shape == photos.shape and result.dtype == torch.float32
    assert 0 <= result.min() and result.max() <= 1 and torch.isfinite(result).all()
    assert torch.allclose(result, stylized(nodes, style, structure, mix, batch=2), atol=1e-5)
    assert not torch.allclose(result, stylized(nodes, style, structure, mix, use_spn=False), atol=1e-3)
    report, *values = nodes.Measure.execute(loaded.diffae, loaded.clip, photos, result, twin, picture(2)).args
    assert len(values) == 5 and len(report.splitlines()) == 5 and all(v == v for v in values)


def test_decode_and_sample(nodes, loaded):
    photos, semantic, structure = encoded(nodes, loaded)
    assert nodes.Decode.execute(loaded.diffae, structure, semantic, 10)[0].shape == photos.shape
    first = nodes.SampleDiffAE.execute(loaded.diffae, 2, 4, 10, 10)
    again = nodes.SampleDiffAE.execute(loaded.diffae, 2, 4, 10, 10)
    assert first[0].shape == (2, PX, PX, 3) and first[1].z.shape == (2, 16)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], nodes.SampleDiffAE.execute(loaded.diffae, 2, 5, 10, 10)[0])


def test_structure_is_encoded_without_a_given_code_too(nodes, loaded):
    photos, _, structure = encoded(nodes, loaded)
    alone = nodes.StructuralEncode.execute(loaded.diffae, photos, 10, 0.5)[0]
    assert torch.allclose(alone.x, structure.x, atol=1e-5)


# --- photo twin ----------------------------------------------------------------------------------------------------
def best_twin(nodes, loaded, candidates, batch, pick=0):
    return nodes.PhotoTwin.execute(loaded.ddpm, loaded.perceptual, picture(2), candidates, 0.5, 10, pick, 7, "official",
                                   batch)


def test_candidates_do_not_depend_on_how_many_are_made_at_a_time(nodes, loaded):
    assert torch.allclose(best_twin(nodes, loaded, 5, 5)[1], best_twin(nodes, loaded, 5, 2)[1], atol=1e-5)


def test_pick_takes_a_rank(nodes, loaded):
    best, third = best_twin(nodes, loaded, 4, 4), best_twin(nodes, loaded, 4, 4, pick=2)
    assert torch.equal(best[0], best[1][:1]) and torch.equal(third[0], best[1][2:3])
    with pytest.raises(ValueError, match="counted from 0"):
        best_twin(nodes, loaded, 2, 2, pick=2)


def test_a_poor_twin_is_said_to_be_poor(nodes):
    ranked = nodes.photo_twin.RankedTwins(torch.zeros(1, 3, 8, 8), torch.tensor([9.0]), torch.tensor([0.9]))
    shown = nodes.photo_twin.output(ranked, 0, nodes.PhotoTwin).ui
    assert "far from the style image" in shown["text"][0]


# --- a seed's pictures ------------------------------------------------------------------------------------------------
def sampled(nodes, loaded, count, seed=4):
    return nodes.SampleDiffAE.execute(diffae=loaded.diffae, count=count, seed=seed, steps=10, latent_steps=10)


@pytest.mark.parametrize("count", [2, 3, 9])  # 9: a chunk of 8 and one of 1
def test_the_first_of_many_samples_is_the_only_one_of_one(nodes, loaded, count):
    few, many = sampled(nodes, loaded, 1), sampled(nodes, loaded, count)
    assert torch.allclose(many[0][:1], few[0], atol=1e-5) and torch.allclose(many[1].z[:1], few[1].z, atol=1e-5)
    assert len({image.numpy().tobytes() for image in many[0]}) == count
    assert not torch.allclose(many[0][-1:], sampled(nodes, loaded, 1, seed=5)[0], atol=1e-3)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_first_of_many_candidates_is_the_only_one_of_one(nodes, loaded, batch):
    only, ranked = best_twin(nodes, loaded, 1, 1)[0], best_twin(nodes, loaded, 3, batch)[1]
    assert min((only - candidate).abs().max().item() for candidate in ranked) < 1e-5


@pytest.mark.parametrize("seed", [0, 2 ** 64 - 1])
def test_every_seed_is_taken(nodes, loaded, tune, seed):
    assert sampled(nodes, loaded, 1, seed)[0].shape == (1, PX, PX, 3)
    twin = nodes.PhotoTwin.execute(ddpm=loaded.ddpm, perceptual=loaded.perceptual, style_image=picture(2), candidates=1,
                                   t0=0.5, steps=10, pick=0, seed=seed, noise_level="official")
    assert twin[1].shape == (1, PX, PX, 3)
    assert tune(seed=seed, iterations=1)[0].style.settings["seed"] == seed


# --- settings travel with the style -----------------------------------------------------------------------------------
OWN = {"t0": 0.3, "spn_time": "timestep", "noise_level": "matched"}
FROM_STYLE = {"spn_weight": -1.0, "spn_time": "from style", "noise_level": "from style"}


@pytest.fixture(scope="module")
def tuned_once():
    """A place for the style of the two fixtures below."""
    return []


@pytest.fixture
def tuned(tune, tuned_once):
    """A style that was fine-tuned with other settings than the official ones."""
    if not tuned_once:
        tuned_once.append(tune(options=QUICK | OWN, spn_weight=0.7, iterations=1)[0])
    return tuned_once[0]


@pytest.fixture
def own_style(nodes, tuned):
    """That style, saved and loaded."""
    nodes.SaveOSASISStyle.execute(tuned, "own", False)
    return nodes.LoadOSASISStyle.execute("own.safetensors")[0]


@pytest.fixture
def official_style(nodes, tuned):
    """A style whose file says nothing of its fine-tune."""
    return nodes.sockets.LoadedStyle.of(replace(tuned.style, settings={}))


@pytest.fixture
def sampling(nodes, loaded, monkeypatch):
    """sampling(style, t0, **changes) -> (the settings that the sampler gets, the texts on the node)."""
    def run(style, t0=-1.0, **changes):
        seen, texts = [], []
        monkeypatch.setattr(nodes.host, "show_text", texts.append)
        monkeypatch.setattr(nodes.osasis.osasis, "stylize",
                            lambda unet, x, codes, settings, **_: seen.append(settings) or x)
        structure = nodes.StructuralEncode.execute(loaded.diffae, picture(5), 10, t0, style=style)[0]
        semantic = nodes.SemanticEncode.execute(loaded.diffae, picture(5))[0]
        mix = nodes.MixCodes.execute(semantic, semantic, 32, False, "")[0]
        stylized(nodes, style, structure, mix, **FROM_STYLE | changes)
        return seen[0], texts
    return run


def test_sampling_takes_the_settings_of_the_style(sampling, own_style):
    settings, texts = sampling(own_style)
    assert settings == SamplingSettings(0.3, 0.7, "timestep", "matched") and texts == []


def test_a_style_without_settings_gets_official_ones(sampling, official_style):
    settings, texts = sampling(official_style)
    assert settings == SamplingSettings() == SamplingSettings(0.5, 0.1, "index", "official") and texts == []


@pytest.mark.parametrize("changes", [{"spn_weight": 0.0}, {"spn_weight": 0.25}, {"spn_time": "index"},
                                     {"noise_level": "official"}])
def test_what_the_user_sets_wins(sampling, own_style, changes):
    settings, texts = sampling(own_style, **changes)
    assert settings == replace(own_style.settings, **changes) and texts == []


def test_a_structural_code_of_another_t0_than_the_style_s_says_so(sampling, own_style):
    settings, texts = sampling(own_style, t0=0.5)
    assert settings == replace(own_style.settings, t0=0.5)
    assert texts == ["the structural code was made with t0 0.5, the style was fine-tuned with 0.3"]


def test_structure_is_encoded_up_to_the_t0_of_the_style(nodes, loaded, own_style):
    encode = partial(nodes.StructuralEncode.execute, diffae=loaded.diffae, image=picture(5), steps=10)
    own, given, alone = encode(t0=-1.0, style=own_style)[0], encode(t0=0.3)[0], encode(t0=-1.0)[0]
    assert (own.t0, alone.t0) == (0.3, 0.5) and torch.equal(own.x, given.x) and not torch.equal(own.x, alone.x)
    assert encode(t0=0.6, style=own_style)[0].t0 == 0.6


def test_the_solver_comes_from_the_style_unless_the_user_sets_it(nodes, loaded, tune, sampling, official_style):
    style = tune("few", QUICK | {"solver": "dpmpp_2m"}, iterations=1)[0]
    assert style.settings.solver == "dpmpp_2m" and sampling(style)[0].solver == "dpmpp_2m"
    assert sampling(style, solver="ddim")[0].solver == "ddim" == sampling(official_style)[0].solver
    assert sampling(official_style, solver="dpmpp_2m")[0].solver == "dpmpp_2m"
    encode = partial(nodes.StructuralEncode.execute, diffae=loaded.diffae, image=picture(5), steps=10, t0=0.5)
    ddim, own, given = (encode(**chosen)[0].x for chosen in ({}, {"style": style}, {"solver": "dpmpp_2m"}))
    assert torch.equal(own, given) and not torch.allclose(own, ddim, atol=1e-3)
    assert torch.equal(encode(style=style, solver="ddim")[0].x, ddim)


def test_the_solver_of_decode(nodes, loaded):
    _, semantic, structure = encoded(nodes, loaded)
    ddim, few = (nodes.Decode.execute(loaded.diffae, structure, semantic, 10, solver=solver)[0]
                 for solver in ("ddim", "dpmpp_2m"))
    assert ddim.shape == few.shape and not torch.allclose(ddim, few, atol=1e-3)


def test_a_preset_that_says_iterations_and_rates_is_followed_and_named(tune, monkeypatch, nodes):
    texts = []
    monkeypatch.setattr(nodes.host, "show_text", texts.append)
    result = tune(options=QUICK | {"iterations": 3, "lr": 0.002})
    assert texts[0] == "from the options: iterations 3, lr 0.002" and len(result[4]["loss"]) == 3
    assert result[0].style.settings["iterations"] == 3 and result[0].style.settings["lr"] == 0.002


@pytest.mark.parametrize("value", [-0.5, -0.01])
def test_between_unset_and_zero_there_is_nothing(nodes, loaded, own_style, sampling, value):
    with pytest.raises(ValueError, match="^t0 is"):
        nodes.StructuralEncode.execute(diffae=loaded.diffae, image=picture(5), steps=10, t0=value, style=own_style)
    with pytest.raises(ValueError, match="^spn_weight is"):
        sampling(own_style, spn_weight=value)


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
def test_precision_reaches_autocast(nodes, loaded, official_style, monkeypatch, precision):
    _, semantic, structure = encoded(nodes, loaded, count=1)
    mix, asked = nodes.MixCodes.execute(semantic, semantic, 32, False, "")[0], []
    monkeypatch.setattr(nodes.host, "autocast", lambda device, name: asked.append(name) or nullcontext())
    stylized(nodes, official_style, structure, mix, precision=precision)
    nodes.Decode.execute(diffae=loaded.diffae, structure=structure, semantic=semantic, steps=10, precision=precision)
    assert asked == [precision, precision]

# --- mixing --------------------------------------------------------------------------------------------------------
def test_levels_override_the_change_point(nodes):
    z = nodes.sockets.SemanticCode(torch.zeros(1, 16), "a")
    mix = nodes.MixCodes.execute(z, z, 32, False, "32: 0.25; middle=1")[0]
    assert mix.weights(tiny_models.UNET) == (0.25, 0.0, 1.0)
    assert nodes.MixCodes.execute(z, z, 32, True, "")[0].weights(tiny_models.UNET) == (0.0, 1.0, 1.0)


def test_levels_of_0_and_1_are_the_change_point_bit_for_bit(nodes, loaded, own_style):
    _, semantic, structure = encoded(nodes, loaded)
    code = nodes.SemanticEncode.execute(loaded.diffae, picture(2))[0]

    def made(change_point, levels):
        mix = nodes.MixCodes.execute(semantic, code, change_point, False, levels)[0]
        return stylized(nodes, own_style, structure, mix)
    by_change_point = made(32, "")
    assert torch.equal(made(512, "32:1, 16:0, middle:0"), by_change_point)
    assert torch.equal(made(1, "16:0, middle:0"), by_change_point)
    half = made(512, "32:0.5")
    assert not torch.equal(half, by_change_point) and not torch.equal(half, made(512, ""))


def test_codes_between_two_pictures(nodes, loaded):
    one, two = (nodes.SemanticEncode.execute(loaded.diffae, picture(n, 2))[0] for n in (5, 6))
    at = [nodes.InterpolateCodes.execute(one, two, share)[0] for share in (0.0, 0.25, 1.0)]
    assert torch.equal(at[0].z, one.z) and torch.equal(at[2].z, two.z)
    assert torch.allclose(at[1].z, 0.75 * one.z + 0.25 * two.z, atol=1e-6)
    assert {code.fingerprint for code in at} == {loaded.diffae.fingerprint}
    single = nodes.SemanticEncode.execute(loaded.diffae, picture(7))[0]
    for pair in ((one, single), (single, one)):
        assert nodes.InterpolateCodes.execute(*pair, 1.0)[0].z.shape == (2, 16)
    with pytest.raises(ValueError, match="2 first codes cannot be paired with 3 second codes"):
        nodes.InterpolateCodes.execute(one, nodes.SemanticEncode.execute(loaded.diffae, picture(8, 3))[0], 0.5)
    with pytest.raises(ValueError, match="the second code was made with another DiffAE"):
        nodes.InterpolateCodes.execute(one, replace(two, fingerprint="x"), 0.5)


@pytest.mark.parametrize("text", ["128", "128:2", "a:1", "128:1 64:1", "middle:-1"])
def test_unreadable_levels_are_refused_before_anything_runs(nodes, text):
    assert "cannot be read" in nodes.MixCodes.validate_inputs(levels=text)


def test_a_level_that_(nodes, loaded):
    _, semantic, structure = encoded(nodes, loaded)
    mix = nodes.MixCodes.execute(semantic, semantic, 32, False, "256:1")[0]
    with pytest.raises(ValueError, match="its levels are 32, 16, middle"):
        mix.codes(structure)


def test_codes_of_another_count(nodes, loaded):
    _, semantic, structure = encoded(nodes, loaded, count=3)
    two = nodes.sockets.SemanticCode(semantic.z[:2], semantic.fingerprint)
    with pytest.raises(ValueError, match="2 rows for 3 pictures"):
        nodes.MixCodes.execute(two, semantic, 32, False, "")[0].codes(structure)


# --- pictures ------------------------------------------------------------------------------------------------------
def test_the_border_keeps_pictures(nodes):
    image = picture(0, 2)
    assert torch.allclose(nodes.images.to_image(nodes.images.to_model(image, PX)), image, atol=1e-6)


def test_alpha_is_laid_on_white_and_grey_made_rgb(nodes):
    clear = torch.zeros(1, 16, 16, 4)
    assert torch.equal(nodes.images.to_model(clear, 16), torch.ones(1, 3, 16, 16))
    assert nodes.images.to_model(torch.full((1, 16, 16, 1), 0.5), 16).shape == (1, 3, 16, 16)
    assert nodes.images.to_model(torch.full((1, 16, 16, 3), 7.0), 16).max() == 1


@pytest.mark.parametrize("image, message", [
    (torch.rand(0, 16, 16, 3), "no picture"), (torch.rand(1, 1, 1, 3), "at least 8 px"),
    (torch.full((1, 16, 16, 3), float("nan")), "NaN"), (torch.full((1, 16, 16, 3), float("inf")), "NaN"),
    (torch.rand(1, 16, 16, 2), "2 channels"), (torch.rand(16, 16, 3), "Connect an IMAGE"),
    (torch.zeros(1, 1, 1, 1).expand(1, 16_001, 16_001, 1), "too large")])
def test_unusable_pictures(nodes, loaded, image, message):
    with pytest.raises(ValueError, match=message):
        nodes.SemanticEncode.execute(loaded.diffae, image)
    with pytest.raises(ValueError, match=message):
        nodes.FitPicture.execute(image, 64, "crop")


def test_a_photo_of_64_megapixels_is_not_too_large(nodes):
    photo = torch.zeros(1, 1, 1, 3).expand(1, 8000, 8000, 3)
    assert nodes.images.check(photo, "image") is photo


def test_the_limit_is_that_of_the_photo_and_not_of_the_batch(nodes, monkeypatch):
    monkeypatch.setattr(nodes.images, "MAX_PIXELS", 64 * 64)
    assert nodes.FitPicture.execute(picture(0, 3, side=64), 16, "crop")[0].shape == (3, 16, 16, 3)
    with pytest.raises(ValueError, match="65 x 65 px is too large"):
        nodes.FitPicture.execute(picture(0, side=65), 16, "crop")


def load_image(alpha):
    """(IMAGE, MASK) as core's Load Image gives a black file with this alpha (H, W)."""
    return torch.zeros(1, *alpha.shape, 3), 1 - alpha[None]


def test_the_mask_of_load_image_is_laid_on_white(nodes):
    alpha = torch.zeros(16, 16)
    alpha[:, 8:] = 0.75
    image, mask = load_image(alpha)
    fitted = nodes.FitPicture.execute(image, 16, "crop", mask)[0]
    assert torch.equal(fitted, (1 - alpha)[None, ..., None].expand(1, 16, 16, 3))
    rgba = torch.cat([image, 1 - mask[..., None]], dim=-1)
    for both in (mask, torch.zeros(1, 16, 16), torch.zeros(1, 64, 64), None):  # alpha counts once, with a mask or not
        assert torch.equal(nodes.FitPicture.execute(rgba, 16, "crop", both)[0], fitted)
    half = torch.zeros(1, 16, 16)
    half[:, :8] = 1.0
    assert torch.equal(nodes.FitPicture.execute(rgba, 16, "crop", half)[0], nodes.FitPicture.execute(
        rgba, 16, "crop", half.maximum(mask))[0])
    with pytest.raises(ValueError, match="mask of the same node"):
        nodes.FitPicture.execute(image, 16, "crop", torch.ones(1, 8, 8))


@pytest.mark.parametrize("mode", ["crop", "pad", "squash"])
def test_a_long_batch_is_fitted_as_one_at_a_time(nodes, monkeypatch, mode):
    image = torch.rand(7, 20, 30, 4)
    whole = nodes.FitPicture.execute(image, 16, mode)[0]
    monkeypatch.setattr(nodes.images, "CHUNK_PIXELS", 3 * 20 * 30)  # 3, 3 and 1
    assert torch.equal(nodes.FitPicture.execute(image, 16, mode)[0], whole)
    assert torch.equal(torch.cat([nodes.FitPicture.execute(one[None], 16, mode)[0] for one in image]), whole)


@pytest.mark.parametrize("mode", ["crop", "pad", "squash"])
def test_fit_makes_squares(nodes, mode):
    image = torch.rand(2, 20, 50, 3)
    fitted = nodes.FitPicture.execute(image, 48, mode)[0]
    assert fitted.shape == (2, 48, 48, 3) and fitted.is_contiguous()
    assert (fitted[:, 0] > 0.9999).all().item() == (mode == "pad")


def test_where_one_picture_is_needed(nodes, loaded, tune):
    with pytest.raises(ValueError, match="2 style images and 1 twins"):
        tune(style_image=picture(2, 2))
    with pytest.raises(ValueError, match="one picture is needed"):
        nodes.PhotoTwin.execute(loaded.ddpm, loaded.perceptual, picture(2, 2), 1, 0.5, 10, 0, 0, "official")


def test_steps_that_do_not_space_evenly(nodes, loaded):
    message = nodes.StructuralEncode.validate_inputs(steps=60)
    assert "cannot be spaced evenly" in message
    assert nodes.OSASISStylize.validate_inputs(steps=None) is True
    with pytest.raises(ValueError, match="cannot be spaced evenly"):
        nodes.StructuralEncode.execute(loaded.diffae, picture(0), 60, 0.5)


# --- loading -------------------------------------------------------------------------------------------------------
def test_files_are_listed_and_checked_again(nodes, comfy, tiny):
    shutil.copy(tiny / "diffae.safetensors", comfy / "models" / "diffae" / "mine.safetensors")
    (comfy / "models" / "diffae" / "readme.txt").write_text("no model")
    assert nodes.host.model_choices("diffae") == ["demo", "mine.safetensors"]
    mine, demo = (nodes.LoadDiffAE.execute(name)[0] for name in ("mine.safetensors", "demo"))
    assert mine.fingerprint == demo.fingerprint
    for name in ("other.safetensors", "../mine.safetensors", "readme.txt"):
        with pytest.raises(ValueError, match="there is no file"):
            nodes.LoadDiffAE.execute(name)


@pytest.mark.parametrize("name", ["sub\\mine.safetensors", "sub/mine.safetensors"])
def test_a_file_of_a_folder_is_found_whatever_system_named_it(nodes, comfy, tiny, name):
    (comfy / "models" / "diffae" / "sub").mkdir()
    shutil.copy(tiny / "diffae.safetensors", comfy / "models" / "diffae" / "sub" / "mine.safetensors")
    assert nodes.LoadDiffAE.validate_inputs(model=name) is True
    assert nodes.LoadDiffAE.execute(name)[0].fingerprint == nodes.LoadDiffAE.execute("demo")[0].fingerprint


def test_a_name_from_linux_is_found_on_windows(nodes, monkeypatch):
    import folder_paths
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda kind: ["sub\\mine.safetensors"])
    monkeypatch.setattr(folder_paths, "get_full_path", lambda kind, name: f"C:\\models\\{name}")
    assert str(nodes.host.model_path("osasis", "sub/mine.safetensors")) == "C:\\models\\sub\\mine.safetensors"


def test_a_file_in_another_folder_is_named(nodes, comfy, tiny):
    (comfy / "models" / "diffae" / "here").mkdir()
    shutil.copy(tiny / "diffae.safetensors", comfy / "models" / "diffae" / "here" / "mine.safetensors")
    for name in ("there\\mine.safetensors", "mine.safetensors"):
        said = nodes.LoadDiffAE.validate_inputs(model=name)
        assert "there is no file" in said and "Pick 'here/mine.safetensors'" in said
    assert "Pick" not in nodes.LoadDiffAE.validate_inputs(model="here/yours.safetensors")


def test_a_changed_file_is_loaded_again(nodes, comfy, tiny):
    target = comfy / "models" / "ddpm" / "mine.safetensors"
    assert nodes.LoadDDPM.fingerprint_inputs("mine.safetensors") == "missing"
    shutil.copy(tiny / "ddpm.safetensors", target)
    before = nodes.LoadDDPM.fingerprint_inputs("mine.safetensors")
    target.write_bytes(target.read_bytes() + b" ")
    assert nodes.LoadDDPM.fingerprint_inputs("mine.safetensors") != before


def test_a_file_of_another_kind(nodes, comfy, tiny):
    shutil.copy(tiny / "clip.safetensors", comfy / "models" / "diffae" / "mine.safetensors")
    with pytest.raises(ValueError, match="Load CLIP"):
        nodes.LoadDiffAE.execute("mine.safetensors")


def test_the_demo_model_is_missing(nodes, comfy, monkeypatch):
    monkeypatch.setattr(nodes.host, "DEMO", comfy / "nowhere")
    with pytest.raises(ValueError, match="Clone the pack again"):
        nodes.LoadDiffAE.execute("demo")


def test_the_substitute_needs_a_diffae(nodes):
    with pytest.raises(ValueError, match="needs a DiffAE. Connect Load DiffAE"):
        nodes.LoadPerceptual.execute("encoder of the DiffAE")


def test_the_users_folders_are_kept(nodes, monkeypatch):
    import folder_paths
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffae", (["/mine"], set()))
    nodes.host.register_folders()
    paths, extensions = folder_paths.folder_names_and_paths["diffae"]
    assert "/mine" in paths and extensions == nodes.host.EXTENSIONS


def test_styles_are_saved_in_the_default_folder_of_extra_model_paths(nodes, comfy, tune):
    from utils.extra_config import load_extra_path_config
    config = comfy / "extra_model_paths.yaml"
    config.write_text(f"mine:\n    base_path: {comfy / 'elsewhere'}\n    is_default: true\n    osasis: styles\n")
    load_extra_path_config(str(config))
    nodes.host.register_folders()
    path = nodes.SaveOSASISStyle.execute(tune(iterations=1)[0], "mine", False)[0]
    assert path == str(comfy / "elsewhere" / "styles" / "mine.safetensors")
    assert nodes.LoadOSASISStyle.execute("mine.safetensors")[0].style.settings["iterations"] == 1


def test_the_memory_of_networks_is_told(loaded):
    """ComfyUI's --cache-ram asks for it."""
    for model in (loaded.diffae, loaded.ddpm, loaded.clip, loaded.perceptual):
        parameters = sum(p.numel() * p.element_size() for p in model.patched.net.parameters())
        assert parameters <= model.get_ram_usage() < 1.5 * parameters + 1000, model


def test_the_memory_of_a_style_is_that_of_its_networks_and_its_tensors(tune):
    style = tune(iterations=1)[0]
    parameters = sum(p.numel() * p.element_size() for net in (style.unet, style.spn) for p in net.parameters())
    assert parameters < style.get_ram_usage()


@pytest.mark.parametrize("package", ["open_clip_torch", "timm", "lpips", "kornia"])
def test_a_package_that_is_too_old_costs_only_the_nodes_that_need_it(nodes, comfy, loaded, monkeypatch, package):
    from oneshot_atelier.models.features import packages
    versions = packages.installed_version
    vgg = {k.removeprefix("vgg16."): v for k, v in golden_cases.weights("osasis_train", "lpips.").items()
           if k.startswith("vgg16.")}
    golden_cases.save_torch(comfy / "models" / "lpips" / "vgg.pth", vgg)
    golden_cases.save_torch(comfy / "models" / "dino" / "dino.pth", mmfs_files.dino_state())
    monkeypatch.setattr(packages, "installed_version", lambda name: "0.0.9" if name == package else versions(name))
    needs = {"open_clip_torch": partial(nodes.LoadCLIP.execute, "demo", "auto"),
             "lpips": partial(nodes.LoadPerceptual.execute, "vgg.pth"),
             "timm": partial(nodes.LoadStructureNet.execute, "dino.pth"),
             "kornia": partial(nodes.Measure.execute, loaded.diffae, loaded.clip, *(picture(n) for n in range(4)))}
    for name, load in needs.items():
        if name != package:
            load()
            continue
        with pytest.raises(ImportError, match=f"{name} 0.0.9 is too old. .*{packages.MINIMUM[name]} or newer"):
            load()
    assert nodes.LoadPerceptual.execute("encoder of the DiffAE", loaded.diffae)[0].substitute


# --- networks in ComfyUI's care ---------------------------------------------------------------------------------------
def test_networks_of_this_pack_leave_for_a_training_and_others_stay(nodes, comfy, monkeypatch):
    host, device = nodes.host, torch.device("cpu")
    ours, other = host.PatchedModule(torch.nn.Linear(2, 2)), host.PatchedModule(torch.nn.Linear(2, 2))
    other.patcher.remove_attachments(host.OURS)
    for module in (ours, other):
        with host.running(module):
            pass
    asked = []
    monkeypatch.setattr(host.mm, "free_memory", lambda bytes, device, keep_loaded: asked.extend(keep_loaded))
    host.unload_ours(device)
    kept = [loaded.model for loaded in asked]
    assert other.patcher in kept and ours.patcher not in kept


def test_graphs_stay_while_a_network_is_loaded_and_go_when_it_leaves(nodes, comfy, monkeypatch):
    host, released = nodes.host, []
    monkeypatch.setattr(host, "release", released.append)
    module = host.PatchedModule(torch.nn.Linear(2, 2))
    for _ in range(3):
        with host.running(module):
            assert not released
    host.unload_ours(torch.device("cpu"))
    assert released == [module.net]


def test_an_accelerated_copy_is_made_once_and_counts(nodes, comfy, monkeypatch):
    host = nodes.host
    net = torch.nn.Linear(2, 2)
    module = host.PatchedModule(net)
    assert module.accelerated("auto") is module and module.bytes == 24
    monkeypatch.setattr(host, "accelerated", lambda net, device, precision: torch.nn.Linear(2, 2))
    module.copies.clear()
    copied = module.accelerated("float32")
    assert copied is module.accelerated("float32") and copied is not module and module.bytes == 48


# --- progress ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("options", "shown"), [
    ([], True), (["--preview-method", "none"], False), (["--preview-method=none"], False),
    (["--preview-method", "auto"], True)])
def test_previews_are_shown_unless_the_user_wants_none(nodes, monkeypatch, options, shown):
    from comfy.cli_args import args, parser
    seen = []
    monkeypatch.setattr(nodes.host.sys, "argv", ["main.py", *options])
    monkeypatch.setattr(args, "preview_method", parser.parse_args(options).preview_method)
    monkeypatch.setattr(nodes.host, "PREVIEW_SECONDS", -1)  # due at once
    progress = nodes.host.NodeProgress(1)
    monkeypatch.setattr(progress.bar, "update_absolute", lambda done, total, preview: seen.append(preview is not None))
    progress(lambda: nodes.images.to_pil(picture(0)))
    assert seen == [shown]


# --- fine-tuning ---------------------------------------------------------------------------------------------------
def test_contents_of_a_list_are_one_batch_of_one_training(nodes, tune):
    assert nodes.OSASISFineTune.INPUT_IS_LIST is True  # ComfyUI then runs the node once for the whole list
    one, two = picture(8), picture(9, 2, side=48)
    listed = tune("a", contents=[one, two], batch=[2], seed=[3])
    batch = torch.cat([nodes.images.fit(x, PX) for x in (one, two)])
    assert same(weights_of(listed[0]), weights_of(tune("b", contents=batch)[0]))
    assert not same(weights_of(listed[0]), weights_of(tune("c", contents=one)[0]))
    with pytest.raises(ValueError, match="1 style images and 2 twins. Connect a twin of each"):
        tune("d", twin=[one, picture(1)])


@pytest.mark.parametrize("twin", [picture(2), picture(2) + 0.004, torch.cat([picture(2), torch.ones(1, PX, PX, 1)], 3)])
def test_a_twin_that_is_the_style_image_teaches_nothing(tune, comfy, twin):
    with pytest.raises(ValueError, match="no change to learn. Connect the twin of Make Photo Twin, .* not bypassed"):
        tune(twin=twin)
    assert not (comfy / "output" / "atelier").exists()


def test_several_style_images_are_one_style(nodes, tune):
    twins, images = [picture(1), picture(11)], [picture(2), picture(12, side=48)]
    style, code, predictions, *_ = tune("list", twin=twins, style_image=images).args
    batch = tune("batch", twin=torch.cat(twins), style_image=torch.cat([nodes.images.fit(x, PX) for x in images]))
    assert same(weights_of(style), weights_of(batch[0])) and predictions.shape == (3, PX, PX, 3)
    assert not same(weights_of(style), weights_of(tune("one")[0]))
    alone = [tune(f"alone {n}", twin=twin, style_image=image, iterations=1)[1].z
             for n, (twin, image) in enumerate(zip(twins, images))]
    assert torch.allclose(code.z, torch.cat(alone).mean(0, keepdim=True), atol=1e-4)


def test_inputs_stay_as_they_are(loaded, tune):
    nets = (loaded.diffae.net, loaded.clip.patched.net)
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    assert not same(weights_of(tune()[0]), loaded.diffae.net.unet.half().state_dict())
    loaded.diffae.net.float()
    assert all(torch.allclose(net.state_dict()[k].float(), v.float(), atol=1e-3)
               for net, kept in zip(nets, before) for k, v in kept.items())
    assert not any(p.requires_grad for net in nets for p in net.parameters())


def test_training_works_after_nets_were_moved_under_inference_mode(loaded, tune):
    expected = weights_of(tune("still")[0])
    for net in (loaded.diffae.net, loaded.clip.patched.net):
        net.to(torch.float64).to(torch.float32)  # as a move to the GPU and back: now inference tensors
        assert all(p.is_inference() for p in net.parameters())
    assert same(weights_of(tune("moved")[0]), expected)


def test_a_fine_tune_is_the_same_again_and_the_seed_matters(tune):
    first = weights_of(tune("a")[0])
    assert same(first, weights_of(tune("b")[0]))
    assert not same(first, weights_of(tune("c", seed=4)[0]))


@pytest.mark.parametrize("changes", [{"spn": "none"}, {"spn": "untimed"}, {"contents": picture(9, 3, side=48)}])
def test_variants(nodes, loaded, tune, changes):
    style, code, *_ = tune(**changes).args
    assert (style.style.spn is None) == (changes.get("spn") == "none")
    _, semantic, structure = encoded(nodes, loaded)
    assert stylized(nodes, style, structure, nodes.MixCodes.execute(semantic, code, 32, False, "")[0]).shape[0] == 2


def test_cancel_stops_within_a_step_and_resume_is_exact(nodes, tune, comfy, monkeypatch):
    whole = tune("whole", save_every=1, iterations=4)
    with monkeypatch.context() as patch:
        made, interrupted = interrupt_after(patch, nodes, 13)  # 5 steps an iteration: in the middle of the third
        with pytest.raises(interrupted):
            tune("parts", save_every=1, iterations=4)
        assert len(made) == 13
    assert (comfy / "output" / "atelier" / "snapshots" / "parts.snapshot").is_file()
    with monkeypatch.context() as patch:
        made, _ = interrupt_after(patch, nodes, 0)
        rest = tune("parts", save_every=1, iterations=4)
        assert len(made) == 20 - 13  # no step is made twice
    assert same(weights_of(rest[0]), weights_of(whole[0]))
    assert rest[4] == whole[4] and torch.equal(rest[1].z, whole[1].z)


def test_cancel_while_content_is_generated(nodes, tune):
    import comfy.model_management as mm
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        tune(options=QUICK | {"cached_content": 4})


def test_a_finished_snapshot_gives_its_style_at_once(nodes, tune, monkeypatch):
    first = tune(save_every=3)
    made, _ = interrupt_after(monkeypatch, nodes, 0)
    again = tune(save_every=3)
    assert len(made) == 1 and same(weights_of(first[0]), weights_of(again[0]))
    assert torch.allclose(first[2], again[2], atol=1 / 250) and first[4] == again[4]


def test_more_iterations_go_on_from_the_snapshot(tune):
    whole = tune("long", iterations=3)
    tune("grown", save_every=2)
    assert same(weights_of(tune("grown", save_every=2, iterations=3)[0]), weights_of(whole[0]))


def test_fewer_iterations_take_the_earlier_snapshot_that_is_kept_and_say_so(nodes, tune, monkeypatch):
    short, said = tune("short", iterations=1), []
    tune("kept", iterations=3, save_every=1, keep=3)
    monkeypatch.setattr(nodes.host, "show_text", said.append)
    assert same(weights_of(tune("kept", iterations=1, keep=3)[0]), weights_of(short[0]))
    assert said[0] == "resumed at iteration 1 of 1"
    assert said[1].startswith("kept.snapshot has 3 iterations, more than the 1 that are asked for: an earlier snapshot")
    with pytest.raises(ValueError, match="short.snapshot has 2 iterations, more than the 1"):
        tune("short", iterations=2)
        tune("short", iterations=1)


@pytest.mark.parametrize("changes, said", [
    ({"seed": 4}, "seed was 3 and is 4 now"), ({"batch": 3}, "batch was 2"),
    ({"style_image": picture(8)}, "style image"),
    ({"twin": picture(8)}, "photo twin"), ({"contents": picture(8)}, "content photos"),
    ({"options": QUICK | {"cross_weight": 2.0}}, "cross_weight was 1.0 and is 2.0 now")])
def test_a_snapshot_of_other_settings_is_not_gone_on_with(tune, changes, said):
    tune(save_every=1, iterations=1)
    with pytest.raises(ValueError, match=said) as error:
        tune(save_every=1, iterations=1, **changes)
    assert "another name" in str(error.value) and "resume" in str(error.value)


def test_beginning_anew(tune):
    tune(save_every=1, iterations=1)
    fresh = tune(save_every=1, iterations=1, seed=9, resume=False)
    assert same(weights_of(fresh[0]), weights_of(tune(save_every=1, iterations=1, seed=9)[0]))


def test_a_damaged_snapshot(tune, comfy):
    tune(save_every=2)
    path = comfy / "output" / "atelier" / "snapshots" / "style.snapshot"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="style.snapshot"):
        tune(save_every=2)


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a\\b", ".hidden", "con.", "x" * 201, "a\tb"])
def test_names_that_are_no_names(nodes, tune, name):
    for node in (nodes.OSASISFineTune, nodes.SaveOSASISStyle):
        assert "file's name" in node.validate_inputs(name=name)
    with pytest.raises(ValueError, match="file's name"):
        tune(name)


def test_options(nodes):
    schema = nodes.OSASISFineTuneOptions.GET_SCHEMA()
    values = {field.id: field.default for field in schema.inputs}
    official = nodes.OSASISFineTuneOptions.execute(**values)[0].fields
    from oneshot_atelier.train.osasis import OSASISConfig
    assert OSASISConfig(**official) == OSASISConfig()
    corrected = nodes.OSASISFineTuneOptions.execute(**values | {"preset": "corrected", "cross_weight": 9.0})[0].fields
    assert corrected["clamp"] != "hard" and corrected.get("cross_weight") != 9.0
    weights = [name for name in values if name.endswith("_weight") and name != "style_spn_weight"]
    assert len(weights) == 5
    with pytest.raises(ValueError, match="must not all be 0"):
        nodes.OSASISFineTuneOptions.execute(**values | dict.fromkeys(weights, 0.0))
    with pytest.raises(ValueError, match="preset"):
        nodes.OSASISFineTuneOptions.execute(**values | {"preset": "best"})


# --- to text -------------------------------------------------------------------------------------------------------
@pytest.fixture
def tune_text(nodes, loaded):
    def run(name="words", prompt="drawing", options=QUICK, **changes):
        return nodes.OSASISFineTuneText.execute(
            loaded.diffae, loaded.clip, loaded.perceptual, options=nodes.sockets.TuneOptions(options),
            **{"prompt": prompt, "source": "photo", "photo_weight": 1.0, "name": name} | TUNE | changes)
    return run


def test_words_become_a_style_that_is_used_and_saved_like_any_other(nodes, loaded, tune_text):
    style, code, predictions, curve, losses = tune_text().args
    assert predictions.shape == (2, PX, PX, 3) and curve.ndim == 4 and len(losses["loss"]) == 2
    assert style.style.style_image is None and style.style.settings["target"] == "drawing" and code.z.shape == (1, 16)
    _, semantic, structure = encoded(nodes, loaded)
    mix = nodes.MixCodes.execute(semantic, code, 32, False, "")[0]
    made = stylized(nodes, style, structure, mix)
    nodes.SaveOSASISStyle.execute(style, "words", False)
    again, its_code, its_picture = nodes.LoadOSASISStyle.execute("words.safetensors").args
    assert torch.equal(made, stylized(nodes, again, structure, mix))
    assert torch.allclose(its_code.z, code.z, atol=2e-3)
    assert "learned from the text 'drawing'" in its_picture.message and "official" not in its_picture.message
    blend = nodes.BlendOSASISStyles.execute(style, tune_text("other", prompt="face")[0], 0.5)
    assert stylized(nodes, blend[0], structure, mix).shape == (2, PX, PX, 3)


def test_a_cancelled_fine_tune_to_text_resumes_exactly(nodes, tune_text, comfy, monkeypatch):
    whole = tune_text("whole", iterations=3)
    with monkeypatch.context() as patch:
        _, interrupted = interrupt_after(patch, nodes, 8)
        with pytest.raises(interrupted):
            tune_text("parts", iterations=3)
    assert (comfy / "output" / "atelier" / "snapshots" / "parts.snapshot").is_file()
    rest = tune_text("parts", iterations=3)
    assert same(weights_of(rest[0]), weights_of(whole[0])) and torch.equal(rest[1].z, whole[1].z)
    assert rest[4] == whole[4]
    with pytest.raises(ValueError, match="target was 'drawing' and is 'face' now"):
        tune_text("parts", iterations=3, prompt="face")


def test_prompts_that_cannot_be_learned(nodes, tune_text):
    validate = nodes.OSASISFineTuneText.validate_inputs
    assert "the prompt is empty" in validate(name="a", prompt=[" "], source=["photo"])
    assert "the source is empty" in validate(name="a", prompt="x", source=" ")
    assert "file's name" in validate(name="..", prompt="x", source="photo")
    assert validate(name=None, prompt=None, source=None) is True
    for prompt, message in (("dog", "dog"), ("photo", "is the same as the source")):
        with pytest.raises(ValueError, match=message):
            tune_text(prompt=prompt)


# --- snapshots that are kept ---------------------------------------------------------------------------------------
@pytest.fixture
def choose(nodes, loaded):
    def run(style, code, name, **more):
        _, semantic, structure = encoded(nodes, loaded, count=3)
        mix = nodes.MixCodes.execute(semantic, code, 16, False, "")[0]
        return nodes.ChooseOSASISSnapshot.execute(style, name, loaded.clip, structure, mix, 10, **more), structure, mix
    return run


def test_the_kept_snapshots_are_scored_shown_and_the_best_is_taken(nodes, tune, choose):
    style, code, *_ = tune("kept", iterations=3, save_every=1, keep=3)
    chosen, structure, mix = choose(style, code, "kept", twin=picture(1))
    best, strip, results, iterations, report = chosen.args
    lines = report.splitlines()
    assert [line.split(":")[0] for line in lines] == ["iteration 1", "iteration 2", "iteration 3"]
    scores = [float(line.split(" = ")[1].split()[0]) for line in lines]
    assert scores.index(max(scores)) + 1 == iterations and lines[iterations - 1].endswith("(best)")
    as_trained = tune(f"only {iterations}", iterations=iterations)[0]
    assert same(weights_of(best), weights_of(as_trained)), "the style of a training of so many iterations"
    assert best.style.settings["iterations"] == iterations and torch.equal(best.style.z_style, style.style.z_style)
    assert torch.equal(results, stylized(nodes, best, structure, mix))
    assert strip.shape[0] == 1 and strip.shape[2] > 4 * PX and strip.shape[1] > 3 * PX


def test_snapshots_of_words_are_scored_along_the_text(nodes, tune_text, choose):
    style, code, *_ = tune_text("said", iterations=2, save_every=1, keep=2)
    chosen = choose(style, code, "said")[0]
    assert chosen[3] in (1, 2) and len(chosen[4].splitlines()) == 2


def test_snapshots_of_another_training_are_refused(nodes, tune, choose):
    style, code, *_ = tune("mine")
    tune("other", seed=4)
    with pytest.raises(ValueError, match="seed was 4 and is 3 now. Connect the style as its fine-tune made it, .* or "
                                         "write the name of the fine-tune that made it$"):
        choose(style, code, "other")
    with pytest.raises(ValueError, match="there is no snapshot none.snapshot. Give the name of the fine-tune"):
        choose(style, code, "none")
    assert "file's name" in nodes.ChooseOSASISSnapshot.validate_inputs(name="../x", steps=10)
    assert "cannot be spaced" in nodes.ChooseOSASISSnapshot.validate_inputs(name="x", steps=300)


# --- styles as files -----------------------------------------------------------------------------------------------
def test_a_saved_style_is_the_same_style(nodes, loaded, tune):
    style, code, *_ = tune().args
    path = nodes.SaveOSASISStyle.execute(style, "first", False)[0]
    assert path.endswith("first.safetensors")
    again, its_code, its_picture = nodes.LoadOSASISStyle.execute("first.safetensors").args
    assert same(weights_of(style), weights_of(again)) and again.style.settings == style.style.settings
    assert torch.allclose(its_code.z, code.z, atol=2e-3) and its_code.fingerprint == loaded.diffae.fingerprint
    assert torch.allclose(its_picture, picture(2), atol=1 / 200)
    _, semantic, structure = encoded(nodes, loaded)
    mix = nodes.MixCodes.execute(semantic, code, 32, False, "")[0]
    assert torch.equal(stylized(nodes, style, structure, mix), stylized(nodes, again, structure, mix))


def test_a_style_is_not_overwritten_by_another(nodes, tune, comfy, monkeypatch):
    style, other, third = (tune(name, seed=seed, iterations=1)[0] for name, seed in (("a", 1), ("b", 2), ("c", 3)))
    texts, folder = [], comfy / "models" / "osasis"
    monkeypatch.setattr(nodes.host, "show_text", texts.append)
    saved = [nodes.SaveOSASISStyle.execute(one, "same", False) for one in (style, style, other, other, third)]
    names = [f"{name}.safetensors" for name in ("same", "same", "same 2", "same 2", "same 3")]
    assert [path for path, in saved] == [str(folder / name) for name in names] and len(list(folder.iterdir())) == 3
    assert texts == [f"same.safetensors holds another style, so this one was saved as {name}." for name in names[2:]]
    assert texts[-1] in str(saved[-1].ui.as_dict()) and len(str(saved[0].ui.as_dict()).split("another")) == 1
    for one, name in zip((style, other, third), (names[0], names[2], names[4])):
        assert same(weights_of(nodes.LoadOSASISStyle.execute(name)[0]), weights_of(one))
    nodes.SaveOSASISStyle.execute(other, "same", True)
    assert same(weights_of(nodes.LoadOSASISStyle.execute("same.safetensors")[0]), weights_of(other))


def test_a_style_of_another_model(nodes, loaded, tune, comfy):
    style, code, *_ = tune().args
    tiny_models.write(comfy / "models" / "diffae", seed=5)
    other = nodes.LoadDiffAE.execute("diffae.safetensors")[0]
    photos = picture(5, 2)
    semantic = nodes.SemanticEncode.execute(other, photos)[0]
    structure = nodes.StructuralEncode.execute(other, photos, 10, 0.5, semantic)[0]
    with pytest.raises(ValueError, match="another DiffAE"):
        nodes.MixCodes.execute(semantic, code, 32, False, "")
    mix = nodes.MixCodes.execute(semantic, semantic, 32, False, "")[0]
    with pytest.raises(ValueError, match="another DiffAE"):
        stylized(nodes, style, structure, mix)
    with pytest.raises(ValueError, match="another DiffAE"):
        nodes.Decode.execute(loaded.diffae, structure, semantic, 10)


def test_an_official_style_has_no_code(nodes, tune, comfy):
    from oneshot_atelier.models.loading import save_style
    bare = replace(tune()[0].style, z_style=None, style_image=None, model="")
    save_style(comfy / "models" / "osasis" / "bare.safetensors", bare)
    _, code, shown = nodes.LoadOSASISStyle.execute("bare.safetensors").args
    assert "Encode Semantics" in code.message
    assert shown.message == code.message


# --- content on disk -----------------------------------------------------------------------------------------------
def test_a_second_style_takes_the_content_of_the_first_from_disk(nodes, tune, comfy, monkeypatch):
    said = []
    monkeypatch.setattr(nodes.host, "show_text", said.append)
    first = tune("first")
    folder = comfy / "output" / "atelier" / "content"
    assert f"content: 0 of 4 pictures from disk (0.00 GB for all); 0.00 GB of at most 4 GB in {folder}" in said
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.content")}
    assert len(files) == 1
    plain = tune("plain", style_image=picture(7), content_gb=0.0)
    said.clear()
    second = tune("second", style_image=picture(7))
    assert said[0].startswith("content: 4 of 4 pictures from disk") and str(folder) in said[-1], "it stays on the node"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.content")} == files
    assert same(weights_of(second[0]), weights_of(plain[0])) and not same(weights_of(second[0]), weights_of(first[0]))


def test_no_content_is_kept_if_it_is_turned_off_or_photos_are_the_content(tune, comfy):
    tune("off", content_gb=0.0)
    tune("photos", contents=picture(4, 2))
    assert not (comfy / "output" / "atelier" / "content").exists()
