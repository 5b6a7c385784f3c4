"""P2 / guided-diffusion UNets: a state dict with the program's names (`ffhq_p2.pt`); docs/osasis.md B."""

from __future__ import annotations

from ..errors import CheckpointError
from .foreign import Foreign, read_all, relevant
from .weights import Weights

MODULES = ("time_embed.", "input_blocks.", "middle_block.", "output_blocks.", "out.")
_SIGNATURE = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight", "out.2.weight")


def matches(weights: Weights) -> bool:
    """True for a UNet state dict with the names of guided-diffusion."""
    return all(name in weights.state for name in _SIGNATURE)


def parse(weights: Weights) -> Foreign:
    """Kind "ddpm": every key unchanged. Raises CheckpointError for class-conditional files."""
    if "label_emb.weight" in weights.state:
        raise CheckpointError("it is a class-conditional UNet (label_emb); "
                              "pick an unconditional model such as ffhq_p2.pt")
    state = relevant(weights.state, MODULES)
    return Foreign(read_all(state, {name: name for name in state}), "ddpm", {"format": "guided-diffusion"})
