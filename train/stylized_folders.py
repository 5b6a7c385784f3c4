"""A folder of pictures in one style: resumable, in parts, the same whatever the parts are."""
from __future__ import annotations

import json
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.checkpoints import store
from ..models.faces.crops import Choice, FaceCrop, FaceSquare, cut_out, put_back, squares_found
from ..models.faces.find import FaceSettings, prepared, search_faces
from ..models.faces.networks import FaceNetworks, load_faces
from ..models.faces.steady import Frame, steadied
from ..models.films import CUT_SIDE, Continuity, Piece, reach_of, reduced, shot_starts, steadied_film
from ..models.rng import stream_seed
from ..models.whole_files import write_whole
from .data import flat_names, picture_files, read_picture, read_whole, to_unit
from .plots import save_picture
from .stylists import Stylist, StylistConfig, stylist

log = logging.getLogger(__name__)
SETTINGS = "stylize.json"  # in the folder of results: what they were made with
FILM = "film.json"  # there, too: the squares of each frame's faces
SEARCHED = "film_searched"  # .jsonl, there until FILM is: a line for each frame that was searched
BLOCK = 8  # pictures that are read before they are stylized


@dataclass
class Found:
    """A picture that was read: what is stylized of it (N, 3, size, size), and what it is put back into. left_out: it
    cannot be read, and nothing is made of it."""
    name: str
    squares: Tensor
    crops: list[FaceCrop] = field(default_factory=list)
    whole: Tensor | None = None
    left_out: bool = False

    @property
    def numbers(self) -> list[int]:
        """Of the squares: of their faces, or 0."""
        return [crop.index for crop in self.crops] or list(range(len(self.squares)))


@dataclass
class Count:
    """What became of the pictures. left_out: why, by file."""
    made: int = 0
    before: int = 0
    left_out: dict[str, str] = field(default_factory=dict)

    def in_words(self) -> str:
        return f"{self.made} stylized, {self.before} were there, {len(self.left_out)} left out"


def jobs_of(folder: Path, film: bool = False) -> dict[str, Path]:
    """{name of the result: picture} in a fixed order: of their names, and in a film numbers in them as numbers.
    FileNotFoundError if there is none."""
    files = picture_files(folder)
    return flat_names(sorted(files, key=lambda path: frame_order(path.relative_to(folder))) if film else files, folder)


def frame_order(path: Path) -> list[list[str | int]]:
    """What frames of a film are sorted by: 2 comes before 10; numbers of one length keep the order of their names."""
    return [[int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)] for name in path.parts]


def prepare_folder(out: Path, config: StylistConfig, faces: bool, film: float | None = None,
                   steady: float = 0.0) -> None:
    """Makes the folder of results, and writes down what they are made with. ValueError if it holds others. film: see
    `prepare_film`. steady: see `stylize_folder`."""
    files = {name: path and store.sha256(path)[:16]
             for name, path in (("style", config.style), ("model", config.model), ("clip", config.clip))}
    settings = {key: value for key, value in asdict(config).items() if key not in files} | files | {"faces": faces}
    settings |= ({} if film is None else {"film": film}) | ({"steady": steady} if steady else {})
    path = out / SETTINGS
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{out} holds pictures of another style or other settings ({SETTINGS}); name another folder")
    write_whole(path, json.dumps(settings, indent=1))


def prepare_film(jobs: dict[str, Path], out: Path, device: torch.device, sigma: float,
                 check_interrupt: Callable[[], None] = lambda: None, writer: str = "") -> None:
    """Finds the faces of all frames of a film, in the order of `jobs`, and writes their squares, smoothed over `sigma`
    frames, to OUT/FILM, if they are not there yet. One frame is in memory at a time.

    What was searched before an interruption is not searched again. writer: tells several processes that search the
    same film from each other."""
    path, before = out / FILM, out / f"{SEARCHED}{writer and f'_{writer}'}.jsonl"
    if not path.exists() or list(json.loads(path.read_text(encoding="utf-8"))) != list(jobs):
        rows = searched_film(jobs, before, load_faces().to(device), check_interrupt)
        frames = [[FaceSquare(torch.tensor(quad), "found") for quad in row.quads] for row in rows]
        film = steadied(frames, Choice("all"), sigma, shot_starts([row.steps_back for row in rows]))
        write_whole(path, json.dumps({name: [[number, square.quad.tolist()] for number, square in frame]
                                      for name, frame in zip(jobs, film)}))
    before.unlink(missing_ok=True)


