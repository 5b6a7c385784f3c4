"""A fine-tune in the real server is cancelled, or the server is killed in the middle of it: what was saved is there,
goes on, and ends in the very style of a run without a break."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from oneshot_atelier.cli.client import Client, Interrupted, RunError
from oneshot_atelier.tests.server.sessions import (
    SAVE,
    SMALL,
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
    write_models,
)
from oneshot_atelier.tools.comfy import ComfyServer, Host

ITERATIONS, STEPS = 6, 5  # optimiser steps an iteration: 10 reverse steps at t0 0.5
OPTIONS = {"preset": "as set below", "cross_weight": 1.0, "in_domain_weight": 0.5, "clip_weight": 30.0,
           "l1_weight": 10.0, "perceptual_weight": 10.0,
           "style_spn_weight": 1.0, "spn_time": "index", "forward_steps": 10, "reverse_steps": 10, "latent_steps": 10,
           "generate_steps": 10, "t0": 0.5, "cached_content": 1, "noise_level": "official", "clamp": "hard",
           "clip_preprocessing": "osasis", "dropout": True, "micro_batch": 0, "precision": "float16"}


def graph_of(name: str) -> dict:
    """A small fine-tune on tiny models that saves after every iteration, and its style: both called `name`."""
    return {
        "1": node("AtelierLoadDiffAE", model=SMALL),
        "2": node("AtelierLoadCLIP", model=SMALL, activation="auto"),
        "3": node("AtelierLoadPerceptual", model="encoder of the DiffAE", diffae=["1", 0]),
        "4": node("LoadImage", image="spots_twin.png"),
        "5": node("LoadImage", image="spots_style.png"),
        "6": node("AtelierOSASISFineTuneOptions", **OPTIONS),
        TUNE: node("AtelierOSASISFineTune", diffae=["1", 0], clip=["2", 0], perceptual=["3", 0], twin=["4", 0],
                   style_image=["5", 0], iterations=ITERATIONS, batch=1, lr=1e-4, lr_spn=1e-4, spn="timed",
                   spn_weight=0.1, seed=5, name=name, save_every=1, resume=True, options=["6", 0]),
        SAVE: node("AtelierSaveOSASISStyle", style=[TUNE, 0], name=name, overwrite=False)}


def write_inputs(base: Path, client: Client) -> None:
    write_models(base)
    client.upload(spots(1), "spots_twin.png")
    client.upload(spots(2), "spots_style.png")


def style_of(base: Path, name: str) -> Path:
    return base / "models" / "osasis" / f"{name}.safetensors"


@pytest.fixture(scope="module")
def unbroken(server: ComfyServer) -> Path:
    """The style of a run without a break."""
    write_inputs(server.base, server.client)
    result = server.client.run(graph_of("unbroken"), timeout=300)
    assert steps_of(result.events)[-1] == ITERATIONS * STEPS
    return style_of(server.base, "unbroken")


def test_cancel_stops_and_what_was_saved_goes_on(server: ComfyServer, unbroken: Path) -> None:
    stop = STEPS + 2  # in the middle of the second iteration
    with pytest.raises(Interrupted) as cancelled:
        server.client.run(graph_of("cancelled"), at_step(stop, server.client.interrupt), timeout=300)
    assert cancelled.value.node_id == TUNE
    stopped = steps_of(cancelled.value.result.events)[-1]
    saved = saved_step(snapshot_of(server.base, "cancelled"))
    assert stop <= stopped < ITERATIONS * STEPS and (stopped - 1) // STEPS <= saved < ITERATIONS
    assert not style_of(server.base, "cancelled").exists()

    result = server.client.run(graph_of("cancelled"), timeout=300)
    assert lines_of(result)[0] == f"resumed at iteration {saved} of {ITERATIONS}"
    assert max(stopped, saved * STEPS) < steps_of(result.events)[0]  # no step is made twice
    assert_same_result(style_of(server.base, "cancelled"), unbroken)


def test_a_finished_fine_tune_trains_nothing_again(server: ComfyServer, unbroken: Path) -> None:
    graph = graph_of("unbroken")
    graph[TUNE]["inputs"]["save_every"] = 2  # else ComfyUI would not even ask the node
    result = server.client.run(graph, timeout=120)
    assert lines_of(result) == [f"resumed at iteration {ITERATIONS} of {ITERATIONS}"]
    assert SAVE in result.outputs


@pytest.fixture(scope="module")
def killed(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base folder of a server that was killed in the second iteration."""
    base = tmp_path_factory.mktemp("killed")
    with ComfyServer(host, base=base) as doomed:
        write_inputs(base, doomed.client)
        with pytest.raises(RunError, match="closed the connection"):
            doomed.client.run(graph_of("killed"), at_step(STEPS + 1, doomed.kill), timeout=300)
    return base


@pytest.fixture(scope="module")
def restarted(host: Host, killed: Path) -> Iterator[ComfyServer]:
    with ComfyServer(host, base=killed) as again:
        yield again


def test_a_killed_server_leaves_a_whole_snapshot_and_its_lock_alone(killed: Path) -> None:
    snapshot = snapshot_of(killed, "killed")
    assert 1 <= saved_step(snapshot) < ITERATIONS
    assert set(snapshot.parent.iterdir()) == {snapshot, lock_of(snapshot)}
    assert not style_of(killed, "killed").exists()


def test_after_a_kill_the_same_graph_goes_on_to_the_same_style(restarted: ComfyServer, unbroken: Path) -> None:
    saved = saved_step(snapshot_of(restarted.base, "killed"))
    result = restarted.client.run(graph_of("killed"), timeout=300)
    assert lines_of(result)[0] == f"resumed at iteration {saved} of {ITERATIONS}"
    assert steps_of(result.events)[0] == saved * STEPS + 1 and steps_of(result.events)[-1] == ITERATIONS * STEPS
    assert_same_result(style_of(restarted.base, "killed"), unbroken)
    assert not lock_of(snapshot_of(restarted.base, "killed")).exists()
