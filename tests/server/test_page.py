"""The shipped workflows in ComfyUI's real web page, in a headless Chromium."""
from __future__ import annotations

from pathlib import Path

import pytest

from oneshot_atelier.tools.comfy import PACK_NAME, ComfyServer
from oneshot_atelier.tools.page import drive

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
MAIN = "osasis_demo"


@pytest.fixture(scope="module")
def with_inputs(server: ComfyServer) -> ComfyServer:
    """The server, with the pictures that the shipped workflows load."""
    for picture in sorted((ROOT / "workflows" / "inputs").glob("*.png")):
        server.client.upload(picture)
    return server


def test_every_workflow_opens_in_the_page(with_inputs: ComfyServer) -> None:
    assert MAIN in [path.stem for path in WORKFLOWS]
    drive(with_inputs.url, "check", *WORKFLOWS)


def test_the_main_workflow_opens_from_templates_and_runs(with_inputs: ComfyServer, tmp_path: Path) -> None:
    printed = drive(with_inputs.url, "template", PACK_NAME, MAIN, tmp_path / "page.png", timeout=600)
    assert "success" in printed
