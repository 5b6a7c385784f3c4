"""StyleGAN2 as rosinality's PyTorch program stores it: `.pt` with `g_ema`, `latent_avg`, `d`; docs/mmfs.md A.3, A.5."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TypeVar

from torch import Tensor

from ..errors import CheckpointError
from .foreign import Foreign, joined
from .names import Row, count, inside, linear, read
from .weights import CRITICS, Weights

log = logging.getLogger(__name__)
Found = TypeVar("Found")

STYLED = (Row("weight", "conv.weight", lead=1), Row("affine.weight", "conv.modulation.weight"),
          Row("affine.bias", "conv.modulation.bias"), Row("noise_strength", "noise.weight", lead=1),
          Row("bias", "activate.bias"))
TO_RGB = (Row("weight", "conv.weight", lead=1), Row("affine.weight", "conv.modulation.weight"),
          Row("affine.bias", "conv.modulation.bias"), Row("bias", "bias", lead=1, trail=2))
CONV = (Row("weight", "0.weight"), Row("bias", "1.bias"))
RES_BLOCK = (*inside(CONV, "conv0.", "conv1."), Row("conv1.weight", "conv2.1.weight"),
             Row("conv1.bias", "conv2.2.bias"), Row("skip.weight", "skip.1.weight"))


def generator_rows(blocks: int, mapping_layers: int) -> list[Row]:
    """Our names beside those of `g_ema`, for resolutions 4 .. 2^(blocks + 1) px; `latent_avg` stands beside it."""
    rows = linear((f"mapping.layers.{k}", f"style.{k + 1}") for k in range(mapping_layers))
    rows.append(Row("const", "input.input", lead=1))
    for k in range(blocks):
        block = f"synthesis.blocks.{k}."
        if k:
            rows += inside(STYLED, f"{block}conv0.", f"convs.{2 * k - 2}.")
        rows += inside(STYLED, f"{block}conv1.", f"convs.{2 * k - 1}." if k else "conv1.")
        rows += inside(TO_RGB, f"{block}rgb.", f"to_rgbs.{k - 1}." if k else "to_rgb1.")
    rows.append(Row("w_avg", "latent_avg", optional=True, mean=True))
    return rows + [Row(f"noise_{i}", f"noises.noise_{i}", lead=2, optional=True) for i in range(2 * blocks - 1)]


def discriminator_rows(blocks: int) -> list[Row]:
    """Our names beside those of `d`, for `blocks` halvings down to 4 px."""
    rows = inside(CONV, "from_rgb.", "convs.0.")
    for k in range(blocks):
        rows += inside(RES_BLOCK, f"blocks.{k}.", f"convs.{k + 1}.")
    return rows + inside(CONV, "conv.", "final_conv.") + linear((("fc", "final_linear.0"), ("out", "final_linear.1")))


def rows_of_generator(names: Collection[str]) -> list[Row]:
    """The table that fits the tensors of `g_ema`."""
    return generator_rows(count(names, "convs.") // 2 + 1, max(0, count(names, "style.") - 1))


def rows_of_discriminator(names: Collection[str]) -> list[Row]:
    """The table that fits the tensors of `d`."""
    return discriminator_rows(count(names, "convs.") - 1)


def matches(weights: Weights) -> bool:
    """True for a generator of rosinality's names, complete or not."""
    return any(name in weights.state for name in ("input.input", "conv1.conv.weight", "to_rgb1.conv.weight"))


def parse(weights: Weights) -> Foreign:
    """Kind "stylegan2": `g.*` of the generator, `d.*` if there is a usable discriminator. Raises CheckpointError."""
    state, mean = dict(weights.state), weights.beside("latent_avg")
    state |= {} if mean is None else {"latent_avg": mean}
    generator = read(state, rows_of_generator(state))
    return Foreign(joined(generator, read_discriminator(weights)), "stylegan2",
                   {"format": "rosinality", "mbstd_group_size": 4})


def read_discriminator(weights: Weights) -> dict[str, Tensor] | None:
    """The discriminator beside a generator, under our names; None, and a warning, if it cannot be used."""
    _, state = weights.other(CRITICS, ("final_linear.1.weight",))
    return usable(lambda: read(state, rows_of_discriminator(state))) if state else None


def usable(read_critic: Callable[[], Found]) -> Found | None:
    """What `read_critic` gives; None, and a warning, if it raises: the generator is of use without a discriminator."""
    try:
        return read_critic()
    except CheckpointError as error:
        log.warning("the file's discriminator is left out, its generator is used: %s", error)
        return None
