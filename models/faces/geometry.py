"""How a reference deforms faces: its landmarks against its photo twin's, and pictures that follow (docs/faces.md).

Points are the mesh's (468, 2). A face's own frame has its origin in the points' mean, the eyes level, and as unit the
root mean square distance of the points from their mean, the face's radius.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import warp
from ..checkpoints import store
from .find import SURE, FaceSettings, search_faces
from .mesh import LEFT_CORNER, RIGHT_CORNER, read, roi_of_points
from .networks import WEIGHTS, FaceNetworks

MEAN_FACE = WEIGHTS / "mean_face.safetensors"
READER_PX = 384  # smaller pictures are enlarged to this side: drawn faces are read better so
DRAWN = FaceSettings(threshold=0.3, settled=True)
UPPER_LIP, LOWER_LIP = 13, 14  # the inner lips in the middle
LEAST_UNSURE = 0.25  # of the picture's shorter side, longer side of a face that the mesh is not sure of
READINGS = 4  # of a deformed face
STIFFNESS = 1e-3  # of the warp, in units of the picture's longer side
MAX_STRENGTH = 2.0


# --- similarities -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Similarity:
    """z -> turn z + move of points as complex numbers: turned, scaled and moved, never mirrored."""
    turn: Tensor
    move: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        return as_points(self.turn * as_complex(points) + self.move).to(points.dtype)

    def vectors(self, shift: Tensor) -> Tensor:
        """Differences of points (N, 2): turned and scaled, not moved."""
        return as_points(self.turn * as_complex(shift)).to(shift.dtype)

    @property
    def scale(self) -> float:
        return float(self.turn.abs())


def as_complex(points: Tensor) -> Tensor:
    return torch.view_as_complex(points.double().contiguous())


def as_points(numbers: Tensor) -> Tensor:
    return torch.view_as_real(numbers)


def similarity(source: Tensor, target: Tensor) -> Similarity:
    """The similarity that brings source (N, 2) nearest to target (N, 2), by least squares. ValueError if the source is
    one point."""
    a, b = as_complex(source), as_complex(target)
    from_mean = a - a.mean()
    if not from_mean.abs().max() > 0:
        raise ValueError("the points of the face are all in one place; read the face again")
    turn = (from_mean.conj() * b).sum() / from_mean.abs().square().sum()
    return Similarity(turn, b.mean() - turn * a.mean())


def to_own_frame(points: Tensor) -> Similarity:
    """Brings a face's points (468, 2) into its own frame."""
    numbers = as_complex(points)
    mean = numbers.mean()
    eyes = numbers[RIGHT_CORNER] - numbers[LEFT_CORNER]
    radius = (numbers - mean).abs().square().mean().sqrt()
    if not (eyes.abs() > 0 and radius > 0):
        raise ValueError("the points of the face are all in one place; read the face again")
    turn = eyes.conj() / eyes.abs() / radius
    return Similarity(turn, -turn * mean)


# --- the geometry -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class FaceGeometry:
    """points (468, 2): a face without the deformation, in its own frame. shift (468, 2): where the deformed face has
    them, less that, in the same frame, float32. origin: in words, what it was made of."""
    points: Tensor = field(repr=False)
    shift: Tensor = field(repr=False)
    origin: str = ""

    @property
    def size(self) -> float:
        """Mean length of the shifts, as a share of the face's radius."""
        return float(self.shift.norm(dim=1).mean())

    def targets(self, points: Tensor, strength: float) -> Tensor:
        """Where the points (468, 2) of another face go."""
        return points + strength * similarity(self.points, points).vectors(self.shift).to(points)


def geometry_of(plain: Tensor, deformed: Tensor, origin: str = "") -> FaceGeometry:
    """From the points (468, 2) of a face and of its deformed counterpart, each in its own picture: place, size and turn
    of the head are taken out by the best similarity. ValueError."""
    plain = to_own_frame(plain)(plain)
    return FaceGeometry(plain.float(), (similarity(deformed, plain)(deformed) - plain).float(), origin)


def mirrored(points: Tensor, mirror: Tensor) -> Tensor:
    """Points or shifts (468, 2) in a face's frame, left and right swapped. mirror (468,): the mesh's."""
    return points[mirror.to(points.device)] * points.new_tensor([-1, 1])


