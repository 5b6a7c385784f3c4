"""What our metrics and their networks make of the golden cases of set public-2."""

import torch

from oneshot_atelier.evaluate import metrics
from oneshot_atelier.evaluate.density import Ranking
from oneshot_atelier.models import loading
from oneshot_atelier.models.attributes import AttributeClassifier
from oneshot_atelier.models.features import arcface as arcface_module
from oneshot_atelier.models.features import inception as inception_module
from oneshot_atelier.models.features.inception import InceptionConfig
from oneshot_atelier.models.features.lpips import LpipsAlex, LpipsVGG
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.train.losses import self_similarity

SIZES = {"small": "pics", "big": "big"}
TRUNKS = {"alex": ("alexnet", LpipsAlex), "vgg": ("vgg16", LpipsVGG)}


@torch.no_grad()
def inception_fid(case, folder):
    trunk = {name: value for name, value in golden.weights(case.name).items() if not name.startswith("fc.")}
    fid = loading.load_inception(golden.save_torch(folder / "fid.pth", golden.weights(case.name)))
    art = loading.load_art_inception(art_file(folder / "art.pth", case.name))
    torchvision_form = inception_module.build(InceptionConfig("art"), trunk).net
    found = {}
    for name, (part, resize, size) in case.named(r"(pool3|in299)_(\w+)_(small|big)").items():
        x = fid.preprocess(case.inputs[SIZES[size]], resize)
        found[name] = fid.net(x) if part == "pool3" else case.cut(name, x)
    for name, (size,) in case.named(r"pool_tv_(small|big)").items():
        found[name] = torchvision_form(fid.preprocess(case.inputs[SIZES[size]], "ptfid"))
    return found | {"pool_art_big": art.embed(case.inputs["big"])}


def art_file(path, name):
    """ArtFID's file: the same trunk, two auxiliary heads, no classes."""
    trunk = {key: value for key, value in golden.weights(name).items() if not key.startswith("fc.")}
    return golden.save_torch(path, trunk | {f"AuxLogits{k}.conv0.conv.weight": torch.ones(2, 2, 1, 1) for k in (1, 2)})


@torch.no_grad()
def arcface_irse50(case, folder):
    faces = case.inputs["faces"]
    irse = loading.load_arcface(golden.save_torch(folder / "irse.pth", golden.weights(case.name)))
    x = irse.preprocess(faces)
    assert torch.equal(irse.preprocess(faces.repeat_interleave(2, 2).repeat_interleave(2, 3)), x)  # input_112_from_512
    embeddings = irse.embed(faces)
    a, b = embeddings[:2]
    tensors = golden.weights(case.name, "iresnet50.")
    iresnet = arcface_module.build(arcface_module.detect(tensors), tensors)
    other = iresnet.embed(faces)
    body = irse.net.body(irse.net.input_layer(x))
    return {"input_112": case.cut("input_112", x), "embedding": embeddings,
            "body23_corner": case.cut("body23_corner", body), "cosine": (a * b).sum(), "iresnet_features": other,
            "arcface_dist": 1 - torch.cosine_similarity(a, b, dim=0),
            "iresnet_cosine": torch.cosine_similarity(*other[:2], dim=0)}


@torch.no_grad()
def alexnet_lpips(case, folder):
    found = {}
    for short, (prefix, network) in TRUNKS.items():
        trunk = golden.weights(case.name, f"{prefix}.")
        nets = {"package": network(trunk), "random": network(trunk)}
        nets["random"].net.load_state_dict(golden.weights(case.name, f"{prefix}_lin."), strict=False)
        for heads, net in nets.items():
            total, layers = net.net(case.inputs["a"], case.inputs["b"], retPerLayer=True)
            assert torch.equal(total.flatten(), net(case.inputs["a"], case.inputs["b"]))
            found[f"{short}_{heads}"] = total.flatten()
            found[f"{short}_{heads}_layers"] = torch.stack([layer.flatten() for layer in layers], 1)
    return found


