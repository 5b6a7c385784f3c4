"""From a checkpoint file to a network: read, detect the configuration, build, load strictly; and the opposite.

kinds.py has the table of what the pack loads. All networks come back on the CPU, in float32, in evaluation mode,
frozen. Errors are `CheckpointError`, whose text says what is wrong with the file and what to do.
"""
from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import checkpoints, ops
from .attributes import AttributeClassifier
from .checkpoints import CheckpointError, Stored, WrongKindError, store
from .checkpoints.errors import short
from .checkpoints.formats.foreign import joined, with_prefix
from .diffae import DiffAE
from .edit import SemanticDirection
from .faces.geometry import FaceGeometry
from .features.arcface import ArcFace
from .features.clip import Clip
from .features.dino import Dino
from .features.inception import Inception
from .features.lpips import LpipsAlex, LpipsVGG
from .kinds import KINDS, Kind, Part
from .mmfs import MMFS
from .style import MMFSStyle, OSASISStyle
from .stylegan2 import Discriminator, StyleGAN2
from .unet import UNet

_OPTIMIZER = re.compile(r"optimizer/([^/]+)/(\d{1,6})/[^/]+")
DEMO = Path(__file__).parent / "demo"
_COUNTS = ("blocks", "layers", "mapping_layers", "vision_layers", "text_layers")  # fields that count layers
SOURCE_HASH = "source_sha256"  # in the meta of converted files, and of no others
STYLE_PICTURE = 256  # px, of the picture inside a style file
log = logging.getLogger(__name__)


# --- reading -----------------------------------------------------------------------------------------------------
def read_kind(path: Path, *kinds: str) -> Stored:
    """The content of a file of one of `kinds` (keys of KINDS). The error for another one says what loads it."""
    wanted = KINDS[kinds[0]]
    try:
        stored = checkpoints.read(path, *kinds, expected=wanted.expected)
    except WrongKindError as error:
        raise _wrong_kind(error.file, error.found, wanted) from error
    return _completed(path, stored)


def _wrong_kind(file: str, found: str, wanted: Kind) -> CheckpointError:
    have = KINDS.get(found)
    if have is None:
        return CheckpointError(f"{file}: this is a file of kind '{found}', which this pack does not know; update the "
                               f"pack. {wanted.expected}")
    return CheckpointError(f"{file}: this is {have.what}; load it with {have.use}. {wanted.expected}")


def _completed(path: Path, stored: Stored) -> Stored:
    try:
        return KINDS[stored.kind].complete(stored)
    except CheckpointError as error:
        raise CheckpointError(f"{Path(path).name}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{Path(path).name}: it is {error}; pick a complete checkpoint") from error


def configurations(path: Path, stored: Stored, **given: Any) -> dict[str, Any]:
    """The configuration of every network in a file: from the file if it is ours, else from the shapes of its tensors
    and what is `given`. CheckpointError unless the file has exactly the tensors of those networks."""
    found: dict[str, Any] = {}
    of_entry: dict[str, Any] = {}  # parts of one entry share their configuration
    for name, part in KINDS[stored.kind].parts.items():
        tensors = part.tensors(stored)
        if not tensors and part.optional:
            continue
        try:
            if part.entry not in of_entry:
                of_entry[part.entry] = _configuration(path, stored, part, tensors, given)
            _check_fit(path, partial(part.build, of_entry[part.entry]), tensors)
        except CheckpointError as error:
            if stored.config or not part.dispensable:
                raise
            log.warning("the file's discriminator is left out, its generator is used: %s", error)
            continue
        found[name] = of_entry[part.entry]
    return found


def _configuration(path: Path, stored: Stored, part: Part, tensors: Mapping[str, Tensor], given: Mapping) -> Any:
    try:
        if not stored.config or not part.config:
            return part.detect(tensors, stored.meta, **given)
        settings = stored.config[part.entry] if part.entry else stored.config
        config = part.config(_decided(settings, stored, part, tensors, given))
        _check_claims(config, tensors, part)
        return config
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{Path(path).name}: its configuration cannot be used ({_in_words(error)}); "
                              "it is damaged or of a kind this pack does not know: download or write the file again, "
                              "or update the pack") from error


