"""What a node shows while it trains: every training node uses the same."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..train import session
from ..train.gan import Stage
from ..train.loop import Progress, Run
from ..train.osasis import Update
from . import host, pictures
from .host import Steps


class Watch:
    """Shows a training on its node: progress of optimiser steps, predictions above the loss curve, a line of text.

    steps: iterations in all; per_step: optimiser steps in each. names: histories whose sum is the loss that is shown.
    """

    def __init__(self, steps: int, per_step: int = 1, names: Sequence[str] = ("loss",)):
        self.steps, self.per_step, self.names = steps, per_step, names
        self.progress = Steps(steps * per_step)
        self.history: dict[str, list[float]] = {}
        self.predictions: Tensor | None = None

    @property
    def losses(self) -> list[float]:
        return [sum(values) for values in zip(*(self.history[name] for name in self.names if name in self.history))]

    def begin(self, run: Run) -> None:
        self.history = run.history
        self.progress.done = min(run.step, self.steps) * self.per_step
        if run.step:
            host.say(f"going on from iteration {run.step} of {self.steps}")

    def step(self, update: Update) -> None:
        self.predictions = update.predictions
        self.progress(lambda: session.progress_picture(update.predictions, self.losses))

    def iteration(self, progress: Progress) -> None:
        host.say(f"iteration {progress.step} of {progress.steps}, loss {self.losses[-1]:.3f}")

    def stage(self, progress: Progress, stage: Stage, every: int) -> None:
        """After a step of a Stage: its preview every so many steps, and at the last one."""
        if progress.step % every == 0 or progress.step == progress.steps or self.predictions is None:
            self.predictions = stage.preview()
        self.progress(lambda: session.progress_picture(self.predictions, self.losses, most=8))
        self.iteration(progress)

    def outcome(self) -> tuple[Tensor, Tensor, dict[str, list[float]]]:
        """The last predictions and the loss curve as IMAGEs, and the losses for core's Plot Loss Graph."""
        curve = pictures.of_drawing(session.loss_curve(self.losses, 768, 384))
        shown = torch.zeros(1, 64, 64, 3) if self.predictions is None else pictures.to_image(self.predictions)
        return shown, curve, {"loss": self.losses}
