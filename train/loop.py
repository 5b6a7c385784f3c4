"""The one training loop: steps, seeds, moving averages, saving, stopping. Knows no model and no host.

A step's random numbers depend on (seed, step) alone, so a run that is stopped and resumed from its snapshot gives the
same result as one that was not.
"""
from __future__ import annotations

import copy
import functools
import logging
import math
import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..models import rng

log = logging.getLogger(__name__)
progress_log = logging.getLogger(f"{__name__}.progress")  # whoever shows the progress otherwise turns it off
LOSS_HISTORY = "loss_history"  # in a snapshot
ASKED_EVERY = 5  # steps after which several processes ask each other whether one is to stop: they wait for it
Losses = Mapping[str, Tensor]
Net = TypeVar("Net", bound=nn.Module)


@dataclass
class Run:
    """All that changes while training.

    ema holds the moving-average copy of a net, under the net's name. partial: empty between two steps of the loop;
    within one, where it stands: "done", the optimiser steps it has made, and what it needs to be resumed there. Its
    tensors are saved and restored like the nets.
    """
    nets: dict[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    ema: dict[str, nn.Module] = field(default_factory=dict)
    step: int = 0
    loss_history: dict[str, list[float]] = field(default_factory=dict)
    partial: dict[str, Tensor] = field(default_factory=dict)

    def net(self, name: str, kind: type[Net]) -> Net:
        """The net of this name; TypeError if it is of another kind."""
        return of_kind(self.nets, name, kind)

    def average(self, name: str, kind: type[Net]) -> Net:
        """The moving average of the net of this name; TypeError if it is of another kind."""
        return of_kind(self.ema, name, kind)


def of_kind(nets: Mapping[str, nn.Module], name: str, kind: type[Net]) -> Net:
    """The network of this name; TypeError if it is of another kind."""
    net = nets[name]
    if not isinstance(net, kind):
        raise TypeError(f"the network {name!r} of this run is a {type(net).__name__}, not a {kind.__name__}")
    return net


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of losses, one at least."""
    return functools.reduce(operator.add, losses.values())


@dataclass(frozen=True)
class LoopConfig:
    """steps: in all. save_every, log_every: in steps; save_every 0 saves at the end and when the run is stopped only.

    ema_decay: of the moving average; ema_ramp: of a young run less, see `update_ema`. minutes: stop (and save) after so
    long, 0 for no limit.
    """
    steps: int
    seed: int = 0
    save_every: int = 0
    log_every: int = 1
    ema_decay: float = 0.0
    minutes: float = 0.0
    ema_ramp: bool = False

    def __post_init__(self) -> None:
        if self.log_every < 1:
            raise ValueError("log_every must be at least 1")

    def saves_at(self, step: int) -> bool:
        return step == self.steps or bool(self.save_every) and step % self.save_every == 0


@dataclass(frozen=True)
class StepResult:
    """What is told after an optimiser step. predictions: the pictures it was made on, [-1, 1]; index: of the reverse
    chain (OSASIS), else 0."""
    iteration: int
    index: int
    losses: Losses
    predictions: Tensor


@dataclass(frozen=True)
class Progress:
    """What is told after a step of the loop: how far the run is and, at logged steps, its losses."""
    step: int
    steps: int
    losses: Mapping[str, float]


def log_losses(name: str, progress: Progress, values: Mapping[str, float]) -> None:
    """A line of what a training has reached; nothing without values."""
    if values:
        progress_log.info("%s step %d of %d: %s", name, progress.step, progress.steps,
                          ", ".join(f"{key} {value:.4f}" for key, value in values.items()))


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Hooks:
    """What a training calls. Each may raise to stop it: what was reached is saved, and the exception is raised again.

    on_start: once, with the run as it begins or is resumed. on_step: after every optimiser step. on_iteration: after
    every step of the loop, before it is saved. check_interrupt: before every network call of the loops. warn: what the
    user should know while the training continues. tell: what the user may like to know.
    """
    on_start: Callable[[Run], None] = _ignore
    on_step: Callable[[StepResult], None] = _ignore
    on_iteration: Callable[[Progress], None] = _ignore
    check_interrupt: Callable[[], None] = _ignore
    warn: Callable[[str], None] = log.warning
    tell: Callable[[str], None] = log.info

    def sampler(self) -> Callable[[int, Tensor, Tensor], None]:
        """A sampler's hook that checks for an interrupt."""
        return lambda *_: self.check_interrupt()


@dataclass(frozen=True)
class Checkpointing:
    """Where a training is saved (None: nowhere), how often (in steps of its loop), and whether it is resumed.

    changed_pictures: resume also if the sets of pictures were others; the result is then that of neither set alone.
    keep: snapshots that are kept, the newest and earlier ones, for whoever asks for fewer steps later.
    """
    path: Path | None = None
    every: int = 0
    resume: bool = True
    changed_pictures: bool = False
    keep: int = 1

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep is {self.keep}; the newest snapshot is always kept: set it to 1 or more")


Step = Callable[[int, Hooks], Losses]


class NonFiniteLoss(ValueError):
    """A loss became NaN or infinite: nothing of that step is saved."""


class StoppedTogether(Exception):
    """Another process of the training was stopped, and all stop at the same step."""


def ema_copy(net: Net) -> Net:
    """A frozen copy to be moved by the loop."""
    return copy.deepcopy(net).eval().requires_grad_(False)


def train(run: Run, step: Step, config: LoopConfig, device: torch.device, hooks: Hooks = Hooks(),
          save: Callable[[Run], None] | None = None, broadcast_flag: Callable[[bool], bool] | None = None,
          any_flag: Callable[[bool], bool] | None = None) -> Run:
    """Call `step(k, hooks)` for k = run.step .. config.steps - 1. The step updates the nets and returns its losses.

    `save` is called every `save_every` steps, at the end, at a time limit, and when a hook, the user or an error stops
    the run (unless in the middle of an update: then the last snapshot is kept). Of several processes, `broadcast_flag`
    makes one answer to "is the time up?" of each one's: it is asked at logged steps only, where they wait for each
    other anyway, and all stop at the same step. `any_flag` tells whether any process says yes, see `stop_together`:
    then nothing stops them within a step, where the others would wait for ever. Raises NonFiniteLoss, where losses are
    logged or saved.
    """
    saver, started, first = _Saver(save, run, hooks.warn), time.monotonic(), run.step
    within = replace(hooks, check_interrupt=_ignore) if any_flag else hooks
    try:
        while run.step < config.steps:
            if not any_flag:
                hooks.check_interrupt()
            elif run.step == first or run.step % ASKED_EVERY == 0:
                stop_together(hooks.check_interrupt, any_flag)
            with rng.seeded(config.seed, "step", run.step, device=device):
                losses = step(run.step, within)
            update_ema(run, config.ema_decay, config.ema_ramp)
            run.step, run.partial = run.step + 1, {}
            saver.unchecked.append((run.step, losses))
            logged = run.step % config.log_every == 0 or run.step == config.steps
            out_of_time = 0 < 60 * config.minutes < time.monotonic() - started
            if broadcast_flag and config.minutes:
                out_of_time = logged and broadcast_flag(out_of_time)
            due = config.saves_at(run.step) or out_of_time
            values = saver.check() if logged or due else {}
            for name, value in values.items() if logged else ():
                run.loss_history.setdefault(name, []).append(value)
            hooks.on_iteration(Progress(run.step, config.steps, values if logged else {}))  # may measure: saved, too
            if due:
                saver.save(last=out_of_time or run.step == config.steps)
            if out_of_time:
                break
    except NonFiniteLoss:
        raise
    except BaseException:
        saver.save_unsaved()
        raise
    finally:
        saver.close()
    return run


def stop_together(check_interrupt: Callable[[], None], any_flag: Callable[[bool], bool]) -> None:
    """Where the check of any process raises, all raise: what their own check did, or StoppedTogether."""
    reason: BaseException | None = None
    try:
        check_interrupt()
    except BaseException as error:  # noqa: BLE001 - raised below, once the others know of it
        reason = error
    if any_flag(reason is not None):
        raise reason or StoppedTogether("another process of this training was stopped")


def finite(losses: Losses, step: int) -> dict[str, float]:
    """The losses as numbers. NonFiniteLoss names the first that is none."""
    numbers = [torch.as_tensor(value).detach().float() for value in losses.values()]
    values = dict(zip(losses, torch.stack(numbers).tolist() if numbers else []))  # one read from the device
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the loss '{name}' became {value} at step {step}. The last snapshot is kept as it "
                                "was. Use a lower learning rate, or precision float32 or bfloat16")
    return values


