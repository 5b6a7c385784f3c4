"""The P2 DDPM against the golden values: every output and value of p2_tiny."""

import pytest
import torch

from oneshot_atelier.models.diffae import denoiser
from oneshot_atelier.models.diffusion import add_noise, ancestral_step, even_table, posterior_variance
from oneshot_atelier.models.loading import load_ddpm
from oneshot_atelier.models.osasis import photo_twins
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests.test_parity_diffae import names_of


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """From a bare state dict; its heads of 32 channels are not the published ones, so they are told."""
    path = golden.random_official_checkpoint(tmp_path_factory.mktemp("p2") / "ffhq_p2.pt", "p2_tiny")
    return load_ddpm(path, head_channels=golden.load_case("p2_tiny").config["num_head_channels"])


@pytest.fixture(scope="module")
def found(net):
    case = golden.load_case("p2_tiny")
    given, table = case.inputs, even_table(int(case.config["respacing"]))
    denoise = denoiser(net)
    top = table.index_of(case.config["t_start_ratio"])
    with torch.no_grad():
        start = add_noise(given["img"], given["noise"], table.alpha_bar(top))
        out = denoise(start, table.times[top - 1])
        x0, following = ancestral_step(start, out, table, top - 1, given["noise_i24"])
        results = {"x_i24": start, "out_i24": out, "x0_i24": x0, "next_i24": following}
        x = given["x_i2"]
        for i in (2, 1, 0):
            out = denoise(x, table.times[i])
            x = ancestral_step(x, out, table, i, given.get(f"noise_i{i}", torch.full_like(x, 9.0)))[1]
            results[f"next_i{i}"] = x
    results |= {"out_i0": out, "chain_end": results.pop("next_i0"), "timesteps": table.times,
                "alphas_cumprod": table.alphas,
                "betas": [1 - table.alpha_bar(i) / table.alpha_bar(i - 1) for i in range(50)],
                "posterior_variance": [posterior_variance(table, i) for i in range(50)]}
    return results


@pytest.mark.parametrize("name", names_of("p2_tiny"))
def test_p2(found, name):
    golden.load_case("p2_tiny").check(name, found[name])


def test_nothing_golden_is_left_out(found):
    assert set(found) == set(names_of("p2_tiny")) and len(found) == 8 + 4


def test_the_photo_twin_takes_the_official_first_step(net):
    """photo_twins, stopped after its first step, is the golden step: noised to index 25, denoised from index 24."""
    case = golden.load_case("p2_tiny")
    draws = iter([case.inputs["noise"], case.inputs["noise_i24"]])

    class Enough(Exception):
        pass

    def first_only(i, x0, x):
        case.check("x0_i24", x0)
        case.check("next_i24", x)
        raise Enough

    with torch.no_grad(), pytest.raises(Enough):
        photo_twins(net, case.inputs["img"], lambda: next(draws), hook=first_only)


def test_the_published_head_count_would_not_pass(tmp_path):
    path = golden.random_official_checkpoint(tmp_path / "ffhq_p2.pt", "p2_tiny")
    other = load_ddpm(path)
    case = golden.load_case("p2_tiny")
    assert other.config.head_channels == 64
    with torch.no_grad(), pytest.raises(AssertionError, match="off by"):
        case.check("out_i24", denoiser(other)(case.outputs["x_i24"], 489))
