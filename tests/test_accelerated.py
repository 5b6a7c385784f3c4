"""Networks ready for sampling, and the keeping of graphs. Capturing itself needs a GPU: bench.all runs it there."""
import pytest
import torch
from torch import nn

from oneshot_atelier.models.accelerated import AcceleratedUNet, accelerated
from oneshot_atelier.models.diffae import DiffAE
from oneshot_atelier.models.diffusion import denoiser
from oneshot_atelier.models.graphs import Graphs, Replayed, release
from oneshot_atelier.models.unet import UNet
from oneshot_atelier.tests import tiny

CPU = torch.device("cpu")


class FakeGraph:
    """In a captured graph's place: plays the function again and counts."""

    def __init__(self, function):
        self.function, self.played, self.outputs = function, 0, ()

    def replay(self, inputs):
        self.played += 1
        self.outputs = self.function(*inputs)
        return self.outputs


def refuse(self, function, inputs):
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that believe to be on a GPU."""
    made = Graphs()
    monkeypatch.setattr(Graphs, "enabled", lambda self, device: not self.failed)
    monkeypatch.setattr(Graphs, "_capture", lambda self, function, inputs: FakeGraph(function))
    return made


def test_a_call_is_made_then_captured_then_replayed(graphs):
    calls = []

    def double(x):
        calls.append(len(calls))
        return (2 * x,)
    for n in range(4):
        assert torch.equal(graphs("a", double, torch.full((2,), float(n)))[0], torch.full((2,), 2.0 * n))
    (graph,) = graphs.captured.values()
    assert graph.played == 3 and len(calls) == 4


def test_keys_shapes_layouts_and_types_have_graphs_of_their_own(graphs):
    inputs = [torch.zeros(2, 4, 2, 2), torch.zeros(3, 4, 2, 2), torch.zeros(2, 4, 2, 2, dtype=torch.float16),
              torch.zeros(2, 4, 2, 2).contiguous(memory_format=torch.channels_last)]
    for key in ("a", "b"):
        for x in inputs * 3:
            graphs(key, lambda x: (x + 1,), x)
    assert len(graphs.captured) == 8 and all(graph.played == 2 for graph in graphs.captured.values())
    graphs.clear()
    assert not graphs.captured and not graphs.seen


def test_where_nothing_can_be_captured_the_function_is_called(graphs, monkeypatch, caplog):
    monkeypatch.setattr(Graphs, "_capture", refuse)
    found = [float(graphs("a", lambda x: (x + 1,), torch.zeros(()))[0]) for _ in range(4)]
    assert found == [1.0] * 4 and graphs.failed
    assert caplog.text.count("No CUDA graph could be captured") == 1


def test_what_graphs_hold_is_freed_with_them(graphs):
    with graphs:
        for _ in range(3):
            output, = graphs("a", lambda x: (x + 1,), torch.zeros(5))
        kept = output.clone()
        assert output.untyped_storage().nbytes()
    assert not output.untyped_storage().nbytes() and torch.equal(kept, torch.ones(5))


def test_outputs_of_other_graphs_stay_when_one_cannot_be_captured(graphs, monkeypatch):
    for _ in range(3):
        output, = graphs("a", lambda x: (x + 1,), torch.zeros(5))
    monkeypatch.setattr(Graphs, "_capture", refuse)
    for _ in range(2):
        graphs("b", lambda x: (x + 2,), torch.zeros(5))
    assert graphs.failed and torch.equal(output, torch.ones(5))


def test_a_cpu_has_no_graphs():
    graphs = Graphs()
    for _ in range(3):
        graphs("a", lambda x: (x,), torch.zeros(1))
    assert not graphs.captured and not graphs.seen


def test_graphs_are_dropped_when_the_weights_have_moved(graphs):
    net = Replayed(nn.Linear(3, 3))
    x = torch.ones(1, 3)
    for _ in range(3):
        net(x)
    assert len(net.graphs.captured) == 1
    net.net.weight = nn.Parameter(2 * net.net.weight, requires_grad=False)
    assert torch.equal(net(x), net.net(x)) and not net.graphs.captured
    net(x)
    release(nn.ModuleDict({"part": net}))
    assert not net.graphs.captured


def test_on_a_cpu_the_network_itself_samples():
    net = tiny.diffae()
    assert accelerated(net, CPU) is net and accelerated(net.unet, CPU, "bfloat16") is net.unet


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_an_accelerated_unet_stands_for_the_network(dtype, tolerance):
    net = tiny.diffae()
    fast = AcceleratedUNet(tiny.diffae().unet, dtype)
    assert isinstance(fast.unet, UNet) and fast.config == net.unet.config
    x, z = tiny.pictures(2), torch.randn(2, tiny.WIDTH, generator=torch.Generator().manual_seed(1))
    for codes in (z, [z, z.flip(0), z]):
        wanted, found = (denoiser(unet, codes, (300,))(x, 300) for unet in (net.unet, fast))
        assert found.dtype == torch.float32
        assert float((found - wanted).norm() / wanted.norm()) < tolerance


def test_an_accelerated_diffae_shares_nothing_with_the_network(monkeypatch):
    net, cuda = tiny.diffae(), type("Device", (), {"type": "cuda"})()
    monkeypatch.setattr("oneshot_atelier.models.accelerated.dtype_of", lambda device, precision: torch.float32)
    fast = accelerated(net, cuda)
    assert isinstance(fast, DiffAE) and isinstance(fast.unet, AcceleratedUNet)
    assert not {p.data_ptr() for p in fast.parameters()} & {p.data_ptr() for p in net.parameters()}
    x = tiny.pictures(2)
    z = net.encode(x)
    assert torch.allclose(fast.encode(x), z, atol=1e-6)
    code = net.structural_code(x, z, 10)
    assert torch.allclose(fast.structural_code(x, z, 10), code, atol=1e-5)
    assert torch.allclose(fast.decode(code, z, 10), net.decode(code, z, 10), atol=1e-5)
    noise = torch.randn(2, tiny.WIDTH, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(fast.sample_z(noise, 10), net.sample_z(noise, 10), atol=1e-5)
