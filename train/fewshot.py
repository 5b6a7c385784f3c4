"""Few-shot fine-tuning of MMFS (spec B.6, B.7): the decoder learns a style from words or from one or more pictures.

A step draws source faces, decodes them with the style's code, and compares: the structure with the face's
(self-similarity), the change of the CLIP embedding with the reference's direction, and (pictures) the CLIP tokens with
the space that the reference's tokens span. Encoder, mapping and CLIP mapping stay as they are.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..models.clip import BILINEAR, Clip
from ..models.hashing import hash_of
from ..models.mmfs import MMFS
from ..models.mmfs_style import MMFSStyle
from ..models.stylegan2 import draw_noise
from . import guidance
from .data import to_bytes
from .loop import LoopConfig, Progress, Run, average_of, step_seed, train
from .osasis import Update
from .prior import precision
from .session import Session, checked, hash_of_network
from .source_faces import Faces, Samples, Source, Structure, check_photos

MEANS = ("batch", "all")
PRECISIONS = ("float32", "bfloat16")
FEW = 4  # a batch below this has no mean face: its mean embedding would hold the faces' own identity (B.7)
FLATTEST = 1.0  # least deviation of a reference's pixels, of 255
MMFS_PRESETS: dict[str, dict] = {  # fields of FewShotConfig that differ from the official program
    "official": {},
    "paper": {"beta1": 0.99, "structure": 1.0, "structure_norm": "frobenius"},  # spec B.9
    "demo": {"iterations": 40, "batch": 4, "lr": 1e-3, "bank": 64},  # the demo models, on a CPU
}


@dataclass(frozen=True)
class FewShotConfig:
    """Everything that decides what a fine-tune makes; the official program's values (B.9).

    structure, clip, projection: weights; projection counts for pictures only. token_block: whose tokens are projected.
    mapper_dropout: the style code jitters with the mapping's dropout (official). anchor: the words that stand for
    photos. mean: where the photos' mean embedding is taken, of the "batch" (official; a batch below 4 takes "all") or
    of "all" faces. bank: 0 takes the photos as they are, or new samples in every step (official); N prepares N faces
    once: samples, or the photos and random views of them. micro_batch: rows a forward, 0 for all; changes memory, not
    the result. precision: on a GPU.
    """
    iterations: int = 200
    batch: int = 8
    lr: float = 2e-4
    beta1: float = 0.9
    beta2: float = 0.999
    average: float = 0.99
    structure: float = 0.5
    clip: float = 1.0
    projection: float = 100.0
    structure_norm: str = "mse"
    token_block: int = 3
    mapper_dropout: bool = True
    anchor: str = "photo"
    mean: str = "batch"
    bank: int = 0
    micro_batch: int = 0
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self):
        for name, allowed in (("structure_norm", guidance.STRUCTURE_NORMS), ("mean", MEANS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; take one of {', '.join(allowed)}")
        if min(self.iterations, self.batch) < 1 or min(self.bank, self.micro_batch, self.token_block) < 0:
            raise ValueError("iterations and batch must be at least 1; bank, micro_batch and token_block at least 0")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and 0 <= self.average < 1):
            raise ValueError("beta1, beta2 and average must be at least 0 and below 1")
        if min(self.structure, self.clip, self.projection) < 0 or not self.structure + self.clip + self.projection:
            raise ValueError("the weights structure, clip and projection must not be negative, nor all be 0")


# --- what the style is learned from -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Target:
    """Words (zero-shot) or pictures (one or several), each (3, H, W), uint8 or in [-1, 1].

    w: a style code (1, n, S) to start from instead of the one that the model's CLIP mapping gives.
    """
    prompt: str = ""
    pictures: Sequence[Tensor] = ()
    w: Tensor | None = None

    def bytes(self) -> list[Tensor]:
        """The pictures as uint8."""
        return [p if p.dtype == torch.uint8 else to_bytes(p) for p in self.pictures]

    def check(self, clip: Clip, anchor: str) -> None:
        """ValueError for words that CLIP cannot read, flat pictures, and both or neither of words and pictures."""
        if bool(self.prompt.strip()) and len(self.pictures):
            raise ValueError("give a prompt or reference pictures, not both")
        if not len(self.pictures):
            clip.check_prompt(self.prompt)
            clip.check_prompt(anchor)
        for number, picture in enumerate(self.bytes(), 1):
            if picture.flatten(1).float().std(1, correction=0).max() < FLATTEST:
                raise ValueError(f"reference {number} is one flat colour: there is no style to learn from it; "
                                 "give a drawing or a painting")


@dataclass(frozen=True)
class Guide:
    """The target as CLIP sees it: embedding (1, D) and style code (1, n, S); `anchor` (1, D), the words that stand for
    photos, or None for the photos' mean; `projection` (d, d) of the references, None for words."""
    embedding: Tensor
    w: Tensor
    anchor: Tensor | None = None
    projection: Tensor | None = None


