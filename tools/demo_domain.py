"""A prior of another domain, trained and tried: houses in landscapes that `tools.scenes` renders. `make demo-domain`.

    make demo-domain                                  everything, into runs/demo_domain; about 10 minutes of one H100
    make demo-domain ARGS="--list"                    only the commands, in the order they would begin
    make demo-domain ARGS="--portraits FOLDER"        portraits of your own in place of the pack's four

Scenes are rendered, some of them drawn by our filters; a DDPM and a DiffAE learn the scenes, beginning with the demo
models of faces; then styles are learned and measured, inside the domain and across domains (docs/osasis.md G.1): a
style image of one domain, its twin made by the DDPM of that domain, photos and prior of the other. Beside each stands
the same with the DDPM of the photos' domain. What is finished stays, and what was stopped goes on when the command is
given again, as in tools/jobs.py. OUT/numbers.json and OUT/numbers.md hold all figures, OUT/sheet.png
all trials.
"""
from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..evaluate.metrics import edge_agreement
from ..evaluate.tables import name_of
from ..models.loading import DEMO
from ..models.whole_files import whole_file, write_whole
from ..train.data import read_picture, to_unit
from . import scenes
from .jobs import ROOT, Job, Jobs, arguments_of, gpu_names, planned
from .sheet import contact_sheet, stacked

log = logging.getLogger(__name__)
PX = 128
FOLDERS = {"scenes": (4000, 0), "drawn": (320, 1), "unseen": (28, 2)}  # how many, and of which seed
STYLES = ("oil", "watercolor", "pencil", "colorpencil", "cel", "pointillism", "lowpoly", "charcoal", "ukiyo", "popart",
          "engraving")
TRIED = "npr_oil,npr_watercolor,npr_lowpoly,npr_ukiyo,npr_popart,npr_engraving"
FEW = "npr_oil,npr_watercolor,npr_popart"
STILL = "--augment degrees=0,scale=0.05,shift=0.02,colour=0,flip=yes"  # scenes are rendered in all colours and places
SCENE_PRIOR, SCENE_DDPM = "--diffae {out}/diffae.safetensors", "--ddpm {out}/ddpm.safetensors"
SCENE_STYLES = "--styles {out}/art --holdout 10"
SCENES, FACES = "--photos {out}/unseen --no-faces", "--photos {out}/portraits"
MODELS = ("latent", "ddpm")
DRAWINGS = tuple(Job(f"draw-{style}", f"render-art --photos {{out}}/drawn --out {{out}}/art --styles {style}", 0.02,
                     gpus=0) for style in STYLES)
TRAININGS = (
    Job("ddpm", f"train ddpm --photos {{out}}/scenes --init {{demo}}/ddpm.safetensors {STILL} --set decay_from=0.5 "
        "--out {out}/ddpm.safetensors", 0.05, 3_200),
    Job("diffae", "train diffae --photos {out}/scenes --art {out}/art --exclude npr_popart,npr_engraving --lr 5e-4 "
        f"--init {{demo}}/diffae.safetensors {STILL} --set decay_from=0.5 --out {{out}}/diffae.safetensors", 0.05,
        2_000, tuple(job.name for job in DRAWINGS)),
    Job("latent", f"train latent --photos {{out}}/scenes {STILL} --out {{out}}/diffae.safetensors", 0.02, 3_000,
        ("diffae",)),
)
TRIALS = {  # name: what it is, its options
    "scenes": ("scenes, prior and references of scenes", f"{SCENES} {SCENE_PRIOR} {SCENE_DDPM} {SCENE_STYLES} "
               f"--only {TRIED}"),
    "scenes-by-faces": ("scenes and references of scenes, but the prior of faces",
                        f"{SCENES} {SCENE_DDPM} {SCENE_STYLES} --only {FEW}"),
    "faces-scene": ("faces, their prior, references of scenes with the DDPM of scenes",
                    f"{FACES} {SCENE_DDPM} {SCENE_STYLES} --only {FEW}"),
    "faces-scene-unmatched": ("the same with the DDPM of faces", f"{FACES} {SCENE_STYLES} --only {FEW}"),
    "scenes-face": ("scenes, their prior, references of faces with the DDPM of faces",
                    f"{SCENES} {SCENE_PRIOR} --styles {{out}}/portrait_art"),
    "scenes-face-unmatched": ("the same with the DDPM of scenes",
                              f"{SCENES} {SCENE_PRIOR} {SCENE_DDPM} --styles {{out}}/portrait_art"),
}
JOBS = (
    *DRAWINGS, *TRAININGS,
    Job("draw-portraits", "render-art --photos {out}/portraits --out {out}/portrait_art --styles "
        + FEW.replace("npr_", ""), 0.01, gpus=0),
    Job("samples", "report {out}/diffae.safetensors --photos {out}/unseen --out {out}/report", 0.01, after=("latent",)),
    *(Job(f"try-{name}", f"evaluate --method osasis {options} --out {{out}}/trials/{name}", 0.02,
          after=(*MODELS, "draw-portraits"), reads=(DEMO,)) for name, (_, options) in TRIALS.items()),
)


