"""The styles that the kept snapshots of an OSASIS fine-tune hold (docs/osasis.md H.3)."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..models.loading import load_snapshot
from ..models.style import OSASISStyle
from . import kept
from .session import check_settings, is_part, step_of

# what to do about a snapshot of other settings
OWN_STYLE = ("connect the style as its fine-tune made it, without another strength and not blended, or write the name "
             "of the fine-tune that made it")


def snapshots_of(style: OSASISStyle, path: Path) -> dict[int, Path]:
    """{iteration: file} of the snapshot `path` and of the earlier ones beside it, in order.

    style: what their fine-tune made. ValueError (CheckpointError) if there is no snapshot, and for one of another
    training.
    """
    if not path.is_file():
        raise ValueError(f"there is no snapshot {path.name}. Give the name of the fine-tune that made this style, and "
                         "set its keep above 1")
    newest = step_of(check_settings(path, style.settings, to_do=OWN_STYLE))
    earlier = {step: file for step, file in kept.earlier(path).items()
               if step < newest and is_part(file, style.settings, newest)}
    return earlier | {newest: path}


def style_at(style: OSASISStyle, step: int, path: Path) -> OSASISStyle:
    """The style with the networks of a snapshot, in 16 bit; its code, style image and settings stay.

    ValueError (CheckpointError) for a damaged file."""
    tensors = load_snapshot(path).tensors

    def weights(name: str) -> dict[str, Tensor]:
        start = f"net/{name}/"
        return {key[len(start):]: value.to(torch.float16) for key, value in tensors.items() if key.startswith(start)}
    return replace(style, unet=weights("unet"), spn=weights("spn") or None,
                   settings=style.settings | {"iterations": step})
