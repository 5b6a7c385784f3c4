"""Small StyleGAN2, MMFS and DINO networks, and official-looking files of them, for the tests."""

import argparse
from collections import OrderedDict

import torch

from oneshot_atelier.models.checkpoints.formats import mmfs as official
from oneshot_atelier.models.checkpoints.formats import names, nvidia, rosinality
from oneshot_atelier.models.features.dino import Dino, DinoConfig
from oneshot_atelier.models.mmfs import MMFS, MapperConfig, MMFSConfig
from oneshot_atelier.models.style import MMFSStyle
from oneshot_atelier.models.stylegan2 import Discriminator, StyleGAN2, StyleGAN2Config
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import nvidia_files

SG2 = StyleGAN2Config((12, 10, 8, 6), w_dim=16, mapping_layers=3)
MAPPER = MapperConfig(layers=2, hidden=24)
MMFS_CONFIG = MMFSConfig((6, 8, 10), (10, 8, 6), w_dim=16, mapping_layers=3, mapper=MAPPER)
DINO = DinoConfig(image_size=32, patch=8, width=64, layers=2, heads=1)


def random_numbers(net, seed=0):
    """`net` with normals everywhere, buffers included, frozen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator))
    return net.eval().requires_grad_(False)


def generator(seed=0, config=SG2):
    return random_numbers(StyleGAN2(config), seed)


def discriminator(seed=1, config=SG2):
    return random_numbers(Discriminator(config), seed)


def mmfs(seed=2, mapper=MAPPER):
    return random_numbers(MMFS(MMFSConfig((6, 8, 10), (10, 8, 6), 16, 3, mapper)), seed)


def style(net, picture_px=32):
    decoder = {name: value + 0.1 for name, value in net.decoder.state_dict().items()}
    config = net.config
    return MMFSStyle(config, decoder, torch.randn(1, config.n_styles, config.w_dim),
                     torch.zeros(3, picture_px, picture_px, dtype=torch.uint8), "pop art", "abc", {"seed": 1})


def dino_state():
    return random_numbers(Dino(DINO).net).state_dict()


# --- official-looking contents -----------------------------------------------------------------------------------
def _blocks(net):
    return len(net.config.channels)


def rosinality_state(net):
    """A generator's or discriminator's tensors under rosinality's names, the constant kernels with them."""
    if isinstance(net, Discriminator):
        rows = rosinality.discriminator_rows(_blocks(net) - 1)
        kernels = {f"convs.{k}.{place}.0.kernel": nvidia_files.kernel() for k in range(1, _blocks(net))
                   for place in ("conv2", "skip")}
    else:
        rows = rosinality.generator_rows(_blocks(net), net.config.mapping_layers)
        kernels = {f"convs.{2 * k}.conv.blur.kernel": nvidia_files.kernel() * 4 for k in range(_blocks(net) - 1)}
        kernels |= {f"to_rgbs.{k}.upsample.kernel": nvidia_files.kernel() * 4 for k in range(_blocks(net) - 1)}
    return OrderedDict(names.from_ours(net.state_dict(), rows) | kernels)


def rosinality_root(g=None, d=None):
    """The trainer's file: `latent_avg` beside the averaged generator, a decoy `g`, optimisers, its command line."""
    state = rosinality_state(g or generator())
    mean = state.pop("latent_avg")
    return {"g": {key: value + 1 for key, value in state.items()}, "d": rosinality_state(d or discriminator()),
            "g_ema": state, "latent_avg": mean, "g_optim": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 1}]},
            "d_optim": {"state": {}}, "args": argparse.Namespace(size=32, path="x.lmdb"), "ada_aug_p": 0.0}


def nvidia_state(net):
    if isinstance(net, Discriminator):
        state = names.from_ours(net.state_dict(), nvidia.discriminator_rows(_blocks(net) - 1))
        homes = ("b8.conv1", "b8.skip", "b4.conv")
    else:
        state = names.from_ours(net.state_dict(), nvidia.generator_rows(_blocks(net), net.config.mapping_layers))
        homes = ("synthesis.b8", "synthesis.b8.conv0", "synthesis.b4.conv1")
    return state | {f"{home}.resample_filter": nvidia_files.kernel() for home in homes}


def mmfs_root(net=None, d=None):
    """The trainer's file. `G_model` is a decoy."""
    net = net or mmfs()
    config = net.config
    layers = config.mapper.layers if config.mapper else 0
    state = names.from_ours(net.state_dict(), official.rows(len(config.decoder) - 1, config.mapping_layers, layers))
    state |= {"encoder.1.conv2.0.kernel": nvidia_files.kernel(), "to_rgb1.upsample.kernel": nvidia_files.kernel() * 4}
    root = {"G_model": {key: value + 1 for key, value in state.items()}, "G_ema_model": OrderedDict(state),
            "optimizer_0": {"state": {}}, "scheduler_0": {"last_epoch": 1}, "epoch": 3, "total_iters": 10_000,
            "metric": 0.0}
    return root | ({"D_model": rosinality_state(d)} if d else {})


def write_all(folder):
    """One official-looking file of every sort; {name: (kind, path)}."""
    found = {"550000.pt": "stylegan2", "old.pt": "stylegan2", "ffhq.pkl": "stylegan2", "phase2.pth": "mmfs",
             "phase3.pth": "mmfs", "dino.pth": "dino"}
    golden.save_torch(folder / "550000.pt", rosinality_root())
    golden.save_torch(folder / "old.pt", rosinality_root(), zip_container=False)
    nvidia_files.write(folder / "ffhq.pkl", nvidia_state(generator()), nvidia_state(discriminator()))
    golden.save_torch(folder / "phase2.pth", mmfs_root(mmfs(mapper=None), discriminator()))
    golden.save_torch(folder / "phase3.pth", mmfs_root())
    golden.save_torch(folder / "dino.pth", dino_state())
    return {name: (kind, folder / name) for name, kind in found.items()}
