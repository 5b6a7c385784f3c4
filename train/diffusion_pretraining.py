"""Diffusion pretraining: the diffusion autoencoder, its latent DDIM and the plain DDPM (docs/osasis.md A.1, A.5, B).

Defaults of the official DiffAE: Adam 1e-4, MSE on eps, uniform t, EMA 0.9999, gradient norm clipped to 1, flips.

A step is `Objective.batch`, all that is random, and `Objective.loss`, which is computed from that alone: so it can be
a CUDA graph, and several processes can share it, each with its own rows of one batch.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models import rng
from ..models.diffae import DiffAE
from ..models.diffusion import TRAIN_STEPS, add_noise, constant_alpha_bar, linear_alpha_bar
from ..models.fields import check_fields
from ..models.graphs import Graphs
from ..models.precision import UNSCALED, autocast
from ..models.unet import UNet
from .data import LABELS, Augmentations, ImageDataset, augment, augmentation_draws, to_unit
from .distributed import SINGLE_PROCESS, Distributed
from .loop import Hooks, LoopConfig, Run, Step, ema_copy


@dataclass(frozen=True)
class PretrainingConfig:
    """How a diffusion model is trained. max_grad_norm: 0 for no clipping. dropout: share of a map's numbers that are
    dropped while it learns; what is stored keeps the dropout of its own configuration.

    decay_from: share of the run after which the rate falls linearly to zero. augmentation_labels: the network is told
    how a picture was augmented while it learns, and of no augmentation in sampling, so that its samples have none
    (Karras et al. 2022). The DDPM and the latent DDIM need that; an autoencoder's z holds the augmentation.
    ema_ramp: see loop.update_ema; not official.
    """
    steps: int
    batch: int = 64
    lr: float = 1e-4
    weight_decay: float = 0.0
    beta2: float = 0.999
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    decay_from: float = 1.0
    warmup: int = 0
    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    dropout: float = 0.0
    augmentations: Augmentations = Augmentations(0, 0, 0)
    augmentation_labels: bool = False
    ema_ramp: bool = False

    def __post_init__(self) -> None:
        check_fields(self, at_least_1=("steps", "batch"), below_1=("beta2", "ema_decay", "dropout"))
        if self.precision not in UNSCALED:
            raise ValueError(f"precision is {self.precision[:40]!r}; take one of {', '.join(UNSCALED)}")

    def loop(self, save_every: int = 0, log_every: int = 1, minutes: float = 0.0) -> LoopConfig:
        return LoopConfig(self.steps, self.seed, save_every, log_every, self.ema_decay, minutes, self.ema_ramp)


@dataclass(frozen=True)
class Objective:
    """What a training lowers. batch(k): the tensors of step k, this process's rows of them; they depend on (seed, k)
    alone. loss(net, *tensors): their mean loss, from tensors on the device alone (see graphs.Graphs)."""
    batch: Callable[[int], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]


def rate_at(step: int, config: PretrainingConfig) -> float:
    """Learning rate at a step: linear warm-up, constant, linear fall after `decay_from`."""
    start = config.decay_from * config.steps
    fall = 1.0 if step < start else max(0.0, (config.steps - step) / max(1.0, config.steps - start))
    return config.lr * fall * min(1.0, (step + 1) / (config.warmup + 1))


def label_embedding(width: int) -> nn.Linear:
    """What the time's embedding gets of an augmentation's labels: nothing at first, and never of labels that are 0. It
    is trained beside the network and not stored with it."""
    embedding = nn.Linear(LABELS, width, bias=False)
    nn.init.zeros_(embedding.weight)
    return embedding


def start(net: nn.Module, config: PretrainingConfig, labels: nn.Module | None = None) -> Run:
    """A fresh run of AdamW over all of the net's parameters, with its moving average. labels: see `label_embedding`."""
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.p = config.dropout or part.p
    nets = {"net": net.train()} | ({} if labels is None else {"labels": labels})
    parameters = [p for part in nets.values() for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, config.lr, (0.9, config.beta2), weight_decay=config.weight_decay,
                                  fused=parameters[0].is_cuda)
    return Run(nets, {"net": optimizer}, {"net": ema_copy(net)} if config.ema_decay else {})


