"""Drives ComfyUI's real web page (page.mjs) against a running ComfyUI, or one started for it.

    python3 tools/launch.py tools.page convert workflows/api/a.json workflows/a.json ... [shot.png]
    python3 tools/launch.py tools.page measure classic|nodes2 seen.json -|runs.json workflows/*.json
    python3 tools/launch.py tools.page pictures folder -|runs.json workflows/*.json
    python3 tools/launch.py tools.page blueprints subgraphs
    python3 tools/launch.py tools.page library "Stylize Photo with MMFS" queued.json [shot.png]
    python3 tools/launch.py tools.page check workflows/*.json
    python3 tools/launch.py tools.page controls AtelierPhotoTwin ...
    python3 tools/launch.py tools.page shown zh AtelierPhotoTwin ...
    python3 tools/launch.py tools.page run workflows/a.json [shot.png]
    python3 tools/launch.py tools.page template oneshot-atelier a [shot.png]
    python3 tools/launch.py tools.page hand classic|nodes2 oneshot-atelier a plan.json [shot.png]
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .comfy import ROOT, ComfyServer, HostMissing, find_host
from .host import setup

SCRIPT = ROOT / "tools" / "page.mjs"


class PageError(RuntimeError):
    """The page did not do what was asked; the text is what page.mjs printed."""


def drive(url: str, *args: str | Path, timeout: float = 900, failed_shot: Path | None = None) -> str:
    """Run page.mjs with `args` on the ComfyUI at `url`; what it printed. Raises HostMissing, PageError."""
    chromium, node, modules = setup.find_chromium(), shutil.which("node"), setup.page_modules()
    if not (chromium and node and (modules / "ready").is_file()):
        raise HostMissing("The web page needs node, Chromium and playwright-core: run `make host`.")
    settings = {"ATELIER_URL": url, "ATELIER_CHROMIUM": chromium, "ATELIER_PAGE_MODULES": str(modules),
                "ATELIER_RUN_SECONDS": str(timeout)}
    if failed_shot:
        settings["ATELIER_FAILED_SHOT"] = str(failed_shot)
    done = subprocess.run([node, str(SCRIPT), *map(str, args)], capture_output=True, text=True,
                          env={**os.environ, **settings}, timeout=timeout + 300)
    if done.returncode:
        raise PageError(f"page.mjs {' '.join(map(str, args))}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory(prefix="atelier-page-") as base, \
                ComfyServer(find_host(), base=Path(base)) as server:
            print(drive(server.url, *sys.argv[1:], failed_shot=Path("failed.png")), end="")
    except (HostMissing, PageError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
