"""The ComfyUI of the self-check: its folders, what must stay as it is, what it must do after every attempt."""
from __future__ import annotations

import hashlib
import io
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...models.checkpoints import CheckpointError, store
from ..client import Client, Event, Graph, Result
from ..run import host_of
from ..server import ROOT, ComfyServer, Host
from . import graphs, rights
from .attempts import Lost, Wrong
from .graphs import ITERATIONS, OSASIS_ITERATIONS, OSASIS_STEPS, SHOWN, TUNE

TIMEOUT = 120.0  # seconds for a prompt
QUIET = 10.0  # seconds until no prompt may run any more
MEMORY_PACK = "selfcheck_memory"
MEMORY_CODE = '''"""Written by `atelier selfcheck`: the n-th convolution or linear layer finds no memory left.

n stands in the file beside this one, which goes when it has happened.
"""
from pathlib import Path

import torch
import torch.nn.functional as F

NODE_CLASS_MAPPINGS = {}
AFTER = Path(__file__).with_name("after.txt")
left = []


def failing(function):
    def called(*args, **kwargs):
        if AFTER.exists():
            left[:] = [(left[0] if left else int(AFTER.read_text())) - 1]
            if left[0] <= 0:
                AFTER.unlink()
                left.clear()
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (made by the self-check)")
        else:
            left.clear()
        return function(*args, **kwargs)
    return called


F.conv2d, F.linear = failing(F.conv2d), failing(F.linear)
'''
Pictures = list[bytes]


class WatchedServer(ComfyServer):
    """ComfyUI without the right to write everywhere, which ends with this process. folder: see `rights`."""

    def __init__(self, host: Host, base: Path, folder: Path) -> None:
        packs = ("--whitelist-custom-nodes", "oneshot-atelier", MEMORY_PACK)  # the option's last list counts
        super().__init__(host, base, options=packs)
        self.folder = folder

    def command(self) -> list[str]:
        if os.name != "posix":
            return super().command()
        return [self.host.python, rights.__file__, str(self.folder), *super().command()]


# --- kinds of prompts -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Kind:
    """A prompt whose result is known. models: the folder of models that it saves into; "": it shows pictures.
    per: steps of its progress to an iteration, of `iterations`."""
    graph: Callable[[str], Graph]
    models: str = ""
    iterations: int = 0
    per: int = 1


def a_film(name: str) -> Graph:
    return graphs.film(graphs.FILM, 1, int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))


KINDS = {"MMFS": Kind(graphs.mmfs, "mmfs_styles", ITERATIONS),
         "OSASIS": Kind(graphs.osasis, "osasis", OSASIS_ITERATIONS, OSASIS_STEPS),
         "Stage I": Kind(graphs.stage1, "mmfs", ITERATIONS),
         "a film": Kind(a_film)}
TRAININGS = tuple(name for name, kind in KINDS.items() if kind.models)


@dataclass(frozen=True)
class Whole:
    """A prompt of a kind that ran without a break: its result, and its seconds in a ComfyUI that has run before."""
    result: Path | Pictures
    seconds: float
    bytes: int = 0  # of what it writes


# --- the place --------------------------------------------------------------------------------------------------------
@dataclass
class Place:
    """A ComfyUI that is attacked, in a folder: base is its own; nothing else in the folder may change."""
    host: Host
    folder: Path
    wholes: dict[str, Whole] = field(default_factory=dict, repr=False)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    outside: dict[str, str] = field(default_factory=dict, repr=False)
    plain: Pictures = field(default_factory=list, repr=False)

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def kept(self) -> Path:
        """Results of prompts without a break."""
        return self.folder / "kept"

    @property
    def canary(self) -> Path:
        return self.folder / "canary"

    @property
    def client(self) -> Client:
        return self.server.client

    def start(self) -> None:
        self.server = WatchedServer(self.host, self.base, self.folder).__enter__()

    def restart(self) -> None:
        self.server.stop()
        self.start()

    def folder_of(self, kind: Kind) -> Path:
        return self.base / "models" / kind.models

    def saved(self, kind: Kind, name: str) -> Path:
        return self.folder_of(kind) / f"{name}.safetensors"

    def snapshot(self, name: str) -> Path:
        return self.base / "output" / "atelier" / "snapshots" / f"{name}.snapshot"

    def run(self, graph: Graph, on_event: Callable[[Event], None] | None = None) -> Result:
        return self.client.run(graph, on_event, TIMEOUT)

    def pictures(self, result: Result, client: Client | None = None) -> Pictures:
        """The pixels that the graph showed."""
        return [pixels(data) for data in (client or self.client).images(result, SHOWN)]

    def plain_pictures(self) -> Pictures:
        """Of a plain prompt, which ComfyUI has not cached."""
        return self.pictures(self.run(graphs.stylized(graphs.PHOTOS[0], 1, next(self.numbers))))

    def whole(self, label: str) -> Whole:
        """A kind without a break; it is run when it is first asked for."""
        if label not in self.wholes:
            self.wholes[label] = whole_of(self, label)
        return self.wholes[label]

    # --- rules ---
    def result(self, kind: Kind, name: str, found: Result) -> Path | Pictures:
        return self.saved(kind, name) if kind.models else self.pictures(found)

    def check_result(self, name: str, label: str, found: Result) -> None:
        """Lost if a prompt has not the result of one without a break."""
        kind, right = KINDS[label], self.whole(label).result
        made = self.result(kind, name, found)
        same = same_files(right, made) if isinstance(right, Path) and isinstance(made, Path) else right == made
        if not same:
            raise Lost(f"the result of {label} differs from that of a run without a break")

    def check(self) -> None:
        """After every attempt: ComfyUI is alive and right, nothing was executed, nothing outside has changed, no file
        of ours is half written."""
        if self.server.process.poll() is not None:
            raise Lost(f"ComfyUI has ended with {self.server.process.returncode}: {self.server.log_tail(5)[-300:]}")
        deadline = time.monotonic() + QUIET
        while self.client.running():  # ComfyUI tells of a failure just before it is done with it
            if time.monotonic() > deadline:
                raise Wrong("a prompt is still running")
            time.sleep(0.05)
        if self.plain_pictures() != self.plain:
            raise Lost("a plain prompt gives another picture than before")
        if self.canary.exists():
            raise Wrong("code in a file was run")
        now = self.listing()
        changes = [path for path in {*now, *self.outside} if now.get(path) != self.outside.get(path)]
        if changes:
            raise Wrong(f"outside ComfyUI's folders, {len(changes)} files changed, such as {sorted(changes)[:3]}")
        check_files(self.base)

    def listing(self) -> dict[str, str]:
        """Every file outside of base, with its content's hash; of the pack and of ComfyUI, its size and time."""
        found = {}
        for path in self.folder.rglob("*"):
            if not {self.base, self.kept} & set(path.parents) and path.is_file():
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        for root in (ROOT, self.host.comfy):
            for path in code_of(root):
                found[str(path)] = store.file_token(path)
        return found


