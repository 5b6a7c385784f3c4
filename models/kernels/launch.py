"""Launching kernels, also while a graph is captured with ComfyUI's allocator (cudaMallocAsync)."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import interpreted


class Launched:
    """A kernel that is launched as Triton's own are: kernel[grid](*arguments, **constants).

    Triton asks the driver whether a pointer is of the GPU. Of what cudaMallocAsync gives while a graph is captured, the
    driver knows that only when the graph runs, so there pointers are handed over as plain numbers.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        if interpreted() or not async_capture():
            return self.kernel[grid]
        return lambda *arguments, **constants: self._launch(grid, arguments, constants)

    def _launch(self, grid: tuple[int, ...], arguments: tuple, constants: dict[str, Any]) -> None:
        compiled = self.kernel.run(*arguments, grid=grid, warmup=True, **constants)
        names = self.kernel.arg_names
        values = dict(zip(names, arguments)) | {name: constants[name] for name in constants if name in names}
        compiled[(*grid, 1, 1)[:3]](*(value.data_ptr() if isinstance(value, Tensor) else value
                                      for value in (values[name] for name in names)))


def async_capture() -> bool:
    return torch.cuda.is_current_stream_capturing() and torch.cuda.get_allocator_backend() == "cudaMallocAsync"
