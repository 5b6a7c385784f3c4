"""The pack's own store: one safetensors file with kind, config and meta in its header, written atomically."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import torch

from ..whole_files import replace
from .errors import CheckpointError, WrongKindError, check_file, describe_bytes, reading, short
from .limits import MAX_DIMS, MAX_FILE_BYTES, MAX_TENSORS
from .safe_pickle.records import FileSource, Storage, TensorRef

log = logging.getLogger(__name__)
VERSION = 1
DIVERGED = "the training diverged: lower the learning rate or go back to an earlier save"
MAX_HEADER_BYTES = 16 << 20
MAX_INFO_BYTES = 4 << 20
YOUNG = 60  # seconds
_ENTRY = "atelier"
_KIND = re.compile(r"[A-Za-z0-9_]{1,64}")
FULL_PRECISION = ("conds_mean", "conds_std")  # small, and every drawn z is scaled by them
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
           "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Header:
    """What a file says about itself: {tensor name: (dtype, shape)}; kind, config and meta are None in foreign files."""

    shapes: dict[str, tuple[str, tuple[int, ...]]]
    kind: str | None = None
    config: dict[str, Any] | None = None
    meta: dict[str, Any] | None = None


@dataclass(frozen=True)
class Stored:
    """One checkpoint in memory. `config` is None when a foreign file was read: detect it from the shapes then."""

    tensors: dict[str, torch.Tensor]
    kind: str
    config: dict[str, Any] | None
    meta: dict[str, Any] = field(default_factory=dict)


def save(path: str | Path, tensors: Mapping[str, torch.Tensor], kind: str, config: dict[str, Any],
         meta: dict[str, Any] | None = None, dtype: torch.dtype | None = torch.float16) -> Path:
    """Write `tensors` with their `kind` (letters, digits and _), JSON-able `config` and `meta`; returns the path.

    Floating point tensors are stored as `dtype` (unchanged if None), others and those named in FULL_PRECISION as they
    are, and those with numbers too large for `dtype` in 32 bit. The file appears complete or not at all: a temporary
    file beside it is synced and renamed. Raises CheckpointError for NaN and infinity, also in `config` and `meta`, and
    if it cannot be written; the old file is as it was then.
    """
    path = Path(path)
    if not _KIND.fullmatch(kind):
        raise ValueError(f"{kind!r} is no name of a kind; use at most 64 letters, digits and _")
    _check_finite(tensors, "", DIVERGED)
    for name, value in (("config", config), ("meta", meta or {})):
        _check_numbers(name, value)
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(f"{path.name}: {len(tensors)} tensors are more than the {MAX_TENSORS} that a file may "
                              "have; keep many small ones in a large one")
    info = json.dumps({"kind": kind, "version": VERSION, "config": config, "meta": meta or {}}, allow_nan=False)
    if len(info) > MAX_INFO_BYTES:
        raise CheckpointError(f"{path.name}: config and meta take {len(info)} bytes, more than {MAX_INFO_BYTES}; "
                              "keep long lists in tensors")
    ready = _storable(tensors, dtype)
    try:
        _write_atomic(path, ready, {"format": "pt", _ENTRY: info})
    except OSError as error:
        size = sum(_nbytes(tensor) for tensor in ready.values())
        raise CheckpointError(f"{path.name} could not be written to {path.parent} ({error.strerror or error}). It "
                              f"needs {size / 1e6:.1f} MB: free some space, make the folder writable, or choose "
                              "another one") from error
    return path


def load(path: str | Path, *kinds: str) -> Stored:
    """Read a file of `save`, all tensors in memory of their own. WrongKindError if it is of none of `kinds`, if any."""
    path = Path(path)
    with reading(path):
        return _load(path, kinds)


def _load(path: Path, kinds: tuple[str, ...]) -> Stored:
    source = _opened(path)
    rows, start, metadata = _rows(path, source)
    header = _header(path, rows, metadata)
    if header.kind is None:
        raise CheckpointError(f"{path.name}: this safetensors file was not written by this pack; if it is an official "
                              "checkpoint, run 'atelier convert' on the original torch file")
    if kinds and header.kind not in kinds:
        raise WrongKindError(path.name, header.kind, kinds)
    tensors = {name: _read(path, name, ref) for name, ref in _refs(source, rows, start).items()}
    _check_finite(tensors, f"{path.name}: ", "write the file again or pick another")
    return Stored(tensors, header.kind, header.config or {}, header.meta or {})


def remove(path: str | Path) -> None:
    """Remove a file of `save`, and what killed processes left while they wrote it. OSError if it cannot be removed."""
    path = Path(path)
    remove_stale(path.parent, re.escape(path.name))
    path.unlink(missing_ok=True)


def peek(path: str | Path) -> Header:
    """Read the header only (bounded; no tensor is touched). CheckpointError if it is no valid safetensors file."""
    path = Path(path)
    with reading(path):
        rows, _, metadata = _rows(path, _opened(path))
    return _header(path, rows, metadata)


def _header(path: Path, rows: Mapping[str, _Row], metadata: Any) -> Header:
    """The header of a file with these tensors and metadata. CheckpointError if what it says of itself is damaged."""
    shapes = {name: (row.dtype, row.shape) for name, row in rows.items()}
    if not isinstance(metadata, dict) or _ENTRY not in metadata:
        return Header(shapes)
    info = _parse_json(path.name, metadata[_ENTRY])
    parts = [info.get(key) for key in ("kind", "config", "meta")] if isinstance(info, dict) else [None]
    valid = isinstance(parts[0], str) and _KIND.fullmatch(parts[0])
    if not valid or not all(isinstance(part, dict) for part in parts[1:]):
        raise CheckpointError(f"{path.name}: the description in its header is damaged; write the file again")
    if info.get("version") != VERSION:
        raise CheckpointError(f"{path.name}: it is written in version {str(info.get('version'))[:20]} of this pack's "
                              f"format. This pack knows version {VERSION}: update the pack")
    return Header(shapes, *parts)


def tensor_refs(path: str | Path) -> dict[str, TensorRef]:
    """All tensors of a safetensors file, not yet read (the file stays open for them). Raises CheckpointError."""
    path = Path(path)
    with reading(path):
        source = _opened(path)
        rows, start, _ = _rows(path, source)
    return _refs(source, rows, start)


def _opened(path: Path) -> FileSource:
    """The file, opened once for its header and its numbers: another one that takes its place meanwhile mixes with
    neither."""
    return FileSource(open(check_file(path, MAX_FILE_BYTES), "rb"))


def _refs(source: FileSource, rows: Mapping[str, _Row], start: int) -> dict[str, TensorRef]:
    found = {}
    for name, row in rows.items():
        dtype = _DTYPES.get(row.dtype)
        storage = Storage(dtype, math.prod(row.shape), source=source, start=start + row.begin, type_name=row.dtype)
        found[name] = TensorRef(storage, 0, row.shape, _contiguous(row.shape))
    return found


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[k + 1:]) for k in range(len(shape)))


def _read(path: Path, name: str, ref: TensorRef) -> torch.Tensor:
    try:
        return ref.read()
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: its tensor '{short(name)}' cannot be used: {error}") from error


def sha256(path: str | Path) -> str:
    """Hex digest of the file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_token(path: str | Path) -> str:
    """A cheap text that changes when the file does (size and modification time): for caches, not for proofs."""
    stat = Path(path).stat()
    return f"{stat.st_size:x}-{stat.st_mtime_ns:x}"


