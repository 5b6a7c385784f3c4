"""The fast preset and its parts beside the official settings: seconds a style, seconds a picture, and the measures.

    python3 tools/launch.py bench.fast --photos inputs --styles art --only npr_pencil,npr_popart --holdout 10 --out fast
    python3 tools/launch.py bench.fast --size ffhq256        seconds alone, at an official size, on random weights
    python3 tools/launch.py bench.fast --accuracy --photos inputs --limit 4         errors of the solvers alone

The options are those of `atelier evaluate`. Every case of CASES is a fine-tune of each style, sampled in several ways.
Its numbers are kept in OUT/CASE.json and its pictures in OUT/CASE.png (rows: style | photos, twin | results of each
style's first way, and so on): run again, it goes on with the cases that are missing.
"""
from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from ..cli import evaluate as command
from ..cli.options import changed
from ..evaluate.evaluator import Comparison, Evaluator, PictureFeatures
from ..evaluate.osasis import SHOWN, Models, Settings, Variant, best_twin, stylize_all
from ..evaluate.registry import CONTENT_PRESERVATION, STYLE_SIMILARITY, means, metric
from ..evaluate.tables import file_name
from ..models import loading
from ..models.diffae import CONFIGS, DiffAE
from ..models.diffusion import SOLVERS
from ..models.features.clip import Clip, ClipConfig
from ..models.features.encoder import EncoderDistance
from ..models.osasis import SamplingSettings, stylize
from ..models.style import OSASISStyle
from ..train.content import prepare_content
from ..train.data import read_picture, to_unit
from ..train.osasis import OSASISConfig, tune_style
from ..train.plots import grid
from ..train.presets import OSASIS_PRESETS

log = logging.getLogger(__name__)
VIT_B_32 = ClipConfig(512, 224, 32, 768, 12, 77, 49408, 512, 12)
Way = tuple[str, int, int]  # solver, steps of encoding, steps of decoding (of the whole schedule)
OFFICIAL: Way = ("ddim", 100, 50)
CALLS = (5, 6, 8, 10, 25)
FEW: tuple[Way, ...] = (("dpmpp_2m", 20, 20), ("dpmpp_2m", 12, 12))


@dataclass(frozen=True)
class Case:
    """A fine-tune, and the ways in which its style is sampled."""
    changes: dict
    ways: tuple[Way, ...] = FEW


