"""The node that measures folders of results, in the tables of both papers."""
from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io, ui

from ..evaluate.evaluator import Evaluator, chunk_rows
from ..evaluate.papers import PAPERS, Folders, cells_of, check_metrics, evaluation_table
from ..evaluate.registry import metric
from ..models.faces.networks import load_faces
from . import host, images, inputs, sockets
from .base import AtelierNode
from .host import PatchedModule
from .image_sources import folder_input
from .metrics import PIXEL_BYTES, advice
from .sockets import DiffAEModel, MetricNetworks
from .sweep import words_in

FOLDERS = ("results_folder", "photos_folder", "styles_folder")


class EvaluationTable(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierEvaluationTable", display_name="Evaluation Table", category="Atelier/metrics",
            is_output_node=True,
            description="Measures results of any programs alike and puts them into a table of methods, inputs and "
                        "styles, as both papers have it, beside the papers' published rows. A measure whose network is "
                        "not there is left out, and the notes say why.",
            inputs=[
                inputs.choice("paper", PAPERS, "osasis", "Whose table: its measures, and its published rows."),
                folder_input("results_folder", "METHOD/INPUTS/STYLE/NAME.png: what each method made of photo NAME."),
                folder_input("photos_folder", "INPUTS/NAME.png. Or NAME.png, and no INPUTS among the results."),
                folder_input("styles_folder", "STYLE/*.png. Or *.png, and no STYLE among the results."),
                io.String.Input("metrics", default="", tooltip="Other columns: names of metrics, separated by commas. "
                                                               "Empty: the paper's."),
                io.Int.Input("side", default=256, min=32, max=2048, step=8,
                             tooltip="All pictures are seen as middle squares of this side, in px."),
                sockets.METRIC_NETWORKS.Input("networks", optional=True,
                                              tooltip="From Load Metric Networks. The papers' measures need them."),
                sockets.DIFFAE.Input("diffae", optional=True,
                                     tooltip="Needed by identity_distance and structure_distance only.")],
            outputs=[
                io.Image.Output("table", display_name="table", tooltip="The tables, drawn."),
                io.String.Output("markdown", display_name="markdown", tooltip="The tables in Markdown, with how each "
                                                                              "measure was made."),
                io.String.Output("csv", display_name="csv", tooltip="A line for each row: inputs, method, published or "
                                                                    "measured, values.")])

    @classmethod
    def validate_inputs(cls, metrics: str | None = None) -> bool | str:
        try:
            check_metrics(words_in(metrics or ""))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, results_folder: str | None, photos_folder: str | None, styles_folder: str | None,
                           **others: object) -> list[str]:
        return [host.folder_token(name) for name in (results_folder, photos_folder, styles_folder)]

    @classmethod
    def execute(cls, paper: str, results_folder: str, photos_folder: str, styles_folder: str, metrics: str, side: int,
                networks: MetricNetworks | None = None, diffae: DiffAEModel | None = None) -> io.NodeOutput:
        names = words_in(metrics) or list(PAPERS[paper].metrics)
        check_metrics(names)
        folders = Folders(*(chosen(name, what) for name, what in zip(
            (results_folder, photos_folder, styles_folder), FOLDERS, strict=True)))
        cells_of(folders)
        wanted = {network for name in names for network in metric(name).networks}
        models, faces = networks or MetricNetworks(), load_faces() if "faces" in wanted else None
        patched = [*models.patched(sorted(wanted)), *([diffae.patched] if diffae else []),
                   *(PatchedModule(net) for net in ((faces.detector, faces.mesh) if faces else ()))]
        with host.running(*patched, memory=chunk_rows(side, side) * side * side * PIXEL_BYTES):
            evaluator = Evaluator(diffae=diffae.net if diffae else None, faces=faces,
                                  public=models.public(sorted(wanted), "clean", advice()),
                                  check_interrupt=host.check_interrupt)
            found = evaluation_table(evaluator, folders, paper, names, side, host.check_interrupt)
        text = found.markdown()
        return io.NodeOutput(images.from_pil(found.picture()), text, found.csv(), ui=ui.PreviewText(text))


def chosen(name: str, what: str) -> Path:
    """The folder behind a choice. ValueError for none."""
    folder = host.input_folder(name)
    if folder is None:
        raise ValueError(f"{what} is none; put a folder into ComfyUI's input folder, press R, and pick it")
    return folder


NODES = [EvaluationTable]
