"""Training the small models from folders of pictures, as the command line does it: build, resume, train, store.

Each recipe writes OUT (the averaged weights, 16 bit) and OUT.snapshot (everything needed to resume), and resumes the
snapshot if there is one. The card in models/demo says what was trained with which numbers.
"""
from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...models import ops, rng
from ...models.checkpoints import store
from ...models.diffae import DiffAE, DiffAEConfig, LatentConfig, LatentNet
from ...models.diffusion import ddim_reverse, ddim_schedule, denoiser
from ...models.features.clip import Clip, WordTokenizer
from ...models.graphs import Graphs
from ...models.loading import load_diffae
from ...models.style import fingerprint
from ...models.unet import UNet, UNetConfig
from .. import captions, retrieval, small_clip
from .. import diffusion_pretraining as pretraining
from ..data import Augmentations, find_pictures, image_dataset, read_pictures, to_unit
from ..diffusion_pretraining import Objective, PretrainingConfig
from ..gan import TrainingStage
from ..loop import Net, Run
from .config import Folders, Identity, RecipeConfig, measured

log = logging.getLogger(__name__)
PHOTO_AUGMENTATIONS = Augmentations(degrees=6, scale=0.1, shift=0.04, colour=0.25)
CLIP_AUGMENTATIONS = Augmentations(degrees=8, scale=0.12, shift=0.05)
CLIP_PHOTOS = 0.3  # share of photos in the small CLIP's batches
SMALL_WIDTH = 192
COMPARED = 256  # photos at most whose loss is measured, of those trained on and of those held out
PREVIEW_STEPS = 20
LATENT_ROUNDS = 24  # augmentations of each photo that the latent DDIM learns from
Model = TypeVar("Model", DiffAE, UNet)


def small_diffae(px: int = 128, width: int = SMALL_WIDTH) -> DiffAEConfig:
    """The demo autoencoder: base 32, one block a level, v-prediction (which keeps high noise well-conditioned)."""
    mult = (1, 1, 2, 3, 4) if px == 128 else (1, 2, 3, 4)
    unet = UNetConfig(px, 32, mult, blocks=1, embed=width, cond=width, dropout=0.0, prediction="v")
    return DiffAEConfig(unet, (*mult, mult[-1]), LatentConfig(width, 384, 4))


def small_ddpm(px: int = 128) -> UNetConfig:
    """The demo DDPM: as the autoencoder's UNet, narrower at the bottom, without z."""
    mult = (1, 1, 2, 2, 3) if px == 128 else (1, 2, 2, 3)
    return UNetConfig(px, 32, mult, blocks=1, embed=128, cond=0, dropout=0.0, prediction="v")


def diffae(folders: Folders, px: int, config: PretrainingConfig, recipe: RecipeConfig, init: Path | None = None,
           art_share: float = 0.25) -> DiffAE:
    """Train the autoencoder (not its latent DDIM) on photos and a share of art, all classes alike. It is not told of
    augmentations: its encoder sees them, and z holds them."""
    net = prepared(lambda: DiffAE(small_diffae(px)), "diffae", config, recipe, init)
    about = start_and_photos(net, init, folders) | art_of(folders)
    if net.latent_net is not None:
        net.latent_net.requires_grad_(False)
    seen, held_out = compared(folders, px, recipe.device)
    run = pretraining.start(net, config)
    pictures = image_dataset(folders.groups(0, 1 - art_share), px, recipe.device)
    objective = pretraining.picture_objective(pretraining.diffae_loss, pictures, config, recipe.distributed)

    @torch.no_grad()
    def preview() -> Tensor:
        """Eight photos, held out if there are such, and under each a picture generated from its z."""
        average, x0 = averaged(run, DiffAE), to_unit((seen if held_out is None else held_out)[:8])
        noise = rng.randn((3, px, px), 0, "x_T", range(len(x0)), recipe.device)
        return torch.cat([x0, average.decode(noise, average.encode(x0), PREVIEW_STEPS, 1.0)])
    trained(run, objective, config, recipe, about, preview,
            lambda: losses_of(run, DiffAE, objective, seen, held_out))
    return store_model(recipe, run, averaged(run, DiffAE).eval(), "diffae", config)


