"""Nodes of MMFS at drawing time: styles by chance, from a picture, from words; mixing them; stylizing."""
from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Generator, Tensor

from ..models import mmfs_style, stylegan2
from ..models.clip import BILINEAR, Clip
from ..models.mmfs import MMFS
from ..models.stylegan2 import NOISES
from ..train.data import to_bytes
from . import host, pictures, schema, sockets
from .host import Steps
from .osasis import chunks
from .sockets import WPlus
from .stylegan2 import mixed, mixing_inputs, noise_of, truncation_input

CROP, WHOLE = "crop", "whole picture"
GAP_ANCHOR = "photo"
GAP_SAMPLES = 64  # random stylizations whose mean embedding stands for pictures


class RandomStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSRandomStyle", display_name="Random MMFS Style", category="Atelier/mmfs",
            description="Draws styles by chance: MMFS has learnt thousands of drawn and painted faces, and every seed "
                        "is another look.",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="The MMFS model."),
                schema.seed("Which styles; style n of a seed is the same whatever their number.", roll=True),
                io.Int.Input("count", default=1, min=1, max=256, tooltip="How many styles: one for each picture, or "
                                                                         "one for all."),
                *mixing_inputs("styles"),
                truncation_input(1.0)],
            outputs=[sockets.WPLUS.Output("styles", display_name="styles", tooltip="The styles, for Stylize with "
                                                                                   "MMFS.")])

    @classmethod
    def execute(cls, mmfs, seed, count, mix_seed, mix_from, truncation):
        with host.running(mmfs.managed) as device:
            w = mixed(mmfs.net.styles, seed, count, mmfs.net.config.style, mix_seed, mix_from, device)
        if truncation != 1:
            w = stylegan2.truncate(w, mmfs.mean, truncation)
        return io.NodeOutput(WPlus(w, mmfs.fingerprint, f"seed {seed}"))


class StyleFromPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSStyleFromPicture", display_name="MMFS Style from Picture", category="Atelier/mmfs",
            description="Reads a picture's style with CLIP and maps it to a style of MMFS. It gives the tone and the "
                        "look; fine-tuning then comes closer.",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="An MMFS model with its CLIP mapping."),
                sockets.CLIP.Input("clip", tooltip="The CLIP it was trained with: officially OpenAI's ViT-B/32, 'demo' "
                                                   "for the demo model."),
                schema.image("picture", "The style pictures; of wide or tall ones CLIP sees the middle square."),
                io.Boolean.Input("average", default=False,
                                 tooltip="One style from all pictures together. Off: a style for each.")],
            outputs=[sockets.WPLUS.Output("styles", display_name="styles", tooltip="The styles, for Stylize with "
                                                                                   "MMFS.")])

    @classmethod
    def execute(cls, mmfs, clip, picture, average):
        shown = to_bytes(pictures.checked(picture, "picture") * 2 - 1)
        with host.running(mmfs.managed, clip.managed):
            seen = torch.cat([F.normalize(seen_as_file(clip.managed.net, one), dim=-1) for one in shown])
            w = mmfs.net.styles_of(seen.mean(0, keepdim=True) if average else seen)
        return io.NodeOutput(WPlus(w.float().cpu(), mmfs.fingerprint, "picture"))


def seen_as_file(clip: Clip, picture: Tensor) -> Tensor:
    """The embedding (1, D) of a picture uint8 (3, H, W), prepared as the official program prepares references."""
    return clip.look(clip.prepare_file(picture))[0].float()


class StyleFromText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSStyleFromText", display_name="MMFS Style from Text", category="Atelier/mmfs",
            description="Maps words to a style of MMFS through CLIP. Words and pictures lie apart in CLIP, so this "
                        "alone is vague; fine-tuning comes closer.",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="An MMFS model with its CLIP mapping."),
                sockets.CLIP.Input("clip", tooltip="The CLIP it was trained with: officially OpenAI's ViT-B/32, 'demo' "
                                                   "for the demo model."),
                io.String.Input("text", default="watercolor painting", multiline=True,
                                tooltip="The style in a few words. The demo CLIP knows only a few; it says which."),
                io.Float.Input("gap", default=0.0, min=0.0, max=1.0, step=0.05,
                               tooltip="Carries the words over to where CLIP puts pictures: 0 not at all, as the "
                                       "official program, 1 fully. Needs photos."),
                schema.image("photos", "Faces, needed if gap is above 0: their random stylizations show where pictures "
                                       "lie.", optional=True)],
            outputs=[sockets.WPLUS.Output("styles", display_name="styles", tooltip="The style, for Stylize with "
                                                                                   "MMFS.")])

    @classmethod
    def execute(cls, mmfs, clip, text, gap, photos=None):
        judge = clip.managed.net
        judge.check_prompt(text)
        if gap and photos is None:
            raise ValueError("gap is above 0, which needs photos to stylize: connect some faces to photos, or set gap "
                             "to 0")
        x = fitted(photos, CROP, mmfs, 0)[0] if gap else None
        with host.running(mmfs.managed, clip.managed) as device:
            words = F.normalize(judge.embed_text([text, GAP_ANCHOR] if gap else [text]).float(), dim=-1)
            seen = words[:1]
            if x is not None:
                mean = mean_embedding(mmfs.net, judge, x.to(device), Steps(GAP_SAMPLES))
                seen = across_the_gap(words[:1], words[1:], mean, gap)
            w = mmfs.net.styles_of(seen)
        return io.NodeOutput(WPlus(w.float().cpu(), mmfs.fingerprint, f"text '{text.strip()}'"))


