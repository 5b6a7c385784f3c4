"""StyleGAN2's filters, activations and rgb layers, each in one pass over maps (B, C, H, W) in channels_last.

What follows a styled convolution is y = lrelu(FIR(t) d + strength noise + bias) gain, with the FIR filter in up-layers
only. The next layer's modulation, the rgb layer and the picture so far can be taken into the same pass. `styled` and
`to_rgb` have first derivatives, no second ones; the others have none, but `fir`, `fir_up`, `activated` and `sloped` are
linear in what they are given or each other's derivative (models/stylegan2.py). All sums are in float32.
"""
from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launched
from .pointwise import last

GAIN = 2 ** 0.5
TILE = 2048  # numbers a program works on at a time
MOST_COLUMNS = 128
STEPS = 8  # rows that a program of the filter makes
PROGRAMS = 1024  # wanted, at least, of a pass with sums
MOST_CHUNKS = 128


# --- kernels ----------------------------------------------------------------------------------------------------------
@triton.jit
def _active(u, gain):
    return tl.where(u > 0, u, u * 0.2) * gain


@triton.jit
def _styled(v, n, r, c, rows, coefficient, noise, strength, bias, channels, noise_stride, gain,
            COEFFICIENT: tl.constexpr, NOISE: tl.constexpr):
    """lrelu(v d + strength noise + bias) gain of pixels r and channels c."""
    if COEFFICIENT:
        v *= tl.load(coefficient + n * channels + c, mask=c < channels, other=0.0)[None, :]
    if NOISE:
        drawn = tl.load(noise + n.to(tl.int64) * noise_stride + r, mask=r < rows, other=0.0)
        v += (tl.load(strength).to(tl.float32) * drawn)[:, None]
    v += tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    return _active(v, gain)