def latent(folders: Folders, config: PretrainingConfig, recipe: RecipeConfig) -> DiffAE:
    """Train the latent DDIM of the autoencoder stored at OUT on z of the photos, and store it there."""
    net = load_diffae(recipe.out).to(recipe.device)
    dataset = image_dataset([(folders.photo_paths()[0], 1.0)], net.image_size, recipe.device)
    if net.latent_net is None:
        raise ValueError(f"{recipe.out.name} has no latent DDIM to train")
    about = {"autoencoder": fingerprint(net), "photo_files": folders.photo_paths()[0]}
    z, told = pretraining.encode_dataset(net, dataset, replace(config.augmentations, colour=0.0), LATENT_ROUNDS,
                                         config.seed)
    z = pretraining.set_statistics(net, z)
    labels = embedding_of(net.latent_net.config.width, config, recipe)
    run = pretraining.start(net.latent_net.requires_grad_(True), config, labels)
    labelled = None if labels is None else (told, labels)

    @torch.no_grad()
    def preview() -> Tensor:
        """Random pictures."""
        net.latent_net = averaged(run, LatentNet)
        noise, px = rng.randn((z.shape[1],), 0, "z", range(16), recipe.device), net.image_size
        x = rng.randn((3, px, px), 0, "x_T", range(16), recipe.device)
        return net.decode(x, net.sample_z(noise, PREVIEW_STEPS), PREVIEW_STEPS, 1.0)
    trained(run, pretraining.latent_objective(z, config, recipe.distributed, labelled), config,
            replace(recipe, out=latent_file(recipe.out)), about, preview)
    net.latent_net = averaged(run, LatentNet).eval()
    if recipe.distributed.is_main_process:
        save(recipe.out, net, "diffae", store.peek(recipe.out).meta or {})
    return net


def latent_file(out: Path) -> Path:
    """Where the training of the latent DDIM of the autoencoder OUT keeps its snapshot (with another ending)."""
    return out.with_name(out.stem + "_latent.safetensors")


def ddpm(folders: Folders, px: int, config: PretrainingConfig, recipe: RecipeConfig, init: Path | None = None) -> UNet:
    """Train the unconditional DDPM on photos."""
    net = prepared(lambda: UNet(small_ddpm(px)), "ddpm", config, recipe, init)
    about = start_and_photos(net, init, folders)
    labels = embedding_of(net.config.embed, config, recipe)
    seen, held_out = compared(folders, px, recipe.device)
    run = pretraining.start(net, config, labels)
    pictures = image_dataset([(folders.photo_paths()[0], 1.0)], px, recipe.device)
    objective = pretraining.picture_objective(pretraining.noise_loss, pictures, config, recipe.distributed, labels)

    @torch.no_grad()
    def preview() -> Tensor:
        """Random pictures."""
        schedule = ddim_schedule(PREVIEW_STEPS)
        noise = rng.randn((3, px, px), 0, "x_T", range(16), recipe.device)
        denoise = denoiser(averaged(run, UNet), None, schedule.times)
        return ddim_reverse(lambda x, t: denoise(x, t)[:, :3], noise, schedule, range(PREVIEW_STEPS)[::-1])
    trained(run, objective, config, recipe, about, preview,
            lambda: losses_of(run, UNet, objective, seen, held_out))
    return store_model(recipe, run, averaged(run, UNet).eval(), "ddpm", config)


def clip_classes(folders: Folders) -> tuple[tuple[str, ...], Callable[[Path], int]]:
    """("photo", one word for each art folder) and the label of a path. ValueError without a folder of art, and for
    folders that captions cannot tell apart: without a word, or with one that another folder has."""
    art = folders.art
    if art is None:
        raise ValueError("the small CLIP learns from photos and art; give it a folder of art")
    names = sorted({p.parent.name for p in find_pictures(art)} - set(folders.exclude))
    classes = ("photo", *(captions.class_word(n) for n in names))
    captions.check_classes(classes, (folders.photos.name, *names))

    def label(path: Path) -> int:
        return 1 + names.index(path.parent.name) if path.is_relative_to(art) else 0
    return classes, label


def clip(folders: Folders, px: int, config: PretrainingConfig, recipe: RecipeConfig,
         patch: int | None = None) -> tuple[Clip, dict[str, float]]:
    """Train the small CLIP on photos and art. Returns it and its zero-shot accuracy on held-out pictures, if there
    are such. patch: see small_config. ValueError for several processes: the loss compares all pictures of a batch."""
    if recipe.distributed.size > 1:
        raise ValueError("the CLIP's loss compares every picture of a batch with every other, which one process must "
                         "hold: start one process")
    classes, class_of = clip_classes(folders)
    config_of_net = small_clip.small_config(captions.word_list(classes), px, patch)
    net = prepared(lambda: Clip(config_of_net), "clip", config, recipe)
    about = start_and_photos(net, None, folders) | art_of(folders)
    texts = captions.all_captions(classes, WordTokenizer(net.config.words, net.config.context))
    kept, held_out = (folders.groups(part, share) for part, share in ((0, CLIP_PHOTOS), (1, 0.5)))
    facts, fact_of = captions.facts_of([p for paths, _ in kept for p in paths], class_of, len(classes))
    objective = small_clip.clip_objective(image_dataset(kept, px, recipe.device, fact_of), facts, texts, config)
    run = pretraining.start(net, config)
    trained(run, objective, config, recipe, about, lambda: objective.batch(0)[0][:16])
    net = averaged(run, Clip).eval()
    write = functools.partial(store.save, recipe.out, net.net.state_dict(), "clip", asdict(net.config),
                              dtype=torch.float16)
    write(meta={})
    if not any(paths for paths, _ in held_out):
        log.warning("no picture is held out: how well the CLIP knows pictures of its classes is not measured")
        return net, {}
    found = retrieval.measure(net, held_out, texts, class_of)
    accuracy = found.pop("zero-shot")
    log.info("zero-shot accuracy on held-out pictures: %s", accuracy)
    log.info("retrieval on held-out pictures: %s", found)
    write(meta={"zero_shot": accuracy, "retrieval": found})
    return net, accuracy