def across_the_gap(words: Tensor, anchor: Tensor, mean: Tensor, share: float) -> Tensor:
    """An embedding (1, D) of words moved to the pictures' side: mean of pictures + (words - anchor) (spec B.5)."""
    return torch.lerp(words, F.normalize(mean + words - anchor, dim=-1), share)


def mean_embedding(net: MMFS, clip: Clip, photos: Tensor, progress: Steps) -> Tensor:
    """Mean embedding (1, D) of random stylizations of the photos (B, 3, px, px), taken in turn."""
    generator, total = Generator().manual_seed(0), 0
    z = torch.randn(GAP_SAMPLES, net.config.style, generator=generator).to(photos.device)
    for k in range(GAP_SAMPLES):
        drawn = net(photos[k % len(photos)][None], net.styles(z[k:k + 1]))
        total = total + F.normalize(clip.embed(drawn, BILINEAR).float(), dim=-1)
        progress(partial(pictures.strip, drawn))
    return total / GAP_SAMPLES


class MixStyles(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSMixStyles", display_name="Mix MMFS Styles", category="Atelier/mmfs",
            description="Goes from one style towards another, in some layers or in all: the early ones decide tone and "
                        "form, the late ones colour and texture.",
            inputs=[
                sockets.WPLUS.Input("a", tooltip="The styles to begin with."),
                sockets.WPLUS.Input("b", tooltip="The styles to go to: as many as in a, or a single one on either "
                                                 "side."),
                io.Float.Input("amount", default=0.5, min=0.0, max=1.0, step=0.01,
                               tooltip="How far: 0 is a, 1 is b in the chosen layers."),
                io.Int.Input("from_layer", default=0, min=0, max=17, tooltip="The first layer that changes."),
                io.Int.Input("to_layer", default=17, min=0, max=17,
                             tooltip="The last layer that changes; layers that the model does not have do not count "
                                     "(512 px: 0 to 9, 128 px: 0 to 5).")],
            outputs=[sockets.WPLUS.Output("styles", display_name="styles", tooltip="The mixed styles.")])

    @classmethod
    def execute(cls, a, b, amount, from_layer, to_layer):
        sockets.same_model("style b", b.fingerprint, a.fingerprint, "MMFS")
        if a.w.shape[1:] != b.w.shape[1:]:
            raise ValueError(f"style a has {a.layers} layers of {a.w.shape[2]} numbers, style b {b.layers} of "
                             f"{b.w.shape[2]}: they are of different MMFS models; make both with the same one")
        if not from_layer <= to_layer or from_layer >= a.layers:
            raise ValueError(f"from_layer {from_layer} to to_layer {to_layer} leaves no layer to mix; this model's are "
                             f"0 to {a.layers - 1}")
        first, second = sockets.paired(a.w, b.w, ("styles a", "styles b"))
        w = first.clone()
        w[:, from_layer:to_layer + 1] = torch.lerp(first, second, amount)[:, from_layer:to_layer + 1]
        what = f"{a.what} and {amount:g} of {b.what} in layers {from_layer} to {min(to_layer, a.layers - 1)}"
        return io.NodeOutput(WPlus(w, a.fingerprint or b.fingerprint, what))


