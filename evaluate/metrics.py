"""Measures as plain functions, of pictures (B, 3, H, W) in [-1, 1] or of features; most return one number a picture.

What each is for, its unit and which way is better: `registry.py`.
"""
from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..models import rng
from ..models.features.packages import package_module
from ..models.precision import doubled
from ..train.losses import self_similarity
from ..train.palette import slices

Number = TypeVar("Number", float, Tensor)


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


# --- distances of sets ------------------------------------------------------------------------------------------------
def frechet_distance(a: Tensor, b: Tensor) -> Tensor:
    """Frechet distance of two sets of embeddings (N, D), (M, D), each taken as a Gaussian; float64, a scalar.

    FID is this on Inception features. Exact for sets smaller than D, too. ValueError for less than two of either.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"sets of {len(a)} and {len(b)} pictures cannot be compared; give at least two of each")
    a, b = doubled(a), doubled(b)
    if min(len(a), len(b)) > a.shape[1]:
        return frechet_of_moments(a.mean(0), torch.cov(a.t()), b.mean(0), torch.cov(b.t()))
    x, y = ((set_ - set_.mean(0)) / (len(set_) - 1) ** 0.5 for set_ in (a, b))
    cross = torch.linalg.svdvals(x @ y.t()).sum()  # the covariances are x^T x, y^T y: tr (A B)^1/2 is this
    return (a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * cross


def frechet_of_moments(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2), of means (D,) and covariances (D, D) in float64."""
    return (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root_trace(cov_a, cov_b)


def root_trace(cov_a: Tensor, cov_b: Tensor) -> Tensor:
    """tr (A B)^1/2 of covariances (D, D)."""
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.t()
    return torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()


def fid_infinity(values: Tensor, counts: Tensor) -> Tensor:
    """The FID of endless sets: where the least-squares line of FIDs over 1 / count meets 0. Of at least two counts."""
    x, y = 1 / doubled(counts), doubled(values)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return y.mean() - slope * x.mean()


def kernel_distance(a: Tensor, b: Tensor) -> Tensor:
    """KID of two sets of embeddings (N, D), (M, D): unbiased, of all pictures at once, so nothing of it is random.

    Kernel (x . y / D + 1)^3. float64; it may be below 0 for equal sets. ValueError for less than two of either.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"sets of {len(a)} and {len(b)} pictures cannot be compared; give at least two of each")

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.t() / x.shape[1] + 1) ** 3

    def others(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))
    a, b = doubled(a), doubled(b)
    return others(a) + others(b) - 2 * kernel(a, b).mean()


def art_fid(lpips: Number, fid: Number) -> Number:
    """ArtFID of the mean LPIPS (photo, result) and the Frechet distance (results, style pictures)."""
    return (1 + lpips) * (1 + fid)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[Tensor, Tensor]:
    """(share of fakes inside a real ball, share of reals inside a fake ball) of features (N, D), (M, D).

    The ball of a point reaches to its k-th neighbour in its own set. ValueError for k others or less.
    """
    between = _distances(real, fake)
    inside_real = (between < _radii(real, k)[:, None]).any(0)
    inside_fake = (between < _radii(fake, k)[None]).any(1)
    return inside_real.double().mean(), inside_fake.double().mean()


def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """(mean number of real balls that hold a fake, over k; share of reals whose ball holds a fake); see above."""
    inside = _distances(real, fake) < _radii(real, k)[:, None]
    return inside.double().sum(0).mean() / k, inside.any(1).double().mean()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(doubled(a), doubled(b), compute_mode="donot_use_mm_for_euclid_dist")


def _radii(points: Tensor, k: int) -> Tensor:
    if len(points) <= k:
        raise ValueError(f"{len(points)} pictures have no {k}-th neighbour; give more")
    return _distances(points, points).kthvalue(k + 1, dim=1).values  # the point itself is the first


# --- CLIP, every embedding at length 1 before differences and means ---------------------------------------------------
def mean_direction(embeddings: Tensor) -> Tensor:
    """The mean (1, D) of embeddings (B, D) at length 1, at length 1 again."""
    return F.normalize(F.normalize(embeddings, dim=1).mean(0, keepdim=True), dim=1)


def text_direction(source: Tensor, target: Tensor) -> Tensor:
    """Direction (1, D) from one class to another, each of T templates (T, D), which correspond."""
    return F.normalize((F.normalize(target, dim=1) - F.normalize(source, dim=1)).mean(0, keepdim=True), dim=1)


def image_direction(source: Tensor, target: Tensor) -> Tensor:
    """Direction (1, D) from the mean of some pictures (B, D) to the mean of others (K, D)."""
    start, end = (F.normalize(x, dim=1).mean(0, keepdim=True) for x in (source, target))
    return F.normalize(end - start, dim=1)


def unit_direction_similarity(before: Tensor, after: Tensor, direction: Tensor) -> Tensor:
    """(B,) cosine of the change of embeddings (B, D) with a direction (1, D); 0 for what did not change.

    StyleGAN-NADA's directional loss is 1 minus the mean of it.
    """
    return F.cosine_similarity(F.normalize(after, dim=1) - F.normalize(before, dim=1), direction, dim=1)
