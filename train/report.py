"""What a trained prior can do, as numbers and picture grids: reconstruction, what z holds, samples of the prior."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from ..models.diffae import DiffAE
from .data import to_bytes
from .metrics import psnr, ssim


def grid(rows: list[Tensor]) -> Image.Image:
    """Rows of pictures (B, 3, H, W) in [-1, 1], each row side by side, as one picture."""
    lines = [torch.cat(list(row.float().cpu()), dim=2) for row in rows]
    width = max(line.shape[2] for line in lines)
    sheet = torch.cat([F.pad(line, (0, width - line.shape[2]), value=1.0) for line in lines], dim=1)
    return Image.fromarray(to_bytes(sheet).permute(1, 2, 0).numpy())


def chain(net: DiffAE, x: Tensor, forward: int, reverse: int, t0: float) -> Tensor:
    """Encode and decode again with the given steps of the whole schedule, to strength t0."""
    z = net.encode(x)
    return net.decode(net.structural_code(x, z, forward, t0), z, reverse, t0)


CHAINS = {"half 50/20": (50, 20, 0.5), "half 100/50": (100, 50, 0.5), "full 50/50": (50, 50, 1.0),
          "full 100/20": (100, 20, 1.0)}  # steps of encoding, of decoding, strength


@torch.no_grad()
def reconstruction(net: DiffAE, x: Tensor, chains: Mapping[str, tuple] = CHAINS) -> dict[str, tuple[float, float]]:
    """(PSNR in dB, SSIM) of encode + decode, means over pictures (B, 3, px, px) in [-1, 1]."""
    results = {name: chain(net, x, *steps) for name, steps in chains.items()}
    return {name: (float(psnr(y, x).mean()), float(ssim(y, x).mean())) for name, y in results.items()}


@torch.no_grad()
def who_decides(net: DiffAE, x: Tensor, seeds: int = 8, steps: int = 20) -> tuple[dict[str, float], Tensor]:
    """Does z or x_T decide who is drawn? Every z of `x` (B, ...) with every one of `seeds` noises.

    Returns numbers and the pictures (B, seeds, 3, px, px). "right z": share of drawn pictures whose re-encoded z is
    nearest to the z they were drawn with (chance 1 / B); "right x_T": the same for noises, by mean picture; the two
    distances are mean absolute differences of 16 px thumbnails in [-1, 1].
    """
    device, px = x.device, net.image_size
    z = net.encode(x)
    noise = torch.randn(seeds, 3, px, px, generator=Generator().manual_seed(0)).to(device)
    drawn = torch.stack([net.decode(noise, code.expand(seeds, -1), steps, 1.0) for code in z])
    again = net.encode(drawn.flatten(0, 1))
    near = torch.cdist(_standard(again, z), _standard(z, z)).argmin(1).reshape(len(z), seeds)
    small = F.interpolate(drawn.flatten(0, 1), (16, 16), mode="area").reshape(len(z), seeds, -1)
    mean = small.mean(0)
    by_noise = torch.cdist(small.flatten(0, 1), mean).argmin(1).reshape(len(z), seeds)
    same_z = torch.stack([_spread(small[i]) for i in range(len(z))]).mean()
    same_noise = torch.stack([_spread(small[:, j]) for j in range(seeds)]).mean()
    numbers = {
        "right z": float((near == torch.arange(len(z), device=device)[:, None]).float().mean()),
        "right x_T": float((by_noise == torch.arange(seeds, device=device)[None]).float().mean()),
        "same z, other x_T": float(same_z), "other z, same x_T": float(same_noise)}
    return numbers, drawn


def _standard(code: Tensor, reference: Tensor) -> Tensor:
    return (code - reference.mean(0)) / (reference.std(0) + 1e-6)


def _spread(rows: Tensor) -> Tensor:
    """Mean absolute difference over all pairs of rows (N, D)."""
    n = len(rows)
    return (rows[:, None] - rows[None]).abs().mean(2).sum() / (n * (n - 1))


@torch.no_grad()
def samples(net: DiffAE, count: int, seed: int = 0, steps: int = 50, latent_steps: int = 200) -> Tensor:
    """Pictures (count, 3, px, px) drawn from the latent DPM and pure noise."""
    generator = Generator().manual_seed(seed)
    device, config = next(net.parameters()).device, net.config
    z = net.sample_z(torch.randn(count, config.latent.width, generator=generator).to(device), latent_steps)
    noise = torch.randn(count, 3, net.image_size, net.image_size, generator=generator).to(device)
    return net.decode(noise, z, steps, 1.0)


def write(net: DiffAE, x: Tensor, folder: Path, name: str) -> dict:
    """All figures for pictures x (B, 3, px, px); the grids go to FOLDER/NAME_*.png."""
    folder.mkdir(parents=True, exist_ok=True)
    few = x[:8]
    numbers, drawn = who_decides(net, few)
    grid([torch.cat([few[i:i + 1], drawn[i]]) for i in range(len(few))]).save(folder / f"{name}_z_against_xT.png")
    with torch.no_grad():
        grid([few, chain(net, few, 100, 50, 0.5), chain(net, few, 50, 20, 0.5), chain(net, few, 100, 50, 1.0)]).save(
            folder / f"{name}_reconstruction.png")
    figures = {"reconstruction": reconstruction(net, x), "z against x_T": numbers}
    if net.latent_net is not None and net.conds_mean.abs().max() > 0:
        drawn = samples(net, 32)
        grid(list(drawn.split(8))).save(folder / f"{name}_samples.png")
    return figures
