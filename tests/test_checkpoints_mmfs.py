"""Official-looking StyleGAN2, MMFS and DINO files, small: what loads, what is converted and saved, what is refused."""

import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from oneshot_atelier.models import checkpoints, loading
from oneshot_atelier.models.checkpoints import CheckpointError, read
from oneshot_atelier.models.checkpoints.formats import nvidia
from oneshot_atelier.models.mmfs import MMFS, MapperConfig, MMFSConfig
from oneshot_atelier.models.style import MMFSStyle
from oneshot_atelier.models.stylegan2 import StyleGAN2Config, mean_w
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import mmfs_files as small
from oneshot_atelier.tests import nvidia_files
from oneshot_atelier.tests.tiny import same

LOADERS = {"stylegan2": loading.load_stylegan2, "mmfs": loading.load_mmfs, "dino": loading.load_dino,
           "mmfs_style": loading.load_mmfs_style, "diffae": loading.load_diffae, "clip": loading.load_clip}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small.write_all(tmp_path_factory.mktemp("official"))


def path_of(files, name):
    return files[name][1]


def nets_of(found):
    return [net for net in (found if isinstance(found, tuple) else (found,)) if net is not None]


# --- what loads --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["550000.pt", "old.pt", "ffhq.pkl"])
def test_every_layout_gives_the_same_two_networks(files, name):
    g, d = loading.load_stylegan2(path_of(files, name))
    assert g.config == d.config == small.SG2
    assert same(g.state_dict(), small.generator().state_dict()) and same(d.state_dict(),
                                                                         small.discriminator().state_dict())


@pytest.mark.parametrize("name", ["550000.pt", "ffhq.pkl", "phase2.pth", "phase3.pth", "dino.pth"])
def test_networks_come_frozen_in_float32_and_in_the_plain_layout(files, name):
    kind, path = files[name]
    for net in nets_of(LOADERS[kind](path)):
        assert not net.training and not any(p.requires_grad for p in net.parameters())
        assert {t.dtype for t in net.state_dict().values()} == {torch.float32}
        assert kind == "dino" or all(p.is_contiguous() for p in net.parameters())


@pytest.mark.parametrize("phase", [2, 3])
def test_the_official_mmfs_loads_with_its_phase_and_its_discriminator_if_there_is_one(files, phase):
    path = path_of(files, f"phase{phase}.pth")
    net, d = loading.load_mmfs(path)
    assert same(net.state_dict(), small.mmfs(mapper=None if phase == 2 else small.MAPPER).state_dict())
    assert net.config.resolution == 128 and net.config.n_styles == 6
    assert (d is None) == (phase == 3) and read(path).meta == {"format": "mmfs", "phase": phase, "epoch": 3,
                                                               "total_iters": 10_000}
    if phase == 2:
        assert same(d.state_dict(), small.discriminator().state_dict())
        with pytest.raises(ValueError, match="no CLIP mapping .*phase3_pretrain_10000.pth"):
            net.styles_of(torch.randn(1, 16))


def test_only_the_raw_generator_is_better_than_nothing(tmp_path):
    root = small.rosinality_root()
    del root["g_ema"], root["args"]
    g, _ = loading.load_stylegan2(golden.save_torch(tmp_path / "a.pt", root))
    assert torch.equal(g.const, small.generator().const + 1)


def test_a_file_without_discriminator_gives_none(tmp_path):
    root = small.rosinality_root()
    path = golden.save_torch(tmp_path / "a.pt", {name: root[name] for name in ("g_ema", "latent_avg")})
    assert loading.load_stylegan2(path)[1] is None
    path = nvidia_files.write(tmp_path / "a.pkl", small.nvidia_state(small.generator()))
    assert loading.load_stylegan2(path)[1] is None


