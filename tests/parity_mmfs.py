"""What our MMFS makes of the golden cases mmfs_mini and mmfs_full, from official-looking files."""

from dataclasses import replace

import torch

from oneshot_atelier.models.loading import load_mmfs
from oneshot_atelier.models.mmfs import MMFS, MapperConfig
from oneshot_atelier.tests import golden_cases as golden


def loaded(case, folder):
    """Through a file as the official trainer writes it; the raw `G_model` in it is a decoy."""
    root = {"G_ema_model": golden.weights(case.name, "G_ema_model."),
            "G_model": {"encoder.0.0.weight": torch.zeros(1)}, "optimizer_0": {"state": {}}, "scheduler_0": {},
            "epoch": 3, "total_iters": 10_000, "metric": 0.0}
    if any(net["prefix"] == "D_model." for net in golden.description(case.name)["nets"]):
        root["D_model"] = golden.weights(case.name, "D_model.")
    path = golden.save_torch(folder / "phase3_pretrain_10000.pth", root)
    net, d = load_mmfs(path)
    path.unlink()
    return configured(net, case.config), d


def configured(net, c):
    """The network, which must be the one that the case tells, with the case's heads (no shape tells them)."""
    told, config = c["clip_mapper"], net.config
    mapper = MapperConfig(told["layers"], told["ff"], c["style_dim"] // told["heads"])
    assert (config.encoder[0], len(config.encoder) - 1) == (c["ngf"], c["blocks"])
    assert (config.n_styles, config.w_dim) == (c["n_latent"], c["style_dim"])
    assert replace(config.mapper, head_channels=mapper.head_channels) == mapper
    if mapper == config.mapper:
        return net
    other = MMFS(replace(config, mapper=mapper))
    other.load_state_dict(net.state_dict())
    return other.eval().requires_grad_(False)


def given_noise(case, count):
    """`count` rows in the order of the layers: decoder0, decoder1a, decoder1b, .."""
    order = ["decoder0"] + [f"decoder{k}{half}" for k in range(1, case.config["blocks"] + 1) for half in "ab"]
    return [case.inputs[f"noise_{name}"][:count] for name in order]


def mini(case, folder):
    net, _ = loaded(case, folder)
    given, rect = case.inputs, case.inputs["x_rect"]
    rows = {name: len(case.outputs[f"out_{name}"]) for name in ("random_nonoise", "clip_nonoise", "random_noise")}
    with torch.no_grad():
        w, clip = net.styles(given["z"]), net.styles_of(given["clip_feature_raw"])

        def draw(kind, codes, noise=None):
            return net(given["x"][:rows[kind]], codes[:rows[kind]], noise)

        return {"feature": net.encode(given["x"]), "styles_random": net.mapping(given["z"]),
                "styles_clip": clip.transpose(0, 1), "out_random_nonoise": draw("random_nonoise", w),
                "out_clip_nonoise": draw("clip_nonoise", clip),
                "out_random_noise": draw("random_noise", w, given_noise(case, rows["random_noise"])),
                "rect_feature": net.encode(rect), "rect_out": net(rect, w[:len(rect)])}


def mean_std(x):
    return [x.mean(), x.std(unbiased=False)]


def shown(case, name, picture, part):
    """A crop whose corner stands in the case's `crops`, or means over blocks (part "mean8")."""
    if part.startswith("mean"):
        return torch.nn.functional.avg_pool2d(picture, int(part.removeprefix("mean")))
    row, column = case.config["crops"][part]
    return case.cut(name, picture[:, :, row:, column:])


def full(case, folder):
    """The score is compared only where the case has it: pictures need not be as large as D's."""
    net, d = loaded(case, folder)
    x, z = case.inputs["x"], case.inputs["z"]
    layers = {name: k for name, (k,) in case.named(r"d_feat(\d+)").items()}
    wanted = sorted(set(layers.values()))
    with torch.no_grad():
        feature, w, clip = net.encode(x), net.styles(z), net.styles_of(case.inputs["clip_feature_raw"])
        pictures = {"random_nonoise": net.decode(feature, w), "clip_nonoise": net.decode(feature, clip),
                    "random_noise": net.decode(feature, w, given_noise(case, len(x)))}
        maps = dict(zip(wanted, d.features(x, wanted), strict=True))
        found = {"d_score": d(x)} if "d_score" in case.outputs else {}
        found |= {"styles_random": net.mapping(z), "styles_clip": clip.transpose(0, 1)}
    found |= {"feature_crop": case.cut("feature_crop", feature), "feature_mean_std": mean_std(feature)}
    for name, (picture, part) in case.named(rf"out_({'|'.join(pictures)})_([a-z]+\d*)").items():
        found[name] = shown(case, name, pictures[picture], part)
    for name, k in layers.items():
        found |= {name: case.cut(name, maps[k]), f"{name}_mean_std": mean_std(maps[k])}
    return found


CASES = {"mmfs_mini": mini, "mmfs_full": full}
