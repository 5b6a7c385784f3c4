"""MMFS measured: random styles, styles learned from pictures and from words, before and after fine-tuning (spec C).

Before fine-tuning the CLIP mapping alone gives the style code; after it, the decoder has learned the style, for a
picture once with the projection loss and once without. The paper's Table 1 and Figures 7 and 8 as numbers.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..models.mmfs import MMFS
from ..models.mmfs_style import styled
from ..models.stylegan2 import draw_noise, draw_z
from . import metrics
from .data import read_picture, read_pictures, to_unit
from .evaluate import Judge, Rows, Tell, file_name, kept, mean_rows, means, name_of, table, taken_over, write
from .fewshot import FewShotConfig, Target, read_target, tune_mmfs
from .report import grid
from .source_faces import Samples

SHOWN = 7  # photos on a picture sheet
RANDOM, HALVES = "random styles", "the art's one half to its other"
BEFORE, WITHOUT, AFTER = "CLIP mapping alone", "fine-tuned without projection", "fine-tuned"
Measure = Callable[[Tensor], dict[str, float]]  # of results (B, 3, H, W)


@dataclass(frozen=True)
class Models:
    """What MMFS needs, on one device. keys: steers the structure in fine-tuning. faces: what it learns on.

    The judge's CLIP is also the one that guides, as in the official program.
    """
    net: MMFS
    keys: nn.Module
    faces: Tensor | Samples
    judge: Judge


@dataclass(frozen=True)
class Settings:
    """How the evaluation stylizes. styles: random styles a photo, at least 2; batch: photos at a time."""
    config: FewShotConfig
    styles: int = 16
    batch: int = 28
    seed: int = 0

    def __post_init__(self):
        if self.styles < 2:
            raise ValueError(f"random styles must be 2 at least, to compare two of one photo; this is {self.styles}")


@torch.no_grad()
def stylize(net: MMFS, photos: Tensor, codes: Tensor, settings: Settings) -> Tensor:
    """Photos (B, 3, H, W) with w+ codes (B or 1, n, S). The noise is of the seed alone: the same in every variant."""
    noise = draw_noise(net.noise_shapes(*photos.shape[-2:]), len(photos), Generator().manual_seed(settings.seed),
                       photos.device)
    codes, parts = codes.expand(len(photos), -1, -1), []
    for rows in torch.arange(len(photos), device=photos.device).split(settings.batch):
        parts.append(net(photos[rows], codes[rows], [n[rows] for n in noise]))
    return torch.cat(parts)


# --- random styles (Table 1) ------------------------------------------------------------------------------------------
@torch.no_grad()
def random_styles(models: Models, photos: Tensor, settings: Settings) -> list[Tensor]:
    """`styles` times all photos, every picture with a style of its own."""
    net, count = models.net, len(photos)
    seeds = (settings.seed + k * count for k in range(settings.styles))
    return [stylize(net, photos, net.styles(draw_z(count, net.config.style, seed).to(photos.device)), settings)
            for seed in seeds]


@torch.no_grad()
def embed_art(judge: Judge, art: Sequence[Path], px: int) -> Tensor:
    """CLIP embeddings (N, D) of picture files."""
    device = judge.clip.mean.device
    return torch.cat([judge.embed(to_unit(read_pictures(art[i:i + 64], px)).to(device))
                      for i in range(0, len(art), 64)])


@torch.no_grad()
def art_distances(judge: Judge, sets: Mapping[str, Sequence[Tensor]], art: Tensor) -> dict[str, float]:
    """FID-like: Frechet distance of the CLIP embeddings of each set of pictures to those of the art (N, D)."""
    return {name: float(metrics.frechet_distance(torch.cat([judge.embed(x) for x in pictures]), art))
            for name, pictures in sets.items()}


def check_art(photos: Tensor, art: Sequence[Path]) -> None:
    """ValueError for sets too small to be compared: two photos and two halves of two drawings are needed."""
    if art and (len(photos) < 2 or len(art) < 4):
        raise ValueError(f"the distance to the art needs at least 2 photos and 4 drawings; there are {len(photos)} and "
                         f"{len(art)}")


@torch.no_grad()
def evaluate_random(models: Models, photos: Tensor, art: Sequence[Path],
                    settings: Settings) -> tuple[Rows, list[Tensor]]:
    """Rows for the photos themselves, for random styles and for the art itself; the rows of the sheet."""
    judge, drawn = models.judge, random_styles(models, photos, settings)
    diversity = torch.cat([judge.differ(a, b) for a, b in zip(drawn[::2], drawn[1::2])])
    found = mean_rows({str(k): {RANDOM: kept(judge, photos, results)} for k, results in enumerate(drawn)})
    rows: Rows = {"photos": {}, RANDOM: means({"diversity": diversity})}
    if art:
        wanted = embed_art(judge, art, models.net.config.resolution)
        for name, distance in art_distances(judge, {"photos": [photos], RANDOM: drawn}, wanted).items():
            rows[name]["art distance"] = distance
        rows[HALVES] = {"art distance": float(metrics.frechet_distance(wanted[::2], wanted[1::2]))}
    rows["photos"] |= kept(judge, photos, photos)
    rows[RANDOM] |= found[RANDOM]
    return rows, [photos[:SHOWN + 1], *(results[:SHOWN + 1] for results in drawn[:5])]


# --- styles that are learned (Figures 7 and 8) ------------------------------------------------------------------------
@dataclass(frozen=True)
class Lesson:
    """One style to learn, how its results are measured, and the picture (1, 3, H, W) that begins its rows, if any."""
    name: str
    target: Target
    measure: Measure
    shown: Tensor | None = None


def picture_lessons(models: Models, photos: Tensor, styles: Sequence[Path]) -> list[Lesson]:
    """One-shot; the CLIP direction to a style picture starts at the photos' mean."""
    judge, lessons = models.judge, []
    with torch.no_grad():
        source = judge.embed(photos).mean(0, keepdim=True)
    for path in styles:
        picture = read_picture(path, models.net.config.resolution)
        style = to_unit(picture)[None].to(photos.device)

        def measure(results: Tensor, style: Tensor = style) -> dict[str, float]:
            return taken_over(judge, photos, results, style, source) | kept(judge, photos, results)
        lessons.append(Lesson(name_of(path), Target(pictures=[picture]), measure, style))
    return lessons


