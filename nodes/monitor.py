"""What a node shows while it trains: every training node uses the same."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..train import plots
from ..train.gan import TrainingStage
from ..train.loop import Hooks, Progress, Run, StepResult
from . import host, images
from .host import NodeProgress


class TrainingMonitor:
    """Shows a training on its node: progress of optimiser steps, predictions above the loss curve, a line of text.

    steps: iterations in all; per_step: optimiser steps in each. names: histories whose sum is the loss that is shown.
    """

    def __init__(self, steps: int, per_step: int = 1, names: Sequence[str] = ("loss",)) -> None:
        self.steps, self.per_step, self.names = steps, per_step, names
        self.progress = NodeProgress(steps * per_step)
        self.loss_history: dict[str, list[float]] = {}
        self.predictions: Tensor | None = None
        self.warning, self.note = "", ""

    @property
    def losses(self) -> list[float]:
        return [sum(values) for values in zip(*self.histories())]

    @property
    def last_loss(self) -> float:
        """The last of `losses`, without those before it: a long training has many."""
        found = self.histories()
        last = min(map(len, found)) - 1
        return sum(values[last] for values in found)

    def histories(self) -> list[list[float]]:
        """The histories whose sum is shown."""
        return [self.loss_history[name] for name in self.names if name in self.loss_history]

    def hooks(self) -> Hooks:
        """Of a fine-tune."""
        return Hooks(self.on_start, self.on_step, self.on_iteration, host.check_interrupt, self.warn, self.tell)

    def stage_hooks(self, stage: TrainingStage, preview_every: int) -> Hooks:
        """Of a stage: its preview is shown every N steps, and at the last one."""
        def on_iteration(progress: Progress) -> None:
            if progress.step % preview_every == 0 or progress.step == progress.steps or self.predictions is None:
                self.predictions = stage.preview()
            self.show(self.predictions, most=8)
            self.on_iteration(progress)
        return Hooks(self.on_start, on_iteration=on_iteration, check_interrupt=host.check_interrupt,
                     warn=self.warn, tell=self.tell)

    def on_start(self, run: Run) -> None:
        self.loss_history = run.loss_history
        self.progress.done = min(run.step, self.steps) * self.per_step + int(run.partial.get("done", 0))
        if run.step:
            host.show_text(f"resumed at iteration {run.step} of {self.steps}")

    def on_step(self, result: StepResult) -> None:
        self.predictions = result.predictions
        self.show(result.predictions)

    def on_iteration(self, progress: Progress) -> None:
        state = f"iteration {progress.step} of {progress.steps}, loss {self.last_loss:.3f}"
        host.show_text("\n".join(filter(None, (state, self.note, self.warning))))

    def warn(self, text: str) -> None:
        """The last warning stays on the node."""
        self.warning = text
        host.warn(text)

    def tell(self, text: str) -> None:
        """The last note stays on the node."""
        self.note = text
        host.inform(text)

    def show(self, predictions: Tensor, most: int = 6) -> None:
        self.progress(lambda: plots.progress_picture(predictions, self.losses, most=most))

    def outcome(self) -> tuple[Tensor, Tensor, dict[str, list[float]]]:
        """The last predictions and the loss curve as IMAGEs, and the losses for core's Plot Loss Graph."""
        curve = images.from_pil(plots.loss_curve(self.losses, 768, 384))
        shown = torch.zeros(1, 64, 64, 3) if self.predictions is None else images.to_image(self.predictions)
        return shown, curve, {"loss": self.losses}
