"""Pictures of a domain of their own, rendered here: houses in landscapes, under varied sky, light, season and weather.

    python3 tools/launch.py tools.scenes OUT --count 4000 --seed 0 --size 128

They are to a prior what LSUN's churches are to DiffAE's: a second domain to train and to test with (docs/osasis.md I).
Picture i of a seed is always the same, whatever COUNT is; what is there is kept. Rays are traced through convex solids
and ellipsoids: the sun's shadows are true, the clouds, the grass and the hills are noise.

World: x to the right, y up, z away from the viewer; the house stands near the origin, on y = 0. Colours are linear
(R, G, B) in [0, 1] until `developed`.
"""
from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..models import rng
from ..models.whole_files import whole_file

log = logging.getLogger(__name__)
Array = NDArray[np.float32]
Colour = tuple[float, float, float]
Paint = Callable[[Array, Array], Array]  # of points (N, 3) in the solid's own frame, and their faces (N,): albedo (N, 3)
Choice = TypeVar("Choice")
FAR, NEAR = 1e6, 1e-3
LATTICE = 64  # cells of the noise, which repeats after them
SAMPLES = 2  # rays a pixel, in each direction
FIRST = (slice(0, None, SAMPLES),) * 2  # one ray of each pixel
HORIZON = .004  # how far below the horizon a ray meets the ground

WALLS = ((.86, .80, .68), (.80, .74, .70), (.62, .26, .20), (.78, .62, .34), (.52, .60, .66), (.90, .88, .84),
         (.70, .46, .36), (.50, .36, .25), (.60, .66, .50), (.84, .58, .50), (.34, .44, .58))
ROOFS = ((.46, .16, .11), (.28, .24, .25), (.36, .22, .15), (.18, .25, .33), (.55, .28, .16), (.20, .30, .22))
DOORS = ((.32, .17, .09), (.12, .25, .16), (.45, .09, .08), (.10, .17, .33), (.75, .72, .66))
GLASS = (.10, .14, .19)
LAMP = (2.6, 1.7, .75)
SNOW = (.86, .90, .97)


@dataclass(frozen=True)
class Season:
    """Colours of grass and of leaves to choose from, and shares of: snow on what looks up, trees without leaves."""
    grass: tuple[Colour, ...]
    leaves: tuple[Colour, ...]
    snow: float = 0.0


SEASONS = (
    Season(((.22, .36, .10), (.30, .42, .12)), ((.16, .34, .08), (.30, .44, .12), (.80, .52, .60), (.88, .82, .80))),
    Season(((.18, .31, .08), (.34, .36, .12), (.25, .33, .14)), ((.10, .24, .06), (.18, .30, .07), (.13, .22, .12))),
    Season(((.40, .34, .13), (.30, .30, .12)), ((.66, .28, .07), (.75, .48, .10), (.48, .13, .07), (.40, .36, .10))),
    Season((SNOW, (.80, .85, .93)), ((.16, .24, .16), (.30, .27, .26)), 1.0),
)


@dataclass(frozen=True)
class Light:
    """sun: unit vector to it. warm: its colour. zenith, horizon: of the sky. lamps: how brightly windows shine."""
    sun: Array
    warm: Array
    zenith: Array
    horizon: Array
    clouds: float
    fog: float
    lamps: float


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


@dataclass(frozen=True)
class Scene:
    things: tuple[Solid | Ball, ...]
    light: Light
    ground: Callable[[Array, Array], Array]
    hills: tuple[tuple[float, float, float, Colour], ...]  # height, roughness, place in the noise, colour
    camera: Camera
    noise: Noise
    snow: float


@dataclass(frozen=True)
class Camera:
    """height: of the eye. distance: to the origin. down: pitch in radians. zoom: focal length, of half the picture."""
    height: float
    distance: float
    down: float
    zoom: float
    shift: float


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


