"""The values that reading a checkpoint file produces: classes, objects, storages and tensors not yet read.

What is wrong with a storage or tensor is an error only when its numbers are read: a file is not judged by what nobody
needs.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Any, Protocol, TypeGuard

import torch

from ..errors import CheckpointError, short
from ..limits import MAX_DIMS

MAX_EXPANDED = 1 << 24  # numbers of a tensor that repeats those of a smaller storage (stride 0)
AGAIN = "download the file again, and compare its size with that on its page"

STORAGE_DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}
OTHER_SIZES = {"ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "QInt8Storage": 1, "QUInt8Storage": 1,
               "QInt32Storage": 4, "UntypedStorage": 1}  # bytes a number, of types that no network here has


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names. Nothing is imported; it is only a name, and may be a dict key."""

    module: str
    name: str

    def __str__(self) -> str:
        return short(f"{self.module}.{self.name}")


@dataclass(eq=False, slots=True)
class OpaqueObject:
    """What a call of an unknown class or function becomes: a record of what the file said, with no behaviour."""

    origin: object
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    state: Any = None
    items: list = field(default_factory=list)
    entries: dict = field(default_factory=dict)


class Source(Protocol):
    """Where numbers lie: `read(start, count)` gives exactly so many bytes, writable, in memory of their own."""

    def read(self, start: int, count: int) -> bytearray: ...


class FileSource:
    """A file. It is read, not mapped: a file that shrinks meanwhile is an error, not the end of the process."""

    def __init__(self, file: BufferedReader) -> None:
        self.file = file

    def __del__(self) -> None:
        self.file.close()

    def read(self, start: int, count: int) -> bytearray:
        data = bytearray(count)
        view, done = memoryview(data), 0
        self.file.seek(start, os.SEEK_SET)
        while done < count and (n := self.file.readinto(view[done:])):
            done += n
        if done < count:
            raise CheckpointError(f"the file ends before its numbers do; {AGAIN}")
        return data


class BytesSource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)

    def read(self, start: int, count: int) -> bytearray:
        return bytearray(self.data[start:start + count])


@dataclass(eq=False, slots=True)
class Storage:
    """A flat run of numbers in a file. `source` and `start` (a byte) are set once its place is known. `type_name`: as
    the file calls it; `dtype` is None for types that are not supported, `itemsize` 0 for unknown ones. problem: why it
    cannot be read."""

    dtype: torch.dtype | None
    numel: int
    itemsize: int = 0
    source: Source | None = None
    start: int = 0
    type_name: str = ""
    problem: str = ""

    def __post_init__(self) -> None:
        self.itemsize = self.dtype.itemsize if self.dtype else self.itemsize

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class TensorRef:
    """A strided view of a Storage; `read()` copies the numbers out of the file. problem: why that is impossible."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    problem: str = ""

    @property
    def dtype(self) -> torch.dtype | None:
        return self.storage.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.itemsize

    def check(self) -> torch.dtype:
        """The type of its numbers. CheckpointError if `read` is impossible."""
        problem = self.problem or self.storage.problem
        if not problem and self.storage.source is None and math.prod(self.shape):
            problem = f"it points at a storage that the file does not hold; {AGAIN}"
        if math.prod(n or 1 for n in self.shape) >= 2**60:
            problem = problem or f"its size {list(self.shape)} is impossible; {AGAIN}"
        if problem or self.dtype is None:
            raise CheckpointError(problem or unsupported(self.storage.type_name))
        return self.dtype

    def read(self) -> torch.Tensor:
        """The tensor itself: contiguous, in memory of its own. CheckpointError with what is wrong with it."""
        dtype, source = self.check(), self.storage.source
        if source is None or math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=dtype)
        span = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride))
        data = source.read(self.storage.start + self.offset * dtype.itemsize, span * dtype.itemsize)
        flat = torch.frombuffer(data, dtype=torch.uint8)
        flat = flat != 0 if dtype == torch.bool else flat.view(dtype)
        return flat.as_strided(self.shape, self.stride).contiguous()


def unsupported(type_name: str) -> str:
    """Why numbers of this type cannot be read."""
    fp8 = "f8_" in type_name.lower() or "float8" in type_name
    what = f"it is stored in fp8 ({short(type_name)})" if fp8 else f"its numbers are of type {short(type_name)}"
    return f"{what}, which is not supported; pick a file of 16 or 32 bit"


_NOWHERE = Storage(None, 0, problem="it has no storage of its own")


def broken(problem: str) -> TensorRef:
    """A tensor that cannot be read, and why."""
    return TensorRef(_NOWHERE, 0, (), (), problem)


def rebuild_tensor(storage: object, offset: object, shape: object, stride: object) -> TensorRef:
    """A view of `storage`. One that does not lie inside it, or repeats its numbers too often, cannot be read."""
    if not isinstance(storage, Storage):
        return broken(f"it has no storage of its own; {AGAIN}")
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and max(len(shape), len(stride)) <= MAX_DIMS):
        return broken(f"its size or stride is not a tuple of at most {MAX_DIMS} numbers; {AGAIN}")
    if not (_whole(offset) and all(map(_whole, (*shape, *stride)))):
        return broken(f"it has a negative, huge or non-integer size, stride or offset; {AGAIN}")
    if len(shape) != len(stride):
        return broken(f"its size and stride do not fit each other; {AGAIN}")
    numel = math.prod(shape)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride)) if numel else offset - 1
    if last >= storage.numel or numel > max(storage.numel, MAX_EXPANDED):
        return broken(f"its size {list(shape)} reaches beyond its storage of {storage.numel} numbers; {AGAIN}")
    return TensorRef(storage, offset, shape, stride)


def _whole(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63
