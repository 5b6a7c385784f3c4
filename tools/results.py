"""Measures both methods on every class of styles and writes docs/results.md: the driver of `make results`.

    make results DATA=../shared/data                  everything, into OUT=runs/results; minutes on GPUs, days on a CPU
    make results DATA=... ARGS="--list"               only the commands
    make results DATA=... ARGS="--write"              only the page, from what is there

DATA holds inputs/ and inputs_rare/ (aligned portraits that no model was trained on) and art/ (a folder a class, of
which one held-out picture is taken). Each of several GPUs measures its share of the styles. What is finished stays:
when it was stopped, the same command goes on (tools/jobs.py, `atelier evaluate --out`).

The page names every claim of both papers that these measures can see, with yes, no or unclear and the number. A claim
is a difference between two ways on the same styles and photos; it is yes or no where the 95 % interval of a bootstrap
over styles (and over photos, for the structure network's) leaves out 0.
"""
from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..evaluate import edits as E
from ..evaluate import intervals
from ..evaluate import mmfs as M
from ..evaluate import osasis as O
from ..evaluate.registry import METRICS, metric
from ..evaluate.tables import LABEL, Rows, file_name, first_of_each, split_groups, table
from ..models.features.clip import Clip
from ..models.loading import DEMO, load_clip
from ..models.whole_files import write_whole
from ..train.data import find_pictures, split
from .jobs import ROOT, Job, Jobs, arguments_of, gpu_names, planned
from .sheet import contact_sheet as labelled_sheet
from .sheet import stacked

log = logging.getLogger(__name__)
PAGE = ROOT / "docs" / "results.md"
HOLDOUT = 10  # as in training
PROMPTS = "pencil,watercolor,oil,ink,pop art,charcoal,cartoon,low-poly"
TEXTS = "smiling,surprised,old,child,beard,glasses,sunglasses,hat"
ATTRIBUTES = ("glasses,sunglasses,hat,black hair,brown hair,blond hair,red hair,gray hair,blue hair,green hair,"
              "pink hair,long hair,smiling,surprised,beard,child,old,head turned")  # all of the demo's classifier
PARTS = ("inputs", "inputs_rare")
COLUMNS, CELL, GAP = (0, 1, 2, 4, 6), 80, 8  # of a sheet, in a contact sheet; pixels
EDITED, STEPS = (1, 3), ("not edited", "strength 1", "strength 2")  # photos and rows (from 1 on) of a sheet of edits
BLOCK = 9  # edits side by side
Results = dict[str, Any]


# --- the commands -----------------------------------------------------------------------------------------------------
def jobs_of(styles: Sequence[str], shares: int) -> list[Job]:
    """The commands; with several GPUs one of each method for a share of the styles first, whose results the command for
    all of them then finds."""
    jobs = []
    photos, clip = "--photos {out}/photos", load_clip(DEMO / "clip.safetensors")
    for method, options in (("osasis", "--seeds 3"), ("mmfs", f"--prompts {shlex.quote(PROMPTS)}")):
        command = (f"evaluate --method {method} {photos} --styles {{data}}/art --holdout {HOLDOUT} {options} "
                   f"--out {{out}}/{method}")
        parts = [styles[k::shares] for k in range(shares)] if shares > 1 else []
        for k, part in enumerate(filter(None, parts)):
            jobs.append(Job(f"{method}-{k}", f"{command} --only {shlex.quote(','.join(part))}", 0.1, reads=(DEMO,)))
        before = tuple(job.name for job in jobs if job.name.startswith(f"{method}-"))
        jobs.append(Job(method, command, 0.2, after=before, reads=(DEMO,)))
    jobs.append(Job("edits", f"edits {photos} --limit 0 --attributes {shlex.quote(ATTRIBUTES)} --texts "
                    f"{known(clip, TEXTS)} --out {{out}}/edits", 0.3, reads=(DEMO,)))
    jobs.append(Job("rank", "rank {out}/photos --k 20 --distance encoder_distance --out {out}/rank", 0.01,
                    reads=(DEMO,)))
    return jobs


def known(clip: Clip, texts: str) -> str:
    """The texts, checked before hours of work. ValueError for one that the demo's CLIP has no word for."""
    for text in texts.split(","):
        clip.check_prompt(text)
    return shlex.quote(texts)


