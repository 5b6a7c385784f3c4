"""Network pickles with the structure of NVIDIA's, for the tests: real `pickle.dump`s of modules whose classes live in
modules named as theirs (`torch_utils.persistence`, `dnnlib.util`) and vanish afterwards."""

import pickle
import sys
import types
from contextlib import contextmanager
from importlib.abc import InspectLoader
from importlib.util import module_from_spec, spec_from_loader

import torch
from torch import nn

SOURCE = "class Module:\n    pass\n"  # what the file claims to be each module's program


class EasyDict(dict):
    """Pickles as NEWOBJ of dnnlib.util.EasyDict and SETITEMS."""


class Persistent(nn.Module):
    """Pickles as a REDUCE of _reconstruct_persistent_obj with class name, program and __dict__."""

    def __init__(self, source=SOURCE, **attributes):
        super().__init__()
        self._source = source
        self._init_args, self._init_kwargs = (), EasyDict(attributes)
        for name, value in attributes.items():
            setattr(self, name, value)

    def __reduce__(self):
        state = {key: value for key, value in self.__dict__.items() if key != "_source"}
        return _reconstruct_persistent_obj, ({"type": "class", "version": 6, "module_src": self._source,
                                              "class_name": "Module", "state": state},)


class Program(InspectLoader):
    """Imports a module from its text."""

    def __init__(self, text):
        self.text = text

    def get_source(self, fullname):
        return self.text


def _reconstruct_persistent_obj(meta):
    """What the public loader does: it runs the program that stands in the file."""
    spec = spec_from_loader("from_the_file", Program(meta["module_src"]))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.__dict__[meta["class_name"]]()
    made.__dict__.update(meta["state"] or {})
    return made


@contextmanager
def their_modules():
    """Inside the block, pickling finds the classes above under NVIDIA's names."""
    homes = {"torch_utils": (), "torch_utils.persistence": (_reconstruct_persistent_obj,), "dnnlib": (),
             "dnnlib.util": (EasyDict,)}
    before = {thing: thing.__module__ for things in homes.values() for thing in things}
    for name, things in homes.items():
        sys.modules[name] = types.ModuleType(name)
        for thing in things:
            setattr(sys.modules[name], thing.__name__, thing)
            thing.__module__ = name
    try:
        yield
    finally:
        for thing, home in before.items():
            thing.__module__ = home
        for name in homes:
            del sys.modules[name]


BUFFERS = ("resample_filter", "w_avg", "noise_const")


def module(state, **attributes):
    """A tree of modules that holds `state` (flat names); `attributes`: {"b4.mbstd": {"group_size": 4}} and so on."""
    root = Persistent(**attributes.pop("", {}))
    for path, values in attributes.items():
        for name, value in values.items():
            setattr(_inside(root, path.split(".")), name, value)
    for name, tensor in state.items():
        *path, last = name.split(".")
        home = _inside(root, path)
        if last in BUFFERS:
            home.register_buffer(last, tensor)
        else:
            home.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
    return root


def _inside(root, path):
    for name in path:
        if name not in root._modules:
            root.add_module(name, Persistent(img_resolution=64, use_fp16=False, conv_clamp=256))
        root = root._modules[name]
    return root


def discriminator(state, group=4):
    return module(state, **{"b4.mbstd": {"group_size": group, "num_channels": 1}})


def snapshot(generator, discriminator):
    """The outer object of a training snapshot."""
    return {"training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", path="x.zip"), "G": None,
            "D": discriminator, "G_ema": generator, "augment_pipe": None}


def dumps(value, protocol=4):
    with their_modules():
        return pickle.dumps(value, protocol)


def write(path, generator, d=None, protocol=4, group=4):
    """A .pkl with these two state dicts (NVIDIA's names); returns the path."""
    made = snapshot(module(generator), None if d is None else discriminator(d, group))
    path.write_bytes(dumps(made, protocol))
    return path


def kernel():
    """The constant FIR filter as the files hold it."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return taps[:, None] * taps / 64