class Stylize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMMFSStylize", display_name="Stylize with MMFS", category="Atelier/mmfs",
            description="Redraws pictures in a style, in a single pass. With a fine-tuned style its own decoder draws, "
                        "as strongly as wanted.",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="The MMFS model."),
                schema.image("image", "The photos; with a single one and several styles, it is drawn in each."),
                io.Float.Input("strength", default=1.0, min=0.0, max=1.5, step=0.05,
                               tooltip="Of the fine-tuned style: 0 draws with the model's own decoder, 1 with the "
                                       "style's, more exaggerates. Of no effect without a style."),
                io.Combo.Input("noise", options=list(NOISES), default="seeded",
                               tooltip="Of fine texture: seeded (of each picture its own), constant (the same for all, "
                                       "for the frames of a film), or zero (smooth)."),
                schema.seed("Which noise; no effect if zero.", roll=False, name="noise_seed"),
                io.Combo.Input("fit", options=[CROP, WHOLE], default=CROP,
                               tooltip="crop: the middle square, at the model's size; the face should be upright and "
                                       "fill most of it. whole picture: everything, in its own shape and size "
                                       "(experimental: faces should be about as large as in the crop)."),
                io.Int.Input("max_side", default=1024, min=0, max=8192, step=16,
                             tooltip="Whole pictures with a longer side than this are made smaller first; 0 never."),
                schema.advanced(io.Int.Input("batch", default=8, min=1, max=64,
                                             tooltip="Pictures of the model's size at a time: more is faster and takes "
                                                     "more memory.")),
                sockets.WPLUS.Input("styles", optional=True,
                                    tooltip="Styles: one for each photo, one for all, or several for a single photo. "
                                            "Without, the fine-tuned style's own code."),
                sockets.MMFS_STYLE.Input("style", optional=True, tooltip="A fine-tuned style, loaded or just made.")],
            outputs=[io.Image.Output("drawn", display_name="image", tooltip="The drawn pictures.")])

    @classmethod
    def execute(cls, mmfs, image, strength, noise, noise_seed, fit, max_side, batch, styles=None, style=None):
        w = codes(mmfs, styles, style)
        x, (height, width) = fitted(image, fit, mmfs, max_side)
        x, w = sockets.paired(x, w, ("pictures", "styles"))
        config, side = mmfs.net.config, x.shape[-2:]
        rows = chunks(len(x), max(1, batch * config.resolution ** 2 // (side[0] * side[1])))
        progress, parts = Steps(len(rows)), []
        memory = host.drawing_memory(max(config.decoder[-1], config.encoder[0]), *side, rows[0].stop)
        with host.running(mmfs.managed, memory=memory) as device:
            net = mmfs.net if style is None else mmfs_style.styled(mmfs.net, style, strength)
            for r in rows:
                drawn = net(x[r].to(device), w[r].to(device),
                            noise_of(noise, net.noise_shapes(*side), r, noise_seed, device))
                parts.append(pictures.to_image(drawn[..., :height, :width]))
                progress(partial(pictures.strip, drawn))
        return io.NodeOutput(torch.cat(parts))


def codes(mmfs: sockets.Stylizer, styles: WPlus | None, style: mmfs_style.MMFSStyle | None) -> Tensor:
    """The w+ codes to draw with. ValueError if there are none, or if they belong to another model."""
    if style is not None:
        mmfs_style.check_style(style, mmfs.net.config, mmfs.fingerprint)
    if styles is None:
        if style is None:
            raise ValueError("there is no style to draw in: connect styles (Random MMFS Style, MMFS Style from Picture "
                             "or from Text), or a fine-tuned style")
        if style.w is None:
            raise ValueError("this fine-tuned style holds no code of its own: connect styles, made from its reference "
                             "picture or prompt with MMFS Style from Picture or from Text")
        return style.w.float()
    sockets.same_model("the styles", styles.fingerprint, mmfs.fingerprint, "MMFS")
    config = mmfs.net.config
    if styles.w.shape[1:] != (config.n_styles, config.style):
        raise ValueError(f"the styles have {styles.layers} layers of {styles.w.shape[2]} numbers, and this model takes "
                         f"{config.n_styles} of {config.style}; make them with the same Load MMFS")
    return styles.w


def fitted(image: Tensor, fit: str, mmfs: sockets.Stylizer, max_side: int) -> tuple[Tensor, tuple[int, int]]:
    """Pictures in [-1, 1] that the model takes, and the (height, width) of what is to be kept of them."""
    config = mmfs.net.config
    if fit == WHOLE:
        return pictures.to_strides(image, config.stride, max_side)
    if fit != CROP:
        raise ValueError(f"fit is {fit!r}; take '{CROP}' or '{WHOLE}'")
    px = config.resolution
    return pictures.to_model(pictures.fit(image, px, "crop"), px), (px, px)


NODES = [RandomStyle, StyleFromPicture, StyleFromText, MixStyles, Stylize]