FAST = OSASIS_PRESETS["fast"]
CASES: dict[str, Case] = {
    "official, 64 content pictures": Case({"cached_content": 64}, (OFFICIAL, ("ddim", 20, 20), *FEW)),
    "fast": Case(FAST, (OFFICIAL, *FEW)),
    "fast, twice the steps": Case(FAST | {"iterations": 2 * FAST["iterations"], "lr": FAST["lr"] / 2}),
    "fast, official noise level and indices": Case(FAST | {"noise_level": "official", "reverse_steps": 20,
                                                            "iterations": FAST["iterations"] * 6 // 10}),
    "fast, half the batch": Case(FAST | {"batch": 4}),
    "fast, decoder alone": Case(FAST | {"trained": "decoder"}),
    "fast, modulation alone": Case(FAST | {"trained": "modulation", "lr": FAST["lr"] * 10}),
}


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def result_of(models: Models, photos: Tensor, style: OSASISStyle, way: Way, settings: Settings) -> Tensor:
    """The photos in the style, from picture to picture."""
    solver, encode_steps, decode_steps = way
    config = replace(settings.config, solver=solver, forward_steps=encode_steps)
    style = replace(style, settings={**style.settings, "solver": solver})
    content = prepare_content(models.diffae, photos, config)
    return stylize_all(models, style, content, Variant(), replace(settings, config=config, decode_steps=decode_steps))


def measured(models: Models, photos: Tensor, style_image: Tensor, settings: Settings,
             ways: tuple[Way, ...]) -> Iterator[tuple[str, dict[str, float], Tensor]]:
    """(way, numbers, picture row) of a fine-tune to one style image, for every way to sample it."""
    device, (twin, _) = photos.device, best_twin(models, style_image, settings)
    styles: list[OSASISStyle] = []
    seconds = timed(lambda: styles.append(tune_style(models.frozen(), twin, style_image, settings.config)[0]), device)
    seen, shown = (PictureFeatures(models.evaluator, pictures) for pictures in (photos, style_image))
    start = models.evaluator.embed(twin)
    for way in ways:
        results = result_of(models, photos, styles[0], way, settings)
        one = partial(result_of, models, photos[:1], styles[0], way, settings)
        picture = [timed(one, device) for _ in range(4)]
        figures = means(Comparison(seen, PictureFeatures(models.evaluator, results), shown, start),
                        (*STYLE_SIMILARITY, *CONTENT_PRESERVATION))
        name = f"{way[0]} {way[1]} / {way[2]}"
        yield name, {"s a style": seconds, "s a picture": median(picture[1:])} | figures, \
            torch.cat([twin, results[:SHOWN].clamp(-1, 1)])


def run_case(models: Models, photos: Tensor, styles: list[Path], settings: Settings, ways: tuple[Way, ...],
             out: Path) -> dict[str, dict[str, float]]:
    """Means over the styles, a row for each way; the pictures go to `out`."""
    found: dict[str, list[dict[str, float]]] = {}
    pictures = []
    for path in styles:
        style_image = to_unit(read_picture(path, models.diffae.image_size))[None].to(photos.device)
        pictures.append(torch.cat([style_image, photos[:SHOWN]]))
        for name, figures, row in measured(models, photos, style_image, settings, ways):
            found.setdefault(name, []).append(figures)
            pictures.append(row)
    grid(pictures).save(out)
    return {name: {k: sum(r[k] for r in rows) / len(rows) for k in rows[0]} for name, rows in found.items()}


def table(cases: dict[str, dict[str, dict[str, float]]]) -> str:
    columns = list(next(iter(next(iter(cases.values())).values())))
    titles = [c if c.startswith("s a ") else metric(c).title for c in columns]
    lines = [f"| fine-tune | sampling | {' | '.join(titles)} |", "|---" * (len(columns) + 2) + "|"]
    for case, rows in cases.items():
        lines += [f"| {case} | {way} | {' | '.join(f'{values[c]:.3f}' for c in columns)} |"
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
    """A table of the fast preset's seconds at an official size, on random weights, after one short fine-tune."""
    def still(net):
        return net.to(device).eval().requires_grad_(False)
    diffae, clip = still(DiffAE(CONFIGS[size])), still(Clip(VIT_B_32))
    models = Models(diffae.unet, Evaluator(clip, diffae, EncoderDistance(diffae.encoder)))
    px, config = diffae.image_size, OSASISConfig(**FAST)
    twin, style_image, photo = (torch.rand(1, 3, px, px, device=device) * 2 - 1 for _ in range(3))
    short = replace(config, iterations=1, cached_content=config.batch)
    style, _ = tune_style(models.frozen(), twin, style_image, short)
    lines = ["| what | s |", "|---|---|"]
    tune = partial(tune_style, models.frozen(), twin, style_image, config)
    lines.append(f"| a style, fast | {timed(tune, device):.1f} |")
    for way in (OFFICIAL, *FEW):
        one = partial(result_of, models, photo, style, way, Settings(config))
        picture = [timed(one, device) for _ in range(6)]
        lines.append(f"| a picture, {way[0]} {way[1]} / {way[2]} | {median(picture[1:]):.3f} |")
    return "\n".join(lines)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_arguments(p)
    p.set_defaults(candidates=8, twin_t0=0.4, set="")
    for action in p._actions:
        action.required = False
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
    evaluator = command.load_evaluator(options, device)
    if options.accuracy:
        print(accuracy(evaluator.diffae, command.read_photos(options, evaluator.diffae.image_size, device)))
        return 0
    models = Models(loading.load_ddpm(loading.DEMO / "ddpm.safetensors").to(device), evaluator)
    photos, styles = command.read_photos(options, evaluator.diffae.image_size, device), command.style_paths(options)
    options.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in [c.strip() for c in options.cases.split(";") if c.strip()] or CASES:
        kept = options.out / f"{file_name(name)}.json"
        if not kept.exists():
            config = changed(OSASISConfig(**CASES[name].changes), options.set)
            settings = Settings(config, options.candidates, options.twin_t0)
            found[name] = run_case(models, photos, styles, settings, CASES[name].ways, kept.with_suffix(".png"))
            kept.write_text(json.dumps(found[name], indent=1))
        found[name] = json.loads(kept.read_text())
        print(table({name: found[name]}), flush=True)
    print("\n" + table(found))
    return 0
