"""The stylizer without kernels is the network; noise that threads draw is that of the seed. (With kernels:
tests/test_kernels_stylegan2.py.)"""
import pytest
import torch

from oneshot_atelier.models import kernels, rng
from oneshot_atelier.models.precision import AUTO
from oneshot_atelier.models.stylegan2 import seeded_noise
from oneshot_atelier.models.stylizer import FusedStylizer, stylizer
from oneshot_atelier.tests import tiny, tiny_mmfs


@pytest.mark.parametrize("precision", [AUTO, "float32", "bfloat16", "float16"])
def test_on_a_cpu_it_is_the_network_bit_for_bit(precision):
    net, x = tiny_mmfs.mmfs().eval(), tiny.pictures(3, 5, 32)
    w = net.styles(torch.randn(3, net.config.w_dim))
    noise = seeded_noise(net.noise_shapes(32, 32), 4, range(3))
    made = stylizer(net, precision)
    assert not isinstance(made, FusedStylizer) and not kernels.usable(x)
    assert torch.equal(made(x, w, *noise), net(x, w, noise)) and torch.equal(made(x, w), net(x, w))
    assert not made(x, w).requires_grad


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision is 'half'; take one of auto, float32"):
        stylizer(tiny_mmfs.mmfs(), "half")


@pytest.mark.parametrize("items", [[0], range(3), range(2, 21)])
@pytest.mark.parametrize("inference", [False, True])
def test_threads_draw_the_noise_of_the_seed(items, inference):
    shapes = [(4, 4), (1, 3), (9, 7)]
    with torch.inference_mode(inference):
        found = seeded_noise(shapes, 5, items)
    rows = []
    for item in items:
        source = rng.generator(5, "noise", item)
        rows.append([torch.randn(1, *size, generator=source) for size in shapes])
    assert all(torch.equal(layer, torch.stack(wanted)) for layer, wanted in zip(found, zip(*rows), strict=True))
