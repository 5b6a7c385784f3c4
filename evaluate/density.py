"""Rare inputs: pictures ranked by how far their reconstruction by a DiffAE is from them (docs/osasis.md G).

A picture whose like the DiffAE has rarely seen is reconstructed badly: the ends of that order are the paper's pictures
of low and of high density.
"""
from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..models import rng
from ..models.accelerated import accelerated
from ..models.checkpoints import store
from ..models.diffae import DiffAE
from ..models.diffusion import StepHook, ddim_schedule
from ..models.precision import AUTO, autocast
from ..models.style import fingerprint
from ..models.whole_files import write_whole
from ..train.data import picture_files, read_picture, to_unit
from ..train.plots import grid, histogram
from .evaluator import Comparison, Evaluator
from .kept import kept
from .registry import measure, metric
from .report import chain
from .tables import csv_text

log = logging.getLogger(__name__)
DISTANCES = ("lpips_alex", "lpips_vgg", "encoder_distance")  # of the registry; the last is a substitute for LPIPS
LOW, HIGH = "low", "high"
KEPT = "scores"  # folder in OUT of what is scored
SHOWN = 8  # pictures of either end on the sheet


@dataclass(frozen=True)
class RankSettings:
    """distance: one of DISTANCES. The chain: DiffAE's own 250 / 20 steps of z and x_T (t0 1). batch: pictures a network
    call, which are also scored and kept together. ValueError for another distance, and for less than one step."""
    distance: str = DISTANCES[0]
    encode_steps: int = 250
    decode_steps: int = 20
    t0: float = 1.0
    solver: str = "ddim"
    batch: int = 32
    precision: str = AUTO

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ValueError(f"there is no distance {self.distance!r}; take one of {', '.join(DISTANCES)}")
        if not 0 < self.t0 <= 1:
            raise ValueError(f"t0 is {self.t0:g}; take more than 0, up to 1")
        for steps in (self.encode_steps, self.decode_steps):
            if not ddim_schedule(steps).num_steps(self.t0):
                raise ValueError(f"t0 {self.t0:g} of {steps} steps is less than one; increase t0 or the steps")


@dataclass(frozen=True)
class Scorer:
    """Scores pictures. Made once: ValueError, with file and page, if the evaluator lacks the distance's network."""
    evaluator: Evaluator
    settings: RankSettings

    def __post_init__(self) -> None:
        for network in metric(self.settings.distance).networks:
            if network != "diffae":
                self.evaluator.public.network(network)

    @property
    def network(self) -> str:
        """What the distance is of."""
        name = self.settings.distance
        if name == "encoder_distance":
            return "the autoencoder's own features, a substitute for LPIPS"
        return "; ".join(self.evaluator.public.seen(network) for network in metric(name).networks)

    @cached_property
    def fast(self) -> DiffAE:
        """The autoencoder as it samples fastest."""
        net = self.evaluator.autoencoder()
        return accelerated(net, next(net.parameters()).device, self.settings.precision)

    @cached_property
    def identity(self) -> str:
        """All that decides a score but the picture."""
        net = self.evaluator.autoencoder()
        return json.dumps([fingerprint(net), net.image_size, self.network, asdict(self.settings)])

    @torch.no_grad()
    def __call__(self, x: Tensor, hook: StepHook | None = None) -> Tensor:
        """(B,) distances of pictures (B, 3, px, px) in [-1, 1] and their reconstructions; on the CPU."""
        s = self.settings
        with autocast(x.device, s.precision):
            rebuilt = chain(self.fast, x, s.encode_steps, s.decode_steps, s.t0, s.solver, hook)
        return distances(self.evaluator, s.distance, x, rebuilt.float().clamp(-1, 1))


def distances(evaluator: Evaluator, distance: str, pictures: Tensor, rebuilt: Tensor) -> Tensor:
    """(B,) of pictures and reconstructions (B, 3, px, px) in [-1, 1]; on the CPU."""
    return measure(Comparison.of(evaluator, pictures, rebuilt), [distance])[distance].float().cpu()


# --- the order --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Ranking:
    """scores: {name: distance}, finite. k: how many belong to either end. damaged: {name: why it has no score}.

    ValueError if the ends would overlap."""
    scores: Mapping[str, float]
    k: int
    damaged: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        most = len(self.scores) // 2
        if not 1 <= self.k <= most:
            raise ValueError(f"{self.k} pictures of low and as many of high density cannot be taken from "
                             f"{len(self.scores)} that have a score; " + (
                                 f"take 1 to {most}" if most else "give two pictures at least"))

    @cached_property
    def order(self) -> list[str]:
        """The names, lowest density (largest distance) first; equal distances by name."""
        return sorted(self.scores, key=lambda name: (-self.scores[name], name))

    @property
    def low(self) -> list[str]:
        """The k pictures of lowest density, the rarest first."""
        return self.order[:self.k]

    @property
    def high(self) -> list[str]:
        """The k pictures of highest density, the commonest first."""
        return self.order[:-self.k - 1:-1]

    @property
    def cuts(self) -> tuple[float, float]:
        """Distances between which neither end lies."""
        return self.scores[self.high[-1]], self.scores[self.low[-1]]

    def rows(self) -> list[tuple[int, str, float, str]]:
        """(rank from 1, name, distance, end or "") of all, lowest density first."""
        ends = dict.fromkeys(self.low, LOW) | dict.fromkeys(self.high, HIGH)
        return [(rank, name, self.scores[name], ends.get(name, "")) for rank, name in enumerate(self.order, 1)]


