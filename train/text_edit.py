"""Edits of semantic codes by text (docs/osasis.md C.8; section 4.5 of the OSASIS paper).

A copy z' of the code learns what turns the picture G_A(x_t0, z) in the direction of the texts; A and x_t0 stay as they
are. The edited code then goes wherever a code goes: Decode, or Mix Codes and a style. What is learned is the change of
the code as a multiple of its deviation among photos, a row for each text and picture, or one for all pictures.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..models.diffae import DiffAE
from ..models.diffusion import Schedule, ddim_reverse, ddim_schedule, ddim_step, denoiser
from ..models.features.clip import PREPROCESSINGS, Clip
from ..models.features.packages import package_module
from ..models.fields import check_fields
from ..models.precision import PRECISIONS, autocast
from .loop import Hooks, LoopConfig, Losses, Run, StepResult, train
from .losses import pixel_loss, text_edit_loss

GRADIENTS = ("one-step", "chain")
TEMPLATES = ("auto", "imagenet", "none")


@dataclass(frozen=True)
class TextEditConfig:
    """What decides an edit. The paper says none of it; C.8 has each default's source.

    steps: of Adam, with rate lr. decode_steps: of the whole schedule. gradient: "one-step" takes the loss of the x0
    prediction at one index after the other, "chain" that of the decoded picture, through all calls. l2_weight: of the
    mean square of the change; l1_weight: of the pictures' difference. shared: one change for all pictures. templates:
    sentences around the texts; "auto" is imagenet for CLIP's own tokens, none for a small CLIP's words. rows: texts x
    pictures at a time; they change memory, not the result. precision: of the networks on a GPU.
    """
    steps: int = 60
    lr: float = 0.05
    decode_steps: int = 20
    gradient: str = "one-step"
    l2_weight: float = 0.1
    l1_weight: float = 0.0
    shared: bool = False
    templates: str = "auto"
    clip_preprocessing: str = "openai"
    rows: int = 4
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_fields(self, at_least_1=("steps", "rows"))
        for name, allowed in (("gradient", GRADIENTS), ("templates", TEMPLATES), ("precision", PRECISIONS),
                              ("clip_preprocessing", PREPROCESSINGS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {str(getattr(self, name))[:40]!r}; take one of {', '.join(allowed)}")

    def indices(self, t0: float) -> range:
        """Falling indices of the reverse chain from t0, as Decode walks it. ValueError if there is none."""
        count = ddim_schedule(self.decode_steps).num_steps(t0)
        if not count:
            raise ValueError(f"t0 x decode_steps < 1 (t0 {t0:g}, {self.decode_steps} steps); increase t0 or steps")
        return range(count)[::-1]


@dataclass(frozen=True)
class TextEdits:
    """change (P, B or 1, E): of the codes, in their own units, for each text and picture. agreement (P, B): cos of the
    decoded pictures' change of embedding and the text's."""
    change: Tensor
    agreement: Tensor

    @property
    def directions(self) -> Tensor:
        """(P, E): the change of each text, its mean over the pictures."""
        return self.change.mean(1)

    def edited(self, z: Tensor, strength: float) -> Tensor:
        """Codes (P * B, E) of z (B, E), all pictures of the first text first."""
        return (z + strength * self.change.to(z)).flatten(0, 1)

    def packed(self) -> Tensor:
        """Both in one row of numbers."""
        return torch.cat([self.agreement.flatten(), self.change.flatten()])

    @classmethod
    def unpacked(cls, numbers: Tensor, texts: int, pictures: int, width: int) -> TextEdits:
        """Of `packed`, for that many texts, pictures and numbers of a code."""
        agreement, change = numbers.split([texts * pictures, len(numbers) - texts * pictures])
        return cls(change.view(texts, -1, width), agreement.view(texts, pictures))


@dataclass(frozen=True)
class Subject:
    """What is edited: codes z (B, E) with their deviation std (E,) among photos, structural codes x (B, 3, px, px) at
    t0, and the texts' directions (P, D)."""
    z: Tensor
    std: Tensor
    x: Tensor
    t0: float
    texts: Tensor


