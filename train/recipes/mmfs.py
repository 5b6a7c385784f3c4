"""MMFS trained from folders of pictures, as the command line does it: StyleGAN2, Stage I, Stage II, CLIP mapping.

Each recipe reads what the last one wrote and writes OUT (16 bit, the averaged generator with its discriminator) with
OUT.snapshot beside it, from which it resumes.
"""
from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...models import loading, rng
from ...models.features.clip import Clip
from ...models.features.dino import Dino
from ...models.features.encoder import EncoderKeys
from ...models.mmfs import MMFS, MapperConfig, clip_fingerprint, from_stylegan2, with_mapper
from ...models.stylegan2 import Discriminator, StyleGAN2, StyleGAN2Config, channel_table, mean_w
from .. import gan, mmfs
from ..data import read_pictures, to_unit
from ..gan import GANConfig, TrainingStage
from ..loop import Net
from ..stream import ImageStream, StreamConfig
from .config import Folders, RecipeConfig, measured

log = logging.getLogger(__name__)
LEAST_MEASURED = 2  # held-out faces whose distribution is compared
SMALL_MAPPER = MapperConfig(layers=4, hidden=384)
# measurements of a stage as it stands, from held-out photos (B, 3, px, px) and the artistic set's files
StageMeasure = Callable[[TrainingStage, Tensor, list[Path]], dict[str, float]]
# the same of a StyleGAN2, from the files of held-out faces
FacesMeasure = Callable[[TrainingStage, list[Path]], dict[str, float]]


def small_stylegan2(px: int = 128) -> StyleGAN2Config:
    """The demo StyleGAN2: at most 160 wide, w as wide as the demo CLIP's embeddings (128)."""
    return StyleGAN2Config(channel_table(px, 8192, 160), w_dim=128)


def stylegan2(folders: Folders, config: GANConfig, recipe: RecipeConfig, px: int = 128,
              source: Path | None = None, measure: FacesMeasure | None = None) -> StyleGAN2:
    """Train a StyleGAN2 on photos, from scratch or from the one of `source`."""
    shape = small_stylegan2(px)
    if source is None:
        with rng.seeded(config.seed, "new layers"):
            g, d = StyleGAN2(shape).to(recipe.device), Discriminator(shape).to(recipe.device)
    else:
        g, d = discriminated(loading.load_stylegan2(source), source, recipe.device)
        shape, px = g.config, g.config.resolution
        d.requires_grad_(True)
    with photo_stream(folders, px, config, recipe, shape.mbstd_group_size) as photos:
        about = {"model": g, "discriminator": d, "faces": photos.paths}
        stage, held_out = gan.stylegan2(g, d, photos, config, recipe.distributed), folders.photo_paths()[1]
        if measure and len(held_out) < LEAST_MEASURED:
            log.warning("the distance to held-out faces is not measured: it takes %d and %d are held out",
                        LEAST_MEASURED, len(held_out))
            measure = None
        recipe.train(stage, about, functools.partial(measure, stage, held_out) if measure else None)
    generator = stage.run.average("g", StyleGAN2)
    generator.w_avg.copy_(mean_w(generator.mapping))
    if recipe.distributed.is_main_process:
        meta = {"steps": stage.run.step, "samples": stage.run.step * config.batch}
        loading.save_stylegan2(recipe.out, generator, d, meta | measured(stage.run, "faces_distance"))
    return generator


def stage1(source: Path, folders: Folders, config: GANConfig, recipe: RecipeConfig) -> MMFS:
    """Stage I on the StyleGAN2 of `source`."""
    teacher, discriminator = discriminated(loading.load_stylegan2(source), source, recipe.device)
    with rng.seeded(config.seed, "new layers"):
        net = from_stylegan2(teacher).to(recipe.device)
    stage = mmfs.stage1(net, teacher, discriminator, held_photos(folders, net), config, recipe.distributed)
    recipe.train(stage, {"model": teacher, "discriminator": discriminator})
    return finished(stage, discriminator, 1, recipe)


def stage2(source: Path | None, folders: Folders, config: GANConfig, recipe: RecipeConfig,
           structure_net: Dino | EncoderKeys, stylegan2_file: Path | None = None,
           measure: StageMeasure | None = None) -> MMFS:
    """Stage II, see `stage2_networks`."""
    net, discriminator = stage2_networks(source, stylegan2_file, config, recipe.device)
    clip = loading.mapper_clip(source) if source is not None else ""  # of a mapping that the model brings along
    discriminator.requires_grad_(True)
    px, shown, group_size = net.config.resolution, held_photos(folders, net, 16), discriminator.config.mbstd_group_size
    with (photo_stream(folders, px, config, recipe, group_size) as photos,
          art_stream(folders, px, config, recipe, group_size) as art):
        structure_net = structure_net.to(recipe.device)
        stage = mmfs.stage2(net, discriminator, structure_net, photos, art, shown, config, recipe.distributed)
        recipe.train(stage, {"model": net, "discriminator": discriminator, "structure_network": structure_net,
                             "faces": photos.paths, "art": art.paths,
                             "art_weights": folders.weights_text()},
                     functools.partial(measure, stage, shown, art.paths) if measure else None)
        return finished(stage, discriminator, 2, recipe, clip)


