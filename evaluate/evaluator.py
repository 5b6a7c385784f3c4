"""The networks that compare pictures, what they make of pictures, and what a stylization is compared with."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..models.attributes import AttributeClassifier
from ..models.diffae import DiffAE
from ..models.faces.networks import FaceNetworks
from ..models.features.clip import Clip
from ..models.features.protocols import PerceptualDistance, StructureNet
from ..train.data import to_unit
from ..train.losses import projector
from .faces import FaceReading, face_squares, read_faces
from .kept import networks_identity
from .public import PUBLIC, PublicNetworks

Part = TypeVar("Part")
NETWORKS = ("clip", "diffae", "perceptual", "structure_net", "faces", *PUBLIC)
CHUNK, CHUNK_PIXELS = 64, 64 * 128 ** 2  # in one call of a network: pictures, and pixels of them
STRUCTURE_PX = 16  # of the encoder's map whose positions are compared without a structure network


def chunk_rows(height: int, width: int) -> int:
    """Pictures of this size in one call of a network."""
    return max(1, min(CHUNK, CHUNK_PIXELS // (height * width)))


def nothing() -> None:
    """Nobody stops the work."""


@dataclass(frozen=True)
class Evaluator:
    """The networks that compare pictures, on one device. Pictures of any size are compared at the autoencoder's, and
    without one at their own.

    clip, diffae: None if no measure asks for them. perceptual: LPIPS or its substitute, None if no measure asks for it.
    structure_net: DINO; None for the autoencoder's encoder. faces: detector and mesh, None if no measure asks for them.
    public: the networks of published measures, which see pictures at their own size. check_interrupt: called before
    each part of a batch; what it raises stops the work.
    """
    clip: Clip | None = None
    diffae: DiffAE | None = None
    perceptual: PerceptualDistance | None = None
    structure_net: StructureNet | None = None
    faces: FaceNetworks | None = None
    public: PublicNetworks = PublicNetworks()
    check_interrupt: Callable[[], None] = nothing

    def has(self, network: str) -> bool:
        """Is there this network of NETWORKS, or what stands in for it?"""
        own = {"clip": self.clip, "diffae": self.diffae, "perceptual": self.perceptual,
               "structure_net": self.structure_net or self.diffae, "faces": self.faces}
        return own[network] is not None if network in own else self.public.has(network)

    @property
    def device(self) -> torch.device:
        """Of CLIP; without it, of the public networks, the autoencoder or the face networks."""
        if self.clip is not None:
            return self.clip.mean.device
        nets = [*self.public.networks(), *([] if self.diffae is None else [self.diffae])]
        other = torch.device("cpu") if self.faces is None else self.faces.device
        return next((weight.device for net in nets for weight in net.parameters()), other)

    def identity_of_networks(self) -> list[str]:
        """What decides the numbers but the pictures."""
        nets = self.clip, self.diffae, self.perceptual, self.structure_net, *self.public.networks()
        faces = [] if self.faces is None else [self.faces.detector, self.faces.mesh]
        return [*networks_identity([*nets, *faces]), self.public.resize]

    def sized(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) at the side that they are compared at."""
        side = tuple(pictures.shape[-2:]) if self.diffae is None else (self.diffae.image_size,) * 2
        if pictures.shape[-2:] == side:
            return pictures
        return F.interpolate(pictures, side, mode="bilinear", antialias=True, align_corners=False)

    def embed(self, pictures: Tensor) -> Tensor:
        """CLIP embeddings (B, D), not normalised."""
        return self.clip_network().embed(self.sized(pictures), "openai").float()

    def keys(self, pictures: Tensor) -> Tensor:
        """What `metrics.structure_distance` compares, (B, n, D)."""
        pictures = self.sized(pictures)
        if self.structure_net is not None:
            return self.structure_net.keys(pictures)
        maps = [f for f in self.autoencoder().encoder.features(pictures) if f.shape[-1] == STRUCTURE_PX]
        return rearrange(maps[-1], "b d h w -> b (h w) d")

    def identity(self, pictures: Tensor) -> Tensor:
        """The autoencoder's z (B, E), normalised by its mean and deviation among photos where the file has them."""
        diffae = self.autoencoder()
        z = diffae.encode(self.sized(pictures))
        return (z - diffae.conds_mean) / diffae.conds_std if diffae.config.latent else z

    def clip_network(self) -> Clip:
        """ValueError if there is none."""
        if self.clip is None:
            raise ValueError("there is no CLIP to measure with; give one to the evaluator")
        return self.clip

    def autoencoder(self) -> DiffAE:
        """ValueError if there is none."""
        if self.diffae is None:
            raise ValueError("there is no autoencoder to measure with; give one to the evaluator")
        return self.diffae

    def perceptual_network(self) -> PerceptualDistance:
        """ValueError if there is none."""
        if self.perceptual is None:
            raise ValueError("there is no perceptual network to measure with; give one to the evaluator")
        return self.perceptual

    def face_networks(self) -> FaceNetworks:
        """ValueError if there are none."""
        if self.faces is None:
            raise ValueError("there are no face networks to measure with; give them to the evaluator")
        return self.faces

    def perceptual_distance(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,) of two batches of pictures. ValueError without a perceptual network."""
        return self.perceptual_network()(self.sized(a), self.sized(b))


@dataclass(frozen=True)
class PictureFeatures:
    """Pictures (B, 3, H, W), uint8 or in [-1, 1], on any device, and what an evaluator's networks make of them.

    Each feature is computed once, when it is first asked for, without gradient.
    """
    evaluator: Evaluator
    pictures: Tensor

    @cached_property
    def sized(self) -> Tensor:
        """At the side that they are compared at, float32 in [-1, 1]."""
        return torch.cat([self.evaluator.sized(part) for part in self._chunks()])

    @cached_property
    def embeddings(self) -> Tensor:
        """CLIP embeddings (B, D), not normalised."""
        return self._features(self.evaluator.embed)

    @cached_property
    def tokens(self) -> Tensor:
        """CLIP tokens (B, n, d)."""
        return self._features(lambda part: self.evaluator.clip_network().tokens(self.evaluator.sized(part)))

    @cached_property
    def keys(self) -> Tensor:
        """Structure keys (B, n, D)."""
        return self._features(self.evaluator.keys)

    @cached_property
    def z(self) -> Tensor:
        """The autoencoder's z (B, E)."""
        return self._features(lambda part: self.evaluator.autoencoder().encode(self.evaluator.sized(part)))

    @cached_property
    def identity(self) -> Tensor:
        """Normalised z (B, E)."""
        return self._features(self.evaluator.identity)

    @cached_property
    def face_squares(self) -> Tensor:
        """Where each picture's face is, (B, 4); see `faces.face_squares`."""
        nets = self.evaluator.face_networks()
        return torch.cat([face_squares(nets, part) for part in self._chunks()])

    @cached_property
    def faces(self) -> FaceReading:
        """What the mesh reads in each picture's own face."""
        return self.faces_at(self.face_squares)

    def faces_at(self, squares: Tensor) -> FaceReading:
        """What the mesh reads in squares (B, 4), one of each picture."""
        nets, chunks = self.evaluator.face_networks(), zip(self._chunks(), squares.split(self._rows), strict=True)
        parts = [read_faces(nets, part, at) for part, at in chunks]
        return FaceReading(torch.cat([part.quality for part in parts]), torch.cat([part.points for part in parts]))

    @cached_property
    def face_embeddings(self) -> Tensor:
        """ArcFace's embeddings (B, D). As the others of `public`: ValueError without the network."""
        return self._features(self.evaluator.public.network("arcface").embed)

    @cached_property
    def dino_keys(self) -> Tensor:
        """DINO's keys (B, n, D), of the pictures at their own size."""
        return self._features(self.evaluator.public.network("dino").keys)

    @cached_property
    def public_embeddings(self) -> Tensor:
        """Embeddings (B, D) of the user's CLIP, of the pictures at their own size, not normalised."""
        clip = self.evaluator.public.network("public_clip")
        return self._features(lambda part: clip.embed(part, "openai").float())

    @cached_property
    def inception(self) -> Tensor:
        """FID's features (B, 2048)."""
        network, resize = self.evaluator.public.network("inception"), self.evaluator.public.resize
        return self._features(lambda part: network.embed(part, resize))

    @cached_property
    def art_inception(self) -> Tensor:
        """ArtFID's features (B, 2048)."""
        return self._features(self.evaluator.public.network("art_inception").embed)

    @torch.no_grad()
    def lpips_to(self, others: PictureFeatures, name: str) -> Tensor:
        """(B,) LPIPS to as many others of the same size; name: "lpips_alex" or "lpips_vgg"."""
        network, sides = self.evaluator.public.network(name), [x.pictures.shape[-2:] for x in (self, others)]
        if sides[0] != sides[1]:
            raise ValueError("LPIPS compares pictures of one size, not of {1} x {0} and {3} x {2} px; resize one of "
                             "them".format(*sides[0], *sides[1]))
        return torch.cat([network(a, b) for a, b in zip(self._chunks(), others._chunks(), strict=True)])

    @cached_property
    def projection(self) -> Tensor:
        """Projector (d, d) onto the space of all tokens."""
        return projector(self.tokens)

    @property
    def _rows(self) -> int:
        """Pictures in one call of a network."""
        return chunk_rows(*self.pictures.shape[-2:])

    @torch.no_grad()
    def _features(self, network: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([network(part) for part in self._chunks()])

    def _chunks(self) -> Iterator[Tensor]:
        for part in self.pictures.split(self._rows):
            self.evaluator.check_interrupt()
            part = part.to(self.evaluator.device)
            yield to_unit(part) if part.dtype == torch.uint8 else part


def given(part: Part | None, name: str) -> Part:
    """What a metric needs of a comparison; ValueError if it is None."""
    if part is None:
        raise ValueError(f"this comparison has no {name}, which the metric needs")
    return part


@dataclass(frozen=True)
class Comparison:
    """What picture metrics are functions of. photos and results: as many, in the same order.

    style_image: one picture. direction_start (1, D): the CLIP embedding where the direction to the style begins (of the
    photo twin, the photos' mean or the anchor text). prompts (P, D): embeddings of length 1, the anchor among them, of
    which the row prompt_index was meant. attribute: a classifier of z, and the row that is measured.
    """
    photos: PictureFeatures
    results: PictureFeatures
    style_image: PictureFeatures | None = None
    direction_start: Tensor | None = None
    prompts: Tensor | None = None
    prompt_index: int = 0
    attribute: tuple[AttributeClassifier, int] | None = None

    def __post_init__(self) -> None:
        photos, results = len(self.photos.pictures), len(self.results.pictures)
        if photos != results:
            raise ValueError(f"{photos} photos but {results} results; give as many of both")

    @classmethod
    def of(cls, evaluator: Evaluator, photos: Tensor, results: Tensor, style_image: Tensor | None = None,
           direction_start: Tensor | None = None) -> Comparison:
        """Of tensors (B, 3, H, W), the style image (1, 3, H, W). ValueError for unequal numbers."""
        style = None if style_image is None else PictureFeatures(evaluator, style_image)
        return cls(PictureFeatures(evaluator, photos), PictureFeatures(evaluator, results), style, direction_start)

    @property
    def evaluator(self) -> Evaluator:
        return self.results.evaluator

    @property
    def direction_end(self) -> Tensor | None:
        """The CLIP embedding (1, D) where the direction to the style ends: of prompt or style image."""
        if self.prompts is not None:
            return self.prompts[self.prompt_index][None]
        return None if self.style_image is None else self.style_image.embeddings

    @cached_property
    def result_faces(self) -> FaceReading:
        """What the mesh reads in the results, where the photos' faces are."""
        return self.results.faces_at(self.photos.face_squares)

    @cached_property
    def prompt_similarities(self) -> Tensor:
        """Cosine (B, P) of each result with each prompt."""
        return F.normalize(self.results.embeddings, dim=1) @ given(self.prompts, "prompts").t()