def classes_of(art: Path) -> list[str]:
    """The folders that a style is taken of."""
    return [path.parent.name for path in first_of_each(art, split(find_pictures(art), HOLDOUT)[1])]


# --- claims -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Claim:
    """`better` is better than `worse` in a metric. source: where the paper says so. method: of whose rows."""
    source: str
    text: str
    method: str
    better: str
    worse: str
    metric: str


SPN_OFF, SPN_NONE = "mixed codes, SPN left out", "mixed codes, trained without SPN"
CLAIMS = (
    *(Claim("OSASIS, Figures 8, 9", f"the SPN keeps structure ({what})", "osasis", O.OURS, other, figure)
      for other, what in ((SPN_OFF, "against leaving it out"), (SPN_NONE, "against training without it"))
      for figure in O.STRUCTURE),
    *(Claim("OSASIS, Figures 8, 9", text, "osasis", O.OURS, other, figure) for text, other, figure in (
        ("mixed codes keep more structure than the style's code alone", "style code alone, SPN", "structure_distance"),
        ("mixed codes keep more edges than the style's code alone", "style code alone, SPN", "edge_agreement"),
        ("mixed codes take more of the style than the photo's code alone",
         "content code alone, SPN", "clip_similarity"),
        ("mixed codes take more of its colours than the photo's code alone", "content code alone, SPN",
         "colour_distance"),
        ("coarse levels need the photo's code: swapped codes lose structure", "codes swapped, SPN",
         "structure_distance"))),
    *(Claim("OSASIS, Table 1", f"OSASIS changes the picture towards the style ({metric(figure).title})", "osasis",
            O.OURS, "photos", figure) for figure in ("clip_similarity", "colour_distance", "texture_distance")),
    *(Claim("MMFS, Figure 7", text, "mmfs", M.AFTER, other, figure) for text, other, figure in (
        ("fine-tuning brings the result nearer to the style image", M.BEFORE, "clip_similarity"),
        ("fine-tuning takes its colours", M.BEFORE, "colour_distance"),
        ("the projection loss adds local texture (patches)", M.WITHOUT, "patch_similarity"),
        ("the projection loss adds local texture (texture distance)", M.WITHOUT, "texture_distance"))),
    Claim("MMFS, CLIP mapping", "the mapping alone already gives the style image's style", "mmfs", M.BEFORE, "photos",
          "clip_similarity"),
    Claim("MMFS, Figure 8", "fine-tuning brings the result nearer to the prompt", "prompts", M.AFTER, M.BEFORE,
          "prompt_similarity"),
    Claim("MMFS, CLIP mapping", "the mapping alone already gives the prompt's style", "prompts", M.BEFORE, "photos",
          "prompt_similarity"),
)
BETWEEN = ("edge_agreement", "structure_distance", "identity_distance", "clip_similarity", "colour_distance",
           "face_read")


def verdict(low: float, high: float) -> str:
    return "yes" if low > 0 else "no" if high < 0 else "unclear"


def difference(better: Mapping[str, Rows], rows: tuple[str, str], name: str,
               worse: Mapping[str, Rows] | None = None) -> tuple[float, float, float]:
    """(mean, low, high) of by how much rows[0] is better than rows[1] of the same styles; of two methods, rows[1] is
    taken from `worse`."""
    worse = better if worse is None else worse
    sign = 1 if metric(name).better == "higher" else -1
    apart = [sign * (better[style][rows[0]][name] - worse[style][rows[1]][name]) for style in better if style in worse]
    return intervals.interval(torch.tensor(apart)[:, None])


def found_of(claim: Claim, results: Results) -> tuple[float, float, float]:
    """The claim's difference, over photos too where every photo's is there."""
    gains = results["osasis"].get("gains", {}).get(claim.worse, {}).get(intervals.ALL, {})
    if claim.method == "osasis" and claim.better == O.OURS and claim.metric in gains:
        return tuple(gains[claim.metric])
    styles = {"osasis": results["osasis"].get("styles"), "mmfs": results["mmfs"].get("one_shot"),
              "prompts": results["mmfs"].get("zero_shot")}[claim.method]
    return difference(styles, (claim.better, claim.worse), claim.metric)


