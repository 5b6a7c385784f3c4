"""MMFS's guidance against the golden values: every output and value of `losses`, gradients too."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from oneshot_atelier.models import clip as clip_module
from oneshot_atelier.models import dino as dino_module
from oneshot_atelier.models.clip import BILINEAR
from oneshot_atelier.models.stylegan2 import Discriminator, StyleGAN2Config
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests.test_parity_diffae import names_of
from oneshot_atelier.train import guidance

NAME = "losses"


def dino(antialias=False):
    tensors = golden.weights(NAME, "dino.")
    config = dino_module.detect(tensors, heads=golden.load_case(NAME).config["dino"]["num_heads"])
    return dino_module.build(replace(config, antialias=antialias), tensors)


def clip():
    tensors = golden.weights(NAME, "clip.")
    return clip_module.build(clip_module.detect(tensors), tensors)


def discriminator():
    """The layers that are looked at, from the official names; widths at 4, 8, .. px."""
    tensors = golden.weights(NAME, "d.")
    net = Discriminator(StyleGAN2Config((512, 512, 512, 512, 256, 128)))
    named = {"from_rgb.weight": "convs.0.0.weight", "from_rgb.bias": "convs.0.1.bias"}
    for k in range(len(net.blocks)):
        for ours, theirs in (("conv0.weight", "conv1.0.weight"), ("conv0.bias", "conv1.1.bias"),
                             ("conv1.weight", "conv2.1.weight"), ("conv1.bias", "conv2.2.bias"),
                             ("skip.weight", "skip.1.weight")):
            named[f"blocks.{k}.{ours}"] = f"convs.{k + 1}.{theirs}"
    missing, odd = net.load_state_dict({ours: tensors[theirs] for ours, theirs in named.items()}, strict=False)
    assert not odd and {name.split(".")[0] for name in missing} == {"conv", "fc", "out"}
    return net


def structure_values(case):
    found = {}
    for name, antialias in (("aa", True), ("noaa", False)):
        net = dino(antialias)
        keys = net.keys(case.inputs["big_out"])
        found |= {f"vit_in_{name}": net.prepare(case.inputs["big_out"])[:, :, :24, :24], f"keys_{name}": keys[0, :32],
                  f"selfsim_{name}": guidance.self_similarity(keys)[0, :48, :48],
                  f"structure_{name}": guidance.structure_loss(net.keys(case.inputs["big_in"]), keys)}
    return found


def few_shot(case, net, structure, mode, target):
    """Losses of `fake` and their gradient; target: (anchor, reference, projection or None)."""
    fake = case.inputs["fake"].clone().requires_grad_(True)
    photos = F.normalize(net.embed(case.inputs["x"], BILINEAR), dim=1)
    features, tokens = net.look(net.prepare(fake, BILINEAR), case.config["clip_token_block"])
    anchor, reference, projection = target
    losses = {"ST": guidance.structure_loss(structure.keys(fake), structure.keys(case.inputs["x"])),
              "CLIP": guidance.clip_loss(photos, F.normalize(features, dim=1), anchor, reference),
              "PROJ": guidance.projection_loss(projection, tokens) if projection is not None else torch.zeros(())}
    losses["total"] = sum(case.config["lambdas"][name] * value for name, value in losses.items())
    losses["total"].backward()
    return {f"{mode}_loss_{name}": value for name, value in losses.items()} | {
        f"direction_{mode}": reference - anchor, f"grad_{mode}": fake.grad[:1]}, tokens


def guidance_values(case):
    net, structure = clip(), dino()

    def embed(pictures):
        return F.normalize(net.embed(pictures, BILINEAR), dim=1)

    file = net.prepare_file(case.inputs["ref_file"].permute(2, 0, 1).contiguous())
    feature, ref_tokens = net.look(file, case.config["clip_token_block"])
    feature, photos = F.normalize(feature, dim=1), embed(case.inputs["x"])
    words = F.normalize(net.embed_text(case.config["prompts"]), dim=1)
    projection = guidance.projector(ref_tokens)
    rows = [[i for i in row if i] for row in net.tokenizer()(case.config["prompts"]).tolist()]
    by_picture, tokens = few_shot(case, net, structure, "image", (photos.mean(0, keepdim=True), feature, projection))
    by_text, _ = few_shot(case, net, structure, "text", (words[1:], words[:1], None))
    return by_picture | by_text | {
        "ref_in_crop": file[:, :, 100:148, 100:148], "ref_feature": feature, "UUT": projection, "x_features": photos,
        "fake_features": embed(case.inputs["fake"]), "tokens": tokens[:, :12], "text_features": words,
        "clip_big": torch.cat([embed(case.inputs["big_in"]), embed(case.inputs["big_out"])]),
        "text_tokens": rows[0], "source_tokens": rows[1]}


def feature_values(case):
    with torch.no_grad():
        net = discriminator()
        a, b = (net.features(case.inputs[name]) for name in ("a_img", "b_img"))
    total = guidance.feature_loss(a, b)
    single = {f"featloss_{k}": guidance.feature_loss([f], [g]) for k, f, g in zip((1, 3, 4, 5), a, b)}
    return single | {"featloss_sum": total, "featloss_mean": total / len(a)}


@pytest.fixture(scope="module")
def found():
    case = golden.load_case(NAME)
    with torch.no_grad():
        structure = structure_values(case)
    return structure | guidance_values(case) | feature_values(case)


@pytest.mark.parametrize("name", names_of(NAME))
def test_losses(found, name):
    golden.load_case(NAME).check(name, found[name])


def test_nothing_golden_is_left_out(found):
    assert set(found) == set(names_of(NAME)) and len(found) == 18 + 18
