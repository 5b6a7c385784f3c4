"""Folders of aligned faces, cut out of a folder of whole pictures; labels come along (docs/faces.md)."""
from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..models.faces.crops import Advice, Choice, FaceCrop, cut_out, remarks, squares_found, why_none, why_not_this
from ..models.faces.find import FaceSettings, prepared, search_faces
from ..models.faces.networks import FaceNetworks
from . import labels
from .data import find_pictures, flat_names, read_whole
from .plots import save_picture

log = logging.getLogger(__name__)
BY_HAND = "use Detect & Align Faces in ComfyUI, which takes five points or a box by hand"
ADVICE = Advice(f"Give --any-direction for rotated pictures, --threshold 0.3 for drawings, or {BY_HAND}",
                f"Give a lower --threshold or --fallback, or {BY_HAND}")  # of `atelier align`


@dataclass(frozen=True)
class AlignConfig:
    """size: of the aligned faces, in pixels. faces: which of each picture. pad: see `align`. fallback: see
    `squares_found`. search: how they are searched."""
    size: int = 256
    faces: Choice = Choice()
    pad: bool = True
    fallback: bool = False
    search: FaceSettings = field(default_factory=lambda: FaceSettings(settled=True))


def align_folder(photos: Path, out: Path, nets: FaceNetworks, config: AlignConfig = AlignConfig(),
                 check_interrupt: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """Writes the faces of every picture as OUT/NAME.png, with all faces as OUT/NAME_0.png, OUT/NAME_1.png, ..

    Returns how many were written, and how many pictures were left out, which the log names. ValueError for two
    pictures of one name.
    """
    paths = find_pictures(photos)
    named = flat_names(paths, photos)
    out.mkdir(parents=True, exist_ok=True)
    shown, table, written, left = labels.of_pictures(paths), {}, 0, 0
    for name, path in named.items():
        check_interrupt()
        crops = faces_of(path, nets, config)
        written, left = written + len(crops), left + (not crops)
        for crop in crops:
            file = f"{name}_{crop.index}.png" if config.faces.which == "all" else f"{name}.png"
            save_picture(crop.crop, out / file)
            table |= {file: shown[path]} if path in shown else {}
    if table:
        labels.write(out, table)
    return written, left


def faces_of(path: Path, nets: FaceNetworks, config: AlignConfig) -> list[FaceCrop]:
    """The crops of a picture; what there is to be said of it goes to the log. [] for one that cannot be read, too."""
    try:
        picture = prepared(read_whole(path), nets.device)
    except ValueError as unreadable:
        log.warning("left out: %s", unreadable)
        return []
    search = search_faces(nets, picture, config.search)
    squares = squares_found(search, config.fallback)
    rows = config.faces.of(squares)
    if not rows:
        log.warning("left out: %s", why_not_this(path.name, len(squares), config.faces.index) if squares
                    else why_none(path.name, search, ADVICE))
    crops = cut_out(picture, 0, rows, config.size, config.pad)
    for (_, square), crop in zip(rows, crops, strict=True):
        for remark in remarks(square, crop.size, config.size, path.name, config.pad):
            log.info("%s: %s", path.name, remark)
    return crops
