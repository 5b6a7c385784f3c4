"""What a picture shows: season, light, a house, trees, a fence, hills, and where they are seen from."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ...models import rng
from .paint import MOST, SNOW, Facade, Tiles, plain
from .solids import Array, Ball, Colour, Noise, Place, Solid, array, gable, prism

Choice = TypeVar("Choice")
Thing = Solid | Ball
WALLS = ((.86, .80, .68), (.80, .74, .70), (.62, .26, .20), (.78, .62, .34), (.52, .60, .66), (.90, .88, .84),
         (.70, .46, .36), (.50, .36, .25), (.60, .66, .50), (.84, .58, .50), (.34, .44, .58))
ROOFS = ((.46, .16, .11), (.28, .24, .25), (.36, .22, .15), (.18, .25, .33), (.55, .28, .16), (.20, .30, .22))
DOORS = ((.32, .17, .09), (.12, .25, .16), (.45, .09, .08), (.10, .17, .33), (.75, .72, .66))


@dataclass(frozen=True)
class Season:
    """Colours of grass and of leaves to choose from, and how much snow lies on what looks up."""
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
class Camera:
    """height: of the eye. distance: to the origin. down: pitch in radians. zoom: focal length, of half the picture."""
    height: float
    distance: float
    down: float
    zoom: float
    shift: float


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    light: Light
    ground: Callable[[Array, Array], Array]
    hills: tuple[tuple[float, float, float, Colour], ...]  # height, roughness, place in the noise, colour
    camera: Camera
    noise: Noise
    snow: float


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


@dataclass(frozen=True)
class Building:
    """What all parts of a building have in common."""
    dice: Dice
    noise: Noise
    place: Place
    wall: Colour
    trim: Colour
    door_colour: Colour
    style: str
    window: tuple[float, float]
    lamps: float

    def facade(self, half: tuple[float, float], height: float, floors: tuple[float, ...],
               door: float | None = None) -> Facade:
        return Facade(self.wall, self.door_colour, self.trim, half, height, self.dice.between(.55, .95), floors,
                      self.window, door, self.style, self.lamps, self.noise)

    def beside(self, x: float, z: float) -> Place:
        """A place in the building's own frame."""
        centre, angle = self.place
        cosine, sine = np.cos(angle), np.sin(angle)
        frame = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]], np.float32)
        return centre + array(x, 0, z) @ frame, angle


KINDS = {"house": 4, "tall": 2, "barn": 1.5, "chapel": 2, "keep": 1.2}  # how often each comes
FLOORS = (.55, 1.35, 2.12)
STONES = ((.86, .84, .78), (.58, .55, .50), (.74, .66, .54), (.62, .34, .26))
TRIMS = ((.90, .89, .85), (.25, .17, .12), (.80, .80, .76), (.16, .22, .26))
BRICKS = ((.42, .19, .14), (.45, .42, .40))
OVERHANG = 1.08


def house(dice: Dice, light: Light, snow: float, noise: Noise) -> list[Thing]:
    """A cottage, a house of two or three floors, a barn, a chapel or a keep, some with a wing and a chimney."""
    kind = dice.of(tuple(KINDS), tuple(KINDS.values()))
    height = {"house": dice.between(.95, 1.25), "tall": dice.between(1.9, 2.7), "barn": dice.between(1.1, 1.5),
              "chapel": dice.between(1.2, 1.7), "keep": dice.between(1.2, 1.6)}[kind]
    half = (dice.between(1.0, 1.7) * (.8 if kind in ("tall", "chapel") else 1), dice.between(.75, 1.15))
    angle = dice.between(-.75, .75)
    place = (array(dice.between(-.35, .35), 0, dice.between(0, .8)), angle)
    wall = dice.near(dice.of(WALLS))
    if kind in ("chapel", "keep"):
        wall = dice.near(dice.of(STONES))
    roof, trim = dice.near(dice.of(ROOFS)), dice.of(TRIMS)
    style = {"barn": "boards", "keep": "bricks", "chapel": "bricks"}.get(kind, "")
    style = style or dice.of(("plain", "boards", "bricks", "beams"), (3, 1.5, 2, 1.2))
    window = (dice.between(.10, .17), dice.between(.15, .23))
    b = Building(dice, noise, place, wall, trim, dice.near(dice.of(DOORS)), style, window, light.lamps)
    tiles = Tiles(roof, wall, snow, dice.between(6, 10), noise)
    door, floors = dice.between(-.5, .5) * half[0], tuple(y for y in FLOORS if y + .3 < height)
    if kind == "keep":
        return keep(b, height, tiles)
    walls = prism(4, half, (0, height), 1, place, b.facade(half, height, floors, door))
    ridge = height + dice.between(.55, 1.0) * half[1] * 1.3
    things = [walls, gable(half[0] * OVERHANG, half[1] * OVERHANG * 1.04, (height, ridge), place, tiles)]
    if kind == "chapel":
        things += steeple(b, half, ridge, tiles)
    elif dice.chance(.45):
        things += wing(b, half, (height, ridge), floors[:1], tiles)
    if kind in ("house", "tall") and dice.chance(.75):
        at = b.beside(dice.between(-.6, .6) * half[0], dice.between(.0, .3) * half[1])
        top = ridge + dice.between(.15, .35)
        brick = dice.near(dice.of((*BRICKS, wall)))
        things.append(prism(4, (.13, .13), (height + .2 * (ridge - height), top), 1, at, plain(brick, noise)))
    return things


