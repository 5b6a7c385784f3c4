"""CLIP through open_clip: a picture tower and a text tower, from a local file only.

Pictures come as (B, 3, H, W) in [-1, 1]; embeddings go out as (B, D), not normalised. Ways of preparing a picture:
"official" is what the OSASIS program does (nearest resize of the [-1, 1] picture, no mean and deviation; spec C.4),
"proper" is CLIP's own (bicubic, antialiased, mean and deviation), "bilinear" is MMFS's (as proper, but bilinear).
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .unet import entry_count

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
PREPARATIONS = ("official", "proper")  # those that an OSASIS fine-tune can choose from
BILINEAR = "bilinear"


@dataclass(frozen=True)
class ClipConfig:
    """The towers' sizes. words: the word list of a small model, empty for CLIP's own 49,408 byte pairs."""
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

    def __post_init__(self):
        for name in ("mean", "std", "words"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


def detect(tensors: Mapping[str, Tensor], quick_gelu: bool = True) -> ClipConfig:
    """Read the sizes off a state dict in OpenAI's layout (ViT towers). ValueError for another kind.

    The activation is not in the shapes: OpenAI's weights use QuickGELU, most of OpenCLIP's own do not.
    """
    try:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        positions = tensors["visual.positional_embedding"].shape[0]
        context, text_width = tensors["positional_embedding"].shape
        vocabulary = tensors["token_embedding.weight"].shape[0]
        embed = tensors["visual.proj"].shape[1]
    except (KeyError, ValueError) as error:
        raise ValueError(f"not a CLIP with ViT towers in OpenAI's layout ({error} is missing or of another shape); "
                         "ViT-B-32 of OpenCLIP as safetensors is what this pack expects") from error
    return ClipConfig(embed, patch * round((positions - 1) ** 0.5), patch, width,
                      entry_count(tensors, "visual.transformer.resblocks."), context, vocabulary, text_width,
                      entry_count(tensors, "transformer.resblocks."), quick_gelu)


class WordTokenizer:
    """Lower-case words of a fixed list; ids 0 pad, 1 start, 2.. words, last end (the highest, as open_clip expects)."""

    def __init__(self, words: Sequence[str], context: int):
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

    def _row(self, text: str) -> list[int]:
        ids = self.encode(text)[:self.context - 2]
        if not ids:
            raise ValueError(f"the small CLIP knows no word of {text!r}; it knows: {', '.join(sorted(self.ids))}")
        row = [1, *ids, self.end]
        return row + [0] * (self.context - len(row))


class Clip(nn.Module):
    """Both towers of one CLIP (`net`), how it wants pictures, and its tokenizer."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.config = config
        self.net = _open_clip(config)
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)

    def prepare(self, pictures: Tensor, preparation: str = "official") -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> the tower's input (B, 3, S, S)."""
        size = (self.config.image_size,) * 2
        if preparation == "official":
            return F.interpolate(pictures, size, mode="nearest")
        if preparation not in ("proper", BILINEAR):
            raise ValueError(f"{preparation!r} is no way of preparing a picture for CLIP; "
                             f"take one of {(*PREPARATIONS, BILINEAR)}")
        if pictures.shape[-2:] != size:
            mode = "bicubic" if preparation == "proper" else "bilinear"
            pictures = F.interpolate(pictures, size, mode=mode, antialias=True, align_corners=False)
        return ((pictures + 1) / 2 - self.mean) / self.std

    def prepare_file(self, picture: Tensor) -> Tensor:
        """The tower's input (1, 3, S, S) of a picture file's pixels, uint8 (3, H, W): PIL's bicubic, centre crop."""
        side, image = self.config.image_size, Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())
        shorter = min(image.size)
        image = image.resize(tuple(int(side * n / shorter) for n in image.size), Image.BICUBIC)
        left, top = (round((n - side) / 2) for n in image.size)
        pixels = torch.from_numpy(np.array(image.crop((left, top, left + side, top + side))))
        pixels = pixels.to(self.mean.device).permute(2, 0, 1)[None].float()
        return (pixels / 255 - self.mean) / self.std

    def embed(self, pictures: Tensor, preparation: str = "official") -> Tensor:
        """Embeddings (B, D) of pictures (B, 3, H, W) in [-1, 1]."""
        return self.net.encode_image(self.prepare(pictures, preparation))

    def look(self, inputs: Tensor, block: int = 3) -> tuple[Tensor, Tensor]:
        """(embeddings (B, D), tokens (B, n, d)) of prepared inputs (B, 3, S, S) in one pass.

        tokens: what transformer block `block` (or the last, if there are fewer) puts out, without CLS, as it is.
        """
        block = min(block, self.config.vision_layers - 1)
        found = self.net.visual.forward_intermediates(inputs, indices=[block], output_fmt="NLC")
        return found["image_features"], found["image_intermediates"][0]

    def tokens(self, pictures: Tensor, block: int = 3) -> Tensor:
        """Tokens (B, n, d) of block `block` of pictures (B, 3, H, W) in [-1, 1], prepared as MMFS does."""
        return self.look(self.prepare(pictures, BILINEAR), block)[1]

    def check_prompt(self, text: str) -> None:
        """ValueError for a text that CLIP cannot read whole: empty, too long, or without any word that it knows."""
        if not text.strip():
            raise ValueError("the prompt is empty; describe the style in a few words, such as 'watercolor painting'")
        tokenizer, context = self.tokenizer(), self.config.context
        count = 2 + len(tokenizer.encode(text))
        if count > context:
            raise ValueError(f"the prompt has {count} tokens and this CLIP reads at most {context} "
                             "(start and end included); shorten it")
        tokenizer([text])

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (B, D) of texts."""
        return self.net.encode_text(self.tokenizer()(list(texts)).to(self.mean.device))

    def tokenizer(self):
        """The word list's tokenizer, or CLIP's own byte pairs (the list comes with the open_clip package)."""
        if self.config.words:
            return WordTokenizer(self.config.words, self.config.context)
        import open_clip
        return open_clip.SimpleTokenizer(context_length=self.config.context)


def _open_clip(config: ClipConfig) -> nn.Module:
    try:
        from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(f"open_clip could not be imported ({error}); run: pip install -r requirements.txt "
                          "in ComfyUI's Python (open_clip_torch needs a torchvision that fits your torch)") from error
    vision = CLIPVisionCfg(layers=config.vision_layers, width=config.vision_width, patch_size=config.patch,
                           image_size=config.image_size)
    text = CLIPTextCfg(context_length=config.context, vocab_size=config.vocabulary, width=config.text_width,
                       heads=max(1, config.text_width // 64), layers=config.text_layers)
    return CLIP(config.embed, vision, text, quick_gelu=config.quick_gelu)


def build(config: ClipConfig, tensors: Mapping[str, Tensor]) -> Clip:
    """A CLIP with these weights, in float32. RuntimeError if they do not fit."""
    clip = Clip(config)
    clip.net.load_state_dict(dict(tensors))
    return clip.eval().requires_grad_(False)
