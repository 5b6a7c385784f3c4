"""Nodes that fine-tune MMFS to a style, from pictures (one-shot) or from text (zero-shot), and save it."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..models.loading import load_mmfs_style, save_mmfs_style
from ..models.mmfs import training_memory
from ..models.precision import UNSCALED
from ..models.style import MMFSStyle
from ..train.data import to_bytes
from ..train.fewshot import MEANS, FewShotConfig, Reference, tune_mmfs
from ..train.loop import Checkpointing
from ..train.losses import STRUCTURE_NORMS
from ..train.presets import MMFS_PRESETS
from ..train.session import snapshot_file
from ..train.source_faces import FaceNetworks, Samples
from . import host, image_sources, images, inputs, sockets
from .base import AtelierNode, first
from .image_sources import PhotosNode
from .monitor import TrainingMonitor
from .saving import holds, save_once
from .sockets import CLIPModel, MMFSModel, StructureNetModel, StyleGAN2Model, TuneOptions, WPlus

OWN = "as set below"
DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(FewShotConfig)}
NODE_FIELDS = ("iterations", "batch", "lr", "seed")  # set in the fine-tune nodes, whatever a preset says


def number(name: str, tooltip: str, most: float, step: float, optional: bool = False) -> io.Float.Input:
    return io.Float.Input(name, default=DEFAULTS[name], min=0.0, max=most, step=step, tooltip=tooltip,
                          optional=optional)


def choice(name: str, options: tuple[str, ...], tooltip: str) -> io.Combo.Input:
    return inputs.choice(name, options, DEFAULTS[name], tooltip)


class MMFSFineTuneOptions(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMMFSFineTuneOptions", display_name="Set MMFS Fine-Tune Options",
            category="Atelier/training",
            description="Further settings of both MMFS fine-tunes. Every default is the official program's.",
            inputs=[
                inputs.choice("preset", (OWN, *MMFS_PRESETS), OWN,
                              f"'{OWN}' takes the settings below. Any other preset replaces all of them. official: the "
                              "released program. paper: where the paper differs. demo: for the demo models and style "
                              "pictures. demo text: for the demo models and prompts."),
                number("structure_weight", "Weight of the structure loss: parts that look alike in the photo must look "
                                           "alike in the result. Less lets shapes change.", 100.0, 0.01),
                number("clip_weight", "Weight of the CLIP direction loss: photo to result must change as the anchor to "
                                      "the reference.", 100.0, 0.1),
                number("projection_weight", "Weight of the projection loss, for pictures only: the result's patches "
                                            "must lie in the space of the reference's patches. 0: off.", 10_000.0, 1.0),
                choice("structure_norm", STRUCTURE_NORMS, "mse: mean square, as in the official program. frobenius: as "
                                                          "in the paper, scaled."),
                io.Int.Input("token_block", default=DEFAULTS["token_block"], min=0, max=47,
                             tooltip="CLIP block whose patch tokens are projected. 3 is official. Small CLIPs take "
                                     "their last one."),
                io.Boolean.Input("mapper_dropout", default=DEFAULTS["mapper_dropout"],
                                 tooltip="Dropout of the CLIP mapping while training: the w+ code varies. On is "
                                         "official."),
                io.String.Input("anchor", default=DEFAULTS["anchor"],
                                tooltip="Text that stands for the photos, for styles from text."),
                choice("mean", MEANS, "What stands for the photos, for styles from pictures. batch: the mean embedding "
                                      "of the batch (official; below 4 faces, of all). all: of all faces."),
                io.Int.Input("cached_content", default=DEFAULTS["cached_content"], min=0, max=4096,
                             tooltip="0: the photos as they are, or new samples in every step (official). N: N faces "
                                     "are prepared once: samples, or the photos and random augmentations of them."),
                number("beta1", "Adam's beta1: 0.9 in the released program, 0.99 in the paper.", 0.9999, 0.01),
                number("beta2", "Adam's beta2.", 0.9999, 0.001),
                number("ema_decay", "Decay of the moving average of the weights, which is the result.", 0.9999, 0.01),
                io.Int.Input("micro_batch", default=DEFAULTS["micro_batch"], min=0, max=64,
                             tooltip="Gradient accumulation: rows at a time, 0 for all. Small values need little "
                                     "memory. The result is the same up to rounding."),
                choice("precision", UNSCALED, "Number format of the networks on a GPU. float32 is official, bfloat16 "
                                              "is faster."),
                number("palette_weight", "Weight of the palette loss, for pictures only: the result must have the "
                                         "reference's colours. 0: off, as in the official program.", 1000.0, 1.0,
                       optional=True),
                inputs.advanced(io.Boolean.Input(
                    "ema_ramp", default=DEFAULTS["ema_ramp"], optional=True,
                    tooltip="A young moving average forgets faster: its decay is (1 + k) / (10 + k) at most. On: for "
                            "short fine-tunes of small models. Off is official: the decay is constant."))],
            outputs=[sockets.MMFS_TUNE_OPTIONS.Output("options", display_name="options",
                                                      tooltip="For the MMFS fine-tunes.")])

    @classmethod
    def execute(cls, preset: str, **values: Any) -> io.NodeOutput:
        chosen = values if preset == OWN else MMFS_PRESETS[preset]
        chosen = {name: value for name, value in chosen.items() if name not in NODE_FIELDS}
        FewShotConfig(**chosen)  # says what is wrong, before anything long starts
        return io.NodeOutput(TuneOptions(chosen))


def model_inputs() -> list:
    return [sockets.MMFS_MODEL.Input("mmfs", tooltip="The model to start from, with its CLIP mapping."),
            sockets.CLIP.Input("clip", tooltip="The CLIP of its mapping: officially OpenAI's ViT-B/32, 'demo' for the "
                                               "demo model."),
            sockets.STRUCTURE_NET.Input("structure_net", tooltip="Network of the structure loss. MMFS uses DINO "
                                                                 "ViT-B/8.")]


def tune_inputs() -> list:
    return [
        io.Int.Input("iterations", default=DEFAULTS["iterations"], min=1, max=100_000,
                     tooltip="200 is official. Up to 500 come closer to the style, more degrade identity."),
        io.Int.Input("batch", default=DEFAULTS["batch"], min=1, max=64, tooltip="Faces an iteration. 8 is official."),
        io.Float.Input("lr", default=DEFAULTS["lr"], min=0.0, max=0.1, step=1e-5, round=1e-9,
                       tooltip="Learning rate of the decoder. 0.0002 is official. Small models need more."),
        inputs.fixed_seed("Seed of the faces' order, noise and dropout."),
        *inputs.session_inputs("my_style", 25, 10_000, "iterations"),
        image_sources.folder_input("photos_folder", "Faces to train on, at least 64 are good."),
        sockets.MMFS_TUNE_OPTIONS.Input("options", optional=True,
                                        tooltip="Further settings. Not connected: the official ones."),
        inputs.image("photos", "Upright faces to train on, together with the folder's. With fewer than 64, set "
                               "cached_content in the options.", optional=True),
        sockets.STYLEGAN2.Input("stylegan2", optional=True, tooltip="Generates the faces to train on, instead of "
                                                                    "photos."),
        sockets.W_PLUS.Input("w_plus", display_name="w+ code", optional=True,
                             tooltip="One w+ code to start from, instead of what the CLIP mapping gives. A model "
                                     "without a mapping needs it."),
        inputs.changed_pictures(), inputs.keep()]


def tune_outputs() -> list:
    return [
        sockets.MMFS_STYLE.Output("style", display_name="style", tooltip="The style, for Stylize with MMFS and Save "
                                                                         "MMFS Style."),
        sockets.W_PLUS.Output("style_w_plus", display_name="w+ code", tooltip="The w+ code it was fine-tuned with."),
        io.Image.Output("predictions", display_name="predictions", tooltip="The last iteration's results."),
        io.Image.Output("loss_curve", display_name="loss curve", tooltip="Plot of the loss over the iterations."),
        sockets.LOSS_MAP.Output("losses", display_name="losses", tooltip="For core's Plot Loss Graph.")]


class MMFSFineTune(PhotosNode):
    JOINED = ("references", "photos")

    @classmethod
    def join(cls, name: str, pictures: Sequence[Tensor], values: Mapping[str, Any]) -> Any:
        """References keep their sizes."""
        return pictures if name == "references" else super().join(name, pictures, values)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMMFSFineTune", display_name="Fine-Tune MMFS to Pictures",
            category="Atelier/training", is_input_list=True,
            description="Learns the style of one picture, or of several together (one-shot): fine-tunes a copy of the "
                        "MMFS decoder. The input models are not changed. It can be cancelled at any step, and resumes "
                        "when it is run again.",
            inputs=[*model_inputs(),
                    inputs.image("references", "The style images, one or several. CLIP sees the middle square of wide "
                                               "or tall ones."),
                    *tune_inputs()],
            outputs=tune_outputs())

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return inputs.valid_name(name)

    @classmethod
    def execute(cls, mmfs: MMFSModel, clip: CLIPModel, structure_net: StructureNetModel,
                references: Tensor | Sequence[Tensor], **values: Any) -> io.NodeOutput:
        batches = [references] if isinstance(references, Tensor) else references
        pictures = [picture for image in batches for picture in to_bytes(images.checked(image, "references") * 2 - 1)]
        models = FineTuneModels(mmfs, clip, structure_net)
        return fine_tune(cls, models, Reference(pictures=pictures), FineTuneValues(**values))


class MMFSFineTuneText(PhotosNode):
    JOINED = ("photos",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMMFSFineTuneText", display_name="Fine-Tune MMFS to Text",
            category="Atelier/training", is_input_list=True,
            description="Learns a style from a prompt alone (zero-shot): fine-tunes a copy of the MMFS decoder. The "
                        "input models are not changed. It can be cancelled at any step, and resumes when it is run "
                        "again.",
            inputs=[*model_inputs(),
                    io.String.Input("prompt", default="watercolor painting", multiline=True,
                                    tooltip="The style in a few words. The demo CLIP knows only a few words and lists "
                                            "them in its error."),
                    *tune_inputs()],
            outputs=tune_outputs())

    @classmethod
    def validate_inputs(cls, name: str | None = None, prompt: str | None = None) -> bool | str:
        prompt = first(prompt)
        if prompt is not None and not prompt.strip():
            return "the prompt is empty; describe the style in a few words, such as 'watercolor painting'"
        return inputs.valid_name(name)

    @classmethod
    def execute(cls, mmfs: MMFSModel, clip: CLIPModel, structure_net: StructureNetModel, prompt: str,
                **values: Any) -> io.NodeOutput:
        models = FineTuneModels(mmfs, clip, structure_net)
        return fine_tune(cls, models, Reference(prompt=prompt), FineTuneValues(**values))


@dataclass(frozen=True)
class FineTuneModels:
    """What both fine-tunes look at faces with."""
    mmfs: MMFSModel
    clip: CLIPModel
    structure_net: StructureNetModel


@dataclass(frozen=True)
class FineTuneValues:
    """The inputs of `tune_inputs`."""
    iterations: int
    batch: int
    lr: float
    seed: int
    name: str
    save_every: int
    resume: bool
    photos_folder: str
    options: TuneOptions | None = None
    photos: Tensor | None = None
    stylegan2: StyleGAN2Model | None = None
    w_plus: WPlus | None = None
    changed_pictures: bool = False
    keep: int = 1

    @property
    def config(self) -> FewShotConfig:
        return FewShotConfig(iterations=self.iterations, batch=self.batch, lr=self.lr, seed=self.seed,
                             **(self.options.fields if self.options else {}))

    @property
    def checkpointing(self) -> Checkpointing:
        return Checkpointing(snapshot_file(host.snapshot_folder(), self.name), self.save_every, self.resume,
                             self.changed_pictures, self.keep)


def fine_tune(node: type[io.ComfyNode], models: FineTuneModels, reference: Reference,
              values: FineTuneValues) -> io.NodeOutput:
    """What both fine-tunes do."""
    mmfs, config, checkpointing = models.mmfs, values.config, values.checkpointing
    reference.check(models.clip.net, config.anchor)
    monitor, w_plus = TrainingMonitor(config.iterations), start_code(mmfs, values.w_plus)
    shown = source_photos(mmfs, values, monitor.tell)
    warning = "" if w_plus is not None else sockets.warn_of_clip(mmfs, models.clip)
    memory = training_memory(mmfs.net.config, config.micro_batch or config.batch)
    with host.trainable(mmfs.net, models.clip.net, models.structure_net.net,
                        values.stylegan2 and values.stylegan2.net, shown, w_plus, *reference.pictures,
                        memory=memory) as (net, clip, structure_net, generator, shown, w_plus, *pictures):
        nets = FaceNetworks(net, clip, structure_net, mmfs.fingerprint)
        style, _ = tune_mmfs(nets, Reference(reference.prompt, pictures, w_plus),
                             Samples(generator) if shown is None else shown, config, checkpointing, monitor.hooks(),
                             mmfs.faces)
    if warning:  # the progress has replaced it
        host.show_text(warning)
    predictions, curve, losses = monitor.outcome()
    code = WPlus(style.code().float(), style.model, reference.prompt or "reference")
    return io.NodeOutput(style, code, predictions, curve, losses, ui=ui.PreviewImage(predictions, cls=node))


def start_code(mmfs: MMFSModel, w_plus: WPlus | None) -> Tensor | None:
    """The w+ code to fine-tune with (1, n, S); None for the CLIP mapping's. ValueError for any that cannot be."""
    if w_plus is None:
        if mmfs.net.mapper is None:
            raise ValueError("this MMFS model has no CLIP mapping (it is of phase 1 or 2). Connect a w+ code (Random "
                             "MMFS Style), or load phase3_pretrain_10000.pth")
        return None
    sockets.same_model("the w+ code", w_plus.fingerprint, mmfs.fingerprint, "MMFS")
    if len(w_plus.w) != 1:
        raise ValueError(f"w_plus: one w+ code is needed to start from, not {len(w_plus.w)}. Set count to 1")
    return w_plus.w


