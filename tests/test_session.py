"""Sessions: what tells one training apart from another, where one may be saved, what is refused before it begins."""

import errno
import re
import unicodedata
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from oneshot_atelier.models.checkpoints import CheckpointError, store
from oneshot_atelier.models.features.encoder import EncoderDistance
from oneshot_atelier.models.rng import seeded
from oneshot_atelier.tests import tiny
from oneshot_atelier.train import contrast, kept, osasis, session
from oneshot_atelier.train.loop import Checkpointing, Hooks, LoopConfig, Run, StepResult, snapshot, train
from oneshot_atelier.train.osasis import FrozenNetworks, OSASISConfig
from oneshot_atelier.train.session import Session, plain_name, snapshot_file

CPU = torch.device("cpu")
SETTINGS = {"training": "a test", "seed": 3, "lr": 0.1, "art": "a", "faces": "a", "photos": "a", "iterations": 4}


# --- what decides a result -------------------------------------------------------------------------------------------


def described(config=None, clip=None, twin=1):
    frozen = tiny.diffae()
    nets = FrozenNetworks(frozen, clip or tiny.clip(), EncoderDistance(frozen.encoder), "model")
    return osasis.describe(nets, tiny.pictures(1, twin), tiny.pictures(1, 2), config or OSASISConfig(), None)


def test_every_field_of_the_configuration_is_kept():
    assert asdict(OSASISConfig()).items() <= described().items()


@pytest.mark.parametrize(("other", "message"), [
    ({"config": OSASISConfig(clip_weight=3.0)}, "clip_weight was 30.0 and is 3.0 now"),
    ({"config": OSASISConfig(perceptual_weight=3.0)}, "perceptual_weight was 10.0 and is 3.0 now"),
    ({"config": OSASISConfig(spn="none")}, "spn was 'timed' and is 'none' now"),
    ({"clip": tiny.clip(1)}, "the CLIP was another one"),
    ({"twin": 9}, "the photo twin was another one (Make Photo Twin makes another one if its seed, t0, steps or pick "
                  "change)"),
    ({"config": OSASISConfig(iterations=9)}, "None")])
def test_a_difference_is_named(other, message):
    assert str(session.difference(described(), described(**other))) == message


def test_a_snapshot_of_before_a_setting_was_added_is_one_of_its_default():
    before = {name: value for name, value in described().items() if name != "solver"}
    assert session.difference(before, described()) is None
    now = described(OSASISConfig(solver="dpmpp_2m"))
    assert session.difference(before, now) == "solver was 'ddim' and is 'dpmpp_2m' now"


def test_a_network_s_hash_is_of_its_weights_and_its_configuration():
    net = tiny.clip()
    same, moved, other = session.hash_of_network(tiny.clip()), tiny.clip(1), tiny.clip()
    other.config = replace(other.config, mean=(0.1, 0.1, 0.1))
    assert session.hash_of_network(net) == same
    assert len({same, session.hash_of_network(moved), session.hash_of_network(other)}) == 3
    assert len(same) == 32 and torch.equal(net.mean, tiny.clip().mean)


# --- a training on a snapshot ----------------------------------------------------------------------------------------
def a_run():
    with seeded(0, "weights"):
        net = nn.Linear(4, 4)
    return Run({"net": net}, {"net": torch.optim.Adam(net.parameters())})


def trained(path, steps=4, picture=lambda k: tiny.pictures(2, k), warn=None, hooks=Hooks(), settings=SETTINGS,
            **checkpointing):
    """A session from its beginning to its end; picture(k): the predictions of step k."""
    hooks = replace(hooks, warn=warn or (lambda text: None))
    checkpointing = Checkpointing(path, **checkpointing)
    run = a_run()

    def work(hooks, save):
        def step(k, hooks):
            run.optimizers["net"].zero_grad()
            (run.nets["net"](torch.randn(2, 4)) - 1).square().mean().backward()
            run.optimizers["net"].step()
            hooks.on_step(StepResult(k, 0, {}, picture(k)))
            return {}
        return train(run, step, LoopConfig(steps, save_every=checkpointing.every), CPU, hooks, save)

    with Session.open(run, settings | {"iterations": steps}, checkpointing, hooks) as opened:
        opened.train(work, steps, CPU, hooks)
    return run


