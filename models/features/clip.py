"""CLIP through open_clip: a picture tower and a text tower, from a local file only.

Pictures come as (B, 3, H, W) in [-1, 1]; embeddings go out as (B, D), not normalised. Ways of preprocessing:
"osasis" is what the OSASIS program does (nearest resize of the [-1, 1] picture, not normalised; docs/osasis.md C.4),
"openai" is CLIP's own (bicubic, antialiased, normalised), "mmfs" is MMFS's (as openai, but bilinear).
"""
from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from .. import ops
from ..unet import entry_count
from .packages import package_module

if TYPE_CHECKING:
    from open_clip import CLIP, SimpleTokenizer

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
PREPROCESSINGS = ("osasis", "openai", "mmfs")
ARTICLES = ("a", "an", "the")
LONGEST_CONTEXT = 4096  # tokens; the text tower's mask is of their square. Published ones have 77 to 256


# heads of picture towers that do not have 64 channels each, by (width, patch, layers): H/14, H/16, g/14, bigG/14, e/14
WIDE_TOWERS = {(1280, 14, 32): 16, (1280, 16, 32): 16, (1408, 14, 40): 16, (1664, 14, 48): 16, (1792, 14, 56): 16}
WIDEST_OF_64 = 1024  # every published tower up to this width has heads of 64 channels


