"""The only file that talks to ComfyUI: model folders, managed networks, progress, previews, cancel, training.

Everything else in `nodes` takes networks and tensors and knows nothing of devices.
"""
from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor, nn

from ..models.checkpoints import KINDS, store
from ..models.loading import DEMO
from ..models.mmfs import MMFSConfig
from ..models.unet import UNetConfig
from ..train.prior import precision

DEMO_NAME = "demo"
DEMO_FILES = {"diffae": "diffae.safetensors", "ddpm": "ddpm.safetensors", "open_clip": "clip.safetensors",
              "stylegan2": "stylegan2.safetensors", "mmfs": "mmfs.safetensors",
              "dino": "diffae.safetensors"}  # a substitute: see mmfs_loaders.LoadSelfSimilarity
FILE_KINDS = {"diffae": "diffae", "ddpm": "ddpm", "open_clip": "clip", "lpips": "vgg16", "osasis": "osasis_style",
              "stylegan2": "stylegan2", "mmfs": "mmfs", "mmfs_styles": "mmfs_style", "dino": "dino"}
EXTENSIONS = {".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".pkl"}
NO_FOLDER = "none"
MOST_FOLDERS = 500  # offered as choices
PREVIEW_SECONDS = 0.25
PREVIEW_SIDE = 768


# --- model folders -------------------------------------------------------------------------------------------------
def register_folders() -> None:
    """Make ComfyUI know the folders of FILE_KINDS in models; the user's own paths for them are kept."""
    for kind in FILE_KINDS:
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind), is_default=True)
        paths, extensions = folder_paths.folder_names_and_paths[kind]
        folder_paths.folder_names_and_paths[kind] = (paths, extensions or set(EXTENSIONS))


def model_files(kind: str) -> list[str]:
    """Names of the model files in a folder kind, sub-folders included."""
    return [name for name in folder_paths.get_filename_list(kind) if Path(name).suffix.lower() in EXTENSIONS]


def model_choices(kind: str) -> list[str]:
    """What a loader offers: the shipped demo model first, then the user's files."""
    return [DEMO_NAME] * (kind in DEMO_FILES) + model_files(kind)


def model_path(kind: str, name: str) -> Path:
    """The file behind a choice. ValueError with the folder and the public page if it is not there."""
    if name == DEMO_NAME and kind in DEMO_FILES:
        path = DEMO / DEMO_FILES[kind]
        if not path.is_file():
            raise ValueError(f"the demo model {path} is missing from this copy of the pack; clone the pack again, or "
                             f"put a model of your own into {model_folder(kind)} and pick it")
        return path
    found = folder_paths.get_full_path(kind, name) if name in model_files(kind) else None
    if found is None:
        known = KINDS.get(FILE_KINDS[kind])
        page = f" ({known.page})" if known and known.page else ""
        raise ValueError(f"there is no file {name!r} in {model_folder(kind)}; put it there{page}, press R to refresh "
                         "the page, and pick it from the list")
    return Path(found)


def model_folder(kind: str) -> Path:
    """The first folder of a kind: where new files go."""
    return Path(folder_paths.get_folder_paths(kind)[0])


def model_token(kind: str, name: str) -> str:
    """Changes when the chosen file does; for fingerprint_inputs."""
    try:
        return store.file_token(model_path(kind, name))
    except (ValueError, OSError):
        return "missing"


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory())


def snapshot_folder() -> Path:
    """Where training saves what it needs to go on."""
    return output_folder() / "atelier" / "snapshots"


def input_folders() -> list[str]:
    """Sub-folders of ComfyUI's input folder, as 'a/b'; hidden ones are left out."""
    root, found = Path(folder_paths.get_input_directory()), []
    for place, folders, _ in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [(Path(place) / name).relative_to(root).as_posix() for name in folders]
        if len(found) >= MOST_FOLDERS:
            break
    return sorted(found)[:MOST_FOLDERS]


def input_folder(name: str) -> Path | None:
    """The folder behind a choice; None for 'none'. ValueError for any name that is not among the choices."""
    if name == NO_FOLDER:
        return None
    if name not in input_folders():
        raise ValueError(f"there is no folder {name!r} in {folder_paths.get_input_directory()}; make it there, press R "
                         "to refresh the page, and pick it from the list")
    return Path(folder_paths.get_input_directory()) / name