def test_missing_noise_is_drawn_from_a_fixed_seed_and_a_missing_mean_is_computed(tmp_path):
    root = small.rosinality_root()
    del root["latent_avg"]
    root["g_ema"] = OrderedDict((k, v) for k, v in root["g_ema"].items() if not k.startswith("noises.") or "_2" in k)
    path = golden.save_torch(tmp_path / "a.pt", root)
    (g, _), (again, _), full = loading.load_stylegan2(path), loading.load_stylegan2(path), small.generator()
    assert same(g.state_dict(), again.state_dict()) and torch.equal(g.noise_2, full.noise_2)
    assert not torch.equal(g.noise_3, full.noise_3) and 0.8 < g.noise_6.std() < 1.2
    torch.testing.assert_close(g.w_avg, mean_w(full.mapping))
    state = {k: v for k, v in small.nvidia_state(full).items() if not k.endswith(("noise_const", "w_avg"))}
    other, _ = loading.load_stylegan2(nvidia_files.write(tmp_path / "a.pkl", state))
    assert torch.equal(other.noise_3, g.noise_3) and torch.equal(other.w_avg, g.w_avg)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nvidia_pickles_of_every_protocol(tmp_path, protocol):
    path = nvidia_files.write(tmp_path / "a.pkl", small.nvidia_state(small.generator()),
                              small.nvidia_state(small.discriminator()), protocol)
    g, d = loading.load_stylegan2(path)
    assert same(g.state_dict(), small.generator().state_dict()) and d.config == small.SG2


@pytest.mark.parametrize(("group", "expected"), [(8, 8), (None, nvidia.WHOLE_BATCH)])
def test_the_group_of_the_discriminator_is_the_file_s(tmp_path, group, expected):
    discriminator = nvidia_files.discriminator(small.nvidia_state(small.discriminator()), group)
    root = nvidia_files.snapshot(nvidia_files.module(small.nvidia_state(small.generator())), discriminator)
    (tmp_path / "a.pkl").write_bytes(nvidia_files.dumps(root))
    _, d = loading.load_stylegan2(tmp_path / "a.pkl")
    assert d.config.mbstd_group_size == expected and d(torch.zeros(8, 3, 32, 32)).shape == (8, 1)
    slim = loading.convert(tmp_path / "a.pkl")
    assert loading.load_stylegan2(slim)[1].config.mbstd_group_size == expected


def test_the_legit_pickle_is_one_that_the_public_loader_would_execute(tmp_path):
    """The files of these tests have the real structure: unpickling them runs the program that they hold."""
    marker = tmp_path / "ran"
    root = nvidia_files.module(small.nvidia_state(small.generator()))
    root._source = f"open({str(marker)!r}, 'w').close()\n" + nvidia_files.SOURCE
    data = nvidia_files.dumps(nvidia_files.snapshot(root, None))
    (tmp_path / "a.pkl").write_bytes(data)
    loading.load_stylegan2(tmp_path / "a.pkl")
    assert not marker.exists()
    with nvidia_files.their_modules():
        made = pickle.loads(data)
    assert marker.exists() and torch.equal(made["G_ema"]._modules["mapping"]._buffers["w_avg"], small.generator().w_avg)


def test_dino_s_classifier_is_left_out(tmp_path):
    state = small.dino_state() | {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}
    net = loading.load_dino(golden.save_torch(tmp_path / "a.pth", state))
    assert net.config == small.DINO and same(net.net.state_dict(), small.dino_state())


# --- converted and saved ------------------------------------------------------------------------------------------
def close(a, b):
    """Equal up to 16 bit."""
    return a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=2e-3, rtol=1e-3) for k in a)


@pytest.mark.parametrize("name", ["550000.pt", "old.pt", "ffhq.pkl", "phase2.pth", "phase3.pth", "dino.pth"])
def test_a_converted_file_loads_as_the_original(files, tmp_path, name):
    kind, path = files[name]
    slim = loading.convert(path, tmp_path / "slim.safetensors")
    stored = read(slim, kind)
    assert stored.config and stored.meta == read(path).meta | {
        "source": name, "source_sha256": checkpoints.store.sha256(path)}
    original, converted = nets_of(LOADERS[kind](path)), nets_of(LOADERS[kind](slim))
    assert len(original) == len(converted)
    for a, b in zip(original, converted):
        assert a.config == b.config and close(a.state_dict(), b.state_dict())
    assert slim.stat().st_size < path.stat().st_size


