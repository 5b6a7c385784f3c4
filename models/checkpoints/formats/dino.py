"""DINO ViTs: facebook's state dict (`dino_vitbase8_pretrain.pth`) and timm's safetensors (docs/mmfs.md B.3)."""

from __future__ import annotations

from ..errors import CheckpointError, short
from .foreign import Foreign, read_all, relevant
from .weights import Weights

_SIGNS = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
_MODULES = ("cls_token", "pos_embed", "patch_embed.proj.", "blocks.", "norm.")
_ADVICE = ("pick dino_vitbase8_pretrain.pth of https://github.com/facebookresearch/dino, or model.safetensors of "
           "https://huggingface.co/timm/vit_base_patch8_224.dino")


def matches(weights: Weights) -> bool:
    """True for a ViT with the names that facebook and timm use."""
    return all(sign in weights.state for sign in _SIGNS)


def parse(weights: Weights) -> Foreign:
    """Kind "dino": every key unchanged; a classifier (`head.`) is left out. Raises CheckpointError."""
    state = relevant(weights.state, _MODULES)
    names = [name for name in state if not name.startswith("head.")]
    foreign = [name for name in names if not name.startswith(_MODULES)]
    if foreign:
        raise CheckpointError(f"it is a ViT with '{short(foreign[0])}', which DINO's do not have; {_ADVICE}")
    return Foreign(read_all(state, {name: name for name in names}), "dino", {"format": "dino"})
