"""Every node, executed as ComfyUI does it (under inference mode), with tiny networks."""
from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from oneshot_atelier.tests import tiny_models
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
        settings = TUNE | {"twin": picture(1), "style": picture(2), "name": name} | changes
        return nodes.FineTune.execute(loaded.diffae, loaded.clip, loaded.perceptual,
                                      options=nodes.sockets.TuneOptions(options), **settings)
    return run


def encoded(nodes, loaded, count=2, strength=0.5):
    photos = picture(5, count)
    semantic = nodes.SemanticEncode.execute(loaded.diffae, photos)[0]
    return photos, semantic, nodes.StructuralEncode.execute(loaded.diffae, photos, 10, strength, semantic)[0]


def stylized(nodes, style, structure, mix, **changes):
    settings = {"steps": 10, "use_spn": True, "spn_weight": 0.1, "batch": 8, "spn_time": "index",
                "noise_level": "official"} | changes
    return nodes.Stylize.execute(style, structure, mix, **settings)[0]


def weights_of(style):
    return {**style.style.unet, **{f"spn.{k}": v for k, v in (style.style.spn or {}).items()}}


# --- the whole chain -----------------------------------------------------------------------------------------------
def test_from_style_picture_to_stylized_batch(nodes, loaded, tune):
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


def test_decode_and_prior(nodes, loaded):
    photos, semantic, structure = encoded(nodes, loaded)
    assert nodes.Decode.execute(loaded.diffae, structure, semantic, 10)[0].shape == photos.shape
    first = nodes.SamplePrior.execute(loaded.diffae, 2, 4, 10, 10)
    again = nodes.SamplePrior.execute(loaded.diffae, 2, 4, 10, 10)
    assert first[0].shape == (2, PX, PX, 3) and first[1].z.shape == (2, 16)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], nodes.SamplePrior.execute(loaded.diffae, 2, 5, 10, 10)[0])


def test_structure_is_encoded_without_a_given_code_too(nodes, loaded):
    photos, _, structure = encoded(nodes, loaded)
    alone = nodes.StructuralEncode.execute(loaded.diffae, photos, 10, 0.5)[0]
    assert torch.allclose(alone.x, structure.x, atol=1e-5)


# --- photo twin ----------------------------------------------------------------------------------------------------
def twin_of(nodes, loaded, candidates, batch, pick=0):
    return nodes.PhotoTwin.execute(loaded.ddpm, loaded.perceptual, picture(2), candidates, 0.5, 10, pick, 7, "official",
                                   batch)


def test_candidates_do_not_depend_on_how_many_are_made_at_a_time(nodes, loaded):
    assert torch.allclose(twin_of(nodes, loaded, 5, 5)[1], twin_of(nodes, loaded, 5, 2)[1], atol=1e-5)


def test_pick_takes_a_rank(nodes, loaded):
    best, third = twin_of(nodes, loaded, 4, 4), twin_of(nodes, loaded, 4, 4, pick=2)
    assert torch.equal(best[0], best[1][:1]) and torch.equal(third[0], best[1][2:3])
    with pytest.raises(ValueError, match="counted from 0"):
        twin_of(nodes, loaded, 2, 2, pick=2)


def test_a_poor_twin_is_said_to_be_poor(nodes):
    ranked = nodes.twin.Ranked(torch.zeros(1, 3, 8, 8), torch.tensor([9.0]), torch.tensor([0.9]))
    shown = nodes.twin.output(ranked, 0, nodes.PhotoTwin).ui
    assert "far from the style picture" in shown["text"][0]


# --- mixing --------------------------------------------------------------------------------------------------------
def test_levels_override_the_change_point(nodes):
    z = nodes.sockets.Semantic(torch.zeros(1, 16), "a")
    mix = nodes.MixCodes.execute(z, z, 32, False, "32: 0.25; middle=1")[0]
    assert mix.weights(tiny_models.UNET) == (0.25, 0.0, 1.0)
    assert nodes.MixCodes.execute(z, z, 32, True, "")[0].weights(tiny_models.UNET) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("text", ["128", "128:2", "a:1", "128:1 64:1", "middle:-1"])
def test_unreadable_levels_are_refused_before_anything_runs(nodes, text):
    assert "cannot be read" in nodes.MixCodes.validate_inputs(levels=text)


