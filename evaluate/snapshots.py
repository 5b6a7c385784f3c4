"""Which snapshot of an OSASIS fine-tune to stop at: as much style as the structure allows (docs/osasis.md H.3)."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.features.clip import Clip
from ..models.style import OSASISStyle
from ..train.data import to_unit
from ..train.osasis_words import WordsConfig
from .evaluator import Comparison, Evaluator, PictureFeatures
from .registry import means


@dataclass(frozen=True)
class Score:
    """Means over the pictures. direction: cosine of their change of CLIP embedding and the style's direction.
    structure: agreement of their edges."""
    direction: float
    structure: float

    @property
    def product(self) -> float:
        """What the best snapshot has the most of; a direction below 0 counts as 0."""
        return max(self.direction, 0.0) * self.structure


@torch.no_grad()
def style_direction(clip: Clip, style: OSASISStyle, photos: Tensor, twin: Tensor | None = None) -> Tensor:
    """(1, D) in CLIP's space: from source to target text for a style from words, else from the twin (1, 3, H, W), or
    the photos' mean, to the style image. ValueError for a style that holds neither."""
    if target := style.settings.get("target"):
        words = WordsConfig(target, style.settings["source"], templates=style.settings["templates"])
        return words.direction(clip)
    if style.style_image is None:
        raise ValueError("this style holds neither a style image nor a text, so there is no direction to measure")
    evaluator = Evaluator(clip)
    image = to_unit(style.style_image)[None].to(photos.device)
    return evaluator.embed(image) - evaluator.embed(photos if twin is None else twin).mean(0, keepdim=True)


def score(clip: Clip, photos: Tensor, results: Tensor, direction: Tensor) -> Score:
    """Of photos and their results (B, 3, px, px) in [-1, 1]; direction (1, D)."""
    evaluator = Evaluator(clip)
    comparison = Comparison(PictureFeatures(evaluator, photos), PictureFeatures(evaluator, results), None,
                            torch.zeros_like(direction), direction)
    found = means(comparison, ("clip_direction", "edge_agreement"))
    return Score(found["clip_direction"], found["edge_agreement"])


def best_of(scores: Mapping[int, Score]) -> int:
    """The iteration with the largest product; of equal ones the earliest."""
    return max(scores, key=lambda step: (scores[step].product, -step))


def report(scores: Mapping[int, Score]) -> str:
    """A line for each iteration, the best one marked."""
    best = best_of(scores)
    return "\n".join(f"iteration {step}: CLIP direction {one.direction:.3f} x edge agreement {one.structure:.3f} = "
                     f"{one.product:.3f}{' (best)' if step == best else ''}" for step, one in scores.items())
