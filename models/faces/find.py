"""Faces of a whole picture: which passes are run, which candidates are believed, and in what order (docs/faces.md)."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .align import ffhq_quad
from .detect import SAME_FACE_IOU, Candidates, Pass, area, detect, intersection, iou, suppress
from .mesh import Reading, read, roi_of_box, roi_of_points
from .networks import FaceNetworks

SURE = 15.0  # the least quality of a face whose direction is known, and of one that was read turned
TURNED = math.radians(50)
PART_OF_FACE = 0.7
LARGE_SIZES, SMALL_SIZES = (256, 512), (64, 96, 128, 192)
DRAWN_THRESHOLD = 0.3


@dataclass(frozen=True)
class FaceSettings:
    """threshold: least score of the detector, 0..1. any_direction: always look for faces on their side and head.
    settled: read every face once more, in the square of its own points; what is aligned should be (docs/faces.md)."""
    threshold: float = 0.5
    any_direction: bool = False
    settled: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1; this is {self.threshold:g}")

    def first_stage(self) -> list[Pass]:
        turns = range(4) if self.any_direction else (0,)
        return [Pass(size, turn, self.threshold) for size in LARGE_SIZES for turn in turns]

    def second_stage(self) -> list[Pass]:
        """For pictures in which the first finds no face that it is sure of: turned ones, and drawn ones."""
        turned = [Pass(size, turn, self.threshold) for size in LARGE_SIZES for turn in (1, 2, 3)]
        small = [Pass(size, 0, min(self.threshold, DRAWN_THRESHOLD)) for size in SMALL_SIZES]
        return small if self.any_direction else turned + small


@dataclass(frozen=True)
class Face:
    """A face. points (468, 2) in picture pixels, continuous. presence (3,): logits of the mesh's three readings.

    roi (4,): the square that was read last: centre x, y, side, angle in radians, clockwise. score, size, turn: of the
    detector's pass that found it.
    """
    points: Tensor
    presence: Tensor
    first_roi: Tensor
    roi: Tensor
    score: float
    size: int
    turn: int

    @property
    def quality(self) -> float:
        """How sure the mesh is: above 0; 19 and more for photographs, 3 to 31 for drawings."""
        return float(self.presence.min())

    @property
    def angle(self) -> float:
        """How far the face is turned, in radians, clockwise."""
        return float(self.roi[3])

    @cached_property
    def box(self) -> Tensor:
        """The bounding box (4,) of the points: x0, y0, x1, y1."""
        return torch.cat([self.points.amin(0), self.points.amax(0)])

    @cached_property
    def quad(self) -> Tensor:
        """FFHQ's square (4, 2) around the face: top left, bottom left, bottom right, top right."""
        return ffhq_quad(self.points)


@dataclass(frozen=True)
class FaceSearch:
    """What was found in a picture. faces: the largest first. rejected: possible faces that are not believed.
    best_rejected: the best quality among them, None without any. coarse (6, 2): the detector's points of the one that
    it is surest of, upright if there is such a one."""
    faces: list[Face]
    rejected: int = 0
    best_rejected: float | None = None
    coarse: Tensor | None = None


def prepared(picture: Tensor, device: torch.device) -> Tensor:
    """A picture (3, H, W), uint8 or in [-1, 1], as float32 in [-1, 1] on `device`. ValueError for other shapes."""
    if picture.dim() != 3 or len(picture) != 3 or not picture.numel():
        raise ValueError(f"a picture must be (3, H, W) and not empty; this is {tuple(picture.shape)}")
    picture = picture.to(device)
    return picture.float() / 127.5 - 1 if picture.dtype == torch.uint8 else picture.float().clamp(-1, 1)


def find_faces(nets: FaceNetworks, picture: Tensor, settings: FaceSettings = FaceSettings()) -> list[Face]:
    """The faces of a picture (3, H, W), uint8 or in [-1, 1], the largest first; [] if there is none."""
    return search_faces(nets, picture, settings).faces