def array(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


def unit(v: Array) -> Array:
    return v / np.linalg.norm(v)


# --- solids -----------------------------------------------------------------------------------------------------------
def solid(corners: Sequence[Sequence[float]], faces: Sequence[Sequence[int]], place: tuple[Array, float],
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
          place: tuple[Array, float], paint: Paint) -> Solid:
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


def gable(width: float, depth: float, heights: tuple[float, float], place: tuple[Array, float],
          paint: Paint) -> Solid:
    """A roof with its ridge along its own x. Faces: front, back, the two ends, below."""
    x, z, (low, high) = width, depth, heights
    corners = [(-x, low, -z), (x, low, -z), (x, low, z), (-x, low, z), (-x, high, 0), (x, high, 0)]
    return solid(corners, [(0, 1, 4), (2, 3, 4), (0, 3, 4), (1, 2, 5), (0, 1, 2)], place, paint)


def entered(body: Solid, origin: Sequence[Array], ray: Sequence[Array]) -> tuple[Array, NDArray[np.int8]]:
    """How far along each ray the solid is entered (FAR if it is not), and through which face."""
    near, far, face = None, None, None
    for k, ((x, y, z), offset) in enumerate(zip(body.normals, body.offsets, strict=True)):
        slope = ray[0] * x + ray[1] * y + ray[2] * z
        room = offset - (origin[0] * x + origin[1] * y + origin[2] * z)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = room / slope
        into = slope < 0
        enters = np.where(into, at, np.where((slope == 0) & (room < 0), FAR, -FAR)).astype(np.float32)
        leaves = np.where(into | (slope == 0), FAR, at).astype(np.float32)
        if near is None or far is None or face is None:
            near, far, face = enters, leaves, np.full(np.broadcast(enters, leaves).shape, k, np.int8)
        else:
            face = np.where(enters > near, np.int8(k), face)
            near, far = np.maximum(near, enters), np.minimum(far, leaves)
    assert near is not None and far is not None and face is not None
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


# --- what a house is painted with ------------------------------------------------------------------------------------
def band(x: Array, low: float, high: float) -> Array:
    return (x > low) & (x < high)


@dataclass(frozen=True)
class Facade:
    """Walls with windows. half: half width and half depth. spacing: of the windows; floors: heights of their middles.
    door: where its middle is, None for none. style: "plain", "boards", "bricks" or "beams"."""
    colour: Colour
    door_colour: Colour
    frame_colour: Colour
    half: tuple[float, float]
    height: float
    spacing: float
    floors: tuple[float, ...]
    window: tuple[float, float]
    door: float | None
    style: str
    lamps: float
    noise: Noise

    def __call__(self, p: Array, face: Array) -> Array:
        side = np.isin(face, (1, 3))
        u = np.where(side, p[:, 2], p[:, 0])
        half = np.where(side, self.half[1], self.half[0])
        y = p[:, 1]
        albedo = np.minimum(array(*self.colour) * self._grain(u, y)[:, None], .97)
        if self.style == "beams":
            cell = np.abs((u / 0.55 + 0.5) % 1 - 0.5) * 0.55
            beam = (cell < 0.045) | (np.abs(y - 0.62 * self.height) < 0.045) | (y > self.height - 0.09)
            albedo[beam] = (.22, .14, .09)
        self._windows(albedo, u, y, half)
        if self.door is not None:
            at = (face == 0) & (np.abs(u - self.door) < 0.25) & (y < 0.82)
            albedo[at] = self.frame_colour
            albedo[at & (np.abs(u - self.door) < 0.20) & (y < 0.77)] = self.door_colour
        return albedo * np.where(y < 0.1, 0.75, 1.0)[:, None].astype(np.float32)

    def _grain(self, u: Array, y: Array) -> Array:
        rough = 0.86 + 0.28 * self.noise(u * 5, y * 5, 2)
        if self.style == "boards":
            rough *= np.where((y * 7) % 1 < 0.18, 0.72, 1.0)
        if self.style == "bricks":
            row = np.floor(y * 9)
            joint = ((y * 9) % 1 < 0.2) | ((u * 4.5 + 0.5 * (row % 2)) % 1 < 0.1)
            rough *= np.where(joint, 1.15, 0.86 + 0.24 * self.noise(np.floor(u * 4.5) * 3.7, row * 2.3))
        return rough.astype(np.float32)

    def _windows(self, albedo: Array, u: Array, y: Array, half: Array) -> None:
        w, h = self.window
        count = np.maximum(1, np.floor(2 * half / self.spacing))
        cell = 2 * half / count
        place = (u + half) / cell
        number = np.floor(place)
        x = (place - number - 0.5) * cell
        for level, floor in enumerate(self.floors):
            v = y - floor
            free = np.ones(len(u), bool) if self.door is None or floor > 1.1 else (
                np.abs(-half + (number + 0.5) * cell - self.door) > 0.25 + w)
            outer = free & (np.abs(x) < w + 0.05) & (np.abs(v) < h + 0.05)
            albedo[outer] = self.frame_colour
            pane = free & (np.abs(x) < w) & (np.abs(v) < h) & (np.abs(x) > 0.018) & (np.abs(v - 0.2 * h) > 0.018)
            lit = self.noise(number * 5.7 + 0.5, np.full_like(u, level * 3.3 + 0.5)) < self.lamps * 0.8
            albedo[pane] = GLASS
            albedo[pane & lit] = array(*LAMP) * max(self.lamps, .45)


@dataclass(frozen=True)
class Tiles:
    """A roof: rows of tiles, or snow. ends: faces that are the wall's."""
    colour: Colour
    wall: Colour
    snow: float
    rows: float
    noise: Noise
    ends: tuple[int, ...] = (2, 3)

    def __call__(self, p: Array, face: Array) -> Array:
        row = p[:, 1] * self.rows
        rough = 0.82 + 0.3 * self.noise(p[:, 0] * 6 + p[:, 2] * 6, np.floor(row) * 2.7, 2)
        rough *= np.where(row % 1 < 0.22, 0.7, 1.0)
        albedo = np.minimum(array(*self.colour) * rough[:, None].astype(np.float32), .97)
        if self.snow:
            covered = self.noise(p[:, 0] * 2 + 9, p[:, 1] * 3 + p[:, 2], 2) < 0.35 + 0.5 * self.snow
            albedo[covered] = SNOW
        albedo[np.isin(face, self.ends)] = array(*self.wall) * 0.95
        return albedo


def plain(colour: Colour, noise: Noise, grain: float = 0.3) -> Paint:
    def paint(p: Array, face: Array) -> Array:
        rough = 1 - grain / 2 + grain * noise(p[:, 0] * 9 + p[:, 2] * 7, p[:, 1] * 9, 2)
        return np.minimum(array(*colour) * rough[:, None], .97)
    return paint


# --- what stands there ------------------------------------------------------------------------------------------------
class Dice:
    """What a picture's own generator decides."""

    def __init__(self, seed: int, number: int) -> None:
        self.numbers = np.random.default_rng(rng.stream_seed(seed, "scene", number))

    def between(self, low: float, high: float) -> float:
        return float(self.numbers.uniform(low, high))

    def of(self, choices: Sequence[Choice], weights: Sequence[float] | None = None) -> Choice:
        share = None if weights is None else np.array(weights) / sum(weights)
        return choices[int(self.numbers.choice(len(choices), p=share))]

    def chance(self, share: float) -> bool:
        return bool(self.numbers.random() < share)

    def near(self, colour: Colour, spread: float = 0.12) -> Colour:
        """A colour like it: brighter or darker, and each channel a little otherwise."""
        gain = np.exp(self.between(-2 * spread, 2 * spread))
        r, g, b = (float(np.clip(c * gain * np.exp(self.between(-spread, spread)), 0.01, 0.95)) for c in colour)
        return r, g, b


# --- the scene --------------------------------------------------------------------------------------------------------
def light_of(dice: Dice, season: Season) -> Light:
    """Day, evening, dusk or an overcast sky."""
    kind = dice.of(("day", "evening", "dusk", "grey"), (5, 2.5, 1.3, 1.6))
    height = {"day": dice.between(.45, 1.1), "evening": dice.between(.16, .4), "dusk": dice.between(.1, .25),
              "grey": dice.between(.6, 1.2)}[kind]
    around = dice.between(-2.6, 2.6)  # 0: behind the viewer
    sun = array(np.sin(around) * np.cos(height), np.sin(height), -np.cos(around) * np.cos(height))
    sky = {"day": ((1.25, 1.15, .98), (.20, .42, .80), (.66, .80, .93)),
           "evening": ((1.45, .92, .50), (.26, .36, .62), (.98, .68, .42)),
           "dusk": ((.42, .27, .34), (.07, .09, .24), (.72, .36, .34)),
           "grey": ((.36, .36, .38), (.52, .56, .62), (.72, .74, .77))}[kind]
    warm, zenith, horizon = (np.array(dice.near(c, 0.1) if max(c) < .95 else c, np.float32) for c in sky)
    clouds = dice.between(.75, 1) if kind == "grey" else dice.between(0, .75)
    lamps = {"day": 0.0, "evening": dice.of((0.0, .5)), "dusk": dice.between(.6, 1), "grey": dice.of((0.0, .6))}[kind]
    fog = dice.of((.003, .01, .03), (4, 3, 1)) * (1.5 if season.snow else 1)
    return Light(sun, warm, zenith, horizon, clouds, fog, lamps)


def house(dice: Dice, light: Light, snow: float, noise: Noise) -> list[Solid | Ball]:
    """A cottage, a house of two or three floors, a barn, a chapel or a keep, some with a wing and a chimney."""
    kind = dice.of(("house", "tall", "barn", "chapel", "keep"), (4, 2, 1.5, 2, 1.2))
    height = {"house": dice.between(.95, 1.25), "tall": dice.between(1.9, 2.7), "barn": dice.between(1.1, 1.5),
              "chapel": dice.between(1.2, 1.7), "keep": dice.between(1.2, 1.6)}[kind]
    half = (dice.between(1.0, 1.7) * (.8 if kind in ("tall", "chapel") else 1), dice.between(.75, 1.15))
    angle = dice.between(-.75, .75)
    place = (array(dice.between(-.35, .35), 0, dice.between(0, .8)), angle)
    wall = dice.near(dice.of(WALLS))
    if kind in ("chapel", "keep"):
        wall = dice.near(dice.of(((.86, .84, .78), (.58, .55, .50), (.74, .66, .54), (.62, .34, .26))))
    roof = dice.near(dice.of(ROOFS))
    trim = dice.of(((.90, .89, .85), (.25, .17, .12), (.80, .80, .76), (.16, .22, .26)))
    style = {"barn": "boards", "keep": "bricks", "chapel": "bricks"}.get(kind, "")
    style = style or dice.of(("plain", "boards", "bricks", "beams"), (3, 1.5, 2, 1.2))
    floors = tuple(y for y in (.55, 1.35, 2.12) if y + .3 < height)
    window = (dice.between(.10, .17), dice.between(.15, .23))
    door_colour = dice.near(dice.of(DOORS))

    def facade(half: tuple[float, float], height: float, floors: tuple[float, ...], door: float | None) -> Facade:
        return Facade(wall, door_colour, trim, half, height, dice.between(.55, .95), floors, window, door, style,
                      light.lamps, noise)
    tiles = Tiles(roof, wall, snow, dice.between(6, 10), noise)
    over = 1.08
    door = dice.between(-.5, .5) * half[0]
    if kind == "keep":
        return keep(dice, place, height, facade, tiles)
    things: list[Solid | Ball] = [
        prism(4, half, (0, height), 1, place, facade(half, height, floors, door))]
    rise = dice.between(.55, 1.0) * half[1] * 1.3
    things.append(gable(half[0] * over, half[1] * over * 1.04, (height, height + rise), place, tiles))
    turned = things[0].frame if isinstance(things[0], Solid) else np.eye(3, dtype=np.float32)

    def beside(x: float, z: float) -> tuple[Array, float]:
        return place[0] + array(x, 0, z) @ turned, angle
    if kind == "chapel":
        side = dice.of((-1, 1))
        width = dice.between(.36, .5)
        top = height + rise + dice.between(.1, .9)
        at = beside(side * (half[0] + width * .7), 0)
        things.append(prism(4, (width, width), (0, top), 1, at, facade((width, width), top, (top - .45,), None)))
        things.append(prism(dice.of((4, 8)), (width * 1.1,) * 2, (top, top + dice.between(.9, 1.9)), 0, at, tiles))
    elif dice.chance(.45):
        side = dice.of((-1, 1))
        wide, deep, low = dice.between(.5, .8), half[1] * dice.between(.6, .85), height * dice.between(.6, .85)
        at = beside(side * (half[0] + wide * .95), dice.between(-.2, .2))
        things.append(prism(4, (wide, deep), (0, low), 1, at, facade((wide, deep), low, floors[:1], None)))
        things.append(gable(wide * over, deep * over, (low, low + rise * .75), at, tiles))
    if kind in ("house", "tall") and dice.chance(.75):
        at = beside(dice.between(-.6, .6) * half[0], dice.between(.0, .3) * half[1])
        top = height + rise + dice.between(.15, .35)
        brick = dice.near(dice.of(((.42, .19, .14), (.45, .42, .40), wall)))
        things.append(prism(4, (.13, .13), (height + .2 * rise, top), 1, at, plain(brick, noise)))
    return things


def keep(dice: Dice, place: tuple[Array, float], height: float, facade: Callable[..., Facade],
         tiles: Tiles) -> list[Solid | Ball]:
    """One to three round towers, with a wall between them."""
    things: list[Solid | Ball] = []
    count = dice.of((1, 2, 3), (1, 2, 1.5))
    apart = dice.between(1.0, 1.35)
    for k in range(count):
        tall = height * dice.between(.9, 1.9)
        radius = dice.between(.38, .55)
        at = (place[0] + array((k - (count - 1) / 2) * apart, 0, .35 * (k % 2)), place[1] * .4)
        floors = tuple(y for y in (.6, 1.4, 2.2) if y + .3 < tall)
        things.append(prism(10, (radius, radius), (0, tall), 1, at, facade((.2, .2), tall, floors[-2:], None)))
        top = tall + dice.between(.6, 1.3)
        things.append(prism(10, (radius * 1.18,) * 2, (tall, top), 0, at, tiles))
    if count > 1:
        wide = (count - 1) / 2 * apart
        at = (place[0] + array(0, 0, .25), place[1] * .1)
        low = height * .75
        things.append(prism(4, (wide, .3), (0, low), 1, at, facade((wide, .3), low, (.9,), 0.0)))
    return things


def tree(dice: Dice, season: Season, x: float, z: float, noise: Noise) -> list[Solid | Ball]:
    """A broad-leaved tree, a conifer, a poplar or a bush."""
    kind = dice.of(("broad", "conifer", "poplar", "bush"), (3, 3 if season.snow else 1.6, .8, 1.6))
    colour = dice.near(dice.of(season.leaves), .2)
    at = array(x, 0, z)
    tall = dice.between(1.3, 2.9)
    if kind == "bush":
        size = dice.between(.22, .45)
        return [Ball(at + array(0, size * .6, 0), array(size * dice.between(1, 1.6), size, size), colour)]
    bark = dice.near((.24, .17, .11), .2)
    trunk = prism(6, (.07, .07), (0, tall * .55), .7, (at, dice.between(0, 1)), plain(bark, noise))
    if kind == "conifer":
        needles = dice.near(dice.of(((.08, .20, .10), (.11, .24, .13), (.07, .17, .13))), .15)
        if season.snow and dice.chance(.6):
            needles = (.55, .62, .66)
        parts = [prism(9, (tall * w, tall * w), (tall * low, tall * high), 0, (at, dice.between(0, 1)),
                       plain(needles, noise, .6)) for w, low, high in ((.27, .16, .62), (.21, .42, .84), (.14, .66, 1.05))]
        return [trunk, *parts]
    if kind == "poplar":
        return [trunk, Ball(at + array(0, tall * .62, 0), array(tall * .15, tall * .5, tall * .15), colour)]
    size = tall * dice.between(.24, .34)
    blobs: list[Solid | Ball] = [trunk]
    for _ in range(int(dice.between(2, 4.99))):
        away = array(dice.between(-.7, .7), dice.between(-.3, .6), dice.between(-.5, .5)) * size
        round_ = size * dice.between(.65, 1.0)
        blobs.append(Ball(at + array(0, tall * .72, 0) + away, array(round_, round_ * .85, round_), colour))
    return blobs


def ground_of(dice: Dice, season: Season, noise: Noise, centre: float) -> Callable[[Array, Array], Array]:
    """Grass or snow with patches, and mostly a path to the house."""
    grass, other = dice.near(dice.of(season.grass), .1), dice.near(dice.of(season.grass), .2)
    soil = dice.near(dice.of(((.44, .36, .26), (.52, .50, .46), (.36, .29, .22))) if not season.snow else (.66, .66, .68))
    path = dice.chance(.65)
    bend, wide, at = dice.between(-.5, .5), dice.between(.22, .42), dice.between(0, 50)

    def ground(x: Array, z: Array) -> Array:
        patch = noise(x * .5 + at, z * .5, 2)[:, None]
        albedo = array(*grass) * (1 - patch) + array(*other) * patch
        albedo *= (.78 + .44 * noise(x * 7, z * 4, 2))[:, None]
        if path:
            middle = centre + bend * np.sin((z + .6) * .9)
            edge = np.abs(x - middle) + .1 * noise(x * 3, z * 3)
            on = (edge < wide * (1 + .06 * z)) & (z < .3)
            albedo[on] = array(*soil) * (.8 + .4 * noise(x[on] * 6, z[on] * 6, 2))[:, None]
        return np.minimum(albedo, .97).astype(np.float32)
    return ground


def scene(seed: int, number: int) -> Scene:
    """What picture `number` of a seed shows."""
    dice = Dice(seed, number)
    noise = Noise(dice.numbers)
    season = dice.of(SEASONS, (2, 3, 2, 1.6))
    light = light_of(dice, season)
    things = house(dice, light, season.snow, noise)
    for _ in range(int(dice.between(1, 6.99))):
        side, behind = dice.of((-1, 1)), dice.chance(.6)
        z = dice.between(1.8, 6) if behind else dice.between(-1.4, 1.8)
        x = side * dice.between(.3 if z > 2.4 else 2.0, 3.0 + .4 * max(z, 0))
        things += tree(dice, season, x, z, noise)
    if dice.chance(.5):
        things += fence(dice, noise)
    hills = tuple((dice.between(.0, .16) + .05 * k, dice.between(1.5, 5), dice.between(0, 50),
                   dice.near(SNOW if season.snow and dice.chance(.6) else dice.of(season.grass + season.leaves[:2]), .15))
                  for k in range(int(dice.between(0, 2.99)), -1, -1))
    camera = Camera(dice.between(.9, 2.6), dice.between(5.6, 7.2), dice.between(-.04, .08), dice.between(1.75, 2.1),
                    dice.between(-.25, .25))
    return Scene(tuple(things), light, ground_of(dice, season, noise, float(things[0].centre[0])), hills, camera, noise,
                 season.snow)


def fence(dice: Dice, noise: Noise) -> list[Solid | Ball]:
    """Two rails and posts, beside the way to the house."""
    paint = plain(dice.near(dice.of(((.85, .84, .80), (.34, .24, .16)))), noise)
    side, z = dice.of((-1, 1)), dice.between(-1.9, -1.2)
    start = .6
    things: list[Solid | Ball] = [prism(4, (1.1, .02), (y, y + .06), 1, (array(side * (start + 1.1), 0, z), 0.0), paint)
                                  for y in (.14, .30)]
    return things + [prism(4, (.035, .035), (0, .42), 1, (array(side * (start + .1 + .5 * k), 0, z), 0.0), paint)
                     for k in range(5)]


# --- rendering --------------------------------------------------------------------------------------------------------
def render(what: Scene, size: int) -> Array:
    """(size, size, 3), developed, in [0, 1]."""
    side, camera = size * SAMPLES, what.camera
    line = ((np.arange(side, dtype=np.float32) + .5) / side * 2 - 1) / np.float32(camera.zoom)
    right, up = np.broadcast_arrays(line[None] , -line[:, None])
    cosine, sine = np.float32(np.cos(camera.down)), np.float32(np.sin(camera.down))
    length = 1 / np.sqrt(right * right + up * up + 1)
    ray = (right * length, (up * cosine - sine) * length, (cosine + up * sine) * length)
    origin = (np.float32(camera.shift), np.float32(camera.height), np.float32(-camera.distance))
    depth, albedo, normal = ground_seen(what, ray, origin)
    for thing in what.things:
        paint_over(thing, what, (origin, ray), (depth, albedo, normal), window_of(thing, camera, origin, side))
    light, hit = what.light, depth < FAR
    rows = int((ray[1][FIRST] > -2 * HORIZON).any(1).sum())  # above the horizon
    colour = np.zeros((side, side, 3), np.float32)
    colour[:rows * SAMPLES] = spread(sky_of(what, [r[FIRST][:rows] for r in ray]))
    points = [o + r[hit] * depth[hit] for o, r in zip(origin, ray, strict=True)]
    n = normal[hit]
    shade = shadow_of(what, origin, ray, depth)[hit]
    direct = np.maximum((n * light.sun).sum(1), 0) * shade
    above = (.35 + .65 * (n[:, 1] * .5 + .5)) * np.minimum(1, .62 + .5 * np.maximum(points[1], 0) + .4 * (n[:, 1] > .9))
    bounce = np.maximum(-n[:, 1], 0) * .1
    received = direct[:, None] * light.warm * 1.35 + above[:, None] * (light.zenith * .6 + light.horizon * .4) * .52
    seen = albedo[hit] * (received + bounce[:, None])
    glowing = albedo[hit].max(1) > 1
    seen[glowing] = albedo[hit][glowing]
    haze = 1 - np.exp(-np.maximum(depth[hit] - 5, 0) * light.fog)
    colour[hit] = seen * (1 - haze)[:, None] + light.horizon * .9 * haze[:, None]
    return developed(colour.reshape(size, SAMPLES, size, SAMPLES, 3).mean((1, 3)))


def developed(colour: Array) -> Array:
    """From linear light to what is shown: a soft shoulder, a gamma, a little contrast."""
    shown = (1 - np.exp(-1.75 * colour)).clip(0, 1) ** np.float32(.52)
    return shown * shown * (3 - 2 * shown) * .45 + shown * .55


def spread(x: Array) -> Array:
    """What was made for one ray a pixel, for all of them."""
    return x.repeat(SAMPLES, 0).repeat(SAMPLES, 1)


def ground_seen(what: Scene, ray: Sequence[Array], origin: Sequence[Array]) -> tuple[Array, Array, Array]:
    """Depth (S, S), albedo and normal (S, S, 3) of the ground alone; the albedo for one ray a pixel."""
    falls = ray[1] < -HORIZON
    depth = np.where(falls, -origin[1] / np.minimum(ray[1], -HORIZON), np.float32(FAR))
    below = falls[FIRST] | falls[SAMPLES - 1::SAMPLES, ::SAMPLES]
    fall = np.minimum(ray[1][FIRST][below], -HORIZON)
    x, z = (origin[k] - ray[k][FIRST][below] * origin[1] / fall for k in (0, 2))
    albedo = np.zeros((*below.shape, 3), np.float32)
    albedo[below] = what.ground(x, z)
    normal = np.zeros((*depth.shape, 3), np.float32)
    normal[..., 1] = 1
    return depth, spread(albedo), normal


def window_of(thing: Solid | Ball, camera: Camera, origin: Sequence[Array], side: int) -> tuple[slice, slice]:
    """Rows and columns of the picture outside of which the thing is not seen."""
    corners = thing.corners if isinstance(thing, Solid) else thing.centre + thing.radii * CUBE
    p = corners - np.array(origin, np.float32)
    cosine, sine = np.cos(camera.down), np.sin(camera.down)
    ahead = np.maximum(p[:, 2] * cosine - p[:, 1] * sine, .05)
    column = (p[:, 0] / ahead * camera.zoom + 1) / 2 * side
    row = (1 - (p[:, 1] * cosine + p[:, 2] * sine) / ahead * camera.zoom) / 2 * side
    low, high = ([int(np.clip(f(v) + d, 0, side)) for v in (row, column)] for f, d in ((np.min, -1), (np.max, 2)))
    return slice(low[0], high[0]), slice(low[1], high[1])


CUBE = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)


