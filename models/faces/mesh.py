"""The 468 points of each possible face, read twice and mirrored, and how sure the mesh is of it (docs/faces.md)."""
from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from .networks import MESH_PX, FaceMesh

ROI_SCALE = 1.5
LEFT_CORNER, RIGHT_CORNER = 33, 263  # the outer corners of the eyes
ROWS = 32  # crops in one call of the mesh


@dataclass(frozen=True)
class Reading:
    """N readings of the mesh, on the CPU. points (N, 468, 2) in picture pixels. presence (N, 3): the logits of the
    first, the second and the mirrored pass. first, second (N, 4): the squares read: centre x, y, side, angle."""
    points: Tensor
    presence: Tensor
    first: Tensor
    second: Tensor

    @property
    def quality(self) -> Tensor:
        """(N,) the least of the three logits; below 0 it is no face."""
        return self.presence.amin(1)

    @classmethod
    def of(cls, parts: list[Reading]) -> Reading:
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def rotate(vectors: Tensor, angle: Tensor) -> Tensor:
    """Vectors (N, P, 2) turned clockwise by angles (N,)."""
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y = vectors.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def roi_of_box(boxes: Tensor, points: Tensor) -> Tensor:
    """Squares (N, 4) around boxes (N, 4) of the detector, turned with the eyes, the first two of points (N, 6, 2)."""
    side = ROI_SCALE * (boxes[:, 2:] - boxes[:, :2]).amax(1)
    eyes = points[:, 1] - points[:, 0]
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, side[:, None],
                      torch.atan2(eyes[:, 1], eyes[:, 0])[:, None]], 1)


def roi_of_points(points: Tensor) -> Tensor:
    """Squares (N, 4) around the points (N, 468, 2), turned with the eyes."""
    eyes = points[:, RIGHT_CORNER] - points[:, LEFT_CORNER]
    angle = torch.atan2(eyes[:, 1], eyes[:, 0])
    upright = rotate(points, -angle)
    least, most = upright.amin(1), upright.amax(1)
    centre = rotate(((least + most) / 2)[:, None], angle)[:, 0]
    return torch.cat([centre, ROI_SCALE * (most - least).amax(1, keepdim=True), angle[:, None]], 1)


def project(shares: Tensor, rois: Tensor) -> Tensor:
    """Points (N, P, 2) given as shares -0.5..0.5 of the squares, in the picture."""
    return rois[:, None, :2] + rois[:, 2, None, None] * rotate(shares, rois[:, 3])


def crop(picture: Tensor, roi: Tensor, size: int = MESH_PX) -> Tensor:
    """(3, size, size): what a square (4,) shows of a picture (3, H, W); beyond it, its border goes on.

    What is reduced more than twice is shrunk with antialiasing first.
    """
    height, width = picture.shape[1:]
    reach = roi[2] * math.sqrt(0.5) + 4
    limit = torch.tensor([width, height])
    x0, y0 = torch.minimum((roi[:2] - reach).floor().long().clamp_min(0), limit - 1).tolist()
    x1, y1 = torch.minimum((roi[:2] + reach).ceil().long(), limit).tolist()
    around = picture[:, y0:max(y1, y0 + 1), x0:max(x1, x0 + 1)][None]
    h, w = around.shape[2:]
    shrink = 2 * size / float(roi[2])
    if shrink < 1:
        sides = tuple(max(round(n * shrink), 1) for n in (h, w))
        around = F.interpolate(around, sides, mode="bilinear", antialias=True, align_corners=False)
    steps = (torch.arange(size) + 0.5) / size - 0.5
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    source = project(torch.stack([u, v], -1).reshape(1, -1, 2), roi[None]) - torch.tensor([x0, y0])
    grid = (source / torch.tensor([w, h]) * 2 - 1).reshape(1, size, size, 2).to(picture)
    return F.grid_sample(around, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


@torch.no_grad()
def read(mesh: FaceMesh, picture: Tensor, rois: Tensor) -> Reading:
    """The mesh of each square (N, 4) of a picture (3, H, W) in [-1, 1] on the mesh's device.

    Points of the first reading give the square of the second, which is read plain and mirrored; both are averaged.
    """
    if not len(rois):
        return Reading(torch.zeros(0, 468, 2), torch.zeros(0, 3), rois, rois)
    return Reading.of([_read(mesh, picture, part) for part in rois.split(ROWS)])


def _read(mesh: FaceMesh, picture: Tensor, rois: Tensor) -> Reading:
    points, first = (out.float().cpu() for out in mesh(torch.stack([crop(picture, roi) for roi in rois])))
    second = roi_of_points(project(points[..., :2] / MESH_PX - 0.5, rois))
    crops = torch.stack([crop(picture, roi) for roi in second])
    points, again = (out.float().cpu() for out in mesh(torch.cat([crops, crops.flip(3)])))
    plain, mirrored = points[..., :2].chunk(2)
    mirrored = torch.stack([MESH_PX - mirrored[..., 0], mirrored[..., 1]], -1)[:, mesh.mirror.cpu()]
    points = project((plain + mirrored) / 2 / MESH_PX - 0.5, second)
    return Reading(points, torch.stack([first, *again.chunk(2)], 1), rois, second)