def test_a_second_training_of_a_snapshot_waits_for_the_first_and_other_names_do_not(tmp_path):
    path = tmp_path / "a.snapshot"
    with Session.open(a_run(), SETTINGS, Checkpointing(path)):
        with pytest.raises(CheckpointError, match="another training is using a.snapshot .* Wait for it"):
            trained(path)
        assert trained(tmp_path / "b.snapshot").step == 4 and not path.exists()
    assert trained(path).step == 4


def test_a_training_that_broke_down_frees_its_snapshot_and_leaves_no_lock(tmp_path):
    path = tmp_path / "a.snapshot"
    with pytest.raises(KeyboardInterrupt), Session.open(a_run(), SETTINGS, Checkpointing(path)):
        raise KeyboardInterrupt
    assert trained(path).step == 4 and [p.name for p in tmp_path.iterdir()] == ["a.snapshot"]


def test_a_refused_training_leaves_the_first_one_its_lock(tmp_path):
    path = tmp_path / "a.snapshot"
    with Session.open(a_run(), SETTINGS, Checkpointing(path)):
        for _ in range(2):
            with pytest.raises(CheckpointError, match="another training"):
                trained(path)


def test_a_lock_that_its_holder_removes_as_it_is_taken_is_taken_anew(tmp_path, monkeypatch):
    lock, real = tmp_path / ".a.snapshot.lock", session._lock
    removals = [lock.unlink]

    def locked(file):
        real(file)
        if removals:
            removals.pop()()

    monkeypatch.setattr(session, "_lock", locked)
    with session.file_lock(tmp_path / "a.snapshot"):
        assert lock.exists()
        with pytest.raises(CheckpointError, match="another training"), session.file_lock(tmp_path / "a.snapshot"):
            pass


def test_where_files_cannot_be_locked_it_is_said_and_the_training_runs(tmp_path, monkeypatch, caplog):
    def unsupported(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(session, "_lock", unsupported)
    assert trained(tmp_path / "a.snapshot").step == 4 and "a.snapshot cannot be locked" in caplog.text


# --- room to save ----------------------------------------------------------------------------------------------------
def refused_before_the_first_step(path, words):
    started = []
    with pytest.raises(CheckpointError, match=words) as caught, Session.open(
            a_run(), SETTINGS, Checkpointing(path), Hooks(on_start=started.append)):
        pass
    assert not started and str(path.parent) in str(caught.value)


def test_a_file_where_the_folder_should_be_is_found_before_the_first_step(tmp_path):
    (tmp_path / "out").write_text("a file")
    refused_before_the_first_step(tmp_path / "out" / "a.snapshot", r"cannot be written to .* needs 0\.0 MB")


def test_a_folder_that_cannot_be_written_to_is_found_before_the_first_step(tmp_path, monkeypatch):
    def read_only(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(session.tempfile, "TemporaryFile", read_only)
    monkeypatch.setattr(session, "snapshot_bytes", lambda run: 2_500_000)
    refused_before_the_first_step(tmp_path / "a.snapshot",
                                  r"cannot be written to \(Permission denied\), and .* needs 2\.5 MB")


def test_too_little_space_is_found_before_the_first_step(tmp_path, monkeypatch):
    needed = session.snapshot_bytes(a_run())
    monkeypatch.setattr(session.shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed - 1))
    refused_before_the_first_step(tmp_path / "a.snapshot", "MB free, and a snapshot of this training needs .* MB")
    monkeypatch.setattr(session.shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed))
    assert trained(tmp_path / "a.snapshot").step == 4


def test_the_room_that_is_asked_for_is_about_that_of_the_snapshot(tmp_path):
    net = nn.Linear(300, 300)
    run = Run({"net": net}, {"net": torch.optim.Adam(net.parameters())}, {"net": nn.Linear(300, 300)})
    net(torch.ones(1, 300)).sum().backward()
    run.optimizers["net"].step()
    Session(run, SETTINGS, Checkpointing(tmp_path / "a.snapshot")).save(run)
    assert session.snapshot_bytes(run) == pytest.approx((tmp_path / "a.snapshot").stat().st_size, rel=0.01)


