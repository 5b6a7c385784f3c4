"""The Diffusion Autoencoder: semantic encoder, conditional UNet and latent DDIM (docs/osasis.md A; DiffAE, CVPR 2022).

`DiffAE.encode` gives the semantic code z (B, E); `structural_code` and `decode` are the deterministic forward and
reverse DDIM; `sample_z` generates z with the latent DDIM. Pictures are (B, 3, px, px), RGB, [-1, 1], float32.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import unet
from .diffusion import (
    Denoise,
    StepHook,
    constant_alpha_bar,
    ddim_forward,
    ddim_reverse,
    ddim_schedule,
    decoding_schedule,
    denoiser,
    dpmpp_2m,
    encoding_schedule,
)
from .precision import full_precision
from .unet import SemanticEncoder, UNet, UNetConfig, time_features


@dataclass(frozen=True)
class LatentConfig:
    """The latent DDIM's MLP. width: E. hidden: width of its layers. time_width: of the sinusoid."""
    width: int = 512
    hidden: int = 2048
    layers: int = 10
    time_width: int = 64


@dataclass(frozen=True)
class DiffAEConfig:
    """unet: the conditional UNet. encoder_mult: the encoder's levels, finest first. latent: None if there is none."""
    unet: UNetConfig
    encoder_mult: tuple[int, ...]
    latent: LatentConfig | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder_mult", tuple(self.encoder_mult))
        if self.unet.cond != self.unet.embed:
            raise ValueError("the width of z must equal the width of the time embedding (A.1)")

    @classmethod
    def from_dict(cls, d: Mapping) -> DiffAEConfig:
        latent = LatentConfig(**d["latent"]) if d["latent"] else None
        return cls(UNetConfig(**d["unet"]), tuple(d["encoder_mult"]), latent)


def _official(px: int, base: int, mult: Sequence[int], layers: int = 10) -> DiffAEConfig:
    return DiffAEConfig(UNetConfig(px, base, tuple(mult)), (*mult, mult[-1]), LatentConfig(layers=layers))


_FFHQ256 = _official(256, 128, (1, 1, 2, 2, 4, 4))
CONFIGS: dict[str, DiffAEConfig] = {  # the public ones, with their latent DDIM (A.1)
    "ffhq256": _FFHQ256, "afhq256-dog": _FFHQ256, "afhq256-cat": _FFHQ256, "church256": _FFHQ256,
    "ffhq128": _official(128, 128, (1, 1, 2, 3, 4)),
    "celeba64": _official(64, 64, (1, 2, 4, 8)), "ffhq64": _official(64, 64, (1, 2, 4, 8)),
    "horse128": _official(128, 128, (1, 1, 2, 3, 4), layers=20),
    "bedroom128": _official(128, 128, (1, 1, 2, 3, 4), layers=20),
}


