"""Nodes that train MMFS itself: Stage I, Stage II, the CLIP mapping; and saving what comes out."""
from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from comfy_api.latest import io, ui

from ..models import mmfs_style
from ..models.loading import load_mmfs, save_mmfs
from ..models.mmfs import MapperConfig, from_stylegan2, with_mapper
from ..models.stylegan2 import Discriminator
from ..train import mmfs as stages
from ..train import session
from ..train.data import to_unit
from ..train.gan import GanConfig, Stage
from ..train.loop import seeded
from ..train.stages import carry_out
from . import faces, host, schema, sockets
from .faces import PictureSet
from .host import Managed
from .sockets import Stylizer
from .training import save_once
from .watch import Watch

PRECISIONS = ("float32", "bfloat16")
SHOWN = 4  # photos of the preview


def stage_inputs(config: GanConfig, name: str) -> list:
    return [
        io.Int.Input("steps", default=config.steps, min=1, max=10_000_000,
                     tooltip=f"{config.steps} in a full training: hours or days of a large graphics card."),
        io.Int.Input("batch", default=config.batch, min=1, max=256,
                     tooltip="Pictures a step; 8 is official. A multiple of 4, as the discriminator looks at groups."),
        io.Float.Input("lr", default=config.lr, min=0.0, max=0.1, step=1e-5, round=1e-9,
                       tooltip=f"Learning rate; {config.lr:g} is official."),
        schema.seed("Of the pictures' order, styles, noise, and new layers.", roll=False),
        *schema.snapshots(name, 500, 100_000, "steps, and at the end; 0 never."),
        schema.advanced(io.Int.Input("preview_every", default=50, min=1, max=100_000,
                                     tooltip="Steps between two previews; each costs about as much as a step.")),
        schema.advanced(io.Combo.Input("precision", options=list(PRECISIONS), default=config.precision,
                                       tooltip="float32 is official; bfloat16 is faster on a graphics card."))]


def stage_outputs() -> list:
    return [
        sockets.MMFS_MODEL.Output("trained", display_name="mmfs", tooltip="The model, averaged over the last steps."),
        io.Image.Output("preview", display_name="preview", tooltip="What it draws now."),
        io.Image.Output("loss_curve", display_name="loss curve", tooltip="The loss over the steps, drawn."),
        sockets.LOSS_MAP.Output("losses", display_name="losses", tooltip="For core's Plot Loss Graph.")]


class TrainStage1(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSTrainStage1", display_name="Train MMFS Stage I", category="Atelier/training",
            description="Makes an MMFS of a StyleGAN2: a new encoder learns to give back the faces that the StyleGAN2 "
                        "draws, while its upper layers stay as they are.",
            inputs=[
                sockets.STYLEGAN2.Input("stylegan2", tooltip="The generator, with its discriminator."),
                *stage_inputs(stages.STAGE1, "my_stage1"),
                schema.image("photos", "A few real photos, for the preview only.", optional=True)],
            outputs=stage_outputs())

    @classmethod
    def validate_inputs(cls, name):
        return schema.name_is_sound(name)

    @classmethod
    def execute(cls, stylegan2, steps, batch, lr, seed, name, save_every, resume, preview_every, precision,
                photos=None):
        config = configured(stages.STAGE1, steps, batch, lr, seed, precision)
        if stylegan2.discriminator is None:
            raise ValueError(f"{stylegan2.name} holds no discriminator, which Stage I compares pictures with: take a "
                             "file that holds G and D")
        work = Work(cls, config, name, save_every, resume, preview_every, ("pixel", "feature"))
        px = stylegan2.net.config.resolution
        shown = None if photos is None else faces.squares(photos[:SHOWN], px, "photos")
        memory = 2 * host.drawing_memory(8 * stylegan2.net.config.channels[-1], px, px, batch)
        with host.trainable(stylegan2.net, stylegan2.discriminator, shown, memory=memory) as (teacher, critic, shown):
            with seeded(seed, torch.device("cpu")):
                net = from_stylegan2(teacher).to(work.device)
            stage = stages.stage1(net, teacher, critic, None if shown is None else to_unit(shown), config)
            about = {"model": session.hash_of_network(teacher), "discriminator": session.hash_of_network(critic)}
            return work.carry_out(stage, about, (net.encoder, net.decoder, critic), critic, 1)


