"""The MMFS part of `atelier train`: StyleGAN2 and the three stages, on one process or several.

Several: torchrun --nproc_per_node 2 PATH/TO/oneshot-atelier/cli train mmfs-stage2 --accelerate ... (torchrun comes with
torch; `--no-python atelier train ...` where the pack is installed). With GPUs, `accelerate launch` does as well; for
CPUs alone it starts one process, however many are asked for.
"""
from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch

from ..evaluate.mmfs import art_distance_measure, faces_distance_measure
from ..models import loading
from ..models.features.clip import Clip
from ..models.features.dino import Dino
from ..models.features.encoder import EncoderKeys
from ..train import gan, mmfs
from ..train.distributed import SINGLE_PROCESS, Distributed, from_accelerator
from ..train.gan import GANConfig
from ..train.recipes import mmfs as recipes
from ..train.recipes.config import Folders, RecipeConfig
from .options import changed, given

STAGES: dict[str, GANConfig] = {"stylegan2": gan.STYLEGAN2, "mmfs-stage1": mmfs.STAGE1, "mmfs-stage2": mmfs.STAGE2,
                                "mmfs-mapping": mmfs.MAPPING}


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Options of the MMFS trainings."""
    p.add_argument("--source", type=Path, help="what a stage starts from: StyleGAN2 for mmfs-stage1 (and stylegan2, "
                   "none: from scratch), Stage I for mmfs-stage2 (none: from scratch), Stage II for mmfs-mapping")
    p.add_argument("--stylegan2", type=Path, help="the StyleGAN2 whose discriminator mmfs-stage2 starts from")
    p.add_argument("--clip", type=Path, help="default: the demo CLIP")
    p.add_argument("--dino", type=Path, help="DINO ViT for the structure loss; without it the demo encoder is used")
    p.add_argument("--set", default="", help="further settings of the MMFS trainings: field=value,... (with ; for , "
                   "where a value holds commas)")
    p.add_argument("--preview-every", type=int, default=1000,
                   help="steps between sample grids and measurements (0: none)")
    p.add_argument("--accelerate", action="store_true", help="share the work by Accelerate: torchrun --nproc_per_node "
                   "N PATH/TO/oneshot-atelier/cli train ... --accelerate (on CPUs with --device cpu); --minutes is "
                   "then checked every --log-every steps")


def train(options: argparse.Namespace, folders: Folders, recipe: RecipeConfig) -> None:
    distributed, device = distributed_and_device(options)
    settings = given(options, "steps", "batch", "lr", "seed")
    config = changed(replace(STAGES[options.model], precision=options.precision, **settings), options.set)
    recipe = replace(recipe, distributed=distributed, device=device)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # every step has the same shapes
        run_recipe(options, folders, config, recipe)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_recipe(options: argparse.Namespace, folders: Folders, config: GANConfig, recipe: RecipeConfig) -> None:
    """Hand over to the recipe of the stage."""
    if options.model == "stylegan2":
        measure = faces_distance_measure(load_clip(options).to(recipe.device))
        recipes.stylegan2(folders, config, recipe, options.size, options.source, measure)
    elif options.model == "mmfs-stage1":
        recipes.stage1(required(options.source, "--source", "the StyleGAN2 file"), folders, config, recipe)
    elif options.model == "mmfs-stage2":
        required(options.art, "--art", "the folder of drawings")
        stylegan2_file = required(options.stylegan2, "--stylegan2", "the StyleGAN2 file")
        measure = art_distance_measure(load_clip(options).to(recipe.device))
        recipes.stage2(options.source, folders, config, recipe, load_structure_net(options), stylegan2_file, measure)
    else:
        source = required(options.source, "--source", "the Stage II file")
        recipes.mapping(source, folders, config, recipe, load_clip(options))


def distributed_and_device(options: argparse.Namespace) -> tuple[Distributed, torch.device]:
    """This process among all, and its device. ValueError if Accelerate is asked for and missing, or needed and not
    named."""
    if not options.accelerate:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(f"this is one of {os.environ['WORLD_SIZE']} processes, which would all do the same work: "
                             "add --accelerate, or start only one")
        return SINGLE_PROCESS, torch.device(options.device)
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ValueError("Accelerate is not installed; run: pip install '.[train]'") from error
    accelerator = Accelerator(cpu=options.device == "cpu")
    return from_accelerator(accelerator), accelerator.device


def load_structure_net(options: argparse.Namespace) -> Dino | EncoderKeys:
    """The network of the structure loss: DINO from a file, or the demo DiffAE's encoder."""
    if options.dino is not None:
        return loading.load_dino(options.dino)
    return EncoderKeys(loading.load_diffae(loading.DEMO / "diffae.safetensors").encoder)


def load_clip(options: argparse.Namespace) -> Clip:
    return loading.load_clip(options.clip or loading.DEMO / "clip.safetensors")


def required(path: Path | None, option: str, what: str) -> Path:
    """ValueError for an option that was left out."""
    if path is None:
        raise ValueError(f"name {what} with {option}")
    return path
