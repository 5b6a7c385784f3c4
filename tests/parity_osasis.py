"""What our OSASIS makes of the golden cases osasis_tiny (stylizing) and osasis_train (fine-tuning)."""

import torch
from safetensors.torch import save_file

from oneshot_atelier.models.diffae import change_point_weights, mix_codes
from oneshot_atelier.models.diffusion import add_noise, ddim_schedule, denoiser, linear_alpha_bar
from oneshot_atelier.models.loading import load_clip, load_diffae, load_lpips, load_style
from oneshot_atelier.models.osasis import SamplingSettings, reverse_indices, spn_hook, stylize, twin_scores
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.train import osasis
from oneshot_atelier.train.content import prepare_content
from oneshot_atelier.train.loop import Hooks

TERMS = {"cross": "cross_dom", "in": "in_dom", "clip": "recon_clip", "l1": "recon_l1", "perceptual": "recon_lpips",
         "loss": "total"}
NETS = {"B": "unet", "SPN": "spn"}


def mixing(config, style_levels):
    """Weights of `mix_codes`, by the change point that the case's levels tell."""
    weights = change_point_weights(config, config.resolution(max(style_levels)))
    assert [level for level, weight in enumerate(weights) if weight] == style_levels
    return weights


def stylized(case, folder):
    """A from a last.ckpt, B and the SPN from an iter_N.pt."""
    frozen = load_diffae(golden.random_official_checkpoint(folder / "last.ckpt", f"{case.name}:A"))
    unet, spn = load_style(golden.random_official_checkpoint(folder / "iter_200.pt", case.name)).networks()
    c, content, style, t0 = case.config, case.inputs["content"], case.inputs["style_B"], case.config["t0_ratio"]
    forward, reverse = ddim_schedule(c["T_for"]), ddim_schedule(c["T_back"])
    down, up = range(forward.num_steps(t0)), reverse_indices(reverse, t0)
    firsts = {}
    with torch.no_grad():
        z_content, z_style = frozen.encode(content), frozen.encode(style)
        codes = mix_codes(z_content, z_style, mixing(unet.config, c["style_levels"]))
        x = add_noise(content, case.inputs["mix_noise"], float(linear_alpha_bar()[c["mix_t"]]))
        start = frozen.structural_code(content, z_content, c["T_for"], t0)
        settings = SamplingSettings(t0, c["lambda_map"])
        result = stylize(unet, start, codes, steps=c["T_back"], spn=spn, picture=content, settings=settings,
                         hook=lambda i, x0, _: firsts.setdefault("x0", x0))
        found = {"z_content": z_content, "z_style": z_style, "mix_eps": denoiser(unet, codes)(x, c["mix_t"]),
                 "x_t0": start, "first_input": spn_hook(spn, content, c["lambda_map"], reverse)(start, up[0]),
                 "first_x0": firsts["x0"], "stylised": result}
        found |= {name: spn(style, t) for name, (t,) in case.named(r"spn_t(\d+)").items()}
    return found | {"indices_forward": list(down), "indices_reverse": list(up),
                    "times_forward": [forward.times[i] for i in down], "times_reverse": [reverse.times[i] for i in up]}


class Networks:
    """A, CLIP and LPIPS of a case, each through its loader."""

    def __init__(self, folder, case):
        self.frozen = load_diffae(golden.random_official_checkpoint(folder / "last.ckpt", f"{case.name}:A"))
        tensors = {f"module.{k}": v for k, v in golden.weights(case.name, "clip.").items()}
        save_file(tensors, folder / "open_clip_model.safetensors")
        self.clip = load_clip(folder / "open_clip_model.safetensors", quick_gelu=True)
        heads = golden.weights(case.name, "lpips.")
        trunk = {k.removeprefix("vgg16."): v for k, v in heads.items() if k.startswith("vgg16.")}
        trunk["classifier.0.weight"] = torch.zeros(2, 2)
        self.lpips = load_lpips(golden.save_torch(folder / "vgg16-397923af.pth", trunk))
        for i in range(len(self.lpips.net.lins)):  # the case has random heads; those of the package are its own file
            getattr(self.lpips.net, f"lin{i}").model[1].weight.copy_(heads[f"lin{i}.model.1.weight"])


