"""What the pack loads: for every kind of checkpoint its networks, how their configurations are told by the tensors, and
what a foreign file lacks. KINDS is the one table; loading.py works with it."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import diffae, mmfs, rng, spn, stylegan2, unet
from .attributes import CELEBA
from .checkpoints import CheckpointError, Stored
from .checkpoints.formats import vgg
from .checkpoints.formats.foreign import with_prefix
from .diffae import DiffAE, DiffAEConfig
from .faces.networks import POINTS
from .features import arcface, clip, dino
from .features.arcface import ArcFace, ArcFaceConfig
from .features.clip import Clip, ClipConfig
from .features.dino import Dino, DinoConfig
from .features.inception import Inception, InceptionConfig
from .mmfs import MMFS, MMFSConfig
from .spn import SPN
from .stylegan2 import Discriminator, StyleGAN2, StyleGAN2Config, Synthesis
from .unet import UNet, UNetConfig

MOST_PX = 4096  # of a StyleGAN2
FARTHEST = 20.0  # of a landmark from the middle of its face, in radii of the face


@dataclass(frozen=True)
class Part:
    """One network inside a checkpoint.

    config: makes its configuration from what our own file says (entry `entry` of it; "": all); None if the tensors say
    all. detect: makes it from the network's tensors, the file's meta and what the caller
    says. free: its fields that the tensors do not tell; of them, `told` is what `detect` wants to know. widths: fields
    that bound what is built where it is not laid out without memory first. build: makes the network. prefix: of its
    tensors in the file. inside: of those tensors in the network. optional: a file may lack it. dispensable: a foreign
    file's is left out, with a warning, if it does not fit. depthwise: its blurs are slow in channels_last.
    """
    config: Callable[..., Any] | None
    detect: Callable[..., Any]
    build: Callable[[Any], nn.Module]
    prefix: str = ""
    entry: str = ""
    inside: str = ""
    optional: bool = False
    dispensable: bool = False
    free: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    depthwise: bool = False

    def tensors(self, stored: Stored) -> dict[str, Tensor]:
        """Its tensors, under the names that they have in the network."""
        return {self.inside + name: value for name, value in with_prefix(stored.tensors, self.prefix).items()}


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint. what, use: how messages call it, and what loads it. page: where the public file is.

    parts: its networks. complete: what is done to a file's content first. undecided: fields of the configuration that
    a foreign file does not tell, and that its converted copy leaves to the loader.
    """
    what: str
    use: str
    page: str = ""
    parts: Mapping[str, Part] = field(default_factory=dict)
    complete: Callable[[Stored], Stored] = lambda stored: stored
    undecided: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """What is expected, as the end of a message."""
        return f"Expected here: {self.what}" + (f" (for example {self.page})" if self.page else "")


def _with_statistics(stored: Stored) -> Stored:
    """A DiffAE without its latent network if the statistics of z are missing, as in autoenc files."""
    if "conds_mean" in stored.tensors:
        return stored
    tensors = {name: value for name, value in stored.tensors.items() if not name.startswith("latent_net.")}
    return replace(stored, tensors=tensors, config=stored.config and stored.config | {"latent": None})


def _with_noise_and_mean(stored: Stored) -> Stored:
    """A foreign StyleGAN2 with what older files lack: the constant noise pictures, as normals of a fixed seed, and the
    mean style, over 10,000 random z (docs/mmfs.md A.2, A.5)."""
    if stored.config is not None:
        return stored
    const = stored.tensors.get("g.const")
    if const is not None and const.ndim == 3 and const.shape[1] != const.shape[2]:
        height, width = const.shape[1:]
        raise CheckpointError(f"its generator begins with a constant of {height} x {width} px: StyleGAN2 for pictures "
                              "that are not square is not supported, only that for square ones (4 x 4 px)")
    config = stylegan2.detect(with_prefix(stored.tensors, "g."))
    if not 8 <= config.resolution <= MOST_PX:
        raise CheckpointError(f"it is a StyleGAN2 of {config.resolution} px; 8 to {MOST_PX} px are supported")
    generator = rng.generator(0, "constant noise")
    sizes = [2 ** ((i + 5) // 2) for i in range(2 * len(config.channels) - 1)]
    noise = {f"g.noise_{i}": torch.randn(size, size, generator=generator) for i, size in enumerate(sizes)}
    tensors = {**noise, **stored.tensors}
    if "g.w_avg" not in tensors:
        tensors["g.w_avg"] = stylegan2.mean_w(_mapping(with_prefix(tensors, "g.mapping."), config))
    return replace(stored, tensors=tensors)


def _mapping(tensors: Mapping[str, Tensor], config: StyleGAN2Config) -> stylegan2.Mapping:
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in
                  stylegan2.Mapping(config.w_dim, config.mapping_layers).state_dict().items()}
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            found = list(tensors[name].shape) if name in tensors else "none"
            raise CheckpointError(f"its mapping network's '{name}' has shape {found}, not {list(shape)}: "
                                  "z and w of different widths are not supported")
    net = stylegan2.Mapping(config.w_dim, config.mapping_layers)
    net.load_state_dict({name: tensors[name] for name in shapes})
    return net.float()


def _checked_trunk(stored: Stored) -> Stored:
    vgg.check(stored.tensors)
    return stored


def _checked_alexnet(stored: Stored) -> Stored:
    vgg.check_alexnet(stored.tensors)
    return stored


def _checked_classifier(stored: Stored) -> Stored:
    """An attribute classifier whose tensors fit together and have their names. CheckpointError for another one."""
    wanted = ("weight", "bias", "conds_mean", "conds_std")
    if set(stored.tensors) != set(wanted):
        raise CheckpointError("its tensors are not those of an attribute classifier (weight, bias, conds_mean and "
                              "conds_std); pick a complete one")
    weight, bias, mean, std = (stored.tensors[name] for name in wanted)
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or not mean.shape == std.shape == weight.shape[1:]:
        raise CheckpointError(f"its tensors of shapes {[list(t.shape) for t in (weight, bias, mean, std)]} are not "
                              "those of one classifier; pick the unchanged file")
    if not all(tensor.is_floating_point() for tensor in stored.tensors.values()) or not (std > 0).all() or (
            not (weight.float().norm(dim=1) > 0).all()):
        raise CheckpointError("its numbers are no weights and deviations, or 0; pick the unchanged file")
    names = stored.meta.get("names", list(CELEBA))
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names) or (
            not len(set(names)) == len(names) == len(weight)):
        raise CheckpointError(f"it has {len(weight)} rows of attributes, and their names do not fit; the official one "
                              f"has {len(CELEBA)}: pick the unchanged file")
    return replace(stored, meta=stored.meta | {"names": names})


