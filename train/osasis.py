"""One-shot fine-tuning of OSASIS (docs/osasis.md C.1 to C.5): a copy B of the DiffAE's UNet and the SPN learn a style.

An iteration prepares content pictures with the frozen DiffAE A, then walks the reverse chain of both streams (style and
content) once; every index is one optimiser step on its one-step predictions, and the chain is cut there. Defaults are
the official program's; each deviation of that program from the paper is a field (D, F).
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..models import rng
from ..models.accelerated import accelerated
from ..models.diffae import DiffAE
from ..models.diffusion import SOLVERS, Schedule, check_steps, ddim_between, ddim_schedule, eps_of
from ..models.features.clip import Clip
from ..models.features.protocols import PerceptualDistance
from ..models.fields import check_fields
from ..models.graphs import Graphs, release, releasing
from ..models.hashing import hash_of
from ..models.osasis import NOISE_LEVELS, SPN_TIMES, Perceptual, reverse_indices
from ..models.precision import PRECISIONS, autocast, float64_device
from ..models.spn import SPN, SPNConfig
from ..models.style import OSASISStyle
from ..models.unet import UNet
from . import losses
from .content import Content, content_source, prepare_content
from .content_files import ContentFolder
from .data import to_bytes
from .loop import Checkpointing, Hooks, LoopConfig, Run, StepResult, finite, of_kind, total, train
from .session import Session, hash_of_network

SPNS = ("timed", "untimed", "none")
CLAMPS = ("hard", "straight-through")
CLIP_PREPROCESSINGS = ("osasis", "openai")
TERMS = ("clip", "l1", "perceptual", "cross", "in")  # of the loss


@dataclass(frozen=True)
class OSASISConfig:
    """Everything that decides what a fine-tune makes. Weights in the paper's order; values from the code (D 1, D 6).

    cached_content: 0 makes new content pictures in every iteration (official); N > 0 prepares N once and reuses them.
    style_spn_weight: the style stream's SPN factor, 1 in the code though lambda is 0.1 (D 2). clamp: "hard" stops the
    gradient where x0 leaves [-1, 1] (official), "straight-through" lets it pass. micro_batch: rows a forward, 0 for
    all; changes memory, not the result. precision: of the UNet and CLIP on a GPU (official: float16, no scaler).
    solver: of encoding, and of sampling with the style (A.10). The reverse chain is DDIM's.
    """
    iterations: int = 200
    batch: int = 8
    lr: float = 5e-6
    lr_spn: float = 1e-4
    cross_weight: float = 1.0
    in_domain_weight: float = 0.5
    clip_weight: float = 30.0
    l1_weight: float = 10.0
    perceptual_weight: float = 10.0
    spn: str = "timed"
    spn_weight: float = 0.1
    style_spn_weight: float = 1.0
    spn_time: str = "index"
    forward_steps: int = 50
    reverse_steps: int = 20
    latent_steps: int = 200
    generate_steps: int = 20
    t0: float = 0.5
    cached_content: int = 0
    noise_level: str = "official"
    clamp: str = "hard"
    clip_preprocessing: str = "osasis"
    dropout: bool = True
    micro_batch: int = 0
    precision: str = "float16"
    seed: int = 0
    solver: str = "ddim"

    def __post_init__(self) -> None:
        for name, allowed in (("spn", SPNS), ("spn_time", SPN_TIMES), ("noise_level", NOISE_LEVELS), ("clamp", CLAMPS),
                              ("clip_preprocessing", CLIP_PREPROCESSINGS), ("precision", PRECISIONS),
                              ("solver", SOLVERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {str(getattr(self, name))[:40]!r}; take one of {', '.join(allowed)}")
        check_fields(self, at_least_1=("iterations", "batch"))
        if not 0 < self.t0 <= 1:
            raise ValueError(f"t0 is {self.t0}; take t0 above 0 and at most 1")
        if not any((self.cross_weight, self.in_domain_weight, self.clip_weight, self.l1_weight,
                    self.perceptual_weight)):
            raise ValueError("cross_weight, in_domain_weight, clip_weight, l1_weight and perceptual_weight must not "
                             "all be 0")
        check_steps(self, "forward_steps", "reverse_steps", "latent_steps", "generate_steps")
        if not self.indices:
            raise ValueError(f"t0 x reverse_steps < 1 (t0 {self.t0}, {self.reverse_steps} steps); increase t0 or steps")

    @property
    def schedule(self) -> Schedule:
        return ddim_schedule(self.reverse_steps)

    @property
    def indices(self) -> range:
        """Indices of the reverse chain, falling: one optimiser step each."""
        return reverse_indices(self.schedule, self.t0, self.noise_level)


@dataclass(frozen=True)
class FrozenNetworks:
    """What a fine-tune needs and leaves as it is, on one device. fingerprint: of the DiffAE, for the style.

    leaves: the DiffAE goes to main memory as soon as the training needs it no more. It must be nobody else's then, and
    share nothing with the perceptual distance.
    """
    diffae: DiffAE
    clip: Clip
    perceptual: PerceptualDistance
    fingerprint: str = ""
    leaves: bool = False


class Aim(Protocol):
    """What a style is learned from: the rows of a walk, and the losses of their predictions."""
    @property
    def terms(self) -> tuple[str, ...]:
        """Of the loss, by name."""
        ...

    def streams(self, k: int, content: Content, embedded: Tensor, config: OSASISConfig) -> Streams:
        """The rows of iteration k. embedded (B, D): of the content pictures."""
        ...

    def losses(self, trainer: Trainer, part: Streams, x0: Tensor, embedded: Tensor, count: int) -> dict[str, Tensor]:
        """Weighted terms of some rows' predictions x0 and their embeddings, to be summed over all rows' parts; content
        terms are means over `count`."""
        ...


@dataclass
class Trainer:
    """The frozen side of a fine-tune: A, CLIP, what the style is learned from, and where content comes from."""
    nets: FrozenNetworks
    aim: Aim
    config: OSASISConfig
    content: Callable[[int], Content]
    levels: Tensor = field(init=False)
    graphs: Graphs = field(default_factory=Graphs)

    def __post_init__(self) -> None:
        self.levels = levels_of(self.config, self.device)

    @property
    def device(self) -> torch.device:
        return self.nets.clip.mean.device

    @property
    def perceptual(self) -> Perceptual:
        return self.nets.perceptual

    def autocast(self) -> AbstractContextManager:
        return autocast(self.device, self.config.precision)

    def embed(self, pictures: Tensor) -> Tensor:
        return self.nets.clip.embed(pictures, self.config.clip_preprocessing)


@dataclass(frozen=True)
class References:
    """Style images (R, 3, px, px) and their twins; style_a, style_b (R, D): CLIP embeddings of twins and images. An
    iteration takes one pair of them (H.2)."""
    twin: Content
    style_image: Tensor
    style_a: Tensor
    style_b: Tensor
    terms = TERMS

    @classmethod
    @torch.no_grad()
    def of(cls, nets: FrozenNetworks, twin: Content, style_image: Tensor, config: OSASISConfig) -> References:
        with autocast(style_image.device, config.precision):
            style_a, style_b = (nets.clip.embed(pictures, config.clip_preprocessing)
                                for pictures in (twin.picture, style_image))
        return cls(twin, style_image, style_a, style_b)

    def pair(self, k: int, seed: int) -> References:
        """The one of iteration k: every pair once in an order that the seed decides, then all again in another."""
        count = len(self.style_image)
        turn, place = divmod(k, count)
        order = torch.randperm(count, generator=rng.generator(seed, "reference order", turn)) if count > 1 else [0]
        row = int(order[place])
        rows = slice(row, row + 1)
        return References(self.twin.rows(rows), self.style_image[rows], self.style_a[rows], self.style_b[rows])

    def streams(self, k: int, content: Content, embedded: Tensor, config: OSASISConfig) -> Streams:
        """The pair's style stream, then the content streams."""
        pair, count = self.pair(k, config.seed), len(content.z)
        weight = content.x.new_tensor([config.style_spn_weight] + [config.spn_weight] * count)[:, None, None, None]
        return Streams(torch.cat([pair.twin.picture, content.picture]), torch.cat([pair.twin.z, content.z]),
                       torch.cat([pair.twin.x, content.x]), weight, torch.cat([embedded[:1], embedded]),
                       (pair.style_image, pair.style_a, pair.style_b), styles=1)

    def losses(self, trainer: Trainer, part: Streams, x0: Tensor, embedded: Tensor, count: int) -> dict[str, Tensor]:
        """The five losses of C.4."""
        config, (style_image, style_a, style_b) = trainer.config, part.wanted
        style_a, style_b, terms = style_a.float(), style_b.float(), {}
        first = part.styles
        if first:
            terms["clip"] = config.clip_weight * losses.clip_reconstruction_loss(embedded[:1], style_b).sum()
            terms["l1"] = config.l1_weight * losses.pixel_loss(x0[:1], style_image).sum()
            terms["perceptual"] = config.perceptual_weight * trainer.perceptual(x0[:1], style_image).sum()
        if len(x0) > first:
            content, result = part.embedded[first:].float(), embedded[first:]
            cross = losses.cross_domain_loss(style_a, style_b, content, result)
            in_domain = losses.in_domain_loss(style_a, style_b, content, result)
            terms["cross"] = config.cross_weight * cross.sum() / count
            terms["in"] = config.in_domain_weight * in_domain.sum() / count
        return terms


