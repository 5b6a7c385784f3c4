"""The guided-diffusion UNet in the three forms this pack needs.

* DiffAE's conditional UNet: time by scale and shift, the semantic code z by scale (A.2, A.3);
* DiffAE's plain DDIM UNet: the same without z;
* the P2 DDPM: scale-shift time conditioning, six output channels (noise and variance; B).

Pictures are NCHW, RGB, [-1, 1], float32 unless a caller's autocast says otherwise. Tensor names inside one network are
the official ones, so a checkpoint loads by renaming prefixes alone. Section letters: docs/osasis.md.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from . import ops
from .ops import Affine

Codes = Tensor | Sequence[Tensor] | None  # one z for all levels, or one a level and for the middle
MakeBlock = Callable[..., nn.Module]  # (width in, width out, mode of `resample`)
MakeAttention = Callable[[int], nn.Module]
Shapes = Mapping[str, tuple[int, ...]]
ATTENTION_PX = 16  # DiffAE and P2 attend where the feature map is 16 x 16
GUIDED_SIZES = {(1, 1, 2, 2, 4, 4): 256, (1, 1, 2, 3, 4): 128, (1, 2, 3, 4): 64}  # guided-diffusion's own widths


@dataclass(frozen=True)
class UNetConfig:
    """What a UNet is built from. `detect` reads it off a state dict.

    image_size: side in px. base: width C of the finest level. mult: widths of the levels in units of C, finest first.
    blocks: residual blocks a level in the input half (one more in the output half). embed: width E of the time
    embedding. cond: width of z, 0 for none. out_channels: 3 (noise) or 6 (noise and variance). head_channels: channels
    an attention head; if 0, there are num_heads (0: one). prediction: what the last layer stands for, "eps" (all
    official files) or "v". attention_resolutions: sides in px of the maps with attention (the middle always has it).
    resblock_updown: the size changes in residual blocks; else in plain convolutions.
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
    attention_resolutions: tuple[int, ...] = (ATTENTION_PX,)
    num_heads: int = 0
    resblock_updown: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "mult", tuple(self.mult))
        object.__setattr__(self, "attention_resolutions", tuple(self.attention_resolutions))
        if self.prediction not in ("eps", "v"):
            raise ValueError(f"prediction is {self.prediction!r}; it must be 'eps' or 'v'")

    @property
    def levels(self) -> int:
        return len(self.mult)

    def resolution(self, level: int) -> int:
        return self.image_size >> level

    def in_words(self) -> str:
        """What the shapes of a foreign file do not tell, for the person who has to check it."""
        heads = f"heads of {self.head_channels} channels" if self.head_channels else f"{self.num_heads or 1} head(s)"
        return f"UNet for {self.image_size} px, attention at {list(self.attention_resolutions)} px with {heads}"


def time_features(t: Tensor, width: int) -> Tensor:
    """Sinusoids of the integer time t (B,) -> (B, width): all cosines, then all sines (A.2)."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10000.0) / half))
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class GroupNorm(nn.GroupNorm):
    """GroupNorm of min(32, channels) groups, computed in float32 and cast back."""

    def __init__(self, channels: int) -> None:
        super().__init__(min(32, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        return ops.group_norm(x, self)


def zero(module: nn.Module) -> nn.Module:
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def resample(x: Tensor, mode: str | None) -> Tensor:
    """Down: 2 x 2 mean. Up: nearest x 2."""
    if mode == "down":
        return ops.halve(x)
    return ops.double(x) if mode == "up" else x


def shortcut(connection: nn.Module, x: ops.Map, mode: str | None) -> tuple[list[Tensor], Tensor | None]:
    """Maps whose sum is x, resampled, or its 1 x 1 convolution where the width changes; a bias still to be added."""
    if not isinstance(x, tuple):
        x = resample(x, mode)
        if isinstance(connection, nn.Identity):
            return [x], None
    return ops.pointwise(x, connection)


class EncoderBlock(nn.Module):
    """Residual block of the semantic encoder: no time, no z, one convolution (A.4)."""

    def __init__(self, c_in: int, c_out: int, mode: str | None = None) -> None:
        super().__init__()
        self.mode = mode
        self.in_layers = nn.Sequential(GroupNorm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        norm, _, conv = self.in_layers
        h, rest = ops.branch(x, norm)
        h, bias = ops.convolution(resample(h, self.mode), conv)
        skip, skip_bias = shortcut(self.skip_connection, rest, self.mode)
        return ops.residual([*skip, h], bias, skip_bias)


class ResBlock(nn.Module):
    """Residual block with time (scale and shift) and, where the network has one, z (scale only) (A.2).

    Both enter as one affine map (A, B) of the normalised features: with time a, b and z's scale s it is
    (n (1 + a) + b)(1 + s) = n A + B.
    """

    def __init__(self, c_in: int, c_out: int, config: UNetConfig, mode: str | None = None) -> None:
        super().__init__()
        self.mode, self.width = mode, c_out
        self.in_layers = nn.Sequential(GroupNorm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(config.embed, 2 * c_out))
        if config.cond:
            self.cond_emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(config.cond, c_out))
        self.out_layers = nn.Sequential(
            GroupNorm(c_out), nn.SiLU(), nn.Dropout(config.dropout), zero(nn.Conv2d(c_out, c_out, 3, padding=1)))
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def time_modulation(self, e: Tensor) -> Affine:
        """(1 + a, b), each (T, c_out), of time embeddings e (T, embed)."""
        a, b = self.emb_layers(e).chunk(2, dim=1)
        return 1 + a, b

    def code_modulation(self, z: Tensor) -> Tensor:
        """1 + s (B, c_out) of codes z (B, cond): times the time's, it is (A, B)."""
        return 1 + self.cond_emb_layers(z)

    def forward(self, x: ops.Map, affine: Affine) -> Tensor:
        norm, _, conv = self.in_layers
        h, rest = ops.branch(x, norm)
        h, bias = ops.convolution(resample(h, self.mode), conv)
        norm, _, dropout, conv = self.out_layers
        h, bias = ops.convolution(ops.norm_silu(h, norm, affine, bias, ops.dropped(dropout)), conv)
        skip, skip_bias = shortcut(self.skip_connection, rest, self.mode)
        return ops.residual([*skip, h], bias, skip_bias)


