"""Tables in the form of the two papers: methods x inputs x styles, measured alike, beside the papers' published rows
(docs/osasis.md G, docs/mmfs.md C).

Any program's results are measured, from folders: RESULTS/METHOD/INPUTS/STYLE/../STEM.png is what a method made of
PHOTOS/INPUTS/STEM.* in a style of the pictures STYLES/STYLE/*. INPUTS is left out where PHOTOS holds pictures and no
folders, and STYLE likewise. Published values were made with networks and sizes that the papers do not name: they are
marked as such, and never counted as the best of a column.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..models.whole_files import write_whole
from ..train.data import called_once, find_pictures, is_hidden, read_picture, to_unit
from ..train.plots import text_table
from .evaluator import Comparison, Evaluator, PictureFeatures
from .registry import (
    OF_PHOTOS,
    PUBLIC_DISTANCES,
    FeatureSet,
    gather,
    lpips_diversity,
    measure,
    metric,
    public_distances,
    public_notes,
    there,
)
from .tables import csv_text

log = logging.getLogger(__name__)
PUBLISHED = " (published)"
DECIMALS = 4
BATCH = 16  # pictures of results in memory at a time
Key = tuple[str, str]  # name of a metric, name of a style set
Values = dict[Key, float]


@dataclass(frozen=True)
class Paper:
    """A paper's tables. metrics: its columns, names of the registry. published: {inputs: {method: values}}. remark:
    what is known of the published values."""
    title: str
    metrics: tuple[str, ...]
    published: Mapping[str, Mapping[str, Values]]
    remark: str


OSASIS_METRICS, OSASIS_STYLES = ("art_fid", "identity_similarity", "dino_structure"), ("AAHQ", "MetFaces", "Prev")
MMFS_METRICS = ("fid", "arcface_distance", "lpips_diversity")


def _osasis(*numbers: float) -> Values:
    """A row: three measures of three style sets each."""
    keys = [(name, style) for name in OSASIS_METRICS for style in OSASIS_STYLES]
    return dict(zip(keys, numbers, strict=True))


def _mmfs(*numbers: float) -> Values:
    return dict(zip([(name, "AAHQ") for name in MMFS_METRICS], numbers, strict=True))


PAPERS: dict[str, Paper] = {
    "osasis": Paper("OSASIS, tables 1 and 2", OSASIS_METRICS, {
        "low": {
            "MTG": _osasis(36.19, 36.52, 35.93, .2228, .2516, .2263, .0608, .0557, .0574),
            "MTG+HFGI": _osasis(36.39, 38.02, 37.27, .3730, .4656, .4063, .0386, .0350, .0360),
            "JoJoGAN": _osasis(43.51, 45.23, 38.49, .3763, .3579, .3319, .0589, .0631, .0605),
            "JoJoGAN+HFGI": _osasis(40.41, 44.74, 41.09, .5145, .5207, .4743, .0411, .0454, .0430),
            "DiffuseIT": _osasis(44.93, 53.35, 48.18, .6992, .7158, .6994, .0309, .0300, .0310),
            "InST": _osasis(38.16, 50.33, 35.86, .2253, .2188, .2238, .0492, .0443, .0488),
            "OSASIS": _osasis(34.89, 43.20, 33.20, .6825, .7323, .7029, .0361, .0295, .0391)},
        "high": {
            "MTG": _osasis(34.54, 34.73, 35.18, .2026, .2562, .2219, .0403, .0493, .0477),
            "MTG+HFGI": _osasis(35.03, 37.19, 36.23, .3260, .4362, .3688, .0357, .0375, .0370),
            "JoJoGAN": _osasis(41.93, 43.99, 36.95, .3783, .3477, .3280, .0389, .0465, .0441),
            "JoJoGAN+HFGI": _osasis(41.20, 43.32, 39.29, .4927, .4921, .4353, .0327, .0385, .0346),
            "DiffuseIT": _osasis(44.03, 52.92, 46.56, .6922, .7259, .6970, .0254, .0252, .0250),
            "InST": _osasis(31.84, 46.13, 30.69, .1760, .1864, .1815, .0390, .0326, .0383),
            "OSASIS": _osasis(33.06, 41.66, 30.46, .7191, .7520, .7303, .0367, .0350, .0345)}},
        "100 photos of FFHQ at each end, 5 style images a set. LPIPS network, FID mode, face crop and sizes are not "
        "told. JoJoGAN's structure for MetFaces is printed as .00631, surely .0631; JoJoGAN+HFGI's for Prev is .0430 "
        "in table 1 and .0403 in table 2."),
    "mmfs": Paper("MMFS, table 1", MMFS_METRICS, {
        "": {
            "MUNIT": _mmfs(18.96, 0.511, 0.505), "DRIT++": _mmfs(16.18, 0.514, 0.489),
            "BlendGAN": _mmfs(51.94, 0.509, 0.482), "MMFS": _mmfs(10.39, 0.507, 0.583)}},
        "10000 photos of FFHQ, random styles. Networks, resize and number of drawings are not told. BlendGAN with "
        "indicator 6."),
}


@dataclass(frozen=True)
class Row:
    """A method's values for one set of inputs."""
    method: str
    inputs: str
    values: Values
    published: bool = False

    @property
    def name(self) -> str:
        return self.method + PUBLISHED * self.published


