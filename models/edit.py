"""Directions in the space of semantic codes: z' = z + strength * direction (docs/osasis.md C.8)."""
from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .diffae import DiffAE

MAX_STRENGTH = 10.0


@dataclass(frozen=True)
class SemanticDirection:
    """What edits do to semantic codes.

    z (N, E): a direction for each edit, in the units of z. names: what each one is. model: fingerprint of the DiffAE
    ("" unknown). settings: how they were made (JSON-able).
    """
    z: Tensor = field(repr=False)
    names: tuple[str, ...]
    model: str = ""
    settings: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.z.ndim != 2 or len(self.z) != len(self.names) or not self.names:
            raise ValueError(f"directions of shape {list(self.z.shape)} do not fit {len(self.names)} names")

    def edited(self, z: Tensor, strength: float) -> Tensor:
        """Codes (N * B, E) of z (B, E): all of the first direction, then all of the second, ..; for less of it, a
        negative strength. ValueError for codes of another width."""
        if z.shape[1] != self.z.shape[1]:
            raise ValueError(f"the direction is for codes of {self.z.shape[1]} numbers, not of {z.shape[1]}; use the "
                             "DiffAE that it was made with")
        return (z + strength * self.z.to(z)[:, None]).flatten(0, 1)


def z_statistics(net: DiffAE) -> tuple[Tensor, Tensor]:
    """(mean, deviation) (E,) of z among the training photos. ValueError for a DiffAE that does not hold them."""
    if net.config.latent is None:
        raise ValueError("this DiffAE does not hold the statistics of its codes: load the '..._autoenc_latent' "
                         "checkpoint")
    return net.conds_mean, net.conds_std
