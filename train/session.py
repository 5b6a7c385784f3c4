"""Resume and identity of any training: it can be saved, told apart from others, and resumed exactly. Knows no method.

What decides the result (configuration, networks, pictures) is the session's settings; a snapshot carries them, and only
a training of the same settings resumes it.
"""
from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..models.checkpoints import CheckpointError, store
from ..models.features.protocols import Weighted
from ..models.hashing import hash_of
from ..models.loading import load_snapshot
from . import kept
from .contrast import watched
from .data import to_bytes, to_unit
from .loop import Checkpointing, Hooks, Run, StepResult, restore, snapshot

log = logging.getLogger(__name__)
PREDICTIONS = "session/predictions"
MAX_NAME_LETTERS, MAX_NAME_BYTES = 80, 200  # of the 255 that a file's name may have, endings and the rest share 55
RESERVED_NAMES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
FREE_FIELDS = ("iterations", "compile")  # may change when a training is resumed
# settings later than version 0.2.0: how snapshots without them were made
ADDED = {"solver": "ddim", "augmentation_labels": False, "ada_target": 0.0, "ada_kimg": 500, "palette_weight": 0.0,
         "dropout": 0.0, "art_weights": ""}
# what snapshots of version 0.2.0 do not tell: taken to be as it is now
UNTOLD = {"diffusion pretraining": ("model", "photo_files", "art")}
# as ADDED, but such a snapshot goes on with this, whatever is asked for
INHERITED = {"ema_ramp": True}
PICTURE_SETS = ("photos", "photo_files", "faces", "art")  # may change if the user asks for it
MEANINGS = {"model": "the model it starts from", "clip_network": "the CLIP",
            "perceptual_network": "the perceptual network",
            "twin": "the photo twin", "style_image": "the style image", "photos": "the content photos",
            "structure_network": "the structure network",
            "references": "what the style is learned from", "faces": "the set of source faces",
            "discriminator": "the discriminator", "art": "the artistic set", "photo_files": "the set of photos",
            "autoencoder": "the autoencoder whose codes it learns"}

HINTS = {"twin": " (Make Photo Twin makes another one if its seed, t0, steps or pick change)"}


