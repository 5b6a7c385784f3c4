"""StyleGAN2 as rosinality's PyTorch program stores it: `.pt` with `g_ema`, `latent_avg`, `d` (MMFS spec A.3, A.5)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from .foreign import Foreign, entry, is_tensor
from .names import Row, count, inside, linear, read
from .stylegan2 import complete, joined

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
    rows.append(Row("w_avg", "latent_avg", optional=True))
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


def matches(root: Mapping) -> bool:
    """True if `root` has the entries of rosinality's trainer or converter, complete or not."""
    return "g_ema" in root or "g" in root and ("d" in root or "latent_avg" in root)


def parse(root: Mapping) -> Foreign:
    """Kind "stylegan2": `g.*` from `g_ema` (from `g` only where there is no average), `d.*` if the file has `d`."""
    state = dict(entry(root, "g_ema" if "g_ema" in root else "g"))
    if is_tensor(root.get("latent_avg")):
        state["latent_avg"] = root["latent_avg"]
    generator = read(state, rows_of_generator(state))
    discriminator = read_discriminator(root, "d") if "d" in root else None
    return Foreign(joined(complete(generator), discriminator), "stylegan2", {"format": "rosinality", "group": 4})


def read_discriminator(root: Mapping, name: str) -> dict[str, Tensor]:
    """The discriminator root[name] under our names."""
    state = entry(root, name)
    return read(state, rows_of_discriminator(state))
