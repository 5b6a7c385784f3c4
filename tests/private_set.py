"""A private golden set for the tests: the form of the public one, another salt, other sizes, times, batches and crops.

What is expected is made by our networks, but step by step from the calling conventions, without the functions that the
parity tests use: a number of the public set that stands in a test does not fit here. Tolerances allow for float32.
"""

from __future__ import annotations

import copy
import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.inception import Inception3

from oneshot_atelier.models.checkpoints.formats import diffae as official_diffae
from oneshot_atelier.models.checkpoints.formats import mmfs as official_mmfs
from oneshot_atelier.models.checkpoints.formats import nvidia, rosinality
from oneshot_atelier.models.checkpoints.formats.names import from_ours, to_ours
from oneshot_atelier.models.diffae import DiffAE, DiffAEConfig, LatentConfig
from oneshot_atelier.models.faces import align, detect, find, mesh
from oneshot_atelier.models.faces.networks import load_faces
from oneshot_atelier.models.features.arcface import IRESNET, ArcFace, ArcFaceConfig
from oneshot_atelier.models.features.clip import OPENAI_MEAN, OPENAI_STD, Clip, ClipConfig
from oneshot_atelier.models.features.dino import IMAGENET_MEAN, IMAGENET_STD, Dino, DinoConfig
from oneshot_atelier.models.features.inception import Inception, InceptionConfig
from oneshot_atelier.models.features.lpips import LpipsVGG
from oneshot_atelier.models.mmfs import MMFS, MapperConfig, MMFSConfig
from oneshot_atelier.models.spn import SPN
from oneshot_atelier.models.stylegan2 import Discriminator, StyleGAN2, StyleGAN2Config
from oneshot_atelier.models.unet import UNet, UNetConfig
from oneshot_atelier.tests import golden_cases as golden

SALT = "private-x"
LINEAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).tolist()
CONSTANT = [0.992 ** (t + 1) for t in range(1000)]