def test_what_is_saved_is_what_was_there(tmp_path):
    g, d, net = small.generator(), small.discriminator(), small.mmfs()
    loading.save_stylegan2(tmp_path / "g", g, d, {"steps": 5})
    loading.save_stylegan2(tmp_path / "alone", g, None)
    loading.save_mmfs(tmp_path / "m", net, d, {"phase": 3}, dtype=None)
    loading.save_mmfs(tmp_path / "half", net, None, {"phase": 3})
    again, discriminator = loading.load_stylegan2(tmp_path / "g")
    assert close(again.state_dict(), g.state_dict()) and close(discriminator.state_dict(), d.state_dict())
    assert again.config == g.config and discriminator.config == d.config and read(tmp_path / "g").meta == {"steps": 5}
    assert loading.load_stylegan2(tmp_path / "alone")[1] is None
    exact, discriminator = loading.load_mmfs(tmp_path / "m")
    assert same(exact.state_dict(), net.state_dict()) and same(discriminator.state_dict(), d.state_dict())
    assert exact.config == net.config and exact.config.mapper == small.MAPPER
    halved, none = loading.load_mmfs(tmp_path / "half")
    assert none is None and close(halved.state_dict(), net.state_dict())
    assert read(tmp_path / "half").meta["phase"] == 3
    loading.save_mmfs(tmp_path / "p2", small.mmfs(mapper=None), None, {"phase": 2})
    assert loading.load_mmfs(tmp_path / "p2")[0].mapper is None


def test_a_style_keeps_everything_and_a_small_picture(tmp_path):
    style = small.style(small.mmfs(), picture_px=400)
    found = loading.load_mmfs_style(loading.save_mmfs_style(tmp_path / "s.safetensors", style))
    assert close(dict(found.decoder), dict(style.decoder)) and torch.allclose(found.w_plus, style.w_plus, atol=2e-3)
    assert found.style_image.shape == (3, 256, 256) and found.style_image.dtype == torch.uint8
    assert (found.config, found.prompt, found.model, found.settings) == (style.config, "pop art", "abc", {"seed": 1})
    bare = MMFSStyle(style.config, style.decoder)
    found = loading.load_mmfs_style(loading.save_mmfs_style(tmp_path / "b.safetensors", bare))
    assert found.w_plus is None and found.style_image is None and found.prompt == found.model == ""


def test_an_official_phase_4_file_is_a_style_without_a_model(files):
    found = loading.load_mmfs_style(path_of(files, "phase3.pth"))
    assert same(dict(found.decoder), small.mmfs().decoder.state_dict()) and found.config == small.MMFS_CONFIG
    assert found.w_plus is None and found.style_image is None and found.model == ""


def test_the_converted_copy_of_an_official_style_is_a_style_and_a_model_of_ours_is_none(files, tmp_path):
    slim = loading.convert(path_of(files, "phase3.pth"), tmp_path / "pop_art.safetensors")
    found, original = loading.load_mmfs_style(slim), loading.load_mmfs_style(path_of(files, "phase3.pth"))
    assert found.config == original.config and found.w_plus is None and found.model == ""
    assert close(dict(found.decoder), dict(original.decoder))
    ours = loading.save_mmfs(tmp_path / "ours", small.mmfs(), None, {"phase": 3})
    with pytest.raises(CheckpointError, match="load it with the Load MMFS node"):
        loading.load_mmfs_style(ours)


@pytest.mark.parametrize(("name", "shape"), [
    ("patch_embed.proj.weight", (5000, 3, 8, 8)), ("patch_embed.proj.weight", (10**6, 0, 8, 8)),
    ("pos_embed", (1, 17, 5000)), ("pos_embed", (17, 64)), ("blocks.1.mlp.fc1.weight", (1, 1)),
    ("blocks.1.attn.qkv.weight", (64, 64)), ("blocks.300.mlp.fc1.weight", (1, 1))])
def test_a_dino_is_not_built_unless_its_tensors_are_there(tmp_path, monkeypatch, name, shape):
    state = small.dino_state() | {name: torch.zeros(1).expand(shape)}
    state |= {f"blocks.{k}.norm1.bias": torch.zeros(64) for k in range(300)} if "300" in name else {}
    monkeypatch.setattr("oneshot_atelier.models.features.dino.Dino.__init__", lambda *_: pytest.fail("it was built"))
    with pytest.raises(CheckpointError, match="^a.pth: "):
        loading.load_dino(golden.save_torch(tmp_path / "a.pth", state))


