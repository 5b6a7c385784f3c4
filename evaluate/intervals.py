"""Is one way better than another on the same photos and styles? Paired differences with confidence intervals."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..models import rng
from .registry import metric
from .tables import DECIMALS

DRAWS = 2000
CONFIDENCE = 0.95
ALL = "all photos"
Values = dict[str, dict[str, list[Tensor]]]  # row of a table -> metric -> one (B,) for each style
Gains = dict[str, dict[str, dict[str, tuple[float, float, float]]]]  # row -> photos -> metric -> `interval`


def interval(differences: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high): a bootstrap over styles and over photos of differences (S, B), so that it holds for further
    styles and further photos. low and high bound 95 % of the means of DRAWS resamplings."""
    generator = rng.generator(seed, "bootstrap")
    differences = differences.cpu().double()
    styles, photos = (shares(n, generator) for n in differences.shape)
    drawn = torch.einsum("ds,sp,dp->d", styles, differences, photos)
    low, high = drawn.quantile(torch.tensor([0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], dtype=torch.float64))
    return float(differences.mean()), float(low), float(high)


def shares(count: int, generator: torch.Generator) -> Tensor:
    """(DRAWS, count): how much each of `count` things is of a sample of as many, drawn with replacement."""
    drawn = torch.randint(count, (DRAWS, count), generator=generator)
    return torch.zeros(DRAWS, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.full(drawn.shape, 1 / count, dtype=torch.float64))


def gains(values: Values, best: str, parts: Mapping[str, Sequence[int]]) -> Gains:
    """By how much `best` is better than every other row, above 0 where it is, on all photos and on parts of them."""
    found: Gains = {}
    for row, columns in values.items():
        if row == best:
            continue
        signed = {name: (torch.stack(values[best][name]) - torch.stack(column)) *
                  (1 if metric(name).better == "higher" else -1) for name, column in columns.items()}
        sets = {ALL: slice(None)} | {part: list(rows) for part, rows in parts.items()}
        found[row] = {part: {name: interval(x[:, rows]) for name, x in signed.items()} for part, rows in sets.items()}
    return found


def lines(found: Gains, best: str) -> list[str]:
    """A line for every difference."""
    return [f"{best} against {row}, {part}: {metric(name).title} better by {mean:.{DECIMALS + 1}f} "
            f"({low:.{DECIMALS + 1}f} to {high:.{DECIMALS + 1}f})"
            for row, parts in found.items() for part, columns in parts.items()
            for name, (mean, low, high) in columns.items()]
