"""FFHQ's aligned square around a face, cut out of its picture and put back into it (docs/faces.md).

Pictures (3, H, W) are in [-1, 1], quads (4, 2) in continuous picture pixels: top left, bottom left, bottom right, top
right.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

LEFT_EYE, RIGHT_EYE = (33, 160, 158, 133, 153, 144), (362, 385, 387, 263, 373, 380)  # left in the picture
MOUTH = (61, 291)
OUTLINE = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149,
           150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)
EYE_OFFSET, MOUTH_OFFSET = (0.012, 0.015), (-0.001, 0.030)  # from the mesh's points to dlib's, as shares of the eyes
BOX_SHARE, BOX_CENTRE = 0.63, (0.504, 0.578)  # of the box around a face's points in the quad: longer side, centre
OVERSAMPLING = 4  # the crop is sampled at this many times its size, then reduced
SUPPORT = 6  # pixels of a reduced picture that a part of it is cut out wider by
ColourMatch = Literal["none", "border", "whole"]
COLOUR_MATCHES: tuple[ColourMatch, ...] = get_args(ColourMatch)
BORDER_PX = 64  # side at which the colours at the border are compared
KEPT, CHANGED = 1.5 / 127.5, 4.5 / 127.5  # a result that is off by so much is taken as the crop itself, as changed


# --- the quad ---------------------------------------------------------------------------------------------------------
def quarter(v: Tensor) -> Tensor:
    """Vectors (..., 2) turned clockwise by 90 degrees."""
    return torch.stack([-v[..., 1], v[..., 0]], -1)


def ffhq_quad(points: Tensor) -> Tensor:
    """The quad (4, 2) of a face's points (468, 2)."""
    left, right = points[list(LEFT_EYE)].mean(0), points[list(RIGHT_EYE)].mean(0)
    u = right - left
    down = quarter(u)
    eyes = (left + EYE_OFFSET[0] * u + EYE_OFFSET[1] * down, right - EYE_OFFSET[0] * u + EYE_OFFSET[1] * down)
    corners = points[MOUTH[0]] + MOUTH_OFFSET[0] * u, points[MOUTH[1]] - MOUTH_OFFSET[0] * u
    return eye_mouth_quad(*eyes, (corners[0] + corners[1]) / 2 + MOUTH_OFFSET[1] * down)


def eye_mouth_quad(left: Tensor, right: Tensor, mouth: Tensor) -> Tensor:
    """The quad (4, 2) of the middles of both eyes and of the mouth, (2,) each. ValueError if they lie in one place."""
    eye = (left + right) / 2
    e, m = right - left, mouth - eye
    x = e - quarter(m)
    if not x.norm() > 1e-3:
        raise ValueError("the points of the eyes and the mouth do not span a face; left and right are those of the "
                         "picture, the face upright")
    return square_quad(eye + 0.1 * m, F.normalize(x, dim=0) * torch.maximum(2.0 * e.norm(), 1.8 * m.norm()))


def five_point_quad(points: Tensor) -> Tensor:
    """The quad of five points (5, 2): left eye, right eye, nose, left and right corner of the mouth. ValueError."""
    return eye_mouth_quad(points[0], points[1], points[3:].mean(0))


def coarse_quad(points: Tensor) -> Tensor:
    """The quad of the detector's six points (6, 2), which are off by about a tenth of the distance of the eyes."""
    return eye_mouth_quad(points[0], points[1], points[3])


def box_quad(box: Tensor, of_face: bool = False) -> Tensor:
    """The upright quad of a box (4,): x0, y0, x1, y1. Its longer side is the quad's, or with `of_face` that of the box
    around a face, from forehead to chin."""
    sides = box[2:] - box[:2]
    side, centre = sides.amax(), (box[:2] + box[2:]) / 2
    if of_face:
        side = side / BOX_SHARE
        centre = centre + (0.5 - torch.tensor(BOX_CENTRE)) * side
    return square_quad(centre, torch.stack([side / 2, torch.zeros(())]))


