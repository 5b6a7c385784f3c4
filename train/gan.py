"""The adversarial part that StyleGAN2's training and MMFS's Stage II share (docs/mmfs.md B.3); StyleGAN2's training.

One step: the generator's Adam, the discriminator's Adam, and every `r1_every` steps a further Adam step of the
discriminator on the gradient penalty alone (lazy regularisation, Karras et al. 2020, with its corrected rates). On a
GPU each of the three gradients is a CUDA graph (`parts.Parts`).
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..models import rng
from ..models.fields import check_fields
from ..models.precision import UNSCALED, autocast
from ..models.stylegan2 import Discriminator, StyleGAN2, random_z
from .augment import ADAPT_EVERY, Adaptive, Augmentation, policies
from .diffusion_pretraining import PretrainingConfig
from .distributed import SINGLE_PROCESS, Distributed, Draws
from .loop import Hooks, LoopConfig, Losses, Run, StepResult, ema_copy, total
from .losses import STRUCTURE_NORMS
from .parts import Part, Parts, laid_out

Pictures = Callable[[int], Tensor]  # step -> pictures (rows, 3, px, px) in [-1, 1] on the networks' device


@dataclass(frozen=True)
class GANConfig:
    """Defaults are MMFS's Stage II. mixing: share of steps whose style is made of two z.

    d_weight: of D's main loss, halved in the official program. structure_weight: of L_st, summed over the batch.
    pixel_weight, feature_weight: of the L1 and the discriminator-feature loss of Stage I and the CLIP mapping. augment:
    of what D takes, names of augment.POLICIES, separated by commas. ema_decay: of the generator's moving average.
    ada_target: mean sign of D on real pictures that adaptive augmentation holds (0.6 officially), 0 for none. ada_kimg:
    thousands of pictures in which its probability could go from 0 to 1. ema_ramp: see loop.update_ema; not official.
    """
    steps: int = 90_000
    batch: int = 8
    lr: float = 1e-3
    beta1: float = 0.1
    beta2: float = 0.999
    ema_decay: float = 0.999
    mixing: float = 0.5
    r1: float = 10.0
    r1_every: int = 16
    d_weight: float = 0.5
    structure_weight: float = 0.5
    structure_norm: str = "mse"
    pixel_weight: float = 1.0
    feature_weight: float = 4.0
    augment: str = ""
    flip: bool = False
    precision: str = "float32"
    seed: int = 0
    ada_target: float = 0.0
    ada_kimg: int = 500
    ema_ramp: bool = False

    def __post_init__(self) -> None:
        check_fields(self, at_least_1=("steps", "batch", "r1_every", "ada_kimg"),
                     below_1=("beta1", "beta2", "ema_decay", "ada_target"))
        if self.mixing > 1:
            raise ValueError(f"mixing is {self.mixing}, a share of the steps; take at most 1")
        policies(self.augment)
        for name, choices in (("precision", UNSCALED), ("structure_norm", STRUCTURE_NORMS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {str(getattr(self, name))[:40]!r}; take one of {', '.join(choices)}")

    def loop(self, save_every: int = 0, log_every: int = 1, minutes: float = 0.0) -> LoopConfig:
        return LoopConfig(self.steps, self.seed, save_every, log_every, self.ema_decay, minutes, self.ema_ramp)


STYLEGAN2 = GANConfig(steps=25_000, batch=32, lr=2e-3, beta1=0.0, beta2=0.99, ema_decay=0.999, mixing=0.9,
                      d_weight=1.0, structure_weight=0.0, augment="colour,translation,cutout", flip=True, ema_ramp=True)


@dataclass(frozen=True)
class TrainingStage:
    """A training ready to run. step: as loop.train wants it. preview: pictures (n, 3, H, W) of the averaged generator,
    the same ones whenever it is asked. config: everything that decides the result, but for data and networks. graphs:
    entered for the training; their memory is given back at its end."""
    run: Run
    step: Callable[[int, Hooks], Losses]
    preview: Callable[[], Tensor]
    config: GANConfig | PretrainingConfig
    graphs: AbstractContextManager[object]


def adam(parameters: Iterable[nn.Parameter], config: GANConfig, lazy: int = 0) -> torch.optim.Adam:
    """Adam; with rate and betas corrected for one extra step in every `lazy` (B.3)."""
    kept = list(parameters)
    c = lazy / (lazy + 1) if lazy else 1.0
    return torch.optim.Adam(kept, config.lr * c, (config.beta1 ** c, config.beta2 ** c), fused=kept[0].is_cuda)


def device_of(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def draws_of(k: int, config: GANConfig, rows: Tensor) -> Draws:
    """The random numbers of step k, for a process's rows (see Distributed.rows), on their device."""
    return Draws(rng.generator(config.seed, "draws", k, device=rows.device), config.batch, rows)


