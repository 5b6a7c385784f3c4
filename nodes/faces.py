"""Nodes that cut faces out of whole pictures, as the models want them, and put what became of them back."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io, ui
from einops import rearrange
from PIL import ImageDraw, ImageFont
from torch import Tensor, nn

from ..models.faces import crops
from ..models.faces.align import COLOUR_MATCHES, ColourMatch, PasteSettings
from ..models.faces.crops import Choice, FaceCrop, FaceCrops, FaceSquare
from ..models.faces.find import Face, FaceSearch, FaceSettings, search_faces
from ..models.faces.networks import load_faces
from ..models.faces.steady import Follower, Frame, steadied
from ..models.films import Continuity, reduced, shot_starts
from . import face_sources, host, images, inputs, sockets
from .base import AtelierNode
from .host import NodeProgress

AREAS = ("square", "face")
SHOWN, SHOWN_SIDE = 4, 1024  # pictures on the node, with the squares that were found in them; their longer side
COLOURS = ("#ff4040", "#ffd000", "#30d060", "#40a0ff", "#d060ff")
Search = Callable[[Tensor], FaceSearch]
Finder = Callable[[Tensor, int], "Answer"]
NO_PREVIEW = {"images": (), "animated": (False,)}  # as ui.PreviewImage: runs over a list need the same keys


@dataclass(frozen=True)
class Answer:
    """The squares in a picture, the largest first; without any, why there are none."""
    squares: list[FaceSquare]
    why_none: str = ""


@dataclass
class Cut:
    """What was cut out of a batch, as crops, as IMAGE (N, size, size, 3) and as MASK (N, size, size), and what there is
    to be said."""
    crops: list[FaceCrop] = field(default_factory=list)
    pictures: Tensor = torch.empty(0)
    masks: Tensor = torch.empty(0)
    shown: list[Tensor] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, count: int, size: int) -> Cut:
        """With room for so many crops."""
        return cls(pictures=torch.empty(count, size, size, 3), masks=torch.empty(count, size, size))

    def add(self, crop: FaceCrop, picture: Tensor) -> None:
        """A crop, and the same as IMAGE (1, size, size, 3). Both share the mask's memory."""
        row = len(self.crops)
        self.pictures[row], self.masks[row] = picture[0], crop.mask
        self.crops.append(replace(crop, mask=self.masks[row]))


