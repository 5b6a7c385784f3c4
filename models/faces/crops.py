"""Faces cut out of pictures and put back: which faces, from what, and what has to be said about them (docs/faces.md).

Pictures and faces are counted from 0, faces the largest first.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .align import (
    PasteSettings,
    align,
    coarse_quad,
    face_mask,
    ffhq_quad,
    five_point_quad,
    outside,
    paste_back,
    side_of,
    whole_quad,
)
from .find import SURE, TURNED, Face, FaceSearch

Chosen = Literal["largest", "by index", "all", "nearest point"]
CHOICES: tuple[Chosen, ...] = get_args(Chosen)
SMALL_FACE, FAR_OUTSIDE, SAME_SQUARE, SAME_SHAPE = 32, 0.25, 0.02, 0.02


@dataclass(frozen=True)
class Advice:
    """What to do where no face is found, and where none convinces; of the node."""
    none_found: str = ("Turn on any_direction for rotated pictures, lower the threshold to 0.3 for drawings, or give "
                       "the five points or the square by hand")
    none_sure: str = "Lower the threshold, turn on the fallback, or give the five points or the square by hand"


@dataclass(frozen=True)
class FaceSquare:
    """A square to cut out. quad (4, 2), see align.py. points (468, 2): the face's, if known. origin: what told of it.
    width: of the face in pixels, 0 unknown. turned: how far the face is turned, in radians."""
    quad: Tensor
    origin: str
    points: Tensor | None = None
    width: float = 0.0
    turned: float = 0.0

    @classmethod
    def of(cls, face: Face) -> FaceSquare:
        return cls(face.quad, f"found, quality {face.quality:.1f}", face.points, float(face.box[2] - face.box[0]),
                   face.angle if face.turn or abs(face.angle) > TURNED else 0.0)

    @classmethod
    def of_mesh(cls, points: Tensor) -> FaceSquare:
        """Of points (468 or more, 2) of MediaPipe's mesh in picture pixels, found by someone else."""
        if points.dim() != 2 or points.shape[0] < 468 or points.shape[1] < 2 or not torch.isfinite(points).all():
            raise ValueError(f"a face's landmarks must be 468 points or more, x and y; these are {tuple(points.shape)}")
        points = points[:468, :2].float()
        box = torch.cat([points.amin(0), points.amax(0)])
        return cls(ffhq_quad(points), "landmarks", points, float(box[2] - box[0]))


@dataclass(frozen=True)
class Choice:
    """Which faces of a picture are asked for. index: of "by index". point (2,): x, y in pixels, of "nearest point"."""
    which: Chosen = "largest"
    index: int = 0
    point: Tensor | None = None

    def of(self, squares: Sequence[FaceSquare]) -> list[tuple[int, FaceSquare]]:
        """Those that are asked for among squares, the largest first, with their indices; [] if there is none."""
        rows = list(enumerate(squares))
        if self.which == "nearest point":
            return sorted(rows, key=lambda row: self.distance(row[1]))[:1]
        return rows if self.which == "all" else rows[self.index:self.index + 1] if self.which == "by index" else (
            rows[:1])

    def distance(self, square: FaceSquare) -> float:
        """Of a square's centre from the point. ValueError without a point."""
        if self.point is None:
            raise ValueError("the face nearest to a point is asked for, and there is no point. Give its x and y in "
                             "pixels")
        return float((square.quad.mean(0) - self.point).norm())


