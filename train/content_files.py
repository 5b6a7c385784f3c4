"""Tensors that a training prepares on disk, to be used by later trainings of the same settings (docs/osasis.md C.3).

FOLDER/KEY/NNNNNN.content: KEY stands for the settings that decide the numbers; a file of the pack's own store holds one
block. Whatever goes wrong with a file, the training makes the block itself and goes on.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..models.checkpoints import CheckpointError, store
from ..models.hashing import hash_of
from .loop import Hooks

KIND = "osasis_content"
DEFAULT_GB = 4.0
KEEP_FREE = 2 << 30  # bytes of the disk that are left alone: for snapshots, which matter more
_KEY = re.compile(r"[0-9a-f]{32}")
_FILE = re.compile(r"\d{6}\.content")
_TEMPORARY = re.compile(r"\.(\d{6}\.content)\.\w{8}\.tmp")


@dataclass(frozen=True)
class ContentFolder:
    """Where prepared content is kept, and how many bytes of it at most."""
    path: Path
    limit: int = int(DEFAULT_GB * 1e9)

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"the limit of the content folder is {self.limit} bytes; take 0 or more")

    @classmethod
    def of(cls, path: Path, gigabytes: float) -> ContentFolder | None:
        """None for 0 GB."""
        return cls(path, int(gigabytes * 1e9)) if gigabytes else None

    def sizes(self) -> dict[Path, int]:
        """Bytes of the files of every key; files that are not of this pack do not count."""
        return {folder: used(folder) for folder in own_folders(self.path)}

    def describe(self) -> str:
        """Its size, limit and place."""
        return f"{sum(self.sizes().values()) / 1e9:.2f} GB of at most {self.limit / 1e9:g} GB in {self.path}"

    def make_room(self, needed: int, kept: Path) -> int:
        """Remove the files of least recently used keys, but `kept`, until `needed` more bytes can be written. Returns
        how many can."""
        self.path.mkdir(parents=True, exist_ok=True)
        sizes = self.sizes()
        left = self.limit - sum(sizes.values())
        for folder in sorted(sizes.keys() - {kept}, key=last_use):
            if left >= needed:
                break
            remove_files(folder)
            left += sizes[folder] - used(folder)
        return min(left, shutil.disk_usage(self.path).free - KEEP_FREE)


class ContentFiles:
    """The blocks of one key: what was prepared with these JSON-able settings. Each block has a number.

    like: a block without its numbers (on device "meta"). `read` and `write` never fail: they warn.
    """

    def __init__(self, folder: ContentFolder, settings: dict, like: Mapping[str, Tensor],
                 hooks: Hooks = Hooks()) -> None:
        text = json.dumps(settings, sort_keys=True)
        self.folder, self.settings, self.like, self.hooks = folder, settings, like, hooks
        self.bytes = sum(value.numel() * value.element_size() for value in like.values())
        self.place = folder.path / hashlib.sha256(text.encode()).hexdigest()[:32]
        self.room, self.stopped = 0, False

    def path(self, number: int) -> Path:
        return self.place / f"{number:06d}.content"

    def has(self, number: int) -> bool:
        """Is there a file of this block? Only reading it tells whether it can be used."""
        return os.path.isfile(self.path(number))

    def read(self, number: int) -> dict[str, Tensor] | None:
        """The block's tensors on the CPU, or None if there is no file that can be used."""
        if not self.has(number):
            return None
        try:
            tensors = self._load(number)
        except (OSError, CheckpointError) as error:
            if os.path.lexists(self.path(number)):  # else another process has just removed it
                self.hooks.warn(f"Prepared content cannot be used, and is made anew: {error}")
            return None
        with suppress(OSError):  # of a folder that may only be read
            os.utime(self.place)
        return tensors

    def _load(self, number: int) -> dict[str, Tensor]:
        """CheckpointError for a file that is damaged, or not of this block."""
        path = self.path(number)
        header = store.peek(path)
        found = {name: shape for name, (_, shape) in header.shapes.items()}
        expected = {name: tuple(value.shape) for name, value in self.like.items()}
        if (header.kind, header.config, found) != (KIND, self._config(number), expected):
            raise CheckpointError(f"{path} holds something else")
        stored = store.load(path, KIND)
        if stored.meta.get("hash") != hash_of(stored.tensors, None):
            raise CheckpointError(f"{path} is damaged: its numbers are not those that were written")
        return stored.tensors

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a block, if there is room. After a failure nothing more is written."""
        if self.stopped:
            return
        try:
            if self.room < self.bytes:
                self.room = self.folder.make_room(self.bytes, self.place)
            if self.room < self.bytes:
                full = f"There is no more room to keep content pictures ({self.folder.describe()})"
                self._stop(full, self.hooks.tell)
                return
            store.save(self.path(number), tensors, KIND, self._config(number), {"hash": hash_of(tensors, None)},
                       dtype=None)
            self.room -= self.bytes
        except (OSError, CheckpointError) as error:
            self._stop(f"Content pictures cannot be kept on disk: {error}", self.hooks.warn)

    def _config(self, number: int) -> dict:
        return self.settings | {"block": number}

    def _stop(self, text: str, say: Callable[[str], None]) -> None:
        self.stopped = True
        say(f"{text}. The training goes on and makes what it needs")


# --- what is on disk --------------------------------------------------------------------------------------------------
def own_folders(root: Path) -> list[Path]:
    """The keys' folders in a content folder."""
    return [path for path in entries(root) if _KEY.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def own_files(folder: Path) -> list[Path]:
    """The files in a key's folder that this pack wrote, also those that a killed process left half-written."""
    return [path for path in entries(folder) if _FILE.fullmatch(path.name) or _TEMPORARY.fullmatch(path.name)]


def entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing if it cannot be read or another process has just removed it."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def used(folder: Path) -> int:
    """Bytes of a key's files."""
    total = 0
    for path in own_files(folder):
        with suppress(OSError):
            total += path.lstat().st_size
    return total


def remove_files(folder: Path) -> None:
    """Remove a key's files, and its folder if nothing else lies there. Those in use stay."""
    for path in own_files(folder):
        temporary = _TEMPORARY.fullmatch(path.name)
        with suppress(OSError):
            store.remove(folder / temporary[1]) if temporary else path.unlink()
    with suppress(OSError):
        folder.rmdir()


def last_use(folder: Path) -> float:
    """When a key was last read or written."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
