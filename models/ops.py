"""The one place for fused kernels. Plain torch; a faster form replaces a function here, never a network."""
from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import full_precision

Net = TypeVar("Net", bound=nn.Module)


def channels_last(net: Net) -> Net:
    """The network with its weights laid out channels last, which convolutions on a GPU want."""
    return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (no overload of torch's names it)


def group_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """GroupNorm of x (B, C, ...), computed in float32 and cast back; `norm`, a part of a container, must be one."""
    if not isinstance(norm, nn.GroupNorm):
        raise TypeError(f"a GroupNorm is needed here, not {type(norm).__name__}")
    return F.group_norm(x.float(), norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps).to(x.dtype)


def norm_silu(x: Tensor, norm: nn.Module) -> Tensor:
    """SiLU(GN(x)) of x (B, C, ...)."""
    return F.silu(group_norm(x, norm))


def norm_affine_silu(x: Tensor, norm: nn.Module, affine: tuple[Tensor, Tensor]) -> Tensor:
    """SiLU(GN(x) A + B) of a map x (B, C, H, W); affine: (A, B), each (B or 1, C)."""
    a, b = (part.to(x.dtype)[:, :, None, None] for part in affine)
    return F.silu(group_norm(x, norm) * a + b)


def resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Antialiased resize of pictures (B, C, H, W) in float32, as F.interpolate(mode, antialias=True), "bilinear" or
    "bicubic". It is two matrix products, so that every device has its derivative."""
    rows, columns = (resize_matrix(source, target, mode, x.device) for source, target in zip(x.shape[-2:], size))
    with full_precision(x.device):
        return rows @ x.float() @ columns.t()


def resize_matrix(source: int, target: int, mode: str, device: torch.device) -> Tensor:
    """Weights (target, source) of an antialiased resize along one side; each row sums to 1. In float32, as torch's."""
    scale = source / target
    stretch = max(scale, 1.0)
    radius = (1.0 if mode == "bilinear" else 2.0) * stretch
    centre = scale * (torch.arange(target, dtype=torch.float32) + 0.5)
    first = (centre - radius + 0.5).long().clamp(min=0)
    last = (centre + radius + 0.5).long().clamp(max=source)
    at = torch.arange(source, dtype=torch.float32)
    distance = ((at - first[:, None] + (first[:, None] - centre[:, None] + 0.5)) * (1 / stretch)).abs()
    weights = (1 - distance).clamp(min=0) if mode == "bilinear" else cubic(distance)
    weights = torch.where((at >= first[:, None]) & (at < last[:, None]), weights, 0.0)
    return (weights / weights.sum(1, keepdim=True)).float().to(device)


def cubic(distance: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic kernel of distances (any shape), 0 from 2 on; a is PIL's and torch's for antialiased resizing."""
    near = ((a + 2) * distance - (a + 3)) * distance.square() + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
