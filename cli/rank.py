"""`atelier rank`: pictures ranked by density, as a DiffAE knows them (docs/osasis.md G)."""
from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..evaluate import density
from ..evaluate.density import DISTANCES, RankSettings
from ..evaluate.evaluator import Evaluator
from ..evaluate.public import PublicNetworks
from ..models import loading
from ..models.diffusion import SOLVERS
from ..models.precision import AUTO, PRECISIONS
from .evaluate import public_files
from .options import add_device, check_apart
from .stopping import StopSignals, stopped_with
from .terminal import show


def add_arguments(p: argparse.ArgumentParser) -> None:
    d = RankSettings
    p.add_argument("photos", type=Path, help="folder of aligned photos, and of folders of them")
    p.add_argument("--out", type=Path, required=True, help="gets ranked.csv, low.txt, high.txt, damaged.csv, "
                   "histogram.png, ends.png; a run that was killed goes on from OUT/scores")
    p.add_argument("--k", type=int, default=100, help="pictures of low and of high density (%(default)s)")
    p.add_argument("--sample", type=int, default=0, help="rank so many, drawn at random (0: all; the paper: 20000)")
    p.add_argument("--seed", type=int, default=0, help="of --sample (%(default)s)")
    p.add_argument("--distance", choices=DISTANCES, default=d.distance, help="LPIPS needs --alexnet or --lpips; "
                   "encoder_distance is a substitute made of the DiffAE's own encoder (%(default)s)")
    p.add_argument("--alexnet", type=Path, help="AlexNet for LPIPS: alexnet-owt-7be5be79.pth")
    p.add_argument("--lpips", type=Path, help="VGG-16 for LPIPS: vgg16-397923af.pth")
    p.add_argument("--diffae", type=Path, help="default: the demo model")
    for name, default in (("encode-steps", d.encode_steps), ("decode-steps", d.decode_steps), ("batch", d.batch)):
        p.add_argument(f"--{name}", type=int, default=default, help="(%(default)s)")
    p.add_argument("--t0", type=float, default=d.t0, help="strength: 1 is DiffAE's whole chain (%(default)s)")
    p.add_argument("--solver", choices=SOLVERS, default=d.solver, help="(%(default)s)")
    p.add_argument("--precision", choices=(AUTO, *PRECISIONS), default=AUTO, help="on a GPU (%(default)s)")
    add_device(p)
    p.set_defaults(run=run)


def run(options: argparse.Namespace, signals: StopSignals) -> None:
    if options.batch < 1:
        raise ValueError(f"--batch is {options.batch}; take 1 or more")
    check_apart(options.out, options.photos)
    settings = RankSettings(**{name: getattr(options, name) for name in RankSettings.__dataclass_fields__})
    device = torch.device(options.device)
    net = loading.load_diffae(options.diffae or loading.DEMO / "diffae.safetensors").to(device)
    scorer = density.Scorer(Evaluator(diffae=net, public=lpips_networks(options, device)), settings)
    with stopped_with(f"Whole batches are kept in {options.out / density.KEPT}; run the same command again to go on"):
        ranking = density.rank_folder(scorer, options.photos, options.out, options.k, (options.sample, options.seed),
                                      signals.check)
    high, low = ranking.cuts
    damaged = f"; {len(ranking.damaged)} cannot be read, see damaged.csv" if ranking.damaged else ""
    show(f"{len(ranking.scores)} pictures ranked{damaged}. Distance: {scorer.network}\n"
         f"low density: {ranking.k} pictures with {low:.4f} or more\n"
         f"high density: {ranking.k} pictures with {high:.4f} or less\n"
         f"the rarest: {', '.join(ranking.low[:5])}\nthe commonest: {', '.join(ranking.high[:5])}\n"
         f"all of it in {options.out}")


def lpips_networks(options: argparse.Namespace, device: torch.device) -> PublicNetworks:
    """The networks of LPIPS that the user gave files of."""
    alexnet = loading.load_lpips_alex(options.alexnet).to(device) if options.alexnet else None
    vgg = loading.load_lpips(options.lpips).to(device) if options.lpips else None
    return PublicNetworks(lpips_alex=alexnet, lpips_vgg=vgg, files=public_files(options, "lpips_alex", "lpips_vgg"))
