"""Training on several processes: how the work is shared, and that two give what one gives (as threads)."""
from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from oneshot_atelier.models.stylegan2 import minibatch_stddev
from oneshot_atelier.tests.tiny_stages import CALM, CPU, STAGES, make
from oneshot_atelier.train import loop
from oneshot_atelier.train.distributed import SINGLE_PROCESS, Distributed, Draws
from oneshot_atelier.train.loop import Checkpointing, Hooks, LoopConfig, Run, train
from oneshot_atelier.train.stages import RunConfig, run_stage


class Exchange:
    """What Accelerate does between processes, between threads: distributed(rank) averages with the others."""

    def __init__(self, size: int):
        self.size, self.barrier, self.given = size, threading.Barrier(size, timeout=60), [None] * size

    def distributed(self, rank: int) -> Distributed:
        def mean(tensor):
            self.given[rank] = tensor.clone()
            self.barrier.wait()
            found = sum(self.given) / self.size
            self.barrier.wait()
            return found
        return Distributed(rank, self.size, mean)

    def run(self, work, *given):
        """[work(member) of each], all at once; of the processes if nothing is given."""
        with ThreadPoolExecutor(self.size) as pool:
            members = given or [self.distributed(rank) for rank in range(self.size)]
            return [f.result(timeout=60) for f in [pool.submit(work, member) for member in members]]


