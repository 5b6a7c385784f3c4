"""`atelier render-art`: drawings made of photos by filters, a folder for each style."""
from __future__ import annotations

import argparse
from pathlib import Path

from ..train import art_folders
from ..train.art_filters import FILTERS
from .options import check_apart, names_in
from .stopping import StopSignals, stopped_with
from .terminal import show


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--photos", type=Path, required=True, help="folder of photos; its labels.csv comes along")
    p.add_argument("--out", type=Path, required=True, help="folder that gets npr_STYLE/NAME.jpg; what is there is kept")
    p.add_argument("--styles", default="", help=f"some of {', '.join(FILTERS)} (all)")
    p.add_argument("--size", type=int, default=128, help="side of the drawings in pixels (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    p.set_defaults(run=run)


def run(options: argparse.Namespace, signals: StopSignals) -> None:
    if not 16 <= options.size <= 1024:
        raise ValueError(f"--size is {options.size}; take 16 to 1024")
    check_apart(options.out, options.photos)
    with stopped_with(f"What is in {options.out} stays; the same command goes on with it"):
        count = art_folders.render(options.photos, options.out, names_in(options.styles), options.size, options.seed,
                                   signals.check)
    show(f"{count} drawings made under {options.out}")
