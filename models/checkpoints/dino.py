"""DINO ViTs: facebook's bare state dict (`dino_vitbase8_pretrain.pth`) and timm's safetensors (MMFS spec B.3)."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import CheckpointError
from .foreign import Foreign, is_tensor, read_all, text_keys

_SIGNS = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
_ADVICE = ("pick dino_vitbase8_pretrain.pth of https://github.com/facebookresearch/dino, or model.safetensors of "
           "https://huggingface.co/timm/vit_base_patch8_224.dino")


def matches(root: Mapping) -> bool:
    """True if `root` is a bare ViT with the names that facebook and timm use."""
    return all(sign in root for sign in _SIGNS)


def parse(root: Mapping) -> Foreign:
    """Kind "dino": every key unchanged; a classifier (`head.`) is left out. Raises CheckpointError."""
    odd = [key for key in root if not isinstance(key, str) or not is_tensor(root[key])]
    if odd:
        raise CheckpointError(f"beside the ViT it holds {str(odd[0])[:80]!r}, which is not a tensor; {_ADVICE}")
    foreign = [key for key in text_keys(root)
               if not key.startswith(("cls_token", "pos_embed", "patch_embed.proj.", "blocks.", "norm.", "head."))]
    if foreign:
        raise CheckpointError(f"it is a ViT with '{foreign[0][:80]}', which DINO's do not have; {_ADVICE}")
    names = {key: key for key in text_keys(root) if not key.startswith("head.")}
    return Foreign(read_all(root, names), "dino", {"format": "dino"})
