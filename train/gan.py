"""The adversarial part that StyleGAN2's training and MMFS's Stage II share (docs/mmfs.md B.3); StyleGAN2's training.

One step: the generator's Adam, the discriminator's Adam, and every `r1_every` steps a further Adam step of the
discriminator on the gradient penalty alone (lazy regularisation, Karras et al. 2020, with its corrected rates).
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..models import rng
from ..models.fields import check_fields
from ..models.precision import autocast
from ..models.stylegan2 import Discriminator, StyleGAN2, mix_styles, random_z
from .augment import augment, policies
from .diffusion_pretraining import PretrainingConfig
from .distributed import SINGLE_PROCESS, Distributed, Draws
from .loop import Hooks, LoopConfig, Losses, Run, StepResult, ema_copy, total
from .losses import STRUCTURE_NORMS

PRECISIONS = ("float32", "bfloat16")  # float16 would need its losses scaled
Pictures = Callable[[int], Tensor]  # step -> pictures (rows, 3, px, px) in [-1, 1] on the networks' device


@dataclass(frozen=True)
class GANConfig:
    """Defaults are MMFS's Stage II. mixing: share of steps whose style is made of two z.

    d_weight: of D's main loss, halved in the official program. structure_weight: of L_st, summed over the batch.
    pixel_weight, feature_weight: of the L1 and the discriminator-feature loss of Stage I and the CLIP mapping. augment:
    of what D takes, names of augment.POLICIES, separated by commas. ema_decay: of the generator's moving average.
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

    def __post_init__(self) -> None:
        check_fields(self, at_least_1=("steps", "batch", "r1_every"), below_1=("beta1", "beta2", "ema_decay"))
        if self.mixing > 1:
            raise ValueError(f"mixing is {self.mixing}, a share of the steps; take at most 1")
        policies(self.augment)
        for name, choices in (("precision", PRECISIONS), ("structure_norm", STRUCTURE_NORMS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {str(getattr(self, name))[:40]!r}; take one of {', '.join(choices)}")

    def loop(self, save_every: int = 0, log_every: int = 1, minutes: float = 0.0) -> LoopConfig:
        return LoopConfig(self.steps, self.seed, save_every, log_every, self.ema_decay, minutes)


STYLEGAN2 = GANConfig(steps=25_000, batch=32, lr=2e-3, beta1=0.0, beta2=0.99, ema_decay=0.999, mixing=0.9,
                      d_weight=1.0, structure_weight=0.0, augment="colour,translation,cutout", flip=True)


@dataclass(frozen=True)
class TrainingStage:
    """A training ready to run. step: as loop.train wants it. preview: pictures (n, 3, H, W) of the averaged generator,
    the same ones whenever it is asked. config: everything that decides the result, but for data and networks."""
    run: Run
    step: Callable[[int, Hooks], Losses]
    preview: Callable[[], Tensor]
    config: GANConfig | PretrainingConfig


def adam(parameters: Iterable[nn.Parameter], config: GANConfig, lazy: int = 0) -> torch.optim.Adam:
    """Adam; with rate and betas corrected for one extra step in every `lazy` (B.3)."""
    kept = list(parameters)
    c = lazy / (lazy + 1) if lazy else 1.0
    return torch.optim.Adam(kept, config.lr * c, (config.beta1 ** c, config.beta2 ** c), fused=kept[0].is_cuda)


def device_of(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def draws_of(k: int, config: GANConfig, distributed: Distributed, device: torch.device,
             mbstd_group_size: int = 1) -> Draws:
    """The random numbers of step k. mbstd_group_size: of the discriminator, if the step needs its scores (see
    Distributed.rows)."""
    rows = distributed.rows(config.batch, mbstd_group_size).to(device)
    return Draws(rng.generator(config.seed, "draws", k, device=device), config.batch, rows)


def mixed_styles(styles: Callable[[Tensor], Tensor], draws: Draws, w_dim: int, share: float) -> Tensor:
    """w+ codes of a step: of one z, or in a `share` of steps of two, cut at a place in 1 .. n - 1 (B.3)."""
    w = styles(draws.normal(w_dim))
    if not share:
        return w
    mixing = rng.generator(draws.generator.initial_seed(), "style mixing")  # z is the same, mixed or not
    chance, place = torch.rand(2, generator=mixing).tolist()
    second = styles(draws.normal(w_dim))
    cut = 1 + int(place * (w.shape[1] - 1))
    return mix_styles(w, second, cut) if chance < share else w


@dataclass(frozen=True)
class Adversary:
    """An adversarial training of the networks "g" and "d" of `run`, in one of the processes of `distributed`."""
    run: Run
    config: GANConfig
    distributed: Distributed

    def step(self, k: int, draws: Draws, generate: Callable[[], Tensor], real: Tensor,
             extra: Callable[[Tensor], dict[str, Tensor]], hooks: Hooks) -> dict[str, Tensor]:
        """One step. generate() makes pictures with gradient; `extra` gives further losses of theirs, weighted.

        It can be interrupted until the generator is updated, and then runs to its end.
        """
        run, config, distributed = self.run, self.config, self.distributed
        d, names = run.net("d", Discriminator), policies(config.augment)
        d.requires_grad_(False)
        with autocast(real.device, config.precision):
            fake = generate()
            hooks.check_interrupt()
            losses = {"g": F.softplus(-d(augment(fake, names, draws)).float()).mean()} | extra(fake)
        hooks.check_interrupt()
        update(run, distributed, "g", total(losses))
        d.requires_grad_(True)
        with autocast(real.device, config.precision):
            seen = augment(real, names, draws)
            on_fake, on_real = scores(d, augment(fake.detach(), names, draws), seen)
            losses["d"] = F.softplus(on_fake.float()).mean() + F.softplus(-on_real.float()).mean()
        update(run, distributed, "d", config.d_weight * losses["d"])
        if config.r1 and k % config.r1_every == 0:
            losses["r1"] = gradient_penalty(d, seen)
            update(run, distributed, "d", config.r1 / 2 * config.r1_every * losses["r1"])
        return told(k, distributed, losses, fake, hooks)


def told(k: int, distributed: Distributed, losses: dict[str, Tensor], pictures: Tensor,
         hooks: Hooks) -> dict[str, Tensor]:
    """What is to be logged of a step's losses; the hooks are told of them and of the pictures that it was made on."""
    values = distributed.average_losses({name: loss.detach() for name, loss in losses.items()})
    hooks.on_step(StepResult(k, 0, values, pictures.detach()))
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


def update(run: Run, distributed: Distributed, name: str, loss: Tensor) -> None:
    """One step of a network's optimiser on `loss`."""
    optimizer = run.optimizers[name]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    distributed.average_gradients(p for group in optimizer.param_groups for p in group["params"])
    optimizer.step()


def stylegan2(g: StyleGAN2, d: Discriminator, pictures: Pictures, config: GANConfig = STYLEGAN2,
              distributed: Distributed = SINGLE_PROCESS) -> TrainingStage:
    """Training a StyleGAN2 on pictures, from wherever `g` and `d` stand; they are trained in place.

    Style mixing, R1 and the moving average are StyleGAN2's; there is no path-length regularisation (as in MMFS's own
    training). `w_avg` of the average is for the caller to set with stylegan2.mean_w.
    """
    device = device_of(g)
    g.train().requires_grad_(True)
    optimizers = {"g": adam(g.parameters(), config), "d": adam(d.parameters(), config, config.r1_every)}
    run = Run({"g": g, "d": d.train()}, optimizers, {"g": ema_copy(g)})
    adversary, shapes, w_dim = Adversary(run, config, distributed), g.synthesis.noise_shapes(4, 4), g.config.w_dim

    def step(k: int, hooks: Hooks) -> Losses:
        draws = draws_of(k, config, distributed, device, d.config.mbstd_group_size)

        def generate() -> Tensor:
            return g(mixed_styles(g.styles, draws, w_dim, config.mixing), draws.noise(shapes))
        return adversary.step(k, draws, generate, pictures(k), lambda fake: {}, hooks)

    def preview() -> Tensor:
        ema = run.average("g", StyleGAN2)
        with torch.no_grad():
            return ema(ema.styles(random_z(16, w_dim, config.seed, device))).clamp(-1, 1)
    return TrainingStage(run, step, preview, config)
