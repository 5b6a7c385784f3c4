"""The self-check's attempts at checkpoint files: damage, edited headers, other kinds, code, floods."""
from __future__ import annotations

import json
import math
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...models.checkpoints import CheckpointError
from . import hostile_pickles, whole_files
from .attempts import FAULT, LOADED, REFUSED, Outcome, chosen, dice, outcome
from .whole_files import LOADERS, Whole

SECONDS = 10.0
ROWS = {
    "whole": "a harmless file of every kind and form, which must load",
    "cut off": "a file that ends early, at a random byte",
    "changed bytes": "one to three random bytes changed, half of the time in the first 4 KB",
    "edited header": "a safetensors header with a huge, negative or absent number, NaN, another type, another shape, "
                     "offset, name or version",
    "bad numbers": "weights that hold NaN or infinity",
    "another kind": "a harmless file of another kind than is asked for; it must be named",
    "code": "a pickle that calls os.system, exec, eval or open, alone or beside whole weights; the file that it would "
            "create must not be there afterwards",
    "floods": "nested, repeated or falsely announced content that takes memory or time",
    "archives": "zip archives with outside names, compressed entries, many entries or large views of few numbers",
    "no checkpoint": "an empty file, zeros, a web page, a folder, a picture, a text, a missing file",
}
FORMS = ("zip", "legacy", "plain")
OTHERS = ("empty", "zeros", "page", "folder", "missing", "png", "text", "lfs pointer", "deep json", "long header",
          "many names", "twice", "many dimensions")
ARCHIVES = ("outside name", "deflated", "many entries", "expanded", "no pickle", "two roots", "long names")
WRONG = ("1e400", "NaN", "-1", "0", "2147483648", "9223372036854775808", "1" + "0" * 30, '"text"', "null", "[]", "{}",
         "true", "1.5", "[[[[1]]]]", '"' + "x" * 3000 + '"')
KINDS = (*(f"{kind}.safetensors" for kind in LOADERS), *(f"{kind}.{form}.pt" for form in ("zip", "legacy") for kind in (
    "diffae", "ddpm", "osasis_style", "stylegan2", "mmfs")), "stylegan2.pkl")
CASE_LIST = [*(("whole", name) for name in KINDS), *(("cut off", name) for name in KINDS for _ in range(2)),
             *(("changed bytes", name) for name in KINDS for _ in range(2)),
             *(("edited header", f"{kind}.safetensors") for kind in LOADERS for _ in range(4)),
             *(("bad numbers", f"{kind}.safetensors") for kind in LOADERS),
             *(("another kind", name) for name in KINDS),
             *(("code", f"{name}/{form}") for name in hostile_pickles.CODE for form in (*FORMS, "beside")),
             *(("floods", f"{name}/{form}") for name in hostile_pickles.FLOODS for form in FORMS),
             *(("archives", name) for name in ARCHIVES), *(("no checkpoint", name) for name in OTHERS)]
CASES = len(CASE_LIST)
LEAST = 500  # attempts of a whole check


@dataclass(frozen=True)
class Prepared:
    """The folder that attempts are made in, the file that code would create, and the harmless files."""
    folder: Path
    canary: Path
    wholes: dict[str, Whole]


def prepare(folder: Path) -> Prepared:
    (folder / "whole").mkdir(parents=True, exist_ok=True)
    found = whole_files.write_all(folder / "whole")
    return Prepared(folder, folder / "canary", {whole.path.name: whole for whole in found})


def attempt(prepared: Prepared, seed: int, index: int) -> Outcome:
    """Make the file of this attempt, load it, and look for the canary."""
    row, what = chosen(CASE_LIST, seed, "files", index)
    rolls = dice(seed, "files", index)
    path, kind = MAKERS[row](prepared, what, rolls)
    found = outcome(row, lambda: LOADERS[kind](path), CheckpointError)
    if prepared.canary.exists():
        prepared.canary.unlink()
        found = Outcome(row, FAULT, "code in the file was run")
    elif row == "whole" and found.kind == REFUSED or row == "another kind" and found.kind == LOADED:
        found = Outcome(row, FAULT, f"{found.kind}: {found.text}")
    return found if found.kind != FAULT else Outcome(row, FAULT, f"{what} as {kind}: {found.text}")


def _target(prepared: Prepared, name: str) -> Path:
    """A free name for the attempt's file: what an earlier one has left is removed."""
    path = prepared.folder / f"attempt-{Path(name).name}"
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    return path


# --- damage -----------------------------------------------------------------------------------------------------------
def whole(prepared: Prepared, what: str, rolls: random.Random) -> tuple[Path, str]:
    return prepared.wholes[what].path, prepared.wholes[what].kind


