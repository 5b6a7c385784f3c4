"""Networks of public families whose files do not say everything: diffusion UNets, CLIPs of every size, LPIPS."""

import logging
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from oneshot_atelier.models import loading, unet
from oneshot_atelier.models.checkpoints import CheckpointError, store
from oneshot_atelier.models.features import clip
from oneshot_atelier.models.features.clip import Clip
from oneshot_atelier.models.unet import Attention, UNet, UNetConfig
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import tiny

# --- guided-diffusion UNets --------------------------------------------------------------------------------------
FAMILY = UNetConfig(64, 32, (1, 2, 3, 4), blocks=1, embed=48, cond=0, out_channels=6, head_channels=32, dropout=0.0,
                    attention_resolutions=(32, 16, 8))


def written(path, config, seed=0):
    net = tiny.filled(UNet(config), seed).eval()
    return net, golden.save_torch(path, dict(net.state_dict()))


def same_output(a, b, px):
    x, t = tiny.pictures(1, px=px), torch.tensor([500])
    with torch.no_grad():
        torch.testing.assert_close(a(x, a.modulation(t)), b(x, b.modulation(t)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("change", "told"), [
    ({}, {"head_channels": 32}),
    ({"head_channels": 0, "num_heads": 4}, {"num_heads": 4}),
    ({"resblock_updown": False}, {"head_channels": 32}),
    ({"resblock_updown": False, "attention_resolutions": (16, 8)}, {"head_channels": 32}),
    ({"attention_resolutions": (8,)}, {"head_channels": 32}),
    ({"out_channels": 3, "head_channels": 0}, {}),
    ({"mult": (1, 2), "image_size": 16, "attention_resolutions": (8,)}, {"head_channels": 32, "image_size": 16}),
    ({"mult": (1, 2), "image_size": 32, "attention_resolutions": (32, 16)}, {"head_channels": 32, "image_size": 32}),
], ids=str)
def test_a_unet_of_the_family_is_built_from_its_shapes_and_what_is_told(tmp_path, change, told):
    config = replace(FAMILY, **change)
    net, path = written(tmp_path / "a.pt", config)
    found = loading.load_ddpm(path, **told)
    assert found.config == config
    same_output(net, found, config.image_size)
    ours = store.save(tmp_path / "ours", net.state_dict(), "ddpm", asdict(config), dtype=None)
    again = loading.load_ddpm(ours)
    assert again.config == config
    same_output(net, again, config.image_size)


def test_four_heads_are_not_one_in_disguise(tmp_path, caplog):
    config = replace(FAMILY, head_channels=0, num_heads=4)
    net, path = written(tmp_path / "a.pt", config)
    with caplog.at_level(logging.INFO):
        found = loading.load_ddpm(path, num_heads=4)
    assert "a.pt: UNet for 64 px, attention at [32, 16, 8] px with 4 head(s)" in caplog.text
    assert {m.heads for m in found.modules() if isinstance(m, Attention)} == {4}
    other = loading.load_ddpm(path, head_channels=0)
    x, t = tiny.pictures(1, px=64), torch.tensor([500])
    with torch.no_grad():
        assert (net(x, net.modulation(t)) - other(x, other.modulation(t))).abs().max() > 0.01


def test_plain_resampling_has_the_public_names():
    with torch.device("meta"):
        names = set(UNet(replace(FAMILY, resblock_updown=False)).state_dict())
    assert {"input_blocks.2.0.op.weight", "output_blocks.1.2.conv.bias"} <= names
    assert "input_blocks.2.0.in_layers.2.weight" not in names


@pytest.mark.parametrize(("mult", "px", "attention"), [
    ((1, 1, 2, 2, 4, 4), 256, (32, 16, 8)), ((1, 1, 2, 2, 4, 4), 256, (16,)), ((1, 1, 2, 3, 4), 128, (32, 16, 8)),
    ((1, 2, 3, 4), 64, (32, 16, 8)), ((1, 2, 3, 4), 64, (16, 8)), ((1, 1, 2, 2, 4, 4), 256, (8,))])
def test_openais_sizes_are_known_and_their_models_have_heads_of_64(mult, px, attention):
    """LSUN and ImageNet 256: widths (1, 1, 2, 2, 4, 4) of 256, two blocks, attention at 32, 16 and 8 px."""
    config = UNetConfig(px, 64, mult, 2, 256, 0, 6, 64, 0.0, attention_resolutions=attention)
    with torch.device("meta"):
        assert unet.detect(UNet(config).state_dict()) == config


@pytest.mark.parametrize(("change", "told", "words"), [
    ({}, {"num_heads": 5}, "cannot be split into 5 attention heads"),
    ({}, {"image_size": -3}, "not those of the network|cannot be built"),
    ({"mult": (1, 2), "attention_resolutions": ()}, {}, "at 0 levels; give image_size"),
])
def test_what_cannot_be_is_said(tmp_path, change, told, words):
    _, path = written(tmp_path / "a.pt", replace(FAMILY, **change))
    with pytest.raises(CheckpointError, match=words):
        loading.load_ddpm(path, **told)


def test_no_scale_and_shift_is_refused_clearly(tmp_path):
    net, path = written(tmp_path / "a.pt", FAMILY)
    state = {k: v[:len(v) // 2] if ".emb_layers.1." in k else v for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError, match="without scale and shift by the time"):
        loading.load_ddpm(golden.save_torch(path, state))


# --- CLIP --------------------------------------------------------------------------------------------------------
PUBLIC = {  # (width, patch, layers, mlp), (text width, layers), heads of both, activation
    "ViT-B-32": ((768, 32, 12, 3072), (512, 12), 12, 8, True),
    "ViT-B-16": ((768, 16, 12, 3072), (512, 12), 12, 8, True),
    "ViT-L-14": ((1024, 14, 24, 4096), (768, 12), 16, 12, True),
    "ViT-H-14": ((1280, 14, 32, 5120), (1024, 24), 16, 16, False),
    "ViT-g-14": ((1408, 14, 40, 6144), (1024, 24), 16, 16, False),
    "ViT-bigG-14": ((1664, 14, 48, 8192), (1280, 32), 16, 20, False),
}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_published_clips_have_the_heads_of_open_clips_own_configuration(name):
    open_clip = pytest.importorskip("open_clip")
    vision, text, heads, text_heads, quick = PUBLIC[name]
    settings = open_clip.get_model_config(name)
    with torch.device("meta"):
        theirs = open_clip.CLIP(settings["embed_dim"], settings["vision_cfg"], settings["text_cfg"], quick_gelu=quick)
    shapes = theirs.state_dict()
    found = clip.detect(shapes)
    assert (found.vision_width, found.patch, found.vision_layers, found.vision_mlp or 4 * found.vision_width) == vision
    assert (found.text_width, found.text_layers) == text and found.quick_gelu == quick
    with torch.device("meta"):
        ours = Clip(found).net
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in shapes.items()}
    for net in (ours, theirs):
        assert net.visual.transformer.resblocks[0].attn.num_heads == heads
        assert net.transformer.resblocks[0].attn.num_heads == text_heads


SMALL = clip.ClipConfig(embed=24, image_size=16, patch=8, vision_width=128, vision_layers=2, context=8, vocabulary=20,
                        text_width=64, text_layers=1, quick_gelu=True, vision_mlp=200)


def a_clip(config=SMALL):
    return tiny.filled(Clip(config)).eval()


def test_other_mlps_and_heads_survive_every_way_of_storing(tmp_path):
    config = replace(SMALL, vision_heads=4)
    net = a_clip(config)
    path = golden.save_torch(tmp_path / "a.pt", dict(net.net.state_dict()))
    assert loading.load_clip(path).config == SMALL and loading.load_clip(path, vision_heads=4).config == config
    ours = store.save(tmp_path / "ours", net.net.state_dict(), "clip", asdict(config), dtype=None)
    found = loading.load_clip(ours)
    assert found.config == config
    picture = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(found.embed(picture), net.embed(picture))
        assert not torch.allclose(loading.load_clip(path).embed(picture), net.embed(picture), atol=1e-4)


def test_a_tower_of_unknown_size_is_refused_until_its_heads_are_told(tmp_path):
    config = replace(SMALL, vision_width=1152, vision_layers=1, vision_heads=16, vision_mlp=64)
    path = golden.save_torch(tmp_path / "a.pt", dict(a_clip(config).net.state_dict()))
    with pytest.raises(CheckpointError, match="a.pt: .*width 1152, patch 8 and 1 layers is none .*vision_heads"):
        loading.load_clip(path)
    assert loading.load_clip(path, vision_heads=16).config == config
    with pytest.raises(CheckpointError, match="cannot be split into 7 heads"):
        loading.load_clip(path, vision_heads=7)


def hugging_state(net):
    """A CLIP's tensors under the names of transformers' CLIPModel."""
    found = {}
    for name, value in net.net.state_dict().items():
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        name = name.removeprefix("visual.")
        if name.startswith("transformer.resblocks."):
            _, _, k, rest = name.split(".", 3)
            rest = rest.replace("ln_", "layer_norm").replace("c_fc", "fc1").replace("c_proj", "fc2")
            rest = rest.replace("attn.", "self_attn.")
            place = f"{tower}.encoder.layers.{k}."
            if "in_proj_" in rest:
                for x, part in zip("qkv", value.chunk(3)):
                    found[place + rest.replace("in_proj_", f"{x}_proj.")] = part.clone()
            else:
                found[place + rest] = value
            continue
        simple = {"class_embedding": "embeddings.class_embedding", "conv1.weight": "embeddings.patch_embedding.weight",
                  "positional_embedding": "embeddings.position_embedding.weight",
                  "token_embedding.weight": "embeddings.token_embedding.weight", "ln_pre.weight": "pre_layrnorm.weight",
                  "ln_pre.bias": "pre_layrnorm.bias", "ln_post.weight": "post_layernorm.weight",
                  "ln_post.bias": "post_layernorm.bias", "ln_final.weight": "final_layer_norm.weight",
                  "ln_final.bias": "final_layer_norm.bias"}
        if name in simple:
            found[f"{tower}.{simple[name]}"] = value
        else:
            other = {"proj": "visual_projection.weight", "text_projection": "text_projection.weight"}.get(name, name)
            found[other] = value.T.contiguous() if other != name else value
    return found | {"vision_model.embeddings.position_ids": torch.arange(5)[None],
                    "text_model.embeddings.position_ids": torch.arange(8)[None]}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_hugging_faces_clip_is_a_renaming(tmp_path, name):
    net, path = a_clip(), tmp_path / name
    state = hugging_state(net)
    save_file(state, path) if name.endswith("safetensors") else golden.save_torch(path, state)
    slim = loading.convert(path, tmp_path / "slim", dtype=torch.float32)
    for found in (loading.load_clip(path), loading.load_clip(slim)):
        assert found.config == SMALL and tiny.same(found.net.state_dict(), dict(net.net.state_dict()))


def test_a_picture_tower_alone_embeds_pictures_and_refuses_prompts(tmp_path):
    net, path, x = a_clip(), tmp_path / "model.safetensors", tiny.pictures(2, px=16)
    save_file({k: v for k, v in hugging_state(net).items() if k.startswith("vi")}, path)
    slim = loading.convert(path, tmp_path / "slim", dtype=torch.float32)
    for found in (loading.load_clip(path), loading.load_clip(slim)):
        torch.testing.assert_close(found.embed(x), net.embed(x), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.tokens(x, 0), net.tokens(x, 0), atol=1e-4, rtol=1e-4)
        for ask, text in ((found.check_prompt, "red"), (found.embed_text, ["red"])):
            with pytest.raises(ValueError, match="picture tower alone and reads no prompts. Load a whole CLIP"):
                ask(text)


def test_a_picture_tower_without_its_projection_is_refused(tmp_path):
    save_file({k: v for k, v in hugging_state(a_clip()).items() if k.startswith("vision_")}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="picture tower of a CLIP without its projection.*open_clip_model"):
        loading.load_clip(tmp_path / "a.safetensors")


# --- LPIPS -------------------------------------------------------------------------------------------------------
def test_the_whole_of_lpips_gives_the_trunk_and_its_heads_alone_are_named(tmp_path):
    trunk = {key.removeprefix("vgg16.features."): value
             for key, value in golden.weights("osasis_train", "lpips.").items() if key.startswith("vgg16.features.")}
    ends = (4, 9, 16, 23, 30)
    heads = {f"lin{k}.model.1.weight": torch.ones(1, 2, 1, 1) for k in range(5)}
    whole = {f"net.slice{1 + sum(int(name.split('.')[0]) >= end for end in ends)}.{name}": value
             for name, value in trunk.items()} | heads | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    found = loading.read_kind(golden.save_torch(tmp_path / "lpips.pth", whole), "vgg16")
    assert found.tensors.keys() == {f"features.{name}" for name in trunk}
    with pytest.raises(CheckpointError, match=r"vgg.pth: this is the heads of LPIPS alone.*vgg16-397923af.pth"):
        loading.load_lpips(golden.save_torch(tmp_path / "vgg.pth", heads))


def test_a_torchscript_vgg_is_told_about_vgg(tmp_path):
    program = torch.jit.script(torch.nn.Linear(3, 3))
    torch.jit.save(program, tmp_path / "vgg16.pt")
    with pytest.raises(CheckpointError, match="TorchScript") as caught:
        loading.load_lpips(tmp_path / "vgg16.pt")
    assert "vgg16-397923af.pth" in str(caught.value) and "CLIP" not in str(caught.value)
