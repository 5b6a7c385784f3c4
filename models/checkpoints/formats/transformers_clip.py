"""CLIP as Hugging Face's transformers store it (CLIPModel, CLIPVisionModelWithProjection): other names, split
attention, transposed projections."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..errors import CheckpointError
from .foreign import Foreign
from .names import Row, count, linear, read
from .open_clip import ADVICE, temperature
from .weights import Weights

_SIGN = "vision_model.embeddings.patch_embedding.weight"
_BUFFERS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")
_TEXT_SIGN = "text_model.embeddings.token_embedding.weight"
_PLAIN = {"visual.class_embedding": "vision_model.embeddings.class_embedding", "visual.conv1.weight": _SIGN,
          "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
          "token_embedding.weight": _TEXT_SIGN,
          "positional_embedding": "text_model.embeddings.position_embedding.weight"}
_TURNED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_NORMS = (("visual.ln_pre", "vision_model.pre_layrnorm"), ("visual.ln_post", "vision_model.post_layernorm"),
          ("ln_final", "text_model.final_layer_norm"))
_BLOCK = (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
          ("attn.out_proj", "self_attn.out_proj"), *((f"attn.{x}", f"self_attn.{x}_proj") for x in "qkv"))


def matches(weights: Weights) -> bool:
    """True for a picture tower with these names, with or without a text tower."""
    return _SIGN in weights.state


def parse(weights: Weights) -> Foreign:
    """Kind "clip", in OpenAI's layout; the picture tower alone is one without prompts. CheckpointError for other
    architectures."""
    state = weights.state
    whole = _TEXT_SIGN in state
    if "vision_model.embeddings.class_embedding" not in state or whole and "logit_scale" not in state:
        raise CheckpointError(f"it is no CLIP but a model of another architecture (SigLIP?); {ADVICE}")
    if "visual_projection.weight" not in state:
        raise CheckpointError("it is the picture tower of a CLIP without its projection, which gives the embeddings; "
                              f"{ADVICE}")
    rows = [row for ours, theirs in _blocks(state) for row in
            linear((f"{ours}.{a}", f"{theirs}.{b}") for a, b in _BLOCK)]
    rest = {name: value for name, value in state.items() if name not in (*_BUFFERS, "logit_scale")}
    rows += linear(row for row in _NORMS if whole or row[0].startswith("visual."))
    rows += [Row(ours, theirs) for ours, theirs in (_PLAIN | _TURNED).items() if whole or ours.startswith("visual.")]
    found = read(rest, rows)
    for name in found.keys() & _TURNED:
        found[name] = found[name].T.contiguous()
    for ours, _ in _blocks(state):
        for part in ("weight", "bias"):
            found[f"{ours}.attn.in_proj_{part}"] = torch.cat([found.pop(f"{ours}.attn.{x}.{part}") for x in "qkv"])
    found |= {"logit_scale": temperature(weights)} if whole else {}
    return Foreign(found, "clip", {"format": "transformers"})


def _blocks(names: Iterable[str]) -> list[tuple[str, str]]:
    """(our prefix, theirs) of every transformer block of both towers."""
    found = []
    for ours, theirs in (("visual.transformer.resblocks", "vision_model.encoder.layers"),
                         ("transformer.resblocks", "text_model.encoder.layers")):
        found += [(f"{ours}.{k}", f"{theirs}.{k}") for k in range(count(names, f"{theirs}."))]
    return found
