"""`atelier edits`: edits of faces by text and by attribute, measured."""
from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..evaluate import edits
from ..evaluate.edits import Settings
from ..evaluate.registry import METRICS, legend
from ..evaluate.tables import table
from ..models import loading
from ..train.loop import Hooks
from ..train.text_edit import TextEditConfig
from .evaluate import add_networks, add_public, load_evaluator, read_photos
from .options import add_device, changed, check_apart, names_in
from .stopping import StopSignals, stopped_with
from .terminal import ProgressBar, show


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--photos", type=Path, required=True, help="folder of aligned photos")
    p.add_argument("--limit", type=int, default=8, help="take only the first N photos (0: all; %(default)s)")
    p.add_argument("--texts", default="", help="edits by text, separated by commas; a text that is also an attribute's "
                   "name is measured by the classifier, too")
    p.add_argument("--source", default="face", help="what the photos show (%(default)s)")
    p.add_argument("--attributes", default="", help="edits by attribute, separated by commas")
    p.add_argument("--classifier", type=Path, help="the attribute classifier (default: the demo's, if it is needed)")
    p.add_argument("--strengths", default="1,2", help="of a text's change, and of an attribute's step of 0.3 "
                   "(%(default)s)")
    p.add_argument("--set", default="", help="settings of the edits by text: field=value,...")
    p.add_argument("--out", type=Path, help="folder for picture sheets and edits.json")
    add_device(p)
    add_networks(p)
    add_public(p.add_argument_group("measures of papers, as in evaluate"))
    p.set_defaults(run=run)


def run(options: argparse.Namespace, signals: StopSignals) -> None:
    check_apart(options.out, options.photos)
    device = torch.device(options.device)
    evaluator = load_evaluator(options, device)
    settings = Settings(options.source, names_in(options.texts), names_in(options.attributes),
                        strengths_in(options.strengths), config=changed(TextEditConfig(), options.set))
    if not (settings.texts or settings.attributes):
        raise ValueError("name edits: --texts, --attributes or both")
    classifier = None
    if options.classifier or settings.attributes:
        classifier, _ = loading.load_attributes(options.classifier or loading.DEMO / "attributes.safetensors")
    _, photos = read_photos(options, evaluator.autoencoder().image_size, device)
    with ProgressBar() as bar, stopped_with(options.out and f"Whole edits are kept in {options.out}; run the same "
                                            "command again to go on"):
        report = edits.evaluate(evaluator, classifier, photos, settings, options.out,
                                Hooks(on_iteration=bar, check_interrupt=signals.check))
    for title, rows in report.items():
        show(f"== {title}, mean of {len(photos)} photos\n{table(rows)}")
    names = {name for rows in report.values() for values in rows.values() for name in values}
    show(legend(name for name in METRICS if name in names))


def strengths_in(text: str) -> tuple[float, ...]:
    """The numbers of a list with commas. ValueError for anything else, and for none."""
    try:
        found = tuple(float(word) for word in names_in(text))
    except ValueError as error:
        raise ValueError(f"--strengths takes numbers separated by commas, not {text[:40]!r}") from error
    if not found:
        raise ValueError("--strengths is empty; give numbers separated by commas, such as 1,2")
    return found
