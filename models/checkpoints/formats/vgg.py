"""The trunks of LPIPS, VGG-16 and AlexNet: torchvision's classifiers (`vgg16-397923af.pth`,
`alexnet-owt-7be5be79.pth`), of which the convolutions are kept, or the whole of LPIPS as its program saves it."""

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
ALEX_CONVOLUTIONS = {0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)}  # px: last
_SLICE = re.compile(r"slice\d\.(\d+\.(?:weight|bias))")  # LPIPS cuts the list into five; the numbers stay
_ADVICE = ("pick torchvision's VGG-16 without batch norm, "
           "https://download.pytorch.org/models/vgg16-397923af.pth")
_ALEX_ADVICE = "pick torchvision's AlexNet, https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"


def matches(weights: Weights) -> bool:
    """True for the feature list of a VGG, whichever, or of an AlexNet, torchvision's or LPIPS's."""
    return "features.0.weight" in weights.state or "slice1.0.weight" in weights.state


def parse(weights: Weights) -> Foreign:
    """Kind "vgg16" or "alexnet": `features.N.weight` and `.bias` of the convolutions. Raises CheckpointError."""
    state = {_SLICE.sub(r"features.\1", name): value for name, value in weights.state.items()}
    first = state["features.0.weight"]
    alex = tuple(first.shape) == (64, 3, 11, 11)
    (check_alexnet if alex else check)(state)
    names = {f"features.{n}.{part}": f"features.{n}.{part}" for n in (ALEX_CONVOLUTIONS if alex else CONVOLUTIONS)
             for part in ("weight", "bias")}
    return Foreign(read_all(state, names), "alexnet" if alex else "vgg16", {"format": "torchvision"})


def check_alexnet(tensors: Mapping[str, Any]) -> None:
    """CheckpointError if the convolutions are not those of torchvision's AlexNet."""
    for n, (c_in, c_out, px) in ALEX_CONVOLUTIONS.items():
        _check_convolution(tensors, n, (c_out, c_in, px, px), _ALEX_ADVICE)


def check(tensors: Mapping[str, Any]) -> None:
    """CheckpointError if the convolutions are not those of VGG-16."""
    others = [name for name in tensors if name.startswith("features.")
              and name.split(".")[1] not in map(str, CONVOLUTIONS)]
    if others:
        raise CheckpointError(f"it has a layer '{short(others[0])}' that VGG-16 does not have; {_ADVICE}")
    for n, (c_in, c_out) in CONVOLUTIONS.items():
        _check_convolution(tensors, n, (c_out, c_in, 3, 3), _ADVICE)


def _check_convolution(tensors: Mapping[str, Any], n: int, shape: tuple[int, ...], advice: str) -> None:
    for name, expected in ((f"features.{n}.weight", shape), (f"features.{n}.bias", shape[:1])):
        value = tensors.get(name)
        if value is None or tuple(value.shape) != expected:
            found = "missing" if value is None else list(value.shape)
            raise CheckpointError(f"its tensor '{name}' is {found}, expected {list(expected)}; {advice}")