class Attention(nn.Module):
    """Self-attention over the map; channels lie head by head, q then k then v within a head ("legacy" order)."""

    def __init__(self, channels: int, head_channels: int = 0, num_heads: int = 0) -> None:
        super().__init__()
        if head_channels < 0 or head_channels and channels % head_channels:
            raise ValueError(f"{channels} channels cannot be split into attention heads of {head_channels}")
        self.heads = channels // head_channels if head_channels else num_heads or 1
        if self.heads < 1 or channels % self.heads:
            raise ValueError(f"{channels} channels cannot be split into {self.heads} attention heads")
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.norm(x), "n c h w -> n (h w) c")
        qkv = self._linear(self.qkv, tokens)
        q, k, v = rearrange(qkv, "n l (heads three c) -> three n heads l c", heads=self.heads, three=3)
        h = rearrange(ops.attention(q, k, v), "n heads l c -> n l (heads c)")
        return x + rearrange(self._linear(self.proj_out, h), "n (h w) c -> n c h w", h=x.shape[2])

    @staticmethod
    def _linear(conv: nn.Module, tokens: Tensor) -> Tensor:
        """The convolution (official files have one of width 1) on tokens (n, l, c), as they lie in channels_last."""
        return F.linear(tokens, conv.get_parameter("weight")[:, :, 0], conv.get_parameter("bias"))


class TimestepEmbedSequential(nn.ModuleList):
    """The parts of one numbered entry of the input, middle or output half; residual blocks take the next affine."""

    def forward(self, x: ops.Map, affines: Iterator[Affine] = iter(())) -> Tensor:
        first, *others = self
        h = first(x, next(affines)) if isinstance(first, ResBlock) else first(x)
        for part in others:
            h = part(h, next(affines)) if isinstance(part, ResBlock) else part(h)
        return h


