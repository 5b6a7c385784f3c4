"""Makers of hostile and broken checkpoint files for the tests."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import torch


def torch_zip(path, data_pkl, extra=(), root="archive", compression=zipfile.ZIP_STORED, storages=None):
    """A zip container as torch.save writes it, around any pickle bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", data_pkl)
        archive.writestr(f"{root}/byteorder", "little")
        for key, data in (storages or {}).items():
            archive.writestr(f"{root}/data/{key}", data)
        for name, data in extra:
            archive.writestr(name, data)
    return path


class Call:
    """Pickles as a REDUCE of `function` with `args`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Pid:
    """Pickles as the persistent id `pid`."""

    def __init__(self, *pid):
        self.pid = pid


def dumps(value):
    buffer = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.pid if isinstance(obj, Pid) else None

    Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def write(path, data):
    path.write_bytes(data)
    return path


def one_tensor(path, *, storage=("storage", torch.FloatStorage, "0", "cpu", 4), offset=0, size=(4,), stride=(1,),
               data=b"\0" * 16, function=torch._utils._rebuild_tensor_v2):
    value = {"w": Call(function, Pid(*storage), offset, size, stride, False, OrderedDict())}
    return torch_zip(path, dumps(value), storages={"0": data})


# --- fragments of a pickle that run a shell command when they are unpickled ----------------------------------------
PLACE = "THE PLACE OF IT"  # a text that `spliced` replaces


def fragment(value, protocol=2):
    """Opcodes that push `value` and touch no memo, so that they fit anywhere."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol)
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue()[2:-1]


def spliced(data, opcodes):
    """The pickle `data` (protocol 2) with `opcodes` where PLACE stood."""
    text = b"X" + struct.pack("<I", len(PLACE)) + PLACE.encode()
    assert data.count(text) == 1
    return data.replace(text, opcodes)


def spliced_zip(path, opcodes):
    """The same to the pickle inside a file of torch.save."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, spliced(data, opcodes) if name.endswith("/data.pkl") else data)
    return path


class OnState:
    """Runs its command when BUILD calls __setstate__."""

    def __init__(self, command):
        self.command = command

    def __getstate__(self):
        return self.command

    def __setstate__(self, command):
        os.system(command)


class OnNew:
    """Runs its argument when NEWOBJ (or, with a keyword, NEWOBJ_EX) calls __new__."""

    def __new__(cls, command, keyword=None):
        made = super().__new__(cls)
        made.args = command, keyword
        if os.environ.get("HOSTILE_FILES_ARMED"):
            os.system(command)
        return made

    def __getnewargs_ex__(self):
        command, keyword = self.args
        return (command,), {"keyword": keyword} if keyword else {}

    def __getstate__(self):
        return None


class OnAppend:
    """Runs what is appended to it; `items` come as APPENDS, `entries` as SETITEMS."""

    def __init__(self, items=(), entries=()):
        self.items, self.entries = list(items), dict(entries)

    def __reduce__(self):
        return OnAppend, (), None, iter(self.items), iter(self.entries.items())

    def append(self, command):
        os.system(command)

    def extend(self, commands):
        os.system(commands[0])

    def __setitem__(self, key, command):
        os.system(command)


class OnHash:
    """Runs its command when it is used as a key."""

    def __init__(self, command):
        self.command = command

    def __hash__(self):
        if os.environ.get("HOSTILE_FILES_ARMED"):
            os.system(self.command)
        return 1
