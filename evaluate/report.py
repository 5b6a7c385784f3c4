"""What a trained DiffAE can do, as numbers and picture grids: reconstruction, what z holds, random pictures."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..models import rng
from ..models.diffae import DiffAE
from ..models.diffusion import StepHook
from ..train.plots import grid, picture_grid
from .metrics import psnr, ssim

CHAINS = {"half 50/20": (50, 20, 0.5), "half 100/50": (100, 50, 0.5), "full 50/50": (50, 50, 1.0),
          "full 100/20": (100, 20, 1.0)}  # steps of encoding, of decoding, t0
THUMBNAIL_PX = 16
BATCH = 28  # pictures a network call


def chain(net: DiffAE, x: Tensor, forward: int, reverse: int, t0: float, solver: str = "ddim",
          hook: StepHook | None = None) -> Tensor:
    """Encode and decode again with the given steps of the whole schedule, to strength t0."""
    z = net.encode(x)
    return net.decode(net.structural_code(x, z, forward, t0, hook, solver), z, reverse, t0, hook, solver)


@torch.no_grad()
def reconstruction(net: DiffAE, x: Tensor, chains: Mapping[str, tuple] = CHAINS,
                   batch: int = BATCH) -> dict[str, tuple[float, float]]:
    """(PSNR in dB, SSIM) of encode + decode, means over pictures (B, 3, px, px) in [-1, 1]. batch: pictures a call."""
    results = {name: torch.cat([chain(net, part, *steps).float() for part in x.split(batch)])
               for name, steps in chains.items()}
    return {name: (float(psnr(y, x).mean()), float(ssim(y, x).mean())) for name, y in results.items()}


@torch.no_grad()
def z_vs_xT_ablation(net: DiffAE, x: Tensor, seeds: int = 8, steps: int = 20) -> tuple[dict[str, float], Tensor]:
    """Does z or x_T decide whose face it is? Every z of `x` (B, ...) is decoded with every one of `seeds` noises.

    Returns numbers and the pictures (B, seeds, 3, px, px). "right z": share of pictures whose re-encoded z is nearest
    to the z that they were decoded with (random: 1 / B). "right x_T": the same for noises, by mean picture. The two
    distances are mean absolute differences of 16 px thumbnails in [-1, 1]. ValueError for less than two pictures or
    seeds.
    """
    if min(len(x), seeds) < 2:
        raise ValueError(f"{len(x)} pictures of {seeds} noises cannot be told apart; give at least two of each")
    device, px = x.device, net.image_size
    z = net.encode(x)
    noise = rng.randn((3, px, px), 0, "x_T", range(seeds), device)
    decoded = torch.stack([net.decode(noise, code.expand(seeds, -1), steps, 1.0) for code in z])
    pictures = rearrange(decoded, "z seeds c h w -> (z seeds) c h w")
    again = net.encode(pictures)
    nearest = torch.cdist(_standard(again, z), _standard(z, z)).argmin(1).reshape(len(z), seeds)
    small = F.interpolate(pictures, (THUMBNAIL_PX,) * 2, mode="area")
    small = rearrange(small, "(z seeds) c h w -> z seeds (c h w)", seeds=seeds)
    by_noise = torch.cdist(rearrange(small, "z seeds d -> (z seeds) d"), small.mean(0)).argmin(1).reshape(len(z), seeds)
    same_z = torch.stack([_spread(small[i]) for i in range(len(z))]).mean()
    same_noise = torch.stack([_spread(small[:, j]) for j in range(seeds)]).mean()
    numbers = {
        "right z": float((nearest == torch.arange(len(z), device=device)[:, None]).float().mean()),
        "right x_T": float((by_noise == torch.arange(seeds, device=device)[None]).float().mean()),
        "same z, other x_T": float(same_z), "other z, same x_T": float(same_noise)}
    return numbers, decoded


def _standard(code: Tensor, reference: Tensor) -> Tensor:
    return (code - reference.mean(0)) / (reference.std(0) + 1e-6)


def _spread(rows: Tensor) -> Tensor:
    """Mean absolute difference over all pairs of rows (N, D)."""
    n = len(rows)
    return (rows[:, None] - rows[None]).abs().mean(2).sum() / (n * (n - 1))


@torch.no_grad()
def random_pictures(net: DiffAE, count: int, seed: int = 0, steps: int = 50, latent_steps: int = 200) -> Tensor:
    """Pictures (count, 3, px, px) of random z (latent DDIM) and random x_T; picture k depends on (seed, k) alone."""
    device, px = next(net.parameters()).device, net.image_size
    z = net.sample_z(rng.randn((net.config.unet.cond,), seed, "z", range(count), device), latent_steps)
    return net.decode(rng.randn((3, px, px), seed, "x_T", range(count), device), z, steps, 1.0)


@torch.no_grad()
def write(net: DiffAE, x: Tensor, folder: Path, name: str) -> dict:
    """All numbers for pictures x (B, 3, px, px); the grids go to FOLDER/NAME_*.png. A single picture's z is compared
    with no other."""
    folder.mkdir(parents=True, exist_ok=True)
    few = x[:8]
    figures: dict = {"reconstruction": reconstruction(net, x)}
    if len(few) > 1:
        figures["z against x_T"], decoded = z_vs_xT_ablation(net, few)
        grid([torch.cat([few[i:i + 1], decoded[i]]) for i in range(len(few))]).save(folder / f"{name}_z_against_xT.png")
    chains = [chain(net, few, *steps) for steps in ((100, 50, 0.5), (50, 20, 0.5), (100, 50, 1.0))]
    grid([few, *chains]).save(folder / f"{name}_reconstruction.png")
    if net.latent_net is not None and net.conds_mean.abs().max() > 0:
        picture_grid(random_pictures(net, 32), 8).save(folder / f"{name}_samples.png")
    return figures
