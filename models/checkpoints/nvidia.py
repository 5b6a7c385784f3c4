"""StyleGAN2 as NVIDIA's stylegan2-ada-pytorch and stylegan3 programs store it: `.pkl` (MMFS spec A.5 to A.7)."""

from __future__ import annotations

from collections.abc import Collection

from .names import Row, count, inside, linear

STYLED = (Row("weight", "weight"), Row("affine.weight", "affine.weight"), Row("affine.bias", "affine.bias"),
          Row("noise_strength", "noise_strength"), Row("bias", "bias"))
TO_RGB = (Row("weight", "weight"), Row("affine.weight", "affine.weight"), Row("affine.bias", "affine.bias"),
          Row("bias", "bias"))


def generator_rows(blocks: int, mapping_layers: int) -> list[Row]:
    """Our names beside those of `G_ema`, for resolutions 4 .. 2^(blocks + 1) px."""
    rows = linear((f"mapping.layers.{k}", f"mapping.fc{k}") for k in range(mapping_layers))
    rows += [Row("w_avg", "mapping.w_avg", optional=True), Row("const", "synthesis.b4.const")]
    for k in range(blocks):
        ours, theirs = f"synthesis.blocks.{k}.", f"synthesis.b{4 << k}."
        if k:
            rows += inside(STYLED, f"{ours}conv0.", f"{theirs}conv0.")
            rows.append(Row(f"noise_{2 * k - 1}", f"{theirs}conv0.noise_const", optional=True))
        rows += inside(STYLED, f"{ours}conv1.", f"{theirs}conv1.")
        rows.append(Row(f"noise_{2 * k}", f"{theirs}conv1.noise_const", optional=True))
        rows += inside(TO_RGB, f"{ours}rgb.", f"{theirs}torgb.")
    return rows


def discriminator_rows(blocks: int) -> list[Row]:
    """Our names beside those of `D`, for `blocks` halvings down to 4 px."""
    rows = linear([("from_rgb", f"b{4 << blocks}.fromrgb")])
    for k in range(blocks):
        theirs = f"b{4 << (blocks - k)}."
        rows += linear((f"blocks.{k}.conv{i}", f"{theirs}conv{i}") for i in (0, 1))
        rows.append(Row(f"blocks.{k}.skip.weight", f"{theirs}skip.weight"))
    return rows + linear((name, f"b4.{name}") for name in ("conv", "fc", "out"))


def rows_of_generator(names: Collection[str]) -> list[Row]:
    """The table that fits the tensors of `G_ema`."""
    return generator_rows(_blocks(names, "synthesis.b"), count(names, "mapping.fc"))


def rows_of_discriminator(names: Collection[str]) -> list[Row]:
    """The table that fits the tensors of `D`."""
    return discriminator_rows(_blocks(names, "b") - 1)


def _blocks(names: Collection[str], prefix: str) -> int:
    """Resolutions from 4 px up: they stand in the names (b4, b8, ..)."""
    blocks = 0
    while any(name.startswith(f"{prefix}{4 << blocks}.") for name in names):
        blocks += 1
    return blocks