class TrainStage2(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSTrainStage2", display_name="Train MMFS Stage II", category="Atelier/training",
            description="Teaches an MMFS to draw: photos go in, and what comes out must look like the artistic set to "
                        "a discriminator, while its structure stays the photo's.",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="An MMFS of Stage I, or one to go on with."),
                sockets.SELF_SIMILARITY.Input("self_similarity", tooltip="Judges structure; MMFS uses DINO ViT-B/8."),
                io.Float.Input("structure", default=stages.STAGE2.structure, min=0.0, max=100.0, step=0.01,
                               tooltip="Weight of the structure loss. Less lets the drawings leave the photo."),
                *stage_inputs(stages.STAGE2, "my_stage2"),
                faces.folder_input("faces_folder", "Photos of faces."),
                faces.folder_input("art_folder", "Drawn and painted faces."),
                schema.image("faces", "Photos of faces, instead of a folder.", optional=True),
                schema.image("art", "Drawn and painted faces, instead of a folder.", optional=True),
                sockets.STYLEGAN2.Input("stylegan2", optional=True,
                                        tooltip="Its discriminator is taken if the MMFS has none.")],
            outputs=stage_outputs())

    @classmethod
    def validate_inputs(cls, name):
        return schema.name_is_sound(name)

    @classmethod
    def fingerprint_inputs(cls, faces_folder=host.NO_FOLDER, art_folder=host.NO_FOLDER, **others):
        return host.folder_token(faces_folder) + host.folder_token(art_folder)

    @classmethod
    def execute(cls, mmfs, self_similarity, structure, steps, batch, lr, seed, name, save_every, resume, preview_every,
                precision, faces_folder, art_folder, faces=None, art=None, stylegan2=None):
        config = replace(configured(stages.STAGE2, steps, batch, lr, seed, precision), structure=structure)
        px, device = mmfs.net.config.resolution, host.training_device()
        critic = discriminator_of(mmfs, stylegan2)
        photos = PictureSet.of(faces, faces_folder, px, "faces")
        drawings = PictureSet.of(art, art_folder, px, "art")
        work = Work(cls, config, name, save_every, resume, preview_every, ("g", "structure"))
        memory = 2 * host.tuning_memory(mmfs.net.config, batch)
        with (host.trainable(mmfs.net, critic, self_similarity.net, memory=memory) as (net, critic, judge),
              photos.batches(batch, seed, device) as photo_source,
              drawings.batches(batch, seed + 7, device) as art_source):
            critic.requires_grad_(True)
            about = {"model": mmfs.fingerprint, "discriminator": session.hash_of_network(critic),
                     "structure_network": session.hash_of_network(judge),
                     "faces": photos.description, "art": drawings.description}
            stage = stages.stage2(net, critic, judge, photo_source, art_source, photos.first(SHOWN).to(device), config)
            return work.carry_out(stage, about, (net.encoder, net.decoder, critic), critic, max(2, mmfs.phase))


class TrainMapping(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSTrainMapping", display_name="Train MMFS CLIP Mapping", category="Atelier/training",
            description="Teaches an MMFS to read styles off pictures and words: from CLIP's embedding of a stylized "
                        "face back to the style it was drawn with.",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="An MMFS of Stage II with its discriminator."),
                sockets.CLIP.Input("clip", tooltip="The CLIP to read with; its embeddings are as wide as the model's "
                                                   "styles (512 for ViT-B/32)."),
                *stage_inputs(stages.MAPPING, "my_mapping"),
                faces.folder_input("faces_folder", "Photos of faces."),
                schema.advanced(io.Int.Input("hidden", default=MapperConfig().hidden, min=16, max=8192,
                                             tooltip="Width inside the mapping's layers, if it is a new one; 2048 is "
                                                     "official, 384 the demo model's.")),
                schema.image("faces", "Photos of faces, instead of a folder.", optional=True)],
            outputs=stage_outputs())

    @classmethod
    def validate_inputs(cls, name):
        return schema.name_is_sound(name)

    @classmethod
    def fingerprint_inputs(cls, faces_folder=host.NO_FOLDER, **others):
        return host.folder_token(faces_folder)

    @classmethod
    def execute(cls, mmfs, clip, steps, batch, lr, seed, name, save_every, resume, preview_every, precision,
                faces_folder, hidden, faces=None):
        config = configured(stages.MAPPING, steps, batch, lr, seed, precision)
        px, device = mmfs.net.config.resolution, host.training_device()
        critic = discriminator_of(mmfs)
        photos = PictureSet.of(faces, faces_folder, px, "faces")
        work = Work(cls, config, name, save_every, resume, preview_every, ("pixel", "feature"))
        memory = host.tuning_memory(mmfs.net.config, batch)
        with (host.trainable(mmfs.net, critic, clip.managed.net, memory=memory) as (net, critic, judge),
              photos.batches(batch, seed, device) as source):
            if net.mapper is None:
                with seeded(seed, torch.device("cpu")):
                    net = with_mapper(net, MapperConfig(hidden=hidden)).to(device)
            about = {"model": mmfs.fingerprint, "discriminator": session.hash_of_network(critic),
                     "clip_network": session.hash_of_network(judge), "faces": photos.description, "hidden": hidden}
            stage = stages.mapping(net, judge, critic, source, photos.first(SHOWN).to(device), config)
            return work.carry_out(stage, about, (net.encoder, net.decoder), critic, 3)


