"""GroupNorm with its affine maps, SiLU and dropout in one statistics pass and one pass that applies them.

Maps are (B, C, H, W) in channels_last, so that rows (pixels) of C channels follow each other. Statistics are float32
and merged by Chan's formula: per chunk of rows and channel a mean and a sum of squared deviations, then per group.
With x' = x + conv_bias and n = (x' - mean) rstd, it is y = dropout(silu(n gamma + beta)), gamma = weight scale and
beta = bias scale + shift. x may be two maps whose channels lie side by side (`split` of the first), as a UNet's skips
do: they are never copied together.
"""
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import Launched
from .pointwise import last

TILE = 4096  # numbers a program works on at a time
WHOLE = 16384  # most numbers of a (picture, group) that one program holds at once
PROGRAMS = 1024  # wanted, at least, of a statistics pass
MOST_CHUNKS = 128
MOST_COLUMNS = 128


def power(n: int) -> int:
    return triton.next_power_of_2(n)


# --- kernels ----------------------------------------------------------------------------------------------------------
@triton.jit
def _load(x, other, n, r, c, rows, channels, split, inside, PAIR: tl.constexpr):
    """Tile (rows r, channels c) of picture n in float32."""
    if PAIR:
        rest = channels - split
        left = x + n.to(tl.int64) * rows * split + r[:, None] * split + c[None, :]
        right = other + n.to(tl.int64) * rows * rest + r[:, None] * rest + (c - split)[None, :]
        v = tl.load(left, mask=inside & (c < split)[None, :], other=0.0).to(tl.float32)
        v += tl.load(right, mask=inside & (c >= split)[None, :], other=0.0).to(tl.float32)
    else:
        at = n.to(tl.int64) * rows * channels + r[:, None] * channels + c[None, :]
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    return v


@triton.jit
def _store(x, other, value, n, r, c, rows, channels, split, inside, PAIR: tl.constexpr):
    if PAIR:
        rest = channels - split
        left = x + n.to(tl.int64) * rows * split + r[:, None] * split + c[None, :]
        right = other + n.to(tl.int64) * rows * rest + r[:, None] * rest + (c - split)[None, :]
        tl.store(left, value.to(x.dtype.element_ty), mask=inside & (c < split)[None, :])
        tl.store(right, value.to(x.dtype.element_ty), mask=inside & (c >= split)[None, :])
    else:
        at = n.to(tl.int64) * rows * channels + r[:, None] * channels + c[None, :]
        tl.store(x + at, value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _kept(seed, offset, p):
    """1 / (1 - p) where an element is kept, 0 where it is dropped: a hash of (seed, element)."""
    h = offset.to(tl.uint32) ^ tl.load(seed).to(tl.uint32)
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    h = h ^ (h >> 16)
    return tl.where((h >> 8).to(tl.float32) * (1.0 / 16777216.0) >= p, 1.0 / (1.0 - p), 0.0)


@Launched
@triton.jit(do_not_specialize=["chunks"])
def _moments(x, other, means, squares, rows, channels, split, chunks, CHUNK_ROWS: tl.constexpr, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr, PAIR: tl.constexpr):
    """Mean and sum of squared deviations of each channel of a chunk of rows. Sums are taken of the difference to the
    chunk's first row, which is near enough to the mean that nothing cancels."""
    n, chunk, block = tl.program_id(2), tl.program_id(0), tl.program_id(1)
    c = block * COLUMNS + tl.arange(0, COLUMNS)
    first = chunk * CHUNK_ROWS
    origin = _load(x, other, n, first + tl.arange(0, 1), c, rows, channels, split, (c < channels)[None, :], PAIR)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    square = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, CHUNK_ROWS, ROWS):
        r = first + start + tl.arange(0, ROWS)
        inside = (r < rows)[:, None] & (c < channels)[None, :]
        v = _load(x, other, n, r, c, rows, channels, split, inside, PAIR)
        v = tl.where(inside, v - origin, 0.0)
        total += v
        square += v * v
    count = tl.minimum(rows - first, CHUNK_ROWS).to(tl.float32)
    mean = tl.sum(total, 0) / count
    at = (n * chunks + chunk) * channels + c
    tl.store(means + at, tl.sum(origin, 0) + mean, mask=c < channels)
    tl.store(squares + at, tl.maximum(tl.sum(square, 0) - count * mean * mean, 0.0), mask=c < channels)


