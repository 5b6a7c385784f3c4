"""The self-check's attempts at trainings: killed, stopped, interrupted, without room, two of one name, other settings.

A tiny training (an OSASIS fine-tune, an MMFS fine-tune, a StyleGAN2) is stopped at an event of an attempt's own: a call
of a hook, or a file operation of the snapshot or of the content that an OSASIS fine-tune keeps on disk. Resumed, it
must end in the result of one that was not stopped, bit for bit.
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
from typing import Any, Protocol

import torch
from torch import Tensor

from ...models.checkpoints import CheckpointError, store
from ...models.features.encoder import EncoderDistance, EncoderKeys
from ...models.hashing import hash_of
from ...models.mmfs import MMFS, MMFSConfig
from ...models.rng import seeded
from ...models.style import fingerprint
from ...models.stylegan2 import Discriminator, StyleGAN2, StyleGAN2Config
from ...train import gan, kept
from ...train.content_files import ContentFolder
from ...train.data import to_bytes
from ...train.fewshot import FewShotConfig, Reference, tune_mmfs
from ...train.gan import GANConfig
from ...train.loop import Checkpointing, Hooks
from ...train.osasis import FrozenNetworks, OSASISConfig, tune_style
from ...train.source_faces import FaceNetworks
from ...train.stages import RunConfig, run_stage
from ..stopping import Stopped, StopSignals
from . import rights, whole_files
from .attempts import LOADED, NOT_TRIED, REFUSED, Lost, Outcome, Wrong, chosen, complaint, dice, fault_of

SECONDS = 120.0
NAME, CONTENT = "tiny.snapshot", "content"
ITERATIONS = 3
OSASIS = OSASISConfig(iterations=ITERATIONS, batch=1, lr=1e-3, lr_spn=1e-3, forward_steps=4, reverse_steps=4,
                      latent_steps=2, generate_steps=2, seed=3)
FEW_SHOT = FewShotConfig(iterations=ITERATIONS, batch=1, lr=1e-3, seed=3)
GAN = GANConfig(steps=ITERATIONS, batch=1, r1_every=2, seed=3)
STYLIZER = MMFSConfig((8, 16), (16, 8), w_dim=16, mapping_layers=1, mapper=whole_files.MAPPER)
GENERATOR = StyleGAN2Config((8,) * 4, w_dim=16, mapping_layers=2)
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.link", "os.chmod", "tempfile.mkstemp", "os.mkdir"}
ROWS = {
    "killed": "SIGKILL at a call of a hook or at a file operation of the snapshots or the content, then resumed",
    "killed in writing": "SIGKILL a few milliseconds after a file operation, then resumed",
    "stopped by a signal": "SIGTERM, as a job manager sends it, then resumed",
    "interrupted": "an exception of a hook, as ComfyUI's cancel button raises it, up to three times, then resumed",
    "file errors": "a file operation of the snapshots or the content fails: the training goes on, and its result is "
                   "the right one",
    "disk full": "files have a size limit: the training goes on or is refused, and can be resumed without the limit",
    "unwritable folder": "the folder's rights forbid writing",
    "no folder": "a file lies where the folder should be",
    "two of one name": "a second training of the same name is refused; the first one ends as it should",
    "more iterations": "the snapshot has more iterations than are asked for, and no earlier one is kept",
    "fewer iterations": "earlier snapshots are kept: the last one that is not beyond is taken, interrupted, and "
                        "resumed; the newest one stays as it is",
    "other settings": "the snapshot is of another seed, rate, picture or photo set; it stays as it is",
    "cut off snapshot": "the snapshot ends early: it is refused and stays as it is",
}
KINDS = ("OSASIS", "MMFS", "StyleGAN2")  # each row's cases are shared by them
WEIGHTS = {"killed": 6, "interrupted": 6, "file errors": 6, "fewer iterations": 6, "other settings": 6}
CASE_LIST = [(row, str(k)) for row in ROWS for k in range(WEIGHTS.get(row, 3))]
CASES = LEAST = len(CASE_LIST)  # attempts of a whole check: every case
KEPT = (1, 2)  # snapshots that a training keeps, in turns
Weights = dict[str, Tensor]


class Interrupt(Exception):
    """Raised by a hook, as a cancelled prompt does."""


# --- the trainings ----------------------------------------------------------------------------------------------------
class Training(Protocol):
    """A tiny training. others: changes that make it another one; its snapshot is refused then."""
    others: dict[str, dict[str, Any]]

    def train(self, checkpointing: Checkpointing, hooks: Hooks, iterations: int = ITERATIONS,
              **changes: Any) -> tuple[Weights, int]:
        """The weights of the result, and the iterations that the run has. changes: fields of the configuration, and
        pictures."""
        ...


class OSASISTraining:
    def __init__(self) -> None:
        net = whole_files.diffae()
        self.nets = FrozenNetworks(net, whole_files.clip(), EncoderDistance(net.encoder), fingerprint(net))
        self.twin, self.style_image = pictures(2).split(1)
        self.others = {"seed": {"seed": 4}, "rate": {"lr": 2e-3}, "batch": {"batch": 2},
                       "style image": {"style_image": -self.style_image}, "photos": {"photos": pictures(2)}}

    def train(self, checkpointing: Checkpointing, hooks: Hooks, iterations: int = ITERATIONS,
              style_image: Tensor | None = None, photos: Tensor | None = None,
              **changes: Any) -> tuple[Weights, int]:
        content = None if checkpointing.path is None else ContentFolder(checkpointing.path.parent / CONTENT)
        style, run = tune_style(self.nets, self.twin, self.style_image if style_image is None else style_image,
                                replace(OSASIS, iterations=iterations, **changes), photos, checkpointing, hooks,
                                content)
        spn = {f"spn.{name}": value for name, value in (style.spn or {}).items()}
        return {f"unet.{name}": value for name, value in style.unet.items()} | spn, run.step


class FewShotTraining:
    def __init__(self) -> None:
        with seeded(0, "weights"):
            net = whole_files.filled(MMFS(STYLIZER))
        keys = EncoderKeys(whole_files.diffae().encoder, image_size=whole_files.PX)
        self.nets = FaceNetworks(net, whole_files.clip(), keys, fingerprint(net))
        self.photos, self.reference = pictures(4, STYLIZER.resolution).split([3, 1])
        self.others = {"seed": {"seed": 4}, "rate": {"lr": 2e-3}, "batch": {"batch": 2},
                       "reference": {"reference": -self.reference}, "photos": {"photos": self.photos[:2]}}

    def train(self, checkpointing: Checkpointing, hooks: Hooks, iterations: int = ITERATIONS,
              reference: Tensor | None = None, photos: Tensor | None = None, **changes: Any) -> tuple[Weights, int]:
        about = Reference(pictures=list(to_bytes(self.reference if reference is None else reference)))
        style, run = tune_mmfs(self.nets, about, self.photos if photos is None else photos,
                               replace(FEW_SHOT, iterations=iterations, **changes), checkpointing, hooks)
        return dict(style.decoder), run.step


class StyleGAN2Training:
    def __init__(self) -> None:
        self.photos = pictures(3)
        self.others = {"seed": {"seed": 4}, "rate": {"lr": 2e-3}, "batch": {"batch": 2},
                       "photos": {"photos": self.photos[:2]}}

    def train(self, checkpointing: Checkpointing, hooks: Hooks, iterations: int = ITERATIONS,
              photos: Tensor | None = None, **changes: Any) -> tuple[Weights, int]:
        shown = self.photos if photos is None else photos
        config = replace(GAN, steps=iterations, **changes)
        with seeded(0, "weights"):
            g, d = StyleGAN2(GENERATOR), Discriminator(GENERATOR)
        stage = gan.stylegan2(g, d, lambda k: shown[[(k + i) % len(shown) for i in range(config.batch)]], config)
        run = run_stage(stage, {"faces": hash_of({"": shown})}, RunConfig(torch.device("cpu"), checkpointing), hooks)
        return {name: value.clone() for name, value in run.ema["g"].state_dict().items()}, run.step


def make(kind: str) -> Training:
    return {"OSASIS": OSASISTraining, "MMFS": FewShotTraining, "StyleGAN2": StyleGAN2Training}[kind]()


def pictures(count: int, px: int = whole_files.PX) -> Tensor:
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, (px, px), mode="bilinear").clamp(-1, 1)


def trained(training: Training, folder: Path, hooks: Hooks = Hooks(), keep: int = 1, iterations: int = ITERATIONS,
            **changes: Any) -> Weights:
    """The result of training to the end, from the snapshot if there is one."""
    weights, step = training.train(Checkpointing(folder / NAME, 1, keep=keep), hooks, iterations, **changes)
    if step != iterations:
        raise Wrong(f"the training ended at iteration {step} of {iterations}")
    return weights


class Events:
    """Counts the events of a training: calls of its hooks, and its file operations in a folder. `act(name)` is called
    at event `at`."""

    def __init__(self, at: int, act: Callable[[str], None], files: bool = True, calls: bool = True) -> None:
        self.at, self.act, self.files, self.calls, self.count, self.file_count = at, act, files, calls, 0, 0

    def happens(self, name: str) -> None:
        self.count += 1
        self.file_count += name != "hook"
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
    """A training that ends itself as the plan (JSON: kind, keep, folder, way, at, delay) says; it prints nothing."""
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
            trained(make(given["kind"]), folder, events.hooks(signals.check), given["keep"])
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
    """A training that was not interrupted: its result, the size of its snapshot, its events, and those of them that are
    file operations. keep: snapshots that it keeps."""
    kind: str
    keep: int
    training: Training
    weights: Weights
    size: int
    events: int
    file_events: int

    @property
    def calls(self) -> int:
        return self.events - self.file_events

    def train(self, folder: Path, hooks: Hooks = Hooks(), **changes: Any) -> Weights:
        return trained(self.training, folder, hooks, self.keep, **changes)

    def run_victim(self, folder: Path, **plan: object) -> int:
        return run_victim(folder, kind=self.kind, keep=self.keep, **plan)


@dataclass(frozen=True)
class AllPrepared:
    """What attempts begin with: the trainings by their kind, and those that ran to their end, made when they are asked
    for."""
    folder: Path
    trainings: dict[str, Training]
    made: dict[tuple[str, int], Prepared]

    def of(self, kind: str, keep: int) -> Prepared:
        if (kind, keep) not in self.made:
            self.made[kind, keep] = prepared_training(self.folder / f"whole-{kind}-{keep}", kind, keep,
                                                      self.trainings[kind])
        return self.made[kind, keep]


def prepare(folder: Path) -> AllPrepared:
    return AllPrepared(folder, {kind: make(kind) for kind in KINDS}, {})


def prepared_training(folder: Path, kind: str, keep: int, training: Training) -> Prepared:
    folder.mkdir(parents=True)
    events = Events(-1, print)
    with events.watching(folder):
        weights = trained(training, folder, events.hooks(), keep)
    return Prepared(kind, keep, training, weights, (folder / NAME).stat().st_size, events.count, events.file_count)


def attempt(prepared: AllPrepared, seed: int, index: int) -> Outcome:
    row, number = chosen(CASE_LIST, seed, "trainings", index)
    rolls = dice(seed, "trainings", index)
    one = prepared.of(KINDS[int(number) % len(KINDS)], rolls.choice(KEPT))
    place = prepared.folder / f"attempt-{index}"
    place.mkdir()
    notes = [f"{one.kind}, keep {one.keep}"]
    try:
        kind, text = ATTEMPTS[row](one, place, rolls, notes)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever comes is what the check looks for
        return fault_of(row, error, notes)
    return Outcome(row, kind, text if kind == NOT_TRIED else "; ".join([*notes, text]))


Found = tuple[str, str]


def check_weights(expected: Weights, found: Weights) -> None:
    differing = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    if differing or found.keys() != expected.keys():
        raise Lost(f"{len(differing)} tensors of the result differ, such as {differing[:1]}")


def check_snapshots(folder: Path, most: int) -> None:
    """All can be read whole, and no more earlier ones are kept than `most`."""
    earlier = kept.earlier(folder / NAME)
    for path in (folder / NAME, *earlier.values()):
        if path.exists():
            try:
                store.load(path, "snapshot")
            except CheckpointError as error:
                raise Lost(f"{path.name} is half written: {error}") from error
    if len(earlier) > most:
        raise Wrong(f"{len(earlier)} earlier snapshots are kept, more than {most}")


def check_folder(prepared: Prepared, folder: Path) -> None:
    """The snapshots can be read whole, and nothing else but their lock and the content lies beside them."""
    check_snapshots(folder, prepared.keep - 1)
    ours = {NAME, f".{NAME}.lock", CONTENT, *(path.name for path in kept.earlier(folder / NAME).values())}
    left = sorted(path.name for path in folder.iterdir() if path.name not in ours)
    if left:
        raise Wrong(f"temporary files were left: {left}")


def resumed(prepared: Prepared, folder: Path) -> None:
    """Resume to the end: the right result, and a tidy folder."""
    check_snapshots(folder, prepared.keep)  # one is set aside before the next is written
    check_weights(prepared.weights, prepared.train(folder))
    check_folder(prepared, folder)


def killed(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    at = rolls.randrange(prepared.events)
    notes.append(f"at event {at} of {prepared.events}")
    prepared.run_victim(folder, way="killed", at=at)
    resumed(prepared, folder)
    return LOADED, ""


def killed_in_writing(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    at, delay = rolls.randrange(prepared.file_events), rolls.random() * 0.01
    notes.append(f"{1000 * delay:.1f} ms after file operation {at} of {prepared.file_events}")
    prepared.run_victim(folder, way="killed in writing", at=at, delay=delay)
    resumed(prepared, folder)
    return LOADED, ""


def stopped_by_a_signal(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    at = rolls.randrange(prepared.events)
    notes.append(f"at event {at} of {prepared.events}")
    status = prepared.run_victim(folder, way="stopped by a signal", at=at)
    if status not in (0, 128 + signal.SIGTERM):
        raise Wrong(f"the training ended with status {status}")
    check_folder(prepared, folder)
    resumed(prepared, folder)
    return LOADED, ""


def interrupted(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    for _ in range(rolls.randint(1, 3)):
        interrupt(prepared, folder, rolls, notes)
        check_folder(prepared, folder)
    resumed(prepared, folder)
    return LOADED, ""


def interrupt(prepared: Prepared, folder: Path, rolls: Random, notes: list[str], **changes: Any) -> None:
    """A training that a hook stops, unless it ends before."""
    def act(name: str) -> None:
        raise Interrupt
    at = rolls.randrange(prepared.calls)
    notes.append(f"at hook {at}")
    try:
        prepared.train(folder, Events(at, act, files=False).hooks(), **changes)
    except Interrupt:
        return


def file_errors(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    def act(name: str) -> None:
        raise OSError(28, "No space left on device (made by the self-check)", name)
    at = rolls.randrange(prepared.file_events)
    notes.append(f"at file operation {at} of {prepared.file_events}")
    events = Events(at, act, calls=False)
    with events.watching(folder):
        try:
            check_weights(prepared.weights, prepared.train(folder, events.hooks()))
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
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limit = int(prepared.size * rolls.choice([0.0, 0.001, rolls.random()]))
    notes.append(f"files of at most {limit} bytes")
    if rolls.random() < 0.5:  # an earlier snapshot
        prepared.train(folder, iterations=1)
        notes.append("with an earlier snapshot")
    kind = LOADED
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        weights = prepared.train(folder, Hooks(warn=lambda text: None))
    except CheckpointError as error:
        kind, weights = REFUSED, None
        if complaint(str(error)):
            raise Wrong(f"{complaint(str(error))}: {error}") from error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if weights is not None:
        check_weights(prepared.weights, weights)
    check_folder(prepared, folder)
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
    with rights.as_a_plain_user():
        try:
            (inside / "probe").touch()
        except OSError:
            return refused(lambda: prepared.train(inside), "written")
    return NOT_TRIED, "this user may write everywhere"


def no_folder(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    (folder / "file").write_text("not a folder", encoding="utf-8")
    return refused(lambda: prepared.train(folder / "file" / rolls.choice(["", "deeper"])), "written")


def two_of_one_name(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    answers: list[Found] = []
    events = Events(rolls.randrange(prepared.calls), lambda name: answers.append(
        refused(lambda: prepared.train(folder), "another training")), files=False)
    check_weights(prepared.weights, prepared.train(folder, events.hooks()))
    check_folder(prepared, folder)
    return answers[0]


def more_iterations(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    trained(prepared.training, folder)
    return refused(lambda: prepared.train(folder, iterations=rolls.randint(1, ITERATIONS - 1)), "more than")


def fewer_iterations(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    few, several = rolls.randint(1, ITERATIONS - 1), replace(prepared, keep=rolls.randint(2, ITERATIONS))
    notes.append(f"{few} of {ITERATIONS}, {several.keep} snapshots")
    short = prepared.train(folder / "short", iterations=few)
    several.train(folder / "long")
    newest = (folder / "long" / NAME).read_bytes()
    interrupt(several, folder / "long", rolls, notes, iterations=few)
    check_folder(several, folder / "long")
    check_weights(short, several.train(folder / "long", iterations=few))
    if (folder / "long" / NAME).read_bytes() != newest:
        raise Wrong("the newest snapshot was changed")
    resumed(several, folder / "long")
    return LOADED, ""


def other_settings(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    prepared.train(folder, iterations=1)
    before = (folder / NAME).read_bytes()
    what = rolls.choice(list(prepared.training.others))
    notes.append(what)
    found = refused(lambda: prepared.train(folder, **prepared.training.others[what]), "other settings")
    if (folder / NAME).read_bytes() != before:
        raise Wrong("the snapshot was changed")
    resumed(prepared, folder)
    return found


def cut_off_snapshot(prepared: Prepared, folder: Path, rolls: Random, notes: list[str]) -> Found:
    prepared.train(folder, iterations=1)
    data = (folder / NAME).read_bytes()
    cut = data[:rolls.choice([0, rolls.randrange(len(data)), rolls.randrange(4096), len(data) - 1])]
    notes.append(f"to {len(cut)} of {len(data)} bytes")
    (folder / NAME).write_bytes(cut)
    found = refused(lambda: prepared.train(folder), "")
    if (folder / NAME).read_bytes() != cut:
        raise Wrong("the snapshot was changed")
    return found


ATTEMPTS: dict[str, Callable[[Prepared, Path, Random, list[str]], Found]] = {
    "killed": killed, "killed in writing": killed_in_writing, "stopped by a signal": stopped_by_a_signal,
    "interrupted": interrupted, "file errors": file_errors, "disk full": disk_full,
    "unwritable folder": unwritable_folder, "no folder": no_folder, "two of one name": two_of_one_name,
    "more iterations": more_iterations, "fewer iterations": fewer_iterations, "other settings": other_settings,
    "cut off snapshot": cut_off_snapshot}
