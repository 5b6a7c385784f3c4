"""A contact sheet: rows of pictures under column captions."""
from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PAPER, INK = (255, 255, 255), (40, 40, 40)


def fit(picture: Image.Image, size: int) -> Image.Image:
    """The picture scaled to fit a square of `size`, centred on paper; small ones grow by whole factors, unblurred."""
    picture = picture.convert("RGB")
    grow = size // max(picture.size)
    if grow >= 1:
        picture = picture.resize((picture.width * grow, picture.height * grow), Image.Resampling.NEAREST)
    else:
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), PAPER)
    square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return square


def contact_sheet(captions: Sequence[str], rows: Sequence[Sequence[Image.Image | None]], size: int = 256,
                  gap: int = 8) -> Image.Image:
    """One picture: `captions` on top, below them `rows`, each with a picture (or None: left empty) for every caption.

    size: side of a cell in pixels. Raises ValueError where a row's length is not that of the captions.
    """
    if any(len(row) != len(captions) for row in rows):
        raise ValueError(f"every row needs {len(captions)} pictures: one for each of {list(captions)}")
    font = ImageFont.load_default(size=max(11, size // 14))
    head, pitch = font.size + 2 * gap, size + gap
    sheet = Image.new("RGB", (gap + pitch * len(captions), head + pitch * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        draw.text((gap + column * pitch + size / 2, head / 2), caption, INK, font, anchor="mm")
        for line, row in enumerate(rows):
            if row[column] is not None:
                sheet.paste(fit(row[column], size), (gap + column * pitch, head + line * pitch))
    return sheet
