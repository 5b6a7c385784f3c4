"""Faces of a film: the same face followed from frame to frame, its square smoothed over time (docs/faces.md, Films).

Frames are counted from 0.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .align import side_of, square_quad
from .crops import Choice, FaceSquare
from .find import SURE, Face, FaceSearch, FaceSettings, by_size, distinct, prepared, same_face, search_faces
from .mesh import Reading, read, roi_of_points
from .networks import FaceNetworks

STEP, FARTHEST = 0.5, 2.0  # that a face moves in a frame, and at all between two sights; of its square's side
GROWTH = 2.0  # that its square grows or shrinks between two sights
HELD = 30  # frames in which a face may be out of sight
SEARCH_EVERY = 10  # frames, while the followed ones are in sight: others may have come that are larger
REACH = 4.0  # of the filter, in its sigmas
Track = Mapping[int, FaceSquare]
Frame = list[tuple[int, FaceSquare]]  # the squares to cut out, with the numbers of their faces


# --- following --------------------------------------------------------------------------------------------------------
@dataclass
class Follower:
    """follower(picture (3, H, W) in [-1, 1]) -> what was found in the next frame of a film. Faces that are followed are
    read where they were, without the detector. It searches where one is lost, at `cuts` (the frames that begin another
    shot) and every SEARCH_EVERY frames; pick: the one of several that is followed from there on, too, or None."""
    nets: FaceNetworks
    settings: FaceSettings
    pick: Callable[[Sequence[Face]], Face | None]
    cuts: Collection[int] = ()
    faces: list[Face] = field(default_factory=list)
    time: int = 0
    searched: int = 0

    def __call__(self, picture: Tensor) -> FaceSearch:
        picture, before = prepared(picture, self.nets.device), [] if self.time in self.cuts else self.faces
        near = [read_near(self.nets, picture, face) for face in before]
        self.faces = distinct([face for face in near if face is not None])
        found = FaceSearch(by_size(self.faces))
        if not self.faces or None in near or self.time - self.searched >= SEARCH_EVERY:
            found, self.searched = self.search(picture), self.time
        self.time += 1
        return found

    def search(self, picture: Tensor) -> FaceSearch:
        """The followed faces as they were read, with the picked one; all faces if nobody is followed."""
        search = search_faces(self.nets, picture, self.settings)
        new = [face for face in search.faces if not any(same_face(face, known) for known in self.faces)]
        found = by_size([*self.faces, *new])
        picked = self.pick([face for face in found if face.quality >= SURE])
        self.faces += [face for face in new if face is picked]
        return replace(search, faces=by_size(self.faces) or found)


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


def tracks(frames: Sequence[Sequence[FaceSquare]], shot: range) -> list[dict[int, FaceSquare]]:
    """The squares found in the frames of a shot as faces over time, by frame; the nearest squares are the same face."""
    found: list[dict[int, FaceSquare]] = []
    for time in shot:
        squares, pairs = frames[time], []
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
def steadied(frames: Sequence[Sequence[FaceSquare]], choice: Choice, sigma: float,
             cuts: Collection[int] = ()) -> list[Frame]:
    """The squares to cut out of each frame. sigma: of the filter over time, in frames; 0 for none. cuts: the frames
    that begin another shot.

    A face that is out of sight for up to HELD frames is where it would be between them; one that was asked for, before
    them and after them, too. Nobody is followed, and nothing filled in or smoothed, across a cut.
    """
    film: list[Frame] = [[] for _ in frames]
    every = list(shots(len(frames), cuts))
    if choice.which == "all":
        rows = all_faces([track for shot in every for track in tracks(frames, shot)], choice)
    else:
        rows = [row for shot in every for row in one_face(tracks(frames, shot), choice, shot)]
    for number, track in rows:
        for time, square in smoothed(filled(track), sigma).items():
            film[time].append((number, square))
    return film if choice.which == "all" else [frame for shot in every for frame in held(film, shot)]


def shots(count: int, cuts: Collection[int]) -> Iterator[range]:
    """The frames of each shot of a film of `count` frames."""
    starts = sorted({0, *cuts})
    return (range(first, last) for first, last in zip(starts, [*starts[1:], count]))


def all_faces(found: Sequence[Track], choice: Choice) -> list[tuple[int, Track]]:
    """The faces of a film with their numbers, the largest and longest first."""
    return list(enumerate(sorted(found, key=lambda track: rank(track, choice))))


def one_face(found: Sequence[Track], choice: Choice, shot: range) -> list[tuple[int, Track]]:
    """The one of a shot's faces that is asked for, with its number. Unless it is asked for by index, others take its
    place before and after it."""
    ranked = sorted(found, key=lambda track: rank(track, choice))
    if choice.which == "by index":
        return [(choice.index, track) for track in ranked[choice.index:choice.index + 1]]
    return [(0, track) for track in cover(ranked, shot)]


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


def held(film: Sequence[Frame], shot: range) -> list[Frame]:
    """The frames of a shot; those without a square take that of the nearest one within HELD frames."""
    times = [time for time in shot if film[time]]
    out = [list(film[time]) for time in shot]
    for time, squares in zip(shot, out):
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
