"""The border between ComfyUI's pictures and ours, and how pictures are put together for previews.

ComfyUI's IMAGE: (B, H, W, C) float 0..1. Ours: (B, 3, px, px) float32 in [-1, 1], RGB. Long batches go through in
chunks into one output, so that a batch is not copied as a whole again and again.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from . import host

MIN_SIDE, MAX_PIXELS = 8, 256_000_000  # of a picture
FIT_MODES = ("crop", "pad", "squash")
CPU = torch.device("cpu")
CHUNK_PIXELS = 4_000_000  # of pictures that are worked on at a time


def check(image: Tensor, what: str) -> Tensor:
    """The IMAGE itself if its shape can be used; ValueError that names `what` otherwise."""
    if not isinstance(image, Tensor) or image.ndim != 4:
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"{what}: expected pictures (batch, height, width, channels), got {shape}. Connect an IMAGE")
    count, height, width, channels = image.shape
    if count == 0:
        raise ValueError(f"{what}: the batch holds no picture. Connect at least one")
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"{what}: a picture of {width} x {height} px is too small. Take one of at least {MIN_SIDE} px "
                         "a side")
    if height * width > MAX_PIXELS:
        raise ValueError(f"{what}: a picture of {width} x {height} px is too large. Scale it down first (Upscale Image "
                         "node)")
    if channels not in (1, 3, 4):
        raise ValueError(f"{what}: a picture of {channels} channels. Connect a grey (1), RGB (3) or RGBA (4) picture")
    return image


def checked(image: Tensor, what: str, device: torch.device = CPU) -> Tensor:
    """A valid IMAGE as (B, 3, H, W) float32 in 0..1 on the CPU, or on `device`: alpha laid on white, grey made RGB,
    values clamped.

    Raises ValueError that names `what` for anything that cannot be used.
    """
    image = check(image, what).detach().float().cpu()
    if not (torch.isfinite(image.sum()) or torch.isfinite(image).all()):  # the sum needs no memory
        raise ValueError(f"{what}: the picture holds NaN or infinite values, so the node before it failed "
                         "(a VAE in float16 is the usual cause). Fix that one first")
    image = rearrange(host.sent(image, device).clamp(0, 1), "b h w c -> b c h w")
    if image.shape[1] == 4:
        alpha = image[:, 3:]
        return image[:, :3] * alpha + (1 - alpha)
    return image.expand(-1, 3, -1, -1)


def in_chunks(image: Tensor, what: str, work: Callable[[Tensor], Tensor], device: torch.device = CPU) -> Tensor:
    """work(part) for parts of an IMAGE, as `checked`, one after the other into one tensor on the CPU, or `device`."""
    count, height, width, _ = check(image, what).shape
    size = max(1, CHUNK_PIXELS // (height * width))
    out: Tensor | None = None
    for start in range(0, count, size):
        part = work(checked(image[start:start + size], what, device))
        if out is None:
            if size >= count:
                return part.contiguous()
            out = torch.empty(count, *part.shape[1:], dtype=part.dtype, device=part.device)
        out[start:start + len(part)] = part
    assert out is not None
    return out


def batch(pictures: Sequence[Tensor], what: str, side: int | None = None, mode: str = "crop") -> Tensor | None:
    """One IMAGE of several. None for none.

    Of several sizes, each is fitted to `side` by the mode of `fit`; None is the smallest one's side. Those of one size
    keep it, and their channels if they are as many, else they become RGB.
    """
    if not pictures:
        return None
    shapes = {tuple(check(image, what).shape[1:]) for image in pictures}
    if len(shapes) == 1:
        return torch.cat(list(pictures))
    if len({shape[:2] for shape in shapes}) == 1:
        return torch.cat([in_chunks(image, what, lambda x: rearrange(x, "b c h w -> b h w c")) for image in pictures])
    side = side or min(min(shape[:2]) for shape in shapes)
    return torch.cat([fit(image, side, mode, what) for image in pictures])


def to_model(image: Tensor, px: int, what: str = "image") -> Tensor:
    """IMAGE -> (B, 3, px, px) in [-1, 1], on the CPU. Other shapes are squashed, as the official program does."""
    return in_chunks(image, what, lambda x: resized(x, px, px) * 2 - 1)


def to_image(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> IMAGE on the CPU."""
    return on_its_device(pictures).cpu()


