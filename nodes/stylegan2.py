"""Random faces of a StyleGAN2, and the noise that it and MMFS use."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from comfy_api.latest import io
from torch import Tensor

from ..models import stylegan2 as model
from ..models.rng import MAX_SEED
from ..models.stylegan2 import NOISES, StyleGAN2, sampling_memory
from . import host, images, inputs, sockets
from .base import AtelierNode
from .host import NodeProgress
from .osasis import CHUNK, chunks
from .sockets import StyleGAN2Model


class SampleStyleGAN2(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSampleStyleGAN2", display_name="Sample StyleGAN2", category="Atelier/mmfs",
            description="Generates random faces with a StyleGAN2: to inspect it, or as faces to fine-tune MMFS "
                        "on.",
            inputs=[
                sockets.STYLEGAN2.Input("stylegan2", tooltip="The generator."),
                inputs.seed("Seed of the faces. Face n of a seed is the same whatever the count."),
                io.Int.Input("count", default=4, min=1, max=256, tooltip="Number of pictures."),
                truncation_input(0.7),
                io.Int.Input("cutoff", default=-1, min=-1, max=18,
                             tooltip="Truncate the first N layers only, which decide the shape of the face. -1: all."),
                *mixing_inputs("faces"),
                inputs.choice("noise", NOISES, "seeded",
                              "Noise of hair and skin. seeded: each face has its own. constant: the file's own, the "
                              "same for all. zero: smooth.")],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The generated faces.")])

    @classmethod
    def execute(cls, stylegan2: StyleGAN2Model, seed: int, count: int, truncation: float, cutoff: int, mix_seed: int,
                mix_from: int, noise: str) -> io.NodeOutput:
        net, rows = stylegan2.net, chunks(count)
        if cutoff > net.config.n_styles:
            raise ValueError(f"cutoff is {cutoff}, but this model has {net.config.n_styles} layers. Lower it, or take "
                             "-1 for all")
        px, progress, parts = net.config.resolution, NodeProgress(len(rows)), []

        def styles(z: Tensor) -> Tensor:
            return net.styles(z, truncation, None if cutoff < 0 else cutoff)
        memory = sampling_memory(net.config.channels[-1], px, px, min(CHUNK, count))
        with host.running(stylegan2.patched, memory=memory) as device:
            w = mixed_w_plus(styles, net.config.w_dim, seed, count, mix_seed, mix_from, device)
            for r in rows:
                x = net(w[r].to(device), face_noise(net, noise, r, seed, device))
                parts.append(images.to_image(x))
                progress(partial(images.side_by_side, x))
        return io.NodeOutput(torch.cat(parts))


def truncation_input(default: float) -> io.Float.Input:
    return io.Float.Input("truncation", default=default, min=0.0, max=1.5, step=0.05,
                          tooltip="Truncation psi: distance from the mean style. 1: none. Below 1: less variety, fewer "
                                  "artefacts. 0: the mean style.")


def mixing_inputs(what: str) -> list:
    return [io.Int.Input("mix_seed", default=1, min=0, max=MAX_SEED,
                         tooltip=f"Seed of the {what} to mix in. No effect while mix_from is 0."),
            io.Int.Input("mix_from", default=0, min=0, max=17,
                         tooltip="First layer that is taken from mix_seed. Early layers decide shape and tone, late "
                                 "ones colour and texture. 0: no mixing.")]


def mixed_w_plus(styles: Callable[[Tensor], Tensor], w_dim: int, seed: int, count: int, mix_seed: int, mix_from: int,
                 device: torch.device) -> Tensor:
    """w+ (count, n, S) of a seed, from layer mix_from (0: never) on those of another. styles: z (B, S) -> w+."""
    w = styles(model.random_z(count, w_dim, seed, device))
    if not mix_from:
        return w.float().cpu()
    if mix_from >= w.shape[1]:
        raise ValueError(f"mix_from is {mix_from}, but this model's layers are 0 to {w.shape[1] - 1}. Lower it")
    other = styles(model.random_z(count, w_dim, mix_seed, device))
    return model.mix_styles(w, other, mix_from).float().cpu()


def face_noise(net: StyleGAN2, mode: str, rows: slice, seed: int, device: torch.device) -> list[Tensor] | None:
    if mode == "constant":
        return net.constant_noise()
    return layer_noise(mode, net.synthesis.noise_shapes(4, 4), rows, seed, device)


def layer_noise(mode: str, shapes: list[tuple[int, int]], rows: slice, seed: int,
                device: torch.device) -> list[Tensor] | None:
    """A layer's noise for the pictures `rows` of a batch, for all layers: each picture's own (seeded), the same for all
    (constant), or None (zero). Picture n's depends on the seed, n and the size alone."""
    if mode == "zero":
        return None
    return model.seeded_noise(shapes, seed, range(rows.start, rows.stop) if mode == "seeded" else [0], device)


NODES = [SampleStyleGAN2]
