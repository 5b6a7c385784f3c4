"""The inert values that reading a torch file produces: classes, objects, storages and tensors not yet read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from .errors import CheckpointError

MAX_DIMS = 8

STORAGE_DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names. Nothing is imported; it is only a name, and may be a dict key."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Inert:
    """What a call of an unknown class or function becomes: a record of what the file said, with no behaviour."""

    origin: object
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    state: Any = None
    items: list = field(default_factory=list)
    entries: dict = field(default_factory=dict)


@dataclass(eq=False)
class Storage:
    """A flat run of numbers inside the file. `buffer` and `start` (a byte offset) are set once its place is known."""

    dtype: torch.dtype
    numel: int
    buffer: Any = None
    start: int = 0

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A strided view of a Storage, checked against its bounds; `read()` copies the numbers out of the file."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The tensor itself: contiguous, in memory of its own."""
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        if self.storage.buffer is None:
            raise CheckpointError("a tensor points at a storage that the file does not hold; download the file again")
        span = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride))
        size = self.dtype.itemsize
        start = self.storage.start + self.offset * size
        # Bytes first: storages of the legacy container are not aligned to their element size.
        flat = torch.frombuffer(self.storage.buffer, dtype=torch.uint8, count=span * size, offset=start).clone()
        flat = flat != 0 if self.dtype == torch.bool else flat.view(self.dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()


def _whole(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MAX_DIMS:
        raise CheckpointError(f"a tensor's size or stride is not a tuple of at most {MAX_DIMS} numbers; "
                              "the file is damaged or hostile, do not use it")
    if any(type(v) is not int or not 0 <= v < 2**63 for v in values):
        raise CheckpointError("a tensor has a negative, huge or non-integer size, stride or offset; "
                              "the file is damaged or hostile, do not use it")
    return values


def rebuild_tensor(storage: object, offset: object, shape: object, stride: object) -> TensorRef:
    """A view of `storage`; every element must lie inside it, and there may not be more elements than it has."""
    if not isinstance(storage, Storage):
        raise CheckpointError("a tensor has no storage of its own; the file is damaged or hostile, do not use it")
    (offset,), shape, stride = _whole((offset,)), _whole(shape), _whole(stride)
    if len(shape) != len(stride):
        raise CheckpointError("a tensor's size and stride do not fit each other; download the file again")
    numel = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride)) if numel else offset - 1
    if numel > storage.numel or last >= storage.numel:
        raise CheckpointError(f"a tensor of size {list(shape)} reaches beyond its storage of {storage.numel} numbers; "
                              "the file is damaged or hostile, do not use it")
    return TensorRef(storage, offset, shape, stride)
