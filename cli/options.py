"""Options that several commands share, and what they are read as."""
from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def add_device(p: argparse.ArgumentParser) -> None:
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")


def check_apart(out: Path | None, *folders: Path | None) -> None:
    """ValueError for a folder of results that is a folder of pictures, or lies in one: a later run would take the
    results for pictures."""
    for folder in folders:
        if out is not None and folder is not None and out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out} lies in {folder}. A later run would read what is written there as one of its "
                             "pictures. Name a folder elsewhere")


def names_in(text: str) -> tuple[str, ...]:
    """The names of a list with commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def weights_in(text: str) -> tuple[tuple[str, float], ...]:
    """(name, number) pairs of "name=number,...". ValueError for what is no positive number."""
    pairs = []
    for part in names_in(text):
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not name or not 0 < value < float("inf"):
            raise ValueError(f"{part[:40]!r} is no weight; write NAME=NUMBER with a number above 0")
        pairs.append((name, value))
    return tuple(pairs)


def given(options: argparse.Namespace, *names: str) -> dict:
    """Those of the options that were set."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def changed(config: Config, changes: str) -> Config:
    """A frozen dataclass with "field=value,..." on top (with ; for , where a value holds commas).

    ValueError names an unknown field, and a value that is no number where one is needed.
    """
    fields, values = {f.name: type(f.default) for f in dataclasses.fields(config)}, {}
    for pair in filter(None, changes.split(";" if ";" in changes else ",")):
        name, _, text = pair.partition("=")
        if name not in fields:
            raise ValueError(f"there is no setting {name[:40]!r}; there are {', '.join(fields)}")
        try:
            values[name] = text.lower() in ("1", "true", "yes") if fields[name] is bool else fields[name](text)
        except ValueError as error:
            raise ValueError(f"{name} takes numbers ({fields[name].__name__}), not {text[:40]!r}") from error
    return dataclasses.replace(config, **values)


def from_preset(kind: type[Config], presets: dict[str, dict], preset: str, changes: str) -> Config:
    """A preset's settings with "field=value,..." on top. ValueError names an unknown preset or field."""
    if preset not in presets:
        raise ValueError(f"there is no preset {preset!r}; take one of {', '.join(presets)}")
    return changed(kind(**presets[preset]), changes)