class Downsample(nn.Module):
    """Half the size by a convolution, where residual blocks do not do it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Twice the size, nearest, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(resample(x, "up"))


def input_half(config: UNetConfig, mult: Sequence[int], block: MakeBlock, attention: MakeAttention,
               ) -> tuple[list[TimestepEmbedSequential], list[int], list[int]]:
    """Entries of the input half, and the level and width of each (A.3: a down block counts with the next level).

    block(c_in, c_out, mode) and attention(channels) make the parts."""
    base, blocks = config.base, config.blocks
    entries, levels, widths = [TimestepEmbedSequential([nn.Conv2d(3, base, 3, padding=1)])], [0], [base]
    for level, m in enumerate(mult):
        if level:
            down = block(widths[-1], widths[-1], "down") if config.resblock_updown else Downsample(widths[-1])
            entries.append(TimestepEmbedSequential([down]))
            levels.append(level)
            widths.append(widths[-1])
        for _ in range(blocks):
            parts: list[nn.Module] = [block(widths[-1], m * base)]
            if config.resolution(level) in config.attention_resolutions:
                parts.append(attention(m * base))
            entries.append(TimestepEmbedSequential(parts))
            levels.append(level)
            widths.append(m * base)
    return entries, levels, widths


class UNet(nn.Module):
    """eps(x_t, t, z). See the module's docstring for the three forms."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config

        def block(c_in: int, c_out: int, mode: str | None = None) -> ResBlock:
            return ResBlock(c_in, c_out, config, mode)

        def attention(channels: int) -> Attention:
            return Attention(channels, config.head_channels, config.num_heads)

        self.time_embed = nn.Sequential(
            nn.Linear(config.base, config.embed), nn.SiLU(), nn.Linear(config.embed, config.embed))
        entries, self.input_levels, widths = input_half(config, config.mult, block, attention)
        self.input_blocks = nn.ModuleList(entries)
        c = widths[-1]
        self.middle_block = TimestepEmbedSequential([block(c, c), attention(c), block(c, c)])
        entries, self.output_levels = [], []
        for level in reversed(range(config.levels)):
            for i in range(config.blocks + 1):
                width = config.mult[level] * config.base
                parts: list[nn.Module] = [block(c + widths.pop(), width)]
                if config.resolution(level) in config.attention_resolutions:
                    parts.append(attention(width))
                if level and i == config.blocks:
                    parts.append(block(width, width, "up") if config.resblock_updown else Upsample(width))
                entries.append(TimestepEmbedSequential(parts))
                self.output_levels.append(level)
                c = width
        self.output_blocks = nn.ModuleList(entries)
        self.out = nn.Sequential(GroupNorm(c), nn.SiLU(), zero(nn.Conv2d(c, config.out_channels, 3, padding=1)))

    @property
    def residual_blocks(self) -> list[tuple[ResBlock, int]]:
        """The blocks in their order, with the level of each; the middle's is the number of levels."""
        entries = [*zip(self.input_blocks, self.input_levels), (self.middle_block, self.config.levels),
                   *zip(self.output_blocks, self.output_levels)]
        return [(part, level) for entry, level in entries for part in entry if isinstance(part, ResBlock)]

    def modulation(self, t: Tensor, z: Codes = None, more: Tensor | None = None) -> Tensor:
        """What time and z do to the blocks: their A and B side by side, (2, B or 1, widths of all blocks).

        t (B or 1,): integer times 0 .. 999. z: (B or 1, cond), or levels + 1 such codes, one for each level (finest
        first) and one for the middle (A.6); None for a network without z. more: as in `time_modulation`.
        """
        return self.time_modulation(t, more) * self.code_modulation(z)

    def time_modulation(self, t: Tensor, more: Tensor | None = None) -> Tensor:
        """The time's part (2, T, widths of all blocks) of times t (T,). more (T, embed): is added to the time's
        embedding; in training, what the network is told of a picture's augmentation."""
        e = self.time_embed(time_features(t, self.config.base).to(self.time_embed.get_parameter("0.weight").dtype))
        e = e if more is None else e + more
        parts = zip(*(block.time_modulation(e) for block, _ in self.residual_blocks))
        return torch.stack([torch.cat(part, 1) for part in parts])

    def code_modulation(self, z: Codes = None) -> Tensor | float:
        """The codes' part (B or 1, widths of all blocks), to be multiplied with the time's; 1 without z."""
        if z is None:
            return 1.0
        codes = [z] * (self.config.levels + 1) if isinstance(z, Tensor) else z
        rows = max(len(code) for code in codes)
        parts = [block.code_modulation(codes[level]) for block, level in self.residual_blocks]
        return torch.cat([part.expand(rows, -1) for part in parts], 1)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """The last layer's output (B, out_channels, px, px) of x (B, 3, px, px), modulated as `modulation` says.

        Its first three channels stand for config.prediction; `diffusion.denoiser` makes eps of them.
        """
        widths = [block.width for block, _ in self.residual_blocks]
        affines, h, skips = zip(*(part.split(widths, 1) for part in modulation)), x, []
        for entry in self.input_blocks:
            h = entry(h, affines)
            skips.append(h)
        h = self.middle_block(h, affines)
        for entry in self.output_blocks:
            h = entry(ops.side_by_side(h, skips.pop()), affines)
        norm, _, conv = self.out
        return conv(ops.norm_silu(h.to(x.dtype), norm))


