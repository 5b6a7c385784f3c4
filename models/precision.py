"""Number formats of a computation: the names that configurations, nodes and the command line use; their autocast."""
from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from .rng import CPU

PRECISIONS = ("float32", "bfloat16", "float16")
UNSCALED = PRECISIONS[:2]  # for trainings whose losses are not scaled, as float16 would need
AUTO = "auto"  # float16 on a GPU, as the official programs
NO_HALF = ("cpu", "meta")  # 16-bit autocast there is slower than float32
FLOAT64 = ("cpu", "meta", "cuda")  # Apple's and some of Intel's GPUs have none


def dtype_of(device: torch.device, precision: str) -> torch.dtype:
    """The type that `precision` computes in, a name of PRECISIONS or AUTO; on a CPU always float32. ValueError for
    another name."""
    name = "float16" if precision == AUTO else precision
    if name not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; take one of {', '.join(PRECISIONS)}")
    return torch.float32 if device.type in NO_HALF or not has_autocast(device) else getattr(torch, name)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Autocast to what `dtype_of` says; none for float32."""
    dtype = dtype_of(device, precision)
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def full_precision(device: torch.device) -> AbstractContextManager:
    """float32 inside an enclosing autocast."""
    return torch.autocast(device.type, enabled=False) if has_autocast(device) else contextlib.nullcontext()


def float64_device(device: torch.device) -> torch.device:
    """Where what belongs to `device` is computed in float64: there, or on the CPU where it has none."""
    return device if device.type in FLOAT64 else CPU


def doubled(x: Tensor) -> Tensor:
    """x in float64, see `float64_device`."""
    return x.to(float64_device(x.device)).double()


def has_autocast(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type)