class AlignFaces(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        defaults = FaceSettings()
        return io.Schema(
            node_id="AtelierAlignFaces", display_name="Detect & Align Faces", category="Atelier/faces",
            description="Finds the faces of whole pictures and cuts each out as FFHQ does: upright, square, eyes and "
                        "mouth where the models expect them. Connect the crops to any stylizer, and its results with "
                        "face_crop to Paste Faces Back.",
            inputs=[
                inputs.image("image", "Whole pictures, of any shape. Turned, lying and drawn faces are found, too. "
                                      "RGBA is laid on white."),
                io.Int.Input("size", default=256, min=16, max=2048, step=16,
                             tooltip="Side of the crops in px. 256 for the public OSASIS models, 512 for MMFS, 128 for "
                                     "the demo models."),
                io.Boolean.Input("align", default=True,
                                 tooltip="Off: nothing is searched. Each picture is squashed to the size as a whole, "
                                         "and Paste Faces Back stretches the result to the picture's shape again."),
                inputs.choice("faces", crops.CHOICES, "largest",
                              "Which faces of each picture are cut out. largest: one. by index: the one that index "
                              "names. all: every face, the largest first. nearest point: the one nearest to point."),
                io.Int.Input("index", default=0, min=0, max=255,
                             tooltip="With faces by index: the number of the face. 0 is the largest."),
                io.Boolean.Input("any_direction", default=defaults.any_direction,
                                 tooltip="Look for faces in all four quarter turns of each picture. Off: only where "
                                         "no sure face is found upright."),
                io.Float.Input("threshold", default=defaults.threshold, min=0.05, max=0.95, step=0.05,
                               tooltip="Least score of the detector. Lower it to 0.3 for drawings."),
                inputs.advanced(io.Boolean.Input(
                    "pad", default=True,
                    tooltip="Fill what lies outside the picture with its reflection, as FFHQ does. Off: the "
                            "picture's border goes on.")),
                inputs.advanced(io.Boolean.Input(
                    "fallback", default=False,
                    tooltip="If no face is convincing, take the detector's coarse points. The square is off by about "
                            "a tenth of the distance of the eyes.")),
                io.String.Input("five_points", default="", multiline=True,
                                tooltip="Points by hand, in pixels: x y of left eye, right eye, nose, left and right "
                                        "corner of the mouth. Left is left in the upright face. A line for each "
                                        "picture, or one for all. Empty: none."),
                io.String.Input("box", default="", multiline=True,
                                tooltip="A box by hand, in pixels: x, y, width, height. A line for each picture, or "
                                        "one for all. Empty: none."),
                inputs.choice("box_kind", face_sources.BOX_KINDS, "crop",
                              "What a box is. crop: the square itself, extended to its longer side. face: a face from "
                              "forehead to chin, as detectors give it."),
                sockets.BOUNDING_BOX.Input("bounding_box", optional=True, extra_dict={"forceInput": True},
                                           tooltip="Boxes of another node, in place of the search."),
                sockets.FACE_LANDMARKS.Input("face_landmarks", optional=True,
                                             tooltip="Landmarks of core's MediaPipe Face Landmarker, in place of the "
                                                     "search."),
                io.String.Input("point", default="", optional=True,
                                tooltip="With faces nearest point: x, y in pixels. Empty: the middle of the picture."),
                io.Float.Input("steady", default=0.0, min=0.0, max=60.0, step=0.5, optional=True,
                               tooltip="For the frames of a film: each face is followed, and its square smoothed over "
                                       "so many frames before and after. 3 is good. 0: each picture on its own.")],
            outputs=[
                io.Image.Output("crops", display_name="crops", tooltip="The aligned faces, all of one size."),
                sockets.FACE_CROP.Output("face_crop", display_name="face_crop",
                                         tooltip="Where each crop comes from, for Paste Faces Back."),
                io.Mask.Output("mask", display_name="mask",
                               tooltip="What of each crop is face, from forehead to chin. All of it where no "
                                       "landmarks are known."),
                io.String.Output("report", display_name="report",
                                 tooltip="What was found in each picture, and what was left. Pictures and faces are "
                                         "counted from 0.")])

    @classmethod
    def validate_inputs(cls, five_points: str | None = None, box: str | None = None,
                        point: str | None = "") -> bool | str:
        try:
            face_sources.numbers_of_lines(five_points or "", 10, face_sources.POINTS_ADVICE)
            face_sources.numbers_of_lines(box or "", 4, face_sources.BOX_ADVICE)
            face_sources.point_of(point or "", (1, 1))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, image: Tensor, size: int, align: bool, faces: crops.Chosen, index: int, any_direction: bool,
                threshold: float, pad: bool, fallback: bool, five_points: str, box: str, box_kind: str,
                bounding_box: Any = None, face_landmarks: Any = None, point: str = "",
                steady: float = 0.0) -> io.NodeOutput:
        count, *shape = images.check(image, "image").shape[:3]
        if not align:
            return output(cls, unaligned(image, size), count)
        choice = Choice(faces, index, face_sources.point_of(point, (shape[0], shape[1])))
        cuts = cuts_of(image) if steady else set()
        given = given_squares(count, (shape[0], shape[1]), five_points, box, box_kind, bounding_box, face_landmarks)
        if given is not None:
            cut = cut_all(image, lambda _, place: Answer(given[place], f"No face was given for picture {place}"),
                          choice, (size, pad), steady, cuts=cuts)
        else:
            settings = FaceSettings(threshold, any_direction, settled=True)
            with searching(settings, choice if steady else None, cuts) as (search, device):
                cut = cut_all(image, partial(answered, search, fallback), choice, (size, pad), steady, device, cuts)
        if not cut.crops:
            raise ValueError("\n".join(cut.left))
        return output(cls, cut, count)