class SemanticEncoder(nn.Module):
    """z = Enc(picture): the input half with the encoder's own multipliers, mean over the map, 1 x 1 to E (A.4)."""

    def __init__(self, config: UNetConfig, mult: Sequence[int]) -> None:
        super().__init__()
        entries, _, widths = input_half(config, mult, EncoderBlock, Attention)
        c = widths[-1]
        self.input_blocks = nn.ModuleList(entries)
        self.middle_block = TimestepEmbedSequential([EncoderBlock(c, c), Attention(c), EncoderBlock(c, c)])
        self.out = nn.Sequential(GroupNorm(c), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, config.cond, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, px, px) -> z (B, E), unbounded."""
        norm, _, pool, conv = self.out
        return conv(pool(ops.norm_silu(self.features(x)[-1], norm))).flatten(1)

    def features(self, x: Tensor) -> list[Tensor]:
        """The maps after every entry, finest first, and after the middle block."""
        maps = []
        for entry in self.input_blocks:
            x = entry(x)
            maps.append(x)
        return maps + [self.middle_block(x)]


def entry_count(tensors: Mapping[str, Any], prefix: str) -> int:
    """How many numbered entries, 0, 1, .. without a gap, stand under `prefix`."""
    found = {k[len(prefix):].split(".")[0] for k in tensors if k.startswith(prefix)}
    count = 0
    while str(count) in found:
        count += 1
    return count


def detect(tensors: Mapping[str, Tensor], prefix: str = "", *, image_size: int | None = None,
           head_channels: int | None = None, num_heads: int | None = None) -> UNetConfig:
    """Read a UNetConfig off the shapes of a state dict.

    Not in the shapes, but to be given: the picture size; if it is not, it is that of guided-diffusion's models of these
    widths, if that puts no attention above 32 px, else what puts the finest attention at 16 px, as DiffAE's all do (at
    32 px if three or more levels attend). And the heads: 64 channels each for six output channels (P2, OpenAI's), one
    head otherwise.
    Raises ValueError for a state dict of another kind.
    """
    shapes = {name.removeprefix(prefix): tuple(value.shape) for name, value in tensors.items()
              if name.startswith(prefix)}
    base = _shape(shapes, "input_blocks.0.0.weight")[0]
    levels, blocks, plain = _halves(shapes)
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    mult = _multipliers(shapes, base, firsts)
    attending = [level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in shapes]
    cond = shapes.get("input_blocks.1.0.cond_emb_layers.1.weight", (0, 0))[1]
    out_channels = _shape(shapes, "out.2.weight")[0]
    image_size = image_size or _guessed_size(mult, attending, bool(cond))
    if head_channels is None:
        head_channels = 64 if out_channels == 6 and num_heads is None else 0
    return UNetConfig(
        image_size=image_size, base=base, blocks=blocks, embed=_shape(shapes, "time_embed.2.weight")[0], cond=cond,
        mult=mult, out_channels=out_channels, dropout=0.1 if cond else 0.0, head_channels=head_channels,
        num_heads=num_heads or 0, resblock_updown=not plain,
        attention_resolutions=tuple(image_size >> level for level in attending) or (ATTENTION_PX,))


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"not a diffusion UNet of a kind this pack knows: it lacks {name}")
    return shapes[name]


def _halves(shapes: Shapes) -> tuple[int, int, bool]:
    """Levels, residual blocks a level, and whether the size changes in plain convolutions. An entry of the output half
    that changes it has a second or third part."""
    n = entry_count(shapes, "output_blocks.")
    parts = [f"output_blocks.{i}.{part}" for i in range(n) for part in (1, 2)]
    plain = sum(f"{part}.conv.weight" in shapes for part in parts)
    levels = 1 + plain + sum(f"{part}.in_layers.0.weight" in shapes for part in parts)
    if n == 0 or n % levels or n != entry_count(shapes, "input_blocks."):
        raise ValueError("not a diffusion UNet of a kind this pack knows: its halves do not match")
    return levels, n // levels - 1, plain > 0


def _multipliers(shapes: Shapes, base: int, firsts: Sequence[int]) -> tuple[int, ...]:
    """Widths of the levels in units of `base`. firsts: of each level, its first entry with a block."""
    widths = [_shape(shapes, f"input_blocks.{i}.0.in_layers.2.weight")[0] for i in firsts]
    if _shape(shapes, "time_embed.0.weight")[1] != base or any(width % base for width in widths):
        raise ValueError(f"a UNet whose widths {widths} are not multiples of its first one, {base}, is not supported")
    if _shape(shapes, "input_blocks.1.0.emb_layers.1.weight")[0] != 2 * widths[0]:
        raise ValueError("a UNet without scale and shift by the time (use_scale_shift_norm) is not supported")
    return tuple(width // base for width in widths)


def _guessed_size(mult: tuple[int, ...], attending: Sequence[int], conditional: bool) -> int:
    """The picture size in px, by where attention stands."""
    if not attending:
        raise ValueError("the picture size cannot be told: attention stands at 0 levels; give image_size")
    known = 0 if conditional else GUIDED_SIZES.get(mult, 0)
    if known and known >> attending[0] <= 2 * ATTENTION_PX:
        return known
    return (2 * ATTENTION_PX if len(attending) > 2 else ATTENTION_PX) << attending[0]
