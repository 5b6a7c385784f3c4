"""How well faces are found and aligned: by size and turn in whole pictures, in photos and drawings, and put back.

    python3 tools/launch.py bench.faces --portraits inputs --photos photos --art art --out faces.md

Each folder gives a table. Portraits (a face each) are laid on canvases of 768 px, at several sizes and turns; the truth
is what is read in the portrait itself. A face counts as found if its 468 points are within 0.15 of the distance of the
eyes. --art holds a folder a style. --limit pictures a cell or style are taken, evenly spaced.
"""
from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.faces.align import align, paste_back, side_of
from ..models.faces.find import SURE, Face, FaceSettings, find_faces
from ..models.faces.geometry import enlarged
from ..models.faces.mesh import LEFT_CORNER, RIGHT_CORNER
from ..models.faces.networks import FaceNetworks, load_faces
from ..models.rng import generator
from ..train.data import find_pictures, read_whole, to_unit

CANVAS = 768
HEIGHTS = (1.0, 0.5, 0.25, 0.1, 0.05)  # of the face, forehead to chin, as shares of the canvas
TURNS = (0, 30, 45, 90, 135, 180, 225, 270, 315)  # degrees, clockwise
FOUND = 0.15
SIZES: dict[str, Callable[[float], int]] = {  # of crops, by the side of the face's square
    "256 px": lambda side: 256, "as large as the face's square": lambda side: round(side),
    "twice as large": lambda side: round(2 * side)}
HEAD = ("pictures", "number", "with a face", f"quality {SURE:.0f}", "faces", "median quality")


@dataclass(frozen=True)
class Placed:
    """A portrait on a canvas (3, CANVAS, CANVAS), and where its points (468, 2) and quad (4, 2) are there."""
    picture: Tensor
    points: Tensor
    quad: Tensor


@dataclass(frozen=True)
class Trial:
    """What was found in one canvas. error: of the points, in eye distances; corners: of the quad, in shares of its
    side; both None if the face was not found. false: other faces that were believed."""
    error: float | None
    corners: float | None
    false: int
    seconds: float


