"""What stands in a scene, and where rays meet it: convex solids and ellipsoids; the noise that is on everything."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Colour = tuple[float, float, float]
Place = tuple[Array, float]  # a thing's centre, and its angle about y
Paint = Callable[[Array, Array], Array]  # points (N, 3) in the solid's own frame, and their faces (N,) -> albedo (N, 3)
FAR, NEAR = 1e6, 1e-3
LATTICE = 64  # cells of the noise, which repeats after them


def array(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


class Noise:
    """Smooth noise of two dimensions, in [0, 1], that repeats after LATTICE."""

    def __init__(self, numbers: np.random.Generator) -> None:
        self.values = numbers.random((LATTICE, LATTICE), dtype=np.float32)

    def __call__(self, u: Array, v: Array, octaves: int = 1) -> Array:
        total, weight = np.zeros(np.broadcast(u, v).shape, np.float32), 0.0
        for k in range(octaves):
            total += self._at(u * 2 ** k + 7.3 * k, v * 2 ** k + 3.1 * k) * 0.5 ** k
            weight += 0.5 ** k
        return total / np.float32(weight)

    def _at(self, u: Array, v: Array) -> Array:
        column, row = np.floor(u), np.floor(v)
        a, b = u - column, v - row
        a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
        i, j = column.astype(np.int32) % LATTICE, row.astype(np.int32) % LATTICE
        right, below = (i + 1) % LATTICE, (j + 1) % LATTICE
        top = self.values[j, i] * (1 - a) + self.values[j, right] * a
        return top * (1 - b) + (self.values[below, i] * (1 - a) + self.values[below, right] * a) * b


@dataclass(frozen=True)
class Solid:
    """A convex solid: where normals . p <= offsets. corners (N, 3): of what bounds it. frame: rows are its own axes."""
    normals: Array
    offsets: Array
    corners: Array
    frame: Array
    centre: Array
    paint: Paint


@dataclass(frozen=True)
class Ball:
    """An ellipsoid with its axes along the world's. lumps: how uneven it is lit."""
    centre: Array
    radii: Array
    colour: Colour
    lumps: float = 0.5


def solid(corners: Sequence[Sequence[float]], faces: Sequence[Sequence[int]], place: Place,
          paint: Paint) -> Solid:
    """From corners in its own frame and three of each face's, turned about y and moved. place: centre and angle."""
    centre, angle = place
    own = np.array(corners, np.float32)
    cosine, sine = np.cos(angle), np.sin(angle)
    frame = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]], np.float32)
    points = own @ frame + centre
    a, b, c = (points[[face[k] for face in faces]] for k in range(3))
    normals = np.cross(b - a, c - a)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    outwards = np.sign(((a - points.mean(0)) * normals).sum(1, keepdims=True))
    normals = normals * outwards
    return Solid(normals, (normals * a).sum(1), points, frame, centre, paint)


def prism(sides: int, radii: tuple[float, float], heights: tuple[float, float], top: float,
          place: Place, paint: Paint) -> Solid:
    """On a regular polygon, or with 4 sides on a rectangle; `top` times as wide above (0: a pyramid). Faces: the sides
    one after the other from the viewer's, then the upper, then the lower one."""
    angles = 2 * np.pi * (np.arange(sides) - 0.5) / sides - np.pi / 2
    stretch = 1 / np.cos(np.pi / sides)
    ring = [(np.cos(a) * radii[0] * stretch, np.sin(a) * radii[1] * stretch) for a in angles]
    low = [(x, heights[0], z) for x, z in ring]
    high = [(x * top, heights[1], z * top) for x, z in ring] if top else [(0.0, heights[1], 0.0)]
    faces = [(k, (k + 1) % sides, sides + (k if top else 0)) for k in range(sides)]
    faces += [(sides, sides + 1, sides + 2)] if top else []
    return solid([*low, *high], [*faces, (0, 1, 2)], place, paint)


def gable(width: float, depth: float, heights: tuple[float, float], place: Place,
          paint: Paint) -> Solid:
    """A roof with its ridge along its own x. Faces: front, back, the two ends, below."""
    x, z, (low, high) = width, depth, heights
    corners = [(-x, low, -z), (x, low, -z), (x, low, z), (-x, low, z), (-x, high, 0), (x, high, 0)]
    return solid(corners, [(0, 1, 4), (2, 3, 4), (0, 3, 4), (1, 2, 5), (0, 1, 2)], place, paint)


def entered(body: Solid, origin: Sequence[Array], ray: Sequence[Array]) -> tuple[Array, NDArray[np.int8]]:
    """How far along each ray the solid is entered (FAR if it is not), and through which face."""
    shape = np.broadcast(*origin, *ray).shape
    near, far, face = np.full(shape, -FAR, np.float32), np.full(shape, FAR, np.float32), np.zeros(shape, np.int8)
    for k, ((x, y, z), offset) in enumerate(zip(body.normals, body.offsets, strict=True)):
        slope = ray[0] * x + ray[1] * y + ray[2] * z
        room = offset - (origin[0] * x + origin[1] * y + origin[2] * z)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = room / slope
        into, beside = slope < 0, slope == 0
        enters = np.where(into, at, np.where(beside & (room < 0), FAR, -FAR)).astype(np.float32)
        face = np.where(enters > near, np.int8(k), face)
        near, far = np.maximum(near, enters), np.minimum(far, np.where(into | beside, FAR, at).astype(np.float32))
    return np.where((near < far) & (near > NEAR), near, np.float32(FAR)), face


def reached(ball: Ball, origin: Sequence[Array], ray: Sequence[Array]) -> Array:
    """How far along each ray the ellipsoid is reached, FAR if it is not."""
    p = [(o - c) / r for o, c, r in zip(origin, ball.centre, ball.radii, strict=True)]
    d = [e / r for e, r in zip(ray, ball.radii, strict=True)]
    square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    half = p[0] * d[0] + p[1] * d[1] + p[2] * d[2]
    rest = half * half - square * (p[0] * p[0] + p[1] * p[1] + p[2] * p[2] - 1)
    at = (-half - np.sqrt(np.maximum(rest, 0))) / square
    return np.where((rest > 0) & (at > NEAR), at, FAR).astype(np.float32)
