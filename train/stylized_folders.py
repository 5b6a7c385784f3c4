"""A folder of pictures in one style: resumable, in parts, the same whatever the parts are."""
from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..models.checkpoints import store
from ..models.faces.crops import Choice, FaceCrop, cut_out, put_back, squares_found
from ..models.faces.find import FaceSettings, prepared, search_faces
from ..models.faces.networks import FaceNetworks, load_faces
from ..models.rng import stream_seed
from ..models.whole_files import whole_file
from .data import flat_names, picture_files, read_picture, read_whole, to_unit
from .plots import save_picture
from .stylists import Stylist, StylistConfig, stylist

log = logging.getLogger(__name__)
SETTINGS = "stylize.json"  # in the folder of results: what they were made with
BLOCK = 8  # pictures that are read before they are stylized


@dataclass
class Found:
    """A picture that was read: what is stylized of it (N, 3, size, size), and what it is put back into."""
    name: str
    squares: Tensor
    crops: list[FaceCrop] = field(default_factory=list)
    whole: Tensor | None = None


@dataclass
class Count:
    """What became of the pictures. left_out: why, by file."""
    made: int = 0
    before: int = 0
    left_out: dict[str, str] = field(default_factory=dict)

    def in_words(self) -> str:
        return f"{self.made} stylized, {self.before} were there, {len(self.left_out)} left out"


def jobs_of(folder: Path) -> dict[str, Path]:
    """{name of the result: picture} in a fixed order. FileNotFoundError if there is none."""
    return flat_names(picture_files(folder), folder)


def prepare_folder(out: Path, config: StylistConfig, faces: bool) -> None:
    """Makes the folder of results, and writes down what they are made with. ValueError if it holds others."""
    files = {name: path and store.sha256(path)[:16]
             for name, path in (("style", config.style), ("model", config.model), ("clip", config.clip))}
    settings = {key: value for key, value in asdict(config).items() if key not in files} | files | {"faces": faces}
    path = out / SETTINGS
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{out} holds pictures of another style or other settings ({SETTINGS}); name another folder")
    with whole_file(path, writer=str(os.getpid())) as file:
        file.write_text(json.dumps(settings, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class Networks:
    """What a process loads once. faces: to find faces with, or None."""
    stylist: Stylist
    faces: FaceNetworks | None

    @classmethod
    def load(cls, config: StylistConfig, device: torch.device, faces: bool) -> Networks:
        return cls(stylist(config, device), load_faces().to(device) if faces else None)


def stylize_folder(jobs: dict[str, Path], out: Path, load: Callable[[], Networks],
                   check_interrupt: Callable[[], None] = lambda: None) -> Count:
    """Writes OUT/NAME.png of every picture that is not there yet; one that cannot be read is named in the log and left
    out. Memory does not grow with the pictures. load: called if there is work."""
    left = {name: path for name, path in jobs.items() if not (out / f"{name}.png").exists()}
    count = Count(before=len(jobs) - len(left))
    if not left:
        return count
    nets = load()
    for found in blocks(read(left, nets, count.left_out)):
        check_interrupt()
        for name, picture in stylized(nets.stylist, found):
            save_picture(picture, out / f"{name}.png")
            count.made += 1
        log.info("%d of %d stylized", count.made, len(left))
    return count


def read(jobs: dict[str, Path], nets: Networks, left_out: dict[str, str]) -> Iterator[Found]:
    """The pictures one by one; why one is left out goes to `left_out` and the log."""
    size = nets.stylist.size
    for name, path in jobs.items():
        try:
            yield (Found(name, to_unit(read_picture(path, size))[None]) if nets.faces is None
                   else found_faces(name, path, size, nets.faces))
        except ValueError as error:
            left_out[str(path)] = str(error)
            log.warning("left out: %s", error)


def found_faces(name: str, path: Path, size: int, nets: FaceNetworks) -> Found:
    """All faces of a whole picture. ValueError if it has none."""
    picture = prepared(read_whole(path), nets.device)
    squares = squares_found(search_faces(nets, picture, FaceSettings(settled=True)), False)
    if not squares:
        raise ValueError(f"{path} shows no face; stylize it without --faces")
    crops = cut_out(picture, 0, Choice("all").of(squares), size)
    return Found(name, torch.stack([crop.crop for crop in crops]), crops, picture.cpu())


def blocks(found: Iterator[Found]) -> Iterator[list[Found]]:
    """Lists of at most BLOCK."""
    block: list[Found] = []
    for one in found:
        block.append(one)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def stylized(work: Stylist, found: Sequence[Found]) -> Iterator[tuple[str, Tensor]]:
    """(name, picture (3, H, W) in [-1, 1]). A square's random numbers depend on its picture's name and its place."""
    items = [stream_seed(0, f"picture {one.name}", place) for one in found for place in range(len(one.squares))]
    results = work(torch.cat([one.squares for one in found]), items).split([len(one.squares) for one in found])
    for one, result in zip(found, results, strict=True):
        if one.whole is None:
            yield one.name, result[0]
        else:
            yield one.name, put_back(one.whole, [(crop, square, None) for crop, square in zip(one.crops, result)])
