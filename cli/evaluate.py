"""`atelier evaluate`: OSASIS and MMFS on the same photos and styles."""
from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..evaluate import intervals, mmfs, osasis
from ..evaluate.evaluator import Evaluator
from ..evaluate.faces import label_groups
from ..evaluate.public import PUBLIC, PublicNetworks
from ..evaluate.registry import METRICS, legend
from ..evaluate.tables import ResultFolder, Rows, beside, check_names, first_of_each, gap_lines, split_groups, table
from ..models import loading
from ..models.checkpoints import store
from ..models.diffusion import SOLVERS
from ..models.faces.networks import load_faces
from ..models.features.clip import Clip
from ..models.features.dino import Dino
from ..models.features.encoder import EncoderDistance, EncoderKeys
from ..models.features.inception import RESIZES
from ..models.features.lpips import LpipsVGG
from ..models.mmfs import clip_fingerprint, clip_warning
from ..train.content_files import DEFAULT_GB, ContentFolder
from ..train.data import find_pictures, read_named, read_pictures, split, to_unit
from ..train.fewshot import FewShotConfig
from ..train.loop import Hooks
from ..train.osasis import OSASISConfig
from ..train.presets import MMFS_PRESETS, OSASIS_PRESETS
from ..train.source_faces import Samples
from .options import add_device, check_apart, from_preset, given, names_in
from .stopping import StopSignals, stopped_with
from .terminal import ProgressBar, show

log = logging.getLogger(__name__)
METHODS = ("osasis", "mmfs", "both")
Net = TypeVar("Net", bound=torch.nn.Module)
Job = Callable[[Path | None, Hooks], dict]  # takes the folder for the results


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--method", choices=METHODS, default="both")
    p.add_argument("--photos", type=Path, required=True, help="folder of aligned photos; with a labels.csv, "
                   "faces are also measured for each group of labels")
    p.add_argument("--styles", type=Path, required=True, help="folder of style pictures, or of folders of them")
    p.add_argument("--only", default="", help="style folders or names to take, separated by commas (default: all)")
    p.add_argument("--holdout", type=int, default=0, help="take only every N-th picture of a style folder (0: all)")
    p.add_argument("--limit", type=int, default=0, help="take only the first N photos (0: all)")
    p.add_argument("--out", type=Path, help="folder for picture sheets, results.json (OSASIS) and mmfs.json; the same "
                   "command goes on behind the styles that are measured. With --pictures, --inception or "
                   "--art-inception, which need every result, it measures all of them anew")
    p.add_argument("--pictures", type=Path, help="folder for every result in a style picture, as a picture: what "
                   "`atelier table` takes as --results")
    p.add_argument("--no-faces", action="store_true", help="leave out what measures faces: the photos show others")
    add_device(p)
    add_networks(p)
    add_public(p.add_argument_group("measures of papers; without its file a measure is left out, and the reason said"))
    add_osasis(p.add_argument_group("OSASIS"))
    add_mmfs(p.add_argument_group("MMFS"))
    p.set_defaults(run=run)


def add_networks(p: argparse.ArgumentParser) -> None:
    p.add_argument("--diffae", type=Path, help="default: the demo model, as for all networks that have one")
    p.add_argument("--clip", type=Path)
    p.add_argument("--lpips", type=Path, help="VGG-16 file; without it the DiffAE encoder's features are used")
    p.add_argument("--dino", type=Path, help="DINO ViT for the structure; without it the DiffAE encoder is used")


def add_public(p: argparse._ArgumentGroup) -> None:
    p.add_argument("--alexnet", type=Path, help="AlexNet for LPIPS, diversity and ArtFID: alexnet-owt-7be5be79.pth")
    p.add_argument("--arcface", type=Path, help="face recognition for ID similarity: model_ir_se50.pth, or "
                   "insightface's backbone.pth")
    p.add_argument("--inception", type=Path, help="Inception for FID and KID: pt_inception-2015-12-05-6726825d.pth")
    p.add_argument("--art-inception", type=Path, help="Inception for ArtFID: art_inception.pth")
    p.add_argument("--fid-resize", choices=RESIZES, default="clean", help="how FID's pictures are resized: as "
                   "clean-fid (clean), pytorch-fid (ptfid), torch-fidelity (tf) or torchmetrics (aa) (%(default)s)")


