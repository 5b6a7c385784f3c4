"""`atelier evaluate`: OSASIS and MMFS on the same photos and styles, from the command line."""
from __future__ import annotations

import argparse
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..models import loading
from ..models.perceptual import EncoderDistance, EncoderKeys
from . import evaluate, evaluate_mmfs, evaluate_osasis
from .cli_mmfs import changed
from .data import find_pictures, read_pictures, split, to_unit
from .evaluate import Judge, Tell
from .fewshot import MMFS_PRESETS, FewShotConfig
from .osasis import OsasisConfig
from .session import PRESETS
from .source_faces import Samples

METHODS = ("osasis", "mmfs", "both")
Config = TypeVar("Config", OsasisConfig, FewShotConfig)
Job = Callable[[Path | None, Tell], dict]  # takes the folder for the results and how to tell of them


def add_evaluate(commands) -> None:
    p = commands.add_parser("evaluate", help="fine-tune styles and measure the stylized photos, OSASIS beside MMFS")
    p.add_argument("--method", choices=METHODS, default="both")
    p.add_argument("--photos", type=Path, required=True, help="folder of aligned photos")
    p.add_argument("--styles", type=Path, required=True, help="folder of style pictures, or of folders of them")
    p.add_argument("--only", default="", help="style folders or names to take, separated by commas (default: all)")
    p.add_argument("--holdout", type=int, default=0, help="take only every so many-th picture of a style folder")
    p.add_argument("--limit", type=int, default=0, help="take only the first so many photos")
    p.add_argument("--out", type=Path, help="folder for picture sheets, results.json (OSASIS) and mmfs.json")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--diffae", type=Path, help="default: the demo model, as for all networks that have one")
    p.add_argument("--clip", type=Path)
    p.add_argument("--lpips", type=Path, help="VGG-16 file; without it the DiffAE encoder's features stand in")
    p.add_argument("--dino", type=Path, help="DINO ViT for the structure; without it the DiffAE encoder stands in")
    add_osasis(p.add_argument_group("OSASIS"))
    add_mmfs(p.add_argument_group("MMFS"))
    p.set_defaults(run=run)


def add_osasis(p) -> None:
    p.add_argument("--ddpm", type=Path)
    p.add_argument("--preset", default="demo", help=", ".join(PRESETS))
    p.add_argument("--set", default="iterations=10,batch=2,lr=1e-4", help="settings of the fine-tune on top of the "
                   "preset; the default suits the demo models on a CPU (%(default)s)")
    for name, kind, default in (("candidates", int, 30), ("twin-t0", float, 0.5), ("encode-steps", int, 100),
                                ("decode-steps", int, 50), ("change-point", int, 32)):
        p.add_argument(f"--{name}", type=kind, default=default)


def add_mmfs(p) -> None:
    p.add_argument("--mmfs", type=Path)
    p.add_argument("--mmfs-preset", default="demo", help=", ".join(MMFS_PRESETS))
    p.add_argument("--mmfs-set", default="", help="settings of the fine-tune on top of the preset: field=value,...")
    p.add_argument("--prompts", default="pencil,watercolor,oil,ink", help="separated by commas (%(default)s)")
    p.add_argument("--art", type=Path, help="folder of drawings: measure the distance of random styles to them")
    p.add_argument("--exclude", default="", help="folders of --art to leave out, separated by commas; * stands for "
                   "anything")
    p.add_argument("--random-styles", type=int, default=16, help="random styles a photo (%(default)s)")
    p.add_argument("--faces", type=Path, help="folder of photos to fine-tune on; without it samples of --stylegan2")
    p.add_argument("--stylegan2", type=Path)


def run(options: argparse.Namespace, tell: Tell = print) -> None:
    """Everything is read and checked before the first picture is made."""
    device, tables = torch.device(options.device), {}
    judge, styles = load_judge(options, device), style_paths(options)
    osasis = None if options.method == "mmfs" else osasis_job(options, judge, styles, device)
    mmfs = None if options.method == "osasis" else mmfs_job(options, judge, styles, device)
    if mmfs:
        results = mmfs(options.out, tell)
        tables["MMFS, one-shot"] = results["one_shot_mean"]
        tables |= {"MMFS, zero-shot": results["zero_shot_mean"]} if results["zero_shot"] else {}
    if osasis:
        tables["OSASIS"] = osasis(options.out, tell)["mean"]
    if osasis and mmfs:
        tables["OSASIS beside MMFS"] = evaluate.beside(tables["OSASIS"], tables["MMFS, one-shot"])
    for title, rows in tables.items():
        tell(f"== {title}, mean\n{evaluate.table(rows)}")
    tell(legend(options))


