"""The training loop: seeds, averages, saving, time limit, exact resume."""

import copy
import itertools

import pytest
import torch
from torch import nn

from oneshot_atelier.models.checkpoints import store
from oneshot_atelier.train import loop
from oneshot_atelier.train.loop import LoopConfig, Run, average_of, restore, seeded, snapshot, step_seed, train

CPU = torch.device("cpu")


def a_run(average=True):
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape) + i)
    averages = {"net": average_of(net)} if average else {}
    return Run({"net": net}, {"net": torch.optim.AdamW(net.parameters(), 0.05)}, averages)


def stepper(run):
    """A step whose data, dropout and learning all depend on random numbers."""
    def step(k):
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
def test_step_seeds_are_all_different_and_usable():
    given = itertools.product((*range(30), 2 ** 63, 2 ** 64 - 1), range(-50, 500))
    seeds = {step_seed(seed, step) for seed, step in given}
    assert len(seeds) == 32 * 550 and all(0 <= s < 2 ** 63 for s in seeds)


def test_neighbouring_steps_draw_unrelated_numbers():
    rows = []
    for seed, step in itertools.product(range(4), range(64)):
        rows.append(torch.randn(256, generator=torch.Generator().manual_seed(step_seed(seed, step))))
    correlation = torch.corrcoef(torch.stack(rows)) - torch.eye(256)
    assert correlation.abs().max() < 0.35  # 5.6 standard deviations
    bits = torch.tensor([[step_seed(s, k) >> b & 1 for b in range(63)] for s in range(8) for k in range(64)]).float()
    assert (bits.mean(0) - 0.5).abs().max() < 0.15


def test_seeded_blocks_fix_the_numbers_inside_and_restore_the_outside_even_on_error():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with pytest.raises(KeyError), seeded(5, CPU):
            drawn.append(torch.rand(3))
            raise KeyError
    assert torch.equal(*drawn) and torch.equal(before, torch.get_rng_state())


def test_the_numbers_of_a_step_depend_on_the_seed_and_the_step_alone():
    def numbers(first, last, seed):
        run, seen = a_run(average=False), {}
        run.step = first

        def step(k):
            seen[k] = torch.rand(2)
            return {}

        train(run, step, LoopConfig(last, seed), CPU)
        return seen

    whole, late = numbers(0, 6, 1), numbers(4, 6, 1)
    assert list(whole) == list(range(6)) and all(torch.equal(whole[k], late[k]) for k in (4, 5))
    assert len({tuple(v.tolist()) for v in whole.values()}) == 6
    assert not torch.equal(whole[0], numbers(0, 1, 2)[0])


# --- averages ----------------------------------------------------------------------------------------------------
def test_the_moving_average_has_its_closed_form():
    run = a_run()
    weight = run.nets["net"][0].weight
    expected, start = weight.detach().clone(), weight.detach().clone()

    def step(k):
        with torch.no_grad():
            weight.copy_(start + k + 1)
        return {}

    train(run, step, LoopConfig(30, average=0.9), CPU)
    for k in range(30):
        decay = min(0.9, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * (start + k + 1)
    average = run.averages["net"]
    assert torch.allclose(average[0].weight, expected, atol=1e-4)
    assert not average.training and not any(p.requires_grad for p in average.parameters())
    assert torch.equal(weight, start + 30)


def test_a_run_without_averages_has_none():
    run = train(a_run(average=False), lambda k: {}, LoopConfig(2, average=0.9), CPU)
    assert run.averages == {} and run.step == 2


# --- saving, telling, stopping -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("every", "start", "expected"), [(3, 0, [3, 6, 9]), (5, 0, [5, 10]), (0, 0, []), (20, 0, []),
                                                          (4, 6, [8])])
def test_saves_come_every_so_many_steps(every, start, expected):
    saved, run = [], a_run()
    run.step = start
    train(run, stepper(run), LoopConfig(10, save_every=every), CPU, save=lambda r: saved.append(r.step))
    assert saved == expected and run.step == 10


def test_losses_are_logged_at_their_cadence_and_at_the_end():
    told, run = [], a_run()
    train(run, stepper(run), LoopConfig(7, log_every=3), CPU, callback=told.append)
    assert [p.step for p in told] == list(range(1, 8)) and {p.steps for p in told} == {7}
    assert [bool(p.losses) for p in told] == [False, False, True, False, False, True, True]
    assert run.history["loss"] == [p.losses["loss"] for p in told if p.losses] and len(run.history["double"]) == 3


def test_a_callback_that_raises_stops_after_its_step():
    run = a_run()

    def stop(progress):
        if progress.step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(run, stepper(run), LoopConfig(10), CPU, callback=stop)
    assert run.step == 3 and len(run.history["loss"]) == 3


def test_a_time_limit_saves_and_stops_and_the_run_goes_on_later(monkeypatch):
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
    train(run, lambda k: pytest.fail("no step is left"), LoopConfig(5), CPU)
    assert same(before, state(run))


# --- snapshots ---------------------------------------------------------------------------------------------------
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    config = LoopConfig(9, seed=4, average=0.9)
    whole = train((r := a_run()), stepper(r), config, CPU)
    part = train((r := a_run()), stepper(r), LoopConfig(4, seed=4, average=0.9), CPU)
    tensors, meta = snapshot(part)
    path = store.save(tmp_path / "a.snapshot", tensors, "snapshot", {}, meta, dtype=None)
    torch.manual_seed(77)
    again, stored = a_run(), store.load(path, "snapshot")
    restore(again, stored.tensors, stored.meta)
    train(again, stepper(again), config, CPU)
    assert same(state(again), state(whole)) and again.history == whole.history
    assert not same(state(again), state(part))


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
