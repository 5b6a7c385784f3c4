"""Perceptual distances: LPIPS-VGG from a local trunk, the substitute from an encoder; no network at all."""

import socket

import pytest
import torch

from oneshot_atelier.models.features import encoder, packages
from oneshot_atelier.models.features import lpips as lpips_module
from oneshot_atelier.models.features.encoder import EncoderDistance
from oneshot_atelier.models.features.lpips import LpipsVGG
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import tiny


@pytest.fixture(scope="module")
def trunk():
    made = golden.weights("osasis_train", "lpips.")
    return {key.removeprefix("vgg16."): value for key, value in made.items() if key.startswith("vgg16.")}


@pytest.fixture(scope="module")
def lpips(trunk):
    """With the package's own heads."""
    return LpipsVGG(trunk)


@pytest.fixture(scope="module")
def substitute():
    return EncoderDistance(tiny.diffae().encoder)


@pytest.fixture(params=["lpips", "substitute"])
def distance(request):
    return request.getfixturevalue(request.param)


def test_equal_pictures_have_distance_zero_and_others_do_not(distance):
    a, b = tiny.pictures(3), tiny.pictures(3, seed=1)
    with torch.no_grad():
        assert torch.equal(distance(a, a), torch.zeros(3))
        found = distance(a, b)
        assert found.shape == (3,) and found.min() > 1e-4
        assert torch.allclose(found, distance(b, a), rtol=1e-4)
        assert torch.allclose(found[2:], distance(a[2:], b[2:]), rtol=1e-4)


def test_more_noise_is_farther(distance):
    x = tiny.pictures(1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = [float(distance(x, x + s * noise)) for s in (0.01, 0.05, 0.2)]
    assert values == sorted(values) and values[0] > 0


def test_gradients_reach_the_picture_and_nothing_else(distance):
    x = tiny.pictures(1).requires_grad_(True)
    distance(x, tiny.pictures(1, seed=1)).sum().backward()
    assert x.grad.abs().sum() > 0 and torch.isfinite(x.grad).all()
    assert all(p.grad is None for p in distance.parameters())


def test_lpips_with_the_golden_heads_has_the_golden_value(trunk):
    net = LpipsVGG(trunk)
    heads = golden.weights("osasis_train", "lpips.")
    for i in range(5):
        getattr(net.net, f"lin{i}").model[1].weight.data.copy_(heads[f"lin{i}.model.1.weight"])
    case = golden.load_case("osasis_train")
    with torch.no_grad():
        case.check("lpips_AB", net(case.inputs["style_A"], case.inputs["style_B"])[0])


def test_the_trunk_is_the_given_one_and_everything_is_frozen(lpips, trunk):
    inside = lpips.net.net.state_dict()
    assert torch.equal(inside["slice1.0.weight"], trunk["features.0.weight"])
    assert torch.equal(inside["slice5.28.bias"], trunk["features.28.bias"]) and len(inside) == 26
    assert not lpips.training and not any(p.requires_grad for p in lpips.parameters())
    assert float(lpips.net.lin0.model[1].weight.min()) >= 0  # the package's heads, not random ones


def test_no_download_happens(trunk, monkeypatch):
    def no_network(*_, **__):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "create_connection", no_network)
    for name in ("load_state_dict_from_url", "download_url_to_file"):
        monkeypatch.setattr(torch.hub, name, no_network)
    import torchvision.models._api as api
    monkeypatch.setattr(api, "load_state_dict_from_url", no_network)
    x = tiny.pictures(1)
    with torch.no_grad():
        assert float(LpipsVGG(trunk)(x, x)) == 0


def test_an_incomplete_trunk_is_an_error(trunk):
    with pytest.raises(KeyError, match="features.28.bias"):
        LpipsVGG({key: value for key, value in trunk.items() if key != "features.28.bias"})


def test_a_missing_package_says_what_to_install(trunk, monkeypatch):
    def broken(name):
        raise OSError(f"libc10.so is broken, {name} cannot be loaded")

    monkeypatch.setattr(packages.importlib, "import_module", broken)
    with pytest.raises(ImportError, match="libc10.so is broken, lpips.*pip install 'lpips>=0.1.3'"):
        LpipsVGG(trunk)


def test_the_substitute_looks_at_the_last_map_of_each_size():
    assert encoder.level_ends([32, 32, 16, 16, 8, 8]) == [1, 3, 5]
    assert encoder.level_ends([4]) == [0]
    f = torch.randn(2, 5, 3, 3)
    assert torch.allclose(encoder.unit(f).norm(dim=1), torch.ones(2, 3, 3), atol=1e-4)


def test_the_substitute_is_the_mean_squared_difference_of_unit_features(substitute):
    a, b = tiny.pictures(2), tiny.pictures(2, seed=1)
    with torch.no_grad():
        maps = [m for m in zip(substitute.encoder.features(a), substitute.encoder.features(b))]
        last = {m[0].shape[-1]: m for m in maps}
        cosines = [torch.nn.functional.cosine_similarity(f, g).mean((1, 2)) for f, g in last.values()]
        expected = sum(2 - 2 * c for c in cosines) / len(cosines)
        assert torch.allclose(substitute(a, b), expected, atol=1e-4) and len(cosines) == 3


def test_the_wrapper_detects_builds_and_preprocesses(trunk, lpips):
    assert lpips_module.detect(trunk) is None
    x, y = tiny.pictures(2, px=64), tiny.pictures(2, 1, 64)
    assert torch.equal(lpips_module.build(None, trunk)(x, y), lpips(x, y))
    assert lpips.preprocess(x).shape == x.shape
    with pytest.raises(ValueError, match="not a VGG-16 .features.0.weight is missing."):
        lpips_module.detect({})