@pytest.mark.parametrize(("layer", "weight", "bias"), [(0, (16,), (16,)), (2, (16, 16), (16, 16)), (2, (16,), (16,))])
def test_a_mapping_network_of_other_shapes_is_an_error_of_ours(tmp_path, layer, weight, bias):
    root = small.rosinality_root()
    del root["latent_avg"]
    root["g_ema"] |= {f"style.{layer + 1}.weight": torch.zeros(weight), f"style.{layer + 1}.bias": torch.zeros(bias)}
    with pytest.raises(CheckpointError, match="^a.pt: "):
        loading.load_stylegan2(golden.save_torch(tmp_path / "a.pt", root))


def test_the_style_of_the_official_size_takes_at_most_24_mb(tmp_path):
    config = MMFSConfig(mapper=MapperConfig())
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in MMFS(config).decoder.state_dict().items()}
    assert sum(shape.numel() for shape in shapes.values()) == 11_639_768
    style = MMFSStyle(config, {name: torch.zeros(shape) for name, shape in shapes.items()}, torch.zeros(1, 10, 512),
                      torch.zeros(3, 512, 512, dtype=torch.uint8), "pop art", "0" * 64, {"iterations": 200})
    assert 23.2e6 < loading.save_mmfs_style(tmp_path / "s.safetensors", style).stat().st_size <= 24e6


# --- what is refused ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["550000.pt", "ffhq.pkl", "phase2.pth", "phase3.pth", "dino.pth"])
def test_every_other_loader_refuses_the_file_and_names_what_it_is(files, name):
    kind, path = files[name]
    for other, load in LOADERS.items():
        if other == kind or (other, kind) == ("mmfs_style", "mmfs"):
            continue
        with pytest.raises(CheckpointError) as caught:
            load(path)
        have, want = loading.KINDS[kind], loading.KINDS[other]
        assert all(text in str(caught.value) for text in (have.what, have.use, want.what, want.page)), caught.value
        assert str(caught.value).startswith(name)


def test_our_own_files_are_told_apart(tmp_path):
    net = small.mmfs()
    ours = {"stylegan2": loading.save_stylegan2(tmp_path / "g", small.generator(), None),
            "mmfs": loading.save_mmfs(tmp_path / "m", net, None, {"phase": 3}),
            "mmfs_style": loading.save_mmfs_style(tmp_path / "s", small.style(net))}
    for kind, path in ours.items():
        for other, load in LOADERS.items():
            if other != kind:
                with pytest.raises(CheckpointError, match=loading.KINDS[kind].use):
                    load(path)
        with pytest.raises(CheckpointError, match="already a file of this pack"):
            loading.convert(path)


@pytest.mark.parametrize("kind", ["stylegan2", "mmfs", "mmfs_style", "dino"])
def test_every_kind_has_a_public_page(kind):
    assert any(page in loading.KINDS[kind].page for page in ("github.com", "NVIDIA"))


def without(state, *parts):
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


def rosinality(**changes):
    """A trainer's file; keys of `changes` with None are taken out, others replaced, in `g_ema`."""
    root = small.rosinality_root()
    for key, value in changes.items():
        key = key.replace("__", ".")
        root["g_ema"].pop(key, None)
        root["g_ema"] |= {} if value is None else {key: value}
    return root


