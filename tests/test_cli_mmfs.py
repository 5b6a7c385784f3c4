"""`atelier train stylegan2 | mmfs-stage1 | mmfs-stage2 | mmfs-mapping`: files, logs, going on, and what is refused."""
import dataclasses
import functools
import logging
import shutil
import sys

import pytest
import torch
from PIL import Image

from oneshot_atelier.cli import main, processes
from oneshot_atelier.cli.options import changed
from oneshot_atelier.evaluate.metrics import frechet_distance
from oneshot_atelier.evaluate.mmfs import STAGE_STYLES, art_distance_measure, faces_distance_measure, random_w
from oneshot_atelier.models import loading, rng
from oneshot_atelier.models.checkpoints import store
from oneshot_atelier.models.loading import load_mmfs, load_stylegan2, save_mmfs, save_stylegan2
from oneshot_atelier.models.mmfs import MapperConfig, clip_fingerprint
from oneshot_atelier.models.stylegan2 import (
    Discriminator,
    StyleGAN2,
    StyleGAN2Config,
    channel_table,
    mean_w,
    random_z,
)
from oneshot_atelier.tests import tiny, tiny_mmfs
from oneshot_atelier.tests.tiny_stages import CALM, CPU, PX, STAGES, arguments, clip, make, write_inputs
from oneshot_atelier.train import gan, plots, stages
from oneshot_atelier.train.data import find_pictures, read_picture, to_unit
from oneshot_atelier.train.gan import GANConfig
from oneshot_atelier.train.loop import Progress, history_of
from oneshot_atelier.train.recipes import mmfs
from oneshot_atelier.train.recipes.config import Folders