@triton.jit
def _group_affine(n, g, c, valid, mean, rstd, centre, weight, bias, scale, shift, conv_bias, a, b, group_mean,
                  group_rstd, centres, channels, groups, scale_stride, shift_stride, HAS_AFFINE: tl.constexpr,
                  HAS_BIAS: tl.constexpr):
    """y = silu(x A + B): stores A, B and the statistics; returns A and B."""
    gamma = tl.load(weight + c, mask=valid, other=0.0).to(tl.float32)
    beta = tl.load(bias + c, mask=valid, other=0.0).to(tl.float32)
    if HAS_AFFINE:
        s = tl.load(scale + n * scale_stride + c, mask=valid, other=0.0).to(tl.float32)
        gamma, beta = gamma * s, beta * s + tl.load(shift + n * shift_stride + c, mask=valid, other=0.0).to(tl.float32)
    gamma = gamma * rstd
    beta = beta - mean * gamma
    if HAS_BIAS:
        beta += gamma * tl.load(conv_bias + c, mask=valid, other=0.0).to(tl.float32)
    tl.store(a + n * channels + c, gamma, mask=valid)
    tl.store(b + n * channels + c, beta, mask=valid)
    tl.store(centres + n * channels + c, (centre - mean) * rstd, mask=valid)
    tl.store(group_mean + n * groups + g, mean)
    tl.store(group_rstd + n * groups + g, rstd)
    return gamma, beta


@Launched
@triton.jit(do_not_specialize=["chunk_rows", "chunks", "scale_stride", "shift_stride"])
def _affine(means, squares, weight, bias, scale, shift, conv_bias, a, b, group_mean, group_rstd, centres, rows,
            channels, groups, chunk_rows, chunks, scale_stride, shift_stride, eps, HAS_AFFINE: tl.constexpr,
            HAS_BIAS: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
    """Statistics of a (picture, group) from those of its chunks, and what they make of each channel."""
    n, g = tl.program_id(0), tl.program_id(1)
    width = channels // groups
    c, k = g * width + tl.arange(0, WIDTH), tl.arange(0, CHUNKS)
    valid = tl.arange(0, WIDTH) < width
    counts = tl.maximum(tl.minimum(rows - k * chunk_rows, chunk_rows), 0).to(tl.float32)[:, None]
    inside = (k < chunks)[:, None] & valid[None, :]
    at = (n * chunks + k)[:, None] * channels + c[None, :]
    mean = tl.load(means + at, mask=inside, other=0.0)
    square = tl.load(squares + at, mask=inside, other=0.0)
    if HAS_BIAS:
        mean += tl.load(conv_bias + c, mask=valid, other=0.0).to(tl.float32)[None, :]
    weights = tl.where(inside, counts, 0.0)
    size = rows * width * 1.0
    centre = tl.sum(mean * weights, 0) / rows
    total = tl.sum(tl.where(valid, centre, 0.0), 0) / width
    deviation = mean - total
    variance = (tl.sum(tl.sum(square, 0), 0) + tl.sum(tl.sum(weights * deviation * deviation, 0), 0)) / size
    _group_affine(n, g, c, valid, total, tl.rsqrt(variance + eps), centre, weight, bias, scale, shift, conv_bias, a, b,
                  group_mean, group_rstd, centres, channels, groups, scale_stride, shift_stride, HAS_AFFINE, HAS_BIAS)


@Launched
@triton.jit
def _apply(x, other, y, a, b, seed, p, rows, channels, split, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
           PAIR: tl.constexpr, SILU: tl.constexpr, DROPOUT: tl.constexpr):
    n = tl.program_id(2)
    r, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < channels)[None, :]
    gamma = tl.load(a + n * channels + c, mask=c < channels, other=0.0)
    beta = tl.load(b + n * channels + c, mask=c < channels, other=0.0)
    u = _load(x, other, n, r, c, rows, channels, split, inside, PAIR) * gamma[None, :] + beta[None, :]
    _finish(y, u, n, r, c, rows, channels, inside, seed, p, SILU, DROPOUT)


@triton.jit
def _finish(y, u, n, r, c, rows, channels, inside, seed, p, SILU: tl.constexpr, DROPOUT: tl.constexpr):
    at = n.to(tl.int64) * rows * channels + r[:, None] * channels + c[None, :]
    if SILU:
        u = u * tl.sigmoid(u)
    if DROPOUT:
        u *= _kept(seed, at, p)
    tl.store(y + at, u.to(y.dtype.element_ty), mask=inside)


