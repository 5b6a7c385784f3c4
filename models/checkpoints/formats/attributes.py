"""DiffAE's attribute classifier: PyTorch-Lightning `last.ckpt` of ffhq256_autoenc_cls (docs/osasis.md A.7)."""

from __future__ import annotations

import torch

from ..errors import CheckpointError
from ..safe_pickle.records import TensorRef
from .foreign import Foreign, read_all
from .weights import Weights

_LINEAR = {"weight": "ema_classifier.weight", "bias": "ema_classifier.bias"}
_STATISTICS = ("conds_mean", "conds_std")
_ADVICE = "pick the unchanged ffhq256_autoenc_cls/last.ckpt"


def matches(weights: Weights) -> bool:
    """True for the linear classifier with its moving average."""
    return "ema_classifier.weight" in weights.state


def parse(weights: Weights) -> Foreign:
    """Kind "attributes": `weight` (A, E), `bias` (A,), and `conds_mean`, `conds_std` (E,). Raises CheckpointError."""
    names = _LINEAR | {name: name for name in _STATISTICS}
    missing = [name for name in names.values() if name not in weights.state]
    if missing:
        raise CheckpointError(f"this is DiffAE's attribute classifier without its '{missing[0]}'; {_ADVICE}")
    refs: dict[str, TensorRef] = {name: weights.state[name] for name in names.values()}
    found = read_all(refs, names)
    for name in _STATISTICS:
        value: torch.Tensor = found[name]
        if value.numel() != value.shape[-1]:
            raise CheckpointError(f"its {name} has shape {list(value.shape)}, not that of one code; {_ADVICE}")
        found[name] = value.reshape(-1)
    return Foreign(found, "attributes", {"format": "diffae-classifier"})
