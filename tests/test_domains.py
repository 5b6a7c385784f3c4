"""Public files of other domains than faces, narrow but with all their layers: DiffAE's and guided-diffusion's."""

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch

from oneshot_atelier.models import loading, osasis
from oneshot_atelier.models.diffae import CONFIGS, LatentConfig
from oneshot_atelier.models.unet import Attention, UNet, UNetConfig
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import tiny

WIDTH = 32
LSUN = UNetConfig(256, WIDTH, (1, 1, 2, 2, 4, 4), blocks=2, embed=4 * WIDTH, cond=0, out_channels=6, head_channels=64,
                  dropout=0.0, attention_resolutions=(32, 16, 8))  # bedroom, cat, horse, and ImageNet's uncond


def narrow(name):
    config = CONFIGS[name]
    return replace(config, unet=replace(config.unet, base=WIDTH, embed=WIDTH, cond=WIDTH),
                   latent=LatentConfig(WIDTH, 40, config.latent.layers))


def official_name(ours):
    """As DiffAE's program calls a tensor (docs/osasis.md A.7)."""
    name = ours.removeprefix("unet.")
    return name.replace("time_embed.", "time_embed.time_embed.", 1) if name.startswith("time_embed.") else name


def official_file(path, net):
    """Lightning's last.ckpt of `<name>_autoenc_latent`."""
    weights = {official_name(key): value for key, value in net.state_dict().items() if not key.startswith("conds_")}
    weights |= {key.replace("linear_emb", "cond_layers.1"): value for key, value in weights.items()
                if key.startswith("latent_net.layers.") and "linear_emb" in key}
    state = OrderedDict((f"ema_model.{key}", value) for key, value in weights.items())
    state |= {f"model.{key}": value + 1 for key, value in weights.items()}
    state |= {key: getattr(net, key)[None] for key in ("conds_mean", "conds_std")}
    with (golden.passing_class("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint") as callback,
          golden.passing_class("pytorch_lightning.utilities.parsing", "AttributeDict", dict) as parameters):
        return golden.save_torch(path, golden.lightning_wrapper(state, callback, parameters))


@pytest.mark.parametrize(("name", "px", "latent_layers"), [
    ("horse128", 128, 20), ("bedroom128", 128, 20), ("church256", 256, 10), ("celeba64", 64, 10)])
def test_an_official_autoencoder_of_a_domain_loads_from_its_file(tmp_path, name, px, latent_layers):
    config = narrow(name)
    net = tiny.diffae(seed=3, config=config)
    found = loading.load_diffae(official_file(tmp_path / "last.ckpt", net))
    assert found.config == config and found.image_size == px and len(found.latent_net.layers) == latent_layers
    assert tiny.same(found.state_dict(), net.state_dict())


def test_an_lsun_model_of_guided_diffusion_loads_and_makes_a_twin(tmp_path):
    net = tiny.filled(UNet(LSUN), 1).eval()
    path = golden.save_torch(tmp_path / "lsun_bedroom.pt", OrderedDict(net.state_dict()))
    found = loading.load_ddpm(path)
    assert found.config == LSUN and tiny.same(found.state_dict(), net.state_dict())
    heads = [part.heads for part in found.modules() if isinstance(part, Attention)]
    assert heads == [1] * 2 + [2] * 4 + [2] + [2] * 6 + [1] * 3, "64 channels a head at 32, 16 and 8 px, and between"
    style = tiny.pictures(1, px=256)
    with torch.no_grad():
        twins = osasis.photo_twins(found, style, osasis.twin_noise(0, range(1), style.shape[1:]), steps=4)
    assert twins.shape == style.shape and twins.isfinite().all()


def test_the_public_lsun_models_have_their_published_size():
    with torch.device("meta"):
        net = UNet(replace(LSUN, base=256, embed=1024))
    assert sum(p.numel() for p in net.parameters()) == 552_814_086
