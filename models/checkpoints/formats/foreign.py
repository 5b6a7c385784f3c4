"""Shared by the foreign formats: from TensorRefs to checked tensors under our names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import CheckpointError, short
from ..limits import MAX_TENSORS
from ..safe_pickle.records import TensorRef

FREE_BYTES = 64 << 20  # that the tensors read may take beyond twice their storages


@dataclass(frozen=True)
class Foreign:
    """What a foreign checkpoint holds: {our name: tensor}, the kind and small facts about it."""

    tensors: dict[str, torch.Tensor]
    kind: str
    meta: dict[str, Any] = field(default_factory=dict)


def with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, under their names without it."""
    return {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}


def joined(generator: Mapping[str, torch.Tensor],
           discriminator: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """One dict of the tensors of both, under `g.` and `d.`."""
    return ({f"g.{name}": value for name, value in generator.items()}
            | {f"d.{name}": value for name, value in (discriminator or {}).items()})


def relevant(state: Mapping[str, TensorRef], modules: tuple[str, ...]) -> dict[str, TensorRef]:
    """`state` without what stands beside a network's modules (prefixes) and can be no weight: counters, other types."""
    return {name: value for name, value in state.items()
            if name.startswith(modules) or value.dtype is not None and value.dtype.is_floating_point}


def numbers(name: str, value: TensorRef, dims: range = range(1, 5)) -> torch.Tensor:
    """Read one weight: as many dimensions as `dims` allows, floating point, finite. float64 becomes float32."""
    name = short(name)
    try:
        dtype = value.check()
    except CheckpointError as error:
        raise CheckpointError(f"its tensor '{name}' cannot be used: {error}") from error
    if len(value.shape) not in dims:
        raise CheckpointError(f"its tensor '{name}' has {len(value.shape)} dimensions; "
                              f"expected {dims[0]} to {dims[-1]}")
    if not all(value.shape):
        raise CheckpointError(f"its tensor '{name}' is empty: its shape is {list(value.shape)}; pick a complete "
                              "checkpoint")
    if not dtype.is_floating_point:
        raise CheckpointError(f"its tensor '{name}' is of type {dtype}; expected floating point weights")
    tensor = value.read()
    tensor = tensor.float() if tensor.dtype == torch.float64 else tensor
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"its tensor '{name}' holds NaN or infinite numbers; the training that wrote it failed, "
                              "or the download is damaged: pick another checkpoint")
    return tensor


def read_all(source: Mapping[str, TensorRef], names: Mapping[str, str],
             dims: range = range(1, 5)) -> dict[str, torch.Tensor]:
    """{our name: tensor} for names = {our name: name in source}. Many views of one storage cannot multiply memory."""
    if len(names) > MAX_TENSORS:
        raise CheckpointError(f"it has {len(names)} tensors, more than the {MAX_TENSORS} of any known model")
    refs = [source[name] for name in names.values()]
    stored = sum({id(ref.storage): ref.storage.nbytes for ref in refs}.values())
    if sum(ref.nbytes for ref in refs) > 2 * stored + FREE_BYTES:
        raise CheckpointError("its tensors are many views of the same numbers and would take many times the file's "
                              "size; save it again with tensors of their own")
    return {ours: numbers(name, source[name], dims) for ours, name in names.items()}
