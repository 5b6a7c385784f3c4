"""MMFS (Li et al., CGF 2023): a convolutional encoder gives a feature map at an N-th of the size, the upper StyleGAN2
layers generate, a transformer turns CLIP embeddings into w+ codes (docs/mmfs.md A.4, B.1, B.5).

Pictures are NCHW, RGB, [-1, 1]; sides are multiples of 2^N. w+ codes are (B, n, S), sample first (the official program
has layer first).
"""
from __future__ import annotations

from collections.abc import Mapping as Tensors
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .hashing import hash_of
from .stylegan2 import SLOPE, EqualConv, Mapping, ResBlock, StyleGAN2, Synthesis
from .unet import entry_count

DECODED_PX = 32  # where the encoder hands over, at the resolution that StyleGAN2 was trained for


@dataclass(frozen=True)
class MapperConfig:
    """The CLIP mapping: pre-norm transformer over the n tokens of a style. Heads are `head_channels` wide."""
    layers: int = 4
    hidden: int = 2048
    head_channels: int = 64
    dropout: float = 0.1


@dataclass(frozen=True)
class MMFSConfig:
    """encoder: widths behind its stem and its N blocks. decoder: widths from the feature map's size up, N + 1 of them.

    The last width of `encoder` is the first of `decoder`. mapper: None in files of phases 1 and 2.
    """
    encoder: tuple[int, ...] = (64, 64, 128, 256, 512)
    decoder: tuple[int, ...] = (512, 512, 256, 128, 64)
    w_dim: int = 512
    mapping_layers: int = 8
    mapper: MapperConfig | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", tuple(self.encoder))
        object.__setattr__(self, "decoder", tuple(self.decoder))
        if isinstance(self.mapper, Tensors):
            object.__setattr__(self, "mapper", MapperConfig(**self.mapper))
        if len(self.encoder) != len(self.decoder) or self.encoder[-1] != self.decoder[0]:
            raise ValueError(f"an encoder of widths {self.encoder} does not fit a decoder of widths {self.decoder}")

    @property
    def stride(self) -> int:
        """Sides of pictures are multiples of this."""
        return 1 << (len(self.encoder) - 1)

    @property
    def resolution(self) -> int:
        """The side in px that the model is made for."""
        return DECODED_PX * self.stride

    @property
    def n_styles(self) -> int:
        return 2 * len(self.decoder)


def detect(tensors: Tensors[str, Tensor]) -> MMFSConfig:
    """Read a model's configuration off its tensors' shapes. ValueError if it is none."""
    try:
        encoder = (tensors["encoder.stem.weight"].shape[0],
                   *(tensors[f"encoder.blocks.{k}.conv1.weight"].shape[0]
                     for k in range(entry_count(tensors, "encoder.blocks."))))
        decoder = tuple(tensors[f"decoder.blocks.{k}.conv1.weight"].shape[0]
                        for k in range(entry_count(tensors, "decoder.blocks.")))
        w_dim = tensors["mapping.layers.0.weight"].shape[1]
        mapper = None
        if "mapper.position" in tensors:
            hidden = tensors["mapper.layers.0.linear1.bias"].shape[0]
            mapper = MapperConfig(entry_count(tensors, "mapper.layers."), hidden)
    except (KeyError, IndexError) as error:
        raise ValueError(f"not an MMFS model ({error} is missing)") from error
    return MMFSConfig(encoder, decoder, w_dim, entry_count(tensors, "mapping.layers."), mapper)


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) -> features (B, C, H / 2^N, W / 2^N); built like a discriminator (B.1)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = EqualConv(3, widths[0], 3)
        self.blocks = nn.Sequential(*(ResBlock(a, b) for a, b in zip(widths, widths[1:])))
        self.head = EqualConv(widths[-1], widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class ClipMapper(nn.Module):
    """CLIP embeddings c (B, S), of length 1 -> w+ codes (B, n, S) (B.5)."""

    def __init__(self, w_dim: int, n_styles: int, config: MapperConfig) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(n_styles, w_dim) * w_dim ** -0.5)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(w_dim, max(1, w_dim // config.head_channels), config.hidden, config.dropout,
                                       batch_first=True, norm_first=True) for _ in range(config.layers))

    def forward(self, c: Tensor) -> Tensor:
        x = c[:, None] + self.position
        for layer in self.layers:
            x = layer(x)
        return F.leaky_relu(x, SLOPE)


