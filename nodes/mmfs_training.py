"""Nodes that fine-tune MMFS to a style, from pictures (one-shot) or from words (zero-shot), and save it."""
from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from comfy_api.latest import io, ui
from torch import Tensor

from ..models.loading import load_mmfs_style, save_mmfs_style
from ..models.mmfs_style import MMFSStyle
from ..train import session
from ..train.data import to_bytes
from ..train.fewshot import MEANS, MMFS_PRESETS, PRECISIONS, FewShotConfig, Target, tune_mmfs
from ..train.guidance import STRUCTURE_NORMS
from ..train.source_faces import Samples
from . import faces, host, pictures, schema, sockets
from .sockets import MMFSTuneOptions, WPlus
from .training import LOST, OWN, same_weights, save_once
from .watch import Watch

DEFAULTS = {f.name: f.default for f in fields(FewShotConfig)}
NODE_FIELDS = ("iterations", "batch", "lr", "seed")  # set in the fine-tune nodes, whatever a preset says


def number(name: str, tooltip: str, most: float, step: float):
    return io.Float.Input(name, default=DEFAULTS[name], min=0.0, max=most, step=step, tooltip=tooltip)


def choice(name: str, options, tooltip: str):
    return io.Combo.Input(name, options=list(options), default=DEFAULTS[name], tooltip=tooltip)


class MMFSFineTuneOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSFineTuneOptions", display_name="Set MMFS Fine-Tune Options",
            category="Atelier/training",
            description="The finer settings of both MMFS fine-tunes. Every default is the official program's.",
            inputs=[
                io.Combo.Input("preset", options=[OWN, *MMFS_PRESETS], default=OWN,
                               tooltip="'as set below' takes the settings below. Any other preset replaces all of "
                                       "them: official (the released program), paper (where the paper differs), demo "
                                       "(for the demo models)."),
                number("structure", "Weight of the structure loss: parts that look alike in the photo must look alike "
                                    "in the drawing. Less lets forms change.", 100.0, 0.01),
                number("clip", "Weight of the direction loss: photo to drawing must change as CLIP's anchor to the "
                               "reference.", 100.0, 0.1),
                number("projection", "Weight of the projection loss (pictures only): the drawing's patches must be "
                                     "made of what the reference's are made of. 0 switches it off.", 10_000.0, 1.0),
                choice("structure_norm", STRUCTURE_NORMS, "mse: mean square, as in the program. frobenius: as in the "
                                                          "paper, scaled."),
                io.Int.Input("token_block", default=DEFAULTS["token_block"], min=0, max=47,
                             tooltip="The CLIP block whose patches are projected; 3 is official, and small CLIPs take "
                                     "their last one."),
                io.Boolean.Input("mapper_dropout", default=DEFAULTS["mapper_dropout"],
                                 tooltip="The style code jitters with the mapping's dropout while training (official: "
                                         "on)."),
                io.String.Input("anchor", default=DEFAULTS["anchor"],
                                tooltip="The word that stands for the faces before the change, for styles from words."),
                choice("mean", MEANS, "What stands for the faces before the change, for styles from pictures: the mean "
                                      "of the batch (official; below 4 it is that of all) or of all faces."),
                io.Int.Input("bank", default=DEFAULTS["bank"], min=0, max=4096,
                             tooltip="0: the photos as they are, or new samples in every step (official). Else so many "
                                     "faces are prepared once: samples, or the photos and random views of them."),
                number("beta1", "Adam's momentum: 0.9 in the released settings, 0.99 in the paper.", 0.9999, 0.01),
                number("beta2", "Adam's second momentum.", 0.9999, 0.001),
                number("average", "Decay of the moving average of the weights, which is the result.", 0.9999, 0.01),
                io.Int.Input("micro_batch", default=DEFAULTS["micro_batch"], min=0, max=64,
                             tooltip="Rows at a time, 0 for all. Small values fit into little memory; the result is "
                                     "the same but for rounding."),
                choice("precision", PRECISIONS, "Of the networks on a graphics card; bfloat16 is faster.")],
            outputs=[sockets.MMFS_TUNE_OPTIONS.Output("options", display_name="options",
                                                      tooltip="For the MMFS fine-tunes.")])

    @classmethod
    def execute(cls, preset, **values):
        if preset != OWN and preset not in MMFS_PRESETS:
            raise ValueError(f"preset is {preset!r}; take '{OWN}' or one of {', '.join(MMFS_PRESETS)}")
        chosen = values if preset == OWN else MMFS_PRESETS[preset]
        chosen = {name: value for name, value in chosen.items() if name not in NODE_FIELDS}
        FewShotConfig(**chosen)  # says what is wrong, before anything long starts
        return io.NodeOutput(MMFSTuneOptions(chosen))


