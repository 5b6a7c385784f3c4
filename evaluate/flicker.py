"""Flicker of a film: what is left of the difference of two frames when the motion between them is taken back
(docs/faces.md, Films).

Frames are (3, H, W) in [-1, 1]. A flow (H, W, 2), x and y in pixels, says where a pixel of one frame is in the next.
"""
from __future__ import annotations

import torch
from torch import Tensor

from ..models.flow import moved, optical_flow, seen_in_both


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