LOAD = {"stylegan2": load_stylegan2} | dict.fromkeys(STAGES[1:], load_mmfs)
LOSSES = {"stylegan2": {"g", "d", "r1", "faces_distance"}, "mmfs-stage1": {"pixel", "feature"},
          "mmfs-stage2": {"g", "structure", "d", "r1", "art_distance"}, "mmfs-mapping": {"pixel", "feature"}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def atelier(inputs, tmp_path, caplog):
    """Runs `atelier train NAME` of two steps with more options; the file it writes, or what it complains of."""
    def run(name, *further, out=None, fails=False):
        caplog.clear()
        path = tmp_path / f"{out or name}.safetensors"
        with caplog.at_level(logging.INFO):
            status = main.main(arguments(name, inputs, path, *further))
        assert (status == 1) == fails, caplog.text
        return caplog.text if fails else path
    return run


def half(state):
    return {key: value.half() for key, value in state.items()}


def contents(path):
    return store.load(path).tensors


def under(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def left_out(args, option):
    at = args.index(option)
    return args[:at] + args[at + 2:]


# --- from pictures to a model ------------------------------------------------------------------------------------
def test_from_photos_and_drawings_to_a_model_with_mapping(atelier, inputs, tmp_path, monkeypatch):
    """Each stage from the file of the one before, the first from nothing."""
    monkeypatch.setattr(mmfs, "small_stylegan2", lambda px: StyleGAN2Config((8,) * 5, w_dim=16))
    faces_file = tmp_path / "stylegan2.safetensors"
    assert main.main(left_out(arguments("stylegan2", inputs, faces_file, "--size", "64"), "--source")) == 0
    first = atelier("mmfs-stage1", "--source", str(faces_file))
    second = atelier("mmfs-stage2", "--source", str(first), "--stylegan2", str(faces_file))
    third = atelier("mmfs-mapping", "--source", str(second))
    assert [store.peek(p).meta["phase"] for p in (first, second, third)] == [1, 2, 3]
    assert [store.peek(p).meta["steps"] for p in (faces_file, first, second, third)] == [2] * 4
    assert store.peek(third).meta["samples"] == 8
    assert [loading.mapper_clip(p) for p in (first, second)] == ["", ""]
    assert loading.mapper_clip(third) == clip_fingerprint(loading.load_clip(inputs / "clip.safetensors"))
    (g, d), (net, discriminator) = load_stylegan2(faces_file), load_mmfs(third)
    assert g.config.resolution == net.config.resolution == discriminator.config.resolution == d.config.resolution == PX
    assert net.config.mapper == mmfs.SMALL_MAPPER and load_mmfs(second)[0].mapper is None
    assert tiny.same(net.decoder.state_dict(), load_mmfs(second)[0].decoder.state_dict())
    assert tiny.same(discriminator.state_dict(), load_mmfs(second)[1].state_dict())
    with torch.no_grad():
        generated = net(torch.zeros(1, 3, PX, PX), net.styles_of(torch.ones(1, 16)))
    assert torch.isfinite(generated).all() and generated.std() > 0


def test_the_stylegan2_of_the_least_size_is_trained_as_it_is(atelier, inputs, tmp_path):
    """Nothing made small: --size 64, one step."""
    out = tmp_path / "stylegan2.safetensors"
    assert main.main(["train", "stylegan2", "--photos", str(inputs / "photos"), "--out", str(out), "--size", "64",
                     "--device", "cpu", "--precision", "float32", "--steps", "1", "--batch", "4",
                     "--preview-every", "0"]) == 0
    g, d = load_stylegan2(out)
    assert g.config == StyleGAN2Config(channel_table(64, 8192, 160), w_dim=128) and d.config == g.config
    assert mmfs.small_stylegan2().resolution == 128
    assert torch.allclose(g.w_avg, mean_w(g.mapping), atol=0.01) and g.w_avg.abs().max() > 0


@pytest.mark.parametrize("name", STAGES)
def test_what_is_stored_is_the_moving_average_and_the_discriminator_in_16_bit(atelier, name):
    out = atelier(name, "--lr", "0.01")
    net, discriminator = LOAD[name](out)
    kept = store.load(out.with_suffix(".snapshot"), "snapshot").tensors
    average, now, d = (half(under(kept, prefix)) for prefix in ("ema/g/", "net/g/", "net/d/"))
    stored = half(net.state_dict())
    for state in (average, now, stored):
        state.pop("w_avg", None)  # of the stored average
    assert tiny.same(stored, average) and not tiny.same(stored, now)
    given = half(tiny_mmfs.faces()[1].state_dict())
    assert tiny.same(half(discriminator.state_dict()), d or given) and bool(d) == (name in ("stylegan2", "mmfs-stage2"))
    assert not d or not tiny.same(d, given)
    assert {t.dtype for t in store.load(out).tensors.values()} == {torch.float16}


def test_the_seed_the_art_and_the_settings_reach_the_training(atelier):
    plain = contents(atelier("mmfs-stage2", out="plain"))
    for i, further in enumerate((["--seed", "1"], ["--exclude", "a"], ["--lr", "0.01"], ["--weights", "a*=0.01"],
                                 ["--set", "structure_weight=5,r1=1"], ["--set", "augment=colour,cutout;mixing=0"])):
        assert not tiny.same(contents(atelier("mmfs-stage2", *further, out=f"other{i}")), plain)
    assert tiny.same(contents(atelier("mmfs-stage2", "--weights", "a=1", out="again")), plain)
    config = store.peek(atelier("mmfs-stage2", "--set", "augment=colour,cutout;mixing=0", out="last")
                        .with_suffix(".snapshot")).config
    assert (config["augment"], config["mixing"], config["batch"], config["lr"]) == ("colour,cutout", 0.0, 4, 1e-3)


def test_the_mapping_can_be_stored_without_its_discriminator(atelier):
    whole, small = load_mmfs(atelier("mmfs-mapping")), load_mmfs(atelier("mmfs-mapping", "--no-discriminator", out="b"))
    assert tiny.same(whole[0].state_dict(), small[0].state_dict())
    assert whole[1] is not None and small[1] is None


def test_held_out_photos_are_not_trained_on(inputs, tmp_path, monkeypatch):
    seen, real = [], mmfs.ImageStream
    monkeypatch.setattr(mmfs, "ImageStream",
                        lambda paths, config, *a: seen.append((paths, config.weights)) or real(paths, config, *a))
    assert main.main(arguments("mmfs-stage2", inputs, tmp_path / "a.safetensors", "--exclude", "b")) == 0
    (photos, alike), (art, even) = seen
    assert [p.stem for p in photos] == [f"{i:02}" for i in range(12) if i % 4 != 3]
    assert {p.parent.name for p in art} == {"a"} and [p.stem for p in art] == ["00", "01", "02", "04", "05"]
    assert alike is None and even == (0.2,) * 5  # photos alike, folders of art evenly


@pytest.mark.parametrize("holdout, expected", [(4, ["03", "07", "11"]), (0, ["00", "01", "02", "03"])])
def test_previews_are_of_held_out_photos_if_there_are_any(inputs, holdout, expected):
    shown = mmfs.held_photos(Folders(inputs / "photos", holdout=holdout), tiny_mmfs.mmfs())
    wanted = [read_picture(inputs / "photos" / f"{name}.png", PX) for name in expected]
    assert torch.equal(shown, to_unit(torch.stack(wanted)))


def test_the_distance_is_of_all_art_to_every_photo_in_eight_styles(inputs):
    t, clip_net, photos = make("mmfs-stage2"), clip(), tiny.pictures(3, 4, PX)
    art = find_pictures(inputs / "art")
    found = art_distance_measure(clip_net)(t.stage, photos, art)
    net, seed = t.stage.run.ema["g"], t.config.seed
    with torch.no_grad():
        codes = [random_w(net, style, 3, seed) for style in range(8)]
        generated = clip_net.embed(torch.cat([net(photos, each) for each in codes]), "openai")
        wanted = clip_net.embed(to_unit(torch.stack([read_picture(path, PX) for path in art])), "openai")
    assert STAGE_STYLES == 8
    assert found == {"art_distance": pytest.approx(float(frechet_distance(generated, wanted)), rel=1e-4)}


def test_stage_2_from_scratch_starts_from_new_networks(inputs, tmp_path):
    """The paper's comparison: no Stage I and a new discriminator."""
    out = tmp_path / "scratch.safetensors"
    assert main.main(left_out(arguments("mmfs-stage2", inputs, out, "--seed", "9"), "--source")) == 0
    net, discriminator = load_mmfs(out)
    faces, d = load_stylegan2(inputs / "stylegan2.safetensors")
    assert discriminator.config == d.config and net.config.decoder == (8, 8)
    assert (discriminator.from_rgb.weight - d.from_rgb.weight).abs().max() > 0.5
    assert (net.mapping.layers[0].weight - faces.mapping.layers[0].weight).abs().max() > 0.5


def test_a_mapping_goes_on_with_the_mapper_of_its_source(atelier, inputs):
    """And one that has none gets a new one."""
    start = load_mmfs(inputs / "mmfs.safetensors")[0]
    net = load_mmfs(atelier("mmfs-mapping", "--lr", "1e-6"))[0]
    assert net.config.mapper == CALM == start.config.mapper
    assert torch.allclose(net.mapper.position, start.mapper.position, atol=1e-3)
    bare = inputs / "with_discriminator.safetensors"
    save_mmfs(bare, tiny_mmfs.mmfs(0, None), tiny_mmfs.faces()[1], {"phase": 2})
    made = load_mmfs(atelier("mmfs-mapping", "--source", str(bare), out="new"))[0]
    assert made.config.mapper == MapperConfig(layers=4, hidden=384)


# --- going on ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", STAGES)
def test_a_training_that_ran_out_of_time_goes_on_to_the_same_file(atelier, name):
    whole = atelier(name, "--steps", "3", out="whole")
    part = atelier(name, "--steps", "3", "--minutes", "1e-9", out="part")
    assert store.peek(part.with_suffix(".snapshot")).meta["step"] == store.peek(part).meta["steps"] == 1
    assert not tiny.same(contents(part), contents(whole))
    assert tiny.same(contents(atelier(name, "--steps", "3", out="part")), contents(whole))
    assert store.peek(part.with_suffix(".snapshot")).meta == store.peek(whole.with_suffix(".snapshot")).meta


@pytest.mark.parametrize("name", STAGES)
def test_fewer_steps_take_the_earlier_snapshot_that_is_kept(atelier, name, caplog):
    short = contents(atelier(name, "--steps", "1", out="short"))
    long = contents(atelier(name, "--steps", "3", "--save-every", "1", "--keep", "3", out="kept"))
    assert tiny.same(contents(atelier(name, "--steps", "1", out="kept")), short)
    assert "kept.snapshot has 3 iterations, more than the 1 that are asked for" in caplog.text
    assert tiny.same(contents(atelier(name, "--steps", "3", out="kept")), long)
    assert atelier(name, "--steps", "3", out="short")
    assert "short.snapshot has 3 iterations, more than the 2" in atelier(name, "--steps", "2", out="short", fails=True)


def test_a_snapshot_of_other_settings_networks_or_pictures_is_refused(atelier, inputs, tmp_path):
    out = atelier("mmfs-stage2")
    made, before = contents(out), {path: path.read_bytes() for path in (out, out.with_suffix(".snapshot"))}
    other, photos = inputs / "other.safetensors", tmp_path / "photos"
    save_stylegan2(other, *tiny_mmfs.faces(7))
    shutil.copytree(inputs / "photos", photos)
    (photos / "00.png").unlink()
    for further, said in ((["--lr", "1"], "lr was 0.001"),
                          (["--stylegan2", str(other)], "the discriminator was another"),
                          (["--photos", str(photos)], "source faces was another"),
                          (["--exclude", "a"], "the artistic set was another"),
                          (["--weights", "a=0.5"], "art_weights was ''")):
        assert said in atelier("mmfs-stage2", *further, fails=True)
    assert before == {path: path.read_bytes() for path in before}
    assert not tiny.same(contents(atelier("mmfs-stage2", "--lr", "1", "--no-resume")), made)


# --- what is told ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", STAGES)
def test_sample_grids_and_tensorboard_files_are_written(atelier, name, caplog):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                 reason="the extra `train` is not installed: pip install .[train]")
    out = atelier(name, "--steps", "3", "--preview-every", "2")
    log = out.with_name(f"{name}_log")
    grids = sorted(path.name for path in log.glob("*.jpg"))
    assert grids == [f"{name}_000002.jpg", f"{name}_000003.jpg"]  # every other step, and the last
    with Image.open(log / grids[0]) as grid:
        assert grid.width == 4 * PX and grid.height in (3 * PX, 4 * PX)
    found = events.EventAccumulator(str(log)).Reload()
    assert set(found.Tags()["scalars"]) == {f"{name}/{it}" for it in (*LOSSES[name], "pictures_per_second")}
    snapshot = store.load(out.with_suffix(".snapshot"))
    history = history_of(snapshot.tensors, snapshot.meta)
    for loss in LOSSES[name] - {"r1", "art_distance", "faces_distance"}:
        told = found.Scalars(f"{name}/{loss}")
        assert [e.step for e in told] == [1, 2, 3] and [e.value for e in told] == pytest.approx(history[loss])
    assert f"{name} step 3 of 3: " in caplog.text
    pace = found.Scalars(f"{name}/pictures_per_second")
    assert [e.step for e in pace] == [2, 3] and min(e.value for e in pace) > 0  # the first step holds what is done once


def test_the_pace_counts_pictures_since_the_last_line(monkeypatch):
    clock = iter([10.0, 14.0, 20.0, 22.0])
    monkeypatch.setattr(stages.time, "monotonic", lambda: next(clock))
    pace = stages.Pace(8)
    assert pace(3) == {}
    pace.begin(3)
    assert pace(5) == {"pictures_per_second": 4.0}  # two steps of eight in four seconds
    pace.begin(5)
    assert pace(6) == {"pictures_per_second": 4.0} and pace(5) == {}


@pytest.mark.parametrize("count", [96, 100])
def test_the_distance_of_a_stylegan2_is_of_random_faces_to_all_held_out_ones(inputs, count):
    t, clip_net, faces = make("stylegan2"), clip(), find_pictures(inputs / "photos")
    found = faces_distance_measure(clip_net, count)(t.stage, faces)
    net, shapes, generated = t.stage.run.ema["g"], t.net.synthesis.noise_shapes(4, 4), []
    with torch.no_grad():
        for k, z in enumerate(random_z(count, net.config.w_dim, t.config.seed).split(64)):
            generator = rng.generator(t.config.seed, "measured noise", k)
            noise = [torch.randn(len(z), 1, *shape, generator=generator) for shape in shapes]
            generated.append(clip_net.embed(net(net.styles(z), noise).clamp(-1, 1), "openai"))
        wanted = clip_net.embed(to_unit(torch.stack([read_picture(path, PX) for path in faces])), "openai")
    distance = float(frechet_distance(torch.cat(generated), wanted))
    assert found == {"faces_distance": pytest.approx(distance, rel=1e-4)} and distance > 0


def test_a_stylegan2_remembers_its_distance_to_the_faces(atelier):
    meta = store.peek(atelier("stylegan2", "--steps", "3", "--preview-every", "2")).meta
    assert meta["measured_at"] == [2.0, 3.0] and len(meta["faces_distance"]) == 2 and min(meta["faces_distance"]) > 0


def test_stage_2_measures_its_distance_to_the_art(atelier):
    meta = store.peek(atelier("mmfs-stage2", "--steps", "3", "--preview-every", "2")).meta
    assert meta["measured_at"] == [2.0, 3.0] and len(meta["art_distance"]) == 2 and min(meta["art_distance"]) > 0
    again = store.peek(atelier("mmfs-stage2", "--steps", "3", "--preview-every", "2", out="b")).meta
    assert again["art_distance"] == meta["art_distance"]
    assert store.peek(atelier("mmfs-stage2", out="none")).meta["art_distance"] == []


@pytest.mark.parametrize("error", [OSError("no space"), ValueError("one picture")])
def test_a_preview_and_a_measurement_that_fail_are_warned_of(tmp_path, monkeypatch, caplog, error):
    def fail(*_):
        raise error
    t = make("mmfs-stage1")
    stages.reporter("x", t.stage, tmp_path, 2, fail)(Progress(2, 9, {}))
    assert f"the measurement at step 2 failed: {error}. The training goes on" in caplog.text
    assert (tmp_path / "x_000002.jpg").is_file() and "measured_at" not in t.stage.run.loss_history
    monkeypatch.setattr(stages, "picture_grid", fail)
    stages.reporter("x", t.stage, tmp_path, 2, lambda: {"distance": 1.0})(Progress(4, 9, {}))
    assert f"the preview at step 4 failed: {error}" in caplog.text and t.stage.run.loss_history["distance"] == [1.0]
    assert [path.name for path in tmp_path.glob("*.jpg*")] == ["x_000002.jpg"]


def test_a_single_held_out_face_is_not_measured(atelier, inputs, caplog):
    count = len(list((inputs / "photos").iterdir()))
    meta = store.peek(atelier("stylegan2", "--preview-every", "1", "--holdout", str(count), out="one")).meta
    assert meta["faces_distance"] == [] and "it takes 2 and 1 are held out" in caplog.text


def test_what_a_killed_run_had_told_beyond_its_snapshot_counts_no_more(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                 reason="the extra `train` is not installed: pip install .[train]")
    for first, last, value in ((1, 5, 1.0), (4, 6, 2.0)):  # killed at 5, goes on from 3
        t = make("mmfs-stage1")
        report = stages.reporter("x", t.stage, tmp_path)
        for step in range(first, last + 1):
            t.stage.run.step = step
            report(Progress(step, 9, {"pixel": value}))
    told = events.EventAccumulator(str(tmp_path)).Reload().Scalars("x/pixel")
    assert [(e.step, e.value) for e in told] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]


