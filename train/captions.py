"""Captions of the small CLIP: what is known of a picture (class, mood, labels), and texts that say a part of it.

Whether a text is true of a picture is known, unknown or known to be untrue, word by word; columns of words stand in the
order classes, MOODS, labels.WORDS.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..models.features.clip import WordTokenizer
from . import labels

TEMPLATES = ("{}", "a {}", "a {} picture", "a {} of a person", "a face in the style of {}", "a {} portrait")
OTHER_NAMES = {  # of media, beside the folder's own
    "cel": "cartoon", "charcoal": "charcoal drawing", "colorpencil": "colored pencil drawing", "ink": "ink drawing",
    "engraving": "engraved print", "lowpoly": "low poly", "oil": "oil painting", "pencil": "pencil drawing",
    "paintings": "old master painting", "pointillism": "pointillist painting", "popart": "pop art",
    "ukiyo": "woodblock print", "watercolor": "watercolor painting", "photo": "photograph"}
COLOURS = {"red": (0.75, 0.15, 0.15), "orange": (0.9, 0.5, 0.15), "yellow": (0.92, 0.85, 0.35),
           "green": (0.35, 0.58, 0.33), "blue": (0.3, 0.45, 0.75), "purple": (0.5, 0.27, 0.62),
           "pink": (0.9, 0.5, 0.7), "brown": (0.45, 0.28, 0.17), "black": (0.05, 0.05, 0.05),
           "white": (0.96, 0.96, 0.96)}
SHARES = {"brown": 0.35, "black": 0.35, "white": 0.35}  # of pixels from which on a picture has the colour; others: 0.18
NEUTRALS = ((0.3, 0.3, 0.3), (0.5, 0.5, 0.5), (0.72, 0.72, 0.72), (0.85, 0.65, 0.55))  # grays and skin: no colour word
MOODS = ("dark", "bright", "warm", "cold", "gray", "vivid", *COLOURS)
OPPOSITES = (("dark", "bright"), ("warm", "cold"), ("gray", "vivid"), tuple(COLOURS))
SURE = 0.05  # how far beyond its threshold a mood is missing before it is known to be untrue
# Changes of (B, 3, H, W) in [-1, 1] that make moods frequent: named ones, then a tint of each colour.
CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x,
    lambda x: (x + 1) * 0.45 - 1,
    lambda x: 1 - (1 - x) * 0.5,
    lambda x: x + x.new_tensor([0.3, 0.0, -0.3])[:, None, None],
    lambda x: x + x.new_tensor([-0.3, 0.0, 0.3])[:, None, None],
    lambda x: x.mean(1, keepdim=True).expand_as(x),
    lambda x: x.mean(1, keepdim=True) + 2 * (x - x.mean(1, keepdim=True)),
    *(lambda x, c=c: 0.4 * x + 0.6 * (x.new_tensor(c)[:, None, None] * 2 - 1) for c in COLOURS.values()))


def changed(x: Tensor, index: Tensor) -> Tensor:
    """Each picture of (B, 3, H, W) after its entry of CHANGES, in [-1, 1]."""
    for i, change in enumerate(CHANGES[1:], 1):
        x = torch.where((index == i)[:, None, None, None], change(x).clamp(-1, 1), x)
    return x


def mood_scores(x: Tensor) -> Tensor:
    """How far (B, len(MOODS)) pictures (B, 3, H, W) in [-1, 1] are beyond each mood's threshold; positive: it is true.

    Moods are of the mean brightness, of red against blue and of the mean spread of channels; a colour word is of the
    share of pixels that are nearer to it than to any other.
    """
    small = F.adaptive_avg_pool2d((x.float() + 1) / 2, 32)
    red, green, blue = small.mean((2, 3)).unbind(1)
    light, heat = 0.299 * red + 0.587 * green + 0.114 * blue, red - blue
    spread = (small.amax(1) - small.amin(1)).mean((1, 2))
    moods = torch.stack([0.28 - light, light - 0.6, heat - 0.18, -heat, 0.06 - spread, spread - 0.32], 1)
    palette = small.new_tensor([*COLOURS.values(), *NEUTRALS])
    nearest = torch.cdist(small.flatten(2).mT, palette.expand(len(x), -1, -1)).argmin(2)
    shares = F.one_hot(nearest, len(palette)).float().mean(1)[:, :len(COLOURS)]
    return torch.cat([moods, shares - shares.new_tensor([SHARES.get(name, 0.18) for name in COLOURS])], 1)


# --- what is known ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Facts:
    """Every distinct (class, labels) of a set of pictures: class (N,), true and untrue words (N, classes + WORDS)."""
    classes: Tensor
    true: Tensor
    untrue: Tensor

    def to(self, device: torch.device) -> Facts:
        return Facts(self.classes.to(device), self.true.to(device), self.untrue.to(device))


def facts_of(paths: Sequence[Path], class_of: Callable[[Path], int],
             class_count: int) -> tuple[Facts, Callable[[Path], int]]:
    """The facts of these pictures, and which of them belongs to a picture."""
    shown = labels.of_pictures(paths)
    known = {path: (class_of(path), *labels.facts(shown.get(path, ()))) for path in paths}
    distinct = sorted(set(known.values()))
    index = {fact: i for i, fact in enumerate(distinct)}
    classes = torch.tensor([fact[0] for fact in distinct])
    one_hot = F.one_hot(classes, class_count).bool()
    true, untrue = (torch.tensor([fact[i] for fact in distinct]) for i in (1, 2))
    return (Facts(classes, torch.cat([one_hot, true], 1), torch.cat([~one_hot, untrue], 1)),
            lambda path: index[known[path]])


# --- texts --------------------------------------------------------------------------------------------------------
def class_word(folder: str) -> str:
    """The words for a class folder: 'vector_big-ears' -> 'big ears'."""
    return folder.split("_", 1)[-1].replace("-", " ").replace("_", " ")


def check_classes(classes: Sequence[str], folders: Sequence[str]) -> None:
    """ValueError for a class without a word that captions can hold, and for two of the same words; it names their
    folders."""
    known: dict[tuple[str, ...], str] = {}
    for word, folder in zip(classes, folders, strict=True):
        said = tuple(WordTokenizer.words_of(word))
        if not said:
            raise ValueError(f"the folder {folder[:80]!r} has no word that the CLIP could learn for its class: words "
                             "are of the letters a to z. Rename it, such as npr_ink")
        if said in known:
            raise ValueError(f"the folders {known[said][:80]!r} and {folder[:80]!r} would both be called "
                             f"{' '.join(said)!r}, and their captions could not be told apart. Rename one, or leave it "
                             "out (--exclude)")
        known[said] = folder


def caption(word: str, mood: str = "", template: str = "{}", *phrases: str) -> str:
    return " ".join((template.format(f"{mood} {word}".strip()), *phrases)).strip()


def names_of(word: str) -> tuple[str, str]:
    return word, OTHER_NAMES.get(word, word)


def phrases_of(group: labels.Group, word: str) -> tuple[str, str]:
    """Two ways to say a word."""
    return group.forms[0].format(word), group.forms[-1].format(word)


def word_list(classes: Sequence[str]) -> tuple[str, ...]:
    """Every word that a caption of these classes can hold, sorted."""
    texts = [*TEMPLATES, *MOODS, *(n for c in classes for n in names_of(c)),
             *(p for g, w in labels.WORDS for p in phrases_of(g, w))]
    return tuple(sorted({w for text in texts for w in WordTokenizer.words_of(text)}))


@dataclass(frozen=True)
class Captions:
    """Ids of parts of captions, 0 behind them. starts: (classes + 1, 2 names, MOODS + 1, TEMPLATES, n), the last class
    and the last mood unsaid; phrases: (WORDS + 1, 2 forms, n), the last one unsaid."""
    starts: Tensor
    phrases: Tensor
    classes: tuple[str, ...]
    end: int
    context: int

    def rows(self, start: tuple[Tensor, ...], phrases: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Token rows (B, context): a start, indexed as `starts` is, and phrases, each indexed as `phrases` is."""
        parts = [self.starts[start], *(self.phrases[phrase] for phrase in phrases)]
        edge = torch.ones_like(parts[0][:, :1])
        ids = torch.cat([edge, *parts, edge * self.end], 1)
        ids = ids.gather(1, torch.argsort((ids == 0).long(), dim=1, stable=True))
        return F.pad(ids, (0, self.context - ids.shape[1]))  # shorter, too, where the pad is negative

    def to(self, device: torch.device) -> Captions:
        return Captions(self.starts.to(device), self.phrases.to(device), self.classes, self.end, self.context)


