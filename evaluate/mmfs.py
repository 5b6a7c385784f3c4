"""MMFS measured: random styles, styles learned from pictures and from text, before and after fine-tuning.

Before fine-tuning the CLIP mapping alone gives the w+ code; after it, the decoder has learned the style, for a picture
once with the projection loss and once without. The paper's Table 1 and Figures 7 and 8 as numbers (docs/mmfs.md C).
"""
from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import rng
from ..models.checkpoints import store
from ..models.features.clip import Clip
from ..models.features.protocols import StructureNet
from ..models.mmfs import MMFS
from ..models.style import styled
from ..models.stylegan2 import StyleGAN2, random_noise, random_z, seeded_noise
from ..train.data import read_picture, read_pictures, to_unit
from ..train.fewshot import FewShotConfig, Reference, read_reference, tune_mmfs
from ..train.gan import TrainingStage, device_of
from ..train.loop import Hooks
from ..train.recipes.mmfs import FacesMeasure, StageMeasure
from ..train.source_faces import FaceNetworks, KnownFaces, Samples, known_faces
from . import metrics
from .evaluator import Comparison, Evaluator, PictureFeatures
from .kept import KEPT, kept_first, networks_identity, pictures_identity
from .registry import (
    METRICS,
    PROMPT_AGREEMENT,
    gather,
    grouped,
    means,
    preservation,
    public_distances,
    public_notes,
    style_similarity,
    there,
)
from .tables import (
    HALVES,
    ResultFolder,
    Rows,
    Sets,
    file_name,
    gaps,
    group_rows,
    mean_rows,
    name_of,
    split_groups,
    table,
    write,
    write_sheet,
)

log = logging.getLogger(__name__)
SHOWN = 7  # photos on a picture sheet
GENERATED, ROWS = 2048, 64  # faces in a StyleGAN2's measurement; rows a forward
STAGE_STYLES = 8  # random styles of each photo in a stage's measurement
RANDOM = "random styles"
BEFORE, WITHOUT, AFTER = "CLIP mapping alone", "fine-tuned without projection", "fine-tuned"
Measure = Callable[[PictureFeatures], dict[str, float]]  # of results


@dataclass(frozen=True)
class Models:
    """What MMFS needs, on one device. structure_net: of the fine-tune. faces: what it learns on. known: source
    faces that fine-tunes have prepared.

    The evaluator's CLIP is also that of the fine-tune, as in the official program.
    """
    net: MMFS
    structure_net: StructureNet
    faces: Tensor | Samples
    evaluator: Evaluator
    known: KnownFaces = field(default_factory=known_faces, compare=False)

    def face_networks(self) -> FaceNetworks:
        return FaceNetworks(self.net, self.evaluator.clip_network(), self.structure_net)


@dataclass(frozen=True)
class Settings:
    """How the evaluation stylizes. styles: random styles a photo, at least 2; batch: photos at a time. groups: rows of
    the photos that are also reported by themselves, each under its name. text_config: how prompts are learned, by
    default as pictures."""
    config: FewShotConfig
    styles: int = 16
    batch: int = 28
    seed: int = 0
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)
    text_config: FewShotConfig | None = None

    def config_of(self, reference: Reference) -> FewShotConfig:
        """How a style is learned from a reference."""
        return self.config if reference.pictures or self.text_config is None else self.text_config

    def __post_init__(self) -> None:
        if self.styles < 2:
            raise ValueError(f"random styles must be 2 at least, to compare two of one photo; this is {self.styles}")


@torch.no_grad()
def stylize(net: MMFS, photos: Tensor, w_plus: Tensor, settings: Settings, noise_seed: int | None = None) -> Tensor:
    """Photos (B, 3, H, W) with w+ codes (B or 1, n, S). The noise is of the seed alone: the same in every variant.
    noise_seed: of the noise, by default that of the settings."""
    seed = settings.seed if noise_seed is None else noise_seed
    noise = seeded_noise(net.noise_shapes(*photos.shape[-2:]), seed, range(len(photos)), photos.device)
    w_plus, parts = w_plus.expand(len(photos), -1, -1), []
    for rows in torch.arange(len(photos), device=photos.device).split(settings.batch):
        parts.append(net(photos[rows], w_plus[rows], [n[rows] for n in noise]))
    return torch.cat(parts)


