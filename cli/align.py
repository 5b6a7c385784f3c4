"""`atelier align`: the faces of a folder of photos, upright and square, as FFHQ does (docs/faces.md)."""
from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ..models.faces.crops import CHOICES, Choice
from ..models.faces.find import FaceSettings
from ..models.faces.networks import load_faces
from ..train.face_folders import AlignConfig, align_folder
from .options import add_device, check_apart
from .stopping import StopSignals, stopped_with
from .terminal import show


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("photos", type=Path, help="folder of whole pictures; its labels.csv comes along")
    p.add_argument("--out", type=Path, required=True, help="gets NAME.png, or NAME_0.png, .. with all faces")
    p.add_argument("--size", type=int, default=AlignConfig.size, help="side of the faces in pixels (%(default)s)")
    p.add_argument("--faces", choices=CHOICES, default="largest", help="which of a picture (%(default)s)")
    p.add_argument("--index", type=int, default=0, help="with --faces 'by index': 0 is the largest (%(default)s)")
    p.add_argument("--point", metavar="X,Y", help="with --faces 'nearest point': in pixels of each picture")
    p.add_argument("--any-direction", action="store_true", help="always look for lying and upside-down faces, too")
    p.add_argument("--threshold", type=float, default=FaceSettings.threshold,
                   help="least score of the detector (%(default)s); 0.3 for drawings")
    p.add_argument("--no-pad", action="store_true", help="no reflection beyond the picture's border")
    p.add_argument("--fallback", action="store_true",
                   help="where no face is convincing, take the detector's coarse points")
    add_device(p)
    p.set_defaults(run=run)


def run(options: argparse.Namespace, signals: StopSignals) -> None:
    if not 16 <= options.size <= 2048:
        raise ValueError(f"--size is {options.size}; take 16 to 2048")
    if options.index < 0:
        raise ValueError(f"--index is {options.index}; take 0 or more")
    check_apart(options.out, options.photos)
    choice = Choice(options.faces, options.index, point_of(options))
    config = AlignConfig(options.size, choice, not options.no_pad, options.fallback,
                         FaceSettings(options.threshold, options.any_direction, settled=True))
    nets = load_faces().to(options.device)
    with stopped_with(f"The faces written so far are in {options.out}; the same command makes all of them again"):
        written, left = align_folder(options.photos, options.out, nets, config, signals.check)
    show(f"{written} faces written to {options.out}; pictures left out: {left}")


def point_of(options: argparse.Namespace) -> Tensor | None:
    """ValueError where a point is needed, or is none, or is given for nothing."""
    if (options.faces == "nearest point") != (options.point is not None):
        raise ValueError("--point and --faces 'nearest point' need each other")
    if options.point is None:
        return None
    try:
        x, y = map(float, options.point.split(","))
    except ValueError as error:
        raise ValueError(f"--point is {options.point[:40]!r}; write X,Y in pixels, such as 320,200") from error
    return torch.tensor([x, y])
