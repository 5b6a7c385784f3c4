"""What networks made of pictures, kept for the next time: a second style of the same photos encodes nothing again."""
from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from torch import Tensor

from .hashing import hash_of

LIMIT = 256 << 20
Code = TypeVar("Code", Tensor, tuple[Tensor, ...])


class CodeCache(Generic[Code]):
    """The codes that one model has computed, `limit` bytes of them at most: the least recently used leave first.

    A code, one tensor or several, is known by every bit of the tensors that it was computed from, and by the settings.
    It is shared: nothing may change it in place. Threads can use it at the same time.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.bytes = limit, 0
        self._codes: OrderedDict[tuple, Code] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, given: Mapping[str, Tensor], settings: tuple, make: Callable[[], Code]) -> Code:
        """The code of the tensors `given` with `settings` (numbers and names): `make()`, unless it is known."""
        key = (hash_of(given, None), settings)
        with self._lock:
            if key in self._codes:
                self._codes.move_to_end(key)
                return self._codes[key]
        code = make()
        with self._lock:
            if key not in self._codes and size_of(code) <= self.limit:
                self._codes[key] = code
                self.bytes += size_of(code)
            while self.bytes > self.limit:
                self.bytes -= size_of(self._codes.popitem(last=False)[1])
        return code


def size_of(code: Tensor | tuple[Tensor, ...]) -> int:
    """Bytes that a code holds, also where it is a part of a larger tensor."""
    return sum(part.untyped_storage().nbytes() for part in ((code,) if isinstance(code, Tensor) else code))