def stepper(run: Run, objective: Objective, config: PretrainingConfig, graphs: Graphs,
            distributed: Distributed = SINGLE_PROCESS) -> Step:
    """One optimiser step on the objective. Loss and gradients are one of `graphs`, unless the loss is compiled."""
    net, optimizer = run.nets["net"], run.optimizers["net"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def captured() -> bool:
        return not config.compile and graphs.enabled(parameters[0].device)

    def gradients(*tensors: Tensor) -> tuple[Tensor]:
        optimizer.zero_grad(set_to_none=not captured())  # a graph adds to gradients that stay where they are
        value = objective.loss(net, *tensors)
        value.backward()
        return value.detach(),

    def step(k: int, hooks: Hooks) -> dict[str, Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(k, config)
        tensors = objective.batch(k)
        value, = graphs("gradients", gradients, *tensors) if captured() else gradients(*tensors)
        distributed.average_gradients(parameters)
        if config.max_grad_norm:
            nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        return distributed.average_losses({"loss": value.clone()})
    return step


def noise_loss(unet: UNet, x0: Tensor, t: Tensor, noise: Tensor, z: Tensor | None = None,
               more: Tensor | None = None) -> Tensor:
    """Mean squared error of what the network predicts: eps, or v = sqrt(abar) eps - sqrt(1 - abar) x0. more: what is
    added to the time's embedding."""
    a = linear_alpha_bar(device=x0.device).float().to(x0.device)[t][:, None, None, None]
    target = noise if unet.config.prediction == "eps" else a.sqrt() * noise - (1 - a).sqrt() * x0
    output = unet(add_noise(x0, noise, a), unet.modulation(t, z, more))[:, :3]
    return (output.float() - target).square().mean()


def diffae_loss(net: DiffAE, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The autoencoder's loss: the UNet is conditioned on z of the clean picture, encoder and UNet learn together."""
    return noise_loss(net.unet, x0, t, noise, net.encoder(x0))


def picture_objective(loss: Callable[..., Tensor], dataset: ImageDataset, config: PretrainingConfig,
                      distributed: Distributed = SINGLE_PROCESS, labels: nn.Module | None = None) -> Objective:
    """`loss(net, x0, t, noise)` on random augmentations of the data set. labels: embeds those of the augmentations, and
    the loss takes it as `more`."""
    device, side = dataset.pictures.device, dataset.pictures.shape[2:]
    rows = distributed.rows(config.batch, 1).to(device)
    run_loss = torch.compile(loss, dynamic=False) if config.compile else loss

    def batch(k: int) -> tuple[Tensor, ...]:
        generator = rng.generator(config.seed, "batch", k, device=device)
        x0 = dataset.sample(config.batch, generator)[0]
        draws = augmentation_draws(config.batch, config.augmentations, generator).of(rows)
        t = torch.randint(TRAIN_STEPS, (config.batch,), device=device, generator=generator)
        noise = torch.randn(config.batch, 3, *side, device=device, generator=generator)
        x0, noise = augment(x0[rows], config.augmentations, draws), noise[rows]
        if device.type == "cuda":
            x0, noise = (v.contiguous(memory_format=torch.channels_last) for v in (x0, noise))
        return (x0, t[rows], noise) if labels is None else (x0, t[rows], noise, draws.labels())

    def loss_of(net: nn.Module, x0: Tensor, t: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Of pictures without labels: as they are seen in sampling."""
        with autocast(device, config.precision):
            if labels is None or label is None:
                return run_loss(net, x0, t, noise)
            return run_loss(net, x0, t, noise, more=labels(label))
    return Objective(batch, loss_of)


@torch.no_grad()
def fixed_loss(net: nn.Module, loss: Callable[..., Tensor], pictures: Tensor, rounds: int = 4,
               batch: int = 64) -> float:
    """Mean of `loss(net, x0, t, noise)` over pictures uint8 (N, 3, px, px) as they are, each at `rounds` times. Times,
    spread evenly over all, and noises are the same in every call, so that numbers of two moments can be compared."""
    device, n = pictures.device, rounds * len(pictures)
    generator = rng.generator(0, "held out", device=device)
    t = torch.randperm(n, device=device, generator=generator) * TRAIN_STEPS // n
    total = 0.0
    for index in torch.arange(n, device=device).split(batch):
        x0 = to_unit(pictures[index % len(pictures)])
        noise = torch.randn(x0.shape, device=device, generator=generator)
        total += float(loss(net, x0, t[index], noise)) * len(index)
    return total / n


@torch.no_grad()
def encode_dataset(net: DiffAE, dataset: ImageDataset, augmentations: Augmentations, rounds: int, seed: int,
                   batch: int = 128) -> tuple[Tensor, Tensor]:
    """z (rounds * N, E) of `rounds` random augmentations of every picture, and the augmentations' labels."""
    device, codes, labels = dataset.pictures.device, [], []
    generator = rng.generator(seed, "augmentation", device=device)
    for _ in range(rounds):
        for chunk in dataset.pictures.split(batch):
            draws = augmentation_draws(len(chunk), augmentations, generator)
            codes.append(net.encode(augment(to_unit(chunk), augmentations, draws)))
            labels.append(draws.labels())
    return torch.cat(codes), torch.cat(labels)


def set_statistics(net: DiffAE, z: Tensor) -> Tensor:
    """Store mean and standard deviation of z (N, E) in the model; returns z normalised."""
    net.conds_mean.copy_(z.mean(0))
    net.conds_std.copy_(z.std(0))
    return (z - net.conds_mean) / net.conds_std


def latent_objective(z: Tensor, config: PretrainingConfig, distributed: Distributed = SINGLE_PROCESS,
                     labelled: tuple[Tensor, nn.Module] | None = None) -> Objective:
    """L1 on eps of normalised z (N, E), constant schedule (A.5). labelled: the labels (N, LABELS) of the augmentations
    that z was made of, and what embeds them."""
    device = z.device
    alpha_bar = constant_alpha_bar().float().to(device)
    mine = distributed.rows(config.batch, 1).to(device)

    def batch(k: int) -> tuple[Tensor, ...]:
        generator = rng.generator(config.seed, "batch", k, device=device)
        rows = torch.randint(len(z), (config.batch,), device=device, generator=generator)[mine]
        t = torch.randint(TRAIN_STEPS, (config.batch,), device=device, generator=generator)[mine]
        noise = torch.randn(config.batch, z.shape[1], device=device, generator=generator)[mine]
        x = add_noise(z[rows], noise, alpha_bar[t][:, None])
        return (x, t, noise) if labelled is None else (x, t, noise, labelled[0][rows])

    def loss(net: nn.Module, x: Tensor, t: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        more = () if labelled is None else (labelled[1](label),)
        return (net(x, t, *more) - noise).abs().mean()
    return Objective(batch, loss)
