"""The ComfyUI that development runs on: the user's, or the one that tools/host sets up (see ../cli/server.py)."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ..cli.server import PACK_NAME, ROOT, ComfyServer, Host, HostMissing, ServerDied, free_port, users_host
from .host import setup

__all__ = ["PACK_NAME", "ROOT", "ComfyServer", "Host", "HostMissing", "ServerDied", "check_requirements", "find_host",
           "free_port", "users_host"]
PACK_IMPORTS = ("torch", "aiohttp", "PIL", "open_clip", "lpips", "timm", "kornia", "safetensors", "einops")


def find_host() -> Host:
    """The user's ComfyUI if COMFYUI_PATH names one, else the one that `make host` sets up. Raises HostMissing."""
    path = os.environ.get("COMFYUI_PATH")
    if path:
        return users_host(Path(path).expanduser().resolve())
    folder = setup.host_dir()
    if not setup.is_ready(folder):
        raise HostMissing(f"There is no ComfyUI in {folder}: run `make host` first (2-3 minutes, once), "
                          "or set COMFYUI_PATH to the folder of an installed ComfyUI.")
    return Host(str(setup.host_python(folder)), setup.comfy_dir(folder), own=True,
                accelerator=None if setup.has_nvidia() else False)


def check_requirements(host: Host) -> None:
    """Raise HostMissing where a package that the pack imports is missing or broken in the host's Python."""
    command = [host.python, "-c", "import " + ", ".join(PACK_IMPORTS)]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode:
        reason = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        raise HostMissing(f"The Python of your ComfyUI cannot import what this pack needs: {reason}\n"
                          f"Run: {host.python} -m pip install -r {ROOT / 'requirements.txt'}\n"
                          "(another Python can be named with COMFYUI_PYTHON)")
