"""The DiffAE against the golden values: every output and value of diffae_tiny and diffae_ffhq256."""

from collections import OrderedDict

import pytest
import torch

from oneshot_atelier.models import diffae
from oneshot_atelier.models.checkpoints import diffae as official
from oneshot_atelier.models.diffae import CONFIGS, DiffAE, denoiser
from oneshot_atelier.models.diffusion import (
    add_noise,
    constant_alpha_bar,
    ddim_forward,
    ddim_reverse,
    linear_alpha_bar,
    stride_table,
    stride_times,
)
from oneshot_atelier.models.loading import load_diffae
from oneshot_atelier.tests import golden_cases as golden


def names_of(case):
    description = golden.description(case)
    outputs = [name for name, row in description["tensors"].items() if row["role"] == "output"]
    return outputs + list(description["values"])


def latent_results(net, case):
    """The latent network's part, the same in both cases."""
    table = stride_table(5, constant_alpha_bar())
    noise = case.inputs["latent_noise"]
    normalised = ddim_reverse(denoiser(net.latent_net), noise, table, range(4, -1, -1), clip=False)
    return {"latent_eps": net.latent_net(noise, torch.tensor(case.config["latent_t"])),
            "latent_sample_normalised": normalised, "latent_sample": net.sample_z(noise, 5)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Everything of diffae_tiny, from an official-looking last.ckpt."""
    case = golden.load_case("diffae_tiny")
    net = load_diffae(golden.random_official_checkpoint(tmp_path_factory.mktemp("a") / "last.ckpt", "diffae_tiny"))
    picture, steps = case.inputs["img"], case.config["T_encode"]
    table, latent = stride_table(20), stride_table(5, constant_alpha_bar())
    with torch.no_grad():
        z = net.encode(picture)
        x_end = net.structural_code(picture, z, steps, t0=1.0)
        found = {"z": z, "x_T": x_end, **latent_results(net, case)}
        for k, t in enumerate(case.config["t"]):
            found[f"eps_{k}"] = net.unet(case.inputs[f"x_{k}"], torch.full((2,), t), z)
        found["x_mid"] = ddim_forward(denoiser(net.unet, z), picture, table, range(10))
        found["recon01"] = (net.decode(x_end, z, case.config["T_decode"], t0=1.0) + 1) / 2
        drawn = net.decode(case.inputs["uncond_noise"], found["latent_sample"], case.config["T_uncond"], t0=1.0)
        found["uncond01"] = (drawn + 1) / 2
    found |= {f"timesteps_T{n}": list(stride_times(n)) for n in (5, 10, 20, 50, 100, 250)}
    found |= {"alphas_cumprod_T20": table.alphas,
              "alphas_cumprod_prev_T20": [table.alpha_bar(i - 1) for i in range(20)],
              "alphas_cumprod_next_T20": [table.alpha_bar(i + 1) for i in range(20)],
              "latent_timesteps_T5": latent.times, "latent_alphas_cumprod_T5": latent.alphas}
    return found


@pytest.fixture(scope="module")
def ffhq256():
    """Everything of diffae_ffhq256: official names -> our names -> detected configuration -> strict load."""
    case = golden.load_case("diffae_ffhq256")
    state = OrderedDict((f"ema_model.{k}", v) for k, v in golden.weights("diffae_ffhq256", "ema_model.").items())
    state |= golden.weights("diffae_ffhq256")
    tensors = official.parse({"state_dict": state}).tensors
    del state
    config = diffae.detect(tensors)
    assert config == CONFIGS["ffhq256"]
    with torch.device("meta"):
        net = DiffAE(config)
    net.load_state_dict(tensors, assign=True)
    net.eval()
    picture, t = case.inputs["img"], case.config["t"]
    x = add_noise(picture, case.inputs["noise"], float(linear_alpha_bar()[t]))
    with torch.no_grad():
        z = net.encode(picture)
        eps = denoiser(net.unet, z)(x, t)
        found = {"z": z, **latent_results(net, case)}
    return found | {"x_t_crop": x[:, :, :16, :16], "eps_crop": eps[:, :, :64, :64], "eps_mean": eps.mean(),
                    "eps_mean8": torch.nn.functional.avg_pool2d(eps, 8), "eps_std": eps.std(unbiased=False)}


@pytest.mark.parametrize("name", names_of("diffae_tiny"))
def test_tiny(tiny, name):
    golden.load_case("diffae_tiny").check(name, tiny[name])


@pytest.mark.parametrize("name", names_of("diffae_ffhq256"))
def test_ffhq256(ffhq256, name):
    golden.load_case("diffae_ffhq256").check(name, ffhq256[name])


def test_nothing_golden_is_left_out(tiny, ffhq256):
    assert set(tiny) == set(names_of("diffae_tiny")) and len(tiny) == 10 + 11
    assert set(ffhq256) == set(names_of("diffae_ffhq256")) and len(ffhq256) == 7 + 2


def test_the_raw_weights_would_not_pass(tiny):
    """The decoy `model.` weights of the official-looking file differ, so parity shows that `ema_model.` was read."""
    state = {k.removeprefix("model."): v for k, v in golden.lightning_state("diffae_tiny").items()
             if k.startswith("model.encoder.")}
    case = golden.load_case("diffae_tiny")
    good = golden.weights("diffae_tiny", "ema_model.")
    net = DiffAE(diffae.detect({official.our_name(key): value for key, value in good.items()}))
    net.encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in state.items()})
    with torch.no_grad(), pytest.raises(AssertionError, match="off by"):
        case.check("z", net.eval().encode(case.inputs["img"]))