# --- sharing -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch, group, size", [(8, 4, 2), (8, 1, 2), (16, 4, 2), (16, 4, 4), (12, 4, 3), (16, 8, 2)])
def test_every_sample_has_one_process_and_every_group_of_the_discriminator_too(batch, group, size):
    rows = [Distributed(rank, size).rows(batch, group) for rank in range(size)]
    assert sorted(torch.cat(rows).tolist()) == list(range(batch))
    x = torch.randn(batch, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    whole = minibatch_stddev(x, group)
    for mine in rows:
        assert torch.allclose(minibatch_stddev(x[mine], group), whole[mine], atol=1e-6)


def test_one_process_takes_all_and_a_batch_that_cannot_be_shared_is_refused():
    assert SINGLE_PROCESS.is_main_process and not Distributed(1, 2).is_main_process
    assert SINGLE_PROCESS.rows(7, 4).tolist() == list(range(7))
    for batch, size, said in ((4, 2, "multiple of 8"), (12, 2, "multiple of 8"), (2, 2, "multiple of 4")):
        with pytest.raises(ValueError, match=f"a batch of {batch} cannot be shared by {size} processes.*{said}"):
            Distributed(0, size).rows(batch, 4)


def test_draws_are_those_of_the_whole_batch():
    def draws(rows):
        return Draws(torch.Generator().manual_seed(3), 8, rows)
    rows = Distributed(1, 2).rows(8, 4)
    whole, part = draws(torch.arange(8)), draws(rows)
    assert torch.equal(part.normal(5), whole.normal(5)[rows])
    assert all(torch.equal(a, b[rows]) for a, b in zip(part.noise([(4, 4), (8, 8)]), whole.noise([(4, 4), (8, 8)])))
    found = whole.uniform(1000)
    assert torch.equal(part.uniform(1000), found[rows]) and -1 <= found.min() < -0.99 and 0.99 < found.max() <= 1


def test_gradients_and_losses_are_averaged():
    def work(distributed):
        net = torch.nn.Linear(2, 1)
        net.weight.grad = torch.tensor([[1.0, 2.0]]) * (distributed.rank + 1)
        frozen = torch.nn.Parameter(torch.zeros(3))
        distributed.average_gradients([net.weight, net.bias, frozen])
        losses = {"a": torch.tensor(float(distributed.rank)), "b": torch.tensor(4.0)}
        return net.weight.grad, frozen.grad, distributed.average_losses(losses)
    for gradient, none, losses in Exchange(2).run(work):
        assert gradient.tolist() == [[1.5, 3.0]] and none is None
        assert {k: float(v) for k, v in losses.items()} == {"a": 0.5, "b": 4.0}


@pytest.mark.parametrize("rank, expected", [(0, True), (1, False)])
def test_the_main_process_answers_for_all(rank, expected):
    found = Exchange(3).run(lambda distributed: distributed.broadcast_flag(distributed.rank == rank, CPU))
    assert found == [expected] * 3
    assert SINGLE_PROCESS.broadcast_flag(True, CPU) and not SINGLE_PROCESS.broadcast_flag(False, CPU)


# --- the time limit ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("slow", [0, 1])
@pytest.mark.parametrize("log_every", [1, 3])
def test_processes_whose_clocks_differ_stop_at_the_same_step(monkeypatch, slow, log_every):
    """The main process's clock decides, at a logged step; a step takes the slow one a minute, the other 50 seconds."""
    clocks = {}

    def monotonic():
        me = threading.get_ident()
        clocks.setdefault(me, [0, 60])
        clocks[me][0] += clocks[me][1]
        return clocks[me][0]
    monkeypatch.setattr(loop.time, "monotonic", monotonic)
    # torch's own generator is shared by threads
    monkeypatch.setattr(loop.rng, "seeded", lambda *_, **__: threading.Lock())

    def work(distributed):
        clocks[threading.get_ident()] = [0, 60 if distributed.rank == slow else 50]
        saved = []
        run = train(Run({}, {}), lambda k, hooks: {}, LoopConfig(100, minutes=10, log_every=log_every), CPU,
                    save=lambda r: saved.append(r.step),
                    broadcast_flag=lambda late: distributed.broadcast_flag(late, CPU))
        return run.step, saved
    steps = {(0, 1): 11, (1, 1): 13, (0, 3): 12, (1, 3): 15}[slow, log_every]
    assert Exchange(2).run(work) == [(steps, [steps])] * 2


def test_processes_without_a_limit_are_not_asked():
    train(Run({}, {}), lambda k, hooks: {}, LoopConfig(3), CPU,
          broadcast_flag=lambda late: pytest.fail("nothing to agree on"))


# --- stopping ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("told, when, steps", [(0, 3, 5), (1, 3, 5), (1, 5, 5), (0, 0, 0)])
def test_one_process_that_is_to_stop_stops_all_at_the_same_step(monkeypatch, told, when, steps):
    """They ask each other at their first step and at every fifth one; nothing stops one of them within a step."""
    monkeypatch.setattr(loop.rng, "seeded", lambda *_, **__: threading.Lock())  # torch's own is shared by threads

    class Stop(Exception):
        """As a signal is told."""

    def work(distributed):
        saved, run = [], Run({}, {})

        def check():
            if distributed.rank == told and run.step >= when:
                raise Stop

        def step(k, hooks):
            hooks.check_interrupt()
            return {}
        with pytest.raises(Stop if distributed.rank == told else loop.StoppedTogether):
            train(run, step, LoopConfig(100), CPU, Hooks(check_interrupt=check), lambda r: saved.append(r.step),
                  any_flag=lambda answer: distributed.any_flag(answer, CPU))
        return run.step, saved
    assert Exchange(2).run(work) == [(steps, [steps] if steps else [])] * 2


# --- the same as one process: threads ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", STAGES)
def test_the_first_gradients_are_those_of_one_process(name):
    """Before any optimiser step; they may differ by rounding, 1e-5 of the largest of their tensor."""
    def built(distributed):
        return make(name, distributed, CALM, batch=8, lr=0.0)

    def gradients(t):
        losses = t.stage.step(0, Hooks())
        found = [p.grad for net in (t.net, t.discriminator) for p in net.parameters()]
        return {k: float(v) for k, v in losses.items()}, found

    losses, alone = gradients(built(SINGLE_PROCESS))
    two = Exchange(2)
    for others, together in two.run(gradients, built(two.distributed(0)), built(two.distributed(1))):
        assert others == pytest.approx(losses, rel=1e-5)
        for a, b in zip(alone, together, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(a.abs().max()) + 1e-9)
    assert sum(a is not None for a in alone) > 5


def test_adaptive_augmentation_has_one_probability_in_all_processes():
    """It follows the whole batch; weights stay as they are."""
    def built(distributed):
        return make("stylegan2", distributed, batch=8, lr=0.0, ada_target=0.01, ada_kimg=1)

    def followed(t):
        losses = [t.stage.step(k, Hooks()) for k in range(9)]
        return [float(x[name]) for x in losses for name in ("real_sign", "augmented")]
    alone, two = followed(built(SINGLE_PROCESS)), Exchange(2)
    for together in two.run(followed, built(two.distributed(0)), built(two.distributed(1))):
        assert together == pytest.approx(alone)
    assert max(alone[1::2]) > 0 and len(set(alone[::2])) > 1


@pytest.mark.parametrize("name", STAGES)
def test_the_other_processes_keep_nothing(name, tmp_path):
    """All but the main process train and write no snapshot."""
    t = make(name, Distributed(1, 1), CALM, steps=1)
    config = RunConfig(CPU, Checkpointing(tmp_path / "a.snapshot", 1), distributed=Distributed(1, 1))
    run_stage(t.stage, {}, config)
    assert not list(tmp_path.iterdir()) and t.stage.run.step == 1
