"""StyleGAN2 (Karras et al. 2020, config f): mapping, synthesis and the residual discriminator, in plain PyTorch.

Pictures are NCHW, RGB, about [-1, 1]. Styles w are (B, S); w+ codes are (B, n, S), one row a style input, where the rgb
layer of one resolution shares its row with the up-sampling layer of the next (docs/mmfs.md A.3). All weights are stored
as both public programs store them: unit variance, scaled at run time (equalised learning rate). `Synthesis` may begin
at any resolution, so that MMFS's decoder is the same network fed with another 32 x 32 feature map.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Tensors
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from . import kernels, rng
from .precision import full_precision
from .unet import entry_count

SLOPE, GAIN = 0.2, 2 ** 0.5
MAPPING_LR_MUL = 0.01  # learning-rate multiplier of the mapping network
MEAN_SAMPLES = 10_000  # z averaged where a file has no mean w (A.2)
NOISE_THREADS = 8  # that draw noise, each a picture's: a generator draws on one core
NOISES = ("seeded", "constant", "zero")
FEATURE_LAYERS = (1, 3, 4, 5)  # of D, for the perceptual loss of JoJoGAN and MMFS (A.8)


@dataclass(frozen=True)
class StyleGAN2Config:
    """channels: widths at 4, 8, .. resolution px. w_dim: width S of z and w. mapping_layers: 8, in NVIDIA's `auto` 2.

    mbstd_group_size: samples that D's minibatch standard deviation compares (4; 8 in NVIDIA's paper256).
    """
    channels: tuple[int, ...]
    w_dim: int = 512
    mapping_layers: int = 8
    mbstd_group_size: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if type(self.mbstd_group_size) is not int or self.mbstd_group_size < 1:
            raise ValueError(f"the discriminator compares groups of {self.mbstd_group_size} samples. It is 1 or more")

    @property
    def resolution(self) -> int:
        return 2 << len(self.channels)

    @property
    def n_styles(self) -> int:
        """Rows of a w+ code: 2 log2 R - 2."""
        return 2 * len(self.channels)


def channel_table(resolution: int, base: int = 32768, most: int = 512) -> tuple[int, ...]:
    """min(base / r, most) for r = 4 .. resolution (A.1)."""
    return tuple(min(base // r, most) for r in (4 << k for k in range(int(math.log2(resolution)) - 1)))


def detect(tensors: Tensors[str, Tensor], mbstd_group_size: int = 4) -> StyleGAN2Config:
    """Read a generator's configuration off its tensors' shapes (names as in `Generator`). ValueError if it is none."""
    count = entry_count(tensors, "synthesis.blocks.")
    try:
        channels = tuple(tensors[f"synthesis.blocks.{k}.conv1.weight"].shape[0] for k in range(count))
        w_dim = tensors["mapping.layers.0.weight"].shape[1]
    except (KeyError, IndexError) as error:
        raise ValueError(f"not a StyleGAN2 generator ({error} is missing)") from error
    return StyleGAN2Config(channels, w_dim, entry_count(tensors, "mapping.layers."), mbstd_group_size)


def detect_discriminator(tensors: Tensors[str, Tensor], mbstd_group_size: int = 4) -> StyleGAN2Config:
    """The same of a discriminator's tensors (names as in `Discriminator`); its mapping is left at the defaults."""
    try:
        widths = (tensors["from_rgb.weight"].shape[0], *(tensors[f"blocks.{k}.conv1.weight"].shape[0]
                                                         for k in range(entry_count(tensors, "blocks."))))
    except (KeyError, IndexError) as error:
        raise ValueError(f"not a StyleGAN2 discriminator ({error} is missing)") from error
    return StyleGAN2Config(widths[::-1], mbstd_group_size=mbstd_group_size)


# --- elementary operations (A.2) ---------------------------------------------------------------------------------
def activate(x: Tensor, bias: Tensor) -> Tensor:
    """lrelu(x + b) * sqrt 2; `bias` (C,) along dimension 1."""
    if x.ndim == 4 and kernels.usable(x):
        return Activated.apply(x, bias)
    bias = bias.to(x.dtype).reshape(1, -1, *[1] * (x.ndim - 2))
    return F.leaky_relu(x + bias, SLOPE) * GAIN