def steeple(b: Building, half: tuple[float, float], ridge: float, tiles: Tiles) -> list[Thing]:
    """A tower at one end of a chapel, with a pointed roof."""
    side, width = b.dice.of((-1, 1)), b.dice.between(.36, .5)
    top, at = ridge + b.dice.between(.1, .9), b.beside(side * (half[0] + width * .7), 0)
    tower = prism(4, (width, width), (0, top), 1, at, b.facade((width, width), top, (top - .45,)))
    return [tower, prism(b.dice.of((4, 8)), (width * 1.1,) * 2, (top, top + b.dice.between(.9, 1.9)), 0, at, tiles)]


def wing(b: Building, half: tuple[float, float], heights: tuple[float, float], floors: tuple[float, ...],
         tiles: Tiles) -> list[Thing]:
    """A lower part at one end of a house. heights: of the house's walls and ridge."""
    side, (height, ridge) = b.dice.of((-1, 1)), heights
    wide, deep = b.dice.between(.5, .8), half[1] * b.dice.between(.6, .85)
    low = height * b.dice.between(.6, .85)
    at = b.beside(side * (half[0] + wide * .95), b.dice.between(-.2, .2))
    walls = prism(4, (wide, deep), (0, low), 1, at, b.facade((wide, deep), low, floors))
    return [walls, gable(wide * OVERHANG, deep * OVERHANG, (low, low + (ridge - height) * .75), at, tiles)]


def keep(b: Building, height: float, tiles: Tiles) -> list[Thing]:
    """One to three round towers, with a wall between them."""
    things: list[Thing] = []
    count, apart = b.dice.of((1, 2, 3), (1, 2, 1.5)), b.dice.between(1.0, 1.35)
    centre, angle = b.place
    for k in range(count):
        tall, radius = height * b.dice.between(.9, 1.9), b.dice.between(.38, .55)
        at = (centre + array((k - (count - 1) / 2) * apart, 0, .35 * (k % 2)), angle * .4)
        floors = tuple(y for y in (.6, 1.4, 2.2) if y + .3 < tall)
        things.append(prism(10, (radius, radius), (0, tall), 1, at, b.facade((.2, .2), tall, floors[-2:])))
        things.append(prism(10, (radius * 1.18,) * 2, (tall, tall + b.dice.between(.6, 1.3)), 0, at, tiles))
    if count > 1:
        wide, low = (count - 1) / 2 * apart, height * .75
        things.append(prism(4, (wide, .3), (0, low), 1, (centre + array(0, 0, .25), angle * .1),
                            b.facade((wide, .3), low, (.9,), 0.0)))
    return things


def tree(dice: Dice, season: Season, x: float, z: float, noise: Noise) -> list[Thing]:
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
        tiers = ((.27, .16, .62), (.21, .42, .84), (.14, .66, 1.05))
        parts = [prism(9, (tall * w, tall * w), (tall * low, tall * high), 0, (at, dice.between(0, 1)),
                       plain(needles, noise, .6)) for w, low, high in tiers]
        return [trunk, *parts]
    if kind == "poplar":
        return [trunk, Ball(at + array(0, tall * .62, 0), array(tall * .15, tall * .5, tall * .15), colour)]
    size = tall * dice.between(.24, .34)
    blobs: list[Thing] = [trunk]
    for _ in range(int(dice.between(2, 4.99))):
        away = array(dice.between(-.7, .7), dice.between(-.3, .6), dice.between(-.5, .5)) * size
        round_ = size * dice.between(.65, 1.0)
        blobs.append(Ball(at + array(0, tall * .72, 0) + away, array(round_, round_ * .85, round_), colour))
    return blobs


def ground_of(dice: Dice, season: Season, noise: Noise, centre: float) -> Callable[[Array, Array], Array]:
    """Grass or snow with patches, and mostly a path to the house."""
    grass, other = dice.near(dice.of(season.grass), .1), dice.near(dice.of(season.grass), .2)
    soil = dice.near((.66, .66, .68) if season.snow else dice.of(((.44, .36, .26), (.52, .50, .46), (.36, .29, .22))))
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
        return np.minimum(albedo, MOST).astype(np.float32)
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
    hills = tuple(hill(dice, season, k) for k in range(int(dice.between(0, 2.99)), -1, -1))
    camera = Camera(dice.between(.9, 2.6), dice.between(5.6, 7.2), dice.between(-.04, .08), dice.between(1.75, 2.1),
                    dice.between(-.25, .25))
    return Scene(tuple(things), light, ground_of(dice, season, noise, float(things[0].centre[0])), hills, camera, noise,
                 season.snow)


def hill(dice: Dice, season: Season, row: int) -> tuple[float, float, float, Colour]:
    """A range of hills, `row` behind the first."""
    shape = dice.between(.0, .16) + .05 * row, dice.between(1.5, 5), dice.between(0, 50)
    white = season.snow and dice.chance(.6)
    return *shape, dice.near(SNOW if white else dice.of(season.grass + season.leaves[:2]), .15)


def fence(dice: Dice, noise: Noise) -> list[Thing]:
    """Two rails and posts, beside the way to the house."""
    paint = plain(dice.near(dice.of(((.85, .84, .80), (.34, .24, .16)))), noise)
    side, z = dice.of((-1, 1)), dice.between(-1.9, -1.2)
    start = .6
    things: list[Thing] = [prism(4, (1.1, .02), (y, y + .06), 1, (array(side * (start + 1.1), 0, z), 0.0), paint)
                                  for y in (.14, .30)]
    return things + [prism(4, (.035, .035), (0, .42), 1, (array(side * (start + .1 + .5 * k), 0, z), 0.0), paint)
                     for k in range(5)]