@dataclass(frozen=True)
class EvaluationTable:
    """A column for each of `columns`, rows by inputs. notes: how each measure was made, or why it was not."""
    title: str
    columns: tuple[Key, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, title: str, metrics: Sequence[str], rows: Sequence[Row], notes: Sequence[str] = ()) -> EvaluationTable:
        """Published rows first; columns that some row has a value in, metric by metric."""
        ordered = sorted(rows, key=lambda row: not row.published)
        columns = sorted(dict.fromkeys(key for row in ordered for key in row.values),
                         key=lambda key: metrics.index(key[0]))
        return cls(title, tuple(columns), tuple(ordered), tuple(notes))

    @property
    def inputs(self) -> list[str]:
        return list(dict.fromkeys(row.inputs for row in self.rows))

    def best(self, inputs: str, key: Key) -> float | None:
        """The best measured value of a column, if two methods were measured."""
        values = [row.values[key] for row in self.rows
                  if row.inputs == inputs and not row.published and key in row.values]
        return None if len(values) < 2 else max(values) if metric(key[0]).better == "higher" else min(values)

    def csv(self) -> str:
        """A line for each row: inputs, method, published or measured, and the values."""
        head = ["inputs", "method", "source", *(" ".join(filter(None, key)) for key in self.columns)]
        return csv_text(head, ([row.inputs, row.method, "published" if row.published else "measured",
                                *(row.values.get(key, "") for key in self.columns)] for row in self.rows))

    def lines(self, inputs: str) -> list[list[str]]:
        """Head and rows of one set of inputs, as text."""
        head = ["", *(column_title(key) for key in self.columns)]
        return [head, *([row.name, *(number(row.values.get(key)) for key in self.columns)]
                        for row in self.rows if row.inputs == inputs)]

    def markdown(self) -> str:
        """A table for each set of inputs, the best measured value bold, and the notes."""
        parts = [f"**{self.title}**"]
        for inputs in self.inputs:
            head, *_ = self.lines(inputs)
            lines = [f"| {' | '.join(head)} |", "|---|" + "---|" * len(self.columns)]
            for row in (row for row in self.rows if row.inputs == inputs):
                cells = [self._bold(row, key) for key in self.columns]
                lines.append(f"| {row.name} | {' | '.join(cells)} |")
            parts.append("\n".join([*([f"{inputs}:", ""] if inputs else []), *lines]))
        return "\n\n".join([*parts, "\n".join(f"- {note}" for note in self.notes)]).rstrip() + "\n"

    def _bold(self, row: Row, key: Key) -> str:
        value = row.values.get(key)
        mark = "**" if value is not None and not row.published and value == self.best(row.inputs, key) else ""
        return f"{mark}{number(value)}{mark}"

    def picture(self) -> Image.Image:
        """The tables below each other, published rows grey."""
        blocks = [(f"{self.title}{': ' if inputs else ''}{inputs}", self.lines(inputs)) for inputs in self.inputs]
        return text_table(blocks, lambda name: name.endswith(PUBLISHED))


def column_title(key: Key) -> str:
    name, style = key
    arrow = "up" if metric(name).better == "higher" else "down"
    return f"{metric(name).title}{', ' if style else ''}{style} ({arrow})"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.{2 if abs(value) >= 10 else DECIMALS}f}"


