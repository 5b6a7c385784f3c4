"""How much stylized films flicker, beside their inputs: films of known motion, made of photos, as a bad camera sees.

    python3 tools/launch.py bench.flicker --photos FOLDER [--count 4] [--frames 24] [--out FILE.json]

A photo's face is filmed by a camera that pans, zooms and turns; every frame has noise and JPEG's errors of its own, so
the detector jitters. The flow is known, and the error is measured where the face's square is in both frames ("all":
in all of the frame). "moved along" is the first result, moved as the camera: what moving and filming alone cost a
picture of that contrast. "smoothed" results know the input's estimated flow alone; "edges" is how strong their edges
are, beside those of the results as they were.
"""
from __future__ import annotations

import argparse
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..evaluate.flicker import warp_error
from ..models.faces.align import centres, shares_of, side_of
from ..models.faces.crops import Choice, cut_out, put_back, squares_found
from ..models.faces.find import FaceSettings, search_faces
from ..models.faces.networks import FaceNetworks, load_faces
from ..models.faces.steady import Frame, steadied
from ..models.films import steadied_film
from ..models.flow import moved
from ..models.loading import DEMO, load_mmfs
from ..models.mmfs import MMFS
from ..models.rng import generator
from ..models.stylegan2 import random_z, seeded_noise
from ..models.stylizer import stylizer
from ..train.data import picture_files, read_whole, to_unit

SIDE = 256  # of the films, in px
STYLE = 14  # the seed of the style
SMOOTHED = (1.0, 2.0)  # frames that results are smoothed over
VARIANTS = {  # name: (frames that the squares are smoothed over, whether the noise is the same in all)
    "each frame on its own": (0.0, False), "same noise": (0.0, True), "steady, noise of their own": (3.0, False),
    "steady, same noise": (3.0, True)}


@dataclass(frozen=True)
class Film:
    """Frames (T, 3, SIDE, SIDE) in [-1, 1]; what they are without noise; and the camera's views (T, 2, 3)."""
    frames: Tensor
    clean: Tensor
    views: Tensor

    def flow(self, k: int) -> Tensor:
        """(SIDE, SIDE, 2), from frame k to the next."""
        one, other = self.views[k], self.views[k + 1]
        p = centres(0, 0, SIDE, SIDE) / SIDE * 2 - 1
        q = (p @ one[:, :2].T + one[:, 2] - other[:, 2]) @ torch.linalg.inv(other[:, :2]).T
        return (q - p) * SIDE / 2


