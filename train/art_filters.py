"""Drawings made of photos by classic filters: oil, pencil, ink and nine more, in plain torch.

A filter takes a photo (3, H, W) float32 in [0, 1] and a generator, and gives a drawing of the same shape and range. The
same generator state gives the same drawing. Lengths are shares of the shorter side, so that sizes look alike.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Generator, Tensor

from ..models import ops

Filter = Callable[[Tensor, Generator], Tensor]
LUMA = (0.299, 0.587, 0.114)
# colours from dark to light
POP_PALETTES = (
    ((45, 20, 70), (200, 35, 45), (250, 130, 35), (255, 215, 90), (255, 245, 220)),
    ((40, 40, 45), (20, 105, 160), (85, 180, 120), (130, 215, 105), (240, 255, 225)),
    ((20, 25, 90), (120, 50, 165), (235, 80, 150), (250, 190, 140), (255, 250, 235)),
    ((70, 30, 20), (190, 75, 25), (245, 150, 40), (250, 210, 130), (250, 250, 245)),
    ((25, 45, 40), (20, 130, 130), (250, 95, 85), (255, 205, 120), (250, 250, 240)),
)
PRINT_PALETTE = ((15, 12, 15), (85, 30, 30), (160, 75, 60), (120, 130, 110), (75, 110, 150), (200, 160, 120),
                 (230, 200, 160))


# --- what filters are made of -------------------------------------------------------------------------------------
def luma(x: Tensor) -> Tensor:
    """Brightness (1, H, W)."""
    return (x * x.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True)


def pixels(x: Tensor, share: float) -> float:
    return share * min(x.shape[1:])


def blur(x: Tensor, share: float) -> Tensor:
    """Gaussian blur, reflecting at the border. share: sigma as a share of the shorter side."""
    sigma = max(0.3, pixels(x, share))
    radius = min(math.ceil(3 * sigma), min(x.shape[1:]) - 1)
    kernel = torch.exp(-torch.arange(-radius, radius + 1, dtype=x.dtype) ** 2 / (2 * sigma ** 2))
    kernel = (kernel / kernel.sum()).expand(len(x), 1, 1, -1)
    x = F.pad(x[None], (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(x, kernel, groups=x.shape[1]), kernel.mT, groups=x.shape[1])[0]


def step(x: Tensor, edge: float, softness: float) -> Tensor:
    """0 below the edge and 1 above it, softly."""
    return torch.sigmoid((x - edge) / softness)


def lines(y: Tensor, share: float, gain: float = 60.0, level: float = 0.012) -> Tensor:
    """Ink of the dark side of edges, 1 for full ink: difference of Gaussians, thresholded softly."""
    return torch.sigmoid(gain * 2 * (blur(y, 1.6 * share) - blur(y, share) - level)).clamp(0, 1)


def noise(x: Tensor, share: float, generator: Generator) -> Tensor:
    """Grain (1, H, W) of unit spread, `share` wide."""
    grain = torch.randn((1, *x.shape[1:]), generator=generator)
    grain = blur(grain, share) if share else grain
    return (grain - grain.mean()) / grain.std()


def saturate(x: Tensor, factor: float) -> Tensor:
    return (luma(x) + (x - luma(x)) * factor).clamp(0, 1)


def stretched(y: Tensor) -> Tensor:
    """Brightness with its 2nd and 98th percentile at 0 and 1."""
    low, high = (y.quantile(q) for q in (0.02, 0.98))
    return ((y - low) / (high - low).clamp(min=0.05)).clamp(0, 1)


def flattened(x: Tensor, share: float, rounds: int) -> Tensor:
    """Kuwahara's filter: each pixel takes the mean of that square beside it which varies least."""
    radius = max(1, round(pixels(x, share)))
    for _ in range(rounds):
        padded = F.pad(torch.cat([x, luma(x) ** 2])[None], (radius,) * 4, mode="replicate")
        means = F.avg_pool2d(F.avg_pool2d(padded, (radius + 1, 1), 1), (1, radius + 1), 1)[0]
        height, width = x.shape[1:]
        corners = torch.stack([means[:, i:i + height, j:j + width] for i in (0, radius) for j in (0, radius)])
        variance = corners[:, 3] - luma_of(corners[:, :3]) ** 2
        best = variance.argmin(0)
        x = corners[:, :3].gather(0, best.expand(1, 3, -1, -1))[0]
    return x


def luma_of(x: Tensor) -> Tensor:
    return (x * x.new_tensor(LUMA)[:, None, None]).sum(1)


def painted(index: Tensor, palette: Sequence[Sequence[int]]) -> Tensor:
    """(3, H, W) from indices (H, W) into colours of 0..255."""
    return (torch.tensor(palette) / 255)[index].movedim(-1, 0)


def paper(x: Tensor, generator: Generator, tint: float = 0.12) -> Tensor:
    """A light, warm ground (3, 1, 1)."""
    return 1 - tint * torch.rand(1, generator=generator) * torch.tensor([0.4, 0.6, 1.0])[:, None, None]


