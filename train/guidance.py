"""What guides MMFS (spec B.3, B.6, B.7): self-similarity of structure keys, CLIP directions, CLIP token projection,
and the discriminator's features. Keys and tokens are (B, n, d), embeddings (B, D); all losses are float32 scalars.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses import direction_loss

STRUCTURE_NORMS = ("mse", "frobenius")
WEAKEST = 1e-6  # singular values below this share of the largest are noise


def self_similarity(keys: Tensor) -> Tensor:
    """Cosine of every pair of keys, (B, n, n)."""
    keys = keys.float()
    length = keys.norm(dim=2)
    return keys @ keys.transpose(1, 2) / (length[:, :, None] * length[:, None]).clamp(min=1e-8)


def structure_loss(keys: Tensor, keys_too: Tensor, norm: str = "mse") -> Tensor:
    """Difference of two batches' self-similarities, summed over the batch.

    "mse": mean of squares (the official program). "frobenius": the Frobenius norm over n (the paper, scaled, B.9).
    """
    if norm not in STRUCTURE_NORMS:
        raise ValueError(f"structure_norm is {norm!r}; take one of {', '.join(STRUCTURE_NORMS)}")
    squares = (self_similarity(keys) - self_similarity(keys_too)).square().mean((1, 2))
    return (squares if norm == "mse" else (squares + 1e-12).sqrt()).sum()


def clip_loss(photos: Tensor, results: Tensor, anchor: Tensor, reference: Tensor) -> Tensor:
    """The change photo -> result must point as anchor -> reference: mean over the batch of 1 - cos.

    Embeddings have length 1. anchor, reference (1, D): e("photo") and e(prompt), or the photos' mean and e(picture).
    """
    return direction_loss(photos.float(), results.float(), anchor.float(), reference.float()).mean()


def projector(tokens: Tensor) -> Tensor:
    """P = U U^T (d, d) onto the space that the references' tokens (B, n, d) span, all references together.

    Where the tokens together could span the whole space, which would forbid nothing, the strongest n directions
    (but at least half of d) are kept.
    """
    each, width = tokens.shape[1:]
    u, s, _ = torch.linalg.svd(F.normalize(tokens.float(), dim=2).flatten(0, 1).t(), full_matrices=False)
    if len(tokens) > 1:
        u, s = u[:, :max(each, width // 2)], s[:max(each, width // 2)]
    u = u[:, s >= WEAKEST * s[0]]
    return u @ u.t()


def projection_loss(projection: Tensor, tokens: Tensor) -> Tensor:
    """mean |P t - t| over all tokens of all results, each of length 1."""
    tokens = F.normalize(tokens.float(), dim=2)
    return (tokens @ projection - tokens).abs().mean()


def feature_loss(features: Sequence[Tensor], features_too: Sequence[Tensor]) -> Tensor:
    """Sum over the discriminator's layers of mean |a - b| (spec A.8)."""
    pairs = zip(features, features_too, strict=True)
    return torch.stack([(a.float() - b.float()).abs().mean() for a, b in pairs]).sum()
