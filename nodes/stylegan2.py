"""Random faces of a StyleGAN2, and the noise that it and MMFS draw with."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from comfy_api.latest import io
from torch import Generator, Tensor

from ..models import stylegan2
from ..models.stylegan2 import NOISES, StyleGAN2
from ..train.loop import step_seed
from . import host, pictures, schema, sockets
from .host import Steps
from .osasis import CHUNK, chunks


class SampleStyleGAN2(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AtelierSampleStyleGAN2", display_name="Sample StyleGAN2", category="Atelier/mmfs",
            description="Draws random faces with a StyleGAN2: to see what it knows, or as faces to fine-tune MMFS on.",
            inputs=[
                sockets.STYLEGAN2.Input("stylegan2", tooltip="The generator."),
                schema.seed("Which faces; face n of a seed is the same whatever their number.", roll=True),
                io.Int.Input("count", default=4, min=1, max=256, tooltip="How many pictures."),
                truncation_input(0.7),
                io.Int.Input("cutoff", default=-1, min=-1, max=18,
                             tooltip="Truncate the first so many layers only, which decide the face's form; -1 for "
                                     "all."),
                *mixing_inputs("faces"),
                io.Combo.Input("noise", options=list(NOISES), default="seeded",
                               tooltip="Of hair and skin: seeded (of each face its own), constant (the file's own, the "
                                       "same for all), or zero (smooth).")],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The drawn faces.")])

    @classmethod
    def execute(cls, stylegan2, seed, count, truncation, cutoff, mix_seed, mix_from, noise):
        w = face_styles(stylegan2, seed, count, truncation, cutoff, mix_seed, mix_from)
        net, rows = stylegan2.net, chunks(count)
        px, progress, parts = net.config.resolution, Steps(len(rows)), []
        memory = host.drawing_memory(net.config.channels[-1], px, px, min(CHUNK, count))
        with host.running(stylegan2.managed, memory=memory) as device:
            for r in rows:
                x = net(w[r].to(device), face_noise(net, noise, r, seed, device))
                parts.append(pictures.to_image(x))
                progress(partial(pictures.strip, x))
        return io.NodeOutput(torch.cat(parts))


def truncation_input(default: float):
    return io.Float.Input("truncation", default=default, min=0.0, max=1.5, step=0.05,
                          tooltip="How far from the mean: 1 takes what chance gives, less is more ordinary and "
                                  "cleaner, 0 the mean itself.")


def mixing_inputs(what: str) -> list:
    return [io.Int.Input("mix_seed", default=1, min=0, max=2 ** 63 - 1,
                         tooltip=f"The {what} to mix in; of no effect while mix_from is 0."),
            io.Int.Input("mix_from", default=0, min=0, max=17,
                         tooltip="Layers from this one on come from mix_seed, those before from seed. Early layers "
                                 "decide form and tone, late ones colour and texture. 0: no mixing.")]


def mixed(styles, seed: int, count: int, width: int, mix_seed: int, mix_from: int, device: torch.device) -> Tensor:
    """w+ (count, n, S) of a seed, from layer mix_from (0: never) on those of another. styles: z (B, S) -> w+."""
    w = styles(stylegan2.draw_z(count, width, seed).to(device))
    if not mix_from:
        return w.float().cpu()
    if mix_from >= w.shape[1]:
        raise ValueError(f"mix_from is {mix_from}, but this model's layers are 0 to {w.shape[1] - 1}; lower it")
    other = styles(stylegan2.draw_z(count, width, mix_seed).to(device))
    return stylegan2.mix_styles(w, other, mix_from).float().cpu()


def face_styles(faces: sockets.Faces, seed: int, count: int, truncation: float, cutoff: int, mix_seed: int = 0,
                mix_from: int = 0) -> Tensor:
    """w+ (count, n, S) of random faces, on the CPU."""
    def styles(z: Tensor) -> Tensor:
        return faces.net.styles(z, truncation, None if cutoff < 0 else cutoff)

    with host.running(faces.managed) as device:
        return mixed(styles, seed, count, faces.net.config.style, mix_seed, mix_from, device)


def face_noise(net: StyleGAN2, mode: str, rows: slice, seed: int, device: torch.device) -> list[Tensor] | None:
    return net.constant_noise() if mode == "constant" else noise_of(mode, net.synthesis.noise_shapes(4, 4), rows, seed,
                                                                    device)


def noise_of(mode: str, shapes: Sequence[tuple[int, int]], rows: slice, seed: int,
             device: torch.device) -> list[Tensor] | None:
    """A layer's noise for the pictures `rows` of a batch, for all layers: of a picture its own (seeded), the same for
    all (constant), or None (zero). Picture n's depends on the seed, n and the size alone."""
    if mode not in NOISES:
        raise ValueError(f"noise is {mode!r}; take one of {', '.join(NOISES)}")
    if mode == "zero":
        return None
    numbers = range(rows.start, rows.stop) if mode == "seeded" else [0]
    drawn = [stylegan2.draw_noise(shapes, 1, Generator().manual_seed(step_seed(seed, n))) for n in numbers]
    return [torch.cat(layer).to(device) for layer in zip(*drawn)]


NODES = [SampleStyleGAN2]
