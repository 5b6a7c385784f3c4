"""`atelier selfcheck --comfyui`: an attempt of every row at a real ComfyUI, and what is lost or left is found."""
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneshot_atelier.cli.selfcheck import comfyui
from oneshot_atelier.cli.selfcheck import host as part
from oneshot_atelier.cli.selfcheck.attempts import LOADED, NOT_TRIED, REFUSED, Lost, Wrong, chosen
from oneshot_atelier.cli.selfcheck.comfyui import KINDS, Place
from oneshot_atelier.tests.server.sessions import lock_of, saved_step
from oneshot_atelier.tools.comfy import Host

SCALE = part.Scale(kills=1, cancels=1, others=1, clients=3, prompts=8, frames=12, part=5)
QUICK = {"MMFS": KINDS["MMFS"], "Stage I": KINDS["Stage I"]}
SEEDS = {"killed": 9}  # three quarters into Stage I


@pytest.fixture(scope="module")
def place(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMFYUI_PYTHON", host.python)
        for module in (part, comfyui):
            patch.setattr(module, "KINDS", QUICK)
        patch.setattr(part, "TRAININGS", tuple(QUICK))
        with comfyui.prepared(tmp_path_factory.mktemp("attacked"), host.comfy) as attacked:
            yield attacked


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[Path]]]:
    """What a server that is started again finds: (the iteration that was saved, or 0; all files beside it)."""
    found, restart = [], Place.restart

    def told(place: Place) -> None:
        files = [path for path in place.snapshot("any").parent.glob("*") if path.suffix != ".tmp"]
        found.append((max((saved_step(path) for path in files if path.suffix == ".snapshot"), default=0), files))
        restart(place)
    monkeypatch.setattr(Place, "restart", told)
    return found


@pytest.mark.parametrize("row", part.ROWS)
def test_an_attempt_of_a_row(place: Place, left: list[tuple[int, list[Path]]], row: str) -> None:
    seed = SEEDS.get(row, 0)
    index = next(k for k in range(len(SCALE.cases)) if chosen(SCALE.cases, seed, "host", k)[0] == row)
    outcomes = part.attempt(place, seed, index, SCALE)
    wanted = {LOADED, REFUSED, NOT_TRIED} if row == "disk full" else {LOADED, REFUSED}  # not every user may mount
    assert {found.row for found in outcomes} == {row}
    assert [found.text for found in outcomes if found.kind not in wanted] == []
    assert len(outcomes) == {"prompts of many clients": 24, "frames": 12}.get(row, 1)
    if row == "killed":
        steps = int(re.search(r"after step (\d+)", outcomes[0].text)[1])
        ((saved, files),) = left
        assert saved >= steps - 1, outcomes[0].text
        snapshot = place.snapshot(f"attempt {index}")
        assert set(files) <= {snapshot, lock_of(snapshot)}


def test_memory_that_is_not_there_is_missed(place: Place) -> None:
    """The planted exception reaches the prompt: else those attempts would prove nothing."""
    (place.base / "custom_nodes" / comfyui.MEMORY_PACK / "after.txt").write_text("3")
    assert "made by the self-check" in part.failed(place, KINDS["Stage I"].graph("planted"), part.of_memory)


def test_what_changes_outside_is_found(place: Place) -> None:
    for name in ("around/kept.txt", "home/new", "canary"):
        path = place.folder / name
        before = path.read_text() if path.exists() else None
        path.write_text("changed")
        with pytest.raises(Wrong, match="code in a file was run" if name == "canary" else f"outside .*{name}"):
            place.check()
        path.unlink() if before is None else path.write_text(before)
    place.check()


def test_half_written_and_left_files_are_found(place: Place) -> None:
    half = place.snapshot("half a snapshot")
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_bytes((place.base / "models" / "mmfs" / "tiny.safetensors").read_bytes()[:-1])
    with pytest.raises(Lost, match="is half written"):
        place.check()
    os.replace(half, half.with_name(".half.12345678.tmp"))
    with pytest.raises(Wrong, match="temporary files were left"):
        comfyui.check_tidy(place.base)
    half.with_name(".half.12345678.tmp").unlink()


def test_a_snapshot_that_is_gone_is_lost_and_so_is_another_result(place: Place) -> None:
    label, name = "Stage I", "gone"
    with pytest.raises(Lost, match="iteration 5 was reached, and the training goes on at 0"):
        part.resumed(place, label, name, steps=6)
    part.forget(place, label, name)
    place.wholes[label] = place.whole("MMFS")
    with pytest.raises(Lost, match="the result of Stage I differs"):
        part.resumed(place, label, "other")
    del place.wholes[label]
