"""Time OSASIS at an official size: network calls, fine-tuning and stylizing, on random weights (speed is the same).

    python3 tools/launch.py bench.osasis [--config ffhq256] [--batch 8] [--device cuda] [--precision float16]
    python3 tools/launch.py bench.osasis --limit-gib 8       a fine-tune with micro_batch 1, and stylizing, in 8 GiB

One line of Markdown for each figure: median of some runs after warm-up, and the peak of reserved GPU memory.
"""
from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from ..models.accelerated import accelerated
from ..models.diffae import CONFIGS, DiffAE, DiffAEConfig, LatentConfig, change_point_weights, mix_codes
from ..models.features.clip import Clip, ClipConfig
from ..models.features.encoder import EncoderDistance
from ..models.features.lpips import VGG_SLICES, LpipsVGG
from ..models.features.protocols import PerceptualDistance
from ..models.graphs import Graphs
from ..models.ops import channels_last
from ..models.osasis import photo_twins, stylize, twin_noise
from ..models.precision import autocast
from ..models.rng import seeded
from ..models.spn import SPN, SPNConfig
from ..models.unet import UNet, UNetConfig
from ..train import osasis
from ..train.content import BLOCK, CODES, content_source, prepare_content, sample_codes
from ..train.osasis import FrozenNetworks, OSASISConfig, tune_style
from .measure import GIB, Work, forget_peak, peak, seconds_of, timed

VIT_B_32 = ClipConfig(512, 224, 32, 768, 12, 77, 49408, 512, 12)
P2 = UNetConfig(256, 128, (1, 1, 2, 2, 4, 4), blocks=1, cond=0, out_channels=6, head_channels=64, dropout=0.0)


@dataclass(frozen=True)
class Size:
    """Networks and settings of what is timed. tune: of the fine-tunes. steps: of encoding and decoding. lpips: the
    perceptual distance; else the DiffAE's encoder is."""
    name: str
    diffae: DiffAEConfig
    clip: ClipConfig = VIT_B_32
    spn: SPNConfig = SPNConfig()
    ddpm: UNetConfig = P2
    tune: OSASISConfig = OSASISConfig()
    steps: tuple[int, int] = (100, 50)
    candidates: int = 30
    change_point: int = 32
    lpips: bool = True


def official(name: str, tune: OSASISConfig = OSASISConfig()) -> Size:
    """One of the public configurations."""
    return Size(name, CONFIGS[name], ddpm=replace(P2, image_size=CONFIGS[name].unet.image_size), tune=tune)


_SMALL = UNetConfig(32, 16, (1, 1), blocks=1, embed=16, cond=16)
SMALL = Size(  # tries a command out on a CPU
    "small", DiffAEConfig(_SMALL, (1, 1, 1), LatentConfig(16, 24, 3, 16)), ClipConfig(16, 32, 8, 64, 1, 8, 6, 64, 1),
    SPNConfig(width=32, middle=32), replace(_SMALL, cond=0, out_channels=6, head_channels=16, dropout=0.0),
    OSASISConfig(batch=2, forward_steps=4, reverse_steps=4, latent_steps=2, generate_steps=2), (8, 4), 2, 32, False)


def lpips(device: torch.device) -> LpipsVGG:
    """LPIPS with a random trunk."""
    shapes = {}
    for n, (c_in, c_out) in zip(VGG_SLICES, pairwise((3, 64, 64, 128, 128, *[256] * 3, *[512] * 6))):
        shapes |= {f"features.{n}.weight": (c_out, c_in, 3, 3), f"features.{n}.bias": (c_out,)}
    return LpipsVGG({name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}).to(device)


