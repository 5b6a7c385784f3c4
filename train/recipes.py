"""Training the small models from folders of pictures, as the command line does it: build, resume, train, store.

Each recipe writes OUT (the averaged weights, 16 bit) and OUT.snapshot (everything needed to go on), and goes on from
the snapshot if there is one. spec/demo_recipe.md of the project's notes is where the numbers started from; the card in
models/demo says what they became.
"""
from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..models.checkpoints import store
from ..models.clip import Clip, WordTokenizer
from ..models.diffae import DiffAE, DiffAEConfig, LatentConfig
from ..models.loading import load_diffae
from ..models.unet import UNet, UNetConfig
from . import clip as clip_training
from . import prior
from .data import Views, find_pictures, pool_of, split
from .loop import LoopConfig, Progress, Run, restore, snapshot, train
from .prior import PriorConfig

log = logging.getLogger(__name__)
PHOTO_VIEWS = Views(degrees=6, scale=0.1, shift=0.04, colour=0.25)
CLIP_VIEWS = Views(degrees=8, scale=0.12, shift=0.05)
SMALL_WIDTH = 192


@dataclass(frozen=True)
class Folders:
    """Where the pictures lie. art holds a folder for each class. exclude: art classes that no training sees.

    holdout: every so many-th picture of a folder is held out.
    """
    photos: Path
    art: Path | None = None
    exclude: tuple[str, ...] = ()
    holdout: int = 10

    def photo_paths(self) -> tuple[list[Path], list[Path]]:
        return split(find_pictures(self.photos), self.holdout)

    def art_paths(self) -> tuple[list[Path], list[Path]]:
        if self.art is None:
            return [], []
        return split([p for p in find_pictures(self.art) if p.parent.name not in self.exclude], self.holdout)


def small_diffae(px: int = 128, width: int = SMALL_WIDTH) -> DiffAEConfig:
    """The demo autoencoder: base 32, one block a level, v-prediction (which keeps high noise well-conditioned)."""
    mult = (1, 1, 2, 3, 4) if px == 128 else (1, 2, 3, 4)
    unet = UNetConfig(px, 32, mult, blocks=1, embed=width, cond=width, dropout=0.0, prediction="v")
    return DiffAEConfig(unet, (*mult, mult[-1]), LatentConfig(width, 384, 4))


def small_ddpm(px: int = 128) -> UNetConfig:
    """The demo DDPM: as the autoencoder's UNet, narrower at the bottom, without z."""
    mult = (1, 1, 2, 2, 3) if px == 128 else (1, 2, 2, 3)
    return UNetConfig(px, 32, mult, blocks=1, embed=128, cond=0, dropout=0.0, prediction="v")


def diffae(folders: Folders, out: Path, px: int, config: PriorConfig, loop: LoopConfig, device: torch.device,
           init: Path | None = None, art_share: float = 0.25) -> DiffAE:
    """Train the autoencoder (not its latent DPM) on photos and a share of art."""
    net = DiffAE(small_diffae(px)).to(device)
    net.latent_net.requires_grad_(False)
    pool = pool_of([(folders.photo_paths()[0], 1 - art_share), (folders.art_paths()[0], art_share)], px, device)
    loss = prior.picture_loss(prior.diffae_loss, pool, config)
    net, steps = run(net, loss, config, loop, out, device, init)
    store_model(out, net, "diffae", {"samples": config.batch * steps})
    return net


def latent(folders: Folders, out: Path, config: PriorConfig, loop: LoopConfig, device: torch.device) -> DiffAE:
    """Train the latent DPM of the autoencoder stored at OUT on z of the photos, and store it there."""
    net = load_diffae(out).to(device)
    pool = pool_of([(folders.photo_paths()[0], 1.0)], net.image_size, device)
    z = prior.set_statistics(net, prior.encode_pool(net, pool, replace(PHOTO_VIEWS, colour=0.0), 24, config.seed))
    part, _ = run(net.latent_net.train().requires_grad_(True), prior.latent_loss(z, config), config, loop,
                  out.with_name(out.stem + "_latent.safetensors"), device)
    net.latent_net = part
    store_model(out, net, "diffae", {})
    return net


