"""The training loop: seeds, averages, saving, time limit, exact resume."""

import copy
import itertools
import re

import pytest
import torch
from torch import nn

from oneshot_atelier.models.checkpoints import CheckpointError, store
from oneshot_atelier.models.loading import load_snapshot
from oneshot_atelier.models.rng import seeded
from oneshot_atelier.train import loop
from oneshot_atelier.train.loop import Hooks, LoopConfig, Run, ema_copy, restore, snapshot, train

CPU = torch.device("cpu")


def a_run(average=True):
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape) + i)
    ema = {"net": ema_copy(net)} if average else {}
    return Run({"net": net}, {"net": torch.optim.AdamW(net.parameters(), 0.05)}, ema)


def stepper(run):
    """A step whose data, dropout and learning all depend on random numbers."""
    def step(k, hooks):
        loss = (run.nets["net"](torch.randn(3, 4)) - 1).square().mean()
        run.optimizers["net"].zero_grad()
        loss.backward()
        run.optimizers["net"].step()
        return {"loss": loss.detach(), "double": 2 * loss.detach()}
    return step


def state(run):
    return snapshot(run)[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- seeds -------------------------------------------------------------------------------------------------------
def test_seeded_blocks_fix_the_numbers_inside_and_restore_the_outside_even_on_error():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with pytest.raises(KeyError), seeded(5, "x"):
            drawn.append(torch.rand(3))
            raise KeyError
    assert torch.equal(*drawn) and torch.equal(before, torch.get_rng_state())


def test_the_numbers_of_a_step_depend_on_the_seed_and_the_step_alone():
    def numbers(first, last, seed):
        run, seen = a_run(average=False), {}
        run.step = first

        def step(k, hooks):
            seen[k] = torch.rand(2)
            return {}

        train(run, step, LoopConfig(last, seed), CPU)
        return seen

    whole, late = numbers(0, 6, 1), numbers(4, 6, 1)
    assert list(whole) == list(range(6)) and all(torch.equal(whole[k], late[k]) for k in (4, 5))
    assert len({tuple(v.tolist()) for v in whole.values()}) == 6
    assert not torch.equal(whole[0], numbers(0, 1, 2)[0])


# --- averages ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ramp", [False, True])
def test_the_moving_average_has_its_closed_form(ramp):
    """It starts as a copy; the official one's decay is constant."""
    run = a_run()
    weight = run.nets["net"][0].weight
    expected, start = weight.detach().clone(), weight.detach().clone()

    def step(k, hooks):
        with torch.no_grad():
            weight.copy_(start + k + 1)
        return {}

    train(run, step, LoopConfig(30, ema_decay=0.9, ema_ramp=ramp), CPU)
    for k in range(30):
        decay = min(0.9, (1 + k) / (10 + k)) if ramp else 0.9
        expected = decay * expected + (1 - decay) * (start + k + 1)
    average = run.ema["net"]
    assert torch.allclose(average[0].weight, expected, atol=1e-4)
    assert not average.training and not any(p.requires_grad for p in average.parameters())
    assert torch.equal(weight, start + 30)


def test_a_run_without_averages_has_none():
    run = train(a_run(average=False), lambda k, hooks: {}, LoopConfig(2, ema_decay=0.9), CPU)
    assert run.ema == {} and run.step == 2


# --- saving, telling, stopping -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("every", "start", "expected"), [(3, 0, [3, 6, 9, 10]), (5, 0, [5, 10]), (0, 0, [10]),
                                                          (20, 0, [10]), (4, 6, [8, 10]), (0, 10, [])])
def test_saves_come_every_n_steps_and_at_the_end(every, start, expected):
    saved, run = [], a_run()
    run.step = start
    train(run, stepper(run), LoopConfig(10, save_every=every), CPU, save=lambda r: saved.append(r.step))
    assert saved == expected and run.step == 10


def test_losses_are_logged_at_their_cadence_and_at_the_end():
    told, run = [], a_run()
    train(run, stepper(run), LoopConfig(7, log_every=3), CPU, hooks=Hooks(on_iteration=told.append))
    assert [p.step for p in told] == list(range(1, 8)) and {p.steps for p in told} == {7}
    assert [bool(p.losses) for p in told] == [False, False, True, False, False, True, True]
    assert run.loss_history["loss"] == [p.losses["loss"] for p in told if p.losses]
    assert len(run.loss_history["double"]) == 3


def test_what_is_measured_after_a_step_is_saved_with_it():
    saved, run = [], a_run()

    def measure(progress):
        run.loss_history.setdefault("measured", []).append(float(progress.step))
    train(run, stepper(run), LoopConfig(4, save_every=2), CPU, Hooks(on_iteration=measure),
          save=lambda r: saved.append(list(r.loss_history["measured"])))
    assert saved == [[1, 2], [1, 2, 3, 4]]


def test_a_callback_that_raises_stops_after_its_step():
    run = a_run()

    def stop(progress):
        if progress.step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(run, stepper(run), LoopConfig(10), CPU, hooks=Hooks(on_iteration=stop))
    assert run.step == 3 and len(run.loss_history["loss"]) == 3


def test_a_time_limit_saves_and_stops_and_the_run_resumes_later(monkeypatch):
    clock = itertools.count(0, 30)  # half a minute a look
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    saved, run = [], a_run()
    train(run, stepper(run), LoopConfig(100, minutes=2), CPU, save=lambda r: saved.append(r.step))
    assert run.step == 5 and saved == [5]
    train(run, stepper(run), LoopConfig(7), CPU)
    assert run.step == 7


