"""The official MMFS: `.pth` with `G_ema_model` and `D_model` (docs/mmfs.md A.4, A.5, B.1, B.5)."""

from __future__ import annotations

from collections.abc import Collection

from .foreign import Foreign, joined
from .names import Row, count, inside, linear, read
from .rosinality import CONV, RES_BLOCK, STYLED, TO_RGB, read_discriminator
from .weights import Weights

_LAYER = ("self_attn.in_proj_weight", "self_attn.in_proj_bias",
          *(f"{module}.{part}" for module in ("self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
            for part in ("weight", "bias")))


def rows(blocks: int, mapping_layers: int, mapper_layers: int) -> list[Row]:
    """Our names beside those of `G_ema_model`, for N = `blocks` doublings; no mapper rows for 0 `mapper_layers`."""
    found = inside(CONV, "encoder.stem.", "encoder.0.") + inside(CONV, "encoder.head.", f"encoder.{blocks + 1}.")
    for k in range(blocks):
        found += inside(RES_BLOCK, f"encoder.blocks.{k}.", f"encoder.{k + 1}.")
    found += linear((f"mapping.layers.{k}", f"mapping_z.{k + 1}") for k in range(mapping_layers))
    for k in range(blocks + 1):
        if k:
            found += inside(STYLED, f"decoder.blocks.{k}.conv0.", f"decoder{k}a.")
        found += inside(STYLED, f"decoder.blocks.{k}.conv1.", f"decoder{k}b." if k else "decoder0.")
        found += inside(TO_RGB, f"decoder.blocks.{k}.rgb.", f"to_rgb{k}.")
    if mapper_layers:
        found.append(Row("mapper.position", "clip_mapper.position_embedding"))
    return found + [Row(f"mapper.layers.{k}.{part}", f"clip_mapper.transformer.layers.{k}.{part}")
                    for k in range(mapper_layers) for part in _LAYER]


def rows_of(names: Collection[str]) -> list[Row]:
    """The table that fits the tensors of `G_ema_model`."""
    return rows(count(names, "to_rgb") - 1, max(0, count(names, "mapping_z.") - 1),
                count(names, "clip_mapper.transformer.layers."))


def matches(weights: Weights) -> bool:
    """True for the network of an MMFS checkpoint, complete or not."""
    return any(name.startswith("decoder0.") for name in weights.state)


def parse(weights: Weights) -> Foreign:
    """Kind "mmfs": `g.*` of the network, `d.*` if there is a usable discriminator. Raises CheckpointError.

    meta: phase 3 for files with a CLIP mapper (3 and 4 look alike), else 2; the iterations and epochs trained.
    """
    network = read(weights.state, rows_of(weights.state))
    meta = {"format": "mmfs", "phase": 3 if "mapper.position" in network else 2}
    meta |= {key: weights.fact(key) for key in ("total_iters", "epoch") if weights.fact(key) is not None}
    return Foreign(joined(network, read_discriminator(weights)), "mmfs", meta)