# --- what is not resumed ---------------------------------------------------------------------------------------------
def test_fewer_iterations_than_a_snapshot_has_are_refused_with_both_numbers(tmp_path):
    path = trained_file(tmp_path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="a.snapshot has 4 iterations, more than the 3 .*Set iterations to 4 or"):
        trained(path, 3)
    assert path.read_bytes() == before
    assert trained(path, 3, resume=False).step == 3 and trained(path, 6).step == 6


def trained_file(folder):
    trained(folder / "a.snapshot")
    return folder / "a.snapshot"


def test_another_seed_is_refused_with_the_one_that_made_the_snapshot(tmp_path):
    with pytest.raises(CheckpointError, match=r"a.snapshot \(saved at iteration 4\).*: seed was 3 and is 5 now"):
        trained(trained_file(tmp_path), settings=SETTINGS | {"seed": 5})


@pytest.mark.parametrize("name", session.PICTURE_SETS)
def test_another_set_of_pictures_is_resumed_with_if_that_is_asked_for(tmp_path, name):
    path, other = trained_file(tmp_path), SETTINGS | {name: "b"}
    with pytest.raises(CheckpointError, match=re.escape(f"{session.MEANINGS[name]} was another one")):
        trained(path, 5, settings=other)
    assert trained(path, 5, changed_pictures=True, settings=other).step == 5
    assert trained(path, 6, settings=other).step == 6, "now it is the snapshot of the new set"


def test_changed_pictures_excuse_nothing_else(tmp_path):
    with pytest.raises(CheckpointError, match="lr was 0.1 and is 0.2 now"):
        trained(trained_file(tmp_path), 5, changed_pictures=True, settings=SETTINGS | {"art": "b", "lr": 0.2})


# --- earlier snapshots -----------------------------------------------------------------------------------------------
class Stop(Exception):
    pass


def stopped(path, step, **checkpointing):
    """The training is stopped in its `step`-th step."""
    def check(result):
        if result.iteration + 1 == step:
            raise Stop

    with pytest.raises(Stop):
        trained(path, hooks=Hooks(on_step=check), **checkpointing)


def state(run):
    return snapshot(run)[0]


def kept_steps(path):
    """The step of every snapshot by its file's name, which must be that of its content."""
    found = {file.name: store.load(file, "snapshot").meta["step"] for file in path.parent.iterdir()}
    assert {name: f"{path.stem}@{step:08}.snapshot" for name, step in found.items()} == {
        name: name if "@" in name else f"{path.stem}@{step:08}.snapshot" for name, step in found.items()}
    return [found[path.name], *sorted(step for name, step in found.items() if name != path.name)]


@pytest.mark.parametrize(("keep", "steps"), [(1, [20]), (2, [20, 10]), (3, [20, 6, 14]), (4, [20, 4, 10, 14]),
                                             (20, [20, *range(2, 20, 2)])])
def test_as_many_snapshots_are_kept_as_asked_for_spread_over_the_training(tmp_path, keep, steps):
    path = tmp_path / "a.snapshot"
    trained(path, 20, every=2, keep=keep)
    assert kept_steps(path) == steps


def test_fewer_iterations_take_the_last_snapshot_before_them_and_leave_the_newest(tmp_path):
    path, said, started, shown = tmp_path / "a.snapshot", [], [], []
    trained(path, 20, every=4, keep=20)
    before = path.read_bytes()
    hooks = Hooks(on_start=lambda run: started.append(run.step), on_step=shown.append)
    for steps, earlier in ((12, 12), (11, 8)):
        run = trained(path, steps, warn=said.append, hooks=hooks, every=1, keep=20)
        assert started.pop() == earlier and run.step == steps == shown[-1].iteration + 1
        assert tiny.same(state(run), state(trained(None, steps)))
        assert said.pop() == (f"a.snapshot has 20 iterations, more than the {steps} that are asked for: an earlier "
                              f"snapshot, of iteration {earlier}, is taken instead. a.snapshot stays as it is")
    assert path.read_bytes() == before and kept_steps(path) == [20, 4, 8, 9, 10, 11, 12, 16]
    assert tiny.same(state(trained(path, 24, warn=said.append)), state(trained(None, 24))) and not said


