"""The trainings of StyleGAN2 and MMFS on tiny networks, and what the command line trains them from."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from torch import Tensor, nn

from oneshot_atelier.models.features.clip import Clip
from oneshot_atelier.models.loading import save_mmfs
from oneshot_atelier.models.mmfs import MMFS, MapperConfig, from_stylegan2
from oneshot_atelier.models.rng import seeded
from oneshot_atelier.tests import golden_cases, mmfs_files, tiny, tiny_mmfs, tiny_models
from oneshot_atelier.train import gan, mmfs
from oneshot_atelier.train.data import to_bytes
from oneshot_atelier.train.distributed import SINGLE_PROCESS, Distributed
from oneshot_atelier.train.gan import GANConfig, TrainingStage
from oneshot_atelier.train.loop import Hooks

PX = tiny_mmfs.PX
CPU = torch.device("cpu")
STAGES = ("stylegan2", "mmfs-stage1", "mmfs-stage2", "mmfs-mapping")
DEFAULTS = {"stylegan2": gan.STYLEGAN2, "mmfs-stage1": mmfs.STAGE1, "mmfs-stage2": mmfs.STAGE2,
            "mmfs-mapping": mmfs.MAPPING}
SMALL = {"steps": 4, "batch": 4, "r1_every": 2, "seed": 5}
CALM = MapperConfig(layers=1, hidden=16, dropout=0.0)


class Keys(nn.Module):
    """A stand-in for DINO: 8 x 8 means, and what a frozen layer makes of them."""

    def __init__(self):
        super().__init__()
        with seeded(0, "weights"):
            self.layer = nn.Linear(3, 6).requires_grad_(False)

    def keys(self, pictures: Tensor) -> Tensor:
        return self.layer(nn.functional.avg_pool2d(pictures, 8).flatten(2).transpose(1, 2)).tanh()


def source(first: int, config: GANConfig, rows: Tensor | None = None, device: torch.device = CPU):
    """Pictures of step k, for the rows of one process."""
    def pictures(k: int) -> Tensor:
        x = tiny.pictures(config.batch, first + k, PX)
        return (x if rows is None else x[rows]).to(device)
    return pictures


def clip() -> Clip:
    with seeded(0, "weights"):
        return tiny_models.shaken(Clip(tiny_models.CLIP), 0).requires_grad_(False).eval()


def settings(name: str, **changes) -> GANConfig:
    return replace(DEFAULTS[name], **SMALL | changes)


def make(name: str, distributed: Distributed = SINGLE_PROCESS, mapper: MapperConfig | None = tiny_mmfs.MAPPER,
         device: torch.device = CPU, **changes) -> SimpleNamespace:
    """A training on the device, and what is in it: `stage`, `config`, `net`, `discriminator`, and `others`, which must
    stay."""
    config, (g, d) = settings(name, **changes), [net.to(device) for net in tiny_mmfs.faces()]
    rows = distributed.rows(config.batch, 1 if name == "mmfs-mapping" else d.config.mbstd_group_size)
    photos, art = (source(first, config, rows, device) for first in (100, 200))
    shown, structure_net, clip_net = tiny.pictures(4, 9, PX), Keys().to(device), clip().to(device)
    if name == "stylegan2":
        stage = gan.stylegan2(g, d, photos, config, distributed)
        return SimpleNamespace(stage=stage, config=config, net=g, discriminator=d, others=[])
    if name == "mmfs-stage1":
        with seeded(1, "weights"):
            net = tiny_models.shaken(from_stylegan2(g.cpu()), 1).to(device)
        g.to(device)
        frozen = [part.requires_grad_(False).eval() for part in (g, d)]
        stage = mmfs.stage1(net, g, d, shown, config, distributed)
        return SimpleNamespace(stage=stage, config=config, net=net, discriminator=d, teacher=g, others=frozen)
    net = tiny_mmfs.mmfs(3, mapper).to(device)
    if name == "mmfs-stage2":
        stage = mmfs.stage2(net, d, structure_net, photos, art, shown, config, distributed)
        return SimpleNamespace(stage=stage, config=config, net=net, discriminator=d, structure_net=structure_net,
                               photos=photos, art=art, others=[structure_net])
    stage = mmfs.mapping(net, clip_net, d.requires_grad_(False).eval(), photos, shown, config, distributed)
    return SimpleNamespace(stage=stage, config=config, net=net, discriminator=d, clip=clip_net, photos=photos,
                           others=[d, clip_net])


def run_steps(stage: TrainingStage, count: int) -> list[dict[str, Tensor]]:
    """Steps 0 .. count - 1 as the loop seeds them, without averages; their losses."""
    found = []
    for k in range(count):
        with seeded(k, "step"):
            found.append(stage.step(k, Hooks()))
    return found


# --- for the command line ----------------------------------------------------------------------------------------
def write_pictures(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, x in enumerate(tiny.pictures(count, seed, PX)):
        Image.fromarray(to_bytes(x).permute(1, 2, 0).numpy()).save(folder / f"{i:02}.png")
    return folder


def write_inputs(folder: Path) -> Path:
    """photos/, art/a/, art/b/, stylegan2, clip and mmfs.safetensors (whose mapper has no dropout), dino.pth."""
    write_pictures(folder / "photos", 12, 1)
    for name, seed in (("a", 2), ("b", 3)):
        write_pictures(folder / "art" / name, 6, seed)
    tiny_models.write(tiny_mmfs.write(folder))
    save_mmfs(folder / "mmfs.safetensors", tiny_mmfs.mmfs(0, CALM), tiny_mmfs.faces()[1], {"phase": 2}, dtype=None)
    save_mmfs(folder / "bare.safetensors", without_mapper(), None, {"phase": 2})
    golden_cases.save_torch(folder / "dino.pth", mmfs_files.dino_state())
    return folder


def without_mapper() -> MMFS:
    return tiny_mmfs.mmfs(0, None)


def arguments(name: str, inputs: Path, out: Path, *further: str) -> list[str]:
    """`atelier train NAME ...` of two steps on the CPU, without sample grids and distances."""
    files = {"stylegan2": {"source": "stylegan2.safetensors"}, "mmfs-stage1": {"source": "stylegan2.safetensors"},
             "mmfs-stage2": {"source": "mmfs.safetensors", "stylegan2": "stylegan2.safetensors", "art": "art",
                             "dino": "dino.pth", "clip": "clip.safetensors"},
             "mmfs-mapping": {"source": "mmfs.safetensors", "clip": "clip.safetensors"}}[name]
    named = [part for option, file in files.items() for part in (f"--{option}", str(inputs / file))]
    return ["train", name, "--photos", str(inputs / "photos"), "--holdout", "4", "--out", str(out), *named,
            "--device", "cpu", "--precision", "float32", "--steps", "2", "--batch", "4", "--log-every", "1",
            "--preview-every", "0", *further]
