"""OSASIS against the golden values: all of osasis_tiny (stylizing) and of osasis_train (fine-tuning)."""

import pytest
import torch
from safetensors.torch import save_file

from oneshot_atelier.models.diffae import change_point_weights, denoiser, mix_codes
from oneshot_atelier.models.diffusion import add_noise, linear_alpha_bar, stride_table
from oneshot_atelier.models.loading import load_clip, load_diffae, load_lpips, load_style
from oneshot_atelier.models.osasis import reverse_indices, spn_assist, stylize, twin_scores
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests.test_parity_diffae import names_of
from oneshot_atelier.train import osasis

TERMS = {"cross": "cross_dom", "in": "in_dom", "clip": "recon_clip", "l1": "recon_l1", "perceptual": "recon_lpips",
         "loss": "total"}


def without_wrapper(key):
    return key.replace("time_embed.time_embed", "time_embed")


@pytest.fixture(scope="module")
def stylized(tmp_path_factory):
    """Everything of osasis_tiny: A from a last.ckpt, B and the SPN from an iter_N.pt."""
    folder, case = tmp_path_factory.mktemp("osasis"), golden.load_case("osasis_tiny")
    frozen = load_diffae(golden.random_official_checkpoint(folder / "last.ckpt", "osasis_tiny:A"))
    unet, spn = load_style(golden.random_official_checkpoint(folder / "iter_200.pt", "osasis_tiny")).networks()
    config, content = case.config, case.inputs["content"]
    forward, reverse = stride_table(config["T_for"]), stride_table(config["T_back"])
    weights = change_point_weights(unet.config, 64 >> 3)
    assert [i for i, w in enumerate(weights) if w] == config["style_levels"]
    firsts = {}
    with torch.no_grad():
        z_content, z_style = frozen.encode(content), frozen.encode(case.inputs["style_B"])
        codes = mix_codes(z_content, z_style, weights)
        t = config["mix_t"]
        x = add_noise(content, case.inputs["mix_noise"], float(linear_alpha_bar()[t]))
        start = frozen.structural_code(content, z_content, config["T_for"], config["t0_ratio"])
        result = stylize(unet, start, codes, steps=config["T_back"], t0=config["t0_ratio"], spn=spn, picture=content,
                         spn_weight=config["lambda_map"], hook=lambda i, x0, _: firsts.setdefault("x0", x0))
        found = {"z_content": z_content, "z_style": z_style, "mix_eps": denoiser(unet, codes)(x, t), "x_t0": start,
                 "first_input": spn_assist(spn, content, config["lambda_map"], reverse)(start, 4),
                 "first_x0": firsts["x0"], "stylised": result}
        found |= {f"spn_t{t}": spn(case.inputs["style_B"], t) for t in (0, 24)}
    down, up = range(forward.index_of(config["t0_ratio"])), reverse_indices(reverse, config["t0_ratio"])
    return found | {"indices_forward": list(down), "indices_reverse": list(up),
                    "times_forward": [forward.times[i] for i in down], "times_reverse": [reverse.times[i] for i in up]}


class Networks:
    """A, CLIP and LPIPS of osasis_train, each through its loader."""

    def __init__(self, folder, case):
        self.frozen = load_diffae(golden.random_official_checkpoint(folder / "last.ckpt", "osasis_train:A"))
        tensors = {f"module.{k}": v for k, v in golden.weights(case.name, "clip.").items()}
        save_file(tensors, folder / "open_clip_model.safetensors")
        self.clip = load_clip(folder / "open_clip_model.safetensors", quick_gelu=True)
        heads = golden.weights(case.name, "lpips.")
        trunk = {k.removeprefix("vgg16."): v for k, v in heads.items() if k.startswith("vgg16.")}
        trunk["classifier.0.weight"] = torch.zeros(2, 2)
        self.lpips = load_lpips(golden.save_torch(folder / "vgg16-397923af.pth", trunk))
        for i in range(5):  # the golden case has random heads; those of the package are its own file
            getattr(self.lpips.net, f"lin{i}").model[1].weight.copy_(heads[f"lin{i}.model.1.weight"])


