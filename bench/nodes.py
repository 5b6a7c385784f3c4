"""Time the OSASIS nodes in a real ComfyUI, at the official sizes on random weights, and what memory they leave behind.

    python3 tools/launch.py bench.nodes [--iterations 5] [--limit-gib 8]      COMFYUI_PATH=... takes your own ComfyUI

One line of Markdown for each node that ran: seconds until the next one began. --limit-gib: the server may use so much
of the GPU's memory and no more (its option --reserve-vram, and a limit of PyTorch's).
"""
from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..cli.client import Client, Result
from ..models.checkpoints import store
from ..models.diffae import CONFIGS, DiffAE
from ..models.features.clip import Clip
from ..models.unet import UNet
from ..tools.comfy import ROOT, ComfyServer, find_host
from .osasis import P2, VIT_B_32

NAME = "bench.safetensors"
Graph = dict[str, dict[str, Any]]


def write_models(base: Path) -> None:
    """Random models of the official sizes, where the loaders look. Last layers are not left at zero."""
    torch.manual_seed(0)
    nets: dict[str, tuple[nn.Module, str]] = {
        "diffae": (DiffAE(CONFIGS["ffhq256"]), "diffae"), "ddpm": (UNet(P2), "ddpm"),
        "open_clip": (Clip(VIT_B_32), "clip")}
    for folder, (net, kind) in nets.items():
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.005 * torch.randn_like(p))
        (base / "models" / folder).mkdir(parents=True, exist_ok=True)
        inner = net.net if isinstance(net, Clip) else net
        store.save(base / "models" / folder / NAME, inner.state_dict(), kind, asdict(net.config))  # pyright: ignore


def graph(photo: str, iterations: int, batch: int, options: Mapping[str, Any], saves: tuple[str, ...]) -> Graph:
    """The demo's graph with these models, official settings, one photo, and only the pictures that `saves` names."""
    found: Graph = json.loads((ROOT / "workflows" / "api" / "osasis_demo.json").read_text())
    for node in found.values():
        inputs, kind = node["inputs"], node["class_type"]
        if kind in ("AtelierLoadDiffAE", "AtelierLoadDDPM", "AtelierLoadCLIP"):
            inputs["model"] = NAME
        elif kind == "AtelierPhotoTwin":
            inputs |= {"candidates": 30, "t0": 0.5}
        elif kind == "AtelierOSASISFineTuneOptions":
            inputs |= {"preset": "as set below"} | options
        elif kind == "AtelierOSASISFineTune":
            inputs |= {"iterations": iterations, "batch": batch, "lr": 5e-6, "save_every": 0, "resume": False}
        elif kind == "AtelierStructuralEncode":
            inputs |= {"steps": 100, "image": ["13", 0]}
        elif kind == "AtelierSemanticEncode":
            inputs["image"] = ["13", 0]
        elif kind == "AtelierOSASISStylize":
            inputs["steps"] = 50
    found["13"]["inputs"]["image"] = photo
    wanted = {f"atelier_demo/{name}" for name in saves}
    return {key: node for key, node in found.items()
            if node["class_type"] != "SaveImage" or node["inputs"]["filename_prefix"] in wanted
            if node["class_type"] != "AtelierSaveOSASISStyle"}


def seconds_of(result: Result, made: Graph) -> list[tuple[str, float, list[float]]]:
    """(node, seconds, when its progress was told) of what ran, in order."""
    begun = [(e.data["node"], e.at) for e in result.of_kind("executing") if e.data.get("node")]
    ends = [at for _, at in begun[1:]] + [result.seconds]
    told = [(e.data.get("node"), e.at) for e in result.of_kind("progress")]
    return [(made[node]["class_type"], end - at, [t for n, t in told if n == node])
            for (node, at), end in zip(begun, ends)]


def show(what: str, result: Result, made: Graph) -> None:
    for node, seconds, told in seconds_of(result, made):
        if node.startswith("Atelier") and "Load" not in node and "Options" not in node and "Mix" not in node:
            print(f"| {what} | {node} | {seconds:.2f} |", flush=True)
            if node == "AtelierOSASISFineTune" and len(told) > 2:
                steps = [b - a for a, b in zip(told, told[1:])]
                print(f"| | each of its optimiser steps, median of the last 20 | {sorted(steps[-20:])[10]:.3f} |")


def memory(client: Client) -> float:
    """GiB of the GPU that are in use."""
    device = client.get_json("/system_stats")["devices"][0]
    return (device["vram_total"] - device["vram_free"]) / 2 ** 30


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--iterations", type=int, default=5)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--micro-batch", type=int, default=0)
    p.add_argument("--limit-gib", type=float, default=0.0)
    options = p.parse_args()
    flags = ()
    if options.limit_gib:
        total = torch.cuda.get_device_properties(0).total_memory / 2 ** 30
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = f"per_process_memory_fraction:{options.limit_gib / total:.4f}"
        flags = ("--reserve-vram", f"{total - options.limit_gib:.1f}")
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as folder:
        base = Path(folder)
        write_models(base)
        with ComfyServer(find_host(), base, options=flags) as server:
            client = server.client
            started = memory(client)
            print(f"{client.get_json('/system_stats')['devices'][0]['name']}\n\n| run | node | s |\n|---|---|---|")
            further = {"micro_batch": options.micro_batch}
            runs = (("first", "face_1.png", "result"), ("another photo", "face_2.png", "result"),
                    ("a third", "face_3.png", "result"))
            for what, photo, save in runs:
                made = graph(photo, options.iterations, options.batch, further, (save,))
                began = time.monotonic()
                show(what, client.run(made), made)
                print(f"| {what} | all | {time.monotonic() - began:.2f} |", flush=True)
            held = memory(client)
            client.post_json("/free", {"unload_models": True, "free_memory": True})
            time.sleep(3)
            print(f"\nGPU memory: {started:.2f} GiB at the start, {held:.2f} after the runs, "
                  f"{memory(client):.2f} when freed")
            warnings = [line for line in server.log_text().splitlines() if "graph" in line.lower() or "rror" in line]
            print("\n".join(warnings[:20]))
    return 0