# --- what all have in common ------------------------------------------------------------------------------------------
def prepared(build: Callable[[], Net], kind: str, config: PretrainingConfig, recipe: RecipeConfig,
             init: Path | None = None) -> Net:
    """A new network, the same in every process, with the weights of the file `init` of this kind if there is one.
    ValueError (CheckpointError) for a file of another kind, and for weights of another network."""
    with rng.seeded(config.seed, "new layers"):
        net = build()
    if init is not None:
        try:
            net.load_state_dict(store.load(init, kind).tensors)
        except RuntimeError as error:
            raise ValueError(f"the weights in {init.name} do not fit the network that is trained here "
                             f"({' '.join(str(error).split())[:200]}). Give a file that this command wrote with the "
                             "same --size, or leave --init out") from error
    net = net.to(recipe.device)
    return ops.channels_last(net) if recipe.device.type == "cuda" else net


def start_and_photos(net: nn.Module, init: Path | None, folders: Folders) -> Identity:
    """What a training begins with, a new network or that of the file `init`, and the photos that it learns from."""
    return {"model": "new" if init is None else net, "photo_files": folders.photo_paths()[0]}


def art_of(folders: Folders) -> Identity:
    """The art that is learned from, and how often its classes come."""
    return {"art": folders.art_paths()[0], "art_weights": folders.weights_text()}


def embedding_of(width: int, config: PretrainingConfig, recipe: RecipeConfig) -> nn.Linear | None:
    """What embeds augmentation labels in a time's embedding of this width; None if they are not asked for."""
    return pretraining.label_embedding(width).to(recipe.device) if config.augmentation_labels else None


def compared(folders: Folders, px: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """As many photos that are trained on as are held out, at most COMPARED, spread over all: uint8 (N, 3, px, px); None
    if none is held out."""
    paths, held_out = folders.photo_paths()
    count = min(COMPARED, len(held_out) or len(paths))

    def spread(paths: list[Path]) -> Tensor:
        return read_pictures(paths[::max(1, len(paths) // count)][:count], px).to(device)
    return spread(paths), spread(held_out) if held_out else None


def averaged(run: Run, kind: type[Net]) -> Net:
    """The moving average of the network, or itself if there is none."""
    return run.average("net", kind) if "net" in run.ema else run.net("net", kind)


def losses_of(run: Run, kind: type[Net], objective: Objective, seen: Tensor,
              held_out: Tensor | None) -> dict[str, float]:
    """The loss of the averaged network on photos that it learns from and on others, at the same times and noises: where
    the second stops falling, more data helps and more time does not."""
    net = averaged(run, kind)
    sets = {"seen": seen} | ({} if held_out is None else {"held_out": held_out})
    return {name: pretraining.fixed_loss(net, objective.loss, pictures) for name, pictures in sets.items()}


def trained(run: Run, objective: Objective, config: PretrainingConfig, recipe: RecipeConfig, about: Identity,
            preview: Callable[[], Tensor], measure: Callable[[], Mapping[str, float]] | None = None) -> None:
    """Train the run to its end, resuming OUT.snapshot if there is one. about: what decides the result beside the
    configuration. CheckpointError for a snapshot of something else."""
    graphs = Graphs()
    step = pretraining.stepper(run, objective, config, graphs, recipe.distributed)
    recipe.train(TrainingStage(run, step, preview, config, graphs), about, measure, "diffusion pretraining")


def store_model(recipe: RecipeConfig, run: Run, net: Model, kind: str, config: PretrainingConfig) -> Model:
    """Write a model, with how many samples it has seen and the losses that were measured; returns it."""
    meta = {"samples": config.batch * run.step} | measured(run, "seen", "held_out")
    if recipe.distributed.is_main_process:
        save(recipe.out, net, kind, meta)
    return net


def save(out: Path, net: DiffAE | UNet, kind: str, meta: Mapping) -> None:
    """Write a model's weights in 16 bit with its configuration."""
    store.save(out, net.state_dict(), kind, asdict(net.config), dict(meta), torch.float16)