@dataclass
class Editor:
    """The frozen side of an edit, and where the walk down the chain stands: x (P * B, 3, px, px).

    embeddings (n, B, D) and pictures (n, B, 3, px, px): of the unedited predictions at every index of the chain.
    """
    net: DiffAE
    clip: Clip
    subject: Subject
    config: TextEditConfig
    schedule: Schedule
    indices: range
    embeddings: Tensor
    pictures: Tensor
    x: Tensor

    @property
    def count(self) -> int:
        """Rows: texts x pictures."""
        return len(self.subject.texts) * len(self.subject.z)

    def embed(self, pictures: Tensor) -> Tensor:
        return self.clip.embed(pictures, self.config.clip_preprocessing).float()

    @classmethod
    def of(cls, net: DiffAE, clip: Clip, subject: Subject, config: TextEditConfig, hooks: Hooks = Hooks()) -> Editor:
        """Walks the unedited chain once, with `rows` pictures at a time."""
        schedule, indices = ddim_schedule(config.decode_steps), config.indices(subject.t0)

        def walk(z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            embeddings, pictures = [], []

            def remember(i: int, x0: Tensor, x: Tensor) -> None:
                hooks.check_interrupt()
                embeddings.append(clip.embed(x0, config.clip_preprocessing).float())
                pictures.append(x0)
            ddim_reverse(denoiser(net.unet, z, schedule.times[:len(indices)]), x, schedule, indices, hook=remember)
            return torch.stack(embeddings), torch.stack(pictures)
        with torch.no_grad(), autocast(subject.x.device, config.precision):
            walks = [walk(*part) for part in zip(subject.z.split(config.rows), subject.x.split(config.rows))]
        embeddings, pictures = (torch.cat(parts, 1) for parts in zip(*walks))
        return cls(net, clip, subject, config, schedule, indices, embeddings, pictures,
                   subject.x.repeat(len(subject.texts), 1, 1, 1))


class Change(nn.Module):
    """delta (P, B or 1, E), zero at first: the change of the normalised codes."""

    def __init__(self, texts: int, pictures: int, width: int) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(texts, pictures, width))

    def forward(self, pictures: int) -> Tensor:
        """A row for each text and picture (P * B, E)."""
        return self.delta.expand(-1, pictures, -1).flatten(0, 1)


# --- texts ------------------------------------------------------------------------------------------------------------
def templates_of(clip: Clip, templates: str) -> list[str]:
    """Sentences with {} for the text: open_clip's for ImageNet, or "{}" alone."""
    if templates == "none" or templates == "auto" and clip.config.words:
        return ["{}"]
    sentences = package_module("open_clip", "open_clip_torch").OPENAI_IMAGENET_TEMPLATES
    return [sentence("{}") for sentence in sentences]


@torch.no_grad()
def text_directions(clip: Clip, source: str, targets: Sequence[str], templates: str = "auto") -> Tensor:
    """E_T(target) - E_T(source) (P, D), each of length 1. E_T: the mean of normalised embeddings over the templates.

    ValueError for a text that CLIP cannot read, and for a target that is the source to it.
    """
    for text in (source, *targets):
        clip.check_prompt(text)
    sentences = templates_of(clip, templates)
    means = [F.normalize(clip.embed_text([sentence.format(text) for sentence in sentences]).float(), dim=1).mean(0)
             for text in (source, *targets)]
    found = torch.stack(means[1:]) - means[0]
    for text, direction in zip(targets, found, strict=True):
        if direction.norm() < 1e-4:
            raise ValueError(f"to this CLIP, {text[:60]!r} is the same as the source {source[:60]!r}; describe what is "
                             "to change in other words")
    return F.normalize(found, dim=1)


# --- the edit ---------------------------------------------------------------------------------------------------------
def edit_by_text(net: DiffAE, clip: Clip, subject: Subject, config: TextEditConfig = TextEditConfig(),
                 hooks: Hooks = Hooks()) -> TextEdits:
    """Learn the changes of the codes (Eq. 28-30). Networks and tensors on one device; gradients must be enabled.

    Each step tells the predictions (P * B, 3, px, px). A hook may raise to stop it. A row's result is that of the
    picture and the text alone, unless the change is shared. ValueError for settings without a step.
    """
    editor = Editor.of(net, clip, subject, config, hooks)
    change = Change(len(subject.texts), 1 if config.shared else len(subject.z), subject.z.shape[1]).to(subject.z.device)
    run = Run({"change": change}, {"change": torch.optim.Adam(change.parameters(), config.lr)})
    hooks.on_start(run)
    train(run, lambda k, hooks: step(editor, run, k, hooks), LoopConfig(config.steps), subject.z.device, hooks)
    with torch.no_grad():
        delta = change.delta.detach()
        return TextEdits((subject.std * delta).cpu(), cosines(editor, delta, hooks).cpu())


