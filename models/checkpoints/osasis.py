"""The official OSASIS style checkpoints `iter_N.pt`; spec osasis C.6."""

from __future__ import annotations

from collections.abc import Mapping

from .diffae import drop_aliases, our_name
from .errors import CheckpointError
from .foreign import Foreign, entry, read_all, strip, whole_number

NETWORK, SPN = "diffae_B", "model_map"


def matches(root: Mapping) -> bool:
    """True if `root` has the entries of an OSASIS style, complete or not."""
    return NETWORK in root or SPN in root


def parse(root: Mapping) -> Foreign:
    """Kind "osasis_style": `unet.*` of network B and, if the style has one, `spn.*`; meta holds the iteration.

    B's encoder and latent network never change in training and are left out. Raises CheckpointError.
    """
    state = entry(root, NETWORK)
    names = drop_aliases(state, strip(state, ""))
    unet = {our_name(key): name for key, name in names.items() if our_name(key).startswith("unet.")}
    if "unet.input_blocks.0.0.weight" not in unet:
        raise CheckpointError(f"its entry '{NETWORK}' has no UNet; pick an iter_N.pt of the official OSASIS")
    if len(unet) != sum(not key.startswith(("encoder.", "latent_net.")) for key in names):
        raise CheckpointError(f"its entry '{NETWORK}' names one tensor twice; pick the unchanged official file")
    tensors = read_all(state, unet)
    if SPN in root:
        spn = entry(root, SPN)
        tensors.update(read_all(spn, {f"spn.{key}": name for key, name in strip(spn, "").items()}))
    meta = {"format": "osasis", "spn": SPN in root}
    if whole_number(root.get("iter")) is not None:
        meta["iter"] = root["iter"]
    return Foreign(tensors, "osasis_style", meta)
