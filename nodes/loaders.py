"""Nodes that load networks: DiffAE, DDPM, CLIP, the perceptual distance, styles."""
from __future__ import annotations

from comfy_api.latest import io

from ..models import loading, osasis
from ..train.data import to_unit
from . import host, pictures, sockets
from .host import Managed
from .sockets import Autoencoder, ManagedStyle, Network, Perceptual, Semantic

ENCODER = "encoder of the DiffAE"
NO_STYLE = "(no style saved yet)"
ACTIVATIONS = ("auto", "quick_gelu", "gelu")


def model_input(kind: str, tooltip: str):
    return io.Combo.Input("model", options=host.model_choices(kind), default=host.DEMO_NAME, tooltip=tooltip)


class LoadDiffAE(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierLoadDiffAE", display_name="Load DiffAE", category="Atelier/loaders",
            description="Loads a Diffusion Autoencoder: the model that takes a photo apart into what it shows "
                        "(semantic code) and where everything is (structural code), and puts it together again.",
            inputs=[model_input("diffae", "'demo' ships with the pack (small faces). Others: files in models/diffae, "
                                          "official last.ckpt (ffhq256_autoenc_latent) or converted safetensors.")],
            outputs=[sockets.DIFFAE.Output("diffae", display_name="diffae", tooltip="The Diffusion Autoencoder.")])

    @classmethod
    def fingerprint_inputs(cls, model):
        return host.model_token("diffae", model)

    @classmethod
    def execute(cls, model):
        net = loading.load_diffae(host.model_path("diffae", model))
        return io.NodeOutput(Autoencoder(model, Managed(net), osasis.fingerprint(net)))


class LoadDDPM(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierLoadDDPM", display_name="Load DDPM", category="Atelier/loaders",
            description="Loads a plain diffusion model of photos. The photo twin of a style picture is made with it.",
            inputs=[model_input("ddpm", "'demo' ships with the pack. Others: files in models/ddpm, "
                                        "such as the official P2 model ffhq_p2.pt.")],
            outputs=[sockets.DDPM.Output("ddpm", display_name="ddpm", tooltip="The diffusion model of photos.")])

    @classmethod
    def fingerprint_inputs(cls, model):
        return host.model_token("ddpm", model)

    @classmethod
    def execute(cls, model):
        return io.NodeOutput(Network(model, Managed(loading.load_ddpm(host.model_path("ddpm", model)))))


class LoadCLIP(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierLoadCLIP", display_name="Load CLIP (OpenCLIP)", category="Atelier/loaders",
            description="Loads a CLIP with picture and text towers. It judges style in fine-tuning and in measuring.",
            inputs=[
                model_input("open_clip", "'demo' ships with the pack (it knows a few styles of drawn faces). Others: "
                                         "files in models/open_clip; OSASIS uses OpenAI's ViT-B/32."),
                io.Combo.Input("activation", options=list(ACTIVATIONS), default="auto",
                               tooltip="Of a foreign file; 'auto' is QuickGELU, which OpenAI's weights need. Take "
                                       "'gelu' for most models that OpenCLIP trained itself. The pack's own files "
                                       "know theirs.")],
            outputs=[sockets.CLIP.Output("clip", display_name="clip", tooltip="The CLIP model (not a text encoder of "
                                                                              "Stable Diffusion).")])

    @classmethod
    def fingerprint_inputs(cls, model, activation):
        return host.model_token("open_clip", model)

    @classmethod
    def execute(cls, model, activation):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; take one of {', '.join(ACTIVATIONS)}")
        net = loading.load_clip(host.model_path("open_clip", model), quick_gelu=activation != "gelu")
        return io.NodeOutput(Network(model, Managed(net)))


class LoadPerceptual(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierLoadPerceptual", display_name="Load Perceptual Distance", category="Atelier/loaders",
            description="Loads what tells how different two pictures look: LPIPS-VGG, which OSASIS uses, with a "
                        "VGG-16 file from models/lpips; or, without any file, the encoder of a DiffAE as a "
                        "substitute.",
            inputs=[
                io.Combo.Input("model", options=[ENCODER, *host.model_files("lpips")], default=ENCODER,
                               tooltip="A VGG-16 of torchvision (vgg16-397923af.pth) in models/lpips gives LPIPS-VGG. "
                                       f"'{ENCODER}' is a stated substitute: results differ from the official "
                                       "program's."),
                sockets.DIFFAE.Input("diffae", optional=True,
                                     tooltip=f"Needed for '{ENCODER}' only: the DiffAE whose encoder is used.")],
            outputs=[sockets.PERCEPTUAL.Output("perceptual", display_name="perceptual",
                                               tooltip="The perceptual distance of two pictures.")])

    @classmethod
    def fingerprint_inputs(cls, model, diffae=None):
        return model if model == ENCODER else host.model_token("lpips", model)

    @classmethod
    def execute(cls, model, diffae=None):
        if model != ENCODER:
            net = loading.load_lpips(host.model_path("lpips", model))
            return io.NodeOutput(Perceptual(model, Managed(net), substitute=False))
        if diffae is None:
            raise ValueError(f"'{ENCODER}' needs a DiffAE: connect Load DiffAE to the diffae input, or pick a VGG-16 "
                             f"file (vgg16-397923af.pth in {host.model_folder('lpips')})")
        return io.NodeOutput(Perceptual(f"encoder of {diffae.name}", diffae.managed, substitute=True))


class LoadStyle(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        files = host.model_files("osasis") or [NO_STYLE]
        return io.Schema(
            node_id="AtelierLoadStyle", display_name="Load Style", category="Atelier/loaders",
            description="Loads a style that was fine-tuned and saved before, or an official OSASIS iter_N.pt.",
            inputs=[io.Combo.Input("style", options=files, default=files[0],
                                   tooltip="A file in models/osasis: saved by Save Style, or an official "
                                           "iter_200.pt.")],
            outputs=[
                sockets.STYLE.Output("tuned_style", display_name="style", tooltip="The style, for Stylize."),
                sockets.SEMANTIC.Output("style_code", display_name="style code",
                                        tooltip="The semantic code of the style picture, for Mix Codes. Official "
                                                "files do not hold it: encode the style picture instead."),
                io.Image.Output("style_picture", display_name="style picture",
                                tooltip="The picture the style was made from. Official files do not hold it.")])

    @classmethod
    def fingerprint_inputs(cls, style):
        return host.model_token("osasis", style)

    @classmethod
    def execute(cls, style):
        path = host.model_path("osasis", style)
        loaded = loading.load_style(path)
        code = picture = host.blocked(
            f"{path.name} is a style of the official program, which holds neither the style picture nor its code: load "
            "the picture, squash it to the model's size, and connect Encode Semantics to Mix Codes instead")
        if loaded.z is not None:
            code = Semantic(loaded.z.float(), loaded.model)
        if loaded.picture is not None:
            picture = pictures.to_image(to_unit(loaded.picture[None]))
        return io.NodeOutput(ManagedStyle.of(loaded), code, picture)


NODES = [LoadDiffAE, LoadDDPM, LoadCLIP, LoadPerceptual, LoadStyle]
