"""What pictures show, in words: a folder's labels.csv, and the words of the small CLIP that its labels stand for.

labels.csv has the columns `file` (a name in the same folder) and `labels` ("group: value; group: value"). A folder
without one has no labels. Values that no word stands for are passed over, so nothing of the file reaches a model.
"""
from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)
NAME = "labels.csv"
MAX_BYTES, MAX_NAME, MAX_LABELS = 16_000_000, 255, 64


@dataclass(frozen=True)
class Group:
    """Words of which a picture's labels tell. words: each with the labels' values that it stands for.

    told: a picture that has labels, but none of this group, has none of these things; otherwise, it is unknown.
    colour: the words are untrue when the picture is recoloured. forms: how a caption says a word.
    """
    name: str
    words: dict[str, tuple[str, ...]]
    told: bool = False
    colour: bool = False
    forms: tuple[str, ...] = ("{}", "with {}")


WORN = ("wearing {}", "with {}")
OLD = ("elderly male", "elderly female", "wrinkly 70 year old senior")
HATS = ("hat", "fedora", "sun hat", "top hat", "baseball cap", "beanie", "cowboy hat")
GLASSES = ("reading glasses", "round glasses", "square glasses", "cat-eye glasses", "rimless glasses")
SUNGLASSES = ("sunglasses", "sport sunglasses", "aviator sunglasses")
GROUPS = (
    Group("hair colour", {
        "green hair": ("green hair",), "blue hair": ("blue hair",),
        "red hair": ("red hair", "red or orange hair", "short red hair", "long red hair"),
        "blond hair": ("yellow or blond hair", "blonde hair", "short blond hair", "long blond hair"),
        "gray hair": ("white or gray hair", "gray hair"), "purple hair": ("purple or pink hair",),
        "pink hair": ("pink hair", "purple or pink hair"), "brown hair": ("brown hair",),
        "black hair": ("black hair", "short black hair", "long black hair")}, colour=True),
    Group("hair length", {
        "short hair": ("short red hair", "short blond hair", "short black hair"), "bald": ("bald",),
        "long hair": ("long red hair", "long blond hair", "long black hair")}),
    Group("hair style", {
        "curly hair": ("curly hair",), "straight hair": ("straight hair",), "bob hair": ("pob-cut hairstyle",),
        "afro hair": ("afro hairstyle",), "high top hair": ("high top hairstyle",)}),
    Group("glasses", {"glasses": GLASSES, "sunglasses": SUNGLASSES}, told=True, forms=WORN),
    Group("kind of glasses", {
        "round glasses": ("round glasses",), "square glasses": ("square glasses",),
        "cat eye glasses": ("cat-eye glasses",), "aviator sunglasses": ("aviator sunglasses",)}, forms=WORN),
    Group("headwear", {
        "a hat": HATS, "a bandana": ("bandana",), "headphones": ("headphones",), "a crown": ("crown",)},
        told=True, forms=WORN),
    Group("kind of hat", {
        "a fedora": ("fedora",), "a sun hat": ("sun hat",), "a top hat": ("top hat",), "a cap": ("baseball cap",),
        "a beanie": ("beanie",), "a cowboy hat": ("cowboy hat",)}, forms=WORN),
    Group("worn", {
        "a necklace": ("necklace", "pearl necklace", "gold chain"), "earrings": ("earrings",), "a scarf": ("scarf",),
        "a tie": ("tie",)}, forms=WORN),
    Group("age", {
        "baby": ("baby girl", "baby boy", "10 month old baby"),
        "toddler": ("girl todller", "boy todller", "2.5 year old toddler"),
        "child": ("child girl", "child boy", "small child"),
        "teenager": ("teenage girl", "teenage boy", "16 year old teenager"),
        "adult": ("adult female", "adult male", "30 year old adult"),
        "middle aged": ("middle-aged adult female", "middle-aged adult male"), "old": OLD},
        forms=("{}", "of a {} person")),
    Group("expression", {
        "smiling": ("smiling", "happy"), "surprised": ("surprised",), "angry": ("angry", "angry or enraged"),
        "sad": ("sad", "sad or depressed"), "afraid": ("fearful",), "disgusted": ("disgusted",),
        "neutral": ("neutral",), "tongue out": ("tounge out",)}, forms=("{}", "with a {} expression")),
    Group("beard", {
        "stubble": ("stubble",), "a goatee": ("goatee",), "a mustache": ("mustache",), "no beard": ("shaved face",),
        "a beard": ("full beard", "long white beard", "fashionable beard")}),
    Group("head turn", {
        "looking ahead": ("looking straight ahead",), "looking down": ("tilted downwards",),
        "looking up": ("tilted upwards",), "turned aside": ("three-quarter view", "turned sideways", "profile view")},
        forms=("{}",)),
    Group("eyes", {"eyes closed": ("eyes closed",)}),
)
WORDS: tuple[tuple[Group, str], ...] = tuple((group, word) for group in GROUPS for word in group.words)


