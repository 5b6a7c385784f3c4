"""What can be said about a file that is not the one that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint file is missing, damaged, foreign, hostile or of another kind; the text says what to do."""


@dataclass(frozen=True)
class Kind:
    """How a kind of checkpoint is called in messages, what loads it, and where the public file comes from."""

    what: str
    use: str
    page: str = ""


KINDS: dict[str, Kind] = {
    "diffae": Kind("a DiffAE model", "the Load DiffAE node",
                   "ffhq256_autoenc_latent/last.ckpt, linked from https://github.com/phizaz/diffae"),
    "ddpm": Kind("a DDPM model", "the Load DDPM node",
                 "ffhq_p2.pt, linked from https://github.com/jychoi118/P2-weighting"),
    "osasis_style": Kind("an OSASIS style", "the Load OSASIS Style node",
                         "exp/*/ckpt/iter_200.pt, linked from https://github.com/hansam95/OSASIS"),
    "clip": Kind("a CLIP model", "the Load CLIP node", "open_clip_model.safetensors, from "
                 "https://huggingface.co/timm/vit_base_patch32_clip_224.openai"),
    "vgg16": Kind("a VGG-16 trunk", "the Load Perceptual node",
                  "vgg16-397923af.pth, from https://download.pytorch.org/models/vgg16-397923af.pth"),
    "snapshot": Kind("a training snapshot", "the resume input of the node or command that wrote it"),
    "stylegan2": Kind("a StyleGAN2 model", "the Load StyleGAN2 node",
                      "ffhq-res512-mirror-stylegan2-noaug.pkl of NVIDIA's stylegan2-ada-pytorch, or 550000.pt, linked "
                      "from https://github.com/rosinality/stylegan2-pytorch"),
    "mmfs": Kind("an MMFS model", "the Load MMFS node",
                 "phase3_pretrain_10000.pth, linked from https://github.com/dong-y21/MMFS"),
    "mmfs_style": Kind("an MMFS style", "the Load MMFS Style node",
                       "example_ref01.pth, linked from https://github.com/dong-y21/MMFS"),
    "dino": Kind("a DINO ViT", "the Load Self-Similarity node",
                 "dino_vitbase8_pretrain.pth, from https://github.com/facebookresearch/dino"),
}

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (8, b"WEBP", "a WebP picture"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (0, b"Rar!", "a RAR archive; unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first (torch files of before 2017 look so too and are not supported)"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"GGUF", "a GGUF file"),
    (0, b"version https://git-lfs", "a Git LFS pointer of a few lines; fetch the real file with 'git lfs pull'"),
    (8, b"{", "a safetensors file"),
)


def describe_bytes(head: bytes) -> str:
    """Name what a file seems to be from its first 512 bytes, in words that fit after 'this is'."""
    if not head:
        return "an empty file; download it again"
    if not head.strip(b"\0"):
        return "a file of zero bytes, as an interrupted download leaves; download it again"
    for offset, magic, words in _SIGNATURES:
        if head[offset:offset + len(magic)] == magic:
            return words
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "a web page; the download saved the page around the file, use the page's own download button"
    return "no file that this pack knows"


def check_file(path: str | Path, max_bytes: int) -> Path:
    """Return `path` as a Path if it is a file of 1..max_bytes bytes; raise CheckpointError otherwise."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path.name}: no such file in {path.parent}; put the checkpoint there or pick another")
    if not path.is_file():
        raise CheckpointError(f"{path.name}: not a file; give the checkpoint file itself, not its folder")
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path.name}: this is {describe_bytes(b'')}")
    if size > max_bytes:
        raise CheckpointError(f"{path.name}: {size} bytes is more than the {max_bytes} that a checkpoint may have; "
                              "check that the right file was picked")
    return path


def wrong_kind(name: str, found: str, wanted: str) -> CheckpointError:
    """The error for a file of kind `found` where `wanted` was asked for (keys of KINDS)."""
    have, want = KINDS[found], KINDS[wanted]
    page = f" (for example {want.page})" if want.page else ""
    return CheckpointError(f"{name}: this is {have.what}; load it with {have.use}. "
                           f"Expected here: {want.what}{page}")