BROKEN = {
    "a layer is missing": (rosinality(convs__1__conv__weight=None), "'convs.1.conv.weight' is missing"),
    "a foreign layer": (rosinality(convs__1__attention__weight=torch.zeros(3)), "'convs.1.attention.weight' that"),
    "two in front": (rosinality(conv1__conv__weight=torch.zeros(2, 12, 12, 3, 3)), "leading"),
    "no leading one": (rosinality(input__input=torch.zeros(12, 4, 4)), "leading"),
    "another width": (rosinality(input__input=torch.zeros(1, 13, 4, 4)), "not those of the network"),
    "NaN": (rosinality(input__input=torch.full((1, 12, 4, 4), float("nan"))), "NaN or infinite"),
    "integers": (rosinality(input__input=torch.zeros(1, 12, 4, 4, dtype=torch.int64)), "int64"),
    "not a tensor": (rosinality(input__input="many"), "'input.input' is missing"),
    "noise of another size": (rosinality(noises__noise_0=torch.zeros(1, 1, 5, 5)), "not those of the network"),
    "mean of another width": ({**rosinality(), "latent_avg": torch.zeros(17)}, "not those of the network"),
    "rows of another width": ({**rosinality(), "latent_avg": torch.zeros(8, 17)}, "not those of the network"),
    "mapping of odd shape": ({k: v for k, v in rosinality(style__1__weight=torch.zeros(16, 20)).items()
                              if k != "latent_avg"}, "z and w of different widths"),
    "an average that is none": ({**small.rosinality_root(), "g_ema": {}}, "'g_ema' holds no usable tensors"),
    "not square": (rosinality(input__input=torch.zeros(1, 12, 4, 6)), "constant of 4 x 6 px: .* not square"),
    "other names": ({"g_ema": {"input.input": torch.zeros(1, 12, 4, 4), "head.weight": torch.zeros(1)}},
                    "most of its tensors have other names"),
    "MMFS without layers": ({"G_ema_model": {"decoder0.conv.weight": torch.zeros(1, 8, 8, 3, 3)}}, "other names"),
    "MMFS with more": ({"G_ema_model": small.mmfs_root()["G_ema_model"] | {"decoder9a.noise.weight": torch.zeros(1)}},
                       "'decoder9a.noise.weight' that"),
    "half a mapper": ({"G_ema_model": without(small.mmfs_root()["G_ema_model"], "layers.1.norm2")}, "is missing"),
    "a mapper of other tokens": ({"G_ema_model": small.mmfs_root()["G_ema_model"] | {
        "clip_mapper.position_embedding": torch.zeros(5, 16)}}, "not those of the network"),
    "DINO with registers": (small.dino_state() | {"reg_token": torch.zeros(1, 4, 64)}, "'reg_token'"),
    "DINO in training": ({"student": {}, "teacher": {}}, "full training checkpoint"),
    "DINO of Hugging Face": ({"embeddings.patch_embeddings.projection.weight": torch.zeros(3)}, "Hugging Face"),
}
FAULTY_CRITICS = {
    "of another size": small.rosinality_state(small.discriminator(config=StyleGAN2Config((12, 10, 8), 16))),
    "with a layer too many": small.rosinality_state(small.discriminator()) | {"convs.9.more": torch.zeros(3)},
    "with NaN": small.rosinality_state(small.discriminator()) | {"final_linear.1.bias": torch.tensor([float("nan")])},
    "with a layer missing": without(small.rosinality_state(small.discriminator()), "convs.1.conv1")}


@pytest.mark.parametrize("name", sorted(FAULTY_CRITICS))
def test_a_faulty_discriminator_leaves_the_generator_usable(tmp_path, caplog, name):
    for root, kind in (({**small.rosinality_root(), "d": FAULTY_CRITICS[name]}, "stylegan2"),
                       ({**small.mmfs_root(), "D_model": FAULTY_CRITICS[name]}, "mmfs")):
        caplog.clear()
        path = golden.save_torch(tmp_path / "a.pt", root)
        for found in (LOADERS[kind](path), LOADERS[kind](loading.convert(path, overwrite=True))):
            assert found[0] is not None and (found[1] is None or kind == "mmfs")
        assert "discriminator is left out" in caplog.text or kind == "mmfs"


def test_an_empty_discriminator_is_none(tmp_path):
    assert loading.load_stylegan2(golden.save_torch(tmp_path / "a.pt", {**small.rosinality_root(), "d": {}}))[1] is None


@pytest.mark.parametrize("form", ["torch", "safetensors", "flat", "jojogan", "bare"])
@pytest.mark.parametrize("layout", ["rosinality", "nvidia"])
def test_both_layouts_load_in_every_container(tmp_path, layout, form):
    g, path = small.generator(), tmp_path / "a"
    state = dict(getattr(small, f"{layout}_state")(g))
    discriminator = dict(getattr(small, f"{layout}_state")(small.discriminator()))
    names = ("g_ema", "d") if layout == "rosinality" else ("G_ema", "D")
    if form == "torch":
        golden.save_torch(path, {names[0]: state, names[1]: discriminator})
    elif form == "flat":
        save_file({f"{key}.{name}": value.clone() for key, part in zip(names, (state, discriminator))
                   for name, value in part.items()}, path)
    elif form == "safetensors":
        save_file({name: value.clone() for name, value in state.items()}, path)
    elif form == "jojogan":
        golden.save_torch(path, {"g": state})
    else:
        golden.save_torch(path, state)
    found, d = loading.load_stylegan2(path)
    assert same(found.state_dict(), g.state_dict())
    assert (d is not None) == (form in ("torch", "flat"))
    assert d is None or same(d.state_dict(), small.discriminator().state_dict())