def test_a_level_that_is_not_there(nodes, loaded):
    _, semantic, structure = encoded(nodes, loaded)
    mix = nodes.MixCodes.execute(semantic, semantic, 32, False, "256:1")[0]
    with pytest.raises(ValueError, match="its levels are 32, 16, middle"):
        mix.codes(structure)


def test_codes_of_another_count(nodes, loaded):
    _, semantic, structure = encoded(nodes, loaded, count=3)
    two = nodes.sockets.Semantic(semantic.z[:2], semantic.fingerprint)
    with pytest.raises(ValueError, match="2 rows for 3 pictures"):
        nodes.MixCodes.execute(two, semantic, 32, False, "")[0].codes(structure)


# --- pictures ------------------------------------------------------------------------------------------------------
def test_the_border_keeps_pictures(nodes):
    image = picture(0, 2)
    assert torch.allclose(nodes.pictures.to_image(nodes.pictures.to_model(image, PX)), image, atol=1e-6)


def test_alpha_is_laid_on_white_and_grey_made_rgb(nodes):
    clear = torch.zeros(1, 16, 16, 4)
    assert torch.equal(nodes.pictures.to_model(clear, 16), torch.ones(1, 3, 16, 16))
    assert nodes.pictures.to_model(torch.full((1, 16, 16, 1), 0.5), 16).shape == (1, 3, 16, 16)
    assert nodes.pictures.to_model(torch.full((1, 16, 16, 3), 7.0), 16).max() == 1


@pytest.mark.parametrize("image, message", [
    (torch.rand(0, 16, 16, 3), "no picture"), (torch.rand(1, 1, 1, 3), "at least 8 px"),
    (torch.full((1, 16, 16, 3), float("nan")), "NaN"), (torch.full((1, 16, 16, 3), float("inf")), "NaN"),
    (torch.rand(1, 16, 16, 2), "2 channels"), (torch.rand(16, 16, 3), "connect an IMAGE"),
    (torch.zeros(1, 8, 8200, 1), "too large")])
def test_unusable_pictures(nodes, loaded, image, message):
    with pytest.raises(ValueError, match=message):
        nodes.SemanticEncode.execute(loaded.diffae, image)
    with pytest.raises(ValueError, match=message):
        nodes.FitPicture.execute(image, 64, "crop")


@pytest.mark.parametrize("mode", ["crop", "pad", "squash"])
def test_fit_makes_squares(nodes, mode):
    image = torch.rand(2, 20, 50, 3)
    fitted = nodes.FitPicture.execute(image, 48, mode)[0]
    assert fitted.shape == (2, 48, 48, 3) and fitted.is_contiguous()
    assert (fitted[:, 0] > 0.9999).all().item() == (mode == "pad")


def test_where_one_picture_is_needed(nodes, loaded, tune):
    with pytest.raises(ValueError, match="one picture is needed, not 2"):
        tune(style=picture(2, 2))
    with pytest.raises(ValueError, match="one picture is needed"):
        nodes.PhotoTwin.execute(loaded.ddpm, loaded.perceptual, picture(2, 2), 1, 0.5, 10, 0, 0, "official")


def test_steps_that_do_not_space_evenly(nodes, loaded):
    message = nodes.StructuralEncode.validate_inputs(steps=60)
    assert "cannot be spaced evenly" in message
    assert nodes.Stylize.validate_inputs(steps=None) is True
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
    with pytest.raises(ValueError, match="clone the pack again"):
        nodes.LoadDiffAE.execute("demo")


def test_the_substitute_needs_a_diffae(nodes):
    with pytest.raises(ValueError, match="connect Load DiffAE"):
        nodes.LoadPerceptual.execute("encoder of the DiffAE")


def test_the_users_folders_are_kept(nodes, monkeypatch):
    import folder_paths
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffae", (["/mine"], set()))
    nodes.host.register_folders()
    paths, extensions = folder_paths.folder_names_and_paths["diffae"]
    assert "/mine" in paths and extensions == nodes.host.EXTENSIONS


