"""A contact sheet: rows of pictures under column captions."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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


def rows_of(columns: Iterable[Sequence[Image.Image]]) -> list[list[Image.Image | None]]:
    """Columns as rows. A single picture stands in every row; missing ones leave their cell empty."""
    columns = list(columns)

    def cell(column: Sequence[Image.Image], line: int) -> Image.Image | None:
        if len(column) == 1:
            return column[0]
        return column[line] if line < len(column) else None

    return [[cell(column, line) for column in columns] for line in range(max(map(len, columns)))]


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


def stacked(sheets: Mapping[str, Image.Image], gap: int = 8) -> Image.Image:
    """One picture of several, each below its heading."""
    font = ImageFont.load_default(size=20)
    head = font.size + 2 * gap
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets.values()),
                              sum(head + sheet.height for sheet in sheets.values())), PAPER)
    draw, top = ImageDraw.Draw(whole), 0
    for heading, sheet in sheets.items():
        draw.text((gap, top + head / 2), heading, INK, font, anchor="lm")
        whole.paste(sheet, (0, top + head))
        top += head + sheet.height
    return whole