def stage2_networks(source: Path | None, stylegan2_file: Path | None, config: GANConfig,
                    device: torch.device) -> tuple[MMFS, Discriminator]:
    """The Stage I model `source` (or one of Stage II, to train on) with the discriminator of the StyleGAN2, or without
    one its own. Without `source` both from scratch, of the StyleGAN2's size (the paper's comparison, Fig. 6)."""
    if source is not None and stylegan2_file is None:
        return discriminated(loading.load_mmfs(source), source, device)
    if stylegan2_file is None:
        raise ValueError("name the Stage I file with --source, or the StyleGAN2 file with --stylegan2")
    _, discriminator = discriminated(loading.load_stylegan2(stylegan2_file), stylegan2_file, device)
    if source is not None:
        net = loading.load_mmfs(source)[0].to(device)
    else:
        with rng.seeded(config.seed, "new layers"):
            net = from_stylegan2(StyleGAN2(discriminator.config)).to(device)
            discriminator = Discriminator(discriminator.config).to(device)
    mmfs.check_sizes(net, discriminator)
    return net, discriminator


def mapping(source: Path, folders: Folders, config: GANConfig, recipe: RecipeConfig, clip: Clip,
            mapper: MapperConfig = SMALL_MAPPER, keep_discriminator: bool = True) -> MMFS:
    """The CLIP mapping of the Stage II model `source`; one that it has already is trained on. keep_discriminator: is
    stored, too, so that stages can go on from the file."""
    net, discriminator = discriminated(loading.load_mmfs(source), source, recipe.device)
    if net.mapper is None:
        with rng.seeded(config.seed, "new layers"):
            net = with_mapper(net, mapper).to(recipe.device)
    clip, shown = clip.to(recipe.device), held_photos(folders, net)
    with photo_stream(folders, net.config.resolution, config, recipe, 1) as photos:
        stage = mmfs.mapping(net, clip, discriminator, photos, shown, config, recipe.distributed)
        recipe.train(stage, {"model": net, "discriminator": discriminator, "clip_network": clip, "faces": photos.paths})
    return finished(stage, discriminator if keep_discriminator else None, 3, recipe, clip_fingerprint(clip))


def discriminated(loaded: tuple[Net, Discriminator | None], path: Path,
                  device: torch.device) -> tuple[Net, Discriminator]:
    """(net, discriminator) on the device. ValueError if the file holds none: training needs it."""
    net, d = loaded
    if d is None:
        raise ValueError(f"{path.name} holds no discriminator, which this training needs; take the full checkpoint")
    return net.to(device), d.to(device)


def photo_stream(folders: Folders, px: int, config: GANConfig, recipe: RecipeConfig, group_size: int) -> ImageStream:
    """Photos of a step, all alike."""
    return image_stream("photos", folders.photo_paths()[0], None, px, config, recipe, group_size)


def art_stream(folders: Folders, px: int, config: GANConfig, recipe: RecipeConfig, group_size: int) -> ImageStream:
    """Drawings of a step, each class as often as the folders' weights say."""
    paths = folders.art_paths()[0]
    return image_stream("art", paths, folders.art_weights(paths), px, config, recipe, group_size)


def image_stream(name: str, paths: list[Path], weights: tuple[float, ...] | None, px: int, config: GANConfig,
                 recipe: RecipeConfig, group_size: int) -> ImageStream:
    stream = StreamConfig(px, config.batch, config.seed, name, config.flip, weights,
                          at_once=recipe.device.type == "cuda")
    return ImageStream(paths, stream, recipe.distributed.rows(config.batch, group_size), recipe.device)


def held_photos(folders: Folders, net: MMFS, count: int = 4) -> Tensor:
    """Photos that no training sees (or, with nothing held out, the first ones), (n, 3, px, px)."""
    paths = folders.photo_paths()[1] or folders.photo_paths()[0]
    return to_unit(read_pictures(paths[:count], net.config.resolution))


def finished(stage: TrainingStage, discriminator: Discriminator | None, phase: int, recipe: RecipeConfig,
             clip: str = "") -> MMFS:
    """Write the averaged model; return it. clip: fingerprint of the CLIP of its mapping."""
    net = stage.run.average("g", MMFS)
    if recipe.distributed.is_main_process:
        meta = {"phase": phase, "steps": stage.run.step, "samples": stage.run.step * stage.config.batch}
        meta |= measured(stage.run, "art_distance") | ({"clip": clip} if clip else {})
        loading.save_mmfs(recipe.out, net, discriminator, meta)
    return net
