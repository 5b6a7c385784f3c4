"""The `atelier` command itself: how it is started, stopped and seen."""
from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys

import pytest
from PIL import Image

from oneshot_atelier.cli import main, terminal
from oneshot_atelier.cli.stopping import Stopped, StopSignals
from oneshot_atelier.models.checkpoints import store
from oneshot_atelier.tests import tiny
from oneshot_atelier.train import loop
from oneshot_atelier.train.data import to_bytes
from oneshot_atelier.train.loop import Progress
from oneshot_atelier.train.recipes import diffusion

can_signal = pytest.mark.skipif(sys.platform == "win32", reason="Windows ends the process at once")


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """`atelier train ddpm` of eight steps on four pictures of 64 px; its network is tiny."""
    monkeypatch.setattr(diffusion, "small_ddpm", lambda px: tiny.DDPM)
    (tmp_path / "photos").mkdir()
    for i, x in enumerate(tiny.pictures(4)):
        Image.fromarray(to_bytes(x).permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{i}.png")
    return lambda out, *more: ["train", "ddpm", f"--photos={tmp_path / 'photos'}", f"--out={tmp_path / out}",
                               "--size=64", "--batch=1", "--device=cpu", "--precision=float32", "--log-every=1",
                               "--holdout=0", "--steps=8", *more]


class Sender(logging.Handler):
    """Sends this process a signal when a line with `text` is logged."""

    def __init__(self, number: int, text: str):
        super().__init__()
        self.number, self.text = number, text

    def emit(self, record):
        if self.text in record.getMessage():
            os.kill(os.getpid(), self.number)


# --- stopping --------------------------------------------------------------------------------------------------------
@can_signal
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_resumes_to_the_same_file(arguments, tmp_path, monkeypatch, caplog, number,
                                                                      status):
    caplog.set_level("INFO")
    before = signal.getsignal(number)
    sender = Sender(number, "step 3 of 8")
    loop.progress_log.addHandler(sender)
    try:
        assert main.main(arguments("a.safetensors")) == status
    finally:
        loop.progress_log.removeHandler(sender)
    snapshot = tmp_path / "a.snapshot"
    assert store.peek(snapshot).meta["step"] == 3 and not (tmp_path / "a.safetensors").exists()
    assert f"atelier train: stopped. Step 3 is saved in {snapshot}; run the same command again" in caplog.text
    assert signal.getsignal(number) is before
    assert main.main(arguments("a.safetensors")) == 0 and "resumes at step 3" in caplog.text
    assert store.peek(snapshot).meta["step"] == 8 and (tmp_path / "a.safetensors").exists()


@can_signal
def test_a_stopped_training_of_fewer_steps_names_the_earlier_snapshot_that_it_saved(arguments, tmp_path, caplog):
    caplog.set_level("INFO")
    assert main.main(arguments("a.safetensors", "--save-every=2", "--keep=2")) == 0
    sender = Sender(signal.SIGTERM, "step 5 of 7")
    loop.progress_log.addHandler(sender)
    try:
        assert main.main(arguments("a.safetensors", "--steps=7", "--keep=2")) == 143
    finally:
        loop.progress_log.removeHandler(sender)
    assert f"Step 5 is saved in {tmp_path / 'a@00000005.snapshot'}; run the same command again" in caplog.text


@can_signal
def test_a_signal_before_the_first_step_saves_nothing(arguments, tmp_path, caplog):
    caplog.set_level("INFO")
    sender, reading = Sender(signal.SIGTERM, "4 pictures of 64 px"), logging.getLogger("oneshot_atelier.train.data")
    reading.addHandler(sender)
    try:
        assert main.main(arguments("a.safetensors")) == 143
    finally:
        reading.removeHandler(sender)
    assert "stopped. Nothing was saved" in caplog.text and not list(tmp_path.glob("a.*"))


@can_signal
def test_a_second_signal_stops_at_once():
    with StopSignals() as signals:
        signals.check()
        os.kill(os.getpid(), signal.SIGINT)  # waits for the next check
        with pytest.raises(Stopped) as at_once:
            os.kill(os.getpid(), signal.SIGTERM)
        assert at_once.value.status == 143
        with pytest.raises(Stopped) as checked:
            signals.check()
        assert checked.value.status == 130


# --- starting --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", [(), ("train",), ("evaluate",)])
def test_a_plain_checkout_is_a_command(root, tmp_path, command):
    """From any folder; the modules of cli/ do not pass for top-level ones."""
    done = subprocess.run([sys.executable, str(root / "cli"), *command, "--help"], cwd=tmp_path, text=True,
                          capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: atelier") and not done.stderr


def test_bad_input_is_status_1_and_one_line(root, tmp_path):
    done = subprocess.run([sys.executable, "cli", "convert", str(tmp_path / "no.ckpt")], cwd=root, text=True,
                          capture_output=True)
    assert done.returncode == 1 and not done.stdout
    assert re.fullmatch(r"atelier convert: no\.ckpt: no such file.*\n", done.stderr)


@pytest.mark.parametrize(("error", "words"), [
    (ImportError("timm could not be imported. Run: pip install timm"), "pip install timm"),
    (MemoryError(), "too little free memory")])
def test_a_missing_package_and_too_little_memory_are_status_1_and_one_line(monkeypatch, caplog, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("oneshot_atelier.cli.convert.convert", fail)
    assert main.main(["convert", "a.pth"]) == 1
    assert words in caplog.text and "Traceback" not in caplog.text


def test_every_command_has_its_module_and_its_help():
    text = main.parser().format_help()
    for name, what in main.COMMANDS.items():
        assert name in text and what.split()[0] in text


# --- progress --------------------------------------------------------------------------------------------------------
def test_bars_are_for_terminals_and_log_lines_for_the_rest(monkeypatch, capsys):
    with terminal.ProgressBar() as bar:
        bar(Progress(1, 2, {"loss": 1.0}))
    assert capsys.readouterr().err == "" and loop.progress_log.level == logging.NOTSET
    monkeypatch.setattr(terminal.sys.stderr, "isatty", lambda: True)
    with terminal.ProgressBar() as bar:
        for step in (3, 4, 3, 4):  # one training after the other
            bar(Progress(step, 4, {"loss": step / 8}))
        assert not loop.progress_log.isEnabledFor(logging.INFO)
    shown = capsys.readouterr().err
    assert shown.count("4/4") >= 2 and "loss=0.500" in shown and bar.bar is None
    assert loop.progress_log.level == logging.NOTSET
    monkeypatch.setenv("RANK", "1")
    assert not terminal.shows_progress()
