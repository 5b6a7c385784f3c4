"""Ctrl-C and SIGTERM: a training is stopped between two steps, saved, and can be resumed."""
from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class Stopped(KeyboardInterrupt):
    """A signal stopped the command. saved: what was saved, a sentence."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status, self.saved = 128 + number, "Nothing was saved"


@contextmanager
def stopped_with(saved: str | None) -> Iterator[None]:
    """Who is stopped inside is told what was saved, a sentence; None for nothing."""
    try:
        yield
    except Stopped as stopped:
        stopped.saved = saved or stopped.saved
        raise


class StopSignals:
    """Handles SIGINT and SIGTERM inside a `with`: raises Stopped, at once or, in a training, at its next `check`.

    A second signal raises at once in any case.
    """

    def __init__(self) -> None:
        self.training, self.received, self.previous = False, 0, {}

    def check(self) -> None:
        """The trainings' check_interrupt. Raises Stopped if a signal came since the last one."""
        self.training = True
        if self.received:
            raise Stopped(self.received)

    def at_once(self) -> None:
        """After a training: a signal stops at once again. Raises Stopped if one came since the last `check`."""
        self.check()
        self.training = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.training or self.received:
            raise Stopped(number)
        self.received = number
        log.info("stopping after this step; stop once more to stop at once")

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