def _storable(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Contiguous CPU tensors that share no memory, of `dtype` where it holds their numbers, else of 32 bit."""
    ready: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        stored = _cast(tensor.detach(), dtype if name not in FULL_PRECISION else None).to("cpu").contiguous()
        if stored.untyped_storage().data_ptr() in seen or stored.untyped_storage().nbytes() != _nbytes(stored):
            stored = stored.clone()
        seen.add(stored.untyped_storage().data_ptr())
        ready[name] = stored
    _check_finite(ready, "", "its numbers are too large for 32 bit; save with dtype=None instead")
    return ready


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    return cast if torch.isfinite(cast).all() else tensor.to(torch.float32)


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _check_finite(tensors: Mapping[str, torch.Tensor], where: str, advice: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{where}tensor '{short(name)}' holds NaN or infinite numbers; {advice}")


def _check_numbers(name: str, value: Any) -> None:
    """CheckpointError for NaN or infinity anywhere in JSON-able `value`."""
    if isinstance(value, float) and not math.isfinite(value):
        raise CheckpointError(f"'{name}' holds {value}, which is no number; {DIVERGED}")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_numbers(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_numbers(name, item)


# --- writing -----------------------------------------------------------------------------------------------------
def _write_atomic(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent, re.escape(path.name))
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "rb+") as file:  # held until it has its name: others remove it otherwise
            _lock(file, wait=True)
            _write(file, tensors, metadata)
            file.flush()
            os.fsync(file.fileno())
            if os.name == "nt":
                file.close()  # Windows renames no file that is open
            temporary.chmod(0o644)
            replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        with suppress(OSError):  # some file systems cannot, and the file is in its place
            _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write(file: BinaryIO, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """The safetensors format: the header's length, the header, the numbers; wide types first, so all lie aligned."""
    header: dict[str, Any] = {"__metadata__": metadata}
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    place = 0
    for name, tensor in ordered:
        end = place + _nbytes(tensor)
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def remove_stale(folder: Path, name: str) -> None:
    """Remove temporary files that a killed process left of targets whose names match `name`, a regular expression:
    nobody holds them (Windows removes no file that is open). A file that its writer may be about to hold, or to rename
    where there are no locks, is left alone for YOUNG seconds."""
    pattern = re.compile(rf"\.{name}\.\w{{8}}\.tmp")
    for stale in [entry for entry in folder.iterdir() if pattern.fullmatch(entry.name)]:
        try:
            with open(stale, "rb+") as file:
                held, stat = _lock(file), os.fstat(file.fileno())
            given_up = held and stat.st_size > 0 or time.time() - stat.st_mtime > YOUNG
            if held is not False and given_up:
                stale.unlink()
        except OSError as error:
            log.debug("%s stays: %s", stale, error)


def _lock(file: BinaryIO, wait: bool = False) -> bool | None:
    """Hold the file until it is closed; False if another process does (wait: until it does not), None where the system
    has no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


# --- the header --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Row:
    """A tensor in the header: its bytes are begin .. end behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _rows(path: Path, source: FileSource) -> tuple[dict[str, _Row], int, Any]:
    """The table of tensors, the place where their bytes begin, and the metadata. CheckpointError for a damaged file."""
    size = os.fstat(source.file.fileno()).st_size
    fields, start = _read_header(path, source.file, size)
    metadata = fields.pop("__metadata__", {})
    if len(fields) > MAX_TENSORS:
        raise CheckpointError(f"{path.name}: its header tells of {len(fields)} tensors, more than the {MAX_TENSORS} "
                              "that a checkpoint may have; check that the right file was picked")
    rows = {name: _row(path.name, name, row) for name, row in fields.items()}
    place = 0
    for name, row in sorted(rows.items(), key=lambda item: (item[1].begin, item[1].end)):
        if row.begin != place:
            raise CheckpointError(f"{path.name}: the bytes of its tensor '{short(name)}' do not follow those before "
                                  "them: damaged; download or write the file again")
        place = row.end
    if start + place != size:
        raise CheckpointError(f"{path.name}: it has {size - start} bytes of tensors and its header "
                              f"tells of {place}: damaged or incomplete; download or write it again")
    return rows, start, metadata


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The JSON of the header of a file of so many bytes, and where it ends."""
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or not 2 <= length <= size - 8 or length > MAX_HEADER_BYTES:
        what = describe_bytes(first + file.read(504))
        if what == "a safetensors file":
            what = f"a safetensors file that claims a header of {length} bytes in {size}: damaged or incomplete"
        raise CheckpointError(f"{path.name}: this is {what}; expected a safetensors file")
    fields = _parse_json(path.name, file.read(length).decode("utf-8", "replace"))
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path.name}: its header is no table of tensors; download or write it again")
    return fields, 8 + length


def _parse_json(name: str, text: object) -> Any:
    try:
        return json.loads(text if isinstance(text, str) else "", object_pairs_hook=_Unique())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: its header is damaged ({error}); download or write the file again") from error


class _Unique:
    """Makes the tables of one JSON text. ValueError for a name that occurs twice, and for too many tables: every tensor
    is one."""

    def __init__(self) -> None:
        self.left = MAX_TENSORS + 1000

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"it holds more than {MAX_TENSORS} tensors or tables")
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found


def _row(file: str, name: str, row: object) -> _Row:
    fields = row if isinstance(row, dict) else {}
    dtype, shape, place = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if isinstance(dtype, str) and _whole(shape, MAX_DIMS) and _whole(place, 2) and (
            len(place) == 2 and place[0] <= place[1]) and (
            dtype not in _DTYPES or place[1] - place[0] == math.prod(shape) * _DTYPES[dtype].itemsize):
        return _Row(dtype, tuple(shape), *place)
    raise CheckpointError(f"{file}: the shape or place of its tensor '{short(name)}' is damaged; "
                          "download or write the file again")


def _whole(values: object, count: int) -> TypeGuard[list[int]]:
    """Is this a list of at most `count` whole numbers, none negative or beyond 63 bit?"""
    return isinstance(values, list) and len(values) <= count and all(type(n) is int and 0 <= n < 2**63 for n in values)
