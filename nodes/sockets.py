"""Every socket of the pack, and what travels on it. Tensors lie on the CPU in float32; nothing is changed in place.

B is the batch, E the width of the semantic code, px the side of the model's pictures; pictures are in [-1, 1].
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from comfy_api.latest import io
from torch import Tensor, nn

from ..models import osasis
from ..models.diffae import DiffAE, change_point_weights, mix_codes
from ..models.mmfs import MMFS
from ..models.perceptual import EncoderDistance
from ..models.stylegan2 import Discriminator, StyleGAN2, mean_style
from ..models.unet import UNetConfig
from .host import Managed, running

DIFFAE = io.Custom("ATELIER_DIFFAE")
DDPM = io.Custom("ATELIER_DDPM")
CLIP = io.Custom("ATELIER_CLIP")
PERCEPTUAL = io.Custom("ATELIER_PERCEPTUAL")
SEMANTIC = io.Custom("ATELIER_SEMANTIC")
STRUCTURE = io.Custom("ATELIER_STRUCTURE")
MIX = io.Custom("ATELIER_MIX")
STYLE = io.Custom("ATELIER_STYLE")
TUNE_OPTIONS = io.Custom("ATELIER_TUNE_OPTIONS")
STYLEGAN2 = io.Custom("ATELIER_STYLEGAN2")
MMFS_MODEL = io.Custom("ATELIER_MMFS")
WPLUS = io.Custom("ATELIER_WPLUS")
MMFS_STYLE = io.Custom("ATELIER_MMFS_STYLE")  # a models.mmfs_style.MMFSStyle
MMFS_TUNE_OPTIONS = io.Custom("ATELIER_MMFS_TUNE_OPTIONS")
SELF_SIMILARITY = io.Custom("ATELIER_SELF_SIMILARITY")
LOSS_MAP = io.Custom("LOSS_MAP")  # core's: {"loss": [float, ...]}


@dataclass(frozen=True)
class Network:
    """ATELIER_DDPM (a UNet), ATELIER_CLIP (a Clip): a network, in ComfyUI's care. name: the file it came from."""
    name: str
    managed: Managed


@dataclass(frozen=True)
class Autoencoder(Network):
    """ATELIER_DIFFAE. fingerprint: of its weights; codes and styles name the model they belong to by it."""
    fingerprint: str

    @property
    def net(self) -> DiffAE:
        return self.managed.net

    @property
    def unet(self) -> UNetConfig:
        return self.net.config.unet


@dataclass(frozen=True)
class Perceptual(Network):
    """ATELIER_PERCEPTUAL: LPIPS-VGG, or the encoder of a DiffAE in its stead."""
    substitute: bool

    def distance(self) -> nn.Module:
        """distance(a, b) -> (B,), on whatever device the managed network is."""
        return EncoderDistance(self.managed.net.encoder) if self.substitute else self.managed.net


@dataclass(frozen=True)
class Faces(Network):
    """ATELIER_STYLEGAN2. discriminator: the file's, needed by Stage I only; it stays in main memory."""
    discriminator: Discriminator | None

    @property
    def net(self) -> StyleGAN2:
        return self.managed.net


@dataclass(frozen=True)
class Stylizer(Network):
    """ATELIER_MMFS. fingerprint: of its weights. discriminator: of Stage II, for training only, in main memory.

    phase: 1, 2 or 3, what it was trained for so far.
    """
    fingerprint: str
    discriminator: Discriminator | None
    phase: int

    @property
    def net(self) -> MMFS:
        return self.managed.net

    @cached_property
    def mean(self) -> Tensor:
        """The mean style (S,), for truncation: computed once."""
        with running(self.managed):
            return mean_style(self.net.mapping).float().cpu()


@dataclass(frozen=True)
class SelfSimilarity(Network):
    """ATELIER_SELF_SIMILARITY: keys(pictures) -> (B, tokens, D). substitute: the encoder of a DiffAE, not DINO."""
    substitute: bool

    @property
    def net(self) -> nn.Module:
        return self.managed.net


@dataclass(frozen=True)
class WPlus:
    """ATELIER_WPLUS: styles w (B, n, S) of MMFS. fingerprint: of the model they are for. what: where they come from."""
    w: Tensor
    fingerprint: str
    what: str

    @property
    def layers(self) -> int:
        return self.w.shape[1]


@dataclass(frozen=True)
class Semantic:
    """ATELIER_SEMANTIC: codes z (B, E), unbounded. fingerprint: of the DiffAE that made them ("" unknown)."""
    z: Tensor
    fingerprint: str


