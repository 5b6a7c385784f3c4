"""OSASIS measured: reconstruction, and stylization of a folder of photos with a folder of styles.

For every style: photo twin, one-shot fine-tune with the SPN and one without, then all photos stylized in several ways.
The paper's claims are rows of one table: the SPN keeps structure; mixing codes beats a single code (spec G, 4.3, 4.4).
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..models.diffae import DiffAE, change_point_weights, mix_codes
from ..models.osasis import Style, fingerprint, gaussian, photo_twins, stylize, twin_scores
from ..models.unet import UNet
from . import osasis
from .data import read_picture, to_unit
from .evaluate import Judge, Rows, Tell, kept, mean_rows, name_of, table, taken_over, write
from .osasis import Content, OsasisConfig
from .report import grid, reconstruction
from .session import tune_style


@dataclass(frozen=True)
class Models:
    """Everything a stylization needs, on one device. The judge's networks also guide."""
    ddpm: UNet
    judge: Judge

    @property
    def diffae(self) -> DiffAE:
        return self.judge.diffae


@dataclass(frozen=True)
class Settings:
    """How the evaluation stylizes. steps as in the official test: 100 / 50; twin_t0: strength of the photo twin."""
    config: OsasisConfig
    candidates: int = 30
    twin_t0: float = 0.5
    twin_steps: int = 50
    encode_steps: int = 100
    decode_steps: int = 50
    change_point: int = 32
    batch: int = 28
    seed: int = 0


# name -> (which codes: "mix", "content", "style" or "swap"; the style with SPN or without; the SPN used or not)
VARIANTS: dict[str, tuple[str, bool, bool]] = {
    "mixed codes, SPN": ("mix", True, True),
    "mixed codes, SPN left out": ("mix", True, False),
    "mixed codes, trained without SPN": ("mix", False, False),
    "content code alone, SPN": ("content", True, True),
    "style code alone, SPN": ("style", True, True),
    "codes swapped, SPN": ("swap", True, True),
}


def twin_of(models: Models, style: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """The best of the candidates (1, 3, px, px) and every score, ascending."""
    shape = (settings.candidates, *style.shape[1:])
    twins = photo_twins(models.ddpm, style, gaussian(shape, settings.seed, style.device), steps=settings.twin_steps,
                        t0=settings.twin_t0).clamp(-1, 1)
    scores, order = twin_scores(twins, style, models.judge.perceptual).sort()
    return twins[order[:1]], scores


def codes_for(how: str, model: DiffAE, content: Tensor, style: Tensor, change_point: int):
    """The codes of every level for one row of VARIANTS."""
    config = model.config.unet
    if how in ("content", "style"):
        return mix_codes(content, style, [float(how == "style")] * (config.levels + 1))
    return mix_codes(content, style, change_point_weights(config, change_point, swap=how == "swap"))


def stylize_all(models: Models, style: Style, content: Content, how: str, with_spn: bool, settings: Settings) -> Tensor:
    """The photos of `content` in the style, one row of VARIANTS; (B, 3, px, px) in [-1, 1]."""
    unet, spn = (None if net is None else net.to(content.z.device) for net in style.networks())
    z_style, parts = style.z.to(content.z.device), []
    for i in range(0, len(content.z), settings.batch):
        part = content.rows(torch.arange(i, min(i + settings.batch, len(content.z)), device=content.z.device))
        codes = codes_for(how, models.diffae, part.z, z_style, settings.change_point)
        parts.append(stylize(unet, part.x, codes, steps=settings.decode_steps, t0=settings.config.t0,
                             spn=spn if with_spn else None, picture=part.picture, spn_weight=settings.config.spn_weight,
                             spn_time=settings.config.spn_time, noise_level=settings.config.noise_level))
    return torch.cat(parts).float()


@torch.no_grad()
def measure(judge: Judge, photos: Tensor, results: Tensor, twin: Tensor, style: Tensor) -> dict[str, float]:
    """All figures; the CLIP direction to the style starts at its photo twin."""
    return taken_over(judge, photos, results, style, judge.embed(twin)) | kept(judge, photos, results)


def evaluate_style(models: Models, photos: Tensor, style: Tensor, settings: Settings,
                   tell: Tell) -> tuple[Rows, list[Tensor]]:
    """Rows of numbers for one style picture (1, 3, px, px), and the rows of its picture sheet."""
    device = photos.device
    with torch.no_grad(), osasis.autocast(device, settings.config):
        twin, scores = twin_of(models, style, settings)
        content = osasis.prepare_content(models.diffae, photos, replace(settings.config,
                                                                        forward_steps=settings.encode_steps))
    tell(f"twin: L1 {float((twin - style).abs().mean()):.3f}, score {float(scores[0]):.2f} "
         f"(worst of {settings.candidates}: {float(scores[-1]):.2f})")
    mark, styles = fingerprint(models.diffae), {}
    for with_spn in (True, False):
        config = settings.config if with_spn else replace(settings.config, spn="none")
        styles[with_spn], run = tune_style(models.diffae, models.judge.clip, models.judge.perceptual, twin, style,
                                           config, fingerprint=mark)
        tell(f"fine-tuned {'with' if with_spn else 'without'} SPN, loss {run.history['loss'][0]:.2f} -> "
             f"{run.history['loss'][-1]:.2f}")
    rows = {"photos": measure(models.judge, photos, photos, twin, style)}
    pictures = [torch.cat([style, photos[:7]])]
    for name, (how, trained_with, used) in VARIANTS.items():
        with torch.no_grad(), osasis.autocast(device, settings.config):
            results = stylize_all(models, styles[trained_with], content, how, used, settings)
        rows[name] = measure(models.judge, photos, results, twin, style)
        pictures.append(torch.cat([twin, results[:7].clamp(-1, 1)]))
    return rows, pictures


def evaluate(models: Models, photos: Tensor, styles: Sequence[Path], settings: Settings, out: Path | None,
             tell: Tell) -> dict:
    """{"reconstruction": ..., "styles": {file: rows}, "mean": rows} for photos (B, 3, px, px) and style files.

    Picture sheets go to OUT/STYLE.png: the first row is style | photos, the others twin | one variant each. The numbers
    so far are written to OUT/results.json after each style.
    """
    results, px = {}, models.diffae.image_size
    chains = {f"t0 {t0}, {settings.encode_steps} / {settings.decode_steps} steps":
              (settings.encode_steps, settings.decode_steps, t0) for t0 in (settings.config.t0, 1.0)}
    with torch.no_grad(), osasis.autocast(photos.device, settings.config):
        rebuilt = reconstruction(models.diffae, photos, chains)
    tell(f"reconstruction (PSNR dB, SSIM): {json.dumps(rebuilt)}")
    for path in styles:
        name = name_of(path)
        tell(f"== {name}")
        style = to_unit(read_picture(path, px))[None].to(photos.device)
        results[name], pictures = evaluate_style(models, photos, style, settings, tell)
        tell(table(results[name]))
        report = {"reconstruction": rebuilt, "styles": results, "mean": mean_rows(results)}
        write(report, out, "results")
        if out is not None:
            grid(pictures).save(out / f"{name}.png")
    return report
