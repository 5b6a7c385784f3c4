"""One metric of batches of pictures, with all that must stand beside its number: what a node shows."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .evaluator import Comparison, Evaluator, PictureFeatures
from .public import PUBLIC
from .registry import METRICS, Metric, measure, metric

MEASURES = tuple(name for name, of in METRICS.items() if set(of.networks) <= {*PUBLIC, "faces"})
USUAL = 10_000  # pictures of each set, from which on papers compare Frechet distances
FEW = f"Of fewer than {USUAL} pictures it is too large. Compare it with values of as many pictures."
SHOWN = 32  # values of single pictures in a report
Features = Mapping[str, PictureFeatures]


@dataclass(frozen=True)
class Measured:
    """value: the mean over the pictures, or that of two sets. each: of every picture; () for sets. beside: lines that
    say what was measured, through which networks, of how many pictures."""
    metric: Metric
    value: float
    each: tuple[float, ...]
    beside: tuple[str, ...]

    @property
    def report(self) -> str:
        """The value, and a line for each fact beside it."""
        each = ", ".join(f"{value:.4g}" for value in self.each[:SHOWN]) + (", .." if len(self.each) > SHOWN else "")
        return "\n".join([f"{self.metric.title}: {self.value:.5g} ({self.metric.better} is better; {self.metric.unit})",
                          *self.beside, *([f"each: {each}"] if self.each else [])])


@torch.no_grad()
def compare(evaluator: Evaluator, name: str, batches: Mapping[str, Tensor], prepared: str = "own size") -> Measured:
    """A metric of MEASURES of the batches (B, 3, H, W) in [-1, 1] that it sees, by their names in registry.BATCHES.

    A single photo stands for all results. prepared: how pictures came to their size, as the report says it. ValueError
    for a missing network (with its file and page) or batch, for batches that do not fit, and for photos without a face
    where faces are compared.
    """
    wanted = metric(name)
    if name not in MEASURES:
        raise ValueError(f"{wanted.title} needs models of this pack; take one of {', '.join(MEASURES)}")
    for network in wanted.networks:
        evaluator.face_networks() if network == "faces" else evaluator.public.network(network)
    seen = check(wanted, batches)
    features = {batch: PictureFeatures(evaluator, pictures) for batch, pictures in seen.items()}
    value, each, notes = value_of(wanted, features)
    networks = [network_text(evaluator, network) for network in wanted.networks] or ["no network"]
    given = ", ".join(described(batches[batch], batch) for batch in seen)
    return Measured(wanted, value, each, (*networks, f"{given} ({prepared})", *notes))


def check(wanted: Metric, batches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batches that a metric sees, in its order, a single photo repeated. ValueError, see `compare`."""
    missing = [batch for batch in wanted.sees if batch not in batches]
    if missing:
        raise ValueError(f"{wanted.title} compares {', '.join(wanted.sees)}; {', '.join(missing)} are missing: give "
                         "them, too")
    seen = {batch: batches[batch] for batch in wanted.sees}
    results = seen["results"]
    if "photos" in seen and len(seen["photos"]) == 1:
        seen["photos"] = seen["photos"].expand(len(results), -1, -1, -1)
    for batch in {"photos", "others"} & seen.keys():
        if seen[batch].shape != results.shape:
            raise ValueError(f"{wanted.title}: {described(seen[batch], batch)} but {described(results, 'results')}; "
                             "give as many of both, of one size")
    styles = len(seen.get("style_images", results[:1]))
    if wanted.scope == "picture" and styles > 1 and "public_clip" not in wanted.networks:
        raise ValueError(f"{wanted.title} takes one style image, not {styles}; pick one")
    return seen


def described(pictures: Tensor, batch: str) -> str:
    return f"{len(pictures)} {batch.replace('_', ' ')} of {pictures.shape[3]} x {pictures.shape[2]} px"


def value_of(wanted: Metric, features: Features) -> tuple[float, tuple[float, ...], list[str]]:
    """The value, that of each picture, and what is to be known of it."""
    few = min(len(x.pictures) for x in features.values()) < USUAL
    notes = [FEW] if few and {wanted.name, *wanted.needs} & {"fid", "fid_art"} else []
    if wanted.scope == "numbers":
        parts = {part: value_of(metric(part), {batch: features[batch] for batch in metric(part).sees})[0]
                 for part in wanted.needs}
        made = ", ".join(f"{metric(part).title} {value:.5g}" for part, value in parts.items())
        return float(wanted.function(*parts.values())), (), [f"of {made}", *notes]
    if wanted.scope == "set":
        return float(wanted.function(*(features[batch] for batch in wanted.sees))), (), notes
    return of_pictures(wanted, features, notes)


def of_pictures(wanted: Metric, features: Features,
                notes: list[str]) -> tuple[float, tuple[float, ...], list[str]]:
    comparison = Comparison(features.get("photos", features["results"]), features["results"],
                            features.get("style_images"))
    if "arcface" in wanted.networks and comparison.evaluator.faces is not None:
        notes = [*notes, faces_note(comparison.photos)]
    values = measure(comparison, [wanted.name])[wanted.name].float()
    if values.isnan().all():
        raise ValueError(f"{wanted.title}: there is no picture that can be compared. {wanted.description}")
    mean = values.nanmean() if wanted.partial else values.mean()
    return float(mean), tuple(values.tolist()), notes


def faces_note(photos: PictureFeatures) -> str:
    """In how many photos a face is read. ValueError for none: a face network says nothing of them."""
    read = int(photos.faces.read.sum())
    if not read:
        raise ValueError("no face is read in the photos, so a face recognition network says nothing of them; give "
                         "aligned faces")
    return f"A face is read in {read} of {len(photos.pictures)} photos."


def network_text(evaluator: Evaluator, network: str) -> str:
    """Which network it is, of which file, and what it sees."""
    return "face detector and face mesh of this pack" if network == "faces" else evaluator.public.seen(network)
