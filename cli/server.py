"""A ComfyUI that is started for one purpose and ended: a context manager, with its client (client.py).

    with ComfyServer(users_host(folder), base=other) as server:
        result = server.client.run(graph)
"""
from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .client import Client, RunError

ROOT = Path(__file__).resolve().parents[1]
PACK_NAME = "oneshot-atelier"
NEW_GROUP: int = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # there is one on Windows alone
ACCELERATOR = ("import torch; b = torch.backends; "
               "print(torch.cuda.is_available() or b.mps.is_available() or torch.xpu.is_available())")
# glibc must not give the memory of every large map back at once: getting it again takes longer than most computations
KEEP_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}


class HostMissing(RunError):
    """There is no ComfyUI to run on; the text says what to do."""


class ServerDied(RunError):
    """ComfyUI did not start or is gone; the text ends with the end of its log."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder and the Python that runs it. accelerator: is there one? None: its torch is asked."""

    python: str
    comfy: Path
    own: bool = False  # set up by tools/host, rather than the user's
    accelerator: bool | None = None

    def has_accelerator(self) -> bool:
        if self.accelerator is not None:
            return self.accelerator
        asked = subprocess.run([self.python, "-c", ACCELERATOR], capture_output=True, text=True)
        return asked.returncode == 0 and asked.stdout.split()[-1:] == ["True"]


def users_host(comfy: Path) -> Host:
    if not (comfy / "main.py").is_file():
        raise HostMissing(f"{comfy} holds no main.py: name the folder of ComfyUI's main.py (COMFYUI_PATH).")
    named = os.environ.get("COMFYUI_PYTHON")
    inside = (comfy / venv / place for venv in ("venv", ".venv") for place in ("bin/python", "Scripts/python.exe"))
    python = named or next((str(path) for path in inside if path.exists()), None) or sys.executable
    if not python or not shutil.which(python):
        raise HostMissing(f"No Python for {comfy} ({python}): set COMFYUI_PYTHON to the one that runs your ComfyUI.")
    return Host(python, comfy)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def link_folder(link: Path, folder: Path) -> None:
    """A symbolic link, or on Windows, where that needs a privilege, a junction."""
    try:
        link.symlink_to(folder, target_is_directory=True)
    except OSError:
        if os.name != "nt":
            raise
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(folder)], check=True, stdout=subprocess.DEVNULL)


class ComfyServer:
    """ComfyUI with this pack alone, on a free port of 127.0.0.1, between __enter__ and __exit__.

    base: folder for everything ComfyUI writes; may be used again by a later server (outputs and saved styles stay).
    pack, name: the node pack's folder, and the name under which custom_nodes links to it.
    """

    environment: ClassVar[dict[str, str]] = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

    def __init__(self, host: Host, base: Path, pack: Path = ROOT, name: str = PACK_NAME, options: Sequence[str] = (),
                 patience: float = 300) -> None:
        self.host, self.base, self.pack, self.name, self.patience = host, Path(base), Path(pack), name, patience
        self.log = self.base / "comfyui.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.url)
        self.options = tuple(options)
        self.seconds_to_start = 0.0

    def command(self) -> list[str]:
        device = () if self.host.has_accelerator() else ("--cpu",)
        return [self.host.python, str(self.host.comfy / "main.py"), *device, "--listen", "127.0.0.1",
                "--port", str(self.port), "--base-directory", str(self.base), "--database-url", "sqlite:///:memory:",
                "--disable-auto-launch", "--disable-api-nodes",
                "--disable-all-custom-nodes", "--whitelist-custom-nodes", self.name, *self.options]

    def prepare(self) -> None:
        link = self.base / "custom_nodes" / self.name
        link.parent.mkdir(parents=True, exist_ok=True)  # main.py makes the other folders, but dies without this one
        if not link.exists():
            link_folder(link, self.pack)

    def __enter__(self) -> ComfyServer:
        self.prepare()
        # OMP_WAIT_POLICY: see Makefile
        settings = {"OMP_WAIT_POLICY": "PASSIVE", **KEEP_MEMORY, **os.environ, **self.environment}
        start = time.monotonic()
        with self.log.open("ab") as out:
            # a session, on Windows a group, of its own: Ctrl-C reaches us alone, and we stop the server in order
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=subprocess.STDOUT, start_new_session=True,
                                            creationflags=NEW_GROUP, env=settings)
        try:
            self._wait_until_up(start + self.patience)
        except BaseException:
            self.stop()
            raise
        self.seconds_to_start = time.monotonic() - start
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _wait_until_up(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerDied(f"ComfyUI ended with {self.process.returncode} while starting.\n{self.log_tail()}")
            try:
                self.client.get_json("/system_stats")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.25)
        raise ServerDied(f"ComfyUI did not answer on {self.url} within {self.patience:.0f} s.\n{self.log_tail()}")

    def stop(self) -> None:
        """End ComfyUI with SIGTERM, and with SIGKILL where that does not help. May be called again."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL: what a crash or a power cut would do."""
        self.process.kill()
        self.process.wait()

    def log_text(self) -> str:
        """Everything ComfyUI logged so far, without colour codes."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(encoding="utf-8", errors="replace"))

    def log_tail(self, lines: int = 40) -> str:
        return f"--- end of {self.log}\n" + "\n".join(self.log_text().splitlines()[-lines:])

    def failed_imports(self) -> list[str]:
        """Folders of node packs whose import failed (ComfyUI itself goes on without them, and exits with 0)."""
        return re.findall(r"\((?:IMPORT|PRESTARTUP) FAILED\): (.+)", self.log_text())

    def object_info(self) -> dict[str, dict]:
        """Every node's description, by node id."""
        return self.client.get_json("/object_info")


class WholeComfyServer(ComfyServer):
    """A user's ComfyUI as it is, with its own folders and packs. base: folder for the log alone."""

    environment: ClassVar[dict[str, str]] = {}

    def command(self) -> list[str]:
        device = () if self.host.has_accelerator() else ("--cpu",)
        return [self.host.python, str(self.host.comfy / "main.py"), *device, "--listen", "127.0.0.1",
                "--port", str(self.port), "--disable-auto-launch", *self.options]

    def prepare(self) -> None:
        pass
