"""Pictures for training: folders read into one uint8 tensor, and random augmentations of them.

The sets that the small models are trained on fit into memory: an `ImageDataset` on the training device.
"""
from __future__ import annotations

import logging
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, UnidentifiedImageError
from torch import Generator, Tensor

log = logging.getLogger(__name__)
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
LABELS = 10  # numbers that a network is told of an augmentation
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # what is decoded, whatever a file is called
MAX_PIXELS, DRAFT_PIXELS = 64_000_000, 16_000_000
# what PIL raises for damaged, hostile and foreign files
UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, TypeError,
              KeyError, IndexError, OverflowError, ZeroDivisionError, MemoryError, struct.error, zlib.error)


ORIENTATION = 0x0112  # the EXIF tag
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}


# --- folders ----------------------------------------------------------------------------------------------------------
def is_hidden(name: str) -> bool:
    """Files and folders that systems and tools leave beside pictures: dot-files, ._resource forks, archives' own."""
    return name.startswith(".") or name == "__MACOSX"


def all_under(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Files and folders under a folder, hidden ones left out. Links are followed, but not into a folder of `above`."""
    real = folder.resolve()
    if real in above or not folder.is_dir():
        return
    try:
        with os.scandir(folder) as entries:
            found = [(folder / entry.name, is_folder(entry)) for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        log.warning("%s cannot be read and is left out: %s", folder, error)
        return
    for path, may_hold_more in found:
        yield path
        if may_hold_more:
            yield from all_under(path, (*above, real))


def is_folder(entry: os.DirEntry) -> bool:
    """Also of a link to one. False for a link in a circle, or to where one may not look."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def picture_files(folder: Path) -> list[Path]:
    """All files under a folder that are called as pictures are, sorted, linked folders included. Not one of them is
    opened. FileNotFoundError if there is none."""
    folder = Path(folder)
    named = sorted(path for path in all_under(folder) if path.suffix.lower() in SUFFIXES)
    if not named:
        raise FileNotFoundError(f"no picture (png, jpg, webp, bmp) under {folder}: name a folder that holds some")
    return named


def find_pictures(folder: Path) -> list[Path]:
    """All pictures under a folder, sorted; those whose header cannot be read are left out and named in the log.

    FileNotFoundError if there is none.
    """
    named = picture_files(folder)
    found = [path for path in named if is_picture(path)]
    if len(found) < len(named):
        left_out = sorted(set(named) - set(found))
        log.warning("%d of %d pictures under %s cannot be read and are left out: %s", len(left_out), len(named), folder,
                    ", ".join(path.name[:80] for path in left_out[:10]))
    if not found:
        raise FileNotFoundError(f"no picture (png, jpg, webp, bmp) under {folder}: name a folder that holds some")
    return found


def is_picture(path: Path) -> bool:
    """Is it a file with the header of a picture of a size that is read?"""
    try:
        with open_picture(path):
            return True
    except ValueError:
        return False


def called_once(named: Iterable[tuple[str, Path]], what: str, to_do: str) -> dict[str, Path]:
    """{name: file}. ValueError for two files of one name; it says what they are, and what to do."""
    found: dict[str, Path] = {}
    for name, path in named:
        other = found.setdefault(name, path)
        if other != path:
            raise ValueError(f"two {what} are called {path.stem!r}: {other} and {path}. {to_do}")
    return found


def flat_names(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """{name: path} of pictures under a folder: NAME, or FOLDER_NAME for one in a folder of its own. ValueError for two
    of one name."""
    named = {"_".join(path.relative_to(folder).with_suffix("").parts): path for path in paths}
    if len(named) < len(paths):
        raise ValueError(f"two photos under {folder} have the same name but for their ending: rename one")
    return named


def split(paths: Sequence[Path], holdout: int) -> tuple[list[Path], list[Path]]:
    """(training, held out): within each folder, every `holdout`-th picture in name order is held out; 0 for none."""
    trained, held_out, seen = [], [], {}
    for path in paths:
        n = seen[path.parent] = seen.get(path.parent, 0) + 1
        (held_out if holdout and n % holdout == 0 else trained).append(path)
    return trained, held_out


# --- one picture ------------------------------------------------------------------------------------------------------
@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A picture of FORMATS, of which only the header has been read. ValueError with the file's name for another one,
    and for what cannot be read inside the block."""
    if path.exists() and not path.is_file():  # a pipe would wait for ever
        raise ValueError(f"{path} cannot be read as a picture: it is no file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise ValueError(f"{file.width} x {file.height} pixels; make it smaller than {MAX_PIXELS:,}")
                yield file
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as a picture: "
                         f"{str(error)[:200] or 'it takes too much memory'}") from error


def read_picture(path: Path, px: int) -> Tensor:
    """uint8 (3, px, px): centre square, upright, RGB on white, antialiased. ValueError with the file's name."""
    with open_picture(path) as file:
        if file.width * file.height > DRAFT_PIXELS:
            file.draft(None, (4 * px, 4 * px))  # JPEG is decoded at a fraction of its size
        side = min(file.size)
        left, top = (file.width - side) // 2, (file.height - side) // 2
        picture = file if is_plain(file) else eight_bit(file)
        square = picture.resize((px, px), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
        turn = turn_of(file)
        if turn is not None:
            square = square.transpose(turn)
        return rearrange(torch.from_numpy(np.array(on_white(square))), "h w c -> c h w")


def read_whole(path: Path) -> Tensor:
    """uint8 (3, H, W): the whole picture, upright, RGB on white. ValueError with the file's name."""
    with open_picture(path) as file:
        picture = on_white(file if is_plain(file) else eight_bit(file))
        turn = turn_of(file)
        return rearrange(torch.from_numpy(np.array(picture if turn is None else picture.transpose(turn))),
                         "h w c -> c h w")


def turn_of(picture: Image.Image) -> Image.Transpose | None:
    """What makes a picture upright, by its EXIF orientation; None for none, and for EXIF data that cannot be read."""
    try:
        return TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except UNREADABLE:
        return None


def is_plain(picture: Image.Image) -> bool:
    """Can it be resized as it is? Palettes cannot, nor can the few modes that PIL does not resize well."""
    return picture.mode in ("L", "RGB", "RGBA") and "transparency" not in picture.info


def eight_bit(picture: Image.Image) -> Image.Image:
    """In a mode that can be resized. 16-bit grey becomes 8-bit grey (PIL's own conversion cuts it off at 255)."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.array(picture, dtype=np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return picture.convert("RGBA")


def on_white(picture: Image.Image) -> Image.Image:
    """RGB, transparent parts laid on white."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def read_pictures(paths: Iterable[Path], px: int, check_interrupt: Callable[[], None] = lambda: None) -> Tensor:
    """uint8 (N, 3, px, px). Pictures that cannot be read are left out and named in the log; ValueError if none can."""
    return torch.stack([picture for _, picture in read_named(paths, px, check_interrupt)])


def read_named(paths: Iterable[Path], px: int,
               check_interrupt: Callable[[], None] = lambda: None) -> list[tuple[Path, Tensor]]:
    """The pictures of `read_pictures`, (3, px, px) each, with their files."""
    return list(each_named(paths, px, check_interrupt))


def each_named(paths: Iterable[Path], px: int,
               check_interrupt: Callable[[], None] = lambda: None) -> Iterator[tuple[Path, Tensor]]:
    """`read_named`, one after the other."""
    any_read, error = False, None
    for path in paths:
        check_interrupt()
        try:
            picture = read_picture(path, px)
        except ValueError as unreadable:
            error = unreadable
            log.warning("left out: %s", unreadable)
        else:
            any_read = True
            yield path, picture
    if not any_read:
        raise error or ValueError("there is no picture to read: name a folder that holds some")


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def to_bytes(pictures: Tensor) -> Tensor:
    """[-1, 1] -> uint8, on the CPU."""
    return ((pictures.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()


@dataclass(frozen=True)
class ImageDataset:
    """Pictures uint8 (N, 3, px, px), their labels (N,) and how likely each is to be chosen (N,)."""
    pictures: Tensor
    labels: Tensor
    weights: Tensor

    def sample(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """(pictures in [-1, 1], labels) of a random batch."""
        index = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return to_unit(self.pictures[index]), self.labels[index]


def image_dataset(groups: Sequence[tuple[Sequence[Path], float]], px: int, device: torch.device,
                  label: Callable[[Path], int] = lambda path: 0) -> ImageDataset:
    """A data set of several picture lists, each with its share, every picture with its label."""
    kept = [(read_named(paths, px), share) for paths, share in groups if paths and share > 0]
    pictures = torch.stack([picture for found, _ in kept for _, picture in found])
    weights = torch.cat([torch.full((len(found),), share / len(found)) for found, share in kept])
    index = torch.tensor([label(path) for found, _ in kept for path, _ in found])
    log.info("%d pictures of %d px", len(pictures), px)
    return ImageDataset(pictures.to(device), index.to(device), weights.to(device))


@dataclass(frozen=True)
class Augmentations:
    """Ranges of a random augmentation. degrees, scale, shift: of the geometry. colour: share of pictures recoloured."""
    degrees: float = 8.0
    scale: float = 0.12
    shift: float = 0.05
    colour: float = 0.0
    flip: bool = True


@dataclass(frozen=True)
class AugmentationDraws:
    """The random numbers of an augmentation of n pictures, in [-1, 1] where nothing else is said.

    geometry (n, 4): angle, scale and both shifts. mirror (n,): -1 for a mirrored picture, else 1. colour (n, 6):
    contrast, brightness, saturation, the tint of each channel; None without colour. recoloured (n,): whose colour
    changes.
    """
    geometry: Tensor
    mirror: Tensor
    colour: Tensor | None = None
    recoloured: Tensor | None = None

    def of(self, rows: Tensor) -> AugmentationDraws:
        """Those of some of the pictures."""
        kept = (part if part is None else part[rows] for part in (self.geometry, self.mirror, self.colour,
                                                                  self.recoloured))
        return AugmentationDraws(*kept)  # pyright: ignore[reportArgumentType]  (None where None was)

    def labels(self) -> Tensor:
        """(n, LABELS): what a network is told of the augmentation, 0 for what was left as it was. Mirroring is no part
        of it: a mirrored face is a face as any other."""
        if self.colour is None or self.recoloured is None:
            return torch.cat([self.geometry, self.geometry.new_zeros(len(self.geometry), LABELS - 4)], 1)
        return torch.cat([self.geometry, self.colour * self.recoloured[:, None]], 1)


def augmentation_draws(n: int, augmentations: Augmentations, generator: Generator) -> AugmentationDraws:
    """Draws for n pictures, on the generator's device."""
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, device=device, generator=generator) * 2 - 1

    angle, scale = uniform(n), uniform(n)
    mirror = torch.where(uniform(n) > 0, 1.0, -1.0) if augmentations.flip else torch.ones(n, device=device)
    geometry = torch.cat([angle[:, None], scale[:, None], uniform(n, 2)], 1)
    if not augmentations.colour:
        return AugmentationDraws(geometry, mirror)
    colour = torch.cat([uniform(n, 1), uniform(n, 1), uniform(n, 1), uniform(n, 3)], 1)
    return AugmentationDraws(geometry, mirror, colour, (uniform(n) + 1) / 2 < augmentations.colour)


def random_augment(x: Tensor, augmentations: Augmentations, generator: Generator) -> Tensor:
    """Flip, rotate, scale, shift (reflecting at the border) and recolour pictures (B, 3, H, W) in [-1, 1]."""
    return augment(x, augmentations, augmentation_draws(len(x), augmentations, generator))


def augment(x: Tensor, augmentations: Augmentations, draws: AugmentationDraws) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], augmented as the draws say."""
    angle = draws.geometry[:, 0] * augmentations.degrees * torch.pi / 180
    scale = 1 + draws.geometry[:, 1] * augmentations.scale
    cos, sin, shift = angle.cos() * scale, angle.sin() * scale, draws.geometry[:, 2:] * 2 * augmentations.shift
    matrix = torch.stack([torch.stack([cos * draws.mirror, -sin, shift[:, 0]], 1),
                          torch.stack([sin * draws.mirror, cos, shift[:, 1]], 1)], 1)
    x = F.grid_sample(x, F.affine_grid(matrix, list(x.shape), align_corners=False), mode="bilinear",
                      padding_mode="reflection", align_corners=False)
    if draws.colour is None or draws.recoloured is None:
        return x
    return torch.where(draws.recoloured[:, None, None, None], recolour(x, draws.colour), x)


def recolour(x: Tensor, draws: Tensor) -> Tensor:
    """Brightness and contrast +-20 %, saturation +-40 %, each channel +-8 %. draws (B, 6): see AugmentationDraws."""
    contrast, brightness, saturation, tint = draws[:, :, None, None].split([1, 1, 1, 3], 1)
    grey = x.mean(1, keepdim=True)
    changed = (grey + (x - grey) * (1 + 0.4 * saturation)) * (1 + 0.2 * contrast)
    return (changed + 0.2 * brightness + 0.16 * tint).clamp(-1, 1)
