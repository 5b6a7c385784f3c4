"""Flicker of a film: what is left of the difference of two frames when the motion between them is taken back
(docs/faces.md, Films).

Frames are (3, H, W) in [-1, 1]. A flow (H, W, 2), x and y in pixels, says where a pixel of one frame is in the next.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.faces.align import blurred, centres

LEAST_SIDE = 16  # of the coarsest level
SIGMA, ROUNDS = 2.0, 4  # of the window, in pixels; of fits a level
WEAK = 1e-4  # a slope, squared, that is none: where nothing is seen, nothing moves
LOST = 1.0  # pixels that there and back may be apart


def moved(frame: Tensor, flow: Tensor) -> Tensor:
    """The next frame (C, H, W) as it is where this frame's pixels are."""
    height, width = frame.shape[1:]
    places = centres(0, 0, width, height).to(flow) + flow
    grid = places / torch.tensor([width, height], device=flow.device) * 2 - 1
    return F.grid_sample(frame[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]


def optical_flow(frame: Tensor, following: Tensor) -> Tensor:
    """The flow from a frame to the following one, by Lucas and Kanade's method from coarse to fine: in a Gaussian
    window around every pixel, the shift whose first-order effect leaves the least difference."""
    this, then = (x.mean(0, keepdim=True) for x in (frame, following))
    height, width = this.shape[1:]
    flow: Tensor | None = None
    for level in range(max(0, (min(height, width) // LEAST_SIDE).bit_length() - 1), -1, -1):
        size = max(1, height >> level), max(1, width >> level)
        small, small_then = (F.interpolate(x[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
                             for x in (this, then))
        flow = this.new_zeros(*size, 2) if flow is None else resized_flow(flow, size)
        for _ in range(ROUNDS):
            flow = flow + shift(small, moved(small_then, flow))
    assert flow is not None
    return flow


def resized_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    scale = torch.tensor([size[1] / flow.shape[1], size[0] / flow.shape[0]]).to(flow)
    larger = F.interpolate(flow.movedim(2, 0)[None], size, mode="bilinear", align_corners=False)[0]
    return larger.movedim(0, 2) * scale


def shift(this: Tensor, then: Tensor) -> Tensor:
    """(H, W, 2): what each pixel of this (1, H, W) is still to be shifted by to fit the other one."""
    both = F.pad((this + then)[None] / 2, (1, 1, 1, 1), mode="replicate")[0, 0]
    x, y = (both[1:-1, 2:] - both[1:-1, :-2]) / 2, (both[2:, 1:-1] - both[:-2, 1:-1]) / 2
    t = (then - this)[0]
    xx, xy, yy, xt, yt = blurred(torch.stack([x * x, x * y, y * y, x * t, y * t]), SIGMA)
    xx, yy = xx + WEAK, yy + WEAK
    size = (xx * yy - xy * xy).clamp_min(WEAK * WEAK)
    return torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], -1) / size[..., None]


def seen_in_both(there: Tensor, back: Tensor) -> Tensor:
    """(H, W) bool: pixels that a flow leads into the next frame, and the flow back to where they were."""
    height, width = there.shape[:2]
    places = centres(0, 0, width, height).to(there) + there
    inside = ((places > 0) & (places < torch.tensor([width, height]).to(there))).all(-1)
    returned = there + moved(back.movedim(2, 0), there).movedim(0, 2)
    return inside & (returned.norm(dim=-1) < LOST)


def warp_error(frame: Tensor, following: Tensor, flow: Tensor, seen: Tensor) -> float:
    """Mean absolute difference of a frame and the following one where the flow says it is, over the pixels `seen`
    (H, W), in grey levels of 255; NaN if there is none."""
    apart = (moved(following, flow) - frame).abs().mean(0)
    return float(apart[seen].mean()) * 127.5


def flicker(results: Tensor, frames: Tensor) -> tuple[float, float]:
    """Mean warp error of results (T, 3, H, W), and that of the frames that they were made of, by the frames' own
    optical flow. ValueError for films of other sizes or of a single frame."""
    if results.shape != frames.shape or len(frames) < 2:
        raise ValueError(f"results of {tuple(results.shape)} and frames of {tuple(frames.shape)}: two or more frames "
                         "of one size are needed")
    errors = []
    for k in range(len(frames) - 1):
        there, back = optical_flow(frames[k], frames[k + 1]), optical_flow(frames[k + 1], frames[k])
        seen = seen_in_both(there, back)
        errors.append([warp_error(film[k], film[k + 1], there, seen) for film in (results, frames)])
    made, own = torch.tensor(errors).nanmean(0).tolist()
    return made, own
