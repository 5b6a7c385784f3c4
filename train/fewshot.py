"""Few-shot fine-tuning of MMFS (docs/mmfs.md B.6, B.7, E.6): the decoder learns a style from text or from pictures.

A step takes source faces, decodes them with the style's w+ code, and compares: the structure with the face's
(self-similarity), the change of the CLIP embedding with the reference's direction, and (pictures) the CLIP tokens with
the space that the reference's tokens span, and if wanted the colours with the reference's. Encoder, mapping and CLIP
mapping stay as they are.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import kernels, ops, rng
from ..models.features.clip import Clip
from ..models.fields import check_fields
from ..models.graphs import Graphs
from ..models.hashing import hash_of
from ..models.mmfs import MMFS
from ..models.precision import UNSCALED, autocast
from ..models.style import MMFSStyle
from ..models.stylegan2 import Synthesis, random_noise
from . import losses
from .data import to_bytes
from .loop import Checkpointing, Hooks, LoopConfig, Run, StepResult, ema_copy, finite, total, train
from .palette import Palette
from .session import Session, hash_of_network
from .source_faces import FaceFeatures, FaceNetworks, KnownFaces, Samples, Source, check_photos

MEANS = ("batch", "all")
MIN_BATCH_MEAN = 4  # the mean embedding of fewer faces would hold their own identity (B.7)
STRUCTURE_ROWS = 4  # whose structure is compared at a time: the largest of the networks, so most of the memory
MIN_DEVIATION = 1.0  # of a reference's pixels, of 255


@dataclass(frozen=True)
class FewShotConfig:
    """Everything that decides what a fine-tune makes; the official program's values (B.9).

    projection_weight counts for pictures only, and so does palette_weight, which the official program does not have
    (E.6). token_block: whose tokens are projected. mapper_dropout: the w+ code
    varies with the mapping's dropout (official). anchor: the text that stands for photos. mean: where the photos' mean
    embedding is taken, of the "batch" (official; a batch below 4 takes "all") or of "all" faces. cached_content: 0
    takes the photos as they are, or new samples in every step (official); N prepares N faces once: samples, or the
    photos and random augmentations of them. ema_decay: of the moving average, which is the result; ema_ramp: of a young
    run less, for short runs of small models (loop.update_ema; not official). micro_batch: rows a forward, 0 for all;
    changes memory, not the result. precision: on a GPU.
    """
    iterations: int = 200
    batch: int = 8
    lr: float = 2e-4
    beta1: float = 0.9
    beta2: float = 0.999
    ema_decay: float = 0.99
    structure_weight: float = 0.5
    clip_weight: float = 1.0
    projection_weight: float = 100.0
    structure_norm: str = "mse"
    token_block: int = 3
    mapper_dropout: bool = True
    anchor: str = "photo"
    mean: str = "batch"
    cached_content: int = 0
    micro_batch: int = 0
    precision: str = "float32"
    seed: int = 0
    palette_weight: float = 0.0
    ema_ramp: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("structure_norm", losses.STRUCTURE_NORMS), ("mean", MEANS), ("precision", UNSCALED)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {str(getattr(self, name))[:40]!r}; take one of {', '.join(allowed)}")
        check_fields(self, at_least_1=("iterations", "batch"), below_1=("beta1", "beta2", "ema_decay"))
        if not any((self.structure_weight, self.clip_weight, self.projection_weight)):
            raise ValueError("structure_weight, clip_weight and projection_weight must not all be 0")


# --- what the style is learned from -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Reference:
    """What a style is learned from: text (zero-shot) or pictures (one or several), each (3, H, W), uint8 or in [-1, 1].

    w_plus: a w+ code (1, n, S) to start from instead of the one that the model's CLIP mapping gives.
    """
    prompt: str = ""
    pictures: Sequence[Tensor] = ()
    w_plus: Tensor | None = None

    def bytes(self) -> list[Tensor]:
        """The pictures as uint8."""
        return [p if p.dtype == torch.uint8 else to_bytes(p) for p in self.pictures]

    def check(self, clip: Clip, anchor: str) -> None:
        """ValueError for text that CLIP cannot read, flat pictures, and both or neither of text and pictures."""
        if bool(self.prompt.strip()) and len(self.pictures):
            raise ValueError("give a prompt or reference pictures, not both")
        if not len(self.pictures):
            clip.check_prompt(self.prompt)
            clip.check_prompt(anchor)
        for number, picture in enumerate(self.bytes(), 1):
            if picture.flatten(1).float().std(1, correction=0).max() < MIN_DEVIATION:
                raise ValueError(f"reference {number} is one flat colour: there is no style to learn from it; "
                                 "give a drawing or a painting")


@dataclass(frozen=True)
class ReferenceFeatures:
    """A reference as CLIP sees it: embedding (1, D) and w+ code (1, n, S); `anchor` (1, D), of the text that stands for
    photos, or None for the photos' mean; `projection` (d, d) and palette of the pictures, None for text."""
    embedding: Tensor
    w_plus: Tensor
    anchor: Tensor | None = None
    projection: Tensor | None = None
    palette: Palette | None = None


