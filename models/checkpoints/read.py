"""From a file to the format that reads it: our own store, a file of torch.save, a plain pickle, or safetensors."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import store
from .errors import CheckpointError, ForeignFileError, WrongKindError, reading, short
from .formats import (
    arcface,
    attributes,
    diffae,
    dino,
    guided_diffusion,
    inception,
    mmfs,
    nvidia,
    open_clip,
    osasis,
    rosinality,
    transformers_clip,
    vgg,
)
from .formats.foreign import Foreign
from .formats.weights import AVERAGED, RAW, Weights, entries_of, found_in
from .safe_pickle import Global, OpaqueObject, TensorRef, is_plain_pickle, read_pickle, read_torch
from .store import Stored

log = logging.getLogger(__name__)
_FORMATS = (osasis, attributes, diffae, guided_diffusion, open_clip, transformers_clip, vgg, mmfs, rosinality, nvidia,
            dino, inception, arcface)
_KNOWN_OTHERS: tuple[tuple[str, str], ...] = (
    ("g_running", "a StyleGAN1 checkpoint (rosinality)"),
    ("student", "DINO's full training checkpoint; pick dino_vitbase8_pretrain.pth, its backbone alone"),
    ("embeddings.patch_embeddings.projection.weight", "a ViT in Hugging Face's layout; pick model.safetensors of "
     "https://huggingface.co/timm/vit_base_patch8_224.dino"),
    ("conds", "DiffAE's latent.pkl (codes of the training set); pick autoenc_latent/last.ckpt"),
    ("model.diffusion_model.input_blocks.0.0.weight", "a Stable Diffusion checkpoint"),
    ("lin0.model.1.weight", "the heads of LPIPS alone (vgg.pth of the lpips package), which the pack has already; pick "
     "the trunk, torchvision's vgg16-397923af.pth"),
    ("model_map", "an OSASIS style without its network (diffae_B); pick a complete iter_N.pt"),
    ("in_layer.0.weight", "an SPN alone; pick the whole style, iter_N.pt"),
)


def read(path: str | Path, *kinds: str, expected: str = "") -> Stored:
    """Read any checkpoint that the pack knows: its own store, official torch files, official keys in safetensors.

    `kinds` are those that are wanted (none: any), `expected` says so in a sentence for messages. `config` of the
    result is None for foreign files. Tensors are float16, bfloat16 or float32 as in the file, finite, in memory of
    their own; whether the set of names is complete is for the network built from them. Raises CheckpointError, and
    WrongKindError for a valid file of another kind.
    """
    path = Path(path)
    with reading(path):
        return _read(path, kinds, expected)


def facts(path: str | Path) -> dict[str, Any]:
    """What a file of the pack's own store says of itself (its meta); {} for any other. Raises CheckpointError."""
    with reading(path):
        return store.peek(path).meta or {} if _is_safetensors(Path(path)) else {}


def _read(path: Path, kinds: tuple[str, ...], expected: str) -> Stored:
    if _is_safetensors(path) and store.peek(path).kind is not None:
        return store.load(path, *kinds)
    try:
        root = _content(path)
        found = _parsed(root)
    except ForeignFileError as error:
        raise CheckpointError(f"{_named(path, error)}. {expected}".rstrip(". ")) from error
    except CheckpointError as error:
        raise CheckpointError(_named(path, error)) from error
    if kinds and found.kind not in kinds:
        raise WrongKindError(path.name, found.kind, kinds)
    return Stored(found.tensors, found.kind, None, found.meta)


def _named(path: Path, error: CheckpointError) -> str:
    text = str(error)
    return text if text.startswith(f"{path.name}: ") else f"{path.name}: {text}"


def _content(path: Path) -> Any:
    """The object in a foreign file, its tensors not yet read."""
    if _is_safetensors(path):
        return store.tensor_refs(path)
    return read_pickle(path) if is_plain_pickle(path) else read_torch(path)


def _parsed(root: Any) -> Foreign:
    """What the first format that knows any of the file's sets of tensors makes of it."""
    _check_container(root)
    for weights in found_in(root):
        form = next((form for form in _FORMATS if form.matches(weights)), None)
        if form is None:
            continue
        found = form.parse(weights)
        if not weights.averaged:
            _check_average(weights)
            log.warning("the file has no averaged network; '%s', the one in training, is taken", weights.path[-1])
            return replace(found, meta=found.meta | {"averaged": False})
        return found
    raise ForeignFileError(_unknown(root))


def _is_safetensors(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(10)
    return head[8:9] == b"{" and head[:4] != b"PK\x03\x04"


def _check_average(weights: Weights) -> None:
    """CheckpointError if raw weights were found because their average, which the file has, holds no tensors."""
    for node in weights.around:
        for key in AVERAGED:
            if node.get(key) is not None:
                raise CheckpointError(f"its entry '{key}' holds no usable tensors; pick a complete checkpoint")


def _check_container(root: Any) -> None:
    """ForeignFileError for an object that cannot hold named tensors."""
    if isinstance(root, (tuple, list)):
        raise ForeignFileError(
            f"this is a file of {_what(root)} of {len(root)} objects, not of named tensors (if it is a pickle of the "
            "TensorFlow programs of StyleGAN and StyleGAN2, pick one of stylegan2-ada-pytorch, such as "
            "ffhq-res512-mirror-stylegan2-noaug.pkl)")
    if not entries_of(root) and root != {}:
        raise ForeignFileError(f"this is a file of {_what(root)}, not of named tensors")


def _unknown(root: Any) -> str:
    """What can be said of a file that no format knows."""
    names, inner = list(entries_of(root)), entries_of(entries_of(root).get("state_dict"))
    for sign, what in _KNOWN_OTHERS:
        if sign in names or sign in inner:
            return f"this is {what}"
    some_tensors = any(found_in(root))
    for key in (*AVERAGED, *RAW, "state_dict"):
        value = entries_of(root).get(key)
        if key in names and not any(found_in(value)) and not (value is None and some_tensors):
            return f"its entry '{key}' holds no tensors; pick a complete checkpoint"
    some = ", ".join(short(key) for key in [*inner, *names][:4]) or "nothing"
    return f"this is a file of no known model (it begins with {some})"


def _what(value: Any) -> str:
    """An object of a torch file in words."""
    if isinstance(value, TensorRef):
        return "a single tensor"
    if isinstance(value, OpaqueObject):
        known = isinstance(value.origin, Global)
        return f"an object of the class {value.origin}" if known else "an object of unknown origin"
    return {list: "a list", tuple: "a tuple", str: "a text"}.get(type(value), "a single value")
