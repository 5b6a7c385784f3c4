"""Where faces may be: the detector over a whole picture, at some sizes and turned by quarters (docs/faces.md).

Coordinates are continuous: a picture spans [0, W] x [0, H], the centre of pixel (i, j) is (i + 0.5, j + 0.5).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from .networks import COARSE_ANCHORS, FINE_ANCHORS, Detector

SAME_FACE_IOU = 0.3


@dataclass(frozen=True)
class Pass:
    """One look of the detector: the side of its input, quarter turns of the picture, and the least score kept."""
    size: int
    turn: int = 0
    threshold: float = 0.5


@dataclass(frozen=True)
class Candidates:
    """N possible faces, on the CPU, in picture pixels.

    scores (N,) in 0..1. boxes (N, 4): x0, y0, x1, y1. points (N, 6, 2): left and right eye (in the picture, the face
    upright), nose, mouth, left and right ear. sizes, turns (N,): of the pass that each was found in.
    """
    scores: Tensor
    boxes: Tensor
    points: Tensor
    sizes: Tensor
    turns: Tensor

    @classmethod
    def of(cls, parts: Sequence[Candidates]) -> Candidates:
        """All of `parts`, at least one, in order."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def anchors(size: int) -> Tensor:
    """Centres (N, 2) of all anchors of an input of `size`, as shares of it, in the order of the detector's rows."""
    grids = []
    for stride, count in ((16, FINE_ANCHORS), (32, COARSE_ANCHORS)):
        cells = (torch.arange(size // stride) + 0.5) / (size // stride)
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        grids.append(torch.stack([x, y], -1).reshape(-1, 2).repeat_interleave(count, 0))
    return torch.cat(grids)


def decode(boxes: Tensor, size: int) -> Tensor:
    """Raw boxes (N, 16) to x0 y0 x1 y1 and six points, in input pixels."""
    rows = boxes.reshape(-1, 8, 2)
    centres = anchors(size).to(boxes)[:, None] * size
    half = rows[:, 1:2] / 2
    middle = centres + rows[:, :1]
    return torch.cat([middle - half, middle + half, centres + rows[:, 2:]], 1).flatten(1)


def iou(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union (N,) of a box (4,) with boxes (N, 4)."""
    inside = intersection(box, boxes)
    return inside / (area(box) + area(boxes) - inside).clamp_min(1e-12)


def intersection(box: Tensor, boxes: Tensor) -> Tensor:
    """Area (N,) that a box (4,) shares with each of boxes (N, 4)."""
    sides = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
    return sides.clamp_min(0).prod(1)


def area(boxes: Tensor) -> Tensor:
    """Areas of boxes (..., 4)."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def suppress(scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted suppression of rows (N, 16) of `decode`: rows over one face become their mean, weighted by score.

    Returns the best score of each group (M,), descending, and the means (M, 16).
    """
    order = scores.argsort(descending=True, stable=True)
    scores, rows = scores[order], rows[order]
    best, means = [], []
    while len(scores):
        group = iou(rows[0, :4], rows[:, :4]) > SAME_FACE_IOU
        group[0] = True
        weights = scores[group, None]
        best.append(scores[0])
        means.append((rows[group] * weights).sum(0) / weights.sum())
        scores, rows = scores[~group], rows[~group]
    return (torch.stack(best), torch.stack(means)) if best else (scores, rows)


def letterbox(picture: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A picture (3, H, W) in [-1, 1], resized to fit and put in the middle of a black square (3, size, size).

    Also the offset (2,) and the scale (2,), x y: input = picture * scale + offset.
    """
    height, width = picture.shape[1:]
    ratio = size / max(height, width)
    h, w = (max(math.floor(n * ratio + 0.5), 1) for n in (height, width))
    resized = F.interpolate(picture[None], (h, w), mode="bilinear", antialias=True, align_corners=False)[0]
    left, top = (size - w) // 2, (size - h) // 2
    square = F.pad(resized, (left, size - w - left, top, size - h - top), value=-1.0)
    return square, torch.tensor([left, top]), torch.tensor([w / width, h / height])


def unturn(points: Tensor, turn: int, height: int, width: int) -> Tensor:
    """Points (..., 2) of a picture turned by `torch.rot90(picture, turn, (-2, -1))` in the unturned one, which has
    this height and width."""
    x, y = points.unbind(-1)
    back = ((x, y), (width - y, x), (width - x, height - y), (y, height - x))[turn]
    return torch.stack(back, -1)


@torch.no_grad()
def detect(detector: Detector, picture: Tensor, look: Pass) -> Candidates:
    """What one pass finds in a picture (3, H, W) in [-1, 1] on the detector's device, best first."""
    height, width = picture.shape[1:]
    square, offset, scale = letterbox(torch.rot90(picture, look.turn, (-2, -1)), look.size)
    scores, boxes = (out[0].float().cpu() for out in detector(square[None]))
    scores, rows = scores.sigmoid(), decode(boxes, look.size)
    kept = (scores >= look.threshold) & (rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])
    scores, rows = suppress(scores[kept], rows[kept])
    points = unturn((rows.reshape(-1, 8, 2) - offset) / scale, look.turn, height, width)
    corners = torch.cat([points[:, :2].amin(1), points[:, :2].amax(1)], 1)
    count = len(scores)
    return Candidates(scores, corners, points[:, 2:], torch.full((count,), look.size), torch.full((count,), look.turn))