class Activated(torch.autograd.Function):
    """`activate` of maps in one pass where kernels run, with second derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        y = kernels.of("stylegan2").activated(x, bias)
        ctx.save_for_backward(y, bias)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        y, bias = ctx.saved_tensors
        dx = Sloped.apply(gradient, y)
        return dx, dx.sum((0, 2, 3), dtype=torch.float32).to(bias.dtype) if ctx.needs_input_grad[1] else None


class Sloped(torch.autograd.Function):
    """The derivative of `activate` where it gave y, times a gradient; linear in that, and constant in y."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return kernels.of("stylegan2").sloped(gradient, y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return Sloped.apply(gradient, *ctx.saved_tensors), None


class FirDown(torch.autograd.Function):
    """Depthwise convolution with a symmetric 4 x 4 kernel, whose derivative is again a filter: the general second
    derivative of a grouped convolution, which R1 needs, is a hundred times slower (measured on an H200)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fir: Fir, padding: int, stride: int) -> Tensor:
        ctx.fir, ctx.padding, ctx.stride = fir, padding, stride
        ctx.odd = x.shape[-2] % 2, x.shape[-1] % 2
        if kernels.usable(x):
            return kernels.of("stylegan2").fir(x, padding, stride, fir.gain)
        return F.conv2d(x, fir.weight(x), padding=padding, stride=stride, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.stride == 1:
            return FirDown.apply(gradient, ctx.fir, 3 - ctx.padding, 1), None, None, None
        return FirUp.apply(gradient, ctx.fir, ctx.padding, ctx.odd), None, None, None


class FirUp(torch.autograd.Function):
    """Its adjoint with stride 2: zeros between the samples, then the filter. odd: which sides of the result are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fir: Fir, padding: int, odd: tuple[int, int]) -> Tensor:
        ctx.fir, ctx.padding = fir, padding
        if kernels.usable(x):
            return kernels.of("stylegan2").fir_up(x, padding, odd, fir.gain)
        return F.conv_transpose2d(x, fir.weight(x), padding=padding, stride=2, output_padding=odd, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return FirDown.apply(gradient, ctx.fir, ctx.padding, 2), None, None, None


class Fir(nn.Module):
    """The 4 x 4 filter [1, 3, 3, 1] x [1, 3, 3, 1] / 64, times `gain`, on every channel; zero padding, x's type."""
    kernel: Tensor

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain, taps = gain, torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", (taps[:, None] * taps * (gain / 64))[None, None], persistent=False)

    def weight(self, x: Tensor) -> Tensor:
        """Of a depthwise convolution of x."""
        return self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)

    def forward(self, x: Tensor, padding: int, stride: int = 1) -> Tensor:
        with full_precision(x.device):
            return FirDown.apply(x, self, padding, stride)

    def up(self, x: Tensor) -> Tensor:
        """Twice the size, as one transposed convolution (with gain 4; A.2)."""
        with full_precision(x.device):
            return FirUp.apply(x, self, 1, (0, 0))


class EqualLinear(nn.Module):
    """y = W (m / sqrt in) x + b m, then the activation if asked for. m: lr_mul, the learning-rate multiplier."""

    def __init__(self, in_dim: int, out_dim: int, *, lr_mul: float = 1.0, bias: float = 0.0,
                 active: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr_mul)
        self.bias = nn.Parameter(torch.full((out_dim,), float(bias)))
        self.lr_mul, self.active = lr_mul, active

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight * (self.lr_mul / self.weight.shape[1] ** 0.5), self.bias * self.lr_mul
        return activate(F.linear(x, weight), bias) if self.active else F.linear(x, weight, bias)


