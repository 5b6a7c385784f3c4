"""The second sheet of `make demo`: MMFS's styles, random, from one picture (one-shot) and from text (zero-shot).

Each column is a part of a shipped workflow, with other inputs set as a user would set them.
"""
from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..cli.client import Client, Graph
from .comfy import ROOT
from .graphs import Pictures, loaded, needed, node_of, run_shown, save, saved_pictures
from .sheet import contact_sheet, rows_of, stacked

PREFIX = "atelier/mmfs_"
SOURCES = {"photo": ("AtelierMMFSStylize", "image"), "reference": ("AtelierMMFSStyleFromPicture", "style_image")}
SEEDS = (1, 5, 8, 12, 16, 20, 27, 32)
PROMPTS = ("pencil", "oil", "ukiyo", "popart")


@dataclass(frozen=True)
class Part:
    """A part of a shipped workflow.

    columns: what a SaveImage's prefix goes on with after atelier/mmfs_ -> the caption of its pictures; the rest of the
    workflow is left out. inputs: node type -> the inputs that are set.
    """
    workflow: str
    columns: Mapping[str, str]
    inputs: Mapping[str, Mapping] = field(default_factory=dict)

    def graph(self) -> Graph:
        """Raises ValueError for columns and inputs that the workflow does not have."""
        graph = json.loads((ROOT / "workflows" / "api" / f"{self.workflow}.json").read_text())
        ends = [node for node, entry in graph.items()
                if entry["inputs"].get("filename_prefix") in {PREFIX + column for column in self.columns}]
        if len(ends) != len(self.columns):
            raise ValueError(f"{self.workflow} does not save all of {', '.join(self.columns)}")
        graph = needed(graph, ends)
        for kind, inputs in self.inputs.items():
            node = node_of(graph, kind)
            if not inputs.keys() <= graph[node]["inputs"].keys():
                raise ValueError(f"{kind} in {self.workflow} has no input of these: {', '.join(inputs)}")
            graph[node]["inputs"] |= inputs
        return graph


def random_styles() -> list[Part]:
    return [Part("mmfs_random", {"a": f"seed {seed}"}, {"AtelierMMFSRandomStyle": {"seed": seed}}) for seed in SEEDS]


def one_shot() -> list[Part]:
    """Before fine-tuning, after it without the projection loss, after it with all losses."""
    without = {"AtelierMMFSFineTuneOptions": {"preset": "as set below", "projection_weight": 0.0},
               "AtelierMMFSFineTune": {"name": "demo_mmfs_no_projection"}}
    return [Part("mmfs_one_shot", {"one_shot_before": "before: CLIP mapping alone"}),
            Part("mmfs_one_shot", {"one_shot": "without projection loss"}, without),
            Part("mmfs_one_shot", {"one_shot": "fine-tuned"})]


def zero_shot() -> list[Part]:
    return [Part("mmfs_zero_shot", {"zero_shot_before": f"{prompt}: before", "zero_shot": f"{prompt}: fine-tuned"},
                 {"AtelierMMFSStyleFromText": {"prompt": prompt},
                  "AtelierMMFSFineTuneText": {"prompt": prompt, "name": f"demo_mmfs_{prompt}"}})
            for prompt in PROMPTS]


def mmfs_sheet(client: Client, inputs: Path, out: Path) -> Path:
    """Run everything, write the pictures and the sheet into `out`; the sheet's path."""
    sections = {"Random styles": (random_styles(), 128), "The style of one picture": (one_shot(), 256),
                "Styles from prompts": (zero_shot(), 128)}
    sheets = {}
    for heading, (parts, size) in sections.items():
        columns: Pictures = {}
        for part in parts:
            columns |= stylized(client, part, inputs)
        save({re.sub(r"\W+", "_", caption): found for caption, found in columns.items()}, "mmfs", out)
        sheets[heading] = contact_sheet(list(columns), rows_of(columns.values()), size)
    stacked(sheets).save(out / "mmfs_sheet.png")
    return out / "mmfs_sheet.png"


def stylized(client: Client, part: Part, inputs: Path) -> Pictures:
    """The pictures of a part, by caption, after its sources."""
    graph = part.graph()
    result = run_shown(client, graph, f"{part.workflow}: {', '.join(part.columns.values())}", inputs)
    made = saved_pictures(client, graph, result, PREFIX)
    return sources(graph, inputs) | {caption: made[column] for column, caption in part.columns.items()}


def sources(graph: Graph, inputs: Path) -> Pictures:
    """The photos that are stylized, and the picture whose style is taken, where there is one."""
    kinds = {entry["class_type"] for entry in graph.values()}
    found: Pictures = {}
    for caption, (kind, name) in SOURCES.items():
        if kind in kinds:
            source, _ = graph[node_of(graph, kind)]["inputs"][name]
            found[caption] = [Image.open(inputs / file) for file in loaded(graph, source)]
    return found