def random_w(net: MMFS, style: int, photos: int, seed: int) -> Tensor:
    """w+ codes (photos, n, S): random style `style` of each photo, a function of (seed, style, photo) alone."""
    z = rng.randn((net.config.w_dim,), seed, f"random style {style}", range(photos), device_of(net))
    return net.styles(z)


# --- random styles (Table 1) ------------------------------------------------------------------------------------------
@torch.no_grad()
def random_styles(models: Models, photos: Tensor, settings: Settings) -> list[Tensor]:
    """`styles` times all photos, every picture with a style and noise of its own."""
    return [stylize(models.net, photos, random_w(models.net, style, len(photos), settings.seed), settings,
                    rng.stream_seed(settings.seed, "noise of random style", style))
            for style in range(settings.styles)]


def check_art(photos: Tensor, art: Sequence[Path]) -> None:
    """ValueError for sets too small to be compared: two photos and two halves of two drawings are needed."""
    if art and (len(photos) < 2 or len(art) < 4):
        raise ValueError(f"the distance to the art needs at least 2 photos and 4 drawings; there are {len(photos)} and "
                         f"{len(art)}")


def art_distances(evaluator: Evaluator, sets: Mapping[str, Tensor], art: Tensor) -> Rows:
    """The art distance of each set of pictures, and of the art's one half to its other; art (N, 3, H, W), uint8 or in
    [-1, 1]."""
    art_features = PictureFeatures(evaluator, art)
    distance, art_set = METRICS["art_distance"], gather(art_features)

    def row(pictures: PictureFeatures) -> dict[str, float]:
        return {distance.name: float(distance.function(pictures, art_features))} | public_distances(
            evaluator.public, gather(pictures), art_set)
    rows = {name: row(PictureFeatures(evaluator, pictures)) for name, pictures in sets.items()}
    halves = art_features.embeddings[::2], art_features.embeddings[1::2]
    return rows | {HALVES: {distance.name: float(metrics.frechet_distance(*halves))} | public_distances(
        evaluator.public, art_set[::2], art_set[1::2])}


def evaluate_random(models: Models, photos: Tensor, art: Sequence[Path],
                    settings: Settings) -> tuple[Rows, list[Tensor]]:
    """Rows for the photos themselves, for random styles and for the art itself; the rows of the sheet."""
    evaluator, generated = models.evaluator, random_styles(models, photos, settings)
    seen = PictureFeatures(evaluator, photos)

    def preserved(name: str, results: PictureFeatures) -> Rows:
        comparison = Comparison(seen, results)
        return {name: means(comparison, preservation(evaluator))} | group_rows(name,
                                                                              grouped(comparison, settings.groups))
    count = len(generated) // 2 * 2
    halves = [PictureFeatures(evaluator, torch.cat(generated[first:count:2])) for first in (0, 1)]
    rows: Rows = {"photos": {}, RANDOM: {name: float(METRICS[name].function(*halves)) for name in (
        "diversity", *there(evaluator.public, ("lpips_diversity",)))}}
    if art:
        pictures = read_pictures(art, models.net.config.resolution)
        sets = {"photos": photos, RANDOM: torch.cat(generated)}
        for name, values in art_distances(evaluator, sets, pictures).items():
            rows[name] = rows.get(name, {}) | values
    each = {str(k): preserved(RANDOM, PictureFeatures(evaluator, x)) for k, x in enumerate(generated)}
    for name, values in (preserved("photos", seen) | mean_rows(each)).items():
        rows[name] = rows.get(name, {}) | values
    for values in (rows["photos"], rows[RANDOM]):
        if {"lpips_alex", "fid_art"} <= values.keys():
            values["art_fid"] = metrics.art_fid(values["lpips_alex"], values["fid_art"])
    return rows, [photos[:SHOWN + 1], *(results[:SHOWN + 1] for results in generated[:5])]


