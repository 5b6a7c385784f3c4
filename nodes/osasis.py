"""Nodes of OSASIS at sampling time: encode, mix, stylize, decode, and random faces."""
from __future__ import annotations

from collections.abc import Callable

import torch
from comfy_api.latest import io
from torch import Generator, Tensor

from ..models import osasis
from ..models.diffusion import stride_table
from . import host, pictures, schema, sockets
from .host import Steps
from .sockets import Mix, Semantic, Structure

CHUNK = 8  # pictures at a time where the user has no say


def chunks(count: int, size: int = CHUNK) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def progress_hook(progress: Steps) -> Callable[[int, Tensor, Tensor], None]:
    """A sampler's hook that shows where the pictures stand."""
    return lambda i, x0, x: progress(lambda: pictures.strip(x0))


class FitPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierFitPicture", display_name="Fit Picture", category="Atelier/pictures",
            description="Makes a picture of any shape square, at the size of the model. Faces should be upright and "
                        "fill most of the square, as in the model's training pictures.",
            inputs=[
                schema.image("image", "The pictures to fit, of any shape; RGBA is laid on white."),
                io.Int.Input("size", default=256, min=16, max=2048, step=16,
                             tooltip="Side in px. 256 for the public face models, 128 for the demo model."),
                io.Combo.Input("mode", options=list(pictures.FIT_MODES), default="crop",
                               tooltip="crop: the middle square. pad: everything, with white borders. squash: "
                                       "everything, stretched, as the official OSASIS program does.")],
            outputs=[io.Image.Output("fitted", display_name="image", tooltip="Square pictures of the given size.")])

    @classmethod
    def execute(cls, image, size, mode):
        return io.NodeOutput(pictures.fit(image, size, mode))


class SemanticEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierSemanticEncode", display_name="Encode Semantics", category="Atelier/osasis",
            description="Reads what a picture shows (who, which look, which style) as a vector: the semantic code z.",
            inputs=[sockets.DIFFAE.Input("diffae", tooltip="The Diffusion Autoencoder."),
                    schema.image("image", "The pictures to read; other shapes are squashed to the model's square.")],
            outputs=[sockets.SEMANTIC.Output("semantic", display_name="semantic", tooltip="One code for each "
                                                                                          "picture.")])

    @classmethod
    def execute(cls, diffae, image):
        x = pictures.to_model(image, diffae.net.image_size)
        return io.NodeOutput(Semantic(encode(diffae, x), diffae.fingerprint))


def encode(diffae: sockets.Autoencoder, x: Tensor) -> Tensor:
    """z (B, E) of pictures (B, 3, px, px), in float32 as in the official program."""
    progress = Steps(len(chunks(len(x))))
    codes = []
    with host.running(diffae.managed, memory=host.sampling_memory(diffae.unet, min(CHUNK, len(x)))) as device:
        for rows in chunks(len(x)):
            codes.append(diffae.net.encode(x[rows].to(device)).float().cpu())
            progress()
    return torch.cat(codes)


class StructuralEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierStructuralEncode", display_name="Encode Structure", category="Atelier/osasis",
            description="Turns a picture into its structural code: the forward diffusion without chance, up to a "
                        "strength. The code keeps where things are; decoding it again gives the picture back.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="The Diffusion Autoencoder."),
                schema.image("image", "The pictures to encode; other shapes are squashed to the model's square."),
                schema.steps(100, "Steps of the whole schedule; of these, strength x steps are taken. 100 is "
                                  "official."),
                io.Float.Input("strength", default=0.5, min=0.05, max=1.0, step=0.05,
                               tooltip="How far the picture is taken apart (t0). 0.5 is official; more lets the style "
                                       "change more, less keeps more of the picture."),
                sockets.SEMANTIC.Input("semantic", optional=True,
                                       tooltip="The pictures' semantic codes, if they are at hand; else they are read "
                                               "here.")],
            outputs=[sockets.STRUCTURE.Output("structure", display_name="structure",
                                              tooltip="The structural code, with the picture it came from.")])

    @classmethod
    def validate_inputs(cls, steps):
        return schema.steps_are_sound(steps)

    @classmethod
    def execute(cls, diffae, image, steps, strength, semantic=None):
        schema.require(schema.steps_are_sound(steps))
        count = stride_table(steps).index_of(strength)
        if not count:
            raise ValueError(f"strength {strength} leaves no step of {steps}; raise one of them")
        x = pictures.to_model(image, diffae.net.image_size)
        if semantic is not None:
            sockets.same_model("the semantic code", semantic.fingerprint, diffae.fingerprint)
        z = encode(diffae, x) if semantic is None else sockets.batch_of(semantic.z, len(x), "the semantic code")
        progress, parts = Steps(count * len(chunks(len(x)))), []
        memory = host.sampling_memory(diffae.unet, min(CHUNK, len(x)))
        with host.running(diffae.managed, memory=memory) as device, host.half(device):
            for rows in chunks(len(x)):
                code = diffae.net.structural_code(x[rows].to(device), z[rows].to(device), steps, strength,
                                                  progress_hook(progress))
                parts.append(code.float().cpu())
        return io.NodeOutput(Structure(torch.cat(parts), x, strength, steps, diffae.unet, diffae.fingerprint))


