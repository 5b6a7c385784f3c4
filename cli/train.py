"""`atelier train`: the models of OSASIS and of MMFS, from folders of pictures, and OSASIS styles from words."""
from __future__ import annotations

import argparse
import logging
import signal
from dataclasses import replace
from pathlib import Path

import torch

from ..models.checkpoints import store
from ..models.loading import DEMO
from ..models.precision import UNSCALED
from ..train import kept
from ..train.attributes import AttributeConfig
from ..train.diffusion_pretraining import PretrainingConfig
from ..train.loop import Hooks, StoppedTogether
from ..train.recipes import attributes, diffusion
from ..train.recipes.config import Folders, RecipeConfig
from . import train_mmfs, train_osasis
from .options import add_device, changed, check_apart, given, names_in, weights_in
from .processes import processes
from .stopping import Stopped, StopSignals
from .terminal import ProgressBar

log = logging.getLogger(__name__)
TRAINED = {  # what it makes, and the settings that made the demo models
    "diffae": PretrainingConfig(steps=30_000, batch=128, lr=6e-4, weight_decay=1e-3, beta2=0.99, ema_decay=0.9995,
                                decay_from=0.6, warmup=500, ema_ramp=True),
    "latent": PretrainingConfig(steps=20_000, batch=512, lr=1e-3, weight_decay=1e-2, ema_decay=0.999, decay_from=0.5,
                               ema_ramp=True),
    "ddpm": PretrainingConfig(steps=20_000, batch=128, lr=6e-4, weight_decay=1e-3, beta2=0.99, ema_decay=0.9995,
                              decay_from=0.6, warmup=500, ema_ramp=True),
    "clip": PretrainingConfig(steps=4_000, batch=384, lr=1e-3, weight_decay=0.1, beta2=0.98, ema_decay=0.999,
                              decay_from=0.3, warmup=200, ema_ramp=True),
}
ATTRIBUTES = "attributes"
SAVE_EVERY = 1000
ALONE = (ATTRIBUTES, train_osasis.OSASIS)  # trained by one process, and to the end
LABELLED = ("latent", "ddpm")  # see PretrainingConfig.augmentation_labels


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("model", choices=[*TRAINED, ATTRIBUTES, *train_mmfs.STAGES, train_osasis.OSASIS])
    p.add_argument("--photos", type=Path, required=True, help="folder of photos of one domain, such as aligned faces")
    p.add_argument("--art", type=Path, help="folder with a folder of drawings for each class")
    p.add_argument("--exclude", default="", help="art classes that stay unseen, separated by commas")
    p.add_argument("--weights", default="", help="how often art classes come beside the others: vector_*=0.25,... "
                   "(default: all as often)")
    p.add_argument("--holdout", type=int, default=10, help="every N-th picture is held out (0: none)")
    p.add_argument("--out", type=Path, required=True, help="safetensors file to write; the snapshot lies beside it")
    p.add_argument("--init", type=Path, help="weights of an earlier run to begin with (diffae, ddpm)")
    p.add_argument("--augment", default="", help="how far the pictures of diffae, latent, ddpm and clip are changed: "
                   "degrees=12,scale=0.2,shift=0.1,colour=0.5,flip=yes (default: each model's own)")
    p.add_argument("--size", type=int, default=128, choices=(64, 128))
    p.add_argument("--patch", type=int, help="side of the small CLIP's patches (clip; default: an eighth of --size)")
    for name, kind in (("steps", int), ("batch", int), ("lr", float), ("seed", int)):
        p.add_argument(f"--{name}", type=kind)
    p.add_argument("--minutes", type=float, default=0.0, help="stop and save after so long (not osasis, attributes); "
                   "run again to resume")
    p.add_argument("--save-every", type=int, help=f"steps between snapshots ({SAVE_EVERY}; osasis: "
                   f"{train_osasis.SAVE_EVERY})")
    p.add_argument("--log-every", type=int, default=200, help="steps between log lines (%(default)s)")
    p.add_argument("--keep", type=int, default=1, help="snapshots to keep: the newest, and earlier ones spread over "
                   "the training, so that fewer --steps can be asked for later (%(default)s)")
    p.add_argument("--no-resume", action="store_true", help="start again though there is a snapshot")
    add_device(p)
    p.add_argument("--precision", choices=UNSCALED, default="bfloat16" if torch.cuda.is_available() else "float32")
    p.add_argument("--compile", action="store_true", help="torch.compile the loss (a GPU and a compiler are needed)")
    p.add_argument("--preview-every", type=int, default=1000,
                   help="steps between sample grids and measurements (0: none)")
    p.add_argument("--accelerate", action="store_true", help="share the work by Accelerate (not clip, osasis, "
                   "attributes): torchrun "
                   "--nproc_per_node N PATH/TO/oneshot-atelier/cli train ... --accelerate (on CPUs with --device cpu); "
                   "--minutes is then checked every --log-every steps")
    train_mmfs.add_arguments(p)
    train_osasis.add_arguments(p)
    p.set_defaults(run=run)


