"""GroupNorm, scale and shift, and SiLU on a CPU against PyTorch's own operations; the SPN whose first half is kept."""
import pytest
import torch
import torch.nn.functional as F

from oneshot_atelier.models import norm_cpu, ops, rng
from oneshot_atelier.models.spn import SPN, SPNConfig


def reference(x, norm, a=None, b=None):
    h = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(h if a is None else h * a[:, :, None, None] + b[:, :, None, None])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "groups", "rows"), [(8, 8, 0), (12, 4, 1), (12, 4, 3)])
def test_values_and_gradients_are_those_of_the_single_operations(layout, channels, groups, rows):
    """rows: of A and B; 0 for none."""
    with rng.seeded(0, "norm"):
        x = (torch.randn(3, channels, 6, 5) * 2 + 1).contiguous(memory_format=layout).requires_grad_()
        norm = torch.nn.GroupNorm(groups, channels)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        affine = tuple(torch.randn(rows, channels, requires_grad=True) for _ in range(2 * bool(rows)))
        gradient = torch.randn_like(x)
    y, wanted = norm_cpu.norm_silu(x, norm, *affine), reference(x, norm, *affine)
    assert torch.allclose(y, wanted, atol=1e-5)
    inputs = (x, norm.weight, norm.bias, *affine)
    found, expected = (torch.autograd.grad(made, inputs, gradient) for made in (y, wanted))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(norm_cpu.norm_silu(x, norm, *affine), y)


def test_the_input_of_a_norm_without_gradient_stays_as_it_is():
    x = torch.randn(2, 8, 4, 4, generator=rng.generator(0, "x"))
    before, norm = x.clone(), torch.nn.GroupNorm(4, 8)
    with torch.no_grad():
        ops.norm_silu(x, norm, (torch.ones(1, 8), torch.zeros(1, 8)))
    assert torch.equal(x, before)


def test_an_spn_whose_first_half_is_kept_gives_the_same():
    with rng.seeded(0, "spn"):
        spn, picture = SPN(SPNConfig(width=32, middle=64)).eval(), torch.rand(3, 3, 8, 8) * 2 - 1
    of_time = spn.of_picture(picture)
    for time in (0, 7):
        with torch.no_grad():
            assert torch.allclose(of_time(time), spn(picture, time), atol=1e-6)
            assert torch.equal(of_time(time)[1:2], spn.of_picture(picture[1:2])(time))
    assert not torch.allclose(of_time(0), of_time(7), atol=1e-6)
