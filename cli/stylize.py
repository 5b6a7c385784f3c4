"""`atelier stylize`: a folder of pictures in one style, on all GPUs of a machine, or on a Ray cluster."""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..models.diffusion import SOLVERS
from ..models.films import MOST_FRAMES
from ..models.precision import AUTO, PRECISIONS
from ..train.stylists import StylistConfig
from ..train.stylized_folders import Count, Networks, jobs_of, prepare_film, prepare_folder, stylize_folder
from .options import check_apart, given
from .server import ROOT
from .stopping import StopSignals, stopped_with
from .terminal import show

STYLE_FOLDERS = ("osasis", "mmfs_styles")  # of ComfyUI's models

OF_PARENT = ("command", "run", "photos", "device", "workers", "part", "ray")  # options not handed on to workers


def add_arguments(p: argparse.ArgumentParser) -> None:
    c = StylistConfig
    p.add_argument("photos", type=Path, help="folder of pictures; as the models know faces, or with --faces whole ones")
    p.add_argument("--style", required=True, help="style file of OSASIS or MMFS, style picture (MMFS), or the name of "
                   "a style in ComfyUI's models folder (COMFYUI_PATH)")
    p.add_argument("--out", type=Path, required=True, help="gets NAME.png, or FOLDER_NAME.png; what is there is kept, "
                   "so that a run can be resumed")
    p.add_argument("--model", type=Path, help="the style's DiffAE or MMFS (default: the demo's)")
    p.add_argument("--clip", type=Path, help="for a style picture: the CLIP of the model's mapping (default: the "
                   "demo's)")
    p.add_argument("--faces", action="store_true", help="find all faces, stylize them and put them back")
    p.add_argument("--film", type=float, metavar="FRAMES", help="the pictures are the frames of a film, in the order "
                   "of their names, numbers in them as numbers (2 before 10): all have the same noise, and with "
                   "--faces each face is followed and its square smoothed over so many frames before and after (3 is "
                   "good)")
    p.add_argument("--steady", type=float, default=0.0, metavar="FRAMES", help="with --film: each result is the mean "
                   "of what the same things became in so many frames before and after, found by the optical flow of "
                   "the input (2 is good; 0: none)")
    p.add_argument("--batch", type=int, default=c.batch, help="pictures a network call (%(default)s)")
    p.add_argument("--seed", type=int, default=c.seed, help="of MMFS's noise; a picture's own depends on its name "
                   "(%(default)s)")
    p.add_argument("--strength", type=float, default=c.strength, help="of an MMFS style's decoder (%(default)s)")
    p.add_argument("--precision", choices=(AUTO, *PRECISIONS), default=c.precision, help="on a GPU (%(default)s)")
    for name in ("encode_steps", "decode_steps", "change_point"):
        p.add_argument("--" + name.replace("_", "-"), type=int, default=getattr(c, name), help="of OSASIS "
                       "(%(default)s)")
    p.add_argument("--solver", choices=SOLVERS, help="of OSASIS (default: the style's)")
    p.add_argument("--device", help="cpu, cuda, cuda:1, .. (default: all GPUs, or the CPU)")
    p.add_argument("--workers", type=int, help="processes (default: one a GPU)")
    p.add_argument("--part", metavar="K/N", help="only the K-th of N parts, 1 to N: one process of several")
    p.add_argument("--ray", metavar="ADDRESS", help="share the work in the Ray cluster at ADDRESS ('auto': the "
                   "running one, 'local': one made here), in --workers processes; all machines must see the "
                   "folders")
    p.set_defaults(run=run)


def run(options: argparse.Namespace, signals: StopSignals) -> None:
    config = config_of(options)
    with stopped_with(f"What is in {options.out} stays; the same command goes on with it"):
        count = stylized(options, config, signals)
    show(f"{options.out}: {count.in_words()}")


def stylized(options: argparse.Namespace, config: StylistConfig, signals: StopSignals) -> Count:
    check_apart(options.out, options.photos)
    jobs = jobs_of(options.photos, options.film is not None)
    prepare_folder(options.out, config, options.faces, options.film, options.steady)
    film = None if options.film is None else options.out
    if options.film is not None and options.faces:
        prepare_film(jobs, options.out, torch.device(options.device or devices()[0]), options.film, signals.check,
                     (options.part or "").replace("/", "_of_"))
        signals.at_once()
    if options.ray:
        from .stylize_ray import stylize_on_ray
        return stylize_on_ray(jobs, options.out, config, options)
    if options.part or number_of_workers(options) == 1:
        device = torch.device(options.device or devices()[0])
        return stylize_folder(part_of(jobs, options.part or "1/1", options.steady > 0), options.out,
                              lambda: Networks.load(config, device, options.faces, film), signals.check, jobs,
                              options.steady)
    return in_workers(jobs, options, signals.check)


