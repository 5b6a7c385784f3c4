"""Every socket of the pack, and what travels on it. Tensors lie on the CPU in float32; nothing is changed in place.

B is the batch, E the width of the semantic code, px the side of the model's pictures; pictures are in [-1, 1].
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

from comfy_api.latest import io
from torch import Tensor, nn

from ..evaluate.public import PublicNetworks
from ..models.attributes import AttributeClassifier
from ..models.code_cache import CodeCache
from ..models.diffae import DiffAE, change_point_weights, mix_codes
from ..models.features.clip import Clip
from ..models.features.encoder import EncoderDistance
from ..models.mmfs import MMFS, clip_fingerprint, clip_warning
from ..models.osasis import SamplingSettings
from ..models.spn import SPN
from ..models.style import OSASISStyle
from ..models.stylegan2 import Discriminator, StyleGAN2, mean_w
from ..models.unet import UNet, UNetConfig
from ..train.source_faces import KnownFaces, known_faces
from .host import PatchedModule, bytes_of, running, warn

DIFFAE = io.Custom("ATELIER_DIFFAE")
DDPM = io.Custom("ATELIER_DDPM")
CLIP = io.Custom("ATELIER_CLIP")
PERCEPTUAL = io.Custom("ATELIER_PERCEPTUAL")
SEMANTIC_CODE = io.Custom("ATELIER_SEMANTIC_CODE")
STRUCTURAL_CODE = io.Custom("ATELIER_STRUCTURAL_CODE")
MIXED_CODES = io.Custom("ATELIER_MIXED_CODES")
OSASIS_STYLE = io.Custom("ATELIER_OSASIS_STYLE")
OSASIS_TUNE_OPTIONS = io.Custom("ATELIER_OSASIS_TUNE_OPTIONS")
STYLEGAN2 = io.Custom("ATELIER_STYLEGAN2")
MMFS_MODEL = io.Custom("ATELIER_MMFS")
W_PLUS = io.Custom("ATELIER_W_PLUS")
MMFS_STYLE = io.Custom("ATELIER_MMFS_STYLE")  # a models.style.MMFSStyle
MMFS_TUNE_OPTIONS = io.Custom("ATELIER_MMFS_TUNE_OPTIONS")
STRUCTURE_NET = io.Custom("ATELIER_STRUCTURE_NET")
METRIC_NETWORKS = io.Custom("ATELIER_METRIC_NETWORKS")
FACE_CROP = io.Custom("ATELIER_FACE_CROP")  # a models.faces.crops.FaceCrops
FACE_LANDMARKS = io.Custom("FACE_LANDMARKS")  # core's: {"frames": [[{"landmarks_xy": (478, 2)}, a face], a picture]}
BOUNDING_BOX = io.Custom("BOUNDING_BOX")  # core's: {"x", "y", "width", "height"}, a list of them, or lists of them
ATTRIBUTES = io.Custom("ATELIER_ATTRIBUTES")
DIRECTION = io.Custom("ATELIER_DIRECTION")  # a models.edit.SemanticDirection
GEOMETRY = io.Custom("ATELIER_GEOMETRY")  # a models.faces.geometry.FaceGeometry
SWEPT = io.Custom("FLOAT,INT,BOOLEAN,STRING,COMBO")  # one of these: fits any of their inputs
SWEEP = io.Custom("ATELIER_SWEEP")
LOSS_MAP = io.Custom("LOSS_MAP")  # core's: {"loss": [float, ...]}


@dataclass(frozen=True)
class LoadedModel:
    """A network in ComfyUI's care. name: the file it came from."""
    name: str
    patched: PatchedModule

    def get_ram_usage(self) -> int:
        """Bytes of the weights; ComfyUI's --cache-ram asks for it."""
        return self.patched.bytes


@dataclass(frozen=True)
class DDPMModel(LoadedModel):
    """ATELIER_DDPM: a UNet without z."""

    @property
    def net(self) -> UNet:
        return cast(UNet, self.patched.net)


@dataclass(frozen=True)
class CLIPModel(LoadedModel):
    """ATELIER_CLIP."""

    @property
    def net(self) -> Clip:
        return cast(Clip, self.patched.net)

    @cached_property
    def fingerprint(self) -> str:
        """Of its weights: computed once."""
        return clip_fingerprint(self.net)


@dataclass(frozen=True)
class DiffAEModel(LoadedModel):
    """ATELIER_DIFFAE. fingerprint: of its weights; codes and styles name the model they belong to by it. codes: those
    that it has computed."""
    fingerprint: str
    codes: CodeCache[Tensor] = field(default_factory=CodeCache, compare=False)

    @property
    def net(self) -> DiffAE:
        return cast(DiffAE, self.patched.net)

    @property
    def unet(self) -> UNetConfig:
        return self.net.config.unet

    def get_ram_usage(self) -> int:
        """Bytes of the weights and of the codes that are kept."""
        return self.patched.bytes + self.codes.bytes


