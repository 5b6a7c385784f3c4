"""Inception-v3 of FID (pytorch-fid's and torch-fidelity's file) and of ArtFID (`art_inception.pth`): the trunk is kept.

Their trunks have the same names and shapes, so the heads tell the files apart: FID's has 1008 classes, ArtFID's two
auxiliary heads, torchvision's one head more and 1000 classes.
"""

from __future__ import annotations

from ..errors import CheckpointError
from .foreign import Foreign, read_all
from .weights import Weights

_HEADS = ("fc.", "fc1.", "fc2.", "AuxLogits.", "AuxLogits1.", "AuxLogits2.")
CLASSES = 1008  # of FID's file
_ADVICE = ("for FID pick pt_inception-2015-12-05-6726825d.pth, release fid_weights of "
           "https://github.com/mseitzer/pytorch-fid; for ArtFID pick art_inception.pth of "
           "https://huggingface.co/matthias-wright/art_inception")


def matches(weights: Weights) -> bool:
    """True for Inception-v3 with the names that torchvision uses, whichever."""
    return "Conv2d_1a_3x3.conv.weight" in weights.state and "Mixed_5b.branch1x1.conv.weight" in weights.state


def parse(weights: Weights) -> Foreign:
    """Kind "inception" or "art_inception": the trunk, every key unchanged. Raises CheckpointError."""
    state = weights.state
    names = [name for name in state if not name.startswith(_HEADS) and not name.endswith("num_batches_tracked")]
    return Foreign(read_all(state, {name: name for name in names}), _kind(weights), {"format": "torchvision"})


def _kind(weights: Weights) -> str:
    heads = {name.partition(".")[0] for name in weights.state if name.startswith(_HEADS)}
    classes = weights.state.get("fc.weight")
    if "AuxLogits1" in heads and "AuxLogits2" in heads:
        return "art_inception"
    if classes is not None and len(classes.shape) == 2 and classes.shape[0] == CLASSES and heads == {"fc"}:
        return "inception"
    if classes is not None or "AuxLogits" in heads:
        raise CheckpointError("this is torchvision's Inception of ImageNet, whose features give another number than "
                              f"FID; {_ADVICE}")
    raise CheckpointError(f"it is an Inception without its heads, so it cannot be told whose it is; {_ADVICE}")
