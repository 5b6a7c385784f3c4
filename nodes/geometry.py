"""Nodes that let results take on the shapes of a reference: how it deforms a face, and pictures that follow."""
from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from comfy_api.latest import io, ui
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..models import warp
from ..models.faces import geometry, matching
from ..models.faces.align import OUTLINE
from ..models.faces.geometry import FaceGeometry, Landmarks
from ..models.faces.networks import FaceNetworks, load_faces
from ..models.features.protocols import StructureNet
from ..models.loading import load_geometry, save_geometry
from . import face_sources, host, images, inputs, sockets
from .base import AtelierNode
from .blend import slider
from .host import NodeProgress
from .saving import holds, save_once
from .sockets import StructureNetModel

PAIRS_ADVICE = "pairs takes four numbers a line, x y in the photo twin, x y of the same place in the style image"
FEWEST_PAIRS = 4
SHOWN_PX, SHOWN_SCALE = 320, 75  # of the drawing of a geometry: its side, and a face's radius in it
WAYS = "Connect a structure network, write pairs of points, or take a style image with a face"


class GeometryFromReference(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierGeometryFromReference", display_name="Geometry from Reference", category="Atelier/faces",
            description="Reads how a style image deforms a face: where its landmarks are, against those of its photo "
                        "twin or of the mean face. Follow Geometry deforms stylized pictures in the same way.",
            inputs=[
                inputs.image("style_image", "One style image with a face, drawn or painted."),
                io.Boolean.Input("symmetric", default=True,
                                 tooltip="Take what is the same on both sides of the face. Turns of the head and "
                                         "crooked readings are left out. Off: take everything."),
                io.Boolean.Input("mouth", default=False,
                                 tooltip="Take along how far the style image's mouth is open. A closed mouth is "
                                         "stretched by it, not opened. Off: leave it out."),
                io.String.Input("pairs", default="", multiline=True,
                                tooltip="Points by hand, in pixels: x y in the photo twin, x y of the same place in "
                                        "the style image. A line for each pair, four pairs or more. Empty: none."),
                inputs.image("twin", "The style image's counterpart among photos, from Make Photo Twin. Without, the "
                                     "mean face of photos is compared with.", optional=True),
                sockets.STRUCTURE_NET.Input("structure_net", optional=True,
                                            tooltip="Finds places of the twin again in a style image whose face "
                                                    "cannot be read, such as a flat avatar. It needs the twin.")],
            outputs=[
                sockets.GEOMETRY.Output("geometry", display_name="geometry",
                                        tooltip="How the style image deforms a face, for Follow Geometry."),
                io.String.Output("report", display_name="report",
                                 tooltip="What was compared, and how far the landmarks are shifted.")])

    @classmethod
    def validate_inputs(cls, pairs: str | None = None) -> bool | str:
        try:
            pairs_in(pairs or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, style_image: Tensor, symmetric: bool, mouth: bool, pairs: str, twin: Tensor | None = None,
                structure_net: StructureNetModel | None = None) -> io.NodeOutput:
        style = one_picture(style_image, "style_image")
        plain = None if twin is None else one_picture(twin, "twin")
        networks = load_faces()
        with host.running(patched(networks)):
            made = read_geometry(networks, style, plain, pairs_in(pairs), structure_net)
        made = geometry.symmetric(made, networks.mesh.mirror) if symmetric else made
        made = made if mouth else geometry.without_opening(made)
        report = f"{made.origin}\nlandmarks are shifted by {100 * made.size:.1f} % of the face's radius in the mean"
        shown = ui.PreviewImage(images.from_pil(drawing(made)), cls=cls).as_dict()
        return io.NodeOutput(made, report, ui=shown | {"text": (report,)})


def patched(networks: FaceNetworks) -> host.PatchedModule:
    return host.PatchedModule(nn.ModuleDict({"detector": networks.detector, "mesh": networks.mesh}))


def one_picture(image: Tensor, what: str) -> Tensor:
    """(3, H, W) in [-1, 1] of an IMAGE of one."""
    return images.checked(images.single(image, what), what)[0] * 2 - 1


def pairs_in(text: str) -> tuple[Tensor, Tensor] | None:
    """The points (n, 2) in the twin and in the style image of a text; None for an empty one. ValueError."""
    rows = face_sources.numbers_of_lines(text, 4, PAIRS_ADVICE)
    if rows and len(rows) < FEWEST_PAIRS:
        raise ValueError(f"pairs has {len(rows)} lines, {FEWEST_PAIRS} are needed. {PAIRS_ADVICE}")
    numbers = torch.tensor(rows)
    return (numbers[:, :2], numbers[:, 2:]) if rows else None