def given_squares(count: int, shape: tuple[int, int], five_points: str, box: str, box_kind: str, bounding_box: Any,
                  face_landmarks: Any) -> list[list[FaceSquare]] | None:
    """The squares in each picture that the user or another node gives; None if faces are to be searched. ValueError if
    more than one says where they are."""
    ways = {"five_points": five_points.strip() or None, "box": box.strip() or None, "bounding_box": bounding_box,
            "face_landmarks": face_landmarks}
    used = [name for name, value in ways.items() if value is not None]
    if len(used) > 1:
        raise ValueError(f"{' and '.join(used)} both say where faces are. Give one of them")
    if not used:
        return None
    if used[0] == "five_points":
        return face_sources.from_points(five_points, count)
    if used[0] == "box":
        return face_sources.from_box(box, box_kind, count)
    if used[0] == "bounding_box":
        return face_sources.from_core_boxes(bounding_box, box_kind, count)
    return face_sources.from_core_landmarks(face_landmarks, shape, count)


@contextlib.contextmanager
def searching(settings: FaceSettings, film: Choice | None = None,
              cuts: Collection[int] = ()) -> Iterator[tuple[Search, torch.device]]:
    """Loads the networks of faces; gives the search of a picture (3, H, W) in [-1, 1] on the device, and that.

    film: the pictures are its frames, one after the other; a single face that is asked for is followed. cuts: see
    `Follower`."""
    networks = load_faces()
    patched = host.PatchedModule(nn.ModuleDict({"detector": networks.detector, "mesh": networks.mesh}))
    with host.running(patched) as device:
        if film is None or film.which in ("all", "by index"):
            yield partial(search_faces, networks, settings=settings), device
        else:
            yield Follower(networks, settings, partial(picked, film), cuts), device


def picked(choice: Choice, faces: Sequence[Face]) -> Face | None:
    """The one of a picture's faces that is asked for."""
    rows = choice.of([FaceSquare.of(face) for face in faces])
    return faces[rows[0][0]] if rows else None


def answered(search: Search, fallback: bool, picture: Tensor, place: int) -> Answer:
    """The squares that are found in a picture."""
    found = search(picture)
    squares = crops.squares_found(found, fallback)
    return Answer(squares, "" if squares else crops.why_none(place, found))


def cuts_of(image: Tensor) -> set[int]:
    """The frames of a film, an IMAGE, that begin another shot."""
    continuity, steps_back = Continuity(), []
    for place in range(len(image)):
        host.check_interrupt()
        steps_back.append(continuity(signed(image, place, images.CPU)))
    return set(shot_starts(steps_back))


def cut_all(image: Tensor, find: Finder, choice: Choice, how: tuple[int, bool], steady: float = 0.0,
            device: torch.device = images.CPU, cuts: Collection[int] = ()) -> Cut:
    """Cuts the chosen faces out of every picture, and says what was found in which. how: size of the crops, pad.
    steady, cuts: of the frames of a film, see `steadied`."""
    progress, answers = NodeProgress(2 * len(image)), []
    for place in range(len(image)):
        answers.append(find(signed(image, place, device), place))
        progress()
    frames = [answer.squares for answer in answers]
    chosen = steadied(frames, choice, steady, cuts) if steady else [choice.of(squares) for squares in frames]
    cut = Cut.of(sum(map(len, chosen)), how[0])
    for place, (answer, rows) in enumerate(zip(answers, chosen, strict=True)):
        if not rows:
            cut.left.append(answer.why_none if not answer.squares else crops.why_not_in_frame(place, choice.index)
                            if steady else crops.why_not_this(place, len(answer.squares), choice.index))
        picture = signed(image, place, device) if rows or len(cut.shown) < SHOWN else None
        if picture is not None:
            add_faces(cut, picture, place, rows, how)
            if len(cut.shown) < SHOWN:
                cut.shown.append(outlined(picture, rows if steady else list(enumerate(answer.squares))))
        progress()
    return cut


