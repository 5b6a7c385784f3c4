"""`atelier run` against the real ComfyUI; the page itself says what its format means."""
from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oneshot_atelier.cli.main import main
from oneshot_atelier.cli.page_format import to_api
from oneshot_atelier.tests.page_workflow import API, page_workflow, without_titles
from oneshot_atelier.tests.server import shipped
from oneshot_atelier.tests.server.one_page import Told
from oneshot_atelier.tests.server.shipped import FOLDER, INPUTS, NAMES, ROOT
from oneshot_atelier.tools.comfy import ComfyServer, Host

FACE = INPUTS / "face_2.png"
SHORT = ["--set", "Sample DiffAE.steps=2", "--set", "AtelierSampleDiffAE.latent_steps=2", "--set",
         "AtelierSampleDiffAE.count=1"]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_workflows_are_converted_as_the_page_does(server: ComfyServer, name: str) -> None:
    assert to_api(json.loads((FOLDER / f"{name}.json").read_text()), server.object_info()) == shipped.shipped(name)


def test_the_page_resolves_a_workflow_as_the_converter_does(server: ComfyServer, told: Told) -> None:
    assert without_titles(told.queued("reroutes")) == API
    assert without_titles(to_api(page_workflow(), server.object_info())) == API


@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "api"], ids=["page", "api"])
def test_a_shipped_workflow_runs_in_both_formats(server: ComfyServer, tmp_path: Path, folder: Path) -> None:
    assert main(["run", str(folder / "osasis_random_faces.json"), "--server", server.url, "--out", str(tmp_path),
                 *SHORT]) == 0
    assert len(list((tmp_path / "atelier").glob("random_face_*.png"))) == 1


def test_a_comfyui_is_started_for_a_run(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PYTHON", host.python)
    workflow = page_workflow()
    workflow["nodes"] = [node for node in workflow["nodes"] if node["id"] not in (8, 9)]
    (tmp_path / "page.json").write_text(json.dumps(workflow))
    assert main(["run", str(tmp_path / "page.json"), "--comfyui", str(host.comfy), "--base", str(tmp_path / "base"),
                 "--out", str(tmp_path / "out"), "--input", f"photo={FACE}"]) == 0
    assert len(list((tmp_path / "out" / "headless").glob("result_*.png"))) == 1


def test_ctrl_c_ends_the_run_on_the_server(server: ComfyServer, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "cli"), "run", str(FOLDER / "osasis_random_faces.json"), "--server",
               server.url, "--out", str(tmp_path), "--set", "Sample DiffAE.seed=5", "--set", "Sample DiffAE.count=64"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if "Sample DiffAE: step" in line:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130, rest
    assert f"The run was cancelled at {server.url}" in rest
    assert server.client.running() == []
