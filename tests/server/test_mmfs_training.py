"""MMFS's trainings in the real server: cancelled, they go on from what was saved and end in the very weights of a run
without a break; and what they say when they cannot begin. test_selfcheck.py kills them."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from oneshot_atelier.cli.client import Client, Event, Interrupted, NodeFailed, PromptRejected, Result
from oneshot_atelier.models import loading
from oneshot_atelier.models.mmfs import MMFS
from oneshot_atelier.tests.server.sessions import (
    SAVE,
    SMALL,
    TUNE,
    assert_same_result,
    at_step,
    lines_of,
    node,
    saved_step,
    snapshot_of,
    spots,
    steps_of,
    write_models,
)
from oneshot_atelier.tools.comfy import ComfyServer

STEPS = 12
MODELS = {"1": node("AtelierLoadMMFS", model=SMALL), "2": node("AtelierLoadCLIP", model=SMALL, activation="auto"),
          "3": node("AtelierLoadStructureNet", model="demo"), "4": node("AtelierLoadStyleGAN2", model=SMALL)}
NAMES = {"one_shot": "AtelierMMFSFineTune", "zero_shot": "AtelierMMFSFineTuneText", "stage1": "AtelierMMFSTrainStage1"}


def graph_of(kind: str, name: str) -> dict:
    """A small training on tiny models that saves after every step; snapshot and result are called `name`."""
    session = {"seed": 5, "name": name, "save_every": 1, "resume": True, "batch": 2, "lr": 1e-3}
    graph = dict(MODELS)
    if kind == "stage1":
        graph[TUNE] = node(NAMES[kind], stylegan2=["4", 0], steps=STEPS, preview_every=2, precision="float32",
                           **session)
        graph[SAVE] = node("AtelierSaveMMFS", mmfs=[TUNE, 0], name=name, discriminator=False, overwrite=False)
        return graph
    target = {"references": ["5", 0]} if kind == "one_shot" else {"prompt": "drawing"}
    graph["5"] = node("LoadImage", image="spots_style.png")
    graph[TUNE] = node(NAMES[kind], mmfs=["1", 0], clip=["2", 0], structure_net=["3", 0], stylegan2=["4", 0],
                       iterations=STEPS, photos_folder="none", **target, **session)
    graph[SAVE] = node("AtelierSaveMMFSStyle", style=[TUNE, 0], name=name, overwrite=False)
    return graph


def run(client: Client, kind: str, name: str, on_event: Callable[[Event], None] | None = None) -> Result:
    return client.run(graph_of(kind, name), on_event, timeout=300)


def result_of(base: Path, kind: str, name: str) -> Path:
    return base / "models" / ("mmfs" if kind == "stage1" else "mmfs_styles") / f"{name}.safetensors"


@pytest.fixture(scope="module", autouse=True)
def written(server: ComfyServer) -> None:
    """What the graphs load."""
    write_models(server.base)
    server.client.upload(spots(2), "spots_style.png")


@pytest.fixture(scope="module")
def unbroken(server: ComfyServer) -> Callable[[str], Path]:
    """unbroken(kind) -> the result of a run without a break."""
    def path(kind: str) -> Path:
        found = result_of(server.base, kind, f"{kind}_unbroken")
        if not found.exists():
            result = run(server.client, kind, f"{kind}_unbroken")
            assert steps_of(result.events)[-1] == STEPS and result.of_kind("preview")
        return found
    return path


@pytest.mark.parametrize("kind", NAMES)
def test_cancel_stops_and_what_was_saved_goes_on(server: ComfyServer, unbroken: Callable, kind: str):
    whole, name = unbroken(kind), f"{kind}_cancelled"
    with pytest.raises(Interrupted) as cancelled:
        run(server.client, kind, name, at_step(2, server.client.interrupt))
    assert cancelled.value.node_id == TUNE
    stopped = steps_of(cancelled.value.result.events)[-1]
    saved = saved_step(snapshot_of(server.base, name))
    assert 2 <= stopped <= saved < STEPS and not result_of(server.base, kind, name).exists()

    result = run(server.client, kind, name)
    assert lines_of(result)[0] == f"resumed at iteration {saved} of {STEPS}"
    assert steps_of(result.events)[0] == saved + 1
    assert_same_result(result_of(server.base, kind, name), whole)


# --- bad input -----------------------------------------------------------------------------------------------------
def failing(client: Client, kind: str, **inputs: object) -> str:
    """What a run with these inputs says."""
    graph = graph_of(kind, "bad")
    graph[TUNE]["inputs"] |= inputs
    with pytest.raises((NodeFailed, PromptRejected)) as failed:
        client.run(graph, timeout=60)
    return str(failed.value)


@pytest.mark.parametrize(("kind", "inputs", "words"), [
    ("zero_shot", {"prompt": " "}, "the prompt is empty"),
    ("zero_shot", {"prompt": "drawing " * 80}, "tokens and this CLIP reads at most"),
    ("zero_shot", {"prompt": "zzz"}, "does not know 'zzz'"),
    ("zero_shot", {"name": "../up"}, "cannot be a file's name"),
    ("zero_shot", {"photos_folder": "../output"}, "../output"),
    ("stage1", {"precision": "float8"}, "precision")])
def test_bad_settings(server: ComfyServer, kind: str, inputs: dict, words: str) -> None:
    assert words in failing(server.client, kind, **inputs)
    assert not snapshot_of(server.base, "bad").exists()


@pytest.fixture(scope="module")
def model_files(server: ComfyServer) -> None:
    """In models/mmfs: the tiny model as of phase 2, without its CLIP mapping; and a StyleGAN2."""
    folder = server.base / "models" / "mmfs"
    (folder / "faces.safetensors").write_bytes((server.base / "models" / "stylegan2" / SMALL).read_bytes())
    net, _ = loading.load_mmfs(folder / SMALL)
    bare = MMFS(replace(net.config, mapper=None))
    bare.load_state_dict({key: value for key, value in net.state_dict().items() if not key.startswith("mapper.")})
    loading.save_mmfs(folder / "phase2.safetensors", bare, None, {"phase": 2})


@pytest.mark.parametrize(("model", "words"), [
    ("phase2.safetensors", "has no CLIP mapping .* Connect a w. code"),
    ("faces.safetensors", "faces.safetensors.*StyleGAN2")])
@pytest.mark.parametrize("kind", ["one_shot", "zero_shot"])
def test_a_model_of_another_kind(server: ComfyServer, model_files: None, kind: str, model: str, words: str) -> None:
    graph = graph_of(kind, "bad")
    graph["1"] = node("AtelierLoadMMFS", model=model)
    with pytest.raises(NodeFailed, match=words):
        server.client.run(graph, timeout=60)


def test_a_flat_reference(server: ComfyServer) -> None:
    graph = graph_of("one_shot", "flat")
    graph["5"] = node("EmptyImage", width=128, height=128, batch_size=1, color=0x336699)
    with pytest.raises(NodeFailed, match="is one flat colour"):
        server.client.run(graph, timeout=60)