def paint_over(thing: Solid | Ball, what: Scene, view: tuple[Sequence[Array], Sequence[Array]],
               maps: tuple[Array, Array, Array], window: tuple[slice, slice]) -> None:
    """Write depth, albedo and normal where the thing is nearer than what is there."""
    origin, ray = view[0], [r[window] for r in view[1]]
    if not ray[0].size:
        return
    depth, albedo, normal = (m[window] for m in maps)
    at, face = entered(thing, origin, ray) if isinstance(thing, Solid) else (reached(thing, origin, ray), None)
    nearer = at < depth
    if not nearer.any():
        return
    depth[nearer] = at[nearer]
    points = np.stack([o + r[nearer] * at[nearer] for o, r in zip(origin, ray, strict=True)], 1)
    if isinstance(thing, Solid) and face is not None:
        faces = face[nearer]
        albedo[nearer] = thing.paint((points - thing.centre) @ thing.frame.T, faces)
        normal[nearer] = thing.normals[faces]
    elif isinstance(thing, Ball):
        albedo[nearer], normal[nearer] = leaves_of(thing, what, points)


def leaves_of(ball: Ball, what: Scene, points: Array) -> tuple[Array, Array]:
    """Albedo and normal of an ellipsoid of leaves: bumps, darker gaps, snow on top."""
    n = (points - ball.centre) / ball.radii ** 2
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    u, v = points[:, 0] * 4.5 + points[:, 2] * 3.1, points[:, 1] * 4.5 - points[:, 2] * 2.3
    rough = what.noise(u, v, 3)
    bumps = np.stack([rough - .5, what.noise(u + 11, v + 5, 3) - .5, what.noise(u + 3, v + 17, 2) - .5], 1)
    albedo = np.minimum(array(*ball.colour) * (.45 + 1.1 * rough)[:, None], .97)
    if what.snow:
        albedo[n[:, 1] + 1.2 * (rough - .5) > .45] = SNOW
    n = n + ball.lumps * 2.4 * bumps
    return albedo.astype(np.float32), (n / np.linalg.norm(n, axis=1, keepdims=True)).astype(np.float32)


