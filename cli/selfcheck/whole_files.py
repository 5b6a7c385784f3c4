"""Small checkpoint files of every kind, whole and harmless: what the self-check damages.

The networks are random. The foreign files look like those of the public programs, as far as a reader can see.
"""
from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ...models import loading
from ...models.attributes import CELEBA, AttributeClassifier
from ...models.checkpoints import store
from ...models.checkpoints.formats import mmfs as official_mmfs
from ...models.checkpoints.formats import names, nvidia, rosinality
from ...models.diffae import DiffAE, DiffAEConfig, LatentConfig
from ...models.edit import SemanticDirection
from ...models.features.clip import Clip, ClipConfig
from ...models.mmfs import MMFS, MapperConfig, from_stylegan2
from ...models.rng import seeded
from ...models.spn import SPN, SPNConfig
from ...models.style import MMFSStyle, OSASISStyle, fingerprint
from ...models.stylegan2 import Discriminator, StyleGAN2, StyleGAN2Config
from ...models.unet import UNet, UNetConfig
from ...train.loop import Checkpointing, Run, ema_copy
from ...train.session import Session, check_settings, restored

PX = 32
UNET = UNetConfig(PX, 32, (1, 1), blocks=1, embed=32, cond=32)
DIFFAE = DiffAEConfig(UNET, (1, 1, 1), LatentConfig(32, 32, 3))
DDPM = UNetConfig(PX, 32, (1, 2), blocks=1, embed=64, cond=0, out_channels=6, head_channels=64, dropout=0.0)
WORDS = ("cartoon", "face", "photo", "red")
CLIP = ClipConfig(embed=16, image_size=32, patch=8, vision_width=64, vision_layers=1, context=8,
                  vocabulary=len(WORDS) + 3, text_width=64, text_layers=1, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
                  words=WORDS)
MAPPER = MapperConfig(layers=1, hidden=16)
STYLEGAN2 = StyleGAN2Config((8,) * 5, w_dim=16, mapping_layers=2)
Net = TypeVar("Net", bound=nn.Module)
SETTINGS = {"iterations": 4, "lr": 0.1, "model": "0" * 32}


@dataclass(frozen=True)
class Whole:
    """A harmless file. form: "safetensors", "zip", "legacy" or "pickle"."""
    path: Path
    kind: str
    form: str


def filled(net: Net, seed: int = 0) -> Net:
    """Random weights of ordinary size everywhere, also where the initialisation is zero; frozen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            value = torch.randn(p.shape, generator=generator)
            p.copy_(value * p[0].numel() ** -0.5 if p.dim() > 1 else value * 0.1 + float(name.endswith("weight")))
    return net.eval().requires_grad_(False)


def diffae() -> DiffAE:
    net = filled(DiffAE(DIFFAE))
    net.conds_std.fill_(0.01)
    return net


def clip() -> Clip:
    return filled(Clip(CLIP))


def attributes(attribute_names: tuple[str, ...]) -> AttributeClassifier:
    """A classifier of a row for each name, which differ."""
    rows = torch.arange(1.0, len(attribute_names) + 1)
    width = torch.ones(1, UNET.cond)
    return AttributeClassifier(rows[:, None] * width, rows, torch.zeros_like(width), width, attribute_names)


def tiny_run() -> Run:
    """A run of one small layer, as far as a snapshot is concerned like any other."""
    with seeded(0, "weights"):
        net = nn.Linear(4, 3)
    return Run({"net": net}, {"net": torch.optim.Adam(net.parameters(), 0.1)}, {"net": ema_copy(net)})


def load_snapshot(path: Path) -> None:
    """Resume it, as the training that wrote it would."""
    check_settings(path, SETTINGS)
    restored(tiny_run(), path)


LOADERS: dict[str, Callable[[Path], object]] = {
    "diffae": loading.load_diffae, "ddpm": loading.load_ddpm, "clip": loading.load_clip,
    "stylegan2": loading.load_stylegan2, "mmfs": loading.load_mmfs, "osasis_style": loading.load_style,
    "mmfs_style": loading.load_mmfs_style, "snapshot": load_snapshot, "attributes": loading.load_attributes,
    "direction": loading.load_direction}


def write_all(folder: Path) -> list[Whole]:
    """Every kind in the pack's own form, and those that public programs write in theirs."""
    net, ddpm = diffae(), filled(UNet(DDPM))
    with seeded(0, "weights"):
        g, d = filled(StyleGAN2(STYLEGAN2)), filled(Discriminator(STYLEGAN2))
        base = from_stylegan2(g)
        mmfs = MMFS(replace(base.config, mapper=MAPPER))
        mmfs.load_state_dict(base.state_dict(), strict=False)
    return [*_own(folder, net, ddpm, g, d, filled(mmfs)), *_foreign(folder, net, ddpm, g, d, mmfs)]


