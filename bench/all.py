"""Everything that is measured, in one table beside the official programs and the floor, with plots.

    python3 tools/launch.py bench.all [--device cuda] [--out bench] [--minutes 9] [--only calls,memory]
    python3 tools/launch.py bench.all --small --device cpu --out /tmp/bench           tries the command itself out

Writes OUT/results.md, its plots, and OUT/results.json. A part that is done stays: run again on the same device and
versions, it goes on with what is missing (a part that failed or found no time). --only makes parts anew.
"""
from __future__ import annotations

import argparse
import json
import logging
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image

from ..evaluate.evaluator import Evaluator
from ..evaluate.osasis import Models
from ..models.features.dino import DinoConfig
from ..models.features.encoder import EncoderDistance
from ..models.graphs import release
from ..models.mmfs import MMFS, MapperConfig, from_stylegan2, with_mapper
from ..models.osasis import twin_steps
from ..models.precision import UNSCALED
from ..models.stylegan2 import StyleGAN2, StyleGAN2Config
from ..models.unet import UNet
from ..train.content import BLOCK, CODES
from ..train.plots import chart
from . import mmfs, osasis, precision
from .measure import call_flop, counted, forget_peak, looped, peak, seconds_of, timed
from .mmfs import plain_torch
from .official import ARITHMETIC, PEAK_ARITHMETIC, bandwidth, cost
from .osasis import SMALL, Networks, Size, official, prepared

log = logging.getLogger(__name__)
BATCHES = (1, 2, 4, 8, 16, 32)
STEPS = ((100, 50), (50, 50), (50, 20), (20, 20), (20, 10))
SIZES = ("ffhq64", "ffhq128", "ffhq256")
STYLES = 5  # in a row, in the plot
IN_A_ROW = 20  # calls of a mean
SMALL_DINO = DinoConfig(32, 8, 32, 4, 2)
SMALL_FACES = StyleGAN2Config((8,) * 5, w_dim=16, mapping_layers=2)
COLUMNS = ("what", "time", "GiB", "official", "ours / official", "floor", "ours / floor", "of the peak")


@dataclass(frozen=True)
class Row:
    """A figure. seconds, gib: ours; official_..: the official ones. flop, bytes: what it computes and moves at least; 0
    if that was not counted."""
    what: str
    seconds: float | None = None
    gib: float | None = None
    official_seconds: float | None = None
    official_gib: float | None = None
    flop: float = 0.0
    bytes: float = 0.0


@dataclass
class Part:
    """What a part of the measurements found. plots: pictures by the caption that they have."""
    rows: list[Row] = field(default_factory=list)
    plots: dict[str, Image.Image] = field(default_factory=dict)
    text: str = ""


@dataclass
class Bench:
    """What is measured, where and how often. `networks` makes the networks anew, so that memory is a part's own."""
    size: Size
    device: torch.device
    runs: int
    out: Path

    @property
    def small(self) -> bool:
        return self.size is SMALL

    @property
    def batch(self) -> int:
        return self.size.tune.batch

    @cached_property
    def call(self) -> float:
        """FLOP of a UNet call for one picture."""
        return call_flop(self.size.diffae.unet)

    @cached_property
    def batches(self) -> tuple[int, ...]:
        return BATCHES[:2] if self.small else BATCHES

    def networks(self, size: Size | None = None) -> Networks:
        forget_peak(self.device)
        return Networks(size or self.size, self.device)

    def time(self, work: Callable[[], object], warm: int = 2) -> tuple[float, float | None]:
        seconds, gib = timed(work, self.device, self.runs, warm)
        return seconds, gib if self.device.type == "cuda" else None

    def row(self, what: str, key: str, measured: tuple[float | None, float | None], flop: float = 0.0,
            moved: float = 0.0) -> Row:
        known = cost(key, self.size.name, self.batch)
        return Row(what, *measured, known.seconds, known.gib, flop, moved)


