"""Reading files of torch.save, both containers, without executing anything that they hold (docs/osasis.md A.7).

The zip container is checked entry by entry and not unpacked; the pickle inside runs on vm.PickleVM, which imports and
calls nothing. Numbers stay in the file as records.TensorRef until `read()` is called.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError, ForeignFileError, check_file, describe_bytes, short
from ..limits import MAX_FILE_BYTES
from .records import AGAIN, OTHER_SIZES, STORAGE_DTYPES, BytesSource, FileSource, Global, Source, Storage
from .vm import Budget, PickleVM

MAX_PICKLE_BYTES = 64 << 20
MAX_ENTRIES = 200_000
MAX_DIRECTORY_BYTES = 32 << 20
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_HOSTILE = "the file is damaged or hostile, do not use it"


def read_torch(path: str | Path, *, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """Read a file written by torch.save (zip or legacy container) and execute nothing of it.

    Returns the saved object made of dict, list, tuple, set, str, numbers and records.TensorRef (`.shape`, `.dtype`,
    `.read()` copies it out of the file, which stays open for it). Every class or function that is not torch's tensor
    machinery becomes records.Global, every object of one records.OpaqueObject. Raises CheckpointError with what is
    wrong and what to do, ForeignFileError for files of another sort.
    """
    path = check_file(path, max_bytes)
    source = FileSource(open(path, "rb"))
    size = _size(source.file)
    try:
        head = bytes(source.read(0, min(512, size)))
        if head[:4] == b"PK\x03\x04":
            return _read_zip(source)
        if head[:1] == b"\x80":
            pickles = bytes(source.read(0, min(MAX_PICKLE_BYTES, size)))
            return read_legacy(pickles, source, size, Budget.of_file(len(pickles)))
        raise ForeignFileError(f"this is {describe_bytes(head)}; expected a file written by torch.save")
    except CheckpointError as error:
        raise type(error)(f"{path.name}: {error}") from error


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


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
    data = path.read_bytes()
    budget = Budget.of_file(len(data))
    try:
        return PickleVM(budget, load_bytes=lambda inner: _storage_from_bytes(inner, budget)).run(io.BytesIO(data))
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error


def _storage_from_bytes(data: bytes, budget: Budget) -> Storage:
    """The storage in a torch file of one; one with a problem if it is anything else."""
    try:
        storage = read_legacy(data[:MAX_PICKLE_BYTES], BytesSource(data), len(data), budget)
    except ForeignFileError as error:
        return Storage(None, 0, problem=str(error))
    return storage if isinstance(storage, Storage) else Storage(None, 0, problem="its storage holds something else")


# --- persistent ids --------------------------------------------------------------------------------------------
def storage_of(pid: Any, known: dict[str, Storage]) -> Storage:
    """The Storage that a persistent id ('storage', type, key, location, numel[, view]) names; new ones join `known`.

    One that cannot be read has the reason as its problem.
    """
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise CheckpointError(f"the pickle inside refers to something that is not a tensor storage; {_HOSTILE}")
    _, kind, key, _, numel = pid[:5]
    if not isinstance(key, str) or len(key) > 256 or type(numel) is not int or not 0 <= numel < 2**48:
        raise CheckpointError(f"a tensor storage has a wrong name or size; {_HOSTILE}")
    known_type = isinstance(kind, Global) and kind.module.startswith("torch")
    dtype = STORAGE_DTYPES.get(kind.name) if known_type else None
    if key not in known:
        itemsize = OTHER_SIZES.get(kind.name, 0) if known_type else 0
        name = str(kind) if isinstance(kind, Global) else "unknown"
        known[key] = Storage(dtype, numel, itemsize=itemsize, type_name=name)
    storage = known[key]
    if (storage.dtype, storage.numel) != (dtype, numel):
        storage.problem = f"its storage {short(key)!r} is described in two ways"
    if len(pid) == 6 and pid[5] is not None:
        storage.problem = ("it is a view of a storage as torch before 0.4 wrote it, which is not supported; load and "
                           "save the file again with a current torch")
    return storage


# --- the zip container -----------------------------------------------------------------------------------------
def _read_zip(source: FileSource) -> Any:
    entries = _zip_entries(source.file)
    root = _archive_root(entries)
    start, size = entries[f"{root}/data.pkl"]
    if size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"its pickle has {size} bytes, more than the {MAX_PICKLE_BYTES} allowed; {_HOSTILE}")
    order = entries.get(f"{root}/byteorder")
    if order and source.read(order[0], min(order[1], 16)) != b"little":
        raise CheckpointError("it was written on a big-endian machine, which is not supported; "
                              "load and save it there with byte order 'little'")
    known: dict[str, Storage] = {}

    def persistent(pid: Any) -> Storage:
        storage, name = storage_of(pid, known), f"{root}/data/{pid[2]}"
        if storage.source is None and not storage.problem and storage.itemsize:
            if name in entries and entries[name][1] == storage.nbytes:
                storage.source, storage.start = source, entries[name][0]
            else:
                storage.problem = (f"its storage {short(pid[2])!r} is missing or has another size than it claims; "
                                   f"{AGAIN}")
        return storage

    return PickleVM(Budget.of_file(size), persistent).run(io.BytesIO(source.read(start, size)))


def _archive_root(entries: dict[str, tuple[int, int]]) -> str:
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ForeignFileError("this is a zip archive, but not one of torch.save (no data.pkl in it); "
                               "if it is a packed download, unpack it and pick the checkpoint inside")
    root = pickles[0].partition("/")[0]
    if any(not name.startswith(f"{root}/") for name in entries):
        raise CheckpointError(f"its zip archive holds files outside of {short(root)!r}, which torch.save never writes; "
                              "if it is a packed download, unpack it and pick the checkpoint inside")
    return root


def _zip_entries(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """{name: (first byte, number of bytes)} of every entry, all stored, named validly and not overlapping."""
    try:
        with zipfile.ZipFile(_Bounded(file)) as archive:
            infos = archive.infolist()
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, EOFError, struct.error) as error:
        raise CheckpointError(f"its zip directory cannot be read ({short(error, 200)}): incomplete; {AGAIN}") from error
    if any(info.filename.endswith("/constants.pkl") for info in infos):
        raise ForeignFileError("this is a TorchScript program, not a file of weights; pick the checkpoint file")
    entries: dict[str, tuple[int, int]] = {}
    end, total = 0, _size(file)
    for info in sorted(infos, key=lambda info: info.header_offset):
        _check_entry(info, entries)
        if info.header_offset < end:
            raise CheckpointError(f"entries of its zip archive overlap; {_HOSTILE}")
        start = _entry_start(info, file, total)
        end = start + info.file_size
        if end > total:
            raise CheckpointError(f"its entry {short(info.filename)!r} ends beyond the file; {AGAIN}")
        entries[info.filename] = (start, info.file_size)
    return entries


class _Bounded:
    """A file as zipfile reads it: what it reads in one piece, its directory among it, is bounded in bytes and entries,
    wherever a record says that it lies."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, count: int = -1) -> bytes:
        if count > MAX_DIRECTORY_BYTES:
            raise CheckpointError(f"its zip archive claims a directory of {count} bytes; {_HOSTILE}")
        data = self._read(count)
        if data.count(b"PK\x01\x02") > MAX_ENTRIES:
            raise CheckpointError(f"its zip archive holds more than {MAX_ENTRIES} entries; {_HOSTILE}")
        return data