def test_without_tensorboard_training_goes_on(atelier, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = atelier("mmfs-stage1", "--preview-every", "2")
    assert caplog.text.count("tensorboard is not installed (pip install .[train])") == 1
    assert {path.suffix for path in out.with_name("mmfs-stage1_log").iterdir()} == {".jpg"}


def test_a_grid_is_filled_row_by_row():
    pictures = torch.linspace(-1, 1, 6)[:, None, None, None].expand(6, 3, 2, 2)
    grid = plots.picture_grid(pictures)
    assert grid.size == (8, 4) and [grid.getpixel((x, 0))[0] for x in (0, 2, 4, 6)] == [0, 51, 102, 153]
    assert [grid.getpixel((x, 2))[0] for x in (0, 2, 4, 6)] == [204, 255, 255, 255]  # white where there is none


# --- bad input ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, option, said", [
    ("mmfs-stage1", "--source", "name the StyleGAN2 file with --source"),
    ("mmfs-stage2", "--art", "name the folder of drawings with --art"),
    ("mmfs-mapping", "--source", "name the Stage II file with --source")])
def test_what_is_not_named_is_asked_for(inputs, tmp_path, caplog, name, option, said):
    assert main.main(left_out(arguments(name, inputs, tmp_path / "a.safetensors"), option)) == 1
    assert f"atelier train: {said}" in caplog.text and not list(tmp_path.iterdir())


