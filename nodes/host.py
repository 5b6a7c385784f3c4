"""The only file that talks to ComfyUI: model folders, patched modules, progress, previews, cancel, training.

Everything else in `nodes` takes networks and tensors and knows nothing of devices.
"""
from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.patcher_extension import CallbacksMP
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from PIL import Image
from torch import Tensor, nn

from ..models.accelerated import accelerated
from ..models.checkpoints import store
from ..models.graphs import release
from ..models.kinds import KINDS
from ..models.loading import DEMO
from ..models.precision import AUTO, autocast, dtype_of
from ..train.data import all_under, is_hidden
from . import examples

log = logging.getLogger(__name__)
DEMO_NAME = "demo"
DEMO_FILES = {"diffae": "diffae.safetensors", "ddpm": "ddpm.safetensors", "open_clip": "clip.safetensors",
              "stylegan2": "stylegan2.safetensors", "mmfs": "mmfs.safetensors",
              "diffae_attributes": "attributes.safetensors",
              "dino": "diffae.safetensors"}  # a substitute: see loaders.LoadStructureNet
FILE_KINDS = {"diffae": "diffae", "ddpm": "ddpm", "open_clip": "clip", "lpips": "vgg16", "osasis": "osasis_style",
              "stylegan2": "stylegan2", "mmfs": "mmfs", "mmfs_styles": "mmfs_style", "dino": "dino",
              "alexnet": "alexnet", "arcface": "arcface", "inception": "inception", "art_inception": "art_inception",
              "diffae_attributes": "attributes", "diffae_directions": "direction",
              "face_geometries": "face_geometry"}
EXTENSIONS = {".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".pkl"}
NO_FOLDER = NO_FILE = "none"
MOST_FOLDERS = 500  # offered as choices
PACK = "oneshot-atelier"  # its folder, where the user has not named it otherwise
OURS = "atelier"  # marks the patchers of this pack
PREVIEW_SECONDS, PROGRESS_SECONDS = 0.25, 0.05
PREVIEW_SIDE = 768


# --- model folders -------------------------------------------------------------------------------------------------
def register_folders() -> None:
    """Make ComfyUI know the folders of FILE_KINDS in models. The user's own paths come first, and a kind that another
    pack or the user has already set up keeps its file endings."""
    for kind in FILE_KINDS:
        path = os.path.join(folder_paths.models_dir, kind)
        if kind in folder_paths.folder_names_and_paths:
            folder_paths.add_model_folder_path(kind, path)
        else:
            folder_paths.folder_names_and_paths[kind] = ([path], set(EXTENSIONS))
        paths, extensions = folder_paths.folder_names_and_paths[kind]
        if not extensions:
            folder_paths.folder_names_and_paths[kind] = (paths, set(EXTENSIONS))


def model_files(kind: str) -> list[str]:
    """Names of the model files in a folder kind, sub-folders included."""
    return [name for name in folder_paths.get_filename_list(kind) if Path(name).suffix.lower() in EXTENSIONS]


def model_choices(kind: str) -> list[str]:
    """What a loader offers: the shipped demo model first, then the user's files."""
    return [DEMO_NAME] * (kind in DEMO_FILES) + model_files(kind)


def model_path(kind: str, name: str) -> Path:
    """The file behind a choice; of a workflow from another system, too, whose names have other separators. ValueError
    with the folder and the public page if it is not there."""
    if name == DEMO_NAME and kind in DEMO_FILES:
        path = DEMO / DEMO_FILES[kind]
        if not path.is_file():
            raise ValueError(f"the demo model {path} is missing from this copy of the pack. Clone the pack again, or "
                             f"put a model of your own into {model_folder(kind)} and pick it")
        return path
    for known in model_files(kind):
        if _portable(known) == _portable(name) and (found := folder_paths.get_full_path(kind, known)):
            return Path(found)
    raise ValueError(_missing(kind, name))


def valid_model(kind: str, name: str | None) -> bool | str:
    """For validate_inputs: True, or why there is no such file. None stands for a linked input."""
    try:
        return name is None or bool(model_path(kind, name))
    except ValueError as error:
        return str(error)


def _portable(name: str) -> str:
    return name.replace("\\", "/")


def _missing(kind: str, name: str) -> str:
    wanted = _portable(name)
    for folder in folder_paths.get_folder_paths(kind):
        if (path := Path(folder) / wanted).is_symlink() and not path.exists():
            return (f"{name[:80]!r} in {folder} is a link that leads nowhere. Bring back what it leads to "
                    f"({os.readlink(path)}), or put the file there")
    namesakes = [known for known in model_files(kind)
                 if _portable(known).rpartition("/")[2] == wanted.rpartition("/")[2]]
    if namesakes:
        return f"there is no file {name[:80]!r} in {model_folder(kind)}. Pick {namesakes[0]!r}, which has the same name"
    known = KINDS.get(FILE_KINDS[kind])
    page = f" ({known.page})" if known and known.page else ""
    return (f"there is no file {name[:80]!r} in {model_folder(kind)}. Put it there{page}, press R to refresh the page, "
            "and pick it from the list")


def model_folder(kind: str) -> Path:
    """The first folder of a kind: where new files go."""
    return Path(folder_paths.get_folder_paths(kind)[0])


def model_token(kind: str, name: str | None) -> str:
    """Changes when the chosen file does; of a linked choice (None), when any file of the kind does. For
    fingerprint_inputs."""
    if name is None:
        return "\n".join(f"{known} {model_token(kind, known)}" for known in model_choices(kind))
    try:
        return store.file_token(model_path(kind, name))
    except (ValueError, OSError):
        return "missing"


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory())