def _decided(settings: Any, stored: Stored, part: Part, tensors: Mapping[str, Tensor], given: Mapping) -> Any:
    """What our own file says of a network. What its source did not tell a converted one (in earlier versions it says
    the guess) is as of a foreign file with these tensors: what is `given`, or the default."""
    undecided = KINDS[stored.kind].undecided
    missing = [name for name in undecided if SOURCE_HASH in stored.meta or name not in settings]
    if not missing:
        return settings
    told = {name: settings[name] for name in part.told if name in settings and name not in missing}
    found = part.detect(tensors, {}, **{**given, **told})
    return settings | {name: getattr(found, name) for name in missing}


def _check_claims(config: Any, tensors: Mapping[str, Tensor], part: Part) -> None:
    """ValueError if a configuration that stands in a file has other numbers of layers than the file's tensors say: they
    bound what is built. Widths are left to the comparison with the network itself."""
    claims = _fields(asdict(config))
    told = {name.rpartition(".")[2]: claims[name] for name in part.told if claims[name]}
    if not all(type(value) is int and 0 < value < 2**16 for value in told.values()):
        raise ValueError(f"it says {', '.join(f'{name} is {short(value)}' for name, value in told.items())}")
    try:
        found = part.detect(tensors, {"mbstd_group_size": 1}, **told)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"its tensors are not those of the network it seems to be: {short(error, 200)}") from error
    facts = _fields(found if isinstance(found, dict) else asdict(found))
    names = facts if isinstance(found, dict) else facts | claims
    for name in names:
        if name not in part.free and _extent(name, claims, part.widths) != _extent(name, facts, part.widths):
            raise ValueError(f"it says {name} is {short(claims.get(name))}, its tensors say {short(facts.get(name))}")


def _extent(name: str, values: Mapping[str, Any], widths: tuple[str, ...]) -> Any:
    """What the value of a field says of the number of layers, or, if it is one of `widths`, the value."""
    value = values.get(name)
    if name in widths:
        return value
    if isinstance(value, (tuple, list)):
        return len(value)
    return value if name.rpartition(".")[2] in _COUNTS else name in values and value is not None


