"""The MMFS part of `atelier train`: the prior and the three stages, on one process or several.

Several: torchrun --nproc_per_node 2 tools/launch.py train.cli train mmfs-stage2 --accelerate ... (torchrun comes with
torch; `--no-python atelier train ...` where the pack is installed). With GPUs, `accelerate launch` does as well; for
CPUs alone it starts one process, however many are asked for.
"""
from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TypeVar

import torch

from ..models import loading
from . import gan, mmfs
from .gan import GanConfig
from .team import SOLO, Team, team_of

STAGES: dict[str, GanConfig] = {"stylegan2": gan.PRIOR, "mmfs-stage1": mmfs.STAGE1, "mmfs-stage2": mmfs.STAGE2,
                                "mmfs-mapping": mmfs.MAPPING}
Config = TypeVar("Config")


def add_stages(p: argparse.ArgumentParser) -> None:
    """Options of the MMFS trainings."""
    p.add_argument("--source", type=Path, help="what a stage starts from: StyleGAN2 for mmfs-stage1 (and stylegan2, "
                   "none: from scratch), Stage I for mmfs-stage2 (none: from scratch), Stage II for mmfs-mapping")
    p.add_argument("--prior", type=Path, help="the StyleGAN2 whose discriminator mmfs-stage2 starts from")
    p.add_argument("--clip", type=Path, help="default: the demo CLIP")
    p.add_argument("--dino", type=Path, help="DINO ViT for the structure loss; without it the demo encoder stands in")
    p.add_argument("--set", default="", help="further settings of the MMFS trainings: field=value,... (with ; for , "
                   "where a value holds commas)")
    p.add_argument("--look-every", type=int, default=1000, help="steps between sample grids and measurements (0: none)")
    p.add_argument("--no-resume", action="store_true", help="MMFS trainings: begin anew though there is a snapshot")
    p.add_argument("--accelerate", action="store_true", help="share the work by Accelerate: torchrun --nproc_per_node "
                   "N tools/launch.py train.cli train ... --accelerate (on CPUs with --device cpu); --minutes is then "
                   "looked at every --log-every steps")


def train_stage(options: argparse.Namespace) -> None:
    from . import mmfs_recipes as recipes
    team, device = team_and_device(options)
    given = {k: v for k in ("steps", "batch", "lr", "seed") if (v := getattr(options, k)) is not None}
    config = changed(dataclasses.replace(STAGES[options.model], precision=options.precision, **given), options.set)
    work = recipes.Work(options.out, device, team, options.save_every, options.log_every, options.look_every,
                        options.minutes, not options.no_resume)
    unseen = tuple(filter(None, options.exclude.split(",")))
    folders = recipes.Folders(options.photos, options.art, unseen, options.holdout)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):  # every step has the same shapes
        carry_out(options, recipes, folders, config, work)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def carry_out(options: argparse.Namespace, recipes, folders, config: GanConfig, work) -> None:
    """Hand over to the recipe of the stage."""
    if options.model == "stylegan2":
        recipes.prior(folders, config, work, options.size, options.source)
    elif options.model == "mmfs-stage1":
        recipes.stage1(needed(options.source, "--source", "the StyleGAN2 file"), folders, config, work)
    elif options.model == "mmfs-stage2":
        needed(options.art, "--art", "the folder of drawings")
        recipes.stage2(options.source, folders, config, work, self_similarity(options.dino), clip_of(options),
                       needed(options.prior, "--prior", "the StyleGAN2 file"))
    else:
        source = needed(options.source, "--source", "the Stage II file")
        recipes.mapping(source, folders, config, work, clip_of(options))


def team_and_device(options: argparse.Namespace) -> tuple[Team, torch.device]:
    """This process's team and device. ValueError if Accelerate is asked for and missing, or needed and not named."""
    if not options.accelerate:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(f"this is one of {os.environ['WORLD_SIZE']} processes, which would all do the same work: "
                             "add --accelerate, or start only one")
        return SOLO, torch.device(options.device)
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ValueError("Accelerate is not installed; run: pip install '.[train]'") from error
    accelerator = Accelerator(cpu=options.device == "cpu")
    return team_of(accelerator), accelerator.device


def self_similarity(dino: Path | None):
    """The network of the structure loss: DINO from a file, or the demo DiffAE's encoder."""
    from ..models.perceptual import EncoderKeys
    if dino is not None:
        return loading.load_dino(dino)
    return EncoderKeys(loading.load_diffae(loading.DEMO / "diffae.safetensors").encoder)


def clip_of(options: argparse.Namespace):
    return loading.load_clip(options.clip or loading.DEMO / "clip.safetensors")


def needed(path: Path | None, option: str, what: str) -> Path:
    if path is None:
        raise ValueError(f"name {what} with {option}")
    return path


def changed(config: Config, changes: str) -> Config:
    """A frozen dataclass with "field=value,..." on top. ValueError names an unknown field."""
    fields, values = {f.name: type(f.default) for f in dataclasses.fields(config)}, {}
    for pair in filter(None, changes.split(";" if ";" in changes else ",")):
        name, _, text = pair.partition("=")
        if name not in fields:
            raise ValueError(f"there is no setting {name!r}; there are {', '.join(fields)}")
        try:
            values[name] = text.lower() in ("1", "true", "yes") if fields[name] is bool else fields[name](text)
        except ValueError as error:
            raise ValueError(f"{name} takes numbers ({fields[name].__name__}), not {text!r}") from error
    return dataclasses.replace(config, **values)
