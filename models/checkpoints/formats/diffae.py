"""The official DiffAE: PyTorch-Lightning `last.ckpt` (autoenc, autoenc_latent, plain DDIM; docs/osasis.md A.7)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch

from ..errors import CheckpointError
from ..safe_pickle.records import TensorRef
from .foreign import Foreign, read_all, relevant
from .guided_diffusion import MODULES
from .weights import Weights

log = logging.getLogger(__name__)

AVERAGED = "ema_model"
_ALIAS = re.compile(r"(latent_net\.layers\.\d+)\.cond_layers\.1\.(weight|bias)")
_STATISTICS = ("conds_mean", "conds_std")


def matches(weights: Weights) -> bool:
    """True for a DiffAE, complete or not, and for what Lightning's file of a plain DDIM holds."""
    averaged = weights.path[-1:] == (AVERAGED,)
    has_encoder = any(name.startswith("encoder.") for name in weights.state)
    return "input_blocks.0.0.weight" in weights.state and (averaged or has_encoder)


def our_name(key: str) -> str:
    """Our name of an official key of a DiffAE with encoder."""
    if key.startswith(("encoder.", "latent_net.")):
        return key
    return "unet." + key.replace("time_embed.time_embed.", "time_embed.", 1)


def drop_aliases(state: Mapping[str, TensorRef]) -> list[str]:
    """The names in `state` without the second names of `linear_emb`, which are verified to be equal."""
    kept = []
    for name in state:
        alias = _ALIAS.fullmatch(name)
        if alias is None:
            kept.append(name)
            continue
        original = f"{alias[1]}.linear_emb.{alias[2]}"
        if original not in state:
            raise CheckpointError(f"its tensor '{name}' is a second name of '{original}', which is missing; "
                                  "pick the unchanged official file")
        values = read_all(state, {"alias": name, "original": original})
        if not torch.equal(values["alias"], values["original"]):
            raise CheckpointError(f"its tensors '{name}' and '{original}' differ, but are one tensor in "
                                  "the official model; pick the unchanged official file")
    return kept


def parse(weights: Weights) -> Foreign:
    """Kind "diffae": `unet.*`, `encoder.*`, `latent_net.*`, and `conds_mean`, `conds_std` of shape (E,) if present.

    Kind "ddpm" (a plain DDIM configuration, no encoder): the UNet's keys without prefix. Raises CheckpointError.
    """
    state = relevant(weights.state, (*MODULES, "encoder.", "latent_net."))
    state = {name: value for name, value in state.items() if name not in _STATISTICS}
    names = drop_aliases(state)
    if weights.path[-1:] == ("model",):
        log.warning("the file has no averaged weights (ema_model): the raw ones are taken, which draw less well")
    meta = {key: weights.fact(key) for key in ("global_step", "epoch") if weights.fact(key)}
    if not any(name.startswith("encoder.") for name in names):
        return Foreign(read_all(state, {name: name for name in names}), "ddpm", {"format": "diffae-ddim", **meta})
    ours = {our_name(name): name for name in names}
    if len(ours) != len(names):
        raise CheckpointError("it names one tensor twice (time_embed with and without its wrapper); "
                              "pick the unchanged official file")
    tensors = read_all(state, ours)
    tensors.update(_statistics(weights, tensors))
    return Foreign(tensors, "diffae", {"format": "diffae-lightning", **meta})


def _statistics(weights: Weights, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """conds_mean and conds_std as (E,), both or none, with positive deviations."""
    refs = {name: ref for name in _STATISTICS if (ref := weights.beside(name)) is not None}
    if not refs:
        return {}
    if len(refs) == 1:
        raise CheckpointError(f"it holds {next(iter(refs))} alone; conds_mean and conds_std belong together: "
                              "pick the unchanged official autoenc_latent file")
    found = read_all(refs, {name: name for name in _STATISTICS})
    width = next((t.shape[0] for name, t in tensors.items() if name == "unet.time_embed.2.bias"), None)
    for name, value in found.items():
        if value.shape not in ((width,), (1, width)):
            raise CheckpointError(f"its {name} has shape {list(value.shape)}; expected [1, {width}], the width of z")
    if not (found["conds_std"] > 0).all():
        raise CheckpointError("its conds_std holds zero or negative deviations; pick the unchanged official file")
    return {name: value.reshape(-1) for name, value in found.items()}
