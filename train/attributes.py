"""Training a linear classifier of a DiffAE's semantic codes on the labels of pictures (docs/osasis.md C.8).

As DiffAE's: logistic regression on codes normalised by their mean and deviation. Labels are few and partial here, so of
each attribute only those pictures count of which the labels tell, those with it weigh as much as those without, and
long weights cost.
"""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.attributes import AttributeClassifier
from ..models.diffae import DiffAE
from ..models.fields import check_fields
from . import labels
from .data import each_named, to_unit
from .loop import Hooks, LoopConfig, Losses, Run, train

FOLDS = 5
CHUNK = 32  # pictures that are encoded at a time
CHILDREN = ("baby", "toddler", "child")


@dataclass(frozen=True)
class Attribute:
    """words of labels.WORDS: a picture of which any is true has the attribute, one of which all are known to be untrue
    has it not. without: words of which any tells that, too. told: a picture with labels, but none of this attribute,
    has it not."""
    words: tuple[str, ...]
    without: tuple[str, ...] = ()
    told: bool = False


ATTRIBUTES: dict[str, Attribute] = {
    "glasses": Attribute(("glasses", "sunglasses")), "sunglasses": Attribute(("sunglasses",)),
    "hat": Attribute(("a hat",)),
    **{f"{colour} hair": Attribute((f"{colour} hair",))
       for colour in ("black", "brown", "blond", "red", "gray", "blue", "green")},
    "pink hair": Attribute(("pink hair", "purple hair")), "long hair": Attribute(("long hair",)),
    "smiling": Attribute(("smiling",)), "surprised": Attribute(("surprised",)),
    "beard": Attribute(("a beard", "a goatee", "a mustache", "stubble"), ("no beard", *CHILDREN)),
    "child": Attribute(CHILDREN), "old": Attribute(("old",)),
    "head turned": Attribute(("turned aside",), told=True)}


@dataclass(frozen=True)
class AttributeConfig:
    """steps of Adam with rate lr on all codes at once; weight_decay: of the weights' mean square."""
    steps: int = 400
    lr: float = 0.01
    weight_decay: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, at_least_1=("steps",))


# --- what is known ----------------------------------------------------------------------------------------------------
def targets(shown: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """(with, without) bool (N, A) of ATTRIBUTES, by the label values of N pictures; both False: unknown."""
    place = {word: k for k, (_, word) in enumerate(labels.WORDS)}
    rows = [labels.facts(values) for values in shown]
    true, untrue = (torch.tensor([row[k] for row in rows], dtype=torch.bool).view(len(rows), len(place))
                    for k in (0, 1))
    found, not_found = [], []
    for attribute in ATTRIBUTES.values():
        words, without = ([place[word] for word in words] for words in (attribute.words, attribute.without))
        has = true[:, words].any(1)
        has_not = untrue[:, words].all(1) | true[:, without].any(1) if without else untrue[:, words].all(1)
        labelled = torch.tensor([bool(values) for values in shown], dtype=torch.bool)
        found.append(has)
        not_found.append((has_not | labelled if attribute.told else has_not) & ~has)
    return torch.stack(found, 1), torch.stack(not_found, 1)


@torch.no_grad()
def encode_pictures(net: DiffAE, paths: Sequence[Path], hooks: Hooks = Hooks()) -> tuple[Tensor, list[Path]]:
    """z (2, N, E) of pictures as they are, and mirrored, on the CPU; and the files of those N that could be read.
    ValueError if none can."""
    device, found, read = next(net.parameters()).device, [], []
    pictures = each_named(paths, net.image_size, hooks.check_interrupt)
    while chunk := list(itertools.islice(pictures, CHUNK)):
        x = to_unit(torch.stack([picture for _, picture in chunk])).to(device)
        found.append(torch.stack([net.encode(x), net.encode(x.flip(3))]).cpu())
        read += [path for path, _ in chunk]
    return torch.cat(found, 1), read


# --- training ---------------------------------------------------------------------------------------------------------
class Logits(nn.Module):
    """weight (A, E) and bias (A,), zero at first."""

    def __init__(self, attributes: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(attributes, width)), nn.Parameter(torch.zeros(attributes))

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.weight, self.bias)


