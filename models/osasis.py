"""OSASIS at sampling time: the style, the SPN-assisted reverse diffusion, and the photo twin (spec A.6, B, C.2, C.5).

Pictures are (B, 3, px, px), RGB, [-1, 1]. Slips of the official program are settings whose default is the slip:
`noise_level` "official" decodes x at abar(t0) as if it were one spaced step cleaner, "matched" starts where it is;
`spn_time` "index" feeds the SPN the sampler's index, "timestep" the time (spec C.5, D 3, D 9).
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from . import spn as spn_module
from .diffae import denoiser
from .diffusion import StepHook, Table, add_noise, ancestral_step, ddim_reverse, even_table, stride_table
from .hashing import hash_of
from .spn import SPN
from .unet import UNet, UNetConfig

NOISE_LEVELS = ("official", "matched")
SPN_TIMES = ("index", "timestep")
Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Style:
    """A fine-tuned style: weights, never a live network.

    unet: state dict of B. spn: state dict of the SPN, or None. z: Enc_A(style picture) (1, E). picture: uint8
    (3, px, px), the style picture. settings: how it was made (JSON-able). model: fingerprint of its DiffAE.
    """
    config: UNetConfig
    unet: Mapping[str, Tensor]
    spn: Mapping[str, Tensor] | None
    z: Tensor | None
    picture: Tensor | None
    model: str
    settings: dict = field(default_factory=dict)

    def networks(self) -> tuple[UNet, SPN | None]:
        """Fresh networks in float32 with these weights, in evaluation mode."""
        unet = UNet(self.config)
        unet.load_state_dict(dict(self.unet))
        spn = None
        if self.spn:
            spn = SPN(spn_module.detect(self.spn))
            spn.load_state_dict(dict(self.spn))
            spn.eval().requires_grad_(False)
        return unet.to(memory_format=torch.channels_last).eval().requires_grad_(False), spn


def fingerprint(net: nn.Module) -> str:
    """A hash of the UNet's and encoder's weights as 16-bit numbers: equal for a checkpoint and its slim copy."""
    return hash_of({k: v for k, v in net.state_dict().items() if k.startswith(("unet.", "encoder."))})


def check_style(style: Style, model: UNetConfig, fingerprint: str) -> None:
    """ValueError if the style was made for another model."""
    if style.config != model:
        raise ValueError(f"this style was made for a model of {style.config.image_size} px with levels "
                         f"{style.config.mult}, not for this one of {model.image_size} px with levels {model.mult}; "
                         "load the DiffAE that the style was fine-tuned from")
    if style.model and style.model != fingerprint:
        raise ValueError("this style was fine-tuned from another DiffAE of the same size; load that one, "
                         f"its fingerprint is {style.model} (this one's is {fingerprint})")


def reverse_indices(table: Table, t0: float, noise_level: str = "official") -> range:
    """Falling indices of the reverse chain from strength t0."""
    if noise_level not in NOISE_LEVELS:
        raise ValueError(f"noise_level is {noise_level!r}; take one of {NOISE_LEVELS}")
    top = table.index_of(t0) - (noise_level == "official")
    return range(min(top, len(table) - 1), -1, -1)


def spn_assist(spn: SPN, picture: Tensor, weight: float | Tensor, table: Table, time: str = "index"):
    """`assist(x, i)` = x + weight * SPN(picture, i); weight a number or (B, 1, 1, 1)."""
    if time not in SPN_TIMES:
        raise ValueError(f"spn_time is {time!r}; take one of {SPN_TIMES}")

    def assist(x: Tensor, i: int) -> Tensor:
        return x + weight * spn(picture, i if time == "index" else table.times[i])
    return assist


def stylize(unet: UNet, x_t0: Tensor, codes: Sequence[Tensor] | Tensor, *, steps: int = 50, t0: float = 0.5,
            spn: SPN | None = None, picture: Tensor | None = None, spn_weight: float = 0.1, spn_time: str = "index",
            noise_level: str = "official", hook: StepHook | None = None) -> Tensor:
    """Decode the structural code x_t0 with network B and mixed codes, helped by the SPN on the clean picture (C.5).

    Returns pictures in [-1, 1]. With `spn` None or weight 0 there is no SPN call at all.
    """
    table = stride_table(steps)
    assist = spn_assist(spn, picture, spn_weight, table, spn_time) if spn is not None and spn_weight else None
    return ddim_reverse(denoiser(unet, codes), x_t0, table, reverse_indices(table, t0, noise_level),
                        assist=assist, hook=hook)


def photo_twins(ddpm: UNet, style: Tensor, noise: Callable[[], Tensor], *, steps: int = 50, t0: float = 0.5,
                noise_level: str = "official", hook: StepHook | None = None) -> Tensor:
    """Candidates for the style picture's counterpart in the photo domain: noised to t0 and denoised (spec B).

    style (1, 3, px, px); `noise()` draws (n, 3, px, px). Returns (n, 3, px, px), in [-1, 1] but for the last mean.
    """
    table = even_table(steps)
    top = table.index_of(t0)
    first = noise()
    x = add_noise(style.expand_as(first), first, table.alpha_bar(min(top, steps - 1)))
    denoise = denoiser(ddpm)
    for i in reversed(range(min(top + (noise_level == "matched"), steps))):
        x0, x = ancestral_step(x, denoise(x, table.times[i]), table, i, noise())
        if hook:
            hook(i, x0, x)
    return x


def twin_scores(twins: Tensor, style: Tensor, perceptual: Perceptual) -> Tensor:
    """10 * mean |twin - style| + perceptual distance, (n,); the smallest is the best (spec B)."""
    style = style.expand_as(twins)
    return 10 * (twins - style).abs().mean((1, 2, 3)) + perceptual(twins, style)


def gaussian(shape: Sequence[int], seed: int, device: torch.device) -> Callable[[], Tensor]:
    """Draws of N(0, I) from a CPU generator of its own, so that a seed means the same on every device."""
    generator = Generator().manual_seed(seed)
    return lambda: torch.randn(tuple(shape), generator=generator).to(device)
