"""`atelier stylize`: both methods over a folder, resumed, in parts, with faces, with damaged pictures."""
from __future__ import annotations

import contextlib
import io
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from oneshot_atelier.cli import stylize
from oneshot_atelier.cli.main import main, parser
from oneshot_atelier.cli.stopping import Stopped, StopSignals, stopped_with
from oneshot_atelier.models import loading
from oneshot_atelier.models.style import MMFSStyle, OSASISStyle, fingerprint
from oneshot_atelier.tests import tiny_mmfs, tiny_models
from oneshot_atelier.train import stylized_folders
from oneshot_atelier.train.stylists import StylistConfig, stylist

CPU = torch.device("cpu")
STEPS = ("--encode-steps", "4", "--decode-steps", "4", "--device", "cpu")
ROOT = Path(__file__).resolve().parents[1]
INPUTS = ROOT / "workflows" / "inputs"
COUNT = 5


@pytest.fixture(scope="module")
def nets(tmp_path_factory) -> Path:
    """Tiny models, and a style of each method: osasis.safetensors, mmfs_style.safetensors, style.png."""
    folder = tmp_path_factory.mktemp("nets")
    tiny_mmfs.write(tiny_models.write(folder))
    diffae = loading.load_diffae(folder / "diffae.safetensors")
    loading.save_style(folder / "osasis.safetensors", OSASISStyle(
        diffae.config.unet, diffae.unet.state_dict(), None, torch.full((1, diffae.config.unet.cond), 0.5),
        None, fingerprint(diffae), {"t0": 0.5}))
    net = loading.load_mmfs(folder / "mmfs.safetensors")[0]
    loading.save_mmfs_style(folder / "mmfs_style.safetensors", MMFSStyle(
        net.config, net.decoder.state_dict(), torch.ones(1, net.config.n_styles, net.config.w_dim), None, "",
        fingerprint(net)))
    picture(folder / "style.png", 99)
    return folder


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((70, 64), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for k in range(COUNT):
        picture(tmp_path / "photos" / f"{k}.png", k)
    return tmp_path / "photos"


def arguments(nets: Path, style: str, photos: Path, out: Path, *more: str) -> list[str]:
    model = nets / ("diffae.safetensors" if style == "osasis.safetensors" else "mmfs.safetensors")
    clip = ("--clip", str(nets / "clip.safetensors")) if style == "style.png" else ()
    return ["stylize", str(photos), "--style", str(nets / style), "--model", str(model), "--out", str(out), *clip,
            *STEPS, *more]


def results(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


STYLES = ("osasis.safetensors", "mmfs_style.safetensors", "style.png")


@pytest.mark.parametrize("style", STYLES)
def test_results_depend_on_no_batch_no_part_and_no_interruption(nets, photos, tmp_path, capsys, style):
    assert main(arguments(nets, style, photos, tmp_path / "whole")) == 0
    whole = results(tmp_path / "whole")
    assert len(set(whole.values())) == COUNT and sorted(whole) == [f"{k}.png" for k in range(COUNT)]
    for k in (2, 1):
        assert main(arguments(nets, style, photos, tmp_path / "parts", "--part", f"{k}/2")) == 0
    assert results(tmp_path / "parts") == whole
    (tmp_path / "whole" / "3.png").unlink()
    assert main(arguments(nets, style, photos, tmp_path / "whole")) == 0
    assert results(tmp_path / "whole") == whole
    assert "1 stylized, 4 were there, 0 left out" in capsys.readouterr().out
    assert main(arguments(nets, style, photos, tmp_path / "batch", "--batch", "3")) == 0
    for name in whole:  # another batch may round otherwise, by one step of 255
        a, b = (np.asarray(Image.open(tmp_path / out / name)).astype(int) for out in ("whole", "batch"))
        assert abs(a - b).max() <= 1


def test_two_workers_make_what_one_does(nets, photos, tmp_path, capsys):
    style = "mmfs_style.safetensors"
    assert main(arguments(nets, style, photos, tmp_path / "one")) == 0
    assert main(arguments(nets, style, photos, tmp_path / "two", "--workers", "2")) == 0
    assert results(tmp_path / "one") == results(tmp_path / "two")
    assert "two: 5 stylized, 0 were there, 0 left out" in capsys.readouterr().out


def test_a_worker_that_fails_is_reported(nets, photos, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stylize, "worker_command", lambda options, k, n, device: [
        sys.executable, "-c", f"raise SystemExit({k})"])
    assert main(arguments(nets, STYLES[1], photos, tmp_path / "out", "--workers", "2")) == 1
    assert "part 2 of 2 failed (0 stylized, 0 were there, 5 left out)" in caplog.text


def test_ctrl_c_ends_the_workers_and_a_later_run_goes_on(nets, photos, tmp_path):
    for k in range(COUNT, 24):
        picture(photos / f"{k}.png", k)
    slow = ("--encode-steps", "100", "--decode-steps", "100")
    command = arguments(nets, STYLES[0], photos, tmp_path / "out", *slow, "--workers", "2")
    process = subprocess.Popen([sys.executable, str(ROOT / "cli"), *command], stderr=subprocess.PIPE, text=True)
    while not (first := results(tmp_path / "out")) and process.poll() is None:
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "the same command goes on with it" in errors
    assert len(workers) == 2 and not any(worker.is_running() for worker in workers)
    assert 0 < len(first) < 24
    assert main(command) == 0
    found = results(tmp_path / "out")
    assert len(found) == 24 and first.items() <= found.items() and not list((tmp_path / "out").glob("*.part"))


def test_a_damaged_picture_is_reported_and_the_others_are_made(nets, photos, tmp_path, caplog, capsys):
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:200])
    (photos / "3.png").write_bytes(b"none")
    assert main(arguments(nets, STYLES[1], photos, tmp_path / "out")) == 0
    assert sorted(results(tmp_path / "out")) == ["0.png", "1.png", "4.png"]
    assert "3 stylized, 0 were there, 2 left out" in capsys.readouterr().out
    assert all(f"{k}.png cannot be read" in caplog.text for k in (2, 3))