@torch.no_grad()
def search_faces(nets: FaceNetworks, picture: Tensor, settings: FaceSettings = FaceSettings()) -> FaceSearch:
    """As `find_faces`, with what was rejected. ValueError for an empty picture and for other than three channels."""
    picture = prepared(picture, nets.device)
    candidates, reading = look(nets, picture, settings.first_stage())
    faces = believed(candidates, reading)
    if max((face.quality for face in faces), default=0.0) < SURE:
        more, more_read = look(nets, picture, settings.second_stage())
        candidates, reading = Candidates.of([candidates, more]), Reading.of([reading, more_read])
        faces = believed(candidates, reading)
    faces = distinct(faces)
    if settings.settled:
        faces = read_again(nets, picture, faces)
    return FaceSearch(by_size(faces), *unbelieved(candidates, reading))


def by_size(faces: Sequence[Face]) -> list[Face]:
    """The largest first."""
    return sorted(faces, key=lambda face: float(area(face.box)), reverse=True)


def unbelieved(candidates: Candidates, reading: Reading) -> tuple[int, float | None, Tensor | None]:
    """Of what is not believed: how many possible faces, the best quality, the points of the surest (FaceSearch)."""
    left = (~is_believed(reading)).nonzero()[:, 0]
    if not len(left):
        return 0, None, None
    rows = torch.cat([candidates.boxes, candidates.points.flatten(1)], 1)
    places, _ = suppress(candidates.scores[left], rows[left])
    upright = left[reading.first[left, 3].abs() <= TURNED]
    among = upright if len(upright) else left
    surest = among[candidates.scores[among].argmax()]
    return len(places), float(reading.quality[left].max()), candidates.points[surest]


def look(nets: FaceNetworks, picture: Tensor, passes: Sequence[Pass]) -> tuple[Candidates, Reading]:
    """The candidates of all passes over a prepared picture, and their meshes."""
    candidates = Candidates.of([detect(nets.detector, picture, one) for one in passes])
    return candidates, read(nets.mesh, picture, roi_of_box(candidates.boxes, candidates.points))


def believed(candidates: Candidates, reading: Reading) -> list[Face]:
    """Those that the mesh takes for a face: every logit at least 0; SURE if it was read turned by more than TURNED."""
    return [Face(reading.points[k], reading.presence[k], reading.first[k], reading.second[k],
                 float(candidates.scores[k]), int(candidates.sizes[k]), int(candidates.turns[k]))
            for k in is_believed(reading).nonzero()[:, 0].tolist()]


def is_believed(reading: Reading) -> Tensor:
    """(N,) bool."""
    turned = reading.second[:, 3].abs() > TURNED
    return (reading.quality >= 0) & (~turned | (reading.quality >= SURE))


def read_again(nets: FaceNetworks, picture: Tensor, faces: Sequence[Face]) -> list[Face]:
    """Faces of a prepared picture, each read in the square of its points. Those that are not believed then stay as
    they were."""
    if not faces:
        return []
    reading = read(nets.mesh, picture, roi_of_points(torch.stack([face.points for face in faces])))
    return [replace(face, points=reading.points[k], presence=reading.presence[k], roi=reading.second[k])
            if reading.quality[k] >= 0 else face for k, face in enumerate(faces)]


def distinct(faces: Sequence[Face]) -> list[Face]:
    """One reading a face, the best: without those whose box overlaps a better one's, or lies mostly inside it."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: face.quality, reverse=True):
        if not any(same_face(face, other) for other in kept):
            kept.append(face)
    return kept


def same_face(a: Face, b: Face) -> bool:
    inside = float(intersection(a.box, b.box[None]))
    return float(iou(a.box, b.box[None])) > SAME_FACE_IOU or inside > PART_OF_FACE * float(min(area(a.box),
                                                                                              area(b.box)))
