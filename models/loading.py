"""From a checkpoint file to a network: read, detect the configuration, build, load strictly.

All networks come back on the CPU, in float32, in evaluation mode, frozen. Errors are `CheckpointError`, whose text says
what is wrong with the file and what to do.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checkpoints, clip, diffae, dino, mmfs, spn, stylegan2, unet
from .checkpoints import CheckpointError, Stored, store, vgg
from .checkpoints.foreign import part
from .checkpoints.stylegan2 import joined
from .clip import Clip, ClipConfig
from .diffae import DiffAE, DiffAEConfig
from .dino import Dino, DinoConfig
from .mmfs import MMFS, MMFSConfig
from .mmfs_style import MMFSStyle
from .osasis import Style
from .perceptual import LpipsVGG
from .spn import SPN
from .stylegan2 import Discriminator, StyleGAN2, StyleGAN2Config, Synthesis
from .unet import UNet, UNetConfig

DEMO = Path(__file__).parent / "demo"
STYLE_PICTURE = 256  # px, of the picture inside a style file
Net = TypeVar("Net", bound=nn.Module)
Config = TypeVar("Config")


def load_diffae(path: Path) -> DiffAE:
    """A DiffAE from our own file or the official last.ckpt (with or without latent DPM)."""
    stored = checkpoints.read(path, "diffae")
    config = _config(path, stored, DiffAEConfig.from_dict, diffae.detect)
    if config.latent and "conds_mean" not in stored.tensors:  # autoenc files have the net but not its statistics
        config = replace(config, latent=None)
        tensors = {k: v for k, v in stored.tensors.items() if not k.startswith("latent_net.")}
        return _filled(path, lambda: DiffAE(config), tensors)
    return _filled(path, lambda: DiffAE(config), stored.tensors)


def load_ddpm(path: Path, head_channels: int | None = None) -> UNet:
    """A plain UNet without z: the P2 DDPM, a DiffAE '..._ddpm', or our own.

    `head_channels` is for foreign files with other attention heads than the published ones (see unet.detect).
    """
    stored = checkpoints.read(path, "ddpm")
    config = _config(path, stored, lambda d: UNetConfig(**d), lambda t: unet.detect(t, head_channels=head_channels))
    return _filled(path, lambda: UNet(config), stored.tensors)


def load_clip(path: Path, quick_gelu: bool = True) -> Clip:
    """A CLIP with ViT towers. `quick_gelu` matters for foreign and converted files: OpenAI's weights need it."""
    stored = checkpoints.read(path, "clip")
    config = _config(path, stored, lambda d: ClipConfig(**{"quick_gelu": quick_gelu} | d),
                     lambda t: clip.detect(t, quick_gelu))
    return _filled(path, lambda: Clip(config), {f"net.{name}": value for name, value in stored.tensors.items()})


def load_stylegan2(path: Path) -> tuple[StyleGAN2, Discriminator | None]:
    """A generator and, if the file has it, its discriminator: rosinality's .pt, NVIDIA's .pkl, or our own."""
    stored = checkpoints.read(path, "stylegan2")
    g, d = part(stored.tensors, "g."), part(stored.tensors, "d.")
    config = _config(path, stored, lambda c: StyleGAN2Config(**c["g"]),
                     lambda _: stylegan2.detect(g, stored.meta["group"]))
    net = _filled(path, lambda: StyleGAN2(config), g, torch.contiguous_format)
    return net, _filled(path, lambda: Discriminator(config), d, torch.contiguous_format) if d else None


def save_stylegan2(path: Path, generator: StyleGAN2, discriminator: Discriminator | None,
                   meta: dict[str, Any] | None = None) -> Path:
    """Write both in 16 bit."""
    tensors = joined(generator.state_dict(), discriminator and discriminator.state_dict())
    return store.save(path, tensors, "stylegan2", {"g": asdict(generator.config)}, meta)


def load_mmfs(path: Path) -> tuple[MMFS, Discriminator | None]:
    """An MMFS model and, if the file has it, its discriminator: the official .pth of phases 2 to 4, or our own."""
    stored = checkpoints.read(path, "mmfs")
    g, d = part(stored.tensors, "g."), part(stored.tensors, "d.")
    config = _config(path, stored, lambda c: MMFSConfig(**c["g"]), lambda _: mmfs.detect(g))
    net = _filled(path, lambda: MMFS(config), g, torch.contiguous_format)
    if not d:
        return net, None
    critic = _config(path, stored, lambda c: StyleGAN2Config(**c["d"]), lambda _: stylegan2.detect_discriminator(d))
    return net, _filled(path, lambda: Discriminator(critic), d, torch.contiguous_format)


def save_mmfs(path: Path, net: MMFS, discriminator: Discriminator | None, meta: dict[str, Any],
              dtype: torch.dtype | None = torch.float16) -> Path:
    """Write both as `dtype` (None: 32 bit); meta tells the "phase" (1, 2 or 3) and whatever else is to be known."""
    tensors = joined(net.state_dict(), discriminator and discriminator.state_dict())
    config = {"g": asdict(net.config), "d": discriminator and asdict(discriminator.config)}
    return store.save(path, tensors, "mmfs", config, meta, dtype)