def snapshot_folder() -> Path:
    """Where trainings save what they need to be resumed."""
    return output_folder() / "atelier" / "snapshots"


def content_folder() -> Path:
    """Where OSASIS fine-tunes keep the content pictures that they have prepared."""
    return output_folder() / "atelier" / "content"


def put_examples() -> None:
    """What the example workflows load, into ComfyUI's input folder, where it never was before."""
    examples.put_examples(Path(folder_paths.get_input_directory()), Path(folder_paths.get_user_directory()))


def serve_help_pictures() -> None:
    """Help pages show the workflows' pictures at the address that ComfyUI gives to the folder PACK: serve them there
    from a folder of another name, too."""
    folder = Path(__file__).parents[1]
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and folder.name != PACK and (folder / "workflows").is_dir():
        server.app.router.add_static(f"/api/workflow_templates/{PACK}", folder / "workflows")


def walked(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """As os.walk, but folders alone; one that has not changed since is not listed again, which takes long where there
    are many pictures: schemas are asked for many times a run."""
    try:
        found = folder_names(root, root.stat().st_mtime_ns)
    except OSError:
        return
    names = [name for name, is_link in found if not is_link or os.path.isdir(root / name)]
    yield root, names
    for name in names:
        if not (root / name).is_symlink():
            yield from walked(root / name)


@functools.lru_cache(2 * MOST_FOLDERS)
def folder_names(place: Path, changed: int) -> tuple[tuple[str, bool], ...]:
    """(name, False) of the folders, and (name, True) of the links, in a folder that was changed last at that time
    (ns)."""
    with os.scandir(place) as entries:
        return tuple((entry.name, entry.is_symlink()) for entry in entries
                     if entry.is_symlink() or entry.is_dir(follow_symlinks=False))


def input_folders() -> list[str]:
    """Sub-folders of ComfyUI's input folder, as 'a/b'; hidden ones are left out."""
    root, found = Path(folder_paths.get_input_directory()), []
    for place, folders in walked(root):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [(Path(place) / name).relative_to(root).as_posix() for name in folders]
        if len(found) > MOST_FOLDERS:
            say_cut(root)
            break
    return sorted(found)[:MOST_FOLDERS]


@functools.cache
def say_cut(root: Path) -> None:
    """Once for all nodes that offer the folders."""
    log.warning("%s has more than %d sub-folders, and nodes offer %d of them. A workflow finds the others by name",
                root, MOST_FOLDERS, MOST_FOLDERS)


def input_folder(name: str) -> Path | None:
    """The folder behind a choice, or beyond MOST_FOLDERS one that would be; None for 'none'. ValueError for any other
    name."""
    if name == NO_FOLDER:
        return None
    root = Path(folder_paths.get_input_directory())
    if not is_input_folder(root, name):
        raise ValueError(f"there is no folder {name!r} in {root}. Make it there, press R to refresh the page, and pick "
                         "it from the list")
    return root / name


def is_input_folder(root: Path, name: str) -> bool:
    """Would a walk through the root come by this folder? Step by step, so that no name leads out of the root; a link
    may end the way, but nothing behind it is walked."""
    place = root.resolve()
    for part in name.split("/"):
        if is_hidden(part) or place.is_symlink() or part not in dict(folder_names(place, place.stat().st_mtime_ns)):
            return False
        place = place / part
        if not place.is_dir():
            return False
    return True


def folder_token(name: str | None) -> str:
    """Changes when the files of the chosen folder do; of a linked choice (None), when those of any folder do. For
    fingerprint_inputs."""
    try:
        folders = [input_folder(name)] if name is not None else [
            entry for entry in Path(folder_paths.get_input_directory()).iterdir()
            if entry.is_dir() and not is_hidden(entry.name)]
        stats = [(str(p), p.stat()) for folder in folders if folder for p in sorted(all_under(folder)) if p.is_file()]
    except (ValueError, OSError):
        return "missing"
    listing = "".join(f"{path}{stat.st_size}{stat.st_mtime_ns}" for path, stat in stats)
    return hashlib.sha256(listing.encode()).hexdigest()


# --- networks ------------------------------------------------------------------------------------------------------
class PatchedModule:
    """A network whose place (GPU or main memory) is ComfyUI's business. Use it only inside `running`."""

    def __init__(self, net: nn.Module) -> None:
        # newer versions pick the patcher's class when they start, so it is looked up late
        patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        self.net = net
        self.patcher = patcher(net, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())
        # graphs hold memory of the GPU; loading what is loaded detaches, too, and moves nothing
        self.patcher.add_callback(CallbacksMP.ON_DETACH, lambda _, leaves=True: release(net) if leaves else None)
        self.patcher.set_attachments(OURS, True)
        self.copies: dict[str, PatchedModule] = {}

    @property
    def bytes(self) -> int:
        """Of the weights, those of copies included."""
        return bytes_of(self.net) + sum(copied.bytes for copied in self.copies.values())

    def accelerated(self, precision: str) -> PatchedModule:
        """What samples fastest at a precision (models.accelerated): a copy, made once, or this one itself."""
        device = mm.get_torch_device()
        key = str(dtype_of(device, precision))
        if key not in self.copies:
            copied = accelerated(self.net, device, precision)
            if copied is self.net:
                return self  # not kept: a network that refers to itself outlives its cache entry
            self.copies[key] = PatchedModule(copied)
        return self.copies[key]


def bytes_of(net: nn.Module | None) -> int:
    """Bytes of a network's weights; 0 for none."""
    return sum(t.numel() * t.element_size() for t in net.state_dict().values()) if net is not None else 0


@contextlib.contextmanager
def running(*modules: PatchedModule, memory: int = 0) -> Iterator[torch.device]:
    """Loads the networks for inference and gives the device to compute on. memory: bytes needed beside the weights."""
    # plain modules that do not fit would otherwise be left where they are, silently
    mm.load_models_gpu([module.patcher for module in modules], memory_required=memory, force_full_load=True)
    device = mm.get_torch_device()
    for module in modules:
        if any(weight.device.type != device.type for weight in module.net.parameters()):
            module.net.to(device)  # --novram does not honour force_full_load; ComfyUI moves it back as a whole
    with torch.no_grad():
        yield device


@contextlib.contextmanager
def sampling(module: PatchedModule, precision: str = AUTO, memory: int = 0) -> Iterator[tuple[torch.device, Any]]:
    """`running` for samplers: gives the device, and the network as it samples fastest there. AUTO is float16 on a GPU,
    as the official program samples, and float32 on the CPU."""
    fast = module.accelerated(precision)
    with running(fast, memory=memory) as device, autocast(device, precision):
        yield device, fast.net


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor in main memory on `device`, without waiting for a GPU to be done with its work so far."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and x.device.type == "cpu" else (
        x.to(device))


