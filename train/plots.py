"""Pictures about a training: loss curves, charts, rows of predictions, grids."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..models.whole_files import whole_file
from .data import to_bytes

COLOURS = ((31, 95, 191), (191, 63, 31), (40, 140, 70), (120, 80, 160), (90, 90, 90))
Points = Sequence[tuple[float, float]]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def to_picture(x: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> a PIL picture."""
    return Image.fromarray(rearrange(to_bytes(x), "c h w -> h w c").numpy())


def save_picture(x: Tensor, target: Path) -> None:
    """(3, H, W) in [-1, 1] as a file of the format that its ending says, written whole or not at all."""
    with whole_file(target) as file:
        to_picture(x).save(file, Image.registered_extensions()[target.suffix], quality=92)  # a PNG has none


def grid(rows: Sequence[Tensor]) -> Image.Image:
    """Rows of pictures (B, 3, H, W) in [-1, 1], each row side by side, short rows filled with white."""
    lines = [rearrange(row.float().cpu(), "b c h w -> c h (b w)") for row in rows]
    width = max(line.shape[2] for line in lines)
    return to_picture(torch.cat([F.pad(line, (0, width - line.shape[2]), value=1.0) for line in lines], 1))


def picture_grid(pictures: Tensor, columns: int = 4) -> Image.Image:
    """Pictures (N, 3, H, W) in [-1, 1], row by row."""
    return grid(pictures.split(columns))


