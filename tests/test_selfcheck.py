"""`atelier selfcheck`: a short sample has no faults, hostile content is what it says, and planted faults are found."""
from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from oneshot_atelier.cli import main
from oneshot_atelier.cli.selfcheck import attempts, command, graphs, hostile_pickles, rights
from oneshot_atelier.cli.selfcheck import files as file_part
from oneshot_atelier.cli.selfcheck import trainings as training_part
from oneshot_atelier.cli.selfcheck.attempts import FAULT, LOADED, LOST, NOT_TRIED, REFUSED, Outcome
from oneshot_atelier.cli.stopping import Stopped
from oneshot_atelier.models.checkpoints import CheckpointError

ROOT = Path(__file__).resolve().parents[1]
CHILD = f"""
import importlib, os, runpy, sys, time
from pathlib import Path
runpy.run_path({str(ROOT / "cli" / "__main__.py")!r})["load_checkout"](Path({str(ROOT)!r}))
from oneshot_atelier.cli.selfcheck import attempts, settings as part
part.prepare = lambda folder: None
def hang(*_): time.sleep(60)
def die(*_): os._exit(3)
def memory(*_): return attempts.outcome("planted", lambda: bytearray(1 << 34), ValueError)
part.attempt = lambda prepared, seed, index: [hang, die, memory][index](index)
attempts.serve(part, 0, Path({{folder!r}}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return file_part.prepare(tmp_path_factory.mktemp("files"))


def index_of(part, row, what=None, seed=0):
    """An attempt of a row."""
    name = part.__name__.rpartition(".")[2]
    return next(k for k in range(part.CASES) for found in [attempts.chosen(part.CASE_LIST, seed, name, k)]
                if found[0] == row and what in (None, found[1]))


# --- a sample --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("part", ["pictures", "settings"])
def test_a_sample_has_no_faults(part):
    result = command.check(1, 0.0, [part], least=60)
    assert not result.faults and result.covered[part][0] == 60
    assert {row.part for row in result.rows.values()} == {part}


@pytest.mark.parametrize("row", ["whole", "cut off", "bad numbers", "another kind", "no checkpoint"])
def test_files_of_a_row_have_no_faults(files, row):
    found = file_part.attempt(files, 0, index_of(file_part, row))
    assert found.kind == (LOADED if row == "whole" else REFUSED), found.text


def test_every_kind_of_training_is_interrupted_refused_and_cut_off(tmp_path):
    prepared, kinds = training_part.prepare(tmp_path), set()
    for row, case in (*(("interrupted", k) for k in "012"), ("fewer iterations", "1"), ("no folder", "1"),
                      ("two of one name", "2"), ("cut off snapshot", "1")):
        found = training_part.attempt(prepared, 0, index_of(training_part, row, case))
        assert found.kind in (LOADED, REFUSED), found.text
        kinds.add(found.text.partition(",")[0])
    assert kinds == {"OSASIS", "MMFS", "StyleGAN2"}


def test_a_result_that_differs_and_a_file_that_is_left_are_faults(tmp_path):
    prepared = training_part.prepare(tmp_path)
    whole = prepared.of("MMFS", 1)
    training_part.trained(whole.training, tmp_path)
    (tmp_path / "left.tmp").touch()
    with pytest.raises(training_part.Wrong, match="temporary files were left: .*left.tmp"):
        training_part.check_folder(whole, tmp_path)
    changed = {name: value + 1 for name, value in whole.weights.items()}
    prepared.made["MMFS", 1] = prepared.made["MMFS", 2] = replace(whole, weights=changed)
    found = training_part.attempt(prepared, 0, index_of(training_part, "interrupted", "1"))
    assert found.kind == LOST and "tensors of the result differ" in found.text


def test_a_folder_that_forbids_writing_is_tried_by_root_too(tmp_path):
    found = training_part.attempt(training_part.prepare(tmp_path), 0, index_of(training_part, "unwritable folder"))
    assert found.kind == REFUSED and "written" in found.text, found
    with rights.as_a_plain_user():
        assert not rights.writes_everywhere()


def test_a_program_is_started_without_the_right_to_write_everywhere(tmp_path):
    if os.name != "posix":
        return
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    code = "import os, sys; print(os.environ['HOME']); open(sys.argv[1], 'w')"
    done = subprocess.run([sys.executable, rights.__file__, str(tmp_path), sys.executable, "-c", code,
                           str(closed / "file")], capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "home") and "PermissionError" in done.stderr


@pytest.mark.parametrize("what", graphs.BAD)
def test_a_bad_graph_differs_from_a_good_one(what):
    rolls = attempts.dice(0, "graphs", 0)
    for number in range(20):
        seed = copy.copy(rolls).randrange(1000)  # the first that is rolled for a bad graph
        assert graphs.bad(what, rolls, number) != graphs.stylized(graphs.PHOTOS[0], seed, number)


def test_an_attempt_is_the_same_again(files):
    index = index_of(file_part, "changed bytes")
    made = [file_part.MAKERS["changed bytes"](files, "diffae.safetensors", attempts.dice(3, "files", index))[0]
            .read_bytes() for _ in range(2)]
    assert made[0] == made[1] != files.wholes["diffae.safetensors"].path.read_bytes()


@pytest.mark.parametrize("name", sorted(hostile_pickles.CODE))
def test_the_code_is_code(tmp_path, name):
    """It runs under a plain pickle.load; otherwise the check would prove nothing."""
    canary = tmp_path / "canary"
    try:
        pickle.loads(hostile_pickles.plain(hostile_pickles.CODE[name](canary)))
    except Exception as error:  # noqa: BLE001 - what the code returns may be unfit for the rest of the pickle
        assert canary.exists(), error
    assert canary.exists()


# --- planted faults --------------------------------------------------------------------------------------------------
def runs_it(path):
    try:
        pickle.loads(path.read_bytes())
    except Exception as error:
        raise CheckpointError("it is hostile; do not use it") from error


def raises_key_error(path):
    raise KeyError("unet.weight")


def says_nothing(path):
    raise CheckpointError("bad file")


def shows_the_inside(path):
    raise CheckpointError("write it again: OpaqueObject(origin=None)")


def ends_it(path):
    raise SystemExit(1)


def says_too_much(path):
    raise CheckpointError("write it again " * 100)


@pytest.mark.parametrize(("loader", "words"), [
    (runs_it, "code in the file was run"), (raises_key_error, "KeyError"), (says_nothing, "what to do"),
    (shows_the_inside, "inside of the program"), (says_too_much, "1500 characters"), (ends_it, "SystemExit")])
def test_a_loader_with_a_fault_is_found_out(files, monkeypatch, loader, words):
    monkeypatch.setattr(file_part, "LOADERS", dict.fromkeys(file_part.LOADERS, loader))
    found = file_part.attempt(files, 0, index_of(file_part, "code", "exec by REDUCE/plain"))
    assert found.kind == FAULT and words in found.text


def test_a_hanging_a_dying_and_a_greedy_attempt_are_faults_and_the_next_is_made(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(folder=str(tmp_path)))
    with attempts.children([sys.executable, str(script)], tmp_path / "place") as ask:
        started = time.monotonic()
        assert ask(0, 1.0).kind == FAULT and time.monotonic() - started < 40
        died = ask(1, 30.0)
        assert died.kind == FAULT and "status 3" in died.text
        if os.path.exists("/proc/self/statm"):
            assert "MemoryError" in ask(2, 30.0).text


def test_an_attempt_that_waits_for_a_busy_machine_is_no_fault(tmp_path, monkeypatch):
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(folder=str(tmp_path)).replace("time.sleep(60)", "time.sleep(2.5); return "
                      "attempts.Outcome('slow', 'loaded')").replace("def die(*_): os._exit(3)", "def die(*_):\n"
                      "    while time.process_time() < 60: pass"))
    with attempts.children([sys.executable, str(script)], tmp_path / "place") as ask:
        if attempts.cpu_seconds(os.getpid()) is not None:
            assert ask(0, 1.0).row == "slow"
        before = time.monotonic()
        computing = ask(1, 1.0)
        assert computing.kind == FAULT and "no answer" in computing.text and time.monotonic() - before < 30
    monkeypatch.setattr(attempts, "cpu_seconds", lambda pid: None)
    with attempts.children([sys.executable, str(script)], tmp_path / "place") as ask:
        assert "no answer within 1 s" in ask(0, 1.0).text


def test_faults_are_listed_with_a_way_to_repeat_them_and_give_status_1(tmp_path, monkeypatch, caplog):
    result = command.Result(7)
    result.add("files", 12, [Outcome("cut off", FAULT, "KeyError: 'x'")], 0.5)
    result.add("files", 13, [Outcome("cut off", REFUSED)], 0.5)
    result.add("trainings", 0, [Outcome("disk full", NOT_TRIED, "no limits here")], 0.0)
    result.add("host", 3, [Outcome("killed", LOST, "half written")], 2.0)
    result.covered["files"] = (14, 300)
    monkeypatch.setattr(command, "check", lambda *_, **__: result)
    page = tmp_path / "reliability.md"
    assert main.main(["selfcheck", "--seed", "7", "--report", str(page)]) == 1
    shown = caplog.text
    assert "atelier selfcheck --seed 7 --repeat files:12" in shown and "KeyError" in shown
    text = page.read_text()
    assert "| files: cut off | 2 | 1 | 0 | 1 | 0 | 1.0 |" in text and "not tried (no limits here)" in text
    assert "files, cut off: a file that ends early" in text and "files 14 of 300" in text
    assert "| host: killed | 1 | 0 | 0 | 0 | 1 | 2.0 |" in text and "host, killed: ComfyUI is killed" in text
    assert "In all: 3 tried, 1 faults, 1 lost" in text


def test_a_comfyui_is_attacked_beside_the_other_parts(monkeypatch):
    both = threading.Barrier(2, timeout=30)
    monkeypatch.setattr(command, "LANES", 1)

    @contextmanager
    def asking(part, *_):
        yield lambda index: (both.wait(), [Outcome("killed" if part == "host" else "sampling", LOADED)] * 2)[1]
    monkeypatch.setattr(command, "asking", asking)
    result = command.check(0, 0.0, ["host", "settings"])
    assert [cells[:2] for cells in result.table()] == [["settings: sampling", "2"], ["host: killed", "2"]]


def test_a_check_that_is_stopped_reports_what_it_has_found(monkeypatch):
    counted = iter(range(3))

    def stop():
        if next(counted, None) is None:
            raise Stopped(signal.SIGINT)
    result = command.check(0, 0.0, ["settings"], stop, least=60)
    assert result.stopped and sum(row.tried for row in result.rows.values()) == 3
    assert "In all: 3 tried, 0 faults, 0 lost (stopped early)" in command.report(result, 1.0)


def test_a_comfyui_is_attacked_if_one_is_named(monkeypatch, tmp_path, caplog):
    asked = []
    monkeypatch.setattr(command, "check", lambda seed, minutes, parts, *_, comfyui=None: (
        asked.append((parts, comfyui)), command.Result(seed))[1])
    assert main.main(["selfcheck"]) == main.main(["selfcheck", "--comfyui", str(tmp_path)]) == 0
    assert asked == [(["files", "pictures", "settings", "trainings"], None), (list(command.PARTS), tmp_path)]
    monkeypatch.undo()
    assert main.main(["selfcheck", "--only", "host", "--comfyui", str(tmp_path)]) == 1
    assert "holds no main.py" in caplog.text


@pytest.mark.parametrize("arguments", [["--only", "weather"], ["--repeat", "files"], ["--repeat", "weather:1"]])
def test_wrong_options_are_named(arguments, caplog):
    assert main.main(["selfcheck", *arguments]) == 1
    assert "atelier selfcheck: " in caplog.text
