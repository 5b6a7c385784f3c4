"""The public networks that papers measure with: which file each is of, what it sees, and what is said without it.

A number of such a network stands in a column of its own: nothing replaces a network that is missing.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..models.features.arcface import ArcFace
from ..models.features.clip import Clip
from ..models.features.dino import Dino
from ..models.features.inception import RESIZES, Inception
from ..models.features.lpips import LpipsAlex, LpipsVGG
from ..models.kinds import KINDS


@dataclass(frozen=True)
class PublicNetwork:
    """kind: of its file (KINDS). option: of `atelier evaluate`, which takes it. sees: how it is given pictures."""
    kind: str
    option: str
    sees: str


PUBLIC: dict[str, PublicNetwork] = {
    "lpips_alex": PublicNetwork("alexnet", "--alexnet", "LPIPS 0.1 with AlexNet, pictures at their own size"),
    "lpips_vgg": PublicNetwork("vgg16", "--lpips", "LPIPS 0.1 with VGG-16, pictures at their own size"),
    "arcface": PublicNetwork("arcface", "--arcface", "rows 35:223 and columns 32:220 of aligned faces at 256 px, "
                             "pooled to 112 px"),
    "dino": PublicNetwork("dino", "--dino", "all keys of the last block with CLS, shorter side 224 px, bilinear "
                          "without antialias"),
    "public_clip": PublicNetwork("clip", "--clip", "shorter side as the model's, bicubic with antialias, centre crop"),
    "inception": PublicNetwork("inception", "--inception", "8 bits, resize {resize} to 299 x 299 px, 2048 features"),
    "art_inception": PublicNetwork("art_inception", "--art-inception", "8 bits, [0, 1], pictures at their own size, "
                                   "2048 features"),
}


@dataclass(frozen=True)
class PublicNetworks:
    """Those that the user has, on one device; the others are None. files: {name: its file, as reports name it}.

    resize: of FID's pictures, one of RESIZES. ValueError for another one. advice: {name: how a missing one is given},
    by default the option of `atelier evaluate`.
    """
    lpips_alex: LpipsAlex | None = None
    lpips_vgg: LpipsVGG | None = None
    arcface: ArcFace | None = None
    dino: Dino | None = None
    public_clip: Clip | None = None
    inception: Inception | None = None
    art_inception: Inception | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    resize: str = "clean"
    advice: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise ValueError(f"resize {self.resize!r} is unknown; it is one of {', '.join(RESIZES)}")

    def has(self, name: str) -> bool:
        return getattr(self, name) is not None

    def network(self, name: str) -> Any:
        """The network of this name in PUBLIC. ValueError, with file and page, if it is missing."""
        if not self.has(name):
            raise ValueError(self.missing(name))
        return getattr(self, name)

    def missing(self, name: str) -> str:
        """What is to be done to have this network."""
        kind = KINDS[PUBLIC[name].kind]
        advice = self.advice.get(name, f"give its file with {PUBLIC[name].option}")
        return f"{kind.what} is missing: {advice} ({kind.page})"

    def networks(self) -> list[torch.nn.Module]:
        """Those that there are."""
        return [self.network(name) for name in PUBLIC if self.has(name)]

    def seen(self, name: str) -> str:
        """Which network this is, of which file, and how it sees pictures."""
        what = self.arcface.config.name if name == "arcface" and self.arcface else KINDS[PUBLIC[name].kind].what
        return f"{what} ({self.files.get(name, 'file unknown')}), {PUBLIC[name].sees.format(resize=self.resize)}"
