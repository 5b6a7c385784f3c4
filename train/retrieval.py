"""How well a small CLIP finds pictures by words and words by pictures, on held-out pictures with labels."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.features.clip import Clip
from . import captions, labels
from .captions import MOODS, OPPOSITES, TEMPLATES, Captions, Facts, caption, facts_of, mood_scores, names_of, phrases_of
from .data import image_dataset, to_unit
from .small_clip import zero_shot_accuracy

RANKS = (1, 5, 10)


@torch.no_grad()
def measure(net: Clip, groups: Sequence[tuple[Sequence[Path], float]], texts: Captions,
            class_of: Callable[[Path], int]) -> dict[str, dict[str, float]]:
    """Tables of shares in [0, 1]: "zero-shot" by class; "words" and "words of drawings", by group of words: how often
    the right one is chosen among the group's, mean over words; "recall": between pictures and whole captions."""
    facts, fact_of = facts_of([p for paths, _ in groups for p in paths], class_of, len(texts.classes))
    dataset = image_dataset(groups, net.config.image_size, net.mean.device, fact_of)
    facts, x = facts.to(net.mean.device), dataset.pictures
    pictures = torch.cat([F.normalize(net.embed(to_unit(p), "openai"), dim=1) for p in x.split(256)])
    moods = torch.cat([mood_scores(to_unit(p)) for p in x.split(256)]) > 0
    fact = dataset.labels
    classes = facts.classes[fact]
    true = torch.cat([moods, facts.true[fact, len(texts.classes):]], 1)
    photo = classes == 0
    zero_shot = zero_shot_accuracy(net, pictures, classes, texts.classes)
    return {"zero-shot": zero_shot, "words": choices(net, pictures[photo], true[photo]),
            "words of drawings": choices(net, pictures[~photo], true[~photo]),
            "recall": recall(net, pictures, fact, facts, texts)}


def choices(net: Clip, pictures: Tensor, true: Tensor) -> dict[str, float]:
    """By group: the share of pictures for which a true word of the group is the nearest, mean over the words.

    pictures: embeddings (N, D). true: (N, MOODS + WORDS). Groups of one word and those that no picture has are left
    out; a picture takes part where it has a word of the group, and not all of them.
    """
    said = [(mood, captions.caption("photo", mood), captions.caption("", mood, "a {} face")) for mood in MOODS]
    said += [(word, *phrases_of(group, word)) for group, word in labels.WORDS]
    column = {word: i for i, (word, *_) in enumerate(said)}
    directions = torch.stack([direction(net, texts) for _, *texts in said])
    table = {}
    for name, words in (*(("/".join(w[:2]), w) for w in OPPOSITES), *((g.name, tuple(g.words)) for g in labels.GROUPS)):
        columns = [column[word] for word in words]
        has = true[:, columns]
        rows = has.any(1) & ~has.all(1)
        if len(words) < 2 or not rows.any():
            continue
        guess = (pictures[rows] @ directions[columns].T).argmax(1, keepdim=True)
        right = has[rows].gather(1, guess)[:, 0].float()
        table[name] = float(torch.stack([right[has[rows][:, i]].mean() for i in range(len(words))
                                         if has[rows][:, i].any()]).mean())
    return table


def direction(net: Clip, texts: Sequence[str]) -> Tensor:
    return F.normalize(F.normalize(net.embed_text(texts), dim=1).mean(0), dim=0)


def recall(net: Clip, pictures: Tensor, fact: Tensor, facts: Facts, texts: Captions) -> dict[str, float]:
    """Recall at RANKS between pictures and the captions of all that is known of them, and from captions to the same
    said in other words; "captions" is how many there are."""
    said = list(zip(*(whole_captions(facts, texts, way) for way in (0, 1)), strict=True))
    distinct = list(dict.fromkeys(said))
    first, second = (F.normalize(net.embed_text(ways), dim=1) for ways in zip(*distinct, strict=True))
    caption_of = torch.tensor([distinct.index(ways) for ways in said], device=fact.device)
    match = caption_of[fact][:, None] == torch.arange(len(first), device=fact.device)
    table = {"captions": float(len(first)), "pictures": float(len(pictures))}
    for name, similarity, right in (("picture to text", pictures @ first.T, match),
                                    ("text to picture", first @ pictures.T, match.T),
                                    ("text to text", first @ second.T, torch.eye(len(first), device=fact.device) > 0)):
        order = similarity.argsort(1, descending=True)
        hits = right.gather(1, order)
        table |= {f"{name} @{rank}": float(hits[:, :rank].any(1).float().mean()) for rank in RANKS}
    return table


def whole_captions(facts: Facts, texts: Captions, way: int) -> list[str]:
    """What is known of each fact, in one of two ways to say it; at most three words of labels."""
    found = []
    for kind, true in zip(facts.classes.tolist(), facts.true[:, len(texts.classes):].tolist(), strict=True):
        phrases = [phrases_of(*said)[way] for said, is_true in zip(labels.WORDS, true, strict=True) if is_true][:3]
        found.append(caption(names_of(texts.classes[kind])[way], "", TEMPLATES[1 + 2 * way], *phrases))
    return found