def all_captions(classes: Sequence[str], tokenizer: WordTokenizer) -> Captions:
    def ids(texts: Sequence[str]) -> Tensor:
        rows = [tokenizer.encode(text) for text in texts]
        return torch.tensor([row + [0] * (tokenizer.context - 2 - len(row)) for row in rows])

    starts = [caption(name, mood, t) for c in (*classes, "") for name in names_of(c) for mood in (*MOODS, "")
              for t in TEMPLATES]
    phrases = [p for group, word in labels.WORDS for p in phrases_of(group, word)] + ["", ""]
    shape = (len(classes) + 1, 2, len(MOODS) + 1, len(TEMPLATES), -1)
    starts, phrases = ids(starts).view(shape), ids(phrases).view(len(labels.WORDS) + 1, 2, -1)
    longest = [int((x > 0).sum(-1).max()) for x in (starts, phrases)]
    if longest[0] + 2 * longest[1] + 2 > tokenizer.context:
        raise ValueError(f"captions have up to {longest[0] + 2 * longest[1] + 2} tokens, and the model reads "
                         f"{tokenizer.context}: raise its context")
    return Captions(starts[..., :longest[0]], phrases[..., :longest[1]], tuple(classes), tokenizer.end,
                    tokenizer.context)


@dataclass(frozen=True)
class Said:
    """A batch of captions: token rows (B, context), and which words they say (B, classes + MOODS + WORDS) float."""
    tokens: Tensor
    words: Tensor


