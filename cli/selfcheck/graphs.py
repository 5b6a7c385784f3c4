"""What the self-check gives a ComfyUI to do: tiny models of its own, pictures, and graphs in API format."""
from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from ..client import Graph
from ..server import ROOT
from . import hostile_pickles, whole_files

TINY, HALF = "tiny.safetensors", "half.safetensors"  # whole models, cut-off ones
FOLDERS = {"diffae": "diffae", "clip": "open_clip", "stylegan2": "stylegan2", "mmfs": "mmfs"}  # kind: folder of models
TUNE, SAVE, SHOWN = "7", "8", "9"  # ids of the nodes that train, save the result, show it
ITERATIONS = 6
OSASIS_ITERATIONS, OSASIS_STEPS = 2, 3  # optimiser steps an iteration: 10 reverse steps at t0 0.3
PHOTOS = ("photo_1.png", "photo_2.png")
FILM, FILM_FRAMES = "film.tiff", 2
FACE = ROOT / "workflows" / "inputs" / "face_2.png"
FRAME_PX, MOVES = 128, 32  # side of a film's frames; places of the face each way
OSASIS_OPTIONS = {"preset": "as set below", "cross_weight": 1.0, "in_domain_weight": 0.5, "clip_weight": 30.0,
                  "l1_weight": 10.0, "perceptual_weight": 10.0, "style_spn_weight": 1.0, "spn_time": "index",
                  "forward_steps": 10, "reverse_steps": 10, "latent_steps": 10, "generate_steps": 10, "t0": 0.3,
                  "cached_content": 1, "noise_level": "official", "clamp": "hard", "clip_preprocessing": "osasis",
                  "dropout": True, "micro_batch": 0, "precision": "float16"}


