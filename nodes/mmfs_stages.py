"""Nodes that train MMFS itself: Stage I, Stage II, the CLIP mapping; and saving the result."""
from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..models import rng
from ..models.loading import load_mmfs, save_mmfs
from ..models.mmfs import MapperConfig, from_stylegan2, training_memory, with_mapper
from ..models.precision import UNSCALED
from ..models.style import fingerprint
from ..models.stylegan2 import Discriminator, sampling_memory
from ..train import mmfs as stages
from ..train.data import to_unit
from ..train.gan import GANConfig, TrainingStage
from ..train.loop import Checkpointing
from ..train.session import hash_of_network, snapshot_file
from ..train.stages import RunConfig, run_stage
from . import host, image_sources, images, inputs, sockets
from .base import AtelierNode, first
from .host import PatchedModule
from .image_sources import PhotosNode, PictureSet
from .monitor import TrainingMonitor
from .saving import save_once
from .sockets import CLIPModel, MMFSModel, StructureNetModel, StyleGAN2Model

SHOWN = 4  # photos of the preview


def stage_inputs(config: GANConfig, name: str) -> list:
    return [
        io.Int.Input("steps", default=config.steps, min=1, max=10_000_000,
                     tooltip=f"{config.steps} in a full training: hours or days on a large GPU."),
        io.Int.Input("batch", default=config.batch, min=1, max=256,
                     tooltip="Pictures a step. 8 is official. Take a multiple of 4, the discriminator's group size."),
        io.Float.Input("lr", default=config.lr, min=0.0, max=0.1, step=1e-5, round=1e-9,
                       tooltip=f"Learning rate. {config.lr:g} is official."),
        inputs.fixed_seed("Seed of the pictures' order, styles, noise, and new layers."),
        *inputs.session_inputs(name, 500, 100_000, "steps"),
        inputs.advanced(io.Int.Input("preview_every", default=50, min=1, max=100_000,
                                     tooltip="Steps between two previews. Each costs about as much as a step.")),
        inputs.advanced(inputs.choice("precision", UNSCALED, config.precision,
                                      "Number format of the networks on a GPU. float32 is official, bfloat16 is "
                                      "faster."))]


def stage_outputs() -> list:
    return [
        sockets.MMFS_MODEL.Output("trained", display_name="mmfs", tooltip="The model: the moving average of its "
                                                                          "weights."),
        io.Image.Output("preview", display_name="preview", tooltip="Results of the model as it is now."),
        io.Image.Output("loss_curve", display_name="loss curve", tooltip="Plot of the loss over the steps."),
        sockets.LOSS_MAP.Output("losses", display_name="losses", tooltip="For core's Plot Loss Graph.")]


@dataclass(frozen=True)
class StageValues:
    """The inputs of `stage_inputs`."""
    steps: int
    batch: int
    lr: float
    seed: int
    name: str
    save_every: int
    resume: bool
    preview_every: int
    precision: str
    changed_pictures: bool = False
    keep: int = 1

    def config(self, base: GANConfig) -> GANConfig:
        return replace(base, steps=self.steps, batch=self.batch, lr=self.lr, seed=self.seed, precision=self.precision)

    @property
    def run(self) -> RunConfig:
        path = snapshot_file(host.snapshot_folder(), self.name)
        return RunConfig(host.training_device(), Checkpointing(path, self.save_every, self.resume,
                                                                self.changed_pictures, self.keep))


@dataclass(frozen=True)
class StageNode:
    """A stage on a node: how it runs, and which losses are shown."""
    node: type[io.ComfyNode]
    values: StageValues
    losses: Sequence[str]

    def train(self, stage: TrainingStage, settings: Mapping[str, Any], discriminator: Discriminator,
              phase: int, clip: str = "") -> io.NodeOutput:
        """The averaged model goes out with its discriminator. settings: see train.stages.run_stage. clip: fingerprint
        of the CLIP of its mapping."""
        monitor = TrainingMonitor(stage.config.steps, names=self.losses)
        run_stage(stage, settings, self.values.run, monitor.stage_hooks(stage, self.values.preview_every))
        if monitor.predictions is None:  # nothing was left to do
            monitor.predictions = stage.preview()
        shown, curve, losses = monitor.outcome()
        net = copy.deepcopy(stage.run.ema["g"]).cpu().eval().requires_grad_(False)
        discriminator = discriminator.cpu().eval().requires_grad_(False)
        trained = MMFSModel(self.values.name, PatchedModule(net), fingerprint(net), discriminator, phase, clip)
        return io.NodeOutput(trained, shown, curve, losses, ui=ui.PreviewImage(shown, cls=self.node))