def configured(c):
    """The fine-tune that a case tells: one iteration without dropout."""
    w = c["weights"]
    assert c["adam"] == [0.9, 0.999, 1e-8]
    return osasis.OSASISConfig(
        iterations=1, batch=c["batch_size"], lr=c["lr_B"], lr_spn=c["lr_spn"], cross_weight=w["cross_dom"],
        in_domain_weight=w["in_dom"], clip_weight=w["recon_clip"], l1_weight=w["recon_l1"],
        perceptual_weight=w["recon_lpips"],
        spn_weight=c["lambda_map"], style_spn_weight=c["style_stream_map_factor"], forward_steps=c["T_for"],
        reverse_steps=c["T_back"], latent_steps=c["T_latent"], generate_steps=c["T_generate"], t0=c["t0_ratio"],
        dropout=False)


def parameter(run, net, key):
    """The parameter that a golden output `grad_NET:key` or `after_NET:key` speaks of."""
    return dict(run.nets[NETS[net]].named_parameters())[key.replace("time_embed.time_embed", "time_embed")]


def record(case, found, run, updates):
    """A tick that stores what the golden outputs and values of an optimiser step speak of."""
    gradients = {name: (case.told(name, r"at step (\d+)")[0], *parts)
                 for name, parts in case.named(r"grad_(B|SPN):(.+)").items()}

    def on_step(u):
        k = len(updates)
        updates.append(u)
        found[f"x0_style_{k}"], found[f"x0_content_{k}"] = u.predictions[:1], u.predictions[1:]
        found.update({f"loss_{theirs}_{k}": u.losses[ours] for ours, theirs in TERMS.items()})
        found.update({name: parameter(run, net, key).grad.clone() for name, (step, net, key) in gradients.items()
                      if step == k})
        for theirs, ours in NETS.items():
            norms = [p.grad.double().norm() for p in run.nets[ours].parameters()]
            found[f"grad_norm_{theirs}_{k}"] = torch.stack(norms).norm()
    return on_step


def trained(case, folder):
    """One iteration of the fine-tune."""
    nets, given, c = Networks(folder, case), case.inputs, case.config
    config, found, updates = configured(c), {}, []
    style_a, style_b = given["style_A"], given["style_B"]
    with torch.no_grad():
        found["clip_style_A"] = nets.clip.embed(style_a)
        found["cond"] = nets.frozen.sample_z(given["latent_noise"], c["T_latent"])
        found["content"] = nets.frozen.decode(given["image_noise"], found["cond"], c["T_generate"], t0=1.0)
        found["lpips_AB"] = nets.lpips(style_a, style_b)[0]
        found["lpips_AB_layers"] = [float(v) for v in nets.lpips.net(style_a, style_b, retPerLayer=True)[1]]
        found["score_AB"] = twin_scores(style_a, style_b, nets.lpips)[0]
    content = prepare_content(nets.frozen, found["content"], config)
    twin = prepare_content(nets.frozen, style_a, config)
    found |= {"z_content": content.z, "xc_0": content.x, "z_style": twin.z, "xs_0": twin.x}
    run = osasis.start(nets.frozen, config)
    run.nets["spn"].load_state_dict(golden.weights(case.name, "model_map."))
    frozen = osasis.FrozenNetworks(nets.frozen, nets.clip, nets.lpips)
    aim = osasis.References.of(frozen, twin, style_b, config)
    trainer = osasis.Trainer(frozen, aim, config, lambda k: content)
    osasis.fine_tune(trainer, run, hooks=Hooks(on_step=record(case, found, run, updates)))
    found |= {name: parameter(run, *parts) for name, parts in case.named(r"after_(B|SPN):(.+)").items()}
    down = range(ddim_schedule(c["T_for"]).num_steps(c["t0_ratio"]))
    return found | {"indices_forward": list(down), "indices_reverse": [u.index for u in updates]}


CASES = {"osasis_tiny": stylized, "osasis_train": trained}
