"""The nodes of StyleGAN2 and MMFS, executed as ComfyUI does it (under inference mode), with tiny networks."""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from oneshot_atelier.models.loading import save_mmfs, save_mmfs_style, save_stylegan2
from oneshot_atelier.tests import golden_cases, mmfs_files, tiny_mmfs, tiny_models
from oneshot_atelier.tests.node_tools import interrupt_after, picture, same

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("comfy")]
PX = tiny_mmfs.PX
DRAW = {"strength": 1.0, "noise": "seeded", "noise_seed": 0, "fit": "crop", "max_side": 1024, "batch": 8}
RANDOM = {"seed": 0, "count": 1, "mix_seed": 1, "mix_from": 0, "truncation": 1.0}
SAMPLE = {"seed": 0, "count": 2, "truncation": 0.7, "cutoff": -1, "mix_seed": 1, "mix_from": 0, "noise": "seeded"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_mmfs.write(tiny_models.write(tmp_path_factory.mktemp("demo")))


@pytest.fixture
def loaded(nodes):
    """One of each network, as the loaders give them."""
    return SimpleNamespace(
        faces=nodes.LoadStyleGAN2.execute("demo")[0], mmfs=nodes.LoadMMFS.execute("demo")[0],
        clip=nodes.LoadCLIP.execute("demo", "auto")[0], structure=nodes.LoadSelfSimilarity.execute("demo")[0])


@pytest.fixture
def styles(nodes, loaded):
    """styles(**changes) -> random styles."""
    return lambda **changes: nodes.MMFSRandomStyle.execute(loaded.mmfs, **RANDOM | changes)[0]


@pytest.fixture
def drawn(nodes, loaded):
    """drawn(image, **changes) -> what Stylize draws."""
    return lambda image, **changes: nodes.MMFSStylize.execute(loaded.mmfs, image, **DRAW | changes)[0]


# --- loading -------------------------------------------------------------------------------------------------------
def test_loaders(loaded):
    assert loaded.faces.discriminator is not None and loaded.mmfs.discriminator is not None
    assert loaded.structure.substitute and loaded.structure.net.keys(torch.zeros(1, 3, PX, PX)).shape[:2] == (1, 256)
    assert len(loaded.mmfs.fingerprint) == 32


def test_a_model_without_discriminator(nodes, comfy):
    g, _ = tiny_mmfs.faces()
    save_stylegan2(comfy / "models" / "stylegan2" / "bare.safetensors", g, None, {})
    save_mmfs(comfy / "models" / "mmfs" / "bare.safetensors", tiny_mmfs.mmfs(mapper=None), None, {"phase": 2})
    assert nodes.LoadStyleGAN2.execute("bare.safetensors")[0].discriminator is None
    assert nodes.LoadMMFS.execute("bare.safetensors")[0].discriminator is None


def test_pickles_are_listed(nodes, comfy):
    (comfy / "models" / "stylegan2" / "ffhq.pkl").write_bytes(b"no pickle")
    assert nodes.host.model_choices("stylegan2") == ["demo", "ffhq.pkl"]
    with pytest.raises(ValueError, match="ffhq.pkl"):
        nodes.LoadStyleGAN2.execute("ffhq.pkl")


@pytest.mark.parametrize("kind, node, wrong", [
    ("mmfs", "LoadMMFS", "stylegan2"), ("stylegan2", "LoadStyleGAN2", "mmfs"), ("dino", "LoadSelfSimilarity", "clip")])
def test_files_of_another_kind(nodes, comfy, tiny, kind, node, wrong):
    (comfy / "models" / kind / "mine.safetensors").write_bytes((tiny / f"{wrong}.safetensors").read_bytes())
    with pytest.raises(ValueError, match="mine.safetensors"):
        getattr(nodes, node).execute("mine.safetensors")
    with pytest.raises(ValueError, match="there is no file"):
        getattr(nodes, node).execute("../mine.safetensors")


def test_official_files(nodes, comfy, tmp_path):
    (tmp_path / "files").mkdir()
    loaders = {"stylegan2": nodes.LoadStyleGAN2, "mmfs": nodes.LoadMMFS, "dino": nodes.LoadSelfSimilarity}
    found = {}
    for name, (kind, path) in mmfs_files.write_all(tmp_path / "files").items():
        path.rename(comfy / "models" / kind / name)
        found[name] = loaders[kind].execute(name)[0]
    assert nodes.SampleStyleGAN2.execute(found["ffhq.pkl"], **SAMPLE)[0].shape == (2, 32, 32, 3)
    assert (found["phase2.pth"].phase, found["phase3.pth"].phase) == (2, 3)
    assert found["phase2.pth"].discriminator is not None
    assert not found["dino.pth"].substitute and found["dino.pth"].net.keys(torch.zeros(1, 3, 64, 64)).shape[1] == 17


def test_an_official_fine_tuned_model_is_a_style_too(nodes, comfy):
    for kind, net in (("mmfs", mmfs_files.mmfs()), ("mmfs_styles", mmfs_files.mmfs(seed=9))):
        golden_cases.save_torch(comfy / "models" / kind / "pop_art.pth", mmfs_files.mmfs_root(net))
    base = nodes.LoadMMFS.execute("pop_art.pth")[0]
    style, code, _ = nodes.LoadMMFSStyle.execute("pop_art.pth").args
    assert "no style code" in code.message
    given = nodes.MMFSRandomStyle.execute(base, **RANDOM)[0]
    plain, drawn = (nodes.MMFSStylize.execute(base, picture(5), styles=given, style=one, **DRAW)[0]
                    for one in (None, style))
    assert plain.shape == drawn.shape == (1, 128, 128, 3) and not torch.equal(plain, drawn)


# --- StyleGAN2 -----------------------------------------------------------------------------------------------------
def sampled(nodes, loaded, **changes):
    return nodes.SampleStyleGAN2.execute(loaded.faces, **SAMPLE | changes)[0]


def test_samples(nodes, loaded):
    first = sampled(nodes, loaded)
    assert first.shape == (2, PX, PX, 3) and 0 <= first.min() and first.max() <= 1 and first.std() > 0.01
    assert torch.equal(first, sampled(nodes, loaded))
    assert torch.allclose(first, sampled(nodes, loaded, count=9)[:2], atol=1e-5)
    for change in ({"seed": 5}, {"truncation": 1.0}, {"noise": "zero"}, {"noise": "constant"}, {"cutoff": 2},
                   {"mix_from": 3}):
        assert not torch.allclose(first, sampled(nodes, loaded, **change), atol=1e-4), change


def test_no_truncation_beyond_a_cutoff_of_nothing(nodes, loaded):
    assert torch.allclose(sampled(nodes, loaded, cutoff=0), sampled(nodes, loaded, truncation=1.0), atol=1e-6)


def test_layers_that_are_not_there(nodes, loaded, styles):
    with pytest.raises(ValueError, match="0 to 9; lower it"):
        sampled(nodes, loaded, mix_from=10)
    with pytest.raises(ValueError, match="0 to 3; lower it"):
        styles(mix_from=4)


# --- styles --------------------------------------------------------------------------------------------------------
def test_random_styles(loaded, styles):
    w = styles(count=3).w
    assert w.shape == (3, 4, 16) and torch.allclose(w[:1], styles().w, atol=1e-5)
    assert not torch.equal(styles(seed=77).w, w[:1])
    assert styles().fingerprint == loaded.mmfs.fingerprint


def test_mixing_of_two_seeds(styles):
    first, second, mixed = styles().w, styles(seed=9).w, styles(mix_seed=9, mix_from=1).w
    assert torch.equal(mixed[:, :1], first[:, :1]) and torch.equal(mixed[:, 1:], second[:, 1:])


def test_truncation(loaded, styles):
    mean = loaded.mmfs.mean
    assert loaded.mmfs.mean is mean  # computed once
    assert torch.allclose(styles(truncation=0.0).w, mean.expand(1, 4, -1), atol=1e-6)
    assert torch.allclose(styles(truncation=0.5).w, (styles().w + mean) / 2, atol=1e-5)


def test_styles_from_pictures(nodes, loaded):
    from_picture = nodes.MMFSStyleFromPicture.execute
    three = picture(4, 3, side=50)
    each, one = (from_picture(loaded.mmfs, loaded.clip, three, average)[0].w for average in (False, True))
    assert each.shape == (3, 4, 16) and one.shape == (1, 4, 16)
    assert torch.allclose(from_picture(loaded.mmfs, loaded.clip, three[:1], True)[0].w, each[:1], atol=1e-6)
    assert not torch.allclose(each[0], each[1])


def test_styles_from_words(nodes, loaded):
    from_text = nodes.MMFSStyleFromText.execute
    plain = from_text(loaded.mmfs, loaded.clip, "a drawing", 0.0)[0].w
    assert plain.shape == (1, 4, 16)
    half, whole = (from_text(loaded.mmfs, loaded.clip, "a drawing", gap, picture(3, 2))[0].w for gap in (0.5, 1.0))
    assert not torch.allclose(plain, whole, atol=1e-4) and not torch.allclose(half, whole, atol=1e-4)
    with pytest.raises(ValueError, match="connect some faces"):
        from_text(loaded.mmfs, loaded.clip, "a drawing", 0.5)


@pytest.mark.parametrize("text, said", [("", "empty"), ("  \n", "empty"), ("drawing " * 20, "tokens"),
                                        ("watercolour", "it knows: drawing, face, photo")])
def test_unreadable_words(nodes, loaded, text, said):
    with pytest.raises(ValueError, match=said):
        nodes.MMFSStyleFromText.execute(loaded.mmfs, loaded.clip, text, 0.0)


def test_a_model_without_clip_mapping(nodes, loaded, comfy):
    save_mmfs(comfy / "models" / "mmfs" / "phase2.safetensors", tiny_mmfs.mmfs(mapper=None), None, {"phase": 2})
    mmfs = nodes.LoadMMFS.execute("phase2.safetensors")[0]
    with pytest.raises(ValueError, match="no CLIP mapping"):
        nodes.MMFSStyleFromText.execute(mmfs, loaded.clip, "drawing", 0.0)
    with pytest.raises(ValueError, match="no CLIP mapping"):
        nodes.MMFSStyleFromPicture.execute(mmfs, loaded.clip, picture(1), False)


def test_mixing_styles(nodes, styles):
    mix = nodes.MMFSMixStyles.execute
    a, b = styles(), styles(seed=9, count=3)
    assert torch.equal(mix(a, b, 0.0, 0, 17)[0].w, a.w.expand(3, -1, -1))
    assert torch.equal(mix(a, b, 1.0, 0, 17)[0].w, b.w)
    some = mix(b, a, 0.25, 1, 2)[0].w
    assert torch.equal(some[:, 0], b.w[:, 0]) and torch.equal(some[:, 3], b.w[:, 3])
    assert torch.allclose(some[:, 1:3], 0.75 * b.w[:, 1:3] + 0.25 * a.w[:, 1:3], atol=1e-6)
    for first, last in ((4, 9), (2, 1)):
        with pytest.raises(ValueError, match="leaves no layer"):
            mix(a, a, 0.5, first, last)
    with pytest.raises(ValueError, match="2 styles a cannot be paired with 3 styles b"):
        mix(styles(count=2), b, 0.5, 0, 17)
    with pytest.raises(ValueError, match="another MMFS"):
        mix(a, replace(b, fingerprint="other"), 0.5, 0, 17)
    with pytest.raises(ValueError, match="different MMFS"):
        mix(a, replace(b, w=b.w[:, :2]), 0.5, 0, 17)


# --- stylizing -----------------------------------------------------------------------------------------------------
def test_stylize(drawn, styles):
    photos = picture(5, 3, side=80)
    result = drawn(photos, styles=styles())
    assert result.shape == (3, PX, PX, 3) and 0 <= result.min() and result.max() <= 1 and result.std() > 0.01
    assert torch.equal(result, drawn(photos, styles=styles()))
    assert torch.allclose(result, drawn(photos, styles=styles(), batch=1), atol=1e-5)
    assert not torch.allclose(result, drawn(photos, styles=styles(seed=9)), atol=1e-3)


def test_one_photo_in_several_styles_and_each_photo_in_its_own(drawn, styles):
    three = styles(count=3)
    alone, own = drawn(picture(5), styles=three, noise="zero"), drawn(picture(5, 3), styles=three, noise="zero")
    assert alone.shape == own.shape == (3, PX, PX, 3)
    assert torch.allclose(alone[:1], own[:1], atol=1e-5) and not torch.allclose(alone[1], alone[2], atol=1e-3)
    with pytest.raises(ValueError, match="2 pictures cannot be paired with 3 styles"):
        drawn(picture(5, 2), styles=three)


def test_noise(nodes, loaded, drawn, styles):
    for parameter in (p for name, p in loaded.mmfs.net.named_parameters() if "noise_strength" in name):
        assert parameter.abs() > 0  # else nothing is tested here
    two = picture(5).repeat(2, 1, 1, 1)
    images = {noise: drawn(two, styles=styles(), noise=noise) for noise in ("seeded", "constant", "zero")}
    assert not torch.allclose(images["seeded"][0], images["seeded"][1], atol=1e-4)
    assert torch.allclose(images["constant"][0], images["constant"][1], atol=1e-6)
    assert not torch.allclose(images["constant"], images["zero"], atol=1e-4)
    assert not torch.allclose(images["seeded"], drawn(two, styles=styles(), noise_seed=4), atol=1e-4)
    assert torch.equal(images["zero"], drawn(two, styles=styles(), noise="zero", noise_seed=4))
    with pytest.raises(ValueError, match="noise is 'white'"):
        drawn(two, styles=styles(), noise="white")


@pytest.mark.parametrize("height, width, most, expected", [
    (33, 71, 0, (33, 71)), (48, 96, 1024, (48, 96)), (50, 100, 64, (32, 64)), (65, 64, 1024, (65, 64))])
def test_whole_pictures(drawn, styles, height, width, most, expected):
    image = torch.rand(2, height, width, 3)
    assert drawn(image, styles=styles(), fit="whole picture", max_side=most).shape == (2, *expected, 3)


def test_the_whole_picture_is_the_crop_where_they_are_the_same(drawn, styles):
    image = picture(5, 2, side=PX)
    assert torch.equal(drawn(image, styles=styles(), fit="whole picture"), drawn(image, styles=styles()))


def test_a_picture_narrower_than_the_stride(nodes):
    with pytest.raises(ValueError, match="too narrow"):
        nodes.pictures.to_strides(torch.rand(1, 8, 40, 3), 16, 0)
    x, size = nodes.pictures.to_strides(torch.rand(1, 17, 40, 3), 16, 0)
    assert x.shape == (1, 3, 32, 48) and size == (17, 40)
    assert torch.equal(x[:, :, 17], x[:, :, 15])  # reflected


def test_a_style_is_needed(drawn, styles):
    with pytest.raises(ValueError, match="no style to draw in"):
        drawn(picture(5))
    with pytest.raises(ValueError, match="fit is"):
        drawn(picture(5), styles=styles(), fit="squash")
    with pytest.raises(ValueError, match="another MMFS"):
        drawn(picture(5), styles=replace(styles(), fingerprint="other"))
    with pytest.raises(ValueError, match="2 layers of 16 numbers"):
        drawn(picture(5), styles=replace(styles(), w=styles().w[:, :2]))


# --- fine-tuning ---------------------------------------------------------------------------------------------------
TUNE = {"iterations": 2, "batch": 2, "lr": 1e-2, "seed": 3, "save_every": 0, "resume": True, "folder": "none"}


@pytest.fixture
def tune(nodes, loaded):
    """tune(name, **changes) -> NodeOutput of the fine-tune to pictures; to words, if there is a prompt."""
    def run(name="style", mmfs=None, **changes):
        settings = {"name": name, "photos": picture(6, 3)} | TUNE | changes
        node = nodes.MMFSFineTuneText if "prompt" in settings else nodes.MMFSFineTune
        if "prompt" not in settings:
            settings = {"references": picture(2, side=40)} | settings
        return node.execute(mmfs or loaded.mmfs, loaded.clip, loaded.structure, **settings)
    return run


def decoder_of(output):
    return dict(output[0].decoder)


def test_a_fine_tune_to_a_picture(loaded, tune, drawn, styles):
    style, code, predictions, curve, losses = tune().args
    assert predictions.shape == (2, PX, PX, 3) and curve.ndim == 4 and len(losses["loss"]) == 2
    assert style.model == loaded.mmfs.fingerprint and style.picture.shape == (3, 40, 40)
    assert code.w.shape == (1, 4, 16) and code.fingerprint == style.model
    photos = picture(5, 2)
    own, given = drawn(photos, style=style), drawn(photos, style=style, styles=code)
    assert torch.equal(own, given) and not torch.allclose(own, drawn(photos, style=style, styles=styles()), atol=1e-3)


def test_strength(nodes, loaded, tune, drawn, styles):
    style, photos = tune()[0], picture(5, 2)
    base, images = drawn(photos, styles=styles()), {}
    for strength in (0.0, 0.5, 1.0, 1.5):
        images[strength] = drawn(photos, styles=styles(), style=style, strength=strength)
    assert torch.equal(images[0.0], base)
    far = [(images[s] - base).abs().mean() for s in (0.0, 0.5, 1.0, 1.5)]
    assert far == sorted(far) and far[1] > 0
    with pytest.raises(ValueError, match="strength 2.0 is out of range"):
        drawn(photos, style=style, strength=2.0)


def test_a_fine_tune_to_words(tune, drawn):
    style, code, *_ = tune(prompt="a drawing").args
    assert style.prompt == "a drawing" and style.picture is None and code.what == "a drawing"
    assert drawn(picture(5), style=style).shape == (1, PX, PX, 3)


def test_inputs_stay_as_they_are(loaded, tune):
    nets = (loaded.mmfs.net, loaded.clip.managed.net, loaded.structure.net)
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    changed = decoder_of(tune())
    assert not same(changed, {k: v.half() for k, v in loaded.mmfs.net.decoder.state_dict().items()})
    assert all(same(net.state_dict(), kept) for net, kept in zip(nets, before))
    assert not any(p.requires_grad for net in nets for p in net.parameters())


def test_training_works_after_nets_were_moved_under_inference_mode(loaded, tune):
    expected = decoder_of(tune("still"))
    for net in (loaded.mmfs.net, loaded.clip.managed.net, loaded.structure.net):
        net.to(torch.float64).to(torch.float32)  # as a move to the graphics card and back: now inference tensors
    assert same(decoder_of(tune("moved")), expected)


def test_sources_of_faces(nodes, loaded, tune, comfy):
    folder = comfy / "input" / "faces" / "mine"
    folder.mkdir(parents=True)
    for number in range(3):
        nodes.pictures.from_image(picture(number, side=70)).save(folder / f"{number}.png")
    outcomes = [decoder_of(tune(name, **source)) for name, source in (
        ("a", {}), ("b", {"photos": None, "folder": "faces/mine"}), ("c", {"folder": "faces/mine"}),
        ("d", {"photos": None, "stylegan2": loaded.faces}))]
    assert not any(same(one, other) for i, one in enumerate(outcomes) for other in outcomes[:i])
    assert tune("e", photos=None, folder="faces/mine")[0].settings["source"] == "3 photos"
    with pytest.raises(ValueError, match="no faces to learn on"):
        tune(photos=None)
    with pytest.raises(ValueError, match="only one of them"):
        tune(stylegan2=loaded.faces)


@pytest.mark.parametrize("folder", ["..", "../output", "/etc", "faces/../..", "absent", ".hidden"])
def test_folders_that_are_no_choices(nodes, tune, comfy, folder):
    (comfy / "input" / ".hidden").mkdir()
    with pytest.raises(ValueError, match="there is no folder"):
        tune(folder=folder)
    assert nodes.host.folder_token(folder) == "missing"


def test_a_folder_is_read_again_when_it_changed(nodes, comfy):
    folder = comfy / "input" / "faces"
    folder.mkdir()
    assert nodes.host.input_folders() == ["faces"]
    before = nodes.MMFSFineTune.fingerprint_inputs(folder="faces", name="x")
    nodes.pictures.from_image(picture(1)).save(folder / "1.png")
    assert nodes.MMFSFineTune.fingerprint_inputs(folder="faces", name="x") != before


def test_an_empty_folder(tune, comfy):
    (comfy / "input" / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture"):
        tune(folder="empty")


def test_a_model_without_mapping_starts_from_a_given_style(nodes, loaded, tune, comfy):
    save_mmfs(comfy / "models" / "mmfs" / "phase2.safetensors", tiny_mmfs.mmfs(mapper=None), None, {"phase": 2})
    mmfs = nodes.LoadMMFS.execute("phase2.safetensors")[0]
    with pytest.raises(ValueError, match="connect a style"):
        tune(mmfs=mmfs)
    random = nodes.MMFSRandomStyle.execute(mmfs, **RANDOM | {"count": 2})[0]
    with pytest.raises(ValueError, match="one style is needed"):
        tune(mmfs=mmfs, styles=random)
    one = replace(random, w=random.w[:1])
    assert torch.equal(tune(mmfs=mmfs, styles=one)[1].w, one.w)


@pytest.mark.parametrize("changes, said", [
    ({"prompt": ""}, "empty"), ({"prompt": "drawing " * 20}, "tokens"), ({"prompt": "watercolour"}, "it knows"),
    ({"references": torch.full((1, 40, 40, 3), 0.4)}, "flat colour"), ({"name": "../up"}, "file's name")])
def test_what_cannot_be_learned_from(tune, changes, said):
    with pytest.raises(ValueError, match=said):
        tune(**changes)


def test_an_empty_prompt_is_refused_before_anything_runs(nodes):
    assert "empty" in nodes.MMFSFineTuneText.validate_inputs(name="a", prompt=" ")
    assert nodes.MMFSFineTuneText.validate_inputs(name="a", prompt=None) is True
    assert "file's name" in nodes.MMFSFineTune.validate_inputs(name="a/b")
    assert "file's name" in nodes.SaveMMFSStyle.validate_inputs(name="a/b")


def test_cancel_stops_within_a_step_and_resume_is_exact(nodes, tune, comfy, monkeypatch):
    whole = tune("whole", save_every=1, iterations=4)
    with monkeypatch.context() as patch:
        made, interrupted = interrupt_after(patch, nodes, 3)
        with pytest.raises(interrupted):
            tune("parts", save_every=1, iterations=4)
        assert len(made) == 3
    with monkeypatch.context() as patch:
        made, _ = interrupt_after(patch, nodes, 0)
        rest = tune("parts", save_every=1, iterations=4)
        assert len(made) == 2
    assert same(decoder_of(rest), decoder_of(whole)) and rest[4] == whole[4]


def test_cancel_before_the_first_step(nodes, tune):
    import comfy.model_management as mm
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        tune()


def test_a_finished_snapshot_gives_its_style_at_once(nodes, tune, monkeypatch):
    first = tune(save_every=2)
    made, _ = interrupt_after(monkeypatch, nodes, 0)
    again = tune(save_every=2)
    assert len(made) == 1 and same(decoder_of(first), decoder_of(again)) and first[4] == again[4]


@pytest.mark.parametrize("changes, said", [({"seed": 4}, "seed was 3"), ({"photos": picture(9, 3)}, "faces"),
                                           ({"references": picture(8, side=40)}, "another one")])
def test_a_snapshot_of_other_settings_is_not_gone_on_with(tune, changes, said):
    tune(save_every=1, iterations=1)
    with pytest.raises(ValueError, match=said):
        tune(save_every=1, iterations=1, **changes)
    tune(save_every=1, iterations=1, resume=False, **changes)


def test_options(nodes, tune):
    from oneshot_atelier.train.fewshot import FewShotConfig
    schema = nodes.MMFSFineTuneOptions.GET_SCHEMA()
    values = {field.id: field.default for field in schema.inputs}
    official = nodes.MMFSFineTuneOptions.execute(**values)[0]
    assert FewShotConfig(**official.fields) == FewShotConfig()
    paper = nodes.MMFSFineTuneOptions.execute(**values | {"preset": "paper", "clip": 9.0})[0]
    assert paper.fields["beta1"] == 0.99 and paper.fields["structure_norm"] == "frobenius"
    assert "clip" not in paper.fields
    demo = nodes.MMFSFineTuneOptions.execute(**values | {"preset": "demo"})[0]
    assert not demo.fields.keys() & {"iterations", "batch", "lr", "seed"}
    with pytest.raises(ValueError, match="preset"):
        nodes.MMFSFineTuneOptions.execute(**values | {"preset": "best"})
    with pytest.raises(ValueError, match="anchor|word"):
        tune(prompt="drawing", options=nodes.MMFSFineTuneOptions.execute(**values | {"anchor": "nothing known"})[0])
    plain = decoder_of(tune("plain"))
    assert not same(plain, decoder_of(tune("loose", options=nodes.MMFSFineTuneOptions.execute(
        **values | {"projection": 0.0})[0])))


# --- styles as files -----------------------------------------------------------------------------------------------
def test_a_saved_style_is_the_same_style(nodes, tune, drawn):
    style, code, *_ = tune().args
    path = nodes.SaveMMFSStyle.execute(style, "first", False)[0]
    assert path.endswith("first.safetensors")
    again, its_code, its_picture = nodes.LoadMMFSStyle.execute("first.safetensors").args
    assert same({k: v.float() for k, v in style.decoder.items()}, dict(again.decoder))
    assert again.settings == style.settings and torch.allclose(its_code.w, code.w, atol=5e-3)
    assert torch.allclose(its_picture, picture(2, side=40), atol=1 / 200)
    photos = picture(5, 2)
    assert torch.equal(drawn(photos, styles=code, style=style), drawn(photos, styles=code, style=again))


def test_a_style_is_not_overwritten_by_another(nodes, tune):
    style, other = tune("a")[0], tune("b", seed=9)[0]
    nodes.SaveMMFSStyle.execute(style, "same", False)
    nodes.SaveMMFSStyle.execute(style, "same", False)  # the same one: nothing to do
    with pytest.raises(ValueError, match="overwrite"):
        nodes.SaveMMFSStyle.execute(other, "same", False)
    nodes.SaveMMFSStyle.execute(other, "same", True)


def test_a_style_from_words_and_one_without_code(nodes, tune, comfy):
    style = tune(prompt="drawing")[0]
    nodes.SaveMMFSStyle.execute(style, "words", False)
    assert "without a reference picture" in nodes.LoadMMFSStyle.execute("words.safetensors")[2].message
    save_mmfs_style(comfy / "models" / "mmfs_styles" / "bare.safetensors", replace(style, w=None))
    bare, code, _ = nodes.LoadMMFSStyle.execute("bare.safetensors").args
    assert "no style code" in code.message
    with pytest.raises(ValueError, match="no code of its own"):
        nodes.MMFSStylize.execute(nodes.LoadMMFS.execute("demo")[0], picture(5), style=bare, **DRAW)


def test_a_style_of_another_model(nodes, tune, comfy):
    style = tune()[0]
    (comfy / "other").mkdir()
    path = tiny_mmfs.write(comfy / "other", seed=5) / "mmfs.safetensors"
    path.rename(comfy / "models" / "mmfs" / "other.safetensors")
    with pytest.raises(ValueError, match="another MMFS"):
        nodes.MMFSStylize.execute(nodes.LoadMMFS.execute("other.safetensors")[0], picture(5), style=style, **DRAW)