class _Saver:
    """Saves a run where it can be saved: its losses are finite, and its weights are those of its step."""

    def __init__(self, write: Callable[[Run], None] | None, run: Run, warn: Callable[[str], None]) -> None:
        self.write, self.run, self.warn = write, run, warn
        self.unchecked: list[tuple[int, Losses]] = []
        self.saved, self.moved_from = self.position, None
        self.handles = [optimizer.register_step_pre_hook(self._moves) for optimizer in run.optimizers.values()]

    @property
    def position(self) -> tuple[int, int]:
        return self.run.step, int(self.run.partial.get("done", 0))

    def _moves(self, *_: object) -> None:
        """An optimiser step begins: until the position is another one, the weights are ahead of it."""
        self.moved_from = self.position

    def check(self) -> dict[str, float]:
        """The last losses as numbers. NonFiniteLoss for the first unchecked ones that are none."""
        values: dict[str, float] = {}
        for step, losses in self.unchecked:
            values = finite(losses, step)
        self.unchecked.clear()
        return values

    def save(self, last: bool = False) -> None:
        """A save that fails is reported, and the next one tries again: the training must not be lost with it. After
        the last one, the caller has the result all the same."""
        if not self.write:
            return
        try:
            self.write(self.run)
            self.saved = self.position
        except (OSError, ValueError) as error:
            then = ("The training is complete, and its result can be used and saved elsewhere. It cannot be resumed "
                    "from here." if last else "Training continues, and the next save tries again.")
            self.warn(f"The snapshot could not be saved at step {self.run.step}: {error}. {then}")

    def save_unsaved(self) -> None:
        """After an error: keep what was reached, and let the error itself be the one that is seen."""
        if self.position in (self.saved, self.moved_from):
            return
        try:
            self.check()
            self.save()
        except Exception as error:  # noqa: BLE001 - the error that stopped the run must be the one that is seen
            self.warn(f"The run could not be saved at step {self.run.step}: {error}")

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def update_ema(run: Run, decay: float, ramp: bool = False) -> None:
    """ema <- decay * ema + (1 - decay) * net. With the ramp a young run forgets faster: decay <= (1 + k) / (10 + k)."""
    weight = 1 - (min(decay, (1 + run.step) / (10 + run.step)) if ramp else decay)
    for name, ema in run.ema.items():
        # torch's stubs leave the _foreach functions out
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(ema.parameters()), list(run.nets[name].parameters()), weight)


