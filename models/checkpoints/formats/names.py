"""Tables of tensor names: one row a tensor, ours beside that of a public program, and how the two shapes differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, short
from .foreign import read_all

MAX_COUNT = 64  # of layers of one kind in any of these networks
_CONSTANT = re.compile(r"(.*\.)?(kernel|resample_filter)")  # the FIR filter, always the same: `Fir` makes its own


@dataclass(frozen=True)
class Row:
    """`theirs` is `ours` with `lead` ones in front of its shape and `trail` behind. Optional ones may be missing.

    mean: a vector that may come as a stack of rows, whose mean it is."""

    ours: str
    theirs: str
    lead: int = 0
    trail: int = 0
    optional: bool = False
    mean: bool = False

    def inside(self, ours: str, theirs: str) -> Row:
        """The row of the same tensor inside larger modules of these prefixes."""
        return Row(ours + self.ours, theirs + self.theirs, self.lead, self.trail, self.optional, self.mean)


def inside(rows: Iterable[Row], ours: str, theirs: str) -> list[Row]:
    return [row.inside(ours, theirs) for row in rows]


def linear(names: Iterable[tuple[str, str]]) -> list[Row]:
    """Rows of weight and bias for modules that both sides shape alike."""
    return [Row(f"{ours}.{part}", f"{theirs}.{part}") for ours, theirs in names for part in ("weight", "bias")]


def count(names: Iterable[str], prefix: str) -> int:
    """One more than the largest number that stands behind `prefix`; 0 if there is none, at most MAX_COUNT."""
    heads = {name[len(prefix):].partition(".")[0] for name in names if name.startswith(prefix)}
    return min(MAX_COUNT, 1 + max((int(head) for head in heads if head.isdecimal() and len(head) < 5), default=-1))


def to_ours(tensors: Mapping[str, Tensor], rows: Sequence[Row]) -> dict[str, Tensor]:
    """{our name: tensor of our shape}; constant filters are dropped. CheckpointError if one is missing or too many."""
    _check_names(tensors, rows)
    return {row.ours: _ours(row, tensors[row.theirs]) for row in rows if row.theirs in tensors}


def from_ours(tensors: Mapping[str, Tensor], rows: Sequence[Row]) -> dict[str, Tensor]:
    """The opposite of `to_ours`: {their name: tensor of their shape}, without the constant filters."""
    return {row.theirs: tensors[row.ours][(None,) * row.lead + (..., *(None,) * row.trail)]
            for row in rows if row.ours in tensors or not row.optional}


def read(state: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Tensor]:
    """`to_ours` of tensors that are still in their file; what is not in the table is not read."""
    _check_names(state, rows)
    wanted = {row.theirs: row.theirs for row in rows if row.theirs in state}
    return to_ours(read_all(state, wanted, dims=range(6)), rows)


def _check_names(tensors: Iterable[str], rows: Sequence[Row]) -> None:
    known = {row.theirs for row in rows}
    needed = [row.theirs for row in rows if not row.optional]
    missing = [name for name in needed if name not in tensors]
    if len(missing) > len(needed) // 2:
        some = ", ".join(short(name) for name in list(tensors)[:3])
        raise CheckpointError(f"most of its tensors have other names than those of the public program (it has {some}); "
                              "pick a checkpoint of the unchanged public program")
    if missing:
        raise CheckpointError(f"its tensor '{missing[0]}' is missing ({len(missing)} of {len(needed)} are); "
                              "pick a complete checkpoint")
    unexpected = [name for name in tensors if name not in known and not _CONSTANT.fullmatch(name)]
    if unexpected:
        raise CheckpointError(f"it has a tensor '{short(unexpected[0])}' that this network does not have "
                              f"({len(unexpected)} in all); pick a checkpoint of the unchanged public program")


def _ours(row: Row, tensor: Tensor) -> Tensor:
    if row.mean and tensor.ndim:
        return tensor if tensor.ndim == 1 else tensor.reshape(-1, tensor.shape[-1]).float().mean(0)
    shape = tuple(tensor.shape)
    end = len(shape) - row.trail
    if end < row.lead or any(n != 1 for n in shape[:row.lead] + shape[end:]):
        raise CheckpointError(f"its tensor '{row.theirs}' has shape {list(shape)}; expected {row.lead} leading and "
                              f"{row.trail} trailing dimensions of 1: pick a file of the unchanged public program")
    return tensor.reshape(shape[row.lead:end])
