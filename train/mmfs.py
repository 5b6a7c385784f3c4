"""The three trainings of MMFS (docs/mmfs.md B.2, B.3, B.5). Each returns a TrainingStage.

Stage I reconstructs what a StyleGAN2 generates, Stage II turns photos into art, the CLIP mapping learns which w+ code
belongs to an embedding.

Defaults are the official program's. Networks that are trained are trained in place; the others stay as they are.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..models.features.clip import Clip
from ..models.features.protocols import StructureNet
from ..models.mmfs import MMFS
from ..models.precision import autocast
from ..models.stylegan2 import Discriminator, StyleGAN2, random_z
from .distributed import SINGLE_PROCESS, Distributed
from .gan import (
    GANConfig,
    Pictures,
    TrainingStage,
    adam,
    adversary,
    device_of,
    draws_of,
    mixed_styles,
    style_count,
    style_draws,
    told,
)
from .loop import Hooks, Losses, Run, ema_copy, total
from .losses import feature_loss, structure_loss
from .parts import Part, Parts, laid_out

STAGE1 = GANConfig(steps=200_000, mixing=0.0)
STAGE2 = GANConfig()
MAPPING = GANConfig(steps=10_000, lr=2e-4, beta1=0.99)


def stage1(net: MMFS, teacher: StyleGAN2, discriminator: Discriminator, shown: Tensor | None = None,
           config: GANConfig = STAGE1, distributed: Distributed = SINGLE_PROCESS) -> TrainingStage:
    """Stage I (B.2): encoder and the 32 px layers learn to reconstruct the teacher's pictures, w+ known.

    net: of models.mmfs.from_stylegan2(teacher). discriminator: the teacher's, for its features. shown
    (n, 3, H, W): photos for the preview, with what becomes of them; Stage I never trains on photos.
    """
    device = device_of(net)
    trained = nn.ModuleList([net.encoder, net.decoder.blocks[0]])
    net.train().requires_grad_(False)
    trained.requires_grad_(True)
    laid_out(net, teacher, discriminator)
    run = Run({"g": net}, {"g": adam(trained.parameters(), config)}, {"g": ema_copy(net)})
    px, parts, rows = teacher.config.resolution, Parts(run, distributed), distributed.rows(config.batch, 1).to(device)
    shapes = [*teacher.synthesis.noise_shapes(4, 4), *net.noise_shapes(px, px)]
    layers = len(teacher.synthesis.noise_shapes(4, 4))

    def part(z: Tensor, *noise: Tensor) -> Part:
        with autocast(device, config.precision):
            with torch.no_grad():
                wanted = teacher(teacher.styles(z), noise[:layers]).clamp(-1, 1).float()
            result = net(wanted, net.styles(z), noise[layers:])
            losses = reconstruction(result, wanted, discriminator, config)
        return Part(total(losses), losses, (result,))

    def step(k: int, hooks: Hooks) -> Losses:
        draws = draws_of(k, config, rows)
        return generator_step(k, parts, part, [draws.normal(teacher.config.w_dim), *draws.noise(shapes)], hooks)

    def preview() -> Tensor:
        average, z = run.average("g", MMFS), random_z(4, net.config.w_dim, config.seed, device)
        with torch.no_grad():
            generated = teacher(teacher.styles(z)).clamp(-1, 1)
            pairs = torch.cat([generated, average(generated, average.styles(z))])
            if shown is None:
                return pairs
            few = shown[:4].to(device)
            return torch.cat([pairs, few, average(few, average.styles(z[:len(few)]))])
    return TrainingStage(run, step, preview, config, parts)


def generator_step(k: int, parts: Parts, part: Callable[..., Part], inputs: Sequence[Tensor],
                   hooks: Hooks) -> dict[str, Tensor]:
    """A step without a discriminator that learns. It can be interrupted until the generator is updated."""
    hooks.check_interrupt()
    losses, (pictures,) = parts.gradients("generator", "g", part, *inputs)
    hooks.check_interrupt()
    parts.move("g")
    return told(k, parts.distributed, losses, pictures, hooks)


def reconstruction(result: Tensor, wanted: Tensor, discriminator: Discriminator,
                   config: GANConfig) -> dict[str, Tensor]:
    """L1 and the feature loss (A.8), weighted."""
    with torch.no_grad():
        features = discriminator.features(wanted)
    return {"pixel": config.pixel_weight * (result - wanted).abs().mean(),
            "feature": config.feature_weight * feature_loss(discriminator.features(result), features)}


def stage2(net: MMFS, discriminator: Discriminator, structure_net: StructureNet, photos: Pictures, art: Pictures,
           shown: Tensor, config: GANConfig = STAGE2, distributed: Distributed = SINGLE_PROCESS) -> TrainingStage:
    """Stage II (B.3): the whole stylizer against a discriminator of art, held by L_st to the photo's structure.

    structure_net.keys(pictures) gives what L_st compares. shown (n, 3, H, W): photos of the preview.
    """
    device = device_of(net)
    net.train().requires_grad_(True)
    if net.mapper is not None:
        net.mapper.requires_grad_(False)
    trained = [p for p in net.parameters() if p.requires_grad]
    laid_out(net, discriminator)
    run = Run({"g": net, "d": discriminator.train()},
              {"g": adam(trained, config), "d": adam(discriminator.parameters(), config, config.r1_every)},
              {"g": ema_copy(net)})
    w_dim, n, count = net.config.w_dim, net.config.n_styles, style_count(config)
    rows = distributed.rows(config.batch, discriminator.config.mbstd_group_size).to(device)

    def generate(photo: Tensor, *drawn: Tensor) -> Tensor:
        return net(photo, mixed_styles(net.styles, drawn[:count]), drawn[count:])

    def held(fake: Tensor, photo: Tensor, *_: Tensor) -> dict[str, Tensor]:
        if not config.structure_weight:
            return {}
        with torch.no_grad():
            keys = structure_net.keys(photo)
        loss = structure_loss(structure_net.keys(fake), keys, config.structure_norm)
        # the official loss is a sum over the batch; the processes' losses are averaged
        return {"structure": config.structure_weight * loss * distributed.size}
    trained_pair = adversary(Parts(run, distributed), config, generate, held)

    def step(k: int, hooks: Hooks) -> Losses:
        draws, photo = draws_of(k, config, rows), photos(k)
        styles, noise = style_draws(draws, w_dim, n, config.mixing), draws.noise(net.noise_shapes(*photo.shape[-2:]))
        return trained_pair.step(k, draws, [photo, *styles, *noise], art(k), hooks)
    return TrainingStage(run, step, random_styles(run, shown, config), config, trained_pair.parts)


def mapping(net: MMFS, clip: Clip, discriminator: Discriminator, photos: Pictures, shown: Tensor,
            config: GANConfig = MAPPING, distributed: Distributed = SINGLE_PROCESS) -> TrainingStage:
    """The CLIP mapping (B.5): from the embedding of a random stylization back to its w+ code.

    net: the Stage II average, with a mapper (the only part that learns). discriminator: of Stage II. The
    mapper's dropout is random in each process by itself: with it, several processes train as well as one, but not to
    the same numbers.
    """
    if net.mapper is None:
        raise ValueError("this MMFS model has no mapper to train; build it with a MapperConfig")
    if clip.config.embed != net.config.w_dim:
        raise ValueError(f"the CLIP mapping needs embeddings as wide as the styles: this CLIP gives "
                         f"{clip.config.embed}, the model has {net.config.w_dim}; officially both are 512 (ViT-B/32)")
    device = device_of(net)
    net.eval().requires_grad_(False)
    net.mapper.train().requires_grad_(True)
    laid_out(net, discriminator)
    run = Run({"g": net}, {"g": adam(net.mapper.parameters(), config)}, {"g": ema_copy(net)})
    w_dim, n, count = net.config.w_dim, net.config.n_styles, style_count(config)
    parts, rows = Parts(run, distributed), distributed.rows(config.batch, 1).to(device)

    def part(photo: Tensor, *drawn: Tensor) -> Part:
        styles, noise = drawn[:count], drawn[count:]
        layers = len(noise) // 2
        with autocast(device, config.precision):
            with torch.no_grad():
                features = net.encode(photo)
                wanted = net.decode(features, mixed_styles(net.styles, styles), noise[:layers]).float()
                embedding = clip.embed(wanted, "mmfs")
            result = net.decode(features, net.styles_of(embedding), noise[layers:])
            losses = reconstruction(result, wanted, discriminator, config)
        return Part(total(losses), losses, (result,))

    def step(k: int, hooks: Hooks) -> Losses:
        draws, photo = draws_of(k, config, rows), photos(k)
        styles, shapes = style_draws(draws, w_dim, n, config.mixing), net.noise_shapes(*photo.shape[-2:])
        return generator_step(k, parts, part, [photo, *styles, *draws.noise(shapes), *draws.noise(shapes)], hooks)

    def preview() -> Tensor:
        average, few = run.average("g", MMFS), shown[:4].to(device)
        with torch.no_grad():
            wanted = average(few, average.styles(random_z(len(few), net.config.w_dim, config.seed, device)))
            return torch.cat([few, wanted, average(few, average.styles_of(clip.embed(wanted, "mmfs")))])
    return TrainingStage(run, step, preview, config, parts)


def check_sizes(net: MMFS, discriminator: Discriminator) -> None:
    """ValueError if the discriminator was made for pictures of another size."""
    if discriminator.config.resolution != net.config.resolution:
        raise ValueError(f"the discriminator takes {discriminator.config.resolution} px and this MMFS generates "
                         f"{net.config.resolution} px; take the StyleGAN2 that it was made from")


def random_styles(run: Run, shown: Tensor, config: GANConfig) -> Callable[[], Tensor]:
    """A preview: each of four photos in four styles, a photo a row."""
    def preview() -> Tensor:
        net = run.average("g", MMFS)
        device = device_of(net)
        few = shown[:4].to(device)
        w = net.styles(random_z(4, net.config.w_dim, config.seed, device))
        with torch.no_grad():
            features = net.encode(few).repeat_interleave(4, 0)
            return net.decode(features, w.repeat(len(few), 1, 1))
    return preview
