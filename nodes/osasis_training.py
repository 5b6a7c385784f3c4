"""Nodes that make OSASIS styles: the one-shot fine-tune, its options, and saving."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..models.loading import load_style, save_style
from ..models.osasis import NOISE_LEVELS, SPN_TIMES, training_memory
from ..models.precision import PRECISIONS
from ..models.style import OSASISStyle
from ..train.content_files import DEFAULT_GB, ContentFolder
from ..train.loop import Checkpointing, Run
from ..train.osasis import CLAMPS, CLIP_PREPROCESSINGS, SPNS, FrozenNetworks, OSASISConfig, tune_style
from ..train.osasis_words import WordsConfig, tune_to_words
from ..train.presets import OSASIS_PRESETS
from ..train.session import snapshot_file
from . import host, images, inputs, sockets
from .base import AtelierNode, first
from .monitor import TrainingMonitor
from .saving import holds, save_once
from .sockets import CLIPModel, DiffAEModel, LoadedStyle, PerceptualModel, SemanticCode, TuneOptions

OWN = "as set below"
NODE_FIELDS = ("iterations", "batch", "lr", "lr_spn", "spn", "spn_weight", "seed")  # set in the fine-tune nodes
SAME_PICTURE = 0.02  # mean absolute difference, of pictures in [-1, 1]
DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(OSASISConfig)}


def weight(name: str, tooltip: str, most: float = 100.0, step: float = 0.1) -> io.Float.Input:
    return io.Float.Input(name, default=DEFAULTS[name], min=0.0, max=most, step=step, tooltip=tooltip)


def choice(name: str, options: tuple[str, ...], tooltip: str) -> io.Combo.Input:
    return inputs.choice(name, options, DEFAULTS[name], tooltip)


class OSASISFineTuneOptions(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierOSASISFineTuneOptions", display_name="Set OSASIS Fine-Tune Options",
            category="Atelier/training",
            description="Further settings of Fine-Tune OSASIS. Every default is the official program's.",
            inputs=[
                inputs.choice("preset", (OWN, *OSASIS_PRESETS), OWN,
                              f"'{OWN}' takes the settings below. Any other preset replaces all of them. official: the "
                              "released program. corrected: without its deviations from the paper. fast: a style in "
                              "about a sixth of the steps; it sets iterations and learning rates of Fine-Tune OSASIS, "
                              "too. demo: less work, for the demo models on a CPU."),
                weight("cross_weight", "Weight of the cross-domain loss: photo to result must change as photo twin to "
                                       "style image."),
                weight("in_domain_weight", "Weight of the in-domain loss: results must differ as their photos do."),
                weight("clip_weight", "Weight of the CLIP loss on the style image's reconstruction."),
                weight("l1_weight", "Weight of the L1 loss on the style image's reconstruction."),
                weight("perceptual_weight", "Weight of the perceptual loss on the style image's reconstruction."),
                weight("style_spn_weight", "How much of the SPN is added in the style stream. The official program "
                                           "adds 1, the paper 0.1.", 2.0, 0.05),
                choice("spn_time", SPN_TIMES, "Time that is fed to the SPN. index: the sampler's index (official). "
                                              "timestep: the diffusion time."),
                inputs.steps(DEFAULTS["forward_steps"], "Steps of encoding.", "forward_steps"),
                inputs.steps(DEFAULTS["reverse_steps"], "Steps of decoding. An iteration has t0 x this many optimiser "
                                                        "steps, and one more with noise_level matched.",
                             "reverse_steps"),
                inputs.steps(DEFAULTS["latent_steps"], "Steps of the latent DDIM, for content pictures.",
                             "latent_steps"),
                inputs.steps(DEFAULTS["generate_steps"], "Steps of generating content pictures.", "generate_steps"),
                io.Float.Input("t0", display_name="strength (t0)", default=DEFAULTS["t0"], min=0.05, max=1.0, step=0.05,
                               tooltip="Noise level up to which pictures are encoded. The style keeps it: Encode "
                                       "Structure takes it from there."),
                io.Int.Input("cached_content", default=DEFAULTS["cached_content"], min=0, max=4096,
                             tooltip="0: new content pictures in every iteration (official). N: N pictures are "
                                     "prepared once and reused, which saves about half of the work."),
                choice("noise_level", NOISE_LEVELS, "Where decoding starts. official: one step cleaner than encoding "
                                                    "ended. matched: where it ended."),
                choice("clamp", CLAMPS, "hard: no gradient where a prediction leaves the picture's range (official). "
                                        "straight-through: the gradient passes."),
                choice("clip_preprocessing", CLIP_PREPROCESSINGS,
                       "How pictures are given to CLIP. osasis: as the official program does (nearest resize, not "
                       "normalised). openai: as CLIP was trained."),
                io.Boolean.Input("dropout", default=DEFAULTS["dropout"], tooltip="Dropout while training. On is "
                                                                                 "official."),
                io.Int.Input("micro_batch", default=DEFAULTS["micro_batch"], min=0, max=64,
                             tooltip="Gradient accumulation: rows at a time, 0 for all. Small values need little "
                                     "memory. The result is the same up to rounding and dropout."),
                choice("precision", PRECISIONS[::-1], "Number format of the networks on a GPU. float16 without loss "
                                                      "scaling is official."),
                inputs.solver(DEFAULTS["solver"], "Content is encoded with it. The style keeps it for Encode "
                                                  "Structure and Stylize with OSASIS.")],
            outputs=[sockets.OSASIS_TUNE_OPTIONS.Output("options", display_name="options", tooltip="For Fine-Tune "
                                                                                                   "OSASIS.")])

    @classmethod
    def validate_inputs(cls, forward_steps: int | None = None, reverse_steps: int | None = None,
                        latent_steps: int | None = None, generate_steps: int | None = None) -> bool | str:
        return inputs.valid_steps(forward_steps, reverse_steps, latent_steps, generate_steps)

    @classmethod
    def execute(cls, preset: str, **values: Any) -> io.NodeOutput:
        chosen = values if preset == OWN else OSASIS_PRESETS[preset]
        OSASISConfig(**chosen)  # says what is wrong, before anything long starts
        return io.NodeOutput(TuneOptions(chosen))


def tune_inputs() -> list:
    """What both fine-tunes are set with."""
    return [
        io.Int.Input("iterations", default=DEFAULTS["iterations"], min=1, max=100_000,
                     tooltip="200 is official. With the default options, each is 10 optimiser steps."),
        io.Int.Input("batch", default=DEFAULTS["batch"], min=1, max=64,
                     tooltip="Content pictures an iteration. 8 is official."),
        io.Float.Input("lr", default=DEFAULTS["lr"], min=0.0, max=0.01, step=1e-7, round=1e-9,
                       tooltip="Learning rate of the network. 0.000005 is official for the 256 px models. "
                               "Small models need more."),
        io.Float.Input("lr_spn", default=DEFAULTS["lr_spn"], min=0.0, max=0.01, step=1e-6, round=1e-9,
                       tooltip="Learning rate of the SPN. 0.0001 is official."),
        choice("spn", SPNS, "The SPN. timed: all published styles. untimed: without a time. none: no SPN."),
        io.Float.Input("spn_weight", default=DEFAULTS["spn_weight"], min=0.0, max=2.0, step=0.01,
                       tooltip="Weight of the SPN in the content stream. The style keeps it for "
                               "Stylize with OSASIS."),
        inputs.fixed_seed("Seed of the content pictures, the new SPN and dropout."),
        *inputs.session_inputs("my_style", 25, 10_000, "iterations"),
        sockets.OSASIS_TUNE_OPTIONS.Input("options", optional=True,
                                          tooltip="Further settings. Not connected: the official ones."),
        inputs.image("contents", "Photos as content, instead of pictures generated by the model.",
                     optional=True),
        inputs.changed_pictures(),
        inputs.advanced(io.Float.Input(
            "content_gb", display_name="content on disk (GB)", default=DEFAULT_GB, min=0.0, max=1000.0,
            step=0.5, optional=True,
            tooltip="How large output/atelier/content may become. Content pictures that the model generates "
                    "are kept there. Further styles with the same model, seed and options take them from "
                    "there. The result is the same. Those used longest ago leave first. 0: none are kept or "
                    "taken.")),
        inputs.keep()]


def tune_outputs(z_style: str, predictions: str) -> list:
    return [
        sockets.OSASIS_STYLE.Output("style", display_name="style", tooltip="The style, for Stylize with OSASIS "
                                                                           "and Save OSASIS Style."),
        sockets.SEMANTIC_CODE.Output("z_style", display_name="z_style", tooltip=z_style),
        io.Image.Output("predictions", display_name="predictions", tooltip=predictions),
        io.Image.Output("loss_curve", display_name="loss curve", tooltip="Plot of the loss over the "
                                                                         "iterations."),
        sockets.LOSS_MAP.Output("losses", display_name="losses", tooltip="For core's Plot Loss Graph.")]


@dataclass(frozen=True)
class TuneModels:
    """What both fine-tunes start from and look through."""
    diffae: DiffAEModel
    clip: CLIPModel
    perceptual: PerceptualModel


@dataclass(frozen=True)
class TuneValues:
    """The inputs of `tune_inputs`."""
    iterations: int
    batch: int
    lr: float
    lr_spn: float
    spn: str
    spn_weight: float
    seed: int
    name: str
    save_every: int
    resume: bool
    options: TuneOptions | None = None
    contents: Tensor | None = None
    changed_pictures: bool = False
    content_gb: float = DEFAULT_GB
    keep: int = 1

    def config(self) -> OSASISConfig:
        """Of the node and the options, which go first; says what they replace."""
        own = {field: getattr(self, field) for field in NODE_FIELDS}
        further = self.options.fields if self.options else {}
        if replaced := [f"{field} {further[field]}" for field in own if field in further]:
            host.show_text(f"from the options: {', '.join(replaced)}")
        return OSASISConfig(**own | further)

    @property
    def checkpointing(self) -> Checkpointing:
        return Checkpointing(snapshot_file(host.snapshot_folder(), self.name), self.save_every, self.resume,
                             self.changed_pictures, self.keep)


def fine_tune(node: type[io.ComfyNode], models: TuneModels, values: TuneValues, config: OSASISConfig,
              tune: Callable[..., tuple[OSASISStyle, Run]], pictures: Sequence[Tensor] = ()) -> io.NodeOutput:
    """What both fine-tunes do. tune(nets, *pictures, ..): the training, with the pictures on the computing device."""
    diffae, checkpointing = models.diffae, values.checkpointing
    photos = None if values.contents is None else images.to_model(values.contents, diffae.net.image_size, "contents")
    monitor = TrainingMonitor(config.iterations, len(config.indices))
    memory = training_memory(diffae.unet, config.micro_batch or config.batch + bool(pictures))
    with host.trainable(diffae.net, models.clip.net, models.perceptual.distance(), photos, *pictures,
                        memory=memory) as (net, clip, distance, photos, *pictures):
        nets = FrozenNetworks(net, clip, distance, diffae.fingerprint, leaves=True)
        style, _ = tune(nets, *pictures, config=config, photos=photos, checkpointing=checkpointing,
                        hooks=monitor.hooks(), folder=ContentFolder.of(host.content_folder(), values.content_gb))
    shown, curve, losses = monitor.outcome()
    code = SemanticCode(style.semantic_code().float(), style.model)
    return io.NodeOutput(LoadedStyle.of(style), code, shown, curve, losses, ui=ui.PreviewImage(shown, cls=node))


class SquashingNode(AtelierNode):
    """A fine-tune of OSASIS: of a list of several sizes each picture is squashed, as Make Photo Twin does, so that a
    style image and its twin show the same places."""

    @classmethod
    def join(cls, name: str, pictures: Sequence[Tensor], values: Mapping[str, Any]) -> Tensor | None:
        return images.batch(pictures, name, values["diffae"].net.image_size, "squash")


class OSASISFineTune(SquashingNode):
    JOINED = ("twin", "style_image", "contents")

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierOSASISFineTune", display_name="Fine-Tune OSASIS",
            category="Atelier/training", is_input_list=True,
            description="Learns a style from one picture and its photo twin, or from several with a twin each: "
                        "fine-tunes a copy of the DiffAE's network and a structure-preserving network (SPN). The input "
                        "models are not changed. It can be cancelled at any step, and resumes when it is run again.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="The model to start from, with its latent DDIM. Without that, "
                                                       "connect contents."),
                sockets.CLIP.Input("clip", tooltip="CLIP of the losses. OSASIS uses OpenAI's ViT-B/32."),
                sockets.PERCEPTUAL.Input("perceptual", tooltip="Perceptual loss of the style image's reconstruction."),
                inputs.image("twin", "The style image's photo twin, from Make Photo Twin. Of several style images, as "
                                     "many twins in the same order."),
                inputs.image("style_image", "The style image: one picture. Several of one style, as a batch or a list, "
                                            "take turns: an iteration learns from one of them."),
                *tune_inputs()],
            outputs=tune_outputs("The style image's semantic code, for Mix Codes. Of several, their mean.",
                                 "The network's last one-step predictions: the style image's, then the content's."))

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return inputs.valid_name(name)

    @classmethod
    def execute(cls, diffae: DiffAEModel, clip: CLIPModel, perceptual: PerceptualModel, twin: Tensor,
                style_image: Tensor, **values: Any) -> io.NodeOutput:
        given, px = TuneValues(**values), diffae.net.image_size
        config = given.config()
        twin, style_image = (images.to_model(image, px, what)
                             for image, what in ((twin, "twin"), (style_image, "style_image")))
        if len(twin) != len(style_image):
            raise ValueError(f"{len(style_image)} style images and {len(twin)} twins. Connect a twin of each style "
                             "image, in the same order")
        if float((twin - style_image).abs().mean((1, 2, 3)).min()) < SAME_PICTURE:
            raise ValueError("twin and style_image are the same picture, so there is no change to learn. Connect the "
                             "twin of Make Photo Twin, and check that this node is not bypassed")
        models = TuneModels(diffae, clip, perceptual)
        return fine_tune(cls, models, given, config, tune_style, (twin, style_image))


class OSASISFineTuneText(SquashingNode):
    JOINED = ("contents",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierOSASISFineTuneText", display_name="Fine-Tune OSASIS to Text",
            category="Atelier/training", is_input_list=True,
            description="Learns a style from words alone, without a style image: fine-tunes a copy of the DiffAE's "
                        "network and a structure-preserving network (SPN) along the direction from one text to "
                        "another. The input models are not changed. It can be cancelled at any step, and resumes when "
                        "it is run again.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="The model to start from, with its latent DDIM. Without that, "
                                                       "connect contents."),
                sockets.CLIP.Input("clip", tooltip="CLIP that compares pictures and texts: OpenAI's ViT-B/32, or "
                                                   "'demo'."),
                sockets.PERCEPTUAL.Input("perceptual", tooltip="Perceptual distance of photo and result, which keeps "
                                                               "results near their photos."),
                io.String.Input("prompt", default="watercolor painting", multiline=True,
                                tooltip="The style in a few words. The demo CLIP knows only a few words and lists "
                                        "them in its error."),
                io.String.Input("source", default=WordsConfig.source,
                                tooltip="What the photos are, in the words in which the prompt differs from it."),
                io.Float.Input("photo_weight", default=WordsConfig.photo_weight, min=0.0, max=100.0, step=0.1,
                               tooltip="Weight of what keeps a result near its photo (L1 and perceptual distance). "
                                       "More keeps more of the photo, less gives more style. 0: nothing but the text "
                                       "and the SPN."),
                *tune_inputs(),
                io.Float.Input("pixel_weight", default=WordsConfig.pixel_weight, min=0.0, max=100.0, step=0.1,
                               optional=True, tooltip="Weight of L1 within the photo's weight. 0 lets go of the "
                                                      "photo's colours, as a pencil drawing must.")],
            outputs=tune_outputs("A semantic code in the style image's stead, for Mix Codes: the mean code of eight "
                                 "content pictures in the style.", "The network's last one-step predictions of content "
                                                                   "pictures."))

    @classmethod
    def validate_inputs(cls, name: str | None = None, prompt: str | None = None,
                        source: str | None = None) -> bool | str:
        for what, text in (("prompt", first(prompt)), ("source", first(source))):
            if text is not None and not text.strip():
                return f"the {what} is empty; write a few words, such as 'watercolor painting' and 'photo'"
        return inputs.valid_name(name)

    @classmethod
    def execute(cls, diffae: DiffAEModel, clip: CLIPModel, perceptual: PerceptualModel, prompt: str, source: str,
                photo_weight: float, pixel_weight: float = WordsConfig.pixel_weight, **values: Any) -> io.NodeOutput:
        given = TuneValues(**values)
        words = WordsConfig(prompt.strip(), source.strip(), photo_weight, pixel_weight=pixel_weight)
        for text in (words.source, words.target):  # before anything long starts
            clip.net.check_prompt(text)
        models = TuneModels(diffae, clip, perceptual)
        return fine_tune(cls, models, given, given.config(), partial(tune_to_words, words=words))


class SaveOSASISStyle(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSaveOSASISStyle", display_name="Save OSASIS Style", category="Atelier/training",
            is_output_node=True,
            description="Saves a style in models/osasis as one 16-bit safetensors file, with the style image, its "
                        "semantic code, all settings and the fingerprint of its DiffAE. Load OSASIS Style lists it "
                        "after a refresh of the page (R).",
            inputs=[
                sockets.OSASIS_STYLE.Input("style", tooltip="The style to save."),
                inputs.file_name("my_style"),
                inputs.overwrite("style")],
            outputs=inputs.saved_path())

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return inputs.valid_name(name)

    @classmethod
    def execute(cls, style: LoadedStyle, name: str, overwrite: bool) -> io.NodeOutput:
        return save_once("osasis", name, overwrite, lambda path: holds(path, load_style, style.style, made_with),
                         lambda path: save_style(path, style.style), "style")


def made_with(style: OSASISStyle) -> tuple[object, Mapping[str, Tensor]]:
    return (style.model, style.settings), style.unet


NODES = [OSASISFineTuneOptions, OSASISFineTune, SaveOSASISStyle, OSASISFineTuneText]
