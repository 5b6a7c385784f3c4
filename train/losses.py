"""The losses of both papers.

OSASIS (docs/osasis.md C.4): one number a picture (B,), of CLIP embeddings E(.) (B, D), not normalised. MMFS
(docs/mmfs.md B.3, B.6, B.7): float32 scalars, of structure keys and CLIP tokens (B, n, d) and embeddings (B, D).
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

STRUCTURE_NORMS = ("mse", "frobenius")
LEAST_CHANGE = 0.02  # of an edit's embedding, as a share of the embedding's length
MIN_SINGULAR = 1e-6  # singular values below this share of the largest are noise


# --- OSASIS -----------------------------------------------------------------------------------------------------------
def direction_loss(start: Tensor, end: Tensor, start_too: Tensor, end_too: Tensor) -> Tensor:
    """1 - cos of the two directions start -> end and start_too -> end_too."""
    return 1 - F.cosine_similarity(F.normalize(end - start, dim=1), F.normalize(end_too - start_too, dim=1), dim=1)


def cross_domain_loss(style_a: Tensor, style_b: Tensor, content: Tensor, result: Tensor) -> Tensor:
    """The change content -> result must point as the change of the style image's twin -> style image."""
    return direction_loss(style_a, style_b, content, result)


def in_domain_loss(style_a: Tensor, style_b: Tensor, content: Tensor, result: Tensor) -> Tensor:
    """style image -> result in the style domain must point as twin -> content in the source domain."""
    return direction_loss(style_a, content, style_b, result)


def clip_reconstruction_loss(result: Tensor, style_b: Tensor) -> Tensor:
    """1 - cos of the embeddings of the style stream's prediction and the style image."""
    return 1 - F.cosine_similarity(result, style_b, dim=1)


def pixel_loss(result: Tensor, style_b: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (result - style_b).abs().mean((1, 2, 3))


def text_edit_loss(unedited: Tensor, edited: Tensor, direction: Tensor) -> Tensor:
    """1 - cos of the change unedited -> edited (B, D) and the direction of the texts (B, D) or (1, D) (C.8, Eq. 28-30).

    A change shorter than LEAST_CHANGE counts as that long: at none at all, where the edit starts, cos has no gradient.
    """
    change = edited - unedited
    length = change.norm(dim=1).clamp_min(1e-12).maximum(LEAST_CHANGE * unedited.norm(dim=1))
    return 1 - (change * F.normalize(direction, dim=1)).sum(1) / length


# --- MMFS -------------------------------------------------------------------------------------------------------------
def self_similarity(keys: Tensor) -> Tensor:
    """Cosine of every pair of keys, (B, n, n)."""
    keys = keys.float()
    length = keys.norm(dim=2)
    return keys @ rearrange(keys, "b n d -> b d n") / (length[:, :, None] * length[:, None]).clamp(min=1e-8)


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

    Where the tokens could span the whole space, which would forbid nothing, only the strongest directions are kept:
    half of d, or of several references n if that is more (and less than d).
    """
    each, width = tokens.shape[1:]
    columns = rearrange(F.normalize(tokens.float(), dim=2), "b n d -> d (b n)")
    u, s, _ = torch.linalg.svd(columns, full_matrices=False)
    if len(tokens) > 1 or each >= width:
        most = max(each if each < width else 0, width // 2)
        u, s = u[:, :most], s[:most]
    u = u[:, s >= MIN_SINGULAR * s[0]]
    return u @ u.t()


def projection_loss(projection: Tensor, tokens: Tensor) -> Tensor:
    """mean |P t - t| over all tokens of all results, each of length 1."""
    tokens = F.normalize(tokens.float(), dim=2)
    return (tokens @ projection - tokens).abs().mean()


def feature_loss(features: Sequence[Tensor], features_too: Sequence[Tensor]) -> Tensor:
    """Sum over the discriminator's layers of mean |a - b| (A.8)."""
    pairs = zip(features, features_too, strict=True)
    return torch.stack([(a.float() - b.float()).abs().mean() for a, b in pairs]).sum()
