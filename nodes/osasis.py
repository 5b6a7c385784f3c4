"""Nodes of OSASIS at sampling time: encode, mix, stylize, decode, and random faces."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from comfy_api.latest import io
from torch import Tensor

from ..models import osasis, rng
from ..models.diffae import DiffAE
from ..models.diffusion import StepHook, ddim_schedule
from ..models.osasis import SamplingSettings, sampling_memory
from ..models.precision import AUTO
from ..models.style import check_osasis_style
from . import host, images, inputs, sockets
from .base import AtelierNode
from .host import NodeProgress
from .inputs import FROM_STYLE, UNSET
from .sockets import DiffAEModel, LoadedStyle, MixedCodes, SemanticCode, StructuralCode

CHUNK = 8  # pictures at a time where the user has no say
T0 = SamplingSettings().t0


def chunks(count: int, size: int = CHUNK) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def progress_hook(progress: NodeProgress) -> StepHook:
    """A sampler's hook that shows where the pictures stand."""
    return lambda i, x0, x: progress(lambda: images.side_by_side(x0))


def ddim_steps(steps: int, t0: float) -> int:
    """How many steps a chain takes. ValueError if there is none."""
    count = ddim_schedule(steps).num_steps(t0)
    if not count:
        raise ValueError(f"t0 x steps < 1 (t0 {t0:g}, {steps} steps); increase t0 or steps")
    return count


class FitPicture(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierFitPicture", display_name="Fit Picture", category="Atelier/pictures",
            description="Makes a picture of any shape square, at the size of the model. The face should be upright and "
                        "fill most of the square, as in the model's training pictures.",
            inputs=[
                inputs.image("image", "The pictures, of any shape. RGBA is laid on white."),
                io.Int.Input("size", default=256, min=16, max=2048, step=16,
                             tooltip="Side in px. 256 for the public face models, 128 for the demo model."),
                inputs.choice("mode", images.FIT_MODES, "crop",
                              "crop: the middle square. pad: the whole picture, with white borders. squash: the whole "
                              "picture, stretched, as the official OSASIS program does."),
                io.Mask.Input("mask", optional=True,
                              tooltip="Transparent parts, from the same Load Image. They are laid on white.")],
            outputs=[io.Image.Output("fitted", display_name="image", tooltip="Square pictures of the given size.")])

    @classmethod
    def execute(cls, image: Tensor, size: int, mode: str, mask: Tensor | None = None) -> io.NodeOutput:
        if mask is not None and is_empty_mask(mask):
            mask = None
        return io.NodeOutput(images.fit(image if mask is None else images.on_white(image, mask), size, mode))


def is_empty_mask(mask: Tensor) -> bool:
    """Load Image gives a mask of 64 x 64 zeros for pictures without alpha."""
    return not mask.any()


class SemanticEncode(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSemanticEncode", display_name="Encode Semantics", category="Atelier/osasis",
            description="Encodes what a picture shows (identity, appearance, style) as a vector: the semantic code z.",
            inputs=[sockets.DIFFAE.Input("diffae", tooltip="The Diffusion Autoencoder."),
                    inputs.image("image", "The pictures. Other shapes are squashed to the model's square.")],
            outputs=[sockets.SEMANTIC_CODE.Output("semantic", display_name="semantic",
                                                  tooltip="The semantic codes, one for each picture.")])

    @classmethod
    def execute(cls, diffae: DiffAEModel, image: Tensor) -> io.NodeOutput:
        x = images.to_model(image, diffae.net.image_size)
        return io.NodeOutput(SemanticCode(encode(diffae, x), diffae.fingerprint))


def encode(diffae: DiffAEModel, x: Tensor) -> Tensor:
    """z (B, E) of pictures (B, 3, px, px), in float32 as in the official program; computed once."""
    return diffae.codes.get({"picture": x}, ("z",), lambda: _encode(diffae, x))


