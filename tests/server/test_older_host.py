"""A user's ComfyUI of an older version, with the oldest packages that the pack allows: COMFYUI_PATH finds it, the pack
loads, and graphs run."""
from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from oneshot_atelier.cli.client import Client
from oneshot_atelier.tests.server import shipped
from oneshot_atelier.tools.comfy import ROOT, ComfyServer, Host, find_host
from oneshot_atelier.tools.host import setup

VERSION = "0.3.52"
OLDEST = {"kornia": "0.7", "lpips": "0.1.3", "open_clip": "2.32", "timm": "1.0.3"}


@pytest.fixture(scope="module")
def older(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    folder = setup.older_dir()
    if not (folder / "ready").is_file():
        pytest.fail(f"There is no older ComfyUI in {folder}: run `make host` first.", pytrace=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMFYUI_PATH", str(setup.comfy_dir(folder)))
        patch.setenv("COMFYUI_PYTHON", host.python)
        patch.setenv("PYTHONPATH", str(folder / "packages"))
        with ComfyServer(find_host(), base=tmp_path_factory.mktemp("older")) as running:
            yield running


@pytest.fixture(scope="module")
def client(older: ComfyServer) -> Client:
    return older.client


def test_it_is_the_older_comfyui_with_the_oldest_packages(older: ComfyServer) -> None:
    assert older.client.get_json("/system_stats")["system"]["comfyui_version"] == VERSION
    asked = f"import importlib.util as u; print(*(u.find_spec(name).origin for name in {list(OLDEST)}))"
    packages = setup.older_dir() / "packages"
    found = subprocess.run([older.host.python, "-c", asked], env=os.environ | {"PYTHONPATH": str(packages)},
                           capture_output=True, text=True, check=True).stdout.split()
    assert [path.startswith(str(packages)) for path in found] == [True] * len(OLDEST)
    lines = (ROOT / "requirements.txt").read_text().replace("open_clip_torch", "open_clip").split()
    assert dict(line.split(">=") for line in lines if ">=" in line) == OLDEST


def test_every_node_of_the_pack_is_there(older: ComfyServer) -> None:
    assert not [name for name in older.failed_imports() if older.name in name], older.log_tail()
    ours = {name for name in older.object_info() if name.startswith("Atelier")}
    assert ours == set(json.loads((ROOT / "tests" / "golden_nodes.json").read_text()))


@pytest.mark.parametrize("name", ["osasis_random_faces", "mmfs_zero_shot"])
def test_a_graph_runs_and_its_second_run_is_cached(client: Client, name: str) -> None:
    graph = shipped.reduced(shipped.shipped(name))
    first, second = client.run(graph, timeout=300), client.run(graph, timeout=300)
    saving = [node_id for node_id, node in graph.items() if node["class_type"] == "SaveImage"]
    assert saving and all(client.images(first, node_id) for node_id in saving)
    assert second.ran == []
