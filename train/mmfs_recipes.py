"""MMFS trained from folders of pictures, as the command line does it: prior, Stage I, Stage II, CLIP mapping.

Each recipe reads what the last one wrote and writes OUT (16 bit, the averaged generator with its discriminator) with
OUT.snapshot beside it, from which it goes on.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models import loading
from ..models.clip import Clip
from ..models.mmfs import MMFS, MapperConfig, from_stylegan2, with_mapper
from ..models.stylegan2 import Discriminator, StyleGAN2, StyleGAN2Config, channel_table, mean_style
from . import gan, mmfs
from .data import read_pictures, to_unit
from .gan import GanConfig, Stage
from .loop import seeded
from .metrics import frechet_distance
from .recipes import Folders
from .session import hash_of_network
from .stages import carry_out, reporter
from .stream import Stream, hash_of_files
from .team import SOLO, Team

SMALL_MAPPER = MapperConfig(layers=4, hidden=384)
MEASURED_STYLES = 8


@dataclass(frozen=True)
class Work:
    """How a recipe is carried out. out: file to write. look_every: steps between sample grids and measurements."""
    out: Path
    device: torch.device
    team: Team = SOLO
    save_every: int = 1000
    log_every: int = 100
    look_every: int = 1000
    minutes: float = 0.0
    resume: bool = True

    @property
    def saved(self) -> Path:
        return self.out.with_suffix(".snapshot")

    @property
    def folder(self) -> Path:
        return self.out.with_name(self.out.stem + "_log")

    def carry_out(self, stage: Stage, about: Mapping[str, nn.Module | Sequence[Path]],
                  measure: Callable[[], dict[str, float]] | None = None) -> Stage:
        """Train. about: the networks and pictures that decide the result; a snapshot made with others is refused."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {name: hash_of_network(x) if isinstance(x, nn.Module) else hash_of_files(x)
                    for name, x in about.items()}
        tell = reporter(self.out.stem, stage, self.folder, self.look_every, measure) if self.team.leads else None
        carry_out(stage, settings, self.saved, self.device, resume=self.resume, save_every=self.save_every,
                  log_every=self.log_every, minutes=self.minutes, team=self.team, callback=tell)
        return stage


def small_stylegan2(px: int = 128) -> StyleGAN2Config:
    """The demo prior: at most 160 wide, styles as wide as the demo CLIP's embeddings (128)."""
    return StyleGAN2Config(channel_table(px, 8192, 160), style=128)


def prior(folders: Folders, config: GanConfig, work: Work, px: int = 128, source: Path | None = None) -> StyleGAN2:
    """Train a StyleGAN2 on photos, from scratch or from the one of `source`."""
    shape = small_stylegan2(px)
    if source is None:
        with seeded(config.seed, torch.device("cpu")):
            g, d = StyleGAN2(shape).to(work.device), Discriminator(shape).to(work.device)
    else:
        g, d = discriminated(loading.load_stylegan2(source), source, work.device)
        shape, px = g.config, g.config.resolution
        d.requires_grad_(True)
    with stream(folders.photo_paths()[0], px, config, work, shape.group) as photos:
        about = {"model": g, "discriminator": d, "faces": photos.paths}
        stage = work.carry_out(gan.prior(g, d, photos, config, work.team), about)
    drawn = stage.run.averages["g"]
    drawn.w_avg.copy_(mean_style(drawn.mapping))
    if work.team.leads:
        loading.save_stylegan2(work.out, drawn, d, {"steps": stage.run.step, "samples": stage.run.step * config.batch})
    return drawn


def stage1(source: Path, folders: Folders, config: GanConfig, work: Work) -> MMFS:
    """Stage I on the StyleGAN2 of `source`."""
    teacher, critic = discriminated(loading.load_stylegan2(source), source, work.device)
    with seeded(config.seed, torch.device("cpu")):
        net = from_stylegan2(teacher).to(work.device)
    stage = work.carry_out(mmfs.stage1(net, teacher, critic, held_photos(folders, net), config, work.team),
                           {"model": teacher, "discriminator": critic})
    return finished(stage, critic, 1, work)