def test_stage_2_starts_from_both_files_one_of_them_or_from_its_own_result(atelier, inputs, tmp_path, caplog):
    """Without a StyleGAN2 the discriminator is that of the source, which may be of Stage II: then it is trained on."""
    def run(name, *without, source=None):
        out = tmp_path / f"{name}.safetensors"
        words = functools.reduce(left_out, without, arguments("mmfs-stage2", inputs, out))
        return out, main.main([*words, *(("--source", str(source)) if source else ())])
    first, status = run("first", "--stylegan2")
    assert status == 0
    second, status = run("second", "--stylegan2", "--source", source=first)
    assert status == 0 and not tiny.same(contents(second), contents(first))
    assert run("third", "--stylegan2", "--source")[1] == 1
    assert "name the Stage I file with --source, or the StyleGAN2 file with --stylegan2" in caplog.text


@pytest.mark.parametrize("name, further, said", [
    ("mmfs-stage2", ["--batch", "6"], "a batch of 6 cannot be split into the discriminator's groups of 4"),
    ("mmfs-stage2", ["--set", "precision=float16"], "precision is 'float16'; take one of float32, bfloat16"),
    ("mmfs-stage2", ["--set", "structur=1"], "there is no setting 'structur'; there are steps, batch"),
    ("mmfs-stage2", ["--set", "r1=much"], "r1 takes numbers (float), not 'much'"),
    ("mmfs-stage2", ["--set", "augment=blur"], "there is no augmentation 'blur'; take some of colour"),
    ("mmfs-stage2", ["--exclude", "a,b"], "no picture"),
    ("mmfs-stage2", ["--weights", "a=often"], "'a=often' is no weight; write NAME=NUMBER with a number above 0"),
    ("mmfs-stage2", ["--weights", "a=0"], "'a=0' is no weight"),
    ("mmfs-stage1", ["--log-every", "0"], "log_every must be at least 1"),
    ("mmfs-stage1", ["--steps", "0"], "at least 1"),
    ("mmfs-stage1", ["--photos", "nowhere"], "no picture (png, jpg, webp, bmp) under nowhere"),
    ("mmfs-stage1", ["--source", "nowhere.pt"], "nowhere.pt")])