def read_geometry(networks: FaceNetworks, style: Tensor, twin: Tensor | None, pairs: tuple[Tensor, Tensor] | None,
                  structure_net: StructureNetModel | None) -> FaceGeometry:
    """How a style image (3, H, W) deforms its twin's face, or the mean face: by pairs, by landmarks if the mesh is sure
    of them, else by places that look alike, else by landmarks that it is not sure of. ValueError if there are none."""
    plain = None if twin is None else landmarks_of_twin(networks, twin)
    if pairs is not None:
        if twin is None or plain is None:
            raise ValueError("pairs are of the photo twin and the style image. Connect the twin, too")
        return matching.geometry_of_matches(*pairs, plain.points, max(twin.shape[1:]), f"{len(pairs[0])} pairs by hand",
                                            geometry.STIFFNESS)
    found = geometry.landmarks(networks, style)
    if not (found and found.sure) and structure_net is not None:
        if twin is None or plain is None:
            raise ValueError("style_image: no face was read surely, and the structure network needs a photo to compare "
                             "it with. Connect the twin")
        return matched(structure_net, style, twin, plain)
    if found is None:
        raise ValueError(f"style_image: no face was found. {WAYS}")
    if not found.sure:
        host.warn(f"style_image: the face's landmarks are uncertain (quality {found.quality:.1f}, sure from "
                  f"{geometry.SURE:.0f}), so shapes may follow them wrongly. {WAYS}")
    against = geometry.mean_face() if plain is None else plain.points
    read = geometry.straightened(networks, style, found, against)
    name = "the mean face" if plain is None else f"the twin (quality {plain.quality:.1f})"
    return geometry.geometry_of(against, read.points,
                                f"landmarks of the style image (quality {found.quality:.1f}) against {name}")


def landmarks_of_twin(networks: FaceNetworks, twin: Tensor) -> Landmarks:
    found = geometry.landmarks(networks, twin)
    if found is None:
        raise ValueError("twin: no face was found. Take another candidate of Make Photo Twin, or disconnect the twin: "
                         "then the mean face of photos is compared with")
    return found


def matched(structure_net: StructureNetModel, style: Tensor, twin: Tensor, plain: Landmarks) -> FaceGeometry:
    with host.running(structure_net.patched) as device:
        net = cast(StructureNet, structure_net.net)
        pairs = matching.mutual_matches(net, twin.to(device), style.to(device))
    places = matching.consistent(*pairs, plain.points)
    return matching.geometry_of_matches(*places, plain.points, max(twin.shape[1:]),
                                        f"{len(places[0])} places of the twin found again in the style image")


def drawing(made: FaceGeometry) -> Image.Image:
    """The face without the deformation in grey, and where its points go in red."""
    shown = Image.new("RGB", (SHOWN_PX, SHOWN_PX), "white")
    draw = ImageDraw.Draw(shown)
    before, after = (((points * SHOWN_SCALE) + SHOWN_PX / 2).tolist() for points in
                     (made.points, made.points + made.shift))
    for one, other in zip(before, after, strict=True):
        draw.line([*one, *other], fill="#e0a0a0")
    for points, colour in ((before, "#808080"), (after, "#d02020")):
        outline = [tuple(points[k]) for k in OUTLINE]
        draw.line([*outline, outline[0]], fill=colour, width=2)
        for x, y in points:
            draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=colour)
    return shown


# --- following --------------------------------------------------------------------------------------------------------
@dataclass
class Followed:
    """Pictures and masks, bent where there is a face, as IMAGEs and MASKs of one; what there is to be said of those,
    and the numbers of the others."""
    pictures: list[Tensor]
    masks: list[Tensor]
    lines: list[str]
    left: list[int]


class FollowGeometry(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierFollowGeometry", display_name="Follow Geometry", category="Atelier/faces",
            description="Deforms the faces of stylized pictures as the style image deforms one. It works with any "
                        "stylizer. Strength 0 gives the pictures as they are, to the bit.",
            inputs=[
                inputs.image("results", "The stylized pictures. The largest face of each is deformed."),
                sockets.GEOMETRY.Input("geometry", tooltip="How the style image deforms a face, from Geometry from "
                                                           "Reference."),
                slider("strength", 1.0, geometry.MAX_STRENGTH, "How far. 0: not at all. 1: as far as the style image. "
                                                               "More exaggerates."),
                inputs.image("photos", "The very pictures that were stylized, as many, or one for all. Faces that "
                                       "cannot be read in the result are read in them.", optional=True),
                io.Mask.Input("masks", optional=True,
                              tooltip="Masks of the pictures, as many, or one for all. They are deformed with them.")],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The deformed pictures."),
                io.Mask.Output("mask", display_name="mask", tooltip="The deformed masks, if masks are connected."),
                io.String.Output("report", display_name="report",
                                 tooltip="How far each face was deformed, and which were left as they are.")])

    @classmethod
    def execute(cls, results: Tensor, geometry: FaceGeometry, strength: float, photos: Tensor | None = None,
                masks: Tensor | None = None) -> io.NodeOutput:
        count = len(images.check(results, "results"))
        if photos is not None and (given := len(images.check(photos, "photos"))) not in (1, count):
            raise ValueError(f"{count} results cannot be paired with {given} photos. Connect as many photos as "
                             "results, or a single one")
        masks = checked_masks(masks, results)
        if not strength:
            report = "strength is 0: nothing was deformed"
            return io.NodeOutput(results, mask_output(masks), report, ui=ui.PreviewText(report))
        done = follow(results, photos, masks, geometry, strength)
        if not done.lines:
            raise ValueError("\n".join(without_a_face(place, photos) for place in done.left))
        left = [without_a_face(place, photos, ", so it stays as it is") for place in done.left]
        if left:
            host.warn("\n".join(left))
        report = "\n".join([*done.lines, *left])
        return io.NodeOutput(torch.cat(done.pictures), mask_output(torch.cat(done.masks) if done.masks else None),
                             report, ui=ui.PreviewText(report))