def model_inputs() -> list:
    return [sockets.MMFS_MODEL.Input("mmfs", tooltip="The model to start from, with its CLIP mapping."),
            sockets.CLIP.Input("clip", tooltip="The CLIP of its mapping: officially OpenAI's ViT-B/32, 'demo' for the "
                                               "demo model."),
            sockets.SELF_SIMILARITY.Input("self_similarity", tooltip="Judges structure; MMFS uses DINO ViT-B/8.")]


def session_inputs() -> list:
    return [
        io.Int.Input("iterations", default=DEFAULTS["iterations"], min=1, max=100_000,
                     tooltip="200 is official; up to 500 come closer, more wear the faces down."),
        io.Int.Input("batch", default=DEFAULTS["batch"], min=1, max=64, tooltip="Faces an iteration; 8 is official."),
        io.Float.Input("lr", default=DEFAULTS["lr"], min=0.0, max=0.1, step=1e-5, round=1e-9,
                       tooltip="Learning rate of the decoder; 0.0002 is official, small models want more."),
        schema.seed("Of the faces' order, noise and dropout.", roll=False),
        *schema.snapshots("my_style", 25, 10_000, LOST),
        faces.folder_input("folder", "Faces to learn on, at least 64 are good."),
        sockets.MMFS_TUNE_OPTIONS.Input("options", optional=True, tooltip="Finer settings; without, the official "
                                                                          "ones."),
        schema.image("photos", "Faces to learn on, upright; taken together with the folder's. Fewer than 64: set bank "
                               "in the options.", optional=True),
        sockets.STYLEGAN2.Input("stylegan2", optional=True, tooltip="Draws the faces to learn on, instead of photos."),
        sockets.WPLUS.Input("styles", optional=True,
                            tooltip="One style to start from, instead of what the CLIP mapping gives. A model without "
                                    "a mapping needs it.")]


def session_outputs() -> list:
    return [
        sockets.MMFS_STYLE.Output("tuned_style", display_name="style", tooltip="The style, for Stylize with MMFS and "
                                                                               "Save MMFS Style."),
        sockets.WPLUS.Output("style_code", display_name="style code", tooltip="The code it was fine-tuned with."),
        io.Image.Output("predictions", display_name="predictions", tooltip="The last iteration's drawings."),
        io.Image.Output("loss_curve", display_name="loss curve", tooltip="The loss over the iterations, drawn."),
        sockets.LOSS_MAP.Output("losses", display_name="losses", tooltip="For core's Plot Loss Graph.")]


class MMFSFineTune(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        first, clip, structure = model_inputs()
        return io.Schema(
            node_id="AtelierMMFSFineTune", display_name="Fine-Tune MMFS to Pictures", category="Atelier/training",
            description="Learns the style of one picture, or of several together (one-shot): a decoder of its own for "
                        "MMFS. The models that come in are not changed. Can be cancelled at any step, and goes on from "
                        "its last save when it is run again.",
            inputs=[first, clip, structure,
                    schema.image("references", "The style pictures, one or several; of wide or tall ones CLIP sees the "
                                               "middle square."),
                    *session_inputs()],
            outputs=session_outputs())

    @classmethod
    def validate_inputs(cls, name):
        return schema.name_is_sound(name)

    @classmethod
    def fingerprint_inputs(cls, folder=host.NO_FOLDER, **others):
        return host.folder_token(folder)

    @classmethod
    def execute(cls, mmfs, clip, self_similarity, references, **settings):
        shown = to_bytes(pictures.checked(references, "references") * 2 - 1)
        return tuned(cls, mmfs, clip, self_similarity, Target(pictures=list(shown)), **settings)


class MMFSFineTuneText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSFineTuneText", display_name="Fine-Tune MMFS to Text", category="Atelier/training",
            description="Learns a style from words alone (zero-shot): a decoder of its own for MMFS. The models that "
                        "come in are not changed. Can be cancelled at any step, and goes on from its last save when it "
                        "is run again.",
            inputs=[*model_inputs(),
                    io.String.Input("prompt", default="watercolor painting", multiline=True,
                                    tooltip="The style in a few words. The demo CLIP knows only a few; it says which."),
                    *session_inputs()],
            outputs=session_outputs())

    @classmethod
    def validate_inputs(cls, name, prompt):
        if prompt is not None and not prompt.strip():
            return "the prompt is empty; describe the style in a few words, such as 'watercolor painting'"
        return schema.name_is_sound(name)

    @classmethod
    def fingerprint_inputs(cls, folder=host.NO_FOLDER, **others):
        return host.folder_token(folder)

    @classmethod
    def execute(cls, mmfs, clip, self_similarity, prompt, **settings):
        return tuned(cls, mmfs, clip, self_similarity, Target(prompt=prompt), **settings)