def style_draws(draws: Draws, w_dim: int, n: int, share: float) -> list[Tensor]:
    """What the n styles of a step are made of: z, and in trainings that mix a second z and which rows (n, 1) take the
    first one: all of them, or in a `share` of steps those before a cut at a place in 1 .. n - 1 (B.3)."""
    z = draws.normal(w_dim)
    if not share:
        return [z]
    mixing = rng.generator(draws.generator.initial_seed(), "style mixing")  # z is the same, mixed or not
    chance, place = torch.rand(2, generator=mixing).tolist()
    cut = 1 + int(place * (n - 1)) if chance < share else n
    return [z, draws.normal(w_dim), torch.arange(n, device=z.device)[:, None] < cut]


def style_count(config: GANConfig) -> int:
    """Of what `style_draws` gives."""
    return 3 if config.mixing else 1


def mixed_styles(styles: Callable[[Tensor], Tensor], drawn: Sequence[Tensor]) -> Tensor:
    """w+ codes of what `style_draws` gave."""
    z, *mixed = drawn
    if not mixed:
        return styles(z)
    second, is_first = mixed
    return torch.where(is_first, styles(z), styles(second))


@dataclass(frozen=True)
class Adversary:
    """An adversarial training of the networks "g" and "d" of a run.

    generate(*inputs): pictures with gradient. extra(pictures, *inputs): further losses of theirs, weighted.
    """
    parts: Parts
    config: GANConfig
    augmentation: Augmentation
    generate: Callable[..., Tensor]
    extra: Callable[..., dict[str, Tensor]]

    @property
    def d(self) -> Discriminator:
        return self.parts.run.net("d", Discriminator)

    def step(self, k: int, draws: Draws, inputs: Sequence[Tensor], real: Tensor, hooks: Hooks) -> dict[str, Tensor]:
        """One step; inputs of the generator.

        It can be interrupted until the generator is updated, and then runs to its end.
        """
        parts, config = self.parts, self.config
        numbers = [self.augmentation.numbers(draws) for _ in range(3)]
        hooks.check_interrupt()
        losses, (fake,) = parts.gradients("generator", "g", self.against_discriminator, *numbers[0], *inputs)
        hooks.check_interrupt()
        parts.move("g")
        further, (seen,) = parts.gradients("discriminator", "d", self.of_discriminator, fake, real, *numbers[1],
                                           *numbers[2])
        parts.move("d")
        losses |= further
        if config.r1 and k % config.r1_every == 0:
            losses |= parts.gradients("penalty", "d", self.of_penalty, seen, rare=config.r1_every > 1)[0]
            parts.move("d")
        values = told(k, parts.distributed, losses, fake, hooks)
        return values if self.augmentation.adaptive is None else self.adapt(k, self.augmentation.adaptive, values)

    def against_discriminator(self, *given: Tensor) -> Part:
        """G's loss. given: numbers of the augmentation, inputs."""
        d, count = self.d.requires_grad_(False), self.augmentation.count
        with autocast(given[0].device, self.config.precision):
            fake = self.generate(*given[count:])
            found = F.softplus(-d(self.augmentation(fake, given[:count])).float()).mean()
            losses = {"g": found} | self.extra(fake, *given[count:])
        return Part(total(losses), losses, (fake,))

    def of_discriminator(self, fake: Tensor, real: Tensor, *numbers: Tensor) -> Part:
        """D's loss. numbers: of the augmentation, first for the real pictures."""
        d, count = self.d.requires_grad_(True), self.augmentation.count
        with autocast(real.device, self.config.precision):
            seen = self.augmentation(real, numbers[:count])
            on_fake, on_real = scores(d, self.augmentation(fake, numbers[count:]), seen)
            loss = F.softplus(on_fake.float()).mean() + F.softplus(-on_real.float()).mean()
        sign = {} if self.augmentation.adaptive is None else {"real_sign": on_real.sign().float().mean()}
        return Part(self.config.d_weight * loss, {"d": loss} | sign, (seen,))

    def of_penalty(self, seen: Tensor) -> Part:
        """R1 of the real pictures as D has seen them."""
        loss = gradient_penalty(self.d.requires_grad_(True), seen)
        return Part(self.config.r1 / 2 * self.config.r1_every * loss, {"r1": loss})

    def adapt(self, k: int, adaptive: Adaptive, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The values, with the probability of the augmentation, which then follows what D has said."""
        used = adaptive.p.clone()
        adaptive.follow(k, values["real_sign"])
        return values | {"augmented": used}


def adversary(parts: Parts, config: GANConfig, generate: Callable[..., Tensor],
              extra: Callable[..., dict[str, Tensor]] = lambda fake, *inputs: {}) -> Adversary:
    """With the augmentation that the configuration asks for; an adaptive one becomes a part of the run."""
    adaptive = None
    if config.ada_target:
        adaptive = Adaptive(config.ada_target, ADAPT_EVERY * config.batch / (1000 * config.ada_kimg))
        parts.run.nets["augmentation"] = adaptive.to(device_of(parts.run.nets["d"]))
    return Adversary(parts, config, Augmentation(policies(config.augment), adaptive), generate, extra)


def told(k: int, distributed: Distributed, losses: dict[str, Tensor], pictures: Tensor,
         hooks: Hooks) -> dict[str, Tensor]:
    """What is to be logged of a step's losses; the hooks are told of them and of the pictures that it was made on."""
    values = distributed.average_losses(losses)
    hooks.on_step(StepResult(k, 0, values, pictures.clone()))  # whoever keeps them keeps no output of a graph
    return values


def scores(d: Discriminator, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of two equal batches, in one call where they fill D's groups: there they are laid side by side, so that
    no group of D's minibatch standard deviation holds both."""
    if len(fake) < d.config.mbstd_group_size:
        return d(fake), d(real)
    g = d.config.mbstd_group_size
    both = torch.cat([rearrange(x, "(g n) c h w -> g n c h w", g=g) for x in (fake, real)], 1)
    found = d(rearrange(both, "g n c h w -> (g n) c h w"))
    fake_scores, real_scores = rearrange(found, "(g two n) 1 -> two (g n) 1", g=g, two=2)
    return fake_scores, real_scores


def gradient_penalty(d: Discriminator, real: Tensor) -> Tensor:
    """R1: mean over the batch of |grad_x D(x)|^2, in float32."""
    real = real.detach().requires_grad_(True)
    gradient, = torch.autograd.grad(d(real).sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def stylegan2(g: StyleGAN2, d: Discriminator, pictures: Pictures, config: GANConfig = STYLEGAN2,
              distributed: Distributed = SINGLE_PROCESS) -> TrainingStage:
    """Training a StyleGAN2 on pictures, from wherever `g` and `d` stand; they are trained in place.

    Style mixing, R1 and the moving average are StyleGAN2's; there is no path-length regularisation (as in MMFS's own
    training). `w_avg` of the average is for the caller to set with stylegan2.mean_w.
    """
    device = device_of(g)
    g.train().requires_grad_(True)
    laid_out(g, d)
    optimizers = {"g": adam(g.parameters(), config), "d": adam(d.parameters(), config, config.r1_every)}
    run = Run({"g": g, "d": d.train()}, optimizers, {"g": ema_copy(g)})
    shapes, w_dim, n, count = g.synthesis.noise_shapes(4, 4), g.config.w_dim, g.config.n_styles, style_count(config)
    rows = distributed.rows(config.batch, d.config.mbstd_group_size).to(device)

    def generate(*inputs: Tensor) -> Tensor:
        return g(mixed_styles(g.styles, inputs[:count]), inputs[count:])
    trained = adversary(Parts(run, distributed), config, generate)

    def step(k: int, hooks: Hooks) -> Losses:
        draws = draws_of(k, config, rows)
        inputs = [*style_draws(draws, w_dim, n, config.mixing), *draws.noise(shapes)]
        return trained.step(k, draws, inputs, pictures(k), hooks)

    def preview() -> Tensor:
        ema = run.average("g", StyleGAN2)
        with torch.no_grad():
            return ema(ema.styles(random_z(16, w_dim, config.seed, device))).clamp(-1, 1)
    return TrainingStage(run, step, preview, config, trained.parts)