def cut_off(prepared: Prepared, what: str, rolls: random.Random) -> tuple[Path, str]:
    data = prepared.wholes[what].path.read_bytes()
    end = rolls.choice([rolls.randrange(len(data)), rolls.randrange(min(len(data), 4096)), len(data) - 1])
    path = _target(prepared, what)
    path.write_bytes(data[:end])
    return path, prepared.wholes[what].kind


def changed_bytes(prepared: Prepared, what: str, rolls: random.Random) -> tuple[Path, str]:
    data = bytearray(prepared.wholes[what].path.read_bytes())
    for _ in range(rolls.randint(1, 3)):
        at = rolls.randrange(min(len(data), 4096) if rolls.random() < 0.5 else len(data))
        data[at] = rolls.choice([data[at] ^ 1 << rolls.randrange(8), rolls.randrange(256), 0xff])
    path = _target(prepared, what)
    path.write_bytes(data)
    return path, prepared.wholes[what].kind


def another_kind(prepared: Prepared, what: str, rolls: random.Random) -> tuple[Path, str]:
    source = prepared.wholes[what]
    same = {source.kind} | ({"mmfs_style"} if what.startswith("mmfs.") else set())  # a style is in an official MMFS
    return source.path, rolls.choice([kind for kind in LOADERS if kind not in same])


# --- safetensors headers ----------------------------------------------------------------------------------------------
def parted(path: Path) -> tuple[dict[str, Any], bytes]:
    """(header, numbers) of a safetensors file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8:8 + length]), data[8 + length:]


def joined(header: str, numbers: bytes) -> bytes:
    return struct.pack("<Q", len(header.encode())) + header.encode() + numbers


def edited_header(prepared: Prepared, what: str, rolls: random.Random) -> tuple[Path, str]:
    header, numbers = parted(prepared.wholes[what].path)
    if rolls.random() < 0.7:  # what the file says of itself: configuration, meta, kind, version
        info = json.loads(header["__metadata__"]["atelier"])
        header["__metadata__"]["atelier"] = with_wrong_value(info, rolls)
        text = json.dumps(header)
    else:
        header = damaged_rows(header, rolls)
        text = json.dumps(header) if rolls.random() < 0.5 else with_wrong_value(header, rolls)
    path = _target(prepared, what)
    path.write_bytes(joined(text, numbers))
    return path, prepared.wholes[what].kind


def with_wrong_value(value: Any, rolls: random.Random) -> str:
    """JSON of `value` with one of its values replaced by a wrong one."""
    places = [place for place in leaves(value) if place]
    *above, last = rolls.choice(places)
    copy = json.loads(json.dumps(value))
    home = copy
    for key in above:
        home = home[key]
    mark = "the place of the wrong value"
    home[last] = mark
    return json.dumps(copy).replace(f'"{mark}"', rolls.choice(WRONG))


def leaves(value: Any, place: tuple = ()) -> list[tuple]:
    """The places of all values in nested dicts and lists, also of the dicts and lists themselves."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(leaf for key, item in inside for leaf in leaves(item, (*place, key)))]


def damaged_rows(header: dict[str, Any], rolls: random.Random) -> dict[str, Any]:
    """One tensor of a header with another shape, type, place or name, or without it."""
    names = [name for name in header if name != "__metadata__"]
    name, way = rolls.choice(names), rolls.randrange(6)
    row = header[name]
    if way == 0:
        row["shape"] = rolls.choice([[], [2 ** 40], [2 ** 31, 2 ** 31, 2 ** 31], [1] * 60, row["shape"][::-1] + [1]])
    elif way == 1:
        row["dtype"] = rolls.choice(["F64", "I64", "BOOL", "F8_E4M3", "C64", "x", "U16"])
    elif way == 2:
        row["data_offsets"] = rolls.choice([[0, 2 ** 62], [4, 0], [0, 0], [-4, 4], [0], [2 ** 63, 2 ** 63 + 4]])
    elif way == 3:
        del header[name]
    else:
        header[rolls.choice([f"{name}x", "", "../x", "x" * 5000, "\u0000", name.replace(".", "..")])] = header.pop(name)
    return header


