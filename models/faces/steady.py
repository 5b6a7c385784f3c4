"""Faces of a film: the same face followed from frame to frame, its square smoothed over time (docs/faces.md, Films).

Frames are counted from 0.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .align import side_of, square_quad
from .crops import Choice, FaceSquare
from .find import SURE, Face, FaceSearch, FaceSettings, prepared, search_faces
from .mesh import Reading, read, roi_of_points
from .networks import FaceNetworks

STEP, FARTHEST = 0.5, 2.0  # that a face moves in a frame, and at all between two sights; of its square's side
GROWTH = 2.0  # that its square grows or shrinks between two sights
HELD = 30  # frames in which a face may be out of sight
REACH = 4.0  # of the filter, in its sigmas
Track = Mapping[int, FaceSquare]
Frame = list[tuple[int, FaceSquare]]  # the squares to cut out, with the numbers of their faces


# --- following --------------------------------------------------------------------------------------------------------
@dataclass
class Follower:
    """follower(picture (3, H, W) in [-1, 1]) -> what was found in the next frame of a film. A face that is followed is
    read where it was, without the detector; it is searched where there is none. pick: the one of several, or None."""
    nets: FaceNetworks
    settings: FaceSettings
    pick: Callable[[Sequence[Face]], Face | None]
    face: Face | None = None

    def __call__(self, picture: Tensor) -> FaceSearch:
        picture = prepared(picture, self.nets.device)
        self.face = None if self.face is None else read_near(self.nets, picture, self.face)
        if self.face is not None:
            return FaceSearch([self.face])
        search = search_faces(self.nets, picture, self.settings)
        self.face = self.pick([face for face in search.faces if face.quality >= SURE])
        return search


def read_near(nets: FaceNetworks, picture: Tensor, face: Face) -> Face | None:
    """A face of the frame before, read twice in the square of its points; None if it is not surely there."""
    reading: Reading | None = None
    points = face.points
    for _ in range(2):
        reading = read(nets.mesh, picture, roi_of_points(points[None]))
        points = reading.points[0]
    assert reading is not None
    found = replace(face, points=points, presence=reading.presence[0], roi=reading.second[0])
    return found if found.quality >= SURE and apart(found.quad, face.quad) < STEP else None


def apart(one: Tensor, other: Tensor) -> float:
    """Distance of two quads' centres, as a share of the smaller side; infinite if one is GROWTH times as large."""
    sides = sorted([side_of(one), side_of(other)])
    if not sides[0] * GROWTH > sides[1]:
        return float("inf")
    return float((one.mean(0) - other.mean(0)).norm()) / sides[0]


def tracks(frames: Sequence[Sequence[FaceSquare]]) -> list[dict[int, FaceSquare]]:
    """The squares found in each frame as faces over time, by frame; the nearest squares are the same face."""
    found: list[dict[int, FaceSquare]] = []
    for time, squares in enumerate(frames):
        pairs = []
        for track in found:
            last = max(track)
            limit = min(STEP * (time - last), FARTHEST) if time - last <= HELD else 0.0
            pairs += [(distance, track, k) for k, square in enumerate(squares)
                      if (distance := apart(square.quad, track[last].quad)) < limit]
        taken: set[int] = set()
        for _, track, k in sorted(pairs, key=lambda pair: pair[0]):
            if k not in taken and time not in track:
                track[time] = squares[k]
                taken.add(k)
        found += [{time: square} for k, square in enumerate(squares) if k not in taken]
    return found


# --- what is cut out --------------------------------------------------------------------------------------------------
def steadied(frames: Sequence[Sequence[FaceSquare]], choice: Choice, sigma: float) -> list[Frame]:
    """The squares to cut out of each frame. sigma: of the filter over time, in frames; 0 for none.

    A face that is out of sight for up to HELD frames is where it would be between them, before them and after them.
    With one face asked for, another one takes its place where it is gone (a cut of the film).
    """
    ranked = sorted(tracks(frames), key=lambda track: rank(track, choice))
    film: list[Frame] = [[] for _ in frames]
    if choice.which == "all":
        rows = list(enumerate(ranked))
    elif choice.which == "by index":
        rows = [(choice.index, track) for track in ranked[choice.index:choice.index + 1]]
    else:
        rows = [(0, track) for track in cover(ranked, range(len(frames)))]
    for number, track in rows:
        for time, square in smoothed(filled(track), sigma).items():
            film[time].append((number, square))
    return film if choice.which == "all" else held(film)