class TrainStage1(AtelierNode):
    JOINED = ("photos",)

    @classmethod
    def join(cls, name: str, pictures: Sequence[Tensor], values: Mapping[str, Any]) -> Tensor | None:
        return images.batch(pictures, name, values["stylegan2"].net.config.resolution)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMMFSTrainStage1", display_name="Train MMFS Stage I",
            category="Atelier/training", is_input_list=True,
            description="Makes an MMFS of a StyleGAN2: a new encoder learns to reconstruct the faces that the "
                        "StyleGAN2 generates, while its upper layers stay as they are.",
            inputs=[
                sockets.STYLEGAN2.Input("stylegan2", tooltip="The generator, with its discriminator."),
                *stage_inputs(stages.STAGE1, "my_stage1"),
                inputs.image("photos", "A few real photos, for the preview only.", optional=True),
                inputs.keep()],
            outputs=stage_outputs())

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return inputs.valid_name(name)

    @classmethod
    def execute(cls, stylegan2: StyleGAN2Model, photos: Tensor | None = None, **values: Any) -> io.NodeOutput:
        stage_node = StageNode(cls, StageValues(**values), ("pixel", "feature"))
        config = stage_node.values.config(stages.STAGE1)
        if stylegan2.discriminator is None:
            raise ValueError(f"{stylegan2.name} holds no discriminator, which Stage I compares pictures with. Take a "
                             "file that holds G and D")
        px = stylegan2.net.config.resolution
        shown = None if photos is None else image_sources.squares(photos[:SHOWN], px, "photos")
        memory = 2 * sampling_memory(8 * stylegan2.net.config.channels[-1], px, px, config.batch)
        with host.trainable(stylegan2.net, stylegan2.discriminator, shown, memory=memory) as (teacher, d, shown):
            with rng.seeded(config.seed, "new layers"):
                net = from_stylegan2(teacher).to(host.training_device())
            stage = stages.stage1(net, teacher, d, None if shown is None else to_unit(shown), config)
            settings = {"model": hash_of_network(teacher), "discriminator": hash_of_network(d)}
            return stage_node.train(stage, settings, d, 1)


class TrainStage2(PhotosNode):
    JOINED = ("photos", "art")

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMMFSTrainStage2", display_name="Train MMFS Stage II",
            category="Atelier/training", is_input_list=True,
            description="Teaches an MMFS to stylize: its results must look like the artistic set to a discriminator, "
                        "while their structure stays the photo's.",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="An MMFS of Stage I, or one of Stage II to train further."),
                sockets.STRUCTURE_NET.Input("structure_net", tooltip="Network of the structure loss. MMFS uses DINO "
                                                                     "ViT-B/8."),
                io.Float.Input("structure_weight", default=stages.STAGE2.structure_weight, min=0.0, max=100.0,
                               step=0.01, tooltip="Weight of the structure loss. Less lets the results leave the "
                                                  "photo."),
                *stage_inputs(stages.STAGE2, "my_stage2"),
                image_sources.folder_input("photos_folder", "Photos of faces."),
                image_sources.folder_input("art_folder", "Artistic faces, drawn and painted."),
                inputs.image("photos", "Photos of faces, instead of a folder.", optional=True),
                inputs.image("art", "Artistic faces, instead of a folder.", optional=True),
                sockets.STYLEGAN2.Input("stylegan2", optional=True,
                                        tooltip="Its discriminator is taken if the MMFS has none."),
                inputs.changed_pictures(), inputs.keep()],
            outputs=stage_outputs())

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return inputs.valid_name(name)

    @classmethod
    def fingerprint_inputs(cls, photos_folder: str = host.NO_FOLDER, art_folder: str = host.NO_FOLDER,
                           **others: Any) -> str:
        return host.folder_token(first(photos_folder)) + host.folder_token(first(art_folder))

    @classmethod
    def execute(cls, mmfs: MMFSModel, structure_net: StructureNetModel, structure_weight: float, photos_folder: str,
                art_folder: str, photos: Tensor | None = None, art: Tensor | None = None,
                stylegan2: StyleGAN2Model | None = None, **values: Any) -> io.NodeOutput:
        stage_node = StageNode(cls, StageValues(**values), ("g", "structure"))
        config = replace(stage_node.values.config(stages.STAGE2), structure_weight=structure_weight)
        px, device = mmfs.net.config.resolution, host.training_device()
        d = discriminator_of(mmfs, stylegan2)
        faces = PictureSet.of(photos, photos_folder, px, "photos")
        artistic = PictureSet.of(art, art_folder, px, "art")
        memory = 2 * training_memory(mmfs.net.config, config.batch)
        with (host.trainable(mmfs.net, d, structure_net.net, memory=memory) as (net, d, keys),
              faces.batches(config.batch, config.seed, "photos", device) as face_source,
              artistic.batches(config.batch, config.seed, "art", device) as art_source):
            d.requires_grad_(True)
            settings = {"model": mmfs.fingerprint, "discriminator": hash_of_network(d),
                        "structure_network": hash_of_network(keys), "faces": faces.description,
                        "art": artistic.description}
            stage = stages.stage2(net, d, keys, face_source, art_source, faces.first(SHOWN).to(device), config)
            return stage_node.train(stage, settings, d, max(2, mmfs.phase), mmfs.clip)