# --- the parts --------------------------------------------------------------------------------------------------------
def calls(bench: Bench) -> Part:
    """The two hot calls, with kernels and in plain torch."""
    rows, nets = [], bench.networks()
    for plain in (False, True):
        with plain_torch(plain):
            for count in (1, bench.batch):
                rows += sampling_call(bench, nets, count, ", kernels off" if plain else "")
            what = f"forward and backward, {bench.batch + 1} pictures{', kernels off' if plain else ''}"
            work = osasis.training_call(nets, bench.batch + 1)
            counts = counted(work)
            rows.append(bench.row(what, "training call", bench.time(work), counts.flop, counts.bytes))
            del work
    return Part(rows)


def sampling_call(bench: Bench, nets: Networks, count: int, suffix: str) -> list[Row]:
    """A call without gradient: waited for, and the mean of some in a row."""
    unet = nets.own_unet()
    work = osasis.unet_call(unet, count, bench.device)
    counts, key = counted(work), f"call {count}"  # the first call is no graph's replay
    rows = [bench.row(f"UNet call, {pictures(count)}{suffix}", key, bench.time(work), counts.flop, counts.bytes)]
    mean = looped(work, bench.device, IN_A_ROW)
    return rows + [bench.row(f"the same, mean of {IN_A_ROW} in a row", key, (mean, None), counts.flop, counts.bytes)]


def memory(bench: Bench) -> Part:
    """Peaks of fine-tunes as the node makes them: content made, a style learned."""
    rows = []
    for name, rows_a_forward in (("", 0), (", micro_batch 1", 1)):
        nets = bench.networks()
        config = replace(bench.size.tune, iterations=1, micro_batch=rows_a_forward)
        forget_peak(bench.device)
        seconds = seconds_of(partial(osasis.tuned, nets, config), bench.device)
        gib = peak(bench.device) if bench.device.type == "cuda" else None
        known = cost("fine-tune", bench.size.name, bench.batch)
        rows.append(Row(f"a whole fine-tune of 1 iteration, batch {bench.batch}{name}", seconds, gib,
                        official_gib=known.gib))
        del nets
    return Part(rows)