class Draft:
    """A case in the making, from the public one of the same name: its JSON and arrays."""

    def __init__(self, name: str, **config: Any):
        self.name, self.arrays = name, {}
        self.data = json.loads((golden.PUBLIC / f"{name}.json").read_text(encoding="utf-8"))
        self.public = copy.deepcopy(self.data["tensors"])
        self.data |= {"salt": SALT, "tensors": {}, "values": {}, "debug": {}}
        self.data["config"] |= config

    def net(self, prefix: str, shapes: Mapping[str, Iterable[int]] | None = None) -> dict[str, Tensor]:
        """The weights of one network, which keeps the keys in `shapes` and takes their sizes; the CRCs are told."""
        row_of = next(net for net in self.data["nets"] if net["prefix"] == prefix)
        source = next(net for net in self.data["nets"] if net["prefix"] == row_of.get("same_as", prefix))
        made: dict[str, np.ndarray] = {}
        kept = []
        for key, shape, dtype, kind, _ in source["tensors"]:
            if shapes is not None and key not in shapes:
                continue
            shape = list(shape if shapes is None else shapes[key])
            alias, _, plain = kind.removeprefix("alias:").rpartition(",")
            made[key] = made[alias] if alias else np.asarray(golden.make_tensor(SALT, prefix + key, shape, plain))
            kept.append([key, shape, dtype, kind, f"{zlib.crc32(made[key].tobytes()):08x}"])
        if row_of is source:
            source["tensors"] = kept
        return {key: torch.from_numpy(value.copy()) for key, value in made.items()}

    def picture(self, name: str, *shape: int) -> Tensor:
        """An input of 8 bit, smooth; in [-1, 1]."""
        seed = zlib.crc32(f"{self.name}{name}".encode())
        coarse = torch.randn(shape[0], 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        x = F.interpolate(coarse, shape[2:], mode="bilinear").mul(60).add(128).clamp(0, 255).to(torch.uint8)
        self.arrays[name] = x
        self.data["tensors"][name] = {"role": "input", "shape": list(shape), "note": "", "encoding": "u8"}
        return x.float() / 127.5 - 1

    def pixels(self, name: str, height: int, width: int) -> Tensor:
        """An input of a file's pixels, uint8 (height, width, 3)."""
        x = ((self.picture(name, 1, 3, height, width)[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
        self.arrays[name] = x.contiguous()
        self.data["tensors"][name] = {"role": "input", "shape": list(x.shape), "note": "", "encoding": "bytes"}
        return self.arrays[name]

    def normals(self, name: str, *shape: int) -> Tensor:
        """An input that the weight rule makes."""
        key = f"input:{self.name}:{name}"
        self.data["tensors"][name] = {"role": "generated", "shape": list(shape), "key": key, "class": "unit"}
        return torch.from_numpy(golden.make_tensor(SALT, key, list(shape), "unit"))

    def given(self, name: str, x: Tensor) -> Tensor:
        self.arrays[name] = x.contiguous()
        self.data["tensors"][name] = {"role": "input", "shape": list(x.shape), "note": ""}
        return x

    def expect(self, outputs: Mapping[str, Tensor], note: str = "", share: float = 1e-4) -> None:
        """Outputs with a tolerance of `share` of their largest entry."""
        for name, x in outputs.items():
            self.arrays[name] = x.detach().contiguous().clone()
            self.data["tensors"][name] = {"role": "output", "shape": list(x.shape), "note": note,
                                          "tol": share * x.abs().max().item()}

    def values(self, tolerance: float = 0.0, **values: Any) -> None:
        for name, value in values.items():
            self.data["values"][name] = {"value": value, "tol": tolerance, "note": ""}

    def write(self, folder: Path) -> None:
        (folder / f"{self.name}.json").write_text(json.dumps(self.data), encoding="utf-8")
        save_file(self.arrays, folder / f"{self.name}.safetensors")


def frozen(net: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
    net.load_state_dict(dict(tensors))
    return net.eval().requires_grad_(False)


def mean_std(x: Tensor) -> list[float]:
    return [x.mean().item(), x.std(unbiased=False).item()]


def at(t: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), t)


# --- diffusion: the steps as the conventions write them ---------------------------------------------------------------
def spaced(count: int, alphas: list[float] = LINEAR) -> list[tuple[int, float]]:
    """(time, alpha-bar) of `count` steps; count divides 1000."""
    return [(i * 1000 // count, alphas[i * 1000 // count]) for i in range(count)]


def predicted(unet: UNet, x: Tensor, t: int, z: Tensor | list[Tensor] | None = None) -> Tensor:
    """What the UNet puts out for x at the integer time t."""
    return unet(x, unet.modulation(at(t, x), z))


def level(table: list[tuple[int, float]], i: int) -> float:
    return 1.0 if i < 0 else 0.0 if i >= len(table) else table[i][1]


def ddim(net: Callable[[Tensor, int], Tensor], x: Tensor, table: list[tuple[int, float]], i: int, to: int,
         clamp: bool = True) -> tuple[Tensor, Tensor]:
    """(x0, next x) of the deterministic step from index i."""
    t, a = table[i]
    x0 = x / math.sqrt(a) - math.sqrt(1 / a - 1) * net(x, t)
    x0 = x0.clamp(-1, 1) if clamp else x0
    e = (x / math.sqrt(a) - x0) / math.sqrt(1 / a - 1)
    return x0, math.sqrt(level(table, to)) * x0 + math.sqrt(1 - level(table, to)) * e


def noised(x: Tensor, noise: Tensor, t: int) -> Tensor:
    return math.sqrt(LINEAR[t]) * x + math.sqrt(1 - LINEAR[t]) * noise


def autoencoder(draft: Draft, config: DiffAEConfig, prefix: str, statistics: bool) -> tuple[DiffAE, dict[str, Tensor]]:
    """A DiffAE of `config` (widths of the latent part may differ from the public case's), and its statistics."""
    ours = DiffAE(config).state_dict()
    rows = next(net for net in draft.data["nets"] if net["prefix"] == prefix)["tensors"]
    names = {key: official_diffae.our_name(key.replace("cond_layers.1", "linear_emb")) for key, *_ in rows}
    state = draft.net(prefix, {key: ours[name].shape for key, name in names.items() if name in ours})
    tensors = {names[key]: value for key, value in state.items()}
    width = config.latent.width
    shapes = {"x_T": (1, 3, 8, 8), "conds_mean": (1, width), "conds_std": (1, width)}
    net = frozen(DiffAE(config), {"conds_mean": torch.zeros(width), "conds_std": torch.ones(width)} | tensors)
    return net, draft.net("", shapes) if statistics else {}


def sample_latent(net: DiffAE, noise: Tensor, steps: int) -> Tensor:
    x, table = noise, spaced(steps, CONSTANT)
    for i in reversed(range(steps)):
        _, x = ddim(lambda u, t: net.latent_net(u, at(t, u)), x, table, i, i - 1, clamp=False)
    return x


def latent_outputs(draft: Draft, net: DiffAE, extra: Mapping[str, Tensor], rows: int) -> Tensor:
    """latent_eps and latent_sample*; returns the denormalised sample."""
    noise = draft.normals("latent_noise", rows, net.config.latent.width)
    c = draft.data["config"]
    x = sample_latent(net, noise, c["T_latent"])
    sample = x * extra["conds_std"] + extra["conds_mean"]
    draft.expect({"latent_eps": net.latent_net(noise, torch.tensor(c["latent_t"]))})
    draft.expect({"latent_sample_normalised": x, "latent_sample": sample}, share=1e-3)
    return sample


def latent_sizes(width: int, hidden: int, layers: int) -> dict[str, Any]:
    return {"num_channels": width, "num_hid_channels": hidden, "num_layers": layers, "time_channels": 64}


def diffae_tiny() -> Draft:
    """Three pictures and times, narrower codes, a shorter latent network, other step counts."""
    times, latent = [612, 5, 333], latent_sizes(40, 56, 4)
    draft = Draft("diffae_tiny", t=times, latent_t=[999, 0, 40, 7], T_encode=8, T_decode=10, T_uncond=5, T_latent=4,
                  embed_channels=40, z_channels=40, latent_net=latent)
    unet = UNetConfig(32, 32, (1, 1, 2, 3, 4), embed=40, cond=40)
    net, extra = autoencoder(draft, DiffAEConfig(unet, (1, 1, 2, 3, 4, 4), LatentConfig(40, 56, 4)), "ema_model.", True)
    picture, noise = draft.picture("img", 3, 3, 32, 32), draft.normals("noise", 3, 3, 32, 32)
    z = net.encoder(picture)
    draft.expect({"z": z})
    for k, t in enumerate(times):
        x = draft.given(f"x_{k}", noised(picture, noise, t))
        draft.expect({f"eps_{k}": predicted(net.unet, x, t, z)})
    x = picture
    for i in range(8):
        _, x = ddim(lambda u, t: predicted(net.unet, u, t, z), x, spaced(8), i, i + 1)
        if i == 2:
            draft.expect({"x_mid": x}, "sample after 3 forward steps", share=1e-3)
    draft.expect({"x_T": x}, share=3e-3)
    for i in reversed(range(10)):
        _, x = ddim(lambda u, t: predicted(net.unet, u, t, z), x, spaced(10), i, i - 1)
    draft.expect({"recon01": (x + 1) / 2}, share=5e-2)  # rounding grows: another memory format moves it by 1e-2
    sample, x = latent_outputs(draft, net, extra, 4), draft.normals("uncond_noise", 2, 3, 32, 32)
    for i in reversed(range(5)):
        _, x = ddim(lambda u, t: predicted(net.unet, u, t, sample[:2]), x, spaced(5), i, i - 1)
    draft.expect({"uncond01": (x + 1) / 2}, share=3e-3)
    table = spaced(8)
    draft.values(timesteps_T4=[0, 250, 500, 750], timesteps_T8=[t for t, _ in table], latent_timesteps_T2=[0, 500])
    draft.values(1e-12, alphas_cumprod_T8=[a for _, a in table], latent_alphas_cumprod_T2=[CONSTANT[0], CONSTANT[500]],
                 alphas_cumprod_prev_T8=[level(table, i - 1) for i in range(8)],
                 alphas_cumprod_next_T8=[level(table, i + 1) for i in range(8)])
    return draft


def diffae_ffhq256() -> Draft:
    """Not the full size: its keys with the widths of a small model, on two pictures."""
    c = {"model_channels": 32, "embed_channels": 24, "z_channels": 24, "latent_net": latent_sizes(24, 32, 3)}
    draft = Draft("diffae_ffhq256", t=77, T_latent=8, latent_t=[3], **c)
    unet = UNetConfig(256, 32, (1, 1, 2, 2, 4, 4), embed=24, cond=24)
    config = DiffAEConfig(unet, (1, 1, 2, 2, 4, 4, 4), LatentConfig(24, 32, 3))
    net, extra = autoencoder(draft, config, "ema_model.", True)
    picture, noise = draft.picture("img", 1, 3, 256, 256), draft.normals("noise", 1, 3, 256, 256)
    x, z = noised(picture, noise, 77), net.encoder(picture)
    eps = predicted(net.unet, x, 77, z)
    draft.expect({"z": z, "x_t_crop": x[:, :, :9, :12], "eps_crop": eps[:, :, :40, :24],
                  "eps_mean16": F.avg_pool2d(eps, 16)})
    draft.values(1e-5, eps_mean=float(eps.mean()), eps_std=float(eps.std(unbiased=False)))
    latent_outputs(draft, net, extra, 1)
    return draft


def osasis_tiny() -> Draft:
    """Three pictures, two style levels, a lower start, the SPN at other times."""
    width, latent = 40, latent_sizes(40, 48, 3)
    draft = Draft("osasis_tiny", style_levels=[0, 1], lambda_map=0.3, t0_ratio=0.4, T_for=10, T_back=20, mix_t=123,
                  embed_channels=width, z_channels=width, latent_net=latent)
    config = DiffAEConfig(UNetConfig(64, 32, (1, 1, 2, 2, 4, 4), embed=width, cond=width), (1, 1, 2, 2, 4, 4, 4),
                          LatentConfig(width, 48, 3))
    a, _ = autoencoder(draft, config, "ema_model.", False)
    b = frozen(UNet(config.unet), {
        official_diffae.our_name(key).removeprefix("unet."): value
        for key, value in draft.net("diffae_B.").items() if not key.startswith(("encoder.", "latent_net."))})
    spn = frozen(SPN(), draft.net("model_map."))
    style, content = draft.picture("style_B", 1, 3, 64, 64), draft.picture("content", 3, 3, 64, 64)
    z_style, z_content = a.encoder(style), a.encoder(content)
    codes = [z_style.expand(3, -1)] * 2 + [z_content] * 5  # six levels and the middle
    x = noised(content, draft.normals("mix_noise", 3, 3, 64, 64), 123)
    draft.expect({"z_style": z_style, "z_content": z_content, "mix_eps": predicted(b, x, 123, codes)})
    draft.expect({f"spn_t{t}": spn(style, t) for t in (3, 7, 11)})
    x = content
    for i in range(4):
        _, x = ddim(lambda u, t: predicted(a.unet, u, t, z_content), x, spaced(10), i, i + 1)
    draft.expect({"x_t0": x}, share=1e-3)
    for i in reversed(range(8)):
        x = x + 0.3 * spn(content, i)
        first = x
        x0, x = ddim(lambda u, t: predicted(b, u, t, codes), x, spaced(20), i, i - 1)
        if i == 7:
            draft.expect({"first_input": first, "first_x0": x0}, share=1e-3)
    draft.expect({"stylised": x}, share=3e-3)
    draft.values(indices_forward=[0, 1, 2, 3], indices_reverse=[7, 6, 5, 4, 3, 2, 1, 0],
                 times_forward=[0, 100, 200, 300], times_reverse=[350, 300, 250, 200, 150, 100, 50, 0])
    return draft


def lpips_of(draft: Draft) -> LpipsVGG:
    tensors = draft.net("lpips.")
    net = LpipsVGG({key.removeprefix("vgg16."): value for key, value in tensors.items() if key.startswith("vgg16.")})
    for i, head in enumerate(net.net.lins):
        head.model[1].weight.copy_(tensors[f"lin{i}.model.1.weight"])
    return net


def turned(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Mean of 1 - cos of the directions a -> b and c -> d."""
    return (1 - F.cosine_similarity(b - a, d - c)).mean()


def gradient_outputs(draft: Draft, keys: Mapping[str, Iterable[str]], nets: Mapping[str, nn.Module]) -> None:
    """Gradients and their norms, as they are at step 0."""
    for name, net in nets.items():
        slopes = {key: p.grad for key, p in net.named_parameters()}
        draft.expect({f"grad_{name}:{key}": slopes[key.replace("time_embed.time_embed", "time_embed")]
                      for key in keys[name]}, "gradient at step 0", share=2e-2)
        norm = torch.cat([slope.flatten().double() for slope in slopes.values()]).norm().item()
        draft.values(5e-3 * norm, **{f"grad_norm_{name}_0": norm})


def osasis_train() -> Draft:
    """One content picture, other weights, rates, factors and step counts."""
    terms = {"cross_dom": 2, "in_dom": 0.25, "recon_clip": 15, "recon_l1": 3, "recon_lpips": 4}
    draft = Draft("osasis_train", lambda_map=0.2, content_stream_map_factor=0.2, style_stream_map_factor=0.7,
                  t0_ratio=0.4, T_for=5, T_back=5, T_latent=4, T_generate=4, batch_size=1, lr_B=2e-4, lr_spn=5e-5,
                  weights=terms, embed_channels=40, z_channels=40, latent_net=latent_sizes(40, 48, 3))
    config = DiffAEConfig(UNetConfig(64, 32, (1, 1, 2, 2, 4, 4), embed=40, cond=40), (1, 1, 2, 2, 4, 4, 4),
                          LatentConfig(40, 48, 3))
    a, extra = autoencoder(draft, config, "ema_model.", True)
    b, spn = copy.deepcopy(a.unet).requires_grad_(), frozen(SPN(), draft.net("model_map.")).requires_grad_()
    clip, lpips = Clip(ClipConfig(32, 48, 12, 64, 3, 20, 49408, 64, 1)), lpips_of(draft)
    frozen(clip.net, draft.net("clip.", {key: value.shape for key, value in clip.net.state_dict().items()}))
    style_a, style_b = draft.picture("style_A", 1, 3, 64, 64), draft.picture("style_B", 1, 3, 64, 64)

    def embed(x: Tensor) -> Tensor:
        return clip.net.encode_image(F.interpolate(x, (48, 48), mode="nearest"))

    def walk(x: Tensor, z: Tensor, steps: int, down: Iterable[int], way: int) -> Tensor:
        for i in down:
            _, x = ddim(lambda u, t: predicted(a.unet, u, t, z), x, spaced(steps), i, i + way)
        return x

    cond = sample_latent(a, draft.normals("latent_noise", 1, 40), 4) * extra["conds_std"] + extra["conds_mean"]
    content = walk(draft.normals("image_noise", 1, 3, 64, 64), cond, 4, (3, 2, 1, 0), -1)
    z_s, z_c = a.encoder(style_a), a.encoder(content)
    xs, xc = walk(style_a, z_s, 5, (0, 1), 1), walk(content, z_c, 5, (0, 1), 1)
    draft.expect({"clip_style_A": embed(style_a), "z_style": z_s})
    draft.expect({"cond": cond, "content": content, "z_content": z_c, "xs_0": xs, "xc_0": xc}, share=1e-2)
    layers = [float(part) for part in lpips.net(style_a, style_b, retPerLayer=True)[1]]
    score = 10 * (style_a - style_b).abs().mean().item() + sum(layers)
    draft.values(1e-4, lpips_AB=sum(layers), lpips_AB_layers=layers, score_AB=score)
    draft.values(indices_forward=[0, 1], indices_reverse=[1, 0])
    e_a, e_b, e_c = embed(style_a), embed(style_b), embed(content)
    adam = [torch.optim.Adam(b.parameters(), 2e-4), torch.optim.Adam(spn.parameters(), 5e-5)]
    for k, i in enumerate((1, 0)):
        xs, xc = xs.detach() + 0.7 * spn(style_a, i), xc.detach() + 0.2 * spn(content, i)
        x0_s, xs = ddim(lambda u, t: predicted(b, u, t, z_s), xs, spaced(5), i, i - 1)
        x0_c, xc = ddim(lambda u, t: predicted(b, u, t, z_c), xc, spaced(5), i, i - 1)
        e_s, e_r = embed(x0_s), embed(x0_c)
        values = {"cross_dom": 2 * turned(e_a, e_b, e_c, e_r), "in_dom": 0.25 * turned(e_a, e_c, e_b, e_r),
                  "recon_clip": 15 * (1 - F.cosine_similarity(e_s, e_b)).mean(),
                  "recon_l1": 3 * (x0_s - style_b).abs().mean(), "recon_lpips": 4 * lpips(x0_s, style_b).mean()}
        total = sum(values.values())
        for optimizer in adam:
            optimizer.zero_grad()
        total.backward()
        if k == 0:
            gradient_outputs(draft, {"B": ["out.2.weight", "time_embed.time_embed.0.bias"],
                                     "SPN": ["out_layer.0.bias"]}, {"B": b, "SPN": spn})
        for optimizer in adam:
            optimizer.step()
        draft.expect({f"x0_style_{k}": x0_s, f"x0_content_{k}": x0_c}, share=2e-2)
        for name, value in {**values, "total": total}.items():
            draft.values(1e-2 * value.item(), **{f"loss_{name}_{k}": value.item()})
    draft.expect({"after_B:out.2.bias": b.out[2].bias, "after_SPN:out_layer.0.weight": spn.out_layer[0].weight})
    return draft


def p2_tiny() -> Draft:
    """25 steps, a start at 0.6 of them, heads of 16 channels, four steps at the end."""
    draft = Draft("p2_tiny", respacing="25", t_start_ratio=0.6, num_head_channels=16)
    net = frozen(UNet(UNetConfig(32, 32, (1, 2, 2), blocks=1, embed=128, cond=0, out_channels=6, head_channels=16)),
                 {key.replace("time_embed.time_embed.", "time_embed."): v for key, v in draft.net("").items()})
    table = [(t, LINEAR[t]) for t in (round(i * 999 / 24) for i in range(25))]
    beta = [1 - a / level(table, i - 1) for i, (_, a) in enumerate(table)]
    variance = [b * (1 - level(table, i - 1)) / (1 - table[i][1]) for i, b in enumerate(beta)]
    draft.values(timesteps=[t for t, _ in table])
    draft.values(1e-12, alphas_cumprod=[a for _, a in table], betas=beta, posterior_variance=variance)

    def step(x: Tensor, i: int, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        (t, a), before = table[i], level(table, i - 1)
        out = predicted(net, x, t)
        x0 = (x / math.sqrt(a) - math.sqrt(1 / a - 1) * out[:, :3]).clamp(-1, 1)
        mean = (math.sqrt(before) * beta[i] * x0 + math.sqrt(a / before) * (1 - before) * x) / (1 - a)
        if i == 0:
            return out, x0, mean
        share = (out[:, 3:] + 1) / 2
        return out, x0, mean + (share * math.log(beta[i]) / 2 + (1 - share) * math.log(variance[i]) / 2).exp() * noise

    picture, noise = draft.picture("img", 3, 3, 32, 32), draft.normals("noise", 3, 3, 32, 32)
    x = noised(picture, noise, table[15][0])
    draft.expect({"x_i14": x})
    draft.expect(dict(zip(("out_i14", "x0_i14", "next_i14"), step(x, 14, draft.normals("noise_i14", 3, 3, 32, 32)))),
                 share=1e-3)
    x = draft.given("x_i3", 0.9 * picture[:2] + 0.1 * draft.normals("noise_x", 2, 3, 32, 32))
    for i in (3, 2, 1):
        out, _, x = step(x, i, draft.normals(f"noise_i{i}", 2, 3, 32, 32))
        draft.expect({f"next_i{i}": x, f"out_i{i}": out}, share=1e-3)
    draft.expect(dict(zip(("out_i0", "x0_i0", "chain_end"), step(x, 0, None))), share=1e-3)
    return draft


# --- StyleGAN2 and MMFS -----------------------------------------------------------------------------------------------
def generator(draft: Draft, config: StyleGAN2Config, prefix: str, layout: Any) -> tuple[StyleGAN2, dict[str, Tensor]]:
    """A generator of `config` in a public layout, without a mean style, and the weights of its file's entry."""
    rows = layout.generator_rows(len(config.channels), config.mapping_layers)
    state = draft.net(prefix, {key: v.shape for key, v in from_ours(StyleGAN2(config).state_dict(), rows).items()})
    return frozen(StyleGAN2(config), {"w_avg": torch.zeros(config.w_dim)} | to_ours(state, rows)), state


def discriminator(draft: Draft, config: StyleGAN2Config, prefix: str, layout: Any) -> Discriminator:
    rows = layout.discriminator_rows(len(config.channels) - 1)
    state = draft.net(prefix, {key: v.shape for key, v in from_ours(Discriminator(config).state_dict(), rows).items()})
    return frozen(Discriminator(config), to_ours(state, rows))


def layers_of(w: Tensor, g: StyleGAN2) -> Tensor:
    return w[:, None].repeat(1, 2 * len(g.config.channels), 1)


def score_outputs(draft: Draft, d: Discriminator, pictures: Tensor, counts: Iterable[int]) -> None:
    both = torch.cat([pictures, pictures.flip(3)])
    draft.expect({f"score_b{n}": d(both[:n]) for n in counts})


def feature_outputs(draft: Draft, d: Discriminator, pictures: Tensor, names: Iterable[str]) -> None:
    """Crops of 5 channels and 7 x 6 px of the layers in order (0 is from_rgb), where `names` has a name for them."""
    x = d.from_rgb(pictures)
    for k, name in enumerate(names):
        x = d.blocks[k - 1](x) if k else x
        if name:
            draft.expect({name: x[:, :5, :7, :6]})
            draft.values(1e-5, **{f"{name}_mean_std": mean_std(x)})


def sg2_rosinality() -> Draft:
    """32 px, narrow, codes of 48 numbers, three samples a group, R1 on three pictures."""
    draft = Draft("sg2_rosinality", size=32, style_dim=48, n_mlp=3, stddev_group=3, inject_index=5)
    config = StyleGAN2Config((24, 16, 16, 8), 48, 3, mbstd_group_size=3)
    g, _ = generator(draft, config, "g_ema.", rosinality)
    average, d = draft.net("", {"latent_avg": (48,)})["latent_avg"], discriminator(draft, config, "d.", rosinality)
    z, wplus = draft.normals("z", 3, 48), draft.normals("wplus", 2, 8, 48)
    pictures = draft.picture("d_img", 6, 3, 32, 32)
    own = [getattr(g, f"noise_{i}")[None, None] for i in range(7)]
    noise = [draft.normals(f"noise_{i}", 1, 1, *x.shape[2:]) for i, x in enumerate(own)]
    w = g.mapping(z)
    short = average + 0.25 * (w[:2] - average)
    mixed = torch.cat([layers_of(w[:1], g)[:, :5], layers_of(w[1:2], g)[:, 5:]], 1)
    draft.expect({"w": w, "img_const_t1": g(layers_of(w, g), own), "img_const_t025": g(layers_of(short, g), own),
                  "img_wplus_const": g(wplus, own), "img_wplus_nonoise": g(wplus[:1], None),
                  "img_wplus_given": g(wplus, noise), "img_mix": g(mixed, own)})
    score_outputs(draft, d, pictures, (2, 3, 6, 12))
    feature_outputs(draft, d, pictures[:2], ("feat0", "feat1", "feat2", "feat3"))
    x, weight = pictures[:3].clone().requires_grad_(), d.from_rgb.weight.requires_grad_()
    slope, = torch.autograd.grad(d(x).sum(), x, create_graph=True)
    r1 = slope.pow(2).sum() / 3
    leaf = w.clone().requires_grad_()
    loss = torch.log1p(torch.exp(-d(g(layers_of(leaf, g), own)))).mean()
    draft.expect({"r1_grad_img": slope, "r1_grad_convs0": torch.autograd.grad(r1, weight)[0],
                  "g_grad_w": torch.autograd.grad(loss, leaf)[0]}, share=5e-3)
    draft.values(1e-4, r1=r1.item(), g_loss=loss.item())
    return draft


def sg2_nvidia() -> Draft:
    """Narrow, four mapping layers, two samples a group, truncation by 0.5 in some layers."""
    draft = Draft("sg2_nvidia", channel_max=16, num_mapping_layers=4, mbstd_group_size=2, z_dim=32, w_dim=32)
    config = StyleGAN2Config((16, 16, 16, 8, 8), 32, 4, mbstd_group_size=2)
    (g, state), d = generator(draft, config, "G_ema.", nvidia), discriminator(draft, config, "D.", nvidia)
    average = state["mapping.w_avg"]
    maps = draft.data["name_map"]
    for part, prefix in (("generator", "G_ema."), ("discriminator", "D.")):
        known = {row[0] for net in draft.data["nets"] if net["prefix"] == prefix for row in net["tensors"]}
        maps[part] = [pair for pair in maps[part] if pair[1] in known]
    z, wplus = draft.normals("z", 3, 32), draft.normals("wplus", 2, 10, 32)
    pictures = draft.picture("d_img", 4, 3, 64, 64)
    own = [getattr(g, f"noise_{i}")[None, None] for i in range(9)]
    w = g.mapping(z)
    full, halved = layers_of(w, g), layers_of(average + 0.5 * (w - average), g)
    draft.expect({"w": w, "img_const_t1": g(full, own), "img_const_t05": g(halved[:2], own),
                  "img_const_t05_cut3": g(torch.cat([halved[:, :3], full[:, 3:]], 1)[:1], own),
                  "img_wplus_const": g(wplus, own), "img_wplus_nonoise": g(wplus, None)})
    score_outputs(draft, d, pictures, (1, 2, 8))
    feature_outputs(draft, d, pictures[:3], (None, "feat_b64", None, "feat_b16", "feat_b8"))
    return draft


def stylizer(draft: Draft) -> MMFS:
    """Of width 4, with codes of 64 numbers, two mapping layers, and a mapper of four heads."""
    config = MMFSConfig((4, 4, 8, 16, 24), (24, 16, 8, 8, 4), 64, 2, MapperConfig(2, 48, 16))
    rows = official_mmfs.rows(4, 2, 2)
    state = draft.net("G_ema_model.", {key: v.shape for key, v in from_ours(MMFS(config).state_dict(), rows).items()})
    return frozen(MMFS(config), to_ours(state, rows))


STYLIZER = {"ngf": 4, "style_dim": 64, "clip_mapper": {"layers": 2, "heads": 4, "ff": 48}}


def layer_noise(draft: Draft, count: int, height: int, width: int) -> list[Tensor]:
    sizes = {"0": 16} | {f"{k}{half}": 16 >> k for k in range(1, 5) for half in "ab"}
    return [draft.normals(f"noise_decoder{layer}", count, 1, height // n, width // n) for layer, n in sizes.items()]


def codes_of(draft: Draft, net: MMFS, count: int) -> tuple[Tensor, Tensor]:
    """Styles (B, 10, 64) of random z and of embeddings; both are expected, too."""
    w, embedding = net.mapping(draft.normals("z", count, 64)), draft.normals("clip_feature_raw", count, 64)
    clip = net.mapper(embedding / embedding.norm(dim=1, keepdim=True))
    draft.expect({"styles_random": w, "styles_clip": clip.transpose(0, 1)})
    return w[:, None].repeat(1, 10, 1), clip


def drawn(net: MMFS, x: Tensor, w: Tensor, noise: list[Tensor] | None = None) -> Tensor:
    return net.decoder(net.encoder(x), w, noise).clamp(-1, 1)


def mmfs_mini() -> Draft:
    """Three pictures of 48 x 32 px, the other one of 16 x 80."""
    draft = Draft("mmfs_mini", **STYLIZER)
    net, x, rect = stylizer(draft), draft.picture("x", 3, 3, 48, 32), draft.picture("x_rect", 2, 3, 16, 80)
    w, clip = codes_of(draft, net, 3)
    noise = layer_noise(draft, 3, 48, 32)
    draft.expect({"feature": net.encoder(x), "out_random_nonoise": drawn(net, x, w),
                  "out_clip_nonoise": drawn(net, x[:2], clip[:2]), "rect_feature": net.encoder(rect),
                  "rect_out": drawn(net, rect, w[:2]),
                  "out_random_noise": drawn(net, x[:2], w[:2], [part[:2] for part in noise])})
    return draft


def mmfs_full() -> Draft:
    """Small, 64 x 96 px, which D has no score for; other crops and other layers of D."""
    crops = {"tl": [1, 2], "mid": [20, 33], "br": [44, 70]}
    draft = Draft("mmfs_full", crops=crops, **STYLIZER)
    net, x = stylizer(draft), draft.picture("x", 1, 3, 64, 96)
    d = discriminator(draft, StyleGAN2Config((12, 12, 8, 8, 8)), "D_model.", rosinality)
    w, clip = codes_of(draft, net, 1)
    feature = net.encoder(x)
    draft.expect({"feature_crop": feature[:, :20, :3, :4]})
    draft.values(1e-5, feature_mean_std=mean_std(feature))
    pictures = {"random_nonoise": drawn(net, x, w), "clip_nonoise": drawn(net, x, clip),
                "random_noise": drawn(net, x, w, layer_noise(draft, 1, 64, 96))}
    for name, picture in pictures.items():
        draft.expect({f"out_{name}_mean4": F.avg_pool2d(picture, 4)})
        draft.expect({f"out_{name}_{part}": picture[:, :, i:i + 18, j:j + 25] for part, (i, j) in crops.items()
                      if part == "mid" or name != "clip_nonoise"})
    feature_outputs(draft, d, x, (None, "d_feat1", "d_feat2", None, "d_feat4"))
    return draft


# --- the losses that guide MMFS ---------------------------------------------------------------------------------------
def lookers(draft: Draft) -> tuple[Dino, Clip]:
    """A ViT of 3 blocks on 64 px and a CLIP of 3 blocks on 48 px."""
    dino, clip = Dino(DinoConfig(64, 8, 48, 3, 4)), Clip(ClipConfig(32, 48, 12, 64, 3, 20, 49408, 64, 1))
    for net, prefix in ((dino, "dino."), (clip, "clip.")):
        frozen(net.net, draft.net(prefix, {key: value.shape for key, value in net.net.state_dict().items()}))
    return dino.eval().requires_grad_(False), clip.eval().requires_grad_(False)


def similarity(keys: Tensor) -> Tensor:
    unit = F.normalize(keys, dim=2)
    return unit @ unit.transpose(1, 2)


def seen(x: Tensor, size: int, mean: tuple, std: tuple, antialias: bool) -> Tensor:
    x = F.interpolate((x + 1) / 2, (size, size), mode="bilinear", antialias=antialias)
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def structure_outputs(draft: Draft, dino: Dino, before: Tensor, after: Tensor) -> None:
    for name, antialias in (("aa", True), ("noaa", False)):
        augmentations = [seen(x, 64, IMAGENET_MEAN, IMAGENET_STD, antialias) for x in (before, after)]
        keys = [dino.keys(view * torch.tensor(IMAGENET_STD)[:, None, None] * 2
                          + torch.tensor(IMAGENET_MEAN)[:, None, None] * 2 - 1) for view in augmentations]
        same = [similarity(k) for k in keys]
        draft.expect({f"vit_in_{name}": augmentations[1][:, :, :11, :17], f"keys_{name}": keys[1][0, :9],
                      f"selfsim_{name}": same[1][0, :20, :20]})
        draft.values(1e-5, **{f"structure_{name}": (same[0] - same[1]).square().mean().item()})


def few_shot_outputs(draft: Draft, dino: Dino, clip: Clip, mode: str, direction: Tensor, x: Tensor, fake: Tensor,
                     projection: Tensor | None) -> None:
    """Losses of `fake`, and their gradient in its first two pictures."""
    fake, lambdas = fake.clone().requires_grad_(), draft.data["config"]["lambdas"]
    encode_with_tokens = [clip.encode_with_tokens(seen(y, 48, OPENAI_MEAN, OPENAI_STD, True), 1) for y in (x, fake)]
    change = F.normalize(encode_with_tokens[1][0], dim=1) - F.normalize(encode_with_tokens[0][0], dim=1)
    tokens = F.normalize(encode_with_tokens[1][1], dim=2)
    losses = {"ST": (similarity(dino.keys(fake)) - similarity(dino.keys(x))).square().mean((1, 2)).sum(),
              "CLIP": (1 - F.cosine_similarity(change, direction)).mean(),
              "PROJ": torch.zeros(()) if projection is None else (tokens @ projection - tokens).abs().mean()}
    total = sum(lambdas[name] * value for name, value in losses.items())
    slope, = torch.autograd.grad(total, fake)
    draft.expect({f"direction_{mode}": direction, f"grad_{mode}": slope[:2]}, share=2e-3)
    draft.values(1e-4, **{f"{mode}_loss_{name}": value.item() for name, value in losses.items()},
                 **{f"{mode}_loss_total": total.item()})


def losses() -> Draft:
    """Small networks, three pictures, other weights, prompts, crops and layers of D."""
    draft = Draft("losses", lambdas={"ST": 2.0, "CLIP": 0.7, "PROJ": 30.0}, clip_token_block=1,
                  prompts=["a red apple on a table", "drawing"])
    draft.data["config"]["dino"] |= {"num_heads": 4}
    draft.data["config"]["d"] |= {"size": 32}
    draft.data["calling"] = [line.replace("100:148, 100:148", "10:31, 5:41") for line in draft.data["calling"]]
    dino, clip = lookers(draft)
    big = [draft.picture(name, 1, 3, 96, 96) for name in ("big_in", "big_out")]
    structure_outputs(draft, dino, *big)
    x, fake = draft.picture("x", 3, 3, 40, 40), draft.picture("fake", 3, 3, 40, 40)

    def embed(y: Tensor) -> Tensor:
        return F.normalize(clip.net.encode_image(seen(y, 48, OPENAI_MEAN, OPENAI_STD, True)), dim=1)

    file = draft.pixels("ref_file", 50, 60)
    resized = np.array(Image.fromarray(file.numpy()).resize((57, 48), Image.BICUBIC))[:, 4:52]  # 57.6 px, centre
    prepared = seen(torch.from_numpy(resized).permute(2, 0, 1)[None] / 127.5 - 1, 48, OPENAI_MEAN, OPENAI_STD, False)
    feature, tokens = clip.encode_with_tokens(prepared, 1)
    feature, unit = F.normalize(feature, dim=1), F.normalize(tokens[0], dim=1)
    projection = torch.linalg.pinv(unit) @ unit
    ids = clip.tokenizer()(draft.data["config"]["prompts"])
    words = F.normalize(clip.net.encode_text(ids), dim=1)
    few_shot_outputs(draft, dino, clip, "image", feature - embed(x).mean(0, keepdim=True), x, fake, projection)
    few_shot_outputs(draft, dino, clip, "text", words[:1] - words[1:], x, fake, None)
    draft.expect({"ref_in_crop": prepared[:, :, 10:31, 5:41], "ref_feature": feature, "UUT": projection,
                  "x_features": embed(x), "fake_features": embed(fake), "clip_big": embed(torch.cat(big)),
                  "tokens": clip.encode_with_tokens(seen(fake, 48, OPENAI_MEAN, OPENAI_STD, True), 1)[1][:, :7],
                  "text_features": words}, share=3e-4)
    draft.values(text_tokens=[i for i in ids[0].tolist() if i], source_tokens=[i for i in ids[1].tolist() if i])
    d = discriminator(draft, StyleGAN2Config((12, 8, 8, 8)), "d.", rosinality)
    a, b = (draft.picture(name, 1, 3, 32, 32) for name in ("a_img", "b_img"))
    terms, pair = {}, [d.from_rgb(a), d.from_rgb(b)]
    for k, block in enumerate(d.blocks):
        pair = [block(y) for y in pair]
        terms[f"featloss_{k + 1}"] = (pair[0] - pair[1]).abs().mean().item()
    del terms["featloss_2"]
    draft.values(1e-5, **terms, featloss_sum=sum(terms.values()), featloss_mean=sum(terms.values()) / 2)
    return draft


# --- measures of papers -----------------------------------------------------------------------------------------------
def interpolation(n: int) -> Tensor:
    """(299, n): row i weighs the pixels around i * n / 299."""
    matrix = torch.zeros(299, n)
    for i in range(299):
        low, rest = divmod(i * n, 299)
        matrix[i, low] += 1 - rest / 299
        matrix[i, min(low + 1, n - 1)] += rest / 299
    return matrix


def inception_inputs(u: Tensor) -> dict[str, Tensor]:
    """The network's inputs of pixels u (B, 3, H, W) of 0..255, by the names in the calling convention."""
    rows, columns = (interpolation(n) for n in u.shape[2:])
    clean = [[np.array(Image.fromarray(plane.numpy()).resize((299, 299), Image.BICUBIC)) for plane in picture]
             for picture in u]
    return {"ptfid": 2 * F.interpolate(u / 255, (299, 299), mode="bilinear") - 1,
            "tf": (rows @ u @ columns.t() - 128) / 128,
            "clean": (torch.from_numpy(np.array(clean)).clamp(0, 255) - 128) / 128,
            "aa": (F.interpolate(u, (299, 299), mode="bilinear", antialias=True) - 128) / 128}


def inception_fid() -> Draft:
    """Three pictures of 50 px, one of 301 x 340; other crops. torchvision's form is torchvision's own module."""
    draft = Draft("inception_fid")
    trunk = {key: value for key, value in draft.net("").items() if not key.startswith("fc.")}
    fid = frozen(Inception(InceptionConfig("fid")).net, trunk)
    plain = Inception3(aux_logits=False, init_weights=False)
    plain.fc = nn.Identity()
    plain.load_state_dict(trunk, strict=False)
    plain.eval()
    for name, given in (("small", draft.picture("pics", 3, 3, 50, 50)), ("big", draft.picture("big", 1, 3, 301, 340))):
        u = ((given + 1) * 127.5).round()
        seen = inception_inputs(u)
        for resize in ("ptfid", "tf", "clean") if name == "small" else seen:
            draft.expect({f"in299_{resize}_{name}": seen[resize][:, :, :20, :31],
                          f"pool3_{resize}_{name}": fid(seen[resize])})
        draft.expect({f"pool_tv_{name}": plain(seen["ptfid"])})
    draft.expect({"pool_art_big": plain(u / 255)})
    return draft


def arcface_irse50() -> Draft:
    """Narrow networks, three faces."""
    draft = Draft("arcface_irse50")
    x = draft.picture("faces", 3, 3, 256, 256)
    seen = F.adaptive_avg_pool2d(x[:, :, 35:223, 32:220], 112)
    config = ArcFaceConfig(widths=(8, 12, 16, 20), embed=24, reduction=4)
    irse, iresnet = ArcFace(config).net, ArcFace(replace(config, layout=IRESNET, reduction=16)).net
    for net, prefix in ((irse, ""), (iresnet, "iresnet50.")):
        frozen(net, draft.net(prefix, {key: value.shape for key, value in net.state_dict().items()}))
    body = irse.body(irse.input_layer(seen))
    raw, other = irse.output_layer(body), iresnet(seen)
    first, second = (F.normalize(features[:2], dim=1) for features in (raw, other))
    draft.expect({"input_112": seen[:, :, :25, :30], "body23_corner": body[:, :10, :5, :6],
                  "embedding": F.normalize(raw, dim=1), "iresnet_features": other})
    cosines = [float((pair[0] * pair[1]).sum()) for pair in (first, second)]
    draft.values(1e-5, cosine=cosines[0], arcface_dist=1 - cosines[0], iresnet_cosine=cosines[1])
    return draft


def alexnet_taps(x: Tensor, net: Mapping[str, Tensor]) -> list[Tensor]:
    taps = []
    for n, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
        x = F.max_pool2d(x, 3, 2) if n in (3, 6) else x
        x = F.conv2d(x, net[f"features.{n}.weight"], net[f"features.{n}.bias"], stride, padding).relu()
        taps.append(x)
    return taps


def vgg_taps(x: Tensor, net: Mapping[str, Tensor]) -> list[Tensor]:
    taps = []
    for numbers in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        x = F.max_pool2d(x, 2) if taps else x
        for n in numbers:
            x = F.conv2d(x, net[f"features.{n}.weight"], net[f"features.{n}.bias"], padding=1).relu()
        taps.append(x)
    return taps


def alexnet_lpips() -> Draft:
    """Three pairs of 80 x 66 px; the trunks layer by layer."""
    draft = Draft("alexnet_lpips")
    pair = [draft.picture(name, 3, 3, 80, 66) for name in ("a", "b")]
    shift, scale = (torch.tensor(v)[:, None, None] for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    for short, name, taps in (("alex", "alexnet", alexnet_taps), ("vgg", "vgg16", vgg_taps)):
        trunk, heads = draft.net(f"{name}."), draft.net(f"{name}_lin.")
        package = lpips.LPIPS(net=short, pnet_rand=True, verbose=False)
        weights = {"random": [heads[f"lin{k}.model.1.weight"] for k in range(5)],
                   "package": [head.model[1].weight for head in package.lins]}
        levels = [taps((x - shift) / scale, trunk) for x in pair]
        unit = [[f / (f.norm(dim=1, keepdim=True) + 1e-10) for f in level] for level in levels]
        for kind, head in weights.items():
            terms = torch.stack([((f - g).square() * w).sum(1).mean((1, 2)) for f, g, w in zip(*unit, head)], 1)
            draft.values(1e-5, **{f"{short}_{kind}": terms.sum(1).tolist(), f"{short}_{kind}_layers": terms.tolist()})
    return draft


def gaussian_distance(mean_a: Tensor, a: Tensor, mean_b: Tensor, b: Tensor, jitter: float = 0.0) -> float:
    eye = jitter * torch.eye(len(a))
    root = torch.linalg.eigvals((a + eye) @ (b + eye)).real.clamp_min(0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * root)


def distance_values(draft: Draft) -> None:
    samples = {name: torch.randn(n, 12, generator=torch.Generator().manual_seed(n)) * (1 + n / 50)
              for name, n in (("a", 30), ("b", 45), ("few", 6), ("few2", 3))}
    sets = {name: draft.given(f"feat_{name}", x) for name, x in samples.items()}
    moments = {name: (x.double().mean(0), torch.cov(x.double().t())) for name, x in sets.items()}
    for name in ("a", "b"):
        draft.given(f"mu_{name}", moments[name][0].float())
        draft.given(f"cov_{name}", moments[name][1].float())
    given = [x.float().double() for name in ("a", "b") for x in moments[name]]
    draft.values(1e-4, frechet_given=gaussian_distance(*given),
                 frechet_sets=gaussian_distance(*moments["a"], *moments["b"]),
                 frechet_few=gaussian_distance(*moments["a"], *moments["few"]),
                 frechet_two_few=gaussian_distance(*moments["few"], *moments["few2"]),
                 frechet_few_eps=gaussian_distance(*moments["a"], *moments["few"], jitter=1e-6))
    fids = draft.given("fid_values", torch.tensor([9.0, 7.5, 6.1, 5.9])).double()
    counts = draft.given("fid_counts", torch.tensor([10.0, 20, 50, 80])).double()
    line = torch.stack([torch.ones(4).double(), 1 / counts], 1)
    content = draft.given("artfid_lpips", torch.tensor([0.4, 0.7]))
    art = draft.given("artfid_fid", torch.tensor([3.0, 9]))
    draft.values(1e-5, fid_inf=float(torch.linalg.lstsq(line, fids).solution[0]),
                 artfid=((1 + content.double()) * (1 + art.double())).tolist(),
                 kid=polynomial_mmd(sets["a"], sets["b"]), kid_40=polynomial_mmd(sets["a"], sets["b"][:30]))


def polynomial_mmd(a: Tensor, b: Tensor) -> float:
    a, b, total = a.double(), b.double(), 0.0
    for x in (a, b):
        pairs = [float((x[i] @ x[j] / 12 + 1) ** 3) for i in range(len(x)) for j in range(len(x)) if i != j]
        total += sum(pairs) / len(pairs)
    return total - 2 * float(((a @ b.t() / 12 + 1) ** 3).mean())


def clip_values(draft: Draft) -> None:
    e = {name: F.normalize(draft.normals(name, n, 20).double(), dim=1) for name, n in (
        ("e_before", 4), ("e_after", 4), ("e_style", 3), ("t_source", 6), ("t_target", 6))}
    words = (e["t_target"] - e["t_source"]).mean(0)
    style = e["e_style"].mean(0) - e["e_before"].mean(0)
    turns = [F.normalize(e["e_after"] - e["e_before"], dim=1) @ (d / d.norm()) for d in (words, style)]
    draft.expect({"text_direction": (words / words.norm())[None], "image_direction": (style / style.norm())[None]})
    loss = float(1 - turns[0].mean())
    means_ = [e["e_after"] @ (e[name].mean(0) / e[name].mean(0).norm()) for name in ("t_target", "e_style")]
    draft.values(1e-5, nada_cosines=turns[0].tolist(), nada_loss=loss, image_loss=float(1 - turns[1].mean()),
                 diffusionclip_total=-math.log((2 - loss) / 2), clip_text_score=means_[0].tolist(),
                 clip_image_score=means_[1].tolist())


def neighbour_values(draft: Draft) -> None:
    real, fake = (draft.given(f"prc_{name}", torch.randn(n, 4, generator=torch.Generator().manual_seed(n)))
                  for name, n in (("real", 40), ("fake", 33)))

    def radii(x: Tensor, k: int) -> list[float]:
        return [float(sorted((x[i].double() - y.double()).norm() for y in x)[k]) for i in range(len(x))]

    def share(k: int) -> list[float]:
        gap = (real[:, None].double() - fake[None].double()).norm(dim=2)
        in_real = gap < torch.tensor(radii(real, k), dtype=torch.float64)[:, None]
        in_fake = gap < torch.tensor(radii(fake, k), dtype=torch.float64)[None]
        return [in_real.any(0).double().mean().item(), in_fake.any(1).double().mean().item(),
                in_real.double().sum(0).mean().item() / k, in_real.any(1).double().mean().item()]
    draft.values(1e-9, prc3=share(3)[:2], prdc5=share(5))


def classifier_values(draft: Draft) -> None:
    net = draft.net("")
    z = draft.given("z", torch.randn(3, 512, generator=torch.Generator().manual_seed(1)) * 0.5)
    unit = (z - net["conds_mean"]) / net["conds_std"]

    def logits(code: Tensor) -> Tensor:
        return (code - net["conds_mean"]) / net["conds_std"] @ net["classifier.weight"].t() + net["classifier.bias"]
    draft.expect({"z_norm": unit, "logits": logits(z)})
    for attribute, strength, text in ((5, 0.2, "02"), (20, -0.4, "m04")):
        row = net["classifier.weight"][attribute]
        edited = (unit + strength * math.sqrt(512) * row / row.norm()) * net["conds_std"] + net["conds_mean"]
        draft.expect({f"z_edit_{attribute}_{text}": edited, f"logits_edit_{attribute}": logits(edited)}, share=3e-4)


def metrics() -> Draft:
    """Other sets, numbers of neighbours' points, attributes, strengths and extremes."""
    draft = Draft("metrics")
    distance_values(draft)
    clip_values(draft)
    neighbour_values(draft)
    classifier_values(draft)
    keys = [draft.normals("keys_a", 30, 16), draft.given("keys_b", torch.linspace(-2, 3, 480).sin().reshape(30, 16))]
    same = [similarity(k.double()[None])[0] for k in keys]
    draft.expect({"selfsim_a": same[0].float()})
    draft.values(1e-6, structure=(same[0] - same[1]).square().mean().item(),
                 structure_no_cls=(same[0] - same[1])[1:, 1:].square().mean().item())
    low = draft.given("low_lpips", torch.tensor([0.3, 0.9, 0.1, 0.5, 0.7, 0.2]))
    order = sorted(range(len(low)), key=lambda k: float(low[k]))
    draft.values(0.0, low_density=order[::-1][:2], high_density=order[:2])
    return draft


# --- faces ------------------------------------------------------------------------------------------------------------
def bytes_of(x: Tensor) -> Tensor:
    """Pictures (3, H, W) in [-1, 1] as uint8 (H, W, 3)."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous()


def faces_on(name: str, picture: Tensor, turns: Iterable[int], crops: Mapping[str, int]) -> tuple[dict, dict]:
    """What faces.json says of a picture (H, W, 3), uint8, and its arrays. crops: {key: side}."""
    nets, passes = load_faces(), [detect.Pass(size, turn) for size in (256, 512) for turn in turns]
    x = picture.permute(2, 0, 1) / 127.5 - 1
    candidates, reading = find.look(nets, x, passes)
    rows = [{"size": int(size), "turn": int(turn), "score": float(score), "box": box.tolist(),
             "keypoints": points.tolist()} for score, box, points, size, turn in
            zip(candidates.scores, candidates.boxes, candidates.points, candidates.sizes, candidates.turns)]
    found = sorted(find.distinct(find.believed(candidates, reading)), key=lambda f: -float(detect.area(f.box)))
    said = {"passes": [[one.size, one.turn] for one in passes], "candidates": rows, "faces": [
        {"quality": f.quality, "score": f.score, "turn": f.turn, "size": f.size, "roi1": f.first_roi.tolist(),
         "roi2": f.roi.tolist(), "presence_raw": f.presence.tolist(), "quad": f.quad.tolist()} for f in found]}
    arrays = {f"{name}.picture": picture} | {f"{name}.landmarks.{k}": f.points.clone() for k, f in enumerate(found)}
    for key, side in crops.items():
        quad = found[-1].quad
        small, inner = align.shrunk(x, quad, side)
        near = align.cut(small, inner)
        said[key] = {"face": len(found) - 1, "output_size": side, "transform_size": 4 * side,
                     "padded": align.padded(*near)[0].shape != near[0].shape,
                     "shrink": round(align.side_of(quad) / align.side_of(inner))}
        arrays[f"{name}.{key}"] = bytes_of(align.align(x, quad, side))
    return said, arrays


def faces(folder: Path) -> None:
    """faces.json and .safetensors of other pictures, passes and sizes. The networks are the shipped ones, and what is
    expected is what they give: this tells numbers of the public set that stand in a test, not wrong networks."""
    nets, told = load_faces(), json.loads((golden.PUBLIC / "faces.json").read_text(encoding="utf-8"))
    public = load_file(golden.PUBLIC / "faces.safetensors")
    pair, lying = public["group.picture"][:, 75:].contiguous(), public["tilted.picture"].flip(1).rot90(3).contiguous()
    told["pictures"], arrays = {}, {}
    for name, picture, turns, crops in (("pair", pair, (0,), {"aligned": 72, "aligned32": 20}),
                                        ("lying", lying, range(4), {"aligned": 80})):
        told["pictures"][name], made = faces_on(name, picture, turns, crops)
        arrays |= made
    x = pair.permute(2, 0, 1) / 127.5 - 1
    square, offset, scale = detect.letterbox(x, 192)
    arrays["detector.input"], read = bytes_of(square), bytes_of(square).permute(2, 0, 1)[None] / 127.5 - 1
    scores, boxes = (out[0] for out in nets.detector(read))
    arrays |= {"detector.scores": scores, "detector.boxes": boxes.clone(), "detector.anchors": detect.anchors(192),
               "detector.decoded": detect.decode(boxes, 192),
               "detector.float_input_check": ((square[:, ::16, ::16] + 1) * 127.5).contiguous()}
    told["detector_letterbox"] = {"picture": "pair", "size": 192, "offset_x": int(offset[0]),
                                  "offset_y": int(offset[1]), "scale_x": float(scale[0]), "scale_y": float(scale[1])}
    crop = mesh.crop(x, torch.tensor(told["pictures"]["pair"]["faces"][1]["roi1"]))
    arrays["landmark.input"] = bytes_of(crop)
    points, presence = nets.mesh(arrays["landmark.input"].permute(2, 0, 1)[None] / 127.5 - 1)
    arrays |= {"landmark.points": points[0], "landmark.presence": presence}
    told["paste"] = {"picture": "pair", "face": told["pictures"]["pair"]["aligned"]["face"],
                     "source": "255 - pair.aligned", "feather": 0.2}
    result = 1 - arrays["pair.aligned"].permute(2, 0, 1) / 127.5
    quad = torch.tensor(told["pictures"]["pair"]["faces"][told["paste"]["face"]]["quad"])
    arrays["pair.pasted"] = bytes_of(align.paste_back(x, result, quad, align.PasteSettings(0.2)))
    (folder / "faces.json").write_text(json.dumps(told), encoding="utf-8")
    save_file({name: x.contiguous() for name, x in arrays.items()}, folder / "faces.safetensors")


CASES = (diffae_tiny, diffae_ffhq256, osasis_tiny, osasis_train, p2_tiny, sg2_rosinality, sg2_nvidia, mmfs_mini,
         mmfs_full, losses, inception_fid, arcface_irse50, alexnet_lpips, metrics)


@torch.no_grad()
def write(folder: Path) -> Path:
    """All of CASES, and the faces; returns the folder."""
    faces(folder)
    for case in CASES:
        with torch.set_grad_enabled(case in (osasis_train, sg2_rosinality, losses)):
            case().write(folder)
    return folder