def filmed(photo: Tensor, centre: Tensor, side: float, frames: int, seed: int) -> Film:
    """Of a photo (3, H, W) with a face's square at `centre`, half as wide as the frames."""
    size = torch.tensor([photo.shape[2], photo.shape[1]])
    views, clean = [], []
    for k in range(frames):
        turn = math.radians(5 * math.sin(0.15 * k))
        zoom = side * (1 + 0.15 * math.sin(0.1 * k))  # half of the frame, in pixels of the photo
        rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        middle = centre + side * torch.tensor([0.3 * math.sin(0.12 * k), 0.1 * math.cos(0.2 * k)])
        views.append(torch.cat([zoom * rotation, middle[:, None]], 1))
        view = torch.stack([2 / size[0] * views[-1][0], 2 / size[1] * views[-1][1]])
        view[:, 2] -= 1
        grid = F.affine_grid(view[None], [1, 3, 4 * SIDE, 4 * SIDE], align_corners=False)
        large = F.grid_sample(photo[None], grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        clean.append(F.interpolate(large, (SIDE, SIDE), mode="area")[0])
    noisy = torch.stack([seen_badly(frame, seed, k) for k, frame in enumerate(clean)])
    return Film(noisy, torch.stack(clean), torch.stack(views))


def seen_badly(frame: Tensor, seed: int, k: int, sigma: float = 3.0, quality: int = 60) -> Tensor:
    """A frame with noise of `sigma` grey levels, stored as JPEG."""
    noise = torch.randn(frame.shape, generator=generator(seed, "camera", k)) * sigma
    pixels = ((frame + 1) * 127.5 + noise).clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 127.5 - 1


class Stylizing:
    """The demo MMFS with one style: crops (B, 3, px, px) to stylized ones."""

    def __init__(self, net: MMFS) -> None:
        self.net, self.work = net, stylizer(net)
        with torch.no_grad():
            self.w = net.styles(random_z(1, net.config.w_dim, STYLE))

    def __call__(self, crops: Tensor, same_noise: bool) -> Tensor:
        noise = seeded_noise(self.net.noise_shapes(*crops.shape[2:]), 0, [0] if same_noise else range(len(crops)))
        return self.work(crops, self.w.expand(len(crops), -1, -1), *noise)


def stylized(film: Film, squares: list[Frame], stylize: Stylizing, same_noise: bool, steady: float = 0.0) -> Tensor:
    """The film with its face stylized and put back; frames without a square stay. steady: see `steadied_film`."""
    px = stylize.net.config.resolution
    crops = [cut_out(frame, k, rows, px) for k, (frame, rows) in enumerate(zip(film.frames, squares))]
    results = iter(stylize(torch.stack([crop.crop for row in crops for crop in row]), same_noise))
    made = steadied_film(({crop.index: (crop.crop, next(results)) for crop in row} for row in crops), steady)
    return torch.stack([put_back(frame, [(crop, now[crop.index], None) for crop in row])
                        for frame, row, now in zip(film.frames, crops, made)])


def smoothed(film: Film, results: Tensor, steady: float) -> Tensor:
    """Results of whole frames, steadied."""
    made = steadied_film(({0: piece} for piece in zip(film.frames, results)), steady)
    return torch.stack([frame[0] for frame in made])


def error(pictures: Tensor, film: Film, squares: list[Frame] | None) -> float:
    """Mean over the steps, where the face's square is; without squares, in all of the frame."""
    errors = []
    for k in range(len(pictures) - 1):
        places = centres(0, 0, SIDE, SIDE) + film.flow(k)
        seen = ((places > 0) & (places < SIDE)).all(-1)
        if squares is not None:
            shares = shares_of(centres(0, 0, SIDE, SIDE), squares[k][0][1].quad)
            seen = seen & ((shares > 0.1) & (shares < 0.9)).all(-1)
        errors.append(warp_error(pictures[k], pictures[k + 1], film.flow(k), seen))
    return sum(errors) / len(errors)


def edges(pictures: Tensor, others: Tensor) -> float:
    """Mean slope of pictures (T, 3, H, W), as a share of the others', where the others' edges are: the strongest tenth
    of their slopes."""
    slopes, wanted = (torch.stack(torch.gradient(x.mean(1), dim=(1, 2))).norm(dim=0) for x in (pictures, others))
    strong = wanted >= wanted.flatten(1).quantile(0.9, dim=1)[:, None, None]
    return float(slopes[strong].mean() / wanted[strong].mean())


def moved_along(first: Tensor, film: Film) -> Tensor:
    """A picture of the first frame as the camera would see it in every frame."""
    out = [first]
    for k in range(1, len(film.views)):
        to_first = Film(film.frames, film.clean, torch.stack([film.views[k], film.views[0]])).flow(0)
        out.append(moved(first, to_first))
    return torch.stack(out)


def measured(film: Film, faces: FaceNetworks, stylize: Stylizing) -> dict[str, float]:
    """Errors in grey levels; and the jitter."""
    searches = [squares_found(search_faces(faces, frame, FaceSettings(settled=True))) for frame in film.frames]
    truth = steadied(searches, Choice(), 3.0)
    found = {"input": error(film.frames, film, truth), "input without noise": error(film.clean, film, truth)}
    for name, (sigma, same_noise) in VARIANTS.items():
        made = stylized(film, steadied(searches, Choice(), sigma), stylize, same_noise)
        found[name] = error(made, film, truth)
    for steady in SMOOTHED:
        after = stylized(film, steadied(searches, Choice(), 3.0), stylize, True, steady)
        found[f"steady, same noise, smoothed {steady:g}"] = error(after, film, truth)
        found[f"edges: steady, same noise, smoothed {steady:g}"] = edges(after, made)
    found |= whole_frames(film, truth, stylize)
    found["moved along"] = error(moved_along(made[0], film), film, truth)
    for name, sigma in (("jitter", 0.0), ("jitter, steady", 3.0)):
        found[name] = jitter(film, steadied(searches, Choice(), sigma))
    return found


def whole_frames(film: Film, truth: list[Frame], stylize: Stylizing) -> dict[str, float]:
    """What `measured` tells of frames that are stylized as a whole, all with the same noise."""
    results, found = torch.cat([stylize(frame[None], True) for frame in film.frames]), {}
    found["all: input"] = error(film.frames, film, None)
    for steady in (0.0, *SMOOTHED):
        name, made = f"whole frames, smoothed {steady:g}", smoothed(film, results, steady)
        found[name], found[f"all: {name}"] = error(made, film, truth), error(made, film, None)
        found[f"edges: {name}"] = edges(made, results)
    return found


def jitter(film: Film, squares: list[Frame]) -> float:
    """How far the squares' centres wander on the photo from frame to frame, in px of the frame."""
    places = [view[:, :2] @ (rows[0][1].quad.mean(0) / SIDE * 2 - 1) + view[:, 2]
              for view, rows in zip(film.views, squares)]
    steps = torch.stack(places).diff(dim=0).norm(dim=1)
    return float(steps.mean()) / float(film.views[0][:, :2].norm(dim=0)[0]) * SIDE / 2


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--photos", type=Path, required=True, help="folder of photos with a face each")
    p.add_argument("--count", type=int, default=4, help="photos (%(default)s)")
    p.add_argument("--frames", type=int, default=24)
    p.add_argument("--out", type=Path, help="also writes the figures as JSON")
    options = p.parse_args()
    faces, stylize, rows = load_faces(), Stylizing(load_mmfs(DEMO / "mmfs.safetensors")[0]), {}
    for seed, path in enumerate(picture_files(options.photos)[:options.count]):
        photo = to_unit(read_whole(path))
        quad = search_faces(faces, photo, FaceSettings(settled=True)).faces[0].quad
        rows[path.name] = measured(filmed(photo, quad.mean(0), side_of(quad), options.frames, seed), faces, stylize)
    names = list(next(iter(rows.values())))
    means = {name: sum(row[name] for row in rows.values()) / len(rows) for name in names}
    print(f"{len(rows)} films of {options.frames} frames of {SIDE} px, grey levels of 255 (jitter: px; edges: shares)")
    print()
    print("| what | " + " | ".join([*rows, "mean", "of the input's"]) + " |\n" + "|---" * (len(rows) + 3) + "|")
    for name in names:
        values = [row[name] for row in rows.values()] + [means[name]]
        own = means["all: input" if name.startswith("all: ") else "input"]
        share = "" if name.startswith("edges: ") else f"{means[name] / own:.2f}"
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + f" | {share} |")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0
