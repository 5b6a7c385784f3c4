"""What our DiffAE makes of the golden cases diffae_tiny and diffae_ffhq256: {name of an output or value: ours}."""

from collections import OrderedDict

import torch

from oneshot_atelier.models import diffae
from oneshot_atelier.models.checkpoints.formats import diffae as official
from oneshot_atelier.models.checkpoints.formats.weights import found_in
from oneshot_atelier.models.checkpoints.safe_pickle.records import BytesSource, Storage, TensorRef, rebuild_tensor
from oneshot_atelier.models.diffae import DiffAE, DiffAEConfig, LatentConfig, latent_denoiser
from oneshot_atelier.models.diffusion import (
    add_noise,
    constant_alpha_bar,
    ddim_forward,
    ddim_reverse,
    ddim_schedule,
    ddim_times,
    denoiser,
    linear_alpha_bar,
)
from oneshot_atelier.models.loading import load_diffae
from oneshot_atelier.models.unet import UNetConfig
from oneshot_atelier.tests import golden_cases as golden


def configured(c):
    """The configuration that a case tells."""
    unet = UNetConfig(c["image_size"], c["model_channels"], tuple(c["channel_mult"]), blocks=c["num_res_blocks"],
                      embed=c["embed_channels"], cond=c["z_channels"])
    latent = LatentConfig(*(c["latent_net"][name] for name in ("num_channels", "num_hid_channels", "num_layers",
                                                               "time_channels")))
    return DiffAEConfig(unet, tuple(c["enc_channel_mult"]), latent)


def latent_results(net, case):
    """The latent network's part, the same in both cases."""
    steps, noise = case.config["T_latent"], case.inputs["latent_noise"]
    schedule = ddim_schedule(steps, constant_alpha_bar())
    normalised = ddim_reverse(latent_denoiser(net.latent_net), noise, schedule, reversed(range(steps)), clamp_x0=False)
    return {"latent_eps": net.latent_net(noise, torch.tensor(case.config["latent_t"])),
            "latent_sample_normalised": normalised, "latent_sample": net.sample_z(noise, steps)}


def _latent_table(n):
    return ddim_schedule(n, constant_alpha_bar())


SCHEDULES = {
    r"timesteps_T(\d+)": lambda n: ddim_times(n),
    r"alphas_cumprod_T(\d+)": lambda n: ddim_schedule(n).alphas,
    r"alphas_cumprod_prev_T(\d+)": lambda n: [ddim_schedule(n).alpha_bar(i - 1) for i in range(n)],
    r"alphas_cumprod_next_T(\d+)": lambda n: [ddim_schedule(n).alpha_bar(i + 1) for i in range(n)],
    r"latent_timesteps_T(\d+)": lambda n: _latent_table(n).times,
    r"latent_alphas_cumprod_T(\d+)": lambda n: _latent_table(n).alphas,
}


def schedules(case):
    """Tables of as many steps as the names of the case's values say."""
    return {name: make(n) for pattern, make in SCHEDULES.items() for name, (n,) in case.named(pattern).items()}


def tiny(case, folder):
    """Through an official-looking last.ckpt."""
    net = load_diffae(golden.random_official_checkpoint(folder / "last.ckpt", case.name))
    assert net.config == configured(case.config)
    given, c, picture = case.inputs, case.config, case.inputs["img"]
    middle, = case.told("x_mid", r"after (?:the first )?(\d+)")
    with torch.no_grad():
        z = net.encode(picture)
        x_end = net.structural_code(picture, z, c["T_encode"], t0=1.0)
        found = {"z": z, "x_T": x_end, **latent_results(net, case), **schedules(case)}
        for name, (k,) in case.named(r"eps_(\d+)").items():
            found[name] = denoiser(net.unet, z)(given[f"x_{k}"], c["t"][k])
        found["x_mid"] = ddim_forward(denoiser(net.unet, z), picture, ddim_schedule(c["T_encode"]), range(middle))
        found["recon01"] = (net.decode(x_end, z, c["T_decode"], t0=1.0) + 1) / 2
        codes = found["latent_sample"][:len(given["uncond_noise"])]
        found["uncond01"] = (net.decode(given["uncond_noise"], codes, c["T_uncond"], t0=1.0) + 1) / 2
    return found


def in_memory(tensor: torch.Tensor) -> TensorRef:
    """A tensor as the reader of files hands it on."""
    tensor = tensor.contiguous()
    data = tensor.reshape(-1).view(torch.uint8).numpy().data
    return rebuild_tensor(Storage(tensor.dtype, tensor.numel(), source=BytesSource(data)), 0, tuple(tensor.shape),
                          tensor.stride())


def ffhq256(case, folder):
    """Official names -> our names -> detected configuration -> strict load, without the file of 890 MB."""
    state = OrderedDict((f"ema_model.{k}", v) for k, v in golden.weights(case.name, "ema_model.").items())
    state |= golden.weights(case.name)
    root = {"state_dict": {name: in_memory(value) for name, value in state.items()}}
    tensors = official.parse(next(found_in(root))).tensors
    del state
    config = diffae.detect(tensors)
    assert config == configured(case.config)
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
    found |= {name: torch.nn.functional.avg_pool2d(eps, n) for name, (n,) in case.named(r"eps_mean(\d+)").items()}
    return found | {"x_t_crop": case.cut("x_t_crop", x), "eps_crop": case.cut("eps_crop", eps), "eps_mean": eps.mean(),
                    "eps_std": eps.std(unbiased=False)}


CASES = {"diffae_tiny": tiny, "diffae_ffhq256": ffhq256}
