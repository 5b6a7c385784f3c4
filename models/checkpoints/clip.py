"""CLIP with ViT towers in OpenAI's layout, as OpenCLIP writes it: a bare state dict, or one under `state_dict`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import CheckpointError
from .foreign import Foreign, entry, is_tensor, numbers, read_all, strip, text_keys

PREFIX = "module."  # OpenCLIP's distributed training leaves it
_SIGN = "visual.conv1.weight"
_NEEDED = ("visual.class_embedding", "visual.proj", "token_embedding.weight", "positional_embedding", "text_projection",
           "logit_scale")
_BUFFERS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_ADVICE = ("pick one with ViT towers, such as open_clip_model.safetensors of "
           "https://huggingface.co/timm/vit_base_patch32_clip_224.openai")


def matches(root: Mapping) -> bool:
    """True if `root` (a torch file's object, or flat safetensors) is a CLIP in OpenAI's layout, complete or not."""
    names = text_keys(root.get("state_dict")) or text_keys(root)
    return any(name in (_SIGN, PREFIX + _SIGN) for name in names)


def parse(root: Mapping) -> Foreign:
    """Kind "clip": every key without `module.`, the constant buffers dropped. Raises CheckpointError."""
    flat = "state_dict" not in root
    state = {k: v for k, v in root.items() if is_tensor(v)} if flat else entry(root, "state_dict")
    names = strip(state, PREFIX if PREFIX + _SIGN in state else "")
    names = {key: name for key, name in names.items() if key not in _BUFFERS}
    missing = [key for key in _NEEDED if key not in names]
    if missing:
        raise CheckpointError(f"it is a CLIP without '{missing[0]}' (another architecture, or incomplete); {_ADVICE}")
    scale = names.pop("logit_scale")
    return Foreign({**read_all(state, names), "logit_scale": _single(scale, state[scale])}, "clip",
                   {"format": "open_clip"})


def _single(name: str, value: Any) -> Any:
    """The temperature: one number, with or without a dimension of its own; returned without."""
    if tuple(value.shape) not in ((), (1,)):
        raise CheckpointError(f"its tensor '{name}' has shape {list(value.shape)}; expected a single number: {_ADVICE}")
    return numbers(name, value, range(2)).reshape(())
