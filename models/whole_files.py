"""Files that are there whole or not at all."""
from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(target: Path, writer: str = "") -> Iterator[Path]:
    """The file to write in place of `target`, which it replaces when the block ends; after an error `target` is as it
    was, and nothing is left. writer: tells several that may write it at once from each other."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}{writer and f'.{writer}'}.part")
    try:
        yield partial
        replace(partial, target)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_whole(target: Path, text: str) -> None:
    """A text, in UTF-8, that is there whole or not at all, whoever else writes it."""
    with whole_file(target, str(os.getpid())) as file:
        file.write_text(text, encoding="utf-8")


def replace(source: Path, target: Path) -> None:
    """os.replace. Windows replaces no file that somebody reads, so there it is tried again for a second."""
    for _ in range(20 if os.name == "nt" else 0):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            time.sleep(0.05)
    os.replace(source, target)
