"""Draws how trainings converged, from the measurements that MMFS files carry: their distance to the art over the steps.

    python3 tools/launch.py tools.curves OUT.png "two stages=s2.safetensors" "from scratch=scratch.safetensors"
"""
from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from ..models.checkpoints import store

COLOURS = ((31, 95, 191), (191, 63, 31), (40, 140, 70), (120, 80, 160))
SIZE, MARGIN = (640, 360), (52, 14, 14, 34)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    out, curves = Path(arguments[0]), dict(argument.split("=", 1) for argument in arguments[1:])
    draw({label: measured(Path(path)) for label, path in curves.items()}).save(out)
    return 0


def measured(path: Path) -> list[tuple[float, float]]:
    """(step, distance to the art) pairs of a Stage II file."""
    meta = store.peek(path).meta or {}
    return list(zip(meta.get("measured_at", []), meta.get("art_distance", [])))


def draw(curves: dict[str, list[tuple[float, float]]]) -> Image.Image:
    """All curves in one frame that begins at zero, with a legend."""
    sheet = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(sheet)
    left, top, right, bottom = MARGIN[0], MARGIN[1], SIZE[0] - MARGIN[2], SIZE[1] - MARGIN[3]
    widest = max(x for points in curves.values() for x, _ in points)
    highest = 20 * (1 + max(y for points in curves.values() for _, y in points) // 20)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / widest, bottom - (bottom - top) * y / highest

    for k in range(int(highest) // 20 + 1):
        y = place(0, 20 * k)[1]
        pen.line((left, y, right, y), fill=(225, 225, 225))
        pen.text((left - 8, y), str(20 * k), fill="black", anchor="rm")
    for k in range(int(widest) // 500 + 1):
        pen.text((place(500 * k, 0)[0], bottom + 6), str(500 * k), fill="black", anchor="ma")
    pen.text(((left + right) / 2, SIZE[1] - 4), "steps of Stage II", fill="black", anchor="ms")
    for number, (label, points) in enumerate(curves.items()):
        colour, line = COLOURS[number % len(COLOURS)], [place(x, y) for x, y in points]
        pen.line(line, fill=colour, width=3)
        for x, y in line:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        pen.text((right - 8, top + 8 + 16 * number), label, fill=colour, anchor="ra")
    return sheet


if __name__ == "__main__":
    raise SystemExit(main())
