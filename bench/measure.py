"""Time, memory, arithmetic and memory traffic of a piece of work.

Memory is what PyTorch reserves from the device (torch.cuda.max_memory_reserved): what lies in the pools of CUDA graphs
counts, which max_memory_allocated does not see while they are replayed.
"""
from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..models import kernels
from ..models.unet import UNet, UNetConfig

Work = Callable[[], object]
GIB = 2 ** 30
NOT_WRITTEN = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# --- time and memory --------------------------------------------------------------------------------------------------
def seconds_of(work: Work, device: torch.device) -> float:
    """Of one call, until the device is done."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def timed(work: Work, device: torch.device, runs: int, warm: int = 1) -> tuple[float, float]:
    """(median seconds, peak GiB) of `runs` calls after `warm` more; the peak is of all of them, NaN without a GPU."""
    forget_peak(device)
    for _ in range(warm):
        work()
    return statistics.median(seconds_of(work, device) for _ in range(runs)), peak(device)


def looped(work: Work, device: torch.device, count: int) -> float:
    """Mean seconds of a call among `count` that follow each other without waiting."""
    return seconds_of(lambda: [work() for _ in range(count)], device) / count


def forget_peak(device: torch.device) -> None:
    """Give back what nobody uses, and begin to look for a peak."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: torch.device) -> float:
    """GiB that were reserved at once since `forget_peak`; NaN without a GPU."""
    return torch.cuda.max_memory_reserved() / GIB if device.type == "cuda" else float("nan")


# --- arithmetic and traffic -------------------------------------------------------------------------------------------
@dataclass
class Counts:
    """flop: of convolutions, matrix products and attention, two for a multiplication with its addition. bytes: the
    least that is moved if every operator reads its inputs once, writes its outputs once and finds nothing in a cache; a
    norm whose map is too large for one program reads it twice, for the statistics and for its work."""
    flop: float = 0.0
    bytes: float = 0.0


class Counter(TorchDispatchMode):
    """Adds up what the operators do that are called inside, in the backward pass, too. A graph's replay is unseen."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        kwargs = dict(kwargs or {})
        outputs = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.counts.flop += flop_registry[func._overloadpacket](*args, **kwargs, out_val=outputs)
        self.counts.bytes += traffic(func, [*args, *kwargs.values()], outputs)
        return outputs


def traffic(func: Any, inputs: list, outputs: Any) -> float:
    """Bytes that an operator must move: none if it only looks at its inputs in another way."""
    name = func._overloadpacket.__name__
    read, written = tensors_of(inputs), tensors_of(outputs)
    if name in NOT_WRITTEN:
        return 0.0
    places = {x.untyped_storage()._cdata for x in read}
    if not func._schema.is_mutable and all(x.untyped_storage()._cdata in places for x in written):
        return 0.0
    if name in ("zero_", "fill_", "copy_"):
        read = read[1:]
    return sum(map(size_of, [*read, *written, *read_again(func, inputs)]))


def tensors_of(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def size_of(x: Tensor) -> int:
    """Bytes; of an expanded tensor those that it has."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def read_again(func: Any, inputs: list) -> list[Tensor]:
    """Maps that a norm's kernels read a second time, see `kernels.norm`."""
    first = {"atelier::group_norm": 0, "atelier::group_norm_backward": 1}.get(func._schema.name)
    if first is None:
        return []
    groups = inputs[[argument.name for argument in func._schema.arguments].index("groups")]
    x, other = inputs[first:first + 2]
    if kernels.of("norm").Tiling(x, other, groups).is_whole:
        return []
    return tensors_of(inputs[:first + 2])


def counted(work: Work) -> Counts:
    """What one call does. It must not be a graph's replay."""
    with Counter() as counter:
        work()
    return counter.counts


def call_flop(config: UNetConfig) -> float:
    """Arithmetic of one network call for one picture."""
    with torch.device("meta"):
        unet = UNet(config).eval().requires_grad_(False)
        x, t = torch.empty(1, 3, config.image_size, config.image_size), torch.zeros(1, dtype=torch.long)
        z = torch.empty(1, config.cond) if config.cond else None
    return counted(lambda: unet(x, unet.modulation(t, z))).flop
