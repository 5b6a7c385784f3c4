"""At which size each picture of a batch is stylized, and which are computed together (docs/mmfs.md E.1)."""
from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from ..models.faces import crops
from ..models.faces.align import side_of
from ..models.faces.find import FaceSettings
from ..models.mmfs import MMFS, MMFSConfig
from ..models.stylegan2 import sampling_memory
from . import host, images
from .faces import searching, signed
from .host import NodeProgress
from .osasis import chunks

Size = tuple[int, int]  # height, width
AS_IT_IS, EACH, BATCH = "off", "each picture", "whole batch"
FACE_SCALES = (AS_IT_IS, EACH, BATCH)
MOST_SIDE = 4096  # to which a picture is scaled for its face


@dataclass(frozen=True)
class Part:
    """Pictures of a batch that are computed together, at this size."""
    rows: slice
    size: Size

    def padded(self, config: MMFSConfig) -> Size:
        """With sides that the model takes."""
        height, width = (-(-side // config.stride) * config.stride for side in self.size)
        return height, width


def parts_of(sizes: Sequence[Size], config: MMFSConfig, batch: int) -> list[Part]:
    """A batch with these sizes in its order: neighbours of one size together, as much as `batch` pictures of the
    model's size at a time, since the whole of each lies on the device, in windows or not."""
    parts, start = [], 0
    for size, group in groupby(sizes):
        count, part = len(list(group)), Part(slice(0), size)
        height, width = part.padded(config)
        parts += [Part(slice(start + r.start, start + r.stop), size)
                  for r in chunks(count, max(1, batch * config.resolution ** 2 // (height * width)))]
        start += count
    return parts


def part_memory(part: Part, window: Size, net: MMFS, size: Size) -> int:
    """Bytes of a part on the device: the maps of a window; pictures, noise and results (at last of `size`) of the whole
    part, and of the one before, which is still there."""
    rows, padded, config = part.rows.stop - part.rows.start, part.padded(net.config), net.config
    picture = 3 * max(math.prod(padded), math.prod(size))
    noise = sum(map(math.prod, net.noise_shapes(*padded)))
    maps = sampling_memory(max(config.decoder[-1], config.encoder[0]), *window, rows)
    return maps + 4 * rows * 2 * (2 * picture + noise)


def sizes_for_faces(image: Tensor, size: Size, config: MMFSConfig, face_scale: str) -> list[Size]:
    """For each picture of an IMAGE the size at which its largest face is as large as in the model's crops; for the
    whole batch that of the median. Pictures without a face: `size`."""
    progress, film = NodeProgress(len(image)), crops.Choice() if face_scale == BATCH else None
    sides: list[float | None] = []
    with searching(FaceSettings(settled=True), film) as (search, device):
        for place in range(len(image)):
            faces = search(signed(image, place, device)).faces
            sides.append(side_of(faces[0].quad) if faces else None)
            progress()
    found = [side for side in sides if side is not None]
    if face_scale == BATCH:
        sides = [statistics.median(found) if found else None] * len(image)
    if None in sides:
        lost = ", ".join(str(place) for place, side in enumerate(sides) if side is None)
        host.inform(f"No face found in picture {lost}. face_scale has no effect there")
    own = image.shape[1], image.shape[2]
    return [size if side is None else scaled_size(own, config.resolution / side, config.stride) for side in sides]


def scaled_size(size: Size, scale: float, stride: int) -> Size:
    """A picture's size times a scale, of at most MOST_SIDE and at least a stride a side."""
    wanted = scale
    scale = max(min(scale, MOST_SIDE / max(size)), stride / min(size))
    if scale < wanted:
        host.inform(f"A face is so small that its picture would be {max(size) * wanted:.0f} px for it. It is "
                    f"stylized at {MOST_SIDE} px. For small faces, use Detect & Align Faces")
    return max(stride, round(size[0] * scale)), max(stride, round(size[1] * scale))


def result_size(image: Tensor, whole: bool, config: MMFSConfig, max_side: int) -> Size:
    """(height, width) of the results. ValueError for pictures that are too narrow."""
    if whole:
        return images.stride_size(image, config.stride, max_side)
    images.check(image, "image")
    return config.resolution, config.resolution
