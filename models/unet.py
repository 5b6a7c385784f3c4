"""The guided-diffusion UNet in the three forms this pack needs.

* DiffAE's conditional UNet: time by scale and shift, the semantic code z by scale (OSASIS spec A.2, A.3);
* DiffAE's plain DDIM UNet: the same without z;
* the P2 DDPM: scale-shift time conditioning, six output channels (noise and variance; spec B).

Pictures are NCHW, RGB, [-1, 1], float32 unless a caller's autocast says otherwise. Tensor names inside one network are
the official ones, so a checkpoint loads by renaming prefixes alone.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .diffusion import linear_alpha_bar

ATTENTION_PX = 16  # every published configuration attends where the feature map is 16 x 16


@dataclass(frozen=True)
class UNetConfig:
    """What a UNet is built from. `detect` reads it off a state dict.

    image_size: side in px. base: width C of the finest level. mult: widths of the levels in units of C, finest first.
    blocks: residual blocks a level in the input half (one more in the output half). embed: width E of the time
    embedding. cond: width of z, 0 for none. out_channels: 3 (noise) or 6 (noise and variance). head_channels: channels
    an attention head, 0 for one head. prediction: what the last layer stands for, "eps" (all official files) or "v".
    """
    image_size: int
    base: int
    mult: tuple[int, ...]
    blocks: int = 2
    embed: int = 512
    cond: int = 512
    out_channels: int = 3
    head_channels: int = 0
    dropout: float = 0.1
    prediction: str = "eps"

    def __post_init__(self):
        object.__setattr__(self, "mult", tuple(self.mult))
        if self.prediction not in ("eps", "v"):
            raise ValueError(f"prediction is {self.prediction!r}; it must be 'eps' or 'v'")

    @property
    def levels(self) -> int:
        return len(self.mult)

    def resolution(self, level: int) -> int:
        return self.image_size >> level


def time_features(t: Tensor, width: int) -> Tensor:
    """Sinusoids of the integer time t (B,) -> (B, width): all cosines, then all sines (spec A.2)."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10000.0) / half))
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class GroupNorm(nn.GroupNorm):
    """GroupNorm of min(32, channels) groups, computed in float32 and cast back."""

    def __init__(self, channels: int):
        super().__init__(min(32, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


def zero(module: nn.Module) -> nn.Module:
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def resample(x: Tensor, mode: str | None) -> Tensor:
    """Down: 2 x 2 mean. Up: nearest x 2."""
    if mode == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2, mode="nearest") if mode == "up" else x


class EncoderBlock(nn.Module):
    """Residual block of the semantic encoder: no time, no z, one convolution (spec A.4)."""

    def __init__(self, c_in: int, c_out: int, mode: str | None = None):
        super().__init__()
        self.mode = mode
        self.in_layers = nn.Sequential(GroupNorm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, *_) -> Tensor:
        h = resample(self.in_layers[:-1](x), self.mode)
        return self.skip_connection(resample(x, self.mode)) + self.in_layers[-1](h)


class ResBlock(nn.Module):
    """Residual block with time (scale and shift) and, where the network has one, z (scale only) (spec A.2)."""

    def __init__(self, c_in: int, c_out: int, config: UNetConfig, mode: str | None = None):
        super().__init__()
        self.mode = mode
        self.in_layers = nn.Sequential(GroupNorm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(config.embed, 2 * c_out))
        if config.cond:
            self.cond_emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(config.cond, c_out))
        self.out_layers = nn.Sequential(
            GroupNorm(c_out), nn.SiLU(), nn.Dropout(config.dropout), zero(nn.Conv2d(c_out, c_out, 3, padding=1)))
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, e: Tensor, z: Tensor | None) -> Tensor:
        h = self.in_layers[-1](resample(self.in_layers[:-1](x), self.mode))
        a, b = self.emb_layers(e)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + a) + b
        if z is not None:
            h = h * (1 + self.cond_emb_layers(z)[:, :, None, None])
        return self.skip_connection(resample(x, self.mode)) + self.out_layers[1:](h)


