"""The nodes that run a part of a graph with several values, and show the pictures side by side."""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..train.plots import labelled_grid
from . import host, images, inputs, sockets
from .base import AtelierNode
from .sockets import Sweep

MOST = 64  # values of a sweep, of both axes together
SWITCHES = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}
Value = bool | int | float | str


def value_of(word: str) -> Value:
    """What a word of a list of values is: a switch, a whole number, a number, or text. Quotes make it text."""
    if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'":
        return word[1:-1]
    if word.lower() in SWITCHES:
        return SWITCHES[word.lower()]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def words_in(text: str) -> list[str]:
    """The lines of a text; of a text of one line, what stands between commas."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines if len(lines) > 1 else [word.strip() for line in lines for word in line.split(",") if word.strip()]


def labels_of(name: str, words: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name.strip()} {word}".strip() for word in words)


def checked_words(values: str, values_2: str) -> tuple[list[str], list[str]]:
    """The words of both axes. ValueError for no value and for too many."""
    first, second = words_in(values), words_in(values_2)
    if not first:
        raise ValueError("values is empty; write some, separated by commas or a line each")
    if len(first) * max(1, len(second)) > MOST:
        raise ValueError(f"{len(first)} x {max(1, len(second))} values are too many; write {MOST} together at most")
    return first, second


class SweepValues(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSweep", display_name="Sweep", category="Atelier/sweep",
            description="Runs what hangs on its outputs once for each value. Connect an output to any number, switch, "
                        "text or choice of a node, and the pictures to Sweep Grid.",
            inputs=[
                io.String.Input("name", default="t0", tooltip="What the values are of. The grid writes it above them."),
                io.String.Input("values", default="0.3, 0.5, 0.7", multiline=True,
                                tooltip="The values, separated by commas, or a line each. on and off are switches. "
                                        "Quotes make a number text."),
                io.String.Input("name_2", default="", tooltip="What the values of the second axis are of."),
                io.String.Input("values_2", default="", multiline=True,
                                tooltip="A second axis: every value of it is run with every one of the first. Empty: "
                                        "one axis.")],
            outputs=[
                sockets.SWEPT.Output("value", display_name="value", is_output_list=True,
                                     tooltip="The values of the first axis, one run after the other."),
                sockets.SWEPT.Output("value_2", display_name="value 2", is_output_list=True,
                                     tooltip="The values of the second axis."),
                sockets.SWEEP.Output("sweep", display_name="sweep", tooltip="What was run with which values, for Sweep "
                                                                            "Grid.")])

    @classmethod
    def validate_inputs(cls, values: str | None = None, values_2: str | None = None) -> bool | str:
        try:
            return bool(checked_words("linked" if values is None else values, values_2 or ""))
        except ValueError as error:
            return str(error)

    @classmethod
    def execute(cls, name: str, values: str, name_2: str, values_2: str) -> io.NodeOutput:
        first, second = checked_words(values, values_2)
        sweep = Sweep(labels_of(name, first), labels_of(name_2, second))
        if not second:
            none = host.blocked("this sweep has one axis: write values into values_2, or disconnect this output")
            return io.NodeOutput([value_of(word) for word in first], [none], sweep)
        pairs = [(value_of(one), value_of(other)) for other in second for one in first]
        return io.NodeOutput([one for one, _ in pairs], [other for _, other in pairs], sweep)


class SweepGrid(AtelierNode):
    JOINED = ("images",)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSweepGrid", display_name="Sweep Grid", category="Atelier/sweep", is_input_list=True,
            description="One picture of all pictures of a sweep, a column for each value, with its label. With two "
                        "axes, the rows are the second one's values.",
            inputs=[
                inputs.image("images", "What the sweep's runs put out. A batch for each value gives a row for each of "
                                       "its pictures; with two axes they stand side by side."),
                io.String.Input("labels", default="", multiline=True,
                                tooltip="Labels of the columns where there is no sweep, separated by commas or a line "
                                        "each. The pictures are shared out among them in their order."),
                io.Int.Input("side", default=0, min=0, max=2048, step=8,
                             tooltip="Pictures with a longer side than this are scaled down to it, in px. 0: never."),
                sockets.SWEEP.Input("sweep", optional=True, tooltip="From the Sweep whose values were run.")],
            outputs=[io.Image.Output("grid", display_name="grid", tooltip="The grid, one picture.")])

    @classmethod
    def execute(cls, images: Tensor, labels: str, side: int, sweep: Sweep | None = None) -> io.NodeOutput:
        return io.NodeOutput(grid_of(images, chosen(sweep, labels), side))


def chosen(sweep: Sweep | None, labels: str) -> Sweep:
    """The sweep, or one of these labels. ValueError for both and for neither."""
    words = words_in(labels)
    if (sweep is None) == (not words):
        raise ValueError("connect the sweep, or write labels" if sweep is None else
                         "labels are written, and a sweep is connected, which has its own; take one of them")
    return sweep or Sweep(tuple(words))


def grid_of(pictures: Tensor, sweep: Sweep, side: int) -> Tensor:
    """IMAGE of all cells of a sweep, whose pictures IMAGE (cells x B, H, W, C) follow each other cell by cell."""
    columns, cells = len(sweep.columns), len(sweep.columns) * max(1, len(sweep.rows))
    x = images.in_chunks(pictures, "images", lambda part: scaled(part, side) * 2 - 1)
    if len(x) % cells:
        raise ValueError(f"{len(x)} pictures cannot be shared out among {cells} values; connect what this sweep's runs "
                         "put out")
    batches = x.split(len(x) // cells)
    if sweep.rows:
        rows = [[torch.cat(list(cell), 2) for cell in batches[start:start + columns]]
                for start in range(0, cells, columns)]
    else:
        rows = [list(row) for row in zip(*batches, strict=True)]
    return images.from_pil(labelled_grid(rows, sweep.columns, sweep.rows))


def scaled(x: Tensor, side: int) -> Tensor:
    """Pictures (B, 3, H, W) in 0..1 whose longer side is at most this; 0 for any."""
    height, width = x.shape[-2:]
    if not side or max(height, width) <= side:
        return x
    scale = side / max(height, width)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


NODES = [SweepValues, SweepGrid]
