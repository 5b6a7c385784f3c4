"""One meaning of a seed: random numbers are a function of (seed, stream, item) alone.

A stream is a name for what is generated ("x_T", "twin", "dropout"); an item is which one of it (a picture, or a step
and a row). So the first of N equals the only one of 1 at every batch size and split, and two seeds, streams or items
never share their numbers.
"""
from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Generator, Tensor

MAX_SEED = 2 ** 64 - 1
CPU = torch.device("cpu")
HOST_ONLY = ("cpu", "meta")  # no generator of their own beside the CPU's


def stream_seed(seed: int, stream: str, *item: int) -> int:
    """64 bits that belong to (seed, stream, item). ValueError for a seed outside 0 .. 2^64 - 1."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed is {seed}; take a whole number from 0 to {MAX_SEED}")
    text = "/".join([str(seed), stream, *map(str, item)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def generator(seed: int, stream: str, *item: int, device: torch.device = CPU) -> Generator:
    """A fresh generator of (seed, stream, item) on `device`."""
    return Generator(device).manual_seed(stream_seed(seed, stream, *item))


def randn(shape: Sequence[int], seed: int, stream: str, items: Iterable[int] = (0,),
          device: torch.device = CPU) -> Tensor:
    """N(0, I) of (len(items), *shape): one row an item. Drawn on the CPU: a seed means the same on every device."""
    return torch.stack([torch.randn(*shape, generator=generator(seed, stream, item)) for item in items]).to(device)


@contextlib.contextmanager
def seeded(seed: int, stream: str, *item: int, device: torch.device = CPU) -> Iterator[None]:
    """Torch's own generators (dropout, new layers) are fixed inside and untouched outside."""
    with torch.random.fork_rng([device] if device.type not in HOST_ONLY else [], device_type=device.type):
        torch.manual_seed(stream_seed(seed, stream, *item))
        yield
