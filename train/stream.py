"""Pictures streamed from folders: decoded by threads one step ahead, kept only as far as `cache_bytes` allow; or all of
them read at once and held on the device."""
from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType

import torch
from torch import Tensor

from ..models import rng
from .data import read_picture, to_unit

log = logging.getLogger(__name__)
CACHE_BYTES = 1 << 30


def hash_of_files(paths: Sequence[Path]) -> str:
    """A hash of the names and sizes; the contents are not read."""
    listing = "".join(f"{path.name}{path.stat().st_size}" for path in paths)
    return hashlib.sha256(listing.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class StreamConfig:
    """batch: of all processes. stream: its name, so that two streams of one seed differ. flip: half of the
    pictures are mirrored. weights: how likely each is to be chosen (None: alike). at_once: all are read for the first
    step and lie on the device from then on, if `cache_bytes` allow; the pictures of a step are the same ones."""
    px: int
    batch: int
    seed: int
    stream: str = "pictures"
    flip: bool = False
    weights: tuple[float, ...] | None = None
    cache_bytes: int = CACHE_BYTES
    workers: int = 4
    at_once: bool = False


class ImageStream:
    """`stream(k)`: the pictures of step k in [-1, 1], (rows, 3, px, px) on `device`; they depend on (seed, k) alone.

    rows: the indices of the batch that this process keeps (default: all). A picture that cannot be read is replaced by
    the next one that can, and named in the log; ValueError if none can. Close it, or use it in a `with`.
    """

    def __init__(self, paths: Sequence[Path], config: StreamConfig, rows: Tensor | None = None,
                 device: torch.device = rng.CPU) -> None:
        if not paths:
            raise ValueError("there is no picture to train on: name a folder that holds some")
        self.paths, self.config, self.device = list(paths), config, device
        self.weights = torch.tensor(config.weights or [1.0] * len(paths), dtype=torch.float64)
        self.rows = torch.arange(config.batch) if rows is None else rows
        self.room, self.cache = config.cache_bytes // (3 * config.px * config.px), {}
        self.threads, self.lock = ThreadPoolExecutor(config.workers), Lock()
        self.ahead: dict[int, list[Future]] = {}
        self.unreadable: set[int] = set()
        self.holds_all, self.held = config.at_once and len(paths) <= self.room, None

    def __call__(self, k: int) -> Tensor:
        x = to_unit(self._held(k) if self.holds_all else self._read_ahead(k))
        flips = rng.generator(self.config.seed, f"{self.config.stream} flips", k)
        mirrored = torch.rand(self.config.batch, generator=flips)[self.rows] < 0.5 * self.config.flip
        return torch.where(self._sent(mirrored)[:, None, None, None], x.flip(3), x)

    def _held(self, k: int) -> Tensor:
        """The pictures of step k, uint8 (rows, 3, px, px), of all that lie on the device."""
        if self.held is None:
            self.held = torch.stack(list(self.threads.map(self._read_readable, range(len(self.paths))))).to(self.device)
            log.info("%d pictures of %d px are held in memory", len(self.held), self.config.px)
        return self.held[self._sent(torch.tensor(self.chosen(k)))]

    def _read_ahead(self, k: int) -> Tensor:
        """The same from the files, while those of the next step are begun."""
        pictures = [future.result() for future in self.ahead.pop(k, None) or self._begin(k)]
        self.ahead = {k + 1: self._begin(k + 1)}
        return torch.stack(pictures).to(self.device)

    def _sent(self, x: Tensor) -> Tensor:
        """x on the device, without waiting for what that is doing."""
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x.to(self.device)

    def chosen(self, k: int) -> list[int]:
        """Indices of this process's pictures at step k."""
        whole = torch.multinomial(self.weights, self.config.batch, replacement=True,
                                  generator=rng.generator(self.config.seed, self.config.stream, k))
        return whole[self.rows].tolist()

    def _begin(self, k: int) -> list[Future]:
        return [self.threads.submit(self._read, index) for index in self.chosen(k)]

    def _read(self, index: int) -> Tensor:
        found = self.cache.get(index)
        if found is None:
            found = self._read_readable(index)
            with self.lock:
                if len(self.cache) < self.room:
                    self.cache[index] = found
        return found

    def _read_readable(self, index: int) -> Tensor:
        """The picture, or the first one behind it that can be read."""
        first: ValueError | None = None
        for offset in range(len(self.paths)):
            at = (index + offset) % len(self.paths)
            if at not in self.unreadable:
                try:
                    return read_picture(self.paths[at], self.config.px)
                except ValueError as error:
                    first = first or error
                    self.unreadable.add(at)
                    log.warning("left out: %s", error)
        raise ValueError(f"none of the {len(self.paths)} pictures can be read: {first or self.paths[0]}")

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> ImageStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