class Received:
    """A tensor on its way to main memory: `get` waits for it, and for it alone."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.event = x, None
        if x.device.type == "cuda":
            self.x = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def get(self) -> Tensor:
        if self.event is not None:
            self.event.synchronize()
        return self.x.cpu()


def training_device() -> torch.device:
    """Where `trainable` puts things."""
    return mm.get_torch_device()


def unload_ours(device: torch.device) -> None:
    """This pack's networks leave the device; those of others stay."""
    others = [loaded for loaded in mm.current_loaded_models if not (loaded.model and loaded.model.get_attachment(OURS))]
    mm.free_memory(1e30, device, keep_loaded=others)


@contextlib.contextmanager
def trainable(*things: nn.Module | Tensor | None, memory: int = 0) -> Iterator[tuple]:
    """Gradients on, and a copy of every network and tensor on the computing device, fit for autograd. What this pack
    had there for sampling leaves it; memory: bytes that are asked for beside.

    ComfyUI runs nodes in inference mode, where everything made or moved is unfit; and what comes in on a socket is
    cached and shared, so it must not be trained in place.
    """
    device = training_device()
    unload_ours(device)
    mm.free_memory(memory, device)
    with torch.inference_mode(False), torch.enable_grad():
        yield tuple(_own(thing, device) for thing in things)