def on_its_device(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> IMAGE on the pictures' device."""
    return rearrange((pictures.detach().float().clamp(-1, 1) + 1) / 2, "b c h w -> b h w c").contiguous()


def single(image: Tensor, what: str) -> Tensor:
    """The IMAGE itself if it is a batch of one, else ValueError."""
    if isinstance(image, Tensor) and image.ndim == 4 and len(image) > 1:
        raise ValueError(f"{what}: one picture is needed, not {len(image)}. Pick one (ImageFromBatch node)")
    return image


def fit(image: Tensor, size: int, mode: str = "crop", what: str = "image") -> Tensor:
    """IMAGE of any shape -> IMAGE (B, size, size, 3): centre crop, pad with white, or squash."""
    return in_chunks(image, what, lambda x: rearrange(_fitted(x, size, mode), "b c h w -> b h w c"))


def to_square(image: Tensor, px: int, what: str = "image", device: torch.device = CPU) -> Tensor:
    """IMAGE of any shape -> the middle squares (B, 3, px, px) in [-1, 1], on the CPU or on `device`."""
    return in_chunks(image, what, lambda x: _fitted(x, px, "crop") * 2 - 1, device)


def _fitted(x: Tensor, size: int, mode: str) -> Tensor:
    height, width = x.shape[-2:]
    side = min(height, width)
    if mode == "crop":
        top, left = (height - side) // 2, (width - side) // 2
        x = x[..., top:top + side, left:left + side]
    elif mode == "pad":
        side = max(height, width)
        above, before = (side - height) // 2, (side - width) // 2
        x = F.pad(x, (before, side - width - before, above, side - height - above), value=1.0)
    return resized(x, size, size)


def on_white(image: Tensor, mask: Tensor, what: str = "mask") -> Tensor:
    """IMAGE (B, H, W, 3 or 4) with what `mask` (B or 1, H, W) marks laid on white: core's Load Image gives the alpha of
    an RGBA file as such a mask. ValueError for another size."""
    if mask.ndim == 2:
        mask = mask[None]
    if mask.shape[1:] != image.shape[1:3] or len(mask) not in (1, len(image)):
        raise ValueError(f"{what}: a mask of {tuple(mask.shape)} does not fit pictures of {tuple(image.shape)}. "
                         "Connect the mask of the same node")
    shown = 1 - mask[..., None].float().clamp(0, 1)
    if image.shape[-1] == 4:
        shown = shown.minimum(image[..., 3:])
    return image[..., :3] * shown + (1 - shown)


def stride_size(image: Tensor, stride: int, most: int, what: str = "image") -> tuple[int, int]:
    """(height, width) that pictures are scaled to. most: of the longer side, 0 for any. ValueError if too narrow."""
    height, width = check(image, what).shape[1:3]
    if most and max(height, width) > most:
        scale = most / max(height, width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
    if min(height, width) < stride:
        raise ValueError(f"{what}: a picture of {width} x {height} px is too narrow for this model, which needs "
                         f"{stride} px a side. Take a larger one, increase the largest side, or take the crop")
    return height, width


def to_strides(image: Tensor, stride: int, size: tuple[int, int], what: str = "image",
               device: torch.device = CPU) -> Tensor:
    """IMAGE of any shape, scaled to (height, width) -> (B, 3, H, W) in [-1, 1] with sides that are multiples of
    `stride`, reflected at the right and lower border; on the CPU or on `device`."""
    pad = (0, -size[1] % stride, 0, -size[0] % stride)
    return in_chunks(image, what, lambda x: F.pad(resized(x, *size) * 2 - 1, pad, mode="reflect"), device)


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Pictures (B, 3, H, W) in 0..1 at this height and width."""
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def side_by_side(pictures: Tensor, most: int = 8) -> Image.Image:
    """The first pictures of a batch (B, 3, H, W) in [-1, 1] side by side, for a preview."""
    return to_pil(to_image(torch.cat(list(for_preview(pictures, most)), dim=2)[None]))


def for_preview(pictures: Tensor, most: int = 8) -> Tensor:
    """The first pictures of a batch (B, 3, H, W), so small that side by side they are no larger than a preview."""
    pictures = pictures[:most].float()
    height, width = pictures.shape[-2:]
    scale = min(1.0, host.PREVIEW_SIDE / max(height, len(pictures) * width))
    size = max(1, round(scale * height)), max(1, round(scale * width))
    return pictures if size == (height, width) else F.interpolate(pictures, size, mode="area")


def to_pil(image: Tensor) -> Image.Image:
    """The first picture of an IMAGE."""
    return Image.fromarray((image[0] * 255).round().byte().numpy())


def from_pil(picture: Image.Image) -> Tensor:
    """A PIL picture -> IMAGE (1, H, W, 3)."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).float()[None] / 255
