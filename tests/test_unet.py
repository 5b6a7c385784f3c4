"""The modulation of the UNet: time and z as one affine map of each block, computed once and used again."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oneshot_atelier.models.diffusion import denoiser
from oneshot_atelier.models.osasis import stylize
from oneshot_atelier.models.spn import SPN
from oneshot_atelier.models.unet import ResBlock, UNet, UNetConfig
from oneshot_atelier.tests import tiny

CONFIGS = {"with z": tiny.UNET, "without z": replace(tiny.UNET, cond=0, dropout=0.0), "six channels": tiny.DDPM}


def normalised(norm, x):
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def plain_block(block, x, e, z):
    """ResBlock in the order of the paper: n (1 + a) + b with time, then (1 + s) with z (A.2)."""
    def resampled(h):
        if block.mode == "down":
            return F.avg_pool2d(h, 2)
        return F.interpolate(h, scale_factor=2, mode="nearest") if block.mode == "up" else h
    h = block.in_layers[2](resampled(F.silu(normalised(block.in_layers[0], x))))
    a, b = block.emb_layers[1](F.silu(e))[:, :, None, None].chunk(2, 1)
    h = normalised(block.out_layers[0], h) * (1 + a) + b
    if z is not None:
        h = h * (1 + block.cond_emb_layers[1](F.silu(z))[:, :, None, None])
    return block.skip_connection(resampled(x)) + block.out_layers[3](F.silu(h))


@pytest.mark.parametrize("mode", [None, "down", "up"])
@pytest.mark.parametrize("cond", [0, 16])
@pytest.mark.parametrize("width", [16, 24])
def test_a_block_is_the_plain_one(mode, cond, width):
    config = UNetConfig(16, 16, (1,), embed=16, cond=cond, dropout=0.0)
    block = tiny.filled(ResBlock(16, width, config, mode)).double()
    generator = torch.Generator().manual_seed(1)
    x, e = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 16, 8, 8), (3, 16)))
    z = torch.randn(3, 16, generator=generator, dtype=torch.float64) if cond else None
    with torch.no_grad():
        s = 1.0 if z is None else block.float().code_modulation(z.float())
        found = block.float()(x.float(), tuple(part * s for part in block.time_modulation(e.float())))
        expected = plain_block(block, x.float(), e.float(), None if z is None else z.float())
    assert float((found - expected).abs().max()) < 1e-6 * max(1.0, float(expected.abs().max()))


class PlainUNet:
    """The same network, block by block, from the definition (A.3); z: a code, or one a level and one for the middle."""

    def __init__(self, net):
        self.net = net

    def __call__(self, x, t, z):
        net = self.net
        codes = list(z) if isinstance(z, list) else [z] * (net.config.levels + 1)
        half = net.config.base // 2
        angle = t.float()[:, None] * 10000.0 ** (-torch.arange(half) / half)
        e = net.time_embed(torch.cat([angle.cos(), angle.sin()], 1))

        def through(entry, h, code):
            for part in entry:
                h = plain_block(part, h, e, code) if isinstance(part, ResBlock) else part(h)
            return h
        skips = []
        for entry, level in zip(net.input_blocks, net.input_levels, strict=True):
            x = through(entry, x, codes[level])
            skips.append(x)
        x = through(net.middle_block, x, codes[-1])
        for entry, level in zip(net.output_blocks, net.output_levels, strict=True):
            x = through(entry, torch.cat([x, skips.pop()], 1), codes[level])
        return net.out[2](F.silu(normalised(net.out[0], x)))


@pytest.fixture(params=CONFIGS)
def net(request):
    return tiny.filled(UNet(CONFIGS[request.param])).eval().requires_grad_(False)


def code(net, rows=2, seed=0):
    if not net.config.cond:
        return None
    return torch.randn(rows, net.config.cond, generator=torch.Generator().manual_seed(seed))


def close(a, b, rel=2e-5):
    return float((a - b).abs().max()) <= rel * float(b.abs().max())


def test_the_network_is_the_plain_one(net):
    x, t, z = tiny.pictures(2), torch.tensor([7, 800]), code(net)
    assert close(net(x, net.modulation(t, z)), PlainUNet(net)(x, t, z))
    if z is not None:
        codes = [z, code(net, 1, 1), code(net, 2, 2)]
        assert close(net(x, net.modulation(t, codes)), PlainUNet(net)(x, t, codes))


def test_a_modulation_of_one_time_serves_a_batch_and_can_be_used_again(net):
    x, z = tiny.pictures(3), code(net, 3)
    once, each = net.modulation(torch.tensor([500]), z), net.modulation(torch.full((3,), 500), z)
    kept, blocks = once.clone(), [m for m in net.modules() if isinstance(m, ResBlock)]
    assert once.shape == (2, 1 if z is None else 3, sum(block.width for block in blocks))
    first = net(x, once)
    assert close(first, net(x, each)) and torch.equal(first, net(x, once))
    assert close(net(2 * x, once), net(2 * x, each))
    assert torch.equal(once, kept)


def test_one_z_serves_a_batch(net):
    if net.config.cond:
        x, z, t = tiny.pictures(3), code(net, 1), torch.tensor([500])
        assert close(net(x, net.modulation(t, z)), net(x, net.modulation(t, z.expand(3, -1))))


def test_the_denoiser_asks_for_one_time(net):
    x, z = tiny.pictures(2), code(net)
    assert close(denoiser(net, z)(x, 300), PlainUNet(net)(x, torch.tensor([300, 300]), z))


def test_gradients_are_those_of_the_plain_network():
    net = tiny.filled(UNet(tiny.UNET)).eval()
    x, t, z = tiny.pictures(2), torch.tensor([7, 800]), code(net)
    weight = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    parameters = list(net.parameters())
    found = torch.autograd.grad((net(x, net.modulation(t, z)) * weight).sum(), parameters)
    expected = torch.autograd.grad((PlainUNet(net)(x, t, z) * weight).sum(), parameters)
    largest = max(float(g.abs().max()) for g in expected)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5 * largest) for a, b in zip(found, expected, strict=True))


def test_no_module_is_built_while_pictures_are_made(monkeypatch):
    frozen, spn, x = tiny.diffae(), SPN(), tiny.pictures(1)
    built, plain = [], nn.Module.__init__
    monkeypatch.setattr(nn.Module, "__init__", lambda self, *a, **k: built.append(type(self)) or plain(self, *a, **k))
    with torch.no_grad():
        z = frozen.encode(x)
        code = frozen.structural_code(x, z, 4)
        stylize(frozen.unet, code, [z] * 3, steps=4, spn=spn, picture=x)
        frozen.sample_z(torch.zeros(1, tiny.WIDTH), 2)
    assert not built
    nn.Linear(1, 1)
    assert built, "the count works"
