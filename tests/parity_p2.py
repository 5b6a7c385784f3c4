"""What our P2 DDPM makes of the golden case p2_tiny."""

import torch

from oneshot_atelier.models.diffusion import add_noise, ancestral_step, denoiser, posterior_variance, respaced_schedule
from oneshot_atelier.models.loading import load_ddpm
from oneshot_atelier.tests import golden_cases as golden


def load(case, folder):
    """From a bare state dict; the heads need not be the published ones, so they are told."""
    path = golden.random_official_checkpoint(folder / "ffhq_p2.pt", case.name)
    return load_ddpm(path, head_channels=case.config["num_head_channels"])


def table_of(case):
    return respaced_schedule(int(case.config["respacing"]))


def top_of(case):
    """The index that the chain starts from; its picture is noised to the next one."""
    return table_of(case).num_steps(case.config["t_start_ratio"]) - 1


def walk(denoise, x, i, table, given):
    """Ancestral steps from x at index i down, as far as the case gives noise: {name: value}. Index 0 needs none."""
    found = {}
    while i == 0 or i > 0 and f"noise_i{i}" in given:
        out = denoise(x, table.times[i])
        x0, following = ancestral_step(x, out, table, i, given.get(f"noise_i{i}", torch.full_like(x, 9.0)))
        found |= {f"x_i{i}": x, f"out_i{i}": out, f"x0_i{i}": x0, f"next_i{i}": following}
        x, i = following, i - 1
    return found | ({"chain_end": x} if i < 0 else {})


def p2(case, folder):
    given, table, top, denoise = case.inputs, table_of(case), top_of(case), denoiser(load(case, folder))
    starts = {int(name.removeprefix("x_i")): x for name, x in given.items() if name.startswith("x_i")}
    starts[top] = add_noise(given["img"], given["noise"], table.alpha_bar(top + 1))
    found = {}
    with torch.no_grad():
        for i, x in starts.items():
            found |= walk(denoise, x, i, table, given)
    steps = range(len(table))
    return found | {"timesteps": table.times, "alphas_cumprod": table.alphas,
                    "betas": [1 - table.alpha_bar(i) / table.alpha_bar(i - 1) for i in steps],
                    "posterior_variance": [posterior_variance(table, i) for i in steps]}


CASES = {"p2_tiny": p2}
