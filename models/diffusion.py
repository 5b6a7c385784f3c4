"""Schedules, spacing rules and the steps of DDIM, DPM-Solver++(2M) and DDPM sampling (docs/osasis.md A.8, A.10, B).

alpha-bar_t is the product of (1 - beta) over steps 0 .. t. Schedules are float64 Python numbers: no transfers.
A network is seen as `denoise(x, t) -> eps` with x (B, 3, H, W) or (B, E) and t the original integer time 0 .. 999.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from .precision import float64_device
from .unet import Codes, UNetConfig

TRAIN_STEPS = 1000
SOLVERS = ("ddim", "dpmpp_2m")
Denoise = Callable[[Tensor, int], Tensor]
StepHook = Callable[[int, Tensor, Tensor], None]


def linear_alpha_bar(steps: int = TRAIN_STEPS, first: float = 1e-4, last: float = 0.02,
                     device: torch.device | None = None) -> Tensor:
    """alpha-bar of the linear schedule, float64 (steps,); made on the device alone, so that a graph can hold it (on the
    CPU where the device has no float64)."""
    place = device and float64_device(device)
    return torch.cumprod(1 - torch.linspace(first, last, steps, dtype=torch.float64, device=place), 0)


def constant_alpha_bar(beta: float = 0.008, steps: int = TRAIN_STEPS) -> Tensor:
    """alpha-bar of the latent DDIM's constant schedule, float64 (steps,)."""
    return torch.cumprod(torch.full((steps,), 1 - beta, dtype=torch.float64), 0)


def ddim_times(count: int, steps: int = TRAIN_STEPS) -> tuple[int, ...]:
    """DiffAE's spacing: the smallest stride k for which range(0, steps, k) has `count` members."""
    for k in range(1, steps + 1):
        if len(range(0, steps, k)) == count:
            return tuple(range(0, steps, k))
    raise ValueError(f"{count} steps cannot be spaced evenly over {steps}; take 10, 20, 50, 100 or another divisor")


def respaced_times(count: int, steps: int = TRAIN_STEPS) -> tuple[int, ...]:
    """Improved-DDPM respacing: `count` rounded values from 0 to steps - 1."""
    if not isinstance(count, int) or not 2 <= count <= steps:
        raise ValueError(f"respacing needs 2 to {steps} steps, not {count}")
    stride, at, times = (steps - 1) / (count - 1), 0.0, []
    for _ in range(count):
        times.append(round(at))
        at += stride
    return tuple(times)


class NoisePredictor(Protocol):
    """A UNet, or what stands for one."""
    @property
    def config(self) -> UNetConfig: ...
    def modulation(self, t: Tensor, z: Codes = None) -> Tensor: ...
    def time_modulation(self, t: Tensor) -> Tensor: ...
    def code_modulation(self, z: Codes = None) -> Tensor | float: ...
    def __call__(self, x: Tensor, modulation: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Schedule:
    """A spaced schedule. times[i] is what the network is fed; alpha_bar(i) its signal level."""
    times: tuple[int, ...]
    alphas: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.times)

    def alpha_bar(self, i: int) -> float:
        """a_i, with a_{-1} = 1 (clean) and a_T = 0 (after the last)."""
        return 1.0 if i < 0 else 0.0 if i >= len(self.alphas) else self.alphas[i]

    def num_steps(self, t0: float) -> int:
        """How many steps lie below t0 (0..1): the chain runs over indices 0 .. num_steps(t0) - 1."""
        return int(len(self) * t0)


def ddim_schedule(count: int, alpha_bar: Tensor | None = None) -> Schedule:
    """The DDIM schedule of DiffAE with `count` steps."""
    times = ddim_times(count)
    a = linear_alpha_bar() if alpha_bar is None else alpha_bar
    return Schedule(times, tuple(float(a[t]) for t in times))


