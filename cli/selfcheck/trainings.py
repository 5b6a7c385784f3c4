"""The self-check's attempts at trainings: killed, stopped, interrupted, without room, two of one name, other settings.

A tiny OSASIS fine-tune is stopped at an event of an attempt's own: a call of a hook, or a file operation of the
snapshot or of the content that is kept on disk. Resumed, it must end in the style of one that was not stopped, bit for
bit.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from ...models.checkpoints import CheckpointError, store
from ...models.features.encoder import EncoderDistance
from ...models.style import fingerprint
from ...train.content_files import ContentFolder
from ...train.loop import Checkpointing, Hooks
from ...train.osasis import FrozenNetworks, OSASISConfig, tune_style
from ..stopping import Stopped, StopSignals
from . import whole_files
from .attempts import FAULT, LOADED, NOT_TRIED, REFUSED, Outcome, chosen, complaint, dice

SECONDS = 120.0
NAME, CONTENT = "tiny.snapshot", "content"
CONFIG = OSASISConfig(iterations=3, batch=1, lr=1e-3, lr_spn=1e-3, forward_steps=4, reverse_steps=4, latent_steps=2,
                      generate_steps=2, seed=3)
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.chmod", "tempfile.mkstemp", "os.mkdir"}
ROWS = {
    "killed": "SIGKILL at a call of a hook or at a file operation of the snapshot or the content, then resumed",
    "killed in writing": "SIGKILL a few milliseconds after a file operation, then resumed",
    "stopped by a signal": "SIGTERM, as a job manager sends it, then resumed",
    "interrupted": "an exception of a hook, as ComfyUI's cancel button raises it, up to three times, then resumed",
    "file errors": "a file operation of the snapshot or the content fails: the training goes on, and its style is the "
                   "right one",
    "disk full": "files have a size limit: the training goes on or is refused, and can be resumed without the limit",
    "unwritable folder": "the folder's rights forbid writing",
    "no folder": "a file lies where the folder should be",
    "two of one name": "a second training of the same name is refused; the first one ends as it should",
    "more iterations": "the snapshot has more iterations than are asked for",
    "other settings": "the snapshot is of another seed, rate, picture or photo set; it stays as it is",
    "cut off snapshot": "the snapshot ends early: it is refused and stays as it is",
}
WEIGHTS = {"killed": 6, "killed in writing": 3, "stopped by a signal": 2, "interrupted": 6, "file errors": 4,
           "disk full": 3, "two of one name": 2, "other settings": 4, "cut off snapshot": 2}
CASE_LIST = [(row, str(k)) for row in ROWS for k in range(WEIGHTS.get(row, 1))]
CASES = len(CASE_LIST)


class Interrupt(Exception):
    """Raised by a hook, as a cancelled prompt does."""


class Wrong(Exception):
    """What an attempt has found is not as it should be."""


# --- one training -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tiny:
    """What a tiny fine-tune is made of."""
    nets: FrozenNetworks
    twin: Tensor
    style_image: Tensor

    @classmethod
    def make(cls) -> Tiny:
        net = whole_files.diffae()
        nets = FrozenNetworks(net, whole_files.clip(), EncoderDistance(net.encoder), fingerprint(net))
        return cls(nets, *pictures(2).split(1))

    def train(self, folder: Path, hooks: Hooks = Hooks(), config: OSASISConfig = CONFIG,
              photos: Tensor | None = None, every: int = 1) -> dict[str, Tensor]:
        """The style's weights after training to the end, from the snapshot if there is one."""
        style, run = tune_style(self.nets, self.twin, self.style_image, config, photos,
                                Checkpointing(folder / NAME, every), hooks, ContentFolder(folder / CONTENT))
        if run.step != config.iterations:
            raise Wrong(f"the training ended at iteration {run.step} of {config.iterations}")
        return {f"unet.{k}": v for k, v in style.unet.items()} | {f"spn.{k}": v for k, v in (style.spn or {}).items()}


