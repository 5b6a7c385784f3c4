"""Stylizing many pictures with one MMFS: its weights are scaled and laid out once, and few passes over maps are made.

Where kernels run, it is `FusedStylizer`; everywhere else the network itself. Maps may be 16-bit; styles, demodulation,
noise and the picture are float32 (docs/mmfs.md D).
"""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .mmfs import MMFS
from .precision import AUTO, PRECISIONS, autocast
from .stylegan2 import GAIN, EqualConv, EqualLinear, ResBlock, StyledConv, SynthesisBlock

if TYPE_CHECKING:
    from .kernels.stylegan2 import RGB

LEAST = 1e-20  # of what is divided by


class Stylizer:
    """stylizer(pictures (B, 3, H, W), w (B, n, S), *noise) -> pictures (B, 3, H, W) float32 in [-1, 1].

    noise: one (B or 1, 1, H', W') float32 for each layer, or none at all. Sides are multiples of the model's stride. A
    function of tensors alone, without gradient. 16 bit: NaN where a map left float16's range.
    """

    def __init__(self, net: MMFS, precision: str) -> None:
        self.net, self.precision = net, precision

    @torch.no_grad()
    def __call__(self, pictures: Tensor, w: Tensor, *noise: Tensor) -> Tensor:
        with autocast(pictures.device, self.precision):
            return self.net(pictures, w, noise or None).float()


def stylizer(net: MMFS, precision: str = AUTO) -> Stylizer:
    """Made once for a run of pictures. AUTO is float16 where kernels run and float32 elsewhere; a CPU takes float32.

    ValueError for a precision that is none of PRECISIONS or AUTO.
    """
    if precision not in (*PRECISIONS, AUTO):
        raise ValueError(f"precision is {precision!r}; take one of {', '.join((AUTO, *PRECISIONS))}")
    weight = next(net.parameters())
    if kernels.usable(weight):
        return FusedStylizer(net, "float16" if precision == AUTO else precision)
    return Stylizer(net, "float32" if precision == AUTO else precision)


class Conv(NamedTuple):
    """A convolution with its weight scaled; bias (out,) float32."""
    weight: Tensor
    bias: Tensor


class Affine(NamedTuple):
    """From w (B, S) to the scale (B, in) of a layer's input, scaled."""
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: EqualLinear) -> Affine:
        factor = layer.lr_mul / math.sqrt(layer.weight.shape[1])
        return cls((layer.weight * factor).float(), (layer.bias * layer.lr_mul).float())

    def __call__(self, w: Tensor) -> Tensor:
        return F.linear(w, self.weight, self.bias)