def whole_quad(height: int, width: int) -> Tensor:
    """The corners of a picture of this size, in the order of a quad."""
    return torch.tensor([[0, 0], [0, height], [width, height], [width, 0]], dtype=torch.float32)


def square_quad(centre: Tensor, x: Tensor) -> Tensor:
    """The quad of a square: its centre (2,) and half of its top side (2,), from left to right."""
    y = quarter(x)
    return torch.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def side_of(quad: Tensor) -> float:
    return float((quad[3] - quad[0]).norm())


def outside(quad: Tensor, height: int, width: int) -> float:
    """Share 0..1 of the quad's area that lies outside a picture of this size."""
    steps = (torch.arange(64) + 0.5) / 64
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    x, y = (quad[0] + u[..., None] * (quad[3] - quad[0]) + v[..., None] * (quad[1] - quad[0])).unbind(-1)
    return float(((x < 0) | (y < 0) | (x > width) | (y > height)).float().mean())


# --- cutting out ------------------------------------------------------------------------------------------------------
def align(picture: Tensor, quad: Tensor, size: int, pad: bool = True) -> Tensor:
    """The aligned picture (3, size, size) of a quad. What lies outside the picture is its reflection, which fades
    into blur and the median colour; without `pad`, its border goes on. ValueError for a size below 1."""
    if size < 1:
        raise ValueError(f"the aligned picture's size must be 1 pixel at least; this is {size}")
    picture, quad = shrunk(*near(picture, quad, size), size)
    picture, quad = cut(picture, quad)
    if pad:
        picture, quad = padded(picture, quad)
    return resampled(picture, quad, size)


def reduction(quad: Tensor, size: int) -> int:
    """The whole number that a picture can be reduced by, so that at least two pixels are left for each of the
    result."""
    return max(1, math.floor(side_of(quad) / size / 2))


