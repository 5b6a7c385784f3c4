"""`atelier run` without a ComfyUI: the page's format, values and files of the command line, outputs, endings."""
from __future__ import annotations

import asyncio
import json
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from oneshot_atelier.cli import run as command
from oneshot_atelier.cli import server
from oneshot_atelier.cli.client import Client, Interrupted, NodeFailed, Result
from oneshot_atelier.cli.graph_values import file_node, node_called, set_value, upload_name
from oneshot_atelier.cli.main import main
from oneshot_atelier.cli.page_format import to_api
from oneshot_atelier.cli.stopping import Stopped
from oneshot_atelier.tests.page_workflow import API, node, page_workflow, slot, without_titles

IMAGE = ["IMAGE", {}]


def required(**inputs: Any) -> dict[str, Any]:
    return {"input": {"required": inputs}, "display_name": None}


SCHEMAS = {
    "LoadImage": required(image=[["face_1.png", "wall.png"], {"image_upload": True}]),
    "ImageInvert": required(image=IMAGE), "PreviewImage": required(images=IMAGE),
    "ImageScale": required(image=IMAGE, upscale_method=[["lanczos", "area"]], width=["INT", {"min": 0, "max": 512}],
                           height=["INT", {"default": 512}], crop=[["disabled", "center"]]),
    "ImageBlur": required(image=IMAGE, blur_radius=["INT", {}], sigma=["FLOAT", {"min": 0.1}]),
    "SaveImage": required(images=IMAGE, filename_prefix=["STRING", {}]),
    "Noise": required(seed=["INT", {}], mode=["COMBO", {"options": ["a", "b"]}], on=["BOOLEAN", {}],
                      image=["IMAGE", {}], old=["INT", {"forceInput": True}], late=["FLOAT", {"default": 0.5}]),
    "Text": required(text=["STRING", {"dynamicPrompts": True}])}


def one(kind: str, values: Any, inputs: list[dict] | None = None) -> dict[str, Any]:
    return {"nodes": [node(1, kind, inputs or [], [], values)], "links": []}


def api() -> dict[str, Any]:
    return to_api(page_workflow(), SCHEMAS)


# --- the page's format ------------------------------------------------------------------------------------------------
def test_everything_that_the_page_resolves_is_resolved():
    assert without_titles(api()) == API


def test_a_seeds_control_is_no_input_and_what_was_not_saved_yet_has_its_default():
    values = to_api(one("Noise", [7, "randomize", "b", True]), SCHEMAS)["1"]["inputs"]
    assert values == {"seed": 7, "mode": "b", "on": True, "late": 0.5}


@pytest.mark.parametrize(("options", "control"), [({}, True), ({"control_after_generate": None}, True),
                                                  ({"control_after_generate": False}, False),
                                                  ({"control_after_generate": True}, True)])
def test_a_seed_has_a_control_unless_its_node_says_no(options: dict, control: bool):
    schemas = {"Draw": required(seed=["INT", options], count=["INT", {}])}
    saved = [7, "fixed", 3] if control else [7, 3]
    assert to_api(one("Draw", saved), schemas)["1"]["inputs"] == {"seed": 7, "count": 3}


def test_values_by_name_are_taken_by_name():
    assert to_api(one("ImageBlur", {"sigma": 2.0, "blur_radius": 1, "shown": 3}), SCHEMAS)["1"]["inputs"] == {
        "blur_radius": 1, "sigma": 2.0}


@pytest.mark.parametrize(("workflow", "message"), [
    (one("Elsewhere", []), "no node Elsewhere"), (one("ImageBlur", [1, 2.0, 3]), "saved with 3 values"),
    (one("ImageBlur", ["fixed", 2.0]), "'fixed' for blur_radius, which takes INT"),
    (one("Text", ["a {red|blue} cat"]), "would rewrite text"),
    (one("SaveImage", ["%date:yyyy%"]), "would rewrite filename_prefix"),
    (one("ImageInvert", [], [slot("image", "IMAGE", 9)]), "damaged or of an unknown form")])
def test_what_cannot_be_converted_is_refused(workflow: dict, message: str):
    with pytest.raises(ValueError, match=message):
        to_api(workflow, SCHEMAS)


def test_a_second_node_of_a_subgraph_with_values_of_its_own_is_refused():
    workflow = page_workflow()
    workflow["nodes"].append(workflow["nodes"][5] | {"id": 11, "widgets_values": [3]})
    with pytest.raises(ValueError, match="several nodes of one subgraph"):
        to_api(workflow, SCHEMAS)