def _own(folder: Path, net: DiffAE, ddpm: UNet, g: StyleGAN2, d: Discriminator, mmfs: MMFS) -> list[Whole]:
    clip_net = clip()
    store.save(folder / "diffae.safetensors", net.state_dict(), "diffae", asdict(DIFFAE))
    store.save(folder / "ddpm.safetensors", ddpm.state_dict(), "ddpm", asdict(DDPM))
    store.save(folder / "clip.safetensors", clip_net.net.state_dict(), "clip", asdict(CLIP))
    loading.save_stylegan2(folder / "stylegan2.safetensors", g, d)
    loading.save_mmfs(folder / "mmfs.safetensors", mmfs, d, {"phase": 3})
    picture = torch.zeros(3, PX, PX, dtype=torch.uint8)
    loading.save_style(folder / "osasis_style.safetensors", OSASISStyle(
        UNET, net.unet.state_dict(), filled(SPN(SPNConfig())).state_dict(), torch.zeros(1, UNET.cond), picture,
        fingerprint(net), {"t0": 0.5, "spn_weight": 0.1}))
    loading.save_mmfs_style(folder / "mmfs_style.safetensors", MMFSStyle(
        mmfs.config, mmfs.decoder.state_dict(), torch.zeros(1, mmfs.config.n_styles, mmfs.config.w_dim), picture, "red",
        fingerprint(mmfs), {"seed": 1}))
    loading.save_attributes(folder / "attributes.safetensors", attributes(("smiling", "old")), fingerprint(net), {})
    loading.save_direction(folder / "direction.safetensors",
                           SemanticDirection(torch.ones(2, UNET.cond), ("smiling", "old"), fingerprint(net)))
    run = tiny_run()
    run.nets["net"](torch.ones(2, 4)).sum().backward()
    run.optimizers["net"].step()
    run.step, run.loss_history = 2, {"loss": [1.0, 0.5]}
    Session(run, SETTINGS, Checkpointing(folder / "snapshot.safetensors")).save(run)
    return [Whole(folder / f"{kind}.safetensors", kind, "safetensors") for kind in LOADERS]


