"""Fine-tuned styles of both methods (weights, never live networks): the model they belong to, their strength."""
from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from . import ops
from . import spn as spn_module
from .hashing import hash_of
from .mmfs import MMFS, MMFSConfig
from .osasis import SamplingSettings
from .spn import SPN
from .stylegan2 import Synthesis
from .unet import UNet, UNetConfig

DIFFAE_PARTS = ("unet.", "encoder.")
MMFS_PARTS = ("encoder.", "mapping.", "decoder.", "mapper.")
MAX_STRENGTH = 1.5


@dataclass(frozen=True)
class OSASISStyle:
    """A style of OSASIS.

    unet: state dict of B. spn: state dict of the SPN, or None. z_style: Enc_A(style image) (1, E). style_image: uint8
    (3, px, px). settings: how it was made (JSON-able): t0, spn_weight, spn_time, noise_level, ... model: fingerprint of
    its DiffAE. Official files have neither z_style, style_image, settings nor model.
    """
    config: UNetConfig
    unet: Mapping[str, Tensor] = field(repr=False)  # ComfyUI prints the inputs of a node that fails
    spn: Mapping[str, Tensor] | None = field(repr=False)
    z_style: Tensor | None = field(repr=False)
    style_image: Tensor | None = field(repr=False)
    model: str
    settings: dict = field(default_factory=dict)

    def semantic_code(self) -> Tensor:
        """z_style; ValueError where the file has none."""
        if self.z_style is None:
            raise ValueError("this style holds no semantic code of its style image; encode the style image with its "
                             "DiffAE")
        return self.z_style

    def networks(self) -> tuple[UNet, SPN | None]:
        """Fresh networks in float32 with these weights, in evaluation mode."""
        unet = UNet(self.config)
        unet.load_state_dict(dict(self.unet))
        spn = None
        if self.spn:
            spn = SPN(spn_module.detect(self.spn))
            spn.load_state_dict(dict(self.spn))
            spn.eval().requires_grad_(False)
        return ops.channels_last(unet).eval().requires_grad_(False), spn


@dataclass(frozen=True)
class MMFSStyle:
    """A style of MMFS.

    decoder: state dict of the decoder, names as in `MMFS.decoder`. w_plus: its w+ code (1, n, S). style_image: uint8
    (3, H, W), the reference. prompt: the text it was fine-tuned to, or "". model: fingerprint of its MMFS. settings:
    how it was made (JSON-able).
    """
    config: MMFSConfig
    decoder: Mapping[str, Tensor] = field(repr=False)
    w_plus: Tensor | None = field(default=None, repr=False)
    style_image: Tensor | None = field(default=None, repr=False)
    prompt: str = ""
    model: str = ""
    settings: dict = field(default_factory=dict)

    def code(self) -> Tensor:
        """w_plus; ValueError where the file has none."""
        if self.w_plus is None:
            raise ValueError("this fine-tuned style holds no w+ code of its own; make one from its reference picture "
                             "or prompt")
        return self.w_plus


# --- which model a style belongs to -----------------------------------------------------------------------------------
def fingerprint(net: nn.Module) -> str:
    """A hash of a DiffAE's or MMFS's weights as 16-bit numbers: equal for a checkpoint and its slim copy, unless
    that is in bfloat16."""
    parts = MMFS_PARTS if isinstance(net, MMFS) else DIFFAE_PARTS
    return hash_of({name: value for name, value in net.state_dict().items() if name.startswith(parts)})


def check_osasis_style(style: OSASISStyle, config: UNetConfig, fingerprint: str) -> None:
    """ValueError if the style was made for another DiffAE."""
    if style.config != config:
        raise ValueError(f"this style was made for a DiffAE of {style.config.image_size} px with levels "
                         f"{style.config.mult}, not for this one of {config.image_size} px with levels {config.mult}; "
                         "load the DiffAE that the style was fine-tuned from")
    _check_fingerprint(style.model, fingerprint, "DiffAE")


