"""What the official programs cost, and what an H100 can do: what our figures are compared with.

Measured on 2026-11-21 and 2026-11-26 on one NVIDIA H100 80GB HBM3 with PyTorch 2.11.0+cu130: the official OSASIS
trainer and tester as they are (256 px, batch 8, float16 autocast, random weights; network calls in a process of ours),
and for MMFS, whose official program was not timed, the same network in plain PyTorch (512 px). "style": 200 iterations.
"content": what an iteration spends on generating and encoding 8 pictures, z not counted. "stylize 8": each of the 8.
"""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """None: not measured."""
    seconds: float | None = None
    gib: float | None = None


OFFICIAL: dict[str, Cost] = {
    "call 1": Cost(0.0433), "call 8": Cost(0.0610), "training call": Cost(0.1608, 20.7),
    "iteration": Cost(11.33), "content": Cost(1.50 + 1.66), "style": Cost(37.8 * 60), "fine-tune": Cost(gib=30.4),
    "stylize 1": Cost(3.38, 2.05), "stylize 8": Cost(0.645, 4.15),
    "mmfs 1 float32": Cost(0.0124), "mmfs 8 float32": Cost(0.0606), "mmfs 8 bfloat16": Cost(0.028),
    "mmfs step float32": Cost(0.254), "mmfs step bfloat16": Cost(0.094)}
SIZES = ("ffhq256",)  # that these are of

ARITHMETIC = 800e12  # FLOP/s in 16 bit that large matrix products reach on an H100; of what the floors are computed
PEAK_ARITHMETIC = 989e12  # its data sheet, dense, 16 bit
PEAK_BANDWIDTH = 3.35e12  # bytes/s, data sheet
H200_BANDWIDTH = 4.8e12


def bandwidth(device_name: str) -> float:
    """Bytes a second of the data sheet; an H100's for every card but the H200."""
    return H200_BANDWIDTH if "H200" in device_name else PEAK_BANDWIDTH


def cost(key: str, size: str, batch: int = 8) -> Cost:
    """The official cost of this, if it is known for the size."""
    return OFFICIAL.get(key, Cost()) if size in SIZES and batch == 8 else Cost()
