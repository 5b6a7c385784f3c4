"""From a checkpoint file to a network: read, detect the configuration, build, load strictly.

All networks come back on the CPU, in float32, in evaluation mode, frozen. Errors are `CheckpointError`, whose text says
what is wrong with the file and what to do.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from . import checkpoints, clip, diffae, unet
from .checkpoints import CheckpointError, Stored, store
from .clip import Clip, ClipConfig
from .diffae import DiffAE, DiffAEConfig
from .osasis import Style
from .perceptual import LpipsVGG
from .unet import UNet, UNetConfig

DEMO = Path(__file__).parent / "demo"


def load_diffae(path: Path) -> DiffAE:
    """A DiffAE from our own file or the official last.ckpt (with or without latent DPM)."""
    stored = checkpoints.read(path, "diffae")
    config = _config(path, stored, DiffAEConfig.from_dict, diffae.detect)
    if config.latent and "conds_mean" not in stored.tensors:  # autoenc files have the net but not its statistics
        config = replace(config, latent=None)
        tensors = {k: v for k, v in stored.tensors.items() if not k.startswith("latent_net.")}
        return _filled(path, DiffAE(config), tensors)
    return _filled(path, DiffAE(config), stored.tensors)


def load_ddpm(path: Path) -> UNet:
    """A plain UNet without z: the P2 DDPM, a DiffAE '..._ddpm', or our own."""
    stored = checkpoints.read(path, "ddpm")
    return _filled(path, UNet(_config(path, stored, lambda d: UNetConfig(**d), unet.detect)), stored.tensors)


def load_clip(path: Path, quick_gelu: bool = True) -> Clip:
    """A CLIP with ViT towers. `quick_gelu` matters for foreign files only: OpenAI's weights need it."""
    stored = checkpoints.read(path, "clip")
    config = _config(path, stored, lambda d: ClipConfig(**d), lambda t: clip.detect(t, quick_gelu))
    model = Clip(config)
    _filled(path, model.net, stored.tensors)
    return model.eval().requires_grad_(False)


def load_lpips(path: Path) -> LpipsVGG:
    """LPIPS-VGG with the trunk of a torchvision VGG-16 file (vgg16-397923af.pth)."""
    return LpipsVGG(checkpoints.read(path, "vgg16").tensors)


def load_style(path: Path) -> Style:
    """A style of ours, or an official iter_N.pt (which knows neither its picture nor its DiffAE)."""
    stored = checkpoints.read(path, "osasis_style")
    parts = {name: {k[len(name) + 1:]: v for k, v in stored.tensors.items() if k.startswith(name + ".")}
             for name in ("unet", "spn")}
    config = _config(path, stored, lambda d: UNetConfig(**d["unet"]), lambda t: unet.detect(t, "unet."))
    style = Style(config, parts["unet"], parts["spn"] or None, stored.tensors.get("z"), stored.tensors.get("picture"),
                  str(stored.meta.get("model", "")), dict(stored.meta.get("settings", {})))
    try:
        style.networks()
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path.name}: its weights do not fit its configuration ({error}); "
                              "download or write the file again") from error
    return style


def save_style(path: Path, style: Style) -> Path:
    """Write a style in 16 bit, with its picture, code, settings and the fingerprint of its DiffAE."""
    tensors: dict[str, Tensor] = {f"unet.{k}": v for k, v in style.unet.items()}
    tensors |= {f"spn.{k}": v for k, v in (style.spn or {}).items()}
    tensors |= {name: value for name, value in (("z", style.z), ("picture", style.picture)) if value is not None}
    return store.save(path, tensors, "osasis_style", {"unet": asdict(style.config)},
                      {"model": style.model, "settings": style.settings})


def _config(path: Path, stored: Stored, from_dict, detect):
    try:
        return from_dict(stored.config) if stored.config else detect(stored.tensors)
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{Path(path).name}: its configuration cannot be used ({error}); "
                              "it is damaged or of a kind this pack does not know") from error


def _filled(path: Path, net: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    try:
        net.load_state_dict(dict(tensors))
    except RuntimeError as error:
        first = str(error).replace("\n", " ")[:400]
        raise CheckpointError(f"{Path(path).name}: its tensors are not those of the network it seems to be ({first}); "
                              "pick a complete checkpoint") from error
    return net.to(torch.float32).eval().requires_grad_(False)