def file_embeddings(clip: Clip) -> Callable[[Sequence[Path], int], Tensor]:
    """CLIP embeddings of pictures' files at a size in px; those of the same files are made once."""
    @functools.cache
    def embeddings(paths: tuple[Path, ...], px: int) -> Tensor:
        with torch.no_grad():
            return torch.cat([clip.embed(to_unit(read_pictures(paths[i:i + ROWS], px)).to(clip.mean.device), "openai")
                              for i in range(0, len(paths), ROWS)])
    return lambda paths, px: embeddings(tuple(paths), px)


def faces_distance_measure(clip: Clip, count: int = GENERATED) -> FacesMeasure:
    """The Frechet distance, in CLIP embeddings, of a StyleGAN2 as it stands to held-out faces: `count` random faces of
    the average, the same z and noise whenever it is asked, not truncated. clip: on the stage's device."""
    files = file_embeddings(clip)

    @torch.no_grad()
    def measure(stage: TrainingStage, faces: list[Path]) -> dict[str, float]:
        net, seed, parts = stage.run.average("g", StyleGAN2), stage.config.seed, []
        device, shapes = device_of(net), net.synthesis.noise_shapes(4, 4)
        for first, z in enumerate(random_z(count, net.config.w_dim, seed, device).split(ROWS)):
            noise = random_noise(shapes, len(z), rng.generator(seed, "measured noise", first, device=device))
            parts.append(clip.embed(net(net.styles(z), noise).clamp(-1, 1), "openai"))
        wanted = files(faces, net.config.resolution)
        return {"faces_distance": float(metrics.frechet_distance(torch.cat(parts), wanted))}
    return measure


def art_distance_measure(clip: Clip) -> StageMeasure:
    """The art distance of a Stage II as it stands: held-out photos in STAGE_STYLES random styles, to all of the art.

    The art is read when it is first asked for. clip: on the stage's device.
    """
    files = file_embeddings(clip)

    @torch.no_grad()
    def measure(stage: TrainingStage, photos: Tensor, art: list[Path]) -> dict[str, float]:
        net, parts = stage.run.average("g", MMFS), []
        photos = photos.to(device_of(net))
        for style in range(STAGE_STYLES):
            parts.append(clip.embed(net(photos, random_w(net, style, len(photos), stage.config.seed)), "openai"))
        wanted = files(art, net.config.resolution)
        return {"art_distance": float(metrics.frechet_distance(torch.cat(parts), wanted))}
    return measure


# --- styles that are learned (Figures 7 and 8) ------------------------------------------------------------------------
@dataclass(frozen=True)
class StyleTask:
    """One style to learn, how its results are measured, and the picture (1, 3, H, W) that begins its rows, if any, with
    its file. texts: those that a prompt competes with, itself among them."""
    name: str
    reference: Reference
    measure: Measure
    shown: Tensor | None = None
    path: Path = Path("style")
    texts: tuple[str, ...] = ()

    def identity(self) -> list[str]:
        """What decides its numbers but the models, photos and settings."""
        return [self.name, "" if self.shown is None else pictures_identity(self.shown), *self.texts]


def picture_tasks(models: Models, photos: Tensor, styles: Sequence[Path]) -> list[StyleTask]:
    """One-shot; the CLIP direction to a style image starts at the photos' mean."""
    evaluator, tasks = models.evaluator, []
    seen = PictureFeatures(evaluator, photos)
    start = seen.embeddings.mean(0, keepdim=True)

    def measure_of(style: PictureFeatures) -> Measure:
        def measure(results: PictureFeatures) -> dict[str, float]:
            comparison = Comparison(seen, results, style, start)
            return means(comparison, (*style_similarity(evaluator), *preservation(evaluator)))
        return measure
    for path in styles:
        picture = read_picture(path, models.net.config.resolution)
        style_image = to_unit(picture)[None].to(photos.device)
        measure = measure_of(PictureFeatures(evaluator, style_image))
        tasks.append(StyleTask(name_of(path), Reference(pictures=[picture]), measure, style_image, path))
    return tasks