def ddpm(folders: Folders, out: Path, px: int, config: PriorConfig, loop: LoopConfig, device: torch.device,
         init: Path | None = None) -> UNet:
    """Train the unconditional DDPM on photos."""
    pool = pool_of([(folders.photo_paths()[0], 1.0)], px, device)
    net = UNet(small_ddpm(px)).to(device)
    net, steps = run(net, prior.picture_loss(prior.noise_loss, pool, config), config, loop, out, device, init)
    store_model(out, net, "ddpm", {"samples": config.batch * steps})
    return net


def clip_classes(folders: Folders) -> tuple[tuple[str, ...], Callable[[Path], int]]:
    """("photo", one word for each art folder) and the label of a path."""
    names = sorted({p.parent.name for p in find_pictures(folders.art)} - set(folders.exclude))
    classes = ("photo", *(clip_training.class_word(n) for n in names))

    def label(path: Path) -> int:
        return 1 + names.index(path.parent.name) if path.is_relative_to(folders.art) else 0
    return classes, label


def clip(folders: Folders, out: Path, px: int, config: PriorConfig, loop: LoopConfig, device: torch.device):
    """Train the small CLIP on photos and art. Returns it and its zero-shot accuracy on held-out pictures."""
    classes, label = clip_classes(folders)
    net = Clip(clip_training.small_config(clip_training.word_list(classes), px)).to(device)
    captions = clip_training.all_captions(classes, WordTokenizer(net.config.words, net.config.context))
    kept = [(folders.photo_paths()[0], 0.12), (folders.art_paths()[0], 0.88)]
    loss = clip_training.clip_loss(pool_of(kept, px, device, label), captions, config)
    net, _ = run(net, loss, config, loop, out, device)
    held = pool_of([(folders.photo_paths()[1], 0.5), (folders.art_paths()[1], 0.5)], px, device, label)
    accuracy = clip_training.zero_shot_accuracy(net, held, classes)
    log.info("zero-shot accuracy on held-out pictures: %s", accuracy)
    store.save(out, net.net.state_dict(), "clip", asdict(net.config), {"zero_shot": accuracy}, torch.float16)
    return net, accuracy


def run(net: nn.Module, loss: Callable, config: PriorConfig, loop: LoopConfig, out: Path, device: torch.device,
        init: Path | None = None) -> tuple[nn.Module, int]:
    """Train `net` on `loss`, going on from OUT.snapshot, or else from `init`; the averaged net and its steps."""
    if init is not None:
        net.load_state_dict(store.load(init).tensors)
    if device.type == "cuda":
        net.to(memory_format=torch.channels_last)
    state = prior.start(net, config)
    saved = out.with_suffix(".snapshot")
    if saved.exists():
        stored = store.load(saved, "snapshot")
        restore(state, stored.tensors, stored.meta)
        log.info("%s goes on from step %d", out.name, state.step)

    def save(state: Run) -> None:
        tensors, meta = snapshot(state)
        store.save(saved, tensors, "snapshot", asdict(config), meta, dtype=None)

    def tell(progress: Progress) -> None:
        if progress.losses:
            log.info("%s step %d of %d: %s", out.name, progress.step, progress.steps,
                     ", ".join(f"{k} {v:.4f}" for k, v in progress.losses.items()))

    train(state, prior.stepper(state, loss, config), loop, device, save=save, callback=tell)
    save(state)
    return state.averages.get("net", net).eval(), state.step


def store_model(out: Path, net: nn.Module, kind: str, meta: dict) -> None:
    """Write a model's weights in 16 bit with its configuration."""
    store.save(out, net.state_dict(), kind, asdict(net.config), meta, torch.float16)
