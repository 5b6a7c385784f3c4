"""The VGG-16 trunk of LPIPS: torchvision's classifier (`vgg16-397923af.pth`), of which the convolutions are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import CheckpointError
from .foreign import Foreign, is_tensor, read_all, text_keys

# number of each convolution in the feature list: (channels in, channels out)
CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
                17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}
_ADVICE = ("pick torchvision's VGG-16 without batch norm, "
           "https://download.pytorch.org/models/vgg16-397923af.pth")


def matches(root: Mapping) -> bool:
    """True if `root` has the feature list of a VGG, whichever."""
    return "features.0.weight" in root


def parse(root: Mapping) -> Foreign:
    """Kind "vgg16": `features.N.weight` and `.bias` of the 13 convolutions. Raises CheckpointError."""
    check(root)
    names = {f"features.{n}.{part}": f"features.{n}.{part}" for n in CONVOLUTIONS for part in ("weight", "bias")}
    return Foreign(read_all(root, names), "vgg16", {"format": "torchvision"})


def check(tensors: Mapping[str, Any]) -> None:
    """CheckpointError if the convolutions are not those of VGG-16."""
    others = [name for name in text_keys(tensors) if name.startswith("features.")
              and name.split(".")[1] not in map(str, CONVOLUTIONS)]
    if others:
        raise CheckpointError(f"it has a layer '{others[0]}' that VGG-16 does not have; {_ADVICE}")
    for n, (c_in, c_out) in CONVOLUTIONS.items():
        for name, shape in ((f"features.{n}.weight", (c_out, c_in, 3, 3)), (f"features.{n}.bias", (c_out,))):
            value = tensors.get(name)
            if not is_tensor(value) or tuple(value.shape) != shape:
                found = list(value.shape) if is_tensor(value) else "missing"
                raise CheckpointError(f"its tensor '{name}' is {found}, expected {list(shape)}; {_ADVICE}")
