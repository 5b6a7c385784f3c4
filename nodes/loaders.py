"""Nodes that load networks and styles of both methods."""
from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io, ui
from torch import Tensor

from ..models import checkpoints, loading
from ..models.features.encoder import EncoderKeys
from ..models.mmfs import MMFS
from ..models.style import OSASISStyle, fingerprint
from ..train.data import to_unit
from . import host, images, inputs, sockets
from .base import AtelierNode
from .host import PatchedModule
from .sockets import (
    Attributes,
    CLIPModel,
    DDPMModel,
    DiffAEModel,
    LoadedStyle,
    MMFSModel,
    PerceptualModel,
    SemanticCode,
    StructureNetModel,
    StyleGAN2Model,
    WPlus,
)

ENCODER = "encoder of the DiffAE"
NO_STYLE = "(no style saved yet)"
NO_DIRECTION = "(no direction saved yet)"
NO_GEOMETRY = "(no geometry saved yet)"
ACTIVATIONS = {"auto": None, "quick_gelu": True, "gelu": False}


def model_input(kind: str, tooltip: str) -> io.Combo.Input:
    return inputs.file_choice("model", host.model_choices(kind), host.DEMO_NAME, tooltip)


def foreign_setting(name: str, most: int, tooltip: str) -> io.Int.Input:
    """What the tensors of a foreign file do not tell; 0 leaves it to the loader."""
    return inputs.advanced(io.Int.Input(name, default=0, min=0, max=most, optional=True, tooltip=tooltip))


def style_input(kind: str, tooltip: str, none: str = NO_STYLE) -> io.Combo.Input:
    """A choice among saved files; none: what is shown if there is none."""
    files = host.model_files(kind) or [none]
    return inputs.file_choice("file", files, files[0], tooltip)


class ModelLoader(AtelierNode):
    """A node that loads one file of KIND, whose choice is the input `model`."""
    KIND = ""

    @classmethod
    def validate_inputs(cls, model: str | None = None) -> bool | str:
        return host.valid_model(cls.KIND, model)

    @classmethod
    def fingerprint_inputs(cls, model: str | None, **others: object) -> str:
        return host.model_token(cls.KIND, model)

    @classmethod
    def path(cls, model: str) -> Path:
        return host.model_path(cls.KIND, model)


class StyleLoader(AtelierNode):
    """A node that loads a style of KIND, whose choice is the input `file`."""
    KIND = ""

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return host.valid_model(cls.KIND, file)

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> str:
        return host.model_token(cls.KIND, file)


class LoadDiffAE(ModelLoader):
    KIND = "diffae"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadDiffAE", display_name="Load DiffAE", category="Atelier/loaders",
            description="Loads a Diffusion Autoencoder. It splits a picture into a semantic code (what it shows) and a "
                        "structural code (where everything is), and decodes the two back to a picture.",
            inputs=[model_input("diffae", "'demo' ships with the pack (small faces). Others: files in models/diffae, "
                                          "the official last.ckpt (ffhq256_autoenc_latent) or converted safetensors.")],
            outputs=[sockets.DIFFAE.Output("diffae", display_name="diffae", tooltip="The Diffusion Autoencoder.")])

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        net = loading.load_diffae(cls.path(model))
        return io.NodeOutput(DiffAEModel(model, PatchedModule(net), fingerprint(net)))


class LoadDDPM(ModelLoader):
    KIND = "ddpm"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadDDPM", display_name="Load DDPM", category="Atelier/loaders",
            description="Loads an unconditional diffusion model of photos. Make Photo Twin uses it.",
            inputs=[
                model_input("ddpm", "'demo' ships with the pack. Others: files in models/ddpm, such as the official "
                                    "P2 model ffhq_p2.pt."),
                foreign_setting("image_size", 1024, "Pixels a side a foreign model was trained at. 0: told by its "
                                                    "layers."),
                foreign_setting("num_heads", 64, "Attention heads of a foreign file, if their number is fixed. 0: not "
                                                 "fixed."),
                foreign_setting("head_channels", 512, "Channels of an attention head of a foreign file. 0: 64 if it "
                                                      "learned its variance, as the P2 model, else one head.")],
            outputs=[sockets.DDPM.Output("ddpm", display_name="ddpm", tooltip="The diffusion model of photos.")])

    @classmethod
    def execute(cls, model: str, image_size: int = 0, num_heads: int = 0, head_channels: int = 0) -> io.NodeOutput:
        given = {"head_channels": head_channels or None, "num_heads": num_heads or None,
                 "image_size": image_size or None}
        net = loading.load_ddpm(cls.path(model), **given)
        names = loading.unused(net.config, **given)
        host.show_text(net.config.in_words() + (f". The file says its {' and '.join(names)} itself, and the input is "
                                                "not used" if names else ""))
        return io.NodeOutput(DDPMModel(model, PatchedModule(net)))