def check_mmfs_style(style: MMFSStyle, config: MMFSConfig, fingerprint: str) -> None:
    """ValueError if the style was made for another MMFS."""
    if replace(style.config, mapper=None) != replace(config, mapper=None):
        raise ValueError(f"this style was made for an MMFS of {style.config.resolution} px with a decoder of widths "
                         f"{style.config.decoder}, not for this one of {config.resolution} px with {config.decoder}; "
                         "load the MMFS model that the style was fine-tuned from")
    _check_fingerprint(style.model, fingerprint, "MMFS")


def _check_fingerprint(wanted: str, found: str, kind: str) -> None:
    if wanted and wanted != found:
        raise ValueError(f"this style was fine-tuned from another {kind} of the same size; load that one, its "
                         f"fingerprint is {wanted} (this one's is {found})")


# --- strength ---------------------------------------------------------------------------------------------------------
def with_decoder(net: MMFS, decoder: Synthesis) -> MMFS:
    """A model that shares everything with `net` but the decoder."""
    with torch.device("meta"):
        new = MMFS(net.config)
    new.encoder, new.mapping, new.decoder, new.mapper = net.encoder, net.mapping, decoder, net.mapper
    return new.train(net.training)


def styled(net: MMFS, style: MMFSStyle, strength: float = 1.0) -> MMFS:
    """A model whose decoder lies between the base (strength 0, bit for bit) and the style (1), or beyond (to 1.5).

    It shares encoder, mappings and device with `net`, which stays as it is. ValueError for a strength out of range.
    """
    if not 0 <= strength <= MAX_STRENGTH:
        raise ValueError(f"strength is {strength}; take 0 (the base model) to {MAX_STRENGTH}, 1 is the style")
    decoder = copy.deepcopy(net.decoder)
    with torch.no_grad():
        for name, base in decoder.state_dict().items():
            base.lerp_(style.decoder[name].to(base), strength)
    return with_decoder(net, decoder)


def at_strength(style: OSASISStyle, base: Mapping[str, Tensor], strength: float) -> OSASISStyle:
    """A style whose network lies between the DiffAE's UNet (strength 0, bit for bit) and the style's (1), or beyond (to
    1.5), and whose SPN weighs as much more or less. base: state dict of that UNet, on any device; the new weights lie
    where the style's do.

    ValueError for a strength out of range. The codes' part is `MixedCodes.strength`.
    """
    if not 0 <= strength <= MAX_STRENGTH:
        raise ValueError(f"strength is {strength:g}; take 0 (the reconstruction) to {MAX_STRENGTH}, 1 is the style")
    here = {name: weight.to(style.unet[name].device) for name, weight in base.items()}
    unet = interpolated(here, style.unet, strength)
    weight = SamplingSettings.of(style.settings).spn_weight
    return replace(style, unet=unet, settings=style.settings | {"spn_weight": weight * strength, "strength": strength})


def blended(one: OSASISStyle, other: OSASISStyle, share: float) -> OSASISStyle:
    """A style between two of one DiffAE: `share` 0 is the one, 1 the other. Weights and codes are interpolated; an SPN
    that only one of them has counts by its share. What else a style says is that of the larger share.

    ValueError for styles of different DiffAEs, for SPNs of different forms, and for a style without its code.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share is {share:g}; take 0 (the first style) to 1 (the second)")
    check_osasis_style(other, one.config, one.model or other.model)
    main = one if share < 0.5 else other
    weights = [SamplingSettings.of(style.settings).spn_weight * bool(style.spn) for style in (one, other)]
    spn = one.spn or other.spn
    if one.spn and other.spn:
        if {k: v.shape for k, v in one.spn.items()} != {k: v.shape for k, v in other.spn.items()}:
            raise ValueError("the two styles' SPNs have different forms (timed and untimed), so they cannot be "
                             "blended; fine-tune both with the same spn")
        spn = interpolated(one.spn, other.spn, share)
    return replace(main, unet=interpolated(one.unet, other.unet, share), spn=spn,
                   z_style=torch.lerp(one.semantic_code().float(), other.semantic_code().float(), share),
                   settings=main.settings | {"spn_weight": (1 - share) * weights[0] + share * weights[1],
                                             "blend": share})


def interpolated(one: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """State dicts of one network, in float32 where the one lies."""
    return {name: torch.lerp(weight.float(), other[name].to(weight.device, torch.float32), share)
            for name, weight in one.items()}
