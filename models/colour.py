"""A stylized picture in the colours of its photo."""
from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def with_colours_of(results: Tensor, photos: Tensor, amount: float = 1.0) -> Tensor:
    """Results (B, 3, H, W) in [-1, 1] with the photos' chroma and their own luma; amount 0 is the results bit for bit.

    The chroma is scaled down where the colour would leave the range, so that the luma stays. Photos: the same shape.
    """
    weights = results.new_tensor(LUMA)[:, None, None]
    light, photo_light = ((x * weights).sum(1, keepdim=True) for x in (results, photos))
    chroma = photos - photo_light
    room = torch.where(chroma > 0, 1 - light, light + 1) / chroma.abs().clamp_min(1e-6)
    coloured = light + chroma * room.amin(1, keepdim=True).clamp(0, 1)
    return torch.lerp(results, coloured, amount)
