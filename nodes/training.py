"""Nodes that make styles: the one-shot fine-tune, its finer settings, and saving."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..models import osasis as styles
from ..models.clip import PREPARATIONS
from ..models.diffusion import stride_table
from ..models.loading import load_style, save_style
from ..models.osasis import Style, reverse_indices
from ..train import session
from ..train.osasis import CLAMPS, SPNS, OsasisConfig
from . import host, pictures, schema, sockets
from .sockets import ManagedStyle, Semantic, TuneOptions
from .watch import Watch

OWN = "as set below"
LOST = "iterations; 0 never. If ComfyUI ends, only what came after the last one is lost."
DEFAULTS = {f.name: f.default for f in fields(OsasisConfig)}


def number(name: str, tooltip: str, most: float = 100.0, step: float = 0.1):
    return io.Float.Input(name, default=DEFAULTS[name], min=0.0, max=most, step=step, tooltip=tooltip)


def choice(name: str, options, tooltip: str):
    return io.Combo.Input(name, options=list(options), default=DEFAULTS[name], tooltip=tooltip)


class FineTuneOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierFineTuneOptions", display_name="Set Fine-Tune Options", category="Atelier/training",
            description="The finer settings of Fine-Tune Style. Every default is the official program's.",
            inputs=[
                io.Combo.Input("preset", options=[OWN, *session.PRESETS], default=OWN,
                               tooltip="'as set below' takes the settings below. Any other preset replaces all of "
                                       "them: official; mended (the program's slips mended); demo (less work, for "
                                       "the demo models on a CPU)."),
                number("cross", "Weight of the cross-domain loss: photo to drawing must change as twin to style "
                                "picture."),
                number("inner", "Weight of the in-domain loss: drawings must differ as their photos do."),
                number("clip", "Weight of the CLIP loss on the style picture's reconstruction."),
                number("l1", "Weight of the pixel loss on the style picture's reconstruction."),
                number("perceptual", "Weight of the perceptual loss on the style picture's reconstruction."),
                number("style_spn_weight", "How much of the SPN is added in the style's own stream. The program adds "
                                           "1, where the paper has the content's 0.1.", 2.0, 0.05),
                choice("spn_time", styles.SPN_TIMES, "What time the SPN is told: the sampler's index (official) or the "
                                                     "timestep. Stylize must be told the same."),
                schema.steps(DEFAULTS["forward_steps"], "Steps of encoding.", "forward_steps"),
                schema.steps(DEFAULTS["reverse_steps"], "Steps of decoding: strength x this many optimiser steps an "
                                                        "iteration.", "reverse_steps"),
                schema.steps(DEFAULTS["latent_steps"], "Steps of drawing codes for content pictures.", "latent_steps"),
                schema.steps(DEFAULTS["generate_steps"], "Steps of drawing content pictures.", "generate_steps"),
                io.Float.Input("t0", default=DEFAULTS["t0"], min=0.05, max=1.0, step=0.05,
                               tooltip="Strength of encoding; use the same in Encode Structure."),
                io.Int.Input("bank", default=DEFAULTS["bank"], min=0, max=4096,
                             tooltip="0: new content pictures in every iteration (official). Else so many are drawn "
                                     "once and used again and again, which saves about half of the work."),
                choice("noise_level", styles.NOISE_LEVELS, "official: decoding starts one step cleaner than encoding "
                                                           "ended. matched: where it ended."),
                choice("clamp", CLAMPS, "hard: no gradient where a prediction leaves the picture's range (official). "
                                        "straight-through: it passes."),
                choice("clip_preparation", PREPARATIONS, "How CLIP is shown pictures: as the program does (nearest "
                                                         "resize, no normalisation), or CLIP's own way."),
                io.Boolean.Input("dropout", default=DEFAULTS["dropout"], tooltip="Dropout while training (official: "
                                                                                 "on)."),
                io.Int.Input("micro_batch", default=DEFAULTS["micro_batch"], min=0, max=64,
                             tooltip="Rows at a time, 0 for all. Small values fit into little memory; the result is "
                                     "the same but for rounding and dropout."),
                choice("precision", ("float16", "bfloat16", "float32"), "Of the networks on a graphics card; float16 "
                                                                        "without loss scaling is official.")],
            outputs=[sockets.TUNE_OPTIONS.Output("options", display_name="options", tooltip="For Fine-Tune Style.")])

    @classmethod
    def validate_inputs(cls, forward_steps, reverse_steps, latent_steps, generate_steps):
        return schema.steps_are_sound(forward_steps, reverse_steps, latent_steps, generate_steps)

    @classmethod
    def execute(cls, preset, **values):
        if preset != OWN and preset not in session.PRESETS:
            raise ValueError(f"preset is {preset!r}; take '{OWN}' or one of {', '.join(session.PRESETS)}")
        chosen = values if preset == OWN else session.PRESETS[preset]
        OsasisConfig(**chosen)  # says what is wrong, before anything long starts
        return io.NodeOutput(TuneOptions(chosen))


class FineTune(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierFineTune", display_name="Fine-Tune Style", category="Atelier/training",
            description="Learns a style from one picture and its photo twin: a copy of the DiffAE's network and a "
                        "structure-preserving network. The models that come in are not changed. Can be cancelled at "
                        "any step, and goes on from its last save when it is run again.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="The model to start from, with its latent DPM (or connect "
                                                       "contents)."),
                sockets.CLIP.Input("clip", tooltip="Judges the style. OSASIS uses OpenAI's ViT-B/32."),
                sockets.PERCEPTUAL.Input("perceptual", tooltip="Judges the style picture's reconstruction."),
                schema.image("twin", "The style picture's photo twin: one picture, from Make Photo Twin."),
                schema.image("style", "The style picture: one picture."),
                io.Int.Input("iterations", default=DEFAULTS["iterations"], min=1, max=100_000,
                             tooltip="200 is official; each is 10 optimiser steps with the default options."),
                io.Int.Input("batch", default=DEFAULTS["batch"], min=1, max=64,
                             tooltip="Content pictures an iteration; 8 is official."),
                io.Float.Input("lr", default=DEFAULTS["lr"], min=0.0, max=0.01, step=1e-7, round=1e-9,
                               tooltip="Learning rate of the network; 0.000005 is official for the 256 px "
                                       "models, small models want more."),
                io.Float.Input("lr_spn", default=DEFAULTS["lr_spn"], min=0.0, max=0.01, step=1e-6, round=1e-9,
                               tooltip="Learning rate of the structure-preserving network; 0.0001 is official."),
                io.Combo.Input("spn", options=list(SPNS), default=DEFAULTS["spn"],
                               tooltip="The structure-preserving network: timed (all published styles), untimed, or "
                                       "none."),
                io.Float.Input("spn_weight", default=DEFAULTS["spn_weight"], min=0.0, max=2.0, step=0.01,
                               tooltip="How much of the SPN is added in the content's stream; use the same in "
                                       "Stylize."),
                schema.seed("Of the content pictures, the SPN's start and dropout."),
                *schema.snapshots("my_style", 25, 10_000, LOST),
                sockets.TUNE_OPTIONS.Input("options", optional=True, tooltip="Finer settings; without, the official "
                                                                             "ones."),
                schema.image("contents", "Photos to learn on, instead of pictures drawn from the "
                                         "model.", optional=True)],
            outputs=[
                sockets.STYLE.Output("tuned_style", display_name="style", tooltip="The style, for Stylize and Save "
                                                                                  "Style."),
                sockets.SEMANTIC.Output("style_code", display_name="style "
                                                                   "code", tooltip="The style picture's semantic "
                                                                                   "code."),
                io.Image.Output("predictions", display_name="predictions",
                                tooltip="The network's last one-step predictions: the style picture's, then the "
                                        "content's."),
                io.Image.Output("loss_curve", display_name="loss "
                                                           "curve", tooltip="The loss over the iterations, drawn."),
                sockets.LOSS_MAP.Output("losses", display_name="losses", tooltip="For core's Plot Loss Graph.")])

    @classmethod
    def validate_inputs(cls, name):
        return schema.name_is_sound(name)

    @classmethod
    def execute(cls, diffae, clip, perceptual, twin, style, iterations, batch, lr, lr_spn, spn, spn_weight, seed, name,
                save_every, resume, options=None, contents=None):
        config = OsasisConfig(iterations=iterations, batch=batch, lr=lr, lr_spn=lr_spn, spn=spn, spn_weight=spn_weight,
                              seed=seed, **(options.fields if options else {}))
        path = session.snapshot_file(host.snapshot_folder(), name)
        px = diffae.net.image_size
        twin, style = (pictures.to_model(pictures.single(image, what), px, what)
                       for image, what in ((twin, "twin"), (style, "style")))
        photos = None if contents is None else pictures.to_model(contents, px, "contents")
        watch = watch_of(config)
        memory = host.training_memory(diffae.unet, config.micro_batch or batch + 1)
        with host.trainable(diffae.net, clip.managed.net, perceptual.distance(), twin, style, photos,
                            memory=memory) as (frozen, clip_net, distance, twin, style, photos):
            tuned, _ = session.tune_style(
                frozen, clip_net, distance, twin, style, config, fingerprint=diffae.fingerprint, photos=photos,
                snapshot_path=path, save_every=save_every, resume=resume, tick=watch.step, callback=watch.iteration,
                check=host.check_cancelled, begun=watch.begin)
        shown, curve, losses = watch.outcome()
        return io.NodeOutput(ManagedStyle.of(tuned), Semantic(tuned.z.float(), tuned.model), shown, curve, losses,
                             ui=ui.PreviewImage(shown, cls=cls))


def watch_of(config: OsasisConfig) -> Watch:
    return Watch(config.iterations,
                 len(reverse_indices(stride_table(config.reverse_steps), config.t0, config.noise_level)))


class SaveStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierSaveStyle", display_name="Save Style", category="Atelier/training", is_output_node=True,
            description="Writes a style into models/osasis as one safetensors file in 16 bit, with its picture, its "
                        "code, all settings and the fingerprint of its DiffAE. Load Style finds it after a refresh of "
                        "the page (R).",
            inputs=[
                sockets.STYLE.Input("style", tooltip="The style to save."),
                schema.file_name("my_style"),
                schema.overwrite("style")],
            outputs=schema.saved_path())

    @classmethod
    def validate_inputs(cls, name):
        return schema.name_is_sound(name)

    @classmethod
    def execute(cls, style, name, overwrite):
        return save_once("osasis", name, overwrite, lambda path: is_style(path, style.style),
                         lambda path: save_style(path, style.style), "style")


def save_once(folder: str, name: str, overwrite: bool, is_same: Callable[[Path], bool],
              write: Callable[[Path], object], what: str) -> io.NodeOutput:
    """Write NAME.safetensors into a model folder; a file that is there is replaced if `overwrite`, left if it is the
    same, and an error otherwise. What a saving node gives out."""
    path = host.model_folder(folder) / f"{session.plain_name(name)}.safetensors"
    if overwrite or not path.exists():
        write(path)
    elif not is_same(path):
        raise ValueError(f"{path} is there already and is another {what}; give another name, or turn 'overwrite' on")
    return io.NodeOutput(str(path), ui=ui.PreviewText(str(path)))


def same_weights(saved: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Are these the same tensors, as 16-bit numbers?"""
    return saved.keys() == weights.keys() and all(
        torch.equal(saved[key].half(), value.half()) for key, value in weights.items())


def is_style(path: Path, style: Style) -> bool:
    """Does the file hold this very style?"""
    try:
        saved = load_style(path)
    except ValueError:
        return False
    return (saved.model, saved.settings) == (style.model, style.settings) and same_weights(saved.unet, style.unet)


NODES = [FineTuneOptions, FineTune, SaveStyle]
