"""OSASIS measured: reconstruction, and stylization of a folder of photos with a folder of styles.

For every style: photo twin, one-shot fine-tune with the SPN and one without, then all photos stylized in several ways.
The paper's claims are rows of one table: the SPN keeps structure; mixing codes beats a single code (docs/osasis.md G).
"""
from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..models import ops
from ..models.accelerated import accelerated
from ..models.diffae import DiffAE, change_point_weights, mix_codes
from ..models.osasis import SamplingSettings, photo_twins, stylize, twin_noise, twin_scores
from ..models.precision import autocast
from ..models.style import OSASISStyle, fingerprint
from ..models.unet import UNet
from ..train.content import Content, prepare_content
from ..train.content_files import ContentFolder
from ..train.data import read_picture, to_unit
from ..train.loop import Hooks
from ..train.osasis import FrozenNetworks, OSASISConfig, tune_style
from ..train.plots import save_picture
from . import intervals
from .evaluator import Comparison, Evaluator, PictureFeatures
from .kept import KEPT, kept, kept_first, networks_identity, pictures_identity
from .registry import grouped, means, measure, preservation, style_similarity
from .report import reconstruction
from .tables import (
    ResultFolder,
    Rows,
    Sets,
    gaps,
    group_rows,
    mean_rows,
    name_of,
    short_name,
    split_groups,
    table,
    write,
    write_sheet,
)

log = logging.getLogger(__name__)
SHOWN = 7  # photos on a picture sheet


@dataclass(frozen=True)
class Models:
    """Everything a stylization needs, on one device. The evaluator's networks are also those of the fine-tune."""
    ddpm: UNet
    evaluator: Evaluator

    @property
    def diffae(self) -> DiffAE:
        return self.evaluator.autoencoder()

    def frozen(self) -> FrozenNetworks:
        return FrozenNetworks(self.diffae, self.evaluator.clip_network(), self.evaluator.perceptual_network(),
                              fingerprint(self.diffae))


@dataclass(frozen=True)
class Settings:
    """How the evaluation stylizes. steps as in the official test: 100 / 50; twin_t0: strength of the photo twin.

    content: where content pictures of the fine-tunes are kept, which all styles share. groups: rows of the photos that
    are also reported by themselves, each under its name. seeds: each style is learned with so many, from that of config
    on, and every number is their mean. parts: rows of the photos on which variants are also compared.
    """
    config: OSASISConfig
    candidates: int = 30
    twin_t0: float = 0.5
    twin_steps: int = 50
    encode_steps: int = 100
    decode_steps: int = 50
    change_point: int = 32
    batch: int = 28
    seed: int = 0
    content: ContentFolder | None = None
    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)
    seeds: int = 1
    parts: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """A way to stylize. codes: "mix", "content", "style" or "swap". spn: in the fine-tune; spn_used: in sampling."""
    codes: str = "mix"
    spn: bool = True
    spn_used: bool = True


OURS = "mixed codes, SPN"
STRUCTURE = ("edge_agreement", "structure_distance")  # what the SPN is for (docs/osasis.md G)
VARIANTS: dict[str, Variant] = {
    OURS: Variant(),
    "mixed codes, SPN left out": Variant(spn_used=False),
    "mixed codes, trained without SPN": Variant(spn=False, spn_used=False),
    "content code alone, SPN": Variant("content"),
    "style code alone, SPN": Variant("style"),
    "codes swapped, SPN": Variant("swap"),
}


def resized(pictures: Tensor, px: int) -> Tensor:
    """Square pictures (B, 3, H, H) with a side of px."""
    return pictures if pictures.shape[-1] == px else ops.resize(pictures, (px, px), "bicubic").clamp(-1, 1)