def test_an_earlier_training_that_is_stopped_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "a.snapshot"
    trained(path, 20, every=10, keep=2)
    stopped(path, 15, steps=18, every=4, keep=2)
    assert kept_steps(path) == [20, 12]  # one earlier one at most, and the newest stays
    started = []
    run = trained(path, 18, hooks=Hooks(on_start=lambda run: started.append(run.step)), keep=2)
    assert started == [12] and tiny.same(state(run), state(trained(None, 18))) and kept_steps(path) == [20, 18]


def test_with_none_before_them_fewer_iterations_are_refused(tmp_path):
    path = tmp_path / "a.snapshot"
    trained(path, 20, every=5, keep=2)
    assert kept_steps(path) == [20, 10]
    with pytest.raises(CheckpointError, match="has 20 iterations, more than the 9 .*Set iterations to 20 or more"):
        trained(path, 9, keep=2)
    assert kept_steps(path) == [20, 10]


def test_an_earlier_snapshot_of_other_settings_or_a_damaged_one_is_not_taken(tmp_path):
    path, said = tmp_path / "a.snapshot", []
    trained(path, 12, every=4, keep=3)
    kept.earlier_path(path, 8).write_bytes(path.read_bytes()[:500])
    assert trained(path, 9, warn=said.append).step == 9 and "of iteration 4" in said[0]
    path = tmp_path / "b.snapshot"
    trained(path, 4)
    trained(path, 8, settings=SETTINGS | {"art": "b"}, changed_pictures=True, keep=3)
    assert not kept.earlier(path), "of other pictures, it is of no use to the new training"
    trained(kept.earlier_path(path, 4), 4)
    with pytest.raises(CheckpointError, match="more than the 5"):
        trained(path, 5, settings=SETTINGS | {"art": "b"}, changed_pictures=True)


def test_a_training_that_starts_again_removes_the_earlier_snapshots_when_it_first_saves(tmp_path):
    path = tmp_path / "a.snapshot"
    trained(path, 12, every=4, keep=3)
    stopped(path, 1, resume=False, keep=3)
    assert kept_steps(path) == [12, 4, 8]
    trained(path, 2, resume=False, keep=3)
    assert kept_steps(path) == [2]


def test_fewer_snapshots_to_keep_remove_the_others(tmp_path):
    path = tmp_path / "a.snapshot"
    trained(path, 12, every=2, keep=5)
    trained(path, 14, keep=2)
    assert len(kept_steps(path)) == 2
    trained(path, 15)
    assert kept_steps(path) == [15]


def test_one_that_a_killed_save_left_too_many_is_removed_though_nothing_is_left_to_do(tmp_path):
    path = tmp_path / "a.snapshot"
    trained(path, 12, every=4, keep=3)
    trained(path, 12)
    assert kept_steps(path) == [12, 4, 8], "with nothing to save, the newest alone needs no place"
    trained(path, 12, keep=2)
    assert kept_steps(path) == [12, 4]


def test_without_the_newest_the_last_earlier_snapshot_is_resumed(tmp_path):
    path, started = tmp_path / "a.snapshot", []
    trained(path, 12, every=4, keep=3)
    path.unlink()
    run = trained(path, 12, hooks=Hooks(on_start=lambda run: started.append(run.step)), keep=3)
    assert started == [8] and tiny.same(state(run), state(trained(None, 12))) and kept_steps(path) == [12, 4, 8]


def test_other_names_that_look_alike_are_left_alone(tmp_path):
    path = tmp_path / "a.snapshot"
    others = [tmp_path / name for name in ("aa@00000002.snapshot", "a@2.snapshot", "a.b@00000002.snapshot",
                                           "a@00000002.txt", ".a@00000002.snapshot.abcdefgh.tmp.txt")]
    for other in others:
        other.write_text("another's")
    stale = tmp_path / ".a@00000002.snapshot.abcdefgh.tmp"
    stale.write_text("half a snapshot")
    trained(path, 8, every=2)
    trained(path, 8, resume=False)
    assert sorted(tmp_path.iterdir()) == sorted([path, *others]), "the half snapshot of a killed training is gone"


