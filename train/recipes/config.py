"""What every recipe is given: folders of pictures, and where and how it runs."""
from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import nn

from ..data import find_pictures, split
from ..distributed import SINGLE_PROCESS, Distributed
from ..gan import TrainingStage
from ..loop import Checkpointing, Hooks, Progress, Run
from ..session import hash_of_network
from ..stages import RunConfig, reporter, run_stage
from ..stream import hash_of_files

# what decides a training's result beside its configuration: networks, files of pictures, texts
Identity = dict[str, nn.Module | Sequence[Path] | str]
MOST_MEASURED = 1000  # values of a history that a finished model's file tells


@dataclass(frozen=True)
class Folders:
    """Where the pictures lie. art holds a folder for each class. exclude: art classes that no training sees.

    holdout: every N-th picture of a folder is held out. weights: (pattern, how often a class of art comes beside the
    others, which come once), * stands for anything. Names and patterns that no class has are refused.
    """
    photos: Path
    art: Path | None = None
    exclude: tuple[str, ...] = ()
    holdout: int = 10
    weights: tuple[tuple[str, float], ...] = ()

    @functools.cached_property
    def photos_found(self) -> list[Path]:
        """All photos that can be opened, which is tried once."""
        return find_pictures(self.photos)

    @functools.cached_property
    def art_found(self) -> list[Path]:
        """The same of the art; [] if there is none."""
        return [] if self.art is None else find_pictures(self.art)

    def photo_paths(self) -> tuple[list[Path], list[Path]]:
        return split(self.photos_found, self.holdout)

    def art_paths(self) -> tuple[list[Path], list[Path]]:
        if self.art is None:
            return [], []
        self.check_names({path.parent.name for path in self.art_found})
        kept = [path for path in self.art_found if path.parent.name not in self.exclude]
        return self.with_their_photos(*split(kept, self.holdout))

    def with_their_photos(self, trained: list[Path], held_out: list[Path]) -> tuple[list[Path], list[Path]]:
        """(training, held out) of drawings, those of photos in folders as the photos are: they lie in one folder and
        are called FOLDER_NAME (see art_folders.render), so that counting them would hold out others."""
        if not held_out:
            return trained, held_out
        held = {"_".join(path.relative_to(self.photos).with_suffix("").parts): part
                for part, paths in enumerate(self.photo_paths()) for path in paths if path.parent != self.photos}
        parts: tuple[list[Path], list[Path]] = ([], [])
        for path, part in sorted([(path, 0) for path in trained] + [(path, 1) for path in held_out]):
            parts[held.get(path.stem, part)].append(path)
        return parts

    def check_names(self, classes: set[str]) -> None:
        """ValueError for a name of `exclude` or a pattern of `weights` that no class has."""
        unknown = [name for name in self.exclude if name not in classes]
        unknown += [pattern for pattern, _ in self.weights if not any(fnmatch(name, pattern) for name in classes)]
        if unknown:
            raise ValueError(f"no class of art is called {unknown[0][:40]!r}; there are {', '.join(sorted(classes))}")

    def groups(self, part: int, photo_share: float) -> list[tuple[list[Path], float]]:
        """(pictures, share of a batch) of the photos and of each class of art: a class weighs the same however many
        pictures and folders it has. part: 0 for those to train on, 1 for those held out."""
        classes: dict[str, list[Path]] = {}
        for path in self.art_paths()[part]:
            classes.setdefault(path.parent.name, []).append(path)
        total = sum(map(self.weight_of, classes))
        shares = ((paths, (1 - photo_share) * self.weight_of(name) / total) for name, paths in classes.items())
        return [(self.photo_paths()[part], photo_share), *shares]

    def weight_of(self, name: str) -> float:
        """How often a class of art comes beside others."""
        return next((weight for pattern, weight in self.weights if fnmatch(name, pattern)), 1.0)

    def weights_text(self) -> str:
        """The weights as settings name them."""
        return ",".join(f"{name}={weight:g}" for name, weight in self.weights)

    def art_weights(self, paths: Sequence[Path]) -> tuple[float, ...]:
        """How often each picture of art comes beside the others, so that its class weighs what it should."""
        count = Counter(path.parent.name for path in paths)
        return tuple(self.weight_of(path.parent.name) / count[path.parent.name] for path in paths)


@dataclass(frozen=True)
class RecipeConfig:
    """Where a recipe writes and how it runs. out: file to write. preview_every: steps between sample grids and
    measurements, 0 for none. keep: snapshots that are kept (see loop.Checkpointing). hooks: called beside the log."""
    out: Path
    device: torch.device
    distributed: Distributed = SINGLE_PROCESS
    save_every: int = 1000
    log_every: int = 100
    preview_every: int = 1000
    minutes: float = 0.0
    resume: bool = True
    keep: int = 1
    hooks: Hooks = Hooks()

    @property
    def run(self) -> RunConfig:
        checkpointing = Checkpointing(self.out.with_suffix(".snapshot"), self.save_every, self.resume,
                                      keep=self.keep)
        return RunConfig(self.device, checkpointing, self.log_every, self.minutes, self.distributed)

    def train(self, stage: TrainingStage, networks_and_pictures: Identity,
              measure: Callable[[], Mapping[str, float]] | None = None, kind: str = "training stage") -> TrainingStage:
        """Run the stage. networks_and_pictures: what decides the result; a snapshot made with others is refused. kind:
        of training, as snapshots name it."""
        settings = {name: identity_of(x) for name, x in networks_and_pictures.items()}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        run_stage(stage, settings | {"training": kind}, self.run, self.stage_hooks(stage, measure))
        return stage

    def stage_hooks(self, stage: TrainingStage, measure: Callable[[], Mapping[str, float]] | None = None) -> Hooks:
        """The recipe's hooks; the main process also logs, see stages.reporter."""
        if not self.distributed.is_main_process:
            return Hooks(check_interrupt=self.hooks.check_interrupt)
        folder = self.out.with_name(self.out.stem + "_log")
        return self.logged(reporter(self.out.stem, stage, folder, self.preview_every, measure))

    def logged(self, report: Callable[[Progress], None]) -> Hooks:
        """The recipe's hooks, after each iteration `report` first."""
        def on_iteration(progress: Progress) -> None:
            report(progress)
            self.hooks.on_iteration(progress)
        return replace(self.hooks, on_iteration=on_iteration)


def identity_of(part: nn.Module | Sequence[Path] | str) -> str:
    """What stands in a snapshot for a network, for pictures, or for a text (itself)."""
    if isinstance(part, str):
        return part
    return hash_of_network(part) if isinstance(part, nn.Module) else hash_of_files(part)


def measured(run: Run, *names: str) -> dict[str, list[float]]:
    """What was measured while training, and at which steps; of more than MOST_MEASURED, those spread over all of it."""
    return {key: thinned(run.loss_history.get(key, [])) for key in (*names, "measured_at")}


def thinned(values: Sequence[float], most: int = MOST_MEASURED) -> list[float]:
    """At most so many (two or more) of the values, at equal distances, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[k * (len(values) - 1) // (most - 1)] for k in range(most)]
