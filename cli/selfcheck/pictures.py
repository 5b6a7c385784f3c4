"""The self-check's attempts at pictures: damage, foreign formats, bombs, links, every mode and orientation."""
from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...train.data import find_pictures, read_picture
from .attempts import FAULT, LOADED, NOT_TRIED, REFUSED, Outcome, chosen, dice

SECONDS = 10.0
PX = 32
TOLERANCE = 3.0  # of 255: two resizings in another order
GOOD = "good.png"
ROWS = {
    "every mode": "grey, RGB, RGBA, palettes with and without a transparent colour, CMYK, 16-bit grey, one bit; PNG, "
                  "JPEG, WebP, BMP; equal to what PIL makes of them",
    "orientation": "EXIF orientations 1 to 8, equal to PIL's exif_transpose",
    "sizes": "1 x 1, single lines, panoramas, a photo of 20 million pixels",
    "cut off": "a file that ends early; it is left out, or read if only its end mark is missing",
    "changed bytes": "one to five random bytes changed",
    "another format": "EPS, SVG, TIFF, GIF, PDF, ICO, PPM, text, zeros or nothing behind a picture's ending",
    "bombs": "pictures that announce billions of pixels, and text or colour profiles that unpack to gigabytes",
    "no file": "pipes, dangling and circular links, folders with a picture's ending, hidden files",
}
MODES = ("L.png", "RGB.png", "RGBA.png", "P.png", "P transparent.png", "1.png", "LA.png", "CMYK.jpg", "16-bit.png",
         "L.jpg", "RGB.jpg", "progressive.jpg", "RGB.webp", "RGBA.webp", "RGB.bmp", "L transparent.png", "P.bmp")
SIZES = ((1, 1), (1, 300), (300, 1), (2, 3), (4000, 20), (20, 4000), (5000, 4000))
BASES = ("RGB.png", "P.png", "RGB.jpg", "progressive.jpg", "RGB.webp", "RGB.bmp", "16-bit.png", "RGBA.png")
FOREIGN = ("eps", "svg", "tiff", "gif", "pdf", "ico", "ppm", "text", "zeros", "nothing", "fli", "safetensors")
BOMBS = ("pixels png", "pixels bmp", "zTXt", "iTXt", "iCCP", "many chunks", "wide idat", "long chunk", "exif loop",
         "webp size")
NO_FILES = ("pipe", "dangling link", "link to itself", "folder", "dot-file", "resource fork", "__MACOSX",
            "hidden folder")
CASE_LIST = [*(("every mode", mode) for mode in MODES), *(("orientation", str(n)) for n in range(9)),
             *(("sizes", f"{w}x{h}") for w, h in SIZES),
             *(("cut off", base) for base in BASES for _ in range(3)),
             *(("changed bytes", base) for base in BASES for _ in range(3)),
             *(("another format", name) for name in FOREIGN), *(("bombs", name) for name in BOMBS),
             *(("no file", name) for name in NO_FILES)]
CASES = len(CASE_LIST)
LEAST = 500  # attempts of a whole check


@dataclass(frozen=True)
class Made:
    """A picture file. right: what it shows, RGB and upright; None if that is not known. must: LOADED, REFUSED or
    "" (either)."""
    path: Path
    right: Image.Image | None = None
    must: str = ""


class NotTried(Exception):
    """This system cannot make such a file."""


