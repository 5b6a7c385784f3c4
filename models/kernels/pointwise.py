"""Residual additions with the biases of their convolutions, and the changes of size, each in one pass over maps
(B, C, H, W) in channels_last."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launched

BLOCK = 1024
PROGRAMS = 1024  # of a sum over the rows, at least


@Launched
@triton.jit
def _add(x, h, third, bias, y, count, channels, THREE: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    total = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
    if THREE:
        total += tl.load(third + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + at % channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=inside)


@Launched
@triton.jit
def _sums(x, partial, rows, channels, CHUNK_ROWS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    chunk = tl.program_id(0)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, CHUNK_ROWS, ROWS):
        r = chunk.to(tl.int64) * CHUNK_ROWS + start + tl.arange(0, ROWS)
        inside = (r < rows)[:, None] & (c < channels)[None, :]
        total += tl.load(x + r[:, None] * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(partial + chunk * channels + c, tl.sum(total, 0), mask=c < channels)


@Launched
@triton.jit
def _resize(x, y, gain, count, height, width, channels, UP: tl.constexpr, BLOCK: tl.constexpr):
    """UP: every pixel four times, times gain. Else: the sum of 2 x 2 pixels, times gain. height, width: of the smaller
    map; count: its numbers."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    c, pixel = at % channels, at // channels
    column, row = pixel % width, pixel // width  # the row counts on over the batch
    corner = (2 * row * (2 * width) + 2 * column) * channels + c
    line = 2 * width * channels
    if UP:
        value = (tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * gain).to(y.dtype.element_ty)
        tl.store(y + corner, value, mask=inside)
        tl.store(y + corner + channels, value, mask=inside)
        tl.store(y + corner + line, value, mask=inside)
        tl.store(y + corner + line + channels, value, mask=inside)
    else:
        value = tl.load(x + corner, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(x + corner + channels, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(x + corner + line, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(x + corner + line + channels, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + at, (value * gain).to(y.dtype.element_ty), mask=inside)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("atelier::add", mutates_args=())
def _add_op(x: Tensor, h: Tensor, third: Tensor | None, bias: Tensor | None) -> Tensor:
    y, channels = torch.empty_like(x), x.shape[1]
    _add[(triton.cdiv(x.numel(), BLOCK),)](
        x, h, x if third is None else third, x if bias is None else bias, y, x.numel(), channels,
        THREE=third is not None, HAS_BIAS=bias is not None, BLOCK=BLOCK)
    return y


@torch.library.custom_op("atelier::channel_sum", mutates_args=())
def _sum_op(x: Tensor) -> Tensor:
    """Sum over pictures and pixels of a map (B, C, H, W): (C,) float32."""
    channels = x.shape[1]
    rows, columns = x.numel() // channels, min(triton.next_power_of_2(channels), 128)
    tile_rows, blocks = 4096 // columns, triton.cdiv(channels, columns)
    chunk_rows = max(triton.next_power_of_2(triton.cdiv(rows, triton.cdiv(PROGRAMS, blocks))), tile_rows)
    chunks = triton.cdiv(rows, chunk_rows)
    partial = torch.empty(chunks, channels, dtype=torch.float32, device=x.device)
    _sums[(chunks, blocks)](x, partial, rows, channels, CHUNK_ROWS=chunk_rows, ROWS=tile_rows, COLUMNS=columns)
    return partial.sum(0)


@torch.library.custom_op("atelier::resize", mutates_args=())
def _resize_op(x: Tensor, up: bool, gain: float) -> Tensor:
    batch, channels, height, width = x.shape
    height, width, size = (height, width, (2 * height, 2 * width)) if up else (
        height // 2, width // 2, (height // 2, width // 2))
    y = torch.empty((batch, channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    count = batch * channels * height * width
    _resize[(triton.cdiv(count, BLOCK),)](x, y, gain, count, height, width, channels, UP=up, BLOCK=BLOCK)
    return y


@_add_op.register_fake
def _(x: Tensor, h: Tensor, third: Tensor | None, bias: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@_sum_op.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.float32)


@_resize_op.register_fake
def _(x: Tensor, up: bool, gain: float) -> Tensor:
    batch, channels, height, width = x.shape
    size = (2 * height, 2 * width) if up else (height // 2, width // 2)
    return torch.empty((batch, channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _save_bias(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.bias_dtype = None if inputs[3] is None else inputs[3].dtype


def _add_backward(ctx: Any, dy: Tensor) -> tuple:
    d_bias = _sum_op(last(dy)).to(ctx.bias_dtype) if ctx.needs_input_grad[3] else None
    return dy, dy, dy if ctx.needs_input_grad[2] else None, d_bias


def _save_size(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, ctx.up, ctx.gain = inputs


def _resize_backward(ctx: Any, dy: Tensor) -> tuple:
    return _resize_op(last(dy), not ctx.up, ctx.gain), None, None


_add_op.register_autograd(_add_backward, setup_context=_save_bias)
_resize_op.register_autograd(_resize_backward, setup_context=_save_size)


def add(maps: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """The sum of two or three maps (B, C, H, W) of one type, and of a bias (C,)."""
    x, h, *third = (last(part) for part in maps)
    return _add_op(x, h, third[0] if third else None, bias)


def up(x: Tensor) -> Tensor:
    """Twice the size, nearest."""
    return _resize_op(last(x), True, 1.0)


def down(x: Tensor) -> Tensor:
    """Half the size, the mean of 2 x 2 (sides even)."""
    return _resize_op(last(x), False, 0.25)