def _encode(diffae: DiffAEModel, x: Tensor) -> Tensor:
    progress, codes = NodeProgress(len(chunks(len(x)))), []
    memory = sampling_memory(diffae.unet, min(CHUNK, len(x)))
    with host.sampling(diffae.patched, memory=memory) as (device, net):
        for rows in chunks(len(x)):
            codes.append(net.encode(x[rows].to(device)).float().cpu())
            progress()
    return torch.cat(codes)


class StructuralEncode(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierStructuralEncode", display_name="Encode Structure", category="Atelier/osasis",
            description="Encodes a picture as its structural code: deterministic forward diffusion (DDIM) up to t0. "
                        "The code keeps where things are. Decoding it gives the picture back.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="The Diffusion Autoencoder."),
                inputs.image("image", "The pictures. Other shapes are squashed to the model's square."),
                inputs.steps(100, "Steps of the whole schedule. Of these, t0 x steps are run. 100 is official."),
                io.Float.Input("t0", display_name="strength (t0)", default=UNSET, min=UNSET, max=1.0, step=0.05,
                               tooltip="Noise level up to which the picture is encoded, 0.05 to 1. Higher: more "
                                       "style. Lower: more of the picture. -1: from the connected style; "
                                       f"without one {T0:g}, which is official."),
                sockets.SEMANTIC_CODE.Input("semantic", optional=True,
                                            tooltip="The pictures' semantic codes. Not connected: they are encoded "
                                                    "here."),
                sockets.OSASIS_STYLE.Input("style", optional=True,
                                           tooltip="The style that the code will be decoded with. It supplies t0 and "
                                                   "the solver."),
                inputs.solver(FROM_STYLE, "'from style' without one: ddim.")],
            outputs=[sockets.STRUCTURAL_CODE.Output("structure", display_name="structure",
                                                    tooltip="The structural codes, with the pictures.")])

    @classmethod
    def validate_inputs(cls, steps: int | None = None) -> bool | str:
        return inputs.valid_steps(steps)

    @classmethod
    def execute(cls, diffae: DiffAEModel, image: Tensor, steps: int, t0: float, semantic: SemanticCode | None = None,
                style: LoadedStyle | None = None, solver: str = FROM_STYLE) -> io.NodeOutput:
        inputs.require(inputs.valid_steps(steps))
        if solver == FROM_STYLE:
            solver = style.settings.solver if style else SamplingSettings().solver
        if t0 == UNSET:
            t0 = style.settings.t0 if style else T0
        elif t0 < 0.05:
            raise ValueError(f"t0 is {t0:g}; take 0.05 to 1, or -1 for the style's")
        ddim_steps(steps, t0)
        x = images.to_model(image, diffae.net.image_size)
        if semantic is not None:
            sockets.same_model("the semantic code", semantic.fingerprint, diffae.fingerprint)
        z = encode(diffae, x) if semantic is None else sockets.batch_of(semantic.z, len(x), "the semantic code")
        code = structural_code(diffae, x, z, steps, t0, solver)
        return io.NodeOutput(StructuralCode(code, x, t0, steps, diffae.unet, diffae.fingerprint))


def structural_code(diffae: DiffAEModel, x: Tensor, z: Tensor, steps: int, t0: float, solver: str,
                    precision: str = AUTO) -> Tensor:
    """x_t0 (B, 3, px, px) of pictures (B, 3, px, px) with codes z (B, E); computed once."""
    return diffae.codes.get({"picture": x, "z": z}, ("x_t0", steps, t0, solver, precision),
                            lambda: _structural_code(diffae, x, z, steps, t0, solver, precision))


def _structural_code(diffae: DiffAEModel, x: Tensor, z: Tensor, steps: int, t0: float, solver: str,
                     precision: str) -> Tensor:
    def encoded(net: DiffAE, x: Tensor, z: Tensor, hook: StepHook) -> Tensor:
        return net.structural_code(x, z, steps, t0, hook, solver).float().cpu()
    return in_chunks(diffae, x, z, ddim_steps(steps, t0), precision, encoded)


