"""The node that looks at the kept snapshots of an OSASIS fine-tune and takes the best of them."""
from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io, ui
from torch import Tensor

from ..evaluate import snapshots
from ..train.osasis_snapshots import snapshots_of, style_at
from ..train.plots import labelled_grid
from ..train.session import snapshot_file
from . import host, images, inputs, sockets
from .base import AtelierNode
from .osasis import check_stylizing, stylized
from .sockets import CLIPModel, LoadedStyle, MixedCodes, StructuralCode

SHOWN = 8  # photos on the strip


class ChooseOSASISSnapshot(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierChooseOSASISSnapshot", display_name="Choose OSASIS Snapshot", category="Atelier/training",
            description="Stylizes photos with every kept snapshot of a fine-tune, shows them side by side, and takes "
                        "the one with the best balance of style and structure. Nothing is trained.",
            inputs=[
                sockets.OSASIS_STYLE.Input("style", tooltip="The style that the fine-tune made."),
                io.String.Input("name", default="my_style",
                                tooltip="The name that the fine-tune has. Its keep must be above 1, so that there are "
                                        "earlier snapshots."),
                sockets.CLIP.Input("clip", tooltip="Compares how photos change with the style's direction."),
                sockets.STRUCTURAL_CODE.Input("structure", tooltip="The photos' structural codes. Some four are "
                                                                   "enough."),
                sockets.MIXED_CODES.Input("mix", tooltip="The mixed semantic codes, from Mix Codes."),
                inputs.steps(20, "Steps of the whole schedule. Of these, t0 x steps are run, and one more with solver "
                                 "ddim and noise_level matched."),
                inputs.image("twin", "The style image's photo twin, where the style's direction begins. Not connected: "
                                     "at the photos' mean. A style from words needs none.", optional=True)],
            outputs=[
                sockets.OSASIS_STYLE.Output("best", display_name="style", tooltip="The style of the best snapshot, for "
                                                                                  "Stylize with OSASIS and Save OSASIS "
                                                                                  "Style."),
                io.Image.Output("strip", display_name="strip", tooltip="The photos in every snapshot, with iteration "
                                                                       "and score. The best one has a star."),
                io.Image.Output("results", display_name="image", tooltip="The photos in the best snapshot."),
                io.Int.Output("iterations", display_name="iterations", tooltip="Iterations of the best snapshot."),
                io.String.Output("report", display_name="report", tooltip="The scores, a line each.")])

    @classmethod
    def validate_inputs(cls, name: str | None = None, steps: int | None = None) -> bool | str:
        valid = inputs.valid_name(name)
        return valid if valid is not True else inputs.valid_steps(steps)

    @classmethod
    def execute(cls, style: LoadedStyle, name: str, clip: CLIPModel, structure: StructuralCode, mix: MixedCodes,
                steps: int, twin: Tensor | None = None) -> io.NodeOutput:
        check_stylizing(style, structure, mix, steps)
        start = None if twin is None else images.checked(images.single(twin, "twin"), "twin") * 2 - 1
        files, settings = snapshots_of(style.style, snapshot_file(host.snapshot_folder(), name)), style.settings
        settings, results = replace(settings, t0=structure.t0), {}
        for step, file in files.items():  # one network in memory at a time
            one = LoadedStyle.of(style_at(style.style, step, file))
            results[step] = stylized(one, structure, mix, steps, settings)
        made = {step: images.checked(image, "results") * 2 - 1 for step, image in results.items()}
        with host.running(clip.patched) as device:
            photos = structure.picture.to(device)
            direction = snapshots.style_direction(clip.net, style.style, photos,
                                                  None if start is None else start.to(device))
            scores = {step: snapshots.score(clip.net, photos, x, direction) for step, x in made.items()}
        best, report = snapshots.best_of(scores), snapshots.report(scores)
        host.show_text(report)
        labels = [f"{'* ' if step == best else ''}{step}: {one.product:.2f}" for step, one in scores.items()]
        columns = [structure.picture, *made.values()]
        rows = [list(row) for row in zip(*(column[:SHOWN] for column in columns), strict=True)]
        strip = images.from_pil(labelled_grid(rows, ["photo", *labels]))
        chosen = LoadedStyle.of(style_at(style.style, best, files[best]))
        return io.NodeOutput(chosen, strip, results[best], best, report, ui=ui.PreviewImage(strip, cls=cls))


NODES = [ChooseOSASISSnapshot]
