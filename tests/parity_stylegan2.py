"""What our StyleGAN2 makes of the golden cases sg2_rosinality (a .pt) and sg2_nvidia (a .pkl)."""

import argparse
from dataclasses import replace

import torch
import torch.nn.functional as F

from oneshot_atelier.models.loading import load_stylegan2
from oneshot_atelier.models.stylegan2 import Discriminator, mix_styles
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import nvidia_files


def checked(nets, size, style, layers, group):
    """The networks, which must be those that the case tells, frozen and in the plain layout."""
    for net in nets:
        assert net.config.resolution == size and net.config.mbstd_group_size == group and not net.training
        assert not any(p.requires_grad for p in net.parameters())
        assert all(p.is_contiguous() and p.dtype == torch.float32 for p in net.parameters())
    assert (nets[0].config.w_dim, nets[0].config.mapping_layers) == (style, layers)
    return nets


def with_group(d, group):
    """D with another group of its minibatch deviation, which rosinality's files do not tell."""
    other = Discriminator(replace(d.config, mbstd_group_size=group))
    other.load_state_dict(d.state_dict())
    return other.eval().requires_grad_(False)


def rosinality_nets(case, folder):
    """From a file as the trainer writes it; the raw `g` in it is a decoy."""
    c = case.config
    path = golden.save_torch(folder / "550000.pt", {
        "g": {"style.1.weight": torch.zeros(512, 512)}, "d": golden.weights(case.name, "d."),
        "g_optim": {"state": {}}, "g_ema": golden.weights(case.name, "g_ema."),
        "latent_avg": golden.weights(case.name)["latent_avg"], "args": argparse.Namespace(size=c["size"], batch=4),
        "ada_aug_p": 0.0})
    g, d = load_stylegan2(path)
    path.unlink()
    if c["stddev_group"] != d.config.mbstd_group_size:
        g.config, d = replace(g.config, mbstd_group_size=c["stddev_group"]), with_group(d, c["stddev_group"])
    return checked((g, d), c["size"], c["style_dim"], c["n_mlp"], c["stddev_group"])


def nvidia_nets(case, folder):
    c = case.config
    path = nvidia_files.write(folder / "ffhq.pkl", golden.weights(case.name, "G_ema."),
                              golden.weights(case.name, "D."), group=c["mbstd_group_size"])
    nets = load_stylegan2(path)
    path.unlink()
    return checked(nets, c["size"], c["w_dim"], c["num_mapping_layers"], c["mbstd_group_size"])


def psi_of(told):
    """Truncation as names tell it: "1" is 1, "07" is 0.7."""
    digits = str(told)
    return float(f"{digits[0]}.{digits[1:] or 0}")


def common(nets, case):
    """What both cases ask; pictures are as many as the case has."""
    g, d = nets
    z, wplus, pictures, noise = case.inputs["z"], case.inputs["wplus"], case.inputs["d_img"], g.constant_noise()
    found = {"w": g.mapping(z), "img_wplus_const": g(case.rows("img_wplus_const", wplus), noise),
             "img_wplus_nonoise": g(case.rows("img_wplus_nonoise", wplus))}
    for name, (psi, cut) in case.named(r"img_const_t(\d+)(?:_cut(\d+))?").items():
        found[name] = g(g.styles(case.rows(name, z), psi_of(psi), cut), noise)
    mirrored = torch.cat([pictures, pictures.flip(3)])
    return found | {name: d(mirrored[:n]) for name, (n,) in case.named(r"score_b(\d+)").items()}


def features(d, case, layers):
    """Crops of D's feature maps, and mean and deviation of the whole ones. layers: {name of an output: layer}."""
    found, wanted = {}, sorted(set(layers.values()))
    pictures = max((case.rows(name, case.inputs["d_img"]) for name in layers), key=len)
    maps = dict(zip(wanted, d.features(pictures, wanted), strict=True))
    for name, layer in layers.items():
        x = case.rows(name, maps[layer])
        found |= {name: case.cut(name, x), f"{name}_mean_std": [x.mean(), x.std(unbiased=False)]}
    return found


def gradients(nets, case):
    """R1 and its second-order gradient, and the gradient of the generator's loss in w."""
    g, d = nets
    pictures = case.rows("r1_grad_img", case.inputs["d_img"]).clone().requires_grad_()
    weight = d.from_rgb.weight.requires_grad_()
    gradient, = torch.autograd.grad(d(pictures).sum(), pictures, create_graph=True)
    r1 = gradient.square().sum((1, 2, 3)).mean()
    second_order, = torch.autograd.grad(r1, weight)
    weight.requires_grad_(False)
    w = g.mapping(case.inputs["z"]).requires_grad_()
    loss = F.softplus(-d(g(w[:, None].repeat(1, g.config.n_styles, 1), g.constant_noise()))).mean()
    return {"r1": r1.detach(), "r1_grad_img": gradient.detach(), "r1_grad_convs0": second_order,
            "g_loss": loss.detach(), "g_grad_w": torch.autograd.grad(loss, w)[0]}


def from_rosinality(case, folder):
    g, d = nets = rosinality_nets(case, folder)
    noise = [case.inputs[f"noise_{i}"] for i in range(g.config.n_styles - 1)]
    with torch.no_grad():
        found = common(nets, case)
        found["img_wplus_given"] = g(case.rows("img_wplus_given", case.inputs["wplus"]), noise)
        first, second = g.styles(case.inputs["z"][:2]).split(1)
        found["img_mix"] = g(mix_styles(first, second, case.config["inject_index"]), g.constant_noise())
        found |= features(d, case, {name: layer for name, (layer,) in case.named(r"feat(\d+)").items()})
    return found | gradients(nets, case)


def from_nvidia(case, folder):
    """Its features are named by the resolution that a block takes; layer 1 is the first block."""
    g, d = nets = nvidia_nets(case, folder)
    layers = {name: (g.config.resolution // px).bit_length() for name, (px,) in case.named(r"feat_b(\d+)").items()}
    with torch.no_grad():
        return common(nets, case) | features(d, case, layers)


CASES = {"sg2_rosinality": from_rosinality, "sg2_nvidia": from_nvidia}