@dataclass(frozen=True)
class FaceCrop:
    """A face that was cut out of a picture.

    crop (3, n, n) in [-1, 1]. quad (4, 2): where it lies in the picture, in continuous pixels, see align.py. mask
    (n, n), 0..1: what of the crop is face; ones where its points are not known. picture, index: of the picture in its
    batch, and of the face in the picture. size: height and width of the picture. whole: alignment was off, and the
    crop is the whole picture.
    """
    crop: Tensor = field(repr=False)
    quad: Tensor = field(repr=False)
    mask: Tensor = field(repr=False)
    picture: int
    index: int
    size: tuple[int, int]
    origin: str
    whole: bool = False

    @property
    def matrix(self) -> Tensor:
        """(2, 3): the crop's pixels of the picture's, both continuous: crop = matrix @ (x, y, 1)."""
        n = self.crop.shape[1]
        rows = torch.stack([self.quad[3] - self.quad[0], self.quad[1] - self.quad[0]])
        rows = n * rows / rows.square().sum(1, keepdim=True)
        return torch.cat([rows, -(rows @ self.quad[0])[:, None]], 1)

    def quad_in(self, height: int, width: int) -> Tensor:
        """The quad in the picture at another size. ValueError for another shape."""
        scale = torch.tensor([width / self.size[1], height / self.size[0]])
        if abs(float(scale[0] / scale[1]) - 1) > SAME_SHAPE:
            raise ValueError(f"picture {self.picture} was {self.size[1]} x {self.size[0]} px when its face was cut "
                             f"out; this one of {width} x {height} px has another shape. Connect the same pictures")
        return self.quad * scale


@dataclass(frozen=True)
class FaceCrops:
    """Faces cut out of a batch of `pictures` pictures, in the order of the pictures."""
    crops: tuple[FaceCrop, ...] = field(repr=False)
    pictures: int

    def get_ram_usage(self) -> int:
        """Bytes; ComfyUI's --cache-ram asks for it."""
        return sum(4 * (crop.crop.numel() + crop.mask.numel()) for crop in self.crops)


# --- cutting out ------------------------------------------------------------------------------------------------------
def squares_found(search: FaceSearch, fallback: bool = False) -> list[FaceSquare]:
    """The squares of what was found. fallback: without any, that of the detector's coarse points, if there are."""
    if search.faces or not fallback or search.coarse is None:
        return [FaceSquare.of(face) for face in search.faces]
    return [FaceSquare(coarse_quad(search.coarse), "the detector's coarse points")]


def squares_of_landmarks(faces: Sequence[Tensor]) -> list[FaceSquare]:
    """The squares of faces that someone else found, points (468 or more, 2) each; the largest first, by the box around
    the points, as the search sorts them. ValueError."""
    squares = [FaceSquare.of_mesh(points) for points in faces]
    spans = [points[:468, :2].amax(0) - points[:468, :2].amin(0) for points in faces]
    order = sorted(range(len(squares)), key=lambda k: float(spans[k].prod()), reverse=True)
    return [squares[k] for k in order]


def square_of_five(points: Tensor) -> FaceSquare:
    """The square of five points (5, 2): eyes, nose, corners of the mouth. ValueError."""
    return FaceSquare(five_point_quad(points), "five points")


def cut_out(picture: Tensor, place: int, rows: Sequence[tuple[int, FaceSquare]], size: int,
            pad: bool = True) -> list[FaceCrop]:
    """The crops (3, size, size) of squares with their indices, out of picture number `place` (3, H, W) in [-1, 1]."""
    height, width = picture.shape[1:]
    return [FaceCrop(align(picture, square.quad, size, pad).cpu(), square.quad,
                     mask_of(square, size, picture.device), place, index, (height, width), square.origin)
            for index, square in rows]


def mask_of(square: FaceSquare, size: int, device: torch.device) -> Tensor:
    """(size, size), 0..1: what of the crop is face; ones where its points are not known."""
    if square.points is None:
        return torch.ones(size, size)
    return face_mask(square.points, square.quad, size, device).cpu()


def whole_picture(picture: Tensor, place: int, size: int) -> FaceCrop:
    """Picture number `place` (3, H, W), squashed to (3, size, size), as if it was a crop."""
    height, width = picture.shape[1:]
    return FaceCrop(scaled(picture, size, size).cpu(), whole_quad(height, width), torch.ones(size, size), place, 0,
                    (height, width), "alignment off", whole=True)