def weights_of(found: Tensor, not_found: Tensor) -> Tensor:
    """What each picture weighs in each attribute's loss, (N, A): those with it together 1/2, those without, too."""
    counts = found.sum(0).clamp_min(1), not_found.sum(0).clamp_min(1)
    return (found / counts[0] + not_found / counts[1]) / 2


def fit(z: Tensor, found: Tensor, not_found: Tensor, config: AttributeConfig = AttributeConfig(),
        hooks: Hooks = Hooks()) -> AttributeClassifier:
    """A classifier of codes z (N, E) that have (N, A) or have not the ATTRIBUTES."""
    mean, std = z.mean(0, keepdim=True), z.std(0, keepdim=True).clamp_min(1e-6)
    codes, weights, target = (z - mean) / std, weights_of(found, not_found), found.float()
    net = Logits(found.shape[1], z.shape[1])
    run = Run({"logits": net}, {"logits": torch.optim.Adam(net.parameters(), config.lr)})

    def step(k: int, hooks: Hooks) -> Losses:
        run.optimizers["logits"].zero_grad()
        entropy = F.binary_cross_entropy_with_logits(net(codes), target, weights, reduction="sum")
        decay = config.weight_decay * net.weight.square().mean(1).sum()
        (entropy + decay).backward()
        run.optimizers["logits"].step()
        return {"entropy": entropy.detach() / len(net.bias), "decay": decay.detach() / len(net.bias)}
    with torch.enable_grad():
        train(run, step, LoopConfig(config.steps, config.seed, log_every=config.steps), z.device, hooks)
    return AttributeClassifier(net.weight.detach(), net.bias.detach(), mean, std, tuple(ATTRIBUTES))


def check_known(found: Tensor, not_found: Tensor) -> None:
    """ValueError names the first of the ATTRIBUTES without pictures that have it, or that have it not."""
    for name, known in zip(ATTRIBUTES, (found.any(0) & not_found.any(0)).tolist(), strict=True):
        if not known:
            raise ValueError(f"the labels do not tell of pictures with and of pictures without {name!r}; give a folder "
                             f"whose {labels.NAME} does")


def fit_mirrored(z: Tensor, found: Tensor, not_found: Tensor, config: AttributeConfig = AttributeConfig(),
                 hooks: Hooks = Hooks()) -> AttributeClassifier:
    """`fit` to codes z (2, N, E) of pictures and their mirror images."""
    return fit(z.flatten(0, 1), found.repeat(2, 1), not_found.repeat(2, 1), config, hooks)


# --- figures ----------------------------------------------------------------------------------------------------------
def ranking(scores: Tensor, found: Tensor, not_found: Tensor) -> float:
    """Share of pairs of a picture with the attribute and one without in which the former's score (N,) is higher (the
    area under the ROC curve): 0.5 is chance, 1 is perfect. NaN without a pair."""
    pairs = scores[found][:, None] - scores[not_found][None]
    return float(((pairs > 0).float() + (pairs == 0).float() / 2).mean()) if pairs.numel() else float("nan")


def cross_validated(z: Tensor, found: Tensor, not_found: Tensor, config: AttributeConfig = AttributeConfig(),
                    hooks: Hooks = Hooks()) -> dict[str, dict]:
    """{attribute: {"with", "without": numbers of pictures, "ranking", "accuracy"}} of pictures with codes z (2, N, E),
    each judged by a classifier that FOLDS - 1 parts of the others were trained on. accuracy: the mean of the shares
    that are right of those with and of those without."""
    logits, fold = torch.empty(found.shape), torch.arange(len(found)) % FOLDS
    for k in range(FOLDS):
        kept, held_out = fold != k, fold == k
        classifier = fit_mirrored(z[:, kept], found[kept], not_found[kept], config, hooks)
        logits[held_out] = classifier.logits(z[0, held_out])
    table = {}
    for k, name in enumerate(ATTRIBUTES):
        right = [(logits[found[:, k], k] > 0).float().mean(), (logits[not_found[:, k], k] <= 0).float().mean()]
        table[name] = {"with": int(found[:, k].sum()), "without": int(not_found[:, k].sum()),
                       "ranking": ranking(logits[:, k], found[:, k], not_found[:, k]),
                       "accuracy": float(torch.stack(right).mean())}
    return table