def tuned(node: type[io.ComfyNode], mmfs: sockets.Stylizer, clip: sockets.Network,
          self_similarity: sockets.SelfSimilarity, target: Target, iterations: int, batch: int, lr: float, seed: int,
          name: str, save_every: int, resume: bool, folder: str, options: MMFSTuneOptions | None = None,
          photos: Tensor | None = None, stylegan2: sockets.Faces | None = None,
          styles: WPlus | None = None) -> io.NodeOutput:
    """What both fine-tunes do."""
    config = FewShotConfig(iterations=iterations, batch=batch, lr=lr, seed=seed, **(options.fields if options else {}))
    path = session.snapshot_file(host.snapshot_folder(), name)
    target.check(clip.managed.net, config.anchor)
    w = start_code(mmfs, styles)
    shown = source_photos(mmfs, photos, folder, stylegan2)
    watch = Watch(config.iterations)
    memory = host.tuning_memory(mmfs.net.config, config.micro_batch or batch)
    with host.trainable(mmfs.net, clip.managed.net, self_similarity.net, stylegan2 and stylegan2.net, shown, w,
                        *target.pictures, memory=memory) as (net, judge, structure, generator, shown, w, *references):
        style, _ = tune_mmfs(
            net, judge, structure, Target(target.prompt, references, w), Samples(generator) if shown is None else shown,
            config, fingerprint=mmfs.fingerprint, snapshot_path=path, save_every=save_every, resume=resume,
            tick=watch.step, callback=watch.iteration, check=host.check_cancelled, begun=watch.begin)
    shown, curve, losses = watch.outcome()
    code = WPlus(style.w.float(), style.model, target.prompt or "reference")
    return io.NodeOutput(style, code, shown, curve, losses, ui=ui.PreviewImage(shown, cls=node))


def start_code(mmfs: sockets.Stylizer, styles: WPlus | None) -> Tensor | None:
    """The style code to fine-tune with (1, n, S); None for the CLIP mapping's. ValueError for any that cannot be."""
    if styles is None:
        if mmfs.net.mapper is None:
            raise ValueError("this MMFS model has no CLIP mapping (it is of phase 1 or 2): connect a style (Random "
                             "MMFS Style), or load phase3_pretrain_10000.pth")
        return None
    sockets.same_model("the style", styles.fingerprint, mmfs.fingerprint, "MMFS")
    if len(styles.w) != 1:
        raise ValueError(f"styles: one style is needed to start from, not {len(styles.w)}; set count to 1")
    return styles.w


def source_photos(mmfs: sockets.Stylizer, photos: Tensor | None, folder: str,
                  stylegan2: sockets.Faces | None) -> Tensor | None:
    """uint8 (N, 3, px, px); None if a StyleGAN2 draws the faces. ValueError for no source and for two."""
    found = faces.gathered(photos, folder, mmfs.net.config.resolution, "photos")
    if found is None and stylegan2 is None:
        raise ValueError("there are no faces to learn on: connect photos, pick a folder, or connect a StyleGAN2 that "
                         "draws some")
    if found is not None and stylegan2 is not None:
        raise ValueError("faces come from photos or a folder, and from a StyleGAN2: give only one of them")
    return found


class SaveMMFSStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierSaveMMFSStyle", display_name="Save MMFS Style", category="Atelier/training",
            is_output_node=True,
            description="Writes a style into models/mmfs_styles as one safetensors file in 16 bit: its decoder, its "
                        "code, the reference picture, all settings and the fingerprint of its MMFS. Load MMFS Style "
                        "finds it after a refresh of the page (R).",
            inputs=[
                sockets.MMFS_STYLE.Input("style", tooltip="The style to save."),
                schema.file_name("my_style"),
                schema.overwrite("style")],
            outputs=schema.saved_path())

    @classmethod
    def validate_inputs(cls, name):
        return schema.name_is_sound(name)

    @classmethod
    def execute(cls, style, name, overwrite):
        return save_once("mmfs_styles", name, overwrite, lambda path: is_style(path, style),
                         lambda path: save_mmfs_style(path, style), "style")


def is_style(path: Path, style: MMFSStyle) -> bool:
    """Does the file hold this very style?"""
    try:
        saved = load_mmfs_style(path)
    except ValueError:
        return False
    about = (saved.model, saved.settings, saved.prompt)
    return about == (style.model, style.settings, style.prompt) and same_weights(saved.decoder, style.decoder)


NODES = [MMFSFineTuneOptions, MMFSFineTune, MMFSFineTuneText, SaveMMFSStyle]
