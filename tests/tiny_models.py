"""Random networks small enough to run every node in a moment, in the pack's own files."""
from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from oneshot_atelier.models.checkpoints import store
from oneshot_atelier.models.diffae import DiffAE, DiffAEConfig, LatentConfig
from oneshot_atelier.models.features.clip import Clip, ClipConfig
from oneshot_atelier.models.unet import UNet, UNetConfig

PX = 32
UNET = UNetConfig(PX, 16, (1, 1), blocks=1, embed=16, cond=16, dropout=0.1, prediction="v")
DIFFAE = DiffAEConfig(UNET, (1, 1, 1), LatentConfig(16, 24, 3, 16))
DDPM = UNetConfig(PX, 16, (1, 1), blocks=1, embed=16, cond=0, dropout=0.0, prediction="v")
CLIP = ClipConfig(embed=16, image_size=32, patch=8, vision_width=64, vision_layers=1, context=8, vocabulary=6,
                  text_width=64, text_layers=1, quick_gelu=False, words=("photo", "drawing", "face"))


def shaken(net: nn.Module, seed: int) -> nn.Module:
    """All weights get a little noise, so that zero-initialised layers answer, too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return net


def write(folder: Path, seed: int = 0) -> Path:
    """diffae, ddpm and clip.safetensors in a folder, as in models/demo."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        nets = {"diffae": (DiffAE(DIFFAE), "diffae"), "ddpm": (UNet(DDPM), "ddpm"), "clip": (Clip(CLIP), "clip")}
    for name, (net, kind) in nets.items():
        tensors = shaken(net, seed).state_dict() if kind != "clip" else net.net.state_dict()
        store.save(folder / f"{name}.safetensors", tensors, kind, asdict(net.config))
    return folder
