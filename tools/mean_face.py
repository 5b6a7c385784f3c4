"""Makes models/faces/weights/mean_face.safetensors: the mean of the mesh's points over photos, and
how they move while the mouth opens (docs/faces.md).

    python3 tools/launch.py tools.mean_face --photos ../shared/data/faces --every 6

Each tenth photo of a folder is held out, as in the demo models' trainings.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ..models.checkpoints import store
from ..models.faces import geometry
from ..models.faces.networks import load_faces
from ..train.data import find_pictures, read_whole, to_unit

ROUNDS = 5  # of aligning all faces to their mean


def mean_of(faces: Tensor, mirror: Tensor) -> Tensor:
    """The mean (468, 2) of faces (N, 468, 2) in its own frame: each is aligned to it and counts with its mirror image.
    """
    mean = torch.stack([geometry.to_own_frame(face)(face) for face in faces]).mean(0)
    for _ in range(ROUNDS):
        mean = aligned(faces, mean).mean(0)
        mean = (mean + geometry.mirrored(mean, mirror)) / 2
        mean = geometry.to_own_frame(mean)(mean)
    return mean


def aligned(faces: Tensor, mean: Tensor) -> Tensor:
    return torch.stack([geometry.similarity(face, mean)(face) for face in faces])


def opening(faces: Tensor, mean: Tensor, mirror: Tensor) -> Tensor:
    """How points move (468, 2) while the lips part by 1: their regression on the opening of the mouth."""
    apart = aligned(faces, mean) - mean
    gap = geometry.opened(apart)
    moved = (gap[:, None, None] * apart).sum(0) / gap.square().sum()
    return (moved + geometry.mirrored(moved, mirror)) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--out", type=Path, default=geometry.MEAN_FACE)
    args = parser.parse_args()
    nets, found = load_faces(), []
    folders = sorted({path.parent for path in args.photos.rglob("*.jpg")}) or [args.photos]
    kept = [path for folder in folders for k, path in enumerate(find_pictures(folder)) if k % 10 != 9]
    for path in kept[::args.every]:
        read = geometry.landmarks(nets, to_unit(read_whole(path)))
        if read is not None and read.sure:
            found.append(read.points)
    faces, mirror = torch.stack(found), nets.mesh.mirror
    mean = mean_of(faces, mirror)
    store.save(args.out, {"points": mean.float(), "opening": opening(faces, mean, mirror).float()}, "mean_face", {},
               {"photos": len(found)}, None)
    print(f"{args.out}: the mean of {len(found)} photos")


if __name__ == "__main__":
    main()