def test_settings_that_cannot_be(atelier, tmp_path, name, further, said):
    assert said in atelier(name, *further, fails=True)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("name, option, file, said", [
    ("mmfs-stage1", "--source", "no_d.safetensors", "holds no discriminator, which this training needs"),
    ("mmfs-stage2", "--stylegan2", "no_d.safetensors", "no_d.safetensors holds no discriminator"),
    ("mmfs-mapping", "--source", "bare.safetensors", "bare.safetensors holds no discriminator"),
    ("stylegan2", "--source", "no_d.safetensors", "holds no discriminator"),
    ("mmfs-stage2", "--stylegan2", "larger.safetensors",
     "the discriminator takes 128 px and this MMFS generates 64 px"),
    ("mmfs-stage1", "--source", "mmfs.safetensors", "mmfs.safetensors"),
    ("mmfs-mapping", "--clip", "wide.safetensors", "the CLIP mapping needs embeddings as wide as the styles")])
def test_files_that_do_not_do(atelier, inputs, tmp_path, name, option, file, said):
    path = inputs / file
    if file == "no_d.safetensors":
        save_stylegan2(path, tiny_mmfs.faces()[0], None)
    elif file == "larger.safetensors":
        with torch.random.fork_rng([]):
            larger = StyleGAN2Config((8,) * 6, w_dim=16, mapping_layers=2)
            save_stylegan2(path, StyleGAN2(larger), Discriminator(larger))
    elif file == "wide.safetensors":
        tiny_clip = tiny.clip()
        store.save(path, tiny_clip.net.state_dict(), "clip", dataclasses.asdict(tiny_clip.config))
    assert said in atelier(name, option, str(path), fails=True)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_an_unreadable_picture_is_named_and_left_out(atelier, inputs, tmp_path, caplog):
    photos = tmp_path / "photos"
    shutil.copytree(inputs / "photos", photos)
    (photos / "05.png").write_bytes(b"no picture")
    atelier("mmfs-stage2", "--photos", str(photos), "--steps", "1")
    assert f"1 of 12 pictures under {photos} cannot be read and are left out: 05.png" in caplog.text


def test_accelerate_that_is_not_installed_is_asked_for(atelier, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert "run: pip install '.[train]'" in atelier("mmfs-stage1", "--accelerate", fails=True)


def test_the_help_tells_of_the_trainings(capsys):
    with pytest.raises(SystemExit):
        main.main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(name in text for name in STAGES) and "torchrun --nproc_per_node" in text


def test_changes_on_top_of_settings():
    config = changed(GANConfig(), "batch=16,lr=0.5,flip=yes")
    assert (config.batch, config.lr, config.flip) == (16, 0.5, True)
    assert changed(gan.STYLEGAN2, "augment=;flip=no") == dataclasses.replace(gan.STYLEGAN2, augment="", flip=False)
    assert changed(config, "") == config


def test_one_process_is_no_team(inputs, tmp_path):
    options = main.parser().parse_args(arguments("mmfs-stage1", inputs, tmp_path / "a"))
    distributed, device = processes.distributed_and_device(options)
    assert distributed is processes.SINGLE_PROCESS and device == CPU