def frechet_values(x):
    jitter = 1e-6 * torch.eye(x["feat_a"].shape[1])
    cov_a, cov_few = (torch.cov(x[name].double().t()) for name in ("feat_a", "feat_few"))
    root = metrics.root_trace(cov_a, cov_few)
    few = metrics.frechet_distance(x["feat_a"], x["feat_few"])
    moments = (x[name].double() for name in ("mu_a", "cov_a", "mu_b", "cov_b"))
    return {"frechet_given": metrics.frechet_of_moments(*moments), "frechet_few": few,
            "frechet_sets": metrics.frechet_distance(x["feat_a"], x["feat_b"]),
            "frechet_two_few": metrics.frechet_distance(x["feat_few"], x["feat_few2"]),
            "frechet_few_eps": few + 2 * root - 2 * metrics.root_trace(cov_a + jitter, cov_few + jitter),
            "fid_inf": metrics.fid_infinity(x["fid_values"], x["fid_counts"]),
            "artfid": metrics.art_fid(x["artfid_lpips"].double(), x["artfid_fid"].double()),
            "kid": metrics.kernel_distance(x["feat_a"], x["feat_b"]),
            "kid_40": metrics.kernel_distance(x["feat_a"], x["feat_b"][:len(x["feat_a"])])}


def direction_values(x):
    x = {name: value.double() for name, value in x.items()}
    words = metrics.text_direction(x["t_source"], x["t_target"])
    pictures = metrics.image_direction(x["e_before"], x["e_style"])
    cosines, to_style = (metrics.unit_direction_similarity(x["e_before"], x["e_after"], direction)
                         for direction in (words, pictures))
    loss = 1 - cosines.mean()
    similarity = {name: torch.cosine_similarity(x["e_after"], metrics.mean_direction(x[target]))
                  for name, target in (("text", "t_target"), ("image", "e_style"))}
    return {"text_direction": words, "image_direction": pictures, "nada_cosines": cosines, "nada_loss": loss,
            "image_loss": 1 - to_style.mean(), "diffusionclip_total": -((2 - loss) / 2).log(),
            "clip_text_score": similarity["text"], "clip_image_score": similarity["image"]}


def classifier_values(case):
    tensors = golden.weights(case.name)
    classifier = AttributeClassifier(tensors["classifier.weight"], tensors["classifier.bias"], tensors["conds_mean"],
                                     tensors["conds_std"])
    z = case.inputs["z"]
    found = {"z_norm": classifier.normalised(z), "logits": classifier.logits(z)}
    for name, (attribute, sign, strength) in case.named(r"z_edit_(\d+)_(m?)(\d+)").items():
        edited = classifier.edited(z, attribute, float(f"{strength[0]}.{strength[1:]}") * (-1 if sign else 1))
        found |= {name: edited, f"logits_edit_{attribute}": classifier.logits(edited)}
    return found


def metrics_(case, folder):
    x = case.inputs
    keys = [x[name].double()[None] for name in ("keys_a", "keys_b")]
    real, fake = x["prc_real"], x["prc_fake"]
    count = len(case.values["low_density"])
    ranking = Ranking({f"{k:09}": float(value) for k, value in enumerate(x["low_lpips"])}, count)
    low, high = ([int(name) for name in names] for names in (ranking.low, ranking.high))
    return (frechet_values(x) | direction_values({name: value for name, value in x.items() if name[:2] in ("e_", "t_")})
            | classifier_values(case) | {
        "structure": metrics.structure_distance(*keys)[0], "selfsim_a": self_similarity(x["keys_a"][None])[0],
        "structure_no_cls": metrics.structure_distance(*(k[:, 1:] for k in keys))[0],
        "prc3": torch.stack(metrics.precision_recall(real, fake, 3)), "low_density": low, "high_density": high,
        "prdc5": torch.stack([*metrics.precision_recall(real, fake, 5), *metrics.density_coverage(real, fake, 5)])})


CASES = {"inception_fid": inception_fid, "arcface_irse50": arcface_irse50, "alexnet_lpips": alexnet_lpips,
         "metrics": metrics_}
