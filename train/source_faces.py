"""Source faces for the few-shot fine-tuning of MMFS (spec B.7): photos or samples of a StyleGAN2, looked at once."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..models.clip import BILINEAR, Clip
from ..models.mmfs import MMFS
from ..models.stylegan2 import StyleGAN2, draw_noise
from .data import Views, random_views, to_bytes, to_unit
from .loop import step_seed
from .prior import precision

MEAN_FACES = 64
CACHE_BYTES = 1 << 29
OWN_VIEWS = Views(degrees=5, scale=0.05, shift=0.05, colour=0.5)  # of the user's photos, where more are asked for


class Structure(Protocol):
    """Anything whose keys tell the structure of a picture: models.dino.Dino, models.perceptual.EncoderKeys."""

    def keys(self, pictures: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Samples:
    """Faces drawn by a StyleGAN2, truncated by psi."""
    net: StyleGAN2
    psi: float = 0.7

    @torch.no_grad()
    def draw(self, count: int, generator: Generator) -> Tensor:
        """(count, 3, R, R) in [-1, 1]; `generator` on the network's device."""
        z = torch.randn(count, self.net.config.style, generator=generator, device=generator.device)
        noise = draw_noise(self.net.synthesis.noise_shapes(4, 4), count, generator, generator.device)
        return self.net(self.net.styles(z, self.psi), noise).clamp(-1, 1)


@dataclass(frozen=True)
class Faces:
    """What is kept of source faces: encoder features, CLIP embeddings of length 1, structure keys."""
    features: Tensor
    embeddings: Tensor
    keys: Tensor

    def rows(self, index: Tensor | slice) -> Faces:
        return Faces(self.features[index], self.embeddings[index], self.keys[index])

    @staticmethod
    def joined(parts: Sequence[Faces]) -> Faces:
        return Faces(*(torch.cat([getattr(p, name) for p in parts]) for name in ("features", "embeddings", "keys")))

    @property
    def bytes_each(self) -> int:
        return sum(t[0].numel() * t.element_size() for t in (self.features, self.embeddings, self.keys))


class Source:
    """`faces(k)`: the source faces of step k, a function of (seed, k) alone; `mean`: of their embeddings (1, D).

    photos: (N, 3, H, W), uint8 or in [-1, 1], or Samples. What fits into CACHE_BYTES is looked at once only.
    """

    def __init__(self, net: MMFS, clip: Clip, structure: Structure, photos: Tensor | Samples, *, batch: int,
                 bank: int = 0, seed: int = 0, precision: str = "float32"):
        """bank: 0 for the photos as they are, or N faces prepared here: samples, or photos and random views of them."""
        self.net, self.clip, self.structure = net, clip, structure
        self.batch, self.seed, self.precision = batch, seed, precision
        self.device = next(net.parameters()).device
        self.photos = self._bank(photos, bank) if bank else photos
        self.cached = None if isinstance(self.photos, Samples) else self._cache(self.photos)
        self._mean: Tensor | None = None

    def faces(self, k: int) -> Faces:
        generator = self._generator(k)
        if isinstance(self.photos, Samples):
            return self._look(self._sized(self.photos.draw(self.batch, generator)))
        order = torch.randperm(len(self.photos), generator=Generator().manual_seed(generator.initial_seed()))
        rows = order.repeat(-(-self.batch // len(order)))[:self.batch]
        if self.cached is not None:
            return self.cached.rows(rows.to(self.device))
        return self._look(self.photos[rows.to(self.photos.device)])

    @property
    def mean(self) -> Tensor:
        """Of all faces if they are cached, of MEAN_FACES otherwise."""
        if self._mean is None:
            if self.cached is not None:
                embeddings = self.cached.embeddings
            else:
                steps = range(-1, -1 - -(-MEAN_FACES // self.batch), -1)
                embeddings = torch.cat([self.faces(k).embeddings for k in steps])
            self._mean = embeddings.mean(0, keepdim=True)
        return self._mean

    def _sized(self, samples: Tensor) -> Tensor:
        """Samples at the size that the model is made for."""
        side = self.net.config.resolution
        if samples.shape[-1] == side:
            return samples
        return F.interpolate(samples, (side, side), mode="bilinear", antialias=True, align_corners=False)

    def _generator(self, k: int) -> Generator:
        return Generator(self.device).manual_seed(step_seed(self.seed + 1, k))

    @torch.no_grad()
    def _look(self, pictures: Tensor) -> Faces:
        x = pictures.to(self.device)
        x = to_unit(x) if x.dtype == torch.uint8 else x.float()
        with precision(self.device, self.precision):
            return Faces(self.net.encode(x), F.normalize(self.clip.embed(x, BILINEAR).float(), dim=1),
                         self.structure.keys(x).float())

    def _cache(self, photos: Tensor) -> Faces | None:
        """All faces, or None if they take too much memory."""
        parts: list[Faces] = []
        for chunk in photos.split(self.batch):
            parts.append(self._look(chunk))
            if parts[0].bytes_each * len(photos) > CACHE_BYTES:
                return None
        return Faces.joined(parts)

    def _bank(self, photos: Tensor | Samples, bank: int) -> Tensor:
        """uint8 pictures: `bank` samples, or the photos and as many random views of them as make `bank`."""
        if isinstance(photos, Samples):
            chunks = [(min(self.batch, bank - at), self._generator(-1000 - at)) for at in range(0, bank, self.batch)]
            return torch.cat([to_bytes(self._sized(photos.draw(*chunk))) for chunk in chunks])
        photos = photos if photos.dtype == torch.uint8 else to_bytes(photos)
        if len(photos) >= bank:
            return photos
        rows = torch.arange(bank - len(photos)) % len(photos)
        generator = Generator().manual_seed(step_seed(self.seed, -1))
        views = random_views(to_unit(photos[rows].cpu()), OWN_VIEWS, generator)
        return torch.cat([photos.cpu(), to_bytes(views)])


def check_photos(net: MMFS, photos: Tensor | Samples) -> None:
    """ValueError for source faces that the model cannot take."""
    if isinstance(photos, Samples):
        return
    if photos.ndim != 4 or photos.shape[1] != 3 or not len(photos):
        raise ValueError(f"source faces must be (N, 3, H, W), one picture at least; these are {tuple(photos.shape)}")
    height, width = photos.shape[-2:]
    if height % net.config.stride or width % net.config.stride:
        raise ValueError(f"source faces are {width} x {height} px; their sides must be multiples of "
                         f"{net.config.stride} px, best {net.config.resolution} x {net.config.resolution}")
