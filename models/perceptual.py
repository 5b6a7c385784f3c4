"""Perceptual distances of pictures (B, 3, H, W) in [-1, 1]; each network is called as distance(a, b) -> (B,).

LPIPS-VGG is what OSASIS uses; its trunk is read from a file, never downloaded. Where that file is not at hand, the
features of a semantic encoder stand in for it: a substitute, to be named as such. `EncoderKeys` is the same for DINO.
"""
from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .unet import SemanticEncoder

KEYS_PX = 16
VGG_SLICES = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}


class LpipsVGG(nn.Module):
    """LPIPS with the VGG-16 trunk (the lpips package, version 0.1, its own linear heads)."""

    def __init__(self, trunk: Mapping[str, Tensor]):
        """trunk: torchvision's VGG-16 names, `features.N.weight`, `.bias`. KeyError or RuntimeError if incomplete."""
        super().__init__()
        self.net = _lpips_net()
        self.net.net.load_state_dict({f"slice{VGG_SLICES[n]}.{n}.{part}": trunk[f"features.{n}.{part}"]
                                      for n in VGG_SLICES for part in ("weight", "bias")})
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.net(a, b).flatten()


def _lpips_net() -> nn.Module:
    try:
        import lpips
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(f"lpips could not be imported ({error}); run: pip install -r requirements.txt in ComfyUI's "
                          "Python (it needs a torchvision that fits your torch)") from error
    with warnings.catch_warnings():  # torchvision's notes on the argument that lpips passes to it
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)  # pnet_rand: random trunk, nothing downloaded


class EncoderDistance(nn.Module):
    """The substitute: mean squared difference of channel-normalised maps of a DiffAE's frozen encoder, four levels."""

    def __init__(self, encoder: SemanticEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = list(zip(self.encoder.features(a), self.encoder.features(b)))
        chosen = [pairs[i] for i in level_ends([f.shape[-1] for f, _ in pairs])][:4]
        return sum((unit(f) - unit(g)).square().sum(1).mean((1, 2)) for f, g in chosen) / len(chosen)


class EncoderKeys(nn.Module):
    """The substitute for DINO: what a DiffAE's frozen encoder puts out at KEYS_PX x KEYS_PX, one token a position.

    Each channel's mean over the picture is taken out: what is left is how positions differ, not what is common.
    """

    def __init__(self, encoder: SemanticEncoder, image_size: int = 128):
        """image_size: the side that the encoder was trained for. ValueError if it has no map of KEYS_PX."""
        super().__init__()
        self.image_size = image_size
        weight = encoder.input_blocks[0][0].weight
        with torch.no_grad():
            sizes = [f.shape[-1] for f in encoder.features(weight.new_zeros(1, 3, image_size, image_size))]
        if KEYS_PX not in sizes:
            raise ValueError(f"this encoder has no map of {KEYS_PX} px for pictures of {image_size} px")
        last = max(i for i, size in enumerate(sizes) if size == KEYS_PX)
        self.blocks = encoder.input_blocks[:last + 1]

    def keys(self, pictures: Tensor) -> Tensor:
        """Keys (B, KEYS_PX^2, D) of pictures (B, 3, H, W) in [-1, 1]; what is not square is squeezed."""
        size = (self.image_size,) * 2
        x = pictures
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        for block in self.blocks:
            x = block(x)
        x = x.flatten(2).transpose(1, 2)
        return x - x.mean(1, keepdim=True)


def unit(f: Tensor) -> Tensor:
    """Each position's channels scaled to length 1."""
    return f / (f.norm(dim=1, keepdim=True) + 1e-6)


def level_ends(sizes: list[int]) -> list[int]:
    """Index of the last map of each size."""
    return [i for i, size in enumerate(sizes) if i + 1 == len(sizes) or sizes[i + 1] != size]
