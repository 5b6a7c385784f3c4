"""A style of MMFS: the decoder that a fine-tune made of the model's own, and how strongly it is applied (spec E 4)."""
from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .hashing import hash_of
from .mmfs import MMFS, MMFSConfig

PARTS = ("encoder.", "mapping.", "decoder.", "mapper.")
STRONGEST = 1.5


@dataclass(frozen=True)
class MMFSStyle:
    """A fine-tuned style: weights, never a live network.

    decoder: state dict of the decoder, names as in `MMFS.decoder`. w: its w+ code (1, n, S). picture: uint8 (3, H, W),
    the reference. prompt: the words it was learned from, or "". model: fingerprint of its MMFS. settings: how it was
    made (JSON-able).
    """
    config: MMFSConfig
    decoder: Mapping[str, Tensor]
    w: Tensor | None = None
    picture: Tensor | None = None
    prompt: str = ""
    model: str = ""
    settings: dict = field(default_factory=dict)


def with_decoder(net: MMFS, decoder: torch.nn.Module) -> MMFS:
    """A model that shares everything with `net` but the decoder."""
    with torch.device("meta"):
        new = MMFS(net.config)
    new.encoder, new.mapping, new.decoder, new.mapper = net.encoder, net.mapping, decoder, net.mapper
    return new.train(net.training)


def styled(net: MMFS, style: MMFSStyle, strength: float = 1.0) -> MMFS:
    """A model whose decoder stands between the base (strength 0, bit for bit) and the style (1), or beyond (to 1.5).

    It shares encoder, mappings and device with `net`, which stays as it is. ValueError for a strength out of range.
    """
    if not 0 <= strength <= STRONGEST:
        raise ValueError(f"strength {strength} is out of range; take 0 (the base model) to {STRONGEST}, 1 is the style")
    decoder = copy.deepcopy(net.decoder)
    with torch.no_grad():
        for name, base in decoder.state_dict().items():
            base.lerp_(style.decoder[name].to(base), strength)
    return with_decoder(net, decoder)


def fingerprint(net: MMFS) -> str:
    """A hash of all weights as 16-bit numbers: equal for a checkpoint and its slim copy."""
    return hash_of({k: v for k, v in net.state_dict().items() if k.startswith(PARTS)})


def check_style(style: MMFSStyle, config: MMFSConfig, fingerprint: str) -> None:
    """ValueError if the style was made for another model."""
    if replace(style.config, mapper=None) != replace(config, mapper=None):
        raise ValueError(f"this style was made for an MMFS of {style.config.resolution} px with a decoder of widths "
                         f"{style.config.decoder}, not for this one of {config.resolution} px with {config.decoder}; "
                         "load the MMFS model that the style was fine-tuned from")
    if style.model and style.model != fingerprint:
        raise ValueError("this style was fine-tuned from another MMFS model of the same size; load that one, "
                         f"its fingerprint is {style.model} (this one's is {fingerprint})")
