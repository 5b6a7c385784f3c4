"""OSASIS at sampling time: the SPN-assisted reverse diffusion and the photo twin (docs/osasis.md A.6, B, C.2, C.5).

Pictures are (B, 3, px, px), RGB, [-1, 1]. Deviations of the reference code are settings whose default is the deviation:
`noise_level` "official" decodes x at abar(t0) as if it were one spaced step cleaner, "matched" starts where it is;
`spn_time` "index" feeds the SPN the sampler's index, "timestep" the time (C.5, D 3, D 9).
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor

from . import rng
from .diffusion import (
    SOLVERS,
    Denoise,
    NoisePredictor,
    Schedule,
    StepHook,
    add_noise,
    ancestral_step,
    ddim_reverse,
    ddim_schedule,
    decoding_schedule,
    denoiser,
    dpmpp_2m,
    respaced_schedule,
)
from .fields import check_fields
from .spn import SPN
from .unet import UNetConfig

NOISE_LEVELS = ("official", "matched")
SPN_TIMES = ("index", "timestep")
OFFICIAL_STEP = 20  # times between two of the official 50 steps of stylizing
Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SamplingSettings:
    """What a style's fine-tune decides for sampling with it. t0: encoding strength (0..1]. solver: of the reverse
    chain, one of SOLVERS (A.10). Defaults are official."""
    t0: float = 0.5
    spn_weight: float = 0.1
    spn_time: str = "index"
    noise_level: str = "official"
    solver: str = "ddim"

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.t0 <= 1:
            raise ValueError(f"t0 is {self.t0}; take a number above 0, at most 1")
        for name, allowed in (("spn_time", SPN_TIMES), ("noise_level", NOISE_LEVELS), ("solver", SOLVERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {str(getattr(self, name))[:40]!r}; take one of {', '.join(allowed)}")

    @classmethod
    def of(cls, settings: Mapping) -> SamplingSettings:
        """From a style's settings; what they do not say is official."""
        return cls(**{f.name: settings[f.name] for f in fields(cls) if f.name in settings})


def reverse_indices(schedule: Schedule, t0: float, noise_level: str = "official") -> range:
    """Falling indices of the reverse chain from t0."""
    if noise_level not in NOISE_LEVELS:
        raise ValueError(f"noise_level is {noise_level!r}; take one of {NOISE_LEVELS}")
    top = schedule.num_steps(t0) - (noise_level == "official")
    return range(min(top, len(schedule) - 1), -1, -1)


def reverse_chain(steps: int, settings: SamplingSettings) -> tuple[Schedule, range]:
    """The schedule of stylizing, and the falling indices of its network calls. ValueError for steps that do not fit.

    dpmpp_2m begins where the official 50 steps do, or at t0 ("matched"), whatever its number of steps.
    """
    schedule = ddim_schedule(steps)
    if settings.solver == "ddim":
        return schedule, reverse_indices(schedule, settings.t0, settings.noise_level)
    if not schedule.num_steps(settings.t0):
        raise ValueError(f"t0 x steps < 1 (t0 {settings.t0:g}, {steps} steps); increase t0 or steps")
    below = OFFICIAL_STEP if settings.noise_level == "official" else 0
    schedule = decoding_schedule(schedule.num_steps(settings.t0), settings.t0, below)
    return schedule, range(len(schedule) - 1, -1, -1)


def spn_hook(spn: SPN, picture: Tensor, weight: float | Tensor, schedule: Schedule,
             time: str = "index") -> Callable[[Tensor, int], Tensor]:
    """`x_hook(x, i)` = x + weight * SPN(picture, i); weight a number or (B, 1, 1, 1).

    On a CPU the SPN gets no gradient."""
    once = isinstance(spn, SPN) and spn.config.timed and picture.device.type == "cpu"
    added = spn.of_picture(picture) if once else lambda at: spn(picture, at)

    def x_hook(x: Tensor, i: int) -> Tensor:
        at = torch.full((1,), i if time == "index" else schedule.times[i], device=x.device)
        return x + weight * added(at)
    return x_hook


def stylize(unet: NoisePredictor, x_t0: Tensor, codes: Sequence[Tensor] | Tensor, *, steps: int = 50,
            settings: SamplingSettings = SamplingSettings(), spn: SPN | None = None, picture: Tensor | None = None,
            hook: StepHook | None = None) -> Tensor:
    """Decode the structural code x_t0 with network B and mixed codes, helped by the SPN on the clean picture (C.5).

    Returns pictures in [-1, 1]. With `spn` None or weight 0 there is no SPN call at all.
    """
    (schedule, indices), x_hook = reverse_chain(steps, settings), None
    if spn is not None and picture is not None and settings.spn_weight:
        x_hook = spn_hook(spn, picture, settings.spn_weight, schedule, settings.spn_time)
    solve = ddim_reverse if settings.solver == "ddim" else dpmpp_2m
    denoise = denoiser(unet, codes, schedule.times[:len(indices)])
    return solve(denoise, x_t0, schedule, indices, x_hook=x_hook, hook=hook)


def twin_steps(steps: int, t0: float, noise_level: str = "official") -> int:
    """How many denoising steps a photo twin takes."""
    return min(respaced_schedule(steps).num_steps(t0) + (noise_level == "matched"), steps)


def photo_twins(ddpm: NoisePredictor, style_image: Tensor, noise: Callable[[], Tensor], *, steps: int = 50,
                t0: float = 0.5, noise_level: str = "official", hook: StepHook | None = None) -> Tensor:
    """Candidates for the style image's counterpart I_A in the source domain: noised to t0 and denoised (B).

    style_image (1, 3, px, px); `noise()` gives (n, 3, px, px), see `twin_noise`. Returns (n, 3, px, px) in [-1, 1].
    """
    schedule = respaced_schedule(steps)
    first = noise()
    x = add_noise(style_image.expand_as(first), first, schedule.alpha_bar(min(schedule.num_steps(t0), steps - 1)))
    indices = range(twin_steps(steps, t0, noise_level))
    denoise: Denoise = denoiser(ddpm, times=schedule.times[:len(indices)])
    for i in reversed(indices):
        x0, x = ancestral_step(x, denoise(x, schedule.times[i]), schedule, i, noise())
        if hook:
            hook(i, x0, x)
    return x


def twin_noise(seed: int, candidates: Iterable[int], shape: Sequence[int],
               device: torch.device = rng.CPU) -> Callable[[], Tensor]:
    """Each call gives fresh N(0, I), (n, *shape); a candidate's depends on (seed, its number) alone."""
    sources: list[Generator] = [rng.generator(seed, "twin", number) for number in candidates]
    return lambda: torch.stack([torch.randn(*shape, generator=source) for source in sources]).to(device)


def twin_scores(twins: Tensor, style_image: Tensor, perceptual: Perceptual) -> Tensor:
    """10 * mean |twin - style image| + perceptual distance, (n,); the smallest is the best (B)."""
    style_image = style_image.expand_as(twins)
    return 10 * (twins - style_image).abs().mean((1, 2, 3)) + perceptual(twins, style_image)


def sampling_memory(config: UNetConfig, batch: int) -> int:
    """Bytes that a UNet call without gradient needs at most: about 12 full-size maps a picture."""
    return 12 * 4 * config.base * config.image_size ** 2 * batch


def training_memory(config: UNetConfig, rows: int) -> int:
    """Bytes of an optimiser step: 96 full-size maps a row, and 138 M weights four times (E.2)."""
    return 96 * 4 * config.base * config.image_size ** 2 * rows + (2 << 30) * config.base ** 2 // 128 ** 2