def add_osasis(p: argparse._ArgumentGroup) -> None:
    p.add_argument("--ddpm", type=Path, help="makes the photo twins: of the styles' domain, which may be another than "
                   "the photos', and of any picture size")
    p.add_argument("--preset", default="demo", help=", ".join(OSASIS_PRESETS))
    p.add_argument("--set", default="iterations=10,batch=2,lr=1e-4", help="settings of the fine-tune on top of the "
                   "preset; the default suits the demo models on a CPU (%(default)s)")
    p.add_argument("--solver", choices=SOLVERS, help="how pictures are encoded, and codes decoded (default: "
                   "the preset's)")
    for name, kind, default in (("candidates", int, 30), ("twin-t0", float, 0.5), ("encode-steps", int, 100),
                                ("decode-steps", int, 50), ("change-point", int, 32)):
        p.add_argument(f"--{name}", type=kind, default=default)
    p.add_argument("--seeds", type=int, default=1, help="learn every style with so many seeds (%(default)s)")
    p.add_argument("--content", type=Path, help="folder that keeps generated content pictures: all styles, and later "
                   "runs with the same DiffAE, seed and settings, take them from there (default: none is kept)")
    p.add_argument("--content-gb", type=float, default=DEFAULT_GB, help="how large --content may become, in GB; what "
                   "was used longest ago leaves first (%(default)s)")


def add_mmfs(p: argparse._ArgumentGroup) -> None:
    p.add_argument("--mmfs", type=Path)
    p.add_argument("--mmfs-preset", default="demo", help=", ".join(MMFS_PRESETS))
    p.add_argument("--text-preset", default="", help="of prompts (default: 'demo text' beside demo, else as pictures)")
    p.add_argument("--mmfs-set", default="", help="settings of the fine-tune on top of the preset: field=value,...")
    p.add_argument("--prompts", default="pencil,watercolor,oil,ink", help="separated by commas (%(default)s)")
    p.add_argument("--art", type=Path, help="folder of drawings: measure the distance of random styles to them")
    p.add_argument("--exclude", default="", help="folders of --art to leave out, separated by commas; * stands for "
                   "anything")
    p.add_argument("--random-styles", type=int, default=16, help="random styles a photo (%(default)s)")
    p.add_argument("--faces", type=Path, help="folder of photos to fine-tune on; without it samples of --stylegan2")
    p.add_argument("--stylegan2", type=Path)


def run(options: argparse.Namespace, signals: StopSignals) -> None:
    """Everything is read and checked before the first picture is made."""
    for out in (options.out, options.pictures):
        check_apart(out, options.photos, options.styles, options.art, options.faces)
    device = torch.device(options.device)
    evaluator, styles = load_evaluator(options, device, not options.no_faces), style_paths(options)
    osasis_job = None if options.method == "mmfs" else osasis_of(options, evaluator, styles, device)
    mmfs_job = None if options.method == "osasis" else mmfs_of(options, evaluator, styles, device)
    with ProgressBar() as bar, stopped_with(what_is_left(options)):
        tables, notes = tables_of(mmfs_job, osasis_job, options.out, Hooks(on_iteration=bar))
    for title, rows in tables.items():
        variants, groups = split_groups(rows)
        show(f"== {title}, mean\n{table(variants)}")
        if groups:
            show("\n".join([f"== {title}, by the labels of the photos", table(groups), *gap_lines(rows)]))
    names = {name for rows in tables.values() for values in rows.values() for name in values}
    show(legend(name for name in METRICS if name in names))
    for line in notes:
        show(line)
    show("networks: " + "; ".join(f"{name}: {file}" for name, file in networks_of(options).items()))


def what_is_left(options: argparse.Namespace) -> str | None:
    """Of an evaluation that is stopped, a sentence; None for nothing."""
    places = [str(place) for place in (options.out, options.pictures) if place]
    if not places:
        return None
    anew = options.pictures or options.inception or options.art_inception
    return f"What is measured of whole styles is in {' and '.join(places)}; the same command " + (
        "measures all of them anew" if anew else "goes on behind them")


