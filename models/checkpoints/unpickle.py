"""Reading files of torch.save, both containers, without executing anything that they hold (spec osasis A.7, mmfs A.7).

The zip container is checked entry by entry and mapped, not unpacked; the pickle inside runs on machine.Machine,
which imports and calls nothing. Tensors stay in the file as records.TensorRef until `read()` is called.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from pathlib import Path
from typing import Any

from .errors import CheckpointError, check_file, describe_bytes
from .machine import Budget, Machine
from .records import STORAGE_DTYPES, Global, Storage

MAX_FILE_BYTES = 16 << 30
MAX_PICKLE_BYTES = 64 << 20
MAX_ENTRIES = 200_000
MAX_DIRECTORY_BYTES = 32 << 20
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_AGAIN = "download the file again, and compare its size with that on its page"
_HOSTILE = "the file is damaged or hostile, do not use it"


def read_torch(path: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """Read a file written by torch.save (zip or legacy container) and execute nothing of it.

    Returns the saved object made of dict, list, tuple, set, str, numbers and records.TensorRef (`.shape`, `.dtype`,
    `.read()` copies it out of the mapped file). Every class or function that is not torch's tensor machinery becomes
    records.Global, every object of one records.Inert. Raises CheckpointError with what is wrong and what to do.
    """
    path = check_file(path, max_bytes)
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if data[:4] == b"PK\x03\x04":
                return _read_zip(file, data)
        if data[:1] == b"\x80":
            return read_legacy(data, Budget())
        raise CheckpointError(f"this is {describe_bytes(data[:512])}; expected a file written by torch.save")
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error


def is_plain_pickle(path: str | Path) -> bool:
    """True if the file begins as a pickle, but not as one of torch.save's legacy container."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(32)
    return head[:1] == b"\x80" and LEGACY_MAGIC.to_bytes(10, "little") not in head


def read_pickle(path: str | Path, *, max_bytes: int = 1 << 30) -> Any:
    """Read a plain pickle whose storages are torch files inside it (NVIDIA .pkl), as `read_torch` does a torch file."""
    path = check_file(path, max_bytes)
    budget = Budget()
    try:
        return Machine(budget, load_bytes=lambda data: _storage_from_bytes(data, budget)).run(
            io.BytesIO(path.read_bytes()))
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error


def _storage_from_bytes(data: bytes, budget: Budget) -> Storage:
    storage = read_legacy(bytearray(data), budget)
    if not isinstance(storage, Storage):
        raise CheckpointError(f"a storage holds something else; {_HOSTILE}")
    return storage


