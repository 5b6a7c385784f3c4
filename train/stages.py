"""Running a TrainingStage: resuming a snapshot, saving, sample grids, logs for TensorBoard. Knows no command line."""
from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..models.whole_files import whole_file
from .contrast import watched
from .diffusion_pretraining import PretrainingConfig
from .distributed import SINGLE_PROCESS, Distributed
from .gan import GANConfig, TrainingStage
from .loop import Checkpointing, Hooks, Progress, Run, log_losses, train
from .plots import picture_grid
from .session import Session

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunConfig:
    """How a stage is run; nothing here changes its result. minutes: stop and save after so long, 0 for no limit."""
    device: torch.device
    checkpointing: Checkpointing = Checkpointing()
    log_every: int = 1
    minutes: float = 0.0
    distributed: Distributed = SINGLE_PROCESS


def run_stage(stage: TrainingStage, settings: Mapping, config: RunConfig, hooks: Hooks = Hooks()) -> Run:
    """Train to the stage's last step, resuming its snapshot if there is one.

    settings: what decides the result beside the stage's configuration (see session.Session), and the kind of training
    where it is no "training stage". The main process writes.
    Raises CheckpointError for a snapshot of another training.
    """
    distributed, checkpointing = config.distributed, config.checkpointing
    settings = {"training": "training stage"} | decisive(stage.config) | dict(settings)
    loop = stage.config.loop(checkpointing.every, config.log_every, config.minutes)
    flags = [functools.partial(flag, device=config.device) if distributed.size > 1 else None
             for flag in (distributed.broadcast_flag, distributed.any_flag)]
    with (stage.graphs,
          Session.open(stage.run, settings, checkpointing, hooks, distributed.is_main_process) as session):
        writes = checkpointing.path is not None and distributed.is_main_process
        if checkpointing.path is not None and writes and stage.run.step:
            log.info("%s resumes at step %d", checkpointing.path.name, stage.run.step)
        loop = replace(loop, **session.inherited)
        return train(stage.run, stage.step, loop, config.device, watched(hooks, config.log_every),
                     session.save if writes else None, *flags)


def decisive(config: GANConfig | PretrainingConfig) -> dict:
    """What of a configuration decides the result: all of it, the number of steps under the name that may change."""
    fields = asdict(config)
    return fields | {"iterations": fields.pop("steps")}


def reporter(name: str, stage: TrainingStage, folder: Path | None = None, every: int = 0,
             measure: Callable[[], Mapping[str, float]] | None = None) -> Callable[[Progress], None]:
    """An `on_iteration` that logs the losses, and how many pictures a second were trained on. Every `every` steps it
    writes a grid of the preview into `folder`, takes measurements into the run's history, and adds all of it to
    TensorBoard's event files there (if it is installed). What of it fails is warned of: the training goes on."""
    @functools.cache
    def writer() -> SummaryWriter | None:  # first asked for after a step: before, the run may still be refused
        return tensorboard(folder, stage.run.step) if folder else None

    pace = Pace(stage.config.batch)

    def report(progress: Progress) -> None:
        numbers = dict(progress.losses)
        if numbers:  # they have been read from the device, so the steps are done
            numbers |= pace(progress.step)
        if every and (progress.step % every == 0 or progress.step == progress.steps):
            measured: dict[str, float] = {}
            with warned(f"the preview at step {progress.step}"):
                write_preview(stage, folder / f"{name}_{progress.step:06d}.jpg" if folder else None)
            with warned(f"the measurement at step {progress.step}"):
                measured |= measure() if measure else {}
            for key, value in ({"measured_at": float(progress.step)} | measured).items() if measured else ():
                stage.run.loss_history.setdefault(key, []).append(value)
            numbers |= measured
        log_losses(name, progress, numbers)
        if events := writer():
            for key, value in numbers.items():
                events.add_scalar(f"{name}/{key}", value, progress.step)
            events.flush()
        if numbers:
            pace.begin(progress.step)
    return report


@contextmanager
def warned(what: str) -> Iterator[None]:
    """What is shown of a training beside it: where it fails, that is warned of."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # torch's own, out of memory among them, are RuntimeErrors
        log.warning("%s failed: %s. The training goes on", what, error)


def write_preview(stage: TrainingStage, target: Path | None) -> None:
    """A grid of the stage's preview; where nothing is written, it is made all the same."""
    grid = picture_grid(stage.preview())
    if target is not None:
        with whole_file(target) as file:
            grid.save(file, "JPEG", quality=90)


class Pace:
    """Pictures a second since the last call or beginning."""

    def __init__(self, batch: int) -> None:
        self.batch, self.since = batch, 0.0
        self.step: int | None = None

    def begin(self, step: int) -> None:
        self.since, self.step = time.monotonic(), step

    def __call__(self, step: int) -> dict[str, float]:
        """Nothing at first: that includes what is done once."""
        if self.step is None or step <= self.step:
            return {}
        return {"pictures_per_second": (step - self.step) * self.batch / max(time.monotonic() - self.since, 1e-9)}


def tensorboard(folder: Path, first: int) -> SummaryWriter | None:
    """A writer of TensorBoard's event files, or None where the extra `train` is not installed.

    first: the step that comes next; what earlier runs wrote of it and later ones counts no more.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed (pip install .[train]): no event files are written")
        return None
    return SummaryWriter(str(folder), purge_step=first)
