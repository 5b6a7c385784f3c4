"""Samples a second of diffusion pretraining: a step of the demo DiffAE and DDPM at 128 px, in the ways it can be made.

    python3 tools/launch.py bench.pretraining [--batch 128] [--only graph,kernels] [--steps 30]
    torchrun --nproc_per_node 4 tools/launch.py bench.pretraining --accelerate --batch 512      all processes together

A step is everything that `atelier train` does in one: drawing and augmenting the batch, loss, gradients, optimiser,
moving average. --batch is that of all processes.
"""
from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from ..cli.processes import processes
from ..models import ops
from ..models.graphs import Graphs
from ..train import diffusion_pretraining as pretraining
from ..train.data import ImageDataset
from ..train.diffusion_pretraining import PretrainingConfig
from ..train.distributed import Distributed
from ..train.loop import Hooks, update_ema
from ..train.recipes import diffusion
from .measure import forget_peak, looped, peak, seconds_of
from .mmfs import plain_torch

log = logging.getLogger(__name__)
WAYS = {"graph": "kernels, one CUDA graph (as trained)", "kernels": "kernels", "plain": "plain torch",
        "compile": "plain torch, compiled", "compiled kernels": "kernels, compiled (--compile)"}
MODELS: dict[str, tuple[Callable[[int], nn.Module], Callable, bool]] = {
    "DiffAE": (lambda px: diffusion.DiffAE(diffusion.small_diffae(px)), pretraining.diffae_loss, False),
    "DDPM": (lambda px: diffusion.UNet(diffusion.small_ddpm(px)), pretraining.noise_loss, True)}


def stepping(model: str, way: str, options: argparse.Namespace, distributed: Distributed, device: torch.device,
             graphs: Graphs) -> Callable[[], None]:
    """A step of a new training; the next one at every call."""
    make, loss, labelled = MODELS[model]
    config = PretrainingConfig(steps=10 ** 6, batch=options.batch, lr=6e-4, weight_decay=1e-3, beta2=0.99,
                               ema_decay=0.9995, warmup=500, precision=options.precision,
                               compile="compile" in way, augmentations=diffusion.PHOTO_AUGMENTATIONS,
                               augmentation_labels=labelled)
    torch.manual_seed(0)
    net = ops.channels_last(make(options.px).to(device))
    labels = pretraining.label_embedding(128).to(device) if labelled else None
    pictures = torch.randint(256, (1000, 3, options.px, options.px), dtype=torch.uint8, device=device)
    dataset = ImageDataset(pictures, torch.zeros(1000, device=device).long(), torch.ones(1000, device=device))
    run = pretraining.start(net, config, labels)
    objective = pretraining.picture_objective(loss, dataset, config, distributed, labels)
    step = pretraining.stepper(run, objective, config, graphs, distributed)

    def work() -> None:
        step(run.step, Hooks())
        update_ema(run, config.ema_decay)
        run.step += 1
    return work


def measure(model: str, way: str, options: argparse.Namespace, distributed: Distributed, device: torch.device) -> str:
    """A line: samples a second, ms a step, GiB of one GPU, and how long the first three steps took."""
    forget_peak(device)
    with plain_torch() if way in ("plain", "compile") else nullcontext(), Graphs() as graphs:
        if way != "graph":
            graphs.failed = True  # each call is made as it is
        work = stepping(model, way, options, distributed, device, graphs)
        first = seconds_of(lambda: [work() for _ in range(3)], device)
        seconds = looped(work, device, options.steps)
        if way == "graph" and not graphs.captured:
            log.warning("nothing was captured")
    return (f"{model}, {WAYS[way]}: {options.batch / seconds:.0f} samples/s, {seconds * 1e3:.1f} ms, "
            f"{peak(device):.1f} GiB, the first three steps {first:.1f} s")


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda")
    p.add_argument("--batch", type=int, default=128)
    p.add_argument("--px", type=int, default=128, choices=(64, 128))
    p.add_argument("--steps", type=int, default=30)
    p.add_argument("--precision", default="bfloat16")
    p.add_argument("--only", default="graph,kernels,plain,compile", help=f"of: {', '.join(WAYS)}")
    p.add_argument("--models", default="DiffAE,DDPM")
    p.add_argument("--accelerate", action="store_true")
    options = p.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with processes(options) as (distributed, device), torch.backends.cudnn.flags(enabled=True, benchmark=True):
        for model in options.models.split(","):
            for way in options.only.split(","):
                torch.compiler.reset()
                line = measure(model, way, options, distributed, device)
                if distributed.is_main_process:
                    log.info("%s", line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