def node(kind: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


# --- files ------------------------------------------------------------------------------------------------------------
def write_files(base: Path, folder: Path, canary: Path) -> None:
    """Tiny models, pictures and hostile files into a ComfyUI's base folder. canary: what the hostile ones create if
    they are run."""
    folder.mkdir()
    for whole in whole_files.write_all(folder):
        if whole.kind in FOLDERS and whole.form == "safetensors":
            home = base / "models" / FOLDERS[whole.kind]
            home.mkdir(parents=True, exist_ok=True)
            shutil.copy(whole.path, home / TINY)
            (home / HALF).write_bytes(whole.path.read_bytes()[:-1000])
    for k, code in enumerate(hostile_pickles.CODE.values()):
        (base / "models" / "mmfs" / f"hostile {k}.pt").write_bytes(hostile_pickles.plain(code(canary)))
        hostile_pickles.as_zip(base / "models" / "stylegan2" / f"hostile {k}.pt", code(canary))
    (base / "input").mkdir()
    for k, name in enumerate(PHOTOS):
        spots(k).save(base / "input" / name)
    write_film(base / "input" / FILM, range(FILM_FRAMES))


def spots(seed: int) -> Image.Image:
    """A picture of soft spots."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC)


def write_film(path: Path, numbers: range) -> None:
    """Frames of a face that moves: each number (below MOVES squared) is another picture."""
    with Image.open(FACE) as face:
        whole = face.convert("RGB").resize((FRAME_PX + MOVES, FRAME_PX + MOVES), Image.Resampling.LANCZOS)
    frames = [whole.crop((n % MOVES, n // MOVES, n % MOVES + FRAME_PX, n // MOVES + FRAME_PX)) for n in numbers]
    frames[0].save(path, save_all=True, append_images=frames[1:])


# --- graphs -----------------------------------------------------------------------------------------------------------
def session(name: str, **inputs: object) -> dict[str, object]:
    return {"batch": 1, "seed": 5, "name": name, "save_every": 1, "resume": True, **inputs}


def mmfs(name: str) -> Graph:
    """A fine-tune of MMFS to a text, and its style saved, both called `name`."""
    return {"1": node("AtelierLoadMMFS", model=TINY),
            "2": node("AtelierLoadCLIP", model=TINY, activation="auto"),
            "3": node("AtelierLoadStructureNet", model="demo"),
            "4": node("AtelierLoadStyleGAN2", model=TINY),
            TUNE: node("AtelierMMFSFineTuneText", mmfs=["1", 0], clip=["2", 0], structure_net=["3", 0],
                       stylegan2=["4", 0], prompt="cartoon", iterations=ITERATIONS, photos_folder="none", lr=1e-3,
                       **session(name)),
            SAVE: node("AtelierSaveMMFSStyle", style=[TUNE, 0], name=name, overwrite=False)}


def stage1(name: str) -> Graph:
    return {"4": node("AtelierLoadStyleGAN2", model=TINY),
            TUNE: node("AtelierMMFSTrainStage1", stylegan2=["4", 0], steps=ITERATIONS, preview_every=2, lr=1e-3,
                       precision="float32", **session(name)),
            SAVE: node("AtelierSaveMMFS", mmfs=[TUNE, 0], name=name, discriminator=False, overwrite=False)}


def osasis(name: str) -> Graph:
    return {"1": node("AtelierLoadDiffAE", model=TINY),
            "2": node("AtelierLoadCLIP", model=TINY, activation="auto"),
            "3": node("AtelierLoadPerceptual", model="encoder of the DiffAE", diffae=["1", 0]),
            "4": node("LoadImage", image=PHOTOS[0]), "5": node("LoadImage", image=PHOTOS[1]),
            "6": node("AtelierOSASISFineTuneOptions", **OSASIS_OPTIONS),
            TUNE: node("AtelierOSASISFineTune", diffae=["1", 0], clip=["2", 0], perceptual=["3", 0], twin=["4", 0],
                       style_image=["5", 0], iterations=OSASIS_ITERATIONS, lr=1e-4, lr_spn=1e-4, spn="timed",
                       spn_weight=0.1, options=["6", 0], **session(name)),
            SAVE: node("AtelierSaveOSASISStyle", style=[TUNE, 0], name=name, overwrite=False)}


def stylized(photo: str, seed: int, noise_seed: int = 0, count: int = 1, **inputs: object) -> Graph:
    """Pictures in a random style of MMFS. noise_seed: changes nothing, but ComfyUI runs the graph anew."""
    settings = {"strength": 1.0, "noise": "zero", "noise_seed": noise_seed, "fit": "crop", "max_side": 0, "batch": 8}
    return {"1": node("AtelierLoadMMFS", model=TINY), "2": node("LoadImage", image=photo),
            "3": node("AtelierMMFSRandomStyle", mmfs=["1", 0], seed=seed, count=count, mix_seed=1, mix_from=0,
                      truncation=1.0),
            "4": node("AtelierMMFSStylize", mmfs=["1", 0], image=["2", 0], w_plus=["3", 0], **settings | inputs),
            SHOWN: node("PreviewImage", images=["4", 0])}


def film(photo: str, seed: int, noise_seed: int = 0, box: str = "") -> Graph:
    """The faces of a film's frames, stylized and put back. box: where they are; "": they are found."""
    graph = dict(stylized(photo, seed, noise_seed))
    graph["4"] = node("AtelierMMFSStylize", **graph["4"]["inputs"] | {"image": ["5", 0]})
    graph["5"] = node("AtelierAlignFaces", image=["2", 0], size=64, align=True, faces="largest",
                      index=noise_seed % 256, any_direction=False, threshold=0.5, pad=True, fallback=True,
                      five_points="", box=box, box_kind="crop")  # index: as noise_seed
    graph["6"] = node("AtelierPasteFaces", image=["2", 0], results=["4", 0], face_crop=["5", 1], feather=0.1,
                      area="square", match_colour="none", upscale=1.0)
    graph[SHOWN] = node("PreviewImage", images=["6", 0])
    return graph


def changed(graph: Graph, where: str, **inputs: object) -> dict[str, Any]:
    """A graph with other inputs in one node."""
    return dict(graph) | {where: {**graph[where], "inputs": {**graph[where]["inputs"], **inputs}}}


# --- bad graphs -------------------------------------------------------------------------------------------------------
def bad(what: str, rolls: Random, number: int) -> Graph:
    """A graph that must be refused; every number is another one."""
    good = stylized(PHOTOS[0], rolls.randrange(1000), number)
    if what in VALUES:
        where, values = VALUES[what]
        return changed(good, where, **{name: rolls.choice(choices) for name, choices in values.items()})
    text = {key: value for key, value in good.items() if key not in ("2", "3")}
    if what == "a prompt":
        text["2"] = node("LoadImage", image=PHOTOS[0])
        text["10"] = node("AtelierLoadCLIP", model=TINY, activation="auto")
        text["3"] = node("AtelierMMFSStyleFromText", mmfs=["1", 0], clip=["10", 0], prompt=rolls.choice(PROMPTS),
                         gap=0.0)
        return text
    if what == "a file's name":
        return changed(mmfs("x"), TUNE, name=rolls.choice(NAMES))
    if what == "a missing node":
        return text
    if what == "an unknown node":
        return {**good, "4": node("AtelierNothing", **good["4"]["inputs"])}
    if what == "a circle":
        return changed(good, "4", image=["4", 0])
    return {key: value for key, value in good.items() if key != SHOWN}  # "no output"


NAMES = ("../up", "/etc/passwd", "..\\up", "CON", "a/b", "", "a\0b", "x" * 300, "$(touch x)", "~root", "a\nb", ".")
PROMPTS = ("", " ", "__import__('os').system('touch x')", "zzz", "cartoon " * 200, "\0", "\u202e\U0001f600", "{{7*7}}")
OUTSIDE = ("../../around/kept.safetensors", "/etc/passwd", "..\\..\\around\\kept.safetensors", "\0", "x" * 5000, "",
           "tiny.safetensors\0.pt", ".", "http://127.0.0.1:1/x.pt")
VALUES: dict[str, tuple[str, dict[str, tuple]]] = {  # what: (node, {input: values})
    "a number": ("4", {"strength": (float("nan"), float("inf"), -1, 1e300, "x", None, [], {}, 10 ** 400),
                       "batch": (0, -1, 2 ** 63, 10 ** 40, 0.5, "8 pictures")}),
    "a choice": ("4", {"noise": ("", "none", 0, None, "seeded; rm -rf", "x" * 5000),
                       "fit": ("Crop", "\0", "../crop", -1, "")}),
    "a count": ("3", {"count": (0, -5, 10 ** 9, 257, "many"), "seed": (-1, 2 ** 70, "a", 1e400)}),
    "a link": ("4", {"image": (["1", 0], ["3", 0], ["2", 1], ["2", 7], ["99", 0], ["2"], [], "photo", [["2", 0]])}),
    "a model's name": ("1", {"model": OUTSIDE}),
    "a picture's name": ("2", {"image": OUTSIDE}),
    "a hostile file": ("1", {"model": tuple(f"hostile {k}.pt" for k in range(len(hostile_pickles.CODE)))}),
    "a cut-off file": ("1", {"model": (HALF,)}),
}
BAD = (*VALUES, "a prompt", "a file's name", "a missing node", "an unknown node", "a circle", "no output")