def say(captions: Captions, true: Tensor, generator: Generator) -> Said:
    """A random caption of each picture, of what is true of it (B, classes + MOODS + WORDS): its class in four of five,
    a mood, up to two label words."""
    batch, classes = len(true), len(captions.classes)
    class_true, mood_true, word_true = true.split([classes, len(MOODS), len(labels.WORDS)], 1)
    mood = pick(mood_true, 0.5, generator)
    first = pick(word_true, 0.25, generator)
    rest = word_true & ~F.one_hot(first, len(labels.WORDS) + 1)[:, :-1].bool()
    second = pick(rest, 0.6, generator)
    silent = (mood == len(MOODS)) & (first == len(labels.WORDS)) & (second == len(labels.WORDS))

    def draw(n: int) -> Tensor:
        return torch.randint(n, (batch,), device=true.device, generator=generator)

    named = (draw(5) > 0) | silent
    said_class = torch.where(named, class_true.float().argmax(1), classes)
    tokens = captions.rows((said_class, draw(2), mood, draw(len(TEMPLATES))),
                           [(first, draw(2)), (second, draw(2))])
    words = torch.cat([F.one_hot(said_class, classes + 1)[:, :-1], F.one_hot(mood, len(MOODS) + 1)[:, :-1],
                       F.one_hot(first, len(labels.WORDS) + 1)[:, :-1] +
                       F.one_hot(second, len(labels.WORDS) + 1)[:, :-1]], 1)
    return Said(tokens, words.float())


def pick(true: Tensor, none: float, generator: Generator) -> Tensor:
    """One of each row's true columns (B,); `none` is the probability of the index behind the last, 1 without any."""
    count = true.sum(1, keepdim=True)
    silence = torch.where(count > 0, count * none / (1 - none), 1.0)
    return torch.multinomial(torch.cat([true.float(), silence], 1), 1, generator=generator)[:, 0]


def truth(said: Said, true: Tensor, untrue: Tensor) -> tuple[Tensor, Tensor]:
    """(match, unknown), (pictures, captions): all words of the caption are true; none is known to be untrue, not all
    are known to be true."""
    match = true.float() @ said.words.T >= said.words.sum(1)
    return match, ~match & (untrue.float() @ said.words.T == 0)
