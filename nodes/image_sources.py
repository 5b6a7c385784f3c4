"""Where training nodes get their pictures from: on a socket, or from a folder of ComfyUI's input."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..models import rng
from ..models.hashing import hash_of
from ..train.data import find_pictures, read_pictures, to_bytes, to_unit
from ..train.gan import Pictures
from ..train.stream import ImageStream, StreamConfig, hash_of_files
from . import host, images, inputs
from .base import AtelierNode, first

MOST = 1024  # pictures of a folder that a fine-tune takes, spread over all of them


class PhotosNode(AtelierNode):
    """A training of an MMFS with photos: on a socket, or in the folder of the input `photos_folder`."""

    @classmethod
    def join(cls, name: str, pictures: Sequence[Tensor], values: Mapping[str, Any]) -> Any:
        """Of several sizes, the middle squares at the model's size."""
        return images.batch(pictures, name, values["mmfs"].net.config.resolution)

    @classmethod
    def fingerprint_inputs(cls, photos_folder: str | None = host.NO_FOLDER, **others: Any) -> str:
        return host.folder_token(first(photos_folder))


def folder_input(name: str, tooltip: str) -> io.Combo.Input:
    return inputs.file_choice(name, [host.NO_FOLDER, *host.input_folders()], host.NO_FOLDER,
                              f"{tooltip} A folder inside ComfyUI's input folder, with its sub-folders.")


def folder_pictures(name: str) -> list[Path]:
    """All pictures of the chosen folder, none for 'none'. ValueError if there are none or no such folder."""
    folder = host.input_folder(name)
    if folder is None:
        return []
    try:
        return find_pictures(folder)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def squares(image: Tensor, px: int, what: str) -> Tensor:
    """IMAGE of any shape -> uint8 (B, 3, px, px), its middle squares."""
    return to_bytes(images.to_square(image, px, what))


def gathered(image: Tensor | None, folder: str, px: int, what: str, tell: Callable[[str], None]) -> Tensor | None:
    """uint8 (N, 3, px, px), middle squares: the pictures on the socket, then those of the folder. None if neither.
    tell: gets a text if not all of the folder are taken."""
    parts = [] if image is None else [squares(image, px, what)]
    if paths := spread(folder_pictures(folder), tell):
        parts.append(read_pictures(paths, px, host.check_interrupt))
    return torch.cat(parts) if parts else None


def spread(paths: list[Path], tell: Callable[[str], None]) -> list[Path]:
    """All of them, or MOST that are evenly spread over them, which is told."""
    if len(paths) <= MOST:
        return paths
    tell(f"{MOST:,} of {len(paths):,} pictures of the folder are used, evenly spread over it")
    return [paths[k * len(paths) // MOST] for k in range(MOST)]


@dataclass(frozen=True)
class PictureSet:
    """What a stage is trained on: pictures uint8 (N, 3, px, px) in memory, or files that are read as they come."""
    px: int
    pictures: Tensor | None
    paths: tuple[Path, ...] = ()

    @classmethod
    def of(cls, image: Tensor | None, folder: str, px: int, what: str) -> PictureSet:
        """From a socket or a folder. ValueError for neither and for both."""
        paths = folder_pictures(folder)
        if image is None and not paths:
            raise ValueError(f"{what}: there are no pictures; connect some, or pick a folder of them")
        if image is not None and paths:
            raise ValueError(f"{what}: there are pictures on the socket and in a folder; give only one of them")
        return cls(px, None if image is None else squares(image, px, what), tuple(paths))

    @property
    def description(self) -> str:
        """Another one for other pictures; of files, the names and sizes count."""
        if self.pictures is not None:
            return hash_of({"": self.pictures})
        return hash_of_files(self.paths)

    def first(self, count: int) -> Tensor:
        """The first pictures, (n, 3, px, px) in [-1, 1]."""
        return to_unit(read_pictures(self.paths[:count], self.px) if self.pictures is None else self.pictures[:count])

    @contextlib.contextmanager
    def batches(self, batch: int, seed: int, name: str, device: torch.device) -> Iterator[Pictures]:
        """Gives step -> pictures (batch, 3, px, px) in [-1, 1] on the device; they depend on (seed, name, step)
        alone."""
        if self.pictures is None:
            with ImageStream(self.paths, StreamConfig(self.px, batch, seed, name), device=device) as stream:
                yield stream
            return
        held = self.pictures.clone()

        def random_rows(k: int) -> Tensor:
            rows = torch.randint(len(held), (batch,), generator=rng.generator(seed, name, k))
            return to_unit(held[rows].to(device))
        yield random_rows
