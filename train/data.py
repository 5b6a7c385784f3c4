"""Pictures for training: folders read into one uint8 tensor, and random views of them.

The sets this pack trains its small models on fit into memory; a picture set is a `Pool` on the training device.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Generator, Tensor

log = logging.getLogger(__name__)
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
MAX_PIXELS = 64_000_000


def find_pictures(folder: Path) -> list[Path]:
    """All pictures under a folder, sorted. FileNotFoundError if there is none."""
    found = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise FileNotFoundError(f"no picture (png, jpg, webp, bmp) under {folder}: name a folder that holds some")
    return found


def split(paths: Sequence[Path], holdout: int) -> tuple[list[Path], list[Path]]:
    """(training, held out): within each folder, every `holdout`-th picture in name order is held out; 0 for none."""
    kept, held, seen = [], [], {}
    for path in paths:
        n = seen[path.parent] = seen.get(path.parent, 0) + 1
        (held if holdout and n % holdout == 0 else kept).append(path)
    return kept, held


def read_picture(path: Path, px: int) -> Tensor:
    """uint8 (3, px, px): centre square, RGB on white, antialiased. ValueError with the file's name if unreadable."""
    try:
        with Image.open(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{path} has {file.width} x {file.height} pixels; make it smaller than {MAX_PIXELS:,}")
            picture = eight_bit(file).convert("RGBA")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.resize((px, px), Image.LANCZOS, (left, top, left + side, top + side))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey (PIL's own conversion would cut it off at 255); other pictures as they are."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.array(picture, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))


def read_pictures(paths: Iterable[Path], px: int) -> Tensor:
    """uint8 (N, 3, px, px)."""
    return torch.stack([read_picture(p, px) for p in paths])


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def to_bytes(pictures: Tensor) -> Tensor:
    """[-1, 1] -> uint8, on the CPU."""
    return ((pictures.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()


@dataclass(frozen=True)
class Pool:
    """Pictures uint8 (N, 3, px, px), their labels (N,) and how likely each is to be drawn (N,)."""
    pictures: Tensor
    labels: Tensor
    weights: Tensor

    def draw(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """(pictures in [-1, 1], labels) of a random batch."""
        index = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return to_unit(self.pictures[index]), self.labels[index]


def pool_of(groups: Sequence[tuple[Sequence[Path], float]], px: int, device: torch.device,
            label: Callable[[Path], int] = lambda path: 0) -> Pool:
    """A pool of several picture lists, each drawn with its share, every picture with its label."""
    kept = [(list(paths), share) for paths, share in groups if paths and share > 0]
    pictures = torch.cat([read_pictures(paths, px) for paths, _ in kept])
    weights = torch.cat([torch.full((len(paths),), share / len(paths)) for paths, share in kept])
    index = torch.tensor([label(p) for paths, _ in kept for p in paths])
    log.info("%d pictures of %d px", len(pictures), px)
    return Pool(pictures.to(device), index.to(device), weights.to(device))


@dataclass(frozen=True)
class Views:
    """Random views. degrees, scale, shift: of the geometry. colour: share of pictures whose colour is changed."""
    degrees: float = 8.0
    scale: float = 0.12
    shift: float = 0.05
    colour: float = 0.0
    flip: bool = True


def random_views(x: Tensor, views: Views, generator: Generator) -> Tensor:
    """Flip, rotate, scale, shift (reflecting at the border) and recolour pictures (B, 3, H, W) in [-1, 1]."""
    n = len(x)

    def uniform(*shape):
        return torch.rand(shape, device=x.device, generator=generator) * 2 - 1

    angle, scale = uniform(n) * views.degrees * torch.pi / 180, 1 + uniform(n) * views.scale
    mirror = torch.where(uniform(n) > 0, 1.0, -1.0) if views.flip else torch.ones(n, device=x.device)
    cos, sin, shift = angle.cos() * scale, angle.sin() * scale, uniform(n, 2) * 2 * views.shift
    matrix = torch.stack([torch.stack([cos * mirror, -sin, shift[:, 0]], 1),
                          torch.stack([sin * mirror, cos, shift[:, 1]], 1)], 1)
    x = F.grid_sample(x, F.affine_grid(matrix, x.shape, align_corners=False), mode="bilinear",
                      padding_mode="reflection", align_corners=False)
    return recolour(x, views.colour, uniform) if views.colour else x


def recolour(x: Tensor, share: float, uniform) -> Tensor:
    """Brightness and contrast +-20 %, saturation +-40 %, each channel +-8 %, for a share of the pictures."""
    n = len(x)
    contrast, brightness = 1 + 0.2 * uniform(n, 1, 1, 1), 0.2 * uniform(n, 1, 1, 1)
    saturation, tint = 1 + 0.4 * uniform(n, 1, 1, 1), 0.16 * uniform(n, 3, 1, 1)
    grey = x.mean(1, keepdim=True)
    changed = ((grey + (x - grey) * saturation) * contrast + brightness + tint).clamp(-1, 1)
    return torch.where((uniform(n, 1, 1, 1) + 1) / 2 < share, changed, x)
