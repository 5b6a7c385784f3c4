"""ArcFace's face recognition networks: IR-SE50, which pSp, StyleCLIP and StyleGAN-NADA use, and insightface's iResNet.

Both see 112 px of an aligned face (FFHQ's alignment): a fixed part of the picture at 256 px.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..unet import entry_count
from .batch_norm import drop_counters

PX, FACE_PX = 256, 112  # of the whole picture, and of the network's input
ROWS, COLUMNS = slice(35, 223), slice(32, 220)  # of the face in PX
MAP = 7  # px of the last map
IR_SE, IRESNET = "IR-SE", "iResNet"
LAYOUTS = (IR_SE, IRESNET)


@dataclass(frozen=True)
class ArcFaceConfig:
    """layout: of LAYOUTS. units, widths: of the four groups. embed: length of an embedding. reduction: of the SE."""
    layout: str = IR_SE
    units: tuple[int, ...] = (3, 4, 14, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    embed: int = 512
    reduction: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units))
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.layout not in LAYOUTS or len(self.units) != 4 or len(self.widths) != 4:
            raise ValueError(f"{self} is no ArcFace network; the layout is one of {', '.join(LAYOUTS)}, with 4 groups")

    @property
    def name(self) -> str:
        """As papers call it: IR-SE50, iResNet-50."""
        layers = 2 + 2 * sum(self.units)
        return f"{IR_SE}{layers}" if self.layout == IR_SE else f"{IRESNET}-{layers}"


class ArcFace(nn.Module):
    """The network is `net`, with the public files' names. In evaluation mode and frozen when loaded."""

    def __init__(self, config: ArcFaceConfig) -> None:
        super().__init__()
        self.config = config
        self.net = IRSE(config) if config.layout == IR_SE else IResNet(config)
        drop_counters(self)

    def preprocess(self, pictures: Tensor) -> Tensor:
        """Aligned faces (B, 3, H, W) in [-1, 1] -> (B, 3, 112, 112): pooled to 256 px, cropped, pooled to 112 px."""
        if pictures.shape[-2:] != (PX, PX):
            pictures = F.adaptive_avg_pool2d(pictures, PX)
        return F.adaptive_avg_pool2d(pictures[:, :, ROWS, COLUMNS], FACE_PX)

    def embed(self, pictures: Tensor) -> Tensor:
        """(B, D) of aligned faces in [-1, 1]; IR-SE50's have length 1, iResNet's have not."""
        return self.net(self.preprocess(pictures))


class IRSE(nn.Module):
    """Units of a batch norm, two convolutions and a squeeze-and-excitation beside a shortcut."""

    def __init__(self, config: ArcFaceConfig) -> None:
        super().__init__()
        first, last = config.widths[0], config.widths[-1]
        self.input_layer = nn.Sequential(_conv(3, first), nn.BatchNorm2d(first), nn.PReLU(first))
        units, c_in = [], first
        for count, width in zip(config.units, config.widths):
            for k in range(count):
                units.append(_UnitSE(c_in, width, 2 if k == 0 else 1, config.reduction))
                c_in = width
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(nn.BatchNorm2d(last), nn.Dropout(), nn.Flatten(),
                                          nn.Linear(last * MAP * MAP, config.embed), nn.BatchNorm1d(config.embed))

    def forward(self, x: Tensor) -> Tensor:
        x = self.output_layer(self.body(self.input_layer(x)))
        return x / x.norm(dim=1, keepdim=True)


class _UnitSE(nn.Module):
    def __init__(self, c_in: int, width: int, stride: int, reduction: int) -> None:
        super().__init__()
        self.stride = stride
        self.res_layer = nn.Sequential(nn.BatchNorm2d(c_in), _conv(c_in, width), nn.PReLU(width),
                                       _conv(width, width, stride), nn.BatchNorm2d(width),
                                       _Excitation(width, reduction))
        self.shortcut_layer = None if c_in == width else nn.Sequential(
            nn.Conv2d(c_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, ::self.stride, ::self.stride] if self.shortcut_layer is None else self.shortcut_layer(x)
        return self.res_layer(x) + shortcut


class _Excitation(nn.Module):
    """Each channel weighted by what the means of all say."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(width // reduction, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class IResNet(nn.Module):
    """insightface's ResNet; its embeddings are not of length 1."""

    def __init__(self, config: ArcFaceConfig) -> None:
        super().__init__()
        first, last = config.widths[0], config.widths[-1]
        self.conv1, self.bn1, self.prelu = _conv(3, first), nn.BatchNorm2d(first), nn.PReLU(first)
        c_in = first
        for number, (count, width) in enumerate(zip(config.units, config.widths), 1):
            units = [_Unit(c_in if k == 0 else width, width, 2 if k == 0 else 1) for k in range(count)]
            self.add_module(f"layer{number}", nn.Sequential(*units))
            c_in = width
        self.bn2 = nn.BatchNorm2d(last)
        self.fc, self.features = nn.Linear(last * MAP * MAP, config.embed), nn.BatchNorm1d(config.embed)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))


class _Unit(nn.Module):
    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1, self.bn2 = nn.BatchNorm2d(c_in), _conv(c_in, width), nn.BatchNorm2d(width)
        self.prelu, self.conv2, self.bn3 = nn.PReLU(width), _conv(width, width, stride), nn.BatchNorm2d(width)
        self.downsample = None if stride == 1 else nn.Sequential(
            nn.Conv2d(c_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x)))))) + shortcut


def _conv(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)


# --- from tensors -----------------------------------------------------------------------------------------------------
def detect(tensors: Mapping[str, Tensor]) -> ArcFaceConfig:
    """Read layout and sizes off a state dict with the public names. ValueError or KeyError for another network."""
    if "input_layer.0.weight" in tensors:
        return _detect_irse(tensors)
    if "layer1.0.prelu.weight" not in tensors:
        raise ValueError("not an ArcFace network (input_layer.0.weight and layer1.0.prelu.weight are missing); pick "
                         "model_ir_se50.pth of https://github.com/TreB1eN/InsightFace_Pytorch")
    units = tuple(entry_count(tensors, f"layer{number}.") for number in range(1, 5))
    widths = tuple(tensors[f"layer{number}.0.conv1.weight"].shape[0] for number in range(1, 5))
    return ArcFaceConfig(IRESNET, units, widths, tensors["fc.weight"].shape[0])


def _detect_irse(tensors: Mapping[str, Tensor]) -> ArcFaceConfig:
    count = entry_count(tensors, "body.")
    of_unit = [tensors[f"body.{k}.res_layer.1.weight"].shape[0] for k in range(count)]
    widths = tuple(dict.fromkeys(of_unit))
    if "body.0.res_layer.5.fc1.weight" not in tensors:
        raise ValueError("an IR network without squeeze-and-excitation, which is not supported; pick "
                         "model_ir_se50.pth of https://github.com/TreB1eN/InsightFace_Pytorch")
    reduction = of_unit[0] // tensors["body.0.res_layer.5.fc1.weight"].shape[0]
    return ArcFaceConfig(IR_SE, tuple(of_unit.count(width) for width in widths), widths,
                         tensors["output_layer.3.weight"].shape[0], reduction)


def build(config: ArcFaceConfig, tensors: Mapping[str, Tensor]) -> ArcFace:
    """A network with these weights, in float32. RuntimeError if they do not fit."""
    net = ArcFace(config)
    net.net.load_state_dict(dict(tensors))
    return net.eval().requires_grad_(False)