@torch.no_grad()
def read_reference(net: MMFS, clip: Clip, reference: Reference, config: FewShotConfig) -> ReferenceFeatures:
    """ValueError for a reference that cannot be used with these networks; nothing long has happened then."""
    reference.check(clip, config.anchor)
    if not reference.pictures:
        texts = F.normalize(clip.embed_text([reference.prompt, config.anchor]).float(), dim=1)
        return ReferenceFeatures(texts[:1], _w_plus(net, reference, texts[:1]), texts[1:])
    pictures = reference.bytes()
    seen = [clip.encode_with_tokens(clip.preprocess_file(picture), config.token_block) for picture in pictures]
    embeddings, tokens = (torch.cat(found).float() for found in zip(*seen))
    embedding = F.normalize(embeddings, dim=1).mean(0, keepdim=True)
    return ReferenceFeatures(embedding, _w_plus(net, reference, embedding), None, losses.projector(tokens),
                             Palette.of(pictures, embedding.device))


def _w_plus(net: MMFS, reference: Reference, embedding: Tensor) -> Tensor:
    if reference.w_plus is None:
        return net.styles_of(embedding)
    expected = (1, net.config.n_styles, net.config.w_dim)
    if tuple(reference.w_plus.shape) != expected:
        raise ValueError(f"the w+ code has shape {tuple(reference.w_plus.shape)} and this model takes {expected}; "
                         "make it with this model, and give one code only")
    return reference.w_plus.to(embedding).clone()


# --- training ---------------------------------------------------------------------------------------------------------
@dataclass
class Trainer:
    """The frozen side of a fine-tune."""
    nets: FaceNetworks
    features: ReferenceFeatures
    source: Source
    config: FewShotConfig
    reference: Reference
    graphs: Graphs = field(default_factory=Graphs)

    def __post_init__(self) -> None:
        self.device = self.source.device
        self.mapper, mapper = None, self.nets.mmfs.mapper
        if self.reference.w_plus is None and mapper is not None:  # without one, read_reference has refused it
            self.mapper = copy.deepcopy(mapper).train(self.config.mapper_dropout)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """w+ codes (B, n, S) of a step, each with a dropout of its own."""
        count = self.config.batch
        if self.mapper is None:
            return self.features.w_plus.expand(count, -1, -1)
        return self.mapper(F.normalize(self.features.embedding, dim=1).expand(count, -1))

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the losses that count, in the order of their numbers."""
        config = self.config
        weights = {"structure": config.structure_weight, "clip": config.clip_weight,
                   "projection": config.projection_weight if self.features.projection is not None else 0.0,
                   "palette": config.palette_weight if self.features.palette is not None else 0.0}
        return tuple(name for name, weight in weights.items() if weight)

    def anchor(self, faces: FaceFeatures) -> Tensor:
        """Where the reference's direction starts, (1, D)."""
        if self.features.anchor is not None:
            return self.features.anchor
        if self.config.mean == "batch" and len(faces.embeddings) >= MIN_BATCH_MEAN:
            return faces.embeddings.mean(0, keepdim=True)
        return self.source.mean


def start(net: MMFS, config: FewShotConfig) -> Run:
    """A trainable copy of the decoder, its moving average and its Adam."""
    decoder = copy.deepcopy(net.decoder).float().train().requires_grad_(True)
    weight = next(decoder.parameters())
    if kernels.usable(weight):
        decoder = ops.channels_last(decoder)
    optimizer = torch.optim.Adam(decoder.parameters(), config.lr, (config.beta1, config.beta2), fused=weight.is_cuda)
    return Run({"decoder": decoder}, {"decoder": optimizer}, {"decoder": ema_copy(decoder)})