def load_mmfs_style(path: Path) -> MMFSStyle:
    """A style of ours, or the decoder of an official .pth of phase 4 (which knows neither its code nor its model)."""
    stored = checkpoints.read(path)
    if stored.kind != "mmfs_style" and not (stored.kind == "mmfs" and stored.config is None):
        raise checkpoints.wrong_kind(Path(path).name, stored.kind, "mmfs_style")
    tensors = stored.tensors if stored.config else part(stored.tensors, "g.")
    config = _config(path, stored, lambda c: MMFSConfig(**c["g"]), lambda _: mmfs.detect(tensors))
    decoder = part(tensors, "decoder.")
    _check_fit(path, lambda: Synthesis(config.decoder, config.style), decoder)
    w, picture = tensors.get("w"), tensors.get("picture")
    if w is not None and w.shape != (1, config.n_styles, config.style):
        raise CheckpointError(f"{Path(path).name}: its style code has shape {list(w.shape)}, not "
                              f"{[1, config.n_styles, config.style]}; it is damaged, write it again")
    if picture is not None and (picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3):
        raise CheckpointError(f"{Path(path).name}: its picture is {picture.dtype} of shape {list(picture.shape)}; "
                              "it is damaged, write it again")
    return MMFSStyle(config, {name: value.float() for name, value in decoder.items()}, None if w is None else w.float(),
                     picture, str(stored.meta.get("prompt", "")), str(stored.meta.get("model", "")),
                     dict(stored.meta.get("settings", {})))


def save_mmfs_style(path: Path, style: MMFSStyle) -> Path:
    """Write a style in 16 bit: the decoder, its code, prompt, settings, model's fingerprint, and its picture, of
    which at most STYLE_PICTURE px a side are kept (a decoder for 512 px takes 23.3 MB)."""
    tensors = {f"decoder.{name}": value for name, value in style.decoder.items()}
    tensors |= {} if style.w is None else {"w": style.w}
    tensors |= {} if style.picture is None else {"picture": _shrunk(style.picture)}
    return store.save(path, tensors, "mmfs_style", {"g": asdict(style.config)},
                      {"model": style.model, "prompt": style.prompt, "settings": style.settings})


def _shrunk(picture: Tensor) -> Tensor:
    """A picture (3, H, W) of 8 bit whose longer side is at most STYLE_PICTURE px."""
    scale = STYLE_PICTURE / max(picture.shape[1:])
    if scale >= 1:
        return picture
    size = [max(1, round(n * scale)) for n in picture.shape[1:]]
    return F.interpolate(picture[None].float(), size, mode="bilinear", antialias=True)[0].round().to(torch.uint8)


def load_dino(path: Path) -> Dino:
    """A DINO ViT, of facebook, timm, or converted."""
    stored = checkpoints.read(path, "dino")
    config = _config(path, stored, lambda c: DinoConfig(**c), dino.detect)
    return _filled(path, lambda: Dino(config), {f"net.{name}": value for name, value in stored.tensors.items()})


def load_lpips(path: Path) -> LpipsVGG:
    """LPIPS-VGG with the trunk of a torchvision VGG-16 file (vgg16-397923af.pth)."""
    tensors = checkpoints.read(path, "vgg16").tensors
    try:
        vgg.check(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{Path(path).name}: {error}") from error
    return LpipsVGG(tensors)


def load_style(path: Path) -> Style:
    """A style of ours, or an official iter_N.pt (which knows neither its picture nor its DiffAE)."""
    stored = checkpoints.read(path, "osasis_style")
    parts = {name: part(stored.tensors, f"{name}.") for name in ("unet", "spn")}
    config = _config(path, stored, lambda d: UNetConfig(**d["unet"]), lambda t: unet.detect(t, "unet."))
    _check_fit(path, lambda: UNet(config), parts["unet"])
    if parts["spn"]:
        spn_config = _detected(path, lambda: spn.detect(parts["spn"]))
        _check_fit(path, lambda: SPN(spn_config), parts["spn"])
    return Style(config, parts["unet"], parts["spn"] or None, stored.tensors.get("z"), stored.tensors.get("picture"),
                 str(stored.meta.get("model", "")), dict(stored.meta.get("settings", {})))


def save_style(path: Path, style: Style) -> Path:
    """Write a style in 16 bit, with its picture, code, settings and the fingerprint of its DiffAE."""
    tensors: dict[str, Tensor] = {f"unet.{k}": v for k, v in style.unet.items()}
    tensors |= {f"spn.{k}": v for k, v in (style.spn or {}).items()}
    tensors |= {name: value for name, value in (("z", style.z), ("picture", style.picture)) if value is not None}
    return store.save(path, tensors, "osasis_style", {"unet": asdict(style.config)},
                      {"model": style.model, "settings": style.settings})


def _config(path: Path, stored: Stored, from_dict, detect):
    return _detected(path, lambda: from_dict(stored.config) if stored.config else detect(stored.tensors))


def _detected(path: Path, make: Callable[[], Config]) -> Config:
    try:
        return make()
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{Path(path).name}: its configuration cannot be used ({error}); "
                              "it is damaged or of a kind this pack does not know") from error


def _filled(path: Path, make: Callable[[], Net], tensors: Mapping[str, Tensor],
            layout: torch.memory_format = torch.channels_last) -> Net:
    """The network of `make` with exactly these weights. `layout`: depthwise blurs are slow in channels_last."""
    _check_fit(path, make, tensors)
    net = make()
    net.load_state_dict(dict(tensors))
    return net.to(torch.float32, memory_format=layout).eval().requires_grad_(False)


def _check_fit(path: Path, make: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """CheckpointError unless names and shapes are those of `make`'s network, which is laid out without memory:
    a configuration that stands in a file is only a claim."""
    name = Path(path).name
    try:
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in make().state_dict().items()}
    except (ArithmeticError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: its configuration cannot be built ({error}); it is damaged, "
                              "write or download it again") from error
    odd = sorted(shapes.keys() ^ tensors.keys()) + [
        key for key, shape in shapes.items() if key in tensors and tensors[key].shape != shape]
    if odd:
        raise CheckpointError(f"{name}: its tensors are not those of the network it seems to be ({len(odd)} are "
                              f"missing, too many or of another shape, such as '{odd[0]}'); pick a complete checkpoint")
