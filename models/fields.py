"""What every configuration checks of its own fields: numbers are numbers of their type, finite, and not negative."""
from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from .rng import MAX_SEED

TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {  # a field's annotation: what its value may be
    "int": (int, "a whole number"), "float": ((int, float), "a number"), "bool": (bool, "True or False"),
    "str": (str, "a text")}


def check_fields(config: Any, at_least_1: Collection[str] = (), below_1: Collection[str] = ()) -> None:
    """ValueError names the first field of a frozen dataclass that has a value of another type, that is not finite or
    below 0, that is not at least 1 or not below 1 where it must be."""
    for field in fields(config):
        value = getattr(config, field.name)
        kind, what = TYPES.get(str(field.type), (object, ""))
        if not isinstance(value, kind) or isinstance(value, bool) and field.type != "bool":
            raise ValueError(f"{field.name} is {str(value)[:40]!r}; take {what}")
        if field.type in ("int", "float"):
            _check_number(field.name, value, field.name in at_least_1, field.name in below_1)


def _check_number(name: str, value: float, at_least_1: bool, below_1: bool) -> None:
    least = 1 if at_least_1 else 0
    if not least <= value <= sys.float_info.max:  # also for NaN
        raise ValueError(f"{name} is {str(value)[:40]}; it must be a finite number and at least {least}")
    if below_1 and value >= 1:
        raise ValueError(f"{name} is {str(value)[:40]}; it must be at least 0 and below 1")
    if name == "seed" and value > MAX_SEED:
        raise ValueError(f"seed is {str(value)[:40]}; take a whole number from 0 to {MAX_SEED}")
