"""Inception-v3 up to its 2048 pooled features, in two forms: that of FID and that of ArtFID (docs/parity.md names the
programs they are compared with).

FID's is TensorFlow's network of 2015: its average pools count real pixels only, and its last block takes the maximum.
ArtFID's is torchvision's, trained on art. The trunk is torchvision's module; its weights come from a file alone.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .batch_norm import drop_counters
from .packages import package_module

FORMS = ("fid", "art")
SIDE = 299  # px, of FID's input
LEAST_PX = 75  # a side, of ArtFID's input
RESIZES = ("clean", "ptfid", "tf", "aa")
_MEAN_OF_REAL = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_MAX = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)


@dataclass(frozen=True)
class InceptionConfig:
    """form: "fid" or "art". ValueError for another one."""
    form: str = "fid"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form {self.form!r} is unknown; it is one of {', '.join(FORMS)}")


class Inception(nn.Module):
    """The names are the public files'. In evaluation mode and frozen when loaded."""

    def __init__(self, config: InceptionConfig) -> None:
        super().__init__()
        self.config = config
        self.net = _trunk(config.form)

    def preprocess(self, pictures: Tensor, resize: str = "clean") -> Tensor:
        """The input of pictures (B, 3, H, W) in [-1, 1], which pass through 8 bits first.

        fid: (B, 3, 299, 299), by one of RESIZES. art: the same size, in [0, 1]. ValueError for an unknown resize and
        for less than 75 px a side (art).
        """
        pixels = ((pictures.float() + 1) * 127.5).round().clamp(0, 255)
        if self.config.form == "art":
            if min(pixels.shape[-2:]) < LEAST_PX:
                raise ValueError(f"ArtFID's network needs {LEAST_PX} px a side; the pictures have "
                                 f"{pixels.shape[-1]} x {pixels.shape[-2]}. Give larger ones")
            return pixels / 255
        if resize not in RESIZES:
            raise ValueError(f"resize {resize!r} is unknown; it is one of {', '.join(RESIZES)}")
        sized = {"clean": pillow_bicubic, "tf": tensorflow_bilinear, "ptfid": bilinear,
                 "aa": partial(bilinear, antialias=True)}[resize](pixels)
        return sized / 127.5 - 1 if resize == "ptfid" else (sized - 128) / 128

    def embed(self, pictures: Tensor, resize: str = "clean") -> Tensor:
        """Features (B, 2048) of pictures in [-1, 1]; see `preprocess`."""
        return self.net(self.preprocess(pictures, resize))


# --- from 8-bit pixels as float (B, 3, H, W) to SIDE x SIDE, whatever the aspect --------------------------------------
def bilinear(pixels: Tensor, antialias: bool = False) -> Tensor:
    """torch's; pytorch-fid's without antialias, torchmetrics' with it."""
    return F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=antialias)


def tensorflow_bilinear(pixels: Tensor) -> Tensor:
    """TensorFlow 1's: position i of the result is i * in / out of the source, without the shift by half a pixel."""
    for dim in (2, 3):
        n = pixels.shape[dim]
        place = torch.arange(SIDE, device=pixels.device, dtype=torch.float32) * (n / SIDE)
        low = place.floor().long()
        weight = (place - low).reshape(-1, *[1] * (3 - dim))
        a, b = pixels.index_select(dim, low), pixels.index_select(dim, (low + 1).clamp_max(n - 1))
        pixels = a + (b - a) * weight
    return pixels


def pillow_bicubic(pixels: Tensor) -> Tensor:
    """clean-fid's: Pillow's bicubic of each channel as 32-bit float, antialiased, clipped to 0..255, not rounded."""
    planes = pixels.flatten(0, 1).cpu().numpy()
    sized = np.stack([np.asarray(Image.fromarray(plane).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
                      for plane in planes])
    return torch.from_numpy(sized).to(pixels.device).clamp(0, 255).unflatten(0, tuple(pixels.shape[:2]))


# --- the network ------------------------------------------------------------------------------------------------------
def _trunk(form: str) -> nn.Module:
    """torchvision's module without its heads and with this form's pools; (B, 3, H, W) -> (B, 2048) in evaluation."""
    tv = package_module("torchvision.models.inception", "torchvision")
    blocks = [tv.BasicConv2d, tv.InceptionA, tv.InceptionB, tv.InceptionC, tv.InceptionD, tv.InceptionE,
              tv.InceptionAux]
    if form == "fid":
        blocks = [_pooled(block, _MEAN_OF_REAL) if index in (1, 3, 5) else block for index, block in enumerate(blocks)]
    net = tv.Inception3(inception_blocks=blocks, aux_logits=False, init_weights=False)
    if form == "fid":
        net.Mixed_7c = _pooled(tv.InceptionE, _MAX)(2048)
    net.fc = nn.Identity()
    drop_counters(net)
    return net


def _pooled(block: Any, pool: Callable[[Tensor], Tensor]) -> Any:
    """A block of torchvision's whose last branch, the pooled one, is of `pool`."""
    class Pooled(block):
        def _forward(self, x: Tensor) -> list[Tensor]:
            return [*super()._forward(x)[:-1], self.branch_pool(pool(x))]
    return Pooled


def build(config: InceptionConfig, tensors: Mapping[str, Tensor]) -> Inception:
    """A network with these weights, in float32. RuntimeError if they do not fit."""
    net = Inception(config)
    net.net.load_state_dict(dict(tensors))
    return net.eval().requires_grad_(False)
