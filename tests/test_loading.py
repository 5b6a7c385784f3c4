"""From a file to a network: our own, official-looking and converted files, and everything that must be refused."""

from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from oneshot_atelier.models import checkpoints, diffae, loading, unet
from oneshot_atelier.models.checkpoints import CheckpointError, store
from oneshot_atelier.models.diffae import DiffAE
from oneshot_atelier.models.features.clip import Clip
from oneshot_atelier.models.loading import load_clip, load_ddpm, load_diffae, load_lpips, load_style, save_style
from oneshot_atelier.models.spn import SPN, SPNConfig
from oneshot_atelier.models.style import OSASISStyle, fingerprint
from oneshot_atelier.models.unet import UNet
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import tiny

LOADERS = {"diffae": load_diffae, "ddpm": load_ddpm, "clip": load_clip, "osasis_style": load_style, "vgg16": load_lpips}


def vgg_state():
    """The trunk as torchvision's file has it, classifier included."""
    state = {key.removeprefix("vgg16."): value for key, value in golden.weights("osasis_train", "lpips.").items()
             if key.startswith("vgg16.")}
    return state | {"classifier.0.weight": torch.zeros(4, 4), "classifier.0.bias": torch.zeros(4)}


def clip_state():
    return golden.weights("osasis_train", "clip.")