@Launched
@triton.jit(do_not_specialize=["scale_stride", "shift_stride"])
def _whole(x, other, y, weight, bias, scale, shift, conv_bias, a, b, group_mean, group_rstd, centres, seed, p, rows,
           channels, split, groups, scale_stride, shift_stride, eps, HAS_AFFINE: tl.constexpr, HAS_BIAS: tl.constexpr,
           PAIR: tl.constexpr, SILU: tl.constexpr, DROPOUT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """All of it for a (picture, group) that one program can hold."""
    n, g = tl.program_id(0), tl.program_id(1)
    width = channels // groups
    r, c = tl.arange(0, ROWS), g * width + tl.arange(0, WIDTH)
    valid = tl.arange(0, WIDTH) < width
    inside = (r < rows)[:, None] & valid[None, :]
    v = _load(x, other, n, r, c, rows, channels, split, inside, PAIR)
    extra = tl.zeros((WIDTH,), tl.float32)
    if HAS_BIAS:
        extra += tl.load(conv_bias + c, mask=valid, other=0.0).to(tl.float32)
    centre = tl.sum(v, 0) / rows + extra
    mean = tl.sum(tl.where(valid, centre, 0.0), 0) / width
    deviation = tl.where(inside, v + extra[None, :] - mean, 0.0)
    variance = tl.sum(tl.sum(deviation * deviation, 0), 0) / (rows * width * 1.0)
    gamma, beta = _group_affine(n, g, c, valid, mean, tl.rsqrt(variance + eps), centre, weight, bias, scale, shift,
                                conv_bias, a, b, group_mean, group_rstd, centres, channels, groups, scale_stride,
                                shift_stride, HAS_AFFINE, HAS_BIAS)
    _finish(y, v * gamma[None, :] + beta[None, :], n, r, c, rows, channels, inside, seed, p, SILU, DROPOUT)


@triton.jit
def _before(dy, x, other, n, r, c, rows, channels, split, inside, gamma, beta, seed, p, PAIR: tl.constexpr,
            SILU: tl.constexpr, DROPOUT: tl.constexpr):
    """(x, gradient before SiLU and dropout) in float32."""
    v = _load(x, other, n, r, c, rows, channels, split, inside, PAIR)
    at = n.to(tl.int64) * rows * channels + r[:, None] * channels + c[None, :]
    du = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    if DROPOUT:
        du *= _kept(seed, at, p)
    if SILU:
        u = v * gamma + beta
        s = tl.sigmoid(u)
        du *= s * (1 + u * (1 - s))
    return v, du


@Launched
@triton.jit(do_not_specialize=["chunks"])
def _backward_sums(dy, x, other, a, b, conv_bias, group_mean, group_rstd, seed, p, first_sums, second_sums, rows,
                   channels, split, groups, chunks, CHUNK_ROWS: tl.constexpr, ROWS: tl.constexpr,
                   COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, PAIR: tl.constexpr, SILU: tl.constexpr,
                   DROPOUT: tl.constexpr):
    """Sums of du and du n of each channel of a chunk of rows."""
    n, chunk, block = tl.program_id(2), tl.program_id(0), tl.program_id(1)
    c = block * COLUMNS + tl.arange(0, COLUMNS)
    valid = c < channels
    g = c // (channels // groups)
    gamma = tl.load(a + n * channels + c, mask=valid, other=0.0)[None, :]
    beta = tl.load(b + n * channels + c, mask=valid, other=0.0)[None, :]
    mean = tl.load(group_mean + n * groups + g, mask=valid, other=0.0)
    rstd = tl.load(group_rstd + n * groups + g, mask=valid, other=0.0)
    if HAS_BIAS:
        mean -= tl.load(conv_bias + c, mask=valid, other=0.0).to(tl.float32)
    first = tl.zeros((ROWS, COLUMNS), tl.float32)
    second = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, CHUNK_ROWS, ROWS):
        r = chunk * CHUNK_ROWS + start + tl.arange(0, ROWS)
        inside = (r < rows)[:, None] & valid[None, :]
        v, du = _before(dy, x, other, n, r, c, rows, channels, split, inside, gamma, beta, seed, p, PAIR, SILU, DROPOUT)
        first += du
        second += du * (v - mean[None, :])
    at = (n * chunks + chunk) * channels + c
    tl.store(first_sums + at, tl.sum(first, 0), mask=valid)
    tl.store(second_sums + at, tl.sum(second, 0) * rstd, mask=valid)


