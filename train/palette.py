"""The palette of a style (docs/mmfs.md E.6): which colours its pictures have, how much of each, whatever their place.

This pack's own; the MMFS paper has no such loss.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import to_unit

PX = 32  # of a picture's shorter side, in means of whole blocks: what counts are areas, not grain
DIRECTIONS = 32


def directions(count: int = DIRECTIONS) -> Tensor:
    """Unit vectors (count, 3), spread evenly over a half sphere (Fibonacci's lattice)."""
    k = torch.arange(count, dtype=torch.float64) + 0.5
    height, angle = 1 - k / count, math.pi * (1 + math.sqrt(5)) * k
    radius = (1 - height.square()).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), height], 1).float()


def colours(pictures: Tensor) -> Tensor:
    """(B, 3, N) of pictures (B, 3, H, W): means of square blocks, about PX on the shorter side."""
    return F.avg_pool2d(pictures, max(min(pictures.shape[2:]) // PX, 1)).flatten(2)


def slices(vectors: Tensor, along: Tensor) -> Tensor:
    """(B, D, N): C-vectors (B, C, N) projected on the directions `along` (D, C), each projection sorted."""
    return (along @ vectors).sort(2).values


def resized(values: Tensor, count: int) -> Tensor:
    """Sorted values (B, D, N) as `count` quantiles of the same distribution."""
    return values if values.shape[2] == count else F.interpolate(values, count, mode="linear")


@dataclass(frozen=True)
class Palette:
    """directions (D, 3), and the quantiles (1, D, N) of the references' colours along each."""
    directions: Tensor
    quantiles: Tensor

    @classmethod
    def of(cls, pictures: Sequence[Tensor], device: torch.device) -> Palette:
        """Of uint8 pictures (3, H, W); several weigh the same, whatever their sizes."""
        along = directions()
        found = [resized(slices(colours(to_unit(picture.cpu())[None]), along), PX * PX) for picture in pictures]
        together = torch.cat(found, 2).sort(2).values
        return cls(along.to(device), resized(together, PX * PX).to(device))

    def loss(self, pictures: Tensor) -> Tensor:
        """Squared sliced 2-Wasserstein distance of each picture's colours to the palette, mean over pictures
        (B, 3, H, W) in [-1, 1]; a float32 scalar, in squared pixel values."""
        found = slices(colours(pictures), self.directions)
        return (found - resized(self.quantiles, found.shape[2])).square().mean()