def test_a_snapshot_s_settings_are_checked_once(tmp_path, monkeypatch):
    path, checked, real = trained_file(tmp_path), [], session.check_settings
    monkeypatch.setattr(session, "check_settings", lambda path, *more: checked.append(path) or real(path, *more))
    assert trained(path, 4).step == 4 and checked == [path]


def test_where_files_cannot_have_two_names_earlier_snapshots_are_copies(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(kept.os, "link", unsupported)
    path, half = tmp_path / "a.snapshot", tmp_path / ".a@00000002.snapshot.part"
    half.write_text("half a copy")
    trained(path, 8, every=4, keep=3)
    assert kept_steps(path) == [8, 4] and set(tmp_path.iterdir()) == {kept.earlier_path(path, 4), path}
    assert tiny.same(state(trained(path, 4, keep=3)), state(trained(None, 4)))


def test_where_they_cannot_be_copied_either_the_newest_is_kept_alone_and_it_is_said(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(kept.os, "link", unsupported)
    monkeypatch.setattr(kept.shutil, "copyfile", unsupported)
    path, said = tmp_path / "a.snapshot", []
    trained(path, 8, every=4, keep=3, warn=said.append)
    assert kept_steps(path) == [8] and list(tmp_path.iterdir()) == [path]
    assert len(said) == 1 and said[0].startswith("a.snapshot of step 4 is not kept as an earlier snapshot (Operation")


def test_a_save_that_fails_leaves_the_newest_and_the_earlier_ones(tmp_path, monkeypatch):
    path, real = tmp_path / "a.snapshot", session.store.save
    trained(path, 8, every=4, keep=3)

    def full(*_, **__):
        raise CheckpointError("no room: free some space")

    monkeypatch.setattr(session.store, "save", full)
    trained(path, 12, every=2, keep=3)
    assert kept_steps(path) == [8, 4, 8]
    monkeypatch.setattr(session.store, "save", real)
    assert tiny.same(state(trained(path, 12, keep=3)), state(trained(None, 12))) and kept_steps(path) == [12, 4, 8]


def test_the_result_of_an_iteration_is_not_that_of_a_part_of_the_next_one(tmp_path):
    """A snapshot in the middle of iteration 3 is beyond iteration 2."""
    path = tmp_path / "a.snapshot"
    trained(path, 2, keep=2)
    run = a_run()
    with Session.open(run, SETTINGS, Checkpointing(path, keep=2)) as opened:
        run.partial = {"done": torch.tensor(1)}
        opened.save(run)
    with pytest.raises(CheckpointError, match="a.snapshot has 3 iterations, more than the 2 .*Set iterations to 3 or"):
        trained(path, 2)
    assert trained(path, 3).step == 3


def test_a_folder_that_cannot_be_listed_has_no_earlier_snapshots(tmp_path, monkeypatch):
    def closed(folder):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(kept.Path, "iterdir", closed)
    assert kept.earlier(tmp_path / "a.snapshot") == {}
    kept.remove_stale(tmp_path / "a.snapshot")


def test_room_for_all_that_is_to_be_kept_is_asked_for(tmp_path, monkeypatch):
    needed = session.snapshot_bytes(a_run())
    monkeypatch.setattr(session.shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * needed - 1))
    with pytest.raises(CheckpointError, match="3 snapshots of this training need"):
        trained(tmp_path / "a.snapshot", keep=3)
    assert trained(tmp_path / "a.snapshot", keep=2).step == 4


def test_the_newest_snapshot_is_always_kept():
    with pytest.raises(ValueError, match="keep is 0; .* set it to 1 or more"):
        Checkpointing(keep=0)


# --- pictures that become one flat colour ----------------------------------------------------------------------------
def flat(count=2, level=1.0):
    return torch.full((count, 3, 8, 8), level)


def test_pictures_that_become_one_flat_colour_are_warned_of_once(tmp_path):
    said = []
    trained(None, 6, lambda k: flat() if k > 2 else tiny.pictures(2, k), warn=said.append)
    assert len(said) == 1 and "flat colour (iteration 4)" in said[0] and "lower the learning rate" in said[0]


def test_pictures_that_were_flat_at_first_are_watched_once_they_are_not(tmp_path):
    said = []
    trained(None, 8, lambda k: flat() if k < 2 or k > 4 else tiny.pictures(2, k), warn=said.append)
    assert len(said) == 1 and "flat colour (iteration 6)" in said[0]


def test_pictures_are_looked_at_as_often_as_is_asked_for():
    said = []
    hooks = contrast.watched(Hooks(warn=said.append), 3)
    for k in range(9):
        hooks.on_step(StepResult(k, 0, {}, flat() if k > 3 else tiny.pictures(2, k)))
    assert len(said) == 1 and "flat colour (iteration 6)" in said[0]


@pytest.mark.parametrize("picture", [
    lambda k: flat(), lambda k: flat() if k < 3 else tiny.pictures(2), lambda k: tiny.pictures(2, k),
    lambda k: torch.cat([flat(1), tiny.pictures(1, px=8)])],
    ids=["flat from the start", "flat at first", "never flat", "one of two"])
def test_other_pictures_are_not_warned_of(picture):
    said = []
    trained(None, 6, picture, warn=said.append)
    assert not said


def is_flat(pictures):
    return contrast.contrast(pictures) < contrast.FLAT


def test_flat_is_one_colour_of_whatever_tone_and_not_a_drawing_of_thin_lines():
    colour = torch.tensor([1.0, -1, 0.3])[None, :, None, None].expand(2, 3, 32, 32)
    assert is_flat(colour) and is_flat(colour + 0.02 * torch.randn(2, 3, 32, 32).clamp(-1, 1))
    assert is_flat(5 * colour.sign() + torch.randn(2, 3, 32, 32)), "as it is shown"
    lines = torch.ones(1, 3, 64, 64)
    lines[..., 20, 10:50] = -1
    assert not is_flat(lines) and not is_flat(torch.cat([colour[..., :32], lines[..., :32, :32]]))


# --- names of files --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["CON", "nul", "COM1", "com\u00b9", "LPT9.txt", "aux.v2", "Aux .v2"])
def test_names_of_windows_devices_are_refused(name):
    with pytest.raises(ValueError, match="is a device on Windows .*Choose another"):
        plain_name(name)


@pytest.mark.parametrize("name", ["", "  ", "a/b", "a\\b", "../up", "..", "C:a", ".hidden", "end.", "end. ", "a\nb",
                                  "a\0b", "-option", "\u0301a", "a\u202eb", "a*b"])
def test_names_that_leave_the_folder_or_are_no_names_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="cannot be a file's name here. Use letters"):
        snapshot_file(tmp_path, name)


