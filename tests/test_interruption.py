"""A training stopped anywhere is saved and resumed to the same result; one that breaks down keeps its snapshot."""
import functools
import logging
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from oneshot_atelier.models.checkpoints import store
from oneshot_atelier.models.diffae import DiffAEConfig, LatentConfig
from oneshot_atelier.models.features.encoder import EncoderDistance, EncoderKeys
from oneshot_atelier.models.mmfs import MMFS, MapperConfig, MMFSConfig
from oneshot_atelier.models.rng import seeded
from oneshot_atelier.models.unet import UNetConfig
from oneshot_atelier.tests import tiny
from oneshot_atelier.tests.tiny_stages import CPU, make
from oneshot_atelier.train import fewshot, gan, osasis
from oneshot_atelier.train.fewshot import FewShotConfig, Reference, tune_mmfs
from oneshot_atelier.train.loop import Checkpointing, Hooks, LoopConfig, NonFiniteLoss, Run, ema_copy, snapshot, train
from oneshot_atelier.train.osasis import FrozenNetworks, OSASISConfig, tune_style
from oneshot_atelier.train.source_faces import FaceNetworks
from oneshot_atelier.train.stages import RunConfig, run_stage

HOOKS = ("on_start", "on_step", "on_iteration", "check_interrupt")
SMALL = UNetConfig(16, 16, (1,), blocks=1, embed=16, cond=16, dropout=0.3)
FROZEN = DiffAEConfig(SMALL, (1, 1), LatentConfig(16, 24, 2, 16))
OSASIS = OSASISConfig(iterations=2, batch=1, lr=1e-3, lr_spn=1e-3, forward_steps=2, reverse_steps=4, latent_steps=1,
                      generate_steps=1, cached_content=2, noise_level="matched", seed=3)  # three optimiser steps each
MODEL = MMFSConfig((8, 16), (16, 8), w_dim=tiny.CLIP.embed, mapping_layers=1, mapper=MapperConfig(1, 16))
FEW_SHOT = FewShotConfig(iterations=3, batch=2, lr=1e-2, micro_batch=1, seed=3)


class Stop(Exception):
    """Raised by a hook, as a cancelled prompt does."""


class Calls:
    """Hooks that count their calls, and raise at the `stop`-th one of `name`."""

    def __init__(self, name="", stop=0, error=Stop):
        self.count, self.started, self.results = dict.fromkeys(HOOKS, 0), [], []
        self.name, self.stop, self.error = name, stop, error

    def hooks(self):
        return Hooks(*(self._hook(name) for name in HOOKS))

    def _hook(self, name):
        def called(*given):
            self.count[name] += 1
            if name == "on_start":
                self.started.append((given[0].step, int(given[0].partial.get("done", 0))))
            if name == "on_step":
                self.results.append(given[0])
            if (name, self.count[name]) == (self.name, self.stop):
                raise self.error
        return called


# --- the three trainings ---------------------------------------------------------------------------------------------
@functools.cache
def osasis_networks():
    frozen = tiny.diffae(config=FROZEN)
    return FrozenNetworks(frozen, tiny.clip(), EncoderDistance(frozen.encoder), "model")


@functools.cache
def face_networks():
    with seeded(0, "weights"):
        net = MMFS(MODEL).eval().requires_grad_(False)
    return FaceNetworks(net, tiny.clip(), EncoderKeys(tiny.diffae().encoder, image_size=32), "model")


def run_osasis(hooks, checkpointing):
    pictures = tiny.pictures(1, 1, 16), tiny.pictures(1, 2, 16)
    return tune_style(osasis_networks(), *pictures, OSASIS, None, checkpointing, hooks)[1]


def run_few_shot(hooks, checkpointing, config=FEW_SHOT):
    reference = Reference(pictures=[((tiny.pictures(1, 2)[0] + 1) * 127.5).byte()])
    return tune_mmfs(face_networks(), reference, tiny.pictures(3, 5), config, checkpointing, hooks)[1]


def run_gan(hooks, checkpointing):
    stage = make("mmfs-stage2", steps=2).stage
    return run_stage(stage, {}, RunConfig(CPU, checkpointing), hooks)


TRAININGS = {"osasis": run_osasis, "few-shot": run_few_shot, "gan": run_gan}


@pytest.fixture(scope="module")
def whole():
    """{name: (the finished run, calls)} of uninterrupted trainings, each made once."""
    made = {}

    def get(name):
        if name not in made:
            calls = Calls()
            made[name] = TRAININGS[name](calls.hooks(), Checkpointing()), calls
        return made[name]
    return get


def state(run):
    return snapshot(run)[0]


# --- stopped and resumed ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "hook", "every"), [
    *((name, hook, 0) for name in TRAININGS for hook in HOOKS),
    ("osasis", "on_step", 1), ("few-shot", "on_iteration", 1), ("gan", "on_iteration", 1)])
