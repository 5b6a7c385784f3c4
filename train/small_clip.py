"""Training a small CLIP on pictures in class folders, with captions of their classes, moods and labels.

Symmetric contrastive loss in which every caption that is true of a picture is a match (docs in `captions`), plus one of
two augmentations of a picture.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..models import rng
from ..models.features.clip import Clip, ClipConfig
from ..models.precision import autocast
from . import labels
from .captions import CHANGES, SURE, TEMPLATES, Captions, Facts, caption, changed, mood_scores, say, truth
from .data import Augmentations, ImageDataset, random_augment
from .diffusion_pretraining import Objective, PretrainingConfig


def contrast(a: Tensor, b: Tensor, scale: Tensor, match: Tensor, unknown: Tensor | None = None) -> Tensor:
    """Symmetric cross entropy of cosine similarities (B, B); a row's matches share its target evenly, and pairs of
    which nothing is known are left out."""
    logits = scale * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    if unknown is not None:
        logits = logits.masked_fill(unknown, -1e4)
    return (one_way(logits, match) + one_way(logits.T, match.T)) / 2


def one_way(logits: Tensor, match: Tensor) -> Tensor:
    target = match.float()
    return F.cross_entropy(logits, target / target.sum(1, keepdim=True))


def moved(x: Tensor, augmentations: Augmentations, generator: Generator) -> Tensor:
    """The first half of a batch augmented, the other half at most mirrored: resampling blurs, and how sharp a picture
    is tells a photo from an oil painting."""
    half = len(x) // 2
    still = replace(augmentations, degrees=0, scale=0, shift=0)
    return torch.cat([random_augment(x[:half], augmentations, generator), random_augment(x[half:], still, generator)])


def known(facts: Facts, index: Tensor, x: Tensor, recoloured: Tensor) -> tuple[Tensor, Tensor]:
    """(true, untrue) (B, classes + MOODS + WORDS) of pictures x with these facts; of recoloured ones, the colours that
    labels tell are unknown."""
    scores = mood_scores(x)
    classes = facts.true.shape[1] - len(labels.WORDS)
    keeps = torch.tensor([not group.colour for group, _ in labels.WORDS], device=x.device) | ~recoloured[:, None]

    def columns(table: Tensor, moods: Tensor) -> Tensor:
        return torch.cat([table[index][:, :classes], moods, table[index][:, classes:] & keeps], 1)

    return columns(facts.true, scores > 0), columns(facts.untrue, scores < -SURE)


def clip_objective(dataset: ImageDataset, facts: Facts, captions: Captions, config: PretrainingConfig,
                   augmented_weight: float = 0.5) -> Objective:
    """Picture to caption, and augmentation to augmentation, each against the whole batch: one process must hold it.

    The labels of the data set are indices of `facts`.
    """
    device = dataset.pictures.device
    facts, captions = facts.to(device), captions.to(device)

    def batch(k: int) -> tuple[Tensor, ...]:
        generator = rng.generator(config.seed, "batch", k, device=device)
        x, fact = dataset.sample(config.batch, generator)
        change = torch.randint(len(CHANGES), (len(x),), device=device, generator=generator)
        change *= torch.rand(len(x), device=device, generator=generator) < 0.5
        first, second = (changed(moved(x, config.augmentations, generator), change) for _ in range(2))
        true, untrue = known(facts, fact, first, change > 0)
        said = say(captions, true, generator)
        return first, second, said.tokens, *truth(said, true, untrue)

    def loss(net: Clip, first: Tensor, second: Tensor, tokens: Tensor, match: Tensor, unknown: Tensor) -> Tensor:
        with autocast(device, config.precision):
            pictures = net.embed(torch.cat([first, second]), "openai")
            texts = net.net.encode_text(tokens)
        a, b = pictures.float().chunk(2)
        scale = net.net.logit_scale.exp().clamp(max=100)
        same = torch.eye(len(a), dtype=torch.bool, device=device)
        return contrast(a, texts.float(), scale, match, unknown) + augmented_weight * contrast(a, b, scale, same)
    return Objective(batch, loss)


def zero_shot_accuracy(net: Clip, pictures: Tensor, index: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Share of pictures whose class caption (mean over the templates) is the nearest, for each class and in all.

    pictures: normalised embeddings (N, D); index: their classes (N,).
    """
    texts = [F.normalize(net.embed_text([caption(c, "", t) for t in TEMPLATES]), dim=1).mean(0) for c in classes]
    directions = F.normalize(torch.stack(texts), dim=1)
    right = ((pictures @ directions.T).argmax(1) == index).float()
    table = {c: float(right[index == i].mean()) for i, c in enumerate(classes) if (index == i).any()}
    return table | {"all": float(right.mean())}


def small_config(words: Sequence[str], image_size: int = 128, patch: int | None = None) -> ClipConfig:
    """The demo model: 1.5 M parameters of picture tower, [-1, 1] input, a word list instead of byte pairs. patch: side
    in pixels, by default an eighth of the picture's; ValueError if it does not divide that."""
    patch = patch or image_size // 8
    if image_size % patch:
        raise ValueError(f"patch is {patch}; take one that divides {image_size}, such as {image_size // 16}")
    return ClipConfig(embed=128, image_size=image_size, patch=patch, vision_width=192, vision_layers=3,
                      context=24, vocabulary=len(words) + 3, text_width=128, text_layers=2, quick_gelu=False,
                      mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), words=tuple(words))