class LoadCLIP(ModelLoader):
    KIND = "open_clip"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadCLIP", display_name="Load CLIP (OpenCLIP)", category="Atelier/loaders",
            description="Loads a CLIP with its image and text encoders. It guides fine-tuning and measures style.",
            inputs=[
                model_input("open_clip", "'demo' ships with the pack (trained on a few styles of faces). Others: files "
                                         "in models/open_clip. OSASIS and MMFS use OpenAI's ViT-B/32."),
                inputs.choice("activation", ACTIVATIONS, "auto",
                              "Activation of a foreign file. auto is QuickGELU, which OpenAI's weights need, and GELU "
                              "for ViT-H/14 and larger. Take gelu for most models that OpenCLIP trained itself. The "
                              "pack's own files know theirs."),
                foreign_setting("vision_heads", 64, "Attention heads of the image encoder of a foreign file. 0: one "
                                                    "for 64 channels, or that of the published model of this size.")],
            outputs=[sockets.CLIP.Output("clip", display_name="clip",
                                         tooltip="The CLIP model. It is not a text encoder of Stable Diffusion.")])

    @classmethod
    def execute(cls, model: str, activation: str, vision_heads: int = 0) -> io.NodeOutput:
        net = loading.load_clip(cls.path(model), ACTIVATIONS[activation], vision_heads or None)
        return io.NodeOutput(CLIPModel(model, PatchedModule(net)))


class LoadPerceptual(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadPerceptual", display_name="Load Perceptual Distance", category="Atelier/loaders",
            description="Loads a perceptual distance of two pictures. OSASIS uses LPIPS-VGG, which needs a VGG-16 file "
                        "in models/lpips. Without a file, the encoder of a DiffAE is a substitute.",
            inputs=[
                inputs.file_choice("model", [ENCODER, *host.model_files("lpips")], ENCODER,
                                   "A VGG-16 of torchvision (vgg16-397923af.pth) in models/lpips gives LPIPS-VGG. "
                                   f"'{ENCODER}' is a substitute: results differ from the official program's."),
                sockets.DIFFAE.Input("diffae", optional=True,
                                     tooltip=f"The DiffAE whose encoder is used. Needed for '{ENCODER}' only.")],
            outputs=[sockets.PERCEPTUAL.Output("perceptual", display_name="perceptual",
                                               tooltip="The perceptual distance of two pictures.")])

    @classmethod
    def validate_inputs(cls, model: str | None = None) -> bool | str:
        return model == ENCODER or host.valid_model("lpips", model)

    @classmethod
    def fingerprint_inputs(cls, model: str | None, diffae: DiffAEModel | None = None) -> str:
        return model if model == ENCODER else host.model_token("lpips", model)

    @classmethod
    def execute(cls, model: str, diffae: DiffAEModel | None = None) -> io.NodeOutput:
        if model != ENCODER:
            net = loading.load_lpips(host.model_path("lpips", model))
            return io.NodeOutput(PerceptualModel(model, PatchedModule(net), substitute=False))
        if diffae is None:
            raise ValueError(f"'{ENCODER}' needs a DiffAE. Connect Load DiffAE to the diffae input, or pick a VGG-16 "
                             f"file (vgg16-397923af.pth in {host.model_folder('lpips')})")
        return io.NodeOutput(PerceptualModel(f"encoder of {diffae.name}", diffae.patched, substitute=True))


class LoadOSASISStyle(StyleLoader):
    KIND = "osasis"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadOSASISStyle", display_name="Load OSASIS Style", category="Atelier/loaders",
            description="Loads a fine-tuned OSASIS style: one saved by Save OSASIS Style, or an official iter_N.pt.",
            inputs=[style_input("osasis", "A file in models/osasis: saved by Save OSASIS Style, or an official "
                                          "iter_200.pt.")],
            outputs=[
                sockets.OSASIS_STYLE.Output("style", display_name="style", tooltip="The style, for Stylize with "
                                                                                   "OSASIS."),
                sockets.SEMANTIC_CODE.Output("z_style", display_name="z_style",
                                             tooltip="The semantic code of the style image, for Mix Codes. Official "
                                                     "files do not hold it: encode the style image instead."),
                io.Image.Output("style_image", display_name="style image",
                                tooltip="The picture the style was learned from. Official files do not hold it.")])

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        path = host.model_path(cls.KIND, file)
        style = loading.load_style(path)
        advice = host.blocked(no_picture(path.name, style))
        code = advice if style.z_style is None else SemanticCode(style.z_style.float(), style.model)
        return io.NodeOutput(LoadedStyle.of(style), code, image_of(style.style_image, advice))