@dataclass(frozen=True)
class PerceptualModel(LoadedModel):
    """ATELIER_PERCEPTUAL: LPIPS-VGG, or the encoder of a DiffAE in its stead."""
    substitute: bool

    def distance(self) -> nn.Module:
        """distance(a, b) -> (B,), on whatever device the patched network is."""
        return EncoderDistance(cast(DiffAE, self.patched.net).encoder) if self.substitute else self.patched.net


@dataclass(frozen=True)
class StyleGAN2Model(LoadedModel):
    """ATELIER_STYLEGAN2. discriminator: the file's, needed by Stage I only; it stays in main memory."""
    discriminator: Discriminator | None = field(repr=False)

    @property
    def net(self) -> StyleGAN2:
        return cast(StyleGAN2, self.patched.net)

    def get_ram_usage(self) -> int:
        """Bytes of the weights, the discriminator's too."""
        return self.patched.bytes + bytes_of(self.discriminator)


@dataclass(frozen=True)
class MMFSModel(LoadedModel):
    """ATELIER_MMFS. fingerprint: of its weights. discriminator: of Stage II, for training only, in main memory.

    phase: 1, 2 or 3, what it was trained for so far. clip: fingerprint of the CLIP of its mapping, "" for unknown.
    faces: source faces that fine-tunes have prepared.
    """
    fingerprint: str
    discriminator: Discriminator | None = field(repr=False)
    phase: int
    clip: str = ""
    faces: KnownFaces = field(default_factory=known_faces, compare=False)

    @property
    def net(self) -> MMFS:
        return cast(MMFS, self.patched.net)

    def get_ram_usage(self) -> int:
        """Bytes of the weights, the discriminator's too, and of the source faces that are kept."""
        return self.patched.bytes + bytes_of(self.discriminator) + self.faces.bytes

    @cached_property
    def mean_w(self) -> Tensor:
        """The mean w (S,), for truncation: computed once."""
        with running(self.patched):
            return mean_w(self.net.mapping).float().cpu()


@dataclass(frozen=True)
class StructureNetModel(LoadedModel):
    """ATELIER_STRUCTURE_NET: keys(pictures) -> (B, tokens, D). substitute: the encoder of a DiffAE, not DINO."""
    substitute: bool

    @property
    def net(self) -> nn.Module:
        return self.patched.net


@dataclass(frozen=True)
class MetricNetworks:
    """ATELIER_METRIC_NETWORKS: those of evaluate.public.PUBLIC that the user has. models: {name there: the network},
    each under the name of its file with the beginning of its sha256."""
    models: Mapping[str, LoadedModel] = field(default_factory=dict)

    def patched(self, names: Iterable[str]) -> list[PatchedModule]:
        """Of these names, those that there are."""
        return [self.models[name].patched for name in names if name in self.models]

    def public(self, names: Iterable[str], resize: str, advice: Mapping[str, str]) -> PublicNetworks:
        """Of these names, those that there are, as measures take them."""
        nets = {name: self.models[name] for name in names if name in self.models}
        return PublicNetworks(**{name: cast(Any, model.patched.net) for name, model in nets.items()}, resize=resize,
                              files={name: model.name for name, model in nets.items()}, advice=advice)

    def get_ram_usage(self) -> int:
        """Bytes of the weights."""
        return sum(model.get_ram_usage() for model in self.models.values())


@dataclass(frozen=True)
class WPlus:
    """ATELIER_W_PLUS: w+ codes (B, n, S) of MMFS. fingerprint: of the model they are for. origin: in words."""
    w: Tensor = field(repr=False)
    fingerprint: str
    origin: str

    @property
    def layers(self) -> int:
        return self.w.shape[1]


@dataclass(frozen=True)
class Attributes:
    """ATELIER_ATTRIBUTES: a classifier of semantic codes. name: the file. fingerprint: of its DiffAE ("" unknown)."""
    name: str
    classifier: AttributeClassifier = field(repr=False)
    fingerprint: str


@dataclass(frozen=True)
class SemanticCode:
    """ATELIER_SEMANTIC_CODE: codes z (B, E), unbounded. fingerprint: of the DiffAE that made them ("" unknown)."""
    z: Tensor = field(repr=False)
    fingerprint: str


@dataclass(frozen=True)
class StructuralCode:
    """ATELIER_STRUCTURAL_CODE: the structural code x (B, 3, px, px) at t0 (0..1], the picture (B, 3, px, px) it was
    made of, the steps it took, and the DiffAE's configuration and fingerprint."""
    x: Tensor = field(repr=False)
    picture: Tensor = field(repr=False)
    t0: float
    steps: int
    config: UNetConfig
    fingerprint: str

    def repeated(self, times: int) -> StructuralCode:
        """The whole batch, several times."""
        repeats = (times, 1, 1, 1)
        return replace(self, x=self.x.repeat(repeats), picture=self.picture.repeat(repeats))


