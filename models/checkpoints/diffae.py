"""The official DiffAE: PyTorch-Lightning `last.ckpt` (autoenc, autoenc_latent, plain DDIM); spec osasis A.7."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from .errors import CheckpointError
from .foreign import Foreign, entry, is_tensor, read_all, strip, text_keys, whole_number

PREFIX = "ema_model."
_ALIAS = re.compile(r"(latent_net\.layers\.\d+)\.cond_layers\.1\.(weight|bias)")
_STATISTICS = ("conds_mean", "conds_std")


def matches(root: Mapping) -> bool:
    """True if `root` (a torch file's object, or flat safetensors) is a DiffAE checkpoint, complete or not."""
    names = text_keys(root.get("state_dict")) or text_keys(root)
    return any(name.startswith((PREFIX, "model.")) and "input_blocks.0.0.weight" in name for name in names)


def our_name(key: str) -> str:
    """Our name of an official key (without `ema_model.`) of a DiffAE with encoder."""
    if key.startswith(("encoder.", "latent_net.")):
        return key
    return "unet." + key.replace("time_embed.time_embed.", "time_embed.", 1)


def drop_aliases(state: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """`names` (official key -> name in `state`) without the second names of `linear_emb`, verified to be equal."""
    kept: dict[str, str] = {}
    for key, name in names.items():
        alias = _ALIAS.fullmatch(key)
        if alias is None:
            kept[key] = name
            continue
        original = f"{alias[1]}.linear_emb.{alias[2]}"
        pair = {"alias": name, "original": names.get(original, "")}
        if original not in names:
            raise CheckpointError(f"its tensor '{name}' is a second name of '{original}', which is missing; "
                                  "pick the unchanged official file")
        values = read_all(state, pair)
        if not torch.equal(values["alias"], values["original"]):
            raise CheckpointError(f"its tensors '{name}' and '{pair['original']}' differ, but are one tensor in "
                                  "the official model; pick the unchanged official file")
    return kept


def parse(root: Mapping) -> Foreign:
    """The averaged (`ema_model.`) weights of a checkpoint for which `matches` is true.

    Kind "diffae": `unet.*`, `encoder.*`, `latent_net.*`, and `conds_mean`, `conds_std` of shape (E,) if present.
    Kind "ddpm" (a plain DDIM configuration, no encoder): the UNet's keys without prefix. Raises CheckpointError.
    """
    flat = "state_dict" not in root
    state = {k: v for k, v in root.items() if is_tensor(v)} if flat else entry(root, "state_dict")
    names = strip(state, PREFIX)
    if not names:
        raise CheckpointError("it has no 'ema_model.' weights, only raw ones; "
                              "pick a last.ckpt of the official DiffAE, which holds both")
    names = drop_aliases(state, names)
    meta = {key: whole_number(root.get(key)) for key in ("global_step", "epoch") if whole_number(root.get(key))}
    if not any(key.startswith("encoder.") for key in names):
        return Foreign(read_all(state, names), "ddpm", {"format": "diffae-ddim", **meta})
    ours = {our_name(key): name for key, name in names.items()}
    if len(ours) != len(names):
        raise CheckpointError("it names one tensor twice (time_embed with and without its wrapper); "
                              "pick the unchanged official file")
    tensors = read_all(state, ours)
    tensors.update(_statistics(state, tensors))
    return Foreign(tensors, "diffae", {"format": "diffae-lightning", **meta})


def _statistics(state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """conds_mean and conds_std as (E,), both or none, with positive deviations."""
    present = [name for name in _STATISTICS if name in state]
    if not present:
        return {}
    if len(present) == 1:
        raise CheckpointError(f"it holds {present[0]} alone; conds_mean and conds_std belong together: "
                              "pick the unchanged official autoenc_latent file")
    found = read_all(state, {name: name for name in _STATISTICS})
    width = next((t.shape[0] for name, t in tensors.items() if name == "unet.time_embed.2.bias"), None)
    for name, value in found.items():
        if value.shape not in ((width,), (1, width)):
            raise CheckpointError(f"its {name} has shape {list(value.shape)}; expected [1, {width}], the width of z")
    if not (found["conds_std"] > 0).all():
        raise CheckpointError("its conds_std holds zero or negative deviations; pick the unchanged official file")
    return {name: value.reshape(-1) for name, value in found.items()}
