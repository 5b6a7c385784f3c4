"""Kernels in Triton, where it can be imported: each is one operator of torch (torch.library) with its derivative and a
plain-torch twin in `ops`, which is what runs everywhere else."""
from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def interpreted() -> bool:
    """Triton's own interpreter runs the kernels on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def usable(x: Tensor) -> bool:
    """Can the kernels work on x?"""
    return interpreted() or x.device.type == "cuda" and working()


@cache
def working() -> bool:
    """Can Triton be imported, and compile and run a kernel here? It needs a C compiler and a GPU that it knows."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        of("pointwise").up(torch.zeros(1, 1, 2, 2, device="cuda"))
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with Triton, everything works without it
        log.warning("Triton does not work here (%s). Everything runs without its kernels, slower.", str(error)[:200])
        return False
    return True


@cache
def of(name: str) -> Any:
    """The module of kernels of that name; Triton is imported with the first."""
    log.info("Triton's kernels (%s) are compiled at their first use on this machine, which can take a minute.", name)
    return importlib.import_module(f".{name}", __name__)
