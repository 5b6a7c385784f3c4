"""The three trainings of MMFS (spec B.2, B.3, B.5): Stage I reconstructs what a StyleGAN2 draws, Stage II turns photos
into art, the CLIP mapping learns which w+ code belongs to an embedding. Each returns a Stage for loop.train.

Defaults are the official program's. Networks that are trained are trained in place; the others stay as they are.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..models.clip import BILINEAR, Clip
from ..models.mmfs import MMFS
from ..models.stylegan2 import Discriminator, StyleGAN2
from .gan import (
    GanConfig,
    Pictures,
    Stage,
    adam,
    adversarial_step,
    descend,
    device_of,
    draws_of,
    mixed_styles,
    seeded_z,
)
from .guidance import feature_loss, structure_loss
from .loop import Losses, Run, average_of
from .prior import precision
from .team import SOLO, Team

STAGE1 = GanConfig(steps=200_000, mixing=0.0)
STAGE2 = GanConfig()
MAPPING = GanConfig(steps=10_000, lr=2e-4, beta1=0.99)


def stage1(net: MMFS, teacher: StyleGAN2, critic: Discriminator, shown: Tensor | None = None,
           config: GanConfig = STAGE1, team: Team = SOLO) -> Stage:
    """Stage I (spec B.2): encoder and the 32 px layers learn to give back the teacher's pictures, styles known.

    net: of models.mmfs.from_stylegan2(teacher). critic: the teacher's discriminator, for its features. shown
    (n, 3, H, W): photos for the preview, with what becomes of them; Stage I never trains on photos.
    """
    device = device_of(net)
    trained = nn.ModuleList([net.encoder, net.decoder.blocks[0]])
    net.train().requires_grad_(False)
    trained.requires_grad_(True)
    run = Run({"g": net}, {"g": adam(trained.parameters(), config)}, {"g": average_of(net)})
    shapes = teacher.synthesis.noise_shapes(4, 4)
    px = teacher.config.resolution

    def step(k: int) -> Losses:
        draws = draws_of(k, config, team, device)
        with precision(device, config.precision):
            z = draws.normal(teacher.config.style)
            with torch.no_grad():
                wanted = teacher(teacher.styles(z), draws.noise(shapes)).clamp(-1, 1).float()
            result = net(wanted, net.styles(z), draws.noise(net.noise_shapes(px, px)))
            losses = reconstruction(result, wanted, critic, config)
        return descend(run, team, losses)

    def preview() -> Tensor:
        average, z = run.averages["g"], seeded_z(4, net, config.seed)
        with torch.no_grad():
            drawn = teacher(teacher.styles(z)).clamp(-1, 1)
            pairs = torch.cat([drawn, average(drawn, average.styles(z))])
            if shown is None:
                return pairs
            few = shown[:4].to(device)
            return torch.cat([pairs, few, average(few, average.styles(seeded_z(len(few), net, config.seed)))])
    return Stage(run, step, preview, config)


def reconstruction(result: Tensor, wanted: Tensor, critic: Discriminator, config: GanConfig) -> dict[str, Tensor]:
    """L1 and the feature loss of spec A.8, weighted."""
    with torch.no_grad():
        features = critic.features(wanted)
    return {"pixel": config.pixel * (result - wanted).abs().mean(),
            "feature": config.feature * feature_loss(critic.features(result), features)}


def stage2(net: MMFS, critic: Discriminator, structure: nn.Module, photos: Pictures, art: Pictures,
           shown: Tensor, config: GanConfig = STAGE2, team: Team = SOLO) -> Stage:
    """Stage II (spec B.3): the whole stylizer against a discriminator of art, held by L_st to the photo's structure.

    structure.keys(pictures) gives what L_st compares. shown (n, 3, H, W): photos of the preview.
    """
    device = device_of(net)
    net.train().requires_grad_(True)
    if net.mapper is not None:
        net.mapper.requires_grad_(False)
    trained = [p for p in net.parameters() if p.requires_grad]
    run = Run({"g": net, "d": critic.train()},
              {"g": adam(trained, config), "d": adam(critic.parameters(), config, config.r1_every)},
              {"g": average_of(net)})

    def step(k: int) -> Losses:
        draws = draws_of(k, config, team, device, critic.config.group)
        photo = photos(k)

        def draw() -> Tensor:
            return net(photo, mixed_styles(net.styles, draws, net.config.style, config.mixing),
                       draws.noise(net.noise_shapes(*photo.shape[-2:])))

        def held(fake: Tensor) -> dict[str, Tensor]:
            if not config.structure:
                return {}
            with torch.no_grad():
                keys = structure.keys(photo)
            loss = structure_loss(structure.keys(fake), keys, config.structure_norm)
            return {"structure": config.structure * loss * team.size}  # a sum over the batch, averaged by the team
        return adversarial_step(run, team, config, k, draws, draw, art(k), held)
    return Stage(run, step, random_styles(run, shown, config), config)


def mapping(net: MMFS, clip: Clip, critic: Discriminator, photos: Pictures, shown: Tensor,
            config: GanConfig = MAPPING, team: Team = SOLO) -> Stage:
    """The CLIP mapping (spec B.5): from the embedding of a random stylization back to the style it was drawn with.

    net: the Stage II average, with a mapper (the only part that learns). critic: the Stage II discriminator. The
    mapper's dropout draws for the rows of each process by itself: with it, several processes train as well as one, but
    not to the same numbers.
    """
    if net.mapper is None:
        raise ValueError("this MMFS model has no mapper to train; build it with a MapperConfig")
    if clip.config.embed != net.config.style:
        raise ValueError(f"the CLIP mapping needs embeddings as wide as the styles: this CLIP gives "
                         f"{clip.config.embed}, the model has {net.config.style}; officially both are 512 (ViT-B/32)")
    device = device_of(net)
    net.eval().requires_grad_(False)
    net.mapper.train().requires_grad_(True)
    run = Run({"g": net}, {"g": adam(net.mapper.parameters(), config)}, {"g": average_of(net)})

    def step(k: int) -> Losses:
        draws = draws_of(k, config, team, device)
        photo = photos(k)
        shapes = net.noise_shapes(*photo.shape[-2:])
        with precision(device, config.precision):
            with torch.no_grad():
                features = net.encode(photo)
                w = mixed_styles(net.styles, draws, net.config.style, config.mixing)
                wanted = net.decode(features, w, draws.noise(shapes)).float()
                embedding = clip.embed(wanted, BILINEAR)
            result = net.decode(features, net.styles_of(embedding), draws.noise(shapes))
            losses = reconstruction(result, wanted, critic, config)
        return descend(run, team, losses)

    def preview() -> Tensor:
        average, few = run.averages["g"], shown[:4].to(device)
        with torch.no_grad():
            wanted = average(few, average.styles(seeded_z(len(few), net, config.seed)))
            return torch.cat([few, wanted, average(few, average.styles_of(clip.embed(wanted, BILINEAR)))])
    return Stage(run, step, preview, config)


def check_sizes(net: MMFS, critic: Discriminator) -> None:
    """ValueError if the discriminator was made for pictures of another size."""
    if critic.config.resolution != net.config.resolution:
        raise ValueError(f"the discriminator looks at {critic.config.resolution} px and this MMFS draws "
                         f"{net.config.resolution} px; take the StyleGAN2 that it was made from")


def random_styles(run: Run, shown: Tensor, config: GanConfig) -> Callable[[], Tensor]:
    """A preview: each of four photos in four styles, a photo a row."""
    def preview() -> Tensor:
        net = run.averages["g"]
        device = device_of(net)
        few = shown[:4].to(device)
        w = net.styles(seeded_z(4, net, config.seed))
        with torch.no_grad():
            features = net.encode(few).repeat_interleave(4, 0)
            return net.decode(features, w.repeat(len(few), 1, 1))
    return preview