@torch.no_grad()
def best_twin(models: Models, style_image: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """The best of the candidates (1, 3, px, px) and every score, ascending. They are made at the DDPM's size and
    compared at the style image's."""
    device, precision = style_image.device, settings.config.precision
    start = resized(style_image, models.ddpm.config.image_size)
    noise = twin_noise(settings.seed, range(settings.candidates), start.shape[1:], device)
    with autocast(device, precision):
        ddpm = accelerated(models.ddpm, device, precision)
        twins = photo_twins(ddpm, start, noise, steps=settings.twin_steps, t0=settings.twin_t0)
        twins = resized(twins.float().clamp(-1, 1), style_image.shape[-1])
        scores, order = twin_scores(twins, style_image, models.evaluator.perceptual_network()).sort()
    return twins[order[:1]].float(), scores.float()


def codes_for(codes: str, model: DiffAE, z_content: Tensor, z_style: Tensor, change_point: int) -> tuple[Tensor, ...]:
    """The codes of every level for `Variant.codes`; z_content (B, E), z_style (1, E)."""
    config = model.config.unet
    if codes in ("content", "style"):
        return mix_codes(z_content, z_style, [float(codes == "style")] * (config.levels + 1))
    return mix_codes(z_content, z_style, change_point_weights(config, change_point, swap=codes == "swap"))


@torch.no_grad()
def stylize_all(models: Models, style: OSASISStyle, content: Content, variant: Variant, settings: Settings) -> Tensor:
    """The photos of `content` in the style; (B, 3, px, px) in [-1, 1]."""
    device, parts = content.z.device, []
    unet, spn = style.networks()
    unet = accelerated(unet.to(device), device, settings.config.precision)
    spn = None if spn is None else accelerated(spn.to(device), device, settings.config.precision)
    for rows in torch.arange(len(content.z), device=device).split(settings.batch):
        part = content.rows(rows)
        codes = codes_for(variant.codes, models.diffae, part.z, style.semantic_code().to(device), settings.change_point)
        with autocast(device, settings.config.precision):
            parts.append(stylize(unet, part.x, codes, steps=settings.decode_steps,
                                 settings=SamplingSettings.of(style.settings), spn=spn if variant.spn_used else None,
                                 picture=part.picture))
    return torch.cat(parts).float()


@dataclass(frozen=True)
class Measured:
    """Of one style and seed: rows of numbers, the rows of a picture sheet, STRUCTURE of every photo by variant, and
    how far the twin is from the style image: "difference", mean and absolute, and "score"."""
    rows: Rows
    sheet: list[Tensor]
    structure: dict[str, dict[str, Tensor]]
    twin: dict[str, float]

    def numbers(self) -> dict:
        """All but the pictures, as JSON."""
        structure = {name: {figure: x.tolist() for figure, x in figures.items()}
                     for name, figures in self.structure.items()}
        return {"rows": self.rows, "structure": structure, "twin": self.twin}


def evaluate_style(models: Models, photos: Tensor, style_image: Tensor, settings: Settings,
                   hooks: Hooks = Hooks(), sets: Sets | None = None) -> Measured:
    """One style image (1, 3, px, px). sets: where photos, results and style image are added to those of others."""
    config, nets = settings.config, models.frozen()
    twin, scores = best_twin(models, style_image, settings)
    frozen = accelerated(models.diffae, photos.device, config.precision)
    content = Content.joined([
        prepare_content(frozen, part, replace(config, forward_steps=settings.encode_steps), hooks)
        for part in photos.split(settings.batch)])
    apart = {"difference": float((twin - style_image).abs().mean()), "score": float(scores[0])}
    log.info("twin: difference %.3f, score %.2f (worst of %d: %.2f)", *apart.values(), settings.candidates, scores[-1])
    styles = {}
    for spn in (True, False):
        styles[spn], run = tune_style(nets, twin, style_image, config if spn else replace(config, spn="none"),
                                      hooks=hooks, folder=settings.content)
        losses = run.loss_history["loss"]
        log.info("fine-tuned %s SPN, loss %.2f -> %.2f", "with" if spn else "without", losses[0], losses[-1])
    seen, style = (PictureFeatures(models.evaluator, pictures) for pictures in (photos, style_image))
    start = models.evaluator.embed(twin)
    sets = Sets(models.evaluator) if sets is None else sets

    structure: dict[str, dict[str, Tensor]] = {}

    def figures(name: str, results: PictureFeatures) -> Rows:
        if name not in sets.results or name != "photos":  # the photos are the same for every style
            sets.add(name, results)
        comparison = Comparison(seen, results, style, start)
        names = *style_similarity(models.evaluator), *preservation(models.evaluator)
        if name in VARIANTS:
            structure[name] = measure(comparison, STRUCTURE)
        return {name: means(comparison, names)} | group_rows(name, grouped(comparison, settings.groups))
    rows, pictures = figures("photos", seen), [torch.cat([style_image, photos[:SHOWN]])]
    for name, variant in VARIANTS.items():
        results = stylize_all(models, styles[variant.spn], content, variant, settings)
        rows |= figures(name, PictureFeatures(models.evaluator, results))
        pictures.append(torch.cat([twin, results[:SHOWN].clamp(-1, 1)]))
    return Measured(rows, pictures, structure, apart)


def evaluate_seeds(models: Models, photos: Tensor, style_image: Tensor, settings: Settings, hooks: Hooks,
                   sets: Sets) -> Measured:
    """The mean over the seeds, with the sheet of the first."""
    found = []
    for k in range(settings.seeds):
        sets.begin(sets.style, f"seed_{settings.seed + k}" if settings.seeds > 1 else "")
        config = replace(settings.config, seed=settings.config.seed + k)
        found.append(evaluate_style(models, photos, style_image, replace(settings, config=config,
                                                                         seed=settings.seed + k), hooks, sets))
    structure = {name: {figure: torch.stack([one.structure[name][figure] for one in found]).float().mean(0).cpu()
                        for figure in STRUCTURE} for name in VARIANTS}
    mean = mean_rows({str(k): one.rows | {"twin": one.twin} for k, one in enumerate(found)})
    twin = mean.pop("twin")
    return Measured(mean, found[0].sheet, structure, twin)


def evaluate(models: Models, photos: Tensor, styles: Sequence[Path], settings: Settings, out: Path | None = None,
             hooks: Hooks = Hooks(), folder: ResultFolder | None = None) -> dict:
    """{"reconstruction": ..., "styles": {file: rows}, "mean": rows, "gaps": `tables.gaps`, "gains": `intervals.gains`
    of OURS over the other variants, "sets": rows, "public": lines, "twins": {file: numbers}} for photos (B, 3, px, px)
    and style files. "sets": FID, KID and ArtFID of the results of all styles. "public": how the published measures were
    made.

    Picture sheets go to OUT/STYLE.png: the first row is style | photos, the others twin | one variant each; the twins
    by themselves to OUT/twins/STYLE.png. The numbers so far are written to OUT/results.json after each style, and
    logged; STRUCTURE of every photo to structure.json. What is measured of a style is kept in OUT/KEPT: the same call
    goes on behind it. folder: gets every result as a picture; nothing is taken from OUT/KEPT then, nor for sets.
    """
    sets = Sets(models.evaluator, folder)
    keep = None if out is None or sets.wanted else out / KEPT
    identity = [*identity_of(models, settings), pictures_identity(photos)]
    report = {"reconstruction": kept(keep, ["reconstruction", *identity], lambda: rebuilt(models, photos, settings)),
              "styles": {}, "twins": {}, "mean": {}, "gaps": {}, "gains": {}, "sets": {}, "public": [],
              "seeds": settings.seeds}
    log.info("reconstruction (PSNR dB, SSIM): %s", json.dumps(report["reconstruction"]))
    values: dict[str, dict[str, list[list[float]]]] = {name: {figure: [] for figure in STRUCTURE} for name in VARIANTS}

    def measured(style_image: Tensor) -> tuple[dict, list[Tensor]]:
        found = evaluate_seeds(models, photos, style_image, settings, hooks, sets)
        return found.numbers(), found.sheet
    for path in styles:
        name = name_of(path)
        log.info("== %s", name)
        sets.begin(path)
        style_image = to_unit(read_picture(path, models.diffae.image_size))[None].to(photos.device)
        sets.add_art(PictureFeatures(models.evaluator, style_image))
        counted = dict(sets.counts)
        found, sheet = kept_first(keep, ["style", *identity, pictures_identity(style_image)],
                                  partial(measured, style_image))
        if sheet and out is not None:
            write_sheet(sheet, out, short_name(name))
            save_picture(sheet[1][0], out / "twins" / f"{short_name(name)}.png")
        report["styles"][name], report["twins"][name] = found["rows"], found["twin"]
        if sets.counts == counted:
            sets.count(found["rows"], len(photos), settings.seeds)
        for variant, figures in found["structure"].items():
            for figure, column in figures.items():
                values[variant][figure].append(column)
        log.info("%s", table(split_groups(found["rows"])[0]))
        report["mean"] = mean_rows(report["styles"])
        report["gaps"], report["sets"], report["public"] = gaps(report["mean"]), sets.rows(report["mean"]), sets.notes()
        report["gains"] = intervals.gains({row: {figure: [torch.tensor(x) for x in columns]
                                                 for figure, columns in figures.items()}
                                           for row, figures in values.items()}, OURS, settings.parts)
        write(report, out, "results")
        write(values, out, "structure")
    return report


def rebuilt(models: Models, photos: Tensor, settings: Settings) -> dict[str, list[float]]:
    """[PSNR, SSIM] of the photos' reconstructions, to t0 of the fine-tune and whole."""
    steps = settings.encode_steps, settings.decode_steps
    chains = {f"t0 {t0}, {steps[0]} / {steps[1]} steps": (*steps, t0, settings.config.solver)
              for t0 in (settings.config.t0, 1.0)}
    with autocast(photos.device, settings.config.precision):
        frozen = accelerated(models.diffae, photos.device, settings.config.precision)
        return {name: list(figures) for name, figures in
                reconstruction(frozen, photos, chains, settings.batch).items()}


def identity_of(models: Models, settings: Settings) -> list[str]:
    """What decides the numbers but the pictures."""
    evaluator = models.evaluator
    return [str(replace(settings, content=None)), *evaluator.identity_of_networks(), *networks_identity([models.ddpm])]
