"""Everyone's face: is there still a face in a result, and do its landmarks stay where the photo's are?

The reader is the mesh of models/faces. A photo's face is found in the whole photo. In a result, the mesh is read where
the photo's face is, so a face that is elsewhere or of another size does not count. (docs/faces.md)
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..models.faces import find, mesh
from ..models.faces.geometry import enlarged
from ..models.faces.mesh import LEFT_CORNER, RIGHT_CORNER
from ..models.faces.networks import FaceNetworks
from ..train import labels

ALIGNED_SQUARE = (0.504, 0.578, 0.943, 0.0)  # where a face lies in pictures aligned as FFHQ's (means of 40 portraits)


@dataclass(frozen=True)
class FaceReading:
    """What the mesh reads in B pictures. quality (B,): the least of its three logits. points (B, 468, 2): as shares of
    the picture's longer side."""
    quality: Tensor
    points: Tensor

    @property
    def read(self) -> Tensor:
        """(B,) bool: the mesh is sure of a face (quality >= 15, what every photograph reaches)."""
        return self.quality >= find.SURE

    @property
    def eye_distance(self) -> Tensor:
        """(B,) between the outer corners of the eyes."""
        return (self.points[:, RIGHT_CORNER] - self.points[:, LEFT_CORNER]).norm(dim=1)


@torch.no_grad()
def face_squares(nets: FaceNetworks, pictures: Tensor) -> Tensor:
    """The square (B, 4) around each picture's largest face: centre x, y and side as shares of the longer side, angle.
    ALIGNED_SQUARE where none is found. pictures (B, 3, H, W) in [-1, 1], on the networks' device."""
    found = []
    for picture in enlarged(pictures):
        faces = find.find_faces(nets, picture)
        scale = torch.tensor([*(1 / max(picture.shape[1:]),) * 3, 1.0])
        found.append(faces[0].roi * scale if faces else torch.tensor(ALIGNED_SQUARE))
    return torch.stack(found)


@torch.no_grad()
def read_faces(nets: FaceNetworks, pictures: Tensor, squares: Tensor) -> FaceReading:
    """The mesh of pictures (B, 3, H, W) in [-1, 1] in squares (B, 4) of `face_squares`, one for each."""
    pictures = enlarged(pictures)
    longer = max(pictures.shape[2:])
    scale = torch.tensor([longer, longer, longer, 1.0])
    readings = mesh.Reading.of([mesh.read(nets.mesh, picture, (square * scale)[None])
                                for picture, square in zip(pictures, squares, strict=True)])
    return FaceReading(readings.quality, readings.points / longer)


def landmark_shift(photos: FaceReading, results: FaceReading) -> Tensor:
    """(B,) mean distance of the 468 points of photo and result, as a share of the photo's eye distance (between the
    outer corners). NaN where no face is read in either."""
    apart = (photos.points - results.points).norm(dim=2).mean(1) / photos.eye_distance
    return torch.where(photos.read & results.read, apart, torch.nan)


# --- groups -----------------------------------------------------------------------------------------------------------
def label_groups(photos: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Which of the photos carry a label of each group ("hats", "expression", ..), by the labels.csv beside them."""
    tables = {folder: labels.read_groups(folder) for folder in {path.parent for path in photos}}
    groups: dict[str, list[int]] = {}
    for k, path in enumerate(photos):
        for group in tables[path.parent].get(path.name, ()):
            groups.setdefault(group, []).append(k)
    return {group: tuple(groups[group]) for group in sorted(groups)}


def group_means(values: Mapping[str, Tensor], groups: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """{group: {metric: mean}} of numbers (B,) a picture. NaN are left out, and a metric that is NaN for all."""
    return {group: {name: float(of.nanmean()) for name, numbers in values.items()
                    if not (of := numbers[list(rows)]).isnan().all()} for group, rows in groups.items()}