def named_parameters(run, name):
    """The parameter that a golden output `grad_NET:key` or `after_NET:key` speaks of."""
    net, _, key = name.partition("_")[2].partition(":")
    return dict(run.nets["unet" if net == "B" else "spn"].named_parameters())[without_wrapper(key)]


def record(found, run, updates):
    """A tick that stores what golden outputs speak of."""
    def tick(u):
        k = len(updates)
        updates.append(u)
        found[f"x0_style_{k}"], found[f"x0_content_{k}"] = u.predictions[:1], u.predictions[1:]
        found.update({f"loss_{theirs}_{k}": u.losses[ours] for ours, theirs in TERMS.items()})
        if k == 0:
            found.update({name: named_parameters(run, name).grad.clone() for name in names_of("osasis_train")
                          if name.startswith("grad_") and ":" in name})
            for theirs, ours in (("B", "unet"), ("SPN", "spn")):
                norms = [p.grad.double().norm() for p in run.nets[ours].parameters()]
                found[f"grad_norm_{theirs}_0"] = torch.stack(norms).norm()
    return tick


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Everything of osasis_train: one iteration of the fine-tune, dropout off."""
    case = golden.load_case("osasis_train")
    nets, given, c = Networks(tmp_path_factory.mktemp("train"), case), case.inputs, case.config
    config = osasis.OsasisConfig(
        iterations=1, batch=c["batch_size"], lr=c["lr_B"], lr_spn=c["lr_spn"], forward_steps=c["T_for"],
        reverse_steps=c["T_back"], latent_steps=c["T_latent"], generate_steps=c["T_generate"], dropout=False)
    style_a, style_b = given["style_A"], given["style_B"]
    found = {}
    with torch.no_grad():
        found["clip_style_A"] = nets.clip.embed(style_a)
        found["cond"] = nets.frozen.sample_z(given["latent_noise"], c["T_latent"])
        found["content"] = nets.frozen.decode(given["image_noise"], found["cond"], c["T_generate"], t0=1.0)
        found["lpips_AB"] = nets.lpips(style_a, style_b)[0]
        found["lpips_AB_layers"] = [float(v) for v in nets.lpips.net(style_a, style_b, retPerLayer=True)[1]]
        found["score_AB"] = twin_scores(style_a, style_b, nets.lpips)[0]
    content = osasis.prepare_content(nets.frozen, found["content"], config)
    twin = osasis.prepare_content(nets.frozen, style_a, config)
    found |= {"z_content": content.z, "xc_0": content.x, "z_style": twin.z, "xs_0": twin.x}
    run = osasis.start(nets.frozen, config)
    run.nets["spn"].load_state_dict(golden.weights(case.name, "model_map."))
    trainer = osasis.Trainer(nets.frozen, twin, style_b, nets.clip, nets.lpips, config, lambda k: content)
    updates = []
    osasis.fine_tune(trainer, run, tick=record(found, run, updates))
    found |= {name: named_parameters(run, name) for name in names_of("osasis_train") if name.startswith("after_")}
    table = stride_table(c["T_for"])
    return found | {"indices_forward": list(range(table.index_of(0.5))), "indices_reverse": [u.index for u in updates]}


@pytest.mark.parametrize("name", names_of("osasis_tiny"))
def test_stylizing(stylized, name):
    golden.load_case("osasis_tiny").check(name, stylized[name])


@pytest.mark.parametrize("name", names_of("osasis_train"))
def test_fine_tuning(trained, name):
    golden.load_case("osasis_train").check(name, trained[name])


def test_nothing_golden_is_left_out(stylized, trained):
    assert set(stylized) == set(names_of("osasis_tiny")) and len(stylized) == 9 + 4
    assert set(trained) == set(names_of("osasis_train")) and len(trained) == 24 + 19
