"""Tables of numbers: a row for each variant, a column for each metric of the registry."""
from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..models.whole_files import write_whole
from ..train.data import called_once
from ..train.plots import grid, save_picture
from .evaluator import Evaluator, PictureFeatures
from .registry import FeatureSet, gather, metric, public_distances, public_notes, there

Rows = dict[str, dict[str, float]]  # row of a table -> name of a metric -> number
DECIMALS = 3
LABEL = ", label "  # between a variant and a group of labels, in the name of the group's row
HALVES = "the art's one half to its other"
LONGEST = 100  # bytes of a name as part of a file's


def mean_rows(results: Mapping[str, Rows]) -> Rows:
    """Mean of every metric over the styles; of those styles that have it, for metrics that some lack."""
    rows = list(results.values())
    found: Rows = {}
    for variant in rows[0]:
        names = dict.fromkeys(name for r in rows for name in r[variant])
        columns = {name: [r[variant][name] for r in rows if name in r[variant]] for name in names}
        found[variant] = {name: sum(column) / len(column) for name, column in columns.items()}
    return found


def group_rows(variant: str, groups: Mapping[str, dict[str, float]]) -> Rows:
    """Rows of a variant's groups of labels."""
    return {f"{variant}{LABEL}{group}": values for group, values in groups.items()}


def split_groups(rows: Rows) -> tuple[Rows, Rows]:
    """The rows of variants, and those of `group_rows`."""
    return ({name: values for name, values in rows.items() if LABEL not in name},
            {name: values for name, values in rows.items() if LABEL in name})


def gaps(rows: Rows) -> dict[str, dict[str, tuple[str, float]]]:
    """{variant: {metric: (group, gap)}}: the group of labels that is furthest on the worse side of the variant's mean,
    and how far. Without those in which no group is worse."""
    variants, groups = split_groups(rows)
    found: dict[str, dict[str, tuple[str, float]]] = {}
    for name, values in groups.items():
        variant, _, group = name.rpartition(LABEL)
        for figure, value in values.items():
            sign = 1 if metric(figure).better == "higher" else -1
            gap = sign * (variants[variant].get(figure, value) - value)
            worst = found.setdefault(variant, {})
            if gap > worst.get(figure, ("", 0.0))[1]:
                worst[figure] = group, gap
    return {variant: worst for variant, worst in found.items() if worst}


def gap_lines(rows: Rows) -> list[str]:
    """`gaps` as lines of text."""
    return [f"{variant}: {metric(name).title} of {group} is {gap:.{DECIMALS}f} worse than the mean"
            for variant, worst in gaps(rows).items() for name, (group, gap) in worst.items()]


@dataclass(frozen=True)
class ResultFolder:
    """Where results are written as pictures, in the layout of `papers`: PATH/METHOD, ROW/INPUTS/STYLE/PICTURE/NAME.png,
    with several seeds PATH/METHOD, ROW/INPUTS/STYLE/PICTURE/SEED/NAME.png. names: of the photos, INPUTS/NAME for one in
    a folder of its own. styles: the folder that the style pictures lie under."""
    path: Path
    names: Sequence[str]
    method: str = ""
    styles: Path | None = None

    @classmethod
    def of(cls, path: Path, photos: Sequence[Path], root: Path, styles: Path, method: str) -> ResultFolder:
        """Of photos under a folder `root` and styles under another. ValueError for two photos of one name."""
        names = called_once((("/".join([*photo.relative_to(root).parts[:-1][:1], photo.stem]), photo)
                             for photo in photos), "photos", "Rename one, or leave out --pictures")
        return cls(path, list(names), method, styles)

    def _style(self, style: Path) -> str:
        """The folders of a style picture's results."""
        place = Path() if self.styles is None else style.parent.relative_to(self.styles)
        return f"{place.as_posix() if place.parts else style.parent.name}/{style.stem}"

    def save(self, row: str, style: Path, pictures: Tensor, seed: str = "") -> None:
        """Pictures (B, 3, H, W) in [-1, 1], of a row of the table and a style picture. seed: a folder's name."""
        for name, picture in zip(self.names, pictures, strict=True):
            inputs, _, stem = name.rpartition("/")
            folder = self.path / file_name(f"{self.method} {row}") / inputs / self._style(style) / seed
            save_picture(picture, folder / f"{stem}.png")


