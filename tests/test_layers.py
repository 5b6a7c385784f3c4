"""The house: imports point one way, ComfyUI is seen by nodes/ alone, the client needs no torch."""
from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW = {  # room: the rooms that it may import
    "models": (), "train": ("models",), "evaluate": ("models", "train"),
    "nodes": ("models", "train", "evaluate"), "cli": ("models", "train", "evaluate")}
FILES = [path for room in BELOW for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name or "") of every import anywhere in the file; relative ones from the pack's root: "train.loop"."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((module.removeprefix("oneshot_atelier."), alias.name) for alias in node.names)


def rooms_of(path: Path) -> set[str]:
    found = set()
    for module, name in imports(path):
        full = [part for part in (*module.split("."), name) if part]
        if full and full[0] in BELOW:
            found.add(full[0])
    return found


def show(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=show)
def test_imports_point_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    assert rooms_of(path) <= {room, *BELOW[room]}


def test_an_import_upwards_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "train" / "recipes" / "a.py"
    path.parent.mkdir(parents=True)
    for line, room in (("from ...evaluate.metrics import psnr", "evaluate"), ("from ... import cli", "cli"),
                       ("def f():\n    from ...nodes import host", "nodes"), ("import oneshot_atelier", None),
                       ("from oneshot_atelier.nodes import host", "nodes"), ("from ..loop import train", "train"),
                       ("from . import config", "train"), ("import torch", None)):
        path.write_text(line)
        assert rooms_of(path) == ({room} if room else set()), line


@pytest.mark.parametrize("path", [ROOT / "__init__.py", *FILES], ids=show)
def test_comfyui_is_seen_by_nodes_alone(path):
    tops = {module.split(".")[0] for module, _ in imports(path)}
    if show(path) != str(Path("nodes/host.py")):
        assert not tops & {"comfy", "folder_paths", "comfy_execution", "server", "execution"}
    if path.relative_to(ROOT).parts[0] != "nodes":
        assert "comfy_api" not in tops


def test_the_client_imports_no_torch():
    """Nor do the package on the way to it and the list of commands."""
    code = ("import importlib, pathlib, runpy, sys\n"
            "root = pathlib.Path(sys.argv[1])\n"
            "runpy.run_path(str(root / 'cli' / '__main__.py'))['load_checkout'](root)\n"
            "importlib.import_module('oneshot_atelier.cli.client')\n"
            "importlib.import_module('oneshot_atelier.cli.run')\n"
            "importlib.import_module('oneshot_atelier.cli.main').parser('')\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    subprocess.run([sys.executable, "-c", code, str(ROOT)], check=True)
