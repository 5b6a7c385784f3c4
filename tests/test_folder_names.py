"""The pack in folders of any name, imported as ComfyUI imports what lies in custom_nodes."""
from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from oneshot_atelier.cli.server import link_folder
from oneshot_atelier.tests import in_comfy

NAMES = ("oneshot-atelier-main", "oneshot-atelier-0.3.0", "ComfyUI Oneshot Atelier", "1shot", "nodes", "a.b.c",
         "комната ателье", "一枪画室", "it's #1 (copy) [2]", "class")


@pytest.mark.server
@pytest.mark.parametrize("name", NAMES)
def test_every_node_is_there(name: str, root: Path, base: Path, tmp_path: Path,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    in_comfy.load(base)
    folder = tmp_path / "custom_nodes" / name
    folder.parent.mkdir()
    link_folder(folder, root)
    module_name = str(folder).replace(".", "_x_")  # as ComfyUI's nodes.py calls what it imports
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location(module_name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module_name, module)
    try:
        spec.loader.exec_module(module)
        extension = asyncio.run(module.comfy_entrypoint())
        found = {node.GET_SCHEMA().node_id for node in asyncio.run(extension.get_node_list())}
        assert (folder / module.WEB_DIRECTORY).is_dir()
        own = {name for name in set(sys.modules) - before if name.startswith(module_name)}
        assert f"{module_name}.models.precision" in own  # and none of them is the other checkout's
        assert all(Path(sys.modules[name].__file__).is_relative_to(folder) for name in own)
    finally:
        for loaded in [loaded for loaded in sys.modules if loaded.startswith(module_name)]:
            del sys.modules[loaded]
    assert found == set(json.loads((root / "tests" / "golden_nodes.json").read_text(encoding="utf-8")))