def published_rows(paper: str, inputs: Sequence[str]) -> list[Row]:
    """The paper's rows, for the sets of inputs of these names; all if it has none of them."""
    known = PAPERS[paper].published
    chosen = [name for name in known if name in inputs] or list(known)
    return [Row(method, name, values, published=True) for name in chosen for method, values in known[name].items()]


# --- folders ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Folders:
    """results: a folder for each method. photos: pictures, or a folder for each set of inputs. styles: pictures, or a
    folder for each style set."""
    results: Path
    photos: Path
    styles: Path


def parts_of(folder: Path) -> dict[str, Path]:
    """{name: folder} of its sub-folders; {"": the folder itself} where there is none."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; see the help of this command for how folders are laid out")
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and not is_hidden(path.name)} \
        or {"": folder}


def by_stem(folder: Path) -> dict[str, Path]:
    """The photos by their names without ending. ValueError for two of one name."""
    return called_once(((path.stem, path) for path in find_pictures(folder)), "photos", "Rename one, and its results")


@dataclass(frozen=True)
class Cell:
    """What is measured together. pairs: (photo, its results), each photo with as many results as there are of it."""
    method: str
    inputs: str
    style: str
    pairs: tuple[tuple[Path, tuple[Path, ...]], ...]


def cells_of(folders: Folders) -> list[Cell]:
    """Every method, set of inputs and style set of which there are results. ValueError if there are none, for two
    photos of one name in a set, and for a result without its photo."""
    inputs, styles, methods = (parts_of(place) for place in (folders.photos, folders.styles, folders.results))
    cells: list[Cell] = []
    for method, place in methods.items():
        for name, photos in inputs.items():
            known = by_stem(photos)
            for style in styles:
                where = place / name / style
                if where.is_dir():
                    cells.append(Cell(method or folders.results.name, name, style, paired(where, known)))
    if not cells:
        layout = "/".join(["METHOD", *["INPUTS"] * ("" not in inputs), *["STYLE"] * ("" not in styles)])
        raise ValueError(f"{folders.results} holds no results: lay them out as {layout}/NAME.png, with the inputs "
                         f"{', '.join(filter(None, inputs)) or 'left out'} and the styles "
                         f"{', '.join(filter(None, styles)) or 'left out'}")
    return cells


def paired(folder: Path, photos: Mapping[str, Path]) -> tuple[tuple[Path, tuple[Path, ...]], ...]:
    """(photo, results) of the pictures under a folder, by their names without ending."""
    found: dict[Path, list[Path]] = {}
    for result in find_pictures(folder):
        if result.stem not in photos:
            raise ValueError(f"{result} is no result of a photo: there is no photo called {result.stem!r}. Give "
                             "results the names of their photos")
        found.setdefault(photos[result.stem], []).append(result)
    return tuple((photo, tuple(results)) for photo, results in found.items())


# --- measuring --------------------------------------------------------------------------------------------------------
def picture_metrics(names: Sequence[str]) -> list[str]:
    return [name for name in names if metric(name).scope == "picture"]


def check_metrics(names: Sequence[str]) -> None:
    """ValueError for metrics that a folder of results does not tell."""
    for name in names:
        known = metric(name)
        if name not in (*PUBLIC_DISTANCES, "art_fid", "lpips_diversity") and (
                known.scope != "picture" or known.sees != OF_PHOTOS or known.needs or name == "retrieval_accuracy"):
            raise ValueError(f"{known.title} cannot be in this table; take metrics of photo and result, FID, KID, "
                             "ArtFID or LPIPS diversity")


def read(paths: Sequence[Path], side: int) -> Tensor:
    return to_unit(torch.stack([read_picture(path, side) for path in paths]))


@torch.no_grad()
def gathered(evaluator: Evaluator, paths: Sequence[Path], side: int) -> FeatureSet:
    """What sets are compared by, of files: a batch in memory at a time."""
    return reduce(add, (gather(PictureFeatures(evaluator, read(paths[start:start + BATCH], side)))
                        for start in range(0, len(paths), BATCH)))


@torch.no_grad()
def measured(evaluator: Evaluator, cell: Cell, names: Sequence[str], art: FeatureSet, side: int) -> dict[str, float]:
    """The values of a cell, of those metrics whose networks there are. art: of the style set. Pictures are middle
    squares of `side` px."""
    results = [(photo, result) for photo, made in cell.pairs for result in made]
    singles = there(evaluator, picture_metrics((*names, *(["lpips_alex"] if "art_fid" in names else []))))
    values: dict[str, list[Tensor]] = {name: [] for name in singles}
    sets: list[FeatureSet] = []
    for start in range(0, len(results), BATCH):
        part = results[start:start + BATCH]
        after = PictureFeatures(evaluator, read([result for _, result in part], side))
        before = PictureFeatures(evaluator, read([photo for photo, _ in part], side))
        for name, of in measure(Comparison(before, after), singles).items():
            values[name].append(of.float().cpu())
        sets.append(gather(after))
    found = {name: float(torch.cat(of).nanmean()) for name, of in values.items()}
    if min(len(results), max(len(art.inception), len(art.art_inception))) >= 2:
        found |= public_distances(evaluator.public, reduce(add, sets), art, found.get("lpips_alex"))
    if "lpips_diversity" in there(evaluator, names):
        found["lpips_diversity"] = diversity(evaluator, cell, side)
    return {name: found[name] for name in names if name in found and not math.isnan(found[name])}


def diversity(evaluator: Evaluator, cell: Cell, side: int) -> float:
    """LPIPS of the first two results of each photo, mean. NaN if no photo has two."""
    twos = [made[:2] for _, made in cell.pairs if len(made) > 1]
    total = 0.0
    for start in range(0, len(twos), BATCH):
        part = twos[start:start + BATCH]
        one, other = (PictureFeatures(evaluator, read([made[k] for made in part], side)) for k in (0, 1))
        total += float(lpips_diversity(one, other)) * len(part)
    return total / len(twos) if twos else math.nan


def evaluation_table(evaluator: Evaluator, folders: Folders, paper: str, metrics: Sequence[str] = (), side: int = 256,
                     check_interrupt: Callable[[], None] = lambda: None) -> EvaluationTable:
    """The table of all results, beside the paper's published rows. metrics: the columns, by default the paper's.

    ValueError for an unknown paper or metric and for folders that do not fit. Memory does not grow with the pictures.
    """
    if paper not in PAPERS:
        raise ValueError(f"there is no paper {paper[:40]!r}; take one of {', '.join(PAPERS)}")
    names = list(metrics) or list(PAPERS[paper].metrics)
    check_metrics(names)
    cells, counts = cells_of(folders), []
    rows: dict[tuple[str, str], Values] = {}
    styles = {style: find_pictures(place) for style, place in parts_of(folders.styles).items()}
    art = {style: gathered(evaluator, paths, side) for style, paths in styles.items()}
    for cell in cells:
        check_interrupt()
        found = measured(evaluator, cell, names, art[cell.style], side)
        rows.setdefault((cell.method, cell.inputs), {}).update({(name, cell.style): x for name, x in found.items()})
        counts.append(f"{sum(len(made) for _, made in cell.pairs)} results of {len(cell.pairs)} photos, "
                      f"{len(styles[cell.style])} style pictures")
        log.info("%s: %s", " ".join(filter(None, (cell.method, cell.inputs, cell.style))), found)
    own = [Row(method, inputs, values) for (method, inputs), values in rows.items()]
    published = published_rows(paper, [row.inputs for row in own])
    shown = [Row(row.method, row.inputs, {key: x for key, x in row.values.items() if key[0] in names}, True)
             for row in published]
    notes = [*notes_of(evaluator, names, f"{'; '.join(dict.fromkeys(counts))}, squares of {side} px"),
             f"published: {PAPERS[paper].title}. {PAPERS[paper].remark}"]
    return EvaluationTable.of(PAPERS[paper].title, names, own + [row for row in shown if row.values], notes)


def notes_of(evaluator: Evaluator, names: Sequence[str], counts: str) -> list[str]:
    """How each of the metrics was made, or why it was not."""
    titles = {metric(name).title for name in names}
    public = [note for note in public_notes(evaluator.public, counts) if note.partition(": ")[0] in titles]
    told = {note.partition(": ")[0] for note in public}
    return public + [f"{metric(name).title}: {metric(name).text} {counts}" for name in names
                     if metric(name).title not in told]


def write(table: EvaluationTable, out: Path) -> None:
    """OUT/table.csv, table.md and table.png."""
    write_whole(out / "table.csv", table.csv())
    write_whole(out / "table.md", table.markdown())
    table.picture().save(out / "table.png")
