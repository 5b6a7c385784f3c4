"""The self-check's attempts at settings: random values in every configuration, step counts, file names."""
from __future__ import annotations

import dataclasses
import math
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...models.diffusion import TRAIN_STEPS, ddim_schedule, respaced_schedule
from ...models.osasis import SamplingSettings
from ...train.diffusion_pretraining import PretrainingConfig
from ...train.fewshot import FewShotConfig
from ...train.gan import GANConfig
from ...train.osasis import OSASISConfig
from ...train.session import plain_name
from ..options import changed
from .attempts import FAULT, Outcome, chosen, dice, outcome

SECONDS = 10.0
ROWS = {
    "OSASIS fine-tune": "one random value in a field of OSASISConfig: refused with the field's name, or valid",
    "MMFS fine-tune": "the same for FewShotConfig", "GAN training": "the same for GANConfig",
    "diffusion pretraining": "the same for PretrainingConfig", "sampling": "the same for SamplingSettings",
    "options as text": "the command line's --set FIELD=VALUE",
    "step counts": "numbers of DDIM and of respaced steps",
    "file names": "names with devices of Windows, ways out of the folder, control characters and every script",
}
MAKERS = {"OSASIS fine-tune": (OSASISConfig, {}), "MMFS fine-tune": (FewShotConfig, {}),
          "GAN training": (GANConfig, {}),
          "diffusion pretraining": (PretrainingConfig, {"steps": 10}), "sampling": (SamplingSettings, {})}
NUMBERS = (math.nan, math.inf, -math.inf, -1, 0, 1, -1e-9, 1e308, 10 ** 30, -10 ** 30, 2 ** 63, 0.5, 1e-300)
OTHERS = ("", "x", "official", None, True, [], {}, b"x", 1j, object, (1, 2), "nan", "1")
DEVICES = ("CON", "con", "PRN", "aux.txt", "NUL", "COM1", "com9.a.b", "LPT1", "COM\u00b9", "LPT\u00b3", "CON ",
           "nul .x", "CONIN$", "CONOUT$", "CLOCK$")
PIECES = ("..", "/", "\\", "a", "\u00e9", "e\u0301", "\u4e2d", "\u202e", "\u200b", "\0", "\n", " ", ".", "-", "_",
          ":", "*", "?", "|", "<", "$", "\U0001f600", "\ud800", "x" * 90, "\u0e01\u0e34", "~", "%00", "\uff0f",
          "\u2215", "'")
FIELDS = [(row, field.name) for row, (kind, _) in MAKERS.items() for field in dataclasses.fields(kind)]
CASE_LIST = [*(case for case in FIELDS for _ in range(4)),
             *(("options as text", name) for row, name in FIELDS if row == "GAN training"),
             *(("step counts", name) for name in ("ddim", "respaced") for _ in range(10)),
             *(("file names", name) for name in DEVICES), *(("file names", "") for _ in range(60))]
CASES = len(CASE_LIST)
LEAST = 500  # attempts of a whole check


def prepare(folder: Path) -> None:
    """Nothing is written."""


def attempt(prepared: None, seed: int, index: int) -> Outcome:
    row, what = chosen(CASE_LIST, seed, "settings", index)
    rolls = dice(seed, "settings", index)
    if row in MAKERS:
        return one_field(row, what, rolls)
    return {"options as text": one_option, "step counts": step_count, "file names": file_name}[row](row, what, rolls)


# --- configurations ---------------------------------------------------------------------------------------------------
def one_field(row: str, name: str, rolls: random.Random) -> Outcome:
    """A configuration with one wrong value: refused with the field's name, or sound."""
    kind, needed = MAKERS[row]
    value = rolls.choice(NUMBERS if rolls.random() < 0.6 else OTHERS)
    found = outcome(row, lambda: sound(kind(**needed | {name: value})), (ValueError, TypeError), named(name))
    return found if found.kind != FAULT else Outcome(row, FAULT, f"{name} = {value!r}: {found.text}")


class Unsound(Exception):
    """A configuration was accepted with a value that it cannot have."""


def sound(config: Any) -> None:
    """Unsound if a field's value is not of the field's type, not finite, or a negative rate or count."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type in ("int", "float"):
            wanted = int if field.type == "int" else (int, float)
            if isinstance(value, bool) or not isinstance(value, wanted) or not math.isfinite(value):
                raise Unsound(f"{field.name} {value!r} was accepted as {field.type}")
            if value < 0 and (field.type == "int" or field.name.startswith(("lr", "t0", "beta", "ema"))):
                raise Unsound(f"{field.name} {value!r} was accepted")
        elif field.type in ("bool", "str") and type(value).__name__ != field.type:
            raise Unsound(f"{field.name} {value!r} was accepted as {field.type}")


def named(name: str) -> Callable[[str], str]:
    """What is wrong with a message that should name a field."""
    def wrong(text: str) -> str:
        if len(text) > 1000:
            return f"the message has {len(text)} characters"
        return "" if name in text else f"the message does not name {name}"
    return wrong


def one_option(row: str, name: str, rolls: random.Random) -> Outcome:
    """--set of the command line."""
    value = rolls.choice([*map(str, NUMBERS), "", "x", "1e400", "0x10", "1_000", "true", "nan", "9" * 5000, "=", "1=2"])
    name = name if rolls.random() < 0.9 else rolls.choice(["nothing", "", "__class__", " "])
    found = outcome(row, lambda: sound(changed(GANConfig(), f"{name}={value}")), (ValueError, TypeError), named(name))
    return found if found.kind != FAULT else Outcome(row, FAULT, f"{name}={value[:40]}: {found.text}")


# --- counts and names -------------------------------------------------------------------------------------------------
def step_count(row: str, what: str, rolls: random.Random) -> Outcome:
    count: Any = rolls.choice([*NUMBERS, *range(-2, 60), TRAIN_STEPS, TRAIN_STEPS + 1, 10 ** 9, "x", None])

    def act() -> None:
        schedule = (ddim_schedule if what == "ddim" else respaced_schedule)(count)
        if len(schedule) != count or sorted(set(schedule.times)) != list(schedule.times):
            raise Unsound(f"the schedule has {len(schedule)} steps")

    found = outcome(row, act, ValueError, named(str(count)))
    return found if found.kind != FAULT else Outcome(row, FAULT, f"{what} of {count!r}: {found.text}")


def file_name(row: str, what: str, rolls: random.Random) -> Outcome:
    name = what or "".join(rolls.choice(PIECES) for _ in range(rolls.randint(0, 6)))
    found = outcome(row, lambda: safe(plain_name(name)), ValueError, lambda text: "" if len(text) < 500 else "too long")
    return found if found.kind != FAULT else Outcome(row, FAULT, f"{name!r}: {found.text}")


def safe(name: str) -> None:
    """Unsound if a system of ours could not have such a file, or if it could leave its folder."""
    device = name.partition(".")[0].strip().upper().translate(str.maketrans("\u00b9\u00b2\u00b3", "123"))
    devices = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *(f"{port}{n}" for port in ("COM", "LPT")
                                                                  for n in range(10))}
    if device in devices:
        raise Unsound("a device on Windows was accepted")
    if not name or name[0] in ". -" or name[-1] in ". " or len(name.encode()) > 255 - 40:
        raise Unsound("an empty, hidden, spaced or long name was accepted")
    if any(c in '/\\:*?"<>|' or unicodedata.category(c)[0] in "CZ" and c != " " for c in name):
        raise Unsound("a character that a system cannot have in a name was accepted")
    if name != unicodedata.normalize("NFC", name):
        raise Unsound("the name has two spellings")
