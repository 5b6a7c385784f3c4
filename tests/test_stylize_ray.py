"""`atelier stylize --ray` on a Ray cluster of two processes on this machine. Ray comes from `make host`."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from oneshot_atelier.cli.main import main
from oneshot_atelier.tests.test_stylize import STYLES, arguments, nets, picture, results  # noqa: F401 - a fixture
from oneshot_atelier.tools.host import setup

ROOT = Path(__file__).resolve().parents[1]
COUNT = 32
SLOW = ("--encode-steps", "100", "--decode-steps", "100")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for k in range(COUNT):
        picture(tmp_path / "photos" / f"{k:02d}.png", k)
    (tmp_path / "photos" / "damaged.png").write_bytes(b"none")
    return tmp_path / "photos"


def on_ray(command: list[str]) -> subprocess.Popen:
    if not (setup.ray_dir() / "ready").is_file():
        pytest.fail("there is no Ray: run `make host`", pytrace=False)
    return subprocess.Popen([sys.executable, str(ROOT / "cli"), *command, "--ray", "local", "--workers", "2"],
                            env=os.environ | {"PYTHONPATH": str(setup.ray_dir())}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def mapping_processes(of: int) -> list[psutil.Process]:
    """Ray's processes that map the pictures, of one command."""
    return [child for child in psutil.Process(of).children(recursive=True)
            if "ray::MapWorker" in " ".join(child.cmdline()) or "ray::_MapWorker" in " ".join(child.cmdline())]


def kill_one_at_work(of: int, out: Path) -> int:
    """SIGKILL for one of the processes once pictures are there; how many were."""
    for _ in range(1200):
        made, workers = len(results(out)), mapping_processes(of)
        if made and len(workers) == 2:
            workers[0].send_signal(signal.SIGKILL)
            return made
        time.sleep(0.05)
    raise AssertionError("no process of Ray was seen at work")


def test_a_process_that_is_killed_loses_nothing_and_the_results_are_those_of_one(nets, photos, tmp_path):  # noqa: F811
    assert main(arguments(nets, STYLES[0], photos, tmp_path / "one", *SLOW)) == 0
    with on_ray(arguments(nets, STYLES[0], photos, tmp_path / "ray", *SLOW)) as process:
        try:
            made = kill_one_at_work(process.pid, tmp_path / "ray")
            output, errors = process.communicate(timeout=240)
        finally:
            process.terminate()
    assert process.returncode == 0, errors[-3000:]
    assert made < COUNT
    assert len(results(tmp_path / "ray")) == COUNT and results(tmp_path / "ray") == results(tmp_path / "one")
    said = re.search(r"(\d+) stylized, (\d+) were there, 1 left out", output)
    assert said and int(said[1]) + int(said[2]) == COUNT
