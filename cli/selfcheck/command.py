"""`atelier selfcheck`: what an adversary and a clumsy user do to files, pictures, settings, trainings and, if one is
named, to a ComfyUI that it starts, as a sample.

Every attempt must end in a result or in an error that says what to do. Nothing of a file is executed, and nothing is
written outside a temporary folder, but the report.
"""
from __future__ import annotations

import argparse
import datetime
import importlib
import logging
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from ..options import names_in
from ..stopping import Stopped, StopSignals
from ..terminal import show
from . import attempts
from .attempts import FAULT, LOADED, LOST, NOT_TRIED, REFUSED, Outcome

log = logging.getLogger(__name__)
PARTS = {"files": 35, "pictures": 15, "settings": 10, "trainings": 40, "host": 0}  # shares of the time
HOST, LANES = "host", 4  # needs a ComfyUI: as many are started, which work beside the other parts
COLUMNS = ("what", "tried", "refused", "loaded", "faults", "lost", "seconds")
FAULTS = (FAULT, LOST)
SHOWN = 4  # faults of a row in full
LIMITS = """- An attempt is a random one: that none of them failed does not prove that none can.
- The numbers of a tensor carry no checksum. A flipped bit among them that leaves a finite number is not noticed.
- Seconds are those of a clock. Four ComfyUIs are attacked at a time, beside the other parts.
- Memory is limited where the system can do it (Linux); elsewhere only time is.
- ComfyUI is tried on a CPU, with networks of a few thousand numbers. Running out of a GPU's memory is an exception that
  is raised in its place. A full disk is a small file system in memory, which only root may mount.
- Between two prompts, ComfyUI's own pictures in `output` and `temp` are not looked at: a picture that core's Save Image
  was writing when ComfyUI was killed may be cut off.
- Trainings are the fine-tunes of OSASIS and MMFS and the training of a StyleGAN2, on a CPU, on networks of a few
  thousand numbers. On a GPU, a resumed training equals an uninterrupted one up to what the GPU's own kernels repeat.
- A training that is killed leaves `.NAME.snapshot.lock` beside its snapshot, which nobody holds: the next training of
  that name takes it and removes it. One that is killed while it writes leaves a temporary file as well, until then.
- A computer that loses its power, network folders and file systems without locks are not tried.
"""


@dataclass
class Row:
    """The counts of one line of the table."""
    part: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((REFUSED, LOADED, *FAULTS, NOT_TRIED), 0))
    seconds: float = 0.0
    reason: str = ""

    @property
    def tried(self) -> int:
        return sum(self.counts.values()) - self.counts[NOT_TRIED]

    def add(self, found: Outcome, seconds: float) -> None:
        self.counts[found.kind] += 1
        self.seconds += seconds
        if found.kind == NOT_TRIED:
            self.reason = found.text

    def cells(self, name: str) -> list[str]:
        tried = str(self.tried) if self.tried or not self.reason else f"not tried ({self.reason})"
        counts = [str(self.counts[kind]) for kind in (REFUSED, LOADED, *FAULTS)]
        return [f"{self.part}: {name}", tried, *counts, f"{self.seconds:.1f}"]


@dataclass(frozen=True)
class Fault:
    """A fault, and how it is repeated."""
    part: str
    index: int
    found: Outcome

    def line(self, seed: int) -> str:
        return (f"FAULT {self.part}: {self.found.row or 'the process'}: {self.found.text}\n"
                f"      repeat: atelier selfcheck --seed {seed} --repeat {self.part}:{self.index}")


@dataclass
class Result:
    """All that a check has found. covered: {part: (cases tried, cases there are)}."""
    seed: int
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    covered: dict[str, tuple[int, int]] = field(default_factory=dict)
    stopped: bool = False

    def add(self, part: str, index: int, outcomes: list[Outcome], seconds: float) -> None:
        """What became of an attempt, which took these seconds."""
        for found in outcomes:
            row = self.rows.setdefault((part, found.row or "the process"), Row(part))
            row.add(found, seconds / len(outcomes))
            if found.kind in FAULTS:
                self.faults.append(Fault(part, index, found))
                if sum(row.counts[kind] for kind in FAULTS) <= SHOWN:
                    log.warning(self.faults[-1].line(self.seed))

    def some_faults(self) -> list[Fault]:
        """The first of every row."""
        by_row: dict[tuple[str, str], list[Fault]] = {}
        for fault in self.faults:
            by_row.setdefault((fault.part, fault.found.row), []).append(fault)
        return [fault for faults in by_row.values() for fault in faults[:SHOWN]]

    def total(self) -> str:
        """Everything tried, failed and lost, in words."""
        tried = sum(row.tried for row in self.rows.values())
        lost = sum(row.counts[LOST] for row in self.rows.values())
        faults = f"{len(self.faults) - lost} faults, {lost} lost"
        return f"In all: {tried} tried, {faults}{' (stopped early)' * self.stopped}"

    def table(self) -> list[list[str]]:
        rows = sorted(self.rows.items(), key=lambda row: list(PARTS).index(row[1].part))
        return [row.cells(name) for (_, name), row in rows]


