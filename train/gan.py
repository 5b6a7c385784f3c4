"""The adversarial part that the StyleGAN2 prior and MMFS's Stage II share (MMFS spec B.3), and the prior's training.

One step: the generator's Adam, the discriminator's Adam, and every `r1_every` steps a further Adam step of the
discriminator on the gradient penalty alone (lazy regularisation, Karras et al. 2020, with its corrected rates).
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..models.stylegan2 import Discriminator, StyleGAN2, mix_styles
from .augment import augment, policies
from .guidance import STRUCTURE_NORMS
from .loop import LoopConfig, Losses, Run, average_of, step_seed
from .prior import precision
from .team import SOLO, Draws, Team

PRECISIONS = ("float32", "bfloat16")  # float16 would need its losses scaled
Pictures = Callable[[int], Tensor]  # step -> pictures (rows, 3, px, px) in [-1, 1] on the networks' device


@dataclass(frozen=True)
class GanConfig:
    """Defaults are MMFS's Stage II. mixing: share of steps whose style is made of two z.

    d_weight: of D's main loss, halved in the official program. structure: weight of L_st, summed over the batch.
    pixel, feature: weights of the L1 and the discriminator-feature loss of Stage I and the CLIP mapping. augment: what
    D sees changed, of augment.POLICIES, separated by commas. average: decay of the generator's moving average.
    """
    steps: int = 90_000
    batch: int = 8
    lr: float = 1e-3
    beta1: float = 0.1
    beta2: float = 0.999
    average: float = 0.999
    mixing: float = 0.5
    r1: float = 10.0
    r1_every: int = 16
    d_weight: float = 0.5
    structure: float = 0.5
    structure_norm: str = "mse"
    pixel: float = 1.0
    feature: float = 4.0
    augment: str = ""
    flip: bool = False
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self):
        policies(self.augment)
        if min(self.steps, self.batch, self.r1_every) < 1:
            raise ValueError("steps, batch and r1_every must be at least 1")
        for name, choices in (("precision", PRECISIONS), ("structure_norm", STRUCTURE_NORMS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; take one of {', '.join(choices)}")

    def loop(self, save_every: int = 0, log_every: int = 1, minutes: float = 0.0) -> LoopConfig:
        return LoopConfig(self.steps, self.seed, save_every, log_every, self.average, minutes)


PRIOR = GanConfig(steps=25_000, batch=32, lr=2e-3, beta1=0.0, beta2=0.99, average=0.999, mixing=0.9, d_weight=1.0,
                  structure=0.0, augment="colour,translation,cutout", flip=True)


@dataclass(frozen=True)
class Stage:
    """A training ready to run. step: as loop.train wants it. preview: pictures (n, 3, H, W) of the averaged generator,
    the same ones whenever it is asked. config: everything that decides the result, but for data and networks."""
    run: Run
    step: Callable[[int], Losses]
    preview: Callable[[], Tensor]
    config: GanConfig


def adam(parameters: Iterable[nn.Parameter], config: GanConfig, lazy: int = 0) -> torch.optim.Adam:
    """Adam; with rate and betas corrected for one extra step in every `lazy` (spec B.3)."""
    kept = list(parameters)
    c = lazy / (lazy + 1) if lazy else 1.0
    return torch.optim.Adam(kept, config.lr * c, (config.beta1 ** c, config.beta2 ** c), fused=kept[0].is_cuda)


def device_of(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def draws_of(k: int, config: GanConfig, team: Team, device: torch.device, group: int = 1) -> Draws:
    """The random numbers of step k. group: of the discriminator, if a step asks it for scores (see Team.rows)."""
    rows = team.rows(config.batch, group).to(device)
    return Draws(Generator(device).manual_seed(step_seed(config.seed + 1, k)), config.batch, rows)


def mixed_styles(styles: Callable[[Tensor], Tensor], draws: Draws, width: int, share: float) -> Tensor:
    """w+ codes of a step: of one z, or in a `share` of steps of two, cut at a place in 1 .. n - 1 (spec B.3)."""
    w = styles(draws.normal(width))
    if not share:
        return w
    apart = Generator().manual_seed(step_seed(draws.generator.initial_seed(), 1))  # z must not tell if it is mixed
    chance, place = torch.rand(2, generator=apart).tolist()
    second = styles(draws.normal(width))
    cut = 1 + int(place * (w.shape[1] - 1))
    return mix_styles(w, second, cut) if chance < share else w


def adversarial_step(run: Run, team: Team, config: GanConfig, k: int, draws: Draws, draw: Callable[[], Tensor],
                     real: Tensor, extra: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    """One step on the generator "g" and the discriminator "d" of `run`.

    draw() makes pictures with gradient; `extra` gives further losses of theirs, weighted.
    """
    d, names = run.nets["d"], policies(config.augment)
    d.requires_grad_(False)
    with precision(real.device, config.precision):
        fake = draw()
        losses = {"g": F.softplus(-d(augment(fake, names, draws)).float()).mean()} | extra(fake)
    update(run, team, "g", sum(losses.values()))
    d.requires_grad_(True)
    with precision(real.device, config.precision):
        fake, seen = augment(fake.detach(), names, draws), augment(real, names, draws)
        on_fake, on_real = scores(d, fake, seen)
        losses["d"] = F.softplus(on_fake.float()).mean() + F.softplus(-on_real.float()).mean()
    update(run, team, "d", config.d_weight * losses["d"])
    if config.r1 and k % config.r1_every == 0:
        losses["r1"] = gradient_penalty(d, seen)
        update(run, team, "d", config.r1 / 2 * config.r1_every * losses["r1"])
    return team.average_losses({name: loss.detach() for name, loss in losses.items()})


def scores(d: Discriminator, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of two equal batches, in one call where they fill D's groups: there they are laid side by side, so that
    no group of D's deviation holds both."""
    if len(fake) < d.config.group:
        return d(fake), d(real)
    both = torch.cat([x.unflatten(0, (d.config.group, -1)) for x in (fake, real)], 1)
    return d(both.flatten(0, 1)).view(len(both), 2, -1).transpose(0, 1).reshape(2, -1, 1).unbind(0)