def pictures(count: int) -> Tensor:
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, (whole_files.PX,) * 2, mode="bilinear").clamp(-1, 1)


class Events:
    """Counts the events of a training: calls of its hooks, and its file operations in a folder. `act(name)` is called
    at event `at`."""

    def __init__(self, at: int, act: Callable[[str], None], files: bool = True, calls: bool = True) -> None:
        self.at, self.act, self.files, self.calls, self.count = at, act, files, calls, 0

    def happens(self, name: str) -> None:
        self.count += 1
        if self.count - 1 == self.at:
            self.act(name)

    def hooks(self, check: Callable[[], None] = lambda: None) -> Hooks:
        def called(*_: object) -> None:
            check()
            if self.calls:
                self.happens("hook")
        return Hooks(on_step=called, on_iteration=called, check_interrupt=called, warn=lambda text: None)

    @contextmanager
    def watching(self, folder: Path) -> Iterator[None]:
        """File operations under `folder` are events inside."""
        _Audit.install()
        _Audit.current = (self, str(folder)) if self.files else None
        try:
            yield
        finally:
            _Audit.current = None


class _Audit:
    """Python's audit hook, which cannot be removed again: it asks whose turn it is."""
    current: tuple[Events, str] | None = None
    installed = False

    @classmethod
    def install(cls) -> None:
        if not cls.installed:
            sys.addaudithook(cls.hook)
            cls.installed = True

    @classmethod
    def hook(cls, name: str, arguments: tuple) -> None:
        if cls.current and name in FILE_EVENTS and str(arguments[0]).startswith(cls.current[1]):
            cls.current[0].happens(name)


# --- the process that is killed ---------------------------------------------------------------------------------------
def kill_here(*_: object) -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", 9))


def victim(plan: str) -> None:
    """A training that ends itself as the plan (JSON: folder, way, at, delay) says; it prints nothing."""
    torch.set_num_threads(1)
    given = json.loads(plan)
    folder, signals = Path(given["folder"]), StopSignals()

    def act(name: str) -> None:
        if given["way"] == "stopped by a signal":
            signal.raise_signal(signal.SIGTERM)
        elif given["way"] == "killed in writing":
            threading.Timer(given["delay"], kill_here).start()
        else:
            kill_here()

    calls = given["way"] != "killed in writing"
    events = Events(given["at"], act, calls=calls)
    with signals, events.watching(folder):
        try:
            Tiny.make().train(folder, events.hooks(signals.check))
        except Stopped as stopped:
            os._exit(stopped.status)


def run_victim(folder: Path, **plan: object) -> int:
    """Its exit status: 0 if it came to its end before its time."""
    program = Path(__file__).resolve().parents[1] / "__main__.py"
    command = [sys.executable, str(program), "selfcheck", "--child", "victim",
               "--folder", json.dumps(plan | {"folder": str(folder)})]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS - 20, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, errors="replace")
    if done.returncode == 1:
        raise Wrong(f"the training failed: {done.stderr.strip()[-300:]}")
    return done.returncode


# --- attempts ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Prepared:
    """The uninterrupted training's style, and how many events and file events it had."""
    folder: Path
    tiny: Tiny
    style: dict[str, Tensor]
    events: int
    file_events: int


def prepare(folder: Path) -> Prepared:
    tiny, counted, files = Tiny.make(), Events(-1, print), Events(-1, print, calls=False)
    (folder / "whole").mkdir(parents=True, exist_ok=True)
    (folder / "files").mkdir(exist_ok=True)
    with counted.watching(folder / "whole"):
        style = tiny.train(folder / "whole", counted.hooks())
    with files.watching(folder / "files"):
        tiny.train(folder / "files", files.hooks())
    return Prepared(folder, tiny, style, counted.count, files.count)