@dataclass
class Session:
    """A run, what decides its result, where it is saved, and its last predictions, [-1, 1].

    ahead: the step of the newest snapshot, if the run was resumed from an earlier one: then the newest one stays.
    inherited: settings of INHERITED that the snapshot is too old to have: they replace those of the configuration.
    """
    run: Run
    settings: dict
    checkpointing: Checkpointing = Checkpointing()
    last: dict[str, Tensor] = field(default_factory=dict)
    ahead: int = 0
    begins: bool = False  # and has saved nothing yet
    warn: Callable[[str], None] = log.warning
    inherited: dict[str, bool] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(cls, run: Run, settings: dict, checkpointing: Checkpointing = Checkpointing(),
             hooks: Hooks = Hooks(), writes: bool = True) -> Iterator[Session]:
        """A session of a fresh run, which no other one can use at the same time. If it is asked to, it resumes the
        newest snapshot that is not beyond settings["iterations"]. writes: False for the further processes of a
        distributed training.

        CheckpointError for a snapshot of other settings or a damaged one, for one of more iterations if no earlier one
        is kept, if another training uses it, and if there is no room to save.
        """
        path, keep = checkpointing.path, checkpointing.keep
        if path is not None and writes:
            size = snapshot_bytes(run)
            check_room(path, size, max(1, keep - len(kept.earlier(path))))
            log.info("%s: %d snapshots are kept at most, of %.1f MB each", path.name, keep, size / 1e6)
        with file_lock(path if writes else None):
            if path is not None and writes:
                kept.remove_stale(path)
            session = cls(run, settings, checkpointing, warn=hooks.warn)
            warning = session.resume() if checkpointing.resume else ""
            session.begins = run.step == 0 and not run.partial
            if path is not None and writes and keep > 1 and not (session.begins or session.ahead):
                kept.thin(path, settings["iterations"], keep - 1)  # one more is left if the last save was killed
            hooks.on_start(run)
            if warning:
                hooks.warn(warning)
            yield session

    def resume(self) -> str:
        """Resume the snapshot, if there is one; what the user should know of it, or ""."""
        path, end, changed = self.checkpointing.path, self.settings["iterations"], self.checkpointing.changed_pictures
        found, self.ahead = snapshot_for(path, self.settings, changed) if path is not None else (None, 0)
        if path is None or found is None:
            return ""
        self.last = restored(self.run, found)
        said = self.inherit(store.peek(found).config or {})
        if not self.ahead:
            return said
        said += ". " if said else ""
        return (f"{said}{path.name} has {self.ahead} iterations, more than the {end} that are asked for: an earlier "
                f"snapshot, of iteration {self.run.step}, is taken instead. {path.name} stays as it is")

    def inherit(self, saved: Mapping) -> str:
        """Leave out the settings of INHERITED that a resumed snapshot does not have, so that it goes on as it began,
        also later. What the user should know of it, or ""."""
        asked = self.settings
        self.inherited = {name: value for name, value in INHERITED.items() if name in asked and name not in saved}
        self.settings = {name: value for name, value in asked.items() if name not in self.inherited}
        return ", ".join(f"the snapshot is of an earlier version and goes on as it began, with {name} {value}"
                         for name, value in self.inherited.items() if asked[name] != value)

    def train(self, work: Callable[[Hooks, Callable[[Run], None] | None], Run], steps: int, device: torch.device,
              hooks: Hooks = Hooks()) -> dict:
        """`work(hooks, save)` trains the run to its end. Returns the settings that were run.

        on_step is also told the last predictions, once, if nothing is left to do. Predictions that become one flat
        colour are warned of.
        """
        def remember(result: StepResult) -> None:
            self.last["predictions"] = result.predictions
            hooks.on_step(result)

        if self.run.step < steps:
            work(watched(replace(hooks, on_step=remember)), self.save if self.checkpointing.path else None)
        elif self.last:
            hooks.on_step(StepResult(self.run.step - 1, 0, {}, self.last["predictions"].to(device)))
        return self.settings | {"iterations": self.run.step}

    def save(self, run: Run) -> None:
        """Write everything needed to resume, complete or not at all. CheckpointError says why it cannot be written."""
        path, earlier = self.checkpointing.path, self.checkpointing.keep - 1
        if path is None:
            return
        tensors, meta = snapshot(run)
        if "predictions" in self.last:
            tensors[PREDICTIONS] = to_bytes(self.last["predictions"])
        if earlier and not self.ahead and not self.begins and is_part(path, self.settings, run.step - 1):
            kept.set_aside(path, step_of(store.peek(path)), self.warn)
        reached = run.step + bool(run.partial)
        target = kept.earlier_path(path, reached) if self.ahead else path
        store.save(target, tensors, "snapshot", dict(self.settings), meta, dtype=None)
        if self.ahead:
            kept.thin(path, self.ahead, max(earlier, 1), newly=reached)
        else:  # a training that begins anew has none
            kept.thin(path, self.settings["iterations"], 0 if self.begins else earlier)
        self.begins = False


def snapshot_for(path: Path, settings: Mapping, changed_pictures: bool = False) -> tuple[Path | None, int]:
    """The newest snapshot that is not beyond settings["iterations"], None if there is none; and the step of `path`
    itself if that is beyond, else 0. CheckpointError if `path` is of another session, and if only it is there and it is
    beyond."""
    end, header = settings["iterations"], None
    if path.exists():
        header = check_settings(path, settings, changed_pictures)
        if step_of(header) <= end:
            return path, 0
    fitting = [file for file in kept.earlier(path).values() if is_part(file, settings, end)]
    if header is not None and not fitting:
        raise CheckpointError(f"{path.name} has {step_of(header)} iterations, more than the {end} that are asked for. "
                              f"Set iterations to {step_of(header)} or more, choose another name, or turn 'resume' "
                              f"off to start again (then {path.name} is replaced)")
    return fitting[-1] if fitting else None, step_of(header) if header is not None else 0


