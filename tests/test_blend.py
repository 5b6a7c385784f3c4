"""Strength and blends of OSASIS styles, and the photo's colours: the ends are exact, and what lies between."""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from oneshot_atelier.models.colour import LUMA, with_colours_of
from oneshot_atelier.models.osasis import SamplingSettings
from oneshot_atelier.models.spn import SPN, SPNConfig
from oneshot_atelier.models.style import OSASISStyle, at_strength, blended, fingerprint
from oneshot_atelier.tests import tiny as tiny_networks
from oneshot_atelier.tests import tiny_models
from oneshot_atelier.tests.node_tools import interrupt_after, picture, same

PX = tiny_models.PX


def style_of(net, seed, spn=True, **settings):
    """A style of a DiffAE: its weights, disturbed."""
    generator = torch.Generator().manual_seed(seed)
    unet = {name: weight + 0.1 * torch.randn(weight.shape, generator=generator)
            for name, weight in net.unet.state_dict().items()}
    weights = tiny_networks.filled(SPN(SPNConfig()), seed).state_dict() if spn else None
    return OSASISStyle(net.config.unet, unet, weights, torch.randn(1, net.config.unet.cond, generator=generator),
                       torch.full((3, PX, PX), seed, dtype=torch.uint8), fingerprint(net),
                       {"t0": 0.5, "spn_weight": 0.1} | settings)


@pytest.fixture(scope="module")
def net():
    return tiny_networks.diffae()


# --- strength ---------------------------------------------------------------------------------------------------------
def test_the_ends_of_the_strength_are_the_diffae_and_the_style(net):
    style, base = style_of(net, 1), net.unet.state_dict()
    none, whole, more = (at_strength(style, base, strength) for strength in (0.0, 1.0, 1.5))
    assert same(none.unet, base) and same(whole.unet, style.unet)
    name = "out.2.weight"
    assert torch.allclose(more.unet[name], base[name] + 1.5 * (style.unet[name] - base[name]), atol=1e-5)
    weights = [SamplingSettings.of(found.settings).spn_weight for found in (none, whole, more)]
    assert weights == pytest.approx([0, 0.1, 0.15])
    with pytest.raises(ValueError, match="strength is 1.6; take 0"):
        at_strength(style, base, 1.6)


# --- blends -----------------------------------------------------------------------------------------------------------
def test_the_ends_of_a_blend_are_the_styles(net):
    one, other = style_of(net, 1), style_of(net, 2, spn_weight=0.3)
    for share, style in ((0.0, one), (1.0, other)):
        found = blended(one, other, share)
        assert same(found.unet, style.unet) and same(found.spn, style.spn)
        assert torch.equal(found.z_style, style.z_style) and torch.equal(found.style_image, style.style_image)
        assert found.settings["spn_weight"] == pytest.approx(style.settings["spn_weight"])
    half = blended(one, other, 0.5)
    assert torch.allclose(half.z_style, (one.z_style + other.z_style) / 2) and half.settings["spn_weight"] == 0.2
    assert torch.allclose(half.unet["out.2.bias"], (one.unet["out.2.bias"] + other.unet["out.2.bias"]) / 2)


def test_an_spn_of_one_style_alone_counts_by_its_share(net):
    one, other = style_of(net, 1), style_of(net, 2, spn=False)
    for first, second, share in ((one, other, 0.25), (other, one, 0.75)):
        found = blended(first, second, share)
        assert same(found.spn, one.spn) and found.settings["spn_weight"] == pytest.approx(0.075)
    assert blended(other, style_of(net, 3, spn=False), 0.5).spn is None


def test_what_cannot_be_blended_is_refused(net):
    one, other = style_of(net, 1), style_of(net, 2)
    with pytest.raises(ValueError, match="fine-tuned from another DiffAE"):
        blended(one, replace(other, model="0" * 32), 0.5)
    with pytest.raises(ValueError, match="holds no semantic code"):
        blended(one, replace(other, z_style=None), 0.5)
    untimed = tiny_networks.filled(SPN(SPNConfig(timed=False))).state_dict()
    with pytest.raises(ValueError, match="SPNs have different forms"):
        blended(one, replace(other, spn=untimed), 0.5)
    with pytest.raises(ValueError, match="the share is 2"):
        blended(one, other, 2)


# --- colours ----------------------------------------------------------------------------------------------------------
def test_the_luma_stays_and_the_chroma_is_the_photo_s():
    results, photos = tiny_networks.pictures(2, 1) * 0.5, tiny_networks.pictures(2, 2) * 0.2
    found = with_colours_of(results, photos)
    weights = torch.tensor(LUMA)[:, None, None]

    def light(x):
        return (x * weights).sum(1, keepdim=True)
    assert torch.allclose(light(found), light(results), atol=1e-5) and found.abs().max() <= 1 + 1e-5
    free = (found.abs().amax(1, keepdim=True) < 0.999).expand_as(found)
    assert torch.allclose((found - light(found))[free], (photos - light(photos))[free], atol=1e-5) and free.any()
    assert torch.equal(with_colours_of(results, photos, 0.0), results)
    assert torch.allclose(with_colours_of(photos, photos), photos, atol=1e-5)
    red = torch.tensor([1.0, -1, -1])[None, :, None, None].expand(1, 3, 2, 2)
    bright = with_colours_of(torch.full((1, 3, 2, 2), 0.99), red)
    assert bright.max() <= 1 + 1e-5 and torch.allclose(light(bright), torch.tensor(0.99), atol=1e-4)