def _foreign(folder: Path, net: DiffAE, ddpm: UNet, g: StyleGAN2, d: Discriminator, mmfs: MMFS) -> list[Whole]:
    blocks, layers = len(STYLEGAN2.channels), STYLEGAN2.mapping_layers
    weights = official_names(net)
    statistics = {name: weights.pop(name) for name in ("conds_mean", "conds_std")}
    theirs = names.from_ours(g.state_dict(), rosinality.generator_rows(blocks, layers))
    mean = theirs.pop("latent_avg")
    rosinality_d = names.from_ours(d.state_dict(), rosinality.discriminator_rows(blocks - 1))
    celeba = attributes(CELEBA)
    mmfs_state = names.from_ours(mmfs.state_dict(), official_mmfs.rows(
        len(mmfs.config.decoder) - 1, mmfs.config.mapping_layers, MAPPER.layers))
    contents = {
        "diffae": {"state_dict": {f"ema_model.{name}": value for name, value in weights.items()} | statistics,
                   "global_step": 5},
        "ddpm": dict(ddpm.state_dict()),
        "osasis_style": {"diffae_B": weights, "model_map": dict(filled(SPN(SPNConfig())).state_dict()), "iter": 200},
        "stylegan2": {"g_ema": theirs, "latent_avg": mean, "d": rosinality_d},
        "mmfs": {"G_ema_model": OrderedDict(mmfs_state), "epoch": 3},
        "attributes": {"state_dict": {"ema_classifier.weight": celeba.weight, "ema_classifier.bias": celeba.bias,
                                      "conds_mean": celeba.mean, "conds_std": celeba.std}, "global_step": 5}}
    found = []
    for kind, content in contents.items():
        for form in ("zip", "legacy"):
            path = folder / f"{kind}.{form}.pt"
            torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
            found.append(Whole(path, kind, form))
    path = folder / "stylegan2.pkl"
    path.write_bytes(nvidia_pickle(names.from_ours(g.state_dict(), nvidia.generator_rows(blocks, layers)),
                                   names.from_ours(d.state_dict(), nvidia.discriminator_rows(blocks - 1))))
    return [*found, Whole(path, "stylegan2", "pickle")]


def official_names(net: DiffAE) -> dict[str, Tensor]:
    """A DiffAE's tensors under the names of the official program."""
    def name(ours: str) -> str:
        theirs = ours.removeprefix("unet.")
        return f"time_embed.{theirs}" if theirs.startswith("time_embed.") else theirs
    return {name(ours): value for ours, value in net.state_dict().items()}


# --- NVIDIA's pickles -------------------------------------------------------------------------------------------------
class Named:
    """Pickles as the name of something that need not exist here."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *_: object) -> None:
        raise TypeError("this stands for a name only")


class NamingPickler(pickle._Pickler):
    """Pickler in Python that writes `Named` as a global. Protocol 2: no frames, so that opcodes can be put in."""
    dispatch: ClassVar[dict[type, Callable[..., None]]] = dict(pickle._Pickler.dispatch)
    write: Callable[[bytes], object]  # _Pickler has both
    memoize: Callable[[object], None]

    def save_named(self, value: Named) -> None:
        self.write(f"c{value.module}\n{value.name}\n".encode())
        self.memoize(value)

    dispatch[Named] = save_named


class Module:
    """Pickles as NVIDIA's record of a module, with the program that its own loader would run."""
    REBUILD = Named("torch_utils.persistence", "_reconstruct_persistent_obj")

    def __init__(self, **attributes: object) -> None:
        self.state = {"_parameters": OrderedDict(), "_buffers": OrderedDict(), "_modules": OrderedDict(), **attributes}

    def __reduce__(self) -> tuple[Named, tuple[dict[str, object]]]:
        return self.REBUILD, ({"type": "class", "version": 6, "module_src": "class Module: pass\n",
                               "class_name": "Module", "state": self.state},)

    def at(self, path: list[str]) -> Module:
        home = self
        for name in path:
            home = home.state["_modules"].setdefault(name, Module())
        return home


def module_tree(tensors: dict[str, Tensor]) -> Module:
    root = Module()
    for name, value in tensors.items():
        *path, last = name.split(".")
        root.at(path).state["_parameters"][last] = value
    return root


def nvidia_pickle(generator: dict[str, Tensor], discriminator: dict[str, Tensor]) -> bytes:
    d = module_tree(discriminator)
    d.at(["b4", "mbstd"]).state["group_size"] = 4
    buffer = BytesIO()
    NamingPickler(buffer, 2).dump({"G": None, "D": d, "G_ema": module_tree(generator), "augment_pipe": None})
    return buffer.getvalue()
