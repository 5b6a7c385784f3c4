"""`atelier stylize --ray`: the pictures' names as a Ray Data set, mapped by processes that each load the networks once.

A process that dies is replaced, and its pictures are made again: those that it had saved are there already.
"""
from __future__ import annotations

import argparse
import importlib
import os
import runpy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..train.stylists import StylistConfig
from ..train.stylized_folders import BLOCK, Count, Networks, stylize_folder
from .server import ROOT

Batch = dict[str, Any]  # column: an array


def stylize_on_ray(jobs: dict[str, Path], out: Path, config: StylistConfig, options: argparse.Namespace) -> Count:
    """Every picture of `jobs` into `out`. ValueError without Ray."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError("Ray is not installed; run: pip install '.[ray]'") from error
    own: dict[str, Any] = {"num_cpus": options.workers, "object_store_memory": 1 << 28, "include_dashboard": False}
    ray.init(**own if options.ray == "local" else {"address": options.ray})
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0)) if options.device != "cpu" else 0
        workers = options.workers or gpus or 1
        names = ray.data.from_items([{"name": name, "path": str(path.resolve())} for name, path in jobs.items()],
                                    override_num_blocks=-(-len(jobs) // BLOCK))
        done = names.map_batches(
            worker_class(str(ROOT)), batch_size=BLOCK, concurrency=workers,
            num_gpus=min(1, gpus / workers) if gpus else None, num_cpus=None if gpus else 1,
            fn_constructor_args=(asdict(config), str(out.resolve()), options.faces, options.film is not None,
                                 torch.get_num_threads()))
        return total(done.take_all())
    finally:
        ray.shutdown()


def total(rows: list[Batch]) -> Count:
    count = Count()
    for row in rows:
        count.made += row["made"]
        count.before += row["before"]
        count.left_out |= {row["path"]: row["why"]} if row["why"] else {}
    return count


def worker_class(root: str) -> type:
    """The class whose calls are mapped. It is sent as it stands here, and finds the pack on its machine: installed, or
    as the checkout `root`."""
    class Worker:
        def __init__(self, *told: Any) -> None:
            try:
                importlib.import_module("oneshot_atelier")
            except ImportError:
                runpy.run_path(f"{root}/cli/__main__.py")["load_checkout"](Path(root))
            self.work = importlib.import_module("oneshot_atelier.cli.stylize_ray").worker(*told)

        def __call__(self, batch: Batch) -> Batch:
            return self.work(batch)
    return Worker


def worker(config: dict[str, Any], out: str, faces: bool, film: bool, threads: int) -> Callable[[Batch], Batch]:
    """Loads the networks; the function of a batch of {"name", "path"} that writes its pictures. threads: on a CPU, by
    which sums are rounded: as many as the process has that a run without Ray would be in."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nets = Networks.load(StylistConfig(**config), device, faces, Path(out) if film else None)

    def work(batch: Batch) -> Batch:
        found: Batch = {"path": list(map(str, batch["path"])), "made": [], "before": [], "why": []}
        jobs = dict(zip(map(str, batch["name"]), map(Path, found["path"])))
        there = {name: (Path(out) / f"{name}.png").exists() for name in jobs}
        count = stylize_folder(jobs, Path(out), lambda: nets)
        for name, path in jobs.items():
            why = count.left_out.get(str(path), "")
            found["why"].append(why)
            found["before"].append(int(there[name]))
            found["made"].append(int(not (there[name] or why)))
        return found
    return work
