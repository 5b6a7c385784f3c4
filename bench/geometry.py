"""How far results follow a reference's geometry: landmarks before and after, edges, and whether a face is still read.

    python3 tools/launch.py bench.geometry --results osasis --results mmfs --references references

Each folder holds results of a stylizer (`atelier stylize` writes such a folder). Geometries are
those of the references against the mean face; what a result takes on is read against its landmarks before.
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
from ..models.faces.geometry import STIFFNESS, FaceGeometry, Landmarks
from ..models.faces.networks import FaceNetworks, load_faces
from ..train.data import find_pictures, read_whole, to_unit

STRENGTHS = (0.0, 0.5, 1.0, 1.5)


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
    apart, rest = (mean(getattr(one, field) for one in read) if read else float("nan") for field in ("distance", "rest"))
    return (f"| {name} | {strength:g} | {made.size:.3f} | {rest:.3f} | {apart:.3f} | {len(read)} of {len(trials)} | "
            f"{mean(one.edges for one in trials):.2f} | {sum(one.stiffer for one in trials)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True, type=Path, action="append")
    parser.add_argument("--references", required=True, type=Path)
    args = parser.parse_args()
    nets = load_faces()
    for folder in args.results:
        own = []
        for path in find_pictures(folder):
            result = unit(path)
            found = geometry.landmarks(nets, result)
            if found is not None and found.sure:
                own.append((result, found))
        print(f"\n{folder.name}: {len(own)} results with a sure face\n\n| reference | strength | its shift | distance from "
              "it | distance from strength x it | face read | edges | made stiffer |\n|---|---|---|---|---|---|---|---|")
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
