"""The face detector and the 468-point face mesh, MediaPipe's, and how their weights are read (docs/faces.md).

Both networks take NCHW float32 and pad as TensorFlow's SAME does: what cannot be halved goes to the right and bottom.
"""
from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import CheckpointError, store
from ..checkpoints.errors import short

WEIGHTS = Path(__file__).parent / "weights"
DETECTOR, MESH = "detector.safetensors", "landmarks.safetensors"
SHA256 = {DETECTOR: "c7927c8d1026690de87ae77e283a937b6e6924522af0f265451c3e514bc958a2",
          MESH: "0e2bf4c048ac61a9dd209afa26b6af68c83dc790eabd6bc782b40f05f76c64a4"}
POINTS, MESH_PX = 468, 192
DETECTOR_WIDTHS = (24,) * 15 + (48,) * 8 + (96,) * 8
DETECTOR_STRIDED = (7, 15, 23)
MESH_WIDTHS = (16,) * 2 + (32,) * 3 + (64,) * 3 + (128,) * 6
MESH_STRIDED = (2, 5, 8, 11)
FINE_ANCHORS, COARSE_ANCHORS, ROW = 2, 6, 16  # anchors of a cell; numbers of a box and its six points
Network = TypeVar("Network", bound=nn.Module)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: before = floor(total / 2), after = the rest."""

    def forward(self, input: Tensor) -> Tensor:
        pads = [max((-(-n // s) - 1) * s + k - n, 0)
                for n, s, k in zip(input.shape[:1:-1], self.stride[::-1], self.kernel_size[::-1], strict=True)]
        return super().forward(F.pad(input, [side for total in pads for side in (total // 2, total - total // 2)]))


def separable(c_in: int, c_out: int, stride: int) -> OrderedDict[str, nn.Module]:
    """A 3x3 convolution of each channel alone, and a 1x1 convolution of all."""
    return OrderedDict(depthwise=SameConv(c_in, c_in, 3, stride, groups=c_in), pointwise=nn.Conv2d(c_in, c_out, 1))


class Block(nn.Module):
    """act(pointwise(depthwise(x)) + skip(x)). skip: x, halved by its maxima with stride 2, new channels zero."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, prelu: bool = False) -> None:
        super().__init__()
        layers = separable(c_in, c_out, stride)
        self.depthwise, self.pointwise = layers["depthwise"], layers["pointwise"]
        self.act = nn.PReLU(c_out) if prelu else nn.ReLU()
        self.stride, self.added = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        skip = F.max_pool2d(x, 2) if self.stride == 2 else x
        return self.act(self.pointwise(self.depthwise(x)) + F.pad(skip, (0, 0, 0, 0, 0, self.added)))


def blocks(c_in: int, widths: tuple[int, ...], strided: tuple[int, ...], prelu: bool) -> nn.Sequential:
    """Blocks of these widths, with stride 2 at the indices `strided`."""
    return nn.Sequential(*(Block(before, width, 2 if k in strided else 1, prelu)
                           for k, (before, width) in enumerate(zip((c_in, *widths), widths))))


class Detector(nn.Module):
    """BlazeFace, back camera. Pictures (B, 3, S, S) in [-1, 1], S a multiple of 32, to anchors' scores and boxes."""

    def __init__(self) -> None:
        super().__init__()
        width = DETECTOR_WIDTHS[-1]
        self.stem = SameConv(3, DETECTOR_WIDTHS[0], 5, 2)
        self.blocks = blocks(DETECTOR_WIDTHS[0], DETECTOR_WIDTHS, DETECTOR_STRIDED, prelu=False)
        self.down = nn.Sequential(separable(width, width, 2))
        for name, anchors in (("fine", FINE_ANCHORS), ("coarse", COARSE_ANCHORS)):
            self.add_module(f"score_{name}", nn.Conv2d(width, anchors, 1))
            self.add_module(f"box_{name}", nn.Conv2d(width, anchors * ROW, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw scores (B, N) and raw boxes (B, N, 16), N = 2 (S/16)^2 + 6 (S/32)^2, rows in the order of `anchors`."""
        fine = self.blocks(self.stem(x).relu())
        maps = {"fine": fine, "coarse": self.down(fine).relu()}
        scores, boxes = ([getattr(self, f"{part}_{name}")(y).permute(0, 2, 3, 1).reshape(len(x), -1, numbers)
                          for name, y in maps.items()] for part, numbers in (("score", 1), ("box", ROW)))
        return torch.cat(scores, 1)[..., 0], torch.cat(boxes, 1)


class Head(nn.Module):
    """A head of the mesh network, from its map (B, 128, 6, 6) to (B, outputs)."""

    def __init__(self, count: int, outputs: int) -> None:
        super().__init__()
        width, narrow = MESH_WIDTHS[-1], 32
        self.blocks = blocks(width, (width,) * count, (0,), prelu=True)
        self.reduce, self.reduce_act = nn.Conv2d(width, narrow, 1), nn.PReLU(narrow)
        self.last = Block(narrow, narrow, prelu=True)
        self.out = nn.Conv2d(narrow, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.last(self.reduce_act(self.reduce(self.blocks(x))))).flatten(1)


class FaceMesh(nn.Module):
    """The face mesh. mirror (468): which point each becomes when left and right are swapped."""

    mirror: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(conv=SameConv(3, MESH_WIDTHS[0], 3, 2), act=nn.PReLU(MESH_WIDTHS[0])))
        self.blocks = blocks(MESH_WIDTHS[0], MESH_WIDTHS, MESH_STRIDED, prelu=True)
        self.landmarks_head, self.presence_head = Head(3, POINTS * 3), Head(1, 1)
        self.register_buffer("mirror", torch.zeros(POINTS, dtype=torch.long))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Crops (B, 3, 192, 192) in [-1, 1] to points (B, 468, 3) in pixels of the crop, x y z, and the logit (B,)
        that there is a face."""
        y = self.blocks(self.stem((x + 1) / 2))
        return self.landmarks_head(y).reshape(-1, POINTS, 3), self.presence_head(y)[:, 0]


@dataclass(frozen=True)
class FaceNetworks:
    """Both networks, frozen, on one device."""
    detector: Detector
    mesh: FaceMesh

    @property
    def device(self) -> torch.device:
        return self.mesh.mirror.device

    def to(self, device: torch.device | str) -> FaceNetworks:
        """Both moved to `device`, in place."""
        return FaceNetworks(self.detector.to(device), self.mesh.to(device))


def load_faces(folder: Path = WEIGHTS) -> FaceNetworks:
    """The networks of a folder with both files, on the CPU; every key and shape is checked. CheckpointError."""
    return FaceNetworks(_load(Detector(), folder / DETECTOR), _load(FaceMesh(), folder / MESH))


def _load(net: Network, path: Path) -> Network:
    shipped = (f"Expected {path.name}, sha256 {SHA256[path.name]}, in {path.parent}. It ships with this pack in "
               f"models/faces/weights: put it back from there")
    if not path.is_file():
        raise CheckpointError(f"{path.name}: there is no such file in {path.parent}. {shipped}")
    wanted = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    try:
        found = {name: shape for name, (_, shape) in store.peek(path).shapes.items()}
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if wrong:
            raise CheckpointError(f"{len(wrong)} of its tensors are not those of the network, as {short(wrong[0])}")
        net.load_state_dict({name: ref.read() for name, ref in store.tensor_refs(path).items()})
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}. {shipped}") from error
    return net.eval().requires_grad_(False)
