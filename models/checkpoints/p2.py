"""P2 / guided-diffusion UNets: a bare state dict in a torch file (`ffhq_p2.pt`); spec osasis B."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import CheckpointError
from .foreign import Foreign, is_tensor, read_all, text_keys

_SIGNATURE = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight", "out.2.weight")


def matches(root: Mapping) -> bool:
    """True if `root` is a bare UNet state dict with the names of guided-diffusion."""
    return all(name in root for name in _SIGNATURE)


def parse(root: Mapping) -> Foreign:
    """Kind "ddpm": every key unchanged. Raises CheckpointError for class-conditional and mixed files."""
    names = text_keys(root)
    odd = [key for key in root if not isinstance(key, str) or not is_tensor(root[key])]
    if odd:
        raise CheckpointError(f"beside the UNet it holds {str(odd[0])[:80]!r}, which is not a tensor; "
                              "pick a bare state dict such as ffhq_p2.pt")
    if "label_emb.weight" in root:
        raise CheckpointError("it is a class-conditional UNet (label_emb); "
                              "pick an unconditional model such as ffhq_p2.pt")
    return Foreign(read_all(root, {name: name for name in names}), "ddpm", {"format": "guided-diffusion"})