class MixCodes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMixCodes", display_name="Mix Codes", category="Atelier/osasis",
            description="Says which levels of the network follow the style picture's code and which the photo's. Fine "
                        "levels decide colour and texture, coarse ones who is seen and how.",
            inputs=[
                sockets.SEMANTIC.Input("content", tooltip="The code of the photo: one for each photo, or one for all."),
                sockets.SEMANTIC.Input("style", tooltip="The code of the style picture: one, or one for each photo."),
                io.Int.Input("change_point", default=32, min=1, max=512,
                             tooltip="Levels of at least this many px take the style's code, coarser ones and the "
                                     "middle the photo's. 32 is official; more keeps more of the photo, less gives "
                                     "more style."),
                io.Boolean.Input("swap", default=False,
                                 tooltip="Exchange the two: fine levels take the photo's code, coarse ones the "
                                         "style's."),
                io.String.Input("levels", default="",
                                tooltip="Sets single levels, over change_point: 'side in px:weight of the style', "
                                        "such as '128:1, 64:0.5, middle:0'. Empty for none.")],
            outputs=[sockets.MIX.Output("mix", display_name="mix", tooltip="The mixed codes, for Stylize.")])

    @classmethod
    def validate_inputs(cls, levels):
        try:
            sockets.parse_levels(levels or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, content, style, change_point, swap, levels):
        sockets.same_model("the style code", style.fingerprint, content.fingerprint)
        return io.NodeOutput(Mix(content, style, change_point, swap, sockets.parse_levels(levels)))


class Stylize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierStylize", display_name="Stylize", category="Atelier/osasis",
            description="Draws the photos in the style: decodes their structural codes with the fine-tuned network "
                        "and the mixed codes, helped by the structure-preserving network (SPN).",
            inputs=[
                sockets.STYLE.Input("style", tooltip="A fine-tuned or loaded style."),
                sockets.STRUCTURE.Input("structure", tooltip="The photos' structural codes, from the style's own "
                                                             "DiffAE."),
                sockets.MIX.Input("mix", tooltip="The photos' and the style picture's codes."),
                schema.steps(50, "Steps of the whole schedule; of these, the structure's strength x steps are taken. "
                                 "50 is official, 20 is faster."),
                io.Boolean.Input("use_spn", default=True,
                                 tooltip="Help the structure with the style's SPN. Off shows what it does."),
                io.Float.Input("spn_weight", default=0.1, min=0.0, max=2.0, step=0.01,
                               tooltip="How much of the SPN is added at each step. 0.1 is official; 0 is the same as "
                                       "off."),
                schema.advanced(io.Int.Input("batch", default=8, min=1, max=64,
                                             tooltip="Pictures at a time: more is faster and takes more memory.")),
                schema.advanced(io.Combo.Input(
                    "spn_time", options=list(osasis.SPN_TIMES), default="index",
                    tooltip="What time the SPN is told: the sampler's index (official, needed for official styles) or "
                            "the timestep. Take what the style was fine-tuned with.")),
                schema.advanced(io.Combo.Input(
                    "noise_level", options=list(osasis.NOISE_LEVELS), default="official",
                    tooltip="official: decoding starts one step cleaner than encoding ended, as the program does. "
                            "matched: where encoding ended."))],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The stylized photos, one for each.")])

    @classmethod
    def validate_inputs(cls, steps):
        return schema.steps_are_sound(steps)

    @classmethod
    def execute(cls, style, structure, mix, steps, use_spn, spn_weight, batch, spn_time, noise_level):
        schema.require(schema.steps_are_sound(steps))
        osasis.check_style(style.style, structure.config, structure.fingerprint)
        for what, code in (("the content code", mix.content), ("the style code", mix.style)):
            sockets.same_model(what, code.fingerprint, structure.fingerprint)
        codes = mix.codes(structure)
        indices = osasis.reverse_indices(stride_table(steps), structure.strength, noise_level)
        if not indices:
            raise ValueError(f"strength {structure.strength} leaves no step of {steps}; raise one of them")
        nets = style.managed.net
        spn = nets["spn"] if use_spn and "spn" in nets else None
        if use_spn and spn is None:
            host.say("this style has no SPN: stylized without")
        parts, rows = [], chunks(len(structure.x), batch)
        progress = Steps(len(rows) * len(indices))
        memory = host.sampling_memory(structure.config, min(batch, len(structure.x)))
        with host.running(style.managed, memory=memory) as device, host.half(device):
            for r in rows:
                x = osasis.stylize(
                    nets["unet"], structure.x[r].to(device), [c[r].to(device) for c in codes], steps=steps,
                    t0=structure.strength, spn=spn, picture=structure.picture[r].to(device), spn_weight=spn_weight,
                    spn_time=spn_time, noise_level=noise_level, hook=progress_hook(progress))
                parts.append(pictures.to_image(x))
        return io.NodeOutput(torch.cat(parts))


