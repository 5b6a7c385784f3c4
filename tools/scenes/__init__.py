"""Pictures of a domain of their own, rendered here: houses in landscapes, under varied sky, light, season and weather.

    python3 tools/launch.py tools.scenes OUT --count 4000 --seed 0 --size 128

They are to a prior what LSUN's churches are to DiffAE's: a second domain to train and to test with (docs/osasis.md
G.1). Picture i of a seed is always the same, whatever COUNT is; what is there is kept. Rays are traced through convex
solids and ellipsoids: the sun's shadows are true, the clouds, the grass and the hills are noise.

World: x to the right, y up, z away from the viewer; the house stands near the origin, on y = 0. Colours are linear
(R, G, B) in [0, 1] until they are developed.
"""
from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ...models.whole_files import whole_file
from .rendering import render
from .world import scene

log = logging.getLogger(__name__)


def picture(seed: int, number: int, size: int) -> Image.Image:
    """Picture `number` of a seed, size x size, RGB."""
    return Image.fromarray((render(scene(seed, number), size) * 255 + .5).astype(np.uint8))


def file_of(folder: Path, seed: int, number: int) -> Path:
    return folder / f"scene_{seed}_{number:05d}.png"


def save(number: int, folder: Path, seed: int, size: int) -> None:
    with whole_file(file_of(folder, seed, number), str(os.getpid())) as file:
        picture(seed, number, size).save(file, "PNG")


def render_folder(folder: Path, count: int, seed: int = 0, size: int = 128, processes: int = 1) -> int:
    """Pictures 0 .. count - 1 of the seed that are not there yet; returns how many were made."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(count) if not file_of(folder, seed, number).exists()]
    job = partial(save, folder=folder, seed=seed, size=size)
    if processes < 2:
        for number in missing:
            job(number)
        return len(missing)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for _ in pool.imap_unordered(job, missing, chunksize=16):
            pass
    return len(missing)


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="tools.scenes", description=__doc__.splitlines()[0])
    p.add_argument("out", type=Path, help="folder that gets scene_SEED_NUMBER.png; what is there is kept")
    p.add_argument("--count", type=int, default=4000, help="(%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    p.add_argument("--size", type=int, default=128, help="side in pixels (%(default)s)")
    p.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="(%(default)s)")
    options = p.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not 16 <= options.size <= 1024 or options.count < 1 or options.processes < 1:
        log.error("--size takes 16 to 1024, --count and --processes 1 at least")
        return 1
    made = render_folder(options.out, options.count, options.seed, options.size, options.processes)
    log.info("%d pictures rendered under %s", made, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
