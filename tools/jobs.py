"""`atelier` commands that wait for each other's files, side by side on as many GPUs as there are; resumable.

What is finished stays finished as long as its command, the files it reads and the runs of the jobs before it stay the
same. What was stopped begins again, and goes on from what its command saves.
"""
from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ..cli.train import snapshot_of
from ..models.checkpoints import store
from ..models.whole_files import write_whole
from ..train.data import all_under

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    """An `atelier` command. hours: on one H100. after: jobs whose files it reads. gpus: at most so many, 0 for none.
    reads: files and folders that it reads without naming them.

    {data} and {out} in the options stand for the folders.
    """
    name: str
    command: str
    hours: float
    steps: int = 0
    after: tuple[str, ...] = ()
    gpus: int = 1
    reads: tuple[Path, ...] = ()


# --- which, and in which order ------------------------------------------------------------------------------------
def path_hours(job: Job, jobs: Sequence[Job]) -> float:
    """Hours of a job and of the longest chain of those that wait for it."""
    return job.hours + max((path_hours(other, jobs) for other in jobs if job.name in other.after), default=0.0)


def ready(jobs: Sequence[Job], finished: set[str], begun: set[str]) -> list[Job]:
    """Jobs that may begin, the longest chain first. What is not among `jobs` is taken as finished."""
    names = {job.name for job in jobs}
    found = [job for job in jobs if job.name not in begun | finished and set(job.after) & names <= finished]
    return sorted(found, key=lambda job: -path_hours(job, jobs))


def arguments_of(job: Job, folders: Mapping[str, Path], scale: float = 1.0, more: str = "") -> list[str]:
    """The job's `atelier` arguments; `more` is added to those that have steps, which `scale` multiplies."""
    names = {key: shlex.quote(str(path)) for key, path in folders.items()}
    parts = [shlex.quote(word) if ";" in word else word for word in job.command.split()]
    words = shlex.split(" ".join(parts).format(**names))
    if job.steps:
        words += ["--steps", str(max(1, round(job.steps * scale))), *shlex.split(more)]
    return words


def planned(jobs: Sequence[Job]) -> list[Job]:
    """The order in which jobs begin, one after the other."""
    order: list[Job] = []
    while left := ready(jobs, {job.name for job in order}, set()):
        order.append(left[0])
    return order


# --- what a job read ----------------------------------------------------------------------------------------------
def inputs_of(job: Job, words: Sequence[str]) -> dict[str, str]:
    """{path: hash of its content} of the files and folders that a command reads: those that it names, but for --out,
    and `job.reads`."""
    named = [Path(word) for before, word in zip(words, words[1:], strict=False)
             if before != "--out" and os.path.exists(word)]
    return {str(path): content_hash(path) for path in sorted({*named, *job.reads})}