def inked(ink: Tensor, ground: Tensor, colour: float = 0.05) -> Tensor:
    """Ink (1, H, W) in [0, 1] on a ground."""
    return ground * (1 - ink) + colour * ink


def cells(x: Tensor, share: float, generator: Generator) -> tuple[Tensor, Tensor, int]:
    """Random points, one in each square of a grid: (index of each pixel's nearest (H, W), distance, how many)."""
    size = max(2.0, pixels(x, share))
    rows, columns = (math.ceil(n / size) + 2 for n in x.shape[1:])
    points = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
    points = (points - 1 + torch.rand(points.shape, generator=generator)) * size
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) + 0.5 for n in x.shape[1:]), indexing="ij"), -1)
    home = (grid / size).long() + 1
    near = [(home[..., 0] + i).clamp(0, rows - 1) * columns + (home[..., 1] + j).clamp(0, columns - 1)
            for i in (-1, 0, 1) for j in (-1, 0, 1)]
    index = torch.stack(near)
    distance, which = (points.reshape(-1, 2)[index] - grid).norm(dim=-1).min(0)
    return index.gather(0, which[None])[0], distance / size, rows * columns


def cell_means(x: Tensor, index: Tensor, count: int) -> Tensor:
    """Mean colour (3, count) of the pixels of each cell."""
    flat = index.flatten()
    size = torch.zeros(count).index_add(0, flat, torch.ones(len(flat)))
    return torch.zeros(3, count).index_add(1, flat, x.flatten(1)) / size.clamp(min=1)


# --- the filters --------------------------------------------------------------------------------------------------
def oil(x: Tensor, generator: Generator) -> Tensor:
    """Flat patches of paint (Kuwahara) with a little bristle."""
    flat = saturate(flattened(x, 0.025, 3), 1.15)
    return (flat + 0.012 * noise(x, 0.005, generator)).clamp(0, 1)


def pencil(x: Tensor, generator: Generator) -> Tensor:
    """Graphite: brightness divided by its surroundings (colour dodge), and the paper's grain."""
    y = luma(x)
    dodge = ((y + 0.05) / (blur(y, 0.02) + 0.05)).clamp(0, 1) ** 3
    tone = 0.8 + 0.2 * blur(y, 0.01)
    return (dodge * tone + 0.1 - 0.05 * noise(x, 0.004, generator).abs()).clamp(0, 1).expand(3, -1, -1)


def colorpencil(x: Tensor, generator: Generator) -> Tensor:
    """Strokes of the photo's own colours on white, where it is darker than its surroundings (colour dodge)."""
    y = luma(x)
    stroke = 1 - ((y + 0.05) / (blur(y, 0.03) + 0.05)).clamp(0, 1) ** 5
    shade = (0.35 + 0.15 * noise(x, 0.004, generator)) * (1 - y) ** 2
    return 1 - (stroke + shade).clamp(0, 1) * (1 - 0.8 * saturate(x, 2.5))


def ink(x: Tensor, generator: Generator) -> Tensor:
    """Black and white: edges and shadows in full ink (extended difference of Gaussians)."""
    y = stretched(luma(x))
    sharp = 14 * blur(y, 0.006) - 13 * blur(y, 0.011)
    return inked(1 - step(sharp, 0.38, 0.03), paper(x, generator))


def cel(x: Tensor, generator: Generator) -> Tensor:
    """Few tones and dark outlines."""
    flat = flattened(x, 0.025, 3)
    y = stretched(luma(flat))
    tone = (y * 3.4 + 0.4 * torch.rand(1, generator=generator)).floor() / 3.6 + 0.06
    colour = saturate((flat / luma(flat).clamp(min=0.04) * tone).clamp(0, 1), 1.3)
    return colour * (1 - lines(luma(x), 0.006, 120.0))


def popart(x: Tensor, generator: Generator) -> Tensor:
    """Five tones in the colours of one of the palettes."""
    palette = POP_PALETTES[int(torch.randint(len(POP_PALETTES), (1,), generator=generator))]
    y = stretched(blur(luma(x), 0.012))[0]
    return painted((y * 4.999).long(), palette)


def pointillism(x: Tensor, generator: Generator) -> Tensor:
    """Dots of paint, each of its own shade."""
    index, distance, count = cells(x, 0.022, generator)
    dots = saturate(cell_means(x, index, count)[:, :, None], 1.4)[:, :, 0]
    dots = dots + 0.09 * torch.randn(dots.shape, generator=generator)
    return (dots[:, index] * (1 - 0.2 * step(distance, 0.6, 0.1))).clamp(0, 1)


