"""The one training loop: steps, seeds, averages, saving and going on, with a callback. Knows no model and no host.

A step's random numbers depend on (seed, step) alone, so a run that is stopped and resumed from its snapshot gives the
same result as one that was not.
"""
from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Losses = Mapping[str, Tensor]


@dataclass
class Run:
    """All that changes while training. `averages` holds the moving-average copy of a net, under the net's name."""
    nets: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    averages: dict[str, nn.Module] = field(default_factory=dict)
    step: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class LoopConfig:
    """steps: in all. save_every, log_every: in steps, save_every 0 for never. average: decay of the moving average."""
    steps: int
    seed: int = 0
    save_every: int = 0
    log_every: int = 1
    average: float = 0.0
    minutes: float = 0.0  # stop (and save) after so long, 0 for no limit

    def __post_init__(self):
        if self.log_every < 1:
            raise ValueError("log_every must be at least 1")


@dataclass(frozen=True)
class Progress:
    """What a callback is told after a step: how far the run is and, at logged steps, its losses."""
    step: int
    steps: int
    losses: Mapping[str, float]


def average_of(net: nn.Module) -> nn.Module:
    """A frozen copy to be moved by the loop."""
    return copy.deepcopy(net).eval().requires_grad_(False)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of torch's own generators (dropout) are fixed inside and untouched outside."""
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type=device.type):
        torch.manual_seed(seed)
        yield


def step_seed(seed: int, step: int) -> int:
    """A seed for one step; neighbouring seeds and steps give unrelated ones."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2 ** 64 - 1)
    mixed = ((mixed ^ (mixed >> 31)) * 0xD6E8FEB86659FD93) & (2 ** 64 - 1)
    return (mixed ^ (mixed >> 32)) & (2 ** 63 - 1)


def train(run: Run, step: Callable[[int], Losses], config: LoopConfig, device: torch.device, *,
          save: Callable[[Run], None] | None = None, callback: Callable[[Progress], None] | None = None,
          agree: Callable[[bool], bool] | None = None) -> Run:
    """Call `step(k)` for k = run.step .. config.steps - 1. The step updates the nets and returns its losses.

    `callback` may raise to stop the run. `save` is called every `save_every` steps and at a time limit. Of several
    processes, `agree` makes one answer to "is the time up?" of each one's: it is asked at logged steps only, where
    they wait for each other anyway, and all stop at the same step.
    """
    started = time.monotonic()
    while run.step < config.steps:
        k = run.step
        with seeded(step_seed(config.seed, k), device):
            losses = step(k)
        update_averages(run, config.average)
        run.step = k + 1
        logged = run.step % config.log_every == 0 or run.step == config.steps
        values = {name: float(v) for name, v in losses.items()} if logged else {}
        for name, value in values.items():
            run.history.setdefault(name, []).append(value)
        out_of_time = 0 < 60 * config.minutes < time.monotonic() - started
        if agree and config.minutes:
            out_of_time = logged and agree(out_of_time)
        if save and (out_of_time or (config.save_every and run.step % config.save_every == 0)):
            save(run)
        if callback:
            callback(Progress(run.step, config.steps, values))
        if out_of_time:
            break
    return run


@torch.no_grad()
def update_averages(run: Run, decay: float) -> None:
    """average <- decay * average + (1 - decay) * net; a young run forgets faster: decay <= (1 + k) / (10 + k)."""
    rate = 1 - min(decay, (1 + run.step) / (10 + run.step))
    for name, average in run.averages.items():
        torch._foreach_lerp_(list(average.parameters()), list(run.nets[name].parameters()), rate)


def snapshot(run: Run) -> tuple[dict[str, Tensor], dict]:
    """Everything needed to go on, copied: flat tensors and a JSON-able dict."""
    tensors = {}
    for group, nets in (("net", run.nets), ("average", run.averages)):
        for name, net in nets.items():
            tensors |= {f"{group}/{name}/{key}": value for key, value in net.state_dict().items()}
    for name, optimizer in run.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{name}/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
    return ({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()},
            {"step": run.step, "history": {name: list(values) for name, values in run.history.items()}})


def restore(run: Run, tensors: Mapping[str, Tensor], meta: Mapping) -> None:
    """Put a snapshot into a run that was built the same way. Raises ValueError or RuntimeError if it does not fit."""
    for group, nets in (("net", run.nets), ("average", run.averages)):
        for name, net in nets.items():
            net.load_state_dict(_under(tensors, f"{group}/{name}/"))
    for name, optimizer in run.optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, f"optimizer/{name}/").items():
            index, field_name = key.split("/", 1)
            state.setdefault(int(index), {})[field_name] = _laid_out_as(parameters[int(index)], value)
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    run.step = int(meta["step"])
    run.history = {name: list(map(float, values)) for name, values in meta["history"].items()}


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Moments in their parameter's memory format, which fused optimisers insist on."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}
