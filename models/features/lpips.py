"""LPIPS: the perceptual distance of pictures (B, 3, H, W) in [-1, 1], distance(a, b) -> (B,).

The trunk, VGG-16 or AlexNet, is read from a file, never downloaded; `encoder.py` has the substitute for when there is
none. It has no config: there is one network of each.
"""
from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .packages import package_module

if TYPE_CHECKING:
    from lpips import LPIPS

VGG_SLICES = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}
ALEX_SLICES = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}


class LpipsVGG(nn.Module):
    """LPIPS with the VGG-16 trunk (the lpips package, version 0.1, its own linear heads)."""
    NAME, SLICES = "vgg", VGG_SLICES

    def __init__(self, trunk: Mapping[str, Tensor]) -> None:
        """trunk: torchvision's names, `features.N.weight`, `.bias`. KeyError or RuntimeError if incomplete."""
        super().__init__()
        self.net = _lpips_net(self.NAME)
        self.net.net.load_state_dict({f"slice{self.SLICES[n]}.{n}.{part}": trunk[f"features.{n}.{part}"]
                                      for n in self.SLICES for part in ("weight", "bias")})
        self.eval().requires_grad_(False)

    def preprocess(self, pictures: Tensor) -> Tensor:
        """The trunk's input (B, 3, H, W) of pictures in [-1, 1]."""
        return self.net.scaling_layer(pictures)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.net(a, b).flatten()


class LpipsAlex(LpipsVGG):
    """LPIPS with the AlexNet trunk: that of ArtFID and of tables of diversity. Another scale than LPIPS-VGG."""
    NAME, SLICES = "alex", ALEX_SLICES


def detect(tensors: Mapping[str, Tensor]) -> None:
    """ValueError if a convolution of VGG-16 is missing; there is nothing to configure."""
    missing = [f"features.{n}.weight" for n in VGG_SLICES if f"features.{n}.weight" not in tensors]
    if missing:
        raise ValueError(f"not a VGG-16 ({missing[0]} is missing); LPIPS uses torchvision's vgg16-397923af.pth")


def build(config: None, tensors: Mapping[str, Tensor]) -> LpipsVGG:
    """LPIPS on this trunk, in float32, frozen. KeyError or RuntimeError if it is incomplete."""
    return LpipsVGG(tensors)


def _lpips_net(name: str) -> LPIPS:
    lpips = package_module("lpips", "lpips")
    with warnings.catch_warnings():  # torchvision's notes on the argument that lpips passes to it
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=name, pnet_rand=True, verbose=False)  # pnet_rand: random trunk, no download
