"""From a checkpoint file to a network: read, detect the configuration, build, load strictly.

All networks come back on the CPU, in float32, in evaluation mode, frozen. Errors are `CheckpointError`, whose text says
what is wrong with the file and what to do.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from . import checkpoints, clip, diffae, spn, unet
from .checkpoints import CheckpointError, Stored, store, vgg
from .clip import Clip, ClipConfig
from .diffae import DiffAE, DiffAEConfig
from .osasis import Style
from .perceptual import LpipsVGG
from .spn import SPN
from .unet import UNet, UNetConfig

DEMO = Path(__file__).parent / "demo"
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
    parts = {name: {k[len(name) + 1:]: v for k, v in stored.tensors.items() if k.startswith(name + ".")}
             for name in ("unet", "spn")}
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


def _filled(path: Path, make: Callable[[], Net], tensors: Mapping[str, Tensor]) -> Net:
    """The network of `make` with exactly these weights."""
    _check_fit(path, make, tensors)
    net = make()
    net.load_state_dict(dict(tensors))
    return net.to(torch.float32, memory_format=torch.channels_last).eval().requires_grad_(False)


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