class EqualConv(nn.Module):
    """k x k convolution with bias and activation, or (`active` False) neither; `down` halves the size behind a blur."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int, *, down: bool = False, active: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_dim)) if active else None
        self.blur = Fir() if down else None

    def forward(self, x: Tensor) -> Tensor:
        kernel, weight = self.weight.shape[-1], self.scaled_weight()
        if self.blur is None:
            x = F.conv2d(x, weight, padding=kernel // 2)
        elif kernel == 1:
            x = F.conv2d(self.blur(x, padding=1, stride=2), weight)
        else:
            x = F.conv2d(self.blur(x, padding=2), weight, stride=2)
        return x if self.bias is None else activate(x, self.bias)

    def scaled_weight(self) -> Tensor:
        """The weight (out, in, k, k) that is computed with."""
        return self.weight / math.sqrt(self.weight[0].numel())


class ResBlock(nn.Module):
    """Half the size: (conv, down-conv) plus a 1 x 1 skip, over sqrt 2. D's and MMFS's encoder are made of these."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv0 = EqualConv(in_dim, in_dim, 3)
        self.conv1 = EqualConv(in_dim, out_dim, 3, down=True)
        self.skip = EqualConv(in_dim, out_dim, 1, down=True, active=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv1(self.conv0(x)) + self.skip(x)) / GAIN


class Mapping(nn.Module):
    """z (B, S) -> w (B, S): PixelNorm, then equalised linears with activation."""

    def __init__(self, w_dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(EqualLinear(w_dim, w_dim, lr_mul=MAPPING_LR_MUL, active=True)
                                      for _ in range(layers)))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8))


class StyledConv(nn.Module):
    """Modulated, demodulated 3 x 3 convolution (`up`: twice the size), noise, bias, activation.

    Where kernels run, what follows the convolution is one of them, which has no second derivatives.
    """

    def __init__(self, in_dim: int, out_dim: int, w_dim: int, *, up: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim, 3, 3))
        self.affine = EqualLinear(w_dim, in_dim, bias=1.0)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.blur = Fir(gain=4.0) if up else None

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """x (B, in, H, W), w (B, S), noise broadcast to (B, 1, H', W') or None for none."""
        scale, weight, demodulate = self.factors(w)
        x = x * scale[:, :, None, None].to(x.dtype)
        if self.blur is None:
            x = F.conv2d(x, weight, padding=1)
        else:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        if kernels.usable(x):
            drawn = None if noise is None else (self.noise_strength, noise)
            return kernels.of("stylegan2").styled(x, demodulate, drawn, self.bias, self.blur is not None)
        if self.blur is not None:
            x = self.blur(x, padding=1)
        bias = (self.bias * GAIN).to(x.dtype)[:, None, None]
        x = torch.addcmul(bias, x, (demodulate * GAIN)[:, :, None, None].to(x.dtype))  # the gain first: fewer passes
        if noise is not None:
            x = x + (self.noise_strength * GAIN * noise).to(x.dtype)
        return F.leaky_relu(x, SLOPE, inplace=True)

    def factors(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scale (B, in) of the input, weight (out, in, 3, 3), and demodulation (B, out), of w (B, S); float32."""
        with full_precision(w.device):
            scale, weight = self.affine(w.float()), self.weight / math.sqrt(self.weight[0].numel())
            return scale, weight, torch.rsqrt(scale.square() @ weight.square().sum((2, 3)).t() + 1e-8)


class ToRGB(nn.Module):
    """Modulated 1 x 1 convolution to RGB, without demodulation; float32 whatever the caller's autocast."""

    def __init__(self, in_dim: int, w_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, in_dim, 1, 1))
        self.affine = EqualLinear(w_dim, in_dim, bias=1.0)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        with full_precision(x.device):
            scale = self.affine(w.float()) / math.sqrt(self.weight.shape[1])
            if kernels.usable(x):
                return kernels.of("stylegan2").to_rgb(x, scale[:, None] * self.weight[:, :, 0, 0], self.bias)
            return F.conv2d(x.float() * scale[:, :, None, None], self.weight, self.bias)


