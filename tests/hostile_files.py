"""Makers of hostile and broken checkpoint files for the tests."""

import io
import pickle
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
