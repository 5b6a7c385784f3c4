"""What the parts of `atelier selfcheck` share: an attempt's outcome, and the child process that makes the attempts.

An attempt is a function of (seed, index) alone. A child makes many, one after the other; the parent ends it at a time
limit and starts another one.
"""
from __future__ import annotations

import json
import logging
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, TypeVar

import torch

Case = TypeVar("Case")
LOADED, REFUSED, FAULT, LOST, NOT_TRIED = "loaded", "refused", "fault", "lost", "not tried"
LONGEST_MESSAGE = 1000
MEMORY = 1 << 30  # bytes that a child may take beyond what it has when it starts with its attempts
PREPARATION_SECONDS = 120.0
BUSY = 6  # times its time that an attempt may take on a busy machine, while it computes less than its time
OURS = re.compile(r"oneshot_atelier|object at 0x|<class |Traceback|NoneType|\b(?:[A-Z][a-zA-Z0-9]*Config|TensorRef|"
                  r"OpaqueObject|PickleVM|FileSource|Stored|UNet\(|DiffAE\()\b")
ADVICE = re.compile(r"\b(download|write|pick|load|update|choose|run|put|give|convert|unpack|check|expected|set|keep"
                    r"|fetch|free|use|turn|take|save|make|name|add|lower|shorten|describe)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt. row: its line of the table. text: the error, or why it was not tried."""
    row: str
    kind: str
    text: str = ""


class Wrong(Exception):
    """What an attempt has found is not as it should be."""


class Lost(Wrong):
    """Work is lost: a saved file, a result, a prompt, a frame, or ComfyUI itself."""


def fault_of(row: str, error: BaseException, notes: Sequence[str] = ()) -> Outcome:
    """What became of an attempt that ended with an exception."""
    text = str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
    return Outcome(row, LOST if isinstance(error, Lost) else FAULT, f"{'; '.join(notes)}: {text[:400]}")


def dice(seed: int, part: str, index: int) -> random.Random:
    """The random numbers of one attempt."""
    return random.Random(f"{seed}/{part}/{index}")


def chosen(cases: Sequence[Case], seed: int, part: str, index: int) -> Case:
    """The case of an attempt: every one once, in an order of the seed, then again."""
    order = list(cases)
    random.Random(f"{seed}/{part}").shuffle(order)
    return order[index % len(order)]


def complaint(text: str) -> str:
    """What is wrong with a message to the user, or ""."""
    if len(text) > LONGEST_MESSAGE:
        return f"the message has {len(text)} characters"
    inside = OURS.search(text)
    if inside:
        return f"the message shows the inside of the program ({inside[0]!r})"
    return "" if ADVICE.search(text) else "the message does not say what to do"


def outcome(row: str, act: Callable[[], object], refusal: type[Exception] | tuple[type[Exception], ...],
            wrong: Callable[[str], str] = complaint) -> Outcome:
    """LOADED if `act` returns, REFUSED if it raises `refusal` with a message that `wrong` finds nothing wrong with."""
    try:
        act()
    except refusal as error:
        reason = wrong(str(error))
        return Outcome(row, FAULT, f"{reason}: {str(error)[:300]}") if reason else Outcome(row, REFUSED, str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever else comes is what the check looks for
        return Outcome(row, FAULT, f"{type(error).__name__}: {str(error)[:300]}")
    return Outcome(row, LOADED)


# --- the child --------------------------------------------------------------------------------------------------------
def serve(part: ModuleType, seed: int, folder: Path) -> None:
    """Make the attempts whose numbers come on stdin; an outcome each on stdout, as JSON. Whatever else is printed goes
    to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        torch.set_num_threads(1)
        logging.getLogger().setLevel(logging.ERROR)
        prepared = part.prepare(folder)
        print(json.dumps({"memory": limit_memory(MEMORY)}), file=out, flush=True)
        for line in sys.stdin:
            found = part.attempt(prepared, seed, int(line))
            print(json.dumps(asdict(found)), file=out, flush=True)


def limit_memory(more: int) -> bool:
    """Let this process take only `more` bytes of address space beyond what it has. False where that cannot be set."""
    try:
        import resource
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        return False
    return True


# --- the parent -------------------------------------------------------------------------------------------------------
class Child:
    """A process that makes attempts. `ask` gives an outcome, or a FAULT for one that hangs or ends the process."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.errors = folder / "stderr.txt"
        self.lines: queue.Queue[str] = queue.Queue()
        with open(self.errors, "wb") as stderr:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, encoding="utf-8",
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}, start_new_session=os.name == "posix")
        self.questions, self.answers = _pipe(self.process.stdin), _pipe(self.process.stdout)
        threading.Thread(target=self._read, daemon=True).start()
        ready = self._next(PREPARATION_SECONDS)
        if ready is None:
            self.close()
            raise OSError(f"the child process did not start: {self._last_error()}")
        self.limits_memory = bool(ready["memory"])

    def _read(self) -> None:
        for line in self.answers:
            self.lines.put(line)
        self.lines.put("")

    def _next(self, seconds: float) -> dict | None:
        """The next answer; None at the end of the process. queue.Empty at the limit."""
        line = self.lines.get(timeout=seconds)
        return json.loads(line) if line else None

    def _answer(self, seconds: float) -> dict | None:
        """As `_next`; the limit is of the process's own time, where the system tells it, and of BUSY times that."""
        end, before = time.monotonic() + BUSY * seconds, cpu_seconds(self.process.pid)
        while True:
            try:
                return self._next(seconds)
            except queue.Empty:
                used = cpu_seconds(self.process.pid)
                if before is None or used is None or used - before >= seconds or time.monotonic() >= end:
                    raise

    def ask(self, index: int, seconds: float) -> Outcome:
        """The outcome of one attempt; the process has ended if it is a FAULT of row ""."""
        try:
            self.questions.write(f"{index}\n")
            self.questions.flush()
            answer = self._answer(seconds)
        except queue.Empty:
            self.close()
            return Outcome("", FAULT, f"no answer within {seconds:g} s")
        except OSError:
            answer = None
        if answer is None:
            self.close()
            return Outcome("", FAULT, f"the process ended with status {self.process.returncode}: {self._last_error()}")
        return Outcome(**answer)

    def _last_error(self) -> str:
        return self.errors.read_text(encoding="utf-8", errors="replace").strip()[-300:]

    def close(self) -> None:
        """End the process, and those that it has started."""
        end_group(self.process)


def cpu_seconds(pid: int) -> float | None:
    """The time that a process has computed; None where the system does not tell it (any but Linux)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise OSError("the child process has no pipe")
    return pipe


def end_group(process: subprocess.Popen) -> None:
    """End a process that was started with a session of its own, and wait for it."""
    if os.name == "posix":
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    else:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            try:
                pipe.close()
            except OSError:
                pass


@contextmanager
def children(command: Sequence[str], folder: Path) -> Iterator[Callable[[int, float], Outcome]]:
    """`ask(index, seconds)` over one child after the other: one that has ended is replaced."""
    current = [Child(command, folder)]

    def ask(index: int, seconds: float) -> Outcome:
        if not current:
            current.append(Child(command, folder))
        found = current[0].ask(index, seconds)
        if not found.row:
            current.clear()
        return found

    try:
        yield ask
    finally:
        for child in current:
            child.close()