def near(picture: Tensor, quad: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The part of the picture that counts for the quad, and the quad in it. It reduces as the picture does, so sides
    that the reduction does not divide stay whole."""
    k = reduction(quad, size)
    margin, ends, box = border_of(quad / k) + SUPPORT, picture.shape[:0:-1], bounds(quad / k)
    spans = []
    for n, first, last in zip(ends, box[:2], box[2:], strict=True):
        start = min(max(first - margin, 0), n // k - 1) if n % k == 0 else 0
        spans.append((start * k, min(max(last + margin, start + 1) * k, n) if n % k == 0 else n))
    (x0, x1), (y0, y1) = spans
    return picture[:, y0:y1, x0:x1], quad - torch.tensor([x0, y0])


def shrunk(picture: Tensor, quad: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Picture and quad reduced by `reduction`."""
    k = reduction(quad, size)
    if k == 1:
        return picture, quad
    sides = tuple(max(round(n / k), 1) for n in picture.shape[1:])
    small = F.interpolate(picture[None], sides, mode="bicubic", antialias=True, align_corners=False)[0]
    return small.clamp(-1, 1), quad / k


def border_of(quad: Tensor) -> int:
    return max(round(0.1 * side_of(quad)), 3)


def bounds(quad: Tensor) -> tuple[int, int, int, int]:
    """Whole pixel indices around the quad: left, top, right, bottom."""
    index = quad - 0.5
    return (*index.amin(0).floor().long().tolist(), *index.amax(0).ceil().long().tolist())


def cut(picture: Tensor, quad: Tensor) -> tuple[Tensor, Tensor]:
    """The part of the picture around the quad, and the quad in it."""
    height, width = picture.shape[1:]
    border, (left, top, right, bottom) = border_of(quad), bounds(quad)
    x0, y0 = min(max(left - border, 0), width - 1), min(max(top - border, 0), height - 1)
    x1, y1 = max(min(right + border, width), x0 + 1), max(min(bottom + border, height), y0 + 1)
    return picture[:, y0:y1, x0:x1], quad - torch.tensor([x0, y0])


def padded(picture: Tensor, quad: Tensor) -> tuple[Tensor, Tensor]:
    """Picture and quad with reflected borders, if the quad comes near the picture's own."""
    height, width = picture.shape[1:]
    side, border, (left, top, right, bottom) = side_of(quad), border_of(quad), bounds(quad)
    pads = (-left + border, -top + border, right - width + border, bottom - height + border)
    if max(pads) <= border - 4:
        return picture, quad
    left, top, right, bottom = (max(n, round(0.3 * side)) for n in pads)
    columns, rows = (mirrored(n, *both).to(picture.device)
                     for n, both in ((width, (left, right)), (height, (top, bottom))))
    picture = picture[:, rows][:, :, columns]
    distance = [torch.minimum(torch.arange(n) / before, (n - 1 - torch.arange(n)) / after)
                for n, before, after in ((len(rows), top, bottom), (len(columns), left, right))]
    mask = (1 - torch.minimum(distance[0][:, None], distance[1][None])).to(picture)
    picture = torch.lerp(picture, blurred(picture, 0.02 * side), (3 * mask + 1).clamp(0, 1))
    picture = torch.lerp(picture, median(picture)[:, None, None].expand_as(picture), mask.clamp(0, 1))
    return picture.clamp(-1, 1), quad + torch.tensor([left, top])


def mirrored(n: int, before: int, after: int, repeat_edge: bool = False,
             device: torch.device | None = None) -> Tensor:
    """Indices (before + n + after,) of n pixels that are reflected at both ends, as often as is needed."""
    index = torch.arange(-before, n + after, device=device)
    if repeat_edge:
        index = index % (2 * n)
        return torch.minimum(index, 2 * n - 1 - index)
    period = max(2 * (n - 1), 1)
    index = index % period
    return torch.minimum(index, period - index) if n > 1 else torch.zeros_like(index)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Maps (C, H, W) under a Gaussian of `sigma` pixels; edges are reflected, the edge pixel repeated."""
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return x
    weights = torch.exp(-torch.arange(-radius, radius + 1, dtype=torch.float64).square() / (2 * sigma * sigma))
    kernel = (weights / weights.sum()).to(x)[None, None]
    for _ in range(2):  # rows, then columns
        index = mirrored(x.shape[2], radius, radius, repeat_edge=True, device=x.device)
        rows = F.conv1d(x[:, :, index].flatten(0, 1)[:, None], kernel)
        x = rows.reshape(x.shape).transpose(1, 2)
    return x


def median(x: Tensor) -> Tensor:
    """(C,) of maps (C, H, W): the mean of the middle two for an even count."""
    x = x.flatten(1)
    n = x.shape[1]
    return (x.kthvalue((n - 1) // 2 + 1, 1).values + x.kthvalue(n // 2 + 1, 1).values) / 2


def resampled(picture: Tensor, quad: Tensor, size: int) -> Tensor:
    """What a quad shows of the picture, (3, size, size)."""
    steps = ((torch.arange(OVERSAMPLING * size, device=picture.device) + 0.5) / (OVERSAMPLING * size)).to(picture)
    scale = 2 / torch.tensor([picture.shape[2], picture.shape[1]])
    grid = lattice(steps, steps, quad[0] * scale - 1, (quad[3] - quad[0]) * scale, (quad[1] - quad[0]) * scale)[None]
    large = F.grid_sample(picture[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.interpolate(large, (size, size), mode="bicubic", antialias=True, align_corners=False)[0].clamp(-1, 1)


def lattice(columns: Tensor, rows: Tensor, origin: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """(H, W, 2): origin + right * columns (W,) + down * rows (H,), of vectors (2,), on the device of rows and
    columns."""
    parts = [columns * float(right[k]) + (rows * float(down[k]) + float(origin[k]))[:, None] for k in range(2)]
    return torch.stack(parts, -1)


# --- putting back -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PasteSettings:
    """feather: width of the fading border, as a share of the quad, above 0 and up to 0.5.

    match_colour: border: what lies near the border gets the picture's colours there. whole: the result gets the
    picture's mean and deviation under the mask.
    """
    feather: float = 0.1
    match_colour: ColourMatch = "none"

    def __post_init__(self) -> None:
        if not 0 < self.feather <= 0.5:
            raise ValueError(f"feather must be above 0 and at most 0.5; this is {self.feather:g}")
        if self.match_colour not in COLOUR_MATCHES:
            raise ValueError(f"match_colour must be one of {', '.join(COLOUR_MATCHES)}; this is {self.match_colour!r}")


def paste_back(picture: Tensor, result: Tensor, quad: Tensor, settings: PasteSettings = PasteSettings(),
               mask: Tensor | None = None, crop: Tensor | None = None) -> Tensor:
    """The picture (3, H, W) with a result (3, n, n) in place of its quad, the one that `find_faces` gave.

    Outside the quad nothing changes. mask (m, m), 0..1: what of the quad is pasted, all of it by default. crop
    (3, k, k): what was cut out; where the result is still the same, the picture keeps its own pixels.
    """
    height, width = picture.shape[1:]
    x0, y0 = (quad.amin(0).floor().long().clamp_min(0)).tolist()
    x1, y1 = torch.minimum(quad.amax(0).ceil().long(), torch.tensor([width, height])).tolist()
    if x0 >= x1 or y0 >= y1:
        return picture.clone()
    shares = box_shares(x0, y0, x1, y1, quad, picture.device)
    result = result.to(picture)
    weight = square_weight(shares, settings.feather).to(picture)
    if mask is not None:
        weight = weight * sampled(mask[None].to(picture), shares)[0]
    blend = weight if crop is None else weight * sampled(changed(result, crop.to(picture)), shares)[0]
    if settings.match_colour == "border":
        result = with_border_of(picture, result, quad, settings.feather, mask)
    pasted, there = sampled(fitted(result, side_of(quad)), shares), picture[:, y0:y1, x0:x1]
    if settings.match_colour == "whole":
        pasted = recoloured(pasted, there, weight)
    out = picture.clone()
    out[:, y0:y1, x0:x1] = torch.where(blend > 0, blend * pasted + (1 - blend) * there, there)
    return out


def sampled(maps: Tensor, shares: Tensor) -> Tensor:
    """(C, H, W): maps (C, h, w) of a quad where `shares` (H, W, 2) lie in it."""
    grid = (shares * 2 - 1)[None].to(maps)
    return F.grid_sample(maps[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def changed(result: Tensor, crop: Tensor) -> Tensor:
    """(1, n, n), 0..1: where a result (3, n, n) differs from the crop it was made of, and a little around that."""
    if crop.shape != result.shape:
        crop = F.interpolate(crop[None], result.shape[1:], mode="bicubic", antialias=True, align_corners=False)[0]
    apart = (result - crop).abs().amax(0, keepdim=True)
    amount = ((apart - KEPT) / (CHANGED - KEPT)).clamp(0, 1)
    reach = math.ceil(0.03 * result.shape[1])
    for window in ((2 * reach + 1, 1), (1, 2 * reach + 1)):
        amount = F.max_pool2d(amount, window, 1, (window[0] // 2, window[1] // 2))
    return blurred(amount, 0.01 * result.shape[1])


def with_border_of(picture: Tensor, result: Tensor, quad: Tensor, feather: float, mask: Tensor | None) -> Tensor:
    """A result with the picture's colours where it fades out, and less and less of that further inside."""
    n = BORDER_PX
    weight = square_weight(centres(0, 0, n, n, picture.device) / n, max(feather, 2 / n)).to(picture)
    if mask is not None:
        weight = weight * resized(mask[None].to(picture), n)[0]
    ring = 4 * weight * (1 - weight)
    apart = align(picture, quad, n, pad=False) - resized(result, n)
    near = blurred(torch.cat([ring[None], ring * apart]), 0.08 * n)
    shift = near[1:] / (near[:1] + 0.1 * near[:1].amax().clamp_min(1e-6))
    smooth = F.interpolate(shift[None], result.shape[1:], mode="bicubic", align_corners=False)[0]
    return (result + smooth).clamp(-1, 1)


def face_mask(points: Tensor, quad: Tensor, size: int, device: torch.device | None = None) -> Tensor:
    """(size, size), 0..1: the inside of a face's outline, of its points (468, 2), in the aligned picture; its edge is
    soft. device: where it is computed."""
    outline = shares_of(points[list(OUTLINE)], quad) * size
    return blurred(inside(size, outline).to(device).float()[None], 0.04 * size)[0]


def centres(x0: int, y0: int, x1: int, y1: int, device: torch.device | None = None) -> Tensor:
    """(y1 - y0, x1 - x0, 2): the centres of the pixels of a box."""
    rows, columns = torch.arange(y0, y1, device=device) + 0.5, torch.arange(x0, x1, device=device) + 0.5
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], -1)