@pytest.mark.parametrize("shape", [(1, 16), (8, 16), (1, 8, 16)])
def test_the_mean_style_may_come_in_rows(tmp_path, shape):
    root, mean = small.rosinality_root(), small.generator().w_avg
    for value in (mean.expand(shape), mean.expand(shape).contiguous()):
        path = golden.save_torch(tmp_path / "a.pt", {**root, "latent_avg": value})
        torch.testing.assert_close(loading.load_stylegan2(path)[0].w_avg, mean)
    torch.testing.assert_close(loading.load_stylegan2(loading.convert(path))[0].w_avg, mean, atol=2e-3, rtol=1e-3)
    state = small.nvidia_state(small.generator()) | {"mapping.w_avg": mean.expand(shape)}
    path = nvidia_files.write(tmp_path / "a.pkl", state)
    torch.testing.assert_close(loading.load_stylegan2(path)[0].w_avg, mean)


def test_expanded_weights_load(tmp_path):
    root = small.rosinality_root()
    root["g_ema"]["noises.noise_2"] = torch.tensor(0.5).expand(1, 1, 8, 8)
    g, _ = loading.load_stylegan2(golden.save_torch(tmp_path / "a.pt", root))
    assert torch.equal(g.noise_2, torch.full((8, 8), 0.5))


def test_raw_networks_are_taken_with_a_warning_where_there_is_no_average(tmp_path, caplog):
    root = small.mmfs_root()
    del root["G_ema_model"]
    net, _ = loading.load_mmfs(golden.save_torch(tmp_path / "a.pth", root))
    raw = nvidia_files.snapshot(None, nvidia_files.discriminator(small.nvidia_state(small.discriminator())))
    raw["G"] = nvidia_files.module(small.nvidia_state(small.generator()))
    (tmp_path / "a.pkl").write_bytes(nvidia_files.dumps(raw))
    g, d = loading.load_stylegan2(tmp_path / "a.pkl")
    assert same(g.state_dict(), small.generator().state_dict()) and d is not None and net.config == small.MMFS_CONFIG
    assert [record.message for record in caplog.records] == [
        f"the file has no averaged network; '{name}', the one in training, is taken" for name in ("G_model", "G")]


def test_dinos_training_checkpoint_gives_the_teachers_backbone(tmp_path):
    teacher = {f"backbone.{name}": value for name, value in small.dino_state().items()} | {
        "head.mlp.0.weight": torch.zeros(3, 3)}
    student = {f"module.{name}": value + 1 for name, value in teacher.items()}
    path = golden.save_torch(tmp_path / "checkpoint.pth", {"student": student, "teacher": teacher, "epoch": 3})
    assert same(loading.load_dino(path).net.state_dict(), small.dino_state())


WANTED = {"MMFS": "mmfs", "DINO": "dino", "half": "mmfs", "a mapper": "mmfs"}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_files_are_refused_with_the_reason(tmp_path, name):
    root, reason = BROKEN[name]
    kind = next((kind for start, kind in WANTED.items() if name.startswith(start)), "stylegan2")
    path = golden.save_torch(tmp_path / "broken.pt", root)
    with pytest.raises(CheckpointError, match=reason) as caught:
        LOADERS[kind](path)
    assert str(caught.value).startswith("broken.pt: ")
    try:
        slim = loading.convert(path)
    except CheckpointError:
        assert [entry.name for entry in tmp_path.iterdir()] == ["broken.pt"], "nothing is left half-written"
    else:  # names and numbers are sound, what does not fit is noticed when the network is built
        with pytest.raises(CheckpointError):
            LOADERS[kind](slim)
