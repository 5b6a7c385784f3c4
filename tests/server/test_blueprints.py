"""Both blueprints, added by hand from the page's node library: a photo in, the stylized photo out."""
from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from oneshot_atelier.cli.client import Client
from oneshot_atelier.tests.server import shipped
from oneshot_atelier.tests.server.one_page import BLUEPRINTS as PLANS
from oneshot_atelier.tests.server.one_page import Told
from oneshot_atelier.tools.comfy import ComfyServer

OF_MMFS = [name for name, plan in PLANS.items() if plan["workflow"] == "mmfs_photo"]


@pytest.fixture(params=PLANS)
def added(request: pytest.FixtureRequest, told: Told):
    """A blueprint's name, what its node shows, and what it would queue."""
    return request.param, told.lines("library")[list(PLANS).index(request.param)], told.queued(request.param)


def test_every_blueprint_is_there_and_no_other() -> None:
    assert {path.stem for path in (shipped.ROOT / "subgraphs").glob("*.json")} == set(PLANS)


def test_it_is_one_node_that_shows_what_is_asked_for(added: tuple[str, dict, dict]) -> None:
    name, shown, _ = added
    plan = PLANS[name]
    assert shown == {"title": name, "inputs": ["image"], "outputs": plan["outputs"],
                     "widgets": [f"{node}: {widget}" for node, widget in plan["widgets"]]}


def test_inside_are_the_nodes_of_the_workflow(added: tuple[str, dict, dict]) -> None:
    name, _, queued = added
    workflow, chosen = shipped.shipped(PLANS[name]["workflow"]), {str(node) for node in PLANS[name]["nodes"]}
    inside = {number.partition(":")[2]: entry for number, entry in queued.items()}
    assert inside.keys() == chosen

    def known(inputs: dict) -> dict:
        """Without what comes from outside, links by the workflow's ids."""
        plain = {key: [value[0].partition(":")[2] or value[0], value[1]] if isinstance(value, list) else value
                 for key, value in inputs.items()}
        return {key: value for key, value in plain.items() if not isinstance(value, list) or value[0] in chosen}
    for number, entry in inside.items():
        assert entry["class_type"] == workflow[number]["class_type"]
        assert known(entry["inputs"]) == known(workflow[number]["inputs"]), number


@pytest.mark.parametrize("added", OF_MMFS, indirect=True)
def test_a_photo_comes_out_as_from_the_workflow(server: ComfyServer, added: tuple[str, dict, dict]) -> None:
    """Of MMFS; OSASIS needs a style that a fine-tune has saved, and its nodes are compared above."""
    _, _, queued = added
    whole = picture(server.client, shipped.shipped("mmfs_photo"), "8")
    graph = queued | {"photo": {"class_type": "LoadImage", "inputs": {"image": "wall.png"}}}
    for entry in queued.values():
        if entry["class_type"] in ("AtelierAlignFaces", "AtelierPasteFaces"):
            entry["inputs"]["image"] = ["photo", 0]
    paste = next(number for number, entry in queued.items() if entry["class_type"] == "AtelierPasteFaces")
    graph["save"] = {"class_type": "SaveImage", "inputs": {"images": [paste, 0], "filename_prefix": "blueprint"}}
    assert (picture(server.client, graph, "save") == whole).all()


def picture(client: Client, graph: dict, node: str) -> np.ndarray:
    (data,) = client.images(client.run(graph, timeout=300), node)
    return np.asarray(Image.open(io.BytesIO(data)))