class Attention(nn.Module):
    """Self-attention over the map; channels lie head by head, q then k then v within a head ("legacy" order)."""

    def __init__(self, channels: int, head_channels: int = 0):
        super().__init__()
        if head_channels and channels % head_channels:
            raise ValueError(f"{channels} channels cannot be split into attention heads of {head_channels}")
        self.heads = channels // head_channels if head_channels else 1
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, *_) -> Tensor:
        n, c, height, width = x.shape
        qkv = self.qkv(self.norm(x).reshape(n, c, -1))
        q, k, v = qkv.reshape(n, self.heads, 3, c // self.heads, -1).transpose(3, 4).unbind(2)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(2, 3).reshape(n, c, -1)).reshape(n, c, height, width)


class Entry(nn.ModuleList):
    """The parts of one numbered entry of the input, middle or output half."""

    def forward(self, h: Tensor, *condition) -> Tensor:
        for part in self:
            h = part(h, *condition)
        return h


class Stem(nn.Conv2d):
    """The first 3 x 3 convolution; takes no condition."""

    def forward(self, x: Tensor, *_) -> Tensor:
        return super().forward(x)


def input_half(px: int, base: int, mult: Sequence[int], blocks: int, block, head_channels: int):
    """Entries of the input half, and the level and width of each (A.3: a down block counts with the next level)."""
    entries, levels, widths = [Entry([Stem(3, base, 3, padding=1)])], [0], [base]
    for level, m in enumerate(mult):
        if level:
            entries.append(Entry([block(widths[-1], widths[-1], "down")]))
            levels.append(level)
            widths.append(widths[-1])
        for _ in range(blocks):
            parts = [block(widths[-1], m * base)]
            if px >> level == ATTENTION_PX:
                parts.append(Attention(m * base, head_channels))
            entries.append(Entry(parts))
            levels.append(level)
            widths.append(m * base)
    return entries, levels, widths


class UNet(nn.Module):
    """eps(x_t, t, z). See the module's docstring for the three forms."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config

        def block(c_in, c_out, mode=None):
            return ResBlock(c_in, c_out, config, mode)

        self.time_embed = nn.Sequential(
            nn.Linear(config.base, config.embed), nn.SiLU(), nn.Linear(config.embed, config.embed))
        entries, self.input_levels, widths = input_half(
            config.image_size, config.base, config.mult, config.blocks, block, config.head_channels)
        self.input_blocks = nn.ModuleList(entries)
        c = widths[-1]
        self.middle_block = Entry([block(c, c), Attention(c, config.head_channels), block(c, c)])
        entries, self.output_levels = [], []
        for level in reversed(range(config.levels)):
            for i in range(config.blocks + 1):
                width = config.mult[level] * config.base
                parts = [block(c + widths.pop(), width)]
                if config.resolution(level) == ATTENTION_PX:
                    parts.append(Attention(width, config.head_channels))
                if level and i == config.blocks:
                    parts.append(block(width, width, "up"))
                entries.append(Entry(parts))
                self.output_levels.append(level)
                c = width
        self.output_blocks = nn.ModuleList(entries)
        self.out = nn.Sequential(GroupNorm(c), nn.SiLU(), zero(nn.Conv2d(c, config.out_channels, 3, padding=1)))
        self.register_buffer("alpha_bar", linear_alpha_bar().float(), persistent=False)
        if config.prediction == "v":
            self.register_buffer("v_pred", torch.zeros(0))  # a marker that `detect` finds

    def forward(self, x: Tensor, t: Tensor, z: Tensor | Sequence[Tensor] | None = None) -> Tensor:
        """Noise estimate of x (B, 3, px, px) at the integer times t (B,), 0..999.

        z: (B or 1, cond), or levels + 1 such codes, one for each level (finest first) and one for the middle (A.6).
        Returns (B, out_channels, px, px); the first three channels are eps whatever `prediction` says.
        """
        codes = list(z) if isinstance(z, (list, tuple)) else [z] * (self.config.levels + 1)
        e = self.time_embed(time_features(t, self.config.base).to(self.time_embed[0].weight.dtype))
        h, laterals = x, []
        for entry, level in zip(self.input_blocks, self.input_levels):
            h = entry(h, e, codes[level])
            laterals.append(h)
        h = self.middle_block(h, e, codes[-1])
        for entry, level in zip(self.output_blocks, self.output_levels):
            h = entry(torch.cat([h, laterals.pop()], dim=1), e, codes[level])
        h = self.out(h.to(x.dtype))
        return self._eps_of_v(x, h, t) if self.config.prediction == "v" else h

    def _eps_of_v(self, x: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """eps = sqrt(abar) v + sqrt(1 - abar) x, for v = sqrt(abar) eps - sqrt(1 - abar) x0."""
        a = self.alpha_bar[t][:, None, None, None]
        return a.sqrt() * v.float() + (1 - a).sqrt() * x.float()


class SemanticEncoder(nn.Module):
    """z = Enc(picture): the input half with the encoder's own multipliers, mean over the map, 1 x 1 to E (spec A.4)."""

    def __init__(self, config: UNetConfig, mult: Sequence[int]):
        super().__init__()
        entries, _, widths = input_half(config.image_size, config.base, mult, config.blocks, EncoderBlock, 0)
        c = widths[-1]
        self.input_blocks = nn.ModuleList(entries)
        self.middle_block = Entry([EncoderBlock(c, c), Attention(c), EncoderBlock(c, c)])
        self.out = nn.Sequential(GroupNorm(c), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, config.cond, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, px, px) -> z (B, E), unbounded."""
        return self.out(self.features(x)[-1]).flatten(1)

    def features(self, x: Tensor) -> list[Tensor]:
        """The maps after every entry, finest first, and after the middle block."""
        maps = []
        for entry in self.input_blocks:
            x = entry(x)
            maps.append(x)
        return maps + [self.middle_block(x)]


def entry_count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered entries stand under `prefix`."""
    return 1 + max((int(k[len(prefix):].split(".")[0]) for k in tensors if k.startswith(prefix)), default=-1)


def detect(tensors: Mapping[str, Tensor], prefix: str = "", *, image_size: int | None = None,
           head_channels: int | None = None) -> UNetConfig:
    """Read a UNetConfig off the shapes of a state dict.

    Not in the shapes: the picture size, which follows from attention standing at 16 px, and the heads, which are 64
    channels each for six output channels (P2) and one head otherwise; both can be given instead.
    Raises ValueError for a state dict of another kind.
    """
    def shape(key):
        if prefix + key not in tensors:
            raise ValueError(f"not a diffusion UNet of a kind this pack knows: it lacks {prefix + key}")
        return tuple(tensors[prefix + key].shape)

    base = shape("input_blocks.0.0.weight")[0]
    n = entry_count(tensors, prefix + "output_blocks.")
    ups = sum(f"{prefix}output_blocks.{i}.{m}.in_layers.0.weight" in tensors for i in range(n) for m in (1, 2))
    levels = ups + 1
    if n % levels or n != entry_count(tensors, prefix + "input_blocks."):
        raise ValueError("not a diffusion UNet of a kind this pack knows: its halves do not match")
    blocks = n // levels - 1
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    if image_size is None:
        attending = [lv for lv, i in enumerate(firsts) if f"{prefix}input_blocks.{i}.1.qkv.weight" in tensors]
        if len(attending) != 1:
            raise ValueError(f"the picture size cannot be told: attention stands at {len(attending)} levels, not one")
        image_size = ATTENTION_PX << attending[0]
    out_channels = shape("out.2.weight")[0]
    learned_variance = out_channels == 6
    cond_key = prefix + "input_blocks.1.0.cond_emb_layers.1.weight"
    cond = tensors[cond_key].shape[1] if cond_key in tensors else 0
    return UNetConfig(
        image_size=image_size, base=base, blocks=blocks, embed=shape("time_embed.2.weight")[0], cond=cond,
        mult=tuple(shape(f"input_blocks.{i}.0.in_layers.2.weight")[0] // base for i in firsts),
        out_channels=out_channels, dropout=0.1 if cond else 0.0,
        head_channels=(64 if learned_variance else 0) if head_channels is None else head_channels,
        prediction="v" if prefix + "v_pred" in tensors else "eps")
