"""What is measured of a stylization, whichever method made it: how much of the photo is kept, how much of the style is
taken over. `evaluate_osasis.py` and `evaluate_mmfs.py` make the pictures.
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.clip import Clip
from ..models.diffae import DiffAE
from . import guidance, metrics

Rows = dict[str, dict[str, float]]  # row of a table -> figure -> number
Tell = Callable[[str], None]
DECIMALS = 3
LEGEND = {
    "art distance": "down: Frechet distance of CLIP embeddings of pictures and art (FID uses Inception's); of few "
                    "pictures it comes out too large",
    "diversity": "up: perceptual distance of two random styles of one photo",
    "direction": "up: cosine of the CLIP change photo -> result with the one to the style (which starts, OSASIS: "
                 "at the photo twin, MMFS: at the photos' mean or the word 'photo')",
    "likeness": "up: cosine of the CLIP embeddings of result and style picture",
    "agreement": "up: cosine of the CLIP embeddings of result and prompt",
    "named": "up: share of results that CLIP calls by their prompt, of all prompts and 'photo'",
    "colour": "down: sliced distance of the colours to the style picture's",
    "texture": "down: sliced distance of 5 px grey patches to the style picture's",
    "patches": "up: share of the result's CLIP tokens that lies in the space of the style picture's tokens",
    "nearest": "up: cosine of each CLIP token of the result with the style picture's nearest one",
    "edges": "up: correlation of the edge maps of photo and result at 32 px",
    "structure": "down: difference of the self-similarities of photo and result",
    "identity": "down: 1 - cosine of the autoencoder's z of photo and result (no face recognition network is used)",
    "recognised": "up: share of results whose own photo is the nearest of all by z, each set's mean taken out"}


def structure_features(model: DiffAE, x: Tensor, px: int = 16) -> Tensor:
    """The encoder's last map of `px`: what its self-similarity says of the picture's layout."""
    return [f for f in model.encoder.features(x) if f.shape[-1] == px][-1]


@dataclass(frozen=True)
class Judge:
    """The networks that compare pictures, on one device. Pictures of any size are compared at the autoencoder's.

    perceptual: LPIPS or its substitute. dino: whose keys tell the structure; None for the autoencoder's encoder.
    """
    clip: Clip
    diffae: DiffAE
    perceptual: nn.Module
    dino: nn.Module | None = None

    def sized(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) at the side that the judge looks at."""
        side = (self.diffae.image_size,) * 2
        if x.shape[-2:] == side:
            return x
        return F.interpolate(x, side, mode="bilinear", antialias=True, align_corners=False)

    def layout(self, x: Tensor) -> Tensor:
        """(B, D, ...): features at every place, for `metrics.structure_distance`."""
        return structure_features(self.diffae, x) if self.dino is None else self.dino.keys(x).transpose(1, 2)

    def identity(self, x: Tensor) -> Tensor:
        """The autoencoder's z (B, D), each number by its mean and deviation among photos where the file has them."""
        z = self.diffae.encode(x)
        return (z - self.diffae.conds_mean) / self.diffae.conds_std if self.diffae.config.latent else z

    def differ(self, a: Tensor, b: Tensor) -> Tensor:
        """Perceptual distance (B,) of pictures."""
        return self.perceptual(self.sized(a), self.sized(b))

    def embed(self, x: Tensor) -> Tensor:
        """CLIP embeddings (B, D), not normalised."""
        return self.clip.embed(self.sized(x), "proper").float()


@torch.no_grad()
def kept(judge: Judge, photos: Tensor, results: Tensor) -> dict[str, float]:
    """How much of the photos the results keep: means over pictures (B, 3, H, W) in [-1, 1]."""
    photos, results = judge.sized(photos), judge.sized(results)
    who, who_now = judge.identity(photos), judge.identity(results)
    return means({
        "edges": metrics.edge_agreement(photos, results),
        "structure": metrics.structure_distance(judge.layout(photos), judge.layout(results)),
        "identity": (1 - F.cosine_similarity(who, who_now, dim=1)).clamp_min(0),
        "recognised": metrics.recognised(who_now, who)})


@torch.no_grad()
def taken_over(judge: Judge, photos: Tensor, results: Tensor, style: Tensor, source: Tensor) -> dict[str, float]:
    """How much of the style picture (1, 3, H, W) the results have; source (1, D): where its CLIP direction starts."""
    target, after = judge.embed(style), judge.embed(results)
    results, style = judge.sized(results), judge.sized(style)
    tokens, tokens_too = judge.clip.tokens(results), judge.clip.tokens(style)
    return means({
        "direction": metrics.direction_agreement(judge.embed(photos), after, source, target),
        "likeness": F.cosine_similarity(after, target, dim=1),
        "colour": metrics.colour_distance(results, style),
        "texture": metrics.texture_distance(results, style),
        "patches": metrics.share_within(tokens, guidance.projector(tokens_too)),
        "nearest": metrics.nearest_likeness(tokens, tokens_too)})


def means(values: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(v.float().mean()) for name, v in values.items()}


# --- tables -----------------------------------------------------------------------------------------------------------
def mean_rows(results: Mapping[str, Rows]) -> Rows:
    """Mean of every figure over the styles."""
    rows = list(results.values())
    return {variant: {figure: sum(r[variant][figure] for r in rows) / len(rows) for figure in values}
            for variant, values in rows[0].items()}


def table(rows: Rows) -> str:
    """The rows as a Markdown table; a figure that a row does not have stays empty."""
    figures = list(dict.fromkeys(figure for values in rows.values() for figure in values))
    lines = ["| | " + " | ".join(figures) + " |", "|---|" + "---|" * len(figures)]
    for name, values in rows.items():
        cells = (f"{values[f]:.{DECIMALS}f}" if f in values else "" for f in figures)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def beside(osasis: Rows, mmfs: Rows) -> Rows:
    """One table of both methods' rows for the same photos and styles."""
    rows = {"photos": mmfs["photos"]}
    for method, found in (("OSASIS", osasis), ("MMFS", mmfs)):
        rows |= {f"{method}: {name}": values for name, values in found.items() if name != "photos"}
    return rows


def write(report: Mapping, out: Path | None, name: str) -> None:
    """The numbers so far, as OUT/NAME.json; nothing without a folder."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps(report, indent=1))


def name_of(path: Path) -> str:
    """What a style picture is called: its folder and its file."""
    return f"{path.parent.name}_{path.stem}"


def file_name(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^\w.-]+", "_", name)


def first_of_each(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """One style a class folder (its first held-out picture), or every picture of a flat folder."""
    if all(p.parent == folder for p in paths):
        return list(paths)
    chosen: dict[Path, Path] = {}
    for path in paths:
        chosen.setdefault(path.parent, path)
    return list(chosen.values())
