"""The losses of OSASIS (spec C.4), one number a picture (B,). E(.) are CLIP embeddings (B, D), not normalised."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def direction_loss(start: Tensor, end: Tensor, start_too: Tensor, end_too: Tensor) -> Tensor:
    """1 - cos of the two directions start -> end and start_too -> end_too."""
    return 1 - F.cosine_similarity(F.normalize(end - start, dim=1), F.normalize(end_too - start_too, dim=1), dim=1)


def cross_domain_loss(style_a: Tensor, style_b: Tensor, content: Tensor, result: Tensor) -> Tensor:
    """The change content -> result must point as the change of style picture's twin -> style picture."""
    return direction_loss(style_a, style_b, content, result)


def in_domain_loss(style_a: Tensor, style_b: Tensor, content: Tensor, result: Tensor) -> Tensor:
    """style -> result among drawings must point as twin -> content among photos."""
    return direction_loss(style_a, content, style_b, result)


def clip_reconstruction_loss(result: Tensor, style_b: Tensor) -> Tensor:
    """1 - cos of the embeddings of the style stream's prediction and the style picture."""
    return 1 - F.cosine_similarity(result, style_b, dim=1)


def pixel_loss(result: Tensor, style_b: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (result - style_b).abs().mean((1, 2, 3))