def source_photos(mmfs: MMFSModel, values: FineTuneValues, tell: Callable[[str], None]) -> Tensor | None:
    """uint8 (N, 3, px, px); None if a StyleGAN2 generates the faces. tell: see `image_sources.gathered`. ValueError for
    no source and for two."""
    px = mmfs.net.config.resolution
    found = image_sources.gathered(values.photos, values.photos_folder, px, "photos", tell)
    if found is None and values.stylegan2 is None:
        raise ValueError("there are no faces to train on. Connect photos, pick a folder, or connect a StyleGAN2")
    if found is not None and values.stylegan2 is not None:
        raise ValueError("faces come from photos or a folder, and from a StyleGAN2. Give only one of them")
    return found


class SaveMMFSStyle(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSaveMMFSStyle", display_name="Save MMFS Style", category="Atelier/training",
            is_output_node=True,
            description="Saves a style in models/mmfs_styles as one 16-bit safetensors file: its decoder, w+ code, "
                        "reference picture, all settings and the fingerprint of its MMFS. Load MMFS Style lists it "
                        "after a refresh of the page (R).",
            inputs=[
                sockets.MMFS_STYLE.Input("style", tooltip="The style to save."),
                inputs.file_name("my_style"),
                inputs.overwrite("style")],
            outputs=inputs.saved_path())

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return inputs.valid_name(name)

    @classmethod
    def execute(cls, style: MMFSStyle, name: str, overwrite: bool) -> io.NodeOutput:
        return save_once("mmfs_styles", name, overwrite, lambda path: holds(path, load_mmfs_style, style, made_with),
                         lambda path: save_mmfs_style(path, style), "style")


def made_with(style: MMFSStyle) -> tuple[object, Mapping[str, Tensor]]:
    return (style.model, style.settings, style.prompt), style.decoder


NODES = [MMFSFineTuneOptions, MMFSFineTune, MMFSFineTuneText, SaveMMFSStyle]
