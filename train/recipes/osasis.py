"""Fine-tuning OSASIS to a text with photos as content, as the command line does it."""
from __future__ import annotations

from pathlib import Path

from ...models.features.clip import Clip
from ...models.features.encoder import EncoderDistance
from ...models.features.lpips import LpipsVGG
from ...models.loading import load_diffae, save_style
from ...models.style import OSASISStyle, fingerprint
from ..data import read_pictures, to_unit
from ..osasis import FrozenNetworks, OSASISConfig
from ..osasis_words import WordsConfig, tune_to_words
from .config import Folders, RecipeConfig


def words(source: Path, clip: Clip, perceptual: LpipsVGG | None, folders: Folders, texts: WordsConfig,
          config: OSASISConfig, recipe: RecipeConfig) -> OSASISStyle:
    """A style of the DiffAE in the file `source`, learned from texts, and written to OUT. perceptual: None for the
    DiffAE's own encoder. ValueError as of `tune_to_words`."""
    net = load_diffae(source).to(recipe.device)
    distance = EncoderDistance(net.encoder) if perceptual is None else perceptual
    nets = FrozenNetworks(net, clip.to(recipe.device), distance.to(recipe.device), fingerprint(net))
    photos = to_unit(read_pictures(folders.photo_paths()[0], net.image_size)).to(recipe.device)
    style, _ = tune_to_words(nets, texts, config, photos, recipe.run.checkpointing, recipe.hooks)
    save_style(recipe.out, style)
    return style
