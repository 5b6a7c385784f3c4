"""Where training nodes get their faces from: pictures on a socket, a folder of ComfyUI's input, a StyleGAN2."""
from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io
from torch import Tensor

from ..train.data import find_pictures, read_picture, to_bytes
from . import host, pictures

MOST = 1024  # pictures of a folder that a fine-tune takes, spread over all of them


def folder_input(name: str, tooltip: str):
    return io.Combo.Input(name, options=[host.NO_FOLDER, *host.input_folders()], default=host.NO_FOLDER,
                          tooltip=f"{tooltip} A folder inside ComfyUI's input folder, with all that is in it.")


def folder_pictures(name: str) -> list[Path]:
    """All pictures of the chosen folder, none for 'none'. ValueError if there are none or no such folder."""
    folder = host.input_folder(name)
    if folder is None:
        return []
    try:
        return find_pictures(folder)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def gathered(image: Tensor | None, folder: str, px: int, what: str) -> Tensor | None:
    """uint8 (N, 3, px, px), middle squares: the pictures on the socket, then those of the folder. None if neither."""
    parts = [] if image is None else [to_bytes(pictures.to_model(pictures.fit(image, px, "crop"), px, what))]
    paths = folder_pictures(folder)
    every = max(1, -(-len(paths) // MOST))
    for path in paths[::every]:
        host.check_cancelled()
        parts.append(read_picture(path, px)[None])
    return torch.cat(parts) if parts else None
