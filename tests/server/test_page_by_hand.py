"""Workflows used in ComfyUI's real page as a user does, with mouse and keyboard, in a headless Chromium: opened from
Templates, changed, run, cancelled, run again. MMFS's on the classic page, and with Nodes 2.0; OSASIS's, which takes
longer, with Nodes 2.0 alone."""
from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from oneshot_atelier.tests.server import shipped
from oneshot_atelier.tests.server.sessions import saved_step, snapshot_of
from oneshot_atelier.tests.server.shipped import LOWERED
from oneshot_atelier.tools.comfy import PACK_NAME, ComfyServer
from oneshot_atelier.tools.page import drive


@dataclass(frozen=True)
class Walk:
    """A workflow with a fine-tune in it, and what is done to it by hand."""

    name: str
    tunes: str  # node types: what trains, and what saves its style
    saves: str
    changed: tuple[str, str, int | str]  # node type, input, value: set by hand before the first run
    iterations: int  # of the run that is cancelled at `cancel` of it; the first one makes 2
    cancel: float
    pages: tuple[str, ...]


WALKS = [Walk("osasis_demo", "AtelierOSASISFineTune", "AtelierSaveOSASISStyle",
              ("AtelierMixCodes", "change_point", 64), iterations=6, cancel=0.45,
              pages=("nodes2",)),
         Walk("mmfs_one_shot", "AtelierMMFSFineTune", "AtelierSaveMMFSStyle",
              ("AtelierMMFSStylize", "noise", "constant"), iterations=16, cancel=0.3,
              pages=("classic", "nodes2"))]


def lowered(walk: Walk, name: str) -> dict[str, dict]:
    """The settings of shipped.LOWERED, with files of their own and every iteration saved."""
    values = copy.deepcopy(LOWERED) | {walk.saves: {"name": name}}
    values[walk.tunes] |= {"name": name, "save_every": 1}
    return values


def first_of(graph: dict, kind: str) -> dict:
    return next(entry for _, entry in sorted(graph.items(), key=lambda item: int(item[0]))
                if entry["class_type"] == kind)["inputs"]


def wanted(walk: Walk, values: dict[str, dict], iterations: int) -> dict[str, dict]:
    """The inputs that the page should queue, by node."""
    graph = shipped.shipped(walk.name)
    for entry in graph.values():
        entry["inputs"] |= values.get(entry["class_type"], {})
    kind, name, value = walk.changed
    first_of(graph, kind)[name] = value
    first_of(graph, walk.tunes)["iterations"] = iterations
    return {node: entry["inputs"] for node, entry in graph.items()}


@pytest.mark.parametrize(("walk", "page"), [(walk, page) for walk in WALKS for page in walk.pages],
                         ids=lambda value: getattr(value, "name", value))
def test_a_workflow_by_hand(server: ComfyServer, tmp_path: Path, walk: Walk, page: str) -> None:
    name = f"by_hand_{walk.name}_{page}"
    values = lowered(walk, name)
    kind, widget, value = walk.changed
    plan, shot = tmp_path / "plan.json", tmp_path / "page.png"
    plan.write_text(json.dumps({
        "set": values, "watch": walk.tunes, "cancel": walk.cancel,
        "first": [{"type": kind, "widget": widget, "value": value}],
        "second": [{"type": walk.tunes, "widget": "iterations", "value": walk.iterations}]}))
    printed = drive(server.url, "hand", page, PACK_NAME, walk.name, plan, shot, timeout=400)
    told = json.loads(printed.split("\nhand ", 1)[1].splitlines()[0])
    first, cancelled, again = told["first"], told["cancelled"], told["again"]
    history = server.client.get_json("/history")

    def queued(run: dict) -> dict[str, dict]:
        return {node: entry["inputs"] for node, entry in history[run["prompt_id"]]["prompt"][2].items()}

    assert first["status"] == "success", first["error"]
    assert queued(first) == wanted(walk, values, iterations=2)
    shown = [size for pictures in first["pictures"] for size in pictures]
    assert all(first["pictures"]) and min(min(size) for size in shown) >= 64 and shot.stat().st_size > 10_000

    assert cancelled["status"] == "cancelled" and cancelled["node"] == str(told["watched"])
    assert queued(cancelled) == wanted(walk, values, walk.iterations)
    seen = cancelled["seen"]
    assert walk.cancel <= seen["progress"][-1] < 1 and seen["text"]
    assert cancelled["running"] == 0

    assert again["status"] == "success", again["error"]
    assert queued(again) == queued(cancelled)
    assert again["seen"]["progress"][0] > walk.cancel  # it goes on where the cancelled run stopped
    assert seen["preview"] or again["seen"]["preview"]
    assert saved_step(snapshot_of(server.base, name)) == walk.iterations
    assert again["pictures"] != [] and all(again["pictures"])
