"""A device that this machine does not have, for the tests: its tensors lie in main memory and refuse what Apple's and
Intel's GPUs refuse.

Its type is "faraway": neither "cpu" nor "cuda". Tensors of it have no float64 and no pinned memory, random numbers need
a generator of its own, and nothing computes with it and with main memory at once.

    ATELIER_TEST_DEVICE=faraway python -m pytest tests/test_nodes.py

runs the tests of nodes with ComfyUI computing there (conftest.py). It changes torch for the whole process. Tests that
compute with a node's networks themselves, on the CPU, fail there.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from oneshot_atelier.models import rng

NAME = "faraway"
WIDE = (torch.float64, torch.complex128)
# these take numbers from main memory; the others compute
MOVES = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put", "aten::index_put_",
         "aten::_index_put_impl_")
CPU = torch.device("cpu")
FREE = 1 << 40  # bytes


class Far(torch.Tensor):
    """A tensor of the device, and the one in main memory that holds its numbers."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        return torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype,
            device=torch.device(NAME, 0))

    def __init__(self, near: torch.Tensor) -> None:
        self.near = near

    def tolist(self) -> list:  # which torch has for no class but its own
        return self.near.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.near})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class FarGenerator(torch.Generator):
    """A generator of the device. Operators get another Python object of it, so its seed tells which it is."""

    seeds: ClassVar[set[int]] = set()

    def manual_seed(self, seed: int) -> torch.Generator:
        super().manual_seed(seed)
        self.seeds.add(self.initial_seed())
        return self

    @property
    def device(self) -> torch.device:
        return torch.device(NAME, 0)


class Machine(TorchDispatchMode):
    """Sees to tensors that are made on the device."""

    def __enter__(self) -> Machine:
        self.before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(.., device=..) is made on the CPU and moved
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self.before)
        super().__exit__(*exc)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):  # in inference mode
        with Machine():
            return func.decompose(*args, **kwargs)
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    far = [x for x in given if isinstance(x, Far)]
    named = kwargs.get("device")
    there = named.type == NAME if named is not None else bool(far)
    name = func._schema.name
    if name == "aten::_has_compatible_shallow_copy_type":
        return not far and func(*args)
    if far and name not in MOVES and any(x.dim() and not isinstance(x, Far) for x in given):
        raise RuntimeError(f"{name}: tensors of {NAME} and of main memory at once")
    if (far or there) and "pin" in name or there and kwargs.get("pin_memory"):
        raise RuntimeError(f"{name}: {NAME} has no pinned memory")
    source = kwargs.get("generator")
    if source is not None and there != (source.initial_seed() in FarGenerator.seeds):
        raise RuntimeError(f"{name}: a generator of another device")
    near_args, near_kwargs = tree_map(near, args), tree_map(near, kwargs)
    if there and named is not None:
        near_kwargs["device"] = CPU
    stays_normal = torch.is_inference_mode_enabled() and func.is_view and bool(far) and not far[0].is_inference()
    with contextlib.ExitStack() as stack:
        if stays_normal:  # as a view does in inference mode
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        found = func(*near_args, **near_kwargs)
        found = tree_map(sent, found) if there else found
    return return_and_correct_aliasing(func, args, kwargs, found) if far else found


def near(x: Any) -> Any:
    return x.near if isinstance(x, Far) else x


def sent(x: Any) -> Any:
    if not isinstance(x, torch.Tensor):
        return x
    if x.dtype in WIDE:
        raise TypeError(f"{NAME} has no {x.dtype}")
    return Far(x)


class BackendModule(backend_registration._DummyBackendModule):
    """What torch asks of a kind of device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device: Any = NAME) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: Any = NAME) -> None:
        pass


def make_device() -> torch.library.Library:
    """Make torch know the device, for as long as the library that is returned lives. Autocast does nothing there."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, BackendModule())
    library = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    return library


@contextlib.contextmanager
def comfyui_there(mm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ComfyUI, whose comfy.model_management is given, computes on the device."""
    device = torch.device(NAME, 0)
    monkeypatch.setattr(mm, "get_torch_device", lambda: device)
    monkeypatch.setattr(mm, "get_free_memory", lambda *_, torch_free_too=False: (FREE,) * 2 if torch_free_too else FREE)
    monkeypatch.setattr(rng, "Generator", generator)
    with Machine():
        yield


def generator(device: torch.device) -> torch.Generator:
    return FarGenerator() if device.type == NAME else torch.Generator(device)
