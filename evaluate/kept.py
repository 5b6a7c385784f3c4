"""What was measured and is kept in a folder: a later run goes on behind it, and several processes share the work."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ..models.features.protocols import Weighted
from ..models.hashing import hash_of
from ..models.whole_files import write_whole

KEPT = "kept"  # folder of what is done, beside the results
VERSION = 2  # raise it when the same settings and pictures give other numbers
Json = TypeVar("Json", dict, list)


def kept(folder: Path | None, identity: Iterable[str], make: Callable[[], Json]) -> Json:
    """What `make` returned for this identity before, or returns now, which is kept at once. identity: all that decides
    it. folder: None for nothing kept."""
    if folder is None:
        return make()
    file = folder / f"{hashlib.sha256(json.dumps([VERSION, *identity]).encode()).hexdigest()[:32]}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    found = make()
    write_whole(file, json.dumps(found, indent=0))
    return found


def kept_first(folder: Path | None, identity: Iterable[str],
               make: Callable[[], tuple[Json, list[Tensor]]]) -> tuple[Json, list[Tensor]]:
    """As `kept`, of the numbers that `make` returns beside pictures, which are [] if it was not called: what fails with
    the pictures loses no number."""
    pictures: list[Tensor] = []

    def numbers() -> Json:
        found, made = make()
        pictures.extend(made)
        return found
    return kept(folder, identity, numbers), pictures


def networks_identity(networks: Iterable[Weighted | None]) -> list[str]:
    """Hashes of the weights; None has one, too."""
    return ["none" if net is None else hash_of(net.state_dict()) for net in networks]


def pictures_identity(pictures: Tensor) -> str:
    """A hash of every bit of pictures."""
    return hash_of({"pictures": pictures}, None)
