"""Codes of photos are computed once: in memory for the nodes; what lies on the device in a training."""
from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from oneshot_atelier.tests import tiny_models
from oneshot_atelier.tests.node_tools import picture

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("comfy")]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_models.write(tmp_path_factory.mktemp("demo"))


class Calls:
    """Counts the calls of a DiffAE's networks."""

    def __init__(self, diffae):
        self.count = 0
        for net in (diffae.net.encoder, diffae.net.unet):
            net.register_forward_hook(self.add)

    def add(self, *_):
        self.count += 1

    def of(self, work):
        """(what it gives, the calls that it makes)."""
        self.count = 0
        return work(), self.count


@pytest.fixture
def diffae(nodes):
    return nodes.LoadDiffAE.execute("demo")[0]


@pytest.fixture
def structure(nodes):
    """structure(diffae, seed of the picture, steps, t0, style, count) -> the structural code."""
    def run(diffae, seed=5, steps=10, t0=0.5, style=None, count=1, semantic=None):
        return nodes.StructuralEncode.execute(diffae, picture(seed, count), steps, t0, semantic, style)[0]
    return run


def style_of(nodes, t0):
    """As far as Encode Structure looks at it."""
    class Style:
        settings = nodes.osasis.SamplingSettings(t0)
    return Style()


# --- the nodes -------------------------------------------------------------------------------------------------------
def test_a_second_style_of_the_same_photo_calls_no_network(nodes, diffae, structure):
    calls = Calls(diffae)
    first, made = calls.of(lambda: structure(diffae, t0=-1.0, style=style_of(nodes, 0.5)))
    again, more = calls.of(lambda: structure(diffae, t0=-1.0, style=style_of(nodes, 0.5)))
    assert made == 6 and more == 0, "the encoder, and five steps"
    assert torch.equal(first.x, again.x) and torch.equal(first.picture, again.picture)
    assert calls.of(lambda: structure(diffae))[1] == 0, "the same t0, without a style"
    z, more = calls.of(lambda: nodes.SemanticEncode.execute(diffae, picture(5))[0])
    assert more == 0 and torch.equal(z.z, diffae.net.encode(first.picture))
    assert calls.of(lambda: structure(diffae, semantic=z))[1] == 0, "z given, and the same"


def test_what_a_code_depends_on_is_computed_for_each(nodes, diffae, structure):
    calls = Calls(diffae)
    structure(diffae)
    assert calls.of(lambda: structure(diffae, t0=0.3))[1] == 3
    assert calls.of(lambda: structure(diffae, t0=-1.0, style=style_of(nodes, 0.7)))[1] == 7
    assert calls.of(lambda: structure(diffae, steps=20))[1] == 10
    assert calls.of(lambda: structure(diffae, seed=6))[1] == 6
    assert calls.of(lambda: structure(diffae, count=2))[1] == 6, "two photos, one batch"
    z = nodes.sockets.SemanticCode(torch.ones(1, diffae.unet.cond), diffae.fingerprint)
    other, more = calls.of(lambda: structure(diffae, semantic=z))
    assert more == 5 and not torch.equal(other.x, structure(diffae).x)
    another = nodes.LoadDiffAE.execute("demo")[0]
    assert Calls(another).of(lambda: structure(another))[1] == 6, "another model has its own codes"


def test_a_cancelled_encoding_keeps_nothing(diffae, structure, nodes, monkeypatch):
    def cancel(*_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr(nodes.host.NodeProgress, "__call__", cancel)
        with pytest.raises(KeyboardInterrupt):
            structure(diffae)
    assert Calls(diffae).of(lambda: structure(diffae))[1] == 6


def test_what_is_kept_counts_as_memory_of_the_model(diffae, structure):
    before = diffae.get_ram_usage()
    code = structure(diffae)
    assert diffae.get_ram_usage() - before == diffae.codes.bytes == 4 * (code.x.numel() + diffae.unet.cond)


# --- the cache -------------------------------------------------------------------------------------------------------
def cache_of(nodes, limit):
    return type(nodes.sockets.DiffAEModel.__dataclass_fields__["codes"].default_factory())(limit)


def filled(cache, names, size=10):
    """The names that had to be made."""
    made = []
    for name in names:
        cache.get({"": torch.zeros(1)}, (name,), lambda name=name: made.append(name) or torch.zeros(size))
    return "".join(made)


def test_the_least_recently_used_leave_and_the_limit_holds(nodes):
    cache = cache_of(nodes, 120)  # three codes of 40 bytes
    assert filled(cache, "abcabc") == "abc" and cache.bytes == 120
    assert filled(cache, "a") == "" and filled(cache, "d") == "d" and cache.bytes == 120
    assert filled(cache, "acd") == "" and filled(cache, "b") == "b"
    assert filled(cache, "x", size=31) == "x" and filled(cache, "cdb") == "", "too large to be kept"
    assert filled(cache, "x", size=31) == "x" and cache.bytes == 120


def test_one_bit_a_shape_or_a_setting_makes_another_code(nodes):
    cache, base = cache_of(nodes, 1 << 20), torch.ones(2, 3)
    moved = base.clone()
    moved[1, 2] += 1e-7
    for given, settings in (({"a": base}, (1, 0.5)), ({"a": moved}, (1, 0.5)), ({"a": base.reshape(3, 2)}, (1, 0.5)),
                            ({"b": base}, (1, 0.5)), ({"a": base}, (2, 0.5)), ({"a": base}, (1, 0.25))):
        expected = torch.rand(1)
        assert cache.get(given, settings, lambda value=expected: value) is expected
        assert cache.get(dict(given), settings, lambda: pytest.fail("made again")) is expected


def test_a_part_of_a_large_tensor_counts_as_the_whole(nodes):
    cache = cache_of(nodes, 100)
    cache.get({"": torch.zeros(1)}, (), lambda: torch.zeros(100)[:1])
    assert cache.bytes == 0


def test_threads_can_use_it_at_once(nodes):
    cache, wrong = cache_of(nodes, 400), []

    def work(seed):
        order = torch.randint(0, 20, (300,), generator=torch.Generator().manual_seed(seed)).tolist()
        for n in order:
            code = cache.get({"": torch.tensor([float(n)])}, (), lambda n=n: torch.full((10,), float(n)))
            if not torch.equal(code, torch.full((10,), float(n))):
                wrong.append(n)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and cache.bytes == 400 == sum(4 * len(code) for code in cache._codes.values())


# --- the device ------------------------------------------------------------------------------------------------------
def test_a_training_finds_nothing_of_this_pack_on_the_device(nodes, diffae, structure):
    import comfy.model_management as mm
    import comfy.model_patcher
    device = mm.get_torch_device()
    theirs = comfy.model_patcher.ModelPatcher(nn.Linear(2, 2), load_device=device, offload_device=device)
    mm.load_models_gpu([theirs])
    structure(diffae)
    loaded = [model.model for model in mm.current_loaded_models]
    assert theirs in loaded and diffae.patched.patcher in loaded
    with nodes.host.trainable(diffae.net):
        loaded = [model.model for model in mm.current_loaded_models]
        assert theirs in loaded and not any(model.get_attachment(nodes.host.OURS) for model in loaded if model)
    assert torch.isfinite(structure(diffae, seed=8).x).all(), "it comes back"
