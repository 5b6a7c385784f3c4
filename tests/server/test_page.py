"""The shipped workflows in ComfyUI's real web page, in a headless Chromium; and what the page asks the pack for."""
from __future__ import annotations

import json
import urllib.request

import pytest

from oneshot_atelier.tests.server import shipped
from oneshot_atelier.tests.server.one_page import CHANGING, FIXED, SHOWN_NODE, Told
from oneshot_atelier.tests.server.shipped import FOLDER, NAMES
from oneshot_atelier.tools.comfy import PACK_NAME, ROOT, ComfyServer
from oneshot_atelier.tools.page import drive

MOST_THUMBNAIL_BYTES = 60_000


def get(server: ComfyServer, path: str) -> bytes:
    """What the server answers; HTTPError for anything but 200."""
    with urllib.request.urlopen(server.url + path, timeout=30) as answer:
        return answer.read()


def test_seeds_that_long_work_hangs_on_start_fixed(told: Told) -> None:
    """And a loaded workflow keeps what it was saved with."""
    assert told.lines("controls") == [
        dict.fromkeys(FIXED, ["fixed", "increment"]) | dict.fromkeys(CHANGING, ["randomize", "increment"])]


def test_the_page_shows_the_nodes_in_chinese(server: ComfyServer, told: Told) -> None:
    """By the page's own vue-i18n, from what ComfyUI serves of locales/."""
    served = json.loads(get(server, "/i18n"))
    for language in ("en", "zh"):
        for part in ("nodeDefs", "main"):
            texts = json.loads((ROOT / "locales" / language / f"{part}.json").read_text(encoding="utf-8"))
            assert (served[language][part] if part == "nodeDefs" else
                    {name: served[language][name] for name in texts}) == texts
    style = served["zh"]["nodeDefs"][SHOWN_NODE]
    assert told.lines("shown")[0][SHOWN_NODE] == {
        "title": style["display_name"], "category": "Atelier/MMFS", "description": style["description"],
        "inputs": {name: texts["name"] for name, texts in style["inputs"].items()},
        "outputs": [texts["name"] for texts in style["outputs"].values()]}


def test_templates_list_every_workflow_with_its_picture(server: ComfyServer) -> None:
    assert sorted(json.loads(get(server, "/api/workflow_templates"))[PACK_NAME]) == NAMES
    for name in NAMES:
        where = f"/api/workflow_templates/{PACK_NAME}/{name}"
        assert json.loads(get(server, f"{where}.json")) == json.loads((FOLDER / f"{name}.json").read_text())
        picture = get(server, f"{where}.jpg")
        assert picture[:3] == b"\xff\xd8\xff" and len(picture) <= MOST_THUMBNAIL_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_every_workflow_says_what_it_does(name: str) -> None:
    workflow = json.loads((FOLDER / f"{name}.json").read_text())
    (note,) = [node for node in workflow["nodes"] if node["type"] == "Note"]
    lines = note["widgets_values"][0].splitlines()
    assert lines[0].startswith("What it does: ") and 4 <= len(lines) <= 6 and all(len(line) > 30 for line in lines)
    assert [group["title"] for group in workflow["groups"] if len(group["title"].split()) < 3] == []  # what it does


def test_every_node_has_a_help_page(server: ComfyServer) -> None:
    ours = [node for node, info in server.object_info().items()
            if info["python_module"] == f"custom_nodes.{PACK_NAME}"]
    assert len(ours) > 10
    for node in ours:
        text = get(server, f"/extensions/{PACK_NAME}/docs/{node}.md").decode()
        assert text.startswith("#") and len(text) > 200, node
    for page in (ROOT / "web" / "docs").glob("*/zh.md"):  # where the page looks first when it is in Chinese
        text = get(server, f"/extensions/{PACK_NAME}/docs/{page.parent.name}/zh.md").decode()
        assert text == page.read_text(encoding="utf-8")


# what the nodes of the shipped workflows show once they ran: (a picture, lines of text)
SHOWN = {
    "SaveImage": (True, 0), "AtelierPhotoTwin": (True, 0), "AtelierAlignFaces": (True, 0), "AtelierDecode": (True, 0),
    "AtelierStructuralEncode": (True, 0), "AtelierOSASISStylize": (True, 0), "AtelierMMFSStylize": (True, 0),
    "AtelierSampleDiffAE": (True, 0), "AtelierSampleStyleGAN2": (True, 0), "AtelierGeometryFromReference": (True, 0),
    "AtelierOSASISFineTune": (True, 2), "AtelierOSASISFineTuneText": (True, 2), "AtelierMMFSFineTune": (True, 2),
    "AtelierMMFSFineTuneText": (True, 2), "AtelierMMFSTrainStage1": (True, 2), "AtelierMMFSTrainStage2": (True, 2),
    "AtelierMMFSTrainMapping": (True, 2), "AtelierComparePictures": (False, 4)}


def what_a_run_shows(name: str) -> dict[str, dict]:
    """For page_look.mjs: a square picture and lines of text on every node that shows some."""
    picture = {"images": [{"filename": "face_1.png", "subfolder": "", "type": "input"}]}
    shown = {node: SHOWN[entry["class_type"]] for node, entry in shipped.shipped(name).items()
             if entry["class_type"] in SHOWN}
    return {"outputs": {node: picture for node, (drawn, _) in shown.items() if drawn}, "previews": [],
            "texts": {node: ["\n".join(["a line of a report"] * lines)] for node, (_, lines) in shown.items() if lines}}


def overlap(one: list[float], other: list[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def inside(one: list[float], other: list[float]) -> bool:
    return other[0] <= one[0] and other[1] <= one[1] and one[2] <= other[2] and one[3] <= other[3]


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def drawn(request: pytest.FixtureRequest, server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Every workflow as a page draws it at 100 % zoom, with what a run shows: see page_look.mjs."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "runs.json").write_text(json.dumps({name: what_a_run_shows(name) for name in NAMES}))
    drive(server.url, "measure", request.param, folder / "seen.json", folder / "runs.json",
          *(FOLDER / f"{name}.json" for name in NAMES), timeout=600)
    return json.loads((folder / "seen.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_reads_well_on_the_page(drawn: dict, name: str) -> None:
    nodes, groups, links = (drawn[name][part] for part in ("nodes", "groups", "links"))
    assert len(nodes) == len(shipped.shipped(name)) + 1 and groups and links
    boxes = [node["box"] for node in nodes]
    assert [(one["id"], other["id"]) for k, one in enumerate(nodes) for other in nodes[:k]
            if overlap(one["box"], other["box"])] == []
    assert [(one["title"], other["title"]) for k, one in enumerate(groups) for other in groups[:k]
            if overlap(one["box"], other["box"])] == []
    assert [node["type"] for node, box in zip(nodes, boxes, strict=True)
            if node["type"] != "Note" and not any(inside(box, group["box"]) for group in groups)] == []
    assert [(link["from"], link["to"]) for link in links if link["end"][0] <= link["start"][0]] == []
    assert [(node["type"], text) for node in nodes for text in node["cut"]] == []
    assert [group["title"] for group in groups if group["width"] > group["box"][2] - group["box"][0]] == []