def _checked_direction(stored: Stored) -> Stored:
    """Directions whose tensor and names fit together. CheckpointError for others."""
    z, names = stored.tensors.get("z"), stored.meta.get("names")
    if len(stored.tensors) != 1 or z is None or z.ndim != 2 or not z.is_floating_point() or not z.numel():
        raise CheckpointError("it holds no table of directions; save it again")
    if not isinstance(names, list) or len(names) != len(z) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"it holds {len(z)} directions, and their names do not fit; save it again")
    return stored


def _checked_geometry(stored: Stored) -> Stored:
    """A geometry of faces whose numbers can be used. CheckpointError for another one."""
    wanted = {"points": (POINTS, 2), "shift": (POINTS, 2)}
    found = {name: tuple(value.shape) for name, value in stored.tensors.items() if value.dtype == torch.float32}
    if found != wanted or len(stored.tensors) != len(wanted):
        raise CheckpointError("its tensors are not those of a geometry (points and shift of 468 landmarks); save it "
                              "again")
    if not all(torch.isfinite(value).all() and value.abs().max() < FARTHEST for value in stored.tensors.values()):
        raise CheckpointError(f"its landmarks are not finite, or farther than {FARTHEST:.0f} times the face's radius; "
                              "save it again")
    if not (stored.tensors["points"] - stored.tensors["points"].mean(0)).abs().max() > 1e-3:
        raise CheckpointError("its landmarks are all in one place; save it again")
    return stored


def _decoder_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the decoder of a style says of its MMFS's configuration."""
    count = unet.entry_count(tensors, "blocks.")
    return {"decoder": tuple(tensors[f"blocks.{k}.conv1.weight"].shape[0] for k in range(count)),
            "w_dim": tensors["blocks.0.conv1.affine.weight"].shape[1]}


_UNET_FREE = ("image_size", "dropout", "head_channels", "num_heads", "attention_resolutions",
              *(f"unet.{name}" for name in ("image_size", "dropout", "head_channels", "num_heads",
                                            "attention_resolutions")))