def in_chunks(diffae: DiffAEModel, x: Tensor, z: Tensor, calls: int, precision: str,
              work: Callable[[DiffAE, Tensor, Tensor, StepHook], Tensor]) -> Tensor:
    """What `work(net, x, z, hook)` makes of x and z (B, ..), a chunk of rows at a time on the computing device. calls:
    of the network, for a chunk."""
    progress, parts = NodeProgress(calls * len(chunks(len(x)))), []
    memory = sampling_memory(diffae.unet, min(CHUNK, len(x)))
    with host.sampling(diffae.patched, precision, memory) as (device, net):
        for rows in chunks(len(x)):
            parts.append(work(net, x[rows].to(device), z[rows].to(device), progress_hook(progress)))
    return torch.cat(parts)


class MixCodes(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMixCodes", display_name="Mix Codes", category="Atelier/osasis",
            description="Chooses which levels of the network take the style image's semantic code and which the "
                        "photo's. Fine levels decide colour and texture, coarse levels decide identity.",
            inputs=[
                sockets.SEMANTIC_CODE.Input("z_content", tooltip="The photos' semantic codes: one for each photo, or "
                                                                 "one for all."),
                sockets.SEMANTIC_CODE.Input("z_style", tooltip="The style image's semantic code: one, or one for each "
                                                               "photo."),
                io.Int.Input("change_point", default=32, min=1, max=512,
                             tooltip="Levels of at least this many px take the style's code, coarser ones and the "
                                     "middle the photo's. 32 is official. More keeps more of the photo, less gives "
                                     "more style."),
                io.Boolean.Input("swap", default=False,
                                 tooltip="Exchange the two: fine levels take the photo's code, coarse ones the "
                                         "style's."),
                io.String.Input("levels", default="",
                                tooltip="Overrides single levels: 'side in px:weight of the style', such as "
                                        "'128:1, 64:0.5, middle:0'. Empty for none.")],
            outputs=[sockets.MIXED_CODES.Output("mix", display_name="mix", tooltip="The mixed codes, for Stylize with "
                                                                                   "OSASIS.")])

    @classmethod
    def validate_inputs(cls, levels: str | None = None) -> bool | str:
        try:
            inputs.parse_levels(levels or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, z_content: SemanticCode, z_style: SemanticCode, change_point: int, swap: bool,
                levels: str) -> io.NodeOutput:
        sockets.same_model("the style code", z_style.fingerprint, z_content.fingerprint)
        return io.NodeOutput(MixedCodes(z_content, z_style, change_point, swap, inputs.parse_levels(levels)))