def stage2(source: Path | None, folders: Folders, config: GanConfig, work: Work, structure: nn.Module, judge: Clip,
           prior_file: Path) -> MMFS:
    """Stage II from the Stage I model `source`; with None from scratch (the paper's comparison, Fig. 6)."""
    _, critic = discriminated(loading.load_stylegan2(prior_file), prior_file, work.device)
    if source is not None:
        net = loading.load_mmfs(source)[0].to(work.device)
    else:
        with seeded(config.seed, torch.device("cpu")):
            teacher = StyleGAN2(critic.config)
            net, critic = from_stylegan2(teacher).to(work.device), Discriminator(critic.config).to(work.device)
    mmfs.check_sizes(net, critic)
    critic.requires_grad_(True)
    px, shown = net.config.resolution, held_photos(folders, net, 16)
    art = folders.art_paths()
    with (stream(folders.photo_paths()[0], px, config, work, critic.config.group) as photos,
          stream(art[0], px, replace(config, seed=config.seed + 7), work, critic.config.group, even=True) as drawings):
        stage = mmfs.stage2(net, critic, structure.to(work.device), photos, drawings, shown, config, work.team)
        measure = art_distance(stage, judge.to(work.device), shown, art[0], px)
        about = {"model": net, "discriminator": critic, "structure_network": structure, "faces": photos.paths,
                 "art": drawings.paths}
        return finished(work.carry_out(stage, about, measure), critic, 2, work)


def mapping(source: Path, folders: Folders, config: GanConfig, work: Work, clip: Clip,
            mapper: MapperConfig = SMALL_MAPPER) -> MMFS:
    """The CLIP mapping of the Stage II model `source`; one that it has already is trained on."""
    net, critic = discriminated(loading.load_mmfs(source), source, work.device)
    if net.mapper is None:
        with seeded(config.seed, torch.device("cpu")):
            net = with_mapper(net, mapper).to(work.device)
    px = net.config.resolution
    with stream(folders.photo_paths()[0], px, config, work, 1) as photos:
        shown = held_photos(folders, net)
        about = {"model": net, "discriminator": critic, "clip_network": clip, "faces": photos.paths}
        stage = work.carry_out(mmfs.mapping(net, clip.to(work.device), critic, photos, shown, config, work.team), about)
    return finished(stage, critic, 3, work)


def discriminated(loaded: tuple[nn.Module, Discriminator | None], path: Path, device: torch.device):
    """(net, discriminator) on the device. ValueError if the file holds none: training needs it."""
    net, d = loaded
    if d is None:
        raise ValueError(f"{path.name} holds no discriminator, which this training needs; take the full checkpoint")
    return net.to(device), d.to(device)


def stream(paths: list[Path], px: int, config: GanConfig, work: Work, group: int, even: bool = False) -> Stream:
    """Pictures of a step; with `even`, every folder is drawn as often as any other."""
    count = {folder: sum(p.parent == folder for p in paths) for folder in {p.parent for p in paths}}
    weights = [1 / count[p.parent] for p in paths] if even else None
    return Stream(paths, px, config.batch, config.seed, weights=weights, rows=work.team.rows(config.batch, group),
                  flip=config.flip, device=work.device)


def held_photos(folders: Folders, net: MMFS, count: int = 4) -> Tensor:
    """Photos that no training sees (or, with nothing held out, the first ones), (n, 3, px, px)."""
    paths = folders.photo_paths()[1] or folders.photo_paths()[0]
    return to_unit(read_pictures(paths[:count], net.config.resolution))


def art_distance(stage: Stage, judge: Clip, photos: Tensor, art: list[Path], px: int) -> Callable[[], dict[str, float]]:
    """FID-like: Frechet distance of CLIP embeddings of stylized held-out photos to those of the art, which is read when
    it is first asked for."""
    device = gan.device_of(judge)

    @functools.cache
    def wanted() -> Tensor:
        return torch.cat([judge.embed(to_unit(read_pictures(art[i:i + 64], px)).to(device), "proper")
                          for i in range(0, len(art), 64)])

    @torch.no_grad()
    def measure() -> dict[str, float]:
        net, parts = stage.run.averages["g"], []
        for s in range(MEASURED_STYLES):
            w = net.styles(gan.seeded_z(len(photos), net, s))
            parts.append(judge.embed(net(photos.to(device), w), "proper"))
        return {"art_distance": float(frechet_distance(torch.cat(parts), wanted()))}
    return measure


def finished(stage: Stage, critic: Discriminator, phase: int, work: Work) -> MMFS:
    """Write the averaged model; return it."""
    net = stage.run.averages["g"]
    if work.team.leads:
        meta = {"phase": phase, "steps": stage.run.step, "samples": stage.run.step * stage.config.batch,
                "art_distance": stage.run.history.get("art_distance", []),
                "measured_at": stage.run.history.get("measured_at", [])}
        loading.save_mmfs(work.out, net, critic, meta)
    return net
