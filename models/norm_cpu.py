"""GroupNorm, a scale and shift of the channels, and SiLU on a CPU: few passes over a float32 map, most in place.

PyTorch's own derivative of GroupNorm is slow for maps in channels_last whose groups hold few channels.
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def usable(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == 4


def norm_silu(x: Tensor, norm: nn.GroupNorm, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """SiLU(GN(x) A + B) of a map x (B, C, H, W); A and B (B or 1, C), both or neither. It has no second derivatives."""
    settings = norm.num_groups, norm.eps
    if torch.is_grad_enabled():
        return NormSilu.apply(x, norm.weight, norm.bias, a, b, settings)
    y, _, _ = normalised(x, norm.weight, norm.bias, a, b, settings)
    return F.silu(y, inplace=True)


def normalised(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor | None, b: Tensor | None,
               settings: tuple[int, float]) -> tuple[Tensor, Tensor, Tensor]:
    """(GN(x) A + B, mean, 1 / deviation), the last two (B, groups). settings: groups and eps."""
    groups, eps = settings
    rows, channels, height, width = x.shape
    y, mean, rstd = torch.native_group_norm(x, weight, bias, rows, channels, height * width, groups, eps)
    if a is not None and b is not None:
        torch.addcmul(b[:, :, None, None], y, a[:, :, None, None], out=y)
    return y, mean, rstd


class NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, a: Tensor | None, b: Tensor | None,
                settings: tuple[int, float]) -> Tensor:
        y, mean, rstd = normalised(x, weight, bias, a, b, settings)
        ctx.save_for_backward(x, y, weight, bias, a, mean, rstd)
        return F.silu(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With g the gradient by what SiLU is given, n = (x - mean) / deviation and w the weight: the gradient by x is
        (g w A - mean(g w A) - n mean(g w A n)) / deviation, means over a group."""
        x, y, weight, bias, a, mean, rstd = ctx.saved_tensors
        g = torch.ops.aten.silu_backward(gradient, y)
        products = g * x
        by_channel, with_x = g.sum((2, 3)), products.sum((2, 3))
        share = weight.numel() // mean.shape[1]
        mean_c, rstd_c = (part.repeat_interleave(share, 1) for part in (mean, rstd))
        with_n = rstd_c * (with_x - mean_c * by_channel)
        scale = weight if a is None else weight * a

        def group_mean(part: Tensor) -> Tensor:
            means = part.reshape(len(part), -1, share).mean(2) / (x.shape[2] * x.shape[3])
            return means.repeat_interleave(share, 1)
        of_x = -rstd_c.square() * group_mean(scale * with_n)
        constant = -rstd_c * group_mean(scale * by_channel) - of_x * mean_c
        by_x = torch.addcmul(_column(constant), x, _column(of_x), out=products).addcmul_(g, _column(rstd_c * scale))
        if a is None:
            return by_x, with_n.sum(0), by_channel.sum(0), None, None, None
        by_a = (weight * with_n + bias * by_channel).sum_to_size(a.shape)
        return (by_x, (a * with_n).sum(0), (a * by_channel).sum(0), by_a, by_channel.sum_to_size(a.shape), None)


def _column(part: Tensor) -> Tensor:
    return part[:, :, None, None]