def _check_entry(info: zipfile.ZipInfo, entries: dict[str, tuple[int, int]]) -> None:
    name = info.filename
    parts = name.split("/")
    if name != info.orig_filename or "\\" in name or name.startswith("/") or ".." in parts or "" in parts[:-1]:
        raise CheckpointError(f"its zip archive holds a file named {short(name)!r}; {_HOSTILE}")
    if name in entries:
        raise CheckpointError(f"its zip archive holds {short(name)!r} twice; {_HOSTILE}")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 0x1:
        raise CheckpointError(f"its entry {short(name)!r} is compressed or encrypted, which torch.save never does; "
                              "if this is a packed download, unpack it and pick the checkpoint inside")


def _entry_start(info: zipfile.ZipInfo, file: BinaryIO, total: int) -> int:
    at, head = info.header_offset, b""
    if 0 <= at <= total - 30:
        file.seek(at)
        head = file.read(30)
    if head[:4] != b"PK\x03\x04" or len(head) < 30:
        raise CheckpointError(f"its entry {short(info.filename)!r} is not where the directory says; {AGAIN}")
    name_length, extra_length = struct.unpack_from("<HH", head, 26)
    return at + 30 + name_length + extra_length


# --- the legacy container: five pickles, then the storages one after another -------------------------------------
def read_legacy(pickles: bytes, source: Source, size: int, budget: Budget) -> Any:
    """Read the container of torch before 1.6: its first bytes, and the source of all `size` of them."""
    stream = io.BytesIO(pickles)
    known: dict[str, Storage] = {}
    if PickleVM(budget).run(stream) != LEGACY_MAGIC or PickleVM(budget).run(stream) != LEGACY_PROTOCOL:
        raise ForeignFileError("this is a pickle, but not one of torch.save; convert it to a torch or safetensors file "
                               "with the program that wrote it")
    system = PickleVM(budget).run(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("it was written on a big-endian machine, which is not supported")
    root = PickleVM(budget, lambda pid: _module_class(pid) or storage_of(pid, known)).run(stream)
    keys = PickleVM(budget).run(stream)
    if not isinstance(keys, list) or any(not isinstance(key, str) or key not in known for key in keys) or (
            len(set(keys)) != len(keys)):
        raise CheckpointError(f"its list of storages does not fit its tensors; {AGAIN}")
    _place([known[key] for key in keys], source, stream.tell(), size)
    return root


def _module_class(pid: Any) -> Global | None:
    """The class of a pickled module, a name like every other, of the id ('module', class, source file, source)."""
    module = isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module"
    return pid[1] if module and isinstance(pid[1], Global) else None


def _place(storages: list[Storage], source: Source, start: int, size: int) -> None:
    """Tell the storages where their numbers are: one behind another, each behind its length (8 bytes)."""
    for storage in storages:
        if start + 8 > size:
            raise CheckpointError(f"its numbers end too early: the file is incomplete; {AGAIN}")
        if struct.unpack("<q", source.read(start, 8))[0] != storage.numel:
            storage.problem = storage.problem or f"its numbers do not fit their description; {AGAIN}"
        storage.source, storage.start = source, start + 8
        if not storage.itemsize:
            return  # whatever comes behind cannot be found: those storages have no source
        start += 8 + storage.nbytes
        if start > size:
            raise CheckpointError(f"its numbers end too early: the file is incomplete; {AGAIN}")
