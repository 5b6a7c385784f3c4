"""Time MMFS at the official size: stylizing and one fine-tuning step, on random weights (speed is the same).

    python3 tools/launch.py bench.mmfs [--px 512] [--batch 8] [--device cuda] [--precision bfloat16]

One line of Markdown for each figure: median of some runs after a warm-up, and the peak of allocated GPU memory.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from ..models.features.clip import Clip
from ..models.features.dino import Dino, DinoConfig
from ..models.mmfs import MMFS, MapperConfig, MMFSConfig
from ..models.precision import autocast
from ..train import fewshot
from ..train.fewshot import FewShotConfig, Reference
from ..train.source_faces import FaceNetworks, Source
from .osasis import VIT_B_32, timed


def cases(px: int, batch: int, device: torch.device, precision: str) -> dict[str, Callable[[], object]]:
    """What is timed. The source faces are encoded outside: that is done once and serves the whole fine-tune."""
    net = MMFS(MMFSConfig(mapper=MapperConfig())).to(device).eval().requires_grad_(False)
    clip = Clip(VIT_B_32).to(device).eval().requires_grad_(False)
    structure_net = Dino(DinoConfig()).to(device).eval().requires_grad_(False)
    config = FewShotConfig(batch=batch, precision=precision)
    photos = torch.rand(batch, 3, px, px, device=device) * 2 - 1
    nets, reference = FaceNetworks(net, clip, structure_net), Reference(pictures=[photos[0].cpu()])
    features = fewshot.read_reference(net, clip, reference, config)
    trainer = fewshot.Trainer(nets, features, Source(nets, photos, config), config, reference)
    run = fewshot.start(net, config)

    @torch.no_grad()
    def sample(count: int) -> torch.Tensor:
        with autocast(device, precision):
            return net(photos[:count], features.w_plus.expand(count, -1, -1))
    return {"stylize 1 picture": lambda: sample(1), f"stylize {batch} pictures": lambda: sample(batch),
            f"one fine-tuning step, batch {batch}": lambda: fewshot.update(trainer, run, 0)}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--px", type=int, default=512)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--precision", default="bfloat16")
    options = p.parse_args()
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{options.px} px, {options.precision}, {where}, torch {torch.__version__}\n")
    print("| what | s | GiB |\n|---|---|---|")
    for what, work in cases(options.px, options.batch, device, options.precision).items():
        print("| {} | {:.3f} | {:.1f} |".format(what, *timed(work, device, options.runs)), flush=True)
    return 0