def read(folder: Path) -> dict[str, tuple[str, ...]]:
    """The values of each file's labels of the folder's labels.csv, {} without one; see `texts`."""
    return {name: values(text) for name, text in texts(folder).items()}


def read_groups(folder: Path) -> dict[str, tuple[str, ...]]:
    """The groups of each file's labels of the folder's labels.csv, {} without one; see `texts`."""
    return {name: label_groups(text) for name, text in texts(folder).items()}


def texts(folder: Path) -> dict[str, str | None]:
    """The column `labels` of the folder's labels.csv for each file, {} without one.

    ValueError for a file that is no such table or too large. Rows with other than plain names are left out.
    """
    path = folder / NAME
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES:,} bytes: give a table of this folder's pictures alone")
    rows = csv.DictReader(io.StringIO(raw.decode("utf-8-sig", errors="replace"), newline=""))
    try:
        if not {"file", "labels"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} lacks a column: it needs `file` and `labels` in its first line")
        return {row["file"]: row["labels"] for row in rows if is_name(row["file"])}
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a table: {str(error)[:200]}") from error


def is_name(text: str | None) -> bool:
    return bool(text) and len(text or "") <= MAX_NAME and not set(text or "") & set("/\\\0\r\n")


def values(text: str | None) -> tuple[str, ...]:
    """ "hats: beanie; age: adult" -> ("beanie", "adult"), each once."""
    found = (label.rpartition(": ")[2].strip() for label in (text or "").split(";", MAX_LABELS)[:MAX_LABELS])
    return tuple(dict.fromkeys(value[:MAX_NAME] for value in found if value))


def label_groups(text: str | None) -> tuple[str, ...]:
    """ "hats: beanie; age: adult" -> ("hats", "age"), each once; a label without a group is its own."""
    found = (label.partition(": ")[0].strip() for label in (text or "").split(";", MAX_LABELS)[:MAX_LABELS])
    return tuple(dict.fromkeys(group[:MAX_NAME] for group in found if group))


def of_pictures(paths: Iterable[Path]) -> dict[Path, tuple[str, ...]]:
    """The labels' values of those pictures that have any, by the labels.csv of their folders."""
    tables: dict[Path, dict[str, tuple[str, ...]]] = {}
    found = {}
    for path in paths:
        if path.parent not in tables:
            tables[path.parent] = read(path.parent)
        if tables[path.parent].get(path.name):
            found[path] = tables[path.parent][path.name]
    return found


def facts(shown: Sequence[str]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """(true, known to be untrue) of WORDS, by a picture's label values; without any nothing is known."""
    true = tuple(bool(set(group.words[word]) & set(shown)) for group, word in WORDS)
    mentioned = {group.name for (group, _), is_true in zip(WORDS, true, strict=True) if is_true}
    untrue = tuple(bool(shown) and not is_true and (group.told or group.name in mentioned)
                   for (group, _), is_true in zip(WORDS, true, strict=True))
    return true, untrue


def write(folder: Path, table: Mapping[str, Sequence[str]]) -> None:
    """labels.csv of a folder of drawings, as `read` reads it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "labels"))
    writer.writerows((name, "; ".join(shown)) for name, shown in sorted(table.items()))
    (folder / NAME).write_text(text.getvalue(), encoding="utf-8")
