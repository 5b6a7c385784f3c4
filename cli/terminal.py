"""What the command line says: results on stdout, everything else on stderr, progress bars where it is a terminal."""
from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from .client import Event, Graph, title_of

if TYPE_CHECKING:
    from ..train.loop import Progress

SECONDS_BETWEEN_LINES = 5.0


def show(text: object) -> None:
    """A result, on stdout."""
    print(text, flush=True)


@contextlib.contextmanager
def logging_set_up() -> Iterator[None]:
    """Log lines go to stderr, above the progress bar if there is one."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not shows_progress():
        yield
        return
    from tqdm.contrib.logging import logging_redirect_tqdm
    with logging_redirect_tqdm():
        yield


def shows_progress() -> bool:
    """Is stderr a terminal, and this the only process or the first of several?"""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


class ProgressBar:
    """The trainings' hook `on_iteration`, used in a `with`: a bar of steps with the losses, one after the other.

    Without a terminal it shows nothing, and the trainings' own log lines are seen instead.
    """

    def __init__(self) -> None:
        self.bar, self.active, self.level = None, shows_progress(), logging.NOTSET

    def __enter__(self) -> ProgressBar:
        if self.active:
            from ..train.loop import progress_log
            self.level = progress_log.level
            progress_log.setLevel(logging.WARNING)
        return self

    def __call__(self, progress: Progress) -> None:
        if not self.active:
            return
        if self.bar is None or progress.step <= self.bar.n:
            from tqdm import tqdm
            self._close()
            self.bar = tqdm(total=progress.steps, initial=progress.step - 1, unit="step", dynamic_ncols=True)
        if progress.losses:
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in progress.losses.items()}, refresh=False)
        self.bar.update(progress.step - self.bar.n)
        if progress.step == progress.steps:
            self._close()

    def __exit__(self, *_: object) -> None:
        self._close()
        if self.active:
            from ..train.loop import progress_log
            progress_log.setLevel(self.level)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


# --- a graph in a ComfyUI ---------------------------------------------------------------------------------------------
class ProgressLines:
    """The client's `on_event`: writes what runs, how far it is and how long it took; a live line on a terminal, else
    one every few seconds. to: stdout if none is named."""

    def __init__(self, titles: dict[str, str], to: TextIO | None = None) -> None:
        self.titles, self.to = titles, to or sys.stdout
        self.live = self.to.isatty()
        self.node: str | None = None
        self.began = self.written = 0.0

    def __call__(self, event: Event) -> None:
        if event.kind == "executing":
            self._finish(event.at)
            self.node, self.began, self.written = event.data.get("node"), event.at, event.at
            if self.node:
                self._write(event.at, "...")
        elif event.kind == "progress" and event.data.get("node") == self.node:
            if event.at - self.written >= (0.2 if self.live else SECONDS_BETWEEN_LINES):
                self.written = event.at
                spent = event.at - self.began
                self._write(event.at, f"step {event.data['value']:.0f}/{event.data['max']:.0f}, {spent:.0f} s")
        elif event.kind in ("execution_success", "execution_error", "execution_interrupted"):
            self._finish(event.at)

    def _finish(self, at: float) -> None:
        if self.node and (self.live or at - self.began >= 1):
            self._write(at, f"done in {at - self.began:.1f} s", last=True)
        self.node = None

    def _write(self, at: float, text: str, last: bool = False) -> None:
        line = f"  {at:6.1f} s  {self.titles.get(self.node or '', self.node)}: {text}"
        if self.live:
            print(f"\r\x1b[2K{line}", end="\n" if last else "", file=self.to, flush=True)
        else:
            print(line, file=self.to, flush=True)


def titles_of(graph: Graph) -> dict[str, str]:
    return {node: title_of(entry) for node, entry in graph.items()}
