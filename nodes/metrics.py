"""The node that measures a stylization; its outputs come from the registry of metrics (evaluate/registry.py)."""
from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ..evaluate.evaluator import CHUNK, Comparison, Evaluator
from ..evaluate.registry import METRICS, Metric, means
from ..models.osasis import sampling_memory
from . import host, images, inputs, sockets
from .base import AtelierNode
from .sockets import CLIPModel, DiffAEModel

MEASURED: list[Metric] = [METRICS[name] for name in ("edge_agreement", "structure_distance", "colour_distance",
                                                     "texture_distance", "clip_direction")]


class Measure(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMeasure", display_name="Measure Stylization", category="Atelier/metrics",
            description="Measures how much of the photos is preserved and how similar the results are to the style "
                        "image. Values are means over the batch.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="Its encoder compares structure. Pictures are compared at its "
                                                       "size."),
                sockets.CLIP.Input("clip", tooltip="Compares the change of style."),
                inputs.image("photos", "The photos."),
                inputs.image("results", "The stylized photos, as many as photos."),
                inputs.image("twin", "The style image's photo twin."),
                inputs.image("style_image", "The style image.")],
            outputs=[io.String.Output("report", display_name="report", tooltip="All values, a line each."),
                     *(io.Float.Output(metric.name, display_name=metric.title, tooltip=metric.text)
                       for metric in MEASURED)])

    @classmethod
    def execute(cls, diffae: DiffAEModel, clip: CLIPModel, photos: Tensor, results: Tensor, twin: Tensor,
                style_image: Tensor) -> io.NodeOutput:
        px = diffae.net.image_size
        photos, results = images.to_model(photos, px, "photos"), images.to_model(results, px, "results")
        if len(photos) != len(results):
            raise ValueError(f"{len(photos)} photos but {len(results)} results. Connect the same batch")
        twin, style_image = (images.to_model(images.single(image, what), px, what)
                             for image, what in ((twin, "twin"), (style_image, "style_image")))
        memory = sampling_memory(diffae.unet, min(CHUNK, len(photos)))
        with host.running(diffae.patched, clip.patched, memory=memory) as device:
            evaluator = Evaluator(clip.net, diffae.net)
            direction_start = evaluator.embed(twin.to(device))
            comparison = Comparison.of(evaluator, photos, results, style_image.to(device), direction_start)
            values = list(means(comparison, [metric.name for metric in MEASURED]).values())
        report = "\n".join(f"{metric.title}: {value:.4f} ({metric.better} is better)"
                           for metric, value in zip(MEASURED, values))
        return io.NodeOutput(report, *values, ui=ui.PreviewText(report))


NODES = [Measure]