def test_a_finished_run_does_nothing():
    run = a_run()
    run.step = 5
    before = state(run)
    train(run, lambda k, hooks: pytest.fail("no step is left"), LoopConfig(5), CPU)
    assert same(before, state(run))


# --- saves that fail ---------------------------------------------------------------------------------------------
def failing(saved, *at, error=None):
    """A save that fails at these steps."""
    def save(run):
        if run.step in at:
            raise error or CheckpointError("a.snapshot could not be written to /out (No space left on device)")
        saved.append(run.step)
    return save


@pytest.mark.parametrize("error", [None, OSError("disk full"), ValueError("no number")])
def test_a_save_that_fails_is_warned_of_and_the_training_continues_to_the_next_one(error):
    run, saved, said = a_run(), [], []
    train(run, stepper(run), LoopConfig(7, save_every=2), CPU, Hooks(warn=said.append),
          failing(saved, 4, error=error))
    assert saved == [2, 6, 7] and run.step == 7 and len(said) == 1
    assert "could not be saved at step 4: " in said[0] and "the next save tries again" in said[0]


@pytest.mark.parametrize("error", [None, OSError("disk full")])
def test_a_last_save_that_fails_is_told_and_leaves_the_result_to_the_caller(error):
    run, saved, said = a_run(), [], []
    found = train(run, stepper(run), LoopConfig(5, save_every=2), CPU, Hooks(warn=said.append),
                  failing(saved, 5, error=error))
    assert found.step == 5 and saved == [2, 4] and len(said) == 1
    assert re.search("at step 5: .*(No space|disk full).*its result can be used and saved elsewhere", said[0])


def test_a_save_that_fails_at_the_time_limit_is_the_last_one_too(monkeypatch):
    clock = itertools.count(0, 30)
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    run, said = a_run(), []
    train(run, stepper(run), LoopConfig(100, minutes=2), CPU, Hooks(warn=said.append), failing([], 5))
    assert run.step == 5 and "could not be saved at step 5" in said[0] and "elsewhere" in said[0]


def test_what_a_failed_save_left_open_is_saved_when_the_run_is_stopped():
    run, saved, failures = a_run(), [], [1]

    def save(run):
        if failures:
            failures.pop()
            raise OSError("disk full")
        saved.append(run.step)

    def stop():
        if run.step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(run, stepper(run), LoopConfig(9, save_every=2), CPU, Hooks(check_interrupt=stop, warn=[].append), save)
    assert saved == [2]


@pytest.mark.parametrize("error", [KeyError, ValueError, RuntimeError, KeyboardInterrupt])
def test_an_error_of_a_step_is_raised_as_it_is_and_what_was_reached_before_it_is_saved(error):
    run, saved = a_run(), []
    plain = stepper(run)

    def step(k, hooks):
        if k == 3:
            raise error("of the step")
        return plain(k, hooks)

    with pytest.raises(error, match="of the step"):
        train(run, step, LoopConfig(9), CPU, save=lambda r: saved.append(r.step))
    assert saved == [3]


# --- snapshots ---------------------------------------------------------------------------------------------------
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    config = LoopConfig(9, seed=4, ema_decay=0.9)
    whole = train((r := a_run()), stepper(r), config, CPU)
    part = train((r := a_run()), stepper(r), LoopConfig(4, seed=4, ema_decay=0.9), CPU)
    tensors, meta = snapshot(part)
    path = store.save(tmp_path / "a.snapshot", tensors, "snapshot", {}, meta, dtype=None)
    torch.manual_seed(77)
    again, stored = a_run(), store.load(path, "snapshot")
    restore(again, stored.tensors, stored.meta)
    train(again, stepper(again), config, CPU)
    assert same(state(again), state(whole)) and again.loss_history == whole.loss_history
    assert not same(state(again), state(part))


def test_histories_as_long_as_the_longest_training_are_saved_and_resumed(tmp_path):
    """The nodes allow 10,000,000 steps; in the header of a file there is room for fewer than 100,000 of two losses."""
    run = a_run()
    run.step, run.loss_history = 10_000_000, {"loss": [0.1, 2 / 3] * 5_000_000, "r1": [0.25] * 625_000, "none": []}
    tensors, meta = snapshot(run)
    path = store.save(tmp_path / "a.snapshot", tensors, "snapshot", {}, meta, dtype=None)
    again, stored = a_run(), load_snapshot(path)
    restore(again, stored.tensors, stored.meta)
    assert again.step == run.step and again.loss_history == run.loss_history


def test_histories_in_the_header_of_an_older_snapshot_are_read(tmp_path):
    run, again = a_run(), a_run()
    tensors, meta = snapshot(run)
    path = store.save(tmp_path / "a", tensors, "snapshot", {}, meta | {"loss_history": {"loss": [1.0, 0.5]}}, None)
    stored = load_snapshot(path)
    restore(again, stored.tensors, stored.meta)
    assert again.loss_history == {"loss": [1.0, 0.5]}


def test_a_snapshot_is_a_copy():
    run = train((r := a_run()), stepper(r), LoopConfig(2), CPU)
    tensors, meta = snapshot(run)
    kept, steps = copy.deepcopy(tensors), meta["step"]
    train(run, stepper(run), LoopConfig(4), CPU)
    assert steps == 2 and same(kept, {k: v.clone() for k, v in tensors.items()})


def test_a_snapshot_of_another_network_is_refused():
    tensors, meta = snapshot(a_run())
    other = nn.Linear(4, 8)
    with pytest.raises(RuntimeError):
        restore(Run({"net": other}, {"net": torch.optim.AdamW(other.parameters())}), tensors, meta)
