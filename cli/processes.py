"""One training on one process or several.

Several: torchrun --nproc_per_node 2 PATH/TO/oneshot-atelier/cli train mmfs-stage2 --accelerate ... (torchrun comes with
torch; `--no-python atelier train ...` where the pack is installed). With GPUs, `accelerate launch` does as well; for
CPUs alone it starts one process, however many are asked for.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..train.distributed import SINGLE_PROCESS, Distributed, from_accelerator


@contextmanager
def processes(options: argparse.Namespace) -> Iterator[tuple[Distributed, torch.device]]:
    """`distributed_and_device`, and the end of what it started."""
    try:
        yield distributed_and_device(options)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def distributed_and_device(options: argparse.Namespace) -> tuple[Distributed, torch.device]:
    """This process among all, and its device. ValueError if Accelerate is asked for and missing, or needed and not
    named."""
    if not options.accelerate:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(f"this is one of {os.environ['WORLD_SIZE']} processes, which would all do the same work: "
                             "add --accelerate, or start only one")
        return SINGLE_PROCESS, torch.device(options.device)
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ValueError("Accelerate is not installed; run: pip install '.[train]'") from error
    accelerator = Accelerator(cpu=options.device == "cpu")
    return from_accelerator(accelerator), accelerator.device