def fine_tune(trainer: Trainer, run: Run, save_every: int = 0, hooks: Hooks = Hooks(),
              save: Callable[[Run], None] | None = None) -> Run:
    """Train from run.step to config.iterations."""
    config = trainer.config
    loop = LoopConfig(config.iterations, config.seed, save_every, ema_decay=config.ema_decay,
                      ema_ramp=config.ema_ramp)

    def step(k: int, hooks: Hooks) -> Mapping[str, Tensor]:
        if not run.partial:
            values, predictions = update(trainer, run, k, hooks)
            values = dict(zip(values, torch.stack(list(values.values())).cpu()))  # read once, for all that ask
            finite(values, k + 1)
            run.partial = {"done": torch.tensor(1)} | values
            hooks.on_step(StepResult(k, 0, values, predictions))
        return {name: value for name, value in run.partial.items() if name != "done"}

    with trainer.graphs, torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        return train(run, step, loop, trainer.device, hooks, save)


def update(trainer: Trainer, run: Run, k: int, hooks: Hooks = Hooks()) -> tuple[dict[str, Tensor], Tensor]:
    """One optimiser step. Returns the weighted losses and the pictures that it was made on."""
    config, decoder, faces = trainer.config, run.net("decoder", Synthesis), trainer.source.faces(k)
    codes, anchor = trainer.codes(), trainer.anchor(faces)
    shapes = decoder.noise_shapes(*faces.features.shape[-2:])
    noise = random_noise(shapes, config.batch, rng.generator(config.seed, "noise", k, device=trainer.device))
    run.optimizers["decoder"].zero_grad(set_to_none=True)
    results, terms = [], torch.zeros((), device=trainer.device)
    for first in range(0, config.batch, config.micro_batch or config.batch):
        hooks.check_interrupt()
        rows = slice(first, first + (config.micro_batch or config.batch))
        part = faces.rows(rows)
        pictures, values, *gradients = trainer.graphs(
            "gradients", lambda *tensors: row_gradients(trainer, decoder, *tensors), part.features, part.embeddings,
            part.keys, anchor, codes[rows], *(n[rows] for n in noise))
        terms = terms + values
        accumulate(decoder, gradients)
        results.append(pictures.clone())  # a graph's outputs are overwritten by its next run
    hooks.check_interrupt()
    run.optimizers["decoder"].step()
    found = dict(zip(trainer.terms, terms))
    return found | {"loss": total(found)}, torch.cat(results)


def row_gradients(trainer: Trainer, decoder: Synthesis, *inputs: Tensor) -> tuple[Tensor, ...]:
    """(pictures, weighted losses (trainer.terms), the gradient of each parameter) of some rows, to be summed over all
    parts of a batch. inputs: features, embeddings and keys of the faces, anchor, w+ codes, noise of every layer.

    A function of tensors alone. The networks that look at the pictures are done with one after the other, so that no
    two hold memory at the same time.
    """
    features, embeddings, keys, anchor, codes, *noise = inputs
    faces = FaceFeatures(features, embeddings, keys)
    with torch.enable_grad():
        with autocast(trainer.device, trainer.config.precision):
            pictures = F.hardtanh(decoder(features, codes, noise))
        seen = pictures.detach().requires_grad_(True)
        parts = [structure_terms(trainer, faces, seen), clip_terms(trainer, faces, seen, anchor)]
        if "palette" in trainer.terms:
            parts.append(palette_terms(trainer, seen))
        gradient = total({str(k): g for k, (_, g) in enumerate(parts)})
        values = {name: value for part, _ in parts for name, value in part.items()}
        gradients = torch.autograd.grad(pictures, list(decoder.parameters()), gradient)
    return pictures.detach(), torch.stack([values[name] for name in trainer.terms]), *gradients


