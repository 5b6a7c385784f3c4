"""Training the small models from folders of pictures, as the command line does it: build, resume, train, store.

Each recipe writes OUT (the averaged weights, 16 bit) and OUT.snapshot (everything needed to resume), and resumes the
snapshot if there is one. The card in models/demo says what was trained with which numbers.
"""
from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from ...models import ops
from ...models.checkpoints import store
from ...models.diffae import DiffAE, DiffAEConfig, LatentConfig
from ...models.features.clip import Clip, WordTokenizer
from ...models.loading import load_diffae
from ...models.unet import UNet, UNetConfig
from .. import captions, retrieval, small_clip
from .. import diffusion_pretraining as pretraining
from ..data import Augmentations, find_pictures, image_dataset
from ..diffusion_pretraining import PretrainingConfig
from ..loop import LoopConfig, Net, log_losses, train
from ..session import Session
from .config import Folders, RecipeConfig

log = logging.getLogger(__name__)
PHOTO_AUGMENTATIONS = Augmentations(degrees=6, scale=0.1, shift=0.04, colour=0.25)
CLIP_AUGMENTATIONS = Augmentations(degrees=8, scale=0.12, shift=0.05)
CLIP_PHOTOS = 0.3  # share of photos in the small CLIP's batches
SMALL_WIDTH = 192
LATENT_ROUNDS = 24  # augmentations of each photo that the latent DDIM learns from


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
    """Train the autoencoder (not its latent DDIM) on photos and a share of art, all classes alike."""
    net = DiffAE(small_diffae(px)).to(recipe.device)
    if net.latent_net is not None:
        net.latent_net.requires_grad_(False)
    pictures = image_dataset(folders.groups(0, 1 - art_share), px, recipe.device)
    loss = pretraining.picture_loss(pretraining.diffae_loss, pictures, config)
    net, steps = train_model(net, loss, config, recipe, init)
    store_model(recipe.out, net, "diffae", {"samples": config.batch * steps})
    return net


def latent(folders: Folders, config: PretrainingConfig, recipe: RecipeConfig) -> DiffAE:
    """Train the latent DDIM of the autoencoder stored at OUT on z of the photos, and store it there."""
    net = load_diffae(recipe.out).to(recipe.device)
    dataset = image_dataset([(folders.photo_paths()[0], 1.0)], net.image_size, recipe.device)
    if net.latent_net is None:
        raise ValueError(f"{recipe.out.name} has no latent DDIM to train")
    z = pretraining.encode_dataset(net, dataset, replace(PHOTO_AUGMENTATIONS, colour=0.0), LATENT_ROUNDS, config.seed)
    loss = pretraining.latent_loss(pretraining.set_statistics(net, z), config)
    own = replace(recipe, out=latent_file(recipe.out))
    net.latent_net, _ = train_model(net.latent_net.train().requires_grad_(True), loss, config, own)
    store_model(recipe.out, net, "diffae", {})
    return net


def latent_file(out: Path) -> Path:
    """Where the training of the latent DDIM of the autoencoder OUT keeps its snapshot (with another ending)."""
    return out.with_name(out.stem + "_latent.safetensors")


def ddpm(folders: Folders, px: int, config: PretrainingConfig, recipe: RecipeConfig, init: Path | None = None) -> UNet:
    """Train the unconditional DDPM on photos."""
    dataset = image_dataset([(folders.photo_paths()[0], 1.0)], px, recipe.device)
    loss = pretraining.picture_loss(pretraining.noise_loss, dataset, config)
    net, steps = train_model(UNet(small_ddpm(px)).to(recipe.device), loss, config, recipe, init)
    store_model(recipe.out, net, "ddpm", {"samples": config.batch * steps})
    return net


def clip_classes(folders: Folders) -> tuple[tuple[str, ...], Callable[[Path], int]]:
    """("photo", one word for each art folder) and the label of a path. ValueError without a folder of art."""
    art = folders.art
    if art is None:
        raise ValueError("the small CLIP learns from photos and art; give it a folder of art")
    names = sorted({p.parent.name for p in find_pictures(art)} - set(folders.exclude))
    classes = ("photo", *(captions.class_word(n) for n in names))

    def label(path: Path) -> int:
        return 1 + names.index(path.parent.name) if path.is_relative_to(art) else 0
    return classes, label


def clip(folders: Folders, px: int, config: PretrainingConfig, recipe: RecipeConfig,
         patch: int | None = None) -> tuple[Clip, dict[str, float]]:
    """Train the small CLIP on photos and art. Returns it and its zero-shot accuracy on held-out pictures. patch: see
    small_config."""
    classes, class_of = clip_classes(folders)
    net = Clip(small_clip.small_config(captions.word_list(classes), px, patch)).to(recipe.device)
    texts = captions.all_captions(classes, WordTokenizer(net.config.words, net.config.context))
    trained, held_out = (folders.groups(part, share) for part, share in ((0, CLIP_PHOTOS), (1, 0.5)))
    facts, fact_of = captions.facts_of([p for paths, _ in trained for p in paths], class_of, len(classes))
    loss = small_clip.clip_loss(image_dataset(trained, px, recipe.device, fact_of), facts, texts, config)
    net, _ = train_model(net, loss, config, recipe)
    found = retrieval.measure(net, held_out, texts, class_of)
    accuracy = found.pop("zero-shot")
    log.info("zero-shot accuracy on held-out pictures: %s", accuracy)
    log.info("retrieval on held-out pictures: %s", found)
    meta = {"zero_shot": accuracy, "retrieval": found}
    store.save(recipe.out, net.net.state_dict(), "clip", asdict(net.config), meta, torch.float16)
    return net, accuracy


def train_model(net: Net, loss: Callable[[Net, int], Tensor], config: PretrainingConfig, recipe: RecipeConfig,
                init: Path | None = None) -> tuple[Net, int]:
    """Train `net` on `loss`, resuming OUT.snapshot, or else from the weights `init`; the averaged net and its steps."""
    if init is not None:
        net.load_state_dict(store.load(init).tensors)
    if recipe.device.type == "cuda":
        ops.channels_last(net)
    run = pretraining.start(net, config)
    settings = {name: value for name, value in asdict(config).items() if name not in ("steps", "compile")}
    settings |= {"training": "diffusion pretraining", "iterations": config.steps}
    hooks = recipe.logged(lambda progress: log_losses(recipe.out.name, progress, progress.losses))
    loop = LoopConfig(config.steps, config.seed, recipe.save_every, recipe.log_every, config.ema_decay, recipe.minutes)
    with Session.open(run, settings, recipe.run.checkpointing, hooks) as session:
        if run.step:
            log.info("%s resumes at step %d", recipe.out.name, run.step)
        train(run, pretraining.stepper(run, loss, config), loop, recipe.device, hooks, session.save)
    average = run.average("net", type(net)) if "net" in run.ema else net
    return average.eval(), run.step


def store_model(out: Path, net: DiffAE | UNet, kind: str, meta: dict) -> None:
    """Write a model's weights in 16 bit with its configuration."""
    store.save(out, net.state_dict(), kind, asdict(net.config), meta, torch.float16)
