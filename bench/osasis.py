"""Time OSASIS at the official size: one fine-tuning iteration and stylizing, on random weights (speed is the same).

    python3 tools/launch.py bench.osasis [--config ffhq256] [--batch 8] [--device cuda] [--precision float16]

One line of Markdown for each figure: median of some runs after a warm-up, and the peak of allocated GPU memory.
"""
from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch

from ..models.accelerated import accelerated
from ..models.diffae import CONFIGS, DiffAE, change_point_weights, mix_codes
from ..models.features.clip import Clip, ClipConfig
from ..models.features.lpips import VGG_SLICES, LpipsVGG
from ..models.osasis import stylize
from ..models.precision import autocast
from ..models.spn import SPN
from ..train import osasis
from ..train.content import content_source, generate_pictures, prepare_content
from ..train.osasis import FrozenNetworks, OSASISConfig

VIT_B_32 = ClipConfig(512, 224, 32, 768, 12, 77, 49408, 512, 12)


def timed(work: Callable[[], object], device: torch.device, runs: int) -> tuple[float, float]:
    """(median seconds, peak GiB) of `runs` calls after one more."""
    def once() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began
    once()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(once() for _ in range(runs))
    return seconds, torch.cuda.max_memory_allocated() / 2 ** 30 if device.type == "cuda" else float("nan")


def lpips(device: torch.device) -> LpipsVGG:
    """LPIPS with a random trunk."""
    shapes = {}
    for n, (c_in, c_out) in zip(VGG_SLICES, pairwise((3, 64, 64, 128, 128, *[256] * 3, *[512] * 6))):
        shapes |= {f"features.{n}.weight": (c_out, c_in, 3, 3), f"features.{n}.bias": (c_out,)}
    return LpipsVGG({name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}).to(device)


def cases(name: str, batch: int, device: torch.device, precision: str) -> dict[str, Callable[[], object]]:
    """What is timed. Cached content is prepared outside: it is made once and serves every iteration."""
    net = DiffAE(CONFIGS[name]).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    fast = accelerated(net, device, precision)
    clip = Clip(VIT_B_32).to(device).eval().requires_grad_(False)
    spn, px = SPN().to(device).eval().requires_grad_(False), net.image_size
    config = OSASISConfig(batch=batch, cached_content=batch, latent_steps=10, generate_steps=10, precision=precision)
    nets, content = FrozenNetworks(net, clip, lpips(device)), content_source(fast, config)
    twin = prepare_content(fast, torch.rand(1, 3, px, px, device=device) * 2 - 1, config)
    trainer = osasis.Trainer(nets, twin, twin.picture.clone(), config, content)
    run = osasis.start(net, config)
    weights = change_point_weights(net.config.unet, 32)

    def iteration() -> object:
        run.partial = {}  # else it counts as done
        return osasis.iteration(trainer, run, 0)

    @torch.no_grad()
    def sample(count: int) -> torch.Tensor:
        photo = torch.rand(count, 3, px, px, device=device) * 2 - 1
        with autocast(device, precision):
            z = fast.encode(photo)
            x = fast.structural_code(photo, z, 100)
            return stylize(fast.unet, x, mix_codes(z, twin.z, weights), spn=spn, picture=photo)

    @torch.no_grad()
    def fresh() -> object:
        official = OSASISConfig(batch=batch, precision=precision)
        return prepare_content(fast, generate_pictures(fast, range(batch), "content", official), config)
    return {f"one iteration (10 updates, batch {batch}), content prepared": iteration,
            f"making {batch} content pictures and their codes": fresh,
            "stylize 1 picture": lambda: sample(1), f"stylize {batch} pictures": lambda: sample(batch)}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--config", choices=CONFIGS, default="ffhq256")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--precision", default="float16")
    options = p.parse_args()
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{options.config}, {options.precision}, {where}, torch {torch.__version__}\n")
    print("| what | s | GiB |\n|---|---|---|")
    for what, work in cases(options.config, options.batch, device, options.precision).items():
        print("| {} | {:.3f} | {:.1f} |".format(what, *timed(work, device, options.runs)), flush=True)
    return 0