def symmetric(geometry: FaceGeometry, mirror: Tensor) -> FaceGeometry:
    """What of a geometry is the same on both sides: without turns of the head and crooked readings."""
    return replace(geometry, shift=(geometry.shift + mirrored(geometry.shift, mirror)) / 2)


def opened(shift: Tensor) -> Tensor:
    """How far shifts (..., 468, 2) part the lips, in the middle."""
    return shift[..., LOWER_LIP, 1] - shift[..., UPPER_LIP, 1]


def without_opening(geometry: FaceGeometry) -> FaceGeometry:
    """A geometry without what opens or closes the mouth: a picture can be bent, but not torn between the lips."""
    return replace(geometry, shift=geometry.shift - opened(geometry.shift) * of_mean_face("opening"))


def mean_face() -> Tensor:
    """The mean of photos' points (468, 2) in their own frames, symmetric."""
    return of_mean_face("points")


def of_mean_face(name: str) -> Tensor:
    return store.tensor_refs(MEAN_FACE)[name].read()


# --- reading ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Landmarks:
    """points (468, 2) in picture pixels; quality: how sure the mesh is of them; square (4,): that they were read in,
    centre x, y, side in pixels, angle."""
    points: Tensor
    quality: float
    square: Tensor

    @property
    def sure(self) -> bool:
        return self.quality >= SURE


def enlarged(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] with a longer side of READER_PX at least."""
    longer = max(pictures.shape[2:])
    if longer >= READER_PX:
        return pictures.clamp(-1, 1)
    sides = tuple(max(round(n * READER_PX / longer), 1) for n in pictures.shape[2:])
    return F.interpolate(pictures, sides, mode="bicubic", align_corners=False).clamp(-1, 1)


@torch.no_grad()
def landmarks(nets: FaceNetworks, picture: Tensor) -> Landmarks | None:
    """Those of the largest face of a picture (3, H, W) in [-1, 1], photo or drawing; None without a face. What the mesh
    is not sure of must be large: drawings have faces in ears and beards."""
    large = enlarged(picture[None])[0]
    least = LEAST_UNSURE * min(large.shape[1:])
    faces = [face for face in search_faces(nets, large, DRAWN).faces
             if face.quality >= SURE or float((face.box[2:] - face.box[:2]).max()) >= least]
    if not faces:
        return None
    scale = max(large.shape[1:]) / max(picture.shape[1:])
    return Landmarks(faces[0].points / scale, faces[0].quality, faces[0].roi / torch.tensor([scale, scale, scale, 1.0]))


@torch.no_grad()
def landmarks_in(nets: FaceNetworks, picture: Tensor, square: Tensor) -> Landmarks:
    """What the mesh reads in a square (4,) of another picture (3, H, W) of this size, whether it is a face or not."""
    large = enlarged(picture[None].to(nets.device))[0]
    scale = max(large.shape[1:]) / max(picture.shape[1:])
    units = torch.tensor([scale, scale, scale, 1.0])
    reading = read(nets.mesh, large, (square * units)[None])
    return Landmarks(reading.points[0] / scale, float(reading.quality[0]), reading.second[0] / units)


@torch.no_grad()
def straightened(nets: FaceNetworks, picture: Tensor, first: Landmarks, plain: Tensor) -> Landmarks:
    """Landmarks of a deformed face, read again. The mesh knows usual faces, and reads less than half of what makes a
    caricature; so the picture (3, H, W) is bent until the face's landmarks lie like a plain face's (468, 2), read, and
    what is found is looked up in the picture. A round in which the mesh is no longer sure, nor as sure as at first,
    ends it."""
    found = first
    for _ in range(READINGS - 1):
        usual = similarity(plain, found.points)(plain).to(found.points)
        back = warp.bend(found.points, usual, (picture.shape[1], picture.shape[2]), STIFFNESS)
        again = landmarks_in(nets, warp.bent(picture, back), roi_of_points(usual[None])[0])
        if again.quality < min(first.quality, SURE):
            break
        points = back.taken_from(again.points)
        found = Landmarks(points, again.quality, roi_of_points(points[None])[0])
    return found


# --- following --------------------------------------------------------------------------------------------------------
def following(picture: Tensor, points: Tensor, geometry: FaceGeometry, strength: float) -> warp.Bend:
    """How a picture (3, H, W) whose face has these points (468, 2), in pixels, is bent to follow a geometry."""
    return warp.bend(points, geometry.targets(points, strength), (picture.shape[1], picture.shape[2]), STIFFNESS)
