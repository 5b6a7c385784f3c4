"""Random StyleGAN2 and MMFS models small enough to run every node in a moment, in the pack's own files."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from oneshot_atelier.models.loading import save_mmfs, save_stylegan2
from oneshot_atelier.models.mmfs import MMFS, MapperConfig, from_stylegan2
from oneshot_atelier.models.stylegan2 import Discriminator, StyleGAN2, StyleGAN2Config
from oneshot_atelier.tests import tiny_models

PX = 64
FACES = StyleGAN2Config((8,) * 5, w_dim=tiny_models.CLIP.embed, mapping_layers=2)
MAPPER = MapperConfig(layers=1, hidden=16)


def faces(seed: int = 0) -> tuple[StyleGAN2, Discriminator]:
    """A generator and its discriminator of 64 px."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        g, d = StyleGAN2(FACES), Discriminator(FACES)
    return tiny_models.shaken(g, seed), d


def mmfs(seed: int = 0, mapper: MapperConfig | None = MAPPER) -> MMFS:
    """A stylizer of 64 px whose pictures are not all of one colour."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        base = from_stylegan2(faces(seed)[0])
        net = MMFS(replace(base.config, mapper=mapper))
        net.load_state_dict(base.state_dict(), strict=False)
    return tiny_models.shaken(net, seed)


def write(folder: Path, seed: int = 0) -> Path:
    """stylegan2.safetensors and mmfs.safetensors in a folder, as in models/demo; with discriminators."""
    g, d = faces(seed)
    save_stylegan2(folder / "stylegan2.safetensors", g, d, {})
    save_mmfs(folder / "mmfs.safetensors", mmfs(seed), d, {"phase": 3})
    return folder