def scaled(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture (3, H, W) in [-1, 1] at another size; of its own size it stays as it is."""
    if picture.shape[1:] == (height, width):
        return picture
    return F.interpolate(picture[None], (height, width), mode="bicubic", antialias=True,
                         align_corners=False)[0].clamp(-1, 1)


# --- putting back -----------------------------------------------------------------------------------------------------
def put_back(picture: Tensor, rows: Sequence[tuple[FaceCrop, Tensor, Tensor | None]],
             settings: PasteSettings = PasteSettings(), upscale: float = 1.0) -> Tensor:
    """A picture (3, H, W) in [-1, 1] with results in place of its crops; smaller ones lie on top.

    rows: crop, result (3, n, n), and what of it is pasted, (m, m) 0..1 or None for the whole square. upscale: the
    picture is enlarged by so much first. ValueError for a picture of another shape than the crops'.
    """
    out = scaled(picture, *(max(round(n * upscale), 1) for n in picture.shape[1:]))
    for crop, result, mask in sorted(rows, key=lambda row: side_of(row[0].quad), reverse=True):
        quad = crop.quad_in(*out.shape[1:])
        if crop.whole:
            out = scaled(result.to(out), *out.shape[1:])
        else:
            out = paste_back(out, result, quad, settings, mask, crop.crop)
    return out


# --- what has to be said ----------------------------------------------------------------------------------------------
def why_none(place: int | str, search: FaceSearch, advice: Advice = Advice()) -> str:
    """What to say of a picture, by its number or name, in which no face was found, and what to do."""
    if not search.rejected or search.best_rejected is None:
        return (f"No face found in picture {place}. Faces must be at least about 5 % of the longer side (12 pixels of "
                f"256). {advice.none_found}")
    many = "1 possible face" if search.rejected == 1 else f"{search.rejected} possible faces"
    return (f"Picture {place}: {many}, none convincing (best quality {search.best_rejected:.1f}, "
            f"{SURE:g} is sure). Likely a drawing, a mask, a back of a head or a strong profile. {advice.none_sure}")


def why_not_this(place: int | str, count: int, index: int) -> str:
    """What to say of a picture that has no face of that index."""
    faces = "1 face (number 0)" if count == 1 else f"{count} faces (largest first, 0 to {count - 1})"
    return f"Picture {place} has {faces}; number {index} was asked for"


def why_not_in_frame(place: int | str, index: int) -> str:
    """What to say of a frame of a film in which others than the face of that index are seen."""
    return f"Face {index} of its shot is not seen in picture {place}"


def remarks(square: FaceSquare, size: tuple[int, int], n: int,
            place: int | str, pad: bool = True) -> list[str]:
    """What a user should know of a square in picture number `place` of this height and width, cut out at n px. pad:
    see `align`."""
    found = []
    if 0 < square.width < SMALL_FACE:
        found.append(f"The face is only {square.width:.0f} pixels wide; the aligned picture of {n} pixels will be soft")
    if overhang(square.quad, *size) > FAR_OUTSIDE:
        found.append(f"{100 * outside(square.quad, *size):.0f} % of the aligned picture lies outside the photograph "
                     f"and is filled by {'reflection' if pad else 'its border'}; results near the border are invented")
    if square.turned:
        found.append(f"Picture {place} was read with the face turned by {math.degrees(square.turned):.0f} degrees")
    if float((square.quad - whole_quad(*size)).norm(dim=1).amax()) < SAME_SQUARE * side_of(square.quad):
        found.append(f"Picture {place} seems to be aligned already: the square is the picture itself within 2 %")
    return found


def overhang(quad: Tensor, height: int, width: int) -> float:
    """How far a quad leaves a picture of this size, as a share of its side."""
    beyond = torch.cat([-quad, quad - torch.tensor([width, height])])
    return float(beyond.amax()) / side_of(quad)
