"""Training the priors: the diffusion autoencoder, its latent DPM and the plain DDPM (OSASIS spec A.1, A.5, B).

Defaults of the official DiffAE: Adam 1e-4, MSE on eps, uniform t, EMA 0.9999, gradient norm clipped to 1, flips.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from ..models.diffae import DiffAE
from ..models.diffusion import TRAIN_STEPS, add_noise, constant_alpha_bar
from ..models.unet import UNet
from .data import Pool, Views, random_views, to_unit
from .loop import Run, average_of, step_seed


@dataclass(frozen=True)
class PriorConfig:
    """How a prior is trained. decay_from: share of the run after which the rate falls linearly to zero."""
    steps: int
    batch: int = 64
    lr: float = 1e-4
    weight_decay: float = 0.0
    beta2: float = 0.999
    clip: float = 1.0
    average: float = 0.9999
    decay_from: float = 1.0
    warmup: int = 0
    seed: int = 0
    precision: str = "float32"
    compile: bool = False
    views: Views = Views(0, 0, 0)


def rate_at(step: int, config: PriorConfig) -> float:
    """Learning rate at a step: linear warm-up, constant, linear fall after `decay_from`."""
    start = config.decay_from * config.steps
    fall = 1.0 if step < start else max(0.0, (config.steps - step) / max(1.0, config.steps - start))
    return config.lr * fall * min(1.0, (step + 1) / (config.warmup + 1))


def precision(device: torch.device, name: str):
    """Autocast to "bfloat16" or "float16", or nothing for "float32"."""
    if name == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, name))


def start(net: nn.Module, config: PriorConfig) -> Run:
    """A fresh run of AdamW over all of the net's parameters, with its moving average."""
    fused = next(net.parameters()).is_cuda
    optimizer = torch.optim.AdamW(net.parameters(), config.lr, (0.9, config.beta2), weight_decay=config.weight_decay,
                                  fused=fused)
    return Run({"net": net.train()}, {"net": optimizer}, {"net": average_of(net)} if config.average else {})


def stepper(run: Run, loss: Callable[[nn.Module, int], Tensor],
            config: PriorConfig) -> Callable[[int], dict[str, Tensor]]:
    """One optimiser step on `loss(net, k)`."""
    net, optimizer = run.nets["net"], run.optimizers["net"]

    def step(k: int) -> dict[str, Tensor]:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(k, config)
        value = loss(net, k)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if config.clip:
            nn.utils.clip_grad_norm_(net.parameters(), config.clip)
        optimizer.step()
        return {"loss": value.detach()}
    return step


def noise_loss(unet: UNet, x0: Tensor, t: Tensor, noise: Tensor, z: Tensor | None = None) -> Tensor:
    """Mean squared error of the network's own target: eps, or v, whose error is that of eps over sqrt(abar)."""
    a = unet.alpha_bar[t][:, None, None, None]
    eps = unet(add_noise(x0, noise, a), t, z)[:, :3]
    error = (eps.float() - noise).square()
    return (error / a if unet.config.prediction == "v" else error).mean()


def diffae_loss(net: DiffAE, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The autoencoder's loss: the UNet is conditioned on z of the clean picture, encoder and UNet learn together."""
    return noise_loss(net.unet, x0, t, noise, net.encoder(x0))


def picture_loss(loss: Callable, pool: Pool, config: PriorConfig) -> Callable[[nn.Module, int], Tensor]:
    """`loss(net, x0, t, noise)` on random views of the pool; draws depend on (seed, step) alone."""
    device = pool.pictures.device
    run_loss = torch.compile(loss, dynamic=False) if config.compile else loss

    def at(net: nn.Module, k: int) -> Tensor:
        generator = Generator(device).manual_seed(step_seed(config.seed + 1, k))
        x0 = random_views(pool.draw(config.batch, generator)[0], config.views, generator)
        t = torch.randint(TRAIN_STEPS, (len(x0),), device=device, generator=generator)
        noise = torch.randn(x0.shape, device=device, generator=generator)
        if device.type == "cuda":
            x0, noise = (v.contiguous(memory_format=torch.channels_last) for v in (x0, noise))
        with precision(device, config.precision):
            return run_loss(net, x0, t, noise)
    return at


@torch.no_grad()
def encode_pool(net: DiffAE, pool: Pool, views: Views, rounds: int, seed: int, batch: int = 128) -> Tensor:
    """z (rounds * N, E) of `rounds` random views of every picture in the pool."""
    device, codes = pool.pictures.device, []
    generator = Generator(device).manual_seed(seed)
    for _ in range(rounds):
        for chunk in pool.pictures.split(batch):
            codes.append(net.encode(random_views(to_unit(chunk), views, generator)))
    return torch.cat(codes)


def set_statistics(net: DiffAE, z: Tensor) -> Tensor:
    """Store mean and standard deviation of z (N, E) in the model; returns z normalised."""
    net.conds_mean.copy_(z.mean(0))
    net.conds_std.copy_(z.std(0))
    return (z - net.conds_mean) / net.conds_std


def latent_loss(z: Tensor, config: PriorConfig) -> Callable[[nn.Module, int], Tensor]:
    """L1 on eps of normalised z (N, E), constant schedule (spec A.5)."""
    device = z.device
    alpha_bar = constant_alpha_bar().float().to(device)

    def at(net: nn.Module, k: int) -> Tensor:
        generator = Generator(device).manual_seed(step_seed(config.seed + 1, k))
        rows = torch.randint(len(z), (config.batch,), device=device, generator=generator)
        t = torch.randint(TRAIN_STEPS, (config.batch,), device=device, generator=generator)
        noise = torch.randn(config.batch, z.shape[1], device=device, generator=generator)
        return (net(add_noise(z[rows], noise, alpha_bar[t][:, None]), t) - noise).abs().mean()
    return at
