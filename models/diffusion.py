"""Schedules, spacing rules and the steps of DDIM and DDPM sampling (OSASIS spec A.8, B).

alpha-bar_t is the product of (1 - beta) over steps 0..t. Tables are float64 Python numbers: a step costs no transfer.
A network is seen as `denoise(x, t) -> eps` with x (B, 3, H, W) or (B, E) and t the original integer time 0..999.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

TRAIN_STEPS = 1000
Denoise = Callable[[Tensor, int], Tensor]
StepHook = Callable[[int, Tensor, Tensor], None]


def linear_alpha_bar(steps: int = TRAIN_STEPS, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """alpha-bar of the linear schedule, float64 (steps,)."""
    return torch.cumprod(1 - torch.linspace(first, last, steps, dtype=torch.float64), 0)


def constant_alpha_bar(beta: float = 0.008, steps: int = TRAIN_STEPS) -> Tensor:
    """alpha-bar of the latent DPM's constant schedule, float64 (steps,)."""
    return torch.cumprod(torch.full((steps,), 1 - beta, dtype=torch.float64), 0)


def stride_times(count: int, steps: int = TRAIN_STEPS) -> tuple[int, ...]:
    """DiffAE's spacing: the smallest stride k for which range(0, steps, k) has `count` members."""
    for k in range(1, steps + 1):
        if len(range(0, steps, k)) == count:
            return tuple(range(0, steps, k))
    raise ValueError(f"{count} steps cannot be spaced evenly over {steps}; take 10, 20, 50, 100 or another divisor")


def even_times(count: int, steps: int = TRAIN_STEPS) -> tuple[int, ...]:
    """Improved-DDPM respacing: `count` rounded values from 0 to steps - 1."""
    if not 2 <= count <= steps:
        raise ValueError(f"respacing needs 2 to {steps} steps, not {count}")
    stride, at, times = (steps - 1) / (count - 1), 0.0, []
    for _ in range(count):
        times.append(round(at))
        at += stride
    return tuple(times)


@dataclass(frozen=True)
class Table:
    """A spaced schedule. times[i] is what the network is fed; alpha_bar(i) its signal level."""
    times: tuple[int, ...]
    alphas: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.times)

    def alpha_bar(self, i: int) -> float:
        """a_i, with a_{-1} = 1 (clean) and a_T = 0 (after the last)."""
        return 1.0 if i < 0 else 0.0 if i >= len(self.alphas) else self.alphas[i]

    def index_of(self, ratio: float) -> int:
        """How many steps lie below t0 = ratio * T: the chain runs over indices 0 .. index_of(ratio) - 1."""
        return int(len(self) * ratio)


def stride_table(count: int, alpha_bar: Tensor | None = None) -> Table:
    """The DDIM table of DiffAE with `count` steps."""
    times = stride_times(count)
    a = linear_alpha_bar() if alpha_bar is None else alpha_bar
    return Table(times, tuple(float(a[t]) for t in times))


def even_table(count: int) -> Table:
    """The DDPM table of P2 with `count` steps."""
    times, a = even_times(count), linear_alpha_bar()
    return Table(times, tuple(float(a[t]) for t in times))


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: float | Tensor) -> Tensor:
    """q(x_t | x_0): sqrt(abar) x0 + sqrt(1 - abar) noise."""
    if not isinstance(alpha_bar, Tensor):
        return x0 * alpha_bar ** 0.5 + noise * (1 - alpha_bar) ** 0.5
    return x0 * alpha_bar.sqrt() + noise * (1 - alpha_bar).sqrt()


def predict_x0(x: Tensor, eps: Tensor, alpha_bar: float, clip: bool = True) -> tuple[Tensor, Tensor]:
    """(x0, eps recomputed from it): x0 is clamped to [-1, 1] if `clip`, as everywhere but in the latent DPM."""
    x0 = x * (1 / alpha_bar) ** 0.5 - eps * (1 / alpha_bar - 1) ** 0.5
    if clip:
        x0 = x0.clamp(-1, 1)
    return x0, (x * (1 / alpha_bar) ** 0.5 - x0) / (1 / alpha_bar - 1) ** 0.5


def ddim_step(x: Tensor, eps: Tensor, table: Table, i: int, to: int, clip: bool = True) -> tuple[Tensor, Tensor]:
    """One deterministic step from index i to index `to` (i - 1 decodes, i + 1 encodes). Returns (x0, next x)."""
    x0, eps = predict_x0(x, eps, table.alpha_bar(i), clip)
    a = table.alpha_bar(to)
    return x0, x0 * a ** 0.5 + eps * (1 - a) ** 0.5


def ddim_forward(denoise: Denoise, x: Tensor, table: Table, indices: Iterable[int],
                 hook: StepHook | None = None) -> Tensor:
    """Encode: the structural code of x after the given indices, 0 .. n - 1 (Eq. 7 of the paper, spec A.8)."""
    for i in indices:
        x0, x = ddim_step(x, denoise(x, table.times[i]), table, i, i + 1)
        if hook:
            hook(i, x0, x)
    return x


def ddim_reverse(denoise: Denoise, x: Tensor, table: Table, indices: Iterable[int], *, clip: bool = True,
                 assist: Callable[[Tensor, int], Tensor] | None = None, hook: StepHook | None = None) -> Tensor:
    """Decode over falling indices. `assist(x, i)` changes x before each network call (the SPN); eta = 0."""
    for i in indices:
        if assist:
            x = assist(x, i)
        x0, x = ddim_step(x, denoise(x, table.times[i]), table, i, i - 1, clip)
        if hook:
            hook(i, x0, x)
    return x


def posterior_variance(table: Table, i: int) -> float:
    """beta-tilde_i of the spaced chain."""
    beta = 1 - table.alpha_bar(i) / table.alpha_bar(i - 1)
    return beta * (1 - table.alpha_bar(i - 1)) / (1 - table.alpha_bar(i))


def ancestral_step(x: Tensor, output: Tensor, table: Table, i: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """One DDPM step. `output` has 3 channels (eps; variance beta-tilde) or 6 (eps and variance interpolation).

    Returns (clamped x0, next x); the noise (same shape as x) is not used at i = 0.
    """
    a, before = table.alpha_bar(i), table.alpha_bar(i - 1)
    beta = 1 - a / before
    x0, _ = predict_x0(x, output[:, :3], a)
    mean = x0 * (before ** 0.5 * beta / (1 - a)) + x * ((1 - beta) ** 0.5 * (1 - before) / (1 - a))
    if i == 0:
        return x0, mean
    low = math.log(posterior_variance(table, i))
    if output.shape[1] == 3:
        return x0, mean + noise * math.exp(low / 2)
    fraction = (output[:, 3:] + 1) / 2
    return x0, mean + torch.exp((fraction * math.log(beta) + (1 - fraction) * low) / 2) * noise