def tune(bench: Bench) -> Part:
    """An iteration, its content, and what styles cost, one after the other."""
    nets, config, batch = bench.networks(), bench.size.tune, bench.batch
    updates = len(config.indices)
    learning = updates * (batch + 1) * 3 * bench.call
    making = (config.generate_steps + int(config.forward_steps * config.t0)) * bench.call
    ready = bench.time(osasis.iterations(nets, prepared(config)))
    anew = bench.time(osasis.iterations(nets, config))
    make, codes = (bench.time(work) for work in osasis.content(nets))
    groups = -(-config.iterations * batch // CODES)
    first, further = config.iterations * anew[0] + groups * codes[0], config.iterations * ready[0]
    named = f"iteration, {updates} updates, batch {batch}, content"
    rows = [bench.row(f"{named} made anew", "iteration", anew, learning + batch * making),
            bench.row(f"{named} prepared", "iteration", ready, learning),
            bench.row(f"making {BLOCK} content pictures and their codes", "content", make, BLOCK * making),
            bench.row(f"z of {CODES} content pictures", "", codes),
            bench.row(f"a style, {config.iterations} iterations, extrapolated from one: the first of a model", "style",
                      (first, None), config.iterations * (learning + batch * making)),
            bench.row("the same: every further one, its content read from disk", "style", (further, None),
                      config.iterations * learning)]
    curves = {"ours": [(k, (first + (k - 1) * further) / 60) for k in range(1, STYLES + 1)]}
    if rows[-1].official_seconds:
        curves["official"] = [(k, k * rows[-1].official_seconds / 60) for k in range(1, STYLES + 1)]
    return Part(rows, {"styles of one model in a row": chart(curves, "styles", "minutes")})


def stylizing(bench: Bench) -> Part:
    """Photos in a style, at several batches."""
    nets, steps = bench.networks(), bench.size.steps
    calls, decoding = osasis.calls_of(steps), osasis.calls_of((0, steps[1]))
    one = osasis.stylizing(nets, 1)
    measured = {1: bench.time(one.first, 1)}
    again, new = bench.time(one.second, 1), bench.time(one.new_style, 1)
    for count in bench.batches[1:]:
        measured[count] = bench.time(osasis.stylizing(nets, count).first, 1)
    rows = [bench.row(f"stylize {pictures(count)}, {calls} network calls: each", f"stylize {count}",
                      (seconds / count, gib), calls * bench.call)
            for count, (seconds, gib) in measured.items() if count in (1, 8, bench.batches[-1])]
    rows[1:1] = [bench.row("a further style on that photo, which is not encoded again", "stylize 1", again,
                           decoding * bench.call),
                 bench.row("the same, the style's networks made ready", "stylize 1", new, decoding * bench.call)]
    whole = {"ours": [(count, seconds) for count, (seconds, _) in measured.items()],
             "floor": [(count, count * calls * bench.call / ARITHMETIC) for count in measured]}
    known = {count: cost(f"stylize {count}", bench.size.name, bench.batch).seconds for count in measured}
    whole["official"] = [(count, count * seconds) for count, seconds in known.items() if seconds]
    return Part(rows, {"stylizing, against batch": chart({k: v for k, v in whole.items() if v}, "pictures", "s")})


def scaling(bench: Bench) -> Part:
    """Against steps and resolution."""
    nets = bench.networks()
    counts = STEPS[-2:] if bench.small else STEPS
    by_steps = [(osasis.calls_of(steps), bench.time(osasis.stylizing(nets, 1, steps).first, 1)[0]) for steps in counts]
    rows = [bench.row(f"stylize 1 picture, {calls} network calls", "", (seconds, None), calls * bench.call)
            for calls, seconds in by_steps]
    release(nets.fast)
    del nets
    sampled, called = [], []
    for size in sizes(bench):
        nets, px = bench.networks(size), size.diffae.unet.image_size
        flop = call_flop(size.diffae.unet)
        call = bench.time(osasis.unet_call(nets.own_unet(), bench.batch, bench.device))
        one = bench.time(osasis.stylizing(nets, 1).first, 1)
        called.append((px, call[0]))
        sampled.append((px, one[0]))
        rows += [bench.row(f"{px} px: UNet call, {pictures(bench.batch)}", "", call, bench.batch * flop),
                 bench.row(f"{px} px: stylize 1 picture", "", one, osasis.calls_of(bench.size.steps) * flop)]
        del nets
    return Part(rows, {
        "stylizing, against steps": chart({"1 picture": by_steps}, "network calls", "s"),
        "a UNet call, against resolution": chart({pictures(bench.batch): called}, "px", "s"),
        "stylizing, against resolution": chart({"1 picture": sampled}, "px", "s")})


def sizes(bench: Bench) -> list[Size]:
    if not bench.small:
        return [official(name, bench.size.tune) for name in SIZES]
    unet = bench.size.diffae.unet
    return [bench.size, replace(bench.size, diffae=replace(bench.size.diffae, unet=replace(unet, image_size=64)))]


def twin(bench: Bench) -> Part:
    """The photo twin, all candidates at once."""
    nets, count = bench.networks(), bench.size.candidates
    flop = count * twin_steps(50, 0.5) * call_flop(bench.size.ddpm)
    return Part([bench.row(f"photo twin, {count} candidates", "", bench.time(osasis.twins(nets), 1), flop)])


def faces(bench: Bench) -> Part:
    """MMFS: stylizing and one-shot steps."""
    rows, device, px = [], bench.device, 64 if bench.small else 512
    forget_peak(device)
    net = small_mmfs(device) if bench.small else mmfs.network(device, MapperConfig())
    for count in (1, bench.batch):
        for name, work, plain in mmfs.Stylizing(net, count, px, device).cases():
            with plain_torch(plain):
                key = "" if plain else f"mmfs {count} {name.split(', ')[1]}"
                rows.append(bench.row(f"MMFS, stylize {count}, {name}", key, bench.time(work)))
    features = {"VIT_B_32": SMALL.clip, "DinoConfig": lambda: SMALL_DINO} if bench.small else {}
    with patch.multiple(mmfs, **features) if features else nullcontext():
        for number in UNSCALED:
            for plain in (False, True):
                with plain_torch(plain):
                    work = mmfs.training_step(net, bench.batch, px, device, number)
                    rows.append(bench.row(f"MMFS, one-shot step, batch {bench.batch}, {number}, kernels "
                                          f"{'off' if plain else 'on'}", f"mmfs step {number}", bench.time(work)))
                    del work
    return Part(rows)


def small_mmfs(device: torch.device) -> MMFS:
    net = with_mapper(from_stylegan2(StyleGAN2(SMALL_FACES)), MapperConfig(layers=1, hidden=16))
    return net.to(device).eval().requires_grad_(False)


def number_formats(bench: Bench) -> Part:
    """What number formats change, on the demo model."""
    forget_peak(bench.device)
    if not bench.small:
        return Part(text=precision.demo_report(precision.CONFIG, bench.device, bench.out))
    nets = bench.networks()
    models = Models(UNet(bench.size.ddpm), Evaluator(nets.frozen.clip, nets.net, EncoderDistance(nets.net.encoder)))
    config = replace(bench.size.tune, iterations=2, cached_content=bench.batch)
    return Part(text=precision.report(models, nets.pictures(1), config, bench.out))


PARTS: dict[str, Callable[[Bench], Part]] = {
    "calls": calls, "memory": memory, "fine-tune": tune, "stylizing": stylizing, "scaling": scaling,
    "photo twin": twin, "mmfs": faces, "number formats": number_formats}


def pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


# --- the page ---------------------------------------------------------------------------------------------------------
def in_units(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.2f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.3g}" if ours and theirs else "-"


def floor(row: Row, device_name: str) -> float | None:
    """Seconds that the arithmetic or, where it was counted and is longer, the traffic takes at least."""
    return max(row.flop / ARITHMETIC, row.bytes / bandwidth(device_name)) or None


def share_of_peak(row: Row, device_name: str) -> str:
    """What a call that was counted reaches."""
    if not row.bytes or not row.seconds:
        return ""
    flop, moved = row.flop / row.seconds, row.bytes / row.seconds
    return (f"{flop / 1e12:.3g} TFLOP/s, {100 * flop / PEAK_ARITHMETIC:.2g} %; {moved / 1e12:.2g} TB/s, "
            f"{100 * moved / bandwidth(device_name):.2g} %")


def line(row: Row, device_name: str) -> str:
    gib = "-" if row.gib is None else f"{row.gib:.2f}"
    theirs = [in_units(row.official_seconds)] if row.official_seconds else []
    theirs += [f"{row.official_gib:.1f} GiB"] if row.official_gib else []
    ours = ratio(row.seconds, row.official_seconds) if row.official_seconds else ratio(row.gib, row.official_gib)
    least = floor(row, device_name)
    cells = (row.what, in_units(row.seconds), gib, ", ".join(theirs) or "-", ours, in_units(least),
             ratio(row.seconds, least), share_of_peak(row, device_name))
    return f"| {' | '.join(cells)} |"


NOTES = f"""Random weights, except for the number formats. Medians after warm-up, one call at a time unless it says
otherwise. GiB are what PyTorch reserves at its peak (`torch.cuda.max_memory_reserved` after `empty_cache` and
`reset_peak_memory_stats`): all networks that are loaded and the pools of CUDA graphs count, the CUDA context does not.

The official figures and where they come from are in `bench/official.py`. The official MMFS program was not timed: in
the rows of MMFS "official" is the same network in plain PyTorch, as of 2026-11-26.

The floor is the UNet's arithmetic alone at
{ARITHMETIC / 1e12:.0f} TFLOP/s (16 bit, what an H100 reaches in large matrix products), or, for the calls of the first
rows, the memory traffic at the data sheet's bandwidth if that takes longer. Traffic is counted operator by operator
(`bench/measure.py: Counts`): each reads its inputs once, writes its outputs once and finds nothing in a cache; a norm
reads a large map twice. Shares of the peak are of {PEAK_ARITHMETIC / 1e12:.0f} TFLOP/s and of that bandwidth.
"""


def page(where: dict, parts: dict[str, dict], missing: dict[str, str]) -> str:
    """results.md."""
    name = where["device"]
    lines = ["# What it costs", "", ", ".join(f"{key} {value}" for key, value in where.items()), "",
             f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [line(Row(**row), name) for part in parts.values() for row in part["rows"]]
    lines += ["", NOTES, ""]
    lines += [f"![{caption}]({file})" for part in parts.values() for caption, file in part["plots"].items()]
    for title, part in parts.items():
        if part["text"]:
            lines += ["", f"## {title.capitalize()}", "", part["text"]]
    if missing:
        lines += ["", "## Not measured", "", *(f"- {title}: {why}" for title, why in missing.items())]
    return "\n".join(lines) + "\n"


def kept(part: Part, out: Path) -> dict:
    """The part as results.json has it; its plots are written."""
    files = {caption: f"{caption.replace(',', '').replace(' ', '_')}.png" for caption in part.plots}
    for caption, picture in part.plots.items():
        picture.save(out / files[caption])
    return {"rows": [asdict(row) for row in part.rows], "plots": files, "text": part.text}


def environment(size: Size, device: torch.device) -> dict[str, str]:
    """What a measurement depends on."""
    git = shutil.which("git")
    commit = subprocess.run([git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                            cwd=Path(__file__).parent, check=False).stdout.strip() if git else ""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    triton = "with Triton" if find_spec("triton") else "without Triton"
    return {"device": name, "size": f"{size.name} ({size.tune.precision})", "torch": f"{torch.__version__} {triton}",
            "Python": platform.python_version(), "commit": commit or "unknown"}


def stored(file: Path, where: dict) -> dict[str, dict]:
    """The parts that an earlier run on the same device and versions has made."""
    if not file.exists():
        return {}
    found = json.loads(file.read_text())
    return found["parts"] if found["where"] == where else {}


def run(bench: Bench, only: list[str], minutes: float) -> dict[str, str]:
    """Measure what is missing, or `only` those; the page is written after each part. Returns what could not be
    measured, and why."""
    bench.out.mkdir(parents=True, exist_ok=True)
    where, file, began = environment(bench.size, bench.device), bench.out / "results.json", time.monotonic()
    parts, missing = stored(file, where), {}
    for title, measure in PARTS.items():
        if title not in only if only else title in parts:
            continue
        if minutes and time.monotonic() - began > 60 * minutes:
            missing[title] = "no time was left"
            continue
        print(f"{title} ..", flush=True)
        try:
            parts[title] = kept(measure(bench), bench.out)
        except RuntimeError as error:  # out of memory, and what else a device says; the other parts can go on
            log.exception("%s failed", title)
            missing[title] = f"failed: {str(error).splitlines()[0][:200]}"
        parts = {title: parts[title] for title in PARTS if title in parts}
        file.write_text(json.dumps({"where": where, "parts": parts}, indent=1))
        (bench.out / "results.md").write_text(page(where, parts, missing))
    (bench.out / "results.md").write_text(page(where, parts, missing))
    return missing


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--out", type=Path, default=Path(__file__).parent)
    p.add_argument("--minutes", type=float, default=0.0, help="no part is begun after so long (0: no limit)")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--only", default="", help=f"parts, separated by commas: {', '.join(PARTS)}")
    p.add_argument("--small", action="store_true", help="tiny networks")
    options = p.parse_args()
    only = [title.strip() for title in options.only.split(",") if title.strip()]
    if unknown := [title for title in only if title not in PARTS]:
        p.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    size = SMALL if options.small else official("ffhq256")
    missing = run(Bench(size, torch.device(options.device), options.runs, options.out), only, options.minutes)
    print((options.out / "results.md").read_text())
    return 1 if missing else 0
