"""Thin-plate splines, and pictures that are bent by them (docs/faces.md).

A thin-plate spline f is the map of the plane that minimises  sum_i |f(c_i) - v_i|^2 / s_i + bending energy  over all
maps, in closed form: with stiffness s_i = 0 it goes through v_i exactly; an affine map has no bending energy, so it is
reproduced exactly with any stiffness. Points are (N, 2), x y, in float64 inside.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

LATTICE = 64  # cells a side, at most, at which a map is computed; between them it is interpolated
FOLDED = 0.1  # a map is folded where it shrinks an area to less than this
BORDER_POINTS = 12  # a side, of the fixed border
STIFFER, LEAST_STIFFER, STIFFEST = 4.0, 1e-6, 1e6  # a folded map is made stiffer by this factor, from here, to here


@dataclass(frozen=True)
class Spline:
    """centres (N, 2); weights (N, 2) of the kernel around each; affine (3, 2): of 1, x and y."""
    centres: Tensor
    weights: Tensor
    affine: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """Where the points (..., 2) go, float64."""
        flat = points.double().reshape(-1, 2)
        parts = [kernel(part, self.centres) @ self.weights + with_one(part) @ self.affine for part in flat.split(8192)]
        return torch.cat(parts).reshape(points.shape)


def kernel(points: Tensor, centres: Tensor) -> Tensor:
    """r^2 log r of the distances (N, M) between points (N, 2) and centres (M, 2)."""
    squared = (points[:, None] - centres[None]).square().sum(-1)
    return torch.special.xlogy(squared, squared) / 2


def with_one(points: Tensor) -> Tensor:
    return torch.cat([points.new_ones(len(points), 1), points], 1)


def fit(centres: Tensor, values: Tensor, stiffness: Tensor | float = 0.0) -> Spline:
    """The spline that takes centres (N, 2) to values (N, 2). stiffness: a number, or one (N,) for each centre, at least
    0; it smooths. ValueError for fewer than three centres, for such in a line, and for two in one place with stiffness
    0."""
    centres, values = centres.double(), values.double()
    count = len(centres)
    if count < 3 or torch.linalg.matrix_rank(with_one(centres - centres.mean(0))) < 3:
        raise ValueError("a thin-plate spline needs three points that are not in a line; give more points")
    system = centres.new_zeros(count + 3, count + 3)
    system[:count, :count] = kernel(centres, centres) + torch.diag(torch.as_tensor(stiffness).double().expand(count))
    system[:count, count:] = with_one(centres)
    system[count:, :count] = with_one(centres).T
    try:
        solution = torch.linalg.solve(system, torch.cat([values, values.new_zeros(3, 2)]))
    except RuntimeError as error:  # LinAlgError is one
        raise ValueError("two points of the thin-plate spline are in one place; leave one of them out") from error
    return Spline(centres, solution[:count], solution[count:])


# --- pictures ---------------------------------------------------------------------------------------------------------
def border(height: int, width: int) -> Tensor:
    """Points (4 x BORDER_POINTS, 2) along the border of a picture, in its pixels."""
    share = torch.arange(BORDER_POINTS) / BORDER_POINTS
    zero, one = torch.zeros_like(share), torch.ones_like(share)
    sides = [torch.stack(side, 1) for side in ((share, zero), (one, share), (1 - share, one), (zero, 1 - share))]
    return torch.cat(sides) * torch.tensor([width, height])


def pixel_centres(rows: int, columns: int) -> Tensor:
    """(rows, columns, 2) in 0..1."""
    y, x = torch.meshgrid((torch.arange(rows).double() + 0.5) / rows, (torch.arange(columns).double() + 0.5) / columns,
                          indexing="ij")
    return torch.stack([x, y], -1)


@dataclass(frozen=True)
class Bend:
    """A map of pictures of size (height, width). spline: from where something is seen to where it is taken from, both
    in shares of the longer side. stiffness: that it was fitted with, more than was asked for where it would have
    folded."""
    spline: Spline
    size: tuple[int, int]
    stiffness: float

    def taken_from(self, points: Tensor) -> Tensor:
        """Where what is seen at points (..., 2) is taken from, in pixels."""
        longer = max(self.size)
        return (self.spline(points / longer) * longer).to(points)

    @cached_property
    def lattice(self) -> tuple[Tensor, Tensor]:
        """LATTICE x LATTICE places (h, w, 2), fewer in a small picture, and where each is taken from, in shares of
        width and height."""
        places = pixel_centres(*(min(LATTICE, side) for side in self.size))
        scale = torch.tensor([self.size[1], self.size[0]], dtype=torch.float64) / max(self.size)
        return places, self.spline(places * scale) / scale

    def grid(self) -> Tensor:
        """For grid_sample (1, height, width, 2), align_corners=False."""
        places, seen = self.lattice
        offset = (seen - places).permute(2, 0, 1)[None]
        if offset.shape[2:] != self.size:
            offset = F.interpolate(offset, self.size, mode="bicubic", align_corners=False)
        return (pixel_centres(*self.size) + offset[0].permute(1, 2, 0))[None] * 2 - 1


def bend(points: Tensor, targets: Tensor, size: tuple[int, int], stiffness: float) -> Bend:
    """The map that brings what is at points (N, 2) of a picture of (height, width) to targets (N, 2), in pixels; the
    picture's border stays. stiffness: of the spline, in units of its longer side; a map that would fold is made stiffer
    until it does not. ValueError for points that are not finite."""
    if not (torch.isfinite(points).all() and torch.isfinite(targets).all()):
        raise ValueError("points of the warp are not finite; read the face again")
    fixed = border(*size)
    centres, values = (torch.cat([part.double().cpu(), fixed.double()]) / max(size) for part in (targets, points))
    soft = torch.cat([torch.ones(len(points)), torch.zeros(len(fixed))]).double()
    made = Bend(fit(centres, values, stiffness * soft), size, stiffness)
    while least_area(made.lattice[1]) < FOLDED and made.stiffness < STIFFEST:
        stiffness = max(made.stiffness, LEAST_STIFFER) * STIFFER
        made = Bend(fit(centres, values, stiffness * soft), size, stiffness)
    return made


def least_area(seen: Tensor) -> float:
    """The least factor by which a map (h, w, 2), in shares of the picture, scales the area of a cell of its lattice;
    below 0 it folds."""
    rows, columns = seen.shape[:2]
    right, down = seen[:-1, 1:] - seen[:-1, :-1], seen[1:, :-1] - seen[:-1, :-1]
    return float((right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0]).min()) * rows * columns


def bent(picture: Tensor, by: Bend, mode: str = "bicubic") -> Tensor:
    """A picture or mask (C, H, W) as `by` bends it, of the same shape, dtype and device, within the picture's least
    and greatest value. Beyond its border, it goes on. ValueError for a picture of another size."""
    if picture.shape[1:] != by.size:
        raise ValueError(f"a warp for pictures of {by.size[1]} x {by.size[0]} px does not fit one of "
                         f"{picture.shape[2]} x {picture.shape[1]} px")
    grid = by.grid().to(picture.device, torch.float32)
    out = F.grid_sample(picture[None].float(), grid, mode=mode, padding_mode="border", align_corners=False)[0]
    return out.clamp(picture.min(), picture.max()).to(picture.dtype)