def code_of(root: Path) -> Iterator[Path]:
    """The files of a folder, but what Python, git and test runs keep in it."""
    for path in root.iterdir():
        if path.name.startswith(".") or path.name in ("__pycache__", "node_modules") or path.is_symlink():
            continue
        if path.is_dir():
            yield from code_of(path)
        elif path.is_file():
            yield path


def check_files(base: Path) -> None:
    """Lost for a file of ours that cannot be read whole."""
    written = [*(base / "output").rglob("*.snapshot"), *(base / "models").rglob("*.safetensors")]
    for path in written:
        if path.name != graphs.HALF:
            try:
                store.load(path)
            except CheckpointError as error:
                raise Lost(f"{path.name} is half written: {error}") from error


def check_tidy(base: Path) -> None:
    """Wrong if temporary files of ours are left."""
    left = [path.name for folder in ("output", "models") for path in (base / folder).rglob(".*")
            if path.suffix in (".tmp", ".part", ".lock")]
    if left:
        raise Wrong(f"temporary files were left: {left[:5]}")


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB")).tobytes()


def same_files(one: Path, other: Path) -> bool:
    """The same tensors, bit for bit, and the same settings."""
    if not other.exists():
        return False
    a, b = store.load(one), store.load(other)
    return (a.kind, a.config, a.meta) == (b.kind, b.config, b.meta) and a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(value, b.tensors[name]) for name, value in a.tensors.items())


def steps_of(events: list[Event]) -> int:
    """The last step that a training reported."""
    return max((int(event.data["value"]) for event in events
                if event.kind == "progress" and event.data.get("node") == TUNE), default=0)


# --- preparation ------------------------------------------------------------------------------------------------------
@contextmanager
def prepared(folder: Path, comfyui: Path | None) -> Iterator[Place]:
    """A ComfyUI that is started and answers. RunError if there is none."""
    folder = folder.resolve()
    host = host_of(comfyui)
    place = Place(replace(host, accelerator=host.has_accelerator()), folder)  # asked once, not at every start
    for name in ("around", rights.HOME, rights.TEMPORARY, "base"):
        (folder / name).mkdir(parents=True)
    graphs.write_files(place.base, place.kept, place.canary)
    (folder / "around" / "kept.safetensors").write_bytes(
        (place.base / "models" / "mmfs" / graphs.TINY).read_bytes())
    (folder / "around" / "kept.txt").write_text("This file must stay as it is.", encoding="utf-8")
    pack = place.base / "custom_nodes" / MEMORY_PACK
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(MEMORY_CODE, encoding="utf-8")
    place.start()
    try:
        place.plain = place.plain_pictures()
        place.outside = place.listing()
        place.check()
        yield place
    finally:
        place.server.stop()


def whole_of(place: Place, label: str) -> Whole:
    """The kind run twice, under two names: the results must be the same."""
    kind, results = KINDS[label], []
    for name in ("whole", "whole again"):
        found = place.run(kind.graph(f"{name} {label}"))
        results.append((place.result(kind, f"{name} {label}", found), found.seconds))
    (first, _), (second, seconds) = results
    if isinstance(first, Path) and isinstance(second, Path):
        if not same_files(first, second):
            raise Wrong(f"{label} gives two results")
        kept = place.kept / first.name
        first.rename(kept)
        second.unlink()
        size = kept.stat().st_size + place.snapshot(f"whole {label}").stat().st_size
        for name in ("whole", "whole again"):
            place.snapshot(f"{name} {label}").unlink()
        return Whole(kept, seconds, size)
    if first != second:
        raise Wrong(f"{label} gives two results")
    return Whole(first, seconds)


def forget(place: Place, label: str, name: str) -> None:
    """Remove what an attempt has saved."""
    kind = KINDS[label]
    if kind.models:
        place.saved(kind, name).unlink(missing_ok=True)
        place.snapshot(name).unlink(missing_ok=True)
