"""Notices a training whose pictures have become one flat colour: its losses may stay finite and look harmless."""
from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .loop import StepResult

# Standard deviation over a picture's pixels in [0, 1], of the channel that has the most: 5 of 255 grey levels. Photos
# have about 0.2, a few thin lines on white paper 0.05 and more, a clamped or collapsed picture 0.
FLAT = 0.02


def is_flat(pictures: Tensor) -> bool:
    """Has every one of the pictures (B, 3, H, W) in [-1, 1] almost no contrast?"""
    deviations = pictures.detach().float().flatten(2).std(2, correction=0) / 2
    return bool((deviations < FLAT).all())


class FlatWatch:
    """Warns once if predictions are flat that were not so at first. (A model may be flat to begin with.)"""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self.watches: bool | None = None  # None before the first predictions

    def see(self, result: StepResult) -> None:
        """The newest predictions of a training."""
        if self.watches is False:
            return
        flat = is_flat(result.predictions)
        if self.watches and flat:
            self.warn(f"The pictures of this training have become one flat colour (iteration {result.iteration + 1}), "
                      "which they were not at first: it has most likely diverged, and what is saved from now on gives "
                      "such pictures. Stop it, lower the learning rate, and start again under another name or with "
                      "'resume' off")
        self.watches = not flat
