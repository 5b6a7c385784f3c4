"""Small random networks for the tests: 32 px, two levels, a few hundred thousand numbers."""

import torch

from oneshot_atelier.evaluate.public import PublicNetworks
from oneshot_atelier.models.checkpoints.formats.vgg import ALEX_CONVOLUTIONS
from oneshot_atelier.models.diffae import DiffAE, DiffAEConfig, LatentConfig
from oneshot_atelier.models.features.arcface import ArcFace, ArcFaceConfig
from oneshot_atelier.models.features.clip import Clip, ClipConfig
from oneshot_atelier.models.features.dino import Dino, DinoConfig
from oneshot_atelier.models.features.lpips import LpipsAlex
from oneshot_atelier.models.unet import UNetConfig

PX, WIDTH = 32, 32
UNET = UNetConfig(PX, 32, (1, 2), blocks=1, embed=WIDTH, cond=WIDTH)
DIFFAE = DiffAEConfig(UNET, (1, 2, 2), LatentConfig(WIDTH, 48, 3))
DDPM = UNetConfig(PX, 32, (1, 2), blocks=1, embed=64, cond=0, out_channels=6, head_channels=64, dropout=0.0)
WORDS = ("cartoon", "face", "photo", "red")
CLIP = ClipConfig(embed=24, image_size=32, patch=8, vision_width=64, vision_layers=1, context=8,
                  vocabulary=len(WORDS) + 3, text_width=64, text_layers=1, mean=(0.5,) * 3, std=(0.25,) * 3,
                  words=WORDS)


def filled(net, seed=0):
    """`net` with random weights of ordinary size everywhere, also where the initialisation is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            value = torch.randn(p.shape, generator=generator)
            if p.dim() > 1:
                p.copy_(value * p[0].numel() ** -0.5)
            else:
                p.copy_(value * 0.1 + (1.0 if name.endswith("weight") else 0.0))
    return net


def diffae(seed=0, config=DIFFAE):
    """A frozen DiffAE; its codes have the spread that its statistics say."""
    net = filled(DiffAE(config), seed).eval().requires_grad_(False)
    if config.latent:
        net.conds_std.fill_(0.01)
    return net


def clip(seed=0):
    return filled(Clip(CLIP), seed).eval().requires_grad_(False)


def pictures(count, seed=0, px=PX):
    """Smooth random pictures (count, 3, px, px) in [-1, 1]."""
    coarse = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (px, px), mode="bilinear").clamp(-1, 1)


def same(a, b):
    """True if two state dicts are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def copy_of(net):
    """The state dict of `net`, copied."""
    return {key: value.clone() for key, value in net.state_dict().items()}


# --- the networks of published measures -------------------------------------------------------------------------------
ARCFACE = ArcFaceConfig(units=(1, 2, 1, 1), widths=(4, 6, 8, 10), embed=12, reduction=2)
DINO = DinoConfig(32, 8, 48, 2, 4)


class Colours(torch.nn.Module):
    """In place of an Inception: 12 means of a picture."""

    def embed(self, pictures, resize="clean"):
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)


def alexnet_trunk(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {n: (c_out, c_in, px, px) for n, (c_in, c_out, px) in ALEX_CONVOLUTIONS.items()}
    trunk = {f"features.{n}.weight": torch.randn(shape, generator=generator) * (2 / (shape[1] * shape[2] ** 2)) ** 0.5
             for n, shape in shapes.items()}
    return trunk | {f"features.{n}.bias": torch.zeros(shape[0]) for n, shape in shapes.items()}


def arcface(config=ARCFACE, seed=0):
    return filled(ArcFace(config), seed).eval().requires_grad_(False)


def public(**files):
    """All of them but LPIPS-VGG, which is large; its place has AlexNet's."""
    alex = LpipsAlex(alexnet_trunk())
    return PublicNetworks(alex, alex, arcface(), filled(Dino(DINO)).eval().requires_grad_(False), clip(), Colours(),
                          Colours(), files)
