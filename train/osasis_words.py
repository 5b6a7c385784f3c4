"""OSASIS from words (docs/osasis.md H.1): a fine-tune along the direction of two texts, without a style image.

The loop, the content pictures and the SPN are those of the fine-tune to a picture. There is no style stream: the text
direction stands in the place of the change from photo twin to style image.
"""
from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ..models.accelerated import accelerated
from ..models.diffae import DiffAE
from ..models.features.clip import Clip
from ..models.fields import check_fields
from ..models.graphs import releasing
from ..models.hashing import hash_of
from ..models.osasis import SamplingSettings, stylize
from ..models.precision import autocast
from ..models.style import OSASISStyle
from . import losses
from .content import Content, first_content
from .content_files import ContentFolder
from .loop import Checkpointing, Hooks, Run
from .osasis import FrozenNetworks, OSASISConfig, Streams, Trainer, finish, tune
from .session import hash_of_network
from .text_edit import TEMPLATES, text_directions

# settings of OSASISConfig that have no part in it: those of the style stream
OF_STYLE_IMAGES = ("clip_weight", "l1_weight", "perceptual_weight", "style_spn_weight", "clip_preprocessing")


@dataclass(frozen=True)
class WordsConfig:
    """What a style is learned from instead of a picture. source: what the photos are, target: what they shall become.

    photo_weight: of what keeps a result near its photo, L1 and the perceptual distance together. templates: sentences
    around the texts, as of TextEditConfig. pixel_weight: of L1 within it; 0 lets go of the photo's colours.
    """
    target: str
    source: str = "photo"
    photo_weight: float = 0.3
    templates: str = "auto"
    pixel_weight: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.templates not in TEMPLATES:
            raise ValueError(f"templates is {self.templates[:40]!r}; take one of {', '.join(TEMPLATES)}")
        for name in ("source", "target"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty; describe the {name} in a few words, such as 'photo' and 'pencil "
                                 "sketch'")

    def direction(self, clip: Clip) -> Tensor:
        """(1, D), of length 1. ValueError for a text that CLIP cannot read, and for texts that are one to it."""
        return text_directions(clip, self.source, [self.target], self.templates)


@dataclass(frozen=True)
class TextAim:
    """direction (1, D), of length 1: from source to target text. photo_weight, pixel_weight: as of WordsConfig."""
    direction: Tensor
    photo_weight: float
    pixel_weight: float
    terms = ("cross", "in", "photo")

    def streams(self, k: int, content: Content, embedded: Tensor, config: OSASISConfig) -> Streams:
        """The content streams alone, with the mean embedding of their pictures beside the direction."""
        weight = content.x.new_full((len(content.z), 1, 1, 1), config.spn_weight)
        return Streams(content.picture, content.z, content.x, weight, embedded,
                       (self.direction, embedded.float().mean(0, keepdim=True)))

    def losses(self, trainer: Trainer, part: Streams, x0: Tensor, embedded: Tensor, count: int) -> dict[str, Tensor]:
        """The three losses of H.1. The in-domain loss has the photos' mean in the place of the photo twin, and that
        mean, moved along the direction as far as the row has moved, in the place of the style image."""
        config, content, (direction, mean) = trainer.config, part.embedded.float(), part.wanted
        moved = mean + (embedded - content).detach().norm(dim=1, keepdim=True) * direction
        terms = {"cross": config.cross_weight * losses.text_edit_loss(content, embedded, direction),
                 "in": config.in_domain_weight * losses.in_domain_loss(mean, moved, content, embedded)}
        if self.photo_weight:
            apart = self.pixel_weight * losses.pixel_loss(x0, part.picture) + trainer.perceptual(x0, part.picture)
            terms["photo"] = self.photo_weight * apart
        return {name: value.sum() / count for name, value in terms.items()}


def tune_to_words(nets: FrozenNetworks, words: WordsConfig, config: OSASISConfig, photos: Tensor | None = None,
                  checkpointing: Checkpointing = Checkpointing(), hooks: Hooks = Hooks(),
                  folder: ContentFolder | None = None) -> tuple[OSASISStyle, Run]:
    """Fine-tune a style to a text; resume its snapshot if there is one. Returns the style and the finished run.

    photos, folder and errors as of `tune_style`. CLIP compares pictures with texts as it was trained to, whatever
    config.clip_preprocessing is. ValueError for a text that CLIP cannot read, and for texts that are one to it.
    """
    if not config.cross_weight:
        raise ValueError("cross_weight is 0, so nothing would be learned from the text; set it above 0")
    config = replace(config, clip_preprocessing="openai")
    aim = TextAim(words.direction(nets.clip), words.photo_weight, words.pixel_weight)
    run, settings = tune(nets, lambda *_: aim, describe(nets, words, config, photos), config, photos, checkpointing,
                         hooks, folder)
    device = nets.clip.mean.device
    with releasing(accelerated(nets.diffae.to(device), device, config.precision)) as frozen:
        content = first_content(frozen, config, photos, hooks, folder)
    style = finish(nets, run, None, None, settings)
    return replace(style, z_style=words_code(nets.diffae, style, content, config, hooks)), run


@torch.no_grad()
def words_code(diffae: DiffAE, style: OSASISStyle, content: Content, config: OSASISConfig,
               hooks: Hooks = Hooks()) -> Tensor:
    """z (1, E) that stands in for a style image's, on the CPU: the mean code of content pictures in the style, each
    stylized with its own code alone (H.1)."""
    device, (unet, spn) = content.z.device, style.networks()
    with autocast(device, config.precision):
        pictures = stylize(unet.to(device), content.x, content.z, steps=config.reverse_steps,
                           settings=SamplingSettings.of(style.settings), spn=None if spn is None else spn.to(device),
                           picture=content.picture, hook=hooks.sampler())
    return diffae.encode(pictures.clamp(-1, 1)).float().mean(0, keepdim=True).cpu()


def describe(nets: FrozenNetworks, words: WordsConfig, config: OSASISConfig, photos: Tensor | None) -> dict:
    """Everything that decides the result, JSON-able."""
    kept = {name: value for name, value in asdict(config).items() if name not in OF_STYLE_IMAGES}
    return kept | asdict(words) | {
        "training": "OSASIS fine-tune to text", "model": nets.fingerprint, "clip_network": hash_of_network(nets.clip),
        "perceptual_network": hash_of_network(nets.perceptual),
        "photos": None if photos is None else hash_of({"": photos})}
