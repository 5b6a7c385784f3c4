"""What both layouts of StyleGAN2 (rosinality.py, nvidia.py) share: our tensors as `g.*` and `d.*`, made complete."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from .. import stylegan2
from .errors import CheckpointError
from .foreign import part

MOST_PX = 4096


def complete(generator: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A generator's tensors (our names) with what older files lack: the constant noise pictures, as normals of a fixed
    seed, and the mean style, over 10,000 seeded z (spec A.2, A.5). Raises CheckpointError."""
    try:
        config = stylegan2.detect(generator)
    except ValueError as error:
        raise CheckpointError(f"it is {error}; pick a complete checkpoint") from error
    if not 8 <= config.resolution <= MOST_PX:
        raise CheckpointError(f"it is a StyleGAN2 of {config.resolution} px; 8 to {MOST_PX} px are supported")
    draw = Generator().manual_seed(0)
    noise = {}
    for i in range(2 * len(config.channels) - 1):
        size = 2 ** ((i + 5) // 2)
        noise[f"noise_{i}"] = torch.randn(size, size, generator=draw)
    found = {**noise, **generator}
    if "w_avg" not in found:
        found["w_avg"] = stylegan2.mean_style(_mapping(generator, config))
    return found


def _mapping(generator: Mapping[str, Tensor], config: stylegan2.StyleGAN2Config) -> stylegan2.Mapping:
    square, state = (config.style, config.style), part(generator, "mapping.")
    for name, value in state.items():
        if value.shape not in (square, square[:1]):
            raise CheckpointError(f"its mapping network's '{name}' has shape {list(value.shape)}, not {list(square)}: "
                                  "z and w of different widths are not supported")
    net = stylegan2.Mapping(config.style, config.mapping_layers)
    net.load_state_dict(state)
    return net.float()


def joined(generator: Mapping[str, Tensor], discriminator: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """One dict of the tensors of both, under `g.` and `d.`."""
    return ({f"g.{name}": value for name, value in generator.items()}
            | {f"d.{name}": value for name, value in (discriminator or {}).items()})