def rank(track: Track, choice: Choice) -> tuple[float, float]:
    """Less is better: large and long; or early, and near the point then."""
    if choice.which == "nearest point":
        return min(track), choice.distance(track[min(track)])
    return -sum(side_of(square.quad) for square in track.values()), 0.0


def cover(ranked: Sequence[Track], times: range) -> list[dict[int, FaceSquare]]:
    """The best face within `times`, and the best others before and after it."""
    for k, track in enumerate(ranked):
        inside = {time: square for time, square in track.items() if time in times}
        if inside:
            before, after = range(times.start, min(inside)), range(max(inside) + 1, times.stop)
            rest = [*ranked[:k], *ranked[k + 1:]]
            return cover(rest, before) + [inside] + cover(rest, after)
    return []


def filled(track: Track) -> dict[int, FaceSquare]:
    """A track with squares in between where it has none."""
    times, out = sorted(track), {}
    for first, last in zip(times, times[1:]):
        out[first] = track[first]
        for time in range(first + 1, last):
            share = (time - first) / (last - first)
            out[time] = blended([track[first], track[last]], torch.tensor([1 - share, share]),
                                f"between frames {first} and {last}")
    out[times[-1]] = track[times[-1]]
    return out


def held(film: Sequence[Frame]) -> list[Frame]:
    """Frames without a square take that of the nearest one within HELD frames."""
    times = [time for time, squares in enumerate(film) if squares]
    out = [list(squares) for squares in film]
    for time, squares in enumerate(out):
        near = min(times, key=lambda other: abs(other - time), default=None)
        if not squares and near is not None and abs(near - time) <= HELD:
            squares += [(number, replace(square, origin=f"as in frame {near}")) for number, square in film[near]]
    return out


# --- the filter -------------------------------------------------------------------------------------------------------
def smoothed(track: Track, sigma: float) -> dict[int, FaceSquare]:
    """Every square fitted to its neighbours by a parabola in time, with Gaussian weights: no delay, and uniform or
    uniformly accelerated motion stays what it is, at both ends, too. track: without holes."""
    if sigma <= 0:
        return dict(track)
    reach, out = round(REACH * sigma), {}
    for time in track:
        near = [other for other in range(time - reach, time + reach + 1) if other in track]
        weights = fit_weights(torch.tensor(near, dtype=torch.float64) - time, sigma)
        out[time] = blended([track[other] for other in near], weights, track[time].origin, near.index(time))
    return out


def fit_weights(offsets: Tensor, sigma: float) -> Tensor:
    """Of values at times (K,), relative to the one that is asked for: what each counts in the parabola's value there
    (with two values a straight line's)."""
    t = offsets / sigma
    powers = torch.stack([t ** k for k in range(min(3, len(t)))], 1)
    weighted = powers * torch.exp(-t.square() / 2)[:, None]
    return torch.linalg.solve(powers.T @ weighted, weighted.T)[0]


def blended(squares: Sequence[FaceSquare], weights: Tensor, origin: str, own: int = 0) -> FaceSquare:
    """The weighted mean of squares, and of their points if all have some; what else there is, is that of `own`."""
    weights = weights.float()
    quads = torch.stack([square.quad for square in squares])
    centre = torch.einsum("k,kd->d", weights, quads.mean(1))
    half = torch.einsum("k,kd->d", weights, (quads[:, 3] - quads[:, 0]) / 2)
    points = [square.points for square in squares if square.points is not None]
    mean = torch.einsum("k,kpd->pd", weights, torch.stack(points)) if len(points) == len(squares) else None
    return replace(squares[own], quad=square_quad(centre, half), points=mean, origin=origin)