def step(editor: Editor, run: Run, k: int, hooks: Hooks) -> Losses:
    """One step of Adam, at the next index of the chain or through all of it. Returns each loss's mean over the rows."""
    change, optimizer = run.net("change", Change), run.optimizers["change"]
    place = k % len(editor.indices)
    if place == 0:
        editor.x = editor.subject.x.repeat(len(editor.subject.texts), 1, 1, 1)
    optimizer.zero_grad()
    totals: dict[str, Tensor] = {}
    predictions, following = [], []
    for rows in torch.arange(editor.count, device=editor.x.device).split(editor.config.rows):
        hooks.check_interrupt()
        values, picture, x = row_losses(editor, change, rows, place, hooks)
        sum(values.values(), start=values["direction"].new_zeros(())).sum().backward()
        totals = {name: totals.get(name, 0) + value.detach().sum() / editor.count for name, value in values.items()}
        predictions.append(picture.detach())
        following.append(x.detach())
    optimizer.step()
    editor.x = torch.cat(following)
    totals["loss"] = torch.stack(list(totals.values())).sum()
    hooks.on_step(StepResult(k, editor.indices[place], totals, torch.cat(predictions)))
    return totals


def row_losses(editor: Editor, change: Change, rows: Tensor, place: int,
               hooks: Hooks) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """(losses by name, each (rows,); the pictures they are of; where the walk goes on) of some rows."""
    subject, config, pictures = editor.subject, editor.config, len(editor.subject.z)
    delta, of = change(pictures)[rows], rows % pictures
    z = subject.z[of] + subject.std * delta
    with autocast(subject.x.device, config.precision):
        if config.gradient == "chain":
            place = len(editor.indices) - 1
            picture, x = decoded(editor, subject.x[of], z, hooks), subject.x[of]
        else:
            i, denoise = editor.indices[place], denoiser(editor.net.unet, z)
            picture, x = ddim_step(editor.x[rows], denoise(editor.x[rows], editor.schedule.times[i]), editor.schedule,
                                   i, i - 1)
        embedded = editor.embed(picture)
    texts = subject.texts[rows // pictures]
    values = {"direction": text_edit_loss(editor.embeddings[place][of], embedded, texts)}
    if config.l2_weight:
        values["l2"] = config.l2_weight * delta.square().mean(1)
    if config.l1_weight:
        values["l1"] = config.l1_weight * pixel_loss(picture, editor.pictures[place][of])
    return values, picture, x


def decoded(editor: Editor, x: Tensor, z: Tensor, hooks: Hooks = Hooks()) -> Tensor:
    """G_A(x_t0, z): all steps of the chain. For the backward pass, each call's maps are made again, not kept."""
    denoise = denoiser(editor.net.unet, z)

    def one(x: Tensor, i: int) -> Tensor:
        return ddim_step(x, denoise(x, editor.schedule.times[i]), editor.schedule, i, i - 1)[1]
    for i in editor.indices:
        hooks.check_interrupt()
        x = checkpoint(one, x, i, use_reentrant=False, preserve_rng_state=False) if torch.is_grad_enabled() else (
            one(x, i))
    return x


def cosines(editor: Editor, delta: Tensor, hooks: Hooks = Hooks()) -> Tensor:
    """cos of the decoded pictures' change and the text's (P, B), for changes delta (P, B or 1, E)."""
    subject, pictures, found = editor.subject, len(editor.subject.z), []
    rows_of_delta = delta.expand(-1, pictures, -1).flatten(0, 1)
    for rows in torch.arange(editor.count, device=editor.x.device).split(editor.config.rows):
        of = rows % pictures
        z = subject.z[of] + subject.std * rows_of_delta[rows]
        with autocast(subject.x.device, editor.config.precision):
            embedded = editor.embed(decoded(editor, subject.x[of], z, hooks))
        found.append(F.cosine_similarity(embedded - editor.embeddings[-1][of], subject.texts[rows // pictures], dim=1))
    return torch.cat(found).view(-1, pictures)