# --- a fine-tune as a session -----------------------------------------------------------------------------------------
def tune_style(nets: FrozenNetworks, twin: Tensor, style_image: Tensor, config: OSASISConfig,
               photos: Tensor | None = None, checkpointing: Checkpointing = Checkpointing(),
               hooks: Hooks = Hooks(), folder: ContentFolder | None = None) -> tuple[OSASISStyle, Run]:
    """Fine-tune a style; resume its snapshot if there is one. Returns the style and the finished run.

    twin, style_image (R, 3, px, px), mostly one, photos (N, 3, px, px) or None: in [-1, 1], on the networks' device.
    folder: where content pictures are kept for other styles, which changes nothing but the time. Raises ValueError
    (CheckpointError) for a snapshot of other settings or a damaged one, before anything long, and for another number of
    twins than of style images.
    """
    if len(twin) != len(style_image):
        raise ValueError(f"{len(style_image)} style images and {len(twin)} twins; give each style image its own twin")
    z_style = encode_style(nets, style_image)

    def aim(frozen: DiffAE, hooks: Hooks) -> References:
        parts = [prepare_content(frozen, part, config, hooks) for part in twin.split(config.batch)]
        return References.of(nets, Content.joined(parts), style_image, config)
    settings = describe(nets, twin, style_image, config, photos)
    run, settings = tune(nets, aim, settings, config, photos, checkpointing, hooks, folder)
    return finish(nets, run, style_image, z_style, settings), run


