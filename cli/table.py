"""`atelier table`: results of any programs in the tables of both papers (docs/osasis.md G)."""
from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..evaluate import papers
from ..evaluate.papers import PAPERS, Folders
from .evaluate import add_networks, add_public, load_evaluator
from .options import add_device, check_apart, names_in
from .stopping import StopSignals
from .terminal import show


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--paper", choices=PAPERS, default="osasis", help="whose table: its measures, and its published "
                   "rows (%(default)s)")
    p.add_argument("--results", type=Path, required=True, help="METHOD/INPUTS/STYLE/NAME.png: what each method made of "
                   "photo NAME; sub-folders of STYLE hold results of its single pictures, or of several seeds")
    p.add_argument("--photos", type=Path, required=True, help="INPUTS/NAME.png; or NAME.png, and no INPUTS in "
                   "--results")
    p.add_argument("--styles", type=Path, required=True, help="STYLE/*.png; or *.png, and no STYLE in --results")
    p.add_argument("--metrics", default="", help="columns, names of metrics separated by commas (default: the paper's)")
    p.add_argument("--side", type=int, default=256, help="all pictures are seen as middle squares of so many pixels "
                   "(%(default)s)")
    p.add_argument("--out", type=Path, help="gets table.csv, table.md and table.png")
    add_device(p)
    add_networks(p)
    add_public(p.add_argument_group("measures of papers; without its file a measure is left out, and the reason said"))
    p.set_defaults(run=run)


def run(options: argparse.Namespace, signals: StopSignals) -> None:
    if not 32 <= options.side <= 2048:
        raise ValueError(f"--side is {options.side}; take 32 to 2048")
    check_apart(options.out, options.photos, options.styles)
    names = names_in(options.metrics)
    papers.check_metrics(names)
    folders = Folders(options.results, options.photos, options.styles)
    papers.cells_of(folders)  # says what does not fit before any network is loaded
    table = papers.evaluation_table(load_evaluator(options, torch.device(options.device)), folders, options.paper,
                                    names, options.side, signals.check)
    show(table.markdown())
    if options.out:
        papers.write(table, options.out)