def osasis_job(options: argparse.Namespace, judge: Judge, styles: list[Path], device: torch.device) -> Job:
    config = fine_tune_config(OsasisConfig, PRESETS, options.preset, options.set)
    settings = evaluate_osasis.Settings(config, options.candidates, options.twin_t0, 50, options.encode_steps,
                                        options.decode_steps, options.change_point)
    ddpm = loading.load_ddpm(options.ddpm or loading.DEMO / "ddpm.safetensors").to(device)
    photos = photos_of(options, judge.diffae.image_size, device)
    return partial(evaluate_osasis.evaluate, evaluate_osasis.Models(ddpm, judge), photos, styles, settings)


def mmfs_job(options: argparse.Namespace, judge: Judge, styles: list[Path], device: torch.device) -> Job:
    config = fine_tune_config(FewShotConfig, MMFS_PRESETS, options.mmfs_preset, options.mmfs_set)
    settings = evaluate_mmfs.Settings(config, options.random_styles)
    net = loading.load_mmfs(options.mmfs or loading.DEMO / "mmfs.safetensors")[0].to(device)
    px, keys = net.config.resolution, judge.dino or EncoderKeys(judge.diffae.encoder, judge.diffae.image_size)
    models = evaluate_mmfs.Models(net, keys, faces_of(options, px, device), judge)
    prompts = list(dict.fromkeys(p.strip() for p in options.prompts.split(",") if p.strip()))
    photos, art = photos_of(options, px, device), art_paths(options)
    evaluate_mmfs.check_art(photos, art)
    lessons = evaluate_mmfs.read_lessons(models, photos, styles, prompts, config)
    return partial(evaluate_mmfs.evaluate, models, photos, lessons, art, settings)


def fine_tune_config(kind: type[Config], presets: dict[str, dict], preset: str, changes: str) -> Config:
    """A preset's settings with "field=value,..." on top. ValueError names an unknown preset or field."""
    if preset not in presets:
        raise ValueError(f"there is no preset {preset!r}; take one of {', '.join(presets)}")
    return changed(kind(**presets[preset]), changes)


# --- what is read -----------------------------------------------------------------------------------------------------
def load_judge(options: argparse.Namespace, device: torch.device) -> Judge:
    """The networks that both methods share, each from its file or the demo's."""
    diffae = loading.load_diffae(options.diffae or loading.DEMO / "diffae.safetensors").to(device)
    perceptual = loading.load_lpips(options.lpips).to(device) if options.lpips else EncoderDistance(diffae.encoder)
    dino = loading.load_dino(options.dino).to(device) if options.dino else None
    return Judge(loading.load_clip(options.clip or loading.DEMO / "clip.safetensors").to(device), diffae, perceptual,
                 dino)


def photos_of(options: argparse.Namespace, px: int, device: torch.device) -> Tensor:
    return to_unit(read_pictures(find_pictures(options.photos)[:options.limit or None], px)).to(device)


def faces_of(options: argparse.Namespace, px: int, device: torch.device) -> Tensor | Samples:
    """What MMFS is fine-tuned on."""
    if options.faces:
        return read_pictures(find_pictures(options.faces), px)
    return Samples(loading.load_stylegan2(options.stylegan2 or loading.DEMO / "stylegan2.safetensors")[0].to(device))


def style_paths(options: argparse.Namespace) -> list[Path]:
    """The style pictures: of those wanted, one a folder. ValueError if none is left."""
    styles, wanted = find_pictures(options.styles), set(filter(None, options.only.split(",")))
    styles = [p for p in styles if not wanted or {p.parent.name, p.stem, p.name} & wanted]
    chosen = evaluate.first_of_each(options.styles, split(styles, options.holdout)[1] if options.holdout else styles)
    if not chosen:
        raise ValueError(f"--only and --holdout leave no style of {options.styles}; name folders or pictures in it")
    return chosen


def art_paths(options: argparse.Namespace) -> list[Path]:
    """The drawings of --art without the folders of --exclude. ValueError if none is left."""
    unwanted = list(filter(None, options.exclude.split(",")))
    found = find_pictures(options.art) if options.art else []
    kept = [p for p in found if not any(fnmatch(p.parent.name, pattern) for pattern in unwanted)]
    if found and not kept:
        raise ValueError(f"--exclude {options.exclude} leaves no drawing of {options.art}; name fewer folders")
    return kept


def legend(options: argparse.Namespace) -> str:
    """What the figures are, and which networks they are of."""
    named = {"CLIP": options.clip or "the demo's", "z": options.diffae or "the demo's",
             "structure": options.dino or "the autoencoder's 16 px map (no DINO)",
             "diversity": f"LPIPS-VGG, {options.lpips}" if options.lpips else "the autoencoder's features (no LPIPS)"}
    lines = [f"- {name} ({what})" for name, what in evaluate.LEGEND.items()]
    return "\n".join([*lines, "networks: " + "; ".join(f"{name}: {value}" for name, value in named.items())])
