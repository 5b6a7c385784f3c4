"""Frames per second of a film: its face found, cut out, stylized with MMFS and put back; and whole frames.

    python3 tools/launch.py bench.film [--px 512] [--batch 8] [--frames 48] [--device cuda] [--out FILE.json]

A film of 1280 x 720 px moves over workflows/inputs/astronaut.png. The network is of the official size at 512 px, with
random weights: speed is the same. --px 128 takes the demo model's size.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.faces.crops import Choice, cut_out, put_back, squares_found
from ..models.faces.find import FaceSettings, find_faces
from ..models.faces.networks import FaceNetworks, load_faces
from ..models.faces.steady import Follower, steadied
from ..models.films import steadied_film
from ..models.graphs import Graphs
from ..models.loading import DEMO, load_mmfs
from ..models.mmfs import MMFS
from ..models.stylegan2 import seeded_noise
from ..models.stylizer import stylizer
from ..train.data import read_whole, to_unit
from .measure import seconds_of
from .mmfs import network

PICTURE = Path(__file__).resolve().parents[1] / "workflows" / "inputs" / "astronaut.png"
HEIGHT, WIDTH = 720, 1280
STEADY = 2.0  # frames that results are smoothed over


def film(path: Path, frames: int) -> Tensor:
    """(frames, 3, HEIGHT, WIDTH) in [-1, 1]: a camera that moves over a picture."""
    picture, out = to_unit(read_whole(path))[None], torch.empty(frames, 3, HEIGHT, WIDTH)
    large = F.interpolate(picture, (HEIGHT, HEIGHT), mode="bicubic").clamp(-1, 1)
    canvas = F.pad(large, ((WIDTH - HEIGHT) // 2, (WIDTH - HEIGHT) // 2, 0, 0), mode="reflect")
    for k in range(frames):
        turn = 6.28 * k / 48
        move = torch.tensor([[0.95, 0, 0.05 * turn % 0.2], [0, 0.95, 0.02 * turn % 0.1]])
        grid = F.affine_grid(move[None], [1, 3, HEIGHT, WIDTH], align_corners=False)
        out[k] = F.grid_sample(canvas, grid, mode="bilinear", padding_mode="reflection", align_corners=False)[0]
    return out


class Stylizing:
    """Batches of pictures (B, 3, H, W) to stylized ones, all with the same style and noise, as a graph on a GPU."""

    def __init__(self, net: MMFS, height: int, width: int, batch: int, device: torch.device) -> None:
        self.work, self.graphs = stylizer(net), Graphs()
        with torch.no_grad():
            self.w = net.styles(torch.randn(1, net.config.w_dim, device=device)).expand(batch, -1, -1).contiguous()
        self.noise = seeded_noise(net.noise_shapes(height, width), 0, [0], device)

    def __call__(self, pictures: Tensor) -> Tensor:
        return self.graphs("", lambda *given: (self.work(*given),), pictures, self.w, *self.noise)[0].clone()


def measured(net: MMFS, faces: FaceNetworks, frames: Tensor, batch: int) -> dict[str, float]:
    """Seconds a frame of every part, after a first call; of the search, of cutting out and putting back and of
    steadying those of up to 8 frames."""
    device, px, found = faces.device, net.config.resolution, {}
    settings, few = FaceSettings(settled=True), frames[:8]

    def each(pictures: Tensor, work: Callable[[int, Tensor], object]) -> float:
        work(0, pictures[0].to(device))
        return seconds_of(lambda: [work(k, picture.to(device)) for k, picture in enumerate(pictures)],
                          device) / len(pictures)
    found["search every frame"] = each(few, lambda _, picture: find_faces(faces, picture, settings))
    follower = Follower(faces, settings, lambda known: known[0] if known else None)
    follower(few[0])
    found["follow"] = each(frames, lambda _, picture: follower(picture))
    squares = steadied([squares_found(follower(picture)) for picture in few], Choice(), 3.0)
    found["cut out"] = each(few, lambda k, picture: cut_out(picture, 0, squares[k], px))
    crops = [cut_out(picture.to(device), 0, squares[k], px)[0] for k, picture in enumerate(few)]
    stylize = Stylizing(net, px, px, batch, device)
    inputs = torch.stack([crops[k % len(crops)].crop for k in range(batch)]).to(device)
    warm, runs = (2, 10) if device.type == "cuda" else (1, 1)  # the second call captures a graph
    for _ in range(warm):
        results = stylize(inputs)
    found["stylize crops"] = seconds_of(lambda: [stylize(inputs) for _ in range(runs)], device) / (runs * batch)
    found["put back"] = each(few, lambda k, picture: put_back(
        picture, [(crops[k], results[k % batch], None)]).cpu())
    found[f"steady crops over {STEADY:g}"] = steadying(crops[k].crop.to(device) for k in range(len(few)))
    padded = [-(-side // net.config.stride) * net.config.stride for side in (HEIGHT, WIDTH)]
    whole = Stylizing(net, padded[0], padded[1], 1, device)
    picture = F.pad(few[:1], (0, padded[1] - WIDTH, 0, padded[0] - HEIGHT), mode="reflect").to(device)
    for _ in range(warm if device.type == "cuda" else 0):
        whole(picture)
    found["whole frames of 1280 x 720"] = seconds_of(lambda: [whole(picture).cpu() for _ in range(runs)], device) / runs
    found[f"steady whole frames over {STEADY:g}"] = steadying(picture.to(device) for picture in few)
    return found


def steadying(frames: Iterable[Tensor]) -> float:
    """Seconds a frame (3, H, W) of `steadied_film`, after a first film of two frames."""
    film = [{0: (frame, -frame)} for frame in frames]
    list(steadied_film(film[:2], STEADY))
    return seconds_of(lambda: list(steadied_film(film, STEADY)), film[0][0][0].device) / len(film)


def table(found: dict[str, float]) -> str:
    """Markdown: milliseconds a frame, and frames per second of the chains."""
    lines = ["| part | ms a frame |", "|---|---|"]
    lines += [f"| {name} | {1000 * value:.1f} |" for name, value in found.items()]
    chain = sum(found[name] for name in ("cut out", "stylize crops", "put back"))
    rates = {"followed face": chain + found["follow"], "searched face": chain + found["search every frame"],
             "whole frames": found["whole frames of 1280 x 720"]}
    rates["followed face, steady"] = rates["followed face"] + found[f"steady crops over {STEADY:g}"]
    rates["whole frames, steady"] = rates["whole frames"] + found[f"steady whole frames over {STEADY:g}"]
    return "\n".join([*lines, "", *(f"{name}: {1 / value:.2f} frames per second" for name, value in rates.items())])


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--px", type=int, default=512, choices=(128, 512))
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--frames", type=int, default=48)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--picture", type=Path, default=PICTURE, help="with a face; enlarged to 720 px (%(default)s)")
    p.add_argument("--out", type=Path, help="also writes the seconds as JSON")
    options = p.parse_args()
    device = torch.device(options.device)
    net = network(device) if options.px == 512 else load_mmfs(DEMO / "mmfs.safetensors")[0].to(device)
    found = measured(net, load_faces().to(device), film(options.picture, options.frames), options.batch)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{options.px} px, {where}, torch {torch.__version__}, batch {options.batch}\n\n{table(found)}")
    if options.out:
        told = {"px": options.px, "device": where, "torch": torch.__version__, "batch": options.batch}
        options.out.write_text(json.dumps(told | {"seconds": found}, indent=1), encoding="utf-8")
    return 0
