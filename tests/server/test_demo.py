"""`make demo` in the real server: MMFS's sheet, with reduced fine-tunes; and what it sets in the shipped workflows.
OSASIS's sheet: test_workflows.py, which runs its workflow."""
from __future__ import annotations

import signal
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneshot_atelier.tests.server import shipped
from oneshot_atelier.tools import demo, demo_mmfs
from oneshot_atelier.tools.comfy import ComfyServer
from oneshot_atelier.tools.demo_mmfs import Part
from oneshot_atelier.tools.graphs import node_of
from oneshot_atelier.train.fewshot import FewShotConfig
from oneshot_atelier.train.presets import MMFS_PRESETS

TUNES = {"mmfs_one_shot": "AtelierMMFSFineTune", "mmfs_zero_shot": "AtelierMMFSFineTuneText"}
PHOTOS, CELL, LARGE, GAP = 3, 128, 256, 8


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module")
def made(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sheet."""
    out = tmp_path_factory.mktemp("demo")
    assert demo_mmfs.mmfs_sheet(shipped.Reducing(server.url), shipped.INPUTS, out) == out / "mmfs_sheet.png"
    return out


def test_the_sheet_of_mmfs(made: Path) -> None:
    columns = 1 + len(demo_mmfs.SEEDS), 2 + len(demo_mmfs.one_shot()), 1 + 2 * len(demo_mmfs.PROMPTS)
    width = max(GAP + (size + GAP) * count for count, size in zip(columns, (CELL, LARGE, CELL), strict=True))
    with Image.open(made / "mmfs_sheet.png") as sheet:
        assert sheet.width == width and sheet.height > PHOTOS * (2 * CELL + LARGE + 3 * GAP)


def test_every_column_is_kept_as_pictures(made: Path) -> None:
    results = [path for path in made.glob("mmfs_*_0?.png")
               if "photo" not in path.name and "reference" not in path.name]
    assert len(results) == PHOTOS * (len(demo_mmfs.SEEDS) + 3 + 2 * len(demo_mmfs.PROMPTS))
    assert len({picture(path).tobytes() for path in results}) == len(results), "the same picture twice"
    assert {picture(path).shape for path in results} == {(CELL, CELL, 3)}


def test_photos_and_reference_are_those_of_the_workflow(made: Path) -> None:
    names = ["face_1.png", "face_2.png", "astronaut.png"]
    for number, name in enumerate(names, 1):
        assert (picture(made / f"mmfs_photo_{number:02d}.png") == picture(shipped.INPUTS / name)).all()
    assert (picture(made / "mmfs_reference_01.png") == picture(shipped.INPUTS / "style_poster.png")).all()


@pytest.mark.parametrize("name", TUNES)
def test_the_fine_tunes_are_set_as_the_demo_preset(name: str) -> None:
    """Also below the preset, so that the first change that a user makes there starts from it."""
    graph = shipped.shipped(name)
    tune, options = (graph[node_of(graph, kind)]["inputs"] for kind in (TUNES[name], "AtelierMMFSFineTuneOptions"))
    preset = "demo text" if TUNES[name] == "AtelierMMFSFineTuneText" else "demo"
    wanted = asdict(FewShotConfig(**MMFS_PRESETS[preset]))
    assert options["preset"] == preset
    assert {key: (tune | options)[key] for key in wanted} == wanted


def test_without_projection_is_the_only_difference() -> None:
    _, without, whole = (part.graph() for part in demo_mmfs.one_shot())
    options = node_of(whole, "AtelierMMFSFineTuneOptions")
    assert without[options]["inputs"].pop("projection_weight") == 0
    assert without[options]["inputs"].pop("preset") != "demo"
    del whole[options]["inputs"]["projection_weight"], whole[options]["inputs"]["preset"]
    for graph in (without, whole):
        del graph[node_of(graph, "AtelierMMFSFineTune")]["inputs"]["name"]
    assert without == whole


@pytest.mark.parametrize(("part", "words"), [
    (Part("mmfs_random", {"c": "seed 1"}), "does not save all of c"),
    (Part("mmfs_random", {"a": "seed 1"}, {"AtelierMMFSRandomStyle": {"sead": 1}}), "has no input of these: sead"),
    (Part("mmfs_random", {"a": "seed 1"}, {"AtelierMMFSFineTune": {"seed": 1}}), "has no AtelierMMFSFineTune")])
def test_a_part_that_the_workflow_does_not_have(part: Part, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        part.graph()


@pytest.mark.parametrize(("words", "status", "said"), [
    (["nowhere.json"], 1, "The demo failed: there is no workflow nowhere.json"),
    (["a.json", "--only", "mmfs"], 2, "--only mmfs leaves it out")])
def test_make_demo_says_what_is_wrong_before_anything_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                           capsys: pytest.CaptureFixture[str], words: list[str],
                                                           status: int, said: str) -> None:
    monkeypatch.setattr(sys, "argv", ["demo", *words, "--out", str(tmp_path / "out")])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    try:
        found = demo.main()
    except SystemExit as ended:
        found = ended.code
    assert found == status and said in capsys.readouterr().err and not list(tmp_path.iterdir())
