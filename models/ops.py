"""Operations of the networks that have a faster form: plain torch, and kernels where they can run (`kernels`)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels, norm_cpu
from .precision import full_precision

Affine = tuple[Tensor, Tensor]  # A and B of n A + B, each (B or 1, C)
Map = Tensor | tuple[Tensor, Tensor]  # (B, C, H, W), or two of them whose channels lie side by side
Net = TypeVar("Net", bound=nn.Module)


def channels_last(net: Net) -> Net:
    """The network with its weights laid out channels last, which convolutions on a GPU want."""
    return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (no overload of torch's names it)


def group_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """GroupNorm of x (B, C, ...), computed in float32 and cast back; `norm`, a part of a container, must be one."""
    norm = of_groups(norm)
    if x.ndim == 4 and kernels.usable(x):
        return kernels.of("norm").group_norm(x, norm)[0]
    return F.group_norm(x.float(), norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps).to(x.dtype)


def norm_silu(x: Tensor, norm: nn.Module, affine: Affine | None = None, bias: Tensor | None = None,
              dropout: float = 0.0) -> Tensor:
    """Dropout(SiLU(GN(x + bias) A + B)) of a map x (B, C, H, W) in x's type, statistics in float32.

    affine: (A, B), each (B or 1, C). bias (C,): of the convolution that made x, see `convolution`. dropout: the share
    that is dropped.
    """
    norm = of_groups(norm)
    if kernels.usable(x):
        return kernels.of("norm").group_norm(x, norm, affine, bias, True, dropout)[0]
    if bias is not None:
        x = x + _column(bias, x)
    if norm_cpu.usable(x):
        return F.dropout(norm_cpu.norm_silu(x, norm, *(affine or ())), dropout, training=dropout > 0)
    h = group_norm(x, norm)
    if affine is not None:
        a, b = (_column(part, x) for part in affine)
        h = h * a + b
    return F.dropout(F.silu(h), dropout, training=dropout > 0)


def dropped(dropout: nn.Module) -> float:
    """The share that a Dropout drops: none in evaluation mode. TypeError if it is none."""
    if not isinstance(dropout, nn.Dropout):
        raise TypeError(f"a Dropout is needed here, not {type(dropout).__name__}")
    return dropout.p if dropout.training else 0.0


def side_by_side(x: Tensor, other: Tensor) -> Map:
    """Two maps (B, C, H, W), their channels one after the other: joined, unless kernels can do without that."""
    return (x, other) if kernels.usable(x) else torch.cat([x, other], 1)


def branch(x: Map, norm: nn.Module) -> tuple[Tensor, Map]:
    """(SiLU(GN(x)), x): the beginnings of a residual block's two ways. Where kernels can run, the gradients of both are
    added in one pass over the map, if the second way begins with the x that is returned."""
    first, other = x if isinstance(x, tuple) else (x, None)
    if not kernels.usable(first):
        return norm_silu(first, norm), x
    h, first, other = kernels.of("norm").group_norm(first, of_groups(norm), silu=True, other=other)
    return h, first if other is None else (first, other)


def convolution(x: Tensor, conv: nn.Module) -> tuple[Tensor, Tensor | None]:
    """conv(x), and its bias if that is still to be added, by `norm_silu` or `residual`: where kernels fuse it, a
    convolution that adds it costs a pass over the map. `conv`, a part of a container, must be a Conv2d."""
    conv = of_2d(conv)
    if conv.bias is None or not kernels.usable(x):
        return conv(x), None
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding), conv.bias


def pointwise(x: Map, conv: nn.Module) -> tuple[list[Tensor], Tensor | None]:
    """Maps whose sum is the 1 x 1 convolution of x, and its bias, if that is still to be added."""
    if not isinstance(x, tuple):
        h, bias = convolution(x, conv)
        return [h], bias
    conv = of_2d(conv)
    weights = conv.weight.split([part.shape[1] for part in x], dim=1)
    return [F.conv2d(part, weight) for part, weight in zip(x, weights)], conv.bias


def residual(maps: Sequence[Tensor], *biases: Tensor | None) -> Tensor:
    """The sum of two or three maps (B, C, H, W) and of biases (C,)."""
    kept = [bias for bias in biases if bias is not None]
    if kernels.usable(maps[0]) and len({part.dtype for part in maps}) == 1:
        return kernels.of("pointwise").add(maps, sum(kept[1:], kept[0]) if kept else None)
    return sum([_column(bias, maps[0]) for bias in kept] + list(maps[1:]), maps[0])


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt d) v, each (B, heads, l, d). With gradients on a GPU in plain products: torch's fused form
    has a slow derivative at heads as wide as DiffAE's."""
    if q.device.type != "cuda" or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v)
    scale = q.shape[-1] ** -0.25  # of both, so that 16 bit holds the products
    return F.softmax((q * scale) @ (k * scale).mT, dim=-1, dtype=torch.float32).to(v.dtype) @ v


def halve(x: Tensor) -> Tensor:
    """Half the size: the mean of 2 x 2."""
    if kernels.usable(x) and x.shape[2] % 2 == x.shape[3] % 2 == 0:
        return kernels.of("pointwise").down(x)
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Twice the size, nearest."""
    return kernels.of("pointwise").up(x) if kernels.usable(x) else F.interpolate(x, scale_factor=2, mode="nearest")


def of_groups(norm: nn.Module) -> nn.GroupNorm:
    """`norm` itself; TypeError if it is no GroupNorm."""
    if not isinstance(norm, nn.GroupNorm):
        raise TypeError(f"a GroupNorm is needed here, not {type(norm).__name__}")
    return norm


def of_2d(conv: nn.Module) -> nn.Conv2d:
    """`conv` itself; TypeError if it is no Conv2d."""
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"a Conv2d is needed here, not {type(conv).__name__}")
    return conv


def _column(part: Tensor, x: Tensor) -> Tensor:
    """Channels (C,) or (B, C) in x's type, to be added to or multiplied with a map."""
    return part.to(x.dtype).reshape(*part.shape[:-1], -1, 1, 1)


def resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Antialiased resize of pictures (B, C, H, W) in float32, as F.interpolate(mode, antialias=True), "bilinear" or
    "bicubic". It is two matrix products, so that every device has its derivative."""
    rows, columns = (resize_matrix(source, target, mode, x.device) for source, target in zip(x.shape[-2:], size))
    with full_precision(x.device):
        return rows @ x.float() @ columns.t()


def resize_matrix(source: int, target: int, mode: str, device: torch.device) -> Tensor:
    """Weights (target, source) of an antialiased resize along one side; each row sums to 1. In float32, as torch's, and
    on the device alone, so that a graph can hold it."""
    scale = source / target
    stretch = max(scale, 1.0)
    radius = (1.0 if mode == "bilinear" else 2.0) * stretch
    centre = scale * (torch.arange(target, dtype=torch.float32, device=device) + 0.5)
    first = (centre - radius + 0.5).long().clamp(min=0)
    last = (centre + radius + 0.5).long().clamp(max=source)
    at = torch.arange(source, dtype=torch.float32, device=device)
    distance = ((at - first[:, None] + (first[:, None] - centre[:, None] + 0.5)) * (1 / stretch)).abs()
    weights = (1 - distance).clamp(min=0) if mode == "bilinear" else cubic(distance)
    weights = torch.where((at >= first[:, None]) & (at < last[:, None]), weights, 0.0)
    return (weights / weights.sum(1, keepdim=True)).float()


def cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic kernel of distances (any shape), 0 from 2 on; a is PIL's and torch's for antialiased resizing."""
    near = ((a + 2) * distance - (a + 3)) * distance.square() + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