def word_lessons(models: Models, photos: Tensor, prompts: Sequence[str], anchor: str) -> list[Lesson]:
    """Zero-shot; the CLIP direction to a prompt starts at the anchor, which prompts compete with, too."""
    judge = models.judge
    for prompt in (*prompts, anchor):
        judge.clip.check_prompt(prompt)
    with torch.no_grad():
        words = F.normalize(judge.clip.embed_text([*prompts, anchor]).float(), dim=1)

    def agreement(wanted: int) -> Measure:
        @torch.no_grad()
        def measure(results: Tensor) -> dict[str, float]:
            before, after = (F.normalize(judge.embed(x), dim=1) for x in (photos, results))
            likeness = after @ words.t()
            return means({
                "direction": metrics.direction_agreement(before, after, words[-1:], words[wanted:wanted + 1]),
                "agreement": likeness[:, wanted],
                "named": likeness.argmax(1) == wanted}) | kept(judge, photos, results)
        return measure
    return [Lesson(prompt, Target(prompt), agreement(k)) for k, prompt in enumerate(prompts)]


def learn(models: Models, target: Target, config: FewShotConfig, tell: Tell) -> tuple[MMFS, Tensor]:
    """The model with the target's decoder, and its style code (1, n, S)."""
    began, what = time.perf_counter(), f", projection {config.projection:g}" if target.pictures else ""
    style, run = tune_mmfs(models.net, models.judge.clip, models.keys, target, models.faces, config, fingerprint="")
    losses = run.history["loss"]
    tell(f"fine-tuned{what}: loss {losses[0]:.2f} -> {losses[-1]:.2f}, "
         f"{time.perf_counter() - began:.0f} s")
    return styled(models.net, style), style.w.to(next(models.net.parameters()).device)


def ways_of(lesson: Lesson, config: FewShotConfig) -> dict[str, FewShotConfig]:
    """How a lesson is learned: as the settings say, and for pictures also without the projection loss."""
    if not (lesson.target.pictures and config.projection):
        return {AFTER: config}
    return {WITHOUT: replace(config, projection=0.0), AFTER: config}


def evaluate_lesson(models: Models, photos: Tensor, lesson: Lesson, settings: Settings,
                    tell: Tell) -> tuple[Rows, list[Tensor]]:
    """Rows for the photos, before fine-tuning and after it; the rows of the sheet."""
    w = read_target(models.net, models.judge.clip, lesson.target, settings.config).w
    results = {BEFORE: stylize(models.net, photos, w, settings)}
    for name, config in ways_of(lesson, settings.config).items():
        net, w = learn(models, lesson.target, config, tell)
        results[name] = stylize(net, photos, w, settings)
    pictures = {"photos": photos} | results
    beginning = [] if lesson.shown is None else [lesson.shown]
    return ({name: lesson.measure(x) for name, x in pictures.items()},
            [torch.cat([*beginning, x[:SHOWN]]) for x in pictures.values()])


# --- everything -------------------------------------------------------------------------------------------------------
def read_lessons(models: Models, photos: Tensor, styles: Sequence[Path], prompts: Sequence[str],
                 config: FewShotConfig) -> dict[str, list[Lesson]]:
    """{"one_shot": ..., "zero_shot": ...}. ValueError for styles and prompts that this model and CLIP cannot use."""
    lessons = {"one_shot": picture_lessons(models, photos, styles),
               "zero_shot": word_lessons(models, photos, prompts, config.anchor)}
    for lesson in chain.from_iterable(lessons.values()):
        read_target(models.net, models.judge.clip, lesson.target, config)
    return lessons


def evaluate(models: Models, photos: Tensor, lessons: Mapping[str, Sequence[Lesson]], art: Sequence[Path],
             settings: Settings, out: Path | None, tell: Tell) -> dict:
    """{"settings", "random": rows, "one_shot": {file: rows}, "one_shot_mean", "zero_shot": {prompt: rows}, ...}.

    photos (B, 3, px, px) in [-1, 1] at the model's size. art: pictures that random styles are compared with, if any.
    Sheets go to OUT/mmfs_NAME.png (photos | variant after variant), the numbers so far to OUT/mmfs.json.
    """
    report: dict = {"settings": asdict(settings), "photos": len(photos), "art": len(art)}

    def publish(title: str, rows: Rows, sheet: list[Tensor]) -> None:
        tell(table(rows))
        write(report, out, "mmfs")
        if out is not None:
            grid(sheet).save(out / f"mmfs_{file_name(title)}.png")

    tell("== random styles")
    report["random"], sheet = evaluate_random(models, photos, art, settings)
    publish("random", report["random"], sheet)
    for kind, todo in lessons.items():
        report[kind] = {}
        for lesson in todo:
            tell(f"== {kind}: {lesson.name}")
            report[kind][lesson.name], sheet = evaluate_lesson(models, photos, lesson, settings, tell)
            report[f"{kind}_mean"] = mean_rows(report[kind])
            publish(lesson.name, report[kind][lesson.name], sheet)
    return report
