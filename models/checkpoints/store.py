"""The pack's own store: one safetensors file with kind, config and meta in its header, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from .errors import KINDS, CheckpointError, check_file, describe_bytes, wrong_kind

VERSION = 1
MAX_FILE_BYTES = 16 << 30
MAX_HEADER_BYTES = 16 << 20
MAX_INFO_BYTES = 4 << 20
_ENTRY = "atelier"
FULL_PRECISION = ("conds_mean", "conds_std")  # small, and every drawn z is scaled by them
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


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
    """Write `tensors` with their `kind` (a key of KINDS), JSON-able `config` and `meta`; returns the path.

    Floating point tensors are stored as `dtype` (unchanged if None), others and those named in FULL_PRECISION as they
    are. The file appears complete or not at all: a temporary file beside it is synced and renamed. Raises
    CheckpointError for NaN, infinity, and numbers too large for `dtype`.
    """
    path = Path(path)
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known kinds: {', '.join(KINDS)}")
    info = json.dumps({"kind": kind, "version": VERSION, "config": config, "meta": meta or {}}, allow_nan=False)
    if len(info) > MAX_INFO_BYTES:
        raise CheckpointError(f"{path.name}: config and meta take {len(info)} bytes, more than {MAX_INFO_BYTES}; "
                              "keep long lists in tensors")
    ready = _storable(tensors, dtype)
    _write_atomic(path, ready, {"format": "pt", _ENTRY: info})
    return path


def load(path: str | Path, kind: str | None = None) -> Stored:
    """Read a file of `save`, all tensors in memory of their own. CheckpointError also if not of `kind`."""
    path = Path(path)
    header = peek(path)
    if header.kind is None:
        raise CheckpointError(f"{path.name}: this safetensors file was not written by this pack; if it is an official "
                              "checkpoint, run 'atelier convert' on the original torch file")
    if kind is not None and header.kind != kind:
        raise wrong_kind(path.name, header.kind, kind)
    tensors = read_tensors(path)
    _check_finite(tensors, f"{path.name}: ", "write the file again or pick another")
    return Stored(tensors, header.kind, header.config or {}, header.meta or {})


def peek(path: str | Path) -> Header:
    """Read the header only (bounded; no tensor is touched). CheckpointError if it is no sound safetensors file."""
    path = check_file(path, MAX_FILE_BYTES)
    fields = _read_header(path)
    metadata = fields.pop("__metadata__", {})
    shapes = {name: _shape(path.name, name, row) for name, row in fields.items()}
    if not isinstance(metadata, dict) or _ENTRY not in metadata:
        return Header(shapes)
    info = _parse_json(path.name, metadata[_ENTRY])
    parts = [info.get(key) for key in ("kind", "config", "meta")] if isinstance(info, dict) else [None]
    if not isinstance(parts[0], str) or not all(isinstance(part, dict) for part in parts[1:]):
        raise CheckpointError(f"{path.name}: the description in its header is damaged; write the file again")
    if info.get("version") != VERSION or parts[0] not in KINDS:
        raise CheckpointError(f"{path.name}: it holds {parts[0][:40]!r} in version {str(info.get('version'))[:20]}, "
                              f"which this pack does not know (it knows version {VERSION}); update the pack")
    return Header(shapes, *parts)


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, copied out of it (so the file can be replaced). Raises CheckpointError."""
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{Path(path).name}: damaged or incomplete safetensors file ({error}); "
                              "download or write it again") from error


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
    """Contiguous CPU tensors of `dtype` that share no memory; finite before and after the cast."""
    _check_finite(tensors, "", "the training diverged: lower the learning rate or go back to an earlier save")
    ready: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        cast = dtype and tensor.is_floating_point() and name not in FULL_PRECISION
        stored = tensor.detach().to("cpu", dtype if cast else tensor.dtype).contiguous()
        if stored.untyped_storage().data_ptr() in seen or stored.untyped_storage().nbytes() != _nbytes(stored):
            stored = stored.clone()
        seen.add(stored.untyped_storage().data_ptr())
        ready[name] = stored
    _check_finite(ready, "", f"it holds numbers too large for {dtype}; save with dtype=None (32 bit) instead")
    return ready


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _check_finite(tensors: Mapping[str, torch.Tensor], where: str, advice: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{where}tensor '{name}' holds NaN or infinite numbers; {advice}")


def _write_atomic(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        safetensors.torch.save_file(tensors, temporary, metadata)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read_header(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        rest = path.stat().st_size - 8
        if len(first) < 8 or not 2 <= length <= rest or length > MAX_HEADER_BYTES:
            head = first + file.read(504)
            what = describe_bytes(head)
            if what == "a safetensors file":
                what = f"a safetensors file that claims a header of {length} bytes in {rest + 8}: damaged or incomplete"
            raise CheckpointError(f"{path.name}: this is {what}; expected a safetensors file")
        fields = _parse_json(path.name, file.read(length).decode("utf-8", "replace"))
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path.name}: its header is no table of tensors; download or write it again")
    return fields


def _parse_json(name: str, text: object) -> Any:
    try:
        return json.loads(text if isinstance(text, str) else "", object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name}: its header is damaged ({error}); download or write the file again") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _shape(file: str, name: str, row: object) -> tuple[str, tuple[int, ...]]:
    shape = row.get("shape") if isinstance(row, dict) else None
    sound = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) and row.get("dtype") in _DTYPES
    if not sound:
        raise CheckpointError(f"{file}: its tensor {name[:80]!r} has a damaged shape or an unknown type; "
                              "download or write the file again")
    return row["dtype"], tuple(shape)
