"""Kernels in Triton, where it can be imported: each is one operator of torch (torch.library) with its derivative and a
plain-torch twin in `ops`, which is what runs everywhere else."""
from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from typing import Any

from torch import Tensor


@cache
def importable() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Triton's own interpreter runs the kernels on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def usable(x: Tensor) -> bool:
    """Can the kernels work on x?"""
    return (x.device.type == "cuda" or interpreted()) and importable()


def of(name: str) -> Any:
    """The module of kernels of that name; Triton is imported with the first."""
    return importlib.import_module(f".{name}", __name__)
