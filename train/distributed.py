"""Training on one or several processes with one result: every process makes the whole batch's random numbers, keeps its
own rows, and gradients are averaged. Hugging Face Accelerate (`pip install .[train]`) carries the averages.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Distributed:
    """This process among `size`. mean: averages a tensor over the processes, in place or not."""
    rank: int = 0
    size: int = 1
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @property
    def is_main_process(self) -> bool:
        """Does this process write the files?"""
        return self.rank == 0

    def rows(self, batch: int, group_size: int) -> Tensor:
        """Indices of this process's rows of a batch, such that each of the discriminator's groups (samples n,
        n + batch / group, ...) stays in one process. ValueError if the batch cannot be shared so."""
        if self.size == 1:
            return torch.arange(batch)
        size = min(group_size, batch)
        if batch % (size * self.size):
            raise ValueError(f"a batch of {batch} cannot be shared by {self.size} processes in groups of {size}; "
                             f"take a multiple of {size * self.size}")
        return torch.arange(batch).view(size, self.size, -1)[:, self.rank].reshape(-1)

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Every gradient becomes the mean of all processes, in one exchange."""
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

    def broadcast_flag(self, answer: bool, device: torch.device) -> bool:
        """The main process's answer, on every process; all must ask at the same step."""
        return bool(self.mean(torch.tensor(float(answer and self.is_main_process), device=device)) > 0)

    def any_flag(self, answer: bool, device: torch.device) -> bool:
        """Does any process answer yes? All must ask at the same step."""
        return bool(self.mean(torch.tensor(float(answer), device=device)) > 0)


SINGLE_PROCESS = Distributed()


def from_accelerator(accelerator: Accelerator) -> Distributed:
    """The processes that an accelerate.Accelerator knows of."""
    def mean(tensor: Tensor) -> Tensor:
        reduced = accelerator.reduce(tensor, reduction="mean")  # of one tensor one, of several as many
        if not isinstance(reduced, Tensor):
            raise TypeError(f"accelerate made a {type(reduced).__name__} of a tensor")
        return reduced
    return Distributed(accelerator.process_index, accelerator.num_processes, mean)


@dataclass(frozen=True)
class Draws:
    """Random numbers of a step: made for the whole batch, kept for this process's `rows`."""
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