class SynthesisBlock(nn.Module):
    """One resolution: (up-conv,) conv, rgb. Block 0 has no up-conv."""

    def __init__(self, in_dim: int, out_dim: int, w_dim: int, *, first: bool = False) -> None:
        super().__init__()
        self.conv0 = None if first else StyledConv(in_dim, out_dim, w_dim, up=True)
        self.conv1 = StyledConv(in_dim if first else out_dim, out_dim, w_dim)
        self.rgb = ToRGB(out_dim, w_dim)

    def forward(self, x: Tensor, w: Sequence[Tensor], noise: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """The map (B, out, H', W') and what it adds to the picture. w, each (B, S), and noise: one a layer."""
        *styles, rgb_style = w
        for conv, style, layer_noise in zip(self.convs, styles, noise, strict=True):
            x = conv(x, style, layer_noise)
        return x, self.rgb(x, rgb_style)

    @property
    def convs(self) -> list[StyledConv]:
        return [self.conv1] if self.conv0 is None else [self.conv0, self.conv1]


class Synthesis(nn.Module):
    """Blocks from a feature map (B, channels[0], h, w) to a picture (B, 3, h 2^N, w 2^N), N = len(channels) - 1."""

    def __init__(self, channels: Sequence[int], w_dim: int) -> None:
        super().__init__()
        widths = (channels[0], *channels)
        self.blocks = nn.ModuleList(SynthesisBlock(widths[k], widths[k + 1], w_dim, first=k == 0)
                                    for k in range(len(channels)))
        self.fir = Fir(gain=4.0)

    @property
    def n_styles(self) -> int:
        return 2 * len(self.blocks)

    def noise_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(H, W) of each layer's noise for a feature map of height x width."""
        sizes = [(height << k, width << k) for k in range(len(self.blocks))]
        return [size for k, size in enumerate(sizes) for _ in range(1 if k == 0 else 2)]

    def forward(self, x: Tensor, w: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """w (B, n_styles, S). noise: one tensor a layer (see `noise_shapes`), or None for zero noise."""
        layers = [None] * (2 * len(self.blocks) - 1) if noise is None else list(noise)
        first, *others = self.blocks
        x, rgb = first(x, [w[:, 0], w[:, 1]], layers[:1])
        for k, block in enumerate(others, 1):
            x, added = block(x, [w[:, 2 * k - 1], w[:, 2 * k], w[:, 2 * k + 1]], layers[2 * k - 1:2 * k + 1])
            rgb = self.fir.up(rgb) + added
        return rgb


# --- the networks -----------------------------------------------------------------------------------------------------
class StyleGAN2(nn.Module):
    """The generator. `w_avg` (S,) is the mean w; `noise_{i}` are the file's constant noise pictures."""
    w_avg: Tensor

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config.w_dim, config.mapping_layers)
        self.const = nn.Parameter(torch.randn(config.channels[0], 4, 4))
        self.synthesis = Synthesis(config.channels, config.w_dim)
        self.register_buffer("w_avg", torch.zeros(config.w_dim))
        for i, size in enumerate(self.synthesis.noise_shapes(4, 4)):
            self.register_buffer(f"noise_{i}", torch.randn(size))

    def constant_noise(self) -> list[Tensor]:
        """The stored noise pictures, each (1, 1, r, r)."""
        return [getattr(self, f"noise_{i}")[None, None] for i in range(2 * len(self.config.channels) - 1)]

    def styles(self, z: Tensor, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """w+ (B, n, S) of z (B, S); truncated towards the mean w by psi, in the first `cutoff` rows if given."""
        w = self.mapping(z)[:, None].repeat(1, self.config.n_styles, 1)
        return truncate(w, self.w_avg, psi, cutoff)

    def forward(self, w: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Pictures (B, 3, R, R), not clamped, of w+ codes (B, n, S); noise None is zero noise."""
        return self.synthesis(self.const.expand(len(w), -1, -1, -1), w, noise)


class Discriminator(nn.Module):
    """Scores (B, 1) of pictures (B, 3, R, R)."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        widths = config.channels[::-1]
        self.from_rgb = EqualConv(3, widths[0], 1)
        self.blocks = nn.ModuleList(ResBlock(a, b) for a, b in zip(widths, widths[1:]))
        self.conv = EqualConv(widths[-1] + 1, widths[-1], 3)
        self.fc = EqualLinear(widths[-1] * 16, widths[-1], active=True)
        self.out = EqualLinear(widths[-1], 1)

    def features(self, x: Tensor, layers: Sequence[int] = FEATURE_LAYERS) -> list[Tensor]:
        """Outputs of the named layers (0 is from_rgb, k the k-th block); those below 4 px are left out.

        Any height and width divisible by 32 will do: what comes after is not reached.
        """
        found, x = [], self.from_rgb(x)
        for k in range(min(max(layers), len(self.blocks)) + 1):
            x = self.blocks[k - 1](x) if k else x
            if k in layers:
                found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x, (len(self.blocks),))[0]
        x = self.conv(torch.cat([x, minibatch_stddev(x, self.config.mbstd_group_size)], 1))
        with full_precision(x.device):
            return self.out(self.fc(x.float().flatten(1)))


def minibatch_stddev(x: Tensor, group_size: int) -> Tensor:
    """Minibatch standard deviation (B, 1, h, w): over groups of samples n, n + B / G, ..., biased (A.8).

    ValueError if the batch is larger than the group and not a multiple of it.
    """
    b, _, h, w = x.shape
    size = min(group_size, b)
    if b % size:
        raise ValueError(f"a batch of {b} cannot be split into the discriminator's groups of {size}; "
                         f"take a multiple of {size}")
    y = rearrange(x, "(g n) c h w -> g n c h w", g=size).float()
    y = (y.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    return y.repeat(size)[:, None, None, None].expand(b, 1, h, w).to(x.dtype)


# --- styles and noise -------------------------------------------------------------------------------------------------
def truncate(w: Tensor, mean: Tensor, psi: float, cutoff: int | None = None) -> Tensor:
    """mean + psi (w - mean) in the first `cutoff` rows (all if None) of w+ (B, n, S)."""
    rows = w.shape[1] if cutoff is None else max(0, cutoff)
    return torch.cat([mean + psi * (w[:, :rows] - mean), w[:, rows:]], 1)


def mix_styles(first: Tensor, second: Tensor, cut: int) -> Tensor:
    """Style mixing: the first `cut` rows of `first`, the others of `second` (both (B, n, S))."""
    return torch.cat([first[:, :cut], second[:, cut:]], 1)


@torch.no_grad()
def mean_w(mapping: Mapping, count: int = MEAN_SAMPLES) -> Tensor:
    """Mean of w over `count` random z, (S,)."""
    weight = mapping.layers.get_parameter("0.weight")
    z = torch.randn(count, weight.shape[1], generator=rng.generator(0, "mean w"))
    return torch.cat([mapping(part.to(weight)) for part in z.split(1000)]).mean(0)


def random_z(count: int, w_dim: int, seed: int, device: torch.device = rng.CPU) -> Tensor:
    """z (count, w_dim) of a seed: row k depends on (seed, k) alone."""
    return rng.randn((w_dim,), seed, "z", range(count), device)


def seeded_noise(shapes: Sequence[tuple[int, int]], seed: int, items: Iterable[int],
                 device: torch.device = rng.CPU) -> list[Tensor]:
    """Noise (len(items), 1, H, W) for each of `shapes` (see `Synthesis.noise_shapes`).

    An item's depends on (seed, item, shapes) alone.
    """
    sources = [rng.generator(seed, "noise", item) for item in items]
    layers, inference = [torch.empty(len(sources), 1, *size) for size in shapes], torch.is_inference_mode_enabled()

    def draw(row: int) -> None:
        with torch.inference_mode(inference):  # which a thread does not inherit
            for layer in layers:
                layer[row].normal_(generator=sources[row])
    if len(sources) == 1:
        draw(0)
    else:
        with ThreadPoolExecutor(min(len(sources), NOISE_THREADS)) as pool:
            list(pool.map(draw, range(len(sources))))
    return [layer.to(device) for layer in layers]


def random_noise(shapes: Sequence[tuple[int, int]], count: int, generator: Generator) -> list[Tensor]:
    """Noise (count, 1, H, W) for each of `shapes`, of one step of a training, on the generator's device."""
    return [torch.randn(count, 1, *size, generator=generator, device=generator.device) for size in shapes]


def sampling_memory(channels: int, height: int, width: int, batch: int) -> int:
    """Bytes that StyleGAN2 and MMFS need without gradient: about 5 of their largest maps a picture (docs/mmfs.md D)."""
    return 5 * 4 * channels * height * width * batch