def tune(nets: FrozenNetworks, aim: Callable[[DiffAE, Hooks], Aim], settings: dict, config: OSASISConfig,
         photos: Tensor | None, checkpointing: Checkpointing, hooks: Hooks,
         folder: ContentFolder | None) -> tuple[Run, dict]:
    """A session of any fine-tune of OSASIS: (the finished run, the settings that were run). aim: makes what the style
    is learned from, with the frozen A. settings: all that decides the result."""
    if photos is None and nets.diffae.latent_net is None:
        raise ValueError("this DiffAE has no latent DDIM to generate content pictures with: connect photos as "
                         "contents, or load the '..._autoenc_latent' checkpoint")
    run, device = start(nets.diffae, config), nets.clip.mean.device

    def work(hooks: Hooks, save: Callable[[Run], None] | None) -> Run:
        frozen = accelerated(nets.diffae, device, config.precision)
        if nets.leaves and frozen is not nets.diffae:
            nets.diffae.to("cpu")
        with releasing(frozen):
            content = content_source(frozen, config, photos, hooks, folder)
            trainer = Trainer(nets, aim(frozen, hooks), config, content)
            if content.is_prepared(range(run.step, config.iterations)) and (nets.leaves or frozen is not nets.diffae):
                frozen.to("cpu")
                release(frozen)
            return fine_tune(trainer, run, checkpointing.every, hooks, save)

    with Session.open(run, settings, checkpointing, hooks) as session:
        return run, session.train(work, config.iterations, device, hooks)


def describe(nets: FrozenNetworks, twin: Tensor, style_image: Tensor, config: OSASISConfig,
             photos: Tensor | None) -> dict:
    """Everything that decides the result, JSON-able: config fields, and hashes of networks and pictures."""
    return asdict(config) | {
        "training": "OSASIS fine-tune", "model": nets.fingerprint, "clip_network": hash_of_network(nets.clip),
        "perceptual_network": hash_of_network(nets.perceptual), "twin": hash_of({"": twin}),
        "style_image": hash_of({"": style_image}), "photos": None if photos is None else hash_of({"": photos})}


