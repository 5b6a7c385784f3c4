"""The fast preset and its parts beside the official settings: seconds a style, seconds a picture, and the measures.

    python3 tools/launch.py bench.fast --photos inputs --styles art --only npr_pencil,npr_popart --holdout 10 --out fast
    python3 tools/launch.py bench.fast --size ffhq256        seconds alone, at an official size, on random weights
    python3 tools/launch.py bench.fast --accuracy --photos inputs --limit 4         errors of the solvers alone

The options are those of `atelier evaluate`. Every case of CASES is a fine-tune of each style, sampled in several ways
(mixed codes, SPN); its numbers are means over the styles. They are kept in OUT/CASE.json, and pictures in OUT/CASE.png
(for each style: style | photos, then photo twin | results, a row a way). Run again, it goes on with what is missing.
"""
from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from ..cli import evaluate as command
from ..cli.options import changed
from ..evaluate.evaluator import Comparison, Evaluator, PictureFeatures
from ..evaluate.osasis import SHOWN, Models, Settings, best_twin, codes_for
from ..evaluate.registry import CONTENT_PRESERVATION, STYLE_SIMILARITY, means, metric
from ..evaluate.tables import Rows, file_name, mean_rows
from ..models import loading
from ..models.accelerated import accelerated
from ..models.diffae import CONFIGS, DiffAE
from ..models.diffusion import SOLVERS
from ..models.features.clip import Clip, ClipConfig
from ..models.features.encoder import EncoderDistance
from ..models.osasis import SamplingSettings, stylize
from ..models.precision import autocast
from ..models.style import OSASISStyle
from ..train.data import read_picture, to_unit
from ..train.osasis import OSASISConfig, tune_style
from ..train.plots import grid
from ..train.presets import OSASIS_PRESETS

VIT_B_32 = ClipConfig(512, 224, 32, 768, 12, 77, 49408, 512, 12)
SECONDS = ("s a style", "s a picture")
CALLS = (5, 6, 8, 10, 25)
Way = tuple[str, int, int]  # solver, steps of encoding, steps of decoding (of the whole schedule)
OFFICIAL: Way = ("ddim", 100, 50)
DDIM_20: Way = ("ddim", 20, 20)
FEW: tuple[Way, ...] = (("dpmpp_2m", 20, 20), ("dpmpp_2m", 20, 12), ("dpmpp_2m", 12, 12))
FAST = OSASIS_PRESETS["fast"]


@dataclass(frozen=True)
class Case:
    """A fine-tune, as fields of OSASISConfig, and the ways in which its styles are sampled."""
    fields: dict
    ways: tuple[Way, ...]


CASES: dict[str, Case] = {
    "fast": Case(FAST, (*FEW, OFFICIAL)),
    "demo, 100 steps of batch 2": Case(OSASIS_PRESETS["demo"] | {"iterations": 10, "batch": 2, "lr": 1e-4},
                                       (OFFICIAL, DDIM_20, *FEW)),
    "official, 64 content pictures": Case({"cached_content": 64}, (OFFICIAL, DDIM_20, *FEW)),
    "fast, SPN at the official rate": Case(FAST | {"lr_spn": 1e-4}, FEW),
    "fast, half the batch": Case(FAST | {"batch": 4}, FEW),
}


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def sampler(diffae: DiffAE, style: OSASISStyle, way: Way, settings: Settings) -> Callable[[Tensor], Tensor]:
    """From photos (B, 3, px, px) in [-1, 1] to the stylized ones; the style's networks are loaded here."""
    solver, encode_steps, decode_steps = way
    sampling = replace(SamplingSettings.of(style.settings), solver=solver)
    device, precision = next(diffae.parameters()).device, settings.config.precision
    unet, spn = (net if net is None else accelerated(net.to(device), device, precision) for net in style.networks())
    frozen, z_style = accelerated(diffae, device, precision), style.semantic_code().to(device)

    @torch.no_grad()
    def sample(photos: Tensor) -> Tensor:
        with autocast(device, precision):
            z = frozen.encode(photos)
            code = frozen.structural_code(photos, z, encode_steps, sampling.t0, solver=solver)
            codes = codes_for("mix", diffae, z, z_style.float(), settings.change_point)
            return stylize(unet, code.float(), codes, steps=decode_steps, settings=sampling, spn=spn,
                           picture=photos).float()
    return sample


def median_seconds(sample: Callable[[Tensor], Tensor], photo: Tensor) -> float:
    """Of one picture, after two warm-ups: the second makes graphs."""
    return median([timed(partial(sample, photo), photo.device) for _ in range(5)][2:])


def in_words(way: Way) -> str:
    return f"{way[0]} {way[1]} / {way[2]}"


def run_style(models: Models, photos: Tensor, style_image: Tensor, settings: Settings,
              ways: tuple[Way, ...]) -> tuple[Rows, list[Tensor]]:
    """Numbers for every way to sample one style, and the rows of its picture sheet."""
    twin, _ = best_twin(models, style_image, settings)
    styles: list[OSASISStyle] = []
    seconds = timed(lambda: styles.append(tune_style(models.frozen(), twin, style_image, settings.config)[0]),
                    photos.device)
    seen, shown = (PictureFeatures(models.evaluator, pictures) for pictures in (photos, style_image))
    start = models.evaluator.embed(twin)
    rows: Rows = {}
    pictures = [torch.cat([style_image, photos[:SHOWN]])]
    for way in ways:
        sample = sampler(models.diffae, styles[0], way, settings)
        results = sample(photos)
        rows[in_words(way)] = dict(zip(SECONDS, (seconds, median_seconds(sample, photos[:1])))) | means(
            Comparison(seen, PictureFeatures(models.evaluator, results), shown, start),
            (*STYLE_SIMILARITY, *CONTENT_PRESERVATION))
        pictures.append(torch.cat([twin, results[:SHOWN].clamp(-1, 1)]))
    return rows, pictures


