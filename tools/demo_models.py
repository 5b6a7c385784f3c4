"""Trains every demo model, in order, from a folder of pictures: the driver of `make demo-models`.

    make demo-models DATA=../shared/data                        all of TRAININGS; OUT=runs/demo_models
    make demo-models DATA=... ARGS="--list"                     only the commands, in the order they would begin
    make demo-models DATA=... ARGS="--scale 0.1 --only clip"    a tenth of the steps, of one training

DATA holds faces/ (folders of aligned photos, a labels.csv beside them where there is one) and art/ (a folder a class).
The faces of DRAWN are drawn by our own filters first. Trainings that do not wait for each other run at the same time on
as many GPUs as there are (CUDA_VISIBLE_DEVICES chooses), the one that most work waits for first. A training that is
finished stays; one that was stopped (Ctrl-C, a lent machine taken back) goes on from its snapshot when the command is
given again. One that --minutes cut short counts as finished until it is given other options. Logs lie in OUT.

H100s trained on so many pictures a second: diffae 1,800 at batch 128, and 3,400 on two at 256; ddpm 2,100; stylegan2
2,500, and 4,900 on two; Stage I 2,900, Stage II 1,500, the mapping 3,500; the clip took 4 minutes. At these rates all
of it takes about 2 1/2 hours on one H100. It has not been run whole.
"""
from __future__ import annotations

import argparse
import logging
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..train.art_filters import FILTERS
from .jobs import ROOT, Job, Jobs, arguments_of, gpu_names, planned

log = logging.getLogger(__name__)
DRAWN = "t2i_mit"  # the folder of DATA/faces that art/ holds no drawings of
# Unseen by all but CLIP: a style of flat fields and one of lines alone, an avatar of colours and one of outlines.
HELD_OUT = "npr_popart,npr_engraving,vector_micah,vector_open-peeps"


GAN = "--photos {data}/faces --batch 64"
DRAWINGS = tuple(Job(f"draw-{style}", f"render-art --photos {{data}}/faces/{DRAWN} --out {{out}}/art/{DRAWN} "
                     f"--styles {style}", 0.05, gpus=0) for style in FILTERS)
ART = tuple(job.name for job in DRAWINGS)
TRAININGS = (
    Job("diffae", f"train diffae --photos {{data}}/faces --art {{out}}/art --exclude {HELD_OUT} --lr 5e-4 "
        "--set dropout=0.1 --augment degrees=15,scale=0.2,shift=0.08,colour=0.5 --out {out}/diffae.safetensors",
        0.7, 36_000, ART),
    Job("latent", "train latent --photos {data}/faces --out {out}/diffae.safetensors", 0.1, 12_000, ("diffae",)),
    Job("attributes", "train attributes --photos {data}/faces --source {out}/diffae.safetensors "
        "--out {out}/attributes.safetensors", 0.01, 0, ("latent",)),
    Job("ddpm", "train ddpm --photos {data}/faces --out {out}/ddpm.safetensors", 0.4, 24_000),
    Job("clip", "train clip --photos {data}/faces --art {out}/art --patch 8 --out {out}/clip.safetensors", 0.1, 4_000,
        ART),
    Job("stylegan2", "train stylegan2 --photos {data}/faces --batch 256 --set "
        "r1=1;augment=;ada_target=0.6;ada_kimg=200;flip=yes --out {out}/stylegan2.safetensors", 0.5, 16_000, gpus=2),
    Job("stage1", f"train mmfs-stage1 {GAN} --set ema_ramp=yes --source {{out}}/stylegan2.safetensors "
        "--out {out}/stage1.safetensors",
        0.03, 4_000, ("stylegan2",)),
    Job("stage2", f"train mmfs-stage2 {GAN} --art {{out}}/art --exclude {HELD_OUT} "
        "--weights vector_*=0.3 --source {out}/stage1.safetensors --stylegan2 {out}/stylegan2.safetensors "
        "--diffae {out}/diffae.safetensors --clip {out}/clip.safetensors --set "
        "r1=1;structure_weight=0.25;augment=colour,translation,cutout;flip=yes;ema_ramp=yes "
        "--out {out}/stage2.safetensors",
        0.6, 36_000, ("stage1", "clip", "latent", *ART)),
    Job("mapping", f"train mmfs-mapping {GAN} --lr 5e-4 --set ema_ramp=yes --source {{out}}/stage2.safetensors "
        "--clip {out}/clip.safetensors --no-discriminator --out {out}/mmfs.safetensors", 0.03, 6_000, ("stage2",)),
)
JOBS = DRAWINGS + TRAININGS


def chosen(only: str) -> list[Job]:
    """All jobs, or those named; "draw" stands for all drawings. ValueError for an unknown name."""
    names = {name for word in only.split(",") if word for name in (ART if word == "draw" else (word,))}
    if unknown := sorted(names - {job.name for job in JOBS}):
        raise ValueError(f"there is no training {unknown[0][:40]!r}; there are draw, "
                         f"{', '.join(job.name for job in TRAININGS)}")
    return [job for job in JOBS if not names or job.name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="make demo-models", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="folder with faces/ and art/")
    p.add_argument("--out", type=Path, default=ROOT / "runs" / "demo_models")
    p.add_argument("--only", default="", help="names separated by commas; what they need must be there")
    p.add_argument("--scale", type=float, default=1.0, help="multiplies every training's steps (%(default)s)")
    p.add_argument("--more", default="", help="options added to every training, such as '--minutes 20'")
    p.add_argument("--list", action="store_true", help="only show the commands")
    options = p.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    folders = {"data": options.data.resolve(), "out": options.out.resolve()}
    try:
        jobs = chosen(options.only)
        missing = [name for name in (f"faces/{DRAWN}", "art") if not (options.data / name).is_dir()]
        if missing:
            raise ValueError(f"there is no folder {options.data / missing[0]}: name the folder of pictures with --data")
    except ValueError as error:
        log.error("%s", error)
        return 1
    commands = {job.name: arguments_of(job, folders, options.scale, options.more) for job in jobs}
    if options.list:
        for job in planned(jobs):
            after = dict.fromkeys("draw" if name in ART else name for name in job.after)
            print(f"# {job.name}: {job.hours * (options.scale if job.steps else 1):.2f} h"
                  f"{', after ' + ', '.join(after) if after else ''}")
            print("atelier", shlex.join(commands[job.name]))
        return 0
    shutil.copytree(folders["data"] / "art", folders["out"] / "art" / "shared", dirs_exist_ok=True)
    try:
        return 1 if Jobs(jobs, commands, folders["out"], gpu_names()).run() else 0
    except KeyboardInterrupt:
        log.error("stopped; the same command goes on from what was saved in %s", folders["out"])
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