def folder_token(name: str) -> str:
    """Changes when the files of the chosen folder do; for fingerprint_inputs."""
    try:
        folder = input_folder(name)
        stats = [] if folder is None else [(str(p), p.stat()) for p in sorted(folder.rglob("*")) if p.is_file()]
    except (ValueError, OSError):
        return "missing"
    listing = "".join(f"{path}{stat.st_size}{stat.st_mtime_ns}" for path, stat in stats)
    return hashlib.sha256(listing.encode()).hexdigest()


# --- networks ------------------------------------------------------------------------------------------------------
class Managed:
    """A network whose place (graphics card or main memory) is ComfyUI's business. Use it only inside `running`."""

    def __init__(self, net: nn.Module):
        # newer versions pick the patcher's class when they start, so it is looked up late
        patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        self.net = net
        self.patcher = patcher(net, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())


@contextlib.contextmanager
def running(*managed: Managed, memory: int = 0) -> Iterator[torch.device]:
    """Loads the networks for inference and gives the device to compute on. memory: bytes needed beside the weights."""
    # plain modules that do not fit would otherwise be left where they are, without a word
    mm.load_models_gpu([m.patcher for m in managed], memory_required=memory, force_full_load=True)
    with torch.no_grad():
        yield mm.get_torch_device()


def half(device: torch.device):
    """float16 autocast on a graphics card, as the official program samples; float32 on the CPU."""
    return precision(device, "float16" if device.type == "cuda" else "float32")


def sampling_memory(config: UNetConfig, batch: int) -> int:
    """Bytes that a UNet call without gradient needs at most: about 12 full-size maps a picture."""
    return 12 * 4 * config.base * config.image_size ** 2 * batch


def training_memory(config: UNetConfig, rows: int) -> int:
    """Bytes of an optimiser step: activations (spec E.2: 96 full-size maps a row), and 138 M weights four times."""
    return 96 * 4 * config.base * config.image_size ** 2 * rows + (2 << 30) * config.base ** 2 // 128 ** 2


def drawing_memory(channels: int, height: int, width: int, batch: int) -> int:
    """Bytes that MMFS and StyleGAN2 need without gradient: about 5 of their largest maps a picture (MMFS spec D)."""
    return 5 * 4 * channels * height * width * batch


def tuning_memory(config: MMFSConfig, rows: int) -> int:
    """Bytes of an MMFS optimiser step: about 15 full-size maps a row, and a gigabyte for the judges (MMFS spec D)."""
    return 15 * 4 * config.decoder[-1] * config.resolution ** 2 * rows + (1 << 30)


def training_device() -> torch.device:
    """Where `trainable` puts things."""
    return mm.get_torch_device()


@contextlib.contextmanager
def trainable(*things: nn.Module | Tensor | None, memory: int = 0) -> Iterator[tuple]:
    """Gradients on, and a copy of every network and tensor on the computing device, fit for autograd.

    ComfyUI runs nodes in inference mode, where everything made or moved is unfit; and what comes in on a socket is
    cached and shared, so it must not be trained in place.
    """
    device = training_device()
    mm.free_memory(memory, device)
    with torch.inference_mode(False), torch.enable_grad():
        yield tuple(_own(thing, device) for thing in things)


def _own(thing: nn.Module | Tensor | None, device: torch.device):
    if isinstance(thing, nn.Module):
        return copy.deepcopy(thing).to(device).requires_grad_(False)
    return thing.detach().clone().to(device) if isinstance(thing, Tensor) else thing


# --- progress, text, cancel ----------------------------------------------------------------------------------------
def check_cancelled() -> None:
    """Raises ComfyUI's own exception if the user pressed cancel."""
    mm.throw_exception_if_processing_interrupted()


class Steps:
    """Progress of a node: call it after every step. Stops at once if the user cancelled; previews are throttled."""

    def __init__(self, total: int):
        self.total, self.done, self.shown = total, 0, 0.0
        self.bar = comfy.utils.ProgressBar(total)

    def __call__(self, picture: Callable[[], Image.Image] | None = None) -> None:
        check_cancelled()
        self.done += 1
        preview = None
        if picture is not None and (time.monotonic() - self.shown > PREVIEW_SECONDS or self.done == self.total):
            preview = ("JPEG", picture(), PREVIEW_SIDE)
            self.shown = time.monotonic()
        self.bar.update_absolute(self.done, self.total, preview)


def say(text: str) -> None:
    """Show a line of text on the running node."""
    context = get_executing_context()
    if context is not None:  # else there is no server either
        from server import PromptServer
        PromptServer.instance.send_progress_text(text, context.node_id)


def blocked(advice: str) -> ExecutionBlocker:
    """An output that raises `advice` only where something hangs on it."""
    return ExecutionBlocker(advice)
