"""Folders of drawings made from a folder of photos with the filters of `art_filters`; labels come along."""
from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from ..models import rng
from . import labels
from .art_filters import FILTERS, drawn
from .data import find_pictures, flat_names, read_picture
from .plots import save_picture

log = logging.getLogger(__name__)


def render(photos: Path, out: Path, styles: Sequence[str] = (), px: int = 128, seed: int = 0,
           check_interrupt: Callable[[], None] = lambda: None) -> int:
    """Draw every photo in every style (none: all of FILTERS) as OUT/npr_STYLE/NAME.jpg; what is there is kept.

    A photo in a folder of its own is called FOLDER_NAME.jpg. A drawing depends on its photo, style and seed alone.
    Photos that cannot be read are left out and named. Returns how many were drawn. ValueError for an unknown style, and
    for two photos of one name.
    """
    styles = tuple(styles) or tuple(FILTERS)
    if unknown := sorted(set(styles) - set(FILTERS)):
        raise ValueError(f"there is no filter {unknown[0][:40]!r}; there are {', '.join(FILTERS)}")
    paths = find_pictures(photos)
    named = {f"{name}.jpg": path for name, path in flat_names(paths, photos).items()}
    shown, count, unreadable = labels.of_pictures(paths), 0, set[Path]()
    for style in styles:
        folder = out / f"npr_{style}"
        folder.mkdir(parents=True, exist_ok=True)
        table = {name: shown[path] for name, path in named.items() if path in shown}
        if table:
            labels.write(folder, table)
        for name, path in named.items():
            if path in unreadable or (folder / name).exists():
                continue
            check_interrupt()
            try:
                photo = read_picture(path, px)
            except ValueError as error:
                log.warning("left out: %s", error)
                unreadable.add(path)
                continue
            save(folder / name, photo, style, seed)
            count += 1
        log.info("%s: %d drawings", folder.name, len(named) - len(unreadable))
    return count


def save(target: Path, photo: Tensor, style: str, seed: int) -> None:
    """One drawing of a photo, uint8 (3, px, px)."""
    picture = drawn(photo.float() / 255, style, rng.generator(seed, f"{style}/{target.name}"))
    save_picture(picture * 2 - 1, target)
