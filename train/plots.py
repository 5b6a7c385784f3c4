"""Pictures about a training: loss curves, rows of predictions, grids."""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from .data import to_bytes


def to_picture(x: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> a PIL picture."""
    return Image.fromarray(rearrange(to_bytes(x), "c h w -> h w c").numpy())


def grid(rows: Sequence[Tensor]) -> Image.Image:
    """Rows of pictures (B, 3, H, W) in [-1, 1], each row side by side, short rows filled with white."""
    lines = [rearrange(row.float().cpu(), "b c h w -> c h (b w)") for row in rows]
    width = max(line.shape[2] for line in lines)
    return to_picture(torch.cat([F.pad(line, (0, width - line.shape[2]), value=1.0) for line in lines], 1))


def picture_grid(pictures: Tensor, columns: int = 4) -> Image.Image:
    """Pictures (N, 3, H, W) in [-1, 1], row by row."""
    return grid(pictures.split(columns))


def loss_curve(values: Sequence[float], width: int = 512, height: int = 256) -> Image.Image:
    """The loss over the iterations as a line, with its first, lowest and last value; valid for one value or none."""
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    left, top, right, bottom = 8, 22, width - 8, height - 8
    pen.rectangle((left, top, right, bottom), outline=(200, 200, 200))
    values = [v for v in values if math.isfinite(v)]
    if not values:
        pen.text((left, 5), "no loss yet", fill="black")
        return sheet
    low, high = min(values), max(values)
    scale = (bottom - top - 8) / ((high - low) or 1.0)
    points = [(left + 4 + (right - left - 8) * i / max(1, len(values) - 1), bottom - 4 - (v - low) * scale)
              for i, v in enumerate(values)]
    if len(points) > 1:
        pen.line(points, fill=(31, 95, 191), width=2)
    x, y = points[-1]
    pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(191, 63, 31))
    pen.text((left, 5), f"loss after {len(values)} iterations: {values[-1]:.3f}   first {values[0]:.3f}   "
                        f"lowest {low:.3f}", fill="black")
    return sheet


def progress_picture(predictions: Tensor, values: Sequence[float], side: int = 128, most: int = 6) -> Image.Image:
    """Predictions (B, 3, H, W) in [-1, 1], the style row first, side by side above the loss curve."""
    row = grid([F.interpolate(predictions[:most].float(), (side, side), mode="area")])
    sheet = Image.new("RGB", (max(row.width, 360), side + 100), "white")
    sheet.paste(row, (0, 0))
    sheet.paste(loss_curve(values, sheet.width, 100), (0, side))
    return sheet