def start(frozen: DiffAE, config: OSASISConfig, weights: OSASISStyle | None = None) -> Run:
    """B, a trainable copy of A's UNet (or of an earlier style's), the SPN, and an Adam for each (C.1)."""
    device = next(frozen.parameters()).device
    nets: dict[str, nn.Module] = {"unet": copy.deepcopy(frozen.unet).float().requires_grad_(True)}
    if config.spn != "none":
        with rng.seeded(config.seed, "new SPN"):
            nets["spn"] = SPN(SPNConfig(timed=config.spn == "timed")).to(device)
    if weights is not None:
        nets["unet"].load_state_dict(dict(weights.unet))
        if weights.spn and "spn" in nets:
            nets["spn"].load_state_dict(dict(weights.spn))
    for net in nets.values():
        net.train(config.dropout)
    rates = {"unet": config.lr, "spn": config.lr_spn}
    return Run(nets, {name: torch.optim.Adam(net.parameters(), rates[name], fused=device.type == "cuda")
                      for name, net in nets.items()})


@torch.no_grad()
def encode_style(nets: FrozenNetworks, style_image: Tensor) -> Tensor:
    """z of the style image, of several their mean, (1, E), on the CPU."""
    return nets.diffae.encode(style_image).float().mean(0, keepdim=True).cpu()


def finish(nets: FrozenNetworks, run: Run, style_image: Tensor | None, z_style: Tensor | None,
           settings: dict) -> OSASISStyle:
    """The style as it stands: 16-bit weights on the CPU, its code, everything needed to use it. style_image: the first
    of these is kept."""
    def weights(name: str) -> dict[str, Tensor]:
        return {k: v.detach().to("cpu", torch.float16) for k, v in run.nets[name].state_dict().items()}
    spn = weights("spn") if "spn" in run.nets else None
    picture = None if style_image is None else to_bytes(style_image[0])
    return OSASISStyle(run.net("unet", UNet).config, weights("unet"), spn, z_style, picture, nets.fingerprint, settings)


# --- training ---------------------------------------------------------------------------------------------------------
def fine_tune(trainer: Trainer, run: Run, save_every: int = 0, hooks: Hooks = Hooks(),
              save: Callable[[Run], None] | None = None) -> Run:
    """Train from run.step to config.iterations."""
    loop = LoopConfig(trainer.config.iterations, trainer.config.seed, save_every)
    with trainer.graphs, torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        return train(run, lambda k, hooks: iteration(trainer, run, k, hooks), loop, trainer.device, hooks, save)


def iteration(trainer: Trainer, run: Run, k: int, hooks: Hooks = Hooks()) -> dict[str, Tensor]:
    """One walk down the reverse chain (C.3, step 4). Returns each loss's mean over the optimiser steps.

    Where the walk stands is in run.partial after every optimiser step, so that it can be stopped and resumed there.
    """
    config, content = trainer.config, trainer.content(k)
    with torch.no_grad(), trainer.autocast():
        embedded = trainer.embed(content.picture)
    streams = trainer.aim.streams(k, content, embedded, config)
    done, sums = int(run.partial.get("done", 0)), {}
    if done:
        streams = streams.at(run.partial["x"].to(trainer.device))
        sums = {name[4:]: value.to(trainer.device) for name, value in run.partial.items() if name.startswith("sum/")}
    for n, i in list(enumerate(config.indices))[done:]:
        with rng.seeded(config.seed, "dropout", k, i, device=trainer.device):
            values, predictions, streams = update(trainer, run, streams, i, hooks)
        finite(values, k + 1)
        sums = {name: sums.get(name, 0) + value for name, value in values.items()}
        run.partial = {"done": torch.tensor(n + 1), "x": streams.x} | {f"sum/{name}": v for name, v in sums.items()}
        hooks.on_step(StepResult(k, i, values, predictions))
    return {name: value / len(config.indices) for name, value in sums.items()}


@dataclass(frozen=True)
class Streams:
    """The rows of a walk: `styles` style streams (0 or 1), then the content streams; x is where each stands on the
    chain. wanted: what the losses compare them with, of no rows of its own."""
    picture: Tensor
    z: Tensor
    x: Tensor
    spn_weight: Tensor
    embedded: Tensor
    wanted: tuple[Tensor, ...] = ()
    styles: int = 0

    @property
    def rows(self) -> tuple[Tensor, ...]:
        return self.picture, self.z, self.x, self.spn_weight, self.embedded

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return *self.rows, *self.wanted

    def of(self, tensors: Sequence[Tensor]) -> Streams:
        """The same streams with other `tensors`."""
        count = len(self.rows)
        return Streams(*tensors[:count], wanted=tuple(tensors[count:]), styles=self.styles)

    def at(self, x: Tensor) -> Streams:
        """The same streams, standing at x."""
        return replace(self, x=x)

    def chunks(self, size: int) -> list[Streams]:
        parts = zip(*(t.split(size or len(self.z)) for t in self.rows))
        return [Streams(*part, wanted=self.wanted, styles=0 if n else self.styles) for n, part in enumerate(parts)]