def bad_numbers(prepared: Prepared, what: str, rolls: random.Random) -> tuple[Path, str]:
    header, numbers = parted(prepared.wholes[what].path)
    rows = [row for name, row in header.items() if name != "__metadata__" and row["dtype"] in ("F16", "F32")
            and row["data_offsets"][0] < row["data_offsets"][1]]
    row, changed = rolls.choice(rows), bytearray(numbers)
    value = rolls.choice([math.nan, math.inf, -math.inf])
    data = struct.pack("<e" if row["dtype"] == "F16" else "<f", value)
    at = row["data_offsets"][0] + len(data) * rolls.randrange((row["data_offsets"][1] - row["data_offsets"][0])
                                                             // len(data))
    changed[at:at + len(data)] = data
    path = _target(prepared, what)
    path.write_bytes(joined(json.dumps(header), bytes(changed)))
    return path, prepared.wholes[what].kind


# --- pickles ----------------------------------------------------------------------------------------------------------
def contained(path: Path, form: str, fragment: bytes) -> None:
    if form == "zip":
        hostile_pickles.as_zip(path, fragment)
    else:
        path.write_bytes((hostile_pickles.plain if form == "plain" else hostile_pickles.as_legacy)(fragment))


def code(prepared: Prepared, what: str, rolls: random.Random) -> tuple[Path, str]:
    name, _, form = what.rpartition("/")
    fragment, path = hostile_pickles.CODE[name](prepared.canary), _target(prepared, "code.pt")
    if form != "beside":
        contained(path, form, fragment)
        return path, rolls.choice(list(LOADERS))
    source = rolls.choice([whole for whole in prepared.wholes.values() if whole.form != "safetensors"])
    hostile_pickles.beside_weights(source.path, source.form, fragment, path)
    return path, source.kind


def floods(prepared: Prepared, what: str, rolls: random.Random) -> tuple[Path, str]:
    name, _, form = what.rpartition("/")
    path = _target(prepared, "flood.pt")
    contained(path, form, hostile_pickles.FLOODS[name])
    return path, rolls.choice(list(LOADERS))


def archives(prepared: Prepared, what: str, rolls: random.Random) -> tuple[Path, str]:
    path = _target(prepared, "archive.pt")
    if what == "expanded":  # one number, seen as 2^30 of them
        weights = parted_weights(prepared)
        torch.save({name: torch.zeros(1).expand(1 << 30) for name in weights}, path)
        return path, "ddpm"
    content = hostile_pickles.plain(b"}")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if what == "deflated" else zipfile.ZIP_STORED) as archive:
        if what != "no pickle":
            archive.writestr("archive/data.pkl", content)
        if what == "outside name":
            archive.writestr(rolls.choice(["../x", "/etc/x", "archive/../../x", "C:\\x", "other/data/0"]), b"x")
        elif what == "deflated":
            archive.writestr("archive/data/0", b"\0" * 100_000_000)
        elif what == "many entries":
            for k in range(30_000):
                archive.writestr(f"archive/data/{k}", b"")
        elif what == "two roots":
            archive.writestr("other/data.pkl", content)
        elif what == "long names":
            for k in range(100):
                archive.writestr(f"archive/{'x' * 60_000}{k}", b"")
    return path, rolls.choice(list(LOADERS))


def parted_weights(prepared: Prepared) -> list[str]:
    return [name for name in parted(prepared.wholes["ddpm.safetensors"].path)[0] if name != "__metadata__"]


# --- other files ------------------------------------------------------------------------------------------------------
OTHER_BYTES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"", "zeros": lambda: bytes(100_000), "text": lambda: b"these are not weights\n",
    "page": lambda: b"<!DOCTYPE html><html><body>Too many users have viewed this file</body></html>",
    "png": lambda: b"\x89PNG\r\n\x1a\n" + bytes(99),
    "lfs pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "deep json": lambda: joined('{"a":' * 100_000 + "1" + "}" * 100_000, b""),
    "long header": lambda: struct.pack("<Q", 2 ** 62) + b"{}",
    "many names": lambda: joined(json.dumps({f"t{k}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                                             for k in range(100_000)}), b""),
    "many dimensions": lambda: joined(json.dumps({"t": {"dtype": "U8", "shape": [1] * 40_000,
                                                        "data_offsets": [0, 1]}}), b"0"),
    "twice": lambda: joined('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
                            '"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b""),
}


def no_checkpoint(prepared: Prepared, what: str, rolls: random.Random) -> tuple[Path, str]:
    path = _target(prepared, rolls.choice(["other.pt", "other.safetensors", "other.pkl"]))
    if what == "folder":
        path.mkdir()
    elif what != "missing":
        path.write_bytes(OTHER_BYTES[what]())
    return path, rolls.choice(list(LOADERS))


MAKERS: dict[str, Callable[[Prepared, str, random.Random], tuple[Path, str]]] = {
    "whole": whole, "cut off": cut_off, "changed bytes": changed_bytes, "edited header": edited_header,
    "bad numbers": bad_numbers, "another kind": another_kind, "code": code, "floods": floods, "archives": archives,
    "no checkpoint": no_checkpoint}