@dataclass(frozen=True)
class ClipConfig:
    """The towers' sizes. words: the word list of a small model, empty for CLIP's own 49,408 byte pairs.

    Without a text tower, what concerns texts is 0. heads: of the attention, 0 for 64 channels each. mlp: width of a
    block's hidden layer, 0 for 4 times the tower's.
    """
    embed: int
    image_size: int
    patch: int
    vision_width: int
    vision_layers: int
    context: int
    vocabulary: int
    text_width: int
    text_layers: int
    quick_gelu: bool = True
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    words: tuple[str, ...] = ()
    vision_heads: int = 0
    text_heads: int = 0
    vision_mlp: int = 0
    text_mlp: int = 0

    def __post_init__(self) -> None:
        for name in ("mean", "std", "words"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not all(isinstance(word, str) for word in self.words) or self.words and (
                len(self.words) + 3 != self.vocabulary):
            raise ValueError(f"a list of {len(self.words)} words does not fit a vocabulary of {self.vocabulary}")
        if self.context > LONGEST_CONTEXT:
            raise ValueError(f"a CLIP that reads texts of {self.context} tokens is not supported, at most "
                             f"{LONGEST_CONTEXT}")
        numbers = [*self.mean, *self.std]
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise ValueError("mean and std of a CLIP are three numbers each, and std is positive")


def detect(tensors: Mapping[str, Tensor], quick_gelu: bool | None = None,
           vision_heads: int | None = None) -> ClipConfig:
    """Read the sizes off a state dict in OpenAI's layout (ViT towers). ValueError for another kind.

    Not in the shapes, but to be given: the activation, by default QuickGELU, which OpenAI's weights use, and GELU for
    the widths that only OpenCLIP has trained (H/14 and wider). And the picture tower's heads, by default those of the
    published towers; a tower wider than 1024 that is none of them is a ValueError.
    """
    try:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        positions = tensors["visual.positional_embedding"].shape[0]
        embed = tensors["visual.proj"].shape[1]
        context, text_width, vocabulary = 0, 0, 0
        if not all(name.startswith("visual.") for name in tensors):
            context, text_width = tensors["positional_embedding"].shape
            vocabulary = tensors["token_embedding.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ValueError(f"not a CLIP with ViT towers in OpenAI's layout ({error} is missing or of another shape); "
                         "ViT-B-32 of OpenCLIP as safetensors is what this pack expects") from error
    layers = entry_count(tensors, "visual.transformer.resblocks.")
    if quick_gelu is None:
        quick_gelu = (width, patch, layers) not in WIDE_TOWERS
    return ClipConfig(embed, patch * round((positions - 1) ** 0.5), patch, width, layers, context, vocabulary,
                      text_width, entry_count(tensors, "transformer.resblocks."), quick_gelu,
                      vision_heads=vision_heads or _vision_heads(width, patch, layers),
                      vision_mlp=_mlp(tensors, "visual.", width), text_mlp=_mlp(tensors, "", text_width))


def _vision_heads(width: int, patch: int, layers: int) -> int:
    if (width, patch, layers) in WIDE_TOWERS:
        return WIDE_TOWERS[width, patch, layers]
    if width > WIDEST_OF_64 or width % 64:
        raise ValueError(f"a picture tower of width {width}, patch {patch} and {layers} layers is none that is known, "
                         "and no file says how many heads it has: tell it (vision_heads), or pick a ViT-B/32, B/16, "
                         "L/14, H/14, g/14 or bigG/14")
    return 0


def _mlp(tensors: Mapping[str, Tensor], tower: str, width: int) -> int:
    name = f"{tower}transformer.resblocks.0.mlp.c_fc.bias"
    mlp = tensors[name].shape[0] if name in tensors else 0
    return 0 if mlp == 4 * width else mlp


class WordTokenizer:
    """Lower-case words of a fixed list; ids 0 pad, 1 start, 2.. words, last end (the highest, as open_clip expects)."""

    def __init__(self, words: Sequence[str], context: int) -> None:
        self.ids = {word: i + 2 for i, word in enumerate(words)}
        self.end, self.context = len(words) + 2, context

    @staticmethod
    def words_of(text: str) -> list[str]:
        return re.findall(r"[a-z0-9]+", text.lower())

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, context) int64. ValueError if a text has no word of the list."""
        return torch.tensor([self._row(text) for text in texts])

    def encode(self, text: str) -> list[int]:
        """Ids of the known words, start and end not among them."""
        return [self.ids[word] for word in self.words_of(text) if word in self.ids]

    def check(self, text: str) -> None:
        """ValueError for a text with words that are not in the list, but for articles, or with none at all."""
        words = self.words_of(text)
        unknown = [word for word in dict.fromkeys(words) if word not in self.ids and word not in ARTICLES]
        if unknown or not self.encode(text):
            named, known = ", ".join(map(repr, unknown or [text]))[:80], ", ".join(sorted(self.ids))
            raise ValueError(f"the small CLIP does not know {named}; it knows: {known}. Use these words alone, or load "
                             "a full CLIP")

    def _row(self, text: str) -> list[int]:
        ids = self.encode(text)[:self.context - 2]
        if not ids:
            self.check(text)
        row = [1, *ids, self.end]
        return row + [0] * (self.context - len(row))


class Clip(nn.Module):
    """Both towers of one CLIP (`net`), how it wants pictures, and its tokenizer."""
    mean: Tensor
    std: Tensor

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.net = _open_clip(config)
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)

    def preprocess(self, pictures: Tensor, preprocessing: str = "osasis") -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> the tower's input (B, 3, S, S)."""
        size = (self.config.image_size, self.config.image_size)
        if preprocessing not in PREPROCESSINGS:
            raise ValueError(f"CLIP preprocessing is {preprocessing!r}; take one of {', '.join(PREPROCESSINGS)}")
        if preprocessing == "osasis":
            return F.interpolate(pictures, size, mode="nearest")
        if pictures.shape[-2:] != size:
            mode = "bicubic" if preprocessing == "openai" else "bilinear"
            pictures = ops.resize(pictures, size, mode)
        return ((pictures + 1) / 2 - self.mean) / self.std

    def preprocess_file(self, picture: Tensor) -> Tensor:
        """The tower's input (1, 3, S, S) of a picture file's pixels, uint8 (3, H, W): PIL's bicubic, centre crop."""
        side, image = self.config.image_size, Image.fromarray(rearrange(picture, "c h w -> h w c").cpu().numpy())
        shorter = min(image.size)
        width, height = (int(side * n / shorter) for n in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (round((n - side) / 2) for n in image.size)
        pixels = torch.from_numpy(np.array(image.crop((left, top, left + side, top + side))))
        pixels = rearrange(pixels.to(self.mean.device), "h w c -> 1 c h w").float()
        return (pixels / 255 - self.mean) / self.std

    def embed(self, pictures: Tensor, preprocessing: str = "osasis") -> Tensor:
        """Embeddings (B, D) of pictures (B, 3, H, W) in [-1, 1]."""
        return self.net.encode_image(self.preprocess(pictures, preprocessing))

    def encode_with_tokens(self, inputs: Tensor, block: int = 3) -> tuple[Tensor, Tensor]:
        """(embeddings (B, D), tokens (B, n, d)) of preprocessed inputs (B, 3, S, S) in one pass.

        tokens: what transformer block `block` (or the last, if there are fewer) puts out, without CLS, as it is.
        """
        block = min(block, self.config.vision_layers - 1)
        # open_clip's annotation gives every entry the type of all of them
        found = cast("dict[str, Any]", self.net.visual.forward_intermediates(inputs, indices=[block], output_fmt="NLC"))
        return found["image_features"], found["image_intermediates"][0]

    def tokens(self, pictures: Tensor, block: int = 3) -> Tensor:
        """Tokens (B, n, d) of block `block` of pictures (B, 3, H, W) in [-1, 1], preprocessed as MMFS does."""
        return self.encode_with_tokens(self.preprocess(pictures, "mmfs"), block)[1]

    def check_prompt(self, text: str) -> None:
        """ValueError for a text that CLIP cannot read whole: empty, too long, or with words that it does not know."""
        self._check_text_tower()
        if not text.strip():
            raise ValueError("the prompt is empty; describe the style in a few words, such as 'watercolor painting'")
        tokenizer, context = self.tokenizer(), self.config.context
        count = 2 + len(tokenizer.encode(text))
        if count > context:
            raise ValueError(f"the prompt has {count} tokens and this CLIP reads at most {context} "
                             "(start and end included); shorten it")
        if isinstance(tokenizer, WordTokenizer):
            tokenizer.check(text)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (B, D) of texts. ValueError without a text tower."""
        self._check_text_tower()
        return self.net.encode_text(self.tokenizer()(list(texts)).to(self.mean.device))

    def _check_text_tower(self) -> None:
        if not self.config.vocabulary:
            raise ValueError("this CLIP is the picture tower alone and reads no prompts. Load a whole CLIP, such as "
                             "open_clip_model.safetensors of OpenAI's ViT-B/32")

    def tokenizer(self) -> WordTokenizer | SimpleTokenizer:
        """The word list's tokenizer, or CLIP's own byte pairs (the list comes with the open_clip package)."""
        if self.config.words:
            return WordTokenizer(self.config.words, self.config.context)
        return _package().SimpleTokenizer(context_length=self.config.context)


def _package() -> ModuleType:
    return package_module("open_clip", "open_clip_torch")


class PictureTower(nn.Module):
    """The picture tower of a CLIP, called as the whole one is."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def encode_image(self, inputs: Tensor) -> Tensor:
        """Embeddings (B, D) of preprocessed inputs (B, 3, S, S)."""
        return self.visual(inputs)


def _open_clip(config: ClipConfig) -> CLIP:
    heads = config.vision_heads or max(1, config.vision_width // 64)
    towers = (("picture", config.vision_width, heads), ("text", config.text_width, config.text_heads))
    for tower, width, count in towers:
        if count < 0 or count and width % count:
            raise ValueError(f"a {tower} tower of width {width} cannot be split into {count} heads")
    package = _package()
    vision = package.CLIPVisionCfg(
        layers=config.vision_layers, width=config.vision_width, patch_size=config.patch, image_size=config.image_size,
        head_width=config.vision_width // heads, mlp_ratio=_ratio(config.vision_mlp, config.vision_width))
    if not config.vocabulary:
        least = package.CLIPTextCfg(context_length=1, vocab_size=1, width=64, heads=1, layers=1)
        whole = package.CLIP(config.embed, vision, least, quick_gelu=config.quick_gelu)
        return cast("CLIP", PictureTower(whole.visual))
    text = package.CLIPTextCfg(
        context_length=config.context, vocab_size=config.vocabulary, width=config.text_width,
        heads=config.text_heads or max(1, config.text_width // 64), layers=config.text_layers,
        mlp_ratio=_ratio(config.text_mlp, config.text_width))
    return package.CLIP(config.embed, vision, text, quick_gelu=config.quick_gelu)


def _ratio(mlp: int, width: int) -> float:
    """What open_clip multiplies the width by, and rounds down, to get `mlp`."""
    return (mlp + 0.5) / width if mlp else 4.0


def build(config: ClipConfig, tensors: Mapping[str, Tensor]) -> Clip:
    """A CLIP with these weights, in float32. RuntimeError if they do not fit."""
    clip = Clip(config)
    clip.net.load_state_dict(dict(tensors))
    return clip.eval().requires_grad_(False)