class Networks:
    """The frozen networks on a device, and pictures of noise. `fast` and `spn` are those that sample."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device, self.precision = size, device, size.tune.precision
        with seeded(0, "weights"), device:
            net, clip = DiffAE(size.diffae), Clip(size.clip)
        self.net = channels_last(net).eval().requires_grad_(False)
        distance: PerceptualDistance = lpips(device) if size.lpips else EncoderDistance(copy.deepcopy(net.encoder))
        self.frozen = FrozenNetworks(self.net, clip.eval().requires_grad_(False), distance, size.name)

    @cached_property
    def fast(self) -> DiffAE:
        return accelerated(self.net, self.device, self.precision)

    @cached_property
    def spn(self) -> SPN:
        with self.device:
            return accelerated(SPN(self.size.spn).eval().requires_grad_(False), self.device, self.precision)

    def own_unet(self) -> UNet:
        """One more that samples."""
        return accelerated(self.net.unet, self.device, self.precision)

    def pictures(self, count: int) -> Tensor:
        return torch.rand(count, 3, self.net.image_size, self.net.image_size, device=self.device) * 2 - 1


# --- network calls ----------------------------------------------------------------------------------------------------
@torch.no_grad()
def unet_call(unet: UNet, rows: int, device: torch.device) -> Work:
    """Prediction without gradient."""
    config = unet.config
    x = torch.randn(rows, 3, config.image_size, config.image_size, device=device)
    z = torch.randn(rows, config.cond, device=device) if config.cond else None
    modulation = unet.modulation(torch.full((1,), 500, device=device), z)
    return torch.no_grad()(lambda: unet(x, modulation))


def training_call(nets: Networks, rows: int) -> Work:
    """Forward and backward pass of a trained copy, with dropout and as a graph, as in the fine-tune."""
    unet = copy.deepcopy(nets.net.unet).train().requires_grad_(True)
    graphs, z = Graphs(), torch.randn(rows, unet.config.cond, device=nets.device)
    time = torch.full((1,), 500, device=nets.device)

    def gradients(x: Tensor, time: Tensor, z: Tensor) -> tuple[Tensor]:
        unet.zero_grad(set_to_none=not graphs.enabled(nets.device))
        with autocast(nets.device, nets.precision):
            loss = unet(x, unet.modulation(time, z)).float().square().mean()
        loss.backward()
        return loss.detach(),
    x = nets.pictures(rows)
    return lambda: graphs("gradients", gradients, x, time, z)


# --- fine-tuning ------------------------------------------------------------------------------------------------------
def iterations(nets: Networks, config: OSASISConfig) -> Work:
    """Iteration after iteration of a fine-tune; content that is reused is prepared here."""
    twin = prepare_content(nets.fast, nets.pictures(1), config)
    aim = osasis.References.of(nets.frozen, twin, twin.picture.clone(), config)
    trainer = osasis.Trainer(nets.frozen, aim, config, content_source(nets.fast, config))
    run, numbers = osasis.start(nets.net, config), itertools.count()

    def iteration() -> object:
        run.partial = {}  # else it counts as done
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            return osasis.iteration(trainer, run, next(numbers))
    return iteration


def prepared(config: OSASISConfig) -> OSASISConfig:
    """Settings of an iteration that finds its content prepared, which is made quickly: it is not timed."""
    return replace(config, cached_content=config.batch, latent_steps=2, generate_steps=2)


def content(nets: Networks) -> tuple[Work, Work]:
    """Generating and encoding content pictures of given z, block after block; and z of CODES pictures."""
    config, numbers = nets.size.tune, itertools.count(1)
    source = content_source(nets.fast, config)
    source(0)  # samples z
    return lambda: source(next(numbers) * BLOCK // config.batch % (CODES // config.batch)), (
        lambda: sample_codes(nets.fast, range(CODES), "content", config))


def tuned(nets: Networks, config: OSASISConfig) -> None:
    """A fine-tune from its beginning, as the node makes it: the DiffAE leaves the GPU when it can."""
    tune_style(replace(nets.frozen, leaves=True), nets.pictures(1), nets.pictures(1), config)
    nets.net.to(nets.device)


# --- stylizing --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Stylizing:
    """Stylizing photos: `first` encodes and decodes them, `second` has their codes, `new_style` also makes a style's
    networks ready, as is done once for each."""
    first: Callable[[], Tensor]
    second: Callable[[], Tensor]
    new_style: Callable[[], Tensor]


def stylizing(nets: Networks, count: int, steps: tuple[int, int] | None = None) -> Stylizing:
    photos, z_style = nets.pictures(count), torch.randn(1, nets.size.diffae.unet.cond, device=nets.device)
    weights = change_point_weights(nets.size.diffae.unet, nets.size.change_point)
    encode_steps, decode_steps = steps or nets.size.steps

    def encode() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), autocast(nets.device, nets.precision):
            z = nets.fast.encode(photos)
            return z, nets.fast.structural_code(photos, z, encode_steps)

    def decode(codes: tuple[Tensor, Tensor], unet: UNet, spn: SPN) -> Tensor:
        with torch.no_grad(), autocast(nets.device, nets.precision):
            mixed = mix_codes(codes[0], z_style, weights)
            return stylize(unet, codes[1], mixed, steps=decode_steps, spn=spn, picture=photos)
    codes, unet = encode(), nets.fast.unet
    return Stylizing(lambda: decode(encode(), unet, nets.spn), lambda: decode(codes, unet, nets.spn),
                     lambda: decode(codes, nets.own_unet(), nets.spn))


def calls_of(steps: tuple[int, int], t0: float = 0.5) -> int:
    """Network calls of encoding and decoding in so many steps."""
    return sum(int(count * t0) for count in steps)


def twins(nets: Networks) -> Work:
    """Photo twin: all candidates, at once. The network is made here and goes with the work."""
    with nets.device:
        ddpm = accelerated(channels_last(UNet(nets.size.ddpm)).eval(), nets.device, nets.precision)
    style_image = nets.pictures(1)
    noise = twin_noise(0, range(nets.size.candidates), style_image.shape[1:], nets.device)
    return torch.no_grad()(lambda: photo_twins(ddpm, style_image, noise))


# --- the command ------------------------------------------------------------------------------------------------------
def cases(nets: Networks) -> dict[str, Work]:
    """What is timed."""
    batch = nets.size.tune.batch
    making, _ = content(nets)
    return {f"one iteration ({len(nets.size.tune.indices)} updates, batch {batch}), content prepared":
            iterations(nets, prepared(nets.size.tune)),
            f"making {BLOCK} content pictures and their codes": making,
            "stylize 1 picture": stylizing(nets, 1).first, f"stylize {batch} pictures": stylizing(nets, batch).first}


def in_little_memory(nets: Networks) -> dict[str, Work]:
    """What a small GPU has to hold: an iteration of a fine-tune, row by row, and stylizing."""
    config = replace(nets.size.tune, iterations=1, micro_batch=1)
    return {f"a fine-tune of 1 iteration, batch {config.batch}, micro_batch 1": lambda: tuned(nets, config),
            "stylize 1 picture": lambda: stylizing(nets, 1).first()}


def limit(gib: float) -> None:
    """From now on this process gets so much memory of the GPU."""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--config", choices=CONFIGS, default="ffhq256")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--precision", default="float16")
    p.add_argument("--limit-gib", type=float, default=0.0, help="memory of the GPU that may be used")
    options = p.parse_args()
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    if options.limit_gib and device.type != "cuda":
        p.error("--limit-gib is for a GPU")
    print(f"{options.config}, {options.precision}, {where}, torch {torch.__version__}\n")
    print("| what | s | GiB |\n|---|---|---|")
    size = official(options.config, OSASISConfig(batch=options.batch, precision=options.precision))
    if options.limit_gib:
        limit(options.limit_gib)
        nets = Networks(size, device)
        for what, work in in_little_memory(nets).items():
            forget_peak(device)
            print(f"| {what} | {seconds_of(work, device):.3f} | {peak(device):.2f} |", flush=True)
        print(f"\nAllowed: {options.limit_gib:g} GiB, the CUDA context not counted.")
        return 0
    for what, work in cases(Networks(size, device)).items():
        print("| {} | {:.3f} | {:.1f} |".format(what, *timed(work, device, options.runs, 2)), flush=True)
    return 0
