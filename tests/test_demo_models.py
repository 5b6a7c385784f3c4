"""`make demo-models`: the order of its trainings, their commands, stopping in the middle and going on."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from oneshot_atelier.cli.main import parser
from oneshot_atelier.models.checkpoints import store
from oneshot_atelier.tests import tiny
from oneshot_atelier.tools import demo_models
from oneshot_atelier.tools import jobs as scheduler
from oneshot_atelier.tools.demo_models import JOBS, chosen
from oneshot_atelier.tools.jobs import Job, planned, ready
from oneshot_atelier.train.data import to_bytes


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "da ta"
    for name in ("faces/t2i_mit", "art/npr_oil"):
        (folder / name).mkdir(parents=True)
        for i, x in enumerate(tiny.pictures(3)):
            Image.fromarray(to_bytes(x).movedim(0, -1).numpy()).save(folder / name / f"{i}.png")
    return folder


def test_nothing_begins_before_what_it_reads_and_the_longest_chain_begins_first():
    order = [job.name for job in planned(JOBS)]
    assert len(order) == len(JOBS) == len(set(order))
    for job in JOBS:
        assert all(order.index(name) < order.index(job.name) for name in job.after), job.name
    trainings = [job.name for job in ready(JOBS, set(demo_models.ART), set())]
    assert trainings == ["diffae", "stylegan2", "clip", "ddpm"]  # 1.43, 1.16, 0.73 and 0.4 h with those that wait
    assert [job.name for job in ready(JOBS, {*demo_models.ART, "clip"}, {"diffae", "ddpm"})] == ["stylegan2"]
    assert [job.name for job in planned(chosen("mapping,stage2"))] == ["stage2", "mapping"]
    assert len(chosen("draw")) == len(demo_models.ART) and chosen("") == list(JOBS)
    with pytest.raises(ValueError, match="no training 'x'; there are draw, diffae, latent"):
        chosen("clip,x")


def test_every_command_is_one_that_atelier_takes(data, tmp_path, capsys):
    assert demo_models.main([f"--data={data}", f"--out={tmp_path / 'out'}", "--list", "--scale=0.001",
                             "--more=--device cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("atelier ")]
    assert len(commands) == len(JOBS) and not (tmp_path / "out").exists()
    options = {words[1] if words[0] == "train" else words[-1]: parser(words[0]).parse_args(words) for words in commands}
    assert options["diffae"].steps == 36 and options["diffae"].photos == data / "faces"
    assert options["attributes"].source == options["diffae"].out and options["attributes"].steps is None
    assert options["ddpm"].device == "cpu" and "augment=colour,translation,cutout" in options["mmfs-stage2"].set
    unseen = options["diffae"].exclude.split(",")
    assert unseen == options["mmfs-stage2"].exclude.split(",") and options["clip"].exclude == ""
    assert {"npr_popart", "vector_micah"} < set(unseen) and len(unseen) == 4
    assert "# latent: 0.00 h, after diffae" in lines


def test_data_without_pictures_is_refused(tmp_path, caplog):
    assert demo_models.main([f"--data={tmp_path}", "--list"]) == 1 and "there is no folder" in caplog.text


class Pretended:
    """A process that ends when it is asked the second time."""
    started: list[tuple[str, str]] = []

    def __init__(self, words, stdout, stderr, env):
        self.polls, self.returncode = 0, int("bad" in words)
        self.started.append((words[-1], env.get("CUDA_VISIBLE_DEVICES", "")))

    def poll(self):
        self.polls += 1
        return self.returncode if self.polls > 1 else None


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler.subprocess, "Popen", Pretended)
    monkeypatch.setattr(scheduler.time, "sleep", lambda seconds: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def run(jobs, *gpus, **commands):
        Pretended.started = []
        words = {job.name: ["train", commands.get(job.name, ""), job.name] for job in jobs}
        return scheduler.Jobs(jobs, words, tmp_path, gpus).run(), Pretended.started
    return run


FOUR = (Job("short", "", 1), Job("long", "", 3), Job("first", "", 2), Job("second", "", 2, after=("first",)))


def test_what_is_independent_runs_at_once_each_on_its_gpu(run):
    failed, started = run(FOUR, "4", "6")
    assert not failed and started[:2] == [("first", "4"), ("long", "6")]
    assert {name for name, _ in started[2:]} == {"second", "short"} and {gpu for _, gpu in started[2:]} == {"4", "6"}
    assert run(FOUR, "4", "6")[1] == []  # all is finished
    assert run(FOUR, "0", long="--other")[1] == [("long", "0")]  # but for what has other options now


def test_a_job_whose_input_changed_and_those_after_it_run_again(run, tmp_path):
    read, unnamed, written = (tmp_path / name for name in ("read", "unnamed", "written"))
    read.mkdir()
    for path in (read / "a.png", unnamed, written):
        path.write_bytes(b"old")
    jobs = (Job("first", "", 1), Job("other", "", 1, reads=(unnamed,)), Job("last", "", 1, after=("first",)))
    run(jobs, "0", first=str(read))
    assert run(jobs, "0", first=str(read))[1] == []
    (read / "a.png").write_bytes(b"new")
    assert [name for name, _ in run(jobs, "0", first=str(read))[1]] == ["first", "last"]
    unnamed.write_bytes(b"new")
    assert [name for name, _ in run(jobs, "0", first=str(read))[1]] == ["other"]
    run(jobs[:1], "0", first="")  # alone, by another command
    assert [name for name, _ in run(jobs, "0", first="")[1]] == ["last"]
    assert set(scheduler.inputs_of(jobs[1], ["train", str(read), "--out", str(written)])) == {str(read), str(unnamed)}


def test_what_was_made_of_other_files_is_not_gone_on_with(run, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "new.safetensors"
    photos.mkdir()
    snapshots = [tmp_path / name for name in ("new.snapshot", "new_latent.snapshot")]
    drawings = [tmp_path / "art" / f"npr_{style}" for style in ("oil", "ink", "pencil")]
    commands = {"ddpm": f"train ddpm --photos {photos} --out {out}", "latent": f"train latent --out {out}",
                "draw": f"render-art --photos {photos} --styles oil,ink --out {tmp_path / 'art'}"}
    jobs = (Job("ddpm", "", 1), Job("latent", "", 1, after=("ddpm",)), Job("draw", "", 1, gpus=0))

    def left(further=""):
        for path in snapshots:
            path.touch()
        for folder in drawings:
            folder.mkdir(parents=True, exist_ok=True)
        words = {name: f"{command} {further}".split() for name, command in commands.items()}
        assert not scheduler.Jobs(jobs, words, tmp_path, ["0"]).run()
        return [path.exists() for path in (*snapshots, *drawings)]
    assert all(left())
    assert left("--steps 9") == [True, False, True, True, True]  # of the same files, but for what ddpm made
    (photos / "a.png").touch()
    assert left("--steps 9") == [False, False, False, False, True]


def test_a_mark_of_an_earlier_version_says_nothing(run, tmp_path):
    (tmp_path / "first.done").write_text("train '' first", encoding="utf-8")
    assert [name for name, _ in run(FOUR[2:3], "0")[1]] == ["first"]


def test_a_training_may_take_several_gpus_and_a_failure_ends_it_after_what_runs(run, caplog):
    failed, started = run((Job("wide", "", 9, gpus=4), *FOUR), "0", "1", "2")
    assert started[0] == ("--accelerate", "0,1,2") and not failed
    failed, started = run([Job(f"{job.name}!", "", job.hours) for job in FOUR], "0", "1", **{"first!": "bad"})
    assert failed == ["first!"] and len(started) == 2 and "first! failed (status 1): see" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends the process at once")
def test_stopped_in_the_middle_it_goes_on_where_it_was(data, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, str(demo_models.ROOT / "tools" / "launch.py"), "tools.demo_models", f"--data={data}",
               f"--out={out}", "--only=stylegan2,draw-ink", "--scale=0.0005", "--more=--device cpu --precision float32 "
               "--size 64 --batch 4 --preview-every 0 --save-every 1 --log-every 1 --holdout 0"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not (out / "stylegan2.snapshot").exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    told = first.communicate(timeout=100)[1]
    log = (out / "stylegan2.log").read_text()
    assert first.returncode == 130 and "the same command goes on" in told, told + log
    step = store.peek(out / "stylegan2.snapshot").meta["step"]
    assert not (out / "stylegan2.done").exists() and 1 <= step < 8
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0 and (out / "stylegan2.done").exists(), again.stderr
    log = (out / "stylegan2.log").read_text()
    assert [log.count(f"step {i} of 8:") for i in range(1, 9)] == [1] * 8  # no step was made twice
    assert store.peek(out / "stylegan2.snapshot").meta["step"] == 8 and (out / "stylegan2.safetensors").exists()
    assert len(list((out / "art" / "t2i_mit" / "npr_ink").glob("*.jpg"))) == 3
    assert len(list((out / "art" / "shared" / "npr_oil").iterdir())) == 3