def attempt(prepared: Prepared, seed: int, index: int) -> Outcome:
    row, _ = chosen(CASE_LIST, seed, "trainings", index)
    rolls = dice(seed, "trainings", index)
    place = prepared.folder / f"attempt-{index}"
    place.mkdir()
    notes: list[str] = []
    try:
        kind, text = ATTEMPTS[row](prepared, place, rolls, notes)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever comes is what the check looks for
        text = str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
        return Outcome(row, FAULT, f"{'; '.join(notes)}: {text[:400]}")
    return Outcome(row, kind, "; ".join([*notes, text]))


Found = tuple[str, str]


def check_style(prepared: Prepared, style: dict[str, Tensor]) -> None:
    differing = [name for name, value in prepared.style.items() if not torch.equal(value, style[name])]
    if differing or style.keys() != prepared.style.keys():
        raise Wrong(f"{len(differing)} tensors of the style differ, such as {differing[:1]}")


def check_folder(folder: Path) -> None:
    """The snapshot can be read whole, and nothing else but its lock and the content lies beside it."""
    if (folder / NAME).exists():
        store.load(folder / NAME, "snapshot")
    left = sorted(path.name for path in folder.iterdir() if path.name not in (NAME, f".{NAME}.lock", CONTENT))
    if left:
        raise Wrong(f"temporary files were left: {left}")


def resumed(prepared: Prepared, folder: Path) -> None:
    """Resume to the end: the right style, and a tidy folder."""
    if (folder / NAME).exists():
        store.load(folder / NAME, "snapshot")
    check_style(prepared, prepared.tiny.train(folder))
    check_folder(folder)


