"""One style, ready for any number of pictures: OSASIS and MMFS behind one call."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import loading
from ..models.accelerated import accelerated
from ..models.diffae import DiffAE, change_point_weights, mix_codes
from ..models.diffusion import check_steps
from ..models.mmfs import MMFS, clip_fingerprint, clip_warning
from ..models.osasis import SamplingSettings, stylize
from ..models.precision import AUTO, autocast
from ..models.spn import SPN
from ..models.style import check_mmfs_style, check_osasis_style, fingerprint, styled
from ..models.stylegan2 import seeded_noise
from ..models.stylizer import stylizer
from ..models.unet import UNet
from .data import SUFFIXES, read_whole

Stylize = Callable[[Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class StylistConfig:
    """What stylized pictures depend on, beside the pictures. style: a style file of either method, or a picture, which
    MMFS's CLIP mapping makes a style of. model: the style's DiffAE or MMFS; clip: for a picture (None: the demo's).
    encode_steps, decode_steps, change_point, solver ("": the style's): of OSASIS. strength, seed: of MMFS. batch:
    pictures a call. ValueError for a number of steps that no schedule has, and for less than one picture."""
    style: Path
    model: Path | None = None
    clip: Path | None = None
    encode_steps: int = 100
    decode_steps: int = 50
    change_point: int = 32
    solver: str = ""
    strength: float = 1.0
    seed: int = 0
    batch: int = 8
    precision: str = AUTO

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; take 1 or more")
        check_steps(self, "encode_steps", "decode_steps")


@dataclass(frozen=True)
class Stylist:
    """stylist(pictures (N, 3, size, size) in [-1, 1], items) -> pictures float32 on the CPU. An item is a whole number
    that the picture's random numbers depend on. Every call of the networks is of `batch` rows, so a picture's result
    does not depend on its neighbours."""
    size: int
    batch: int
    device: torch.device
    stylize: Stylize

    @torch.no_grad()
    def __call__(self, pictures: Tensor, items: Sequence[int]) -> Tensor:
        parts = []
        for start in range(0, len(pictures), self.batch):
            rows = [min(start + k, len(pictures) - 1) for k in range(self.batch)]
            part = self.stylize(pictures[rows].to(self.device), [items[row] for row in rows])
            parts.append(part[:len(pictures) - start].float().cpu())
        return torch.cat(parts)


def stylist(config: StylistConfig, device: torch.device) -> Stylist:
    """Loads the networks. ValueError for a style of another model, and for one that lacks its code."""
    if config.style.suffix.lower() in SUFFIXES:
        return mmfs_stylist(config, device)
    kind = loading.read_kind(config.style, "osasis_style", "mmfs_style", "mmfs").kind
    return osasis_stylist(config, device) if kind == "osasis_style" else mmfs_stylist(config, device)


def osasis_stylist(config: StylistConfig, device: torch.device) -> Stylist:
    diffae = loading.load_diffae(config.model or loading.DEMO / "diffae.safetensors")
    style = loading.load_style(config.style)
    check_osasis_style(style, diffae.config.unet, fingerprint(diffae))
    settings = SamplingSettings.of(style.settings)
    settings = replace(settings, solver=config.solver or settings.solver)
    unet, spn = style.networks()
    made = partial(accelerated, device=device, precision=config.precision)
    nets = made(diffae.to(device)), made(unet.to(device)), None if spn is None else made(spn.to(device))
    work = partial(osasis_stylized, nets, style.semantic_code().float().to(device), settings, config)
    return Stylist(diffae.image_size, config.batch, device, work)


def osasis_stylized(nets: tuple[DiffAE, UNet, SPN | None], z_style: Tensor, settings: SamplingSettings,
                    config: StylistConfig, pictures: Tensor, items: Sequence[int]) -> Tensor:
    """Encode, mix codes, decode with the style's network; nothing is random."""
    diffae, unet, spn = nets
    with autocast(pictures.device, config.precision):
        z = diffae.encode(pictures)
        x = diffae.structural_code(pictures, z, config.encode_steps, settings.t0, solver=settings.solver)
        codes = mix_codes(z, z_style, change_point_weights(diffae.config.unet, config.change_point))
        return stylize(unet, x, codes, steps=config.decode_steps, settings=settings, spn=spn, picture=pictures)


def mmfs_stylist(config: StylistConfig, device: torch.device) -> Stylist:
    path = config.model or loading.DEMO / "mmfs.safetensors"
    net = loading.load_mmfs(path)[0].to(device)
    if config.style.suffix.lower() in SUFFIXES:
        w = style_of_picture(net, path, config, device)
    else:
        style = loading.load_mmfs_style(config.style)
        check_mmfs_style(style, net.config, fingerprint(net))
        w, net = style.code(), styled(net, style, config.strength)
    work = partial(mmfs_stylized, net, stylizer(net, config.precision), w.to(device), config.seed)
    return Stylist(net.config.resolution, config.batch, device, work)


@torch.no_grad()
def style_of_picture(net: MMFS, path: Path, config: StylistConfig, device: torch.device) -> Tensor:
    """The w+ code (1, n, S) of a style picture. ValueError where the mapping was trained with another CLIP."""
    clip = loading.load_clip(config.clip or loading.DEMO / "clip.safetensors").to(device)
    if warning := clip_warning(loading.mapper_clip(path), clip_fingerprint(clip)):
        raise ValueError(f"{path.name}: {warning}")
    picture = clip.preprocess_file(read_whole(config.style))
    return net.styles_of(F.normalize(clip.encode_with_tokens(picture)[0].float(), dim=-1))


def mmfs_stylized(net: MMFS, work: Callable[..., Tensor], w: Tensor, seed: int, pictures: Tensor,
                  items: Sequence[int]) -> Tensor:
    """One network call; float32 where float16 does not hold it."""
    noise = seeded_noise(net.noise_shapes(*pictures.shape[2:]), seed, items, pictures.device)
    codes = w.expand(len(pictures), -1, -1)
    found = work(pictures, codes, *noise)
    return found if torch.isfinite(found).all() else stylizer(net, "float32")(pictures, codes, *noise)