def prepare(out: Path, portraits: Path | None, scale: float) -> None:
    """Render the scenes and copy the portraits: of a folder, or those that the pack ships."""
    for name, (count, seed) in FOLDERS.items():
        made = scenes.render_folder(out / name, max(12, round(count * min(1.0, scale))), seed,
                                    processes=os.cpu_count() or 1)
        log.info("%d scenes rendered under %s", made, out / name)
    if portraits is not None:
        shutil.copytree(portraits, out / "portraits", dirs_exist_ok=True)
        return
    (out / "portraits").mkdir(exist_ok=True)
    for path in sorted((ROOT / "workflows" / "inputs").glob("face_*.png")):
        shutil.copy(path, out / "portraits")


def command_of(job: Job, folders: dict[str, Path], scale: float, more: dict[str, str]) -> list[str]:
    """The job's `atelier` arguments. more: what is added to those of trainings ("train") and trials ("try")."""
    words = arguments_of(job, folders, scale, more["train"])
    return words + shlex.split(more["try"]) if job.name.startswith("try-") else words


# --- the figures ------------------------------------------------------------------------------------------------------
SHOWN = ("clip_direction", "colour_distance", "texture_distance", "edge_agreement", "structure_distance")


def figures(out: Path) -> dict[str, dict]:
    """{trial: what it is, its twins, its reconstruction and its mean rows} of the trials that are finished."""
    found = {}
    for name, (what, _) in TRIALS.items():
        path = out / "trials" / name / "results.json"
        if path.exists():
            results = json.loads(path.read_text(encoding="utf-8"))
            for style, twin in results["twins"].items():
                twin |= to_photo(out, path.parent / "twins" / f"{style}.png")
            found[name] = {"what": what} | {key: results[key] for key in ("twins", "reconstruction", "mean", "styles")}
    return found


def counterpart(out: Path, style: str) -> tuple[Path, Path]:
    """The drawing that a trial calls `style`, and the photo that it was drawn from."""
    for drawings, photos in (("art", "drawn"), ("portrait_art", "portraits")):
        for path in (out / drawings).glob("*/*.jpg"):
            if name_of(path) == style:
                return path, next((out / photos).rglob(f"{path.stem}.*"))
    raise FileNotFoundError(f"there is no drawing {style} under {out}")


def to_photo(out: Path, twin: Path) -> dict[str, float]:
    """How far the style image and its twin are from the photo that the style image was drawn from: mean absolute
    differences of pictures in [-1, 1], and how well the edges agree."""
    drawing, photo = counterpart(out, twin.stem)
    style, made, true = (to_unit(read_picture(path, PX))[None] for path in (drawing, twin, photo))
    return {"style_to_photo": float((style - true).abs().mean()), "twin_to_photo": float((made - true).abs().mean()),
            "style_edges": float(edge_agreement(style, true)), "twin_edges": float(edge_agreement(made, true))}