def gradient_penalty(d: Discriminator, real: Tensor) -> Tensor:
    """R1: mean over the batch of |grad_x D(x)|^2, in float32."""
    real = real.detach().requires_grad_(True)
    gradient, = torch.autograd.grad(d(real).sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def update(run: Run, team: Team, name: str, loss: Tensor) -> None:
    """One step of a network's optimiser on `loss`."""
    optimizer = run.optimizers[name]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    team.average_gradients(p for group in optimizer.param_groups for p in group["params"])
    optimizer.step()


def descend(run: Run, team: Team, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """A step of the generator "g" alone, on the sum of its losses; what is to be logged of them."""
    update(run, team, "g", sum(losses.values()))
    return team.average_losses({name: loss.detach() for name, loss in losses.items()})


def seeded_z(count: int, net: nn.Module, seed: int) -> Tensor:
    """z (count, S) of a seed, on the device of `net`, whose config says how wide styles are."""
    return torch.randn(count, net.config.style, generator=Generator().manual_seed(seed)).to(device_of(net))


def prior(g: StyleGAN2, d: Discriminator, pictures: Pictures, config: GanConfig = PRIOR,
          team: Team = SOLO) -> Stage:
    """Training a StyleGAN2 on pictures, from wherever `g` and `d` stand; they are trained in place.

    Style mixing, R1 and the moving average are StyleGAN2's; there is no path-length regularisation (as in MMFS's own
    training). `w_avg` of the average is for the caller to set with stylegan2.mean_style.
    """
    device = device_of(g)
    g.train().requires_grad_(True)
    optimizers = {"g": adam(g.parameters(), config), "d": adam(d.parameters(), config, config.r1_every)}
    run = Run({"g": g, "d": d.train()}, optimizers, {"g": average_of(g)})
    shapes, width = g.synthesis.noise_shapes(4, 4), g.config.style

    def step(k: int) -> Losses:
        draws = draws_of(k, config, team, device, d.config.group)

        def draw() -> Tensor:
            return g(mixed_styles(g.styles, draws, width, config.mixing), draws.noise(shapes))
        return adversarial_step(run, team, config, k, draws, draw, pictures(k), lambda fake: {})

    def preview() -> Tensor:
        average = run.averages["g"]
        with torch.no_grad():
            return average(average.styles(seeded_z(16, g, config.seed))).clamp(-1, 1)
    return Stage(run, step, preview, config)