@Launched
@triton.jit
def _finish(t, other, coefficient, noise, strength, bias, scale, y, rows, channels, noise_stride, gain,
            COEFFICIENT: tl.constexpr, NOISE: tl.constexpr, OTHER: tl.constexpr, SCALE: tl.constexpr,
            ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    n = tl.program_id(2)
    r, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < channels)[None, :]
    at = n.to(tl.int64) * rows * channels + r[:, None] * channels + c[None, :]
    v = _styled(tl.load(t + at, mask=inside, other=0.0).to(tl.float32), n, r, c, rows, coefficient, noise, strength,
                bias, channels, noise_stride, gain, COEFFICIENT, NOISE)
    if OTHER:
        v += tl.load(other + at, mask=inside, other=0.0).to(tl.float32)
    if SCALE:
        v *= tl.load(scale + n * channels + c, mask=c < channels, other=0.0)[None, :]
    tl.store(y + at, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _upsampled(x, r, rows, height, width):
    """Pixels r of twice the size of a plane x (height / 2, width / 2): the FIR filter on a grid with zeros between."""
    row, column = r // width, r % width
    near_row, near_column = row // 2, column // 2
    far_row, far_column = near_row - 1 + 2 * (row % 2), near_column - 1 + 2 * (column % 2)
    half = width // 2
    has_row = (r < rows) & (far_row >= 0) & (far_row < height // 2)
    has_column = (r < rows) & (far_column >= 0) & (far_column < half)
    near = tl.load(x + near_row * half + near_column, mask=r < rows, other=0.0) * 0.5625
    near += tl.load(x + far_row * half + near_column, mask=has_row, other=0.0) * 0.1875
    near += tl.load(x + near_row * half + far_column, mask=has_column, other=0.0) * 0.1875
    return near + tl.load(x + far_row * half + far_column, mask=has_row & has_column, other=0.0) * 0.0625


@Launched
@triton.jit
def _picture(t, coefficient, noise, strength, bias, scale, y, weight, rgb_bias, skip, rgb, height, width, channels,
             noise_stride, gain, STYLED: tl.constexpr, NOISE: tl.constexpr, STORE: tl.constexpr, SKIP: tl.constexpr,
             CLAMP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The rgb layer of the map y (t itself where not STYLED), plus the picture so far at twice its size; stores y
    scaled for the next layer. A picture that is clamped has NaN where the sum is not finite."""
    n, rows = tl.program_id(1), height * width
    r, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < channels)[None, :]
    at = n.to(tl.int64) * rows * channels + r[:, None] * channels + c[None, :]
    v = tl.load(t + at, mask=inside, other=0.0).to(tl.float32)
    if STYLED:
        v = _styled(v, n, r, c, rows, coefficient, noise, strength, bias, channels, noise_stride, gain, True, NOISE)
    if STORE:
        scaled = v * tl.load(scale + n * channels + c, mask=c < channels, other=0.0)[None, :]
        tl.store(y + at, scaled.to(y.dtype.element_ty), mask=inside)
    for k in tl.static_range(3):
        w = tl.load(weight + (n * 3 + k) * channels + c, mask=c < channels, other=0.0)
        total = tl.sum(v * w[None, :], 1) + tl.load(rgb_bias + k)
        plane = (n * 3 + k).to(tl.int64)
        if SKIP:
            total += _upsampled(skip + plane * (rows // 4), r, rows, height, width)
        if CLAMP:
            total = tl.where(tl.abs(total) < 1e30, tl.minimum(tl.maximum(total, -1.0), 1.0), float("nan"))
        tl.store(rgb + plane * rows + r, total, mask=r < rows)


@triton.jit
def _tap(x, y, bias, row, column, c, height, width, channels, gain, ACTIVE: tl.constexpr, GRADIENT: tl.constexpr):
    """A row of pixels, 0 outside of the map. ACTIVE: lrelu(x + bias) gain. GRADIENT: x times lrelu's slope at y."""
    inside = ((row >= 0) & (row < height) & (column >= 0) & (column < width))[:, None] & (c < channels)[None, :]
    at = (row * width + column)[:, None] * channels + c[None, :]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ACTIVE:
        v = _active(v + tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)[None, :], gain)
        v = tl.where(inside, v, 0.0)
    if GRADIENT:
        v *= tl.where(tl.load(y + at, mask=inside, other=0.0).to(tl.float32) > 0, gain, gain * 0.2)
    return v


@triton.jit
def _taps(x, y, bias, row, column, c, height, width, channels, gain, ACTIVE: tl.constexpr, GRADIENT: tl.constexpr):
    """[1, 3, 3, 1] along a row, from `column` on."""
    edge = _tap(x, y, bias, row, column, c, height, width, channels, gain, ACTIVE, GRADIENT)
    edge += _tap(x, y, bias, row, column + 3, c, height, width, channels, gain, ACTIVE, GRADIENT)
    middle = _tap(x, y, bias, row, column + 1, c, height, width, channels, gain, ACTIVE, GRADIENT)
    middle += _tap(x, y, bias, row, column + 2, c, height, width, channels, gain, ACTIVE, GRADIENT)
    return edge + 3.0 * middle


@Launched
@triton.jit
def _filter(x, y, coefficient, noise, strength, bias, scale, out, height, width, out_height, out_width, channels,
            padding, share, noise_stride, gain, ACTIVE: tl.constexpr, GRADIENT: tl.constexpr, STYLED: tl.constexpr,
            NOISE: tl.constexpr, SCALE: tl.constexpr, STRIDE: tl.constexpr, STEPS: tl.constexpr, PIXELS: tl.constexpr,
            COLUMNS: tl.constexpr):
    """The FIR filter, sliding down STEPS rows of a strip of PIXELS; what goes in and comes out may be transformed."""
    n, strips = tl.program_id(2), tl.cdiv(out_width, PIXELS)
    first = tl.program_id(0) // strips * STEPS
    o = tl.program_id(0) % strips * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = n.to(tl.int64) * height * width * channels
    x += here
    if GRADIENT:
        y += here
    column, row = o * STRIDE - padding, first * STRIDE - padding
    a = _taps(x, y, bias, row, column, c, height, width, channels, gain, ACTIVE, GRADIENT)
    b = _taps(x, y, bias, row + 1, column, c, height, width, channels, gain, ACTIVE, GRADIENT)
    d = b
    if STRIDE == 1:
        d = _taps(x, y, bias, row + 2, column, c, height, width, channels, gain, ACTIVE, GRADIENT)
    for step in range(STEPS):
        if STRIDE == 2:
            d = _taps(x, y, bias, row + 2 * step + 2, column, c, height, width, channels, gain, ACTIVE, GRADIENT)
        e = _taps(x, y, bias, row + STRIDE * step + 3, column, c, height, width, channels, gain, ACTIVE, GRADIENT)
        v = (a + e + 3.0 * (b + d)) * share
        r = (first + step) * out_width + o
        if STYLED:
            v = _styled(v, n, r, c, out_height * out_width, coefficient, noise, strength, bias, channels, noise_stride,
                        gain, True, NOISE)
        if SCALE:
            v *= tl.load(scale + n * channels + c, mask=c < channels, other=0.0)[None, :]
        inside = ((o < out_width) & (first + step < out_height))[:, None] & (c < channels)[None, :]
        at = n.to(tl.int64) * out_height * out_width * channels + r[:, None] * channels + c[None, :]
        tl.store(out + at, v.to(out.dtype.element_ty), mask=inside)
        if STRIDE == 1:
            a, b, d = b, d, e
        else:
            a, b = d, e


@Launched
@triton.jit
def _spread(x, out, height, width, out_height, out_width, channels, padding, share, ROWS: tl.constexpr,
            COLUMNS: tl.constexpr):
    """The FIR filter's adjoint with stride 2, of pixels r of the result: taps 1, 3, 3, 1 times share."""
    n = tl.program_id(2)
    r, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row, column = r // out_width + padding, r % out_width + padding
    i, j = row // 2, column // 2
    near_row, near_column = (1 + 2 * (row % 2)).to(tl.float32), (1 + 2 * (column % 2)).to(tl.float32)
    far_row, far_column = 4.0 - near_row, 4.0 - near_column
    x += n.to(tl.int64) * height * width * channels
    at = ((i * width + j) * channels)[:, None] + c[None, :]
    inside = (r < out_height * out_width)[:, None] & (c < channels)[None, :]
    here, above = (i < height)[:, None], ((i > 0) & (i <= height))[:, None]
    there, before = (j < width)[:, None], ((j > 0) & (j <= width))[:, None]
    v = tl.load(x + at, mask=inside & here & there, other=0.0).to(tl.float32) * (near_row * near_column)[:, None]
    v += tl.load(x + at - width * channels, mask=inside & above & there, other=0.0).to(tl.float32) * (
        far_row * near_column)[:, None]
    v += tl.load(x + at - channels, mask=inside & here & before, other=0.0).to(tl.float32) * (
        near_row * far_column)[:, None]
    v += tl.load(x + at - width * channels - channels, mask=inside & above & before, other=0.0).to(tl.float32) * (
        far_row * far_column)[:, None]
    to = n.to(tl.int64) * out_height * out_width * channels + r[:, None] * channels + c[None, :]
    tl.store(out + to, (v * share).to(out.dtype.element_ty), mask=inside)


@Launched
@triton.jit
def _slope(dy, y, dx, count, gain, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(dy + at, mask=at < count, other=0.0).to(tl.float32)
    v *= tl.where(tl.load(y + at, mask=at < count, other=0.0).to(tl.float32) > 0, gain, gain * 0.2)
    tl.store(dx + at, v.to(dx.dtype.element_ty), mask=at < count)


@Launched
@triton.jit
def _styled_sums(dy, y, noise, coefficient, dt, plain, by_value, by_noise, rows, channels, chunks, noise_stride, gain,
                 NOISE: tl.constexpr, STORE: tl.constexpr, CHUNK_ROWS: tl.constexpr, ROWS: tl.constexpr,
                 COLUMNS: tl.constexpr):
    """Sums over a chunk of rows of du, du u and du noise, u being what the activation took; stores du d."""
    n, chunk = tl.program_id(2), tl.program_id(0)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    base = n.to(tl.int64) * rows * channels
    first = tl.zeros((ROWS, COLUMNS), tl.float32)
    second = tl.zeros((ROWS, COLUMNS), tl.float32)
    third = tl.zeros((ROWS, COLUMNS), tl.float32)
    d = tl.load(coefficient + n * channels + c, mask=c < channels, other=0.0)
    for start in range(0, CHUNK_ROWS, ROWS):
        r = chunk * CHUNK_ROWS + start + tl.arange(0, ROWS)
        inside = (r < rows)[:, None] & (c < channels)[None, :]
        at = base + r[:, None] * channels + c[None, :]
        value = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        slope = tl.where(value > 0, gain, gain * 0.2)
        du = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32) * slope
        first += du
        second += du * (value / slope)
        if NOISE:
            drawn = tl.load(noise + n.to(tl.int64) * noise_stride + r, mask=r < rows, other=0.0)
            third += du * drawn[:, None]
        if STORE:
            tl.store(dt + at, (du * d[None, :]).to(dt.dtype.element_ty), mask=inside)
    at = (n * chunks + chunk) * channels + c
    tl.store(plain + at, tl.sum(first, 0), mask=c < channels)
    tl.store(by_value + at, tl.sum(second, 0), mask=c < channels)
    tl.store(by_noise + at, tl.sum(third, 0), mask=c < channels)


@Launched
@triton.jit
def _rgb_backward(d_rgb, x, weight, dx, partial, rows, channels, chunks, CHUNK_ROWS: tl.constexpr, ROWS: tl.constexpr,
                  COLUMNS: tl.constexpr):
    """dx = sum over k of d_rgb[k] w[k], and over a chunk of rows the sums of x d_rgb[k]."""
    n, chunk = tl.program_id(2), tl.program_id(0)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    base, planes = n.to(tl.int64) * rows * channels, d_rgb + n.to(tl.int64) * 3 * rows
    red = tl.load(weight + n * 3 * channels + c, mask=c < channels, other=0.0)
    green = tl.load(weight + (n * 3 + 1) * channels + c, mask=c < channels, other=0.0)
    blue = tl.load(weight + (n * 3 + 2) * channels + c, mask=c < channels, other=0.0)
    d_red = tl.zeros((ROWS, COLUMNS), tl.float32)
    d_green = tl.zeros((ROWS, COLUMNS), tl.float32)
    d_blue = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, CHUNK_ROWS, ROWS):
        r = chunk * CHUNK_ROWS + start + tl.arange(0, ROWS)
        inside = (r < rows)[:, None] & (c < channels)[None, :]
        at = base + r[:, None] * channels + c[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        g0 = tl.load(planes + r, mask=r < rows, other=0.0)[:, None]
        g1 = tl.load(planes + rows + r, mask=r < rows, other=0.0)[:, None]
        g2 = tl.load(planes + 2 * rows + r, mask=r < rows, other=0.0)[:, None]
        total = g0 * red[None, :] + g1 * green[None, :] + g2 * blue[None, :]
        tl.store(dx + at, total.to(dx.dtype.element_ty), mask=inside)
        d_red += value * g0
        d_green += value * g1
        d_blue += value * g2
    at = (n * chunks + chunk) * 3 * channels + c
    tl.store(partial + at, tl.sum(d_red, 0), mask=c < channels)
    tl.store(partial + at + channels, tl.sum(d_green, 0), mask=c < channels)
    tl.store(partial + at + 2 * channels, tl.sum(d_blue, 0), mask=c < channels)


# --- their calls ------------------------------------------------------------------------------------------------------
class Finish(NamedTuple):
    """What follows a convolution: y = (lrelu(t coefficient + strength noise + bias) gain + other) scale.

    coefficient, scale (B, C) float32; noise (B or 1, 1, H, W) float32 and strength (); bias (C,); other as t. All but
    the bias may be None for none.
    """
    bias: Tensor
    coefficient: Tensor | None = None
    noise: Tensor | None = None
    strength: Tensor | None = None
    scale: Tensor | None = None
    other: Tensor | None = None
    gain: float = GAIN

    @property
    def noise_stride(self) -> int:
        """Between the noise of two pictures."""
        return 0 if self.noise is None or len(self.noise) == 1 else self.noise[0].numel()


def _map(batch: int, channels: int, size: tuple[int, int], like: Tensor) -> Tensor:
    return torch.empty((batch, channels, *size), dtype=like.dtype, device=like.device,
                       memory_format=torch.channels_last)


def _columns(channels: int, most: int = MOST_COLUMNS) -> int:
    return min(triton.next_power_of_2(channels), most)


def _given(x: Tensor | None, stand_in: Tensor) -> Tensor:
    """A pointer that is never followed where there is nothing."""
    return stand_in if x is None else x


def finish(t: Tensor, f: Finish) -> Tensor:
    """y of a convolution's result t (B, C, H, W), in its type. No derivative."""
    t = last(t)
    batch, channels, height, width = t.shape
    y, columns = torch.empty_like(t), _columns(channels)
    rows = TILE // columns
    grid = (triton.cdiv(height * width, rows), triton.cdiv(channels, columns), batch)
    _finish[grid](t, t if f.other is None else last(f.other), *_pointers(f, t), y, height * width, channels,
                  f.noise_stride, f.gain, COEFFICIENT=f.coefficient is not None, NOISE=f.noise is not None,
                  OTHER=f.other is not None, SCALE=f.scale is not None, ROWS=rows, COLUMNS=columns)
    return y


def _pointers(f: Finish, stand_in: Tensor) -> tuple[Tensor, ...]:
    """coefficient, noise, strength, bias, scale."""
    return (_given(f.coefficient, stand_in), _given(f.noise, stand_in), _given(f.strength, stand_in), f.bias,
            _given(f.scale, stand_in))


def finish_up(t: Tensor, f: Finish) -> Tensor:
    """The same of a transposed convolution's result (B, C, 2 H + 1, 2 W + 1), behind the filter: (B, C, 2 H, 2 W)."""
    t = last(t)
    batch, channels, height, width = t.shape
    y = _map(batch, channels, (height - 1, width - 1), t)
    _filtered(t, None, f, y, 1, 1, 1 / 16, (False, True))
    return y


def activated_blur(t: Tensor, bias: Tensor) -> Tensor:
    """FIR(lrelu(t + bias) gain) with padding 2: (B, C, H + 1, W + 1). No derivative."""
    t = last(t)
    batch, channels, height, width = t.shape
    y = _map(batch, channels, (height + 1, width + 1), t)
    _filtered(t, None, Finish(bias), y, 2, 1, 1 / 64, (True, False))
    return y


def fir_down(x: Tensor) -> Tensor:
    """FIR(x) with padding 1 and stride 2, of even sides: (B, C, H / 2, W / 2). No derivative."""
    return fir(x, 1, 2)


def fir(x: Tensor, padding: int, stride: int, gain: float = 1.0) -> Tensor:
    """FIR(x) gain of a map (B, C, H, W), with stride 1 or 2: (B, C, (H + 2 padding - 4) // stride + 1, ..)."""
    x = last(x)
    batch, channels, *sizes = x.shape
    height, width = ((size + 2 * padding - 4) // stride + 1 for size in sizes)
    y = _map(batch, channels, (height, width), x)
    _filtered(x, None, Finish(x), y, padding, stride, gain / 64, (False, False))
    return y


def fir_up(x: Tensor, padding: int, odd: tuple[int, int], gain: float = 1.0) -> Tensor:
    """The adjoint of `fir` with stride 2: (B, C, 2 H + 2 - 2 padding + odd[0], 2 W + 2 - 2 padding + odd[1])."""
    x = last(x)
    batch, channels, *sizes = x.shape
    height, width = (2 * size + 2 - 2 * padding + more for size, more in zip(sizes, odd, strict=True))
    y, columns = _map(batch, channels, (height, width), x), _columns(channels)
    rows = TILE // columns
    _spread[(triton.cdiv(height * width, rows), triton.cdiv(channels, columns), batch)](
        x, y, *sizes, height, width, channels, padding, gain / 64, ROWS=rows, COLUMNS=columns)
    return y


def activated(x: Tensor, bias: Tensor) -> Tensor:
    """lrelu(x + bias) sqrt 2 of a map (B, C, H, W), in its type; bias (C,)."""
    return finish(x, Finish(bias))


def sloped(dy: Tensor, y: Tensor) -> Tensor:
    """dy times the slope of `activated` where it gave y, in dy's type."""
    dy, y = last(dy), last(y)
    dx = torch.empty_like(dy)
    _slope[(triton.cdiv(dy.numel(), TILE),)](dy, y, dx, dy.numel(), GAIN, BLOCK=TILE)
    return dx


def _filtered(x: Tensor, values: Tensor | None, f: Finish, out: Tensor, padding: int, stride: int, share: float,
              transforms: tuple[bool, bool]) -> None:
    """transforms: whether what goes in is activated, and what comes out is finished."""
    batch, channels, out_height, out_width = out.shape
    columns = _columns(channels)
    pixels = min(TILE // columns, triton.next_power_of_2(out_width))
    grid = (triton.cdiv(out_width, pixels) * triton.cdiv(out_height, STEPS), triton.cdiv(channels, columns), batch)
    active, styled_ = transforms
    _filter[grid](x, _given(values, x), *_pointers(f, x), out, *x.shape[2:], out_height, out_width, channels, padding,
                  share, f.noise_stride, f.gain, ACTIVE=active, GRADIENT=values is not None, STYLED=styled_,
                  NOISE=f.noise is not None, SCALE=f.scale is not None, STRIDE=stride, STEPS=STEPS, PIXELS=pixels,
                  COLUMNS=columns)


class RGB(NamedTuple):
    """An rgb layer: weight (B, 3, C) and bias (3,), float32; the picture so far (B, 3, H / 2, W / 2) float32 or None;
    whether the sum is the last and so clamped to [-1, 1] (NaN where it is not finite)."""
    weight: Tensor
    bias: Tensor
    skip: Tensor | None = None
    clamp: bool = False


def finish_picture(t: Tensor, f: Finish, layer: RGB) -> tuple[Tensor | None, Tensor]:
    """y of `finish`, scaled for the next layer, or None without a scale; and the picture (B, 3, H, W) float32 that its
    rgb layer makes. No derivative."""
    return _rgb(last(t), f, layer, True)


def _rgb(t: Tensor, f: Finish, layer: RGB, is_styled: bool) -> tuple[Tensor | None, Tensor]:
    batch, channels, height, width = t.shape
    y = None if f.scale is None else torch.empty_like(t)
    rgb = torch.empty((batch, 3, height, width), dtype=torch.float32, device=t.device)
    columns = triton.next_power_of_2(channels)
    rows = max(2 * TILE // columns, 1)
    _picture[(triton.cdiv(height * width, rows), batch)](
        t, *_pointers(f, t), _given(y, t), layer.weight, layer.bias, _given(layer.skip, rgb), rgb, height, width,
        channels, f.noise_stride, f.gain, STYLED=is_styled, NOISE=f.noise is not None, STORE=y is not None,
        SKIP=layer.skip is not None, CLAMP=layer.clamp, ROWS=rows, COLUMNS=columns)
    return y, rgb


# --- operators with derivatives ---------------------------------------------------------------------------------------
class _Chunks:
    """How the rows of a map are cut for sums."""

    def __init__(self, x: Tensor) -> None:
        self.batch, self.channels, height, width = x.shape
        self.rows, self.columns = height * width, _columns(self.channels)
        self.tile_rows = TILE // self.columns
        self.blocks = triton.cdiv(self.channels, self.columns)
        wanted = min(triton.cdiv(PROGRAMS, self.batch * self.blocks), MOST_CHUNKS)
        self.chunk_rows = self.tile_rows * triton.cdiv(triton.cdiv(self.rows, wanted), self.tile_rows)
        self.chunks = triton.cdiv(self.rows, self.chunk_rows)

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.chunks, self.blocks, self.batch

    @property
    def sizes(self) -> dict[str, int]:
        return {"CHUNK_ROWS": self.chunk_rows, "ROWS": self.tile_rows, "COLUMNS": self.columns}


@torch.library.custom_op("atelier::styled", mutates_args=())
def _styled_op(t: Tensor, coefficient: Tensor, noise: Tensor | None, strength: Tensor, bias: Tensor,
               up: bool) -> Tensor:
    f = Finish(bias, coefficient, noise, strength)
    return finish_up(t, f) if up else finish(t, f)


@torch.library.custom_op("atelier::styled_backward", mutates_args=())
def _styled_backward_op(dy: Tensor, y: Tensor, coefficient: Tensor, noise: Tensor | None,
                        up: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dt, and the sums (B, C) over the pixels of du, du u and du noise."""
    batch, channels, height, width = y.shape
    chunks = _Chunks(y)
    dt = _map(batch, channels, (height + up, width + up), y)
    sums = [torch.empty(batch, chunks.chunks, channels, dtype=torch.float32, device=y.device) for _ in range(3)]
    f = Finish(coefficient, noise=noise, scale=coefficient)
    _styled_sums[chunks.grid](dy, y, _given(noise, y), coefficient, dt, *sums, chunks.rows, channels, chunks.chunks,
                              f.noise_stride, f.gain, NOISE=noise is not None, STORE=not up, **chunks.sizes)
    if up:
        _filtered(dy, y, f._replace(noise=None), dt, 2, 1, 1 / 16, (False, False))
    plain, by_value, by_noise = (part.sum(1) for part in sums)
    return dt, plain, by_value, by_noise


@_styled_op.register_fake
def _(t: Tensor, coefficient: Tensor, noise: Tensor | None, strength: Tensor, bias: Tensor, up: bool) -> Tensor:
    batch, channels, height, width = t.shape
    return _map(batch, channels, (height - up, width - up), t)


@_styled_backward_op.register_fake
def _(dy: Tensor, y: Tensor, coefficient: Tensor, noise: Tensor | None,
      up: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, channels, height, width = y.shape
    return (_map(batch, channels, (height + up, width + up), y), torch.empty_like(coefficient),
            torch.empty_like(coefficient), torch.empty_like(coefficient))


def _save_styled(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, coefficient, noise, strength, bias, ctx.up = inputs
    ctx.save_for_backward(output, coefficient, noise, strength, bias)


def _styled_derivative(ctx: Any, dy: Tensor) -> tuple:
    """u = FIR(t) d + strength noise + bias, so what d stands for follows from u: t is not kept."""
    y, coefficient, noise, strength, bias = ctx.saved_tensors
    dt, plain, by_value, by_noise = _styled_backward_op(last(dy), y, coefficient, noise, ctx.up)
    d_coefficient = (by_value - strength * by_noise - bias * plain) / coefficient
    return dt, d_coefficient, None, by_noise.sum().to(strength.dtype), plain.sum(0).to(bias.dtype), None


_styled_op.register_autograd(_styled_derivative, setup_context=_save_styled)


@torch.library.custom_op("atelier::to_rgb", mutates_args=())
def _rgb_op(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _rgb(last(x), Finish(bias), RGB(weight, bias), False)[1]


@torch.library.custom_op("atelier::to_rgb_backward", mutates_args=())
def _rgb_backward_op(d_rgb: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """dx, and the weight's derivative (B, 3, C)."""
    chunks, dx = _Chunks(x), torch.empty_like(x)
    partial = torch.empty(len(x), chunks.chunks, 3, chunks.channels, dtype=torch.float32, device=x.device)
    _rgb_backward[chunks.grid](d_rgb, x, weight, dx, partial, chunks.rows, chunks.channels, chunks.chunks,
                               **chunks.sizes)
    return dx, partial.sum(1)


@_rgb_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((len(x), 3, *x.shape[2:]), dtype=torch.float32)


@_rgb_backward_op.register_fake
def _(d_rgb: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _save_rgb(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _rgb_derivative(ctx: Any, d_rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    d_rgb = d_rgb.contiguous()
    return *_rgb_backward_op(d_rgb, x, weight), d_rgb.sum((0, 2, 3))


_rgb_op.register_autograd(_rgb_derivative, setup_context=_save_rgb)


def styled(t: Tensor, coefficient: Tensor, noise: tuple[Tensor, Tensor] | None, bias: Tensor, up: bool) -> Tensor:
    """lrelu(FIR(t) coefficient + strength noise + bias) gain of a convolution's result t, in its type; the filter, and
    two sides that are one shorter, where `up`. noise: (strength (), noise (B or 1, 1, H, W))."""
    strength, drawn = (bias.new_zeros(()), None) if noise is None else noise
    drawn = None if drawn is None else drawn.float().contiguous()
    return _styled_op(last(t), coefficient.float().contiguous(), drawn, strength, bias, up)


def to_rgb(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A map x (B, C, H, W) through weights (B, 3, C) and bias (3,): (B, 3, H, W) float32."""
    return _rgb_op(last(x), weight.float().contiguous(), bias.float())
