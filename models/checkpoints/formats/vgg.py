"""The VGG-16 trunk of LPIPS: torchvision's classifier (`vgg16-397923af.pth`), of which the convolutions are kept, or
the whole of LPIPS as its program saves it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError, short
from .foreign import Foreign, read_all
from .weights import Weights

# number of each convolution in the feature list: (channels in, channels out)
CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
                17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}
_SLICE = re.compile(r"slice\d\.(\d+\.(?:weight|bias))")  # LPIPS cuts the list into five; the numbers stay
_ADVICE = ("pick torchvision's VGG-16 without batch norm, "
           "https://download.pytorch.org/models/vgg16-397923af.pth")


def matches(weights: Weights) -> bool:
    """True for the feature list of a VGG, whichever, torchvision's or LPIPS's."""
    return "features.0.weight" in weights.state or "slice1.0.weight" in weights.state


def parse(weights: Weights) -> Foreign:
    """Kind "vgg16": `features.N.weight` and `.bias` of the 13 convolutions. Raises CheckpointError."""
    state = {_SLICE.sub(r"features.\1", name): value for name, value in weights.state.items()}
    check(state)
    names = {f"features.{n}.{part}": f"features.{n}.{part}" for n in CONVOLUTIONS for part in ("weight", "bias")}
    return Foreign(read_all(state, names), "vgg16", {"format": "torchvision"})


def check(tensors: Mapping[str, Any]) -> None:
    """CheckpointError if the convolutions are not those of VGG-16."""
    others = [name for name in tensors if name.startswith("features.")
              and name.split(".")[1] not in map(str, CONVOLUTIONS)]
    if others:
        raise CheckpointError(f"it has a layer '{short(others[0])}' that VGG-16 does not have; {_ADVICE}")
    for n, (c_in, c_out) in CONVOLUTIONS.items():
        for name, shape in ((f"features.{n}.weight", (c_out, c_in, 3, 3)), (f"features.{n}.bias", (c_out,))):
            value = tensors.get(name)
            if value is None or tuple(value.shape) != shape:
                found = "missing" if value is None else list(value.shape)
                raise CheckpointError(f"its tensor '{name}' is {found}, expected {list(shape)}; {_ADVICE}")
