"""DINO's vision transformer (timm), up to the keys of its last block: the structure of a picture (docs/mmfs.md B.3).

`encoder.py` has the substitute for when there is no file.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..unet import entry_count
from .packages import package_module

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EPS = 1e-6  # of the layer norms


@dataclass(frozen=True)
class DinoConfig:
    """Sizes of the ViT (default: ViT-B/8). antialias: of the resize to `image_size`; the official program has none."""
    image_size: int = 224
    patch: int = 8
    width: int = 768
    layers: int = 12
    heads: int = 12
    antialias: bool = False

    def __post_init__(self) -> None:
        if self.layers < 2:
            raise ValueError(f"a DINO of {self.layers} layers cannot be used; it takes at least 2")


def detect(tensors: Mapping[str, Tensor], heads: int | None = None) -> DinoConfig:
    """Read the sizes off a state dict with timm's or Facebook's names. ValueError for another kind.

    The heads are not in the shapes: 64 channels each in all published models.
    """
    try:
        width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
        _, tokens, _ = tensors["pos_embed"].shape
    except (KeyError, ValueError) as error:
        raise ValueError(f"not a DINO ViT ({error} is missing or of another shape); dino_vitbase8_pretrain.pth of "
                         "https://github.com/facebookresearch/dino is what MMFS uses") from error
    layers = entry_count(tensors, "blocks.")
    _check_sizes(tensors, width, patch, layers)
    return DinoConfig(patch * round((tokens - 1) ** 0.5), patch, width, layers, heads or max(1, width // 64))


def _check_sizes(tensors: Mapping[str, Tensor], width: int, patch: int, layers: int) -> None:
    """ValueError unless the large tensors are there in full: timm allocates the whole network before it is compared."""
    tokens = tensors["pos_embed"].shape[1]
    wanted = {"patch_embed.proj.weight": (width, 3, patch, patch), "pos_embed": (1, tokens, width)}
    for k in range(layers):
        wanted |= {f"blocks.{k}.attn.qkv.weight": (3 * width, width), f"blocks.{k}.attn.proj.weight": (width, width),
                   f"blocks.{k}.mlp.fc1.weight": (4 * width, width), f"blocks.{k}.mlp.fc2.weight": (width, 4 * width)}
    for name, shape in wanted.items():
        if name not in tensors or tuple(tensors[name].shape) != shape or 0 in shape:
            found = list(tensors[name].shape) if name in tensors else "none"
            raise ValueError(f"not a DINO ViT of width {width}: the shape of its '{name}' is {found}, not "
                             f"{list(shape)}")


class Dino(nn.Module):
    """The network is `net`, with timm's names. In evaluation mode and frozen when loaded."""
    mean: Tensor
    std: Tensor

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.config = config
        self.net = _vision_transformer(config)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def preprocess(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> the input: the shorter side `image_size`, the other one a multiple of `patch`."""
        config, sides = self.config, pictures.shape[-2:]
        scale = config.image_size / min(sides) / config.patch
        size = tuple(max(config.image_size, round(side * scale) * config.patch) for side in sides)
        x = (pictures + 1) / 2
        if size != tuple(sides):
            x = F.interpolate(x, size, mode="bilinear", antialias=config.antialias, align_corners=False)
        return (x - self.mean) / self.std

    def keys(self, pictures: Tensor) -> Tensor:
        """Keys of the last block, all heads side by side, of pictures in [-1, 1]: (B, 1 + patches, D), CLS first."""
        last = self.net.get_submodule(f"blocks.{self.config.layers - 1}")
        # timm's annotation leaves out the pairs that return_prefix_tokens gives
        [(patches, cls)] = cast("list[tuple[Tensor, Tensor]]", self.net.forward_intermediates(
            self.preprocess(pictures), indices=[self.config.layers - 2], return_prefix_tokens=True, stop_early=True,
            output_fmt="NLC", intermediates_only=True))
        x = last.get_submodule("norm1")(torch.cat([cls, patches], 1))
        part = slice(self.config.width, 2 * self.config.width)
        return F.linear(x, *(last.get_parameter(f"attn.qkv.{name}")[part] for name in ("weight", "bias")))


def _vision_transformer(config: DinoConfig) -> VisionTransformer:
    timm = package_module("timm.models.vision_transformer", "timm")
    with torch.device("cpu"):  # timm before 1.0.21 calculates with numbers that the meta device does not have
        return timm.VisionTransformer(config.image_size, config.patch, embed_dim=config.width, depth=config.layers,
                                      num_heads=config.heads, num_classes=0, norm_layer=partial(nn.LayerNorm, eps=EPS),
                                      dynamic_img_size=True)


def build(config: DinoConfig, tensors: Mapping[str, Tensor]) -> Dino:
    """A DINO with these weights, in float32. RuntimeError if they do not fit."""
    dino = Dino(config)
    dino.net.load_state_dict(dict(tensors))
    return dino.eval().requires_grad_(False)