# --- fine-tuning ---------------------------------------------------------------------------------------------------
def test_inputs_stay_as_they_are(loaded, tune):
    nets = (loaded.diffae.net, loaded.clip.managed.net)
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    assert not same(weights_of(tune()[0]), loaded.diffae.net.unet.half().state_dict())
    loaded.diffae.net.float()
    assert all(torch.allclose(net.state_dict()[k].float(), v.float(), atol=1e-3)
               for net, kept in zip(nets, before) for k, v in kept.items())
    assert not any(p.requires_grad for net in nets for p in net.parameters())


def test_training_works_after_nets_were_moved_under_inference_mode(loaded, tune):
    expected = weights_of(tune("still")[0])
    for net in (loaded.diffae.net, loaded.clip.managed.net):
        net.to(torch.float64).to(torch.float32)  # as a move to the graphics card and back: now inference tensors
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
        assert len(made) == 2 * 5
    assert same(weights_of(rest[0]), weights_of(whole[0]))
    assert rest[4] == whole[4] and torch.equal(rest[1].z, whole[1].z)


def test_cancel_while_content_is_drawn(nodes, tune):
    import comfy.model_management as mm
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        tune(options=QUICK | {"bank": 4})


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


@pytest.mark.parametrize("changes, said", [
    ({"seed": 4}, "seed was 3 and is 4 now"), ({"batch": 3}, "batch was 2"), ({"style": picture(8)}, "style picture"),
    ({"twin": picture(8)}, "photo twin"), ({"contents": picture(8)}, "content photos"),
    ({"options": QUICK | {"cross": 2.0}}, "cross was 1.0 and is 2.0 now")])
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


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a\\b", ".hidden", "con.", "x" * 81, "a\tb"])
def test_names_that_are_no_names(nodes, tune, name):
    for node in (nodes.FineTune, nodes.SaveStyle):
        assert "file's name" in node.validate_inputs(name=name)
    with pytest.raises(ValueError, match="file's name"):
        tune(name)


def test_options(nodes):
    schema = nodes.FineTuneOptions.GET_SCHEMA()
    values = {field.id: field.default for field in schema.inputs}
    official = nodes.FineTuneOptions.execute(**values)[0].fields
    from oneshot_atelier.train.osasis import OsasisConfig
    assert OsasisConfig(**official) == OsasisConfig()
    assert nodes.FineTuneOptions.execute(**values | {"preset": "mended", "cross": 9.0})[0].fields["clamp"] != "hard"
    with pytest.raises(ValueError, match="preset"):
        nodes.FineTuneOptions.execute(**values | {"preset": "best"})


# --- styles as files -----------------------------------------------------------------------------------------------
def test_a_saved_style_is_the_same_style(nodes, loaded, tune):
    style, code, *_ = tune().args
    path = nodes.SaveStyle.execute(style, "first", False)[0]
    assert path.endswith("first.safetensors")
    again, its_code, its_picture = nodes.LoadStyle.execute("first.safetensors").args
    assert same(weights_of(style), weights_of(again)) and again.style.settings == style.style.settings
    assert torch.allclose(its_code.z, code.z, atol=2e-3) and its_code.fingerprint == loaded.diffae.fingerprint
    assert torch.allclose(its_picture, picture(2), atol=1 / 200)
    _, semantic, structure = encoded(nodes, loaded)
    mix = nodes.MixCodes.execute(semantic, code, 32, False, "")[0]
    assert torch.equal(stylized(nodes, style, structure, mix), stylized(nodes, again, structure, mix))


def test_a_style_is_not_overwritten_by_another(nodes, tune):
    style, other = tune("a")[0], tune("b", seed=9)[0]
    nodes.SaveStyle.execute(style, "same", False)
    nodes.SaveStyle.execute(style, "same", False)  # the same one: nothing to do
    with pytest.raises(ValueError, match="overwrite"):
        nodes.SaveStyle.execute(other, "same", False)
    nodes.SaveStyle.execute(other, "same", True)
    assert same(weights_of(nodes.LoadStyle.execute("same.safetensors")[0]), weights_of(other))


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
    from dataclasses import replace

    from oneshot_atelier.models.loading import save_style
    bare = replace(tune()[0].style, z=None, picture=None, model="")
    save_style(comfy / "models" / "osasis" / "bare.safetensors", bare)
    _, code, shown = nodes.LoadStyle.execute("bare.safetensors").args
    assert "Encode Semantics" in code.message
    assert shown.message == code.message
