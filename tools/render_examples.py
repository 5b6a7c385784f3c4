"""Makes the pictures in workflows/inputs: faces drawn by the demo autoencoder, and styles rendered from such faces.

    python3 tools/launch.py tools.render_examples      (needs scikit-image for the astronaut, public domain)

Nobody in that folder is a real person but the astronaut; the rest was drawn by a model of ours or by this program.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from kornia.filters import bilateral_blur, gaussian_blur2d, sobel
from PIL import Image
from torch import Tensor

from ..models.loading import DEMO, load_diffae
from ..train.report import samples

PX = 256
INPUTS = Path(__file__).resolve().parents[1] / "workflows" / "inputs"
PHOTO_SEED, STYLE_SEED = 3, 11
PHOTOS, STYLES = (0, 1, 2, 3), (0, 1)  # which samples of a seed are taken: the ones that came out well
POSTER = ((38, 12, 92), (190, 38, 120), (247, 150, 60), (255, 236, 170))


def smooth(x: Tensor, times: int = 3) -> Tensor:
    """Edge-keeping blur of a picture (1, 3, H, W) in [0, 1]."""
    for _ in range(times):
        x = bilateral_blur(x, 7, 0.12, (3.0, 3.0))
    return x


def poster(x: Tensor, inks: tuple = POSTER) -> Tensor:
    """Flat areas of a few inks, chosen by brightness."""
    grey = smooth(x).mean(1, keepdim=True)
    rank = (grey.flatten()[:, None] > grey.flatten().quantile(torch.tensor([0.25, 0.5, 0.75]))).sum(1)
    table = torch.tensor(inks).float() / 255
    flat = table[rank].reshape(*x.shape[-2:], 3).permute(2, 0, 1)[None]
    return gaussian_blur2d(flat, (3, 3), (0.6, 0.6))


def pencil(x: Tensor) -> Tensor:
    """Grey dodge and dark contours on paper."""
    grey = x.mean(1, keepdim=True)
    soft = gaussian_blur2d(1 - grey, (31, 31), (8.0, 8.0))
    dodge = (grey / (1 - soft).clamp_min(0.1)).clamp(0, 1)
    contour = 1 - (sobel(gaussian_blur2d(grey, (7, 7), (1.6, 1.6))) * 5).clamp(0, 0.85)
    paper = torch.tensor([0.98, 0.96, 0.91])[:, None, None]
    return (dodge * contour).clamp(0.08, 1) * paper


def save(x: Tensor, name: str, px: int = PX) -> None:
    """Write a picture (1, 3, H, W) in [0, 1] at `px`."""
    array = (x[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).resize((px, px), Image.LANCZOS).save(INPUTS / f"{name}.png", optimize=True)


def astronaut() -> Image.Image:
    """The head of scikit-image's astronaut, framed like the faces that the models know."""
    from skimage import data
    return Image.fromarray(np.asarray(data.astronaut())).crop((124, 8, 332, 216)).resize((PX, PX), Image.LANCZOS)


def main() -> int:
    INPUTS.mkdir(parents=True, exist_ok=True)
    net = load_diffae(DEMO / "diffae.safetensors")
    photos = (samples(net, 1 + max(PHOTOS), PHOTO_SEED) + 1) / 2
    for number, i in enumerate(PHOTOS, 1):
        save(photos[i:i + 1], f"face_{number}")
    faces = (samples(net, 1 + max(STYLES), STYLE_SEED) + 1) / 2
    for (name, render), i in zip((("poster", poster), ("pencil", pencil)), STYLES):
        face = F.interpolate(faces[i:i + 1], (PX, PX), mode="bicubic", antialias=True)
        save(render(face.clamp(0, 1)), f"style_{name}")
    astronaut().save(INPUTS / "astronaut.png", optimize=True)
    return 0
