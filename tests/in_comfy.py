"""ComfyUI's modules inside the test process, without a server: what nodes import, on the CPU, in folders of its own."""
from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from oneshot_atelier.tools.comfy import HostMissing, find_host


def load(base: Path) -> None:
    """Make `comfy`, `comfy_api` and `folder_paths` importable, as main.py --cpu --base-directory BASE would see them.

    Skips where there is no ComfyUI. A second call changes nothing: ComfyUI's folders are fixed at its import.
    """
    if "comfy.cli_args" in sys.modules:
        return
    try:
        folder = find_host().comfy
    except HostMissing as missing:
        pytest.skip(str(missing))
    sys.path.insert(0, str(folder))
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", str(base)]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = arguments
    importlib.import_module("utils.extra_config")  # before ComfyUI's `comfy/utils.py` can pass for it, as main.py does


def nodes(base: Path) -> tuple[ModuleType, list[type]]:
    """The pack's package `nodes`, and its node classes as ComfyUI gets them, schemas made."""
    load(base)
    package = importlib.import_module("oneshot_atelier.nodes")
    found = asyncio.run(package.AtelierExtension().get_node_list())
    for node in found:
        node.GET_SCHEMA()
    return package, found