def signed(image: Tensor, place: int, device: torch.device) -> Tensor:
    """A picture of an IMAGE as (3, H, W) in [-1, 1] on the device."""
    return images.checked(image[place:place + 1], "image", device)[0] * 2 - 1


def add_faces(cut: Cut, picture: Tensor, place: int, rows: Frame, how: tuple[int, bool]) -> None:
    """Cuts squares out of picture number `place`, and says what they are."""
    for (index, square), crop in zip(rows, crops.cut_out(picture, place, rows, *how), strict=True):
        cut.add(crop, images.to_image(crop.crop[None]))
        cut.lines.append(f"picture {place}, face {index}: {square.origin}")
        cut.lines += [f"  {remark}" for remark in crops.remarks(square, crop.size, how[0], place, how[1])]


def unaligned(image: Tensor, size: int) -> Cut:
    """Whole pictures, squashed to the size; those of that size stay as they are."""
    cut = Cut.of(len(image), size)
    for place in range(len(image)):
        host.check_interrupt()
        picture = images.checked(image[place:place + 1], "image")
        crop = crops.whole_picture(picture[0] * 2 - 1, place, size)
        cut.add(crop, images.to_image(crop.crop[None]) if picture.shape[2:] != (size, size)
                else rearrange(picture, "b c h w -> b h w c"))
        cut.lines.append(f"picture {place}: alignment is off, the whole picture")
    return cut


def outlined(picture: Tensor, rows: Frame) -> Tensor:
    """An IMAGE of a picture (3, H, W) in [-1, 1], of at most SHOWN_SIDE, with its squares and the numbers of their
    faces."""
    small = reduced(picture, SHOWN_SIDE)
    scale = small.shape[2] / picture.shape[2]
    drawn = images.to_pil(images.to_image(small[None]))
    draw, width = ImageDraw.Draw(drawn), max(1, round(max(drawn.size) / 250))
    for number, square in rows:
        quad, colour = square.quad * scale, COLOURS[number % len(COLOURS)]
        corners = [(x, y) for x, y in quad.tolist()]
        draw.line([*corners, corners[0]], fill=colour, width=width)
        font = ImageFont.load_default(size=max(12, round(max(drawn.size) / 25)))
        draw.text(tuple(quad.mean(0).tolist()), str(number), colour, font, anchor="mm", stroke_width=width,
                  stroke_fill="black")
    return images.from_pil(drawn)


def output(node: type[io.ComfyNode], cut: Cut, count: int) -> io.NodeOutput:
    """The crops of a batch of `count` pictures; what was left is said on the node and in the log."""
    if cut.left:
        host.warn("\n".join(cut.left))
    report = "\n".join([*cut.lines, *(f"left out: {line}" for line in cut.left)])
    shown = ui.PreviewImage(torch.cat(cut.shown), cls=node).as_dict() if cut.shown else NO_PREVIEW
    return io.NodeOutput(cut.pictures, FaceCrops(tuple(cut.crops), count), cut.masks, report,
                         ui=shown | {"text": (report,)})