def test_stopped_in_a_call_of_any_hook_and_resumed_it_is_the_uninterrupted_run(name, hook, every, whole, tmp_path):
    expected, calls = whole(name)
    total = calls.count[hook]
    assert total
    for stop in sorted({1, total // 2, total - 1, total} - {0}):
        path = tmp_path / f"{stop}.snapshot"
        with pytest.raises(Stop):
            TRAININGS[name](Calls(hook, stop).hooks(), Checkpointing(path, every))
        torch.manual_seed(stop)
        again = Calls()
        run = TRAININGS[name](again.hooks(), Checkpointing(path, every))
        assert run.loss_history == expected.loss_history, stop
        assert tiny.same(state(run), state(expected)), stop
        assert store.peek(path).meta["step"] == run.step == expected.step
        if hook == "on_step" and name != "gan":  # nothing that was reached is done again
            assert calls.count[hook] == stop + again.count[hook] or stop == total


def test_an_iteration_of_osasis_is_resumed_in_its_middle(tmp_path, whole):
    path = tmp_path / "a.snapshot"
    with pytest.raises(Stop):
        run_osasis(Calls("on_step", 5).hooks(), Checkpointing(path))
    again = Calls()
    run_osasis(again.hooks(), Checkpointing(path))
    assert again.started == [(1, 2)] and [r.index for r in again.results] == [0]
    _, calls = whole("osasis")
    assert torch.equal(again.results[0].predictions, calls.results[-1].predictions)
    assert {k: float(v) for k, v in again.results[0].losses.items()} == {
        k: float(v) for k, v in calls.results[-1].losses.items()}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, torch.OutOfMemoryError])
def test_whatever_stops_it_is_saved(error, tmp_path):
    with pytest.raises(error):
        run_few_shot(Calls("on_iteration", 2, error).hooks(), Checkpointing(tmp_path / "a.snapshot"))
    assert store.peek(tmp_path / "a.snapshot").meta["step"] == 2


@pytest.mark.parametrize("every", [0, 1, 2, 50])
@pytest.mark.parametrize("name", TRAININGS)
def test_the_end_is_always_saved_if_there_is_a_path(name, every, tmp_path):
    run = TRAININGS[name](Hooks(), Checkpointing(tmp_path / "a.snapshot", every))
    assert store.peek(tmp_path / "a.snapshot").meta["step"] == run.step > 1
    assert not list(tmp_path.glob(".*"))


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_few_shot(Hooks(), Checkpointing(None, 1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failure", [OSError("disk full"), RuntimeError("x"), ValueError("x"), KeyError("x"),
                                     Exception("of the library that writes")])
def test_a_save_that_fails_does_not_hide_what_stopped_the_run(failure, caplog):
    def save(run):
        raise failure

    run = a_run()
    with caplog.at_level(logging.WARNING), pytest.raises(Stop):
        train(run, stepper(run), LoopConfig(5), CPU, Calls("on_iteration", 2).hooks(), save)
    assert "could not be saved at step 2" in caplog.text and run.step == 2


# --- not saved: what is half done ------------------------------------------------------------------------------------
def a_run():
    with seeded(0, "weights"):
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizers = {name: torch.optim.Adam(part.parameters(), 0.1) for name, part in zip("ab", net)}
    return Run({"net": net}, optimizers, {"net": ema_copy(net)})


def stepper(run, spoil=lambda k, losses: losses):
    def step(k, hooks):
        loss = (run.nets["net"](torch.randn(2, 3)) - 1).square().mean()
        run.nets["net"].zero_grad()
        loss.backward()
        for optimizer in run.optimizers.values():
            optimizer.step()
        return spoil(k, {"first": loss.detach(), "loss": 2 * loss.detach()})
    return step


def test_an_error_between_two_optimisers_leaves_the_last_snapshot(monkeypatch):
    run, saved = a_run(), []

    def broken(*_):
        if run.step == 3:
            raise torch.OutOfMemoryError

    run.optimizers["b"].register_step_pre_hook(broken)
    with pytest.raises(torch.OutOfMemoryError):
        train(run, stepper(run), LoopConfig(5, save_every=2), CPU, save=lambda r: saved.append(r.step))
    assert saved == [2] and run.step == 3
    assert not any(o._optimizer_step_pre_hooks for name, o in run.optimizers.items() if name == "a")


def test_an_error_before_an_update_saves_what_was_reached():
    run, saved = a_run(), []
    plain = stepper(run)

    def step(k, hooks):
        if k == 3:
            raise torch.OutOfMemoryError
        return plain(k, hooks)

    with pytest.raises(torch.OutOfMemoryError):
        train(run, step, LoopConfig(5, save_every=2), CPU, save=lambda r: saved.append(r.step))
    assert saved == [2, 3]


