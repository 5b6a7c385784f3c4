"""Styles of MMFS: strength between base and style, fingerprints, the size of the file."""

from dataclasses import replace

import pytest
import torch

from oneshot_atelier.models import style
from oneshot_atelier.models.loading import load_mmfs_style, save_mmfs_style
from oneshot_atelier.models.mmfs import MMFS, MapperConfig, MMFSConfig
from oneshot_atelier.models.rng import seeded
from oneshot_atelier.models.style import MMFSStyle, check_mmfs_style, fingerprint, styled, with_decoder
from oneshot_atelier.tests import tiny

MODEL = MMFSConfig((8, 16, 24), (24, 16, 8), w_dim=24, mapping_layers=2, mapper=MapperConfig(1, 32))


def mmfs(seed=0, config=MODEL):
    with seeded(seed, "weights"):
        return MMFS(config).eval().requires_grad_(False)


def style_of(net, seed=1, **fields):
    """A style whose decoder is another model's."""
    decoder = {key: value.half() for key, value in mmfs(seed, net.config).decoder.state_dict().items()}
    return MMFSStyle(net.config, decoder, net.styles(torch.randn(1, 24)), None, "", fingerprint(net), **fields)


def draw(net, w):
    noise = [torch.ones(1, 1, *size) for size in net.noise_shapes(32, 32)]
    with torch.no_grad():
        return net(tiny.pictures(1), w, noise)


def test_strength_0_is_the_base_bit_for_bit_and_1_the_style():
    net = mmfs()
    style = style_of(net)
    base, tuned = styled(net, style, 0), styled(net, style, 1)
    assert tiny.same(base.state_dict(), net.state_dict())
    assert torch.equal(draw(base, style.w_plus), draw(net, style.w_plus))
    assert tiny.same(tuned.decoder.state_dict(), {k: v.float() for k, v in style.decoder.items()})
    assert not torch.allclose(draw(base, style.w_plus), draw(tuned, style.w_plus), atol=1e-2)
    assert torch.equal(draw(styled(net, style), style.w_plus), draw(tuned, style.w_plus))


@pytest.mark.parametrize("strength", [0.3, 0.7, 1.5])
def test_strengths_between_and_beyond_are_on_the_line(strength):
    net = mmfs()
    style = style_of(net)
    found, base = styled(net, style, strength).decoder.state_dict(), net.decoder.state_dict()
    for name, value in found.items():
        assert torch.allclose(value, base[name] + strength * (style.decoder[name].float() - base[name]), atol=1e-5)


@pytest.mark.parametrize("strength", [-0.1, 1.6, float("nan")])
def test_other_strengths_are_refused(strength):
    net = mmfs()
    with pytest.raises(ValueError, match="strength is .*; take 0"):
        styled(net, style_of(net), strength)


def test_a_styled_model_shares_all_but_the_decoder_and_leaves_the_model_alone():
    net = mmfs()
    before = tiny.copy_of(net)
    new = styled(net, style_of(net), 0.5)
    assert new.encoder is net.encoder and new.mapping is net.mapping and new.mapper is net.mapper
    assert not {p.data_ptr() for p in new.decoder.parameters()} & {p.data_ptr() for p in net.parameters()}
    assert tiny.same(before, net.state_dict()) and not new.training
    assert not any(p.is_meta or p.requires_grad for p in new.parameters())
    assert with_decoder(net, net.decoder).decoder is net.decoder


def test_fingerprints_are_of_every_part_in_16_bit():
    net = mmfs()
    first = fingerprint(net)
    assert fingerprint(mmfs()) == first and len(first) == 32
    assert fingerprint(net.half().float()) == first, "a slim copy is the same model"
    for name in ("encoder.head.bias", "mapping.layers.0.bias", "decoder.blocks.1.rgb.bias", "mapper.position"):
        other = mmfs()
        other.get_parameter(name).add_(1)
        assert fingerprint(other) != first
    assert fingerprint(mmfs(config=replace(MODEL, mapper=None))) != first


def test_a_style_of_another_model_is_refused():
    net = mmfs()
    style = style_of(net)
    check_mmfs_style(style, net.config, fingerprint(net))
    check_mmfs_style(replace(style, model=""), net.config, "unknown")
    with pytest.raises(ValueError, match="another MMFS of the same size.*load that one"):
        check_mmfs_style(style, net.config, "unknown")
    larger = replace(MODEL, encoder=(4, 8, 16, 24), decoder=(24, 16, 8, 8))
    with pytest.raises(ValueError, match="MMFS of 128 px .* not for this one of 256 px"):
        check_mmfs_style(style, larger, fingerprint(net))


def test_a_style_is_saved_and_loaded_whole(tmp_path):
    net = mmfs()
    style = replace(style_of(net), prompt="red", settings={"seed": 3},
                    style_image=torch.arange(3 * 32 * 20).reshape(3, 32, 20).remainder(256).to(torch.uint8))
    found = load_mmfs_style(save_mmfs_style(tmp_path / "my style.safetensors", style))
    assert (found.config, found.prompt, found.model, found.settings) == (MODEL, "red", fingerprint(net), {"seed": 3})
    assert torch.equal(found.style_image, style.style_image)
    assert torch.allclose(found.w_plus, style.w_plus, atol=2e-3)
    check_mmfs_style(found, net.config, fingerprint(net))
    assert tiny.same(styled(net, found).state_dict(), styled(net, style).state_dict())


def test_an_official_style_takes_at_most_24_megabytes_in_16_bit():
    config = MMFSConfig(mapper=MapperConfig())
    with torch.device("meta"):
        decoder = MMFS(config).decoder
    numbers = sum(value.numel() for value in decoder.state_dict().values())
    assert numbers == 10_880_201 + 759_567  # docs/mmfs.md A.4
    code, picture = 2 * config.n_styles * config.w_dim, 3 * 256 * 256
    assert 2 * numbers + code + picture + 100_000 < 24e6
    assert style.MAX_STRENGTH == 1.5