def interval_text(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def claim_lines(results: Results) -> list[str]:
    lines = ["| paper | claim | measure | better by (95 %) | |", "|---|---|---|---|---|"]
    for claim in CLAIMS:
        if results["osasis" if claim.method == "osasis" else "mmfs"]:
            found = found_of(claim, results)
            lines.append(f"| {claim.source} | {claim.text} | {metric(claim.metric).title} | {interval_text(found)} | "
                         f"**{verdict(*found[1:])}** |")
    if results["osasis"] and results["mmfs"]:
        for name in BETWEEN:
            found = difference(results["osasis"]["styles"], (O.OURS, M.AFTER), name, results["mmfs"]["one_shot"])
            lines.append(f"| OSASIS, Table 1 | OSASIS is better than a one-shot MMFS | {metric(name).title} | "
                         f"{interval_text(found)} | **{verdict(*found[1:])}** |")
    if results["rank"]:
        found = rare_by_distance(results["rank"])
        lines.append("| OSASIS, Figure 3 | rare pictures are reconstructed worse (share of pairs of a rare and a "
                     "common one, minus those the other way) | distance to the reconstruction | "
                     f"{interval_text(found)} | **{verdict(*found[1:])}** |")
    return lines


def rare_by_distance(distances: Mapping[str, float]) -> tuple[float, float, float]:
    """(mean, low, high) of the sign of every difference between a rare and a common picture's distance."""
    rare, common = (torch.tensor([value for name, value in distances.items() if name.startswith(f"{part}/")])
                    for part in reversed(PARTS))
    return intervals.interval((rare[:, None] - common).sign())


# --- the page ---------------------------------------------------------------------------------------------------------
SHOWN = ("clip_similarity", "colour_distance", "texture_distance", "edge_agreement", "structure_distance",
         "identity_distance", "face_read", "landmark_shift")


def chosen(rows: Rows, names: Sequence[str] = SHOWN) -> Rows:
    """The rows of variants, with these metrics."""
    return {row: {name: values[name] for name in names if name in values}
            for row, values in split_groups(rows)[0].items()}


def class_lines(results: Results) -> list[str]:
    """A row for each class of both methods."""
    rows: Rows = {}
    for method, styles, row in (("OSASIS", results["osasis"].get("styles", {}), O.OURS),
                                ("MMFS", results["mmfs"].get("one_shot", {}), M.AFTER)):
        rows |= {f"{name}, {method}": styles[name][row] for name in styles}
    return [table(chosen(dict(sorted(rows.items()))))]


def part_lines(results: Results) -> list[str]:
    """The SPN's gains on common and on rare inputs."""
    lines = ["| photos | against | measure | better by (95 %) | |", "|---|---|---|---|---|"]
    for part in PARTS:
        for other in (SPN_OFF, SPN_NONE):
            for name, found in results["osasis"]["gains"][other].get(part, {}).items():
                lines.append(f"| {part} | {other} | {metric(name).title} | {interval_text(tuple(found))} | "
                             f"**{verdict(*found[1:])}** |")
    return lines


def group_lines(results: Results) -> list[str]:
    """In which share of the results of each group of labels a face is read."""
    osasis, mmfs = results["osasis"].get("mean", {}), results["mmfs"].get("one_shot_mean", {})
    columns = {"OSASIS": (osasis, O.OURS), "OSASIS without SPN": (osasis, SPN_OFF), "MMFS, one-shot": (mmfs, M.AFTER)}
    groups = list(dict.fromkeys(row.partition(LABEL)[2] for row in (*osasis, *mmfs) if LABEL in row))
    lines = ["| photos that show | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for group in groups:
        cells = (f"{rows[row + LABEL + group]['face_read']:.2f}" if row + LABEL + group in rows else ""
                 for rows, row in columns.values())
        lines.append(f"| {group.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return lines


def sections(results: Results) -> list[tuple[str, list[str]]]:
    """(title, lines) of what was measured."""
    osasis, mmfs, found = results["osasis"], results["mmfs"], []
    found.append(("Every claim, and what was measured", [
        "A difference above 0 is in the claim's favour. *unclear*: its interval holds 0.", "", *claim_lines(results)]))
    if osasis:
        twins = osasis["twins"]
        near = sum(values["difference"] < 0.35 for values in twins.values())
        found.append(("OSASIS, mean of all styles", [
            f"{len(osasis['styles'])} styles, {osasis['seeds']} seeds each. The twin differs from its style image by "
            f"less than 0.35 in {near} of {len(twins)}. Reconstruction (PSNR dB, SSIM): "
            + "; ".join(f"{name}: {psnr:.1f}, {ssim:.3f}" for name, (psnr, ssim) in osasis["reconstruction"].items())
            + ".", "", table(chosen(osasis["mean"]))]))
        if any(part in osasis["gains"][SPN_OFF] for part in PARTS):
            found.append(("Common and rare inputs apart", part_lines(results)))
    if mmfs:
        found.append(("MMFS", ["Random styles:", "", table(chosen(mmfs["random"], ("diversity", *SHOWN))), "",
                               f"One style picture, {len(mmfs['one_shot'])} styles:", "",
                               table(chosen(mmfs["one_shot_mean"], ("patch_similarity", *SHOWN))), "",
                               f"A prompt, {len(mmfs['zero_shot'])} prompts ({', '.join(mmfs['zero_shot'])}):", "",
                               table(chosen(mmfs["zero_shot_mean"], ("clip_direction", "prompt_similarity",
                                                                     "prompt_accuracy", *SHOWN)))]))
    if osasis or mmfs:
        found.append(("Everyone's face", ["Share of the results in which the face mesh reads a face.", "",
                                          *group_lines(results)]))
        found.append(("Every class", class_lines(results)))
    found.append(("What these measures cannot say", [
        "FID, ArtFID, LPIPS, ArcFace and DINO need networks that are not shipped: `atelier table` makes the papers' "
        "tables from folders of results, with the published rows beside them. Not compared here: methods of others and "
        "people's opinions. Several photo twins of one style, strengths, and sweeps of t0 and of the change point are "
        "workflows (`osasis_twins`, `osasis_sweeps`, `mmfs_sweeps`)."]))
    for title, rows in results["edits"].items():
        found.append((f"Edit by {title.replace(' ', ': ', 1)}", [table(chosen(rows, (
            "clip_direction", "attribute_probability", *SHOWN[3:])))]))
    return found


def contact_sheet(sheets: Sequence[Path], row: int) -> Image.Image:
    """Of `atelier evaluate`'s sheets of several styles: the photos on top, then the style image and the row of its
    results; in two columns."""
    half = -(-len(sheets) // 2)
    out = Image.new("RGB", (2 * len(COLUMNS) * CELL + GAP, (half + 1) * CELL), "white")
    for k, path in enumerate(sheets):
        with Image.open(path) as sheet:
            side = sheet.width // (O.SHOWN + 1)
            at, left = row % (sheet.height // side), k // half * (len(COLUMNS) * CELL + GAP)
            for column, i in enumerate(COLUMNS):
                for top, source in ((0, 0), (k % half + 1, at if i else 0)):
                    if top or i:
                        cell = sheet.crop((i * side, source * side, (i + 1) * side, (source + 1) * side))
                        out.paste(cell.convert("RGB").resize((CELL, CELL), Image.Resampling.LANCZOS),
                                  (left + column * CELL, top * CELL))
    return out


def edits_sheet(sheets: Mapping[str, Path]) -> Image.Image:
    """Of `atelier edits`' sheets {edit: file}: a column an edit, below each other STEPS of the photos EDITED; edits by
    text and by attribute in blocks of their own."""
    columns: dict[str, dict[str, list[Image.Image | None]]] = {}
    for title, path in sheets.items():
        kind, name = title.split(" ", 1)
        with Image.open(path) as sheet:
            side = sheet.width // E.SHOWN
            columns.setdefault(f"by {kind}", {})[name] = [
                sheet.crop((photo * side, row * side, (photo + 1) * side, (row + 1) * side))
                for photo in EDITED for row in range(1, len(STEPS) + 1)]
    blocks = {}
    for kind, cells in columns.items():
        names = list(cells)
        for start in range(0, len(names), BLOCK):
            part = names[start:start + BLOCK]
            blocks[kind if not start else f"{kind}, more"] = labelled_sheet(
                part, list(zip(*(cells[name] for name in part), strict=True)), CELL)
    return stacked(blocks)


def write_pictures(out: Path, page: Path, titles: Iterable[str]) -> list[str]:
    """A contact sheet of each method and of the edits of these titles beside the page; the lines that show them."""
    lines = []
    for method, row, pattern in (("OSASIS", 1, "osasis/*.png"), ("MMFS", -1, "mmfs/mmfs_*_*.png")):
        prompts = {f"mmfs_{file_name(prompt)}.png" for prompt in PROMPTS.split(",")}
        sheets = sorted(path for path in out.glob(pattern) if path.name not in prompts)
        if sheets:
            name = f"{page.stem}_{method.lower()}.jpg"
            contact_sheet(sheets, row).save(page.with_name(name), quality=72)
            lines += ["", f"{method}, every class: the style picture, then four of the photos on top in its style "
                      "(the first seed, not selected).", "", f"![{method}]({name})"]
    edits = {title: path for title in titles
             for path in (out / "edits").glob(f"{file_name(title)}.[pj][np]g")}
    if edits:
        edits_sheet(edits).save(page.with_name(f"{page.stem}_edits.jpg"), quality=72)
        lines += ["", f"Edits of two photos: {', '.join(STEPS)}.", "", f"![edits]({page.stem}_edits.jpg)"]
    return lines


def page_of(results: Results, photos: Sequence[str], pictures: Sequence[str] = ()) -> str:
    """docs/results.md."""
    lines = ["# Results", "", "Made by `make results` (tools/results.py) on the demo models; do not edit by hand.",
             f"{len(photos)} portraits that no model was trained on "
             f"({', '.join(f'{sum(p == part for p in photos)} of {part}' for part in dict.fromkeys(photos))}), one "
             "held-out picture of every class of styles. Everything is measured with the demo networks: the numbers "
             "compare with each other, not with the papers'. `atelier evaluate` takes the papers' networks, too.", ""]
    lines += [f"- {METRICS[name].title}: {METRICS[name].text}"
              for name in dict.fromkeys((*SHOWN, "patch_similarity", "clip_direction", "prompt_similarity"))]
    for k, (title, text) in enumerate(sections(results)):
        lines += ["", f"## {title}", "", *text, *(pictures if k == 0 else ())]
    return "\n".join(lines) + "\n"


def json_of(path: Path) -> Results:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_results(out: Path) -> Results:
    """What is finished; {} for what is not."""
    files = {"osasis": "osasis/results.json", "mmfs": "mmfs/mmfs.json", "edits": "edits/edits.json"}
    found = {name: json_of(out / file) for name, file in files.items()}
    ranked = out / "rank" / "ranked.csv"
    with ranked.open(encoding="utf-8", newline="") if ranked.exists() else io.StringIO() as file:
        return found | {"rank": {row["file"]: float(row["distance"]) for row in csv.DictReader(file)}}


def write_page(out: Path, page: Path) -> None:
    photos = [path.parent.name for path in find_pictures(out / "photos")]
    results = read_results(out)
    write_whole(page, page_of(results, photos, write_pictures(out, page, results["edits"])))
    log.info("wrote %s", page)


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="make results", description="Measures both methods on every class of styles.")
    p.add_argument("--data", type=Path, required=True, help="folder with inputs/, inputs_rare/ and art/")
    p.add_argument("--out", type=Path, default=ROOT / "runs" / "results")
    p.add_argument("--page", type=Path, default=PAGE, help="what is written at the end (%(default)s)")
    p.add_argument("--more", default="", help="options added to every command that learns styles")
    p.add_argument("--list", action="store_true", help="only show the commands")
    p.add_argument("--write", action="store_true", help="only write the page, from what is there")
    options = p.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    folders = {"data": options.data.resolve(), "out": options.out.resolve()}
    if missing := [name for name in (*PARTS, "art") if not (options.data / name).is_dir()]:
        log.error("there is no folder %s: name the folder of pictures with --data", options.data / missing[0])
        return 1
    jobs = jobs_of(classes_of(folders["data"] / "art"), max(1, len(gpu_names())))
    more = {job.name: shlex.split(options.more) if job.command.startswith("evaluate") else [] for job in jobs}
    commands = {job.name: arguments_of(job, folders) + more[job.name] for job in jobs}
    if options.list:
        print("\n".join(f"atelier {shlex.join(commands[job.name])}" for job in planned(jobs)))
        return 0
    for part in PARTS:
        shutil.copytree(folders["data"] / part, folders["out"] / "photos" / part, dirs_exist_ok=True)
    failed = []
    if not options.write:
        try:
            failed = Jobs(jobs, commands, folders["out"], gpu_names()).run()
        except KeyboardInterrupt:
            log.error("stopped; the same command goes on from what was saved in %s", folders["out"])
            return 130
    write_page(folders["out"], options.page)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
