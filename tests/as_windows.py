"""What the pack writes, done under Windows' rules as far as another system can have them; run as a program by
test_systems.py with a folder to write to.

Modules and names that only POSIX has are gone before the pack is imported. A file that is open or mapped can be neither
replaced nor removed. A file's name has no <>:"|?* or control character, no dot or space at its end, and is no device's.
Locks are msvcrt's.
"""
from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ("fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
POSIX_NAMES_OF_OS = ("fork", "forkpty", "getuid", "geteuid", "getgid", "getpgid", "killpg", "setsid", "mkfifo", "mknod",
                     "sched_getaffinity", "sched_setaffinity", "uname", "sysconf", "chown", "lchown", "wait3", "pread",
                     "pwrite", "posix_fallocate", "sync", "register_at_fork", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK",
                     "O_SYNC")
POSIX_NAMES_OF_SIGNAL = ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "alarm", "pthread_kill",
                         "setitimer", "sigwait")
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}


def is_used(path: str) -> bool:
    """Has this process opened or mapped the file?"""
    file = os.path.realpath(path)
    opened = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    return file in opened or f" {file}\n" in Path("/proc/self/maps").read_text()


def check_name(path: object) -> None:
    if not isinstance(path, (str, os.PathLike)):
        return
    for part in Path(os.fsdecode(path)).parts[1:]:
        wrong = set('<>:"|?*') & set(part) or any(ord(c) < 32 for c in part) or part[-1] in ". "
        if wrong or part.partition(".")[0].strip().upper() in DEVICES:
            raise OSError(22, "Windows knows no such name", part)


def guarded(real: Callable, paths: int) -> Callable:
    """An operation of `os` on its first arguments, as many as `paths`."""
    def operation(*args: Any, **kwargs: Any) -> Any:
        for path in args[:paths]:
            check_name(path)
            if os.path.isfile(path) and is_used(path):
                raise PermissionError(13, "it is being used by another process", str(path))
        return real(*args, **kwargs)
    return operation


def watch_names(event: str, args: tuple) -> None:
    if event == "os.mkdir" or event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
        check_name(args[0])


def msvcrt() -> types.ModuleType:
    """Its `locking`: one byte of a file, for one file object of all processes (here: of this one)."""
    module, held = types.ModuleType("msvcrt"), {}

    def locking(number: int, mode: int, count: int) -> None:
        stat = os.fstat(number)
        key = stat.st_dev, stat.st_ino
        if held.get(key, number) != number and os.path.exists(f"/proc/self/fd/{held[key]}"):
            raise PermissionError(13, "Permission denied")
        held[key] = number
    module.__dict__.update(locking=locking, LK_NBLCK=2)
    return module


class OSOfWindows:
    """The module `os`, but for its name."""
    name = "nt"

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def become_windows() -> None:
    import PIL.Image
    import safetensors.torch  # noqa: F401 - other packages are imported as this system has them
    import timm  # noqa: F401
    import torch
    import torch.utils.checkpoint  # noqa: F401
    import torchvision  # noqa: F401
    PIL.Image.init()
    for name in (*ABSENT, "triton"):  # Triton has no wheel there
        sys.modules[name] = None  # pyright: ignore[reportArgumentType] - its import fails
    for module, names in ((os, POSIX_NAMES_OF_OS), (signal, POSIX_NAMES_OF_SIGNAL)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    os.replace, os.rename = guarded(os.replace, 2), guarded(os.rename, 2)
    os.unlink, os.remove = guarded(os.unlink, 1), guarded(os.remove, 1)
    os.symlink = lambda *args, **kwargs: (_ for _ in ()).throw(OSError(22, "a privilege is not held"))
    sys.modules["msvcrt"] = msvcrt()
    sys.addaudithook(watch_names)


def import_everything() -> list[str]:
    """Every module of the pack that needs no ComfyUI. Returns their names."""
    import importlib
    files = [path for room in ("models", "train", "evaluate", "cli") for path in sorted((ROOT / room).rglob("*.py"))]
    names = [".".join(("oneshot_atelier", *path.relative_to(ROOT).with_suffix("").parts)) for path in files
             if path.name not in ("__init__.py", "__main__.py") and "kernels" not in path.parts]
    for name in names:
        importlib.import_module(name)
    return names


def save_things(folder: Path) -> None:
    import torch

    from oneshot_atelier.models import whole_files
    from oneshot_atelier.models.checkpoints import store
    from oneshot_atelier.models.checkpoints.errors import CheckpointError
    from oneshot_atelier.train import kept, session
    for module in (store, session, kept, whole_files):
        module.os = OSOfWindows()
    path = session.snapshot_file(folder, "my style")
    tensors = {"a": torch.arange(6.0)}
    for step in range(3):  # written, read and replaced
        store.save(path, tensors | {"step": torch.tensor(step)}, "snapshot", {}, dtype=None)
        assert int(store.load(path).tensors["step"]) == step
        kept.set_aside(path, step)
    assert sorted(kept.earlier(path)) == [0, 1, 2]
    kept.thin(path, 3, 1)
    assert len(kept.earlier(path)) == 1
    reader = open(path, "rb")  # somebody reads it for a moment
    threading.Timer(0.2, reader.close).start()
    store.save(path, tensors | {"step": torch.tensor(3)}, "snapshot", {}, dtype=None)
    with open(path, "rb"):  # and somebody for longer
        try:
            store.save(path, tensors, "snapshot", {}, dtype=None)
        except CheckpointError as error:
            assert "could not be written" in str(error)
        else:
            raise AssertionError("a file that was open has been replaced")
    assert int(store.load(path).tensors["step"]) == 3 and not list(folder.glob("*.tmp"))
    stale = folder / f".{path.name}.abcdefgh.tmp"  # of a process that was killed
    stale.touch()
    store.remove(path)
    assert stale.exists() and not path.exists(), "there are no locks: its process may be alive"
    os.utime(stale, (0, 0))
    store.remove(path)
    assert not stale.exists() and not path.exists()
    with session.file_lock(path):
        try:
            with session.file_lock(path):
                raise AssertionError("two trainings have one name")
        except CheckpointError as error:
            assert "another training" in str(error)
    with session.file_lock(path):
        session.check_room(path, 100)
    with whole_files.whole_file(folder / "table.md") as partial:
        partial.write_text("one", encoding="utf-8")


def train_and_resume(folder: Path) -> None:
    """A tiny training that saves and is gone on with."""
    from oneshot_atelier.tests import tiny_stages
    from oneshot_atelier.train.loop import Checkpointing, Hooks
    from oneshot_atelier.train.stages import RunConfig, run_stage
    path = folder / "stage.snapshot"
    for steps, made_now in ((2, [1, 2]), (3, [3])):
        made, done = tiny_stages.make("stylegan2", steps=steps), []
        run_stage(made.stage, {}, RunConfig(tiny_stages.CPU, Checkpointing(path, 1, True)),
                  Hooks(on_iteration=lambda progress, done=done: done.append(progress.step)))
        assert done == made_now, done


if __name__ == "__main__":
    runpy.run_path(str(ROOT / "cli" / "__main__.py"))["load_checkout"](ROOT)
    become_windows()
    print(len(import_everything()), "modules")
    save_things(Path(sys.argv[1]))
    train_and_resume(Path(sys.argv[1]))
    print("saved")
