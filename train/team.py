"""Training on one or several processes with one result: every process draws the whole team's random numbers, keeps its
own rows, and gradients are averaged. Hugging Face Accelerate (`pip install .[train]`) carries the averages.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class Team:
    """This process among `size`. mean: averages a tensor over the team, in place or not."""
    rank: int = 0
    size: int = 1
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @property
    def leads(self) -> bool:
        """Does this process write the files?"""
        return self.rank == 0

    def rows(self, batch: int, group: int) -> Tensor:
        """Indices of this process's rows of a batch, such that each of the discriminator's groups (samples n,
        n + batch / group, ...) stays in one process. ValueError if the batch cannot be shared so."""
        if self.size == 1:
            return torch.arange(batch)
        size = min(group, batch)
        if batch % (size * self.size):
            raise ValueError(f"a batch of {batch} cannot be shared by {self.size} processes in groups of {size}; "
                             f"take a multiple of {size * self.size}")
        return torch.arange(batch).view(size, self.size, -1)[:, self.rank].reshape(-1)

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every gradient becomes the team's mean, in one exchange."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = self.mean(torch.cat([g.reshape(-1) for g in gradients]))
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(part.view_as(gradient))

    def average_losses(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.size == 1:
            return losses
        values = self.mean(torch.stack([v.detach().float() for v in losses.values()]))
        return dict(zip(losses, values))

    def leader_says(self, answer: bool, device: torch.device) -> bool:
        """The leader's answer, on every process; all must ask at the same step."""
        return bool(self.mean(torch.tensor(float(answer and self.leads), device=device)) > 0)


SOLO = Team()


def team_of(accelerator) -> Team:
    """The team that an accelerate.Accelerator knows of."""
    return Team(accelerator.process_index, accelerator.num_processes,
                lambda tensor: accelerator.reduce(tensor, reduction="mean"))


@dataclass(frozen=True)
class Draws:
    """Random numbers of a step: drawn for the whole batch, kept for this process's `rows`."""
    generator: Generator
    batch: int
    rows: Tensor

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self.generator, device=self.generator.device)[self.rows]

    def uniform(self, *shape: int) -> Tensor:
        """In [-1, 1]."""
        return torch.rand(self.batch, *shape, generator=self.generator, device=self.generator.device)[self.rows] * 2 - 1

    def noise(self, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """A noise picture (rows, 1, H, W) for each layer of a synthesis network."""
        return [self.normal(1, *shape) for shape in shapes]
