"""MMFS's trainings in the real server: cancelled, or killed in the middle, they go on from what was saved and end in
the very weights of a run without a break; and what they say when they cannot begin."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from oneshot_atelier.cli.client import Client, Event, Interrupted, NodeFailed, PromptRejected, Result, RunError
from oneshot_atelier.models import loading
from oneshot_atelier.models.mmfs import MMFS
from oneshot_atelier.tests.server.sessions import (
    SAVE,
    TUNE,
    assert_same_result,
    at_step,
    lines_of,
    lock_of,
    node,
    saved_step,
    snapshot_of,
    spots,
    steps_of,
)
from oneshot_atelier.tools.comfy import ComfyServer, Host

STEPS = 4
MODELS = {"1": node("AtelierLoadMMFS", model="demo"), "2": node("AtelierLoadCLIP", model="demo", activation="auto"),
          "3": node("AtelierLoadStructureNet", model="demo"), "4": node("AtelierLoadStyleGAN2", model="demo")}
NAMES = {"one_shot": "AtelierMMFSFineTune", "zero_shot": "AtelierMMFSFineTuneText", "stage1": "AtelierMMFSTrainStage1"}


def graph_of(kind: str, name: str) -> dict:
    """A small training on the demo models that saves after every step; snapshot and result are called `name`."""
    session = {"seed": 5, "name": name, "save_every": 1, "resume": True, "batch": 2, "lr": 1e-3}
    graph = dict(MODELS)
    if kind == "stage1":
        graph[TUNE] = node(NAMES[kind], stylegan2=["4", 0], steps=STEPS, preview_every=2, precision="float32",
                           **session)
        graph[SAVE] = node("AtelierSaveMMFS", mmfs=[TUNE, 0], name=name, discriminator=False, overwrite=False)
        return graph
    target = {"references": ["5", 0]} if kind == "one_shot" else {"prompt": "watercolor"}
    graph["5"] = node("LoadImage", image="spots_style.png")
    graph[TUNE] = node(NAMES[kind], mmfs=["1", 0], clip=["2", 0], structure_net=["3", 0], stylegan2=["4", 0],
                       iterations=STEPS, photos_folder="none", **target, **session)
    graph[SAVE] = node("AtelierSaveMMFSStyle", style=[TUNE, 0], name=name, overwrite=False)
    return graph


def run(client: Client, kind: str, name: str, on_event: Callable[[Event], None] | None = None) -> Result:
    return client.run(graph_of(kind, name), on_event, timeout=300)


def result_of(base: Path, kind: str, name: str) -> Path:
    return base / "models" / ("mmfs" if kind == "stage1" else "mmfs_styles") / f"{name}.safetensors"


@pytest.fixture(scope="module")
def unbroken(server: ComfyServer) -> Callable[[str], Path]:
    """unbroken(kind) -> the result of a run without a break."""
    server.client.upload(spots(2), "spots_style.png")

    def path(kind: str) -> Path:
        found = result_of(server.base, kind, f"{kind}_unbroken")
        if not found.exists():
            result = run(server.client, kind, f"{kind}_unbroken")
            assert steps_of(result.events)[-1] == STEPS and result.of_kind("preview")
        return found
    return path


@pytest.mark.parametrize("kind", NAMES)
def test_cancel_stops_within_one_step_and_what_was_saved_goes_on(server: ComfyServer, unbroken: Callable, kind: str):
    whole, name = unbroken(kind), f"{kind}_cancelled"
    with pytest.raises(Interrupted) as cancelled:
        run(server.client, kind, name, at_step(2, server.client.interrupt))
    assert cancelled.value.node_id == TUNE
    assert 2 <= steps_of(cancelled.value.result.events)[-1] <= 3
    saved = saved_step(snapshot_of(server.base, name))
    assert 2 <= saved < STEPS and not result_of(server.base, kind, name).exists()

    result = run(server.client, kind, name)
    assert lines_of(result)[0] == f"resumed at iteration {saved} of {STEPS}"
    assert steps_of(result.events)[0] == saved + 1
    assert_same_result(result_of(server.base, kind, name), whole)


@pytest.fixture(scope="module")
def killed(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base folder of a server that was killed in a fine-tune."""
    base = tmp_path_factory.mktemp("killed")
    with ComfyServer(host, base=base) as doomed:
        doomed.client.upload(spots(2), "spots_style.png")
        with pytest.raises(RunError, match="closed the connection"):
            run(doomed.client, "one_shot", "killed", at_step(2, doomed.kill))
    return base


@pytest.fixture(scope="module")
def restarted(host: Host, killed: Path) -> Iterator[ComfyServer]:
    snapshot = snapshot_of(killed, "killed")
    assert saved_step(snapshot) >= 1 and set(snapshot.parent.iterdir()) == {snapshot, lock_of(snapshot)}
    with ComfyServer(host, base=killed) as again:
        yield again


def test_after_a_kill_the_same_graph_goes_on_to_the_same_style(restarted: ComfyServer, unbroken: Callable) -> None:
    assert steps_of(run(restarted.client, "one_shot", "killed").events)[0] > 1
    assert_same_result(result_of(restarted.base, "one_shot", "killed"), unbroken("one_shot"))


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
    ("zero_shot", {"prompt": "watercolor " * 80}, "tokens and this CLIP reads at most"),
    ("zero_shot", {"prompt": "zzz"}, "does not know 'zzz'"),
    ("zero_shot", {"name": "../up"}, "cannot be a file's name"),
    ("zero_shot", {"photos_folder": "../output"}, "../output"),
    ("stage1", {"precision": "float8"}, "precision")])
def test_bad_settings(server: ComfyServer, kind: str, inputs: dict, words: str) -> None:
    assert words in failing(server.client, kind, **inputs)
    assert not snapshot_of(server.base, "bad").exists()


@pytest.fixture(scope="module")
def model_files(server: ComfyServer) -> None:
    """In models/mmfs: the demo model as of phase 2, without its CLIP mapping; and a StyleGAN2."""
    server.client.upload(spots(2), "spots_style.png")
    folder = server.base / "models" / "mmfs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faces.safetensors").write_bytes((loading.DEMO / "stylegan2.safetensors").read_bytes())
    net, _ = loading.load_mmfs(loading.DEMO / "mmfs.safetensors")
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