def content_hash(path: Path) -> str:
    """Of a file's bytes, or of the names and bytes of all files in a folder."""
    if path.is_file():
        return file_hash(path, store.file_token(path))
    files = sorted(file for file in all_under(path) if file.is_file())
    listing = [(file.relative_to(path).as_posix(), file_hash(file, store.file_token(file))) for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


@functools.cache
def file_hash(path: Path, token: str) -> str:
    """Of a file's bytes, read once as long as its `file_token` stays: many jobs read the same files."""
    return store.sha256(path)


def read_mark(path: Path) -> dict:
    """What a mark says; {} for none, and for that of an earlier version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def begin_anew(words: Sequence[str]) -> None:
    """Remove what a command would go on with, made of what it read then: a training's snapshot, drawings."""
    if "--out" not in words:
        return
    out = Path(words[words.index("--out") + 1])
    if words[0] == "train":
        snapshot_of(words[1], out).unlink(missing_ok=True)
    elif words[0] == "render-art":
        for style in words[words.index("--styles") + 1].split(","):
            shutil.rmtree(out / f"npr_{style}", ignore_errors=True)


# --- running ------------------------------------------------------------------------------------------------------
@dataclass
class Running:
    """A job's process, the GPUs that it holds, and what it was given."""
    job: Job
    process: subprocess.Popen[bytes]
    gpus: list[str]
    given: dict


class Jobs:
    """Runs jobs side by side. gpus: names of those to use, none: the trainings follow each other on the CPU."""

    def __init__(self, jobs: Sequence[Job], commands: Mapping[str, list[str]], out: Path, gpus: Sequence[str]) -> None:
        self.jobs, self.commands, self.out = jobs, commands, out
        self.free = list(gpus) or [""]
        self.finished: set[str] = set()
        for job in planned(jobs):
            if self._unchanged(job):
                self.finished.add(job.name)
        self.running: list[Running] = []
        self.failed: list[str] = []

    def mark(self, job: str) -> Path:
        """The file that says by which command, from which files and after which runs a job was finished."""
        return self.out / f"{job}.done"

    def _given(self, job: Job) -> dict:
        """All that decides whether a job's results are still those of its command."""
        words = self.commands[job.name]
        return {"command": shlex.join(words), "inputs": inputs_of(job, words),
                "after": {name: read_mark(self.mark(name)).get("run", "") for name in job.after}}

    def _unchanged(self, job: Job) -> bool:
        found, names = read_mark(self.mark(job.name)), {other.name for other in self.jobs}
        found.pop("run", None)
        return bool(found) and set(job.after) & names <= self.finished and found == self._given(job)

    def run(self) -> list[str]:
        """Run what is not finished; the names of those that failed (nothing begins after a failure)."""
        with terminated_with(self.running):
            while True:
                self._collect()
                if not self.failed:
                    self._begin()
                if not self.running:
                    return self.failed
                time.sleep(0.2)

    def _begin(self) -> None:
        begun = {r.job.name for r in self.running}
        for job in ready(self.jobs, self.finished, begun):
            if job.gpus and self.free:
                self._start(job, [self.free.pop(0) for _ in range(min(job.gpus, len(self.free)))])
            elif not job.gpus and sum(not r.job.gpus for r in self.running) < (os.cpu_count() or 1):
                self._start(job, [])

    def _start(self, job: Job, gpus: list[str]) -> None:
        given, begun = self._given(job), self.out / f"{job.name}.begun"
        before = read_mark(begun)
        if before and any(before.get(key) != given[key] for key in ("inputs", "after")):
            begin_anew(self.commands[job.name])
        self.mark(job.name).unlink(missing_ok=True)
        write_whole(begun, json.dumps(given, indent=1))
        self.running.append(Running(job, self._process(job, gpus), gpus, given))

    def _process(self, job: Job, gpus: list[str]) -> subprocess.Popen[bytes]:
        cli, environment = [str(ROOT / "cli")], dict(os.environ)
        if any(gpus):
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        if not job.gpus:
            environment["OMP_NUM_THREADS"] = "1"
        words = self.commands[job.name]
        if len(gpus) > 1:
            cli = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(len(gpus)), *cli]
            words = [*words, "--accelerate"]
        log.info("%s begins%s: atelier %s", job.name, f" on GPU {','.join(gpus)}" if any(gpus) else "",
                 shlex.join(words))
        with (self.out / f"{job.name}.log").open("ab") as file:
            return subprocess.Popen([sys.executable, *cli, *words], stdout=file, stderr=subprocess.STDOUT,
                                    env=environment)

    def _collect(self) -> None:
        for running in [r for r in self.running if r.process.poll() is not None]:
            self.running.remove(running)
            self.free += running.gpus
            job, status = running.job, running.process.returncode
            if status:
                self.failed.append(job.name)
                log.error("%s failed (status %d): see %s", job.name, status, self.out / f"{job.name}.log")
            else:
                self.finished.add(job.name)
                write_whole(self.mark(job.name), json.dumps({"run": uuid.uuid4().hex} | running.given, indent=1))
                log.info("%s is finished", job.name)


@contextmanager
def terminated_with(running: list[Running]) -> Iterator[None]:
    """When this process is stopped inside, what is running saves itself and ends first."""
    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        for r in running:
            r.process.terminate()
        for r in running:
            r.process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def gpu_names() -> list[str]:
    """Those of CUDA_VISIBLE_DEVICES, or all."""
    import torch
    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in given.split(",")] if given else [str(i) for i in range(torch.cuda.device_count())]