class PasteFaces(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        defaults = PasteSettings()
        return io.Schema(
            node_id="AtelierPasteFaces", display_name="Paste Faces Back", category="Atelier/faces",
            description="Puts stylized faces back to where Detect & Align Faces cut them out. Outside of the faces' "
                        "squares the pictures stay as they are, to the bit.",
            inputs=[
                inputs.image("image", "The whole pictures that went into Detect & Align Faces, or the same ones at "
                                      "another size."),
                inputs.image("results", "The stylized crops, one for each, square and of any size."),
                sockets.FACE_CROP.Input("face_crop", tooltip="Where the crops come from."),
                io.Float.Input("feather", default=defaults.feather, min=0.01, max=0.5, step=0.01,
                               tooltip="Width of the fading border, as a share of the square."),
                inputs.choice("area", AREAS, "square",
                              "What is put back. square: the whole crop, with hair and background. face: what lies "
                              "inside the face's outline, where landmarks are known."),
                inputs.choice("match_colour", COLOUR_MATCHES, defaults.match_colour,
                              "border: near the border, the result takes on the picture's colours. whole: all of it "
                              "gets the picture's mean and deviation. none: the result as it is."),
                io.Float.Input("upscale", default=1.0, min=1.0, max=8.0, step=0.25,
                               tooltip="Enlarge the pictures by this first, so that results keep their detail. 1 "
                                       "leaves their size."),
                io.Mask.Input("mask", optional=True,
                              tooltip="What of each result is put back, in the place of area. A mask for each, or one "
                                      "for all.")],
            outputs=[io.Image.Output("pasted", display_name="image",
                                     tooltip="The whole pictures, all of the batch. Those without a face stay as "
                                             "they are.")])

    @classmethod
    def execute(cls, image: Tensor, results: Tensor, face_crop: FaceCrops, feather: float, area: str,
                match_colour: ColourMatch, upscale: float, mask: Tensor | None = None) -> io.NodeOutput:
        check_batches(image, results, face_crop)
        masks = masks_of(face_crop, area, mask)
        settings, progress, pasted = PasteSettings(feather, match_colour), NodeProgress(len(image)), torch.empty(0)
        for place in range(len(image)):
            picture = images.checked(image[place:place + 1], "image")
            rows = [(crop, images.checked(results[k:k + 1], "results")[0] * 2 - 1, masks[k])
                    for k, crop in enumerate(face_crop.crops) if crop.picture == place]
            made = with_faces(picture, rows, settings, upscale)
            pasted = pasted if place else torch.empty(len(image), *made.shape[1:])
            pasted[place] = made[0]
            progress()
        return io.NodeOutput(pasted)


def with_faces(picture: Tensor, rows: list[tuple[FaceCrop, Tensor, Tensor | None]], settings: PasteSettings,
               upscale: float) -> Tensor:
    """IMAGE (1, H, W, 3) of a picture (1, 3, H, W) in 0..1 with its results; values that did not change keep every
    bit."""
    before = picture[0] * 2 - 1
    after = crops.put_back(before, rows, settings, upscale)
    out = images.to_image(after[None])
    if after.shape != before.shape:
        return out
    return torch.where(rearrange(after == before, "c h w -> 1 h w c"), rearrange(picture, "b c h w -> b h w c"), out)


def check_batches(image: Tensor, results: Tensor, face_crop: FaceCrops) -> None:
    """ValueError if the pictures or the results are not as many as were cut out, or the results not square."""
    count, found = len(images.check(image, "image")), len(images.check(results, "results"))
    if count != face_crop.pictures:
        raise ValueError(f"image: {count} pictures, but the faces were cut out of {face_crop.pictures}. Connect the "
                         "same batch to both nodes")
    if found != len(face_crop.crops):
        raise ValueError(f"results: {found} pictures for {len(face_crop.crops)} crops. Connect one result for each")
    if results.shape[1] != results.shape[2]:
        raise ValueError(f"results: {results.shape[2]} x {results.shape[1]} px, but crops are square. Stylize the "
                         "crops themselves")


def masks_of(face_crop: FaceCrops, area: str, mask: Tensor | None) -> list[Tensor | None]:
    """What of each result is put back: (n, n) 0..1, or None for the whole square. ValueError for too few masks."""
    if mask is not None:
        mask = mask[None] if mask.ndim == 2 else mask
        if len(mask) not in (1, len(face_crop.crops)):
            raise ValueError(f"mask: {len(mask)} masks for {len(face_crop.crops)} crops. Connect one for each, or one "
                             "for all")
        return list(mask.float().clamp(0, 1).cpu().expand(len(face_crop.crops), -1, -1))
    return [crop.mask if area == "face" else None for crop in face_crop.crops]


NODES = [AlignFaces, PasteFaces]