def a_style(spn=True):
    net = SPN(SPNConfig(timed=False)).state_dict() if spn else None
    return OSASISStyle(tiny.UNET, tiny.filled(UNet(tiny.UNET)).state_dict(), net, torch.randn(1, 32),
                 torch.zeros(3, 32, 32, dtype=torch.uint8), "abc", {"seed": 1})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of every sort: `ours NAME` and official-looking ones."""
    folder = tmp_path_factory.mktemp("files")
    golden.random_official_checkpoint(folder / "last.ckpt", "diffae_tiny")
    golden.random_official_checkpoint(folder / "autoenc.ckpt", "diffae_tiny", latent=False)
    golden.random_official_checkpoint(folder / "ffhq_p2.pt", "p2_tiny")
    golden.random_official_checkpoint(folder / "iter_200.pt", "osasis_tiny")
    golden.random_official_checkpoint(folder / "plain.pt", "osasis_tiny", spn=False)
    save_file(clip_state(), folder / "open_clip_model.safetensors")
    golden.save_torch(folder / "vgg16.pth", vgg_state())
    net, clip, ddpm = tiny.diffae(), tiny.clip(), tiny.filled(UNet(tiny.DDPM))
    store.save(folder / "our diffae", net.state_dict(), "diffae", asdict(net.config))
    store.save(folder / "our ddpm", ddpm.state_dict(), "ddpm", asdict(tiny.DDPM))
    store.save(folder / "our clip", clip.net.state_dict(), "clip", asdict(tiny.CLIP))
    store.save(folder / "our vgg16", {k: v for k, v in vgg_state().items() if k.startswith("features")}, "vgg16", {})
    save_style(folder / "our osasis_style", a_style())
    return folder


OF_KIND = {"diffae": ("last.ckpt", "autoenc.ckpt", "our diffae"), "ddpm": ("ffhq_p2.pt", "our ddpm"),
           "clip": ("open_clip_model.safetensors", "our clip"), "vgg16": ("vgg16.pth", "our vgg16"),
           "osasis_style": ("iter_200.pt", "plain.pt", "our osasis_style")}


def close(a, b):
    """Equal up to 16 bit."""
    return a.keys() == b.keys() and all(torch.allclose(a[k].float(), b[k].float(), atol=2e-3, rtol=1e-3) for k in a)


# --- what loads --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in OF_KIND.items() for n in names])
def test_networks_come_frozen_in_float32_on_the_cpu(files, kind, name):
    found = LOADERS[kind](files / name)
    nets = [n for n in found.networks() if n is not None] if isinstance(found, OSASISStyle) else [found]
    for net in nets:
        tensors = [*net.parameters(), *net.buffers()]
        assert not net.training and not any(p.requires_grad for p in net.parameters())
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}
        assert {t.device.type for t in tensors} == {"cpu"}


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in OF_KIND.items() for n in names])
def test_every_other_loader_refuses_the_file_and_names_what_it_is(files, kind, name):
    for other, load in LOADERS.items():
        if other != kind:
            with pytest.raises(CheckpointError) as caught:
                load(files / name)
            assert loading.KINDS[kind].use in str(caught.value), str(caught.value)
            assert loading.KINDS[other].what in str(caught.value) and str(caught.value).startswith(name)


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in OF_KIND.items() for n in names
                                            if not n.startswith("our")])
def test_a_converted_file_loads_as_the_original(files, tmp_path, kind, name):
    slim = loading.convert(files / name, tmp_path / "slim.safetensors")
    original, converted = LOADERS[kind](files / name), LOADERS[kind](slim)
    if kind == "osasis_style":
        assert converted.config == original.config and close(dict(converted.unet), dict(original.unet))
        assert close(dict(converted.spn or {}), dict(original.spn or {}))
        return
    assert close(converted.state_dict(), original.state_dict())
    if kind != "vgg16":
        assert converted.config == original.config
    if name == "last.ckpt":
        assert torch.equal(converted.conds_std, original.conds_std), "statistics stay in 32 bit"
        assert fingerprint(converted) == fingerprint(original)


def test_our_own_files_give_the_network_that_was_saved(files):
    assert close(load_diffae(files / "our diffae").state_dict(), tiny.diffae().state_dict())
    assert load_diffae(files / "our diffae").config == tiny.DIFFAE
    assert load_ddpm(files / "our ddpm").config == tiny.DDPM
    clip = load_clip(files / "our clip")
    assert clip.config == tiny.CLIP and close(clip.state_dict(), tiny.clip().state_dict())
    assert clip.embed_text(["red face"]).shape == (1, 24)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_prediction_and_the_dropout_survive_our_own_file(tmp_path, prediction):
    config = replace(tiny.DIFFAE, unet=replace(tiny.UNET, prediction=prediction, dropout=0.0))
    net = tiny.diffae(config=config)
    path = store.save(tmp_path / "a.safetensors", net.state_dict(), "diffae", asdict(config), dtype=None)
    found = load_diffae(path)
    assert found.config == config and tiny.same(found.state_dict(), net.state_dict())


def test_head_counts_are_the_published_ones_unless_told():
    with torch.device("meta"):
        tensors = UNet(replace(tiny.DDPM, mult=(2, 4))).state_dict()
    assert unet.detect(tensors).head_channels == 64
    with torch.device("meta"):
        heads = [m.heads for m in UNet(unet.detect(tensors)).modules() if isinstance(m, unet.Attention)]
    assert set(heads) == {2}


def test_a_ddpm_can_be_told_its_heads(files):
    assert load_ddpm(files / "ffhq_p2.pt").config.head_channels == 64
    assert load_ddpm(files / "ffhq_p2.pt", head_channels=32).config.head_channels == 32
    assert load_ddpm(files / "our ddpm", head_channels=32).config.head_channels == 64  # ours says it itself
    with pytest.raises(CheckpointError, match="attention heads of 48"):
        load_ddpm(files / "ffhq_p2.pt", head_channels=48)


def test_a_plain_ddim_of_diffae_loads_as_a_ddpm(tmp_path):
    plain = replace(tiny.DDPM, out_channels=3, head_channels=0)
    net = tiny.filled(UNet(plain))
    state = {f"ema_model.{key}": value for key, value in net.state_dict().items()}
    found = load_ddpm(golden.save_torch(tmp_path / "last.ckpt", {"state_dict": state}))
    assert found.config == plain and tiny.same(found.state_dict(), net.state_dict())


# --- the latent DPM ----------------------------------------------------------------------------------------------
def test_statistics_and_latent_network_come_along(files):
    net = load_diffae(files / "last.ckpt")
    expected = golden.weights("diffae_tiny")
    for name in ("conds_mean", "conds_std"):
        assert torch.equal(getattr(net, name), expected[name][0])
    width = expected["conds_mean"].shape[1]
    assert net.sample_z(torch.zeros(1, width), 5).shape == (1, width)


def test_a_latent_network_without_statistics_is_dropped(tmp_path):
    """autoenc files may hold an untrained latent network; without the statistics of z it must not draw anything."""
    state = golden.lightning_state("diffae_tiny")
    del state["conds_mean"], state["conds_std"]
    path = golden.save_torch(tmp_path / "last.ckpt", {"state_dict": state})
    for found in (load_diffae(path), load_diffae(loading.convert(path, tmp_path / "slim.safetensors"))):
        assert found.config.latent is None and found.latent_net is None and not hasattr(found, "conds_mean")
        with pytest.raises(ValueError, match="autoenc_latent"):
            found.sample_z(torch.zeros(1, 48))


def test_an_autoenc_file_has_the_same_networks_as_the_latent_one(files):
    with_latent, without = load_diffae(files / "last.ckpt"), load_diffae(files / "autoenc.ckpt")
    assert without.config == replace(with_latent.config, latent=None)
    assert fingerprint(with_latent) == fingerprint(without)


# --- strictness --------------------------------------------------------------------------------------------------
def damaged(tensors, change):
    tensors = {key: value.clone() for key, value in tensors.items()}
    some = [key for key in sorted(tensors) if key.endswith("weight") and tensors[key].dim() > 1][-1]
    if change == "missing":
        del tensors[some]
    elif change == "extra":
        tensors["unet.extra.weight" if some.startswith(("unet.", "encoder.")) else "extra.weight"] = torch.zeros(2, 2)
    else:
        tensors[some] = tensors[some][:-1].clone()
    return tensors


@pytest.mark.parametrize("change", ["missing", "extra", "another shape"])
@pytest.mark.parametrize("kind", ["diffae", "ddpm", "clip", "osasis_style"])
def test_our_own_files_must_hold_exactly_the_networks_tensors(files, tmp_path, kind, change):
    whole = store.load(files / f"our {kind}")
    path = store.save(tmp_path / "bad.safetensors", damaged(whole.tensors, change), kind, whole.config)
    with pytest.raises(CheckpointError, match="^bad.safetensors: .*not those of the network"):
        LOADERS[kind](path)


@pytest.mark.parametrize("change", ["missing", "extra", "another shape"])
def test_foreign_files_must_hold_exactly_the_networks_tensors(tmp_path, change):
    state = {f"ema_model.{key}": value for key, value in damaged(golden.weights("p2_tiny"), change).items()}
    with pytest.raises(CheckpointError, match="^last.ckpt: "):
        load_ddpm(golden.save_torch(tmp_path / "last.ckpt", {"state_dict": state}))
    path = golden.save_torch(tmp_path / "clip.pt", damaged(clip_state(), change))
    with pytest.raises(CheckpointError, match="^clip.pt: "):
        load_clip(path)


@pytest.mark.parametrize(("missing", "words"), [("layers.9", "not a structure-preserving network"),
                                                ("layers.4.bias", "not those of the network .* 'layers.4.bias'")])
def test_an_spn_must_be_complete(files, tmp_path, missing, words):
    whole = store.load(files / "our osasis_style")
    tensors = {k: v for k, v in whole.tensors.items() if not k.startswith(f"spn.{missing}")}
    path = store.save(tmp_path / "a.safetensors", tensors, "osasis_style", whole.config)
    with pytest.raises(CheckpointError, match=f"a.safetensors: .*{words}"):
        load_style(path)


@pytest.mark.parametrize("change", [
    {"base": 0}, {"base": -4}, {"base": "x"}, {"base": 2.5}, {"base": 10 ** 9}, {"mult": 5}, {"mult": ["a"]},
    {"mult": []}, {"blocks": -1}, {"image_size": "x"}, {"image_size": 1024}, {"prediction": "x0"},
    {"out_channels": -3}, {"embed": 0}, {"head_channels": 7}, {"colour": "red"}])
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_damaged_configuration_is_refused_before_anything_is_built(files, tmp_path, change):
    for kind, wrap in (("ddpm", lambda c: c), ("osasis_style", lambda c: {"unet": c})):
        whole = store.load(files / f"our {kind}")
        config = whole.config["unet"] if kind == "osasis_style" else whole.config
        path = store.save(tmp_path / f"{kind}.safetensors", whole.tensors, kind, wrap({**config, **change}))
        with pytest.raises(CheckpointError, match=f"^{kind}.safetensors: "):
            LOADERS[kind](path)


@pytest.mark.parametrize("config", [{"unet": 3}, {"unet": {}, "encoder_mult": [1]}, {"encoder_mult": [1, 2, 2]}])
def test_a_diffae_with_half_a_configuration_is_refused(files, tmp_path, config):
    path = store.save(tmp_path / "a.safetensors", store.load(files / "our diffae").tensors, "diffae", config)
    with pytest.raises(CheckpointError, match="^a.safetensors: its configuration cannot be used .*write the file"):
        load_diffae(path)


@pytest.mark.parametrize("load", LOADERS.values())
def test_what_is_no_checkpoint_is_refused_by_every_loader(tmp_path, load):
    (tmp_path / "page.ckpt").write_bytes(b"<html>Too many requests</html>" * 10)
    (tmp_path / "empty.pt").write_bytes(b"")
    for name, words in (("page.ckpt", "web page"), ("empty.pt", "empty file"), ("none.pt", "no such file")):
        with pytest.raises(CheckpointError, match=words):
            load(tmp_path / name)
    golden.save_torch(tmp_path / "other.pt", {"fc.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="no known model"):
        load(tmp_path / "other.pt")


def test_a_truncated_file_of_ours_is_refused(files, tmp_path):
    data = (files / "our diffae").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:len(data) // 2])
    with pytest.raises(CheckpointError, match="a.safetensors"):
        load_diffae(tmp_path / "a.safetensors")


# --- CLIP --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_clip_files_of_openclip_load_in_every_wrapping(tmp_path, prefix, wrapped):
    state = {prefix + key: value for key, value in clip_state().items()}
    state |= {prefix + key: torch.tensor(77) for key in ("input_resolution", "context_length", "vocab_size")}
    state[prefix + "attn_mask"] = torch.full((77, 77), float("-inf")).triu(1)
    root = {"state_dict": state, "epoch": 3} if wrapped else state
    found = load_clip(golden.save_torch(tmp_path / "epoch_3.pt", root))
    assert tiny.same(found.net.state_dict(), dict(clip_state())) and found.net.logit_scale.shape == ()
    if not wrapped:
        save_file({k: v for k, v in state.items()}, tmp_path / "a.safetensors")
        assert tiny.same(load_clip(tmp_path / "a.safetensors").state_dict(), found.state_dict())


def test_clip_parity_is_that_of_the_file(files):
    case = golden.load_case("osasis_train")
    with torch.no_grad():
        found = load_clip(files / "open_clip_model.safetensors")
        case.check("clip_style_A", found.embed(case.inputs["style_A"]))


def test_the_activation_is_told_for_foreign_and_converted_files_and_written_in_ours(files, tmp_path):
    slim = loading.convert(files / "open_clip_model.safetensors", tmp_path / "slim.safetensors")
    for path in (files / "open_clip_model.safetensors", slim):
        assert load_clip(path).config.quick_gelu and not load_clip(path, quick_gelu=False).config.quick_gelu
    config = replace(tiny.CLIP, quick_gelu=False)
    path = store.save(tmp_path / "ours", Clip(config).net.state_dict(), "clip", asdict(config))
    assert not load_clip(path, quick_gelu=True).config.quick_gelu


@pytest.mark.parametrize(("change", "words"), [
    ({"logit_scale": torch.ones(2)}, r"'logit_scale' has shape \[2\]"),
    ({"logit_scale": None}, "without 'logit_scale'"), ({"visual.class_embedding": None}, "another architecture"),
    ({"text_projection": None}, "without 'text_projection'"), ({"logit_scale": torch.tensor(float("nan"))}, "NaN"),
    ({"visual.proj": torch.full((128, 96), float("inf"))}, "NaN")])
def test_other_clips_are_refused_with_a_file_to_get_instead(tmp_path, change, words):
    state = {key: value for key, value in (clip_state() | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=words) as caught:
        load_clip(golden.save_torch(tmp_path / "clip.pt", state))
    assert "NaN" in words or "timm/vit_base_patch32_clip_224.openai" in str(caught.value)


def test_one_number_may_have_a_dimension(tmp_path):
    path = golden.save_torch(tmp_path / "clip.pt", {**clip_state(), "logit_scale": torch.tensor([4.6])})
    assert float(load_clip(path).net.logit_scale) == pytest.approx(4.6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_openais_own_archive_is_refused_with_the_file_to_use(tmp_path):
    program = torch.jit.trace(torch.nn.Linear(3, 3), torch.zeros(1, 3))
    torch.jit.save(program, tmp_path / "ViT-B-32.pt")
    words = "TorchScript program.*open_clip_model.safetensors.*timm/vit_base_patch32_clip_224.openai"
    with pytest.raises(CheckpointError, match=words):
        load_clip(tmp_path / "ViT-B-32.pt")


# --- VGG-16 ------------------------------------------------------------------------------------------------------
def test_only_the_convolutions_of_vgg_are_kept(files, tmp_path):
    found = checkpoints.read(files / "vgg16.pth", "vgg16")
    assert len(found.tensors) == 26 and not any(key.startswith("classifier") for key in found.tensors)
    save_file(vgg_state(), tmp_path / "vgg16.safetensors")
    a, b = tiny.pictures(1), tiny.pictures(1, seed=1)
    with torch.no_grad():
        distances = [float(load_lpips(p)(a, b)) for p in (files / "vgg16.pth", tmp_path / "vgg16.safetensors")]
    assert distances[0] == distances[1] > 0


@pytest.mark.parametrize(("change", "words"), [
    ({"features.28.bias": None}, "'features.28.bias' is missing"),
    ({"features.1.weight": torch.ones(64)}, "layer 'features.1.weight'"),
    ({"features.34.weight": torch.zeros(512, 512, 3, 3)}, "layer 'features.34.weight' that VGG-16 does not have"),
    ({"features.0.weight": torch.zeros(64, 1, 3, 3)}, r"is \[64, 1, 3, 3\], expected \[64, 3, 3, 3\]")])
def test_other_vggs_are_refused_with_a_file_to_get_instead(tmp_path, change, words):
    state = {key: value for key, value in (vgg_state() | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=words) as caught:
        load_lpips(golden.save_torch(tmp_path / "vgg.pth", state))
    assert "vgg16-397923af.pth" in str(caught.value) and str(caught.value).startswith("vgg.pth: ")


def test_a_trunk_of_ours_is_checked_too(tmp_path):
    path = store.save(tmp_path / "a.safetensors", {"features.0.weight": torch.zeros(64, 3, 3, 3)}, "vgg16", {})
    with pytest.raises(CheckpointError, match="a.safetensors: .*'features.0.bias' is missing"):
        load_lpips(path)


# --- styles ------------------------------------------------------------------------------------------------------
def test_an_official_style_knows_its_networks_and_nothing_more(files):
    style = load_style(files / "iter_200.pt")
    assert style.z_style is None and style.style_image is None and style.model == "" and style.spn is not None
    assert load_style(files / "plain.pt").spn is None and load_style(files / "plain.pt").networks()[1] is None
    expected = golden.weights("osasis_tiny", "diffae_B.")
    unet, spn = style.networks()
    assert torch.equal(unet.out[2].weight, expected["out.2.weight"]) and spn.config.timed


@pytest.mark.parametrize("spn", [True, False])
def test_a_style_survives_saving(tmp_path, spn):
    style = a_style(spn)
    found = load_style(save_style(tmp_path / "sub" / "a b.safetensors", style))
    assert (found.config, found.model, found.settings) == (style.config, "abc", {"seed": 1})
    assert close(dict(found.unet), dict(style.unet)) and close(dict(found.spn or {}), dict(style.spn or {}))
    assert torch.equal(found.style_image, style.style_image)
    assert torch.allclose(found.z_style.float(), style.z_style, atol=2e-3)
    assert {v.dtype for v in found.unet.values()} == {torch.float16}


def test_the_networks_of_a_style_are_new_ones_each_time(files):
    style = load_style(files / "our osasis_style")
    first = style.networks()[0]
    with torch.no_grad():
        first.out[2].weight.add_(1)
    assert not torch.equal(first.out[2].weight, style.networks()[0].out[2].weight)
    assert torch.equal(style.unet["out.2.weight"].float(), style.networks()[0].out[2].weight)


# --- the demo models ---------------------------------------------------------------------------------------------
def test_the_demo_models_load_and_stay_within_their_size():
    """OSASIS and CLIP 24 MB, MMFS 16 MB, all of models/demo with its card 40 MB."""
    loaders = LOADERS | {"stylegan2": loading.load_stylegan2, "mmfs": loading.load_mmfs,
                         "attributes": loading.load_attributes}
    sizes = {}
    for path in sorted(loading.DEMO.glob("*.safetensors")):
        loaders[checkpoints.store.peek(path).kind](path)
        sizes[path.stem] = path.stat().st_size
    assert sizes.keys() == {"diffae", "ddpm", "clip", "stylegan2", "mmfs", "attributes"}
    assert sizes["stylegan2"] + sizes["mmfs"] <= 16e6
    assert sizes["diffae"] + sizes["ddpm"] + sizes["clip"] <= 24e6
    assert sum(path.stat().st_size for path in loading.DEMO.iterdir()) <= 40e6


def test_detection_agrees_with_the_loaders(files):
    """What a foreign file is built from is what its tensors say, whichever way it came."""
    tensors = checkpoints.read(files / "autoenc.ckpt").tensors
    with torch.device("meta"):
        shapes = DiffAE(diffae.detect(tensors)).state_dict()
    assert {k: v.shape for k, v in shapes.items()} == {k: v.shape for k, v in tensors.items()}


def test_a_converted_ddpm_can_be_told_what_its_source_did_not_tell(files, tmp_path):
    slim = loading.convert(files / "ffhq_p2.pt", tmp_path / "slim.safetensors")
    found, original = load_ddpm(slim), load_ddpm(files / "ffhq_p2.pt")
    earlier = store.save(tmp_path / "earlier", store.load(slim).tensors, "ddpm", asdict(found.config),
                         store.load(slim).meta)  # versions before 0.3 wrote what they guessed
    assert found.config == original.config == load_ddpm(earlier).config
    for told in ({"head_channels": 32}, {"num_heads": 2}, {"image_size": 64}):
        wanted = load_ddpm(files / "ffhq_p2.pt", **told).config
        assert load_ddpm(slim, **told).config == load_ddpm(earlier, **told).config == wanted != found.config


def test_what_is_given_and_not_used_is_said(files, caplog):
    load_ddpm(files / "ffhq_p2.pt", head_channels=32)
    load_ddpm(files / "our ddpm", head_channels=64)
    assert not loading.unused(tiny.DDPM, head_channels=None, image_size=tiny.DDPM.image_size)
    assert "not used" not in caplog.text
    load_ddpm(files / "our ddpm", head_channels=32, image_size=512)
    assert "our ddpm says its head_channels and image_size itself, and what was given is not used" in caplog.text


def test_a_clip_whose_mask_of_texts_would_be_huge_is_refused(tmp_path):
    state = dict(tiny.clip().net.state_dict())
    width = state["positional_embedding"].shape[1]
    path = golden.save_torch(tmp_path / "a.pt", state | {"positional_embedding": torch.zeros(100_000, width)})
    with pytest.raises(CheckpointError, match="a.pt: .*texts of 100000 tokens"):
        load_clip(path)
