"""The structure-preserving network (SPN) of OSASIS (docs/osasis.md C.2): 1 x 1 convolutions on the clean picture.

Its output is added to x_t. GroupNorm averages over the picture, so it is not a strict per-pixel map.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import ops
from .precision import full_precision
from .unet import GroupNorm, time_features


@dataclass(frozen=True)
class SPNConfig:
    """timed: conditioned on a time (all published commands) or not. The widths are the official ones."""
    timed: bool = True
    width: int = 128
    middle: int = 256
    time_width: int = 128
    time_embed: int = 512


class SPNBlock(nn.Module):
    """GN, SiLU, conv, GN, time scale and shift, SiLU, conv; no residual."""

    def __init__(self, c_in: int, c_out: int, embed: int) -> None:
        super().__init__()
        self.pre_layer = nn.Sequential(GroupNorm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 1), GroupNorm(c_out))
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(embed, 2 * c_out))
        self.post_layer = nn.Sequential(nn.SiLU(), nn.Conv2d(c_out, c_out, 1))

    def forward(self, x: Tensor, bias: Tensor | None, c: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of x (B, c_in, H, W) and a bias still to be added, and the same of the result; see `ops.convolution`."""
        return self.timed(*self.untimed(x, bias), c)

    def untimed(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What comes before the time: the first convolution's map and bias."""
        norm, _, conv, _ = self.pre_layer
        return ops.convolution(ops.norm_silu(x, norm, bias=bias), conv)

    def timed(self, h: Tensor, bias: Tensor | None, c: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rest."""
        a, b = self.emb_layer(c).chunk(2, dim=1)
        return ops.convolution(ops.norm_silu(h, self.pre_layer[3], (1 + a, b), bias), self.post_layer[1])


class SPN(nn.Module):
    """SPN(picture, time) -> (B, 3, H, W), to be added to x before a UNet call."""

    def __init__(self, config: SPNConfig = SPNConfig()) -> None:
        super().__init__()
        self.config = config
        w, m = config.width, config.middle
        if config.timed:
            self.time_embed = nn.Sequential(
                nn.Linear(config.time_width, config.time_embed), nn.SiLU(),
                nn.Linear(config.time_embed, config.time_embed))
            self.in_layer = nn.Sequential(nn.Conv2d(3, w, 1))
            self.block1 = SPNBlock(w, m, config.time_embed)
            self.block2 = SPNBlock(m, w, config.time_embed)
            self.out_layer = nn.Sequential(nn.Conv2d(w, 3, 1))
        else:
            self.layers = nn.Sequential(
                nn.Conv2d(3, w, 1), GroupNorm(w), nn.SiLU(), nn.Conv2d(w, m, 1), GroupNorm(m), nn.SiLU(),
                nn.Conv2d(m, w, 1), GroupNorm(w), nn.SiLU(), nn.Conv2d(w, 3, 1))

    def forward(self, picture: Tensor, time: int | Tensor) -> Tensor:
        """picture (B, 3, H, W) in [-1, 1]; time: the sampler's index, or the timestep (C.5), a number or (1,); unused
        if untimed.

        Always in float32, as the official program does (A.9).
        """
        with full_precision(picture.device):
            return self._layers(picture.float(), time)

    def of_picture(self, picture: Tensor) -> Callable[[int | Tensor], Tensor]:
        """`of_time(time)` = SPN(picture, time) of a timed SPN, row by row, without gradient.

        What the time has no part in is computed here, once, and kept: a map of `middle` channels."""
        with torch.no_grad(), full_precision(picture.device):
            rows = (self._begun(row) for row in picture.float().split(1))
            begun = [self.block1.untimed(h, bias) for h, bias in rows]

        def of_time(time: int | Tensor) -> Tensor:
            with torch.no_grad(), full_precision(picture.device):
                c = self._embedded(time, picture.device)
                blocks = (self.block1.timed(h, bias, c) for h, bias in begun)
                return torch.cat([self._ended(h, bias, c) for h, bias in blocks])
        return of_time

    def _layers(self, picture: Tensor, time: int | Tensor) -> Tensor:
        if not self.config.timed:
            return self.layers(_laid(picture))
        c = self._embedded(time, picture.device)
        h, bias = self._begun(picture)
        h, bias = self.block1(h, bias, c)
        return self._ended(h, bias, c)

    def _embedded(self, time: int | Tensor, device: torch.device) -> Tensor:
        t = time if isinstance(time, Tensor) else torch.full((1,), time, device=device)
        return self.time_embed(time_features(t, self.config.time_width))

    def _begun(self, picture: Tensor) -> tuple[Tensor, Tensor | None]:
        return ops.convolution(_laid(picture), self.in_layer[0])

    def _ended(self, h: Tensor, bias: Tensor | None, c: Tensor) -> Tensor:
        h, bias = self.block2(h, bias, c)
        return self.out_layer(h if bias is None else h + bias[:, None, None])


def _laid(picture: Tensor) -> Tensor:
    """Pixels with their channels side by side, as 1 x 1 convolutions multiply them: half the time on a CPU."""
    return picture.contiguous(memory_format=torch.channels_last)


def detect(tensors: Mapping[str, Tensor]) -> SPNConfig:
    """Timed or not, and the widths, read off the shapes. ValueError if it is no SPN."""
    if "in_layer.0.weight" in tensors:
        embed, time_width = tensors["time_embed.0.weight"].shape
        return SPNConfig(True, tensors["in_layer.0.weight"].shape[0], tensors["block1.pre_layer.2.weight"].shape[0],
                         time_width, embed)
    if "layers.9.weight" in tensors:
        return SPNConfig(False, tensors["layers.0.weight"].shape[0], tensors["layers.3.weight"].shape[0])
    raise ValueError("not a structure-preserving network: neither in_layer.0 nor layers.9 is there")
