"""CLIP with ViT towers in OpenAI's layout, as OpenCLIP writes it."""

from __future__ import annotations

from torch import Tensor

from ..errors import CheckpointError
from .foreign import Foreign, numbers, read_all, relevant
from .weights import Weights

_SIGN = "visual.conv1.weight"
_NEEDED = ("visual.class_embedding", "visual.proj", "token_embedding.weight", "positional_embedding", "text_projection",
           "logit_scale")
_MODULES = ("visual.", "transformer.", "ln_final.", "token_embedding.")
_BUFFERS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
ADVICE = ("pick one with ViT towers, such as open_clip_model.safetensors of "
          "https://huggingface.co/timm/vit_base_patch32_clip_224.openai")


def matches(weights: Weights) -> bool:
    """True for a CLIP in OpenAI's layout, complete or not."""
    return _SIGN in weights.state


def parse(weights: Weights) -> Foreign:
    """Kind "clip": every key, the constant buffers dropped. Raises CheckpointError."""
    state = weights.state
    missing = [key for key in _NEEDED if key not in state]
    if missing:
        raise CheckpointError(f"it is a CLIP without '{missing[0]}' (another architecture, or incomplete); {ADVICE}")
    names = {key: key for key in relevant(state, _MODULES) if key not in (*_BUFFERS, "logit_scale")}
    return Foreign({**read_all(state, names), "logit_scale": temperature(weights)}, "clip", {"format": "open_clip"})


def temperature(weights: Weights) -> Tensor:
    """logit_scale: one number, with or without a dimension of its own; returned without."""
    value = weights.state["logit_scale"]
    if tuple(value.shape) not in ((), (1,)):
        raise CheckpointError(f"its tensor 'logit_scale' has shape {list(value.shape)}; expected a single number: "
                              f"{ADVICE}")
    return numbers("logit_scale", value, range(2)).reshape(())
