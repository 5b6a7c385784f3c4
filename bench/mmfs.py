"""Time MMFS at the official size, on random weights (speed is the same), and compare its fast path with plain torch.

    python3 tools/launch.py bench.mmfs [--px 512] [--batch 8] [--frames 64] [--device cuda]
    python3 tools/launch.py bench.stylegan2_kernels           first: are the kernels right, forward and backward?

One table of Markdown: median of some runs after two more (the second one captures a graph), the peak of allocated GPU
memory, and the largest difference of a picture from plain torch in float32, in grey levels of 255.
"""
from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..models import kernels
from ..models.features.clip import Clip
from ..models.features.dino import Dino, DinoConfig
from ..models.graphs import Graphs
from ..models.mmfs import MMFS, MapperConfig, MMFSConfig
from ..models.precision import PRECISIONS, UNSCALED
from ..models.rng import seeded
from ..models.stylegan2 import seeded_noise
from ..models.stylizer import Stylizer, stylizer
from ..train import fewshot
from ..train.fewshot import FewShotConfig, Reference
from ..train.source_faces import FaceNetworks, Source
from .osasis import VIT_B_32, timed

Work = Callable[[], object]


@contextmanager
def plain_torch(active: bool = True) -> Iterator[None]:
    """No kernels inside."""
    usable = kernels.usable
    kernels.usable = (lambda x: False) if active else usable
    try:
        yield
    finally:
        kernels.usable = usable


def network(device: torch.device, mapper: MapperConfig | None = None) -> MMFS:
    """Random weights, with biases and noise."""
    with seeded(0, "weights"):
        net = MMFS(MMFSConfig(mapper=mapper))
        for name, parameter in net.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                parameter.data += 0.1 * torch.randn_like(parameter)
    return net.to(device).eval().requires_grad_(False)


class Stylizing:
    """Stylizing some pictures: by the network itself in plain torch, or by the stylizer, as it is or as a graph."""

    def __init__(self, net: MMFS, count: int, px: int, device: torch.device) -> None:
        self.net, self.device = net, device
        with seeded(count, "pictures"):
            photos = torch.rand(count, 3, px, px) * 2 - 1
            w = net.styles(torch.randn(count, net.config.w_dim, device=device))
        self.inputs = (photos.to(device), w, *seeded_noise(net.noise_shapes(px, px), 0, range(count), device))
        with plain_torch(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            self.wanted = Stylizer(net, "float32")(*self.inputs)

    def difference(self, found: Tensor) -> float:
        """In grey levels."""
        return float((found - self.wanted).abs().max()) * 127.5

    def cases(self) -> Iterator[tuple[str, Callable[[], Tensor], bool]]:
        """(name, work, whether it is plain torch)."""
        for precision in ("float32", "bfloat16"):
            yield f"plain torch, {precision}", partial(Stylizer(self.net, precision), *self.inputs), True
        for precision in PRECISIONS:
            made = stylizer(self.net, precision)
            yield f"stylizer, {precision}", partial(made, *self.inputs), False
            yield f"stylizer, {precision}, graph", partial(self.graphed, made, Graphs()), False

    def graphed(self, made: Stylizer, graphs: Graphs) -> Tensor:
        return graphs("", lambda *tensors: (made(*tensors),), *self.inputs)[0]


def training_step(net: MMFS, batch: int, px: int, device: torch.device, precision: str) -> Work:
    """A one-shot step. The source faces are encoded outside: that is done once and serves the whole fine-tune."""
    with seeded(0, "features"):
        clip = Clip(VIT_B_32).to(device).eval().requires_grad_(False)
        structure_net = Dino(DinoConfig()).to(device).eval().requires_grad_(False)
        photos = (torch.rand(batch, 3, px, px) * 2 - 1).to(device)
    config = FewShotConfig(batch=batch, precision=precision)
    nets, reference = FaceNetworks(net, clip, structure_net), Reference(pictures=[photos[0].cpu()])
    features = fewshot.read_reference(net, clip, reference, config)
    trainer = fewshot.Trainer(nets, features, Source(nets, photos, config), config, reference)
    run = fewshot.start(net, config)
    return lambda: fewshot.update(trainer, run, 0)


def through_the_node(net: MMFS, frames: int, px: int) -> Work:
    """All frames through Stylize with MMFS, as ComfyUI calls it, in a ComfyUI of this process."""
    from ..nodes import mmfs as nodes
    from ..nodes.host import PatchedModule
    from ..nodes.sockets import MMFSModel, WPlus
    model = MMFSModel("bench", PatchedModule(net.cpu()), "", None, 3)
    film, w = torch.rand(frames, px, px, 3), WPlus(net.styles(torch.randn(1, net.config.w_dim)), "", "")

    def stylize() -> object:
        with torch.inference_mode():
            return nodes.StylizeMMFS.execute(model, film, 1.0, "seeded", 0, "crop", 1024, 8, w_plus=w)
    return stylize


def row(what: str, work: Work, device: torch.device, runs: int, difference: str = "") -> None:
    """A line of the table; the second call, which captures, is not among the timed ones."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    work()
    seconds, memory = timed(work, device, runs)
    print(f"| {what} | {1000 * seconds:.1f} | {memory:.2f} | {difference} |", flush=True)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--px", type=int, default=512)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--frames", type=int, default=64, help="through the node, which needs a ComfyUI; 0 for none")
    p.add_argument("--runs", type=int, default=10)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = p.parse_args()
    device, px, runs = torch.device(options.device), options.px, options.runs
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{px} px, {where}, torch {torch.__version__}\n")
    print("| what | ms | GiB | difference in 1/255 |\n|---|---|---|---|")
    net = network(device, MapperConfig())
    for count in dict.fromkeys((1, options.batch)):
        stylizing = Stylizing(net, count, px, device)
        for name, work, plain in stylizing.cases():
            with plain_torch(plain):
                row(f"stylize {count}, {name}", work, device, runs, f"{stylizing.difference(work()):.3f}")
    for precision in UNSCALED:
        for plain in (True, False):
            with plain_torch(plain):
                step = training_step(net, options.batch, px, device, precision)
                name = "kernels off" if plain else "kernels on"
                row(f"one-shot step, batch {options.batch}, {precision}, {name}", step, device, runs)
                del step
    if options.frames:
        with tempfile.TemporaryDirectory() as folder:
            in_comfy(Path(folder))
            row(f"{options.frames} frames through the node", through_the_node(net, options.frames, px), device, 3)
    return 0


def in_comfy(folder: Path) -> None:
    """Make ComfyUI's modules importable, on the GPU, with its folders in `folder`."""
    import importlib
    import sys

    from ..tools.comfy import find_host
    sys.path.insert(0, str(find_host().comfy))
    arguments, sys.argv = sys.argv, ["main.py", "--base-directory", str(folder)]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("comfy.cli_args")
    sys.argv = arguments
    importlib.import_module("utils.extra_config")  # before comfy/utils.py can pass for it
