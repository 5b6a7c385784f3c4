"""StyleGAN2 as NVIDIA's stylegan2-ada-pytorch and stylegan3 programs store it: `.pkl` (docs/mmfs.md A.5 to A.7)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, short
from ..safe_pickle.records import OpaqueObject, TensorRef
from .foreign import Foreign, joined
from .names import Row, count, inside, linear, read
from .rosinality import usable
from .weights import CRITICS, Weights, attributes, entries_of

WHOLE_BATCH = 1 << 16  # a group that no batch reaches
_STYLEGAN3 = re.compile(r"synthesis\.L\d+_")
_ADVICE = ("pick an unconditional StyleGAN2 of stylegan2-ada-pytorch or stylegan3, such as "
           "ffhq-res512-mirror-stylegan2-noaug.pkl")

STYLED = (Row("weight", "weight"), Row("affine.weight", "affine.weight"), Row("affine.bias", "affine.bias"),
          Row("noise_strength", "noise_strength"), Row("bias", "bias"))
TO_RGB = (Row("weight", "weight"), Row("affine.weight", "affine.weight"), Row("affine.bias", "affine.bias"),
          Row("bias", "bias"))


def generator_rows(blocks: int, mapping_layers: int) -> list[Row]:
    """Our names beside those of `G_ema`, for resolutions 4 .. 2^(blocks + 1) px."""
    rows = linear((f"mapping.layers.{k}", f"mapping.fc{k}") for k in range(mapping_layers))
    rows += [Row("w_avg", "mapping.w_avg", optional=True, mean=True), Row("const", "synthesis.b4.const")]
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


def matches(weights: Weights) -> bool:
    """True for a generator of NVIDIA's names, of whichever generation."""
    return any(name.startswith(("synthesis.b", "synthesis.L", "synthesis.input.")) for name in weights.state)


def parse(weights: Weights) -> Foreign:
    """Kind "stylegan2": `g.*` of the generator and, if the file has a usable one, `d.*`; meta has D's group.

    Raises CheckpointError for StyleGAN3 and class-conditional networks.
    """
    state = weights.state
    _check_generation(state)
    generator = read(state, rows_of_generator(state))
    raw, critic = weights.other(CRITICS, ("b4.out.weight",))
    found = usable(lambda: _discriminator(raw, critic)) if critic else None
    discriminator, group = found or (None, 4)
    return Foreign(joined(generator, discriminator), "stylegan2", {"format": "nvidia", "mbstd_group_size": group})


def _discriminator(raw: Any, state: Mapping[str, TensorRef]) -> tuple[dict[str, Tensor], int]:
    """D's tensors under our names, and the samples that its minibatch deviation compares."""
    if any(name.startswith(("mapping.", "b4.cmap")) for name in state):
        raise CheckpointError("it is class-conditional")
    return read(state, rows_of_discriminator(state)), _group(raw) if isinstance(raw, OpaqueObject) else 4


def _check_generation(names: Collection[str]) -> None:
    if any(name.startswith("synthesis.input.") or _STYLEGAN3.match(name) for name in names):
        raise CheckpointError(f"this is a StyleGAN3 generator, which is another network; {_ADVICE}")
    if any(name.startswith("mapping.embed.") for name in names):
        raise CheckpointError(f"this StyleGAN2 is class-conditional (mapping.embed), which is not supported; {_ADVICE}")
    if "synthesis.b4.const" not in names:
        raise CheckpointError(f"its generator has no 'synthesis.b4.const': it is no StyleGAN2; {_ADVICE}")


def _group(record: OpaqueObject) -> int:
    """`group_size` of D.b4.mbstd; None in the file means the whole batch."""
    deviation: Any = record
    for name in ("b4", "mbstd"):
        deviation = entries_of(attributes(deviation).get("_modules")).get(name)
    found = attributes(deviation)
    if "group_size" not in found:
        raise CheckpointError("it has no minibatch deviation (b4.mbstd)")
    group = found["group_size"]
    if group is None:
        return WHOLE_BATCH
    if type(group) is not int or not 1 <= group <= WHOLE_BATCH:
        raise CheckpointError(f"it compares groups of {short(group)} samples, which is no number of samples")
    return group
