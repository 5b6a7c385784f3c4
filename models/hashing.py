"""One hash of weights and pictures, by which styles know their model and snapshots what they were made with."""
from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def hash_of(tensors: Mapping[str, Tensor], dtype: torch.dtype | None = torch.float16) -> str:
    """Hash (32 hex digits) of named tensors as 16-bit numbers: equal for a checkpoint and its slim copy, unless that
    is in bfloat16. With `dtype` None it tells every bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