# --- a folder ---------------------------------------------------------------------------------------------------------
def rank_folder(scorer: Scorer, folder: Path, out: Path, k: int = 100, sample: tuple[int, int] = (0, 0),
                check_interrupt: Callable[[], None] = lambda: None) -> Ranking:
    """Ranks the pictures under a folder and writes OUT, see `write`. Memory does not grow with their number.

    sample: (how many, drawn with this seed); 0 for all. A batch that is scored is kept in OUT/KEPT at once: after a
    kill the same call goes on behind it. ValueError if there are too few for k.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in picture_files(folder)}
    names = drawn(sorted(paths), *sample)
    Ranking(dict.fromkeys(names, 0.0), k)  # too many asked for: said before the work
    scores: dict[str, float] = {}
    damaged: dict[str, str] = {}
    batches = [names[start:start + scorer.settings.batch] for start in range(0, len(names), scorer.settings.batch)]
    for number, batch in enumerate(batches, 1):
        check_interrupt()
        found = kept_or_scored(scorer, {name: paths[name] for name in batch}, out / KEPT, check_interrupt)
        scores |= {name: value for name, value in found.items() if not isinstance(value, str)}
        damaged |= {name: reason for name, reason in found.items() if isinstance(reason, str)}
        log.info("%d of %d pictures", min(number * scorer.settings.batch, len(names)), len(names))
    ranking = Ranking(scores, k, damaged)
    write(ranking, folder, out, scorer)
    return ranking


def drawn(names: Sequence[str], count: int, seed: int) -> list[str]:
    """So many of the sorted names; all for 0, and where there are not more."""
    if not count or count >= len(names):
        return list(names)
    order = torch.randperm(len(names), generator=rng.generator(seed, "rank sample")).tolist()
    return sorted(names[int(i)] for i in order[:count])


Scores = dict[str, float | str]  # of a picture: its distance, or why there is none


def kept_or_scored(scorer: Scorer, paths: Mapping[str, Path], folder: Path,
                   check_interrupt: Callable[[], None]) -> Scores:
    """The scores of a batch: those in FOLDER, if they are of these files and settings, or new ones, which are kept."""
    files = [f"{name} {store.file_token(path)}" for name, path in paths.items()]
    return kept(folder, [scorer.identity, *files], lambda: scored(scorer, paths, check_interrupt))


def scored(scorer: Scorer, paths: Mapping[str, Path], check_interrupt: Callable[[], None]) -> Scores:
    """The scores of the pictures of a batch; of those that cannot be read, the reason."""
    found: Scores = {}
    pictures: dict[str, Tensor] = {}
    net = scorer.evaluator.autoencoder()
    for name, path in paths.items():
        check_interrupt()
        try:
            pictures[name] = read_picture(path, net.image_size)
        except ValueError as unreadable:
            found[name] = str(unreadable)
            log.warning("left out: %s", unreadable)
    if pictures:
        x = to_unit(torch.stack(list(pictures.values()))).to(next(net.parameters()).device)
        values = scorer(x, lambda *_: check_interrupt()).tolist()
        found |= {name: value if math.isfinite(value) else "its reconstruction holds NaN or infinite values"
                  for name, value in zip(pictures, values, strict=True)}
    return found


def write(ranking: Ranking, folder: Path, out: Path, scorer: Scorer) -> None:
    """OUT/ranked.csv (all, lowest density first), low.txt and high.txt (names under `folder`, the extreme first),
    damaged.csv, histogram.png, ends.png (low above high density) and settings.json, which says what the distance is."""
    write_whole(out / "ranked.csv", csv_text(("rank", "file", "distance", "density"), ranking.rows()))
    write_whole(out / "damaged.csv", csv_text(("file", "reason"), list(ranking.damaged.items())))
    for end, names in ((LOW, ranking.low), (HIGH, ranking.high)):
        write_whole(out / f"{end}.txt", "".join(f"{name}\n" for name in names))
    write_whole(out / "settings.json", json.dumps({
        "folder": str(folder), "pictures": len(ranking.scores), "damaged": len(ranking.damaged), "k": ranking.k,
        "distance of": scorer.network, **asdict(scorer.settings)}, indent=1))
    picture_of(ranking, scorer.settings.distance).save(out / "histogram.png")
    px = scorer.evaluator.autoencoder().image_size
    grid([to_unit(torch.stack([read_picture(folder / name, px) for name in names[:SHOWN]]))
          for names in (ranking.low, ranking.high)]).save(out / "ends.png")


def picture_of(ranking: Ranking, distance: str) -> Image.Image:
    """The histogram of the distances, with the two ends coloured."""
    high, low = ranking.cuts
    marks = {f"high density, {ranking.k}": (-math.inf, high), f"low density, {ranking.k}": (low, math.inf)}
    return histogram(list(ranking.scores.values()), metric(distance).title, marks)