@dataclass(frozen=True)
class Structure:
    """ATELIER_STRUCTURE: the structural code x (B, 3, px, px) at strength t0 (0..1], the picture (B, 3, px, px) it
    was made of, the steps it took, and the DiffAE's configuration and fingerprint."""
    x: Tensor
    picture: Tensor
    strength: float
    steps: int
    config: UNetConfig
    fingerprint: str


@dataclass(frozen=True)
class Mix:
    """ATELIER_MIX: content and style codes. Levels of at least `change_point` px take the style's (`swap`: the
    content's); `levels` overrides single levels by (side in px or "middle", weight of the style 0..1)."""
    content: Semantic
    style: Semantic
    change_point: int
    swap: bool
    levels: tuple[tuple[int | str, float], ...] = ()

    def weights(self, config: UNetConfig) -> tuple[float, ...]:
        """The style's weight at every level, finest first, and in the middle. ValueError for an unknown level."""
        weights = list(change_point_weights(config, self.change_point, self.swap))
        places = {config.resolution(level): level for level in range(config.levels)} | {"middle": config.levels}
        for level, weight in self.levels:
            if level not in places:
                raise ValueError(f"levels names {level}, which this model does not have; its levels are "
                                 f"{', '.join(map(str, places))}")
            weights[places[level]] = weight
        return tuple(weights)

    def codes(self, structure: Structure) -> tuple[Tensor, ...]:
        """z for every level and the middle, each (B, E), B that of the structure."""
        count = len(structure.x)
        content = batch_of(self.content.z, count, "the content code")
        style = batch_of(self.style.z, count, "the style code")
        return mix_codes(content, style, self.weights(structure.config))


@dataclass(frozen=True)
class ManagedStyle:
    """ATELIER_STYLE: the style, and its two networks {"unet", "spn"} in ComfyUI's care."""
    style: osasis.Style
    managed: Managed

    @classmethod
    def of(cls, style: osasis.Style) -> ManagedStyle:
        unet, spn = style.networks()
        return cls(style, Managed(nn.ModuleDict({"unet": unet} | ({"spn": spn} if spn else {}))))


@dataclass(frozen=True)
class TuneOptions:
    """ATELIER_TUNE_OPTIONS: fields of train.osasis.OsasisConfig by name."""
    fields: dict


@dataclass(frozen=True)
class MMFSTuneOptions:
    """ATELIER_MMFS_TUNE_OPTIONS: fields of train.fewshot.FewShotConfig by name."""
    fields: dict


def batch_of(z: Tensor, count: int, what: str) -> Tensor:
    """z for `count` pictures: as many codes as pictures, or one for all. ValueError otherwise."""
    if len(z) not in (1, count):
        raise ValueError(f"{what} has {len(z)} rows for {count} pictures; encode the same batch, or a single picture")
    return z.expand(count, -1)


def paired(one: Tensor, other: Tensor, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Two batches of one length: equally long, or one of them of a single row. ValueError otherwise."""
    count = max(len(one), len(other))
    if {len(one), len(other)} - {1, count}:
        raise ValueError(f"{len(one)} {names[0]} cannot be paired with {len(other)} {names[1]}; connect as many of "
                         "both, or a single one of either")
    return tuple(x if len(x) == count else x.expand(count, *x.shape[1:]) for x in (one, other))


def same_model(what: str, found: str, wanted: str, model: str = "DiffAE") -> None:
    """ValueError if two things were made with different models of a kind."""
    if found and wanted and found != wanted:
        raise ValueError(f"{what} was made with another {model} than the rest ({found} instead of {wanted}); "
                         f"connect one and the same Load {model} to all nodes")


def parse_levels(text: str) -> tuple[tuple[int | str, float], ...]:
    """'128:1, 64:0.5, middle:0' -> ((128, 1.0), (64, 0.5), ("middle", 0.0)). ValueError for anything else."""
    entries = [part.strip() for part in re.split(r"[,;\n]", text) if part.strip()]
    parsed = []
    for entry in entries:
        found = re.fullmatch(r"(\d{1,4}|middle)\s*[:=]\s*([01](?:\.\d*)?|\.\d+)", entry.lower())
        if not found or float(found[2]) > 1:
            raise ValueError(f"levels: {entry!r} cannot be read; write 'side in px:weight of the style', "
                             "for example 128:1, 64:0.5, middle:0")
        parsed.append((found[1] if found[1] == "middle" else int(found[1]), float(found[2])))
    return tuple(parsed)