# --- nodes ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_models.write(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def loaded(nodes, comfy):
    diffae, photos = nodes.LoadDiffAE.execute("demo")[0], picture(5, 2)
    style = nodes.sockets.LoadedStyle.of(style_of(diffae.net, 1))
    semantic = nodes.SemanticEncode.execute(diffae, photos)[0]
    structure = nodes.StructuralEncode.execute(diffae, photos, 10, 0.5, semantic)[0]
    z_style = nodes.sockets.SemanticCode(style.style.z_style, style.style.model)
    mix = nodes.MixCodes.execute(semantic, z_style, 16, False, "")[0]
    return SimpleNamespace(diffae=diffae, style=style, semantic=semantic, structure=structure, mix=mix, photos=photos)


def stylized(nodes, loaded, style, mix):
    return nodes.OSASISStylize.execute(style, loaded.structure, mix, 10, True, -1.0, 8, "from style", "from style")[0]


@pytest.mark.server
def test_strength_0_is_the_reconstruction_and_1_the_style(nodes, loaded):
    reconstruction = nodes.Decode.execute(loaded.diffae, loaded.structure, loaded.semantic, 10)[0]
    whole = stylized(nodes, loaded, loaded.style, loaded.mix)
    none, same_style = (stylized(nodes, loaded, *nodes.OSASISStrength.execute(
        loaded.diffae, loaded.style, loaded.mix, strength).args) for strength in (0.0, 1.0))
    assert torch.equal(none, reconstruction) and torch.equal(same_style, whole)
    half = stylized(nodes, loaded, *nodes.OSASISStrength.execute(loaded.diffae, loaded.style, loaded.mix, 0.5).args)
    distances = [(half - end).abs().mean() for end in (none, whole)]
    assert max(distances) < (none - whole).abs().mean() + 1e-6 and min(distances) > 0


@pytest.mark.server
def test_a_style_at_a_strength_lies_in_main_memory(nodes, loaded):
    """ComfyUI knows of what its patchers hold, not of styles (sockets.py)."""
    style = nodes.OSASISStrength.execute(loaded.diffae, loaded.style, loaded.mix, 0.5)[0]
    assert {value.device.type for value in style.style.unet.values()} == {"cpu"}


@pytest.mark.server
def test_a_style_of_another_diffae_is_refused(nodes, loaded):
    other = nodes.sockets.LoadedStyle.of(replace(loaded.style.style, model="0" * 32))
    with pytest.raises(ValueError, match="fine-tuned from another DiffAE"):
        nodes.OSASISStrength.execute(loaded.diffae, other, loaded.mix, 0.5)
    with pytest.raises(ValueError, match="strength is 2"):
        nodes.OSASISStrength.execute(loaded.diffae, loaded.style, loaded.mix, 2.0)


@pytest.mark.server
def test_a_blend_is_stylized_with(nodes, loaded):
    second = nodes.sockets.LoadedStyle.of(style_of(loaded.diffae.net, 2))
    first = stylized(nodes, loaded, loaded.style, loaded.mix)
    style, z_style = nodes.BlendOSASISStyles.execute(loaded.style, second, 0.0).args
    mix = nodes.MixCodes.execute(loaded.semantic, z_style, 16, False, "")[0]
    assert torch.equal(stylized(nodes, loaded, style, mix), first)
    style, z_style = nodes.BlendOSASISStyles.execute(loaded.style, second, 0.5).args
    assert style.style.settings["blend"] == 0.5 and z_style.fingerprint == loaded.diffae.fingerprint


@pytest.mark.server
def test_the_photos_colours_are_kept(nodes, comfy, monkeypatch):
    results, photos = picture(1, 3, side=16), picture(2, 1, side=32)
    found = nodes.KeepColours.execute(results, photos, 1.0)[0]
    assert found.shape == results.shape and not torch.allclose(found, results, atol=0.05)
    weights = torch.tensor(LUMA)
    assert torch.allclose((found * weights).sum(-1), (results * weights).sum(-1), atol=1e-4)
    assert torch.allclose(nodes.KeepColours.execute(results, photos, 0.0)[0], results, atol=1e-6)
    large = torch.nn.functional.interpolate(photos.movedim(-1, 1), (16, 16), mode="bilinear", antialias=True)
    assert torch.equal(nodes.KeepColours.execute(results, large.movedim(1, -1), 1.0)[0], found)
    calls, stopped = interrupt_after(monkeypatch, nodes, 2)
    with pytest.raises(stopped):
        nodes.KeepColours.execute(picture(1, 50, side=16), photos, 1.0)
    assert len(calls) == 2, "of four parts"
    with pytest.raises(ValueError, match="3 results cannot be paired with 2 photos"):
        nodes.KeepColours.execute(results, picture(2, 2, side=16), 1.0)