def labelled_grid(cells: Sequence[Sequence[Tensor]], columns: Sequence[str], rows: Sequence[str] = (),
                  gap: int = 4) -> Image.Image:
    """Rows of pictures (3, H, W) in [-1, 1], all of one size, under the columns' labels and beside the rows'. Labels
    too long for their column end in "..". ValueError where numbers of pictures and labels differ."""
    if any(len(row) != len(columns) for row in cells) or len(rows) not in (0, len(cells)):
        raise ValueError(f"{[len(row) for row in cells]} pictures do not fit {len(columns)} columns and {len(rows)} "
                         "labels of rows")
    height, width = cells[0][0].shape[-2:]
    size = max(11, min(28, width // 14))
    font, head = ImageFont.load_default(size), size + 3 * gap
    left = gap + max((math.ceil(font.getlength(label)) + 2 * gap for label in rows), default=0)
    sheet = Image.new("RGB", (left + (width + gap) * len(columns), head + (height + gap) * len(cells)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, label in enumerate(columns):
        pen.text((left + column * (width + gap) + width / 2, head / 2), shortened(label, font, width), "black", font,
                 anchor="mm")
    for line, row in enumerate(cells):
        top = head + line * (height + gap)
        if rows:
            pen.text((2 * gap, top + height / 2), rows[line], "black", font, anchor="lm")
        for column, cell in enumerate(row):
            sheet.paste(to_picture(cell), (left + column * (width + gap), top))
    return sheet


def text_table(blocks: Sequence[tuple[str, Sequence[Sequence[str]]]],
               faded: Callable[[str], bool] = lambda name: False) -> Image.Image:
    """Tables below each other: (title, lines of cells), a head first; columns are as wide as in the widest. faded: of
    which first cells the line is grey."""
    size, gap = 13, 8
    font = ImageFont.load_default(size)
    every = [line for _, lines in blocks for line in lines]
    widths = [max(math.ceil(font.getlength(line[k])) for line in every) + 2 * gap for k in range(len(every[0]))]
    pitch = size + gap
    titles = [math.ceil(font.getlength(title)) for title, _ in blocks]
    width = 2 * gap + max(sum(widths), *titles)
    sheet = Image.new("RGB", (width, gap + pitch * (len(every) + 2 * len(blocks))), "white")
    pen, top = ImageDraw.Draw(sheet), gap
    for title, lines in blocks:
        pen.text((gap, top), title, "black", font)
        top += pitch
        for number, line in enumerate(lines):
            left, colour = gap, (130, 130, 130) if number and faded(line[0]) else (0, 0, 0)
            for k, (cell, column) in enumerate(zip(line, widths, strict=True)):
                at, anchor = ((left, "la") if k == 0 else (left + column - gap, "ra"))
                pen.text((at, top), cell, colour, font, anchor=anchor)
                left += column
            top += pitch
            if number == 0:
                pen.line((gap, top - gap // 2, sheet.width - gap, top - gap // 2), fill=(200, 200, 200))
        top += pitch
    return sheet


def shortened(label: str, font: Font, width: int) -> str:
    """A label, or as much of it as fits into this width, with ".."."""
    if font.getlength(label) <= width:
        return label
    return next((f"{label[:n]}.." for n in range(len(label), 0, -1) if font.getlength(f"{label[:n]}..") <= width), "")


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


def chart(curves: Mapping[str, Points], across: str, upwards: str = "", dots: bool = True) -> Image.Image:
    """Curves through points (x, y) in one frame that begins at zero, with a legend; `across` and `upwards` name the
    axes. ValueError if there is no finite point."""
    curves = {label: [point for point in points if all(map(math.isfinite, point))] for label, points in curves.items()}
    everything = [point for points in curves.values() for point in points]
    if not everything:
        raise ValueError("there is nothing to draw: the curves have no finite point")
    sheet = Image.new("RGB", (640, 360), "white")
    pen = ImageDraw.Draw(sheet)
    left, top, right, bottom = 60, 26, sheet.width - 14, sheet.height - 36
    x_ticks, y_ticks = (ticks(max(values)) for values in zip(*everything))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / x_ticks[-1], bottom - (bottom - top) * y / y_ticks[-1]
    for y in y_ticks:
        pen.line((*place(0, y), *place(x_ticks[-1], y)), fill=(225, 225, 225))
        pen.text((left - 8, place(0, y)[1]), f"{y:g}", fill="black", anchor="rm")
    for x in x_ticks:
        pen.text((place(x, 0)[0], bottom + 6), f"{x:g}", fill="black", anchor="ma")
    pen.text(((left + right) / 2, sheet.height - 4), across, fill="black", anchor="ms")
    pen.text((8, 6), upwards, fill="black")
    for number, (label, points) in enumerate(curves.items()):
        _curve(pen, [place(x, y) for x, y in points], COLOURS[number % len(COLOURS)], dots)
        pen.text((right - 8, top + 6 + 16 * number), label, fill=COLOURS[number % len(COLOURS)], anchor="ra")
    return sheet


def histogram(values: Sequence[float], across: str, marks: Mapping[str, tuple[float, float]] = {},
              bins: int = 40) -> Image.Image:
    """How often values (0 or more) fall into equal parts of 0 to the largest. marks: {label: (from, to)}, ranges whose
    values stand out in a colour. ValueError without a finite value."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        raise ValueError("there is nothing to draw: no value is finite")
    sheet = Image.new("RGB", (640, 360), "white")
    pen = ImageDraw.Draw(sheet)
    left, top, right, bottom = 44, 26, sheet.width - 24, sheet.height - 36
    x_ticks = ticks(max(values))
    counts = binned(values, list(marks.values()), x_ticks[-1] / bins, bins)
    y_ticks = ticks(max(map(sum, counts)))
    width, scale = (right - left) / bins, (bottom - top) / y_ticks[-1]
    for y in y_ticks:
        pen.line((left, bottom - y * scale, right, bottom - y * scale), fill=(225, 225, 225))
        pen.text((left - 8, bottom - y * scale), f"{y:g}", fill="black", anchor="rm")
    for x in x_ticks:
        pen.text((left + (right - left) * x / x_ticks[-1], bottom + 6), f"{x:g}", fill="black", anchor="ma")
    for number, bar in enumerate(counts):
        _bar(pen, (left + number * width + 1, left + (number + 1) * width - 1), bottom, [scale * n for n in bar])
    pen.text(((left + right) / 2, sheet.height - 4), f"{across}, {len(values)} pictures", fill="black", anchor="ms")
    for number, label in enumerate(marks):
        pen.text((right - 8, 4 + 16 * number), label, fill=COLOURS[number], anchor="ra")
    return sheet


def binned(values: Sequence[float], ranges: Sequence[tuple[float, float]], width: float, bins: int) -> list[list[int]]:
    """How many values each bin has of each range (of the first that holds it), and of none."""
    counts = [[0] * (len(ranges) + 1) for _ in range(bins)]
    for value in values:
        kind = next((i for i, (low, high) in enumerate(ranges) if low <= value <= high), len(ranges))
        counts[min(bins - 1, int(value / width))][kind] += 1
    return counts


def _bar(pen: Any, sides: tuple[float, float], floor: float, heights: Sequence[float]) -> None:
    """Parts above each other, the last one grey."""
    for kind, height in enumerate(heights):
        if height:
            pen.rectangle((sides[0], floor - height, sides[1], floor),
                          fill=COLOURS[kind if kind < len(heights) - 1 else -1])
            floor -= height


def _curve(pen: Any, line: Points, colour: tuple[int, int, int], dots: bool) -> None:
    if len(line) > 1:
        pen.line(line, fill=colour, width=2)
    for x, y in line if dots or len(line) == 1 else ():
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)


def ticks(most: float, count: int = 6) -> list[float]:
    """Round numbers from 0 to `most` (above 0) or a little more, at most count + 1."""
    rough = (most if most > 0 else 1.0) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * (1 - 1e-9))
    return [step * k for k in range(math.ceil(most / step - 1e-9) + 1)] if most > 0 else [0.0, 1.0]