@dataclass(frozen=True)
class MixedCodes:
    """ATELIER_MIXED_CODES: content and style codes. Levels of at least `change_point` px take the style's (`swap`: the
    content's); `levels` overrides single levels by (side in px or "middle", weight of the style 0..1). strength: of the
    style's code at all levels; 0 is the content's alone."""
    content: SemanticCode
    style: SemanticCode
    change_point: int
    swap: bool
    levels: tuple[tuple[int | str, float], ...] = ()
    strength: float = 1.0

    def weights(self, config: UNetConfig) -> tuple[float, ...]:
        """The style's weight at every level, finest first, and in the middle. ValueError for an unknown level."""
        weights = list(change_point_weights(config, self.change_point, self.swap))
        places = {config.resolution(level): level for level in range(config.levels)} | {"middle": config.levels}
        for level, weight in self.levels:
            if level not in places:
                raise ValueError(f"levels names {level}, which this model does not have; its levels are "
                                 f"{', '.join(map(str, places))}")
            weights[places[level]] = weight
        return tuple(self.strength * weight for weight in weights)

    def codes(self, structure: StructuralCode) -> tuple[Tensor, ...]:
        """z for every level and the middle, each (B, E), B that of the structure."""
        count = len(structure.x)
        content = batch_of(self.content.z, count, "the content code")
        style = batch_of(self.style.z, count, "the style code")
        return mix_codes(content, style, self.weights(structure.config))


@dataclass(frozen=True)
class LoadedStyle:
    """ATELIER_OSASIS_STYLE: the style, and its two networks {"unet", "spn"} in ComfyUI's care."""
    style: OSASISStyle
    patched: PatchedModule

    @classmethod
    def of(cls, style: OSASISStyle) -> LoadedStyle:
        unet, spn = style.networks()
        return cls(style, PatchedModule(nn.ModuleDict({"unet": unet} | ({"spn": spn} if spn else {}))))

    @property
    def settings(self) -> SamplingSettings:
        """t0, SPN weight and time, noise level that the style was fine-tuned with; official ones if it does not say."""
        return SamplingSettings.of(self.style.settings)

    @property
    def unet(self) -> UNet:
        return cast(UNet, self.patched.net.get_submodule("unet"))

    @property
    def spn(self) -> SPN | None:
        """None for a style without one."""
        return cast("SPN | None", getattr(self.patched.net, "spn", None))

    def get_ram_usage(self) -> int:
        """Bytes of the weights, of the networks and of the style they were made of."""
        return 2 * self.patched.bytes


@dataclass(frozen=True)
class TuneOptions:
    """ATELIER_OSASIS_TUNE_OPTIONS, ATELIER_MMFS_TUNE_OPTIONS: fields of OSASISConfig or FewShotConfig by name."""
    fields: dict


@dataclass(frozen=True)
class Sweep:
    """ATELIER_SWEEP: what was run with which values. columns, rows: labels of one value each; rows () for one axis. The
    values follow each other row by row."""
    columns: tuple[str, ...]
    rows: tuple[str, ...] = ()


def batch_of(z: Tensor, count: int, what: str) -> Tensor:
    """z for `count` pictures: as many codes as pictures, or one for all. ValueError otherwise."""
    if len(z) not in (1, count):
        raise ValueError(f"{what} has {len(z)} rows for {count} pictures; encode the same batch, or a single picture")
    return z.expand(count, -1)


def paired_length(one: int, other: int, names: tuple[str, str]) -> int:
    """Length of two batches together: equally long, or one of them of a single row. ValueError otherwise."""
    count = max(one, other)
    if {one, other} - {1, count}:
        raise ValueError(f"{one} {names[0]} cannot be paired with {other} {names[1]}. Connect as many of both, or a "
                         "single one of either")
    return count


def paired(one: Tensor, other: Tensor, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Both batches at their length together; see `paired_length`."""
    count = paired_length(len(one), len(other), names)
    first, second = (x if len(x) == count else x.expand(count, *x.shape[1:]) for x in (one, other))
    return first, second


def same_model(what: str, found: str, wanted: str, model: str = "DiffAE") -> None:
    """ValueError if two things were made with different models of a kind."""
    if found and wanted and found != wanted:
        raise ValueError(f"{what} was made with another {model} than the rest ({found} instead of {wanted}); "
                         f"connect one and the same Load {model} to all nodes")


def warn_of_clip(mmfs: MMFSModel, clip: CLIPModel) -> str:
    """Say so on the node and in the log if the model's CLIP mapping was trained with another CLIP. Returns what was
    said."""
    warning = clip_warning(mmfs.clip, clip.fingerprint) if mmfs.clip and mmfs.net.mapper is not None else ""
    if warning:
        warn(f"{warning} ({mmfs.name} with {clip.name})")
    return warning
