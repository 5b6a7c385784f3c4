"""GroupNorm with its affine maps, SiLU and dropout in one statistics pass and one pass that applies them.

Maps are (B, C, H, W) in channels_last, so that rows (pixels) of C channels follow each other. Statistics are float32
and merged by Chan's formula: per chunk of rows and channel a mean and a sum of squared deviations, then per group.
With x' = x + conv_bias and n = (x' - mean) rstd, it is y = dropout(silu(n gamma + beta)), gamma = weight scale and
beta = bias scale + shift.
"""
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096  # numbers a program works on at a time
WHOLE = 16384  # most numbers of a (picture, group) that one program holds at once
PROGRAMS = 1024  # wanted, at least, of a statistics pass
MOST_CHUNKS = 128
MOST_COLUMNS = 128


def power(n: int) -> int:
    return triton.next_power_of_2(n)


# --- kernels ----------------------------------------------------------------------------------------------------------
@triton.jit
def _silu(u):
    return u * tl.sigmoid(u)


@triton.jit
def _kept(seed, offset, p):
    """1 / (1 - p) where an element is kept, 0 where it is dropped: a hash of (seed, element)."""
    h = offset.to(tl.uint32) ^ tl.load(seed).to(tl.uint32)
    h = (h ^ (h >> 16)) * 0x7FEB352D
    h = (h ^ (h >> 15)) * 0x846CA68B
    h = h ^ (h >> 16)
    return tl.where((h >> 8).to(tl.float32) * (1.0 / 16777216.0) >= p, 1.0 / (1.0 - p), 0.0)


