"""What our guidance of MMFS makes of the golden case `losses`, gradients too."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from oneshot_atelier.models.checkpoints.formats.names import to_ours
from oneshot_atelier.models.checkpoints.formats.rosinality import rows_of_discriminator
from oneshot_atelier.models.features import clip as clip_module
from oneshot_atelier.models.features import dino as dino_module
from oneshot_atelier.models.stylegan2 import Discriminator, detect_discriminator
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.train import losses as guidance


def dino(case, antialias=False):
    tensors = golden.weights(case.name, "dino.")
    config = dino_module.detect(tensors, heads=case.config["dino"]["num_heads"])
    return dino_module.build(replace(config, antialias=antialias), tensors)


def clip(case):
    tensors = golden.weights(case.name, "clip.")
    return clip_module.build(clip_module.detect(tensors), tensors)


def discriminator(case):
    tensors = golden.weights(case.name, "d.")
    ours = to_ours(tensors, rows_of_discriminator(tensors))
    net = Discriminator(detect_discriminator(ours))
    net.load_state_dict(ours)
    return net


def structure_values(case):
    found = {}
    for name, antialias in (("aa", True), ("noaa", False)):
        net = dino(case, antialias)
        before, after = (net.keys(case.inputs[name]) for name in ("big_in", "big_out"))
        parts = {f"vit_in_{name}": net.preprocess(case.inputs["big_out"]), f"keys_{name}": after[0],
                 f"selfsim_{name}": guidance.self_similarity(after)[0]}
        found |= {part: case.cut(part, x) for part, x in parts.items()}
        found[f"structure_{name}"] = guidance.structure_loss(before, after)
    return found


def few_shot(case, net, structure, mode, target):
    """Losses of `fake` and their gradient; target: (anchor, reference, projection or None)."""
    fake = case.inputs["fake"].clone().requires_grad_(True)
    photos = F.normalize(net.embed(case.inputs["x"], "mmfs"), dim=1)
    features, tokens = net.encode_with_tokens(net.preprocess(fake, "mmfs"), case.config["clip_token_block"])
    anchor, reference, projection = target
    losses = {"ST": guidance.structure_loss(structure.keys(fake), structure.keys(case.inputs["x"])),
              "CLIP": guidance.clip_loss(photos, F.normalize(features, dim=1), anchor, reference),
              "PROJ": guidance.projection_loss(projection, tokens) if projection is not None else torch.zeros(())}
    losses["total"] = sum(case.config["lambdas"][name] * value for name, value in losses.items())
    losses["total"].backward()
    return {f"{mode}_loss_{name}": value.detach() for name, value in losses.items()} | {
        f"direction_{mode}": reference - anchor, f"grad_{mode}": case.rows(f"grad_{mode}", fake.grad)}, tokens.detach()


def reference_crop(case, file):
    """The part of the prepared reference file that the calling convention names."""
    top, bottom, left, right = case.told("ref_in_crop", r"ref_in_crop = .*\[:, :, (\d+):(\d+), (\d+):(\d+)\]")
    return file[:, :, top:bottom, left:right]


def guidance_values(case):
    net, structure = clip(case), dino(case)

    def embed(pictures):
        return F.normalize(net.embed(pictures, "mmfs"), dim=1)

    file = net.preprocess_file(case.inputs["ref_file"].permute(2, 0, 1).contiguous())
    feature, ref_tokens = net.encode_with_tokens(file, case.config["clip_token_block"])
    feature, photos = F.normalize(feature, dim=1), embed(case.inputs["x"])
    words = F.normalize(net.embed_text(case.config["prompts"]), dim=1)
    projection = guidance.projector(ref_tokens)
    rows = [[i for i in row if i] for row in net.tokenizer()(case.config["prompts"]).tolist()]
    by_picture, tokens = few_shot(case, net, structure, "image", (photos.mean(0, keepdim=True), feature, projection))
    by_text, _ = few_shot(case, net, structure, "text", (words[1:], words[:1], None))
    return by_picture | by_text | {
        "ref_in_crop": reference_crop(case, file), "ref_feature": feature, "UUT": projection, "x_features": photos,
        "fake_features": embed(case.inputs["fake"]), "tokens": case.cut("tokens", tokens), "text_features": words,
        "clip_big": torch.cat([embed(case.inputs["big_in"]), embed(case.inputs["big_out"])]),
        "text_tokens": rows[0], "source_tokens": rows[1]}


def feature_values(case):
    layers = {name: layer for name, (layer,) in case.named(r"featloss_(\d+)").items()}
    wanted = sorted(layers.values())
    with torch.no_grad():
        net = discriminator(case)
        a, b = (dict(zip(wanted, net.features(case.inputs[name], wanted), strict=True)) for name in ("a_img", "b_img"))
    total = guidance.feature_loss(list(a.values()), list(b.values()))
    single = {name: guidance.feature_loss([a[layer]], [b[layer]]) for name, layer in layers.items()}
    return single | {"featloss_sum": total, "featloss_mean": total / len(layers)}


def losses(case, folder):
    with torch.no_grad():
        structure = structure_values(case)
    return structure | guidance_values(case) | feature_values(case)


CASES = {"losses": losses}