def step_of(header: store.Header) -> int:
    """The steps that a snapshot says it has, a begun one too; 0 for a damaged one, which whoever loads it refuses."""
    step = (header.meta or {}).get("step")
    begun = any(name.startswith("partial/") for name in header.shapes)
    return step + begun if type(step) is int else 0


def is_part(path: Path, settings: Mapping, end: int) -> bool:
    """Does the file hold a snapshot of a training of these very settings, of `end` steps at most?"""
    try:
        return step_of(check_settings(path, settings)) <= end
    except (OSError, CheckpointError) as error:
        log.debug("%s is not taken: %s", path, error)
        return False


def check_settings(path: Path, settings: Mapping, changed_pictures: bool = False, to_do: str = "") -> store.Header:
    """What a snapshot says of itself. CheckpointError if it is of another session. to_do: what the error says to do, by
    default what whoever trains can do."""
    header = store.peek(path)
    if header.kind != "snapshot":
        raise CheckpointError(f"{path} is no training snapshot; {to_do or advice(path)}")
    reason = difference(header.config or {}, settings, PICTURE_SETS if changed_pictures else ())
    if reason:
        step = str((header.meta or {}).get("step"))[:20]
        raise CheckpointError(f"{path.name} (saved at iteration {step}) belongs to a training with other settings: "
                              f"{reason}. {upper_first(to_do) or f'Set it back, or {advice(path)}'}")
    return header


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def advice(path: Path) -> str:
    return f"choose another name, or turn 'resume' off to start again (then {path.name} is replaced)"


def restored(run: Run, path: Path) -> dict[str, Tensor]:
    """Put a snapshot, whose settings have been checked, into the run; returns the last predictions in it.
    CheckpointError if it does not fit."""
    stored = load_snapshot(path)
    try:
        restore(run, stored.tensors, stored.meta)
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path.name} does not fit this model ({str(error)[:200]}); {advice(path)}") from error
    found = stored.tensors.get(PREDICTIONS)
    return {} if found is None else {"predictions": to_unit(found)}


# --- the place where it is saved --------------------------------------------------------------------------------------
def snapshot_bytes(run: Run) -> int:
    """About what a snapshot takes: the networks, their averages, and two moments of every trained number."""
    nets = sum(t.numel() * t.element_size() for net in (*run.nets.values(), *run.ema.values())
               for t in net.state_dict().values())
    trained = sum(p.numel() * p.element_size() for optimizer in run.optimizers.values()
                  for group in optimizer.param_groups for p in group["params"])
    return nets + 2 * trained


def check_room(path: Path, size: int, count: int = 1) -> None:
    """CheckpointError if `count` snapshots of `size` bytes cannot be written beside `path`: found out before the work,
    not after it."""
    folder, needed = path.parent, size * count
    what = "a snapshot of this training needs" if count == 1 else f"{count} snapshots of this training need"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written to ({error.strerror or error}), and {what} "
                              f"{needed / 1e6:.1f} MB there. Make it a folder that can be written to, or choose "
                              "another output folder") from error
    if free < needed:
        raise CheckpointError(f"{folder} has {free / 1e6:.1f} MB free, and {what} {needed / 1e6:.1f} MB. Free "
                              "some space, or choose another output folder")


@contextmanager
def file_lock(path: Path | None) -> Iterator[None]:
    """Only one training at a time saves to `path`; the lock ends with the process, and its file with the training.
    CheckpointError if it is taken, and if nothing can be written there."""
    if path is None:
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    file = _open_lock(lock, path.name)
    try:
        yield
    finally:
        if file is not None:
            _remove_lock(lock, file)