@triton.jit
def _backward_group(n, g, c, valid, first, second, centres, d_beta, d_gamma, d_conv_bias, k_mean, k_slope, rows,
                    channels, groups, gamma):
    """Stores the sums and the gradient of the convolution's bias; returns what dx needs: dx = A du - k_mean - k_slope n
    (gamma is A = rstd weight scale)."""
    size = rows * (channels // groups) * 1.0
    mean = tl.sum(tl.where(valid, gamma * first, 0.0), 0) / size
    slope = tl.sum(tl.where(valid, gamma * second, 0.0), 0) / size
    centre = tl.load(centres + n * channels + c, mask=valid, other=0.0)
    tl.store(d_beta + n * channels + c, first, mask=valid)
    tl.store(d_gamma + n * channels + c, second, mask=valid)
    tl.store(d_conv_bias + n * channels + c, gamma * first - rows * (mean + slope * centre), mask=valid)
    tl.store(k_mean + n * groups + g, mean)
    tl.store(k_slope + n * groups + g, slope)
    return mean, slope


@Launched
@triton.jit(do_not_specialize=["chunks"])
def _backward_coefficients(first_sums, second_sums, a, centres, d_beta, d_gamma, d_conv_bias, k_mean, k_slope, rows,
                           channels, groups, chunks, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
    n, g = tl.program_id(0), tl.program_id(1)
    width = channels // groups
    c, k = g * width + tl.arange(0, WIDTH), tl.arange(0, CHUNKS)
    valid = tl.arange(0, WIDTH) < width
    inside = (k < chunks)[:, None] & valid[None, :]
    at = (n * chunks + k)[:, None] * channels + c[None, :]
    first = tl.sum(tl.load(first_sums + at, mask=inside, other=0.0), 0)
    second = tl.sum(tl.load(second_sums + at, mask=inside, other=0.0), 0)
    gamma = tl.load(a + n * channels + c, mask=valid, other=0.0)
    _backward_group(n, g, c, valid, first, second, centres, d_beta, d_gamma, d_conv_bias, k_mean, k_slope, rows,
                    channels, groups, gamma)


@Launched
@triton.jit
def _backward_apply(dy, x, other, dx, d_other, more, more_other, a, b, conv_bias, group_mean, group_rstd, k_mean,
                    k_slope, seed, p, rows, channels, split, groups, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                    HAS_BIAS: tl.constexpr, MORE: tl.constexpr, PAIR: tl.constexpr, SILU: tl.constexpr,
                    DROPOUT: tl.constexpr):
    """dx; `more` is the gradient that x has from elsewhere."""
    n = tl.program_id(2)
    r, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = c < channels
    g = n * groups + c // (channels // groups)
    inside = (r < rows)[:, None] & valid[None, :]
    gamma = tl.load(a + n * channels + c, mask=valid, other=0.0)[None, :]
    beta = tl.load(b + n * channels + c, mask=valid, other=0.0)[None, :]
    mean = tl.load(group_mean + g, mask=valid, other=0.0)
    if HAS_BIAS:
        mean -= tl.load(conv_bias + c, mask=valid, other=0.0).to(tl.float32)
    slope = tl.load(k_slope + g, mask=valid, other=0.0) * tl.load(group_rstd + g, mask=valid, other=0.0)
    constant = tl.load(k_mean + g, mask=valid, other=0.0) - slope * mean
    v, du = _before(dy, x, other, n, r, c, rows, channels, split, inside, gamma, beta, seed, p, PAIR, SILU, DROPOUT)
    du = gamma * du - constant[None, :] - slope[None, :] * v
    if MORE:
        du += _load(more, more_other, n, r, c, rows, channels, split, inside, PAIR)
    _store(dx, d_other, du, n, r, c, rows, channels, split, inside, PAIR)


@Launched
@triton.jit
def _backward_whole(dy, x, other, dx, d_other, more, more_other, a, b, conv_bias, group_mean, group_rstd, centres,
                    d_beta, d_gamma, d_conv_bias, k_mean, k_slope, seed, p, rows, channels, split, groups,
                    HAS_BIAS: tl.constexpr, MORE: tl.constexpr, PAIR: tl.constexpr, SILU: tl.constexpr,
                    DROPOUT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    n, g = tl.program_id(0), tl.program_id(1)
    width = channels // groups
    r, c = tl.arange(0, ROWS), g * width + tl.arange(0, WIDTH)
    valid = tl.arange(0, WIDTH) < width
    inside = (r < rows)[:, None] & valid[None, :]
    gamma = tl.load(a + n * channels + c, mask=valid, other=0.0)
    beta = tl.load(b + n * channels + c, mask=valid, other=0.0)
    mean = tl.load(group_mean + n * groups + g) + tl.zeros((WIDTH,), tl.float32)
    if HAS_BIAS:
        mean -= tl.load(conv_bias + c, mask=valid, other=0.0).to(tl.float32)
    v, du = _before(dy, x, other, n, r, c, rows, channels, split, inside, gamma[None, :], beta[None, :], seed, p, PAIR,
                    SILU, DROPOUT)
    normed = (v - mean[None, :]) * tl.load(group_rstd + n * groups + g)
    first, second = tl.sum(tl.where(inside, du, 0.0), 0), tl.sum(tl.where(inside, du * normed, 0.0), 0)
    k_first, k_second = _backward_group(n, g, c, valid, first, second, centres, d_beta, d_gamma, d_conv_bias, k_mean,
                                        k_slope, rows, channels, groups, gamma)
    du = gamma[None, :] * du - k_first - k_second * normed
    if MORE:
        du += _load(more, more_other, n, r, c, rows, channels, split, inside, PAIR)
    _store(dx, d_other, du, n, r, c, rows, channels, split, inside, PAIR)


# --- operators --------------------------------------------------------------------------------------------------------
class Tiling:
    """How maps (B, C, H, W), side by side, are cut: into chunks of rows for the sums, and into tiles."""

    def __init__(self, x: Tensor, other: Tensor | None, groups: int) -> None:
        self.batch, self.split, height, width = x.shape
        self.channels = self.split + (other.shape[1] if other is not None else 0)
        self.rows, self.groups = height * width, groups
        self.columns = min(power(self.channels), MOST_COLUMNS)
        self.tile_rows = TILE // self.columns
        self.blocks = triton.cdiv(self.channels, self.columns)
        wanted = min(triton.cdiv(PROGRAMS, self.batch * self.blocks), MOST_CHUNKS)
        # a power of 2, as is every constant: each other value would be another kernel to compile
        self.chunk_rows = max(power(triton.cdiv(self.rows, wanted)), self.tile_rows)
        self.chunks = triton.cdiv(self.rows, self.chunk_rows)
        self.width = max(power(self.channels // groups), 2)

    @property
    def whole_rows(self) -> int:
        return max(power(self.rows), 2)

    @property
    def is_whole(self) -> bool:
        """One program can hold a (picture, group)."""
        return self.whole_rows * self.width <= WHOLE

    @property
    def sums_grid(self) -> tuple[int, int, int]:
        return self.chunks, self.blocks, self.batch

    @property
    def tiles_grid(self) -> tuple[int, int, int]:
        return triton.cdiv(self.rows, self.tile_rows), self.blocks, self.batch

    @property
    def warps(self) -> int:
        return max(1, min(8, self.whole_rows * self.width // 1024))

    def partial(self, x: Tensor) -> Tensor:
        return torch.empty(self.batch, self.chunks, self.channels, dtype=torch.float32, device=x.device)

    def map(self, x: Tensor) -> Tensor:
        """An empty map of all channels."""
        return torch.empty((self.batch, self.channels, *x.shape[2:]), dtype=x.dtype, device=x.device,
                           memory_format=torch.channels_last)


Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("atelier::group_norm", mutates_args=())
def _forward(x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
             conv_bias: Tensor | None, seed: Tensor | None, groups: int, eps: float, silu: bool, p: float) -> Six:
    """(y, A, B, mean, rstd, centres); the last five float32, for the derivative."""
    t = Tiling(x, other, groups)
    y = t.map(x)
    a, b, centres = (torch.empty(t.batch, t.channels, dtype=torch.float32, device=x.device) for _ in range(3))
    mean, rstd = (torch.empty(t.batch, groups, dtype=torch.float32, device=x.device) for _ in range(2))
    affine = scale is not None and shift is not None
    strides = (scale.stride(0), shift.stride(0)) if affine else (0, 0)
    small = (weight, bias, scale if affine else weight, shift if affine else weight,
             weight if conv_bias is None else conv_bias, a, b, mean, rstd, centres)
    flags = {"HAS_AFFINE": affine, "HAS_BIAS": conv_bias is not None}
    draws = {"PAIR": other is not None, "SILU": silu, "DROPOUT": p > 0}
    seed, other = mean if seed is None else seed, x if other is None else other
    if t.is_whole:
        _whole[(t.batch, groups)](x, other, y, *small, seed, p, t.rows, t.channels, t.split, groups, *strides, eps,
                                  **flags, **draws, ROWS=t.whole_rows, WIDTH=t.width, num_warps=t.warps)
        return y, a, b, mean, rstd, centres
    means, squares = t.partial(x), t.partial(x)
    _moments[t.sums_grid](x, other, means, squares, t.rows, t.channels, t.split, t.chunks, CHUNK_ROWS=t.chunk_rows,
                          ROWS=t.tile_rows, COLUMNS=t.columns, PAIR=draws["PAIR"])
    _affine[(t.batch, groups)](means, squares, *small, t.rows, t.channels, groups, t.chunk_rows, t.chunks, *strides,
                               eps, **flags, CHUNKS=MOST_CHUNKS, WIDTH=t.width)
    _apply[t.tiles_grid](x, other, y, a, b, seed, p, t.rows, t.channels, t.split, ROWS=t.tile_rows, COLUMNS=t.columns,
                         **draws)
    return y, a, b, mean, rstd, centres


@torch.library.custom_op("atelier::group_norm_backward", mutates_args=())
def _backward(dy: Tensor, x: Tensor, other: Tensor | None, more: Tensor | None, more_other: Tensor | None, a: Tensor,
              b: Tensor, conv_bias: Tensor | None, mean: Tensor, rstd: Tensor, centres: Tensor, seed: Tensor | None,
              groups: int, silu: bool, p: float) -> Five:
    """(dx, d other, d beta, d gamma, d conv_bias), the last three (B, C) float32; d other empty without other."""
    t = Tiling(x, other, groups)
    dx, d_other = torch.empty_like(x), x.new_empty(0) if other is None else torch.empty_like(other)
    d_beta, d_gamma, d_conv_bias = (torch.empty_like(a) for _ in range(3))
    k_mean, k_slope = torch.empty_like(mean), torch.empty_like(mean)
    flags = {"HAS_BIAS": conv_bias is not None, "PAIR": other is not None, "SILU": silu, "DROPOUT": p > 0}
    conv_bias, seed = mean if conv_bias is None else conv_bias, mean if seed is None else seed
    other = x if other is None else other
    added = (more if more is not None else x, more_other if more_other is not None else x)
    outputs = (centres, d_beta, d_gamma, d_conv_bias, k_mean, k_slope)
    if t.is_whole:
        _backward_whole[(t.batch, groups)](
            dy, x, other, dx, d_other, *added, a, b, conv_bias, mean, rstd, *outputs, seed, p, t.rows, t.channels,
            t.split, groups, **flags, MORE=more is not None, ROWS=t.whole_rows, WIDTH=t.width, num_warps=t.warps)
        return dx, d_other, d_beta, d_gamma, d_conv_bias
    first, second = t.partial(x), t.partial(x)
    _backward_sums[t.sums_grid](dy, x, other, a, b, conv_bias, mean, rstd, seed, p, first, second, t.rows, t.channels,
                                t.split, groups, t.chunks, CHUNK_ROWS=t.chunk_rows, ROWS=t.tile_rows,
                                COLUMNS=t.columns, **flags)
    _backward_coefficients[(t.batch, groups)](first, second, a, *outputs, t.rows, t.channels, groups, t.chunks,
                                              CHUNKS=MOST_CHUNKS, WIDTH=t.width)
    _backward_apply[t.tiles_grid](dy, x, other, dx, d_other, *added, a, b, conv_bias, mean, rstd, k_mean, k_slope,
                                  seed, p, t.rows, t.channels, t.split, groups, ROWS=t.tile_rows, COLUMNS=t.columns,
                                  MORE=more is not None, **flags)
    return dx, d_other, d_beta, d_gamma, d_conv_bias


@_forward.register_fake
def _(x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
      conv_bias: Tensor | None, seed: Tensor | None, groups: int, eps: float, silu: bool, p: float) -> Six:
    t = Tiling(x, other, groups)
    rows = x.new_empty(t.batch, t.channels, dtype=torch.float32)
    group = x.new_empty(t.batch, groups, dtype=torch.float32)
    return t.map(x), rows, rows.clone(), group, group.clone(), rows.clone()


@_backward.register_fake
def _(dy: Tensor, x: Tensor, other: Tensor | None, more: Tensor | None, more_other: Tensor | None, a: Tensor,
      b: Tensor, conv_bias: Tensor | None, mean: Tensor, rstd: Tensor, centres: Tensor, seed: Tensor | None,
      groups: int, silu: bool, p: float) -> Five:
    d_other = x.new_empty(0) if other is None else torch.empty_like(other)
    return torch.empty_like(x), d_other, torch.empty_like(a), torch.empty_like(a), torch.empty_like(a)


class _GroupNorm(torch.autograd.Function):
    """(y, x, other): x and other are handed on, so that the gradients of what else is made of them are added in the
    same pass over the map. Gradients of gradients are not supported."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor | None, weight: Tensor, bias: Tensor, scale: Tensor | None,
                shift: Tensor | None, conv_bias: Tensor | None, seed: Tensor | None, *how: Any) -> tuple:
        y, *statistics = _forward(x, other, weight, bias, scale, shift, conv_bias, seed, *how)
        ctx.groups, _, ctx.silu, ctx.p = how
        ctx.shift_dtype = None if shift is None else shift.dtype
        ctx.save_for_backward(x, other, weight, bias, scale, conv_bias, seed, *statistics)
        ctx.set_materialize_grads(False)
        return y, x, other

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, more: Tensor | None, more_other: Tensor | None) -> tuple:
        x, other, weight, bias, scale, conv_bias, seed, a, b, mean, rstd, centres = ctx.saved_tensors
        more, more_other = _both(more, more_other, x, other)
        dx, d_other, d_beta, d_gamma, d_conv_bias = _backward(
            last(dy), x, other, more, more_other, a, b, conv_bias, mean, rstd, centres, seed, ctx.groups, ctx.silu,
            ctx.p)
        wanted, s = ctx.needs_input_grad, 1 if scale is None else scale.float()
        return (dx,
                None if other is None else d_other,
                (d_gamma * s).sum(0).to(weight.dtype) if wanted[2] else None,
                (d_beta * s).sum(0).to(bias.dtype) if wanted[3] else None,
                (d_gamma * weight + d_beta * bias).to(scale.dtype) if wanted[4] else None,
                d_beta.to(ctx.shift_dtype) if wanted[5] else None,
                d_conv_bias.sum(0).to(conv_bias.dtype) if wanted[6] else None, *[None] * 5)


def _both(more: Tensor | None, more_other: Tensor | None, x: Tensor,
          other: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Gradients from elsewhere: of both maps or of none."""
    if more is None and more_other is None:
        return None, None
    more = torch.zeros_like(x) if more is None else last(more)
    if other is None:
        return more, None
    return more, torch.zeros_like(other) if more_other is None else last(more_other)


def group_norm(x: Tensor, norm: torch.nn.GroupNorm, affine: tuple[Tensor, Tensor] | None = None,
               conv_bias: Tensor | None = None, silu: bool = False, p: float = 0.0, other: Tensor | None = None,
               ) -> tuple[Tensor, Tensor, Tensor | None]:
    """(dropout_p(silu(GN(x + conv_bias) A + B)), x, other) of a map x (B, C, H, W), in x's type and channels_last.

    affine: (A, B), each (B or 1, C). other: a map whose channels follow x's. x and other are to be used further on as
    they are returned, see `_GroupNorm`.
    """
    scale, shift = (None, None) if affine is None else (_rows(part, len(x)) for part in affine)
    seed = torch.randint(2 ** 32, (1,), device=x.device) if p else None
    return _GroupNorm.apply(last(x), None if other is None else last(other), norm.weight, norm.bias, scale, shift,
                             conv_bias, seed, norm.num_groups, norm.eps, silu, p)


def _rows(part: Tensor, batch: int) -> Tensor:
    """Channels next to each other, one row a picture."""
    return (part if part.stride(1) == 1 else part.contiguous()).expand(batch, -1)