def test_only_a_few_pictures_are_in_memory(nets, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(stylized_folders, "BLOCK", 2)
    seen: list[int] = []
    stylized = stylized_folders.stylized
    monkeypatch.setattr(stylized_folders, "stylized", lambda work, found: seen.append(len(found)) or stylized(
        work, found))
    assert main(arguments(nets, STYLES[1], photos, tmp_path / "out")) == 0
    assert seen == [2, 2, 1]


def test_a_folder_of_another_style_is_refused(nets, photos, tmp_path, caplog):
    assert main(arguments(nets, STYLES[1], photos, tmp_path / "out")) == 0
    before = results(tmp_path / "out")
    assert main(arguments(nets, STYLES[1], photos, tmp_path / "out", "--seed", "5")) == 1
    assert "another style or other settings" in caplog.text and results(tmp_path / "out") == before


@pytest.mark.parametrize(("more", "message"), [
    (("--part", "3/2"), "write K/N"), (("--film", "-1"), "--film is -1"),
    (("--film", "3", "--steady", "11"), "--steady is 11"), (("--steady", "1"), "give --film, too"),
    (("--film", "3", "--steady", "1", "--ray", "local"), "leave out one of them"),
    (("--part", "1/2", "--ray", "local"), "--part is for processes that you start yourself"),
    (("--batch", "0"), "batch is 0"), (("--workers", "0"), "--workers is 0"),
    (("--style", "nowhere"), "there is no style nowhere")])
def test_wrong_options_are_refused(nets, photos, tmp_path, caplog, more, message):
    assert main(arguments(nets, STYLES[1], photos, tmp_path / "out", *more)) == 1
    assert message in caplog.text


@pytest.mark.parametrize("inside", [".", "results", "deep/results"])
def test_results_among_the_pictures_are_refused(nets, photos, caplog, inside):
    """A later run would read them."""
    before = set(photos.rglob("*"))
    for command in (arguments(nets, STYLES[1], photos, photos / inside),
                    ["rank", str(photos), f"--out={photos / inside}"],
                    ["align", str(photos), f"--out={photos / inside}"],
                    ["render-art", f"--photos={photos}", f"--out={photos / inside}"],
                    ["evaluate", f"--photos={photos}", "--styles=s", f"--pictures={photos / inside}"],
                    ["edits", f"--photos={photos}", f"--out={photos / inside}"],
                    ["report", "x", f"--photos={photos}", f"--out={photos / inside}"]):
        caplog.clear()
        assert main(command) == 1 and "Name a folder elsewhere" in caplog.text, command
    assert set(photos.rglob("*")) == before


def test_all_machines_of_a_cluster_find_the_networks(nets, monkeypatch):
    monkeypatch.chdir(nets)
    options = parser("stylize").parse_args(["stylize", "photos", "--style=osasis.safetensors", "--out=o",
                                            "--model=diffae.safetensors", "--clip=clip.safetensors"])
    config = stylize.config_of(options)
    assert (config.style, config.model, config.clip) == tuple(
        nets.resolve() / f"{name}.safetensors" for name in ("osasis", "diffae", "clip"))


def test_a_worker_is_told_all_but_what_is_its_own():
    words = ["p", "--style=s", "--out=o", "--faces", "--film=3", "--steady=2", "--model=m", "--workers=2", "--seed=7"]
    options = parser("stylize").parse_args(["stylize", *words])
    found = parser("stylize").parse_args(stylize.worker_command(options, 0, 2, "cpu")[2:])
    assert vars(found) == vars(options) | {"part": "1/2", "device": "cpu", "workers": None}
    options.faces = False
    assert "--faces" not in stylize.worker_command(options, 0, 2, "cpu")


def test_frames_follow_each_other_by_their_numbers(tmp_path):
    names = ("1", "2", "10", "b 3", "b 20")
    for name in names:
        picture(tmp_path / "film" / f"{name}.png", 0)
    assert list(stylized_folders.jobs_of(tmp_path / "film", film=True)) == list(names)
    assert list(stylized_folders.jobs_of(tmp_path / "film")) == sorted(names)
    padded = [Path(f"frame_{k:05}.png") for k in (0, 1, 9, 10, 99, 100)]
    assert sorted(padded[::-1], key=stylized_folders.frame_order) == padded


def test_a_signal_ends_the_workers_of_a_film(photos, tmp_path, monkeypatch):
    """Faces were searched before, in steps between which a signal is looked for; the workers are waited for in none."""
    signals, started = StopSignals(), []

    class Worker:
        returncode = None

        def __init__(self, command, stdout):
            started.append(self)
            self.ended = False

        def poll(self):
            return 0 if self.ended else None

        def terminate(self):
            self.ended = True

        def wait(self):
            pass

    def searched(jobs, out, device, sigma, check_interrupt, writer):
        check_interrupt()
        signals._receive(signal.SIGTERM, None)

    def slept(seconds):
        assert seconds < 1 and not signals.received
        signals._receive(signal.SIGTERM, None)
    options = parser("stylize").parse_args(["stylize", str(photos), "--style=s", f"--out={tmp_path / 'o'}", "--faces",
                                            "--film=3", "--workers=2"])
    monkeypatch.setattr(stylize, "prepare_folder", lambda *_: None)
    monkeypatch.setattr(stylize.subprocess, "Popen", Worker)
    monkeypatch.setattr(stylize.time, "sleep", slept)
    monkeypatch.setattr(stylize, "prepare_film", searched)
    with pytest.raises(Stopped):
        stylize.stylized(options, StylistConfig(Path("s")), signals)
    assert not started
    signals = StopSignals()
    monkeypatch.setattr(stylize, "prepare_film", lambda *given: given[4]())
    with pytest.raises(Stopped):
        stylize.stylized(options, StylistConfig(Path("s")), signals)
    assert len(started) == 2 and all(worker.ended for worker in started)


def test_a_signal_stops_what_is_no_training_any_more_at_once():
    signals = StopSignals()
    signals.check()
    signals._receive(signal.SIGTERM, None)
    with pytest.raises(Stopped):
        signals.at_once()
    signals = StopSignals()
    signals.check()
    signals.at_once()
    with pytest.raises(Stopped):
        signals._receive(signal.SIGTERM, None)
    with pytest.raises(Stopped) as stopped, stopped_with("All is saved"):
        raise Stopped(2)
    assert stopped.value.saved == "All is saved"


def test_steps_that_no_schedule_has_are_refused_before_anything_is_loaded():
    for name, steps in (("encode_steps", 600), ("decode_steps", 0)):
        with pytest.raises(ValueError, match=f"{name}: {steps} steps cannot be spaced evenly"):
            StylistConfig(Path("gone.safetensors"), **{name: steps})


def test_a_style_is_found_by_its_name(nets, tmp_path, monkeypatch):
    from oneshot_atelier.cli.stylize import style_file
    folder = tmp_path / "models" / "mmfs_styles"
    folder.mkdir(parents=True)
    (folder / "mine.safetensors").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert style_file("mine") == style_file("mine.safetensors") == folder / "mine.safetensors"


def test_a_style_of_another_model_is_refused(nets, tmp_path):
    loading.save_mmfs(tmp_path / "other.safetensors", tiny_mmfs.mmfs(5), None, {"phase": 3})
    with pytest.raises(ValueError, match="another MMFS"):
        stylist(StylistConfig(nets / STYLES[1], tmp_path / "other.safetensors"), CPU)


def test_strength_0_is_the_base_model_and_the_seed_is_the_noises(nets):
    config = StylistConfig(nets / STYLES[1], nets / "mmfs.safetensors")
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    first = stylist(config, CPU)(x, [1])
    assert torch.equal(first, stylist(config, CPU)(x, [1]))
    assert not torch.equal(first, stylist(replace(config, seed=1), CPU)(x, [1]))
    assert not torch.equal(first, stylist(config, CPU)(x, [2]))


def test_faces_are_stylized_in_place_and_the_rest_keeps_its_pixels(nets, tmp_path, caplog, capsys):
    photos = tmp_path / "photos"
    picture(photos / "no_face.png", 1)
    Image.open(INPUTS / "wall.png").convert("RGB").save(photos / "wall.png")
    assert main(arguments(nets, STYLES[1], photos, tmp_path / "out", "--faces")) == 0
    assert "1 stylized, 0 were there, 1 left out" in capsys.readouterr().out and "shows no face" in caplog.text
    before, after = (np.asarray(Image.open(path)) for path in (photos / "wall.png", tmp_path / "out" / "wall.png"))
    changed = (before != after).any(2)
    assert before.shape == after.shape and 0.02 < changed.mean() < 0.9 and not changed[0, 0]


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Nine frames that move over wall.png; the fifth is grey, the seventh cannot be read."""
    wall, folder = Image.open(INPUTS / "wall.png").convert("RGB").resize((320, 200)), tmp_path_factory.mktemp("film")
    for k in range(9):
        wall.crop((2 * k, 0, 290 + 2 * k, 200)).save(folder / f"{k:03}.png")
    Image.new("RGB", (290, 200), (128, 128, 128)).save(folder / "004.png")
    (folder / "006.png").write_bytes(b"torn")
    return folder


FACES_OF_A_FILM = ("--faces", "--film", "2")


@pytest.fixture(scope="module")
def stylized_film(nets, film, tmp_path_factory) -> tuple[Path, str]:
    """The folder of results of the film, stylized once, and what was said."""
    out = tmp_path_factory.mktemp("whole")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(arguments(nets, STYLES[1], film, out, *FACES_OF_A_FILM)) == 0
    return out, said.getvalue()


@pytest.fixture
def searched(stylized_film, tmp_path):
    """searched(name) -> a folder for results that holds the film's squares already: finding them takes most time."""
    def folder(name: str) -> Path:
        (tmp_path / name).mkdir()
        shutil.copy(stylized_film[0] / stylized_folders.FILM, tmp_path / name)
        return tmp_path / name
    return folder


def test_a_film_has_steady_faces_and_every_frame_that_can_be_read(stylized_film):
    out, said = stylized_film
    assert "8 stylized, 0 were there, 1 left out" in said
    squares = stylized_folders.read_film(out / stylized_folders.FILM)
    largest = [dict(squares[f"{k:03}"])[0].quad.mean(0) for k in range(9)]  # in the grey one, too
    steps = torch.stack(largest[1:]) - torch.stack(largest[:-1])
    assert torch.allclose(steps, torch.tensor([-2.0, 0.0]).expand(8, 2), atol=0.3)


def test_a_film_depends_on_no_part_and_no_interruption(nets, film, stylized_film, searched):
    wanted, parts, workers = results(stylized_film[0]), searched("parts"), searched("workers")
    for part in ("1/2", "2/2"):
        assert main(arguments(nets, STYLES[1], film, parts, *FACES_OF_A_FILM, "--part", part)) == 0
    assert results(parts) == wanted and len(wanted) == 8
    assert main(arguments(nets, STYLES[1], film, workers, *FACES_OF_A_FILM, "--workers", "2")) == 0
    assert results(workers) == wanted


@pytest.mark.parametrize("faces", [True, False])
def test_a_steadied_film_depends_on_no_part_and_no_interruption(nets, film, searched, tmp_path, faces, monkeypatch):
    """Parts follow one another; frames that are missing are made again with those around them, and only they."""
    more = ("--film", "2", "--steady", "1", *(["--faces"] if faces else []))
    for name in ("whole", "parts") if faces else ():
        searched(name)
    assert main(arguments(nets, STYLES[1], film, tmp_path / "whole", *more)) == 0
    wanted = results(tmp_path / "whole")
    for part in ("1/2", "2/2"):
        assert main(arguments(nets, STYLES[1], film, tmp_path / "parts", *more, "--part", part)) == 0
    assert results(tmp_path / "parts") == wanted and len(wanted) == 8
    for name in ("000", "008"):
        (tmp_path / "whole" / f"{name}.png").unlink()
    read, seen = stylized_folders.read, []

    def told(jobs, *rest):
        seen.extend(jobs)
        return read(jobs, *rest)
    monkeypatch.setattr(stylized_folders, "read", told)
    assert main(arguments(nets, STYLES[1], film, tmp_path / "whole", *more)) == 0
    assert results(tmp_path / "whole") == wanted and "003" not in seen and "001" in seen
    if not faces:
        assert main(arguments(nets, STYLES[1], film, tmp_path / "plain", *more[:2])) == 0
        assert results(tmp_path / "plain") != wanted
        assert main(arguments(nets, STYLES[1], film, tmp_path / "plain", *more)) == 1  # made with other settings


def test_frames_of_a_film_have_the_same_noise(nets, tmp_path):
    photos = tmp_path / "photos"
    for k in range(3):
        picture(photos / f"{k}.png", 5)
    assert main(arguments(nets, STYLES[1], photos, tmp_path / "film", "--film", "0")) == 0
    assert main(arguments(nets, STYLES[1], photos, tmp_path / "own")) == 0
    assert len(set(results(tmp_path / "film").values())) == 1 and len(set(results(tmp_path / "own").values())) == 3


def test_the_frames_of_a_film_are_searched_one_at_a_time_and_once(nets, film, tmp_path, monkeypatch):
    alive, most, read = [0], [0], stylized_folders.read_whole

    def counted(path):
        found = read(path)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        weakref.finalize(found, lambda: alive.__setitem__(0, alive[0] - 1))
        return found
    monkeypatch.setattr(stylized_folders, "read_whole", counted)
    jobs = dict(list(stylized_folders.jobs_of(film).items())[:4])
    (tmp_path / "out").mkdir()
    stylized_folders.prepare_film(jobs, tmp_path / "out", CPU, 1.0)
    assert most[0] == 1
    monkeypatch.setattr(stylized_folders, "read_whole", None)
    stylized_folders.prepare_film(jobs, tmp_path / "out", CPU, 1.0)


def test_a_search_that_was_interrupted_goes_on(nets, film, tmp_path, monkeypatch):
    jobs, out = stylized_folders.jobs_of(film), (tmp_path / "whole", tmp_path / "cut", tmp_path / "cut")
    stylized_folders.prepare_film(jobs, out[0], CPU, 1.0)
    calls, search = [], stylized_folders.search_faces

    def stop():
        if len(calls) == 4:
            raise KeyboardInterrupt
    monkeypatch.setattr(stylized_folders, "search_faces", lambda *given: calls.append(1) or search(*given))
    with pytest.raises(KeyboardInterrupt):
        stylized_folders.prepare_film(jobs, out[1], CPU, 1.0, stop)
    (file,) = out[1].iterdir()
    file.write_text(file.read_text(encoding="utf-8")[:-9], encoding="utf-8")  # its last line is torn
    stylized_folders.prepare_film(jobs, out[2], CPU, 1.0)
    assert len(calls) == 4 + 8 - 3  # of the eight frames that can be read
    assert [path.name for path in out[2].iterdir()] == ["film.json"]
    assert (out[2] / "film.json").read_bytes() == (out[0] / "film.json").read_bytes()


def test_a_film_with_cuts_has_squares_of_each_shot(nets, tmp_path):
    frames, one, other = tmp_path / "frames", Image.open(INPUTS / "face_1.png"), Image.open(INPUTS / "face_2.png")
    frames.mkdir()
    for k in range(7):
        (other if 2 <= k < 4 else one).convert("RGB").resize((128, 128)).save(frames / f"{k}.png")
    jobs = stylized_folders.jobs_of(frames)
    for sigma in (0.0, 3.0):
        stylized_folders.prepare_film(jobs, tmp_path / f"{sigma}", CPU, sigma)
    plain, smooth = (stylized_folders.read_film(tmp_path / f"{sigma}" / "film.json") for sigma in (0.0, 3.0))
    for name in jobs:
        assert torch.allclose(smooth[name][0][1].quad, plain[name][0][1].quad, atol=1e-3)
    assert not torch.allclose(plain["1"][0][1].quad, plain["2"][0][1].quad, atol=1.0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure memory")
def test_a_thousand_frames_take_no_more_memory_than_a_hundred(nets, tmp_path, monkeypatch):
    """All of a film but the search of its faces, which has a test of its own."""
    memory, save, frames = [], stylized_folders.save_picture, tmp_path / "film"
    frames.mkdir()
    for k in range(1000):
        Image.fromarray(np.full((64, 64, 3), k % 256, np.uint8)).save(frames / f"{k:04}.png")

    def saved(shown, path):
        save(shown, path)
        memory.append(psutil.Process().memory_info().rss)
    monkeypatch.setattr(stylized_folders, "save_picture", saved)
    assert main(arguments(nets, STYLES[1], frames, tmp_path / "out", "--film", "0")) == 0
    assert len(memory) == 1000 and max(memory[100:]) - memory[100] < 24 * 2 ** 20