class Decode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierDecode", display_name="Decode", category="Atelier/osasis",
            description="Puts a picture together again from its two codes with the DiffAE itself. With the picture's "
                        "own code it shows what the model can keep; with another code it edits.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="The DiffAE that made the codes."),
                sockets.STRUCTURE.Input("structure", tooltip="The structural codes."),
                sockets.SEMANTIC.Input("semantic", tooltip="The semantic codes: one for each picture, or one for all."),
                schema.steps(50, "Steps of the whole schedule; of these, the structure's strength x steps are taken.")],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The decoded pictures.")])

    @classmethod
    def validate_inputs(cls, steps):
        return schema.steps_are_sound(steps)

    @classmethod
    def execute(cls, diffae, structure, semantic, steps):
        schema.require(schema.steps_are_sound(steps))
        sockets.same_model("the structural code", structure.fingerprint, diffae.fingerprint)
        sockets.same_model("the semantic code", semantic.fingerprint, diffae.fingerprint)
        z = sockets.batch_of(semantic.z, len(structure.x), "the semantic code")
        return io.NodeOutput(decode(diffae, structure.x, z, steps, structure.strength))


def decode(diffae: sockets.Autoencoder, x: Tensor, z: Tensor, steps: int, strength: float) -> Tensor:
    """Codes -> IMAGE, in chunks."""
    count = stride_table(steps).index_of(strength)
    if not count:
        raise ValueError(f"strength {strength} leaves no step of {steps}; raise one of them")
    progress, parts = Steps(count * len(chunks(len(x)))), []
    memory = host.sampling_memory(diffae.unet, min(CHUNK, len(x)))
    with host.running(diffae.managed, memory=memory) as device, host.half(device):
        for rows in chunks(len(x)):
            drawn = diffae.net.decode(x[rows].to(device), z[rows].to(device), steps, strength, progress_hook(progress))
            parts.append(pictures.to_image(drawn))
    return torch.cat(parts)


class SamplePrior(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierSamplePrior", display_name="Draw Random Faces", category="Atelier/osasis",
            description="Draws pictures from the DiffAE's own prior: a random semantic code and random noise, "
                        "decoded. It shows what the model knows, and what fine-tuning takes as content.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="A DiffAE with its latent DPM."),
                io.Int.Input("count", default=4, min=1, max=64, tooltip="How many pictures."),
                schema.seed("Which pictures; the same seed draws the same ones again.", roll=True),
                schema.steps(20, "Steps of decoding. 20 is official in fine-tuning."),
                schema.advanced(schema.steps(200, "Steps of drawing the semantic code. 200 is "
                                                  "official.", "latent_steps"))],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The drawn pictures."),
                     sockets.SEMANTIC.Output("semantic", display_name="semantic", tooltip="Their semantic codes.")])

    @classmethod
    def validate_inputs(cls, steps, latent_steps):
        return schema.steps_are_sound(steps, latent_steps)

    @classmethod
    def execute(cls, diffae, count, seed, steps, latent_steps):
        schema.require(schema.steps_are_sound(steps, latent_steps))
        generator = Generator().manual_seed(seed)
        px = diffae.net.image_size
        noise = torch.randn(count, 3, px, px, generator=generator)
        latent_noise = torch.randn(count, diffae.unet.cond, generator=generator)
        with host.running(diffae.managed) as device:
            z = diffae.net.sample_z(latent_noise.to(device), latent_steps).float().cpu()
        return io.NodeOutput(decode(diffae, noise, z, steps, 1.0), Semantic(z, diffae.fingerprint))


NODES = [FitPicture, SemanticEncode, StructuralEncode, MixCodes, Stylize, Decode, SamplePrior]