# --- values and files -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("assignment", "value"), [
    ("4.height=96", 96), ("ImageScale.crop=center", "center"), ("ImageBlur.sigma=3", 3.0),
    ("saveimage.filename_prefix=a.b=c", "a.b=c")])
def test_a_value_is_set_by_id_title_or_type(assignment: str, value: object):
    graph = api()
    set_value(graph, SCHEMAS, assignment)
    where, field = assignment.split("=")[0].split(".")
    assert graph[node_called(graph, where)]["inputs"][field] == value


@pytest.mark.parametrize(("assignment", "message"), [
    ("4.height", "NODE.INPUT=VALUE"), ("4.height=tall", "no number"), ("4.width=513", "outside 0 to 512"),
    ("4.crop=left", "take one of disabled, center"), ("4.depth=1", "it has image, upscale_method"),
    ("4.image=x", "takes a connection"), ("nobody.x=1", "no nodes are called 'nobody'")])
def test_a_wrong_value_is_refused(assignment: str, message: str):
    with pytest.raises(ValueError, match=message):
        set_value(api(), SCHEMAS, assignment)


def test_a_file_goes_to_the_node_of_its_name_or_the_only_one():
    graph = api()
    assert file_node(graph, SCHEMAS, "anything") == ("1", "image")
    graph["1"]["_meta"]["title"] = "Load Image"
    graph["2"] = {"class_type": "LoadImage", "inputs": {"image": "wall.png"}, "_meta": {"title": "Photo"}}
    for name in ("2", "photo", "wall", "wall.png"):
        assert file_node(graph, SCHEMAS, name) == ("2", "image"), name
    for name, message in (("style", "no nodes are called 'style'"), ("LoadImage", "'LoadImage'")):
        with pytest.raises(ValueError, match=message):
            file_node(graph, SCHEMAS, name)


def test_an_uploaded_file_is_named_by_its_content():
    names = {upload_name(Path('a/me".PNG'), data) for data in (b"1", b"2")}
    assert len(names) == 2 and all(name.startswith("me_") and name.endswith(".png") for name in names)


# --- the command ------------------------------------------------------------------------------------------------------
class FakeClient:
    """A server with these nodes that saves one file a run, or ends as `ending` says."""

    def __init__(self, ending: BaseException | None = None) -> None:
        self.url, self.ending, self.uploads, self.queued, self.cancelled = "fake", ending, {}, {}, []
        self.ref = {"filename": "result_00001_.png", "subfolder": "headless", "type": "output"}

    def get_json(self, path: str) -> dict:
        return SCHEMAS

    def upload(self, data: bytes, name: str) -> str:
        self.uploads[name] = data
        return name

    def run(self, graph: dict, on_event: object, timeout: float | None, prompt_id: str, patience: float) -> Result:
        assert patience == command.SAVING_SECONDS
        self.queued = graph
        if self.ending:
            raise self.ending
        return Result(prompt_id, {"7": {"images": [self.ref, self.ref | {"type": "temp"}], "text": ["done"]}})

    def fetch(self, ref: dict) -> bytes:
        return json.dumps(self.queued).encode()

    def cancel(self, prompt_id: str, patience: float) -> bool:
        self.cancelled.append(prompt_id)
        return True


def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, client: FakeClient, *more: str) -> int:
    monkeypatch.setattr(command, "Client", lambda url: client)
    (tmp_path / "page.json").write_text(json.dumps(page_workflow()))
    return main(["run", str(tmp_path / "page.json"), "--server", "x", "--out", str(tmp_path / "out"), *more])


def test_a_run_uploads_sets_and_saves(monkeypatch, tmp_path, capsys):
    (tmp_path / "me.jpg").write_bytes(b"me")
    client = FakeClient()
    given = ("--input", f"photo={tmp_path / 'me.jpg'}", "--set", "4.height=96")
    assert started(monkeypatch, tmp_path, client, *given) == 0
    (name, data), = client.uploads.items()
    assert data == b"me" and client.queued["1"]["inputs"]["image"] == name
    assert client.queued["4"]["inputs"]["height"] == 96
    first = tmp_path / "out" / "headless" / "result_00001_.png"
    assert capsys.readouterr().out.split() == [str(first)]
    assert started(monkeypatch, tmp_path, client) == 0, "another content"
    assert started(monkeypatch, tmp_path, client) == 0, "the same again"
    assert sorted(path.name for path in first.parent.iterdir()) == ["result_00001_.png", "result_00001__2.png"]


@pytest.mark.parametrize("ending", [NodeFailed({"node_id": "4", "exception_message": "no memory"}),
                                    Interrupted({"node_id": "4"}), TimeoutError("too long")])