def text_tasks(models: Models, photos: Tensor, prompts: Sequence[str], anchor: str) -> list[StyleTask]:
    """Zero-shot; the CLIP direction to a prompt starts at the anchor, which prompts compete with, too."""
    evaluator = models.evaluator
    for prompt in (*prompts, anchor):
        evaluator.clip_network().check_prompt(prompt)
    with torch.no_grad():
        texts = F.normalize(evaluator.clip_network().embed_text([*prompts, anchor]).float(), dim=1)
    seen = PictureFeatures(evaluator, photos)

    def measure_of(index: int) -> Measure:
        def measure(results: PictureFeatures) -> dict[str, float]:
            comparison = Comparison(seen, results, None, texts[-1:], texts, index)
            return means(comparison, (*PROMPT_AGREEMENT, *preservation(evaluator)))
        return measure
    return [StyleTask(prompt, Reference(prompt), measure_of(k), texts=(*prompts, anchor))
            for k, prompt in enumerate(prompts)]


def learn(models: Models, reference: Reference, config: FewShotConfig, hooks: Hooks = Hooks()) -> tuple[MMFS, Tensor]:
    """The model with the fine-tuned decoder, and the style's w+ code (1, n, S)."""
    started = time.perf_counter()
    style, run = tune_mmfs(models.face_networks(), reference, models.faces, config, hooks=hooks,
                           known=models.known)
    losses = run.loss_history["loss"]
    log.info("fine-tuned%s: loss %.2f -> %.2f, %.0f s",
             f", projection_weight {config.projection_weight:g}" if reference.pictures else "", losses[0], losses[-1],
             time.perf_counter() - started)
    return styled(models.net, style), style.code().to(device_of(models.net))


def configs_of(task: StyleTask, config: FewShotConfig) -> dict[str, FewShotConfig]:
    """How a style is learned: as the settings say, and for pictures also without the projection loss."""
    if not (task.reference.pictures and config.projection_weight):
        return {AFTER: config}
    return {WITHOUT: replace(config, projection_weight=0.0), AFTER: config}


def face_groups(features: Mapping[str, PictureFeatures], groups: Mapping[str, Sequence[int]]) -> Rows:
    """Rows for the groups of photos in each of the sets of pictures, of which "photos" is one."""
    rows: Rows = {}
    for name, found in features.items():
        rows |= group_rows(name, grouped(Comparison(features["photos"], found), groups))
    return rows


def evaluate_task(models: Models, photos: Tensor, task: StyleTask, settings: Settings,
                  hooks: Hooks = Hooks(), sets: Sets | None = None) -> tuple[Rows, list[Tensor]]:
    """Rows for the photos, before fine-tuning and after it; the rows of the sheet.

    sets: where a style picture's photos, results and itself are added to those of other styles.
    """
    config = settings.config_of(task.reference)
    w_plus = read_reference(models.net, models.evaluator.clip_network(), task.reference, config).w_plus
    results = {BEFORE: stylize(models.net, photos, w_plus, settings)}
    for name, changed in configs_of(task, config).items():
        net, w_plus = learn(models, task.reference, changed, hooks)
        results[name] = stylize(net, photos, w_plus, settings)
    pictures = {"photos": photos} | results
    beginning = [] if task.shown is None else [task.shown]
    features = {name: PictureFeatures(models.evaluator, x) for name, x in pictures.items()}
    if sets is not None and task.shown is not None:
        sets.add_art(PictureFeatures(models.evaluator, task.shown))
        for name, found in features.items():
            if name not in sets.results or name != "photos":  # the photos are the same for every style
                sets.add(name, found)
    rows = {name: task.measure(found) for name, found in features.items()}
    return (rows | face_groups(features, settings.groups),
            [torch.cat([*beginning, x[:SHOWN]]) for x in pictures.values()])