# --- the command ------------------------------------------------------------------------------------------------------
def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--seed", type=int, default=0, help="which sample (%(default)s)")
    p.add_argument("--minutes", type=float, default=2.0, help="time for all parts; from 10 on, every case is tried, "
                   "however long it takes (%(default)s)")
    p.add_argument("--only", help=f"parts, separated by commas: {', '.join(PARTS)} (all; host with --comfyui alone)")
    p.add_argument("--comfyui", type=Path, help="a ComfyUI to start and attack, with folders of its own (default, with "
                   "--only host: COMFYUI_PATH)")
    p.add_argument("--report", type=Path, help="Markdown file to write, such as docs/reliability.md")
    p.add_argument("--repeat", metavar="PART:N", help="make one attempt again, as a fault's line names it")
    p.add_argument("--child", help=argparse.SUPPRESS)
    p.add_argument("--folder", help=argparse.SUPPRESS)
    p.set_defaults(run=run)


def run(options: argparse.Namespace, signals: StopSignals) -> None:
    if options.child == "victim":
        importlib.import_module(".trainings", __package__).victim(options.folder)
        return
    if options.child:
        attempts.serve(module_of(options.child), options.seed, Path(options.folder))
        return
    if options.repeat:
        repeat(options.repeat, options.seed, options.comfyui)
        return
    started = time.monotonic()
    parts = parts_in(options.only) if options.only else [part for part in PARTS if part != HOST or options.comfyui]
    result = check(options.seed, options.minutes, parts, signals.check, comfyui=options.comfyui)
    show(aligned([list(COLUMNS), *result.table()]))
    show(result.total())
    if options.report:
        options.report.write_text(report(result, time.monotonic() - started), encoding="utf-8")
    if result.faults:
        raise ValueError(f"{len(result.faults)} faults in {sum(row.tried for row in result.rows.values())} attempts")


def parts_in(names: str) -> list[str]:
    """ValueError for a part that there is none of."""
    chosen = names_in(names)
    unknown = [name for name in chosen if name not in PARTS]
    if unknown or not chosen:
        raise ValueError(f"there is no part {', '.join(unknown)!r}; take some of {', '.join(PARTS)}")
    return list(chosen)


def module_of(part: str) -> ModuleType:
    return importlib.import_module(f".{parts_in(part)[0]}", __package__)


def child_command(part: str, seed: int, folder: Path) -> list[str]:
    """The pack may be a checkout or installed: its command line is started by its path."""
    return [sys.executable, str(Path(__file__).resolve().parents[1] / "__main__.py"), "selfcheck", "--child", part,
            "--seed", str(seed), "--folder", str(folder)]


@contextmanager
def asking(part: str, seed: int, folder: Path, comfyui: Path | None = None) -> Iterator[Callable[[int], list[Outcome]]]:
    """`ask(index)` makes an attempt of a part: in a child, or at a ComfyUI that is started."""
    module = module_of(part)
    if part == HOST:
        with module.asking(folder, seed, comfyui) as ask:
            yield ask
    else:
        with attempts.children(child_command(part, seed, folder), folder) as ask_child:
            yield lambda index: [ask_child(index, module.SECONDS)]


