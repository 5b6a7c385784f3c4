"""What the tests of cancelled and killed trainings share: tiny models, graphs with one training node, and the files it
leaves."""
from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from oneshot_atelier.cli.client import Event, Result
from oneshot_atelier.models.checkpoints import store
from oneshot_atelier.tests import tiny_mmfs, tiny_models

SMALL = "small.safetensors"  # every tiny model's name: bits are compared here, no quality
FOLDERS = {"diffae": "diffae", "clip": "open_clip", "stylegan2": "stylegan2", "mmfs": "mmfs"}  # kind: folder of models
TUNE, SAVE = "7", "8"  # ids of the node that trains, and of the node that saves what it made


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def write_models(base: Path) -> None:
    """Tiny models into the folders of a ComfyUI."""
    with tempfile.TemporaryDirectory() as folder:
        made = tiny_mmfs.write(tiny_models.write(Path(folder)))
        for kind, home in FOLDERS.items():
            (base / "models" / home).mkdir(parents=True, exist_ok=True)
            shutil.copy(made / f"{kind}.safetensors", base / "models" / home / SMALL)


def spots(seed: int) -> bytes:
    """A picture of soft spots."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((128, 128), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def steps_of(events: list[Event]) -> list[float]:
    """The optimiser steps that the training reported, in order."""
    return [event.data["value"] for event in events if event.kind == "progress" and event.data["node"] == TUNE]


def lines_of(result: Result) -> list[str]:
    return [event.data["text"] for event in result.of_kind("text") if event.data["node"] == TUNE]


def at_step(step: int, act: Callable[[], None]) -> Callable[[Event], None]:
    """An on_event that acts once, at an optimiser step."""
    done: list[bool] = []

    def on_event(event: Event) -> None:
        if not done and steps_of([event])[-1:] >= [step]:
            done.append(True)
            act()
    return on_event


def snapshot_of(base: Path, name: str) -> Path:
    return base / "output" / "atelier" / "snapshots" / f"{name}.snapshot"


def saved_step(snapshot: Path) -> int:
    """The iteration at which a snapshot was saved; it is read whole, as by the training that goes on with it."""
    stored = store.load(snapshot, "snapshot")
    assert {key.split("/")[0] for key in stored.tensors} >= {"net", "optimizer"}
    return stored.meta["step"]


def lock_of(snapshot: Path) -> Path:
    """What a killed training leaves beside its snapshot, until the next one of that name ends."""
    return snapshot.with_name(f".{snapshot.name}.lock")


def assert_same_result(one: Path, other: Path) -> None:
    """Bit for bit the same tensors, and the same settings (the file's header is in no fixed order)."""
    a, b = (store.load(path) for path in (one, other))
    assert (a.kind, a.config, a.meta) == (b.kind, b.config, b.meta)
    assert a.tensors.keys() == b.tensors.keys()
    assert [key for key, value in a.tensors.items() if not torch.equal(value, b.tensors[key])] == []
