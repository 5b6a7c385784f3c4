"""Edits of semantic codes measured: by text and by attribute (docs/osasis.md C.8, G).

For every edit: the photos encoded, edited in several strengths and decoded. A text's change is learned for each photo,
and also tried on it as the mean of the other photos' changes, as a saved direction is.
"""
from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..models.attributes import STRENGTH, AttributeClassifier
from ..models.edit import z_statistics
from ..train.loop import Hooks
from ..train.text_edit import Subject, TextEditConfig, edit_by_text, text_directions
from .evaluator import Comparison, Evaluator, PictureFeatures
from .kept import KEPT, kept_first, pictures_identity
from .registry import means, preservation
from .tables import Rows, file_name, table, write, write_sheet

log = logging.getLogger(__name__)
SHOWN = 7  # photos on a picture sheet


@dataclass(frozen=True)
class Settings:
    """source, texts: of the edits by text; attributes: names of the classifier. strengths: of both kinds of edits; an
    attribute's are multiples of DiffAE's 0.3. The chain: steps of encoding and of decoding, t0; batch: of decoding."""
    source: str = "face"
    texts: Sequence[str] = ()
    attributes: Sequence[str] = ()
    strengths: Sequence[float] = (1.0, 2.0)
    encode_steps: int = 50
    decode_steps: int = 20
    t0: float = 0.5
    batch: int = 8
    config: TextEditConfig = TextEditConfig()


@dataclass(frozen=True)
class Photos:
    """Photos (B, 3, px, px), their codes z (B, E) and x (B, 3, px, px)."""
    pictures: Tensor
    z: Tensor
    x: Tensor

    @classmethod
    def of(cls, evaluator: Evaluator, pictures: Tensor, settings: Settings) -> Photos:
        net, z, x = evaluator.autoencoder(), [], []
        with torch.no_grad():
            for part in pictures.split(settings.batch):
                z.append(net.encode(part))
                x.append(net.structural_code(part, z[-1], settings.encode_steps, settings.t0))
        return cls(pictures, torch.cat(z), torch.cat(x))

    def decoded(self, evaluator: Evaluator, z: Tensor, settings: Settings) -> Tensor:
        """The photos with other codes z (B, E); in [-1, 1]."""
        with torch.no_grad():
            parts = [evaluator.autoencoder().decode(x, code, settings.decode_steps, settings.t0)
                     for x, code in zip(self.x.split(settings.batch), z.split(settings.batch), strict=True)]
        return torch.cat(parts).clamp(-1, 1)


Edit = tuple[str, Tensor]  # what a row is called, and the edited codes (B, E)


def text_edits(evaluator: Evaluator, photos: Photos, direction: Tensor, settings: Settings,
               hooks: Hooks = Hooks()) -> Iterator[Edit]:
    """The photos' codes edited in the direction (1, D) of a text: each with its own change, and, of several photos,
    with the mean change of the others."""
    net, clip = evaluator.autoencoder(), evaluator.clip_network()
    subject = Subject(photos.z, z_statistics(net)[1], photos.x, settings.t0, direction)
    change = edit_by_text(net, clip, subject, settings.config, hooks).change[0].to(photos.z)
    for strength in settings.strengths:
        yield f"edited, strength {strength:g}", photos.z + strength * change
    if len(change) > 1:
        others = (change.sum(0, keepdim=True) - change) / (len(change) - 1)
        for strength in settings.strengths:
            yield f"change of the other photos, strength {strength:g}", photos.z + strength * others


def attribute_edits(classifier: AttributeClassifier, photos: Photos, row: int, settings: Settings) -> Iterator[Edit]:
    """The photos' codes with more of an attribute."""
    for strength in settings.strengths:
        edited = classifier.edited(photos.z.cpu(), row, strength * STRENGTH).to(photos.z)
        yield f"edited, strength {strength * STRENGTH:g}", edited


def direction_of(evaluator: Evaluator, source: str, text: str, templates: str) -> Tensor | None:
    """The direction (1, D) of a text; None if this CLIP does not know its words."""
    try:
        return text_directions(evaluator.clip_network(), source, [text], templates)
    except ValueError as error:
        log.info("no CLIP direction for %r: %s", text, error)
        return None


def attribute_of(classifier: AttributeClassifier | None, name: str) -> tuple[AttributeClassifier, int] | None:
    """The classifier and the attribute's row in it; None without such an attribute."""
    if classifier is None or name not in classifier.names:
        return None
    return classifier, classifier.index(name)


def measured(evaluator: Evaluator, photos: Photos, edits: Iterator[Edit], direction: Tensor | None,
             attribute: tuple[AttributeClassifier, int] | None, settings: Settings) -> tuple[Rows, list[Tensor]]:
    """Rows of numbers, the unedited decoding first, and the rows of the picture sheet. Changes of CLIP embedding are
    measured from the unedited decoding, everything that is kept from the photo."""
    unedited = photos.decoded(evaluator, photos.z, settings)
    seen, before = PictureFeatures(evaluator, photos.pictures), PictureFeatures(evaluator, unedited)
    rows: Rows = {}
    pictures = [photos.pictures[:SHOWN]]
    for name, results in (("not edited", unedited), *(
            (name, photos.decoded(evaluator, z, settings)) for name, z in edits)):
        after = PictureFeatures(evaluator, results)
        rows[name] = means(Comparison(seen, after, attribute=attribute), (
            *preservation(evaluator), *(("attribute_probability",) if attribute else ())))
        if direction is not None and results is not unedited:
            start = torch.zeros_like(direction)
            rows[name] |= means(Comparison(before, after, None, start, direction), ["clip_direction"])
        pictures.append(results[:SHOWN])
    return rows, pictures


def evaluate(evaluator: Evaluator, classifier: AttributeClassifier | None, pictures: Tensor, settings: Settings,
             out: Path | None = None, hooks: Hooks = Hooks()) -> dict[str, Rows]:
    """{edit: rows} of photos (B, 3, px, px). Sheets go to OUT/EDIT.png: photos, their decoding, then a row for each
    row of numbers; the numbers to OUT/edits.json. What is measured of an edit is kept in OUT/KEPT: the same call goes
    on behind it. ValueError for a text or attribute that is not known."""
    rows_of = [(name, classifier.index(name)) for name in settings.attributes] if classifier else []
    directions = [(text, text_directions(evaluator.clip_network(), settings.source, [text], settings.config.templates))
                  for text in settings.texts]
    photos, report = Photos.of(evaluator, pictures, settings), {}
    identity = [str(replace(settings, texts=(), attributes=())), *evaluator.identity_of_networks(),
                pictures_identity(pictures)]
    if classifier is not None:
        identity += [*classifier.names, *(pictures_identity(part) for part in (classifier.weight, classifier.bias))]

    def finish(title: str, name: str, edits: Iterator[Edit], direction: Tensor | None) -> None:
        report[title], sheet = kept_first(out and out / KEPT, [title, *identity], partial(
            measured, evaluator, photos, edits, direction, attribute_of(classifier, name), settings))
        if sheet:
            write_sheet(sheet, out, file_name(title))
        log.info("%s\n%s", title, table(report[title]))
        write(report, out, "edits")
    for text, direction in directions:
        finish(f"text {text}", text, text_edits(evaluator, photos, direction, settings, hooks), direction)
    for name, row in rows_of:
        assert classifier is not None
        finish(f"attribute {name}", classifier.names[row], attribute_edits(classifier, photos, row, settings),
               direction_of(evaluator, settings.source, name, settings.config.templates))
    return report