def sky_of(what: Scene, ray: Sequence[Array]) -> Array:
    """(S, S, 3): the sky's gradient, the sun's glow, clouds, and hills before it."""
    light, height = what.light, np.maximum(ray[1], 0)
    rise = (height * 2.2).clip(0, 1)[..., None] ** .7
    colour = light.horizon * (1 - rise) + light.zenith * rise
    glow = np.maximum(ray[0] * light.sun[0] + ray[1] * light.sun[1] + ray[2] * light.sun[2], 0)
    colour = colour + (.5 * glow ** 24 + .25 * glow ** 4)[..., None] * light.warm * (1 - light.clouds * .8)
    flat = 1 / (height + .18)
    cover = what.noise(ray[0] * flat * 1.6 + 20, flat * 2.4 + 5, 4)
    thick = ((cover - 1 + .95 * light.clouds) * 3.2 + .5).clip(0, 1)[..., None] * (.25 if light.clouds < .08 else .9)
    bright = (light.horizon * .45 + light.warm * .45) * (.72 + .5 * cover)[..., None]
    colour = colour * (1 - thick) + bright * thick
    around = ray[0] / np.maximum(ray[2], .1)
    for height_, rough, place, tint in what.hills:
        line = around[-1] * rough + place
        ridge = height_ * (.3 + what.noise(line, np.full_like(line, place), 3))
        far = np.minimum(.85, .35 + 14 * light.fog + height_ * 1.2)
        hill = array(*tint) * (light.warm * .45 + light.zenith * .5)
        hill = hill * (.85 + .3 * what.noise(around * 9 + place, ray[1] * 30, 2))[..., None]
        colour = np.where((ray[1] < ridge)[..., None], hill * (1 - far) + light.horizon * .9 * far, colour)
    return colour.astype(np.float32)


