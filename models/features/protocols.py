"""The three shapes of a feature network. Pictures are (B, 3, H, W) in [-1, 1]; each network preprocesses them itself.

A network file has a frozen config (or none), `detect(tensors)`, `build(config, tensors)` and a class whose `preprocess`
makes the network's input of pictures and whose method is one of these.
"""
from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Weighted(Protocol):
    """What has weights, as every torch network."""

    def state_dict(self) -> dict[str, Any]:
        """The weights by name."""
        ...


class Embedder(Protocol):
    """One vector a picture, not normalised (IR-SE50's is): clip.Clip, inception.Inception, arcface.ArcFace."""

    def embed(self, pictures: Tensor) -> Tensor:
        """(B, D)."""
        ...


class StructureNet(Weighted, Protocol):
    """Keys of positions, whose self-similarity is the structure: dino.Dino, encoder.EncoderKeys."""

    def keys(self, pictures: Tensor) -> Tensor:
        """(B, n, D)."""
        ...


class PerceptualDistance(Weighted, Protocol):
    """A distance of two batches: lpips.LpipsVGG, encoder.EncoderDistance."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,), 0 for equal pictures."""
        ...