class TrainMapping(PhotosNode):
    JOINED = ("photos",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMMFSTrainMapping", display_name="Train MMFS CLIP Mapping",
            category="Atelier/training", is_input_list=True,
            description="Teaches an MMFS to map CLIP embeddings to w+ codes: from the embedding of a stylized face "
                        "back to the code it was made with.",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="An MMFS of Stage II with its discriminator."),
                sockets.CLIP.Input("clip", tooltip="The CLIP of the mapping. Its embeddings are as wide as the model's "
                                                   "w (512 for ViT-B/32)."),
                *stage_inputs(stages.MAPPING, "my_mapping"),
                image_sources.folder_input("photos_folder", "Photos of faces."),
                inputs.advanced(io.Int.Input("hidden", default=MapperConfig().hidden, min=16, max=8192,
                                             tooltip="Hidden width of a new mapping's layers. 2048 is official, 384 "
                                                     "the demo model's.")),
                inputs.image("photos", "Photos of faces, instead of a folder.", optional=True),
                inputs.changed_pictures(), inputs.keep()],
            outputs=stage_outputs())

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return inputs.valid_name(name)

    @classmethod
    def execute(cls, mmfs: MMFSModel, clip: CLIPModel, photos_folder: str, hidden: int, photos: Tensor | None = None,
                **values: Any) -> io.NodeOutput:
        stage_node = StageNode(cls, StageValues(**values), ("pixel", "feature"))
        config = stage_node.values.config(stages.MAPPING)
        px, device = mmfs.net.config.resolution, host.training_device()
        d = discriminator_of(mmfs)
        faces = PictureSet.of(photos, photos_folder, px, "photos")
        memory = training_memory(mmfs.net.config, config.batch)
        with (host.trainable(mmfs.net, d, clip.net, memory=memory) as (net, d, clip_net),
              faces.batches(config.batch, config.seed, "photos", device) as face_source):
            if net.mapper is None:
                with rng.seeded(config.seed, "new layers"):
                    net = with_mapper(net, MapperConfig(hidden=hidden)).to(device)
            settings = {"model": mmfs.fingerprint, "discriminator": hash_of_network(d),
                        "clip_network": hash_of_network(clip_net), "faces": faces.description, "hidden": hidden}
            stage = stages.mapping(net, clip_net, d, face_source, faces.first(SHOWN).to(device), config)
            return stage_node.train(stage, settings, d, 3, clip.fingerprint)


def discriminator_of(mmfs: MMFSModel, stylegan2: StyleGAN2Model | None = None) -> Discriminator:
    """The model's own discriminator, or that of a StyleGAN2. ValueError if there is none that fits."""
    found = mmfs.discriminator or (stylegan2.discriminator if stylegan2 else None)
    if found is None:
        raise ValueError(f"{mmfs.name} holds no discriminator, which this training needs. Load a complete checkpoint "
                         "(Save MMFS with its discriminator), or connect a StyleGAN2 that has one, where there is an "
                         "input for it")
    stages.check_sizes(mmfs.net, found)
    return found


class SaveMMFS(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSaveMMFS", display_name="Save MMFS", category="Atelier/training", is_output_node=True,
            description="Saves an MMFS model in models/mmfs as one 16-bit safetensors file. Load MMFS lists it after a "
                        "refresh of the page (R).",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="The model to save."),
                inputs.file_name("my_mmfs"),
                io.Boolean.Input("discriminator", default=True,
                                 tooltip="Save its discriminator too. Further training needs it, stylizing does not."),
                inputs.overwrite("model")],
            outputs=inputs.saved_path())

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return inputs.valid_name(name)

    @classmethod
    def execute(cls, mmfs: MMFSModel, name: str, discriminator: bool, overwrite: bool) -> io.NodeOutput:
        d = mmfs.discriminator if discriminator else None
        meta = {"phase": mmfs.phase} | ({"clip": mmfs.clip} if mmfs.clip else {})
        return save_once("mmfs", name, overwrite, lambda path: is_model(path, mmfs, d),
                         lambda path: save_mmfs(path, mmfs.net, d, meta), "model")


def is_model(path: Path, mmfs: MMFSModel, discriminator: Discriminator | None) -> bool:
    """Does the file hold this very model, with this discriminator?"""
    try:
        net, saved = load_mmfs(path)
    except ValueError:
        return False
    if fingerprint(net) != mmfs.fingerprint or (saved is None) != (discriminator is None):
        return False
    return saved is None or discriminator is None or hash_of_network(saved) == hash_of_network(discriminator)


NODES = [TrainStage1, TrainStage2, TrainMapping, SaveMMFS]