def test_a_run_that_fails_ends_with_1(monkeypatch, tmp_path, ending: Exception):
    assert started(monkeypatch, tmp_path, FakeClient(ending)) == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_cancels_the_run_on_the_server(monkeypatch, tmp_path, caplog):
    client = FakeClient(Stopped(2))
    assert started(monkeypatch, tmp_path, client) == 130
    assert len(client.cancelled) == 1 and "was cancelled at fake" in caplog.text


@pytest.mark.parametrize("ref", [{"filename": "a", "subfolder": "../.."}, {"filename": "/etc/a"},
                                 {"filename": "..\\a", "subfolder": ""}])
def test_a_server_writes_nowhere_else(tmp_path, ref: dict):
    with pytest.raises(command.RunError, match="outside its output folder"):
        command.save_file(b"", tmp_path, ref)


def test_a_name_that_some_system_has_not_is_changed_and_the_other_files_are_fetched(tmp_path):
    refs = [{"filename": "../a", "type": "output"}, {"filename": "12:30.png", "subfolder": "c:", "type": "output"},
            {"filename": "b?.png", "type": "output"}]
    written, refused = command.save_outputs(FakeClient(), Result("x", {"1": {"images": refs}}), tmp_path / "out")
    assert written == [tmp_path / "out" / "c_" / "12_30.png", tmp_path / "out" / "b_.png"]
    assert all(path.is_file() for path in written) and len(refused) == 1 and not (tmp_path / "a").exists()


def test_ctrl_c_ends_with_130_though_the_server_is_gone(monkeypatch, tmp_path, caplog):
    client = FakeClient(Stopped(2))

    def gone(*_):
        raise urllib.error.URLError("connection refused")
    monkeypatch.setattr(client, "cancel", gone)
    assert started(monkeypatch, tmp_path, client) == 130
    assert "fake does not answer any more" in caplog.text


def test_ctrl_c_does_not_reach_the_server_that_was_started(monkeypatch, tmp_path):
    given: dict[str, Any] = {}
    monkeypatch.setattr(server, "NEW_GROUP", 512)  # as Windows has it
    monkeypatch.setattr(server.subprocess, "Popen", lambda *_, **named: given.update(named))
    monkeypatch.setattr(server.ComfyServer, "_wait_until_up", lambda *_: None)
    server.ComfyServer(server.Host("python", tmp_path, accelerator=False), tmp_path).__enter__()
    assert given["start_new_session"] and given["creationflags"] == 512


def test_a_run_that_takes_too_long_may_save(monkeypatch):
    client, cancelled = Client("http://x"), []

    async def endless(*_):
        await asyncio.sleep(60)
    monkeypatch.setattr(client, "_follow", endless)
    monkeypatch.setattr(client, "cancel", lambda *given: cancelled.append(given))
    with pytest.raises(TimeoutError, match="not done after 0.01 s"):
        client.run({}, timeout=0.01, prompt_id="mine", patience=9)
    assert cancelled == [("mine", 9)]

    def gone(*_):
        raise urllib.error.URLError("connection refused")
    monkeypatch.setattr(client, "cancel", gone)
    with pytest.raises(TimeoutError, match="not done after"):
        client.run({}, timeout=0.01, prompt_id="mine")


@pytest.mark.parametrize(("text", "message"), [("{", "no JSON"), ("[]", "no workflow"), ('{"a": 1}', "is no node")])
def test_what_is_no_workflow_is_refused(monkeypatch, tmp_path, caplog, text: str, message: str):
    monkeypatch.setattr(command, "Client", lambda url: FakeClient())
    (tmp_path / "w.json").write_text(text)
    assert main(["run", str(tmp_path / "w.json"), "--server", "x"]) == 1
    assert message in caplog.text


def test_a_server_that_does_not_answer_is_named(tmp_path, caplog):
    (tmp_path / "w.json").write_text('{"1": {"class_type": "A", "inputs": {}}}')
    assert main(["run", str(tmp_path / "w.json"), "--server", "127.0.0.1:9"]) == 1
    assert "no ComfyUI answers at http://127.0.0.1:9" in caplog.text


def test_only_the_own_run_is_cancelled():
    client, sent = Client("http://x"), []
    client.post_json = lambda path, data: sent.append((path, data))
    client.get_json = lambda path: {"queue_running": [[1, "other"]]}
    assert client.cancel("mine") and sent == [("/queue", {"delete": ["mine"]})]
    assert not client.cancel("other") and sent[-1] == ("/interrupt", {"prompt_id": "other"})
