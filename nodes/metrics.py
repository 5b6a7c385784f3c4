"""The node that measures a stylization (train/metrics.py)."""
from __future__ import annotations

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..models.clip import Clip
from ..models.diffae import DiffAE
from ..train import metrics
from ..train.evaluate import structure_features
from . import host, pictures, schema, sockets
from .osasis import CHUNK, chunks

MEASURES = {  # output id: (name, better, what it says)
    "edge_agreement": ("edge agreement", "higher", "Correlation of the edges of photo and result at 32 px."),
    "structure_distance": ("structure distance", "lower",
                           "Difference of the self-similarity of the DiffAE encoder's maps of photo and result."),
    "colour_distance": ("colour distance", "lower", "Distance of the colours of result and style picture."),
    "texture_distance": ("texture distance", "lower", "Distance of small grey patches of result and style picture."),
    "clip_agreement": ("CLIP direction agreement", "higher",
                       "Cosine of the changes photo -> result and twin -> style picture, as CLIP sees them.")}


class Measure(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierMeasure", display_name="Measure Stylization", category="Atelier/metrics",
            description="Tells in numbers how much of the photo was kept and how much of the style was taken over. "
                        "Means over the batch.",
            inputs=[
                sockets.DIFFAE.Input("diffae", tooltip="Its encoder sees the structure; its size is the one measured "
                                                       "at."),
                sockets.CLIP.Input("clip", tooltip="Judges the change of style."),
                schema.image("photo", "The photos."),
                schema.image("result", "The stylized photos, as many as photos."),
                schema.image("twin", "The style picture's photo twin."),
                schema.image("style", "The style picture.")],
            outputs=[io.String.Output("report", display_name="report", tooltip="All numbers, a line each."),
                     *(io.Float.Output(name, display_name=title, tooltip=f"{what} The {better}, the better.")
                       for name, (title, better, what) in MEASURES.items())])

    @classmethod
    def execute(cls, diffae, clip, photo, result, twin, style):
        px = diffae.net.image_size
        photo, result = pictures.to_model(photo, px, "photo"), pictures.to_model(result, px, "result")
        if len(photo) != len(result):
            raise ValueError(f"{len(photo)} photos but {len(result)} results; connect the same batch")
        twin, style = (pictures.to_model(pictures.single(image, what), px, what)
                       for image, what in ((twin, "twin"), (style, "style")))
        memory = host.sampling_memory(diffae.unet, min(CHUNK, len(photo)))
        with host.running(diffae.managed, clip.managed, memory=memory) as device:
            twin, style = twin.to(device), style.to(device)
            nets = diffae.net, clip.managed.net
            parts = [measure(*nets, photo[r].to(device), result[r].to(device), twin, style) for r in chunks(len(photo))]
        values = [float(torch.cat([part[name] for part in parts]).mean()) for name in MEASURES]
        rows = zip(MEASURES.values(), values)
        report = "\n".join(f"{title}: {value:.4f} ({better} is better)" for (title, better, _), value in rows)
        return io.NodeOutput(report, *values, ui=ui.PreviewText(report))


def measure(model: DiffAE, clip: Clip, photo: Tensor, result: Tensor, twin: Tensor, style: Tensor) -> dict[str, Tensor]:
    """Each measure (B,) of pictures in [-1, 1] on one device; twin and style have batch 1."""
    seen = [clip.embed(x, "proper").float() for x in (photo, result, twin, style)]
    return {"edge_agreement": metrics.edge_agreement(photo, result),
            "structure_distance": metrics.structure_distance(*(structure_features(model, x) for x in (photo, result))),
            "colour_distance": metrics.colour_distance(result, style),
            "texture_distance": metrics.texture_distance(result, style),
            "clip_agreement": metrics.direction_agreement(*seen)}


NODES = [Measure]