@triton.jit
def _moments(x, means, squares, rows, channels, chunks, CHUNK_ROWS: tl.constexpr, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr):
    """Mean and sum of squared deviations of each channel of a chunk of rows."""
    n, chunk, block = tl.program_id(2), tl.program_id(0), tl.program_id(1)
    c = block * COLUMNS + tl.arange(0, COLUMNS)
    base = x + n.to(tl.int64) * rows * channels
    mean = tl.zeros((COLUMNS,), tl.float32)
    square = tl.zeros((COLUMNS,), tl.float32)
    count = 0.0  # the first tile of a chunk is never empty
    for start in range(0, CHUNK_ROWS, ROWS):
        first = chunk * CHUNK_ROWS + start
        r = first + tl.arange(0, ROWS)
        inside = (r < rows)[:, None] & (c < channels)[None, :]
        v = tl.load(base + r[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        k = tl.maximum(tl.minimum(rows - first, ROWS), 0).to(tl.float32)
        tile_mean = tl.sum(v, 0) / tl.maximum(k, 1.0)
        deviation = tl.where(inside, v - tile_mean[None, :], 0.0)
        delta = tile_mean - mean
        mean += delta * (k / (count + k))
        square += tl.sum(deviation * deviation, 0) + delta * delta * (count * k / (count + k))
        count += k
    at = (n * chunks + chunk) * channels + c
    tl.store(means + at, mean, mask=c < channels)
    tl.store(squares + at, square, mask=c < channels)


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


@triton.jit
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


@triton.jit
def _apply(x, y, a, b, seed, p, rows, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SILU: tl.constexpr,
           DROPOUT: tl.constexpr):
    n = tl.program_id(2)
    r, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (r < rows)[:, None] & (c < channels)[None, :]
    at = n.to(tl.int64) * rows * channels + r[:, None] * channels + c[None, :]
    gamma = tl.load(a + n * channels + c, mask=c < channels, other=0.0)
    beta = tl.load(b + n * channels + c, mask=c < channels, other=0.0)
    u = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * gamma[None, :] + beta[None, :]
    if SILU:
        u = _silu(u)
    if DROPOUT:
        u *= _kept(seed, at, p)
    tl.store(y + at, u.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _whole(x, y, weight, bias, scale, shift, conv_bias, a, b, group_mean, group_rstd, centres, seed, p, rows, channels,
           groups, scale_stride, shift_stride, eps, HAS_AFFINE: tl.constexpr, HAS_BIAS: tl.constexpr,
           SILU: tl.constexpr, DROPOUT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """All of it for a (picture, group) that one program can hold."""
    n, g = tl.program_id(0), tl.program_id(1)
    width = channels // groups
    r, c = tl.arange(0, ROWS), g * width + tl.arange(0, WIDTH)
    valid = tl.arange(0, WIDTH) < width
    inside = (r < rows)[:, None] & valid[None, :]
    at = n.to(tl.int64) * rows * channels + r[:, None] * channels + c[None, :]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    extra = tl.zeros((WIDTH,), tl.float32)
    if HAS_BIAS:
        extra += tl.load(conv_bias + c, mask=valid, other=0.0).to(tl.float32)
    size = rows * width * 1.0
    centre = tl.sum(v, 0) / rows + extra
    mean = tl.sum(tl.where(valid, centre, 0.0), 0) / width
    deviation = tl.where(inside, v + extra[None, :] - mean, 0.0)
    variance = tl.sum(tl.sum(deviation * deviation, 0), 0) / size
    gamma, beta = _group_affine(n, g, c, valid, mean, tl.rsqrt(variance + eps), centre, weight, bias, scale, shift,
                                conv_bias, a, b, group_mean, group_rstd, centres, channels, groups, scale_stride,
                                shift_stride, HAS_AFFINE, HAS_BIAS)
    u = v * gamma[None, :] + beta[None, :]
    if SILU:
        u = _silu(u)
    if DROPOUT:
        u *= _kept(seed, at, p)
    tl.store(y + at, u.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _before(dy, x, at, inside, gamma, beta, seed, p, SILU: tl.constexpr, DROPOUT: tl.constexpr):
    """(x, gradient before SiLU and dropout) in float32."""
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    du = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    if DROPOUT:
        du *= _kept(seed, at, p)
    if SILU:
        u = v * gamma + beta
        s = tl.sigmoid(u)
        du *= s * (1 + u * (1 - s))
    return v, du


@triton.jit
def _backward_sums(dy, x, a, b, conv_bias, group_mean, group_rstd, seed, p, first_sums, second_sums, rows, channels,
                   groups, chunks, CHUNK_ROWS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                   HAS_BIAS: tl.constexpr, SILU: tl.constexpr, DROPOUT: tl.constexpr):
    """Sums of du and du n of each channel of a chunk of rows."""
    n, chunk, block = tl.program_id(2), tl.program_id(0), tl.program_id(1)
    c = block * COLUMNS + tl.arange(0, COLUMNS)
    valid = c < channels
    g = c // (channels // groups)
    gamma = tl.load(a + n * channels + c, mask=valid, other=0.0)
    beta = tl.load(b + n * channels + c, mask=valid, other=0.0)
    mean = tl.load(group_mean + n * groups + g, mask=valid, other=0.0)
    rstd = tl.load(group_rstd + n * groups + g, mask=valid, other=0.0)
    if HAS_BIAS:
        mean -= tl.load(conv_bias + c, mask=valid, other=0.0).to(tl.float32)
    first = tl.zeros((COLUMNS,), tl.float32)
    second = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, CHUNK_ROWS, ROWS):
        r = chunk * CHUNK_ROWS + start + tl.arange(0, ROWS)
        inside = (r < rows)[:, None] & valid[None, :]
        at = n.to(tl.int64) * rows * channels + r[:, None] * channels + c[None, :]
        v, du = _before(dy, x, at, inside, gamma[None, :], beta[None, :], seed, p, SILU, DROPOUT)
        first += tl.sum(du, 0)
        second += tl.sum(du * (v - mean[None, :]), 0) * rstd
    at = (n * chunks + chunk) * channels + c
    tl.store(first_sums + at, first, mask=valid)
    tl.store(second_sums + at, second, mask=valid)


@triton.jit
def _backward_group(n, g, c, valid, first, second, a, group_rstd, centres, d_beta, d_gamma, d_conv_bias, k_mean,
                    k_slope, rows, channels, groups, gamma):
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


@triton.jit
def _backward_coefficients(first_sums, second_sums, a, group_rstd, centres, d_beta, d_gamma, d_conv_bias, k_mean,
                           k_slope, rows, channels, groups, chunks, CHUNKS: tl.constexpr, WIDTH: tl.constexpr):
    n, g = tl.program_id(0), tl.program_id(1)
    width = channels // groups
    c, k = g * width + tl.arange(0, WIDTH), tl.arange(0, CHUNKS)
    valid = tl.arange(0, WIDTH) < width
    inside = (k < chunks)[:, None] & valid[None, :]
    at = (n * chunks + k)[:, None] * channels + c[None, :]
    first = tl.sum(tl.load(first_sums + at, mask=inside, other=0.0), 0)
    second = tl.sum(tl.load(second_sums + at, mask=inside, other=0.0), 0)
    gamma = tl.load(a + n * channels + c, mask=valid, other=0.0)
    _backward_group(n, g, c, valid, first, second, a, group_rstd, centres, d_beta, d_gamma, d_conv_bias, k_mean,
                    k_slope, rows, channels, groups, gamma)


@triton.jit
def _backward_apply(dy, x, dx, a, b, conv_bias, group_mean, group_rstd, k_mean, k_slope, seed, p, rows, channels,
                    groups, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HAS_BIAS: tl.constexpr, SILU: tl.constexpr,
                    DROPOUT: tl.constexpr):
    n = tl.program_id(2)
    r, c = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = c < channels
    g = n * groups + c // (channels // groups)
    inside = (r < rows)[:, None] & valid[None, :]
    at = n.to(tl.int64) * rows * channels + r[:, None] * channels + c[None, :]
    gamma = tl.load(a + n * channels + c, mask=valid, other=0.0)
    beta = tl.load(b + n * channels + c, mask=valid, other=0.0)
    mean = tl.load(group_mean + g, mask=valid, other=0.0)
    if HAS_BIAS:
        mean -= tl.load(conv_bias + c, mask=valid, other=0.0).to(tl.float32)
    slope = tl.load(k_slope + g, mask=valid, other=0.0) * tl.load(group_rstd + g, mask=valid, other=0.0)
    constant = tl.load(k_mean + g, mask=valid, other=0.0) - slope * mean
    v, du = _before(dy, x, at, inside, gamma[None, :], beta[None, :], seed, p, SILU, DROPOUT)
    tl.store(dx + at, (gamma[None, :] * du - constant[None, :] - slope[None, :] * v).to(dx.dtype.element_ty),
             mask=inside)


@triton.jit
def _backward_whole(dy, x, dx, a, b, conv_bias, group_mean, group_rstd, centres, d_beta, d_gamma, d_conv_bias, k_mean,
                    k_slope, seed, p, rows, channels, groups, HAS_BIAS: tl.constexpr, SILU: tl.constexpr,
                    DROPOUT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    n, g = tl.program_id(0), tl.program_id(1)
    width = channels // groups
    r, c = tl.arange(0, ROWS), g * width + tl.arange(0, WIDTH)
    valid = tl.arange(0, WIDTH) < width
    inside = (r < rows)[:, None] & valid[None, :]
    at = n.to(tl.int64) * rows * channels + r[:, None] * channels + c[None, :]
    gamma = tl.load(a + n * channels + c, mask=valid, other=0.0)
    beta = tl.load(b + n * channels + c, mask=valid, other=0.0)
    mean = tl.load(group_mean + n * groups + g) + tl.zeros((WIDTH,), tl.float32)
    if HAS_BIAS:
        mean -= tl.load(conv_bias + c, mask=valid, other=0.0).to(tl.float32)
    rstd = tl.load(group_rstd + n * groups + g)
    v, du = _before(dy, x, at, inside, gamma[None, :], beta[None, :], seed, p, SILU, DROPOUT)
    normed = (v - mean[None, :]) * rstd
    first, second = tl.sum(tl.where(inside, du, 0.0), 0), tl.sum(tl.where(inside, du * normed, 0.0), 0)
    k_first, k_second = _backward_group(n, g, c, valid, first, second, a, group_rstd, centres, d_beta, d_gamma,
                                        d_conv_bias, k_mean, k_slope, rows, channels, groups, gamma)
    tl.store(dx + at, (gamma[None, :] * du - k_first - k_second * normed).to(dx.dtype.element_ty), mask=inside)


# --- operators --------------------------------------------------------------------------------------------------------
class Tiling:
    """How a map (B, C, H, W) is cut: into chunks of rows for the sums, and into tiles."""

    def __init__(self, x: Tensor, groups: int) -> None:
        self.batch, self.channels, height, width = x.shape
        self.rows, self.groups = height * width, groups
        self.columns = min(power(self.channels), MOST_COLUMNS)
        self.tile_rows = TILE // self.columns
        self.blocks = triton.cdiv(self.channels, self.columns)
        wanted = min(triton.cdiv(PROGRAMS, self.batch * self.blocks), MOST_CHUNKS)
        self.chunk_rows = self.tile_rows * triton.cdiv(triton.cdiv(self.rows, wanted), self.tile_rows)
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


Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("atelier::group_norm", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
             conv_bias: Tensor | None, seed: Tensor | None, groups: int, eps: float, silu: bool, p: float) -> Six:
    """(y, A, B, mean, rstd, centres); the last five float32, for the derivative."""
    t = Tiling(x, groups)
    y = torch.empty_like(x)
    a, b, centres = (torch.empty(t.batch, t.channels, dtype=torch.float32, device=x.device) for _ in range(3))
    mean, rstd = (torch.empty(t.batch, groups, dtype=torch.float32, device=x.device) for _ in range(2))
    affine = scale is not None and shift is not None
    strides = (_row_stride(scale), _row_stride(shift))
    small = (weight, bias, scale if affine else weight, shift if affine else weight,
             weight if conv_bias is None else conv_bias, a, b, mean, rstd, centres)
    flags = {"HAS_AFFINE": affine, "HAS_BIAS": conv_bias is not None}
    draws = {"SILU": silu, "DROPOUT": p > 0}
    seed = mean if seed is None else seed
    if t.is_whole:
        _whole[(t.batch, groups)](x, y, *small, seed, p, t.rows, t.channels, groups, *strides, eps, **flags, **draws,
                                  ROWS=t.whole_rows, WIDTH=t.width, num_warps=t.warps)
        return y, a, b, mean, rstd, centres
    means, squares = t.partial(x), t.partial(x)
    _moments[t.sums_grid](x, means, squares, t.rows, t.channels, t.chunks, CHUNK_ROWS=t.chunk_rows,
                          ROWS=t.tile_rows, COLUMNS=t.columns)
    _affine[(t.batch, groups)](means, squares, *small, t.rows, t.channels, groups, t.chunk_rows, t.chunks, *strides,
                               eps, **flags, CHUNKS=max(power(t.chunks), 2), WIDTH=t.width)
    _apply[t.tiles_grid](x, y, a, b, seed, p, t.rows, t.channels, ROWS=t.tile_rows, COLUMNS=t.columns, **draws)
    return y, a, b, mean, rstd, centres


@torch.library.custom_op("atelier::group_norm_backward", mutates_args=())
def _backward(dy: Tensor, x: Tensor, a: Tensor, b: Tensor, conv_bias: Tensor | None, mean: Tensor, rstd: Tensor,
              centres: Tensor, seed: Tensor | None, groups: int, silu: bool,
              p: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, d beta, d gamma, d conv_bias), the last three (B, C) float32."""
    t = Tiling(x, groups)
    dx = torch.empty_like(x)
    d_beta, d_gamma, d_conv_bias = (torch.empty_like(a) for _ in range(3))
    k_mean, k_slope = torch.empty_like(mean), torch.empty_like(mean)
    flags = {"HAS_BIAS": conv_bias is not None, "SILU": silu, "DROPOUT": p > 0}
    conv_bias, seed = mean if conv_bias is None else conv_bias, mean if seed is None else seed
    outputs = (a, rstd, centres, d_beta, d_gamma, d_conv_bias, k_mean, k_slope)
    if t.is_whole:
        _backward_whole[(t.batch, groups)](dy, x, dx, a, b, conv_bias, mean, *outputs[1:], seed, p, t.rows, t.channels,
                                           groups, **flags, ROWS=t.whole_rows, WIDTH=t.width, num_warps=t.warps)
        return dx, d_beta, d_gamma, d_conv_bias
    first, second = t.partial(x), t.partial(x)
    _backward_sums[t.sums_grid](dy, x, a, b, conv_bias, mean, rstd, seed, p, first, second, t.rows, t.channels, groups,
                                t.chunks, CHUNK_ROWS=t.chunk_rows, ROWS=t.tile_rows, COLUMNS=t.columns, **flags)
    _backward_coefficients[(t.batch, groups)](first, second, *outputs, t.rows, t.channels, groups, t.chunks,
                                              CHUNKS=max(power(t.chunks), 2), WIDTH=t.width)
    _backward_apply[t.tiles_grid](dy, x, dx, a, b, conv_bias, mean, rstd, k_mean, k_slope, seed, p, t.rows, t.channels,
                                  groups, ROWS=t.tile_rows, COLUMNS=t.columns, **flags)
    return dx, d_beta, d_gamma, d_conv_bias


def _row_stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, conv_bias: Tensor | None,
      seed: Tensor | None, groups: int, eps: float, silu: bool, p: float) -> Six:
    rows = x.new_empty(x.shape[0], x.shape[1], dtype=torch.float32)
    group = x.new_empty(x.shape[0], groups, dtype=torch.float32)
    return torch.empty_like(x), rows, rows.clone(), group, group.clone(), rows.clone()


@_backward.register_fake
def _(dy: Tensor, x: Tensor, a: Tensor, b: Tensor, conv_bias: Tensor | None, mean: Tensor, rstd: Tensor,
      centres: Tensor, seed: Tensor | None, groups: int, silu: bool, p: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(a), torch.empty_like(a), torch.empty_like(a)


def _save(ctx: Any, inputs: tuple, output: Six) -> None:
    x, weight, bias, scale, _, conv_bias, seed, ctx.groups, _, ctx.silu, ctx.p = inputs
    ctx.save_for_backward(x, weight, bias, scale, conv_bias, seed, *output[1:])


def _derivative(ctx: Any, dy: Tensor, *_: Tensor) -> tuple:
    x, weight, bias, scale, conv_bias, seed, a, b, mean, rstd, centres = ctx.saved_tensors
    dy = dy.contiguous(memory_format=torch.channels_last)
    dx, d_beta, d_gamma, d_conv_bias = _backward(dy, x, a, b, conv_bias, mean, rstd, centres, seed, ctx.groups,
                                                 ctx.silu, ctx.p)
    wanted = ctx.needs_input_grad
    s = 1 if scale is None else scale.float()
    return (dx,
            (d_gamma * s).sum(0).to(weight.dtype) if wanted[1] else None,
            (d_beta * s).sum(0).to(bias.dtype) if wanted[2] else None,
            (d_gamma * weight + d_beta * bias).to(scale.dtype) if wanted[3] else None,
            d_beta.to(scale.dtype) if wanted[4] else None,
            d_conv_bias.sum(0).to(conv_bias.dtype) if wanted[5] else None, *[None] * 5)


_forward.register_autograd(_derivative, setup_context=_save)


def group_norm(x: Tensor, norm: torch.nn.GroupNorm, affine: tuple[Tensor, Tensor] | None = None,
               conv_bias: Tensor | None = None, silu: bool = False, p: float = 0.0) -> Tensor:
    """dropout_p(silu(GN(x + conv_bias) A + B)) of a map x (B, C, H, W), in x's type and channels_last. affine: (A, B),
    each (B or 1, C)."""
    scale, shift = (None, None) if affine is None else (_rows(part, len(x)) for part in affine)
    seed = torch.randint(2 ** 32, (1,), device=x.device) if p else None
    return _forward(x.contiguous(memory_format=torch.channels_last), norm.weight, norm.bias, scale, shift, conv_bias,
                    seed, norm.num_groups, norm.eps, silu, p)[0]


def _rows(part: Tensor, batch: int) -> Tensor:
    """Channels next to each other, one row a picture."""
    return (part if part.stride(1) == 1 else part.contiguous()).expand(batch, -1)
