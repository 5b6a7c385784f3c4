"""Differentiable augmentation of a discriminator's input, for training on few pictures: fixed policies (Zhao et al.
2020), and a pipeline whose probability follows the discriminator (Karras et al. 2020, "Training GANs with limited
data"; docs/mmfs.md E.4).

Real and generated pictures get the same kinds of change, and the gradient passes through: the generator's result stays
clean. What is drawn at random is made beforehand (`numbers`), so that a change is a function of tensors alone.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.precision import full_precision
from .distributed import Draws

POLICIES = ("colour", "translation", "cutout")
POLICY_NUMBERS = {"colour": ((1, 1, 1),) * 3, "translation": ((2,),), "cutout": ((2,),)}  # shapes of what each takes
ADAPT_EVERY = 4  # steps between two changes of the probability
MOST_LIKELY = 0.8  # beyond, the changes may leak into what is generated
GATES, UNIFORM, NORMAL = 11, 6, 7  # numbers that the adaptive pipeline takes for a picture


def policies(text: str) -> tuple[str, ...]:
    """"colour,translation" -> ("colour", "translation"); "" for none. ValueError for an unknown name."""
    names = tuple(filter(None, (part.strip() for part in text.split(","))))
    for name in names:
        if name not in POLICIES:
            raise ValueError(f"there is no augmentation {name[:40]!r}; take some of {', '.join(POLICIES)}")
    return names


@dataclass(frozen=True)
class Augmentation:
    """Policies, one after the other, and behind them the adaptive pipeline if there is one."""
    names: tuple[str, ...] = ()
    adaptive: Adaptive | None = None

    @property
    def count(self) -> int:
        """How many tensors `numbers` gives."""
        return sum(len(POLICY_NUMBERS[name]) for name in self.names) + (0 if self.adaptive is None else 3)

    def numbers(self, draws: Draws) -> list[Tensor]:
        """What is drawn for one batch, in the order in which it is used."""
        found = [draws.uniform(*shape) for name in self.names for shape in POLICY_NUMBERS[name]]
        if self.adaptive is not None:
            found += [draws.uniform(GATES), draws.uniform(UNIFORM), draws.normal(NORMAL)]
        return found

    def __call__(self, x: Tensor, numbers: Sequence[Tensor]) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], changed, in float32 inside any autocast; x itself if there is no change."""
        rest = list(numbers)
        with full_precision(x.device):
            for name in self.names:
                count = len(POLICY_NUMBERS[name])
                taken, rest = rest[:count], rest[count:]
                x = {"colour": colour, "translation": translate, "cutout": cut_out}[name](x, *taken)
            return x if self.adaptive is None else self.adaptive(x, *rest)