class LatentLayer(nn.Module):
    """y = W u + b; y (1 + Linear(SiLU(c))); LayerNorm; SiLU. The last layer is the bare linear (A.5)."""

    def __init__(self, c_in: int, c_out: int, width: int, last: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(c_in, c_out)
        self.last = last
        if not last:
            self.linear_emb = nn.Linear(width, c_out)
            self.norm = nn.LayerNorm(c_out)

    def forward(self, u: Tensor, c: Tensor) -> Tensor:
        y = self.linear(u)
        if self.last:
            return y
        return nn.functional.silu(self.norm(y * (1 + self.linear_emb(nn.functional.silu(c)))))


class LatentNet(nn.Module):
    """eps of the latent DDIM for normalised z (B, E) at integer t (B,)."""

    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        self.config = config
        w, h, n = config.width, config.hidden, config.layers
        self.time_embed = nn.Sequential(nn.Linear(config.time_width, w), nn.SiLU(), nn.Linear(w, w))
        self.layers = nn.ModuleList(
            LatentLayer(w if k == 0 else h + w, w if k == n - 1 else h, w, last=k == n - 1) for k in range(n))

    def forward(self, x: Tensor, t: Tensor, more: Tensor | None = None) -> Tensor:
        """more (B, E): is added to the time's embedding, see UNet.time_modulation."""
        c = self.time_embed(time_features(t, self.config.time_width).to(x.dtype))
        c = c if more is None else c + more
        first, *others = self.layers
        h = first(x, c)
        for layer in others:
            h = layer(torch.cat([h, x], dim=1), c)
        return h


class DiffAE(nn.Module):
    """The autoencoder with its three networks; `conds_mean`, `conds_std` (E,) normalise z for the latent DDIM."""
    conds_mean: Tensor
    conds_std: Tensor

    def __init__(self, config: DiffAEConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        self.encoder = SemanticEncoder(config.unet, config.encoder_mult)
        self.latent_net = LatentNet(config.latent) if config.latent else None
        if config.latent:
            self.register_buffer("conds_mean", torch.zeros(config.latent.width))
            self.register_buffer("conds_std", torch.ones(config.latent.width))

    @property
    def image_size(self) -> int:
        return self.config.unet.image_size

    def encode(self, picture: Tensor) -> Tensor:
        """z = Enc(picture), (B, E); always in float32, as the official program does (A.9)."""
        with full_precision(picture.device):
            return self.encoder(picture.float())

    def structural_code(self, picture: Tensor, z: Tensor, steps: int, t0: float = 0.5,
                        hook: StepHook | None = None, solver: str = "ddim") -> Tensor:
        """x_t0: forward DDIM over the first t0 * steps of `steps` indices (Eq. 7). t0 = 1 gives DiffAE's x_T.

        `solver` "dpmpp_2m" takes as many steps to the same x_t0 (A.10).
        """
        schedule = ddim_schedule(steps)
        indices = range(schedule.num_steps(t0))
        if solver == "ddim":
            denoise = denoiser(self.unet, z, schedule.times[:len(indices)])
            return ddim_forward(denoise, picture, schedule, indices, hook)
        schedule = encoding_schedule(len(indices), t0)
        return dpmpp_2m(denoiser(self.unet, z, schedule.times), picture, schedule, indices, hook=hook)

    def decode(self, x: Tensor, z: Tensor | Sequence[Tensor], steps: int, t0: float = 0.5,
               hook: StepHook | None = None, solver: str = "ddim") -> Tensor:
        """Reverse DDIM from the structural code to a picture in [-1, 1]; z as in `UNet.modulation`. `solver`
        "dpmpp_2m" takes as many steps (A.10)."""
        schedule = ddim_schedule(steps)
        indices = range(schedule.num_steps(t0))[::-1]
        if solver == "ddim":
            denoise = denoiser(self.unet, z, schedule.times[:len(indices)])
            return ddim_reverse(denoise, x, schedule, indices, hook=hook)
        schedule = decoding_schedule(len(indices), t0)
        return dpmpp_2m(denoiser(self.unet, z, schedule.times), x, schedule, indices, hook=hook)

    def sample_z(self, noise: Tensor, steps: int = 200, hook: StepHook | None = None) -> Tensor:
        """z (B, E) of the latent DDIM: constant schedule, no clamp, then denormalised. noise (B, E)."""
        if self.latent_net is None:
            raise ValueError("this DiffAE has no latent DDIM: load the '..._autoenc_latent' checkpoint to sample faces")
        schedule = ddim_schedule(steps, constant_alpha_bar())
        z = ddim_reverse(latent_denoiser(self.latent_net), noise, schedule, reversed(range(steps)), clamp_x0=False,
                         hook=hook)
        return z * self.conds_std + self.conds_mean


def latent_denoiser(net: LatentNet) -> Denoise:
    """`denoise(z, t)` -> eps (B, E) in float32."""
    return lambda z, t: net(z, torch.full((len(z),), t, device=z.device)).float()


def mix_codes(content: Tensor, style: Tensor, weights: Sequence[float]) -> tuple[Tensor, ...]:
    """Codes for every level, finest first, and the middle: (1 - w) content + w style (B, E) each (A.6).

    weights: levels + 1 numbers, 0 for the content code, 1 for the style code. style may have batch 1.
    """
    return tuple(content if w == 0 else style.expand_as(content) if w == 1 else torch.lerp(content, style, w)
                 for w in weights)


def change_point_weights(config: UNetConfig, resolution: int, swap: bool = False) -> tuple[float, ...]:
    """1 (style) for levels of at least `resolution` px, 0 (content) below and in the middle; swapped if asked.

    OSASIS's setting for 256 px is 32: levels 256..32 take the style, 16, 8 and the middle the content.
    """
    style = [float(config.resolution(level) >= resolution) for level in range(config.levels)] + [0.0]
    return tuple(1 - w for w in style) if swap else tuple(style)


def detect(tensors: Mapping[str, Tensor], image_size: int | None = None) -> DiffAEConfig:
    """The configuration of a DiffAE in our names, read off its shapes. ValueError if it is none. image_size: as in
    unet.detect."""
    config = unet.detect(tensors, "unet.", image_size=image_size)
    n = unet.entry_count(tensors, "encoder.input_blocks.")
    if not config.cond or not n:
        raise ValueError("not a diffusion autoencoder: it has no semantic encoder. A plain DDIM loads with 'Load DDPM'")
    firsts = range(1, n, config.blocks + 1)
    mult = tuple(tensors[f"encoder.input_blocks.{i}.0.in_layers.2.weight"].shape[0] // config.base for i in firsts)
    return DiffAEConfig(config, mult, _detect_latent(tensors))


def _detect_latent(tensors: Mapping[str, Tensor]) -> LatentConfig | None:
    if "latent_net.layers.0.linear.weight" not in tensors:
        return None
    hidden, width = tensors["latent_net.layers.0.linear.weight"].shape
    return LatentConfig(width, hidden, unet.entry_count(tensors, "latent_net.layers."),
                        tensors["latent_net.time_embed.0.weight"].shape[1])
