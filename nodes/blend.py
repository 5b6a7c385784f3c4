"""Nodes that weigh what a style does: its strength, blends of styles and of codes, and the photo's own colours."""
from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io
from torch import Tensor

from ..models.colour import with_colours_of
from ..models.style import MAX_STRENGTH, at_strength, blended, check_osasis_style
from . import images, inputs, sockets
from .base import AtelierNode
from .host import NodeProgress
from .sockets import DiffAEModel, LoadedStyle, MixedCodes, SemanticCode

CHUNK = 16  # pictures whose colours are kept at a time


def slider(name: str, default: float, most: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=most, step=0.05, tooltip=tooltip,
                          display_mode=io.NumberDisplay.slider)


class OSASISStrength(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierOSASISStrength", display_name="Set OSASIS Strength", category="Atelier/osasis",
            description="Weakens or exaggerates a style: interpolates between the DiffAE and the fine-tuned network, "
                        "and scales the style's code and SPN with it. Strength 0 gives the photo's reconstruction.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="The DiffAE that the style was fine-tuned from."),
                sockets.OSASIS_STYLE.Input("style", tooltip="The fine-tuned style."),
                sockets.MIXED_CODES.Input("mix", tooltip="The mixed codes for that style, from Mix Codes."),
                slider("strength", 1.0, MAX_STRENGTH, "0: the reconstruction of the photo. 1: the style as it was "
                                                      "fine-tuned. More exaggerates.")],
            outputs=[
                sockets.OSASIS_STYLE.Output("weighed", display_name="style", tooltip="The style at this strength, for "
                                                                                     "Stylize with OSASIS."),
                sockets.MIXED_CODES.Output("weighed_mix", display_name="mix", tooltip="The codes at this strength, for "
                                                                                      "Stylize with OSASIS.")])

    @classmethod
    def execute(cls, diffae: DiffAEModel, style: LoadedStyle, mix: MixedCodes, strength: float) -> io.NodeOutput:
        check_osasis_style(style.style, diffae.unet, diffae.fingerprint)
        sockets.same_model("the mixed codes", mix.content.fingerprint, diffae.fingerprint)
        weighed = at_strength(style.style, diffae.net.unet.state_dict(), strength)
        return io.NodeOutput(LoadedStyle.of(weighed), replace(mix, strength=mix.strength * strength))


class BlendOSASISStyles(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierBlendOSASISStyles", display_name="Blend OSASIS Styles", category="Atelier/osasis",
            description="Makes a style between two that were fine-tuned from one DiffAE: interpolates their networks "
                        "and the codes of their style images. Nothing is trained.",
            inputs=[
                sockets.OSASIS_STYLE.Input("first", tooltip="A fine-tuned style."),
                sockets.OSASIS_STYLE.Input("second", tooltip="Another style of the same DiffAE."),
                slider("blend", 0.5, 1.0, "0: the first style. 1: the second.")],
            outputs=[
                sockets.OSASIS_STYLE.Output("style", display_name="style", tooltip="The blend, for Stylize with OSASIS "
                                                                                   "and Save OSASIS Style."),
                sockets.SEMANTIC_CODE.Output("z_style", display_name="z_style",
                                             tooltip="The blend of the style images' codes, for Mix Codes.")])

    @classmethod
    def execute(cls, first: LoadedStyle, second: LoadedStyle, blend: float) -> io.NodeOutput:
        style = blended(first.style, second.style, blend)
        return io.NodeOutput(LoadedStyle.of(style), SemanticCode(style.semantic_code().float(), style.model))


class InterpolateCodes(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierInterpolateCodes", display_name="Interpolate Semantics", category="Atelier/osasis",
            description="Makes semantic codes between those of two pictures: of two portraits a face between them, of "
                        "two style images a style's colours and textures between theirs.",
            inputs=[
                sockets.SEMANTIC_CODE.Input("first", tooltip="Semantic codes."),
                sockets.SEMANTIC_CODE.Input("second", tooltip="As many other ones, or one for all."),
                slider("share", 0.5, 1.0, "0: the first codes, exactly. 1: the second.")],
            outputs=[sockets.SEMANTIC_CODE.Output("semantic", display_name="semantic",
                                                  tooltip="The codes between them, for Decode and Mix Codes.")])

    @classmethod
    def execute(cls, first: SemanticCode, second: SemanticCode, share: float) -> io.NodeOutput:
        sockets.same_model("the second code", second.fingerprint, first.fingerprint)
        one, other = sockets.paired(first.z, second.z, ("first codes", "second codes"))
        return io.NodeOutput(SemanticCode(torch.lerp(one, other, share), first.fingerprint or second.fingerprint))


class KeepColours(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierKeepColours", display_name="Keep Photo's Colours", category="Atelier/pictures",
            description="Gives stylized pictures the colours of their photos: light and dark, lines and texture are "
                        "the style's, hue and saturation the photo's. It works with any stylizer.",
            inputs=[
                inputs.image("results", "The stylized pictures."),
                inputs.image("photos", "The very pictures that were stylized, as many, or one for all. Other sizes are "
                                       "resized to the results'."),
                slider("amount", 1.0, 1.0, "How much of the photo's colours. 0 changes nothing.")],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The results in the photos' colours.")])

    @classmethod
    def execute(cls, results: Tensor, photos: Tensor, amount: float) -> io.NodeOutput:
        made = images.in_chunks(results, "results", lambda x: x)
        seen = images.in_chunks(photos, "photos", lambda x: images.resized(x, *made.shape[-2:]))
        made, seen = sockets.paired(made, seen, ("results", "photos"))
        pairs = list(zip(made.split(CHUNK), seen.split(CHUNK), strict=True))
        progress, parts = NodeProgress(len(pairs)), []
        for a, b in pairs:
            parts.append(with_colours_of(a * 2 - 1, b * 2 - 1, amount))
            progress()
        return io.NodeOutput(images.to_image(torch.cat(parts)))


NODES = [OSASISStrength, BlendOSASISStyles, KeepColours, InterpolateCodes]
