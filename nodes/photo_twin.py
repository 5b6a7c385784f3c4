"""The photo twin: the style image's counterpart in the source domain, I_A of the paper (docs/osasis.md B)."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.latest import io, ui
from torch import Tensor, nn

from ..models import osasis
from ..models.osasis import sampling_memory, twin_steps
from ..models.precision import AUTO
from . import host, images, inputs, sockets
from .base import AtelierNode
from .host import NodeProgress
from .osasis import T0, chunks
from .sockets import DDPMModel, PerceptualModel

POOR = 0.35  # mean absolute difference, of pictures in [-1, 1], from which a twin shows something else


@dataclass(frozen=True)
class RankedTwins:
    """Candidates (n, 3, px, px), best first, with score and mean absolute difference, both (n,)."""
    twins: Tensor
    score: Tensor
    difference: Tensor

    def report(self) -> str:
        rows = [f"{rank}: score {s:.3f} (10 x difference {d:.3f} + perceptual {s - 10 * d:.3f})"
                for rank, (s, d) in enumerate(zip(self.score.tolist(), self.difference.tolist()))]
        return "\n".join(rows)

    def warning(self) -> str:
        best = float(self.difference.min())
        return "" if best <= POOR else (
            f"Even the closest candidate is far from the style image (difference {best:.2f}, above {POOR}). The model "
            "of photos may not know this subject. Load a DDPM of the style image's domain, try another seed, more "
            "candidates or a lower t0, or crop the style image to an upright face.")


def rank(twins: Tensor, style_image: Tensor, distance: nn.Module, device: torch.device, batch: int) -> RankedTwins:
    """Best first, by 10 x mean absolute difference + perceptual distance."""
    twins, style_image, scores = twins.clamp(-1, 1), style_image.to(device), []
    for part in twins.split(batch):
        host.check_interrupt()
        scores.append(osasis.twin_scores(part.to(device), style_image, distance))
    score = torch.cat(scores).float().cpu()
    order = score.argsort()
    difference = (twins - style_image.cpu()).abs().mean((1, 2, 3))
    return RankedTwins(twins[order], score[order], difference[order])


class PhotoTwin(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierPhotoTwin", display_name="Make Photo Twin", category="Atelier/osasis",
            description="Makes the style image's counterpart among photos (the paper's I_A): noises the style image up "
                        "to t0 and denoises it with a diffusion model of photos. Fine-tuning learns the change from "
                        "the photo twin to the style image.",
            inputs=[
                sockets.DDPM.Input("ddpm", tooltip="The diffusion model of photos."),
                sockets.PERCEPTUAL.Input("perceptual", tooltip="Ranks the candidates, with the mean difference."),
                inputs.image("style_image", "One style image: an upright face. Other shapes are squashed to the "
                                            "model's square."),
                io.Int.Input("candidates", default=30, min=1, max=256,
                             tooltip="Number of candidates to generate and rank. 30 as in the paper. 1 as in the "
                                     "official program: no selection."),
                io.Float.Input("t0", display_name="strength (t0)", default=T0, min=0.05, max=1.0, step=0.05,
                               tooltip="Noise level up to which the style image is noised. 0.5 is official. Higher: "
                                       "more like a photo, less like the style image."),
                io.Int.Input("steps", default=50, min=2, max=1000,
                             tooltip="Steps of the whole schedule. Of these, t0 x steps are run, and one more with "
                                     "noise_level matched. 50 is official."),
                io.Int.Input("pick", default=0, min=0, max=255,
                             tooltip="Rank of the candidate that is put out as the twin. 0 is the best."),
                inputs.fixed_seed("Seed of the candidates. Candidate n of a seed is the same whatever their number."),
                inputs.advanced(inputs.choice(
                    "noise_level", osasis.NOISE_LEVELS, "official",
                    "Where denoising starts. official: one step cleaner than the noise that was added, as in the "
                    "official program. matched: at the same level.")),
                inputs.batch("Candidates at a time.", optional=True),
                inputs.precision("Number format of the network on a GPU. auto is float16; the official program has "
                                 "float32. A CPU always computes in float32.", optional=True)],
            outputs=[
                io.Image.Output("twin", display_name="twin", tooltip="The picked candidate."),
                io.Image.Output("ranked", display_name="ranked candidates", tooltip="All candidates, best first."),
                io.String.Output("scores", display_name="scores", tooltip="A line for each candidate, best first.")])

    @classmethod
    def execute(cls, ddpm: DDPMModel, perceptual: PerceptualModel, style_image: Tensor, candidates: int, t0: float,
                steps: int, pick: int, seed: int, noise_level: str, batch: int = 8,
                precision: str = AUTO) -> io.NodeOutput:
        if pick >= candidates:
            raise ValueError(f"pick is {pick}, but there are {candidates} candidates, counted from 0. Lower pick")
        count = twin_steps(steps, t0, noise_level)
        if not count:
            raise ValueError(f"t0 x steps < 1 (t0 {t0:g}, {steps} steps); increase t0 or steps")
        config = ddpm.net.config
        x = images.to_model(images.single(style_image, "style_image"), config.image_size, "style_image")
        rows = chunks(candidates, batch)
        progress, parts = NodeProgress(count * len(rows)), []
        memory = sampling_memory(config, min(batch, candidates))
        with host.sampling(ddpm.patched, precision, memory) as (device, net):
            for r in rows:
                noise = osasis.twin_noise(seed, range(r.start, r.stop), x.shape[1:], device)
                parts.append(osasis.photo_twins(
                    net, x.to(device), noise, steps=steps, t0=t0, noise_level=noise_level,
                    hook=lambda i, x0, _: progress(lambda: images.side_by_side(x0))).float().cpu())
        with host.running(perceptual.patched, memory=memory) as device:
            ranked = rank(torch.cat(parts), x, perceptual.distance(), device, batch)
        return output(ranked, pick, cls)


def output(ranked: RankedTwins, pick: int, node: type[io.ComfyNode]) -> io.NodeOutput:
    """Twin, all candidates, scores; candidates and any warning are shown on the node."""
    candidates, warning = images.to_image(ranked.twins), ranked.warning()
    if warning:
        host.show_text(warning)
    shown = ui.PreviewImage(candidates, cls=node).as_dict() | {"text": (warning,) if warning else ()}
    report = ranked.report() + (f"\n{warning}" if warning else "")
    return io.NodeOutput(candidates[pick:pick + 1], candidates, report, ui=shown)


NODES = [PhotoTwin]
