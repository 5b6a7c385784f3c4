"""Files that are there whole or not at all."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(target: Path, writer: str = "") -> Iterator[Path]:
    """The file to write in place of `target`, which it replaces when the block ends; after an error `target` is as it
    was. writer: tells several that may write it at once from each other."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}{writer and f'.{writer}'}.part")
    yield partial
    os.replace(partial, target)
