"""The border between ComfyUI's pictures and ours, and how pictures are put together for previews.

ComfyUI's IMAGE: (B, H, W, C) float 0..1. Ours: (B, 3, px, px) float32 in [-1, 1], RGB.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MIN_SIDE, MAX_SIDE = 8, 8192
FIT_MODES = ("crop", "pad", "squash")


def checked(image: Tensor, what: str) -> Tensor:
    """A sound IMAGE as (B, 3, H, W) float32 in 0..1: alpha laid on white, grey made RGB, values clamped.

    Raises ValueError that names `what` for anything that cannot be used.
    """
    if not isinstance(image, Tensor) or image.ndim != 4:
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"{what}: expected pictures (batch, height, width, channels), got {shape}; connect an IMAGE")
    count, height, width, channels = image.shape
    if count == 0:
        raise ValueError(f"{what}: the batch has no picture in it; connect at least one")
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"{what}: a picture of {width} x {height} px has nothing to see; "
                         f"take one of at least {MIN_SIDE} px a side")
    if max(height, width) > MAX_SIDE:
        raise ValueError(f"{what}: a picture of {width} x {height} px is too large; "
                         f"scale it to {MAX_SIDE} px or less first (Upscale Image node)")
    if channels not in (1, 3, 4):
        raise ValueError(f"{what}: a picture of {channels} channels; connect a grey (1), RGB (3) or RGBA (4) picture")
    image = image.detach().float()
    if not torch.isfinite(image).all():
        raise ValueError(f"{what}: the picture holds NaN or infinite values, so the node before it failed "
                         "(a VAE in float16 is the usual cause); repair that one first")
    image = image.clamp(0, 1).movedim(-1, 1)
    if channels == 4:
        alpha = image[:, 3:]
        return image[:, :3] * alpha + (1 - alpha)
    return image.expand(-1, 3, -1, -1)


def to_model(image: Tensor, px: int, what: str = "image") -> Tensor:
    """IMAGE -> (B, 3, px, px) in [-1, 1], on the CPU. Other shapes are squashed, as the official program does."""
    return _resized(checked(image, what).cpu(), px, px) * 2 - 1


def to_image(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> IMAGE on the CPU."""
    return ((pictures.detach().float().clamp(-1, 1) + 1) / 2).movedim(1, -1).cpu().contiguous()


def single(image: Tensor, what: str) -> Tensor:
    """The IMAGE itself if it is a batch of one, else ValueError."""
    if isinstance(image, Tensor) and image.ndim == 4 and len(image) > 1:
        raise ValueError(f"{what}: one picture is needed, not {len(image)}; pick one (ImageFromBatch node)")
    return image


def fit(image: Tensor, size: int, mode: str) -> Tensor:
    """IMAGE of any shape -> IMAGE (B, size, size, 3): centre crop, pad with white, or squash."""
    if mode not in FIT_MODES:
        raise ValueError(f"mode is {mode!r}; take one of {', '.join(FIT_MODES)}")
    x = checked(image, "image").cpu()
    height, width = x.shape[-2:]
    side = min(height, width)
    if mode == "crop":
        top, left = (height - side) // 2, (width - side) // 2
        x = x[..., top:top + side, left:left + side]
    elif mode == "pad":
        side = max(height, width)
        above, before = (side - height) // 2, (side - width) // 2
        x = F.pad(x, (before, side - width - before, above, side - height - above), value=1.0)
    return _resized(x, size, size).movedim(1, -1).contiguous()


def to_strides(image: Tensor, stride: int, most: int, what: str = "image") -> tuple[Tensor, tuple[int, int]]:
    """IMAGE of any shape -> (B, 3, H, W) in [-1, 1] with sides that are multiples of `stride`, reflected at the right
    and lower border, and the (height, width) without that border. most: the longer side at most, 0 for any."""
    x = checked(image, what).cpu()
    height, width = x.shape[-2:]
    if most and max(height, width) > most:
        scale = most / max(height, width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
    if min(height, width) < stride:
        raise ValueError(f"{what}: a picture of {width} x {height} px is too narrow for this model, which needs "
                         f"{stride} px a side; take a larger one, raise the largest side, or take the crop")
    x = _resized(x, height, width) * 2 - 1
    return F.pad(x, (0, -width % stride, 0, -height % stride), mode="reflect"), (height, width)


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    if x.shape[-2:] == (height, width):
        return x.contiguous()
    return F.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def strip(pictures: Tensor, most: int = 8) -> Image.Image:
    """The first pictures of a batch (B, 3, H, W) in [-1, 1] side by side, for a preview."""
    return from_image(to_image(torch.cat(list(pictures[:most]), dim=2)[None]))


def from_image(image: Tensor) -> Image.Image:
    """The first picture of an IMAGE."""
    return Image.fromarray((image[0] * 255).round().byte().numpy())


def of_drawing(drawing: Image.Image) -> Tensor:
    """A PIL picture -> IMAGE (1, H, W, 3)."""
    return torch.from_numpy(np.array(drawing.convert("RGB"))).float()[None] / 255