def tables_of(mmfs_job: Job | None, osasis_job: Job | None, out: Path | None,
              hooks: Hooks) -> tuple[dict[str, Rows], list[str]]:
    """Do the jobs; the mean tables by their titles, and lines on how the measures of papers were made."""
    tables: dict[str, Rows] = {}
    notes: list[str] = []
    if mmfs_job:
        results = mmfs_job(out, hooks)
        tables["MMFS, random styles"] = results["random"]
        tables["MMFS, one-shot"] = results["one_shot_mean"]
        tables |= {"MMFS, zero-shot": results["zero_shot_mean"]} if results["zero_shot"] else {}
        sets = results.get("one_shot_sets")
        tables |= {"MMFS, all results of one-shot styles to all style pictures": sets} if sets else {}
        notes += [f"MMFS: {line}" for line in results["public"]]
    if osasis_job:
        results = osasis_job(out, hooks)
        show(f"OSASIS, reconstruction (PSNR dB, SSIM): {json.dumps(results['reconstruction'])}")
        show(f"OSASIS, twins: {json.dumps(results['twins'])}")
        tables["OSASIS"] = results["mean"]
        sets = results["sets"]
        tables |= {"OSASIS, all results to all style pictures": sets} if sets else {}
        notes += [f"OSASIS: {line}" for line in (*intervals.lines(results["gains"], osasis.OURS), *results["public"])]
    if osasis_job and mmfs_job:
        tables["OSASIS beside MMFS"] = beside(tables["OSASIS"], tables["MMFS, one-shot"])
    return tables, notes


def osasis_of(options: argparse.Namespace, evaluator: Evaluator, styles: list[Path], device: torch.device) -> Job:
    config = replace(from_preset(OSASISConfig, OSASIS_PRESETS, options.preset, options.set), **given(options, "solver"))
    paths, photos = read_photos(options, evaluator.autoencoder().image_size, device)
    settings = osasis.Settings(config, options.candidates, options.twin_t0, encode_steps=options.encode_steps,
                               decode_steps=options.decode_steps, change_point=options.change_point,
                               content=options.content and ContentFolder.of(options.content, options.content_gb),
                               groups=label_groups(paths), seeds=options.seeds, parts=folder_parts(paths))
    ddpm = loading.load_ddpm(options.ddpm or loading.DEMO / "ddpm.safetensors").to(device)
    return partial(osasis.evaluate, osasis.Models(ddpm, evaluator), photos, styles, settings,
                   folder=result_folder(options, paths, "OSASIS"))


def mmfs_of(options: argparse.Namespace, evaluator: Evaluator, styles: list[Path], device: torch.device) -> Job:
    config = from_preset(FewShotConfig, MMFS_PRESETS, options.mmfs_preset, options.mmfs_set)
    path = options.mmfs or loading.DEMO / "mmfs.safetensors"
    net = loading.load_mmfs(path)[0].to(device)
    if warning := clip_warning(loading.mapper_clip(path), clip_fingerprint(evaluator.clip_network())):
        log.warning("%s: %s", path.name, warning)
    px = net.config.resolution
    diffae = evaluator.autoencoder()
    structure_net = evaluator.structure_net or EncoderKeys(diffae.encoder, diffae.image_size)
    models = mmfs.Models(net, structure_net, read_faces(options, px, device), evaluator)
    paths, photos = read_photos(options, px, device)
    text_preset = options.text_preset or ("demo text" if options.mmfs_preset == "demo" else options.mmfs_preset)
    text_config = from_preset(FewShotConfig, MMFS_PRESETS, text_preset, options.mmfs_set)
    settings = mmfs.Settings(config, options.random_styles, groups=label_groups(paths), text_config=text_config)
    art = art_paths(options)
    mmfs.check_art(photos, art)
    tasks = mmfs.read_tasks(models, photos, styles, names_in(options.prompts), config)
    return partial(mmfs.evaluate, models, photos, tasks, art, settings, folder=result_folder(options, paths, "MMFS"))


# --- what is read -----------------------------------------------------------------------------------------------------
def load_evaluator(options: argparse.Namespace, device: torch.device, faces: bool = True) -> Evaluator:
    """The networks that both methods share, each from its file or the demo's. faces: are they measured?"""
    diffae = loading.load_diffae(options.diffae or loading.DEMO / "diffae.safetensors").to(device)
    clip = loading.load_clip(options.clip or loading.DEMO / "clip.safetensors").to(device)
    perceptual = loading.load_lpips(options.lpips).to(device) if options.lpips else EncoderDistance(diffae.encoder)
    dino = loading.load_dino(options.dino).to(device) if options.dino else None
    public = load_public(options, device, clip, perceptual, dino)
    return Evaluator(clip, diffae, perceptual, dino, load_faces().to(device) if faces else None, public=public)


