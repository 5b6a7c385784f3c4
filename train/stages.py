"""Carrying out a Stage: going on from a snapshot, saving, sample grids, logs for TensorBoard. Knows no command line."""
from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from .data import to_bytes
from .gan import GanConfig, Stage
from .loop import Progress, Run, train
from .session import Session
from .team import SOLO, Team

log = logging.getLogger(__name__)


def carry_out(stage: Stage, settings: Mapping, path: Path | None, device: torch.device, *, resume: bool = True,
              save_every: int = 0, log_every: int = 1, minutes: float = 0.0, team: Team = SOLO,
              callback: Callable[[Progress], None] | None = None, begun: Callable[[Run], None] | None = None) -> Run:
    """Train to the stage's last step, going on from the snapshot at `path` if it is there; None keeps no snapshot.

    settings: what decides the result beside the configuration (see session.Session). The team's leading process
    writes. `callback` may raise to stop; what was saved then stays. Raises CheckpointError for a foreign snapshot.
    """
    run, kept = stage.run, path if team.leads else None
    session = Session.begin(run, {**decisive(stage.config), **settings}, path, resume, begun)
    if run.step < stage.config.steps:
        agree = functools.partial(team.leader_says, device=device) if team.size > 1 else None
        train(run, stage.step, stage.config.loop(save_every, log_every, minutes), device,
              save=session.save if kept else None, callback=callback, agree=agree)
        if kept:
            session.save(run)
    return run


def decisive(config: GanConfig) -> dict:
    """What of a configuration decides the result: all of it, the number of steps under the name that may change."""
    fields = asdict(config)
    return fields | {"iterations": fields.pop("steps")}


def reporter(name: str, stage: Stage, folder: Path | None = None, every: int = 0,
             measure: Callable[[], Mapping[str, float]] | None = None) -> Callable[[Progress], None]:
    """A callback that logs the losses; and every so many steps writes a grid of the preview into `folder`, takes
    measurements into the run's history, and adds all of it to TensorBoard's event files there (if it is installed)."""
    @functools.cache
    def writer():  # first asked for after a step: before, the run may still be refused
        return tensorboard(folder, stage.run.step) if folder else None

    def tell(progress: Progress) -> None:
        numbers = dict(progress.losses)
        if every and (progress.step % every == 0 or progress.step == progress.steps):
            grid = picture_grid(stage.preview())
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                grid.save(folder / f"{name}_{progress.step:06d}.jpg", quality=90)
            measured = dict(measure()) if measure else {}
            for key, value in ({"measured_at": float(progress.step)} | measured).items() if measured else ():
                stage.run.history.setdefault(key, []).append(value)
            numbers |= measured
        if numbers:
            log.info("%s step %d of %d: %s", name, progress.step, progress.steps,
                     ", ".join(f"{key} {value:.4f}" for key, value in numbers.items()))
        if writer():
            for key, value in numbers.items():
                writer().add_scalar(f"{name}/{key}", value, progress.step)
            writer().flush()
    return tell


def tensorboard(folder: Path, first: int):
    """A writer of TensorBoard's event files, or None where the extra `train` is not installed.

    first: the step that comes next; what earlier runs wrote of it and later ones counts no more.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed (pip install .[train]): no event files are written")
        return None
    return SummaryWriter(str(folder), purge_step=first)


def picture_grid(pictures: Tensor, columns: int = 4) -> Image.Image:
    """Pictures (N, 3, H, W) in [-1, 1], row by row."""
    missing = -len(pictures) % columns
    filled = torch.cat([pictures, pictures.new_ones(missing, *pictures.shape[1:])]) if missing else pictures
    rows = [torch.cat(list(row), 2) for row in filled.split(columns)]
    return Image.fromarray(to_bytes(torch.cat(rows, 1)).permute(1, 2, 0).numpy())