def no_picture(name: str, style: OSASISStyle) -> str:
    """Why a style has no style image, and what to do."""
    if text := style.settings.get("target"):
        return f"{name} was learned from the text {str(text)[:80]!r}, so it has no style image. Disconnect this output"
    return (f"{name} is a style of the official program, which holds neither the style image nor its code. Load the "
            "picture and connect Encode Semantics to Mix Codes instead")


class LoadStyleGAN2(ModelLoader):
    KIND = "stylegan2"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadStyleGAN2", display_name="Load StyleGAN2", category="Atelier/loaders",
            description="Loads a StyleGAN2 generator of faces, with its discriminator if the file has one. MMFS is "
                        "trained from it, and fine-tuning can use its faces.",
            inputs=[model_input("stylegan2", "'demo' ships with the pack (small faces). Others: files in "
                                             "models/stylegan2: NVIDIA's stylegan2-ada .pkl, rosinality's .pt, or "
                                             "converted safetensors. Code inside a file is never run.")],
            outputs=[sockets.STYLEGAN2.Output("stylegan2", display_name="stylegan2",
                                              tooltip="The generator, with its discriminator.")])

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        net, discriminator = loading.load_stylegan2(cls.path(model))
        return io.NodeOutput(StyleGAN2Model(model, PatchedModule(net), discriminator))


class LoadMMFS(ModelLoader):
    KIND = "mmfs"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadMMFS", display_name="Load MMFS", category="Atelier/loaders",
            description="Loads an MMFS model. It stylizes a face with a random style, a style image or a prompt, in a "
                        "single network call.",
            inputs=[model_input("mmfs", "'demo' ships with the pack (small faces). Others: files in models/mmfs: the "
                                        "official phase2_pretrain_90000.pth (random styles only), "
                                        "phase3_pretrain_10000.pth, its fine-tuned examples, or safetensors.")],
            outputs=[sockets.MMFS_MODEL.Output("mmfs", display_name="mmfs", tooltip="The MMFS model.")])

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        path = cls.path(model)
        net, discriminator = loading.load_mmfs(path)
        return io.NodeOutput(MMFSModel(model, PatchedModule(net), fingerprint(net), discriminator,
                                       phase_of(path, net), loading.mapper_clip(path)))


def phase_of(path: Path, net: MMFS) -> int:
    """What our own file says; of the official ones, 3 if there is a CLIP mapping."""
    saved = checkpoints.facts(path).get("phase")
    return saved if saved in (1, 2, 3) else 3 if net.mapper is not None else 2


class LoadStructureNet(ModelLoader):
    KIND = "dino"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadStructureNet", display_name="Load Structure Network (DINO)",
            category="Atelier/loaders",
            description="Loads the network whose self-similarity compares the structure of two pictures. MMFS uses "
                        "DINO ViT-B/8. Without that file, the encoder of the demo DiffAE is a substitute.",
            inputs=[model_input("dino", "'demo' is a substitute: the encoder of the pack's small DiffAE. Others: files "
                                        "in models/dino, such as dino_vitbase8_pretrain.pth, which the official "
                                        "program uses.")],
            outputs=[sockets.STRUCTURE_NET.Output("structure_net", display_name="structure_net",
                                                  tooltip="The structure network, for fine-tuning and Stage II.")])

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        path = cls.path(model)
        if model == host.DEMO_NAME:
            diffae = loading.load_diffae(path)
            keys = PatchedModule(EncoderKeys(diffae.encoder, diffae.image_size))
            return io.NodeOutput(StructureNetModel("encoder of the demo DiffAE", keys, substitute=True))
        return io.NodeOutput(StructureNetModel(model, PatchedModule(loading.load_dino(path)), substitute=False))