@torch.no_grad()
def read_target(net: MMFS, clip: Clip, target: Target, config: FewShotConfig) -> Guide:
    """ValueError for a target that cannot be used with these networks; nothing long has happened then."""
    target.check(clip, config.anchor)
    if not target.pictures:
        words = F.normalize(clip.embed_text([target.prompt, config.anchor]).float(), dim=1)
        return Guide(words[:1], _style_code(net, target, words[:1]), words[1:])
    seen = [clip.look(clip.prepare_file(picture), config.token_block) for picture in target.bytes()]
    embeddings, tokens = (torch.cat(found).float() for found in zip(*seen))
    embedding = F.normalize(embeddings, dim=1).mean(0, keepdim=True)
    return Guide(embedding, _style_code(net, target, embedding), None, guidance.projector(tokens))


def _style_code(net: MMFS, target: Target, embedding: Tensor) -> Tensor:
    if target.w is None:
        return net.styles_of(embedding)
    expected = (1, net.config.n_styles, net.config.style)
    if tuple(target.w.shape) != expected:
        raise ValueError(f"the style code has shape {tuple(target.w.shape)} and this model takes {expected}; "
                         "make it with this model, and give one code only")
    return target.w.to(embedding).clone()


# --- training ---------------------------------------------------------------------------------------------------------
@dataclass
class Trainer:
    """The frozen side of a fine-tune."""
    net: MMFS
    clip: Clip
    structure: Structure
    guide: Guide
    source: Source
    config: FewShotConfig
    target: Target

    def __post_init__(self):
        self.device = self.source.device
        self.mapper = None
        if self.target.w is None:
            self.mapper = copy.deepcopy(self.net.mapper).train(self.config.mapper_dropout)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """w+ codes (B, n, S) of a step, each with a dropout of its own."""
        count = self.config.batch
        if self.mapper is None:
            return self.guide.w.expand(count, -1, -1)
        return self.mapper(F.normalize(self.guide.embedding, dim=1).expand(count, -1))

    def anchor(self, faces: Faces) -> Tensor:
        """Where the reference's direction starts, (1, D)."""
        if self.guide.anchor is not None:
            return self.guide.anchor
        if self.config.mean == "batch" and len(faces.embeddings) >= FEW:
            return faces.embeddings.mean(0, keepdim=True)
        return self.source.mean


def autocast(device: torch.device, config: FewShotConfig):
    """The run's precision on a GPU, float32 on a CPU."""
    return precision(device, config.precision if device.type == "cuda" else "float32")


def start(net: MMFS, config: FewShotConfig) -> Run:
    """A trainable copy of the decoder, its moving average and its Adam."""
    decoder = copy.deepcopy(net.decoder).float().train().requires_grad_(True)
    optimizer = torch.optim.Adam(decoder.parameters(), config.lr, (config.beta1, config.beta2))
    return Run({"decoder": decoder}, {"decoder": optimizer}, {"decoder": average_of(decoder)})


def fine_tune(trainer: Trainer, run: Run, *, save_every: int = 0, save: Callable[[Run], None] | None = None,
              tick: Callable[[Update], None] | None = None, callback: Callable[[Progress], None] | None = None) -> Run:
    """Train from run.step to config.iterations. `tick` is called after every optimiser step and may raise to stop."""
    config = trainer.config
    loop = LoopConfig(config.iterations, config.seed, save_every, average=config.average)

    def step(k: int) -> Mapping[str, Tensor]:
        values, predictions = update(trainer, run, k)
        if tick:
            tick(Update(k, 0, values, predictions))
        return values

    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        return train(run, step, loop, trainer.device, save=save, callback=callback)


def update(trainer: Trainer, run: Run, k: int) -> tuple[dict[str, Tensor], Tensor]:
    """One optimiser step. Returns the weighted losses and the pictures that it was made on."""
    config, decoder, faces = trainer.config, run.nets["decoder"], trainer.source.faces(k)
    codes, anchor = trainer.codes(), trainer.anchor(faces)
    shapes = decoder.noise_shapes(*faces.features.shape[-2:])
    noise = draw_noise(shapes, config.batch, Generator(trainer.device).manual_seed(step_seed(config.seed + 2, k)))
    run.optimizers["decoder"].zero_grad(set_to_none=True)
    totals: dict[str, Tensor] = {}
    results = []
    for first in range(0, config.batch, config.micro_batch or config.batch):
        rows = slice(first, first + (config.micro_batch or config.batch))
        part = faces.rows(rows)
        with autocast(trainer.device, config):
            picture = F.hardtanh(decoder(part.features, codes[rows], [n[rows] for n in noise]))
        values = row_losses(trainer, part, picture, anchor)
        sum(values.values()).backward()
        for name, value in values.items():
            totals[name] = totals.get(name, 0) + value.detach()
        results.append(picture.detach())
    run.optimizers["decoder"].step()
    return totals | {"loss": sum(totals.values())}, torch.cat(results)