def killed(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    at = rolls.randrange(prepared.events)
    notes.append(f"at event {at} of {prepared.events}")
    run_victim(folder, way="killed", at=at)
    resumed(prepared, folder)
    return LOADED, ""


def killed_in_writing(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    at, delay = rolls.randrange(prepared.file_events), rolls.random() * 0.01
    notes.append(f"{1000 * delay:.1f} ms after file operation {at} of {prepared.file_events}")
    run_victim(folder, way="killed in writing", at=at, delay=delay)
    resumed(prepared, folder)
    return LOADED, ""


def stopped_by_a_signal(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    at = rolls.randrange(prepared.events)
    notes.append(f"at event {at} of {prepared.events}")
    status = run_victim(folder, way="stopped by a signal", at=at)
    if status not in (0, 128 + signal.SIGTERM):
        raise Wrong(f"the training ended with status {status}")
    check_folder(folder)
    resumed(prepared, folder)
    return LOADED, ""


def interrupted(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    def act(name: str) -> None:
        raise Interrupt
    for _ in range(rolls.randint(1, 3)):
        at = rolls.randrange(prepared.events - prepared.file_events)
        notes.append(f"at hook {at}")
        try:
            prepared.tiny.train(folder, Events(at, act, files=False).hooks())
        except Interrupt:
            check_folder(folder)
    resumed(prepared, folder)
    return LOADED, ""


def file_errors(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    def act(name: str) -> None:
        raise OSError(28, "No space left on device (made by the self-check)", name)
    at = rolls.randrange(prepared.file_events)
    notes.append(f"at file operation {at} of {prepared.file_events}")
    events = Events(at, act, calls=False)
    with events.watching(folder):
        try:
            check_style(prepared, prepared.tiny.train(folder, events.hooks()))
        except CheckpointError as error:  # before the training: refused
            if complaint(str(error)):
                raise Wrong(f"{complaint(str(error))}: {error}") from error
            notes.append(f"refused: {error}")
    resumed(prepared, folder)
    return (REFUSED if "refused" in notes[-1] else LOADED), ""


def disk_full(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    try:
        import resource
    except ImportError:
        return NOT_TRIED, "files cannot be limited here"
    size = (prepared.folder / "whole" / NAME).stat().st_size
    limit, hard = int(size * rolls.choice([0.0, 0.001, rolls.random()])), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    notes.append(f"files of at most {limit} bytes")
    if rolls.random() < 0.5:  # an earlier snapshot
        prepared.tiny.train(folder, config=replace(CONFIG, iterations=1))
        notes.append("with an earlier snapshot")
    kind = LOADED
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        style = prepared.tiny.train(folder, Hooks(warn=lambda text: None))
    except CheckpointError as error:
        kind, style = REFUSED, None
        if complaint(str(error)):
            raise Wrong(f"{complaint(str(error))}: {error}") from error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if style is not None:
        check_style(prepared, style)
    check_folder(folder)
    resumed(prepared, folder)
    return kind, ""


def refused(act: Callable[[], object], word: str) -> Found:
    """The CheckpointError that `act` must raise, with `word` in it."""
    try:
        act()
    except CheckpointError as error:
        if word not in str(error) or complaint(str(error)):
            raise Wrong(f"{complaint(str(error)) or f'the message does not say {word!r}'}: {error}") from error
        return REFUSED, str(error)
    raise Wrong("it was not refused")


def unwritable_folder(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    inside = folder / "inside"
    inside.mkdir(mode=0o500)
    try:
        (inside / "probe").touch()
    except OSError:
        return refused(lambda: prepared.tiny.train(inside), "written")
    return NOT_TRIED, "this user may write everywhere"


def no_folder(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    (folder / "file").write_text("not a folder")
    return refused(lambda: prepared.tiny.train(folder / "file" / rolls.choice(["", "deeper"])), "written")


def two_of_one_name(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    answers: list[Found] = []
    events = Events(rolls.randrange(prepared.events - prepared.file_events), lambda name: answers.append(
        refused(lambda: prepared.tiny.train(folder), "another training")), files=False)
    check_style(prepared, prepared.tiny.train(folder, events.hooks()))
    check_folder(folder)
    return answers[0]


def more_iterations(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    prepared.tiny.train(folder)
    return refused(lambda: prepared.tiny.train(folder, config=replace(CONFIG, iterations=rolls.randint(1, 2))),
                   "more than")


def other_settings(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    prepared.tiny.train(folder, config=replace(CONFIG, iterations=1))
    before = (folder / NAME).read_bytes()
    what = rolls.choice(["seed", "lr", "batch", "style_image", "photos"])
    notes.append(what)
    tiny, config, photos = prepared.tiny, CONFIG, None
    if what == "style_image":
        tiny = replace(tiny, style_image=-tiny.style_image)
    elif what == "photos":
        photos = pictures(2)
    else:
        config = replace(CONFIG, **{what: {"seed": 4, "lr": 2e-3, "batch": 2}[what]})
    found = refused(lambda: tiny.train(folder, config=config, photos=photos), "other settings")
    if (folder / NAME).read_bytes() != before:
        raise Wrong("the snapshot was changed")
    resumed(prepared, folder)
    return found


def cut_off_snapshot(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    prepared.tiny.train(folder, config=replace(CONFIG, iterations=1))
    data = (folder / NAME).read_bytes()
    cut = data[:rolls.choice([0, rolls.randrange(len(data)), rolls.randrange(4096), len(data) - 1])]
    notes.append(f"to {len(cut)} of {len(data)} bytes")
    (folder / NAME).write_bytes(cut)
    found = refused(lambda: prepared.tiny.train(folder), "")
    if (folder / NAME).read_bytes() != cut:
        raise Wrong("the snapshot was changed")
    return found


ATTEMPTS: dict[str, Callable[[Prepared, Path, Random, list[str]], Found]] = {
    "killed": killed, "killed in writing": killed_in_writing, "stopped by a signal": stopped_by_a_signal,
    "interrupted": interrupted, "file errors": file_errors, "disk full": disk_full,
    "unwritable folder": unwritable_folder, "no folder": no_folder, "two of one name": two_of_one_name,
    "more iterations": more_iterations, "other settings": other_settings, "cut off snapshot": cut_off_snapshot}