def _fields(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names."""
    found = {}
    for name, value in values.items():
        found |= _fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _in_words(error: Exception) -> str:
    """An error of building a configuration, without the names of Python's classes and functions."""
    if isinstance(error, ValueError):
        return short(error, 300)
    return f"it lacks {error}" if isinstance(error, KeyError) else "a setting is missing, unknown or of a wrong type"


def _networks(path: Path, kind: str, **given: Any) -> dict[str, Any]:
    """{name of the part: network with the file's weights} of a file."""
    stored = read_kind(path, kind)
    found = {}
    for name, config in configurations(path, stored, **given).items():
        part = KINDS[kind].parts[name]
        net = part.build(config)
        net.load_state_dict(part.tensors(stored))
        net = net.float() if part.depthwise else ops.channels_last(net.float())
        found[name] = net.eval().requires_grad_(False)
    return found


def _check_fit(path: Path, make: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """CheckpointError unless names and shapes are those of `make`'s network, which is laid out without memory:
    a configuration that stands in a file is only a claim."""
    name = Path(path).name
    try:
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in make().state_dict().items()}
    except (ArithmeticError, AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: its configuration cannot be built ({_in_words(error)}); it is damaged, "
                              "write or download it again") from error
    unexpected = sorted(shapes.keys() ^ tensors.keys()) + [
        key for key, shape in shapes.items() if key in tensors and tensors[key].shape != shape]
    if unexpected:
        raise CheckpointError(f"{name}: its tensors are not those of the network it seems to be ({len(unexpected)} are "
                              f"missing, too many or of another shape, such as '{unexpected[0]}'); pick a complete "
                              "checkpoint")


# --- networks ----------------------------------------------------------------------------------------------------
def load_diffae(path: Path) -> DiffAE:
    """A DiffAE from our own file or the official last.ckpt (with or without latent DDIM)."""
    return _networks(path, "diffae")["diffae"]


def load_ddpm(path: Path, head_channels: int | None = None, num_heads: int | None = None,
              image_size: int | None = None) -> UNet:
    """A plain UNet without z: the P2 DDPM, OpenAI's unconditional models, a DiffAE '..._ddpm', or our own.

    What is given counts for foreign and converted files, whose shapes do not tell it; unet.detect has the defaults. The
    log says what was taken.
    """
    given = {"head_channels": head_channels, "num_heads": num_heads, "image_size": image_size}
    net = _networks(path, "ddpm", **given)["ddpm"]
    log.info("%s: %s", Path(path).name, net.config.in_words())
    _warn_of_unused(path, net.config, **given)
    return net


def unused(config: Any, **given: Any) -> list[str]:
    """The names of what is given (None: not given) and does not count, for the file itself says something else."""
    return [name for name, value in given.items() if value is not None and value != getattr(config, name)]


def _warn_of_unused(path: Path, config: Any, **given: Any) -> None:
    if names := unused(config, **given):
        log.warning("%s says its %s itself, and what was given is not used", Path(path).name, " and ".join(names))


def load_clip(path: Path, quick_gelu: bool | None = None, vision_heads: int | None = None) -> Clip:
    """A CLIP with ViT towers. `quick_gelu` matters for foreign and converted files, `vision_heads` for foreign ones;
    clip.detect has the defaults."""
    net = _networks(path, "clip", quick_gelu=quick_gelu, vision_heads=vision_heads)["clip"]
    _warn_of_unused(path, net.config, quick_gelu=quick_gelu)
    return net


def load_dino(path: Path) -> Dino:
    """A DINO ViT, of facebook, timm, or converted."""
    return _networks(path, "dino")["dino"]


def load_lpips(path: Path) -> LpipsVGG:
    """LPIPS-VGG with the trunk of a torchvision VGG-16 file (vgg16-397923af.pth)."""
    return LpipsVGG(read_kind(path, "vgg16").tensors)


def load_lpips_alex(path: Path) -> LpipsAlex:
    """LPIPS with the trunk of a torchvision AlexNet file (alexnet-owt-7be5be79.pth)."""
    return LpipsAlex(read_kind(path, "alexnet").tensors)


def load_inception(path: Path) -> Inception:
    """FID's Inception, of pytorch-fid or torch-fidelity, or converted."""
    return _networks(path, "inception")["inception"]


def load_art_inception(path: Path) -> Inception:
    """ArtFID's Inception (art_inception.pth), or converted."""
    return _networks(path, "art_inception")["inception"]


def load_arcface(path: Path) -> ArcFace:
    """A face recognition network: IR-SE50, insightface's iResNet, or converted."""
    return _networks(path, "arcface")["arcface"]


def load_stylegan2(path: Path) -> tuple[StyleGAN2, Discriminator | None]:
    """A generator and, if the file has it, its discriminator: rosinality's .pt, NVIDIA's .pkl, or our own."""
    found = _networks(path, "stylegan2")
    return found["g"], found.get("d")


def save_stylegan2(path: Path, generator: StyleGAN2, discriminator: Discriminator | None,
                   meta: dict[str, Any] | None = None) -> Path:
    """Write both in 16 bit."""
    tensors = joined(generator.state_dict(), discriminator and discriminator.state_dict())
    return store.save(path, tensors, "stylegan2", {"g": asdict(generator.config)}, meta)


def load_mmfs(path: Path) -> tuple[MMFS, Discriminator | None]:
    """An MMFS model and, if the file has it, its discriminator: the official .pth of phases 2 to 4, or our own."""
    found = _networks(path, "mmfs")
    return found["g"], found.get("d")


def save_mmfs(path: Path, net: MMFS, discriminator: Discriminator | None, meta: dict[str, Any],
              dtype: torch.dtype | None = torch.float16) -> Path:
    """Write both as `dtype` (None: 32 bit); meta tells the "phase" (1, 2 or 3), "clip" (see mapper_clip), and whatever
    else is to be known."""
    tensors = joined(net.state_dict(), discriminator and discriminator.state_dict())
    config = {"g": asdict(net.config), "d": discriminator and asdict(discriminator.config)}
    return store.save(path, tensors, "mmfs", config, meta, dtype)


def mapper_clip(path: Path) -> str:
    """mmfs.clip_fingerprint of the CLIP that the model's CLIP mapping was trained with; "" if the file does not say."""
    found = checkpoints.facts(path).get("clip")
    return found if isinstance(found, str) else ""


# --- styles ------------------------------------------------------------------------------------------------------
def load_mmfs_style(path: Path) -> MMFSStyle:
    """A style of ours, or the decoder of an official .pth of phase 4, or of its converted copy (which know neither
    their code nor their model)."""
    stored = read_kind(path, "mmfs_style", "mmfs")
    if stored.kind == "mmfs" and stored.config is not None and SOURCE_HASH not in stored.meta:
        raise _wrong_kind(Path(path).name, "mmfs", KINDS["mmfs_style"])
    if stored.kind == "mmfs":
        config = configurations(path, stored)["g"]
        return MMFSStyle(config, _float(with_prefix(stored.tensors, "g.decoder.")))
    config = configurations(path, stored)["decoder"]
    w, picture = stored.tensors.get("w_plus"), _style_picture(path, stored)
    if w is not None and (not w.is_floating_point() or w.shape != (1, config.n_styles, config.w_dim)):
        raise CheckpointError(f"{Path(path).name}: its w+ code has shape {list(w.shape)}, not "
                              f"{[1, config.n_styles, config.w_dim]}; it is damaged, write it again")
    return MMFSStyle(config, _float(with_prefix(stored.tensors, "decoder.")), None if w is None else w.float(), picture,
                     *(_fact(path, stored, name) for name in ("prompt", "model", "settings")))


def _style_picture(path: Path, stored: Stored) -> Tensor | None:
    """The picture in a style file, uint8 (3, H, W), or None. CheckpointError for anything else."""
    picture = stored.tensors.get("style_image")
    if picture is not None and (picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3
                                or not picture.numel()):
        raise CheckpointError(f"{Path(path).name}: its picture is {picture.dtype} of shape {list(picture.shape)}; "
                              "it is damaged, write it again")
    return picture


def _fact(path: Path, stored: Stored, name: str) -> Any:
    """What a file's meta says: "settings" is a table, the others are texts. CheckpointError for anything else."""
    default: Any = {} if name == "settings" else ""
    found = stored.meta.get(name, default)
    if not isinstance(found, type(default)):
        raise CheckpointError(f"{Path(path).name}: its description is damaged ('{name}' is {short(found)}); "
                              "write the file again")
    return found


def _float(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in tensors.items()}


def save_mmfs_style(path: Path, style: MMFSStyle) -> Path:
    """Write a style in 16 bit: the decoder, its code, prompt, settings, model's fingerprint, and its picture, of
    which at most STYLE_PICTURE px a side are kept (a decoder for 512 px takes 23.3 MB)."""
    tensors = {f"decoder.{name}": value for name, value in style.decoder.items()}
    tensors |= {} if style.w_plus is None else {"w_plus": style.w_plus}
    tensors |= {} if style.style_image is None else {"style_image": _shrunk(style.style_image)}
    return store.save(path, tensors, "mmfs_style", {"g": asdict(style.config)},
                      {"model": style.model, "prompt": style.prompt, "settings": style.settings})


def _shrunk(picture: Tensor) -> Tensor:
    """A picture (3, H, W) of 8 bit whose longer side is at most STYLE_PICTURE px."""
    scale = STYLE_PICTURE / max(picture.shape[1:])
    if scale >= 1:
        return picture
    size = [max(1, round(n * scale)) for n in picture.shape[1:]]
    return F.interpolate(picture[None].float(), size, mode="bilinear", antialias=True)[0].round().to(torch.uint8)


def load_style(path: Path) -> OSASISStyle:
    """A style of ours, or an official iter_N.pt (which knows neither its picture nor its DiffAE)."""
    stored = read_kind(path, "osasis_style")
    config = configurations(path, stored)["unet"]
    z = stored.tensors.get("z_style")
    if z is not None and (not z.is_floating_point() or z.shape != (1, config.cond)):
        raise CheckpointError(f"{Path(path).name}: its semantic code is {z.dtype} of shape {list(z.shape)}, not "
                              f"{[1, config.cond]}; it is damaged, write it again")
    return OSASISStyle(config, with_prefix(stored.tensors, "unet."), with_prefix(stored.tensors, "spn.") or None, z,
                 _style_picture(path, stored), *(_fact(path, stored, name) for name in ("model", "settings")))


def save_style(path: Path, style: OSASISStyle) -> Path:
    """Write a style in 16 bit, with its style image, code, settings and the fingerprint of its DiffAE."""
    tensors: dict[str, Tensor] = {f"unet.{k}": v for k, v in style.unet.items()}
    tensors |= {f"spn.{k}": v for k, v in (style.spn or {}).items()}
    tensors |= {name: value for name, value in (("z_style", style.z_style), ("style_image", style.style_image))
                if value is not None}
    return store.save(path, tensors, "osasis_style", {"unet": asdict(style.config)},
                      {"model": style.model, "settings": style.settings})


# --- edits of semantic codes -----------------------------------------------------------------------------------------
def load_attributes(path: Path) -> tuple[AttributeClassifier, str]:
    """An attribute classifier, our own or the official ffhq256_autoenc_cls/last.ckpt, and the fingerprint of its DiffAE
    ("": the file does not say)."""
    stored = read_kind(path, "attributes")
    tensors = _float(stored.tensors)
    classifier = AttributeClassifier(tensors["weight"], tensors["bias"], tensors["conds_mean"][None],
                                     tensors["conds_std"][None], tuple(stored.meta["names"]))
    return classifier, _fact(path, stored, "model")


def save_attributes(path: Path, classifier: AttributeClassifier, model: str, meta: dict[str, Any]) -> Path:
    """Write a classifier in 32 bit. model: the fingerprint of its DiffAE. meta: what else is to be known of it."""
    tensors = {"weight": classifier.weight, "bias": classifier.bias, "conds_mean": classifier.mean[0],
               "conds_std": classifier.std[0]}
    return store.save(path, tensors, "attributes", {}, meta | {"names": list(classifier.names), "model": model}, None)


def load_direction(path: Path) -> SemanticDirection:
    """Directions of semantic codes that were saved."""
    stored = read_kind(path, "direction")
    return SemanticDirection(stored.tensors["z"].float(), tuple(stored.meta["names"]),
                             *(_fact(path, stored, name) for name in ("model", "settings")))


def save_direction(path: Path, direction: SemanticDirection) -> Path:
    """Write directions in 32 bit, with their names, settings and the fingerprint of their DiffAE."""
    return store.save(path, {"z": direction.z}, "direction", {}, {
        "names": list(direction.names), "model": direction.model, "settings": direction.settings}, None)


def load_geometry(path: Path) -> FaceGeometry:
    """A geometry of faces that was saved."""
    stored = read_kind(path, "face_geometry")
    return FaceGeometry(stored.tensors["points"], stored.tensors["shift"], _fact(path, stored, "origin"))


def save_geometry(path: Path, geometry: FaceGeometry) -> Path:
    """Write a geometry in 32 bit, with what it was made of."""
    return store.save(path, {"points": geometry.points, "shift": geometry.shift}, "face_geometry", {},
                      {"origin": geometry.origin}, None)


# --- snapshots ---------------------------------------------------------------------------------------------------
def load_snapshot(path: Path) -> Stored:
    """A training snapshot, valid as far as the file alone can tell (see check_snapshot)."""
    stored = read_kind(path, "snapshot")
    try:
        return check_snapshot(stored)
    except CheckpointError as error:
        raise CheckpointError(f"{Path(path).name}: {error}") from error


def check_snapshot(stored: Stored) -> Stored:
    """CheckpointError unless `train.loop.restore` can take what the file says without a surprise: a counter of steps,
    a history of numbers, and optimiser states that are numbered, are floating point and agree in shape."""
    damaged = "the snapshot is damaged, give another name or begin anew"
    step, history = stored.meta.get("step"), stored.meta.get("loss_history", {})
    if type(step) is not int or not 0 <= step <= 2**53:
        raise CheckpointError(f"its step is {short(step)}, which is no count; {damaged}")
    if not isinstance(history, dict) or not all(isinstance(values, list) and all(
            type(value) in (int, float) for value in values) for values in history.values()):
        raise CheckpointError(f"its history is no table of lists of numbers; {damaged}")
    histories = {name: value for name, value in stored.tensors.items() if name.startswith("loss_history/")}
    for name, value in histories.items():
        if value.ndim != 1 or not value.is_floating_point():
            raise CheckpointError(f"its history '{short(name)}' is {value.dtype} of shape {list(value.shape)}; "
                                  f"{damaged}")
    states: dict[tuple[str, str], set[torch.Size]] = {}
    for name, value in stored.tensors.items():
        if not name.startswith("optimizer/"):
            continue
        match = _OPTIMIZER.fullmatch(name)
        if match is None or value.ndim and not value.is_floating_point():
            raise CheckpointError(f"its tensor '{short(name)}' ({value.dtype}) is no state of an optimiser; {damaged}")
        if value.ndim:
            states.setdefault((match[1], match[2]), set()).add(value.shape)
    unequal = [index for (_, index), shapes in states.items() if len(shapes) > 1]
    if unequal:
        raise CheckpointError(f"the optimiser's states of parameter {unequal[0]} differ in shape; {damaged}")
    predictions = stored.tensors.get("session/predictions")
    if predictions is not None and (predictions.dtype != torch.uint8 or predictions.ndim != 4):
        raise CheckpointError(f"its predictions are {predictions.dtype} of shape {list(predictions.shape)}; {damaged}")
    return stored


# --- converting --------------------------------------------------------------------------------------------------
def convert(path: str | Path, out: str | Path | None = None, overwrite: bool = False,
            dtype: torch.dtype = torch.float16) -> Path:
    """Write the slim store file of an official checkpoint, beside it unless `out` is given; returns its path.

    What is written loads: its tensors are checked against the networks first. dtype: of the weights in the file.
    The source's name and SHA-256 go into meta. Raises CheckpointError, also if `out` exists and `overwrite` is False.
    """
    path = Path(path)
    target = Path(out) if out is not None else _beside(path)
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target.name}: it is already in {target.parent}; give another name or ask to overwrite")
    if target.exists() and target.samefile(path):
        raise CheckpointError(f"{path.name}: the converted file cannot replace its source; give another name")
    stored = checkpoints.read(path, expected=_EXPECTED)
    if stored.config is not None:
        what = KINDS[stored.kind].what if stored.kind in KINDS else f"of kind '{stored.kind}'"
        raise CheckpointError(f"{path.name}: it is already a file of this pack ({what}); load it as it is")
    stored = _completed(path, stored)
    kind, configs = KINDS[stored.kind], configurations(path, stored)
    left_out = tuple(part.prefix for name, part in kind.parts.items() if name not in configs)
    tensors = {name: value for name, value in stored.tensors.items() if not (left_out and name.startswith(left_out))}
    meta = {**stored.meta, "source": path.name, SOURCE_HASH: store.sha256(path)}
    return store.save(target, tensors, stored.kind, _described(kind, configs), meta, dtype)


def _described(kind: Kind, configs: Mapping[str, Any]) -> dict[str, Any]:
    """What our own file says of its networks."""
    described: dict[str, Any] = {}
    for name, config in configs.items():
        values = {key: value for key, value in asdict(config).items() if key not in kind.undecided}
        described |= {kind.parts[name].entry: values} if kind.parts[name].entry else values
    return described


_EXPECTED = ("Expected: a DiffAE, attribute classifier, DDPM (P2), OSASIS style, StyleGAN2, MMFS, CLIP, DINO, VGG-16, "
             "AlexNet, Inception or ArcFace checkpoint")


def _beside(path: Path) -> Path:
    slim = path.with_suffix(".safetensors")
    return slim if slim != path else path.with_name(f"{path.stem}.slim.safetensors")