def _open_lock(lock: Path, name: str) -> BinaryIO | None:
    """The lock file, held; None on a file system without locks. CheckpointError if another training holds it."""
    try:
        for _ in range(100):
            file = open(lock, "a+b")
            try:
                _lock(file)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                    return file
            except FileNotFoundError:  # its last holder has just removed it
                log.debug("%s went away", lock)
            except OSError:
                file.close()
                raise
            file.close()
        raise OSError("its lock file changes all the time")
    except BlockingIOError as error:
        raise CheckpointError(f"another training is using {name} at the moment. Wait for it, or choose another "
                              "name") from error
    except OSError as error:
        log.warning("%s cannot be locked (%s): do not run two trainings of one name", name, error)
        return None


def _remove_lock(lock: Path, file: BinaryIO) -> None:
    """End a lock. The file is removed while it is held, but on Windows, which removes no file that is open."""
    if os.name == "nt":
        file.close()
    with suppress(OSError):
        lock.unlink()
    file.close()


def _lock(file: BinaryIO) -> None:
    """BlockingIOError if another file object holds the lock; it is released when the file is closed."""
    if os.name == "nt":
        import msvcrt
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error
    else:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- what decides a result --------------------------------------------------------------------------------------------
def hash_of_network(net: Weighted, dtype: torch.dtype | None = torch.float16) -> str:
    """Hash of a network's weights and of its configuration, if it has one. dtype: as in `hash_of`."""
    config = repr(getattr(net, "config", None)).encode()
    return hashlib.sha256(hash_of(net.state_dict(), dtype).encode() + config).hexdigest()[:32]


def difference(saved: Mapping, now: Mapping, free: Sequence[str] = ()) -> str | None:
    """The first setting in which two sessions differ, as text; None if they are the same but for FREE_FIELDS, those in
    `free` and those in UNTOLD."""
    saved = {**{name: now[name] for name in INHERITED if name in now}, **ADDED, **saved}
    untold = UNTOLD.get(str(now.get("training")), ())
    if saved.get("training") != now.get("training"):
        return f"it was another kind of training ({str(saved.get('training') or 'unknown')[:40]})"
    for name in [n for n in now if n not in (*FREE_FIELDS, *free) and (n in saved or n not in untold)]:
        if saved.get(name) != now[name]:
            if name in MEANINGS:
                return f"{MEANINGS[name]} was another one{HINTS.get(name, '')}"
            return f"{name} was {saved.get(name)!r:.40} and is {now[name]!r:.40} now"
    return None


# --- names of files ---------------------------------------------------------------------------------------------------
def snapshot_file(folder: Path, name: str) -> Path:
    """FOLDER/NAME.snapshot. ValueError for names that are not plain."""
    return folder / f"{plain_name(name)}.snapshot"


def plain_name(name: str) -> str:
    """The name of a file, without its ending, that every system can have and that cannot leave its folder. Letters may
    be of any script, with their marks. ValueError for another one."""
    name = unicodedata.normalize("NFC", name.strip())
    allowed = all(c in " ._-" or unicodedata.category(c)[0] in "LMN" for c in name)
    if not name or not allowed or not (name[0] == "_" or unicodedata.category(name[0])[0] in "LN") or name[-1] == ".":
        raise ValueError(f"{name[:80]!r} cannot be a file's name here. Use letters, digits, spaces, _ - and ., a "
                         "letter or digit first")
    if len(name) > MAX_NAME_LETTERS or len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"{name[:20]!r}... is too long for a file's name. Take at most 80 letters, fewer in scripts "
                         "of several bytes a letter")
    if unicodedata.normalize("NFKC", name.partition(".")[0]).strip().upper() in RESERVED_NAMES:  # COM¹ is one as well
        raise ValueError(f"{name!r} is a device on Windows and cannot be a file's name. Choose another one")
    return name