def lowpoly(x: Tensor, generator: Generator) -> Tensor:
    """Flat triangles between points that lie on edges where there are some."""
    y = blur(luma(x), 0.008)[0]
    edges = torch.zeros_like(y)
    edges[:, 1:] += y.diff(dim=1).abs()
    edges[1:] += y.diff(dim=0).abs()
    edges = edges + 0.02 * torch.rand(y.shape, generator=generator)
    size = max(2, round(pixels(x, 0.062)))
    height, width = x.shape[1:]
    rows, columns = (math.ceil(n / size) for n in (height, width))
    padded = F.pad(edges, (0, columns * size - width, 0, rows * size - height))
    best = padded.unfold(0, size, size).unfold(1, size, size).flatten(2).argmax(2)
    corner = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1) * size
    inner = (corner + torch.stack([best // size, best % size], -1)).clamp(max=max(height, width) - 1)
    return triangles(x, framed(inner, height, width))


def framed(points: Tensor, height: int, width: int) -> Tensor:
    """The (rows, columns, 2) grid of (y, x) points with a ring around it on the picture's border."""
    points = torch.cat([points[:1], points, points[-1:]])
    points = torch.cat([points[:, :1], points, points[:, -1:]], 1).clone()
    points[0, :, 0], points[-1, :, 0] = 0, height
    points[:, 0, 1], points[:, -1, 1] = 0, width
    return points


def triangles(x: Tensor, points: Tensor) -> Tensor:
    """Each square of the grid as two triangles, in the mean colour around their centres."""
    a, b, c, d = points[:-1, :-1], points[:-1, 1:], points[1:, :-1], points[1:, 1:]
    corners = torch.cat([torch.stack(t, 2).flatten(0, 1) for t in ((a, b, c), (b, d, c))])
    centre = corners.float().mean(1)
    height, width = x.shape[1:]
    row, column = centre[:, 0].long().clamp(0, height - 1), centre[:, 1].long().clamp(0, width - 1)
    colours = (blur(x, 0.012)[:, row, column].T.clamp(0, 1) * 255).round().int().tolist()
    picture = Image.fromarray((x.movedim(0, -1).numpy() * 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for triangle, colour in zip(corners.flip(-1).tolist(), colours, strict=True):
        draw.polygon([tuple(point) for point in triangle], fill=tuple(colour))
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 255


def watercolor(x: Tensor, generator: Generator) -> Tensor:
    """Pale washes with darker rims, uneven pigment and soft outlines."""
    wash = blur(flattened(x, 0.02, 3), 0.005)
    pigment = 1 + 0.07 * noise(x, 0.06, generator) + 0.04 * noise(x, 0.006, generator)
    pale = 1 - (1 - (0.25 + 0.75 * saturate(wash, 0.75))) * 0.85 * pigment
    return (pale * (1 - 0.75 * lines(luma(x), 0.006, 120.0))).clamp(0, 1)


def charcoal(x: Tensor, generator: Generator) -> Tensor:
    """Rubbed black on rough paper."""
    y = stretched(luma(flattened(x, 0.015, 1)))
    tone = step(y, 0.45, 0.17) - 0.35 * lines(luma(x), 0.008)
    rough = noise(x, 0.005, generator)
    return inked((1 - tone + 0.16 * rough * (1.2 - tone)).clamp(0, 1), paper(x, generator, 0.35) * 0.93, 0.1)


def engraving(x: Tensor, generator: Generator) -> Tensor:
    """Parallel lines that are thicker where it is darker, bent by the shading."""
    y = stretched(blur(luma(x), 0.006))
    angle = torch.rand(1, generator=generator) * math.pi
    row, column = torch.meshgrid(*(torch.arange(n) / min(y.shape[1:]) for n in y.shape[1:]), indexing="ij")
    phase = 2 * math.pi * 42 * (row * angle.cos() + column * angle.sin() + 0.08 * blur(y, 0.03)[0])
    ink = step((1 + torch.sin(phase)) / 2 - y * 1.1 + 0.12, 0.5, 0.1)
    return inked((0.85 * ink + lines(luma(x), 0.006) * 0.6).clamp(0, 1), paper(x, generator), 0.2)


def ukiyo(x: Tensor, generator: Generator) -> Tensor:
    """A woodblock print: the nearest of seven colours, black outlines, grain."""
    flat = flattened(x, 0.03, 3)
    flat = saturate(flat / luma(flat).clamp(min=0.02) * stretched(luma(flat)), 1.2)
    palette = torch.tensor(PRINT_PALETTE) / 255
    nearest = (flat[None] - palette[:, :, None, None]).square().sum(1).argmin(0)
    printed = painted(nearest, PRINT_PALETTE) * (1 - lines(luma(x), 0.007, 120.0))
    return (printed + 0.03 * noise(x, 0.004, generator)).clamp(0, 1)


FILTERS: dict[str, Filter] = {f.__name__: f for f in (
    oil, watercolor, pencil, colorpencil, ink, cel, popart, engraving, pointillism, lowpoly, charcoal, ukiyo)}


@torch.no_grad()
def drawn(photo: Tensor, style: str, generator: Generator, oversampling: int = 2) -> Tensor:
    """The photo (3, H, W) in [0, 1] in one of FILTERS: made `oversampling` times as large, shrunk again."""
    height, width = photo.shape[1:]
    large = ops.resize(photo[None], (height * oversampling, width * oversampling), "bicubic")[0].clamp(0, 1)
    return ops.resize(FILTERS[style](large, generator)[None], (height, width), "bicubic")[0].clamp(0, 1)