# --- everything -------------------------------------------------------------------------------------------------------
def read_tasks(models: Models, photos: Tensor, styles: Sequence[Path], prompts: Sequence[str],
               config: FewShotConfig) -> dict[str, list[StyleTask]]:
    """{"one_shot": ..., "zero_shot": ...}. ValueError for styles and prompts that this model and CLIP cannot use."""
    tasks = {"one_shot": picture_tasks(models, photos, styles),
             "zero_shot": text_tasks(models, photos, prompts, config.anchor)}
    for task in chain.from_iterable(tasks.values()):
        read_reference(models.net, models.evaluator.clip_network(), task.reference, config)
    return tasks


def evaluate(models: Models, photos: Tensor, tasks: Mapping[str, Sequence[StyleTask]], art: Sequence[Path],
             settings: Settings, out: Path | None = None, hooks: Hooks = Hooks(),
             folder: ResultFolder | None = None) -> dict:
    """{"settings", "random": rows, "one_shot": {file: rows}, "one_shot_mean", "one_shot_sets": FID, KID and ArtFID of
    all styles together, "zero_shot": {prompt: rows}, ..., "gaps": {"random": `tables.gaps`, ...}, "public": how the
    published measures were made}.

    photos (B, 3, px, px) in [-1, 1] at the model's size. art: pictures that random styles are compared with, if any.
    Sheets go to OUT/mmfs_NAME.png (photos | variant after variant), the numbers so far to OUT/mmfs.json and the log.
    What is measured of random styles and of a style is kept in OUT/KEPT: the same call goes on behind it. folder: gets
    every result of a style picture as a picture; nothing is taken from OUT/KEPT then, nor for sets.
    """
    report: dict = {"settings": asdict(settings), "photos": len(photos), "art": len(art), "gaps": {}}
    wanted = Sets(models.evaluator, folder).wanted
    keep = None if out is None or wanted else out / KEPT
    identity = [*identity_of(models, settings), pictures_identity(photos)]

    def measured(key: Sequence[str], title: str, measure: Callable[[], tuple[Rows, list[Tensor]]]) -> Rows:
        rows, sheet = kept_first(keep, [*key, *identity], measure)
        if sheet:
            write_sheet(sheet, out, f"mmfs_{file_name(title)}")
        return rows

    def publish(rows: Rows) -> None:
        log.info("%s", table(split_groups(rows)[0]))
        write(report, out, "mmfs")

    log.info("== random styles")
    drawings = [store.file_token(path) for path in art]
    report["random"] = measured(["random", *drawings], "random", functools.partial(
        evaluate_random, models, photos, art, settings))
    report["public"] = public_notes(models.evaluator.public, f"{len(photos)} photos, {settings.styles} random styles "
                                    f"each, {len(art)} drawings")
    report["gaps"]["random"] = gaps(report["random"])
    publish(report["random"])
    for kind, todo in tasks.items():
        report[kind], sets = {}, Sets(models.evaluator, folder)
        for task in todo:
            log.info("== %s: %s", kind, task.name)
            sets.begin(task.path)
            report[kind][task.name] = measured([kind, *task.identity()], task.name, functools.partial(
                evaluate_task, models, photos, task, settings, hooks, sets))
            report[f"{kind}_mean"] = mean_rows(report[kind])
            report[f"{kind}_sets"] = sets.rows(report[f"{kind}_mean"])
            report["gaps"][kind] = gaps(report[f"{kind}_mean"])
            publish(report[kind][task.name])
    return report


def identity_of(models: Models, settings: Settings) -> list[str]:
    """What decides the numbers but the pictures. The source faces are known by their pictures or their network."""
    faces = models.faces
    source = pictures_identity(faces) if isinstance(faces, Tensor) else networks_identity([faces.net])[0]
    return [str(settings), *models.evaluator.identity_of_networks(), source,
            *networks_identity([models.net, models.structure_net])]
