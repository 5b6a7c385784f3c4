"""The nodes that measure: a stylization, and batches of pictures by a metric of evaluate/registry.py."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from comfy_api.latest import io, ui
from torch import Tensor

from ..evaluate.compare import MEASURES, compare
from ..evaluate.evaluator import CHUNK, Comparison, Evaluator, chunk_rows
from ..evaluate.public import PUBLIC
from ..evaluate.registry import METRICS, Metric, means
from ..models import loading
from ..models.checkpoints import store
from ..models.faces.networks import load_faces
from ..models.features.inception import RESIZES
from ..models.kinds import KINDS
from ..models.osasis import sampling_memory
from . import host, images, inputs, sockets
from .base import AtelierNode
from .host import NodeProgress, PatchedModule
from .sockets import CLIPModel, DiffAEModel, LoadedModel, MetricNetworks, PerceptualModel, StructureNetModel

MEASURED: list[Metric] = [METRICS[name] for name in ("edge_agreement", "structure_distance", "colour_distance",
                                                     "texture_distance", "clip_direction")]
FOLDERS = {kind: folder for folder, kind in host.FILE_KINDS.items()}
PICKED = {"alexnet": ("lpips_alex", loading.load_lpips_alex), "arcface": ("arcface", loading.load_arcface),
          "inception": ("inception", loading.load_inception),
          "art_inception": ("art_inception", loading.load_art_inception)}  # folder -> name in PUBLIC, loader
LOADERS = {"lpips_vgg": "Load Perceptual Distance", "dino": "Load Structure Network (DINO)",
           "public_clip": "Load CLIP (OpenCLIP)"}  # name in PUBLIC -> node
File = TypeVar("File", bound=str | None)
PIXEL_BYTES = 2048  # of the widest maps of a network, for a pixel of its pictures
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
            evaluator = Evaluator(clip.net, diffae.net, check_interrupt=host.check_interrupt)
            direction_start = evaluator.embed(twin.to(device))
            comparison = Comparison.of(evaluator, photos, results, style_image.to(device), direction_start)
            progress, values = NodeProgress(len(MEASURED)), []
            for metric in MEASURED:
                values += means(comparison, [metric.name]).values()
                progress()
        report = "\n".join(f"{metric.title}: {value:.4f} ({metric.better} is better)"
                           for metric, value in zip(MEASURED, values))
        return io.NodeOutput(report, *values, ui=ui.PreviewText(report))


class LoadMetricNetworks(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadMetricNetworks", display_name="Load Metric Networks", category="Atelier/loaders",
            description="Loads the public networks that papers measure with, for Compare Pictures. Nothing replaces "
                        "a network that is not there: its measures are refused.",
            inputs=[
                network_choice("alexnet", "AlexNet, for LPIPS, LPIPS diversity and ArtFID"),
                network_choice("arcface", "Face recognition, for ID similarity and Arcface-Dist"),
                network_choice("inception", "Inception, for FID and KID"),
                network_choice("art_inception", "Inception trained on art, for ArtFID"),
                sockets.PERCEPTUAL.Input("perceptual", optional=True,
                                         tooltip="LPIPS-VGG, for LPIPS (VGG-16). The encoder of a DiffAE is refused."),
                sockets.STRUCTURE_NET.Input("structure_net", optional=True,
                                            tooltip="DINO, for the DINO structure distance. The demo's substitute is "
                                                    "refused."),
                sockets.CLIP.Input("clip", optional=True,
                                   tooltip="A public CLIP, for CLIP direction and similarity. The demo CLIP is "
                                           "refused.")],
            outputs=[sockets.METRIC_NETWORKS.Output("networks", display_name="networks",
                                                    tooltip="The networks, for Compare Pictures.")])

    @classmethod
    def validate_inputs(cls, alexnet: str | None = None, arcface: str | None = None, inception: str | None = None,
                        art_inception: str | None = None) -> bool | str:
        for folder, file in files_of(alexnet, arcface, inception, art_inception).items():
            if file != host.NO_FILE and (answer := host.valid_model(folder, file)) is not True:
                return answer
        return True

    @classmethod
    def fingerprint_inputs(cls, alexnet: str | None, arcface: str | None, inception: str | None,
                           art_inception: str | None, **others: object) -> list[str]:
        chosen = files_of(alexnet, arcface, inception, art_inception)
        return [host.NO_FILE if file == host.NO_FILE else host.model_token(folder, file)
                for folder, file in chosen.items()]

    @classmethod
    def execute(cls, alexnet: str, arcface: str, inception: str, art_inception: str,
                perceptual: PerceptualModel | None = None, structure_net: StructureNetModel | None = None,
                clip: CLIPModel | None = None) -> io.NodeOutput:
        models: dict[str, LoadedModel] = {}
        for folder, file in files_of(alexnet, arcface, inception, art_inception).items():
            if file != host.NO_FILE:
                name, load = PICKED[folder]
                path = host.model_path(folder, file)
                models[name] = LoadedModel(named(folder, file), PatchedModule(load(path)))
        for name, model in (("lpips_vgg", perceptual), ("dino", structure_net), ("public_clip", clip)):
            if model is not None:
                models[name] = LoadedModel(named(published(name, model), model.name), model.patched)
        return io.NodeOutput(MetricNetworks(models))


def files_of(*files: File) -> dict[str, File]:
    """{folder: file} of what is picked, in the order of PICKED."""
    return dict(zip(PICKED, files, strict=True))


def network_choice(folder: str, use: str) -> io.Combo.Input:
    return inputs.file_choice(folder, [host.NO_FILE, *host.model_files(folder)], host.NO_FILE,
                              f"{use}. A file in models/{folder}: {KINDS[host.FILE_KINDS[folder]].page}.")


def published(name: str, model: LoadedModel) -> str:
    """The folder of a network that another loader loaded. ValueError for a substitute."""
    if getattr(model, "substitute", False) or model.name == host.DEMO_NAME:
        raise ValueError(f"{model.name} is no public network, and papers did not measure with it. Pick another model "
                         f"in {LOADERS[name]} ({KINDS[PUBLIC[name].kind].page}), or disconnect it")
    return FOLDERS[PUBLIC[name].kind]


def named(folder: str, file: str) -> str:
    """A file as reports name it."""
    return f"{file}, sha256 {store.sha256(host.model_path(folder, file))[:8]}"


def advice() -> dict[str, str]:
    """{name in PUBLIC: how the user gives the network}."""
    found = {}
    for name, network in PUBLIC.items():
        way = (f"load it with {LOADERS[name]} and connect it to Load Metric Networks" if name in LOADERS else
               "pick it in Load Metric Networks")
        found[name] = f"put its file into {host.model_folder(FOLDERS[network.kind])}, {way}, and connect networks"
    return found


class ComparePictures(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierComparePictures", display_name="Compare Pictures", category="Atelier/metrics",
            is_output_node=True,
            description="Compares batches of pictures by one measure, as papers do. The report names the network, its "
                        "file, crop, resize and the numbers of pictures, without which a value means nothing.",
            inputs=[
                inputs.choice("measure", MEASURES, MEASURES[0],
                              "What is measured. The report says it in full. Measures of papers need the network of "
                              "the paper, from Load Metric Networks."),
                inputs.image("results", "The pictures that are measured."),
                inputs.image("photos", "The photos, in the order of the results, of the same size. One photo stands "
                                       "for all results. Needed by measures of content, CLIP direction and "
                                       "ArtFID.", True),
                inputs.image("style_images", "Style images or art. Needed by measures of style, FID, KID and ArtFID. "
                                             "colour_distance and texture_distance take one.", True),
                inputs.image("others", "The same photos in other styles, in the order of the results. Needed by "
                                       "lpips_diversity.", True),
                sockets.METRIC_NETWORKS.Input("networks", optional=True,
                                              tooltip="From Load Metric Networks. Measures without a network, and the "
                                                      "face measures, do not need it."),
                io.Int.Input("side", default=0, min=0, max=2048, step=8, optional=True,
                             tooltip="The middle squares of all pictures are resized to this side first, in px. 0: "
                                     "pictures keep their size."),
                inputs.advanced(inputs.choice("fid_resize", RESIZES, "clean",
                                              "How FID's pictures are resized to 299 px: as clean-fid (clean), "
                                              "pytorch-fid (ptfid), torch-fidelity (tf) or torchmetrics (aa).", True))],
            outputs=[
                io.Float.Output("value", display_name="value", tooltip="The mean over the pictures, or the distance of "
                                                                       "the two sets."),
                io.String.Output("report", display_name="report", tooltip="The value, with the networks, their files, "
                                                                          "what they see, and the numbers of "
                                                                          "pictures.")])

    @classmethod
    def execute(cls, measure: str, results: Tensor, photos: Tensor | None = None, style_images: Tensor | None = None,
                others: Tensor | None = None, networks: MetricNetworks | None = None, side: int = 0,
                fid_resize: str = "clean") -> io.NodeOutput:
        wanted, given = METRICS[measure], {"results": results, "photos": photos, "style_images": style_images,
                                           "others": others}
        batches = {name: to_batch(image, side, name) for name, image in given.items()
                   if image is not None and name in wanted.sees}
        models = networks or MetricNetworks()
        faces = load_faces() if {"faces", "arcface"} & set(wanted.networks) else None
        patched = [*models.patched(wanted.networks),
                   *(PatchedModule(net) for net in ((faces.detector, faces.mesh) if faces else ()))]
        with host.running(*patched, memory=memory_for(batches)):
            evaluator = Evaluator(faces=faces, check_interrupt=host.check_interrupt,
                                  public=models.public(wanted.networks, fid_resize, advice()))
            found = compare(evaluator, measure, batches, f"middle squares resized to {side} px, bilinear with "
                            "antialias" if side else "own size")
        host.show_text(found.report)
        return io.NodeOutput(found.value, found.report, ui=ui.PreviewText(found.report))


def to_batch(image: Tensor, side: int, name: str) -> Tensor:
    """IMAGE -> (B, 3, H, W) in [-1, 1]: middle squares of this side, or at their own size for 0."""
    return images.to_square(image, side, name) if side else images.in_chunks(image, name, lambda x: x * 2 - 1)


def memory_for(batches: Mapping[str, Tensor]) -> int:
    """Bytes that one call of a network needs beside its weights."""
    sizes = [tuple(x.shape[-2:]) for x in batches.values()]
    return max(chunk_rows(*size) * size[0] * size[1] for size in sizes) * PIXEL_BYTES


NODES = [Measure, LoadMetricNetworks, ComparePictures]