def check_steps(config: object, *names: str) -> None:
    """ValueError names the first of the configuration's fields whose number of steps no DDIM schedule has."""
    for name in names:
        try:
            ddim_times(getattr(config, name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def respaced_schedule(count: int) -> Schedule:
    """The DDPM schedule of P2 with `count` steps."""
    times, a = respaced_times(count), linear_alpha_bar()
    return Schedule(times, tuple(float(a[t]) for t in times))


def eps_of_v(v: Tensor, x: Tensor, alpha_bar: Tensor | float) -> Tensor:
    """eps = sqrt(abar) v + sqrt(1 - abar) x, for v = sqrt(abar) eps - sqrt(1 - abar) x0."""
    return alpha_bar ** 0.5 * v + (1 - alpha_bar) ** 0.5 * x


def denoiser(unet: NoisePredictor, z: Codes = None, times: Sequence[int] = ()) -> Denoise:
    """`denoise(x, t)` -> eps (and the variance's channels, if there are any) in float32, of a network that predicts eps
    or v; z as in `UNet.modulation`. times: what z and all of these times do is computed once, at the first call."""
    alpha_bar, places = linear_alpha_bar(), {time: i for i, time in enumerate(times)}

    @cache
    def prepared(device: torch.device) -> tuple[Tensor, Tensor | float]:
        return unet.time_modulation(torch.tensor(times, device=device)), unet.code_modulation(z)

    def modulation(x: Tensor, t: int) -> Tensor:
        if t not in places:
            return unet.modulation(torch.full((1,), t, device=x.device), z)
        by_time, codes = prepared(x.device)
        return by_time[:, places[t]:places[t] + 1] * codes

    def denoise(x: Tensor, t: int) -> Tensor:
        return eps_of(unet(x, modulation(x, t)).float(), x, float(alpha_bar[t]), unet.config.prediction)
    return denoise


def eps_of(output: Tensor, x: Tensor, alpha_bar: Tensor | float, prediction: str) -> Tensor:
    """eps (and the variance's channels, if there are any) of a network's output at x; prediction: "eps" or "v"."""
    if prediction == "eps":
        return output
    return torch.cat([eps_of_v(output[:, :3], x.float(), alpha_bar), output[:, 3:]], 1)


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: float | Tensor) -> Tensor:
    """q(x_t | x_0): sqrt(abar) x0 + sqrt(1 - abar) noise."""
    if not isinstance(alpha_bar, Tensor):
        return x0 * alpha_bar ** 0.5 + noise * (1 - alpha_bar) ** 0.5
    return x0 * alpha_bar.sqrt() + noise * (1 - alpha_bar).sqrt()


def predict_x0(x: Tensor, eps: Tensor, alpha_bar: float | Tensor, clamp_x0: bool = True) -> tuple[Tensor, Tensor]:
    """(x0, eps recomputed from it): x0 is clamped to [-1, 1] if `clamp_x0`, as everywhere but in the latent DDIM."""
    x0 = x * (1 / alpha_bar) ** 0.5 - eps * (1 / alpha_bar - 1) ** 0.5
    if clamp_x0:
        x0 = x0.clamp(-1, 1)
    return x0, (x * (1 / alpha_bar) ** 0.5 - x0) / (1 / alpha_bar - 1) ** 0.5


def ddim_between(x: Tensor, eps: Tensor, alpha_bar: float | Tensor, to: float | Tensor,
                 clamp_x0: bool = True) -> tuple[Tensor, Tensor]:
    """One deterministic step from a signal level to another. Returns (x0, next x)."""
    x0, eps = predict_x0(x, eps, alpha_bar, clamp_x0)
    return x0, x0 * to ** 0.5 + eps * (1 - to) ** 0.5


def ddim_step(x: Tensor, eps: Tensor, schedule: Schedule, i: int, to: int,
              clamp_x0: bool = True) -> tuple[Tensor, Tensor]:
    """One deterministic step from index i to index `to` (i - 1 decodes, i + 1 encodes). Returns (x0, next x)."""
    return ddim_between(x, eps, schedule.alpha_bar(i), schedule.alpha_bar(to), clamp_x0)


def ddim_forward(denoise: Denoise, x: Tensor, schedule: Schedule, indices: Iterable[int],
                 hook: StepHook | None = None) -> Tensor:
    """Encode: the structural code of x after the given indices, 0 .. n - 1 (Eq. 7 of the paper, A.8)."""
    for i in indices:
        x0, x = ddim_step(x, denoise(x, schedule.times[i]), schedule, i, i + 1)
        if hook:
            hook(i, x0, x)
    return x


def ddim_reverse(denoise: Denoise, x: Tensor, schedule: Schedule, indices: Iterable[int], *, clamp_x0: bool = True,
                 x_hook: Callable[[Tensor, int], Tensor] | None = None, hook: StepHook | None = None) -> Tensor:
    """Decode over falling indices. `x_hook(x, i)` changes x before each network call (the SPN); eta = 0."""
    for i in indices:
        if x_hook:
            x = x_hook(x, i)
        x0, x = ddim_step(x, denoise(x, schedule.times[i]), schedule, i, i - 1, clamp_x0)
        if hook:
            hook(i, x0, x)
    return x


def posterior_variance(schedule: Schedule, i: int) -> float:
    """beta-tilde_i of the spaced chain."""
    beta = 1 - schedule.alpha_bar(i) / schedule.alpha_bar(i - 1)
    return beta * (1 - schedule.alpha_bar(i - 1)) / (1 - schedule.alpha_bar(i))


def ancestral_step(x: Tensor, output: Tensor, schedule: Schedule, i: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One DDPM step. `output` has 3 channels (eps; variance beta-tilde) or 6 (eps and variance interpolation).

    Returns (clamped x0, next x); the noise (same shape as x) is not used at i = 0.
    """
    a, before = schedule.alpha_bar(i), schedule.alpha_bar(i - 1)
    beta = 1 - a / before
    x0, _ = predict_x0(x, output[:, :3], a)
    mean = x0 * (before ** 0.5 * beta / (1 - a)) + x * ((1 - beta) ** 0.5 * (1 - before) / (1 - a))
    if i == 0:
        return x0, mean
    low = math.log(posterior_variance(schedule, i))
    if output.shape[1] == 3:
        return x0, mean + noise * math.exp(low / 2)
    fraction = (output[:, 3:] + 1) / 2
    return x0, mean + torch.exp((fraction * math.log(beta) + (1 - fraction) * low) / 2) * noise


# --- few steps: DPM-Solver++(2M) (A.10) -------------------------------------------------------------------------------
def quadratic_schedule(count: int, last: int) -> Schedule:
    """A schedule of `count` (at least 1) different times from 0 to `last`, whose square roots are evenly spaced.

    ValueError if there are fewer times than that.
    """
    if not 1 <= count <= last + 1:
        raise ValueError(f"{count} steps do not fit between the times 0 and {last}; take 1 to {last + 1}")
    times: list[int] = []
    for left in range(count - 1, -1, -1):
        even = round(last * (1 - left / max(count - 1, 1)) ** 2)
        times.append(min(max(even, times[-1] + 1 if times else 0), last - left))
    alpha_bar = linear_alpha_bar()
    return Schedule(tuple(times), tuple(float(alpha_bar[t]) for t in times))


def encoding_schedule(count: int, t0: float) -> Schedule:
    """Where `count` steps of encoding up to t0 (0..1] begin, and where the last of them ends. At t0 = 1 it ends at
    abar 0, which is behind the schedule."""
    end = round(TRAIN_STEPS * t0)
    return quadratic_schedule(count + 1, end) if end < TRAIN_STEPS else quadratic_schedule(count, TRAIN_STEPS - 1)


def decoding_schedule(count: int, t0: float, below: int = 0) -> Schedule:
    """Where `count` steps of decoding begin: from `below` times below t0 (0..1] down to 0."""
    return quadratic_schedule(count, max(min(round(TRAIN_STEPS * t0), TRAIN_STEPS - 1) - below, 0))


def log_snr(alpha_bar: float) -> float:
    """lambda = log(alpha / sigma) for 0 < abar < 1."""
    return (math.log(alpha_bar) - math.log1p(-alpha_bar)) / 2


def dpmpp_2m_step(x: Tensor, x0: Tensor, before: Tensor, schedule: Schedule, i: int, to: int) -> Tensor:
    """x at index `to` = i - 1 or i + 1, of x and the prediction x0 at i, and the one `before` at the index before i.

    It is DDIM's step with x0 extrapolated, linearly in lambda, to the middle of the step.
    """
    towards = to - i
    here = log_snr(schedule.alpha_bar(i))
    ratio = (log_snr(schedule.alpha_bar(to)) - here) / (here - log_snr(schedule.alpha_bar(i - towards)))
    middle = x0 + (x0 - before) * (ratio / 2)
    a, b = schedule.alpha_bar(i), schedule.alpha_bar(to)
    return middle * b ** 0.5 + (x - middle * a ** 0.5) * ((1 - b) / (1 - a)) ** 0.5


def dpmpp_2m(denoise: Denoise, x: Tensor, schedule: Schedule, indices: range, *, clamp_x0: bool = True,
             x_hook: Callable[[Tensor, int], Tensor] | None = None, hook: StepHook | None = None) -> Tensor:
    """Encode over rising, decode over falling indices (step 1 or -1), a network call each; hooks as in `ddim_reverse`.

    The first step and one that ends at abar 0 or 1 are DDIM's.
    """
    before: Tensor | None = None
    for i in indices:
        to = i + indices.step
        if x_hook:
            x = x_hook(x, i)
        x0, following = ddim_step(x, denoise(x, schedule.times[i]), schedule, i, to, clamp_x0)
        if before is not None and 0 < schedule.alpha_bar(to) < 1:
            following = dpmpp_2m_step(x, x0, before, schedule, i, to)
        before, x = x0, following
        if hook:
            hook(i, x0, x)
    return x
