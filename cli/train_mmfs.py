"""The MMFS part of `atelier train`: StyleGAN2 and the three stages."""
from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ..evaluate.mmfs import art_distance_measure, faces_distance_measure
from ..models import loading
from ..models.features.clip import Clip
from ..models.features.dino import Dino
from ..models.features.encoder import EncoderKeys
from ..train import gan, mmfs
from ..train.gan import GANConfig
from ..train.recipes import mmfs as recipes
from ..train.recipes.config import Folders, RecipeConfig
from .options import changed, given

STAGES: dict[str, GANConfig] = {"stylegan2": gan.STYLEGAN2, "mmfs-stage1": mmfs.STAGE1, "mmfs-stage2": mmfs.STAGE2,
                                "mmfs-mapping": mmfs.MAPPING}


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Options of the MMFS trainings."""
    p.add_argument("--source", type=Path, help="what a stage starts from: StyleGAN2 for mmfs-stage1 (and stylegan2, "
                   "none: from scratch), Stage I for mmfs-stage2 (none: from scratch), Stage II for mmfs-mapping; the "
                   "DiffAE of attributes and osasis (default: the demo's)")
    p.add_argument("--stylegan2", type=Path, help="the StyleGAN2 whose discriminator mmfs-stage2 starts from (default: "
                   "that of --source, which may be of mmfs-stage2 itself: then it is trained on)")
    p.add_argument("--clip", type=Path, help="default: the demo CLIP")
    p.add_argument("--dino", type=Path, help="DINO ViT for the structure loss of mmfs-stage2; without "
                   "it the encoder of --diffae is used")
    p.add_argument("--diffae", type=Path, help="default: the demo DiffAE")
    p.add_argument("--no-discriminator", action="store_true", help="leave the discriminator out of what mmfs-mapping "
                   "writes: a smaller file, which no stage can go on from")
    p.add_argument("--set", default="", help="further settings of the training: field=value,... (with ; for , where a "
                   "value holds commas)")


def train(options: argparse.Namespace, folders: Folders, recipe: RecipeConfig) -> None:
    """Hand over to the recipe of the stage."""
    settings = given(options, "steps", "batch", "lr", "seed")
    config = changed(replace(STAGES[options.model], precision=options.precision, **settings), options.set)
    if options.model == "stylegan2":
        measure = faces_distance_measure(load_clip(options).to(recipe.device))
        recipes.stylegan2(folders, config, recipe, options.size, options.source, measure)
    elif options.model == "mmfs-stage1":
        recipes.stage1(required(options.source, "--source", "the StyleGAN2 file"), folders, config, recipe)
    elif options.model == "mmfs-stage2":
        required(options.art, "--art", "the folder of drawings")
        measure = art_distance_measure(load_clip(options).to(recipe.device))
        recipes.stage2(options.source, folders, config, recipe, load_structure_net(options), options.stylegan2, measure)
    else:
        source = required(options.source, "--source", "the Stage II file")
        recipes.mapping(source, folders, config, recipe, load_clip(options),
                        keep_discriminator=not options.no_discriminator)


def load_structure_net(options: argparse.Namespace) -> Dino | EncoderKeys:
    """The network of the structure loss: DINO from a file, or a DiffAE's encoder."""
    if options.dino is not None:
        return loading.load_dino(options.dino)
    return EncoderKeys(loading.load_diffae(options.diffae or loading.DEMO / "diffae.safetensors").encoder)


def load_clip(options: argparse.Namespace) -> Clip:
    return loading.load_clip(options.clip or loading.DEMO / "clip.safetensors")


def required(path: Path | None, option: str, what: str) -> Path:
    """ValueError for an option that was left out."""
    if path is None:
        raise ValueError(f"name {what} with {option}")
    return path
