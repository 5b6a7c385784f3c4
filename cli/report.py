"""`atelier report`: what a DiffAE can do."""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ..evaluate import report
from ..models.loading import load_diffae
from ..train.data import find_pictures, read_pictures, to_unit
from .options import add_device, check_apart
from .stopping import StopSignals
from .terminal import show


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("file", type=Path)
    p.add_argument("--photos", type=Path, required=True, help="folder of photos of the DiffAE's domain")
    p.add_argument("--out", type=Path, required=True, help="folder for the picture grids")
    add_device(p)
    p.set_defaults(run=run)


def run(options: argparse.Namespace, signals: StopSignals) -> None:
    check_apart(options.out, options.photos)
    device = torch.device(options.device)
    net = load_diffae(options.file).to(device)
    x = to_unit(read_pictures(find_pictures(options.photos), net.image_size)).to(device)
    show(json.dumps(report.write(net, x, options.out, options.file.stem), indent=1))