def row_losses(trainer: Trainer, faces: Faces, pictures: Tensor, anchor: Tensor) -> dict[str, Tensor]:
    """Weighted loss terms of some rows, to be summed over all parts of a batch; those of weight 0 are left out."""
    config, guide, clip = trainer.config, trainer.guide, trainer.clip
    share, terms = len(pictures) / config.batch, {}
    with autocast(trainer.device, config):
        if config.structure:
            keys = trainer.structure.keys(pictures)
        embeddings, tokens = clip.look(clip.prepare(pictures, BILINEAR), config.token_block)
    if config.structure:
        terms["structure"] = config.structure * guidance.structure_loss(keys, faces.keys, config.structure_norm)
    if config.clip:
        results = F.normalize(embeddings.float(), dim=1)
        terms["clip"] = config.clip * share * guidance.clip_loss(faces.embeddings, results, anchor, guide.embedding)
    if config.projection and guide.projection is not None:
        terms["projection"] = config.projection * share * guidance.projection_loss(guide.projection, tokens)
    return terms


def finish(net: MMFS, run: Run, guide: Guide, target: Target, model: str, settings: dict) -> MMFSStyle:
    """The style as it stands: the moving average in 16 bit on the CPU, its code, the first reference."""
    decoder = {k: v.detach().to("cpu", torch.float16) for k, v in run.averages["decoder"].state_dict().items()}
    picture = target.bytes()[0].cpu() if target.pictures else None
    return MMFSStyle(net.config, decoder, guide.w.float().cpu(), picture, target.prompt, model, settings)


# --- a session --------------------------------------------------------------------------------------------------------
def describe(config: FewShotConfig, fingerprint: str, clip: Clip, structure: nn.Module, target: Target,
             photos: Tensor | Samples) -> dict:
    """Everything that decides the result, JSON-able: config fields, and hashes of networks and pictures."""
    references = {str(k): p for k, p in enumerate(target.bytes())}
    references |= {} if target.w is None else {"w": target.w}
    drawn = isinstance(photos, Samples)
    return asdict(config) | {
        "model": fingerprint, "clip_network": hash_of_network(clip),
        "structure_network": hash_of_network(structure),
        "prompt": target.prompt, "references": hash_of(references),
        "source": f"samples of a StyleGAN2, truncation {photos.psi}" if drawn else f"{len(photos)} photos",
        "faces": hash_of_network(photos.net) if drawn else hash_of({"": photos})}


def tune_mmfs(net: MMFS, clip: Clip, structure: nn.Module, target: Target, photos: Tensor | Samples,
              config: FewShotConfig, *, fingerprint: str, snapshot_path: Path | None = None, save_every: int = 0,
              resume: bool = True, tick: Callable[[Update], None] | None = None,
              callback: Callable[[Progress], None] | None = None, check: Callable[[], None] | None = None,
              begun: Callable[[Run], None] | None = None) -> tuple[MMFSStyle, Run]:
    """Fine-tune a style; go on from the snapshot if there is one. Returns the style and the finished run.

    structure: a module with `.keys`. photos (N, 3, H, W), uint8 or in [-1, 1], or Samples. The networks are on one
    device and stay as they are. tick, callback, check, begun: as in session.tune_style; check is called before every
    call of the encoder, the decoder and the StyleGAN2. Raises ValueError (CheckpointError) for a target, photos or a
    snapshot that cannot be used, before anything long.
    """
    guide = read_target(net, clip, target, config)
    check_photos(net, photos)
    run = start(net, config)
    device = next(net.parameters()).device
    session = Session.begin(run, describe(config, fingerprint, clip, structure, target, photos), snapshot_path, resume,
                            begun)

    def work(**saving) -> Run:
        source = Source(net, clip, structure, photos, batch=config.batch, bank=config.bank, seed=config.seed,
                        precision=config.precision if device.type == "cuda" else "float32")
        return fine_tune(Trainer(net, clip, structure, guide, source, config, target), run, callback=callback, **saving)

    drawing = [photos.net] if isinstance(photos, Samples) else []
    with checked((net.encoder, run.nets["decoder"], *drawing), check):
        done = session.carry_out(work, config.iterations, device, save_every, tick)
    return finish(net, run, guide, target, fingerprint, done), run
