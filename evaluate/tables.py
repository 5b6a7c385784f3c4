"""Tables of numbers: a row for each variant, a column for each metric of the registry."""
from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .registry import metric

Rows = dict[str, dict[str, float]]  # row of a table -> name of a metric -> number
DECIMALS = 3


def mean_rows(results: Mapping[str, Rows]) -> Rows:
    """Mean of every metric over the styles."""
    rows = list(results.values())
    return {variant: {name: sum(r[variant][name] for r in rows) / len(rows) for name in values}
            for variant, values in rows[0].items()}


def table(rows: Rows) -> str:
    """The rows in Markdown, metrics under their titles; a metric that a row does not have stays empty."""
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    lines = ["| | " + " | ".join(metric(name).title for name in names) + " |", "|---|" + "---|" * len(names)]
    for variant, values in rows.items():
        cells = (f"{values[name]:.{DECIMALS}f}" if name in values else "" for name in names)
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def beside(osasis: Rows, mmfs: Rows) -> Rows:
    """One table of both methods' rows for the same photos and styles."""
    rows = {"photos": mmfs["photos"]}
    for method, found in (("OSASIS", osasis), ("MMFS", mmfs)):
        rows |= {f"{method}: {name}": values for name, values in found.items() if name != "photos"}
    return rows


def write(report: Mapping, out: Path | None, name: str) -> None:
    """The numbers so far, as OUT/NAME.json; nothing without a folder."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


def name_of(path: Path) -> str:
    """What a style picture is called: its folder and its file."""
    return f"{path.parent.name}_{path.stem}"


def file_name(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^\w.-]+", "_", name)


def first_of_each(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """One style a class folder (its first held-out picture), or every picture of a flat folder."""
    if all(p.parent == folder for p in paths):
        return list(paths)
    chosen: dict[Path, Path] = {}
    for path in paths:
        chosen.setdefault(path.parent, path)
    return list(chosen.values())
