"""The OSASIS part of `atelier train`: a style from words."""
from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ..models import loading
from ..train.osasis import OSASISConfig
from ..train.osasis_words import WordsConfig
from ..train.presets import OSASIS_PRESETS
from ..train.recipes import osasis as recipes
from ..train.recipes.config import Folders, RecipeConfig
from .options import from_preset, given
from .train_mmfs import load_clip

OSASIS = "osasis"
SAVE_EVERY = 25  # iterations, as in the node: the official fine-tune has 200


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Options of the fine-tune to a text."""
    p.add_argument("--text", help="osasis: the style in a few words; --photos are its content, --source its DiffAE, "
                   "--steps its iterations")
    p.add_argument("--text-source", default=WordsConfig.source, help="osasis: what the photos are (%(default)s)")
    p.add_argument("--photo-weight", type=float, default=WordsConfig.photo_weight, help="osasis: more keeps more of "
                   "the photo (%(default)s)")
    p.add_argument("--pixel-weight", type=float, default=WordsConfig.pixel_weight, help="osasis: of L1 within the "
                   "photo's weight; 0 lets go of the photo's colours, as a pencil drawing must (%(default)s)")
    p.add_argument("--preset", default="official", help=f"osasis: {', '.join(OSASIS_PRESETS)} (%(default)s)")
    p.add_argument("--lpips", type=Path, help="osasis: VGG-16 file; without it the DiffAE encoder's features are used")


def train(options: argparse.Namespace, folders: Folders, recipe: RecipeConfig) -> None:
    """Hand over to the recipe. ValueError without a text."""
    if options.text is None:
        raise ValueError("name the style with --text, such as --text 'watercolor painting'")
    texts = WordsConfig(options.text, options.text_source, options.photo_weight, pixel_weight=options.pixel_weight)
    settings = given(options, "batch", "lr", "seed") | ({} if options.steps is None else {"iterations": options.steps})
    config = replace(from_preset(OSASISConfig, OSASIS_PRESETS, options.preset, options.set), **settings)
    perceptual = None if options.lpips is None else loading.load_lpips(options.lpips)
    recipes.words(options.source or loading.DEMO / "diffae.safetensors", load_clip(options), perceptual, folders,
                  texts, config, recipe)
