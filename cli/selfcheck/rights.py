"""Root may write everywhere, so read-only folders would not be tried. Here a process gives that right up (on Linux).

As a program it starts another one so: `python rights.py FOLDER COMMAND ..`. The folder holds HOME and TMPDIR; the
command is killed when the process that started it ends. It imports nothing of the pack.
"""
from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2  # capabilities, by their numbers
PR_SET_PDEATHSIG, PR_CAPBSET_DROP = 1, 24
CAPABILITY_VERSION = 0x20080522
HOME, TEMPORARY = "home", "tmp"  # folders of a started command


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    """Twice 32 bits of each."""
    _fields_ = tuple((f"{name}{half}", ctypes.c_uint32) for half in (0, 1)
                     for name in ("effective", "permitted", "inheritable"))


def writes_everywhere(pid: int | str = "self") -> bool:
    """Does a process have the right to write where a folder's rights forbid it? False where that is not known."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        effective = next(line.split()[1] for line in lines if line.startswith("CapEff"))
    except (OSError, StopIteration):
        return False
    return bool(int(effective, 16) >> DAC_OVERRIDE & 1)


@contextmanager
def as_a_plain_user() -> Iterator[None]:
    """Inside, this thread may write only where the rights of files and folders allow it."""
    if not writes_everywhere():
        yield
        return
    libc, header, before = ctypes.CDLL(None, use_errno=True), _Header(CAPABILITY_VERSION, 0), _Capabilities()
    _done(libc.capget(ctypes.byref(header), ctypes.byref(before)))
    fewer = _Capabilities.from_buffer_copy(before)
    fewer.effective0 = before.effective0 & ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    _done(libc.capset(ctypes.byref(header), ctypes.byref(fewer)))
    try:
        yield
    finally:
        _done(libc.capset(ctypes.byref(header), ctypes.byref(before)))


def _done(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def start(folder: Path, command: list[str]) -> None:
    """Become the command, without the right to write everywhere."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):  # forbidden to all but root, who alone needs it
            libc.prctl(PR_CAPBSET_DROP, capability)
    os.environ |= {"HOME": str(folder / HOME), "TMPDIR": str(folder / TEMPORARY), "OMP_NUM_THREADS": "1"}
    os.execv(command[0], command)


if __name__ == "__main__":
    start(Path(sys.argv[1]), sys.argv[2:])
