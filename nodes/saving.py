"""How every saving node writes its file."""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..train.session import plain_name
from . import host

Style = TypeVar("Style")


def save_once(folder: str, name: str, overwrite: bool, is_same: Callable[[Path], bool],
              write: Callable[[Path], object], what: str) -> io.NodeOutput:
    """Write NAME.safetensors into a model folder. A file of that name is replaced if `overwrite` and left if it is the
    same. Otherwise the new file gets the next free number, so that no work is lost, and the node says so. Returns what
    a saving node puts out."""
    wanted = host.model_folder(folder) / f"{plain_name(name)}.safetensors"
    path, note = wanted, ""
    if not overwrite:
        path = next(path for path in numbered(wanted) if not path.exists() or is_same(path))
    if path != wanted:
        note = f"\n{wanted.name} holds another {what}, so this one was saved as {path.name}."
        host.show_text(note.strip())
    if overwrite or not path.exists():
        write(path)
    return io.NodeOutput(str(path), ui=ui.PreviewText(f"{path}{note}"))


def numbered(path: Path) -> Iterator[Path]:
    """The path itself, then 'NAME 2.safetensors', 'NAME 3.safetensors', ..."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.stem} {number}{path.suffix}")


def holds(path: Path, load: Callable[[Path], Style], style: Style,
          parts: Callable[[Style], tuple[object, Mapping[str, Tensor]]]) -> bool:
    """Does the file hold this very style? parts(style): what it is made with, and its weights."""
    try:
        saved = load(path)
    except ValueError:
        return False
    (theirs, saved_weights), (ours, weights) = parts(saved), parts(style)
    return theirs == ours and same_weights(saved_weights, weights)


def same_weights(saved: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Are these the same tensors, as 16-bit numbers?"""
    return saved.keys() == weights.keys() and all(
        torch.equal(saved[key].half(), value.half()) for key, value in weights.items())