def whole(path: Path) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    return to_unit(read_whole(path))


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """`count` of them at most, evenly spaced."""
    return [paths[k * len(paths) // count] for k in range(count)] if len(paths) > count else list(paths)


# --- sizes and turns --------------------------------------------------------------------------------------------------
def ground(seed: int) -> Tensor:
    """A canvas of soft spots."""
    spots = torch.rand(1, 3, 24, 24, generator=generator(seed, "ground")) * 1.6 - 0.8
    return F.interpolate(spots, (CANVAS, CANVAS), mode="bicubic").clamp(-1, 1)[0]


def placed(portrait: Tensor, face: Face, height: float, degrees: float, seed: int) -> Placed:
    """A portrait, laid on a canvas so that its face has this height and turn and lies inside, at a random place."""
    scale = height * CANVAS / float(face.box[3] - face.box[1])
    if scale < 1:
        sides = tuple(max(round(n * scale), 1) for n in portrait.shape[1:])
        small = F.interpolate(portrait[None], sides, mode="bicubic", antialias=True)[0].clamp(-1, 1)
    else:
        small = portrait
    angle = torch.tensor(math.radians(degrees))
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    room = max(0.5 - 0.6 * height, 0.0)
    middle = CANVAS * (0.5 + room * (2 * torch.rand(2, generator=generator(seed, "place")) - 1))
    centre = (face.box[:2] + face.box[2:]) / 2

    def moved(points: Tensor) -> Tensor:
        return scale * (points - centre) @ turn.T + middle
    pixels = torch.arange(CANVAS) + 0.5
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")
    source = ((torch.stack([x, y], -1) - middle) @ turn) / scale + centre
    grid = source / torch.tensor([portrait.shape[2], portrait.shape[1]]) * 2 - 1
    laid = F.grid_sample(small[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
    inside = (grid.abs() <= 1).all(-1)
    return Placed(torch.where(inside, laid, ground(seed)), moved(face.points), moved(face.quad))


def tried(nets: FaceNetworks, case: Placed, settings: FaceSettings) -> Trial:
    began = time.perf_counter()
    faces = find_faces(nets, case.picture, settings)
    seconds = time.perf_counter() - began
    eyes = (case.points[RIGHT_CORNER] - case.points[LEFT_CORNER]).norm()
    errors = [float((face.points - case.points).norm(dim=1).mean() / eyes) for face in faces]
    right = [k for k, error in enumerate(errors) if error < FOUND]
    if not right:
        return Trial(None, None, len(faces), seconds)
    best = min(right, key=lambda k: errors[k])
    corners = float((faces[best].quad - case.quad).norm(dim=1).mean()) / side_of(case.quad)
    return Trial(errors[best], corners, len(faces) - 1, seconds)


def sizes_and_turns(nets: FaceNetworks, folder: Path, limit: int, settings: FaceSettings) -> list[str]:
    portraits = [(picture, faces[0]) for picture in map(whole, find_pictures(folder))
                 if (faces := find_faces(nets, picture, settings))]
    rows, trials, cell = [], [], 0
    for height in HEIGHTS:
        cells = []
        for degrees in TURNS:
            chosen = [portraits[(cell * limit + k) % len(portraits)] for k in range(limit)]
            now = [tried(nets, placed(*one, height, degrees, 100 * cell + k), settings)
                   for k, one in enumerate(chosen)]
            trials += now
            cells.append(cell_text(now))
            cell += 1
        rows.append([f"{100 * height:.0f} %", *cells])
    false = sum(trial.false for trial in trials)
    return [f"{len(portraits)} portraits, {limit} a cell: % found, then errors of points (% of the eye distance) and "
            f"corners of the quad (% of its side). Other faces believed: {false} in {len(trials)} canvases. "
            f"{mean(trial.seconds for trial in trials):.1f} s a canvas.", "",
            *table(["face height", *(f"{turn} degrees" for turn in TURNS)], rows)]


def cell_text(trials: Sequence[Trial]) -> str:
    errors = [trial.error for trial in trials if trial.error is not None]
    corners = [trial.corners for trial in trials if trial.corners is not None]
    share = f"{100 * len(errors) / len(trials):.0f}"
    return f"{share} / {100 * mean(errors):.1f} / {100 * mean(corners):.1f}" if errors else share


# --- pictures as they are ---------------------------------------------------------------------------------------------
def found_in(nets: FaceNetworks, name: str, pictures: Iterable[Tensor], settings: FaceSettings) -> list[str]:
    """A row: pictures, with a face, with one of quality SURE, faces, median quality of the largest."""
    found = [find_faces(nets, enlarged(picture[None])[0], settings) for picture in pictures]
    quality = [faces[0].quality for faces in found if faces]
    return [name, str(len(found)), str(len(quality)), str(sum(one >= SURE for one in quality)),
            str(sum(map(len, found))), f"{median(quality):.0f}" if quality else "-"]


def styles(nets: FaceNetworks, folder: Path, limit: int, settings: FaceSettings) -> list[str]:
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    rows = [found_in(nets, path.name, map(whole, spread(find_pictures(path), limit)), settings) for path in folders]
    return table(HEAD, rows)


def there_and_back(nets: FaceNetworks, paths: Sequence[Path], settings: FaceSettings) -> list[str]:
    """What an unchanged crop changes when it is pasted back, in 255ths: as nodes do, and by resampling alone."""
    found = [(picture, face.quad) for picture in map(whole, paths)
             for face in find_faces(nets, picture, settings)[:1]]
    rows = []
    for what, size_of in SIZES.items():
        kept, plain = [], []
        for picture, quad in found:
            crop = align(picture, quad, size_of(side_of(quad)))
            kept.append(off(paste_back(picture, crop, quad, crop=crop), picture))
            plain.append(off(paste_back(picture, crop, quad), picture))
        rows.append([what, f"{max(float(x.max()) for x in kept):.2f}", f"{mean(float(x.mean()) for x in plain):.2f}",
                     f"{max(float(x.max()) for x in plain):.0f}"])
    return table(["crop", "largest change", "resampling alone: mean", "largest"], rows)


def off(pasted: Tensor, picture: Tensor) -> Tensor:
    """Changes of the values that were pasted, in 255ths."""
    apart = (pasted - picture).abs() * 127.5
    touched = apart > 0
    return apart[touched] if touched.any() else torch.zeros(1)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def report(options: argparse.Namespace) -> list[str]:
    nets = load_faces().to(options.device)
    settings = FaceSettings(any_direction=options.any_direction, settled=not options.once)
    parts: list[tuple[str, Path | None, Callable[[Path], list[str]]]] = [
        ("Sizes and turns", options.portraits, lambda path: sizes_and_turns(nets, path, options.limit, settings)),
        ("Photos", options.photos, lambda path: table(
            HEAD, [found_in(nets, path.name, map(whole, find_pictures(path)), settings)])),
        ("Drawings and paintings", options.art, lambda path: styles(nets, path, options.styles_limit, settings)),
        ("There and back", options.photos, lambda path: there_and_back(
            nets, spread(find_pictures(path), options.styles_limit), settings))]
    return [line for title, path, part in parts if path is not None for line in ("", f"### {title}", "", *part(path))]


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--portraits", type=Path, help="folder of portraits, a face each")
    p.add_argument("--photos", type=Path, help="folder of whole pictures")
    p.add_argument("--art", type=Path, help="folder of folders of drawings")
    p.add_argument("--limit", type=int, default=5, help="portraits a size and turn (%(default)s)")
    p.add_argument("--styles-limit", type=int, default=10, help="pictures a style (%(default)s)")
    p.add_argument("--any-direction", action="store_true", help="always look in all directions, as the nodes' switch")
    p.add_argument("--once", action="store_true", help="do not read every face once more, as the nodes do")
    p.add_argument("--device", default="cpu", help="(%(default)s)")
    p.add_argument("--out", type=Path, help="file of the tables, too")
    options = p.parse_args()
    lines = report(options)
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    return 0