def shares_of(pixels: Tensor, quad: Tensor) -> Tensor:
    """Where pixels (..., 2) lie in a quad: (..., 2) from 0, 0 (top left) to 1, 1 (bottom right)."""
    along = [((pixels - quad[0]) @ side) / side.square().sum() for side in (quad[3] - quad[0], quad[1] - quad[0])]
    return torch.stack(along, -1)


def box_shares(x0: int, y0: int, x1: int, y1: int, quad: Tensor, device: torch.device) -> Tensor:
    """`shares_of` the centres of the pixels of a box."""
    columns, rows = (torch.arange(first, last, device=device) + 0.5 for first, last in ((x0, x1), (y0, y1)))
    sides = torch.stack([quad[3] - quad[0], quad[1] - quad[0]])
    sides = sides / sides.square().sum(1, keepdim=True)
    return lattice(columns, rows, -(sides @ quad[0]), sides[:, 0], sides[:, 1])


def square_weight(shares: Tensor, feather: float) -> Tensor:
    """(H, W): 1 inside the square, smoothly 0 towards its border and outside."""
    x, y = shares.unbind(-1)
    t = (torch.minimum(torch.minimum(x, 1 - x), torch.minimum(y, 1 - y)) / feather).clamp(0, 1)
    return t.square() * (3 - 2 * t)