def accumulate(decoder: Synthesis, gradients: Sequence[Tensor]) -> None:
    """Add gradients to the parameters', in their memory format, which fused optimisers insist on."""
    for parameter, gradient in zip(decoder.parameters(), gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
        else:
            parameter.grad += gradient


Terms = tuple[dict[str, Tensor], Tensor]  # weighted losses, without gradient, and the gradient of their sum


def structure_terms(trainer: Trainer, faces: FaceFeatures, pictures: Tensor) -> Terms:
    """L_st of some rows, STRUCTURE_ROWS at a time, and its gradient by the pictures."""
    config, value, gradients = trainer.config, torch.zeros((), device=trainer.device), []
    if not config.structure_weight:
        return {}, torch.zeros_like(pictures)
    for few, keys in zip(pictures.split(STRUCTURE_ROWS), faces.keys.split(STRUCTURE_ROWS), strict=True):
        with autocast(trainer.device, config.precision):
            found = trainer.nets.structure_net.keys(few)
        loss = config.structure_weight * losses.structure_loss(found, keys, config.structure_norm)
        gradients += torch.autograd.grad(loss, few)
        value = value + loss.detach()
    return {"structure": value}, torch.cat(gradients)


def clip_terms(trainer: Trainer, faces: FaceFeatures, pictures: Tensor, anchor: Tensor) -> Terms:
    """The losses of CLIP of some rows, as their share of a batch, and their gradient by the pictures; those of weight 0
    are left out."""
    config, features, clip, terms = trainer.config, trainer.features, trainer.nets.clip, {}
    share = len(pictures) / config.batch
    if {"clip", "projection"}.isdisjoint(trainer.terms):
        return {}, torch.zeros_like(pictures)
    with autocast(trainer.device, config.precision):
        embeddings, tokens = clip.encode_with_tokens(clip.preprocess(pictures, "mmfs"), config.token_block)
    if "clip" in trainer.terms:
        results = F.normalize(embeddings.float(), dim=1)
        direction = losses.clip_loss(faces.embeddings, results, anchor, features.embedding)
        terms["clip"] = config.clip_weight * share * direction
    if "projection" in trainer.terms and features.projection is not None:
        projection = losses.projection_loss(features.projection, tokens)
        terms["projection"] = config.projection_weight * share * projection
    gradient, = torch.autograd.grad(total(terms), pictures)
    return {name: value.detach() for name, value in terms.items()}, gradient


def palette_terms(trainer: Trainer, pictures: Tensor) -> Terms:
    """The palette loss of some rows, as their share of a batch, and its gradient by the pictures."""
    config, palette = trainer.config, trainer.features.palette
    if palette is None:
        return {}, torch.zeros_like(pictures)
    loss = config.palette_weight * len(pictures) / config.batch * palette.loss(pictures)
    gradient, = torch.autograd.grad(loss, pictures)
    return {"palette": loss.detach()}, gradient


def finish(net: MMFS, run: Run, features: ReferenceFeatures, reference: Reference, settings: dict) -> MMFSStyle:
    """The style as it stands: the moving average in 16 bit on the CPU, its w+ code, the first reference."""
    decoder = {k: v.detach().to("cpu", torch.float16) for k, v in run.ema["decoder"].state_dict().items()}
    picture = reference.bytes()[0].cpu() if reference.pictures else None
    return MMFSStyle(net.config, decoder, features.w_plus.float().cpu(), picture, reference.prompt, settings["model"],
                     settings)


# --- a session --------------------------------------------------------------------------------------------------------
def describe(nets: FaceNetworks, reference: Reference, photos: Tensor | Samples, config: FewShotConfig) -> dict:
    """Everything that decides the result, JSON-able: config fields, and hashes of networks and pictures."""
    references = {str(k): p for k, p in enumerate(reference.bytes())}
    references |= {} if reference.w_plus is None else {"w": reference.w_plus}
    sampled = isinstance(photos, Samples)
    return asdict(config) | {
        "training": "MMFS fine-tune", "model": nets.fingerprint, "clip_network": hash_of_network(nets.clip),
        "structure_network": hash_of_network(nets.structure_net),
        "prompt": reference.prompt, "references": hash_of(references),
        "source": f"samples of a StyleGAN2, truncation {photos.psi}" if sampled else f"{len(photos)} photos",
        "faces": hash_of_network(photos.net) if sampled else hash_of({"": photos})}


def tune_mmfs(nets: FaceNetworks, reference: Reference, photos: Tensor | Samples, config: FewShotConfig,
              checkpointing: Checkpointing = Checkpointing(), hooks: Hooks = Hooks(),
              known: KnownFaces | None = None) -> tuple[MMFSStyle, Run]:
    """Fine-tune a style; resume its snapshot if there is one. Returns the style and the finished run.

    photos (N, 3, H, W), uint8 or in [-1, 1], or Samples. known: source faces of earlier fine-tunes, which changes
    nothing but the time. The networks are on one device and stay as they are. Raises ValueError (CheckpointError) for a
    reference, photos or a snapshot that cannot be used, before anything long.
    """
    net = nets.mmfs
    features = read_reference(net, nets.clip, reference, config)
    if not (config.structure_weight + config.clip_weight or features.projection is not None):
        raise ValueError("the projection loss alone cannot learn from text: it counts for pictures only. Set "
                         "structure_weight or clip_weight above 0")
    check_photos(net, photos)
    run = start(net, config)

    def work(hooks: Hooks, save: Callable[[Run], None] | None) -> Run:
        source = Source(nets, photos, config, hooks, known)
        trainer = Trainer(nets, features, source, replace(config, **session.inherited), reference)
        return fine_tune(trainer, run, checkpointing.every, hooks, save)

    with Session.open(run, describe(nets, reference, photos, config), checkpointing, hooks) as session:
        settings = session.train(work, config.iterations, next(net.parameters()).device, hooks)
    return finish(net, run, features, reference, settings), run