KINDS: dict[str, Kind] = {
    "diffae": Kind(
        "a DiffAE model", "the Load DiffAE node",
        "ffhq256_autoenc_latent/last.ckpt, linked from https://github.com/phizaz/diffae",
        {"diffae": Part(DiffAEConfig.from_dict, lambda t, _, **told: diffae.detect(t, **told), DiffAE, free=_UNET_FREE,
                        told=("unet.image_size",))}, _with_statistics),
    "ddpm": Kind(
        "a DDPM model", "the Load DDPM node", "ffhq_p2.pt, linked from https://github.com/jychoi118/P2-weighting",
        {"ddpm": Part(lambda c: UNetConfig(**c), lambda t, _, **given: unet.detect(t, **given), UNet,
                      free=_UNET_FREE, told=("image_size",))},
        undecided=("image_size", "head_channels", "num_heads", "attention_resolutions")),
    "osasis_style": Kind(
        "an OSASIS style", "the Load OSASIS Style node",
        "exp/*/ckpt/iter_200.pt, linked from https://github.com/hansam95/OSASIS",
        {"unet": Part(lambda c: UNetConfig(**c), lambda t, _, **told: unet.detect(t, **told), UNet, "unet.",
                      "unet", free=_UNET_FREE, told=("image_size",)),
         "spn": Part(None, lambda t, _: spn.detect(t), SPN, "spn.", "spn", optional=True)}),
    "clip": Kind(
        "a CLIP model", "the Load CLIP node",
        "open_clip_model.safetensors, from https://huggingface.co/timm/vit_base_patch32_clip_224.openai",
        {"clip": Part(lambda c: ClipConfig(**c), lambda t, _, **given: clip.detect(_bare(t), **given),
                      Clip, inside="net.", free=("quick_gelu", "mean", "std", "words", "vision_heads", "text_heads",
                                                 "vision_mlp", "text_mlp"), told=("vision_heads",))},
        undecided=("quick_gelu",)),
    "vgg16": Kind(
        "a VGG-16 trunk", "the Load Perceptual Distance node",
        "vgg16-397923af.pth, from https://download.pytorch.org/models/vgg16-397923af.pth", complete=_checked_trunk),
    "stylegan2": Kind(
        "a StyleGAN2 model", "the Load StyleGAN2 node",
        "ffhq-res512-mirror-stylegan2-noaug.pkl of NVIDIA's stylegan2-ada-pytorch, or 550000.pt, linked from "
        "https://github.com/rosinality/stylegan2-pytorch",
        {"g": Part(lambda c: StyleGAN2Config(**c), lambda t, meta: stylegan2.detect(t, meta["mbstd_group_size"]),
                   StyleGAN2, "g.", "g", depthwise=True, free=("mbstd_group_size",)),
         "d": Part(lambda c: StyleGAN2Config(**c),
                   lambda t, meta: stylegan2.detect_discriminator(t, meta["mbstd_group_size"]), Discriminator,
                   "d.", "g", optional=True, dispensable=True, depthwise=True)}, _with_noise_and_mean),
    "mmfs": Kind(
        "an MMFS model", "the Load MMFS node",
        "phase3_pretrain_10000.pth, linked from https://github.com/dong-y21/MMFS",
        {"g": Part(lambda c: MMFSConfig(**c), lambda t, _: mmfs.detect(t), MMFS, "g.", "g", depthwise=True,
                   free=("mapper.head_channels", "mapper.dropout")),
         "d": Part(lambda c: StyleGAN2Config(**c), lambda t, _: stylegan2.detect_discriminator(t), Discriminator, "d.",
                   "d", optional=True, dispensable=True, depthwise=True,
                   free=("w_dim", "mapping_layers", "mbstd_group_size"))}),
    "mmfs_style": Kind(
        "an MMFS style", "the Load MMFS Style node", "example_ref01.pth, linked from https://github.com/dong-y21/MMFS",
        {"decoder": Part(lambda c: MMFSConfig(**c), lambda t, _: _decoder_sizes(t),
                         lambda c: Synthesis(c.decoder, c.w_dim), "decoder.", "g")}),
    "dino": Kind(
        "a DINO ViT", "the Load Structure Network node",
        "dino_vitbase8_pretrain.pth, from https://github.com/facebookresearch/dino",
        {"dino": Part(lambda c: DinoConfig(**c), lambda t, _: dino.detect(_bare(t)), Dino, inside="net.",
                      free=("heads", "antialias"), widths=("width", "patch", "image_size"))}),
    "alexnet": Kind(
        "an AlexNet trunk", "Load Metric Networks, or atelier evaluate --alexnet",
        "alexnet-owt-7be5be79.pth, from https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        complete=_checked_alexnet),
    "inception": Kind(
        "the Inception of FID", "Load Metric Networks, or atelier evaluate --inception",
        "pt_inception-2015-12-05-6726825d.pth, release fid_weights of https://github.com/mseitzer/pytorch-fid",
        {"inception": Part(None, lambda t, _: InceptionConfig("fid"), Inception, inside="net.")}),
    "art_inception": Kind(
        "the Inception of ArtFID", "Load Metric Networks, or atelier evaluate --art-inception",
        "art_inception.pth, from https://huggingface.co/matthias-wright/art_inception",
        {"inception": Part(None, lambda t, _: InceptionConfig("art"), Inception, inside="net.")}),
    "arcface": Kind(
        "an ArcFace network", "Load Metric Networks, or atelier evaluate --arcface",
        "model_ir_se50.pth, from https://github.com/TreB1eN/InsightFace_Pytorch",
        {"arcface": Part(lambda c: ArcFaceConfig(**c), lambda t, _: arcface.detect(_bare(t)), ArcFace, inside="net.",
                         free=("layout",), widths=("units", "widths", "embed", "reduction"))}),
    "attributes": Kind(
        "an attribute classifier of a DiffAE's codes", "the Load Attribute Classifier node",
        "ffhq256_autoenc_cls/last.ckpt, linked from https://github.com/phizaz/diffae", complete=_checked_classifier),
    "direction": Kind("a direction of semantic codes", "the Load Direction node", complete=_checked_direction),
    "face_geometry": Kind("a geometry of faces", "the Load Geometry node", complete=_checked_geometry),
    "osasis_content": Kind("prepared content pictures", "an OSASIS fine-tune, by itself, from its content folder"),
    "snapshot": Kind("a training snapshot", "the resume input of the node or command that wrote it"),
}


def _bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return with_prefix(tensors, "net.")
