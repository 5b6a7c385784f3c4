"""Optical flow of two pictures (docs/faces.md, Films).

Frames are (3, H, W) in [-1, 1]. A flow (H, W, 2), x and y in pixels, says where a pixel of one frame is in the next.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .faces.align import blurred, centres

LEAST_SIDE = 16  # of the coarsest level
SIGMA, ROUNDS = 2.0, 4  # of the window, in pixels; of fits a level
WEAK = 1e-4  # a slope, squared, that is none: where nothing is seen, nothing moves
LOST = 1.0  # pixels that there and back may be apart


def moved(frame: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """The next frame (C, H, W) as it is where this frame's pixels are. mode: of interpolation, bilinear or bicubic."""
    height, width = frame.shape[1:]
    places = centres(0, 0, width, height, flow.device) + flow
    grid = torch.stack([places[..., 0] / width, places[..., 1] / height], -1) * 2 - 1
    return F.grid_sample(frame[None], grid[None], mode=mode, padding_mode="border", align_corners=False)[0]


def optical_flow(frame: Tensor, following: Tensor, sigma: float = SIGMA) -> Tensor:
    """The flow from a frame to the following one, by Lucas and Kanade's method from coarse to fine: in a Gaussian
    window around every pixel, of `sigma` pixels, the shift whose first-order effect leaves the least difference."""
    this, then = (x.mean(0, keepdim=True) for x in (frame, following))
    height, width = this.shape[1:]
    flow: Tensor | None = None
    for level in range(max(0, (min(height, width) // LEAST_SIDE).bit_length() - 1), -1, -1):
        size = max(1, height >> level), max(1, width >> level)
        small, small_then = (F.interpolate(x[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
                             for x in (this, then))
        flow = this.new_zeros(*size, 2) if flow is None else resized_flow(flow, size)
        for _ in range(ROUNDS):
            flow = flow + shift(small, moved(small_then, flow), sigma)
    assert flow is not None
    return flow


def resized_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """A flow for frames of another (height, width)."""
    scale = torch.tensor([size[1] / flow.shape[1], size[0] / flow.shape[0]]).to(flow)
    larger = F.interpolate(flow.movedim(2, 0)[None], size, mode="bilinear", align_corners=False)[0]
    return larger.movedim(0, 2) * scale


def shift(this: Tensor, then: Tensor, sigma: float) -> Tensor:
    """(H, W, 2): what each pixel of this (1, H, W) is still to be shifted by to fit the other one."""
    both = F.pad((this + then)[None] / 2, (1, 1, 1, 1), mode="replicate")[0, 0]
    x, y = (both[1:-1, 2:] - both[1:-1, :-2]) / 2, (both[2:, 1:-1] - both[:-2, 1:-1]) / 2
    t = (then - this)[0]
    xx, xy, yy, xt, yt = blurred(torch.stack([x * x, x * y, y * y, x * t, y * t]), sigma)
    xx, yy = xx + WEAK, yy + WEAK
    size = (xx * yy - xy * xy).clamp_min(WEAK * WEAK)
    return torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], -1) / size[..., None]


def seen_in_both(there: Tensor, back: Tensor) -> Tensor:
    """(H, W) bool: pixels that a flow leads into the next frame, and the flow back to where they were."""
    height, width = there.shape[:2]
    x, y = (centres(0, 0, width, height, there.device) + there).unbind(-1)
    inside = (x > 0) & (y > 0) & (x < width) & (y < height)
    returned = there + moved(back.movedim(2, 0), there).movedim(0, 2)
    return inside & (returned.norm(dim=-1) < LOST)
