"""MMFS in windows gives what it gives of the whole picture."""
import pytest
import torch

from oneshot_atelier.models.mmfs import MMFS, MMFSConfig
from oneshot_atelier.models.rng import seeded
from oneshot_atelier.models.stylegan2 import seeded_noise
from oneshot_atelier.models.tiles import Tiling, Window, reach, windows

CONFIGS = {blocks: MMFSConfig((4,) * (blocks + 1), (4,) * (blocks + 1), 8, 2) for blocks in (1, 2, 3, 4)}


def network(config):
    with seeded(1, "network"):
        net = MMFS(config)
        for name, parameter in net.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                parameter.data += 0.3 * torch.randn_like(parameter)
    return net.eval().requires_grad_(False)


def inputs(net, height, width, count=1):
    with seeded(2, "pictures"):
        pictures, w = torch.rand(count, 3, height, width) * 2 - 1, net.styles(torch.randn(count, net.config.w_dim))
    return pictures, w, *seeded_noise(net.noise_shapes(height, width), 5, range(count))


def work(net):
    return lambda pictures, w, *noise: net(pictures, w, noise)


@pytest.mark.parametrize("blocks", CONFIGS)
@torch.no_grad()
def test_a_pixel_depends_on_what_lies_within_the_reach_and_on_nothing_else(blocks):
    """A pixel of the picture is changed, at every place in a stride: what changes lies within the reach, and
    nearly fills it."""
    config = CONFIGS[blocks]
    net, most, far = network(config), reach(config), 0
    side = 2 * most + 3 * config.stride
    pictures, w, *noise = inputs(net, side, 3 * config.stride)
    before = net.decoder(net.encoder(pictures), w, noise)
    for place in range(most + config.stride, most + 2 * config.stride):
        changed = pictures.clone()
        changed[:, :, place] += 1e4
        rows = (net.decoder(net.encoder(changed), w, noise) != before).any(1).any(2)[0].nonzero()[:, 0]
        blocks_of = rows // config.stride * config.stride
        far = max(far, int((blocks_of - place).max()), int((place - blocks_of).max()) - config.stride + 1)
    assert most - config.stride < far <= most


@pytest.mark.parametrize("blocks, height, width", [(1, 10, 13), (2, 9, 4), (2, 4, 11), (3, 10, 13), (4, 7, 1)])
@torch.no_grad()
def test_windows_give_the_whole_picture(blocks, height, width):
    config = CONFIGS[blocks]
    net, unit = network(config), 4 * reach(config)
    size = [n * unit // 4 // config.stride * config.stride for n in (height, width)]
    given = inputs(net, *size, count=2)
    tiling = Tiling.of(*size, 1, config)
    assert len(tiling.rows) * len(tiling.columns) > 1
    assert torch.allclose(tiling(work(net), *given), work(net)(*given), atol=2e-5)


@torch.no_grad()
def test_too_small_an_overlap_would_be_seen(monkeypatch):
    config = CONFIGS[3]
    net = network(config)
    monkeypatch.setattr("oneshot_atelier.models.tiles.reach", lambda config: config.stride)
    given = inputs(net, 128, 64)
    assert not torch.allclose(Tiling.of(128, 64, 64, config)(work(net), *given), work(net)(*given), atol=1e-3)


@torch.no_grad()
def test_noise_belongs_to_the_place_in_the_whole_picture(monkeypatch):
    """With the noise of the window's own corner, the windows would differ."""
    config = CONFIGS[2]
    net = network(config)
    side = 8 * reach(config)
    pictures, w, *noise = inputs(net, side, config.stride)
    flat = pictures.zero_()
    tiling = Tiling.of(side, config.stride, 1, config)
    found = tiling(work(net), flat, w, *noise)
    assert torch.allclose(found, net(flat, w, noise), atol=2e-5)
    middle = tiling.rows[1]
    corner = net(flat[:, :, :middle.stop - middle.start], w,
                 [x[:, :, :x.shape[2] * (middle.stop - middle.start) // side] for x in noise])
    kept = slice(middle.first - middle.start, middle.last - middle.start)
    assert not torch.allclose(corner[:, :, kept], found[:, :, middle.first:middle.last], atol=1e-2)


@pytest.mark.parametrize("blocks", CONFIGS)
@pytest.mark.parametrize("most", [0, 1, 200, 640])
def test_windows_cover_a_side_in_one_size_and_at_strides(blocks, most):
    config = CONFIGS[blocks]
    stride, overlap = config.stride, reach(config)
    for side in range(stride, 2000, 37 * stride):
        found = windows(side, most, config)
        assert len({window.stop - window.start for window in found}) == 1
        assert all(window.start % stride == 0 for window in found) and found[0].stop % stride == 0
        covered = torch.zeros(side, dtype=torch.bool)
        for window in found:
            assert window.start == 0 or window.first - window.start == overlap
            assert window.stop == side or window.stop - window.last == overlap
            covered[window.first:window.last] = True
        assert covered.all()
        assert most == 0 and len(found) == 1 or found[0].stop <= max(most, 4 * overlap)


def test_the_official_model():
    assert reach(MMFSConfig()) == 128
    assert windows(1600, 1536, MMFSConfig()) == [Window(0, 928, 0, 800), Window(672, 1600, 800, 1600)]
