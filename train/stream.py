"""Pictures streamed from folders: decoded by threads one step ahead, kept only as far as `cache_bytes` allow."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from types import TracebackType

import torch
from torch import Generator, Tensor

from .data import read_picture, to_unit
from .loop import step_seed

CACHE_BYTES = 1 << 30
CPU = torch.device("cpu")


def hash_of_files(paths: Sequence[Path]) -> str:
    """Another one for other names or sizes; the contents are not read."""
    listing = "".join(f"{path.name}{path.stat().st_size}" for path in paths)
    return hashlib.sha256(listing.encode()).hexdigest()[:32]


class Stream:
    """`stream(k)`: the pictures of step k in [-1, 1], (rows, 3, px, px) on `device`; they depend on (seed, k) alone.

    paths: all pictures; weights: how likely each is to be drawn (default: alike). batch: of the whole team; rows: the
    indices this process keeps (default: all). flip: half of the pictures are mirrored. A picture that cannot be read
    raises ValueError with its name. Close it, or use it in a `with`.
    """

    def __init__(self, paths: Sequence[Path], px: int, batch: int, seed: int, *, weights: Sequence[float] | None = None,
                 rows: Tensor | None = None, flip: bool = False,
                 device: torch.device = CPU, cache_bytes: int = CACHE_BYTES, workers: int = 4):
        if not paths:
            raise ValueError("there is no picture to train on: name a folder that holds some")
        self.paths, self.px, self.batch, self.seed, self.flip = list(paths), px, batch, seed, flip
        self.weights = torch.tensor(weights if weights is not None else [1.0] * len(paths), dtype=torch.float64)
        self.rows, self.device = torch.arange(batch) if rows is None else rows, device
        self.room, self.cache = cache_bytes // (3 * px * px), {}
        self.pool, self.lock = ThreadPoolExecutor(workers), Lock()
        self.ahead: dict[int, list[Future]] = {}

    def __call__(self, k: int) -> Tensor:
        pictures = [future.result() for future in self.ahead.pop(k, None) or self._begin(k)]
        self.ahead = {k + 1: self._begin(k + 1)}
        x = to_unit(torch.stack(pictures).to(self.device))
        apart = self._generator(-1 - k)  # as of a step that is no step
        mirrored = torch.rand(self.batch, generator=apart)[self.rows] < 0.5 * self.flip
        return torch.where(mirrored.to(self.device)[:, None, None, None], x.flip(3), x)

    def chosen(self, k: int) -> list[int]:
        """Indices of this process's pictures at step k."""
        drawn = torch.multinomial(self.weights, self.batch, replacement=True, generator=self._generator(k))
        return drawn[self.rows].tolist()

    def _generator(self, k: int) -> Generator:
        return Generator().manual_seed(step_seed(self.seed, k))

    def _begin(self, k: int) -> list[Future]:
        return [self.pool.submit(self._read, index) for index in self.chosen(k)]

    def _read(self, index: int) -> Tensor:
        found = self.cache.get(index)
        if found is None:
            found = read_picture(self.paths[index], self.px)
            with self.lock:
                if len(self.cache) < self.room:
                    self.cache[index] = found
        return found

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()