class Searched(NamedTuple):
    """What was found in a frame of a film. quads: of its faces, (4, 2) each. steps_back: see `Continuity`."""
    name: str
    quads: list[list[list[float]]]
    steps_back: int


def searched_film(jobs: Mapping[str, Path], path: Path, nets: FaceNetworks,
                  check_interrupt: Callable[[], None]) -> list[Searched]:
    """What is found in each frame of a film. Each is a line of the file `path`, which is gone on with."""
    names = list(jobs)
    rows = searched_before(path, names)
    seen = (reduced(frame, CUT_SIDE) for row in reversed(rows)
            if (frame := readable(jobs[row.name], nets.device)) is not None)
    continuity = Continuity(list(islice(seen, 2)))
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
    with path.open("a", encoding="utf-8") as file:
        for name in names[len(rows):]:
            check_interrupt()
            rows.append(Searched(name, *seen_in(jobs[name], nets, continuity)))
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
    return rows


def searched_before(path: Path, names: Sequence[str]) -> list[Searched]:
    """The lines of a file of `searched_film`, as far as they are whole and of these frames."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    rows: list[Searched] = []
    for name, line in zip(names, lines):
        if not line.endswith("\n") or (row := Searched(*json.loads(line))).name != name:
            break
        rows.append(row)
    return rows


def seen_in(path: Path, nets: FaceNetworks, continuity: Continuity) -> tuple[list[list[list[float]]], int]:
    """The squares of a film's next frame, and what it goes on from."""
    frame = readable(path, nets.device)
    if frame is None:
        return [], 1
    found = squares_found(search_faces(nets, frame, FaceSettings(settled=True)))
    return [square.quad.tolist() for square in found], continuity(frame)


def readable(path: Path, device: torch.device) -> Tensor | None:
    """A frame as the search takes it. None for one that cannot be read; who reads it to stylize it says so."""
    try:
        return prepared(read_whole(path), device)
    except ValueError:
        return None


def read_film(path: Path) -> dict[str, Frame]:
    """What `prepare_film` wrote, by the frame's name."""
    told = json.loads(path.read_text(encoding="utf-8"))
    return {name: [(number, FaceSquare(torch.tensor(quad), "film")) for number, quad in frame]
            for name, frame in told.items()}


@dataclass(frozen=True)
class Networks:
    """What a process loads once. faces: to find faces with, or None. film: the pictures are the frames of one, with
    these squares, and have the same noise; None for pictures of their own."""
    stylist: Stylist
    faces: FaceNetworks | None
    film: Mapping[str, Frame] | None = None

    @classmethod
    def load(cls, config: StylistConfig, device: torch.device, faces: bool, film: Path | None = None) -> Networks:
        """film: the folder of results of a film, see `prepare_film`."""
        squares = None if film is None else read_film(film / FILM) if faces else {}
        return cls(stylist(config, device), load_faces().to(device) if faces else None, squares)


def stylize_folder(jobs: dict[str, Path], out: Path, load: Callable[[], Networks],
                   check_interrupt: Callable[[], None] = lambda: None, film: Mapping[str, Path] | None = None,
                   steady: float = 0.0) -> Count:
    """Writes OUT/NAME.png of every picture that is not there yet; one that cannot be read is named in the log and left
    out. Memory does not grow with the pictures. load: called if there is work.

    film: all frames of the film that the pictures are of, in their order. steady: they are steadied over so many frames
    (see `steadied_film`); what that needs of the frames around is made again, so the results do not depend on `jobs`.
    """
    left = {name: path for name, path in jobs.items() if not (out / f"{name}.png").exists()}
    count = Count(before=len(jobs) - len(left))
    if not left:
        return count
    nets = load()
    for run in runs(left, film or jobs, reach_of(steady)) if steady else [left]:
        for name, picture in pictures(nets, read(run, nets, count.left_out), steady, check_interrupt):
            if name in left:
                save_picture(picture, out / f"{name}.png")
                count.made += 1
                if count.made % BLOCK == 0:
                    log.info("%d of %d stylized", count.made, len(left))
    count.left_out = {str(path): count.left_out[str(path)] for path in left.values() if str(path) in count.left_out}
    return count


