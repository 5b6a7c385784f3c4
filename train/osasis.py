"""One-shot fine-tuning of OSASIS (spec C.1 to C.5): a copy B of the DiffAE's UNet and the SPN learn one picture.

An iteration prepares content pictures with the frozen DiffAE A, then walks the reverse chain of both streams (style
and content) once; every index is one optimiser step on its one-step predictions, and the chain is cut there.
Defaults are the official program's, slips included; each slip is a field (spec D, F).
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from ..models.clip import PREPARATIONS, Clip
from ..models.diffae import DiffAE
from ..models.diffusion import Table, ddim_step, stride_table
from ..models.osasis import NOISE_LEVELS, SPN_TIMES, Perceptual, Style, reverse_indices
from ..models.spn import SPN, SPNConfig
from ..models.unet import UNet
from . import losses
from .loop import LoopConfig, Progress, Run, seeded, step_seed, train
from .prior import precision

SPNS = ("timed", "untimed", "none")
CLAMPS = ("hard", "straight-through")


@dataclass(frozen=True)
class OsasisConfig:
    """Everything that decides what a fine-tune makes. Weights in the order of App. C.1; values from the code (D 1, 6).

    bank: 0 makes new content pictures in every iteration (official); N > 0 prepares N once and draws from them.
    style_spn_weight: the style stream's SPN factor, 1 in the code though lambda is 0.1 (D 2). clamp: "hard" stops the
    gradient where x0 leaves [-1, 1] (official), "straight-through" lets it pass. micro_batch: rows a forward, 0 for
    all; changes memory, not the result. precision: of the UNet and CLIP on a GPU (official: float16, no scaler).
    """
    iterations: int = 200
    batch: int = 8
    lr: float = 5e-6
    lr_spn: float = 1e-4
    cross: float = 1.0
    inner: float = 0.5
    clip: float = 30.0
    l1: float = 10.0
    perceptual: float = 10.0
    spn: str = "timed"
    spn_weight: float = 0.1
    style_spn_weight: float = 1.0
    spn_time: str = "index"
    forward_steps: int = 50
    reverse_steps: int = 20
    latent_steps: int = 200
    generate_steps: int = 20
    t0: float = 0.5
    bank: int = 0
    noise_level: str = "official"
    clamp: str = "hard"
    clip_preparation: str = "official"
    dropout: bool = True
    micro_batch: int = 0
    precision: str = "float16"
    seed: int = 0

    def __post_init__(self):
        for name, allowed in (("spn", SPNS), ("spn_time", SPN_TIMES), ("noise_level", NOISE_LEVELS), ("clamp", CLAMPS),
                              ("clip_preparation", PREPARATIONS), ("precision", ("float16", "bfloat16", "float32"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; take one of {', '.join(allowed)}")
        if min(self.iterations, self.batch) < 1 or not 0 < self.t0 <= 1:
            raise ValueError("iterations and batch must be at least 1, and t0 in (0, 1]")
        for steps in (self.forward_steps, self.reverse_steps, self.latent_steps, self.generate_steps):
            stride_table(steps)
        if not len(reverse_indices(stride_table(self.reverse_steps), self.t0, self.noise_level)):
            raise ValueError(f"t0 {self.t0} leaves no step of {self.reverse_steps}; raise one of them")


@dataclass(frozen=True)
class Content:
    """Content pictures in [-1, 1] with their codes: picture (B, 3, px, px), z (B, E), x_t0 (B, 3, px, px)."""
    picture: Tensor
    z: Tensor
    x: Tensor

    def rows(self, index: Tensor) -> Content:
        return Content(self.picture[index], self.z[index], self.x[index])


@dataclass(frozen=True)
class Update:
    """What is told after each optimiser step. predictions: x0 of the style row and the content rows, [-1, 1]."""
    iteration: int
    index: int
    losses: Mapping[str, Tensor]
    predictions: Tensor


@dataclass
class Trainer:
    """The frozen side of a fine-tune: A, the style picture and its twin, CLIP, and where content comes from."""
    frozen: DiffAE
    twin: Content
    style: Tensor
    clip: Clip
    perceptual: Perceptual
    config: OsasisConfig
    content: Callable[[int], Content]
    direction: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self):
        with torch.no_grad(), self.autocast():
            self.direction = self.embed(self.twin.picture), self.embed(self.style)

    @property
    def device(self) -> torch.device:
        return self.style.device

    def autocast(self):
        return autocast(self.device, self.config)

    def embed(self, pictures: Tensor) -> Tensor:
        return self.clip.embed(pictures, self.config.clip_preparation)


def autocast(device: torch.device, config: OsasisConfig):
    """The run's precision on a GPU, float32 on a CPU."""
    return precision(device, config.precision if device.type == "cuda" else "float32")