# --- snapshots --------------------------------------------------------------------------------------------------------
def snapshot(run: Run) -> tuple[dict[str, Tensor], dict]:
    """Everything needed to resume, copied: flat tensors and a JSON-able dict. Histories are tensors: they grow with
    every step, and what the header of a file may hold is bounded."""
    tensors = {f"partial/{key}": value for key, value in run.partial.items()}
    tensors |= {f"{LOSS_HISTORY}/{name}": torch.tensor(values, dtype=torch.float64)
                for name, values in run.loss_history.items()}
    for group, nets in (("net", run.nets), ("ema", run.ema)):
        for name, net in nets.items():
            tensors |= {f"{group}/{name}/{key}": value for key, value in net.state_dict().items()}
    for name, optimizer in run.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{name}/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
    return ({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()},
            {"step": run.step})


def restore(run: Run, tensors: Mapping[str, Tensor], meta: Mapping) -> None:
    """Put a snapshot (one that models.loading.check_snapshot has passed) into a run that was built the same way.
    Raises ValueError, KeyError, TypeError, IndexError or RuntimeError if it does not fit."""
    loss_history = history_of(tensors, meta)
    for group, nets in (("net", run.nets), ("ema", run.ema)):
        for name, net in nets.items():
            net.load_state_dict(_under(tensors, f"{group}/{name}/"))
    for name, optimizer in run.optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, f"optimizer/{name}/").items():
            index, field_name = key.split("/", 1)
            state.setdefault(int(index), {})[field_name] = _as_moment_of(parameters[int(index)], value, key)
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    run.step, run.loss_history, run.partial = meta["step"], loss_history, _under(tensors, "partial/")


def history_of(tensors: Mapping[str, Tensor], meta: Mapping) -> dict[str, list[float]]:
    """The losses of a snapshot by name. Those that version 0.2.0 wrote lie in its meta."""
    listed = {str(name): [float(v) for v in values] for name, values in meta.get(LOSS_HISTORY, {}).items()}
    return listed | {name: values.tolist() for name, values in _under(tensors, f"{LOSS_HISTORY}/").items()}


def _as_moment_of(parameter: Tensor, value: Tensor, name: str) -> Tensor:
    """Optimiser state, moments in their parameter's memory format, which fused optimisers insist on."""
    if value.ndim == 0:
        return value
    if value.shape != parameter.shape:
        raise ValueError(f"its optimiser state '{name[:80]}' has shape {list(value.shape)}, "
                         f"not {list(parameter.shape)}")
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}
