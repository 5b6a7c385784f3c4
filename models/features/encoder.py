"""Substitutes made of a DiffAE's frozen encoder, for when a public network's file is missing; to be named as such.

`EncoderDistance` replaces LPIPS: distance(a, b) -> (B,). `EncoderKeys` replaces DINO: keys(pictures) -> (B, n, D).
Pictures are (B, 3, H, W) in [-1, 1].
"""
from __future__ import annotations

from functools import reduce
from operator import add

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..unet import SemanticEncoder

KEYS_PX = 16


class EncoderDistance(nn.Module):
    """The substitute: mean squared difference of channel-normalised maps of a DiffAE's frozen encoder, four levels."""

    def __init__(self, encoder: SemanticEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = list(zip(self.encoder.features(a), self.encoder.features(b)))
        chosen = [pairs[i] for i in level_ends([f.shape[-1] for f, _ in pairs])][:4]
        return reduce(add, ((unit(f) - unit(g)).square().sum(1).mean((1, 2)) for f, g in chosen)) / len(chosen)


class EncoderKeys(nn.Module):
    """The substitute for DINO: what a DiffAE's frozen encoder puts out at KEYS_PX x KEYS_PX, one token a position.

    Each channel's mean over the picture is taken out: what is left is how positions differ, not what is common.
    """

    def __init__(self, encoder: SemanticEncoder, image_size: int = 128) -> None:
        """image_size: the side that the encoder was trained for. ValueError if it has no map of KEYS_PX."""
        super().__init__()
        self.image_size = image_size
        weight = encoder.input_blocks.get_parameter("0.0.weight")
        with torch.no_grad():
            sizes = [f.shape[-1] for f in encoder.features(weight.new_zeros(1, 3, image_size, image_size))]
        if KEYS_PX not in sizes:
            raise ValueError(f"this encoder has no map of {KEYS_PX} px for pictures of {image_size} px")
        last = max(i for i, size in enumerate(sizes) if size == KEYS_PX)
        self.blocks = encoder.input_blocks[:last + 1]

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Pictures at the encoder's size; what is not square is squeezed."""
        size = (self.image_size,) * 2
        if pictures.shape[-2:] == size:
            return pictures
        return F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)

    def keys(self, pictures: Tensor) -> Tensor:
        """Keys (B, KEYS_PX^2, D) of pictures (B, 3, H, W) in [-1, 1]."""
        x = self.preprocess(pictures)
        for block in self.blocks:
            x = block(x)
        x = rearrange(x, "b d h w -> b (h w) d")
        return x - x.mean(1, keepdim=True)


def unit(f: Tensor) -> Tensor:
    """Each position's channels scaled to length 1."""
    return f / (f.norm(dim=1, keepdim=True) + 1e-6)


def level_ends(sizes: list[int]) -> list[int]:
    """Index of the last map of each size."""
    return [i for i, size in enumerate(sizes) if i + 1 == len(sizes) or sizes[i + 1] != size]
