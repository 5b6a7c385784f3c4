"""The photo twin: what the style picture would be as a photo (OSASIS spec B)."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from comfy_api.latest import io, ui
from torch import Tensor, nn

from ..models import osasis
from ..models.diffusion import even_table
from ..train.loop import step_seed
from . import host, pictures, schema, sockets
from .host import Steps
from .osasis import chunks

POOR = 0.35  # mean absolute difference, of pictures in [-1, 1], from which a twin shows something else


@dataclass(frozen=True)
class Ranked:
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
            f"Even the closest candidate is far from the style picture (difference {best:.2f}, above {POOR}): the "
            "model of photos may not know this subject. Try another seed, more candidates, a lower strength, or crop "
            "the style picture to an upright face.")


def rank(twins: Tensor, style: Tensor, distance: nn.Module, device: torch.device, batch: int) -> Ranked:
    """Best first, by 10 x mean absolute difference + perceptual distance."""
    twins, style = twins.clamp(-1, 1), style.to(device)
    scores = [osasis.twin_scores(part.to(device), style, distance) for part in twins.split(batch)]
    score = torch.cat(scores).float().cpu()
    order = score.argsort()
    difference = (twins - style.cpu()).abs().mean((1, 2, 3))
    return Ranked(twins[order], score[order], difference[order])


class PhotoTwin(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierPhotoTwin", display_name="Make Photo Twin", category="Atelier/osasis",
            description="Makes the style picture's counterpart among photos: noises it half-way and lets a model of "
                        "photos take the noise out again. Fine-tuning learns the step from the twin to the style "
                        "picture.",
            inputs=[
                sockets.DDPM.Input("ddpm", tooltip="The diffusion model of photos."),
                sockets.PERCEPTUAL.Input("perceptual", tooltip="Ranks the candidates, with the mean difference."),
                schema.image("style", "One style picture: an upright face, squashed to the model's square."),
                io.Int.Input("candidates", default=30, min=1, max=256,
                             tooltip="How many to make and rank; 30 as in the paper. 1 is the official program's own "
                                     "behaviour: no choice at all."),
                io.Float.Input("strength", default=0.5, min=0.05, max=1.0, step=0.05,
                               tooltip="How far the style picture is noised (t0). 0.5 is official; more gives a "
                                       "better photo that is less like the style picture."),
                io.Int.Input("steps", default=50, min=2, max=1000,
                             tooltip="Steps of the whole schedule; of these, strength x steps are taken. 50 is "
                                     "official."),
                io.Int.Input("pick", default=0, min=0, max=255, tooltip="Which rank to give out as the twin; 0 is the "
                                                                        "best."),
                schema.seed("Which candidates; candidate n is the same whatever the number of candidates."),
                schema.advanced(io.Combo.Input(
                    "noise_level", options=list(osasis.NOISE_LEVELS), default="official",
                    tooltip="official: denoising starts one step cleaner than the noise that was added, as the "
                            "program does. matched: at the same level.")),
                schema.advanced(io.Int.Input("batch", default=8, min=1, max=64, optional=True,
                                             tooltip="Candidates at a time: more is faster and takes more memory."))],
            outputs=[
                io.Image.Output("twin", display_name="twin", tooltip="The picked candidate."),
                io.Image.Output("ranked", display_name="ranked candidates", tooltip="All candidates, best first."),
                io.String.Output("scores", display_name="scores", tooltip="A line for each candidate, best first.")])

    @classmethod
    def execute(cls, ddpm, perceptual, style, candidates, strength, steps, pick, seed, noise_level, batch=8):
        if pick >= candidates:
            raise ValueError(f"pick is {pick}, but there are {candidates} candidates, counted from 0; lower it")
        config = ddpm.managed.net.config
        count = twin_steps(steps, strength, noise_level)
        x = pictures.to_model(pictures.single(style, "style"), config.image_size, "style")
        rows = chunks(candidates, batch)
        progress, parts = Steps(count * len(rows)), []
        memory = host.sampling_memory(config, min(batch, candidates))
        with host.running(ddpm.managed, memory=memory) as device:
            for r in rows:
                parts.append(osasis.photo_twins(
                    ddpm.managed.net, x.to(device), noise_of(range(r.start, r.stop), x.shape[1:], seed, device),
                    steps=steps, t0=strength, noise_level=noise_level,
                    hook=lambda i, x0, _: progress(lambda: pictures.strip(x0))).float().cpu())
        with host.running(perceptual.managed, memory=memory) as device:
            ranked = rank(torch.cat(parts), x, perceptual.distance(), device, batch)
        return output(ranked, pick, cls)


def twin_steps(steps: int, strength: float, noise_level: str) -> int:
    """How many denoising steps there are. ValueError if there is none."""
    count = min(even_table(steps).index_of(strength) + (noise_level == "matched"), steps)
    if not count:
        raise ValueError(f"strength {strength} leaves no step of {steps}; raise one of them")
    return count


def noise_of(candidates: range, shape: torch.Size, seed: int, device: torch.device):
    """Draws (n, *shape); a candidate's noise depends on the seed and its number alone."""
    sources = [osasis.gaussian(shape, step_seed(seed, number), torch.device("cpu")) for number in candidates]
    return lambda: torch.stack([draw() for draw in sources]).to(device)


def output(ranked: Ranked, pick: int, node: type[io.ComfyNode]) -> io.NodeOutput:
    """Twin, all candidates, scores; candidates and any warning are shown on the node."""
    images, warning = pictures.to_image(ranked.twins), ranked.warning()
    if warning:
        host.say(warning)
    shown = ui.PreviewImage(images, cls=node).as_dict() | ({"text": (warning,)} if warning else {})
    report = ranked.report() + (f"\n{warning}" if warning else "")
    return io.NodeOutput(images[pick:pick + 1], images, report, ui=shown)


NODES = [PhotoTwin]
