"""Diffusion pretraining: the diffusion autoencoder, its latent DDIM and the plain DDPM (docs/osasis.md A.1, A.5, B).

Defaults of the official DiffAE: Adam 1e-4, MSE on eps, uniform t, EMA 0.9999, gradient norm clipped to 1, flips.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models import rng
from ..models.diffae import DiffAE
from ..models.diffusion import TRAIN_STEPS, add_noise, constant_alpha_bar, linear_alpha_bar
from ..models.fields import check_fields
from ..models.precision import PRECISIONS, autocast
from ..models.unet import UNet
from .data import Augmentations, ImageDataset, random_augment, to_unit
from .loop import Hooks, Run, Step, ema_copy


@dataclass(frozen=True)
class PretrainingConfig:
    """How a diffusion model is trained. max_grad_norm: 0 for no clipping.

    decay_from: share of the run after which the rate falls linearly to zero.
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
    augmentations: Augmentations = Augmentations(0, 0, 0)

    def __post_init__(self) -> None:
        check_fields(self, at_least_1=("steps", "batch"), below_1=("beta2", "ema_decay"))
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision[:40]!r}; take one of {', '.join(PRECISIONS)}")


def rate_at(step: int, config: PretrainingConfig) -> float:
    """Learning rate at a step: linear warm-up, constant, linear fall after `decay_from`."""
    start = config.decay_from * config.steps
    fall = 1.0 if step < start else max(0.0, (config.steps - step) / max(1.0, config.steps - start))
    return config.lr * fall * min(1.0, (step + 1) / (config.warmup + 1))


def start(net: nn.Module, config: PretrainingConfig) -> Run:
    """A fresh run of AdamW over all of the net's parameters, with its moving average."""
    fused = next(net.parameters()).is_cuda
    optimizer = torch.optim.AdamW(net.parameters(), config.lr, (0.9, config.beta2), weight_decay=config.weight_decay,
                                  fused=fused)
    return Run({"net": net.train()}, {"net": optimizer}, {"net": ema_copy(net)} if config.ema_decay else {})


def stepper(run: Run, loss: Callable[[Any, int], Tensor], config: PretrainingConfig) -> Step:
    """One optimiser step on `loss(net, k)`."""
    net, optimizer = run.nets["net"], run.optimizers["net"]

    def step(k: int, hooks: Hooks) -> dict[str, Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(k, config)
        value = loss(net, k)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if config.max_grad_norm:
            nn.utils.clip_grad_norm_(net.parameters(), config.max_grad_norm)
        optimizer.step()
        return {"loss": value.detach()}
    return step


def noise_loss(unet: UNet, x0: Tensor, t: Tensor, noise: Tensor, z: Tensor | None = None) -> Tensor:
    """Mean squared error of what the network predicts: eps, or v = sqrt(abar) eps - sqrt(1 - abar) x0."""
    a = linear_alpha_bar().float().to(x0.device)[t][:, None, None, None]
    target = noise if unet.config.prediction == "eps" else a.sqrt() * noise - (1 - a).sqrt() * x0
    output = unet(add_noise(x0, noise, a), unet.modulation(t, z))[:, :3]
    return (output.float() - target).square().mean()


def diffae_loss(net: DiffAE, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The autoencoder's loss: the UNet is conditioned on z of the clean picture, encoder and UNet learn together."""
    return noise_loss(net.unet, x0, t, noise, net.encoder(x0))


def picture_loss(loss: Callable, dataset: ImageDataset,
                 config: PretrainingConfig) -> Callable[[nn.Module, int], Tensor]:
    """`loss(net, x0, t, noise)` on random augmentations of the data set; a step's depend on (seed, step) alone."""
    device = dataset.pictures.device
    run_loss = torch.compile(loss, dynamic=False) if config.compile else loss

    def at(net: nn.Module, k: int) -> Tensor:
        generator = rng.generator(config.seed, "batch", k, device=device)
        x0 = random_augment(dataset.sample(config.batch, generator)[0], config.augmentations, generator)
        t = torch.randint(TRAIN_STEPS, (len(x0),), device=device, generator=generator)
        noise = torch.randn(x0.shape, device=device, generator=generator)
        if device.type == "cuda":
            x0, noise = (v.contiguous(memory_format=torch.channels_last) for v in (x0, noise))
        with autocast(device, config.precision):
            return run_loss(net, x0, t, noise)
    return at


@torch.no_grad()
def encode_dataset(net: DiffAE, dataset: ImageDataset, augmentations: Augmentations, rounds: int, seed: int,
                   batch: int = 128) -> Tensor:
    """z (rounds * N, E) of `rounds` random augmentations of every picture."""
    device, codes = dataset.pictures.device, []
    generator = rng.generator(seed, "augmentation", device=device)
    for _ in range(rounds):
        for chunk in dataset.pictures.split(batch):
            codes.append(net.encode(random_augment(to_unit(chunk), augmentations, generator)))
    return torch.cat(codes)


def set_statistics(net: DiffAE, z: Tensor) -> Tensor:
    """Store mean and standard deviation of z (N, E) in the model; returns z normalised."""
    net.conds_mean.copy_(z.mean(0))
    net.conds_std.copy_(z.std(0))
    return (z - net.conds_mean) / net.conds_std


def latent_loss(z: Tensor, config: PretrainingConfig) -> Callable[[nn.Module, int], Tensor]:
    """L1 on eps of normalised z (N, E), constant schedule (A.5)."""
    device = z.device
    alpha_bar = constant_alpha_bar().float().to(device)

    def at(net: nn.Module, k: int) -> Tensor:
        generator = rng.generator(config.seed, "batch", k, device=device)
        rows = torch.randint(len(z), (config.batch,), device=device, generator=generator)
        t = torch.randint(TRAIN_STEPS, (config.batch,), device=device, generator=generator)
        noise = torch.randn(config.batch, z.shape[1], device=device, generator=generator)
        return (net(add_noise(z[rows], noise, alpha_bar[t][:, None]), t) - noise).abs().mean()
    return at