def load_public(options: argparse.Namespace, device: torch.device, clip: Clip, perceptual: LpipsVGG | EncoderDistance,
                dino: Dino | None) -> PublicNetworks:
    """The networks of the measures of papers that the user gave files of."""
    files = public_files(options, *PUBLIC)

    def loaded(load: Callable[[Path], Net], path: Path | None) -> Net | None:
        return load(path).to(device) if path else None
    return PublicNetworks(
        loaded(loading.load_lpips_alex, options.alexnet), perceptual if isinstance(perceptual, LpipsVGG) else None,
        loaded(loading.load_arcface, options.arcface), dino, clip if options.clip else None,
        loaded(loading.load_inception, options.inception), loaded(loading.load_art_inception, options.art_inception),
        files, options.fid_resize)


def public_files(options: argparse.Namespace, *names: str) -> dict[str, str]:
    """{name in PUBLIC: the file that the user gave, as reports name it} of these names."""
    paths = {name: getattr(options, PUBLIC[name].option[2:].replace("-", "_")) for name in names}
    return {name: f"{path.name}, sha256 {store.sha256(path)[:8]}" for name, path in paths.items() if path}


def networks_of(options: argparse.Namespace) -> dict[str, object]:
    """Which file each of the evaluator's networks is of."""
    return {"clip": options.clip or "the demo's", "diffae": options.diffae or "the demo's",
            "perceptual": f"LPIPS-VGG, {options.lpips}" if options.lpips else "the autoencoder's features (no LPIPS)",
            "structure_net": options.dino or "the autoencoder's 16 px map (no DINO)",
            "faces": "none" if options.no_faces else "MediaPipe's detector and mesh"}


def read_photos(options: argparse.Namespace, px: int, device: torch.device) -> tuple[list[Path], Tensor]:
    """The photos that can be read: their files, and (B, 3, px, px) in [-1, 1]."""
    found = read_named(find_pictures(options.photos)[:options.limit or None], px)
    return [path for path, _ in found], to_unit(torch.stack([picture for _, picture in found])).to(device)


def result_folder(options: argparse.Namespace, photos: list[Path], method: str) -> ResultFolder | None:
    """Where the results go as pictures, if the user wants them. ValueError for two photos of one name."""
    if options.pictures is None:
        return None
    return ResultFolder.of(options.pictures, photos, options.photos, options.styles, method)


def folder_parts(paths: list[Path]) -> dict[str, list[int]]:
    """Which photos lie in which folder, if they lie in several."""
    parts: dict[str, list[int]] = {}
    for k, path in enumerate(paths):
        parts.setdefault(path.parent.name, []).append(k)
    return parts if len(parts) > 1 else {}


def read_faces(options: argparse.Namespace, px: int, device: torch.device) -> Tensor | Samples:
    """What MMFS is fine-tuned on."""
    if options.faces:
        return read_pictures(find_pictures(options.faces), px)
    return Samples(loading.load_stylegan2(options.stylegan2 or loading.DEMO / "stylegan2.safetensors")[0].to(device))


def style_paths(options: argparse.Namespace) -> list[Path]:
    """The style pictures: of those wanted, one a folder. ValueError if none is left, and for two of one name."""
    styles, wanted = find_pictures(options.styles), set(names_in(options.only))
    styles = [p for p in styles if not wanted or {p.parent.name, p.stem, p.name} & wanted]
    chosen = first_of_each(options.styles, split(styles, options.holdout)[1] if options.holdout else styles)
    if not chosen:
        raise ValueError(f"--only and --holdout leave no style of {options.styles}; name folders or pictures in it")
    check_names(chosen)
    return chosen


def art_paths(options: argparse.Namespace) -> list[Path]:
    """The drawings of --art without the folders of --exclude. ValueError if none is left."""
    found = find_pictures(options.art) if options.art else []
    kept = [p for p in found if not any(fnmatch(p.parent.name, pattern) for pattern in names_in(options.exclude))]
    if found and not kept:
        raise ValueError(f"--exclude {options.exclude} leaves no drawing of {options.art}; name fewer folders")
    return kept