class MMFS(nn.Module):
    """Encoder, mapping of z, decoder and (phases 3 and 4) CLIP mapper."""

    def __init__(self, config: MMFSConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.mapping = Mapping(config.w_dim, config.mapping_layers)
        self.decoder = Synthesis(config.decoder, config.w_dim)
        self.mapper = ClipMapper(config.w_dim, config.n_styles, config.mapper) if config.mapper else None

    def encode(self, pictures: Tensor) -> Tensor:
        """Features of pictures (B, 3, H, W). ValueError for sides that are no multiples of the stride."""
        self.check_size(pictures)
        return self.encoder(pictures)

    def check_size(self, pictures: Tensor) -> None:
        """ValueError for pictures whose sides are no multiples of the stride."""
        height, width = pictures.shape[-2:]
        if height % self.config.stride or width % self.config.stride:
            raise ValueError(f"MMFS takes pictures whose sides are multiples of {self.config.stride} px; "
                             f"this one is {width} x {height}")

    def styles(self, z: Tensor) -> Tensor:
        """w+ (B, n, S) of z (B, S)."""
        return self.mapping(z)[:, None].repeat(1, self.config.n_styles, 1)

    def styles_of(self, embeddings: Tensor) -> Tensor:
        """w+ (B, n, S) of CLIP embeddings (B, S), any length. ValueError if the model has no mapper or S differs."""
        if self.mapper is None:
            raise ValueError("this MMFS model has no CLIP mapping (it is of phase 1 or 2): load "
                             "phase3_pretrain_10000.pth, or train one")
        if embeddings.shape[-1] != self.config.w_dim:
            raise ValueError(f"this CLIP gives {embeddings.shape[-1]} numbers a picture and the model's CLIP mapping "
                             f"takes {self.config.w_dim}: load the CLIP it was trained with (officially ViT-B/32)")
        return self.mapper(F.normalize(embeddings.float(), dim=-1))

    def noise_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Shapes of the layers' noise for pictures of height x width."""
        return self.decoder.noise_shapes(height // self.config.stride, width // self.config.stride)

    def decode(self, features: Tensor, w: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Pictures in [-1, 1] (clamped, which stops the gradient of saturated pixels) of features and w+ codes."""
        return F.hardtanh(self.decoder(features, w, noise))

    def forward(self, pictures: Tensor, w: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        return self.decode(self.encode(pictures), w, noise)


def encoder_widths(top: int, blocks: int) -> tuple[int, ...]:
    """Widths of an encoder of N blocks ending in `top`, as the official one: halved upwards, two equal at 1/8 (B.1)."""
    return tuple(top >> (k if k < 4 else k - 1) for k in range(blocks, -1, -1))


def from_stylegan2(generator: StyleGAN2) -> MMFS:
    """Stage I's start: mapping and the blocks above 32 px are the generator's, the encoder and the 32 px layers new."""
    if generator.config.resolution <= DECODED_PX:
        raise ValueError(f"MMFS needs a StyleGAN2 of more than {DECODED_PX} px; "
                         f"this one generates {generator.config.resolution} px")
    lowest = DECODED_PX.bit_length() - 3  # block 0 is 4 px
    decoder = generator.config.channels[lowest:]
    config = MMFSConfig(encoder_widths(decoder[0], len(decoder) - 1), decoder, generator.config.w_dim,
                        generator.config.mapping_layers)
    net = MMFS(config)
    net.mapping.load_state_dict(generator.mapping.state_dict())
    for k in range(1, len(decoder)):
        net.decoder.blocks[k].load_state_dict(generator.synthesis.blocks[lowest + k].state_dict())
    return net


def with_mapper(net: MMFS, mapper: MapperConfig) -> MMFS:
    """A copy of a model of phase 2 with a fresh CLIP mapper."""
    grown = MMFS(replace(net.config, mapper=mapper))
    grown.load_state_dict(net.state_dict(), strict=False)
    return grown


def clip_fingerprint(clip: nn.Module) -> str:
    """A hash of a CLIP's weights, by which a model knows the CLIP that its mapper was trained with."""
    return hash_of(clip.state_dict())


def clip_warning(known: str, given: str) -> str:
    """What to say if the mapper's CLIP (`known`, "" for unknown) is not the one that is given; "" if all is well."""
    if not known or known == given:
        return ""
    return ("This model's CLIP mapping was trained with another CLIP, so styles from pictures and from text will not "
            "look like them. Load the CLIP it was trained with")


def training_memory(config: MMFSConfig, rows: int) -> int:
    """Bytes of an optimiser step: about 15 full-size maps a row, and a gigabyte for the frozen networks (D)."""
    return 15 * 4 * config.decoder[-1] * config.resolution ** 2 * rows + (1 << 30)
