"""Which snapshots of a training are kept: the newest, NAME.snapshot, and a few earlier ones, NAME@00000100.snapshot.

All of one name lie on one training's way, so any of them can be resumed; the earlier ones are spread over it evenly.
"""
from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..models.checkpoints import store
from ..models.whole_files import whole_file

log = logging.getLogger(__name__)


def earlier_path(path: Path, step: int) -> Path:
    """Where the snapshot of an earlier step lies. No name that a user may give holds an @."""
    return path.with_name(f"{path.stem}@{step:08}{path.suffix}")


def _earlier_name(path: Path) -> str:
    return rf"{re.escape(path.stem)}@(\d{{8,16}}){re.escape(path.suffix)}"


def earlier(path: Path) -> dict[int, Path]:
    """The earlier snapshots of `path` by their step, in order."""
    try:
        files = list(path.parent.iterdir())
    except OSError as error:
        log.debug("%s cannot be read: %s", path.parent, error)
        return {}
    matches = ((re.fullmatch(_earlier_name(path), found.name), found) for found in files)
    return dict(sorted((int(match[1]), found) for match, found in matches if match))


def set_aside(path: Path, step: int, warn: Callable[[str], None] = log.warning) -> None:
    """Keep what `path` holds as an earlier snapshot; `path` stays as it is. A second name of one file: nothing is
    copied, and both names are whole at any time. A copy where the file system has no second names. warn: is told if
    that fails, too."""
    target = earlier_path(path, step)
    try:
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError as error:
            log.debug("%s has no second name (%s) and is copied", path, error)
            with whole_file(target) as file:
                shutil.copyfile(path, file)
    except OSError as error:
        to_do = "Free some space" if error.errno == errno.ENOSPC else "Save to a folder that can hold several files"
        warn(f"{path.name} of step {step} is not kept as an earlier snapshot ({error.strerror or error}). {to_do}, or "
             "set 'keep' to 1")


def thin(path: Path, end: int, most: int, newly: int = -1) -> None:
    """Remove earlier snapshots until there are at most `most`: those that lie nearest to equal parts of a training of
    `end` steps, and in any case that of step `newly`."""
    found = earlier(path)
    wanted = {min(found, key=lambda step: abs(step - part * end / (most + 1))) for part in range(1, most + 1) if found}
    if newly in found and newly not in wanted and len(wanted) == most:
        wanted.remove(min(wanted, key=lambda step: abs(step - newly)))
    for step in found.keys() - wanted - {newly}:
        remove(found[step])


def remove(path: Path) -> None:
    """A file that cannot be removed stays, and is named in the log."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s could not be removed (%s)", path, error.strerror or error)


def remove_stale(path: Path) -> None:
    """Remove what a killed process left of earlier snapshots half written."""
    with suppress(OSError):
        store.remove_stale(path.parent, _earlier_name(path))
        for half in path.parent.iterdir():  # a copy
            if re.fullmatch(rf"\.{_earlier_name(path)}\.part", half.name):
                remove(half)