# --- policies; their numbers are uniform in [-1, 1] -------------------------------------------------------------------
def colour(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness +-0.5, saturation 0..2, contrast 0.5..1.5; all (B, 1, 1, 1)."""
    x = x + 0.5 * brightness
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (1 + saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (1 + 0.5 * contrast)


def translate(x: Tensor, shift: Tensor, share: float = 1 / 8) -> Tensor:
    """Shifted by up to `share` of the side, in whole pixels, zeros moving in. shift (B, 2)."""
    matrix = torch.eye(2, 3, device=x.device).repeat(len(x), 1, 1)
    for k, size in enumerate((x.shape[3], x.shape[2])):
        matrix[:, k, 2] = (shift[:, k] * size * share).round() * 2 / size
    return F.grid_sample(x.float(), grid_of(matrix, x), padding_mode="zeros", align_corners=False)


def cut_out(x: Tensor, centre: Tensor, share: float = 1 / 2) -> Tensor:
    """A square of `share` of the side set to zero, its centre (B, 2) anywhere in the picture."""
    centre = (centre + 1) / 2
    inside = [((torch.arange(size, device=x.device) - centre[:, i, None] * size).abs() < size * share / 2)
              for i, size in enumerate(x.shape[2:])]
    return x * ~(inside[0][:, None, :, None] & inside[1][:, None, None, :])


def grid_of(matrix: Tensor, x: Tensor) -> Tensor:
    """Where each pixel of a result is taken from, (B, H, W, 2): matrix (B, 2, 3) times its place (x, y, 1), all in
    [-1, 1]. Sums of products, which no number format rounds."""
    height, width = x.shape[2:]
    columns, rows = ((2 * torch.arange(size, device=x.device) + 1) / size - 1 for size in (width, height))
    m = matrix[:, :, :, None, None]
    return torch.stack([m[:, k, 0] * columns + m[:, k, 1] * rows[:, None] + m[:, k, 2] for k in range(2)], 3)


# --- the adaptive pipeline --------------------------------------------------------------------------------------------
class Adaptive(nn.Module):
    """Each change is made with probability p, which follows r = E[sign D(real)]: above `target` D knows the training
    pictures too well, so p rises, below it falls. rate: how far p goes in one change.

    p and what was seen since its last change are buffers: part of the run, and the same in every process.
    """
    p: Tensor
    seen: Tensor

    def __init__(self, target: float, rate: float) -> None:
        super().__init__()
        self.target, self.rate = target, rate
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    @torch.no_grad()
    def follow(self, k: int, sign: Tensor) -> None:
        """Take note of step k's mean sign of D(real), over all processes; p changes every ADAPT_EVERY steps."""
        self.seen += sign / ADAPT_EVERY
        if (k + 1) % ADAPT_EVERY == 0:
            self.p += (self.seen - self.target).sign() * self.rate
            self.p.clamp_(0, MOST_LIKELY)
            self.seen.zero_()

    def forward(self, x: Tensor, gates: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), changed. gates (B, GATES), uniform (B, UNIFORM) in [-1, 1], normal (B, NORMAL)."""
        chance = (gates + 1) / 2
        twice = 1 - (1 - self.p).sqrt()  # of each rotation, so that one of the two comes with p
        on = (chance < torch.stack([self.p] * 3 + [twice, self.p, twice] + [self.p] * 5)).float()
        grid = grid_of(geometry(on[:, :7], uniform[:, :5], normal[:, :4], x), x)
        x = F.grid_sample(x.float(), grid, padding_mode="reflection", align_corners=False)
        return recolour(x, on[:, 7:], uniform[:, 5], normal[:, 4:])


def geometry(on: Tensor, uniform: Tensor, normal: Tensor, x: Tensor) -> Tensor:
    """From a result's place to the place in x that it is taken from, (B, 2, 3): mirror, whole-pixel shift, scale,
    rotation, stretch, rotation, shift. on (B, 7): 1 for those that are made, 0 for others. uniform (B, 5),
    normal (B, 4)."""
    height, width = x.shape[2:]
    mirror = 1 - 2 * on[:, 0] * (uniform[:, 0] < 0)
    whole = [on[:, 1] * (uniform[:, 1 + k] * size / 8).round() * 2 / size for k, size in enumerate((width, height))]
    scale, stretch = ((0.2 * on[:, k] * normal[:, n]).exp2() for k, n in ((2, 0), (4, 1)))
    turn, turn_too = (math.pi * on[:, k] * uniform[:, n] for k, n in ((3, 3), (5, 4)))
    shift = [0.25 * on[:, 6] * normal[:, 2 + k] for k in range(2)]  # sides are 2 long: 0.125 of them
    one, none = torch.ones_like(mirror), torch.zeros_like(mirror)
    found = affine(mirror, none, none, one, none, none)
    for further in (affine(one, none, none, one, *whole), affine(scale, none, none, scale, none, none),
                    rotation(turn, width / height), affine(stretch, none, none, 1 / stretch, none, none),
                    rotation(turn_too, width / height), affine(one, none, none, one, *shift)):
        found = product(found, further)
    return found[:, :2]


def affine(*rows: Tensor) -> Tensor:
    """(B, 3, 3) of a b c d (the linear part, row by row) and the shift x y, each (B,)."""
    a, b, c, d, x, y = rows
    none, one = torch.zeros_like(a), torch.ones_like(a)
    return torch.stack([a, b, x, c, d, y, none, none, one], 1).unflatten(1, (3, 3))


def rotation(angle: Tensor, aspect: float) -> Tensor:
    """(B, 3, 3) of angles (B,), for places in [-1, 1] along sides of ratio `aspect`."""
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return affine(cos, -sin / aspect, sin * aspect, cos, none, none)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b of matrices (B, n, n), whatever format matrices are multiplied in otherwise."""
    return (a[..., None] * b[:, None]).sum(2)


def recolour(x: Tensor, on: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
    """Brightness, contrast, turn of the hue, saturation. on (B, 4), uniform (B,), normal (B, 3)."""
    brightness, angle = 0.2 * on[:, 0] * normal[:, 0], math.pi * on[:, 2] * uniform
    contrast, saturation = (0.5 * on[:, 1] * normal[:, 1]).exp2(), (on[:, 3] * normal[:, 2]).exp2()
    # about the grey axis: grey stays, the rest is turned and stretched
    along, across = saturation * angle.cos(), saturation * angle.sin() / math.sqrt(3)
    x = (x + brightness[:, None, None, None]) * contrast[:, None, None, None]
    grey = x.mean(1, keepdim=True)
    chroma = x - grey
    turned = chroma.roll(1, 1) - chroma.roll(2, 1)  # the cross product with (1, 1, 1)
    return grey + along[:, None, None, None] * chroma + across[:, None, None, None] * turned
