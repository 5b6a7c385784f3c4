"""A scene as a picture: rays through every pixel, the sun's shadows, sky, haze."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .paint import MOST, SNOW
from .solids import FAR, Array, Ball, Solid, array, entered, reached
from .world import Camera, Light, Scene

Rays = Sequence[Array]
SAMPLES = 2  # rays a pixel, in each direction
FIRST = (slice(0, None, SAMPLES),) * 2  # one ray of each pixel
HORIZON = .004  # how far below the horizon a ray meets the ground
CUBE = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)


def render(what: Scene, size: int) -> Array:
    """(size, size, 3), developed, in [0, 1]."""
    side = size * SAMPLES
    origin, ray = rays_of(what.camera, side)
    depth, albedo, normal = ground_seen(what, ray, origin)
    for thing in what.things:
        paint_over(thing, what, (origin, ray), (depth, albedo, normal), window_of(thing, what.camera, origin, side))
    rows = int((ray[1][FIRST] > -2 * HORIZON).any(1).sum())  # above the horizon
    colour = np.zeros((side, side, 3), np.float32)
    colour[:rows * SAMPLES] = spread(sky_of(what, [r[FIRST][:rows] for r in ray]))
    hit, light = depth < FAR, what.light
    seen = reflected(albedo[hit], normal[hit], (origin[1] + ray[1] * depth)[hit],
                     shadow_of(what, origin, ray, depth)[hit], light)
    haze = (1 - np.exp(-np.maximum(depth[hit] - 5, 0) * light.fog))[:, None]
    colour[hit] = seen * (1 - haze) + light.horizon * .9 * haze
    return developed(colour.reshape(size, SAMPLES, size, SAMPLES, 3).mean((1, 3)))


def rays_of(camera: Camera, side: int) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Where rays begin, and their directions: x, y and z, each (side, side)."""
    line = ((np.arange(side, dtype=np.float32) + .5) / side * 2 - 1) / np.float32(camera.zoom)
    right, up = np.broadcast_arrays(line[None], -line[:, None])
    cosine, sine = np.float32(np.cos(camera.down)), np.float32(np.sin(camera.down))
    length = 1 / np.sqrt(right * right + up * up + 1)
    ray = (right * length, (up * cosine - sine) * length, (cosine + up * sine) * length)
    return (np.float32(camera.shift), np.float32(camera.height), np.float32(-camera.distance)), ray


def reflected(albedo: Array, normal: Array, height: Array, shade: Array, light: Light) -> Array:
    """Light (N, 3) from points: of the sun, of the sky above, less near the ground, and of the ground below."""
    direct = np.maximum((normal * light.sun).sum(1), 0) * shade
    open_ = np.minimum(1, .62 + .5 * np.maximum(height, 0) + .4 * (normal[:, 1] > .9))
    above = (.35 + .65 * (normal[:, 1] * .5 + .5)) * open_
    below = np.maximum(-normal[:, 1], 0) * .1
    sky = (light.zenith * .6 + light.horizon * .4) * .52
    received = direct[:, None] * light.warm * 1.35 + above[:, None] * sky + below[:, None]
    return np.where(albedo.max(1, keepdims=True) > 1, albedo, albedo * received)


def developed(colour: Array) -> Array:
    """From linear light to what is shown: a soft shoulder, a gamma, a little contrast."""
    shown = (1 - np.exp(-1.75 * colour)).clip(0, 1) ** np.float32(.52)
    return shown * shown * (3 - 2 * shown) * .45 + shown * .55


def spread(x: Array) -> Array:
    """What was made for one ray a pixel, for all of them."""
    return x.repeat(SAMPLES, 0).repeat(SAMPLES, 1)


def ground_seen(what: Scene, ray: Rays, origin: Rays) -> tuple[Array, Array, Array]:
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


def window_of(thing: Solid | Ball, camera: Camera, origin: Rays, side: int) -> tuple[slice, slice]:
    """Rows and columns of the picture outside of which the thing is not seen."""
    corners = thing.corners if isinstance(thing, Solid) else thing.centre + thing.radii * CUBE
    p = corners - np.array(origin, np.float32)
    cosine, sine = np.cos(camera.down), np.sin(camera.down)
    ahead = np.maximum(p[:, 2] * cosine - p[:, 1] * sine, .05)
    column = (p[:, 0] / ahead * camera.zoom + 1) / 2 * side
    row = (1 - (p[:, 1] * cosine + p[:, 2] * sine) / ahead * camera.zoom) / 2 * side
    low, high = ([int(np.clip(f(v) + d, 0, side)) for v in (row, column)] for f, d in ((np.min, -1), (np.max, 2)))
    return slice(low[0], high[0]), slice(low[1], high[1])




def paint_over(thing: Solid | Ball, what: Scene, view: tuple[Rays, Rays],
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
    albedo = np.minimum(array(*ball.colour) * (.45 + 1.1 * rough)[:, None], MOST)
    if what.snow:
        albedo[n[:, 1] + 1.2 * (rough - .5) > .45] = SNOW
    n = n + ball.lumps * 2.4 * bumps
    return albedo.astype(np.float32), (n / np.linalg.norm(n, axis=1, keepdims=True)).astype(np.float32)


def sky_of(what: Scene, ray: Rays) -> Array:
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


def shadow_of(what: Scene, origin: Rays, ray: Rays, depth: Array) -> Array:
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
