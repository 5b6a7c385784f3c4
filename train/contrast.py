"""Notices a training whose pictures have become one flat colour: its losses may stay finite and look harmless."""
from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from .loop import Hooks, StepResult

# Standard deviation over a picture's pixels in [0, 1], of the channel that has the most: 5 of 255 grey levels. Photos
# have about 0.2, a few thin lines on white paper 0.05 and more, a clamped or collapsed picture 0.
FLAT = 0.02


def contrast(pictures: Tensor) -> float:
    """The standard deviation of the channel that has the most, over pictures (B, 3, H, W), as they are shown (-1 black,
    1 white)."""
    return float(pictures.detach().float().clamp(-1, 1).flatten(2).std(2, correction=0).max()) / 2


def watched(hooks: Hooks, every: int = 1) -> Hooks:
    """The hooks of a training, which warn once if all predictions have become flat. They need not have any contrast at
    first: a generator that is new has none. every: looks at each N-th iteration only, since looking waits for the GPU.
    """
    watches, warned = False, False

    def on_step(result: StepResult) -> None:
        nonlocal watches, warned
        if not warned and (result.iteration + 1) % every == 0:
            found = contrast(result.predictions)
            warned = watches and found < FLAT
            watches = watches or found >= 2 * FLAT
            if warned:
                hooks.warn(
                    f"The pictures of this training have become one flat colour (iteration {result.iteration + 1}), "
                    "which they were not before: it has most likely diverged, and what is saved from now on gives such "
                    "pictures. Stop it, lower the learning rate, and start again under another name or with 'resume' "
                    "off")
        hooks.on_step(result)
    return replace(hooks, on_step=on_step)