def run_case(models: Models, photos: Tensor, styles: list[Path], settings: Settings, ways: tuple[Way, ...],
             out: Path) -> Rows:
    """Means over the styles; the picture sheet goes to `out`."""
    found: dict[str, Rows] = {}
    sheet: list[Tensor] = []
    for path in styles:
        style_image = to_unit(read_picture(path, models.diffae.image_size))[None].to(photos.device)
        found[str(path)], pictures = run_style(models, photos, style_image, settings, ways)
        sheet += pictures
    grid(sheet).save(out)
    return mean_rows(found)


def table(cases: dict[str, Rows]) -> str:
    """A row for each case and way."""
    columns = [*SECONDS, *STYLE_SIMILARITY, *CONTENT_PRESERVATION]
    titles = [column if column in SECONDS else metric(column).title for column in columns]
    lines = [f"| fine-tune | solver, steps | {' | '.join(titles)} |", "|---" * (len(columns) + 2) + "|"]
    for case, rows in cases.items():
        lines += [f"| {case} | {way} | {' | '.join(f'{values[column]:.3f}' for column in columns)} |"
                  for way, values in rows.items()]
    return "\n".join(lines)


@torch.no_grad()
def accuracy(net: DiffAE, photos: Tensor) -> str:
    """A table of root mean squared errors: of the structural code and of decoding it, against dpmpp_2m in 100 calls,
    and of both together against the photos (docs/osasis.md A.10)."""
    z = net.encode(photos)

    def decoded(code: Tensor, steps: int, solver: str) -> Tensor:
        return stylize(net.unet, code, z, steps=steps, settings=SamplingSettings(noise_level="matched", solver=solver))

    def error(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().mean().sqrt())
    code = net.structural_code(photos, z, 200, solver="dpmpp_2m")
    picture = decoded(code, 200, "dpmpp_2m")
    lines = ["| network calls | solver | code | decoding | round trip |", "|---|---|---|---|---|"]
    for calls in CALLS:
        for solver in SOLVERS:
            own = net.structural_code(photos, z, 2 * calls, solver=solver)
            errors = (error(own, code), error(decoded(code, 2 * calls, solver), picture),
                      error(decoded(own, 2 * calls, solver), photos))
            lines.append(f"| {calls} | {solver} | {' | '.join(f'{e:.3f}' for e in errors)} |")
    return "\n".join(lines)


def seconds_at(size: str, device: torch.device) -> str:
    """A table of the fast preset's seconds at an official size, on random weights, after a short fine-tune."""
    diffae = DiffAE(CONFIGS[size]).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    clip = Clip(VIT_B_32).to(device).eval().requires_grad_(False)
    nets = Models(diffae.unet, Evaluator(clip, diffae, EncoderDistance(diffae.encoder))).frozen()
    px, config = diffae.image_size, OSASISConfig(**FAST)
    twin, style_image, photo = (torch.rand(1, 3, px, px, device=device) * 2 - 1 for _ in range(3))
    style, _ = tune_style(nets, twin, style_image, replace(config, iterations=1, cached_content=config.batch))
    seconds = timed(lambda: tune_style(nets, twin, style_image, config), device)
    lines = ["| what | s |", "|---|---|", f"| a style, fast | {seconds:.1f} |"]
    for way in (OFFICIAL, *FEW):
        sample = sampler(diffae, style, way, Settings(config))
        lines.append(f"| a picture, {in_words(way)} | {median_seconds(sample, photo):.3f} |")
    return "\n".join(lines)


def compare(options: argparse.Namespace, evaluator: Evaluator, photos: Tensor) -> str:
    """Run the cases that are missing in options.out; the table of all."""
    ddpm = loading.load_ddpm(options.ddpm or loading.DEMO / "ddpm.safetensors").to(photos.device)
    models, styles, found = Models(ddpm, evaluator), command.style_paths(options), {}
    options.out.mkdir(parents=True, exist_ok=True)
    for name in [case.strip() for case in options.cases.split(";") if case.strip()] or CASES:
        kept = options.out / f"{file_name(name)}.json"
        if not kept.exists():
            config = changed(OSASISConfig(**CASES[name].fields), options.set)
            settings = Settings(config, options.candidates, options.twin_t0)
            rows = run_case(models, photos, styles, settings, CASES[name].ways, kept.with_suffix(".png"))
            kept.write_text(json.dumps(rows, indent=1))
        found[name] = json.loads(kept.read_text())
        print(table({name: found[name]}), flush=True)
    return "\n" + table(found)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_arguments(p)
    for action in p._actions:
        action.required = False
    p.set_defaults(candidates=8, twin_t0=0.4, set="")
    p.add_argument("--cases", default="", help="cases to run, separated by ; (default: all)")
    p.add_argument("--accuracy", action="store_true", help="errors of the solvers alone")
    p.add_argument("--size", choices=CONFIGS, help="seconds alone, at this size")
    options = p.parse_args()
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}\n", flush=True)
    if options.size:
        print(seconds_at(options.size, device))
        return 0
    if not options.photos or not options.accuracy and not (options.styles and options.out):
        p.error("give --photos, and without --accuracy also --styles and --out")
    evaluator = command.load_evaluator(options, device)
    photos = command.read_photos(options, evaluator.autoencoder().image_size, device)
    print(accuracy(evaluator.autoencoder(), photos) if options.accuracy else compare(options, evaluator, photos))
    return 0