def prepare(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def attempt(folder: Path, seed: int, index: int) -> Outcome:
    """Make a folder of this attempt's file and a good one, look for pictures, and read those that are found."""
    row, what = chosen(CASE_LIST, seed, "pictures", index)
    rolls = dice(seed, "pictures", index)
    place = folder / f"attempt-{index}"
    place.mkdir()
    try:
        made = MAKERS[row](place, what, rolls)
        checkered(rolls, (40, 40)).save(place / GOOD)
        found = judged(row, place, made)
    except NotTried as reason:
        return Outcome(row, NOT_TRIED, str(reason))
    finally:
        cleared(place)
    return found if found.kind != FAULT else Outcome(row, FAULT, f"{what}: {found.text}")


def cleared(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.rmdir()


def judged(row: str, place: Path, made: Made) -> Outcome:
    """find_pictures must find the good one; the other is left out, or read to what it shows, or refused by name."""
    try:
        found = find_pictures(place)
        if place / GOOD not in found:
            return Outcome(row, FAULT, "the good picture beside it was not found")
        got = None
        try:
            got = read_picture(made.path, PX)  # also when it was left out: a node may name it
        except ValueError as error:
            if made.path.name[:40] not in str(error) or len(str(error)) > 1000:
                return Outcome(row, FAULT, f"the message does not name the file, or is too long: {str(error)[:300]}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever else comes is what the check looks for
        return Outcome(row, FAULT, f"{type(error).__name__}: {str(error)[:300]}")
    return compared(row, made, got, made.path in found)


def compared(row: str, made: Made, got: Tensor | None, listed: bool) -> Outcome:
    kind = REFUSED if got is None else LOADED
    if made.must == LOADED and (got is None or not listed):
        return Outcome(row, FAULT, "a good picture was refused or left out")
    if made.must == REFUSED and listed and got is not None:
        return Outcome(row, FAULT, "it was read as a picture")
    if got is not None and (got.shape != (3, PX, PX) or got.dtype != torch.uint8):
        return Outcome(row, FAULT, f"the result is {got.dtype} of shape {list(got.shape)}")
    if got is not None and made.right is not None:
        away = (got.float() - expected(made.right)).abs().mean()
        if away > TOLERANCE:
            return Outcome(row, FAULT, f"the result is {away:.1f} of 255 away from the right one")
    return Outcome(row, kind, "" if listed else "left out")


def expected(picture: Image.Image) -> Tensor:
    """The centre square of an upright RGB picture, resized: what read_picture should give."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.resize((PX, PX), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float()


# --- good pictures ----------------------------------------------------------------------------------------------------
def checkered(rolls: random.Random, size: tuple[int, int]) -> Image.Image:
    """Smooth, of a random corner's colours, so that every turn of it is another picture."""
    corners = np.array([rolls.randrange(256) for _ in range(12)], dtype=np.uint8).reshape(2, 2, 3)
    return Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR)


def random_size(rolls: random.Random) -> tuple[int, int]:
    return 2 * rolls.randint(20, 60), 2 * rolls.randint(20, 60)


def saved(place: Path, mode: str, picture: Image.Image, name: str = "attempt") -> Made:
    """A picture in one of MODES and what it then shows."""
    what, _, ending = mode.rpartition(".")
    path = place / f"{name}.{ending}"
    options: dict[str, Any] = {}
    if what == "16-bit":
        grey = np.array(picture.convert("L"))
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
        return Made(path, Image.fromarray(grey).convert("RGB"), LOADED)
    if what == "RGBA" or what == "LA":
        picture = picture.convert(what)
        alpha = Image.linear_gradient("L").resize(picture.size)
        picture.putalpha(alpha)
    elif what == "P transparent":
        picture = picture.quantize(8)
        options = {"transparency": 0}
    elif what == "L transparent":
        picture = picture.convert("L")
        options = {"transparency": picture.getpixel((0, 0))}
    elif what == "progressive":
        options = {"progressive": True}
    elif what == "P":
        picture = picture.quantize(16)
    elif what in ("L", "1", "CMYK"):
        picture = picture.convert(what)
    if ending == "webp":
        options["lossless"] = True
    picture.save(path, **options)
    with Image.open(path) as again:
        shown = again.convert("RGBA")
    return Made(path, Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB"), LOADED)


def every_mode(place: Path, what: str, rolls: random.Random) -> Made:
    return saved(place, what, checkered(rolls, random_size(rolls)))


def orientation(place: Path, what: str, rolls: random.Random) -> Made:
    """0: EXIF data without an orientation."""
    picture, exif = checkered(rolls, random_size(rolls)), Image.Exif()
    path = place / f"turned.{rolls.choice(['jpg', 'png', 'webp'])}"
    exif[0x010E] = "a description"
    if what != "0":
        exif[0x0112] = int(what)
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    picture.save(path, exif=exif, **options)
    with Image.open(path) as again:
        upright = ImageOps.exif_transpose(again).convert("RGB")
    return Made(path, upright, LOADED)


def sizes(place: Path, what: str, rolls: random.Random) -> Made:
    width, height = (int(n) for n in what.split("x"))
    return saved(place, rolls.choice(["RGB.jpg", "RGB.png"]) if width * height < 10 ** 6 else "RGB.jpg",
                 checkered(rolls, (width, height)))


# --- damage -----------------------------------------------------------------------------------------------------------
def cut_off(place: Path, what: str, rolls: random.Random) -> Made:
    whole = saved(place, what, checkered(rolls, random_size(rolls)))
    data = whole.path.read_bytes()
    end = rolls.choice([rolls.randrange(len(data)), rolls.randrange(min(200, len(data))), len(data) - 1])
    whole.path.write_bytes(data[:end])
    return Made(whole.path, whole.right)


def changed_bytes(place: Path, what: str, rolls: random.Random) -> Made:
    path = saved(place, what, checkered(rolls, random_size(rolls))).path
    data = bytearray(path.read_bytes())
    for _ in range(rolls.randint(1, 5)):
        data[rolls.randrange(min(200, len(data)) if rolls.random() < 0.5 else len(data))] = rolls.randrange(256)
    path.write_bytes(data)
    return Made(path)


# --- foreign formats and bombs ----------------------------------------------------------------------------------------
FOREIGN_BYTES = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch x) (w) file\n%%EOF\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='99999' height='99999'><rect/></svg>",
    "pdf": b"%PDF-1.4\n1 0 obj<<>>endobj\n", "text": b"not a picture\n", "zeros": bytes(5000), "nothing": b"",
    "fli": bytes(4) + b"\x11\xaf" + bytes(200), "safetensors": struct.pack("<Q", 2) + b"{}"}


def another_format(place: Path, what: str, rolls: random.Random) -> Made:
    path = place / f"attempt.{rolls.choice(['png', 'jpg', 'JPEG', 'webp', 'bmp'])}"
    if what in FOREIGN_BYTES:
        path.write_bytes(FOREIGN_BYTES[what])
    else:
        checkered(rolls, (32, 32)).save(path, format=what.upper())
    return Made(path, must=REFUSED)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, extra: bytes = b"", pixels: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bombs(place: Path, what: str, rolls: random.Random) -> Made:
    path, grey = place / "bomb.png", zlib.compress(bytes(33 * 32))
    huge = zlib.compress(bytes(100_000_000))
    if what == "pixels png":
        side = rolls.choice([60_000, 2 ** 31 - 1, 9000])
        path.write_bytes(png(side, side, pixels=huge))
    elif what == "pixels bmp":
        path = place / "bomb.bmp"
        path.write_bytes(b"BM" + struct.pack("<IIIIiiHHIIiiII", 58, 0, 54, 40, rolls.choice([60_000, 2 ** 31 - 1]),
                                             60_000, 1, 24, 0, 0, 0, 0, 0, 0))
    elif what == "webp size":
        path = place / "bomb.webp"
        path.write_bytes(b"RIFF" + struct.pack("<I", 4_000_000_000) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02"
                         + b"\0" * 3 + b"\xff" * 6)
    elif what == "exif loop":  # a directory whose next one is itself
        exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
        path.write_bytes(png(32, 32, chunk(b"eXIf", exif), grey))
    elif what == "wide idat":
        path.write_bytes(png(32, 32, pixels=huge))
    elif what == "long chunk":
        path.write_bytes(png(32, 32)[:33] + struct.pack(">I", 2 ** 31 - 1) + b"IDAT" + grey)
    elif what == "many chunks":
        path.write_bytes(png(32, 32, chunk(b"tEXt", b"a\0b") * 100_000, grey))
    else:
        data = {"zTXt": b"a\0\0", "iTXt": b"a\0\1\0\0\0", "iCCP": b"a\0\0"}[what] + huge
        path.write_bytes(png(32, 32, chunk(what.encode(), data) * (30 if what != "iCCP" else 1), grey))
    return Made(path)


# --- what is no file --------------------------------------------------------------------------------------------------
def no_file(place: Path, what: str, rolls: random.Random) -> Made:
    path = place / "attempt.png"
    if what == "pipe":
        if not hasattr(os, "mkfifo"):
            raise NotTried("no pipes with names here")
        os.mkfifo(path)
    elif what in ("dangling link", "link to itself"):
        try:
            path.symlink_to(place / ("missing.png" if what == "dangling link" else path.name))
        except OSError as error:
            raise NotTried(f"no links here: {error}") from error
    elif what == "folder":
        path.mkdir()
    else:
        hidden = {"dot-file": ".attempt.png", "resource fork": "._attempt.png", "__MACOSX": "__MACOSX/attempt.png",
                  "hidden folder": ".trash/attempt.png"}[what]
        path = place / hidden
        path.parent.mkdir(exist_ok=True)
        checkered(rolls, (32, 32)).save(path)
    return Made(path, must=REFUSED)


MAKERS: dict[str, Callable[[Path, str, random.Random], Made]] = {
    "every mode": every_mode, "orientation": orientation, "sizes": sizes, "cut off": cut_off,
    "changed bytes": changed_bytes, "another format": another_format, "bombs": bombs, "no file": no_file}
