"""What houses are painted with: walls with windows and a door, roofs, plain things."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .solids import Array, Colour, Noise, Paint, array

GLASS = (.10, .14, .19)
LAMP = (2.6, 1.7, .75)
SNOW = (.86, .90, .97)
MOST = .97  # of the light that anything reflects; what is above 1 shines by itself


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
        albedo = np.minimum(array(*self.colour) * self._grain(u, y)[:, None], MOST)
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
        albedo = np.minimum(array(*self.colour) * rough[:, None].astype(np.float32), MOST)
        if self.snow:
            covered = self.noise(p[:, 0] * 2 + 9, p[:, 1] * 3 + p[:, 2], 2) < 0.35 + 0.5 * self.snow
            albedo[covered] = SNOW
        albedo[np.isin(face, self.ends)] = array(*self.wall) * 0.95
        return albedo


def plain(colour: Colour, noise: Noise, grain: float = 0.3) -> Paint:
    def paint(p: Array, face: Array) -> Array:
        rough = 1 - grain / 2 + grain * noise(p[:, 0] * 9 + p[:, 2] * 7, p[:, 1] * 9, 2)
        return np.minimum(array(*colour) * rough[:, None], MOST)
    return paint