def without_a_face(place: int, photos: Tensor | None, then: str = "") -> str:
    """What to say of a picture in which no face was found. then: what becomes of it."""
    if photos is None:
        return f"picture {place}: no face was found{then}. Connect the photos that were stylized"
    return f"picture {place}: no face was found in it or in its photo{then}. Connect pictures that show one"


def mask_output(masks: Tensor | None) -> Tensor | host.ExecutionBlocker:
    return host.blocked("no mask is connected to Follow Geometry") if masks is None else masks


def checked_masks(masks: Tensor | None, results: Tensor) -> Tensor | None:
    """A mask (H, W) for each picture of an IMAGE. ValueError for others."""
    if masks is None:
        return None
    masks = masks[None] if masks.ndim == 2 else masks
    if len(masks) not in (1, len(results)) or masks.shape[1:] != results.shape[1:3]:
        raise ValueError(f"masks: {tuple(masks.shape)} does not fit pictures of {tuple(results.shape[:3])}. Connect "
                         "masks of the same pictures, or one for all")
    return masks.float().expand(len(results), -1, -1)


def follow(results: Tensor, photos: Tensor | None, masks: Tensor | None, made: FaceGeometry,
           strength: float) -> Followed:
    """Every picture of an IMAGE, bent; those without a face stay as they are."""
    networks, progress, done = load_faces(), NodeProgress(len(results)), Followed([], [], [], [])
    with host.running(patched(networks)):
        for place in range(len(results)):
            one = images.checked(results[place:place + 1], "results")
            photo = None if photos is None else images.checked(photos[place % len(photos)][None], "photos")[0] * 2 - 1
            mask = None if masks is None else masks[place]
            points = points_of(networks, one[0] * 2 - 1, photo)
            if points is None:
                done.left.append(place)
            else:
                bend = geometry.following(one[0], points, made, strength)
                one, mask = warp.bent(one[0], bend)[None], None if mask is None else warped_mask(mask, bend)
                done.lines.append(said(place, points, made, strength, bend))
            done.pictures.append(rearrange(one, "b c h w -> b h w c"))
            done.masks += [] if mask is None else [mask[None]]
            progress()
    return done


def warped_mask(mask: Tensor, bend: warp.Bend) -> Tensor:
    return warp.bent(mask[None], bend, "bilinear")[0]


def points_of(networks: FaceNetworks, result: Tensor, photo: Tensor | None) -> Tensor | None:
    """The landmarks (468, 2) of a result (3, H, W) in [-1, 1], in its pixels: read in it where its photo has the face
    if the mesh is sure of them there, else the photo's. Without a photo, or a face in it, what is found in the
    result."""
    seen = None if photo is None else geometry.landmarks(networks, photo)
    if photo is None or seen is None:
        found = geometry.landmarks(networks, result)
        return found and found.points
    ratio = torch.tensor([result.shape[2] / photo.shape[2], result.shape[1] / photo.shape[1]])
    square = seen.square * torch.cat([ratio, ratio.max()[None], torch.ones(1)])
    found = geometry.landmarks_in(networks, result, square)
    return found.points if found.sure else seen.points * ratio


def said(place: int, points: Tensor, made: FaceGeometry, strength: float, bend: warp.Bend) -> str:
    moved = (made.targets(points, strength) - points).norm(dim=1).mean()
    stiffer = "" if bend.stiffness == geometry.STIFFNESS else ", smoothed, since the picture would have folded"
    return f"picture {place}: landmarks moved by {moved:.1f} px in the mean{stiffer}"


class SaveGeometry(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSaveGeometry", display_name="Save Geometry", category="Atelier/faces", is_output_node=True,
            description="Saves a geometry in models/face_geometries as a small safetensors file. Load Geometry lists "
                        "it after a refresh of the page (R).",
            inputs=[sockets.GEOMETRY.Input("geometry", tooltip="The geometry to save."),
                    inputs.file_name("my_geometry"),
                    inputs.overwrite("geometry")],
            outputs=inputs.saved_path())

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return inputs.valid_name(name)

    @classmethod
    def execute(cls, geometry: FaceGeometry, name: str, overwrite: bool) -> io.NodeOutput:
        return save_once("face_geometries", name, overwrite, lambda path: holds(path, load_geometry, geometry, made_of),
                         lambda path: save_geometry(path, geometry), "geometry")


def made_of(one: FaceGeometry) -> tuple[object, dict[str, Tensor]]:
    return one.origin, {"points": one.points, "shift": one.shift}


NODES = [GeometryFromReference, FollowGeometry, SaveGeometry]
