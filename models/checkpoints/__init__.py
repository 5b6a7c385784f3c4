"""Checkpoint files: what a file is, is decided by its content. Nothing in a file is ever executed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import clip, diffae, dino, mmfs, nvidia, osasis, p2, rosinality, store, vgg
from .errors import KINDS, CheckpointError, wrong_kind
from .foreign import part, text_keys
from .store import Stored
from .unpickle import is_plain_pickle, read_pickle, read_torch

__all__ = ["KINDS", "CheckpointError", "Stored", "convert", "read", "wrong_kind"]

_FORMATS = (osasis, diffae, p2, clip, vgg, mmfs, rosinality, dino)
_KNOWN_OTHERS: tuple[tuple[str, str], ...] = (
    ("g_running", "a StyleGAN1 checkpoint (rosinality)"),
    ("G_model", "an MMFS checkpoint without its averaged network (G_ema_model)"),
    ("student", "DINO's full training checkpoint; pick dino_vitbase8_pretrain.pth, its backbone alone"),
    ("embeddings.patch_embeddings.projection.weight", "a ViT in Hugging Face's layout; pick model.safetensors of "
     "https://huggingface.co/timm/vit_base_patch8_224.dino"),
    ("ema_classifier.weight", "DiffAE's attribute classifier (autoenc_cls); pick autoenc_latent/last.ckpt"),
    ("conds", "DiffAE's latent.pkl (codes of the training set); pick autoenc_latent/last.ckpt"),
    ("model.diffusion_model.input_blocks.0.0.weight", "a Stable Diffusion checkpoint"),
    ("in_layer.0.weight", "an SPN alone; pick the whole style, iter_N.pt"),
)


def read(path: str | Path, kind: str | None = None) -> Stored:
    """Read any checkpoint that the pack knows: its own store, official torch files, official keys in safetensors.

    `kind` (a key of KINDS) says what is wanted. `config` of the result is None for foreign files. Tensors are float16,
    bfloat16 or float32 as in the file, finite, in memory of their own; whether the set of names is complete is for
    `load_state_dict(strict=True)` of the network built from them. Raises CheckpointError.
    """
    path = Path(path)
    if _is_safetensors(path):
        header = store.peek(path)
        if header.kind is not None:
            return store.load(path, kind)
        form = _recognise(path.name, header.shapes, kind)
        root: Any = store.read_tensors(path)
    elif is_plain_pickle(path):
        root, form = read_pickle(path), nvidia
        if not nvidia.matches(root):
            raise CheckpointError(f"{path.name}: this is a pickle, but not one of torch.save, nor a StyleGAN2 of "
                                  f"NVIDIA's. {_expected(kind)}")
    else:
        root = read_torch(path)
        form = _recognise(path.name, root, kind)
    try:
        found = form.parse(root)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    if kind is not None and found.kind != kind:
        raise wrong_kind(path.name, found.kind, kind)
    return Stored(found.tensors, found.kind, None, found.meta)


def convert(path: str | Path, out: str | Path | None = None, overwrite: bool = False) -> Path:
    """Write the slim 16-bit store file of an official checkpoint, beside it unless `out` is given; returns its path.

    The source's name and SHA-256 go into meta. Raises CheckpointError, also if `out` exists and `overwrite` is False.
    """
    path = Path(path)
    target = Path(out) if out is not None else _beside(path)
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target.name}: it is already in {target.parent}; give another name or ask to overwrite")
    if target.exists() and target.samefile(path):
        raise CheckpointError(f"{path.name}: the converted file cannot replace its source; give another name")
    checkpoint = read(path)
    if checkpoint.config is not None:
        raise CheckpointError(f"{path.name}: it is already a file of this pack ({KINDS[checkpoint.kind].what}); "
                              "load it as it is")
    try:
        config = _detect(checkpoint)
    except ValueError as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    meta = {**checkpoint.meta, "source": path.name, "source_sha256": store.sha256(path)}
    return store.save(target, checkpoint.tensors, checkpoint.kind, config, meta)


def _is_safetensors(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(10)
    return head[8:9] == b"{" and head[:4] != b"PK\x03\x04"


def _recognise(name: str, root: Any, kind: str | None) -> Any:
    """The module of the format that `root` (only its keys are looked at) is in."""
    if not isinstance(root, dict):
        raise CheckpointError(f"{name}: this is a torch file of a {type(root).__name__}, not of named tensors; "
                              f"{_expected(kind)}")
    for form in _FORMATS:
        if form.matches(root):
            return form
    names = text_keys(root.get("state_dict")) + text_keys(root)
    for sign, what in _KNOWN_OTHERS:
        if sign in names:
            raise CheckpointError(f"{name}: this is {what}. {_expected(kind)}")
    some = ", ".join(key[:60] for key in names[:4]) or "nothing"
    raise CheckpointError(f"{name}: this is a file of no known model (it begins with {some}). {_expected(kind)}")


def _expected(kind: str | None) -> str:
    if kind is None:
        return "Expected: a DiffAE, DDPM (P2), OSASIS style, StyleGAN2, MMFS, CLIP, DINO or VGG-16 checkpoint"
    page = f" (for example {KINDS[kind].page})" if KINDS[kind].page else ""
    return f"Expected: {KINDS[kind].what}{page}"


def _beside(path: Path) -> Path:
    slim = path.with_suffix(".safetensors")
    return slim if slim != path else path.with_name(f"{path.stem}.slim.safetensors")


def _detect(checkpoint: Stored) -> dict[str, Any]:
    """The network configs read off the shapes, as plain dicts (the networks are imported here: they use this package
    only through their loaders)."""
    from .. import clip as clip_model
    from .. import diffae as diffae_model
    from .. import mmfs as mmfs_model
    from .. import spn, stylegan2, unet

    kind, tensors = checkpoint.kind, checkpoint.tensors
    if kind == "vgg16":
        return {}
    if kind == "clip":  # the activation is not in the file: it stays a choice of the loader
        return {name: value for name, value in asdict(clip_model.detect(tensors)).items() if name != "quick_gelu"}
    if kind == "diffae":
        return asdict(diffae_model.detect(tensors))
    if kind == "ddpm":
        return asdict(unet.detect(tensors))
    if kind == "stylegan2":
        return {"g": asdict(stylegan2.detect(part(tensors, "g."), checkpoint.meta["group"]))}
    if kind == "mmfs":
        critic = part(tensors, "d.")
        return {"g": asdict(mmfs_model.detect(part(tensors, "g."))),
                "d": asdict(stylegan2.detect_discriminator(critic)) if critic else None}
    if kind == "dino":
        from .. import dino as dino_model
        return asdict(dino_model.detect(tensors))
    parts = {"unet": asdict(unet.detect(tensors, prefix="unet."))}
    if part(tensors, "spn."):
        parts["spn"] = asdict(spn.detect(part(tensors, "spn.")))
    return parts