def _own(thing: nn.Module | Tensor | None, device: torch.device) -> nn.Module | Tensor | None:
    if isinstance(thing, nn.Module):
        return copy.deepcopy(thing).to(device).requires_grad_(False)
    return thing.detach().clone().to(device) if isinstance(thing, Tensor) else thing


# --- progress, text, cancel ----------------------------------------------------------------------------------------
def check_interrupt() -> None:
    """Raises ComfyUI's own exception if the user pressed cancel."""
    mm.throw_exception_if_processing_interrupted()


class NodeProgress:
    """Progress of a node: call it after every step. Stops at once if the user cancelled; what is told and shown is
    throttled, since a step on a GPU takes less time than the page needs to be told of it."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.told, self.shown = 0.0, time.monotonic()
        self.bar = comfy.utils.ProgressBar(total)

    def __call__(self, picture: Callable[[], Image.Image] | None = None) -> None:
        check_interrupt()
        self.done += 1
        now, preview = time.monotonic(), None
        if picture is not None and now - self.shown > PREVIEW_SECONDS and shows_previews():
            preview = ("JPEG", picture(), PREVIEW_SIDE)
            self.shown = time.monotonic()
        if preview or now - self.told > PROGRESS_SECONDS or self.done == self.total:
            self.bar.update_absolute(self.done, self.total, preview)
            self.told = now


def shows_previews() -> bool:
    """False if the user started ComfyUI with --preview-method none; without the option there are previews."""
    given = any(word.startswith("--preview-method") for word in sys.argv)
    return not (given and args.preview_method == LatentPreviewMethod.NoPreviews)


def show_text(text: str) -> None:
    """Show a line of text on the running node."""
    context = get_executing_context()
    if context is not None:  # else there is no server either
        from server import PromptServer
        PromptServer.instance.send_progress_text(text, context.node_id)


def warn(text: str) -> None:
    """Show a line of text on the running node, and in the log."""
    log.warning(text)
    show_text(text)


def inform(text: str) -> None:
    """Show a line of text on the running node, and in the log, where it is no warning."""
    log.info(text)
    show_text(text)


def blocked(advice: str) -> ExecutionBlocker:
    """An output that raises `advice` only where something hangs on it."""
    return ExecutionBlocker(advice)
