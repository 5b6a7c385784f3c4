"""Measures as plain functions, of pictures (B, 3, H, W) in [-1, 1] or of features; most return one number a picture.

What each is for, its unit and which way is better: `registry.py`.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..models import rng
from ..models.features.packages import package_module
from ..train.losses import self_similarity
from ..train.palette import slices


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, of pictures clamped to [-1, 1]."""
    error = (a.clamp(-1, 1) - b.clamp(-1, 1)).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error.clamp_min(1e-12))


def ssim(a: Tensor, b: Tensor, window: int = 11) -> Tensor:
    """Structural similarity, Gaussian window."""
    kornia_metrics = package_module("kornia.metrics", "kornia")
    return kornia_metrics.ssim((a.clamp(-1, 1) + 1) / 2, (b.clamp(-1, 1) + 1) / 2, window).mean((1, 2, 3))


def edges(x: Tensor, px: int = 32) -> Tensor:
    """Sobel edge strength of the grey picture at `px`, (B, px * px), mean removed."""
    grey = F.interpolate(x.mean(1, keepdim=True), (px, px), mode="area")
    e = package_module("kornia.filters", "kornia").sobel((grey + 1) / 2).flatten(1)
    return e - e.mean(1, keepdim=True)


def edge_agreement(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of the edge maps at 32 px: 1 where the structure is the same, 0 where it is unrelated."""
    return F.cosine_similarity(edges(a), edges(b), dim=1)


def structure_distance(keys: Tensor, keys_too: Tensor) -> Tensor:
    """Mean squared difference of the self-similarities of keys (B, n, D) (as Splice does with DINO)."""
    return (self_similarity(keys) - self_similarity(keys_too)).square().mean((1, 2))


def sliced_distance(a: Tensor, b: Tensor, directions: int = 64) -> Tensor:
    """Sliced Wasserstein distance of two sets of C-vectors (B, C, N): mean distance of sorted projections."""
    d = F.normalize(rng.randn((a.shape[1],), 0, "slices", range(directions)).to(a), dim=1)
    return (slices(a, d) - slices(b, d)).abs().mean((1, 2))


def colour_distance(a: Tensor, b: Tensor, px: int = 64) -> Tensor:
    """Sliced distance of the colours, whatever their place."""
    a, b = (F.interpolate(x, (px, px), mode="area").flatten(2) for x in (a, b))
    return sliced_distance(a, b.expand_as(a))


def texture_distance(a: Tensor, b: Tensor, patch: int = 5, count: int = 1024) -> Tensor:
    """Sliced distance of small grey patches with their mean removed, whatever their place."""
    def patches(x: Tensor) -> Tensor:
        p = F.unfold(x.mean(1, keepdim=True), patch, stride=2)
        p = p - p.mean(1, keepdim=True)
        index = torch.linspace(0, p.shape[2] - 1, min(count, p.shape[2]), device=x.device).long()
        return p[:, :, index]
    a, b = patches(a), patches(b)
    return sliced_distance(a, b.expand_as(a))


def direction_similarity(before: Tensor, after: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Cosine of two changes of CLIP embedding (B, D): before -> after, and source -> target."""
    return F.cosine_similarity(after - before, target - source, dim=1)


def retrieval_accuracy(codes: Tensor, photos: Tensor) -> Tensor:
    """1 where the nearest of all photos' codes (B, D) is the picture's own photo, else 0; by the cosine.

    Each set's mean is taken out first: what a style does to every picture alike does not count.
    """
    codes, photos = codes - codes.mean(0), photos - photos.mean(0)
    nearest = (F.normalize(codes, dim=1) @ F.normalize(photos, dim=1).t()).argmax(1)
    return (nearest == torch.arange(len(codes), device=codes.device)).float()


def projected_share(tokens: Tensor, projection: Tensor) -> Tensor:
    """Share of the energy of tokens (B, n, d), each of length 1, that the projection (d, d) keeps: 1 - |P t - t|^2."""
    tokens = F.normalize(tokens.float(), dim=2)
    return 1 - (tokens @ projection - tokens).square().sum(2).mean(1)


def nearest_similarity(tokens: Tensor, reference: Tensor) -> Tensor:
    """Mean over tokens (B, n, d) of the cosine with the nearest token of the reference (1, m, d)."""
    tokens, reference = F.normalize(tokens.float(), dim=2), F.normalize(reference.float(), dim=2)
    return (tokens @ rearrange(reference, "b m d -> b d m")).amax(2).mean(1)


def frechet_distance(a: Tensor, b: Tensor) -> Tensor:
    """Frechet distance of two sets of embeddings (N, D), (M, D), each taken as a Gaussian; float64, a scalar.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2); FID is this on Inception features. ValueError for less than two.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"sets of {len(a)} and {len(b)} pictures cannot be compared; give at least two of each")
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.t()), torch.cov(b.t())
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.t()
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