def shadow_of(what: Scene, origin: Sequence[Array], ray: Sequence[Array], depth: Array) -> Array:
    """(S, S) share of the sun that arrives, one ray a pixel."""
    near = depth[FIRST] < FAR
    points = [o + r[FIRST][near] * depth[FIRST][near] * np.float32(.9995) for o, r in zip(origin, ray, strict=True)]
    sun = [np.float32(v) for v in what.light.sun]
    points = [p + s * np.float32(.012) for p, s in zip(points, sun, strict=True)]
    free = np.ones(len(points[0]), bool)
    for thing in what.things:
        at = entered(thing, points, sun)[0] if isinstance(thing, Solid) else reached(thing, points, sun)
        free &= at >= FAR
    shade = np.ones(near.shape, np.float32)
    shade[near] = free * (1 - .75 * what.light.clouds ** 3)
    return spread(shade)


# --- files ------------------------------------------------------------------------------------------------------------
def picture(seed: int, number: int, size: int) -> Image.Image:
    """Picture `number` of a seed, size x size, RGB."""
    return Image.fromarray((render(scene(seed, number), size) * 255 + .5).astype(np.uint8))


def file_of(folder: Path, seed: int, number: int) -> Path:
    return folder / f"scene_{seed}_{number:05d}.png"


