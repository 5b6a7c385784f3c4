"""Places of one picture that look like places of another, for faces that the mesh does not read (docs/faces.md)."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import warp
from ..features.protocols import StructureNet
from .geometry import FaceGeometry, geometry_of, similarity

FEWEST = 8  # matches of which a geometry is made
MOST_OFF = 0.2  # of a match from the similarity of all, in shares of the side of the face's box
ROUNDS = 4
STIFFNESS = 0.1  # in units of the picture's longer side: matches are places of a coarse raster
MOST_SHIFT = 0.2  # of a geometry, in radii of the face; a strong caricature has 0.17
MARGIN = 0.15  # around the face, of its box


def token_places(count: int) -> tuple[Tensor, int]:
    """The places (n, 2), as shares of a square picture, of the last n of `count` tokens, and how many tokens come
    before them. ValueError for a raster that is not square."""
    side = math.isqrt(count)
    if count - side * side > 1:
        raise ValueError(f"{count} keys are no square raster; connect a structure network of square pictures")
    return warp.pixel_centres(side, side).reshape(-1, 2).float(), count - side * side


@torch.no_grad()
def mutual_matches(net: StructureNet, plain: Tensor, deformed: Tensor) -> tuple[Tensor, Tensor]:
    """Places (n, 2) of both pictures (3, H, W) in [-1, 1], in their pixels, whose keys are each other's nearest by
    cosine."""
    side = max(*plain.shape[1:], *deformed.shape[1:])
    pair = torch.cat([F.interpolate(x[None], (side, side), mode="bilinear", antialias=True, align_corners=False)
                      for x in (plain, deformed)])
    keys = net.keys(pair).float().cpu()
    places, before = token_places(keys.shape[1])
    one, other = F.normalize(keys[:, before:] - keys[:, before:].mean(1, keepdim=True), dim=2)
    likeness = one @ other.T
    there, back = likeness.argmax(1), likeness.argmax(0)
    mutual = (back[there] == torch.arange(len(there))).nonzero()[:, 0]
    sizes = [torch.tensor([x.shape[2], x.shape[1]]) for x in (plain, deformed)]
    return places[mutual] * sizes[0], places[there[mutual]] * sizes[1]


def consistent(plain: Tensor, deformed: Tensor, face: Tensor) -> tuple[Tensor, Tensor]:
    """Of matches (n, 2), those in the box of a face (468, 2) of the plain picture that no similarity puts elsewhere.
    ValueError if too few are left."""
    least, most = face.amin(0), face.amax(0)
    side = float((most - least).max())
    inside = ((plain > least - MARGIN * side) & (plain < most + MARGIN * side)).all(1)
    plain, deformed = plain[inside], deformed[inside]
    for _ in range(ROUNDS):
        if len(plain) < FEWEST:
            break
        best = similarity(deformed, plain)
        near = (best(deformed) - plain).norm(dim=1) < MOST_OFF * side
        plain, deformed = plain[near], deformed[near]
    if len(plain) < FEWEST:
        raise ValueError(f"only {len(plain)} places of the photo twin were found again in the style image, {FEWEST} "
                         "are needed. Take a style image whose face is more like a photo's, or write pairs of points")
    return plain, deformed


def geometry_of_matches(plain: Tensor, deformed: Tensor, face: Tensor, longer: float, origin: str,
                        stiffness: float = STIFFNESS) -> FaceGeometry:
    """The geometry that brings places (n, 2) of the plain picture, whose face has the points (468, 2), to places of
    the deformed one, smoothly in between. longer: the plain picture's longer side. stiffness: of the
    spline. ValueError for fewer than three
    places, for such in a line, and for places that no face can have."""
    spline = warp.fit(plain / longer, deformed / longer, stiffness)
    made = geometry_of(face, (spline(face / longer) * longer).float(), origin)
    if made.size > MOST_SHIFT:
        raise ValueError(f"{origin} shift the landmarks by {100 * made.size:.0f} % of the face's radius, which is more "
                         f"than any face is deformed ({100 * MOST_SHIFT:.0f} %), so they belong to other places. Write "
                         "pairs of points, or take another style image")
    return made
