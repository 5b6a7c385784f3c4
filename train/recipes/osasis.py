"""Fine-tuning OSASIS to a text with photos as content, as the command line does it."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ...models import rng
from ...models.features.clip import Clip
from ...models.features.encoder import EncoderDistance
from ...models.features.lpips import LpipsVGG
from ...models.loading import load_diffae, save_style
from ...models.style import OSASISStyle, fingerprint
from ..data import read_pictures, to_unit
from ..osasis import FrozenNetworks, OSASISConfig
from ..osasis_words import WordsConfig, tune_to_words
from .config import Folders, RecipeConfig

MOST_PHOTOS = 1600  # that lie on the GPU, prepared: as many as the official 200 iterations of 8 take


def chosen(paths: Sequence[Path], seed: int, most: int = MOST_PHOTOS) -> list[Path]:
    """All paths, or so many of them as the seed decides, in their order. The number of iterations has no part in it, so
    that a training can be resumed with more."""
    if len(paths) <= most:
        return list(paths)
    order = torch.randperm(len(paths), generator=rng.generator(seed, "chosen photos"))
    return [paths[k] for k in sorted(order[:most].tolist())]


def words(source: Path, clip: Clip, perceptual: LpipsVGG | None, folders: Folders, texts: WordsConfig,
          config: OSASISConfig, recipe: RecipeConfig) -> OSASISStyle:
    """A style of the DiffAE in the file `source`, learned from texts, and written to OUT. perceptual: None for the
    DiffAE's own encoder. Of many photos, some are chosen. ValueError as of `tune_to_words`."""
    net = load_diffae(source).to(recipe.device)
    distance = EncoderDistance(net.encoder) if perceptual is None else perceptual
    nets = FrozenNetworks(net, clip.to(recipe.device), distance.to(recipe.device), fingerprint(net))
    paths = chosen(folders.photo_paths()[0], config.seed)
    photos = to_unit(read_pictures(paths, net.image_size)).to(recipe.device)
    style, _ = tune_to_words(nets, texts, config, photos, recipe.run.checkpointing, recipe.hooks)
    save_style(recipe.out, style)
    return style