def check(seed: int, minutes: float, parts: list[str], progress: Callable[[], None] = lambda: None,
          least: int = 1, comfyui: Path | None = None) -> Result:
    """Attempts of every part for its share of the time, at least `least`; from 10 minutes on, LEAST. Those at a
    ComfyUI, which starts most of the time, are made beside the others. progress: may raise Stopped; what was found
    until then is the result."""
    result, lock, end = Result(seed), threading.Lock(), time.monotonic() + 60 * minutes
    others, lanes = [part for part in parts if part != HOST], LANES if HOST in parts else 0
    with tempfile.TemporaryDirectory(prefix="atelier-selfcheck-", ignore_cleanup_errors=True) as folder:
        def attack(part: str, turns: Iterator[int], place: str) -> None:
            log.info("attempts at %s", place)
            with asking(part, seed, Path(folder) / place, comfyui) as ask:
                total = module_of(part).CASES
                for index in turns:
                    progress()
                    before = time.monotonic()
                    found = ask(index)
                    with lock:
                        result.add(part, index, found, time.monotonic() - before)
                        result.covered[part] = (min(max(index + 1, result.covered.get(part, (0,))[0]), total), total)

        def turns_of(part: str, until: float) -> Iterator[int]:
            return indices(until, module_of(part).LEAST if minutes >= 10 else least)

        try:
            with ThreadPoolExecutor(max(1, lanes)) as pool:
                shared = Shared(turns_of(HOST, end)) if lanes else iter(())
                beside = [pool.submit(attack, HOST, shared, f"{HOST}-{lane}") for lane in range(lanes)]
                for k, part in enumerate(others):
                    share = PARTS[part] / sum(PARTS[later] for later in others[k:])
                    attack(part, turns_of(part, time.monotonic() + share * (end - time.monotonic())), part)
                for running in beside:
                    running.result()
        except Stopped:
            result.stopped = True
    return result


class Shared:
    """An iterator that several threads take from."""

    def __init__(self, turns: Iterator[int]) -> None:
        self.turns, self.lock = turns, threading.Lock()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        with self.lock:
            return next(self.turns)


def indices(until: float, least: int) -> Iterator[int]:
    """0, 1, .. until the time is over; `least` in any case."""
    index = 0
    while index < least or time.monotonic() < until:
        yield index
        index += 1


def repeat(which: str, seed: int, comfyui: Path | None = None) -> None:
    """Make one attempt again, and show what became of it. Its folder is kept if it is a fault."""
    part, _, number = which.partition(":")
    if not number.isdecimal():
        raise ValueError(f"--repeat takes PART:N, such as files:12, not {which!r}")
    folder = Path(tempfile.mkdtemp(prefix="atelier-selfcheck-"))
    with asking(parts_in(part)[0], seed, folder / part, comfyui) as ask:
        found = ask(int(number))
    for one in found[:SHOWN]:
        show(f"{part}:{number} {one.row}: {one.kind}. {one.text}")
    if any(one.kind in FAULTS for one in found):
        raise ValueError(f"a fault; its files are in {folder}")
    shutil.rmtree(folder, ignore_errors=True)


# --- the report -------------------------------------------------------------------------------------------------------
def aligned(table: list[list[str]]) -> str:
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) if k == 0 else cell.rjust(width)
                               for k, (cell, width) in enumerate(zip(row, widths))) for row in table)


def report(result: Result, seconds: float) -> str:
    """docs/reliability.md."""
    import torch
    lines = ["# Reliability", "",
             "This page is written by `atelier selfcheck --minutes 10 --comfyui DIR --report docs/reliability.md`. It "
             "makes attempts at the pack as an adversary or a clumsy user would, and counts what becomes of them.", "",
             "- refused: the pack named the file or the setting and said what to do",
             "- loaded: the attempt did no harm, and the result was right as far as it can be known",
             "- fault: anything else: another exception, no answer within the time, too much memory, code that ran, a "
             "file outside the folders, a wrong message",
             "- lost: a fault that costs work: a half-written file, a result that differs after an interruption, a "
             "prompt without an answer, a frame that is missing, a ComfyUI that has ended", "",
             f"{datetime.date.today().isoformat()}, seed {result.seed}, {seconds / 60:.1f} minutes, {os.cpu_count()} "
             f"cores, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}", "",
             "| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += ["| " + " | ".join(cells) + " |" for cells in result.table()]
    lines += ["", result.total(), "", "Cases tried: " + ", ".join(f"{part} {tried} of {total}"
                                             for part, (tried, total) in result.covered.items()), ""]
    if result.faults:
        lines += ["## Faults", "", "```", *(fault.line(result.seed) for fault in result.some_faults()), "```", ""]
    lines += ["## What the rows mean", ""]
    for part in sorted({row.part for row in result.rows.values()}, key=list(PARTS).index):
        meanings = module_of(part).ROWS
        lines += [f"- {part}, {name}: {meanings[name]}" for name in meanings if (part, name) in result.rows]
    return "\n".join([*lines, "", "## Known limits", "", LIMITS])
