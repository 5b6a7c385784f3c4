"""Differentiable augmentation of a discriminator's input (Zhao et al. 2020), for training on few pictures.

Real and generated pictures get the same kinds of change, and the gradient passes through: the generator's result stays
clean.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .distributed import Draws

POLICIES = ("colour", "translation", "cutout")


def policies(text: str) -> tuple[str, ...]:
    """"colour,translation" -> ("colour", "translation"); "" for none. ValueError for an unknown name."""
    names = tuple(filter(None, (part.strip() for part in text.split(","))))
    for name in names:
        if name not in POLICIES:
            raise ValueError(f"there is no augmentation {name[:40]!r}; take some of {', '.join(POLICIES)}")
    return names


def augment(x: Tensor, names: tuple[str, ...], draws: Draws) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], changed."""
    for name in names:
        x = {"colour": colour, "translation": translate, "cutout": cut_out}[name](x, draws)
    return x


def colour(x: Tensor, draws: Draws) -> Tensor:
    """Brightness +-0.5, saturation 0..2, contrast 0.5..1.5."""
    x = x + 0.5 * draws.uniform(1, 1, 1)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (1 + draws.uniform(1, 1, 1))
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (1 + 0.5 * draws.uniform(1, 1, 1))


def translate(x: Tensor, draws: Draws, share: float = 1 / 8) -> Tensor:
    """Shifted by up to `share` of the side, in whole pixels, zeros moving in."""
    sizes = x.new_tensor(x.shape[:1:-1])  # width, height
    shift = (draws.uniform(2) * sizes * share).round() * 2 / sizes
    matrix = torch.eye(2, 3, device=x.device).repeat(len(x), 1, 1)
    matrix[:, :, 2] = shift
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x.float(), grid, padding_mode="zeros", align_corners=False)


def cut_out(x: Tensor, draws: Draws, share: float = 1 / 2) -> Tensor:
    """A square of `share` of the side set to zero, its centre anywhere in the picture."""
    height, width = x.shape[2:]
    centre = (draws.uniform(2) + 1) / 2
    inside = [((torch.arange(size, device=x.device) - centre[:, i, None] * size).abs() < size * share / 2)
              for i, size in enumerate((height, width))]
    return x * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])