def test_names_too_long_for_a_file_are_refused_by_their_letters_and_bytes():
    for name in ("\u304b" * 80, "x" * 81):
        with pytest.raises(ValueError, match="too long for a file's name. Take at most 80 letters, fewer in scripts"):
            plain_name(name)
    assert plain_name("\u304b" * 60) and plain_name("x" * 80)


@pytest.mark.parametrize("name", ["com10", "console", "nulls.v2", "_draft", "7 faces", "v1.2-b",
                                  "\u0939\u093f\u0928\u094d\u0926\u0940",
                                  "\u4e2d\u6587", "\u0645\u064e\u0631\u062d\u0628\u064b\u0627"])
def test_names_of_every_script_are_kept(name, tmp_path):
    path = snapshot_file(tmp_path, f" {name} ")
    assert path == tmp_path / f"{name}.snapshot"
    path.write_bytes(b"")


def test_a_decomposed_accent_is_the_same_name():
    assert plain_name(unicodedata.normalize("NFD", "caf\u00e9")) == plain_name("caf\u00e9") == "caf\u00e9"


def test_the_longest_name_leaves_room_for_lock_and_temporary_file(tmp_path):
    longest = "\u304b" * (session.MAX_NAME_BYTES // 3)
    assert trained(snapshot_file(tmp_path, longest)).step == 4