class LoadMMFSStyle(StyleLoader):
    KIND = "mmfs_styles"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadMMFSStyle", display_name="Load MMFS Style", category="Atelier/loaders",
            description="Loads a fine-tuned MMFS style: a decoder, with the w+ code it was fine-tuned with. It was "
                        "saved by Save MMFS Style, or is an official one.",
            inputs=[style_input("mmfs_styles", "A file in models/mmfs_styles: saved by Save MMFS Style, or an official "
                                               "fine-tuned one, such as pop_art.pth.")],
            outputs=[
                sockets.MMFS_STYLE.Output("style", display_name="style", tooltip="The style, for Stylize with MMFS."),
                sockets.W_PLUS.Output("w_plus", display_name="w+ code",
                                      tooltip="The w+ code it was fine-tuned with, to mix with others."),
                io.Image.Output("style_image", display_name="style image",
                                tooltip="The reference picture. Styles fine-tuned to a prompt have none.")])

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        path = host.model_path(cls.KIND, file)
        style = loading.load_mmfs_style(path)
        code = host.blocked(f"{path.name} holds no w+ code. Make one with MMFS Style from Picture or from Text")
        if style.w_plus is not None:
            code = WPlus(style.w_plus.float(), style.model, f"style {path.stem}")
        no_image = host.blocked(f"{path.name} was fine-tuned without a reference picture")
        return io.NodeOutput(style, code, image_of(style.style_image, no_image))


class LoadAttributes(ModelLoader):
    KIND = "diffae_attributes"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadAttributes", display_name="Load Attribute Classifier", category="Atelier/loaders",
            description="Loads a linear classifier of a DiffAE's semantic codes. It knows the direction of each of its "
                        "attributes, such as smiling or glasses. Edit Attribute uses it.",
            inputs=[model_input("diffae_attributes", "'demo' belongs to the demo DiffAE. Others: files in "
                                                     "models/diffae_attributes, such as the official last.ckpt "
                                                     "(ffhq256_autoenc_cls), or one of 'atelier train attributes'.")],
            outputs=[
                sockets.ATTRIBUTES.Output("classifier", display_name="classifier", tooltip="The classifier, for Edit "
                                                                                           "Attribute."),
                io.String.Output("attributes", display_name="attributes", tooltip="The names that it knows, a line "
                                                                                  "each.")])

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        classifier, fingerprint = loading.load_attributes(cls.path(model))
        names = "\n".join(classifier.names)
        return io.NodeOutput(Attributes(model, classifier, fingerprint), names, ui=ui.PreviewText(names))


class LoadDirection(StyleLoader):
    KIND = "diffae_directions"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadDirection", display_name="Load Direction", category="Atelier/loaders",
            description="Loads directions of semantic codes that Save Direction has saved: what an edit does, to be "
                        "applied to other pictures of the same DiffAE.",
            inputs=[style_input("diffae_directions", "A file in models/diffae_directions, saved by Save Direction.",
                                NO_DIRECTION)],
            outputs=[
                sockets.DIRECTION.Output("direction", display_name="direction", tooltip="The directions, for Apply "
                                                                                        "Direction."),
                io.String.Output("names", display_name="names", tooltip="What each direction is, a line each.")])

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        direction = loading.load_direction(host.model_path(cls.KIND, file))
        names = "\n".join(direction.names)
        return io.NodeOutput(direction, names, ui=ui.PreviewText(names))


class LoadGeometry(StyleLoader):
    KIND = "face_geometries"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadGeometry", display_name="Load Geometry", category="Atelier/loaders",
            description="Loads a geometry that Save Geometry has saved: how a style image deforms a face, for Follow "
                        "Geometry.",
            inputs=[style_input("face_geometries", "A file in models/face_geometries, saved by Save Geometry.",
                                NO_GEOMETRY)],
            outputs=[
                sockets.GEOMETRY.Output("geometry", display_name="geometry",
                                        tooltip="The geometry, for Follow Geometry."),
                io.String.Output("origin", display_name="origin", tooltip="What it was made of.")])

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        geometry = loading.load_geometry(host.model_path(cls.KIND, file))
        return io.NodeOutput(geometry, geometry.origin, ui=ui.PreviewText(geometry.origin))


def image_of(picture: Tensor | None, otherwise: host.ExecutionBlocker) -> Tensor | host.ExecutionBlocker:
    """A picture uint8 (3, H, W) as IMAGE."""
    return otherwise if picture is None else images.to_image(to_unit(picture[None]))


NODES = [LoadDiffAE, LoadDDPM, LoadCLIP, LoadPerceptual, LoadOSASISStyle,
         LoadStyleGAN2, LoadMMFS, LoadStructureNet, LoadMMFSStyle, LoadAttributes,
         LoadDirection, LoadGeometry]