def save(number: int, folder: Path, seed: int, size: int) -> None:
    with whole_file(file_of(folder, seed, number), str(os.getpid())) as file:
        picture(seed, number, size).save(file, "PNG")


def render_folder(folder: Path, count: int, seed: int = 0, size: int = 128, processes: int = 1) -> int:
    """Pictures 0 .. count - 1 of the seed that are not there yet; returns how many were made."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(count) if not file_of(folder, seed, number).exists()]
    job = partial(save, folder=folder, seed=seed, size=size)
    if processes < 2:
        for number in missing:
            job(number)
        return len(missing)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for _ in pool.imap_unordered(job, missing, chunksize=16):
            pass
    return len(missing)


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="tools.scenes", description=__doc__.splitlines()[0])
    p.add_argument("out", type=Path, help="folder that gets scene_SEED_NUMBER.png; what is there is kept")
    p.add_argument("--count", type=int, default=4000, help="(%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    p.add_argument("--size", type=int, default=128, help="side in pixels (%(default)s)")
    p.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="(%(default)s)")
    options = p.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not 16 <= options.size <= 1024 or options.count < 1 or options.processes < 1:
        log.error("--size takes 16 to 1024, --count and --processes 1 at least")
        return 1
    made = render_folder(options.out, options.count, options.seed, options.size, options.processes)
    log.info("%d pictures rendered under %s", made, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
