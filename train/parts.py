"""Parts of an optimiser step: a loss of tensors alone and its gradient, as CUDA graphs where there can be some.

What is drawn at random and what is read from disk comes in as tensors; gradients are averaged over the processes, and
the optimiser moves the weights, outside of the graph.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..models import kernels, ops
from ..models.graphs import Graphs
from .distributed import Distributed
from .loop import Run


class Part(NamedTuple):
    """What a part computes: the loss that is differentiated, numbers to be told, and tensors for the next part."""
    loss: Tensor
    told: Mapping[str, Tensor]
    tensors: tuple[Tensor, ...] = ()


class Parts:
    """The parts of a training's step, by name; use it in a `with`, which gives the graphs' memory back."""

    def __init__(self, run: Run, distributed: Distributed) -> None:
        self.run, self.distributed = run, distributed
        # those that come in few steps have graphs of their own: if one cannot be captured, the others stay
        self.graphs, self.rare_graphs = Graphs(), Graphs()
        self.names: dict[str, tuple[str, ...]] = {}
        self.reached: dict[str, list[nn.Parameter]] = {}

    def gradients(self, name: str, net: str, part_of: Callable[..., Part], *inputs: Tensor,
                  rare: bool = False) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """Gradients of part_of(*inputs).loss by all that the optimiser of `net` moves, the mean of all processes.
        Returns what is told and the tensors; these are valid until the next step.

        part_of: a function of its inputs and of the networks' weights, see models.graphs.Graphs.
        """
        parameters = parameters_of(self.run.optimizers[net])

        def work(*given: Tensor) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                part = part_of(*given)
                found = torch.autograd.grad(part.loss, parameters, allow_unused=True)
            self.names[name] = tuple(part.told)
            self.reached[name] = [p for p, gradient in zip(parameters, found, strict=True) if gradient is not None]
            told = torch.stack([value.detach().float() for value in part.told.values()])
            laid = [laid_as(p, gradient) for p, gradient in zip(parameters, found) if gradient is not None]
            return told, *laid, *(x.detach() for x in part.tensors)

        told, *others = (self.rare_graphs if rare else self.graphs)(name, work, *inputs)
        for parameter in parameters:
            parameter.grad = None
        count = len(self.reached[name])
        for parameter, gradient in zip(self.reached[name], others[:count], strict=True):
            parameter.grad = gradient
        self.distributed.average_gradients(parameters)
        # a graph's outputs are overwritten by its next run, and losses are read later
        return dict(zip(self.names[name], told.clone(), strict=True)), tuple(others[count:])

    def move(self, net: str) -> None:
        """A step of the optimiser of `net`."""
        self.run.optimizers[net].step()

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        for optimizer in self.run.optimizers.values():
            optimizer.zero_grad(set_to_none=True)  # gradients are outputs of the graphs
        self.graphs.clear()
        self.rare_graphs.clear()


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def laid_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in its parameter's memory format, which fused optimisers insist on."""
    if gradient.stride() == parameter.stride() and gradient.dtype == parameter.dtype:
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)


def laid_out(*nets: nn.Module) -> None:
    """Lay the weights of networks on a GPU out as its convolutions want them; in place."""
    for net in nets:
        if kernels.usable(next(net.parameters())):
            ops.channels_last(net)