# --- persistent ids --------------------------------------------------------------------------------------------
def storage_of(pid: Any, known: dict[str, Storage]) -> Storage:
    """The Storage that a persistent id ('storage', type, key, location, numel[, view]) names; new ones join `known`."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise CheckpointError(f"the pickle inside refers to something that is not a tensor storage; {_HOSTILE}")
    _, kind, key, _, numel = pid[:5]
    if len(pid) == 6 and pid[5] is not None:
        raise CheckpointError("views of storages, as torch before 0.4 wrote, are not supported; "
                              "load and save the file again with a current torch")
    if not isinstance(kind, Global) or kind.name not in STORAGE_DTYPES or not kind.module.startswith("torch"):
        raise CheckpointError(f"numbers of type {kind if isinstance(kind, Global) else 'unknown'} are not supported; "
                              "expected float, half, bfloat16, double, integer or bool storages")
    if not isinstance(key, str) or len(key) > 256 or type(numel) is not int or not 0 <= numel < 2**48:
        raise CheckpointError(f"a tensor storage has a wrong name or size; {_HOSTILE}")
    storage = known.setdefault(key, Storage(STORAGE_DTYPES[kind.name], numel))
    if (storage.dtype, storage.numel) != (STORAGE_DTYPES[kind.name], numel):
        raise CheckpointError(f"storage {key!r} is described in two ways; {_HOSTILE}")
    return storage


# --- the zip container -----------------------------------------------------------------------------------------
def _read_zip(file: io.BufferedReader, data: mmap.mmap) -> Any:
    entries = _zip_entries(file, data)
    root = _archive_root(entries)
    start, size = entries[f"{root}/data.pkl"]
    if size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"its pickle has {size} bytes, more than the {MAX_PICKLE_BYTES} allowed; {_HOSTILE}")
    order = entries.get(f"{root}/byteorder")
    if order and bytes(data[order[0]:order[0] + min(order[1], 16)]) != b"little":
        raise CheckpointError("it was written on a big-endian machine, which is not supported; "
                              "load and save it there with byte order 'little'")
    known: dict[str, Storage] = {}

    def persistent(pid: Any) -> Storage:
        storage, name = storage_of(pid, known), f"{root}/data/{pid[2]}"
        if name not in entries or entries[name][1] != storage.nbytes:
            raise CheckpointError(f"its storage {pid[2]!r} is missing or has another size than it claims; {_AGAIN}")
        storage.buffer, storage.start = data, entries[name][0]
        return storage

    return Machine(Budget(), persistent).run(io.BytesIO(data[start:start + size]))


def _archive_root(entries: dict[str, tuple[int, int]]) -> str:
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError("this is a zip archive, but not one of torch.save (no data.pkl in it); "
                              "if it is a packed download, unpack it and pick the checkpoint inside")
    root = pickles[0].partition("/")[0]
    if any(not name.startswith(f"{root}/") for name in entries):
        raise CheckpointError(f"its zip archive holds files outside of {root!r}; {_HOSTILE}")
    return root


def _zip_entries(file: io.BufferedReader, data: mmap.mmap) -> dict[str, tuple[int, int]]:
    """{name: (first byte, number of bytes)} of every entry, all stored, named soundly and not overlapping."""
    _check_directory_size(data)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise CheckpointError(f"its zip directory cannot be read ({error}): incomplete; {_AGAIN}") from error
    if any(info.filename.endswith("/constants.pkl") for info in infos):
        raise CheckpointError("this is a TorchScript program, not a file of weights; pick the checkpoint file (for "
                              "OpenAI's CLIP: OpenCLIP's safetensors of the same weights, open_clip_model.safetensors "
                              "of https://huggingface.co/timm/vit_base_patch32_clip_224.openai)")
    entries: dict[str, tuple[int, int]] = {}
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        _check_entry(info, entries)
        if info.header_offset < end:
            raise CheckpointError(f"entries of its zip archive overlap; {_HOSTILE}")
        start = _entry_start(info, data)
        end = start + info.file_size
        if end > len(data):
            raise CheckpointError(f"its entry {info.filename!r} ends beyond the file; {_AGAIN}")
        entries[info.filename] = (start, info.file_size)
    return entries


def _check_directory_size(data: mmap.mmap) -> None:
    """Bound the directory before zipfile reads it: the end record is in the last 64 KiB, its zip64 form before it."""
    at = data.rfind(b"PK\x05\x06", max(0, len(data) - 65_557))
    if at < 0 or at + 22 > len(data):
        raise CheckpointError(f"the end of its zip archive is missing: the file is incomplete; {_AGAIN}")
    count, size = struct.unpack_from("<HI", data, at + 10)
    at64 = data.rfind(b"PK\x06\x06", max(0, at - 1024), at)
    if at64 >= 0 and at64 + 56 <= len(data):
        count, size = struct.unpack_from("<QQ", data, at64 + 32)
    if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        raise CheckpointError(f"its zip archive claims {count} entries in a directory of {size} bytes; {_HOSTILE}")


def _check_entry(info: zipfile.ZipInfo, entries: dict[str, tuple[int, int]]) -> None:
    name = info.filename
    parts = name.split("/")
    if name != info.orig_filename or "\\" in name or name.startswith("/") or ".." in parts or "" in parts[:-1]:
        raise CheckpointError(f"its zip archive holds a file named {name[:80]!r}; {_HOSTILE}")
    if name in entries:
        raise CheckpointError(f"its zip archive holds {name[:80]!r} twice; {_HOSTILE}")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 0x1:
        raise CheckpointError(f"its entry {name[:80]!r} is compressed or encrypted, which torch.save never does; "
                              "if this is a packed download, unpack it and pick the checkpoint inside")


def _entry_start(info: zipfile.ZipInfo, data: mmap.mmap) -> int:
    at = info.header_offset
    if not 0 <= at <= len(data) - 30 or data[at:at + 4] != b"PK\x03\x04":
        raise CheckpointError(f"its entry {info.filename[:80]!r} is not where the directory says; {_AGAIN}")
    name_length, extra_length = struct.unpack_from("<HH", data, at + 26)
    return at + 30 + name_length + extra_length


# --- the legacy container: five pickles, then the storages one after another -------------------------------------
def read_legacy(data: mmap.mmap | bytearray, budget: Budget) -> Any:
    """Read the container of torch before 1.6 from `data`, a writable buffer that the returned tensors keep using."""
    stream = io.BytesIO(data[:MAX_PICKLE_BYTES])
    known: dict[str, Storage] = {}
    if Machine(budget).run(stream) != LEGACY_MAGIC or Machine(budget).run(stream) != LEGACY_PROTOCOL:
        raise CheckpointError("this is a pickle, but not one of torch.save; convert it to a torch or safetensors file "
                              "with the program that wrote it")
    system = Machine(budget).run(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("it was written on a big-endian machine, which is not supported")
    root = Machine(budget, lambda pid: storage_of(pid, known)).run(stream)
    keys = Machine(budget).run(stream)
    if not isinstance(keys, list) or len(keys) != len(known) or any(
            not isinstance(key, str) or key not in known for key in keys) or len(set(keys)) != len(keys):
        raise CheckpointError(f"its list of storages does not fit its tensors; {_AGAIN}")
    start = stream.tell()
    for key in keys:
        storage = known[key]
        if start + 8 + storage.nbytes > len(data) or struct.unpack_from("<q", data, start)[0] != storage.numel:
            raise CheckpointError(f"its numbers end too early or do not fit their description: incomplete; {_AGAIN}")
        storage.buffer, storage.start = data, start + 8
        start += 8 + storage.nbytes
    return root
