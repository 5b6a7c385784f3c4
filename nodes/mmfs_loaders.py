"""Nodes that load what MMFS works with: StyleGAN2, MMFS itself, its styles, and what sees self-similarity."""
from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..models import loading, mmfs_style
from ..models.checkpoints import store
from ..models.mmfs import MMFS
from ..models.perceptual import EncoderKeys
from ..train.data import to_unit
from . import host, pictures, sockets
from .host import Managed
from .loaders import NO_STYLE, model_input
from .sockets import Faces, SelfSimilarity, Stylizer, WPlus


class LoadStyleGAN2(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierLoadStyleGAN2", display_name="Load StyleGAN2", category="Atelier/loaders",
            description="Loads a StyleGAN2 generator of faces, with its discriminator if the file has one. MMFS is "
                        "made from it, and fine-tuning can take its faces.",
            inputs=[model_input("stylegan2", "'demo' ships with the pack (small faces). Others: files in "
                                             "models/stylegan2, NVIDIA's stylegan2-ada .pkl, rosinality's .pt, or "
                                             "converted safetensors. Code in a file is never run.")],
            outputs=[sockets.STYLEGAN2.Output("stylegan2", display_name="stylegan2", tooltip="The generator, with its "
                                                                                             "discriminator.")])

    @classmethod
    def fingerprint_inputs(cls, model):
        return host.model_token("stylegan2", model)

    @classmethod
    def execute(cls, model):
        net, discriminator = loading.load_stylegan2(host.model_path("stylegan2", model))
        return io.NodeOutput(Faces(model, Managed(net), discriminator))


class LoadMMFS(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierLoadMMFS", display_name="Load MMFS", category="Atelier/loaders",
            description="Loads an MMFS model: it redraws a face in a style given by chance, by a picture or by words, "
                        "in a single pass.",
            inputs=[model_input("mmfs", "'demo' ships with the pack (small faces). Others: files in models/mmfs, the "
                                        "official phase2_pretrain_90000.pth (random styles only), "
                                        "phase3_pretrain_10000.pth, its fine-tuned examples, or safetensors.")],
            outputs=[sockets.MMFS_MODEL.Output("mmfs", display_name="mmfs", tooltip="The MMFS model.")])

    @classmethod
    def fingerprint_inputs(cls, model):
        return host.model_token("mmfs", model)

    @classmethod
    def execute(cls, model):
        path = host.model_path("mmfs", model)
        net, discriminator = loading.load_mmfs(path)
        return io.NodeOutput(Stylizer(model, Managed(net), mmfs_style.fingerprint(net), discriminator,
                                      phase_of(path, net)))


def phase_of(path: Path, net: MMFS) -> int:
    """What our own file says; of the official ones, 3 if there is a CLIP mapping."""
    saved = (store.peek(path).meta or {}).get("phase") if path.suffix == ".safetensors" else None
    return saved if saved in (1, 2, 3) else 3 if net.mapper is not None else 2


class LoadSelfSimilarity(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierLoadSelfSimilarity", display_name="Load Self-Similarity", category="Atelier/loaders",
            description="Loads what tells whether a drawing is built like its photo: which parts of it look alike. "
                        "MMFS uses DINO ViT-B/8; without that file, the encoder of the demo DiffAE stands in for it.",
            inputs=[model_input("dino", "'demo' is a stated substitute: the encoder of the pack's small DiffAE. "
                                        "Others: files in models/dino, such as dino_vitbase8_pretrain.pth, which the "
                                        "official program uses.")],
            outputs=[sockets.SELF_SIMILARITY.Output("self_similarity", display_name="self-similarity",
                                                    tooltip="What judges structure in fine-tuning and in Stage II.")])

    @classmethod
    def fingerprint_inputs(cls, model):
        return host.model_token("dino", model)

    @classmethod
    def execute(cls, model):
        path = host.model_path("dino", model)
        if model == host.DEMO_NAME:
            diffae = loading.load_diffae(path)
            net = EncoderKeys(diffae.encoder, diffae.image_size)
            return io.NodeOutput(SelfSimilarity("encoder of the demo DiffAE", Managed(net), substitute=True))
        return io.NodeOutput(SelfSimilarity(model, Managed(loading.load_dino(path)), substitute=False))


class LoadMMFSStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        files = host.model_files("mmfs_styles") or [NO_STYLE]
        return io.Schema(
            node_id="AtelierLoadMMFSStyle", display_name="Load MMFS Style", category="Atelier/loaders",
            description="Loads a style that was fine-tuned with MMFS and saved before, or an official one: a decoder "
                        "of its own, with the code it was fine-tuned with.",
            inputs=[io.Combo.Input("style", options=files, default=files[0],
                                   tooltip="A file in models/mmfs_styles, saved by Save MMFS Style, or an official "
                                           "fine-tuned one, such as pop_art.pth.")],
            outputs=[
                sockets.MMFS_STYLE.Output("mmfs_style", display_name="style", tooltip="The style, for Stylize with "
                                                                                      "MMFS."),
                sockets.WPLUS.Output("styles", display_name="style code", tooltip="The code it was fine-tuned with, to "
                                                                                  "mix with others."),
                io.Image.Output("picture", display_name="style picture", tooltip="The reference picture; styles made "
                                                                                 "from words have none.")])

    @classmethod
    def fingerprint_inputs(cls, style):
        return host.model_token("mmfs_styles", style)

    @classmethod
    def execute(cls, style):
        path = host.model_path("mmfs_styles", style)
        loaded = loading.load_mmfs_style(path)
        code = host.blocked(f"{path.name} holds no style code; make one with MMFS Style from Picture or from Text")
        picture = host.blocked(f"{path.name} was made without a reference picture")
        if loaded.w is not None:
            code = WPlus(loaded.w.float(), loaded.model, f"style {path.stem}")
        if loaded.picture is not None:
            picture = pictures.to_image(to_unit(loaded.picture[None]))
        return io.NodeOutput(loaded, code, picture)


NODES = [LoadStyleGAN2, LoadMMFS, LoadSelfSimilarity, LoadMMFSStyle]
