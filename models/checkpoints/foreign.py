"""Shared by the foreign formats: from TensorRefs inside a nested dict to checked tensors under our names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .errors import CheckpointError
from .records import TensorRef

MAX_TENSORS = 20_000


@dataclass(frozen=True)
class Foreign:
    """What a foreign checkpoint holds: {our name: tensor}, the kind (errors.KINDS) and small facts about it."""

    tensors: dict[str, torch.Tensor]
    kind: str
    meta: dict[str, Any] = field(default_factory=dict)


def is_tensor(value: object) -> bool:
    """True for a tensor of a torch file (TensorRef) or of a safetensors file."""
    return isinstance(value, (TensorRef, torch.Tensor))


def text_keys(value: object) -> list[str]:
    """The string keys of `value` if it is a dict, else []."""
    return [key for key in value if isinstance(key, str)] if isinstance(value, dict) else []


def entry(root: Mapping, name: str) -> dict[str, Any]:
    """root[name] as a non-empty dict of tensors under string keys; CheckpointError if it is anything else."""
    found = root.get(name)
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"its entry '{name}' is missing or empty; pick a complete checkpoint")
    for key, value in found.items():
        if not isinstance(key, str) or not is_tensor(value):
            raise CheckpointError(f"its entry '{name}' holds {str(key)[:80]!r}, which is not a named tensor; "
                                  "pick a checkpoint of the official program")
    return found


def strip(names: Iterable[str], prefix: str) -> dict[str, str]:
    """{name without prefix: name} for the names that begin with `prefix`; doubled prefixes are an error."""
    found = {name[len(prefix):]: name for name in names if name.startswith(prefix)}
    for short in found:
        if short.startswith(("module.", "model.", "ema_model.")) or prefix and short.startswith(prefix):
            raise CheckpointError(f"its tensor {prefix + short!r} has a doubled prefix (saved from a wrapped model); "
                                  "save the inner model again")
    return found


def part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, under their names without it."""
    return {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}


def numbers(name: str, value: Any, dims: range = range(1, 5)) -> torch.Tensor:
    """Read one weight: as many dimensions as `dims` allows, floating point, finite. float64 becomes float32."""
    if len(value.shape) not in dims:
        raise CheckpointError(f"its tensor '{name}' has {len(value.shape)} dimensions; "
                              f"expected {dims[0]} to {dims[-1]}")
    if not value.dtype.is_floating_point:
        raise CheckpointError(f"its tensor '{name}' is of type {value.dtype}; expected floating point weights")
    tensor = value.read() if isinstance(value, TensorRef) else value.detach().clone()
    tensor = tensor.float() if tensor.dtype == torch.float64 else tensor
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"its tensor '{name}' holds NaN or infinite numbers; the training that wrote it failed, "
                              "or the download is damaged: pick another checkpoint")
    return tensor


def read_all(source: Mapping[str, Any], names: Mapping[str, str],
             dims: range = range(1, 5)) -> dict[str, torch.Tensor]:
    """{our name: tensor} for names = {our name: name in source}. Many views of one storage cannot multiply memory."""
    if len(names) > MAX_TENSORS:
        raise CheckpointError(f"it has {len(names)} tensors, more than the {MAX_TENSORS} of any known model")
    refs = [source[name] for name in names.values() if isinstance(source[name], TensorRef)]
    stored = sum({id(ref.storage): ref.storage.nbytes for ref in refs}.values())
    if sum(ref.nbytes for ref in refs) > 2 * stored:
        raise CheckpointError("its tensors are many views of the same numbers; the file is hostile, do not use it")
    return {ours: numbers(name, source[name], dims) for ours, name in names.items()}


def whole_number(value: object) -> int | None:
    """`value` if it is a sane counter (an int of 0..2^53), else None."""
    return value if type(value) is int and 0 <= value <= 2**53 else None