# --- losses that are no numbers --------------------------------------------------------------------------------------
def nan_at(step, name="first", value=math.nan):
    return lambda k, losses: losses | {name: torch.tensor(value)} if k >= step else losses


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("log_every", [1, 4, 100])
@pytest.mark.parametrize("save_every", [0, 2, 3])
def test_the_first_loss_that_is_no_number_stops_the_run_and_is_named(value, log_every, save_every):
    run, saved = a_run(), []
    with pytest.raises(NonFiniteLoss, match=f"the loss 'first' became {value} at step 6"):
        train(run, stepper(run, nan_at(5, value=value)), LoopConfig(20, save_every=save_every, log_every=log_every),
              CPU, save=lambda r: saved.append(r.step))
    assert saved == {0: [], 2: [2, 4], 3: [3]}[save_every]
    assert all(math.isfinite(v) for values in run.loss_history.values() for v in values)


def test_a_run_that_is_stopped_before_its_losses_were_checked_is_not_saved_with_them(caplog):
    run, saved = a_run(), []
    with pytest.raises(Stop):
        train(run, stepper(run, nan_at(5, "loss")), LoopConfig(50, log_every=50), CPU,
              Calls("on_iteration", 8).hooks(), lambda r: saved.append(r.step))
    assert saved == [] and "the loss 'loss' became nan at step 6" in caplog.text


class Spoiled(nn.Module):
    """A perceptual distance that is NaN from its n-th call on."""

    def __init__(self, first):
        super().__init__()
        self.left = first

    def forward(self, a, b):
        self.left -= 1
        return (a - b).abs().mean((1, 2, 3)) * (math.nan if self.left <= 0 else 1.0)


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("first", [1, 2, 4, 5, 6])
def test_osasis_stops_at_the_optimiser_step_whose_loss_is_no_number(first, every, tmp_path):
    path, calls = tmp_path / "a.snapshot", Calls()
    nets = replace(osasis_networks(), perceptual=Spoiled(first))
    with pytest.raises(NonFiniteLoss, match=f"'perceptual' became nan at step {1 + (first - 1) // 3}"):
        tune_style(nets, tiny.pictures(1, 1, 16), tiny.pictures(1, 2, 16), OSASIS, None, Checkpointing(path, every),
                   calls.hooks())
    assert calls.count["on_step"] == first - 1
    assert path.exists() == (every == 1 and first > 3)
    if path.exists():
        assert all(torch.isfinite(t).all() for t in store.load(path).tensors.values() if t.is_floating_point())


def test_a_snapshot_stays_as_it_was_when_a_resumed_run_breaks_down(tmp_path, monkeypatch):
    path = tmp_path / "a.snapshot"
    run_few_shot(Hooks(), Checkpointing(path), replace(FEW_SHOT, iterations=2))
    before = path.read_bytes()
    monkeypatch.setattr(fewshot.losses, "clip_loss", lambda *a: a[1].sum() * math.nan)
    with pytest.raises(NonFiniteLoss, match="the loss 'clip' became nan at step 3"):
        run_few_shot(Hooks(), Checkpointing(path, 1))
    assert path.read_bytes() == before


def test_a_gan_that_breaks_down_names_its_term(tmp_path, monkeypatch):
    plain = gan.gradient_penalty
    monkeypatch.setattr(gan, "gradient_penalty", lambda *a: plain(*a) * math.nan)
    with pytest.raises(NonFiniteLoss, match="the loss 'r1' became nan at step 1"):
        run_gan(Hooks(), Checkpointing(tmp_path / "a.snapshot"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("lr", "times"), [(1.0, 1), (1e-3, 0)])
@pytest.mark.parametrize("name", ["osasis", "few-shot"])
def test_a_learning_rate_that_makes_all_pictures_one_colour_is_warned_of_once(name, lr, times, monkeypatch):
    said = []
    monkeypatch.setitem(globals(), "OSASIS", replace(OSASIS, lr=lr, iterations=3))
    monkeypatch.setitem(globals(), "FEW_SHOT", replace(FEW_SHOT, lr=lr, iterations=8))
    hooks, checkpointing = Hooks(warn=said.append), Checkpointing()
    run_osasis(hooks, checkpointing) if name == "osasis" else run_few_shot(hooks, checkpointing, FEW_SHOT)
    assert len(said) == times and all("one flat colour" in text and "lower the learning rate" in text for text in said)


def test_the_trainings_here_have_all_that_could_be_forgotten():
    """Dropout, an SPN, several optimiser steps an iteration, parts of a batch, random codes, a moving average."""
    assert OSASIS.dropout and OSASIS.spn == "timed" and SMALL.dropout and len(OSASIS.indices) == 3
    assert FEW_SHOT.mapper_dropout and FEW_SHOT.micro_batch and MODEL.mapper.dropout
    assert osasis.start(tiny.diffae(config=FROZEN), OSASIS).nets["unet"].training
