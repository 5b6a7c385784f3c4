"""`atelier convert`: an official checkpoint as a slim safetensors file."""
from __future__ import annotations

import argparse
from pathlib import Path

from ..models.loading import convert
from .stopping import StopSignals
from .terminal import show


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("file", type=Path)
    p.add_argument("--out", type=Path, help="default: beside FILE, with .safetensors")
    p.add_argument("--overwrite", action="store_true")
    p.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16",
                   help="of the weights (default: float16; a tensor whose numbers it cannot hold stays float32). "
                        "bfloat16 rounds the weights more: styles of the original do not know such a copy as their "
                        "model, and the other way round")
    p.set_defaults(run=run)


def run(options: argparse.Namespace, signals: StopSignals) -> None:
    import torch
    dtype = getattr(torch, options.dtype)
    show(convert(options.file, options.out, overwrite=options.overwrite, dtype=dtype))