class Styled(NamedTuple):
    """A styled convolution. weight: of rows whose largest sum of squares is 1, so that float16 holds what comes out;
    `size` (out,) is what they were divided by. energy (in, out): sums of squares of the undivided weight."""
    weight: Tensor
    size: Tensor
    energy: Tensor
    affine: Affine
    strength: Tensor
    bias: Tensor

    def factors(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Scale (B, in) of the input, at most 1, and the coefficient (B, out) of the output, of w (B, S). Together they
        are modulation and demodulation."""
        scale = self.affine(w)
        top = scale.abs().amax(1, keepdim=True).clamp(min=LEAST)
        return scale / top, torch.rsqrt(scale.square() @ self.energy + 1e-8) * self.size * top


class Block(NamedTuple):
    """One resolution of the decoder; rgb is the weight (3, in), scaled."""
    up: Styled | None
    conv: Styled
    rgb: Tensor
    rgb_bias: Tensor
    affine: Affine


class EncoderBlock(NamedTuple):
    """conv0, conv1 and the skip; the skip's weight is over sqrt 2, which the activation's gain cancels in conv1."""
    first: Conv
    second: Conv
    skip: Tensor


class FusedStylizer(Stylizer):
    """The same with kernels, on maps of `precision` in channels_last."""

    @torch.no_grad()
    def __init__(self, net: MMFS, precision: str) -> None:
        super().__init__(net, precision)
        self.dtype = getattr(torch, precision)
        encoder = net.encoder
        self.stem, self.head = self._conv(encoder.stem), self._conv(encoder.head)
        self.encoder = [self._encoder_block(encoder.blocks.get_submodule(str(k))) for k in range(len(encoder.blocks))]
        self.decoder = [self._block(block) for block in net.decoder.blocks]

    @torch.no_grad()
    def __call__(self, pictures: Tensor, w: Tensor, *noise: Tensor) -> Tensor:
        with torch.autocast(pictures.device.type, enabled=False):
            self.net.check_size(pictures)
            return self.decode(self.encode(pictures), w.float(), [n.float().contiguous() for n in noise])

    def encode(self, pictures: Tensor) -> Tensor:
        """Features (B, C, H / 2^N, W / 2^N)."""
        fused = kernels.of("stylegan2")
        x = pictures.to(self.dtype).contiguous(memory_format=torch.channels_last)
        x = fused.finish(F.conv2d(x, self.stem.weight, padding=1), fused.Finish(self.stem.bias))
        for first, second, skip in self.encoder:
            blurred = fused.activated_blur(F.conv2d(x, first.weight, padding=1), first.bias)
            added = F.conv2d(fused.fir_down(x), skip)
            x = fused.finish(F.conv2d(blurred, second.weight, stride=2),
                             fused.Finish(second.bias, other=added, gain=1.0))
        return fused.finish(F.conv2d(x, self.head.weight, padding=1), fused.Finish(self.head.bias))

    def decode(self, features: Tensor, w: Tensor, noise: list[Tensor]) -> Tensor:
        """Pictures in [-1, 1] of features and w+ codes. A layer's modulation is made where its input is."""
        fused = kernels.of("stylegan2")
        layers = [layer for block in self.decoder for layer in (block.up, block.conv) if layer is not None]
        factors = [layer.factors(w[:, row]) for row, layer in enumerate(layers)]
        scales = [scale for scale, _ in factors[1:]] + [None]
        ends = [fused.Finish(layer.bias, coefficient, noise[k] if noise else None, layer.strength, scales[k])
                for k, (layer, (_, coefficient)) in enumerate(zip(layers, factors))]
        rgb: Tensor | None = None
        x = features * factors[0][0][:, :, None, None].to(features.dtype)
        for k, block in enumerate(self.decoder):
            if block.up is not None:
                x = fused.finish_up(F.conv_transpose2d(x, block.up.weight, stride=2), ends[2 * k - 1])
            x, rgb = fused.finish_picture(F.conv2d(x, block.conv.weight, padding=1), ends[2 * k],
                                          self._rgb_layer(k, w, rgb))
        assert rgb is not None
        return rgb

    def _rgb_layer(self, k: int, w: Tensor, picture: Tensor | None) -> RGB:
        fused = kernels.of("stylegan2")
        block = self.decoder[k]
        weight = block.affine(w[:, 2 * k + 1])[:, None] * block.rgb
        return fused.RGB(weight, block.rgb_bias, picture, k == len(self.decoder) - 1)

    def _laid(self, weight: Tensor) -> Tensor:
        return weight.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def _conv(self, conv: EqualConv) -> Conv:
        if conv.bias is None:
            raise TypeError("a convolution with bias is needed here")
        return Conv(self._laid(conv.scaled_weight()), conv.bias.float())

    def _encoder_block(self, block: torch.nn.Module) -> EncoderBlock:
        if not isinstance(block, ResBlock):
            raise TypeError(f"a ResBlock is needed here, not {type(block).__name__}")
        return EncoderBlock(self._conv(block.conv0), self._conv(block.conv1),
                            self._laid(block.skip.scaled_weight() / GAIN))

    def _styled(self, conv: StyledConv) -> Styled:
        weight = conv.weight.float() / math.sqrt(conv.weight[0].numel())
        size = (weight.abs().amax((1, 2, 3)) * math.sqrt(weight[0].numel())).clamp(min=LEAST)
        divided = weight / size[:, None, None, None]
        laid = self._laid(divided if conv.blur is None else divided.transpose(0, 1))
        return Styled(laid, size, weight.square().sum((2, 3)).t().contiguous(), Affine.of(conv.affine),
                      conv.noise_strength.float(), conv.bias.float())

    def _block(self, block: torch.nn.Module) -> Block:
        if not isinstance(block, SynthesisBlock):
            raise TypeError(f"a SynthesisBlock is needed here, not {type(block).__name__}")
        up, rgb = block.conv0, block.rgb
        weight = rgb.weight[:, :, 0, 0].float() / math.sqrt(rgb.weight.shape[1])
        return Block(None if up is None else self._styled(up), self._styled(block.conv1), weight, rgb.bias.float(),
                     Affine.of(rgb.affine))