def configured(base: GanConfig, steps: int, batch: int, lr: float, seed: int, precision: str) -> GanConfig:
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; take one of {', '.join(PRECISIONS)}")
    return replace(base, steps=steps, batch=batch, lr=lr, seed=seed, precision=precision)


def discriminator_of(mmfs: Stylizer, stylegan2: sockets.Faces | None = None) -> Discriminator:
    """The model's own discriminator, or that of a StyleGAN2. ValueError if there is none that fits."""
    found = mmfs.discriminator or (stylegan2 and stylegan2.discriminator)
    if found is None:
        raise ValueError(f"{mmfs.name} holds no discriminator, which this training needs: load a complete checkpoint "
                         "(Save MMFS with its discriminator), or connect a StyleGAN2 that has one, where there is an "
                         "input for it")
    stages.check_sizes(mmfs.net, found)
    return found


class Work:
    """A stage on a node: its snapshot, what is shown, and what comes out."""

    def __init__(self, node: type[io.ComfyNode], config: GanConfig, name: str, save_every: int, resume: bool,
                 preview_every: int, losses: Sequence[str]):
        self.path = session.snapshot_file(host.snapshot_folder(), name)
        self.node, self.name, self.save_every, self.resume = node, name, save_every, resume
        self.preview_every, self.device = preview_every, host.training_device()
        self.watch = Watch(config.steps, names=losses)

    def carry_out(self, stage: Stage, about: Mapping, nets: Sequence[torch.nn.Module], critic: Discriminator,
                  phase: int) -> io.NodeOutput:
        """Train; the averaged model goes out with its discriminator. Cancels before any call of `nets`."""
        with session.checked(nets, host.check_cancelled):
            carry_out(stage, about, self.path if self.save_every else None, self.device, resume=self.resume,
                      save_every=self.save_every, begun=self.watch.begin,
                      callback=lambda progress: self.watch.stage(progress, stage, self.preview_every))
        if self.watch.predictions is None:  # nothing was left to do
            self.watch.predictions = stage.preview()
        shown, curve, losses = self.watch.outcome()
        net = copy.deepcopy(stage.run.averages["g"]).cpu().eval().requires_grad_(False)
        critic = critic.cpu().eval().requires_grad_(False)
        made = Stylizer(self.name, Managed(net), mmfs_style.fingerprint(net), critic, phase)
        return io.NodeOutput(made, shown, curve, losses, ui=ui.PreviewImage(shown, cls=self.node))


class SaveMMFS(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierSaveMMFS", display_name="Save MMFS", category="Atelier/training", is_output_node=True,
            description="Writes an MMFS model into models/mmfs as one safetensors file in 16 bit. Load MMFS finds it "
                        "after a refresh of the page (R).",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="The model to save."),
                schema.file_name("my_mmfs"),
                io.Boolean.Input("discriminator", default=True,
                                 tooltip="With the discriminator, which further training needs; drawing does not."),
                schema.overwrite("model")],
            outputs=schema.saved_path())

    @classmethod
    def validate_inputs(cls, name):
        return schema.name_is_sound(name)

    @classmethod
    def execute(cls, mmfs, name, discriminator, overwrite):
        critic = mmfs.discriminator if discriminator else None
        return save_once("mmfs", name, overwrite, lambda path: is_model(path, mmfs, critic),
                         lambda path: save_mmfs(path, mmfs.net, critic, {"phase": mmfs.phase}), "model")


def is_model(path: Path, mmfs: Stylizer, critic: Discriminator | None) -> bool:
    """Does the file hold this very model, with this discriminator?"""
    try:
        net, saved = load_mmfs(path)
    except ValueError:
        return False
    if mmfs_style.fingerprint(net) != mmfs.fingerprint or (saved is None) != (critic is None):
        return False
    return critic is None or session.hash_of_network(saved) == session.hash_of_network(critic)


NODES = [TrainStage1, TrainStage2, TrainMapping, SaveMMFS]