def run(options: argparse.Namespace, signals: StopSignals) -> None:
    folders = Folders(options.photos, options.art, names_in(options.exclude), options.holdout,
                      weights_in(options.weights))
    others = dict.fromkeys(train_mmfs.STAGES, train_mmfs.train) | {
        ATTRIBUTES: train_attributes, train_osasis.OSASIS: train_osasis.train}
    train = others.get(options.model, train_diffusion)
    if options.model in ALONE:
        check_alone(options)
    elif options.preview_every:
        check_apart(options.out.with_name(f"{options.out.stem}_log"), options.photos, options.art)
    save_every = options.save_every
    if save_every is None:
        save_every = train_osasis.SAVE_EVERY if options.model == train_osasis.OSASIS else SAVE_EVERY
    try:
        # every step has the same shapes
        with (ProgressBar() as bar, processes(options) as (distributed, device),
              torch.backends.cudnn.flags(enabled=True, benchmark=True)):
            recipe = RecipeConfig(options.out, device, distributed, save_every, options.log_every,
                                  options.preview_every, options.minutes, not options.no_resume, options.keep,
                                  Hooks(on_iteration=bar, check_interrupt=signals.check))
            train(options, folders, recipe)
    except Stopped as stopped:
        stopped.saved = saved_state(snapshot_of(options.model, options.out))
        raise
    except StoppedTogether as together:
        stopped = Stopped(signal.SIGTERM)
        stopped.saved = saved_state(snapshot_of(options.model, options.out))
        raise stopped from together


def check_alone(options: argparse.Namespace) -> None:
    """ValueError for options that these trainings cannot keep to. The classifier is done in about a minute."""
    if options.accelerate:
        raise ValueError(f"train {options.model} is for one process: leave --accelerate out")
    if options.minutes and options.model == ATTRIBUTES:
        log.warning("train attributes has no time limit: --minutes is not used")
    elif options.minutes:
        raise ValueError(f"train {options.model} has no time limit: leave --minutes out, and stop it with Ctrl-C, "
                         "which saves it; or ask for fewer --steps")


def train_diffusion(options: argparse.Namespace, folders: Folders, recipe: RecipeConfig) -> None:
    augmentations = diffusion.CLIP_AUGMENTATIONS if options.model == "clip" else diffusion.PHOTO_AUGMENTATIONS
    config = replace(TRAINED[options.model], precision=options.precision, compile=options.compile,
                     augmentations=changed(augmentations, options.augment),
                     augmentation_labels=options.model in LABELLED, **given(options, "steps", "batch", "lr", "seed"))
    config = changed(config, options.set)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.model == "latent":
        diffusion.latent(folders, config, recipe)
    elif options.model == "clip":
        diffusion.clip(folders, options.size, config, recipe, options.patch)
    else:
        {"diffae": diffusion.diffae, "ddpm": diffusion.ddpm}[options.model](folders, options.size, config, recipe,
                                                                            options.init)


def train_attributes(options: argparse.Namespace, folders: Folders, recipe: RecipeConfig) -> None:
    """The classifier of the DiffAE --source, by default the demo's."""
    attributes.attributes(options.source or DEMO / "diffae.safetensors", folders,
                          AttributeConfig(**given(options, "steps", "lr", "seed")), recipe)


def snapshot_of(model: str, out: Path) -> Path:
    """The file that a training of `model` to the file `out` is saved in."""
    out = diffusion.latent_file(out) if model == "latent" else out
    return out.with_suffix(".snapshot")


def saved_state(snapshot: Path) -> str:
    """What a stopped training has saved, a sentence."""
    found = [path for path in (snapshot, *kept.earlier(snapshot).values()) if path.exists()]
    if not found:
        return "Nothing was saved"
    newest = max(found, key=lambda path: path.stat().st_mtime_ns)
    step = (store.peek(newest).meta or {}).get("step")
    return f"Step {step} is saved in {newest}; run the same command again to resume"
