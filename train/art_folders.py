"""Folders of drawings made from a folder of photos with the filters of `art_filters`; labels come along."""
from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

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
    Returns how many were drawn. ValueError for an unknown style, and for two photos of one name.
    """
    styles = tuple(styles) or tuple(FILTERS)
    if unknown := sorted(set(styles) - set(FILTERS)):
        raise ValueError(f"there is no filter {unknown[0][:40]!r}; there are {', '.join(FILTERS)}")
    paths = find_pictures(photos)
    named = {f"{name}.jpg": path for name, path in flat_names(paths, photos).items()}
    shown, count = labels.of_pictures(paths), 0
    for style in styles:
        folder = out / f"npr_{style}"
        folder.mkdir(parents=True, exist_ok=True)
        table = {name: shown[path] for name, path in named.items() if path in shown}
        if table:
            labels.write(folder, table)
        for name, path in named.items():
            if not (folder / name).exists():
                check_interrupt()
                save(folder / name, path, style, px, seed)
                count += 1
        log.info("%s: %d drawings", folder.name, len(named))
    return count


def save(target: Path, photo: Path, style: str, px: int, seed: int) -> None:
    """One drawing."""
    picture = drawn(read_picture(photo, px).float() / 255, style, rng.generator(seed, f"{style}/{target.name}"))
    save_picture(picture * 2 - 1, target)