class StylizeOSASIS(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierOSASISStylize", display_name="Stylize with OSASIS", category="Atelier/osasis",
            description="Stylizes photos: decodes their structural codes with the fine-tuned network and the mixed "
                        "codes, helped by the structure-preserving network (SPN). What the style was fine-tuned with "
                        "is taken from the style.",
            inputs=[
                sockets.OSASIS_STYLE.Input("style", tooltip="A fine-tuned or loaded style."),
                sockets.STRUCTURAL_CODE.Input("structure", tooltip="The photos' structural codes, from the style's own "
                                                                   "DiffAE."),
                sockets.MIXED_CODES.Input("mix", tooltip="The mixed semantic codes of photos and style image."),
                inputs.steps(50, "Steps of the whole schedule. Of these, t0 x steps are run, and one more with solver "
                                 "ddim and noise_level matched. 50 is official, 20 is faster."),
                io.Boolean.Input("use_spn", default=True,
                                 tooltip="Use the style's SPN. Off: without the SPN, to see its effect."),
                io.Float.Input("spn_weight", default=UNSET, min=UNSET, max=2.0, step=0.01,
                               tooltip="How much of the SPN is added at each step. 0 is the same as off. -1: from the "
                                       "style; official styles have 0.1."),
                inputs.batch("Pictures at a time."),
                inputs.advanced(inputs.choice(
                    "spn_time", (FROM_STYLE, *osasis.SPN_TIMES), FROM_STYLE,
                    "Time that is fed to the SPN. index: the sampler's index, as in the official program. timestep: "
                    "the diffusion time.")),
                inputs.advanced(inputs.choice(
                    "noise_level", (FROM_STYLE, *osasis.NOISE_LEVELS), FROM_STYLE,
                    "Where decoding starts. official: one step cleaner than encoding ended, as in the official "
                    "program. matched: where encoding ended.")),
                inputs.precision(),
                inputs.solver(FROM_STYLE)],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The stylized photos, one for each.")])

    @classmethod
    def validate_inputs(cls, steps: int | None = None) -> bool | str:
        return inputs.valid_steps(steps)

    @classmethod
    def execute(cls, style: LoadedStyle, structure: StructuralCode, mix: MixedCodes, steps: int, use_spn: bool,
                spn_weight: float, batch: int, spn_time: str, noise_level: str,
                precision: str = AUTO, solver: str = FROM_STYLE) -> io.NodeOutput:
        check_stylizing(style, structure, mix, steps)
        settings = chosen_settings(style, structure, spn_weight, spn_time, noise_level)
        if solver != FROM_STYLE:
            settings = replace(settings, solver=solver)
        if use_spn and style.spn is None:
            host.show_text("this style has no SPN: stylized without it")
        return io.NodeOutput(stylized(style, structure, mix, steps, settings, use_spn, batch, precision))


def check_stylizing(style: LoadedStyle, structure: StructuralCode, mix: MixedCodes, steps: int) -> None:
    """ValueError for steps that do not fit, and for a style and codes of several DiffAEs."""
    inputs.require(inputs.valid_steps(steps))
    check_osasis_style(style.style, structure.config, structure.fingerprint)
    for what, code in (("the content code", mix.content), ("the style code", mix.style)):
        sockets.same_model(what, code.fingerprint, structure.fingerprint)
    ddim_steps(steps, structure.t0)


def stylized(style: LoadedStyle, structure: StructuralCode, mix: MixedCodes, steps: int, settings: SamplingSettings,
             use_spn: bool = True, batch: int = CHUNK, precision: str = AUTO) -> Tensor:
    """IMAGE of the photos in the style, `batch` at a time."""
    _, indices = osasis.reverse_chain(steps, settings)
    codes, rows = mix.codes(structure), chunks(len(structure.x), batch)
    progress, parts = NodeProgress(len(rows) * len(indices)), []
    memory = sampling_memory(structure.config, min(batch, len(structure.x)))
    with host.sampling(style.patched, precision, memory) as (device, nets):
        spn = nets["spn"] if use_spn and style.spn else None
        for r in rows:
            x = osasis.stylize(nets["unet"], structure.x[r].to(device), [c[r].to(device) for c in codes],
                               steps=steps, settings=settings, spn=spn, picture=structure.picture[r].to(device),
                               hook=progress_hook(progress))
            parts.append(images.to_image(x))
    return torch.cat(parts)


def chosen_settings(style: LoadedStyle, structure: StructuralCode, spn_weight: float, spn_time: str,
                    noise_level: str) -> SamplingSettings:
    """The style's settings, with what the user sets instead; t0 is the structural code's. Says if it is not the
    style's. ValueError for a weight between -1 and 0."""
    own = style.settings
    if UNSET < spn_weight < 0:
        raise ValueError(f"spn_weight is {spn_weight:g}; take 0 to 2, or -1 for the style's")
    if structure.t0 != own.t0:
        host.show_text(f"the structural code was made with t0 {structure.t0:g}, the style was fine-tuned with "
                       f"{own.t0:g}")
    return replace(own, t0=structure.t0, spn_weight=own.spn_weight if spn_weight == UNSET else spn_weight,
                   spn_time=own.spn_time if spn_time == FROM_STYLE else spn_time,
                   noise_level=own.noise_level if noise_level == FROM_STYLE else noise_level)


class Decode(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierDecode", display_name="Decode", category="Atelier/osasis",
            description="Decodes a structural and a semantic code to a picture with the DiffAE itself. With the "
                        "picture's own code it reconstructs, with another code it edits.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="The DiffAE that made the codes."),
                sockets.STRUCTURAL_CODE.Input("structure", tooltip="The structural codes."),
                sockets.SEMANTIC_CODE.Input("semantic", tooltip="The semantic codes: one for each picture, or one for "
                                                                "all."),
                inputs.steps(50, "Steps of the whole schedule. Of these, t0 x steps are run."),
                inputs.precision(),
                inputs.solver(SamplingSettings().solver)],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The decoded pictures.")])

    @classmethod
    def validate_inputs(cls, steps: int | None = None) -> bool | str:
        return inputs.valid_steps(steps)

    @classmethod
    def execute(cls, diffae: DiffAEModel, structure: StructuralCode, semantic: SemanticCode, steps: int,
                precision: str = AUTO, solver: str = SamplingSettings().solver) -> io.NodeOutput:
        inputs.require(inputs.valid_steps(steps))
        sockets.same_model("the structural code", structure.fingerprint, diffae.fingerprint)
        sockets.same_model("the semantic code", semantic.fingerprint, diffae.fingerprint)
        z = sockets.batch_of(semantic.z, len(structure.x), "the semantic code")
        return io.NodeOutput(decode(diffae, structure.x, z, steps, structure.t0, precision, solver))


def decode(diffae: DiffAEModel, x: Tensor, z: Tensor, steps: int, t0: float, precision: str = AUTO,
           solver: str = SamplingSettings().solver) -> Tensor:
    """Codes -> IMAGE, in chunks."""
    def decoded(net: DiffAE, x: Tensor, z: Tensor, hook: StepHook) -> Tensor:
        return images.to_image(net.decode(x, z, steps, t0, hook, solver))
    return in_chunks(diffae, x, z, ddim_steps(steps, t0), precision, decoded)


class SampleDiffAE(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSampleDiffAE", display_name="Sample DiffAE", category="Atelier/osasis",
            description="Generates random pictures with a DiffAE: a random semantic code (latent DDIM) and random "
                        "noise, decoded. Fine-tuning takes such pictures as content.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="A DiffAE with its latent DDIM."),
                io.Int.Input("count", default=4, min=1, max=64, tooltip="Number of pictures."),
                inputs.seed("Seed of the pictures. Picture n of a seed is the same whatever the count."),
                inputs.steps(20, "Steps of decoding. 20 is official in fine-tuning."),
                inputs.advanced(inputs.steps(200, "Steps of the latent DDIM. 200 is official.", "latent_steps"))],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The generated pictures."),
                     sockets.SEMANTIC_CODE.Output("semantic", display_name="semantic",
                                                  tooltip="Their semantic codes.")])

    @classmethod
    def validate_inputs(cls, steps: int | None = None, latent_steps: int | None = None) -> bool | str:
        return inputs.valid_steps(steps, latent_steps)

    @classmethod
    def execute(cls, diffae: DiffAEModel, count: int, seed: int, steps: int, latent_steps: int) -> io.NodeOutput:
        inputs.require(inputs.valid_steps(steps, latent_steps))
        px, rows = diffae.net.image_size, chunks(count)
        noise = rng.randn((3, px, px), seed, "x_T", range(count))
        latent_noise = rng.randn((diffae.unet.cond,), seed, "latent z", range(count))
        progress, codes = NodeProgress(latent_steps * len(rows)), []
        with host.sampling(diffae.patched) as (device, net):
            for r in rows:
                z = net.sample_z(latent_noise[r].to(device), latent_steps, lambda *_: progress())
                codes.append(z.float().cpu())
        z = torch.cat(codes)
        return io.NodeOutput(decode(diffae, noise, z, steps, 1.0), SemanticCode(z, diffae.fingerprint))


NODES = [FitPicture, SemanticEncode, StructuralEncode, MixCodes, StylizeOSASIS, Decode, SampleDiffAE]