@torch.no_grad()
def prepare_content(frozen: DiffAE, pictures: Tensor, config: OsasisConfig) -> Content:
    """z (always computed in float32, A.9) and x_t0 of pictures with the frozen A (C.3, steps 2 and 3)."""
    with torch.autocast(pictures.device.type, enabled=False):
        z = frozen.encode(pictures.float())
    return Content(pictures, z, frozen.structural_code(pictures, z, config.forward_steps, config.t0).float())


@torch.no_grad()
def generate_pictures(frozen: DiffAE, count: int, generator: Generator, config: OsasisConfig) -> Tensor:
    """Content pictures drawn from A's prior: latent DDIM, then full reverse DDIM from noise (C.3, step 1)."""
    device, px = next(frozen.parameters()).device, frozen.image_size
    noise = torch.randn(count, 3, px, px, generator=generator).to(device)
    latent_noise = torch.randn(count, frozen.config.unet.cond, generator=generator).to(device)
    z = frozen.sample_z(latent_noise, config.latent_steps)
    return frozen.decode(noise, z, config.generate_steps, t0=1.0).float()


def content_source(frozen: DiffAE, config: OsasisConfig, photos: Tensor | None = None,
                   tick: Callable[[], None] = lambda: None) -> Callable[[int], Content]:
    """`content(k)`: the content pictures of iteration k, a function of (seed, k) alone.

    photos (N, 3, px, px) in [-1, 1] replace drawn pictures. A bank is prepared here, in chunks of the batch; `tick` is
    called between them.
    """
    device = next(frozen.parameters()).device

    def drawn(k: int, count: int) -> Content:
        generator = Generator().manual_seed(step_seed(config.seed + 1, k))
        with autocast(device, config):
            return prepare_content(frozen, generate_pictures(frozen, count, generator, config), config)

    if photos is None and not config.bank:
        return lambda k: drawn(k, config.batch)
    parts = []
    if photos is not None:
        for chunk in photos.split(config.batch):
            with autocast(device, config):
                parts.append(prepare_content(frozen, chunk, config))
            tick()
    else:
        for k, start in enumerate(range(0, config.bank, config.batch)):
            parts.append(drawn(-1 - k, min(config.batch, config.bank - start)))
            tick()
    bank = Content(*(torch.cat([getattr(p, name) for p in parts]) for name in ("picture", "z", "x")))

    def chosen(k: int) -> Content:
        generator = Generator().manual_seed(step_seed(config.seed + 1, k))
        rows = torch.randperm(len(bank.z), generator=generator).repeat(-(-config.batch // len(bank.z)))[:config.batch]
        return bank.rows(rows.to(bank.z.device))
    return chosen


def start(frozen: DiffAE, config: OsasisConfig, weights: Style | None = None) -> Run:
    """B, a trainable copy of A's UNet (or of an earlier style's), the SPN, and an Adam for each (C.1)."""
    device = next(frozen.parameters()).device
    nets: dict[str, nn.Module] = {"unet": copy.deepcopy(frozen.unet).float().requires_grad_(True)}
    if config.spn != "none":
        with seeded(step_seed(config.seed + 2, 0), device):
            nets["spn"] = SPN(SPNConfig(timed=config.spn == "timed")).to(device)
    if weights is not None:
        nets["unet"].load_state_dict(dict(weights.unet))
        if weights.spn and "spn" in nets:
            nets["spn"].load_state_dict(dict(weights.spn))
    for net in nets.values():
        net.train(config.dropout)
    rates = {"unet": config.lr, "spn": config.lr_spn}
    return Run(nets, {name: torch.optim.Adam(net.parameters(), rates[name]) for name, net in nets.items()})


def fine_tune(trainer: Trainer, run: Run, *, save_every: int = 0, save: Callable[[Run], None] | None = None,
              tick: Callable[[Update], None] | None = None, callback: Callable[[Progress], None] | None = None) -> Run:
    """Train from run.step to config.iterations. `tick` is called after every optimiser step and may raise to stop."""
    loop = LoopConfig(trainer.config.iterations, trainer.config.seed, save_every)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        return train(run, lambda k: iteration(trainer, run, k, tick), loop, trainer.device,
                     save=save, callback=callback)


def iteration(trainer: Trainer, run: Run, k: int, tick: Callable[[Update], None] | None = None) -> dict[str, Tensor]:
    """One walk down the reverse chain (C.3, step 4). Returns each loss's mean over the optimiser steps."""
    config = trainer.config
    table = stride_table(config.reverse_steps)
    content = trainer.content(k)
    with torch.no_grad(), trainer.autocast():
        embedded = trainer.embed(content.picture)
    streams = Streams.of(trainer.twin, content, embedded, config)
    sums: dict[str, Tensor] = {}
    indices = reverse_indices(table, config.t0, config.noise_level)
    for i in indices:
        values, predictions, streams = update(trainer, run, streams, table, i)
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + value / len(indices)
        if tick:
            tick(Update(k, i, values, predictions))
    return sums


@dataclass(frozen=True)
class Streams:
    """Row 0 is the style stream, the others the content stream; x is where each stands on the chain."""
    picture: Tensor
    z: Tensor
    x: Tensor
    spn_weight: Tensor
    embedded: Tensor

    @classmethod
    def of(cls, twin: Content, content: Content, embedded: Tensor, config: OsasisConfig) -> Streams:
        count = len(content.z)
        weight = content.x.new_tensor([config.style_spn_weight] + [config.spn_weight] * count)[:, None, None, None]
        return cls(torch.cat([twin.picture, content.picture]), torch.cat([twin.z, content.z]),
                   torch.cat([twin.x, content.x]), weight, torch.cat([embedded[:1], embedded]))

    def chunks(self, size: int) -> list[Streams]:
        parts = [t.split(size or len(self.z)) for t in (self.picture, self.z, self.x, self.spn_weight, self.embedded)]
        return [Streams(*part) for part in zip(*parts)]


def update(trainer: Trainer, run: Run, streams: Streams, table: Table, i: int):
    """One optimiser step at index i. Returns (losses, x0 predictions, the streams one index further, detached)."""
    for optimizer in run.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    totals: dict[str, Tensor] = {}
    predictions, following, row = [], [], 0
    for part in streams.chunks(trainer.config.micro_batch):
        x0, x = predict(trainer, run.nets, part, table, i)
        values = row_losses(trainer, part, x0, has_style=row == 0, count=len(streams.z) - 1)
        sum(values.values()).backward()
        for name, value in values.items():
            totals[name] = totals.get(name, 0) + value.detach()
        predictions.append(x0.detach())
        following.append(x.detach())
        row += len(part.z)
    for optimizer in run.optimizers.values():
        optimizer.step()
    further = Streams(streams.picture, streams.z, torch.cat(following), streams.spn_weight, streams.embedded)
    return totals | {"loss": sum(totals.values())}, torch.cat(predictions), further


def predict(trainer: Trainer, nets: Mapping[str, nn.Module], part: Streams, table: Table,
            i: int) -> tuple[Tensor, Tensor]:
    """(x0, next x) of B at index i; the SPN's addition is seen by the network and by the x0 formula (C.2)."""
    x, config = part.x, trainer.config
    if "spn" in nets:
        x = x + part.spn_weight * nets["spn"](part.picture, i if config.spn_time == "index" else table.times[i])
    unet: UNet = nets["unet"]
    with trainer.autocast():
        eps = unet(x, torch.full((len(x),), table.times[i], device=x.device), part.z)
    if config.clamp == "hard":
        return ddim_step(x, eps.float(), table, i, i - 1)
    free, _ = ddim_step(x, eps.float(), table, i, i - 1, clip=False)
    x0, following = ddim_step(x, eps.float(), table, i, i - 1)
    return free + (x0 - free).detach(), following


def row_losses(trainer: Trainer, part: Streams, x0: Tensor, has_style: bool, count: int) -> dict[str, Tensor]:
    """Weighted loss terms of some rows, to be summed over all rows' parts; content terms are means over `count`."""
    config, (style_a, style_b) = trainer.config, trainer.direction
    with trainer.autocast():
        embedded = trainer.embed(x0).float()
    style_a, style_b, terms = style_a.float(), style_b.float(), {}
    first = int(has_style)
    if has_style:
        terms["clip"] = config.clip * losses.clip_reconstruction_loss(embedded[:1], style_b).sum()
        terms["l1"] = config.l1 * losses.pixel_loss(x0[:1], trainer.style).sum()
        terms["perceptual"] = config.perceptual * trainer.perceptual(x0[:1], trainer.style).sum()
    if len(x0) > first:
        content, result = part.embedded[first:].float(), embedded[first:]
        terms["cross"] = config.cross * losses.cross_domain_loss(style_a, style_b, content, result).sum() / count
        terms["in"] = config.inner * losses.in_domain_loss(style_a, style_b, content, result).sum() / count
    return terms


def finish(trainer: Trainer, run: Run, picture: Tensor, model: str, settings: dict) -> Style:
    """The style as it stands: 16-bit weights on the CPU, z of the style picture, everything needed to use it."""
    def weights(name):
        return {k: v.detach().to("cpu", torch.float16) for k, v in run.nets[name].state_dict().items()}
    with torch.no_grad():
        z = trainer.frozen.encode(trainer.style).float().cpu()
    return Style(run.nets["unet"].config, weights("unet"), weights("spn") if "spn" in run.nets else None, z,
                 picture, model, settings)