def config_of(options: argparse.Namespace) -> StylistConfig:
    if options.film is not None and not 0 <= options.film <= 60:
        raise ValueError(f"--film is {options.film:g}; take 0 (no smoothing) to 60 frames")
    if not 0 <= options.steady <= MOST_FRAMES:
        raise ValueError(f"--steady is {options.steady:g}; take 0 (none) to {MOST_FRAMES:g} frames")
    if options.steady and options.film is None:
        raise ValueError("--steady is for the frames of a film; give --film, too")
    if options.steady and options.ray:
        raise ValueError("--steady needs the frames around each one, and --ray shares out single frames; leave out one "
                         "of them, or start one machine each with --part")
    if options.part and options.ray:
        raise ValueError("--part is for processes that you start yourself, and --ray shares out all pictures; leave "
                         "out one of them")
    networks = {name: path.resolve() for name, path in given(options, "model", "clip").items()}
    return StylistConfig(style_file(options.style), **networks, **given(
        options, "encode_steps", "decode_steps", "change_point", "solver", "strength", "seed", "batch", "precision"))


def style_file(name: str) -> Path:
    """A file, or the style of that name in ComfyUI's models. ValueError if there is none."""
    comfy = Path(os.environ.get("COMFYUI_PATH") or ROOT.parents[1])
    for path in (Path(name), *(comfy / "models" / folder / file for folder in STYLE_FOLDERS
                               for file in (name, f"{name}.safetensors"))):
        if path.is_file():
            return path.resolve()
    raise ValueError(f"there is no style {name}; name a file, or a style in {comfy / 'models'} "
                     f"({' or '.join(STYLE_FOLDERS)})")


def part_of(jobs: dict[str, Path], part: str, in_a_row: bool = False) -> dict[str, Path]:
    """Every N-th of them, from the K-th on; or the K-th of N parts that follow one another."""
    first, _, count = part.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise ValueError(f"--part is {part[:20]!r}; write K/N with K from 1 to N, such as 2/8")
    rows, k, n = list(jobs.items()), int(first), int(count)
    return dict(rows[(k - 1) * len(rows) // n:k * len(rows) // n] if in_a_row else rows[k - 1::n])


# --- the processes of one machine -------------------------------------------------------------------------------------
def devices() -> list[str]:
    return [f"cuda:{k}" for k in range(torch.cuda.device_count())] or ["cpu"]


def number_of_workers(options: argparse.Namespace) -> int:
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers is {options.workers}; take 1 or more")
    return options.workers or (1 if options.device else len(devices()))


def in_workers(jobs: dict[str, Path], options: argparse.Namespace, check_interrupt: Callable[[], None]) -> Count:
    """This command once a worker, each with its part and device. OSError if one fails: the others end their work, and
    a later run makes what is missing. They are ended, too, by what check_interrupt raises."""
    n, before = number_of_workers(options), made(jobs, options.out)
    places = [options.device] if options.device else devices()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        check_interrupt()
        for k in range(n):
            processes.append(subprocess.Popen(worker_command(options, k, n, places[k % len(places)]),
                                              stdout=subprocess.DEVNULL))
        while any(process.poll() is None for process in processes):
            check_interrupt()
            time.sleep(0.2)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    failed = [str(k + 1) for k, process in enumerate(processes) if process.returncode]
    count = Count(len(made(jobs, options.out)) - len(before), len(before), {
        str(path): "" for name, path in jobs.items() if not (options.out / f"{name}.png").exists()})
    if failed:
        raise OSError(f"part {', '.join(failed)} of {n} failed ({count.in_words()}). Run the command again for what is "
                      "missing")
    return count


def made(jobs: dict[str, Path], out: Path) -> set[str]:
    return {name for name in jobs if (out / f"{name}.png").exists()}


def worker_command(options: argparse.Namespace, k: int, n: int, device: str) -> list[str]:
    told: list[str] = []
    for name, value in vars(options).items():
        if name not in OF_PARENT and value is not None and value is not False:
            told += ["--" + name.replace("_", "-"), *([] if value is True else [str(value)])]
    return [sys.executable, str(ROOT / "cli"), "stylize", str(options.photos), *told, "--part", f"{k + 1}/{n}",
            "--device", device]
