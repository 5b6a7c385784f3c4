"""Makes the checkout importable as `oneshot_atelier` (see cli/__main__.py); sys.path is left alone."""
import contextlib
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]

runpy.run_path(str(ROOT / "cli" / "__main__.py"))["load_checkout"](ROOT)


@pytest.fixture(scope="session")
def root() -> Path:
    """Folder of the checkout."""
    return ROOT


# --- ComfyUI, as far as nodes see it ----------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("comfy_base")


@pytest.fixture(scope="session")
def nodes(base):
    """The node classes by id, and the modules behind them."""
    from oneshot_atelier.tests import in_comfy
    package, found = in_comfy.nodes(base)
    return SimpleNamespace(host=package.host, images=package.images, sockets=package.sockets, osasis=package.osasis,
                           photo_twin=package.photo_twin, base=package.base, faces=package.faces,
                           image_sources=package.image_sources,
                           **{node.GET_SCHEMA().node_id.removeprefix("Atelier"): node for node in found})


@pytest.fixture
def comfy(nodes, elsewhere, tiny, tmp_path, monkeypatch):
    """As in ComfyUI: inference mode, empty folders, and the test file's `tiny` in place of models/demo."""
    import folder_paths
    import torch
    monkeypatch.setattr(nodes.host, "DEMO", tiny)
    for name in ("output", "temp", "input"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    for kind in nodes.host.FILE_KINDS:
        (tmp_path / "models" / kind).mkdir(parents=True)
        extensions = folder_paths.folder_names_and_paths[kind][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / "models" / kind)], extensions))
    folder_paths.filename_list_cache.clear()
    with elsewhere(nodes.host.mm, monkeypatch), torch.inference_mode():
        yield tmp_path


@pytest.fixture(scope="session")
def elsewhere():
    """Makes ComfyUI compute on the device of faraway.py where ATELIER_TEST_DEVICE asks for it."""
    if os.environ.get("ATELIER_TEST_DEVICE") != "faraway":
        return lambda *_: contextlib.nullcontext()
    from oneshot_atelier.tests import faraway
    library = faraway.make_device()
    return lambda mm, monkeypatch, library=library: faraway.comfyui_there(mm, monkeypatch)
