"""CUDA graphs around calls of fixed shape: one launch instead of a thousand. Everywhere else the function is called."""
from __future__ import annotations

import ctypes
import logging
import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)
Outputs = tuple[Tensor, ...]
Function = Callable[..., Outputs]
Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Captured:
    """A graph with the tensors that it reads and writes."""
    graph: torch.cuda.CUDAGraph
    inputs: Outputs
    outputs: Outputs

    def replay(self, inputs: Outputs) -> Outputs:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.outputs


class Graphs:
    """Functions of tensors by key. Of a key and shapes the first call is made as it is, the second is captured, and
    from then on the graph is replayed; all share one memory pool.

    A function must compute from the given tensors and from tensors that stay where they are (weights), on the device
    alone: it may not read numbers back or make tensors on the CPU. Its outputs are valid until the next call.
    """

    def __init__(self) -> None:
        self.seen: set[Hashable] = set()
        self.captured: dict[Hashable, Captured] = {}
        self.pool: Any = None  # torch's handle
        self.failed = False

    def enabled(self, device: torch.device) -> bool:
        return device.type == "cuda" and not self.failed

    def __call__(self, key: Hashable, function: Function, *inputs: Tensor) -> Outputs:
        if not self.enabled(inputs[0].device):
            return function(*inputs)
        key = key, *((x.shape, x.stride(), x.dtype, x.device) for x in inputs)
        if key in self.captured:
            return self.captured[key].replay(inputs)
        if key not in self.seen:
            self.seen.add(key)
            return function(*inputs)
        try:
            self.captured[key] = self._capture(function, inputs)
        except (RuntimeError, ValueError) as error:
            log.warning("No CUDA graph could be captured (%s). The work goes on without, slower.", str(error)[:200])
            self.captured, self.failed = {}, True  # outputs of others may still be read
            return function(*inputs)
        return self.captured[key].replay(inputs)

    def _capture(self, function: Function, inputs: Outputs) -> Captured:
        wants_gradients = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(wants_gradients):
            mine = tuple(x.detach().clone() for x in inputs)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # what was cached so far cannot be used by the graph's pool
            graph = torch.cuda.CUDAGraph()
            # another thread of the host may use the GPU meanwhile
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                outputs = function(*mine)
        self.pool = graph.pool()
        return Captured(graph, mine, outputs)

    def __enter__(self) -> Graphs:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Give the graphs and their memory back, as the end of a `with` does; their outputs are empty from now on."""
        self.seen.clear()
        if self.captured:
            empty([output for captured in self.captured.values() for output in captured.outputs])
            self.captured.clear()
            self.pool = None
            trim()


def empty(outputs: Iterable[Tensor]) -> None:
    """Free what tensors hold. cudaMallocAsync warns of every output of a graph that is freed: here Python hears it, and
    can keep quiet, which it cannot where the last reference is lost."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempting uncaptured free")
        for output in outputs:
            output.untyped_storage().resize_(0)


def trim() -> None:
    """Give the driver the memory that graphs have left. PyTorch's own allocator does so by itself, cudaMallocAsync
    (ComfyUI's) keeps it for further graphs."""
    if not torch.cuda.is_available() or torch.cuda.get_allocator_backend() != "cudaMallocAsync":
        return
    torch.cuda.synchronize()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        driver.cuDeviceGraphMemTrim(torch.cuda.current_device())
    except (OSError, AttributeError) as error:
        log.warning("The memory of CUDA graphs could not be given back: %s", error)


class Replayed(nn.Module):
    """A frozen network whose calls with tensors are replayed as graphs; as fast as the network itself elsewhere.

    The graphs hold where the weights lie, so they are dropped if those have moved.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.eval().requires_grad_(False)
        self.graphs, self.places = Graphs(), ()

    def follow_weights(self) -> None:
        places = tuple(p.data_ptr() for p in self.net.parameters())
        if places != self.places:
            self.graphs.clear()
            self.places = places

    def forward(self, *inputs: Tensor) -> Tensor:
        """As of the network, which must return one tensor; a copy of its own."""
        self.follow_weights()
        output, = self.graphs("", lambda *given: (self.net(*given),), *inputs)
        return output.clone()


def release(net: nn.Module) -> None:
    """Give back the memory of all graphs in a network."""
    for part in net.modules():
        if isinstance(part, Replayed):
            part.graphs.clear()


@contextmanager
def releasing(net: Net) -> Iterator[Net]:
    """The network, whose graphs' memory is given back when the block ends, whatever ends it."""
    try:
        yield net
    finally:
        release(net)
