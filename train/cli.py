"""The `atelier` command: convert checkpoints, train the small models, report on a prior, evaluate stylization."""
from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import torch

from .cli_evaluate import add_evaluate
from .cli_mmfs import STAGES, add_stages, train_stage
from .loop import LoopConfig
from .prior import PriorConfig


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. Errors of input are one line on stderr and status 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        logging.getLogger(__name__).error("atelier %s: %s", options.command, error)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("atelier", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    add_convert(commands)
    add_train(commands)
    add_report(commands)
    add_evaluate(commands)
    return top


def add_convert(commands) -> None:
    p = commands.add_parser("convert", help="turn an official checkpoint into a slim 16-bit safetensors file")
    p.add_argument("file", type=Path)
    p.add_argument("--out", type=Path, help="default: beside FILE, with .safetensors")
    p.add_argument("--overwrite", action="store_true")
    p.set_defaults(run=convert)


def convert(options) -> None:
    from ..models.checkpoints import convert
    print(convert(options.file, options.out, overwrite=options.overwrite))


TRAINED = {  # what it makes, and the settings that made the demo models
    "diffae": PriorConfig(steps=30_000, batch=128, lr=6e-4, weight_decay=1e-3, beta2=0.99, average=0.9995,
                          decay_from=0.6, warmup=500),
    "latent": PriorConfig(steps=20_000, batch=512, lr=1e-3, weight_decay=1e-2, average=0.999, decay_from=0.5),
    "ddpm": PriorConfig(steps=20_000, batch=128, lr=6e-4, weight_decay=1e-3, beta2=0.99, average=0.9995,
                        decay_from=0.6, warmup=500),
    "clip": PriorConfig(steps=4_000, batch=384, lr=1e-3, weight_decay=0.1, beta2=0.98, average=0.999, decay_from=0.3,
                        warmup=200),
}


def add_train(commands) -> None:
    p = commands.add_parser("train", help="train a small model from folders of pictures")
    p.add_argument("model", choices=[*TRAINED, *STAGES])
    p.add_argument("--photos", type=Path, required=True, help="folder of aligned face photos")
    p.add_argument("--art", type=Path, help="folder with a folder of drawings for each class")
    p.add_argument("--exclude", default="", help="art classes that stay unseen, separated by commas")
    p.add_argument("--holdout", type=int, default=10, help="every so many-th picture is held out (0: none)")
    p.add_argument("--out", type=Path, required=True, help="safetensors file to write; the snapshot lies beside it")
    p.add_argument("--init", type=Path, help="weights of an earlier run to begin with (diffae, ddpm)")
    p.add_argument("--size", type=int, default=128, choices=(64, 128))
    for name, kind in (("steps", int), ("batch", int), ("lr", float), ("seed", int)):
        p.add_argument(f"--{name}", type=kind)
    p.add_argument("--minutes", type=float, default=0.0, help="stop and save after so long; run again to go on")
    p.add_argument("--save-every", type=int, default=1000)
    p.add_argument("--log-every", type=int, default=200)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--precision", choices=("float32", "bfloat16", "float16"),
                   default="bfloat16" if torch.cuda.is_available() else "float32")
    p.add_argument("--compile", action="store_true", help="torch.compile the loss (a GPU and a compiler are needed)")
    add_stages(p)
    p.set_defaults(run=train)


def train(options) -> None:
    if options.model in STAGES:
        train_stage(options)
        return
    from . import recipes
    given = {k: v for k in ("steps", "batch", "lr", "seed") if (v := getattr(options, k)) is not None}
    views = recipes.CLIP_VIEWS if options.model == "clip" else recipes.PHOTO_VIEWS
    config = PriorConfig(**vars(TRAINED[options.model]) | given | {
        "precision": options.precision, "compile": options.compile, "views": views})
    loop = LoopConfig(config.steps, config.seed, options.save_every, options.log_every, config.average, options.minutes)
    unseen = tuple(filter(None, options.exclude.split(",")))
    folders = recipes.Folders(options.photos, options.art, unseen, options.holdout)
    device = torch.device(options.device)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.model == "latent":
        recipes.latent(folders, options.out, config, loop, device)
    elif options.model == "clip":
        recipes.clip(folders, options.out, options.size, config, loop, device)
    else:
        getattr(recipes, options.model)(folders, options.out, options.size, config, loop, device, options.init)


def add_report(commands) -> None:
    p = commands.add_parser("report", help="measure an autoencoder: reconstruction, what z holds, samples")
    p.add_argument("file", type=Path)
    p.add_argument("--photos", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True, help="folder for the picture grids")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.set_defaults(run=report)


def report(options) -> None:
    from ..models.loading import load_diffae
    from . import report as reporting
    from .data import find_pictures, read_pictures, to_unit
    device = torch.device(options.device)
    net = load_diffae(options.file).to(device)
    x = to_unit(read_pictures(find_pictures(options.photos), net.image_size)).to(device)
    print(json.dumps(reporting.write(net, x, options.out, options.file.stem), indent=1))


if __name__ == "__main__":
    raise SystemExit(main())