def update(trainer: Trainer, run: Run, streams: Streams, i: int,
           hooks: Hooks = Hooks()) -> tuple[dict[str, Tensor], Tensor, Streams]:
    """One optimiser step at index i. Returns (losses, x0 predictions, the streams one index further, detached)."""
    hooks.check_interrupt()
    within = Hooks() if trainer.graphs.enabled(trainer.device) else hooks  # a graph is one call
    values, predictions, x = trainer.graphs(
        "gradients", lambda level, *tensors: gradients(trainer, run, level, streams.of(tensors), within),
        trainer.levels[i], *streams.tensors)
    for optimizer in run.optimizers.values():
        optimizer.step()
    values = values.clone()  # a graph's outputs are overwritten by its next run
    return dict(zip((*trainer.aim.terms, "loss"), values)), predictions.clone(), streams.at(x.clone())


def gradients(trainer: Trainer, run: Run, level: Tensor, streams: Streams,
              hooks: Hooks = Hooks()) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves the gradients of the losses in the networks. Returns (losses of the aim's terms and their sum, x0
    predictions, x one index further). level: where the streams stand, see `levels_of`."""
    for optimizer in run.optimizers.values():
        optimizer.zero_grad(set_to_none=not trainer.graphs.enabled(level.device))
    terms, count = trainer.aim.terms, len(streams.z) - streams.styles
    totals, predictions, following = streams.z.new_zeros(len(terms), dtype=torch.float32), [], []
    for part in streams.chunks(trainer.config.micro_batch):
        hooks.check_interrupt()
        x0, x = predict(trainer, run.nets, part, level)
        with trainer.autocast():
            embedded = trainer.embed(x0).float()
        values = trainer.aim.losses(trainer, part, x0, embedded, count)
        total(values).backward()
        totals = totals + torch.stack([values[name].detach() if name in values else totals.new_zeros(())
                                       for name in terms])
        predictions.append(x0.detach())
        following.append(x.detach())
    return torch.cat([totals, totals.sum(0, keepdim=True)]), torch.cat(predictions), torch.cat(following)


def levels_of(config: OSASISConfig, device: torch.device) -> Tensor:
    """Of every index of the reverse schedule: its time, the SPN's time, its signal level and the next one's. float64
    (steps, 4) on the device: a step must not wait for numbers from the CPU (but where the device has no float64)."""
    schedule = config.schedule
    rows = [(schedule.times[i], i if config.spn_time == "index" else schedule.times[i], schedule.alpha_bar(i),
             schedule.alpha_bar(i - 1)) for i in range(len(schedule))]
    return torch.tensor(rows, dtype=torch.float64, device=float64_device(device))


def predict(trainer: Trainer, nets: Mapping[str, nn.Module], part: Streams, level: Tensor) -> tuple[Tensor, Tensor]:
    """(x0, next x) of B at a level; the SPN's addition is seen by the network and by the x0 formula (C.2)."""
    (time, spn_time), (alpha_bar, following) = level[:2].long().to(part.x.device).split(1), level[2:].unbind()
    x, unet = part.x, of_kind(nets, "unet", UNet)
    if "spn" in nets:
        x = x + part.spn_weight * recomputed(nets["spn"], part.picture, spn_time)
    with trainer.autocast():
        output = unet(x, unet.modulation(time, part.z)).float()
    eps = eps_of(output, x, alpha_bar, unet.config.prediction)
    x0, x_next = ddim_between(x, eps, alpha_bar, following)
    if trainer.config.clamp == "hard":
        return x0, x_next
    unclamped, _ = ddim_between(x, eps, alpha_bar, following, clamp_x0=False)
    return unclamped + (x0 - unclamped).detach(), x_next


def recomputed(net: nn.Module, picture: Tensor, time: Tensor) -> Tensor:
    """net(picture, time); on a GPU its maps are made again for the backward pass instead of kept: the SPN's are 5.5 GiB
    at batch 8 (E.2), and cheap."""
    if picture.device.type != "cuda":
        return net(picture, time)
    return checkpoint(net, picture, time, use_reentrant=False, preserve_rng_state=False)