def table(found: dict[str, dict]) -> str:
    """The figures as Markdown."""
    lines = ["| trial | row | " + " | ".join(name.replace("_", " ") for name in SHOWN) + " |",
             "|---" * (2 + len(SHOWN)) + "|"]
    for name, trial in found.items():
        lines += [f"| {name} | {row} | " + " | ".join(f"{values[key]:.3f}" if key in values else "" for key in SHOWN)
                  + " |" for row, values in trial["mean"].items()]
    lines += ["", "| trial | style | twin to style | style to its photo | twin to that photo | edges: style, photo | "
              "edges: twin, photo |", "|---|---|---|---|---|---|---|"]
    columns = ("difference", "style_to_photo", "twin_to_photo", "style_edges", "twin_edges")
    for name, trial in found.items():
        lines += [f"| {name} | {style} | " + " | ".join(f"{twin[column]:.3f}" for column in columns) + " |"
                  for style, twin in trial["twins"].items()]
    lines += ["", "| trial | reconstruction (PSNR dB, SSIM) |", "|---|---|"]
    lines += [f"| {name} | {json.dumps(trial['reconstruction'])} |" for name, trial in found.items()]
    return "\n".join(lines) + "\n"


def shown(grid: Path) -> list[Image.Image]:
    """Of a trial's picture sheet: style image, twin, and of two photos: itself, stylized, stylized without the SPN."""
    sheet = Image.open(grid)

    def cell(column: int, row: int) -> Image.Image:
        return sheet.crop((column * PX, row * PX, (column + 1) * PX, (row + 1) * PX))
    return [cell(0, 0), cell(0, 1), *(cell(column, row) for column in (1, 2) for row in (0, 1, 2))]


def write_sheet(out: Path) -> None:
    """All finished trials as OUT/sheet.png, a row for each style."""
    columns = ("style", "twin", *("photo", "stylized", "no SPN") * 2)
    sheets = {what: contact_sheet(columns, [shown(path) for path in grids], PX)
              for name, (what, _) in TRIALS.items() if (grids := sorted((out / "trials" / name).glob("*.png")))}
    if sheets:
        with whole_file(out / "sheet.png") as file:
            stacked(sheets).save(file, "PNG")


def write_figures(out: Path) -> None:
    found = figures(out)
    write_sheet(out)
    for name, text in (("numbers.json", json.dumps(found, indent=1)), ("numbers.md", table(found))):
        write_whole(out / name, text)


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="make demo-domain", description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, default=ROOT / "runs" / "demo_domain")
    p.add_argument("--portraits", type=Path, help="folder of aligned portraits (default: four that the pack ships)")
    p.add_argument("--scale", type=float, default=1.0, help="multiplies every training's steps, and below 1 the number "
                   "of scenes (%(default)s)")
    p.add_argument("--together", type=int, default=1, help="so many commands at once on each GPU (%(default)s)")
    p.add_argument("--more", default="", help="options added to every training")
    p.add_argument("--more-trials", default="", help="options added to every trial")
    p.add_argument("--list", action="store_true", help="only show the commands")
    options = p.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    folders = {"out": options.out.resolve(), "demo": DEMO}
    more = {"train": options.more, "try": options.more_trials}
    commands = {job.name: command_of(job, folders, options.scale, more) for job in JOBS}
    if options.list:
        print("\n".join(f"atelier {shlex.join(commands[job.name])}" for job in planned(JOBS)))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        prepare(folders["out"], options.portraits, options.scale)
        failed = Jobs(JOBS, commands, folders["out"], gpu_names() * options.together).run()
    except KeyboardInterrupt:
        log.error("stopped; the same command goes on from what was saved in %s", folders["out"])
        return 130
    finally:
        write_figures(folders["out"])
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