def runs(left: Mapping[str, Path], film: Mapping[str, Path], reach: int) -> Iterator[dict[str, Path]]:
    """Frames of a film that follow one another: those that are left, with `reach` frames before and after them."""
    names = list(film)
    missing = [place for place, name in enumerate(names) if name in left]
    first = 0
    for k, place in enumerate(missing):
        if k + 1 == len(missing) or missing[k + 1] - place > 2 * reach:
            rows = names[max(0, missing[first] - reach):place + reach + 1]
            yield {name: film[name] for name in rows}
            first = k + 1


def pictures(nets: Networks, found: Iterable[Found], steady: float,
             check_interrupt: Callable[[], None]) -> Iterator[tuple[str, Tensor]]:
    """(name, stylized picture (3, H, W) in [-1, 1]) of every one that was read, in their order."""
    waiting: deque[Found] = deque()
    device = nets.stylist.device if steady else torch.device("cpu")

    def pieces() -> Iterator[dict[int, Piece]]:
        for block in blocks(found):
            check_interrupt()
            for one, results in zip(block, stylized(nets, block), strict=True):
                waiting.append(one)
                yield dict(zip(one.numbers, zip(one.squares.to(device), results.to(device))))
    for made in steadied_film(pieces(), steady):
        one = waiting.popleft()
        if not one.left_out:
            yield one.name, finished(one, {number: result.cpu() for number, result in made.items()})


def finished(one: Found, made: Mapping[int, Tensor]) -> Tensor:
    """The picture with what its squares, by their numbers, became."""
    if one.whole is None:
        return made[0]
    return put_back(one.whole, [(crop, made[crop.index], None) for crop in one.crops])


def read(jobs: Mapping[str, Path], nets: Networks, left_out: dict[str, str]) -> Iterator[Found]:
    """The pictures one by one; why one is left out goes to `left_out` and the log."""
    size = nets.stylist.size
    for name, path in jobs.items():
        try:
            yield (Found(name, to_unit(read_picture(path, size))[None]) if nets.faces is None
                   else found_faces(name, path, nets))
        except ValueError as error:
            left_out[str(path)] = str(error)
            log.warning("left out: %s", error)
            yield Found(name, torch.empty(0, 3, size, size), left_out=True)


def found_faces(name: str, path: Path, nets: Networks) -> Found:
    """All faces of a whole picture, or those of a film's frame. ValueError if a picture has none; a frame may."""
    assert nets.faces is not None
    picture = prepared(read_whole(path), nets.faces.device)
    if nets.film is None:
        rows = Choice("all").of(squares_found(search_faces(nets.faces, picture, FaceSettings(settled=True))))
        if not rows:
            raise ValueError(f"{path} shows no face; stylize it without --faces")
    else:
        rows = nets.film[name]
    size = nets.stylist.size
    crops = cut_out(picture, 0, rows, size)
    squares = torch.stack([crop.crop for crop in crops]) if crops else torch.empty(0, 3, size, size)
    return Found(name, squares, crops, picture.cpu())


def blocks(found: Iterable[Found]) -> Iterator[list[Found]]:
    """Lists of at most BLOCK."""
    block: list[Found] = []
    for one in found:
        block.append(one)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def stylized(nets: Networks, found: Sequence[Found]) -> Sequence[Tensor]:
    """Each one's squares (N, 3, size, size), stylized. A square's random numbers depend on its picture's name and its
    place; those of a film's frames on the number of its face."""
    items = [stream_seed(0, f"picture {one.name}" if nets.film is None else "film", number)
             for one in found for number in one.numbers]
    squares = torch.cat([one.squares for one in found])
    return (nets.stylist(squares, items) if len(squares) else squares).split([len(one.squares) for one in found])
