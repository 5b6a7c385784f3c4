"""Training a small CLIP on pictures in class folders: captions from the folders' names and from known changes.

Symmetric contrastive loss with every equal caption counted as a match, plus one of two augmentations of a picture.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import rng
from ..models.features.clip import Clip, ClipConfig, WordTokenizer
from ..models.precision import autocast
from .data import ImageDataset, random_augment, to_unit
from .diffusion_pretraining import PretrainingConfig

TEMPLATES = ("{}", "a {}", "a {} picture", "a {} of a person", "a face in the style of {}", "a {} portrait")
# What a caption says besides the class: a word and the change of (B, 3, H, W) in [-1, 1] that makes it true.
ATTRIBUTES: tuple[tuple[str, Callable[[Tensor], Tensor] | None], ...] = (
    ("", None),
    ("dark", lambda x: (x + 1) * 0.45 - 1),
    ("bright", lambda x: 1 - (1 - x) * 0.5),
    ("warm", lambda x: x + x.new_tensor([0.3, 0.0, -0.3])[:, None, None]),
    ("cold", lambda x: x + x.new_tensor([-0.3, 0.0, 0.3])[:, None, None]),
    ("gray", lambda x: x.mean(1, keepdim=True).expand_as(x)),
    ("vivid", lambda x: x.mean(1, keepdim=True) + 2 * (x - x.mean(1, keepdim=True))),
)


@dataclass(frozen=True)
class Captions:
    """Token rows for (class, attribute, template), (classes, attributes, templates, context)."""
    tokens: Tensor
    classes: tuple[str, ...]


def class_word(folder: str) -> str:
    """The words for a class folder: 'vector_big-ears' -> 'big ears', 'sd3_cc0' -> 'photo' is the caller's mapping."""
    return folder.split("_", 1)[-1].replace("-", " ").replace("_", " ")


def caption(word: str, attribute: str, template: str) -> str:
    return template.format(f"{attribute} {word}".strip())


def word_list(classes: Sequence[str]) -> tuple[str, ...]:
    """Every word that a caption of these classes can hold, sorted."""
    texts = [caption(c, a, t) for c in classes for a, _ in ATTRIBUTES for t in TEMPLATES]
    return tuple(sorted({w for text in texts for w in WordTokenizer.words_of(text)}))


def all_captions(classes: Sequence[str], tokenizer: WordTokenizer) -> Captions:
    rows = [[[caption(c, a, t) for t in TEMPLATES] for a, _ in ATTRIBUTES] for c in classes]
    tokens = torch.stack([torch.stack([tokenizer(texts) for texts in by_class]) for by_class in rows])
    return Captions(tokens, tuple(classes))


def apply_attributes(x: Tensor, index: Tensor) -> Tensor:
    """Change each picture of (B, 3, H, W) by its attribute's change."""
    for i, (_, change) in enumerate(ATTRIBUTES):
        if change is not None:
            x = torch.where((index == i)[:, None, None, None], change(x).clamp(-1, 1), x)
    return x


def contrast(a: Tensor, b: Tensor, scale: Tensor, key: Tensor) -> Tensor:
    """Symmetric cross entropy of cosine similarities; rows with the same key (B,) share the target evenly."""
    logits = scale * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    target = (key[:, None] == key[None]).float()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def clip_loss(dataset: ImageDataset, captions: Captions, config: PretrainingConfig,
              augmented_weight: float = 0.5) -> Callable[[Clip, int], Tensor]:
    """`loss(net, k)` for `diffusion_pretraining.stepper`: picture to caption, and augmentation to augmentation."""
    device = dataset.pictures.device
    tokens = captions.tokens.to(device)

    def at(net: Clip, k: int) -> Tensor:
        generator = rng.generator(config.seed, "batch", k, device=device)
        x, label = dataset.sample(config.batch, generator)
        plain = torch.rand(len(x), device=device, generator=generator) < 0.5
        attribute = torch.randint(1, len(ATTRIBUTES), (len(x),), device=device, generator=generator)
        attribute = attribute.masked_fill(plain, 0)
        template = torch.randint(len(TEMPLATES), (len(x),), device=device, generator=generator)
        first, second = (apply_attributes(random_augment(x, config.augmentations, generator), attribute)
                         for _ in range(2))
        with autocast(device, config.precision):
            pictures = net.embed(torch.cat([first, second]), "openai")
            texts = net.net.encode_text(tokens[label, attribute, template])
        a, b = pictures.float().chunk(2)
        scale = net.net.logit_scale.exp().clamp(max=100)
        same = label * len(ATTRIBUTES) + attribute
        rows = torch.arange(len(x), device=device)
        return contrast(a, texts.float(), scale, same) + augmented_weight * contrast(a, b, scale, rows)
    return at


@torch.no_grad()
def zero_shot_accuracy(net: Clip, dataset: ImageDataset, classes: Sequence[str], batch: int = 256) -> dict[str, float]:
    """Share of pictures whose class caption (mean over the templates) is the nearest, for each class and in all."""
    texts = [F.normalize(net.embed_text([caption(c, "", t) for t in TEMPLATES]), dim=1).mean(0) for c in classes]
    directions = F.normalize(torch.stack(texts), dim=1)
    chunks = [net.embed(to_unit(p), "openai") for p in dataset.pictures.split(batch)]
    guess = (F.normalize(torch.cat(chunks), dim=1) @ directions.T).argmax(1)
    right = (guess == dataset.labels).float()
    table = {c: float(right[dataset.labels == i].mean()) for i, c in enumerate(classes) if (dataset.labels == i).any()}
    return table | {"all": float(right.mean())}


def small_config(words: Sequence[str], image_size: int = 128) -> ClipConfig:
    """The demo model: 1.5 M parameters of picture tower, [-1, 1] input, a word list instead of byte pairs."""
    return ClipConfig(embed=128, image_size=image_size, patch=image_size // 8, vision_width=192, vision_layers=3,
                      context=16, vocabulary=len(words) + 3, text_width=128, text_layers=2, quick_gelu=False,
                      mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), words=tuple(words))
