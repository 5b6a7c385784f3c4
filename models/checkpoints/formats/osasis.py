"""The official OSASIS style checkpoints `iter_N.pt` (docs/osasis.md C.6)."""

from __future__ import annotations

from ..errors import CheckpointError
from .diffae import drop_aliases, our_name
from .foreign import Foreign, read_all
from .weights import Weights

NETWORK, SPN = "diffae_B", "model_map"


def matches(weights: Weights) -> bool:
    """True for the network of an OSASIS style, complete or not."""
    return weights.path[-1:] == (NETWORK,)


def parse(weights: Weights) -> Foreign:
    """Kind "osasis_style": `unet.*` of network B and, if the style has one, `spn.*`; meta holds the iteration.

    B's encoder and latent network never change in training and are left out. Raises CheckpointError.
    """
    names = [name for name in drop_aliases(weights.state) if our_name(name).startswith("unet.")]
    unet = {our_name(name): name for name in names}
    if "unet.input_blocks.0.0.weight" not in unet:
        raise CheckpointError(f"its entry '{NETWORK}' has no UNet; pick an iter_N.pt of the official OSASIS")
    if len(unet) != len(names):
        raise CheckpointError(f"its entry '{NETWORK}' names one tensor twice; pick the unchanged official file")
    tensors = read_all(weights.state, unet)
    _, spn = weights.other((SPN,), ("in_layer.0.weight", "layers.0.weight"))
    if not spn and any(SPN in node for node in weights.around):
        raise CheckpointError(f"its entry '{SPN}' holds no tensors; pick a complete iter_N.pt of the official OSASIS")
    tensors.update(read_all(spn, {f"spn.{name}": name for name in spn}))
    meta = {"format": "osasis", "spn": bool(spn)}
    if weights.fact("iter") is not None:
        meta["iter"] = weights.fact("iter")
    return Foreign(tensors, "osasis_style", meta)