class Sets:
    """The results of each row, of all styles together, and all style pictures: what FID, KID and ArtFID compare.

    Only features are kept, and only of the networks that the user has. folder: where the results are written, too.
    """

    def __init__(self, evaluator: Evaluator, folder: ResultFolder | None = None) -> None:
        self.evaluator, self.folder, self.style, self.seed = evaluator, folder, Path("style"), ""
        self.results: dict[str, FeatureSet] = {}
        self.art: FeatureSet | None = None
        self.counts: dict[str, int] = {}

    @property
    def wanted(self) -> bool:
        """Whether the results themselves are needed, to be written or to be compared as sets."""
        return self.folder is not None or bool(there(self.evaluator.public, ("fid", "kid", "fid_art")))

    def count(self, rows: Rows, photos: int, seeds: int = 1) -> None:
        """Counts the results in a style that was measured before."""
        for row in split_groups(rows)[0]:
            if row == "photos":
                self.counts[row] = photos
            else:
                self.counts[row] = self.counts.get(row, 0) + photos * seeds

    def begin(self, style: Path, seed: str = "") -> None:
        """What is added from now on is of this style picture, and of this seed where there are several."""
        self.style, self.seed = style, seed

    def add(self, row: str, results: PictureFeatures) -> None:
        """More results of this row of the table."""
        if self.folder is not None and row != "photos":
            self.folder.save(row, self.style, results.pictures, self.seed)
        found = gather(results)
        self.results[row] = self.results[row] + found if row in self.results else found
        self.counts[row] = self.counts.get(row, 0) + len(results.pictures)

    def add_art(self, pictures: PictureFeatures) -> None:
        found = gather(pictures)
        self.art = found if self.art is None else self.art + found
        self.counts["art"] = self.counts.get("art", 0) + len(pictures.pictures)

    def rows(self, means: Rows) -> Rows:
        """Distances of each row to the art and of the art's halves; means: of LPIPS, for ArtFID. {} for sets of one."""
        public = self.evaluator.public
        if self.art is None or min(self.counts.values()) < 2 or not there(public, ("fid", "fid_art")):
            return {}
        found = {row: public_distances(public, results, self.art, means.get(row, {}).get("lpips_alex"))
                 for row, results in self.results.items()}
        if self.counts["art"] >= 4:
            found[HALVES] = public_distances(public, self.art[::2], self.art[1::2])
        return found

    def notes(self) -> list[str]:
        """How each published measure was made, or why it was not."""
        counts = [f"{count} {'style pictures' if row == 'art' else f'pictures of {row!r}'}"
                  for row, count in self.counts.items()]
        few = [] if min(self.counts.values(), default=0) >= 2 else [
            "FID, KID, ArtFID: not measured; two style pictures and two results are needed at least"]
        return public_notes(self.evaluator.public, ", ".join(counts)) + few


def table(rows: Rows) -> str:
    """The rows in Markdown, metrics under their titles; a metric that a row does not have stays empty."""
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    lines = ["| | " + " | ".join(metric(name).title for name in names) + " |", "|---|" + "---|" * len(names)]
    for variant, values in rows.items():
        cells = (f"{values[name]:.{DECIMALS}f}" if name in values else "" for name in names)
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def beside(osasis: Rows, mmfs: Rows) -> Rows:
    """One table of both methods' rows for the same photos and styles."""
    def of_photos(name: str) -> bool:
        return name.partition(LABEL)[0] == "photos"
    rows = {name: values for name, values in mmfs.items() if of_photos(name)}
    for method, found in (("OSASIS", osasis), ("MMFS", mmfs)):
        rows |= {f"{method}: {name}": values for name, values in found.items() if not of_photos(name)}
    return rows


def write(report: Mapping, out: Path | None, name: str) -> None:
    """The numbers so far, as OUT/NAME.json; nothing without a folder."""
    if out is not None:
        write_whole(out / f"{name}.json", json.dumps(report, indent=1))


def write_sheet(rows: Sequence[Tensor], out: Path | None, name: str) -> None:
    """Rows of pictures (n, 3, H, W) in [-1, 1] as OUT/NAME.png; nothing without a folder."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        grid(rows).save(out / f"{name}.png")


def name_of(path: Path) -> str:
    """What a style picture is called: its folder and its file."""
    return f"{path.parent.name}_{path.stem}"


def check_names(styles: Iterable[Path]) -> None:
    """ValueError for two style pictures whose results would have one name, in reports or in files."""
    seen: dict[str, Path] = {}
    for path in styles:
        other = seen.setdefault(file_name(name_of(path)).lower(), path)
        if other != path:
            raise ValueError(f"two style pictures are called {name_of(path)!r}: {other} and {path}. Rename one, or "
                             "leave it out")


def file_name(name: str) -> str:
    """A name as part of a file's."""
    return short_name(re.sub(r"[^\w.-]+", "_", name))


def short_name(name: str) -> str:
    """The name, or its beginning and a hash of it where file systems take no name so long."""
    data = name.encode()
    if len(data) <= LONGEST:
        return name
    return f"{data[:LONGEST - 13].decode(errors='ignore')}_{hashlib.sha256(data).hexdigest()[:12]}"


def first_of_each(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """One style a class folder (its first held-out picture), or every picture of a flat folder."""
    if all(p.parent == folder for p in paths):
        return list(paths)
    chosen: dict[Path, Path] = {}
    for path in paths:
        chosen.setdefault(path.parent, path)
    return list(chosen.values())