def inside(size: int, outline: Tensor) -> Tensor:
    """(size, size) bool: which pixels' centres lie inside a polygon (P, 2), by the even-odd rule."""
    a, b = outline[:, None], outline.roll(-1, 0)[:, None]
    y = torch.arange(size) + 0.5
    crosses = (a[..., 1] > y) != (b[..., 1] > y)
    at = a[..., 0] + (y - a[..., 1]) * (b[..., 0] - a[..., 0]) / torch.where(crosses, b[..., 1] - a[..., 1], 1.0)
    left = (at - 0.5).ceil().clamp(0, size).long()  # so many pixels of the row lie left of the crossing
    ends = torch.zeros(size, size + 1, dtype=torch.long).scatter_add_(1, left.T, crosses.T.long())
    return ends.flip(1).cumsum(1).flip(1)[:, 1:] % 2 == 1


def fitted(result: Tensor, side: float) -> Tensor:
    """A result (3, n, n) reduced to about `side` pixels where it is more than twice as large."""
    return result if result.shape[1] <= 2 * side else resized(result, max(round(side), 1))


def resized(x: Tensor, size: int) -> Tensor:
    """Maps (C, h, w) in [-1, 1] at (C, size, size)."""
    return F.interpolate(x[None], (size, size), mode="bicubic", antialias=True, align_corners=False)[0].clamp(-1, 1)


def recoloured(x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """x (3, H, W) with the mean and deviation that `target` has under `weight` (H, W)."""
    share = weight / weight.sum().clamp_min(1e-6)
    (mean, deviation), (wanted, wanted_deviation) = (_moments(y, share) for y in (x, target))
    return ((x - mean) * (wanted_deviation / deviation.clamp_min(1e-4)) + wanted).clamp(-1, 1)


def _moments(x: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    mean = (x * share).sum((1, 2), keepdim=True)
    return mean, ((x - mean).square() * share).sum((1, 2), keepdim=True).sqrt()
