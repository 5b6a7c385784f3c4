"""A real ComfyUI for the tests of this folder. They fail, rather than skip, where there is none: run `make host`."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oneshot_atelier.cli.client import Client, Result
from oneshot_atelier.tests.page_workflow import page_workflow
from oneshot_atelier.tests.server import shipped
from oneshot_atelier.tests.server.one_page import ASKED, BLUEPRINTS, Told
from oneshot_atelier.tools.comfy import ComfyServer, Host, HostMissing, find_host
from oneshot_atelier.tools.page import drive

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("server")


@pytest.fixture(scope="session")
def host() -> Host:
    """The ComfyUI to start, for tests that need a server of their own."""
    try:
        return find_host()
    except HostMissing as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture(scope="session")
def server(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """ComfyUI with this pack alone, shared by all tests of the session."""
    with ComfyServer(host, base=tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: ComfyServer) -> Client:
    return server.client


@pytest.fixture(scope="session")
def told(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What one Chromium tells of the page for several test files: starting it takes most of the time."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "reroutes.json").write_text(json.dumps(page_workflow()))
    workflows = [shipped.FOLDER / f"{name}.json" for name in shipped.NAMES]
    calls = [*ASKED, ["queued", folder, folder / "reroutes.json", *workflows]]
    calls += [["library", name, folder / f"{name}.json"] for name in BLUEPRINTS]
    words = [word for call in calls for word in ("then", *call)][1:]
    return Told(folder, drive(server.url, *words, timeout=240))


@pytest.fixture
def run(client: Client) -> Callable[..., Result]:
    """run(graph, on_event=None, timeout=600) -> Result; raises PromptRejected, NodeFailed, Interrupted."""
    return client.run
