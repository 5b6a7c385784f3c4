"""How far results follow a reference's geometry: landmarks before and after, edges, and whether a face is still read.

    python3 tools/launch.py bench.geometry --results osasis --results mmfs --references references
    python3 tools/launch.py bench.geometry --photos inputs --every 6

--results: a folder of results of a stylizer, as `atelier stylize` writes it. Geometries are those of the references
against the mean face; what a result takes on is read against its landmarks before. --photos: what the mesh reads of
three known deformations of each photo, at the first reading and the later ones, against the photo itself.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from kornia.filters import sobel
from torch import Tensor

from ..models import warp
from ..models.faces import geometry
from ..models.faces.align import LEFT_EYE, MOUTH, RIGHT_EYE
from ..models.faces.geometry import STIFFNESS, FaceGeometry, Landmarks
from ..models.faces.networks import FaceNetworks, load_faces
from ..train.data import find_pictures, read_whole, to_unit

STRENGTHS = (0.0, 0.5, 1.0, 1.5)
HEAD = ("| reference | strength | its shift | distance from it | distance from strength x it | face read | edges | "
        "made stiffer |\n|---|---|---|---|---|---|---|---|")


@dataclass(frozen=True)
class Trial:
    """One result at one strength. distance: of its geometry from strength times the reference's; rest: from the whole
    of the reference's; both means of lengths, in shares of the face's radius, None where no face is read."""
    read: bool
    distance: float | None
    rest: float | None
    edges: float
    stiffer: bool


def unit(path: Path) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    return to_unit(read_whole(path))


def geometry_of_reference(nets: FaceNetworks, picture: Tensor) -> FaceGeometry | None:
    """As Geometry from Reference makes it without a twin; None without a face."""
    found, plain = geometry.landmarks(nets, picture), geometry.mean_face()
    if found is None:
        return None
    made = geometry.geometry_of(plain, geometry.straightened(nets, picture, found, plain).points)
    return geometry.without_opening(geometry.symmetric(made, nets.mesh.mirror))


def trial(nets: FaceNetworks, result: Tensor, own: Landmarks, made: FaceGeometry, strength: float) -> Trial:
    """own: the landmarks of the result before."""
    bend = geometry.following(result, own.points, made, strength)
    after = warp.bent(result, bend) if strength else result
    first = geometry.landmarks_in(nets, after, own.square)
    edges = float(sobel(after[None]).mean() / sobel(result[None]).mean())
    if not first.sure:
        return Trial(False, None, None, edges, bend.stiffness > STIFFNESS)
    seen = geometry.geometry_of(own.points, geometry.straightened(nets, after, first, own.points).points).shift
    wanted = geometry.geometry_of(own.points, made.targets(own.points, 1.0)).shift
    apart, rest = ((seen - share * wanted).norm(dim=1).mean() for share in (strength, 1.0))
    return Trial(True, float(apart), float(rest), edges, bend.stiffness > STIFFNESS)


def line(name: str, strength: float, made: FaceGeometry, trials: Sequence[Trial]) -> str:
    read = [one for one in trials if one.read]
    apart, rest = (f"{mean(getattr(one, of) for one in read):.3f}" if read else "-" for of in ("distance", "rest"))
    return (f"| {name} | {strength:g} | {made.size:.3f} | {rest} | {apart} | {len(read)} of {len(trials)} | "
            f"{mean(one.edges for one in trials):.2f} | {sum(one.stiffer for one in trials)} |")


# --- what is read of a known deformation ------------------------------------------------------------------------------
def grown(points: Tensor, centre: Tensor, times: float, reach: float) -> Tensor:
    """Shifts of points (N, 2) that scale what is around a centre (2,)."""
    away = points - centre
    return (times - 1) * away * torch.exp(-away.square().sum(1, keepdim=True) / (2 * reach**2))


def deformations() -> dict[str, FaceGeometry]:
    """A wide jaw, large eyes over a small chin, a long nose in a long face: of the mean face."""
    face = geometry.mean_face()
    x, y = face.unbind(1)
    jaw = torch.sigmoid(2.2 * y)
    eyes = sum((grown(face, face[list(eye)].mean(0), 1.7, 0.45) for eye in (LEFT_EYE, RIGHT_EYE)),
               grown(face, face[list(MOUTH)].mean(0), 0.6, 0.5))
    chin = torch.stack([-0.25 * x * torch.sigmoid(4 * (y - 0.5)), torch.zeros_like(y)], 1)
    shifts = {"wide jaw": torch.stack([x * (0.45 * jaw - 0.2), 0.25 * jaw * y.clamp_min(0)], 1),
              "large eyes": eyes + chin,
              "long nose": grown(face, face[1], 1.8, 0.4) + torch.stack([-0.15 * x, 0.22 * y], 1)}
    return {name: geometry.geometry_of(face, face + shift) for name, shift in shifts.items()}


def readings(nets: FaceNetworks, photo: Tensor, made: FaceGeometry) -> list[tuple[float, float]] | None:
    """(share of the deformation that is read, mean distance from it as a share of it) at the first reading and after
    all of them; None if no face is found in the deformed photo."""
    own = geometry.landmarks(nets, photo)
    if own is None:
        return None
    deformed = warp.bent(photo, geometry.following(photo, own.points, made, 1.0))
    first = geometry.landmarks(nets, deformed)
    if first is None:
        return None
    true = geometry.geometry_of(own.points, made.targets(own.points, 1.0)).shift
    read = [geometry.geometry_of(own.points, one.points).shift for one in
            (first, geometry.straightened(nets, deformed, first, own.points))]
    return [(float((shift * true).sum() / true.square().sum()),
             float((shift - true).norm(dim=1).mean() / true.norm(dim=1).mean())) for shift in read]


def known(nets: FaceNetworks, photos: Sequence[Path]) -> None:
    print("\n| deformation | photos | read at once | off by | read in the end | off by |\n|---|---|---|---|---|---|")
    for name, made in deformations().items():
        found = [one for path in photos if (one := readings(nets, unit(path), made))]
        numbers = [f"{mean(one[when][of] for one in found):.2f}" for when in (0, 1) for of in (0, 1)]
        print(f"| {name} | {len(found)} | {' | '.join(numbers)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, action="append", default=[])
    parser.add_argument("--references", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--every", type=int, default=1)
    args = parser.parse_args()
    nets = load_faces()
    if args.photos:
        known(nets, find_pictures(args.photos)[::args.every])
    for folder in args.results:
        own = []
        for path in find_pictures(folder):
            result = unit(path)
            found = geometry.landmarks(nets, result)
            if found is not None and found.sure:
                own.append((result, found))
        print(f"\n{folder.name}: {len(own)} results with a sure face\n\n{HEAD}")
        for path in find_pictures(args.references):
            made = geometry_of_reference(nets, unit(path))
            if made is None:
                print(f"| {path.stem} | no face |")
                continue
            for strength in STRENGTHS:
                trials = [trial(nets, result, found, made, strength) for result, found in own]
                print(line(path.stem, strength, made, trials), flush=True)


if __name__ == "__main__":
    main()
