"""Makes the pictures in workflows/inputs: faces drawn by the demo autoencoder, and styles rendered from such faces.

    python3 tools/launch.py tools.render_examples      (needs scikit-image for the astronaut, public domain)

Nobody in that folder is a real person but the astronaut; the rest was drawn by a model of ours or by this program.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from kornia.filters import bilateral_blur, gaussian_blur2d, sobel
from PIL import Image
from torch import Tensor

from ..models.loading import DEMO, load_diffae
from ..train.report import samples

INPUTS = Path(__file__).resolve().parents[1] / "workflows" / "inputs"
PHOTO_SEED, STYLE_SEED = 3, 11
PHOTOS, STYLES = (0, 1, 2, 3), (0, 1, 2)  # which samples of a seed are taken: the ones that came out well
POSTER = ((38, 12, 92), (190, 38, 120), (247, 150, 60), (255, 236, 170))
RISO = ((24, 60, 52), (20, 140, 120), (240, 110, 90), (252, 236, 214))


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
    soft = gaussian_blur2d(1 - grey, (21, 21), (5.0, 5.0))
    dodge = (grey / (1 - soft).clamp_min(0.05)).clamp(0, 1) ** 2
    contour = 1 - (sobel(gaussian_blur2d(grey, (3, 3), (0.8, 0.8))) * 4).clamp(0, 1)
    paper = torch.tensor([0.98, 0.96, 0.91])[:, None, None]
    return (dodge * contour).clamp(0.05, 1) * paper


def wash(x: Tensor) -> Tensor:
    """Watercolour: soft flat colour, lightened, with darker rims and a blue shadow tone."""
    flat = smooth(x, 5)
    levels = (flat * 6).round() / 6
    rim = (sobel(levels.mean(1, keepdim=True)) * 2).clamp(0, 0.35)
    tone = torch.tensor([0.55, 0.75, 1.0])[:, None, None]
    shade = (1 - levels.mean(1, keepdim=True)).clamp(0, 1)
    return (levels * (1 - 0.45 * shade) + tone * 0.45 * shade + 0.12 - rim).clamp(0, 1)


def save(x: Tensor, name: str, px: int = 256) -> None:
    """Write a picture (1, 3, H, W) in [0, 1] at `px`."""
    array = (x[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).resize((px, px), Image.LANCZOS).save(INPUTS / f"{name}.png", optimize=True)


def astronaut() -> Image.Image:
    """The head of scikit-image's astronaut, framed like the faces that the models know."""
    from skimage import data
    return Image.fromarray(np.asarray(data.astronaut())).crop((108, 0, 348, 240))


def main() -> int:
    INPUTS.mkdir(parents=True, exist_ok=True)
    net = load_diffae(DEMO / "diffae.safetensors")
    photos = (samples(net, 1 + max(PHOTOS), PHOTO_SEED) + 1) / 2
    for number, i in enumerate(PHOTOS, 1):
        save(photos[i:i + 1], f"face_{number}")
    faces = (samples(net, 1 + max(STYLES), STYLE_SEED) + 1) / 2
    for (name, render), i in zip((("poster", poster), ("pencil", pencil), ("wash", wash)), STYLES):
        save(render(faces[i:i + 1]), f"style_{name}")
    astronaut().save(INPUTS / "astronaut.png", optimize=True)
    return 0
