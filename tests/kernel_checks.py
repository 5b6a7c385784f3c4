"""Kernels beside plain torch, in float32, forward and backward: prints {case: largest error}, relative to the largest
value. Started by test_kernels.py with TRITON_INTERPRET=1, so that they run on the CPU; on a GPU it can be run as it is:

    python3 tests/kernel_checks.py [cuda]
"""
from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "cli" / "__main__.py"))["load_checkout"](ROOT)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from oneshot_atelier.models import kernels, ops  # noqa: E402
from oneshot_atelier.models.accelerated import accelerated  # noqa: E402
from oneshot_atelier.models.diffae import DiffAE  # noqa: E402
from oneshot_atelier.models.features.encoder import EncoderDistance  # noqa: E402
from oneshot_atelier.models.graphs import Graphs  # noqa: E402
from oneshot_atelier.models.spn import SPN, SPNConfig  # noqa: E402
from oneshot_atelier.models.stylegan2 import Discriminator, StyleGAN2Config  # noqa: E402
from oneshot_atelier.models.unet import SemanticEncoder, UNet  # noqa: E402
from oneshot_atelier.tests import tiny, tiny_stages  # noqa: E402
from oneshot_atelier.train import diffusion_pretraining as pretraining  # noqa: E402
from oneshot_atelier.train.data import Augmentations, ImageDataset  # noqa: E402
from oneshot_atelier.train.diffusion_pretraining import PretrainingConfig  # noqa: E402
from oneshot_atelier.train.gan import gradient_penalty  # noqa: E402
from oneshot_atelier.train.loop import train  # noqa: E402
from oneshot_atelier.train.osasis import FrozenNetworks, OSASISConfig, tune_style  # noqa: E402

PRETRAINED = replace(tiny.DIFFAE, latent=None, unet=replace(tiny.UNET, base=64, prediction="v", dropout=0.0))
DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cpu"


def randn(*shape, seed=0, scale=1.0, shift=0.0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + shift
    return x.to(DEVICE).requires_grad_()


def error(found, expected):
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in zip(found, expected, strict=True))


def both(work, *leaves):
    """Error of work(*leaves) and of its gradients, with kernels against without."""
    def once():
        y = work(*leaves)
        weight = randn(*y.shape, seed=9).detach()
        return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]
    with patch.object(kernels, "usable", lambda x: False):
        plain = once()
    with patch.object(kernels, "usable", lambda x: True):
        return error(once(), plain)


def norm_cases():
    """(B, C, H, W), groups: held by one program, and in chunks; widths and sides that are no powers of 2."""
    for shape, groups in (((2, 8, 4, 4), 2), ((2, 96, 8, 8), 32), ((1, 32, 70, 66), 4), ((2, 192, 32, 36), 3)):
        b, c = shape[:2]
        norm = torch.nn.GroupNorm(groups, c).to(DEVICE)
        x = randn(*shape, scale=2.0, shift=30.0)
        weight, bias = (randn(c, seed=s) for s in (1, 2))
        affine = randn(b, 2 * c, seed=3), randn(c, seed=4)

        def plain_norm(x, weight, bias, norm=norm):
            norm.weight, norm.bias = (torch.nn.Parameter(v.detach()) for v in (weight, bias))
            return ops.group_norm(x, norm)
        yield f"norm {shape}", both(lambda x, f=plain_norm, w=weight, q=bias: f(x, w, q), x)
        yield f"norm, affine, bias, SiLU {shape}", both(
            lambda x, ab, cb, norm=norm: ops.norm_silu(x, norm, tuple(ab.chunk(2, 1)), cb), x, *affine)


def map_cases():
    x, h, third, bias = randn(2, 24, 6, 10), randn(2, 24, 6, 10, seed=1), randn(2, 24, 6, 10, seed=2), randn(24)
    yield "residual", both(lambda x, h, b: ops.residual([x, h], b), x, h, bias)
    yield "residual of three, two biases", both(lambda *v: ops.residual(v[:3], v[3], v[3]), x, h, third, bias)
    yield "residual without bias", both(lambda x, h: ops.residual([x, h], None), x, h)
    yield "halve", both(ops.halve, x)
    yield "double", both(ops.double, x)
    norm = torch.nn.GroupNorm(8, 96).to(DEVICE)
    for side in (4, 66):
        parts = randn(2, 32, side, side), randn(2, 64, side, side, seed=1)

        def two_ways(x, other):
            y, rest = ops.branch(ops.side_by_side(x, other), norm)
            rest = torch.cat(rest, 1) if isinstance(rest, tuple) else rest
            return y + rest.square()
        yield f"two maps side by side, two ways, {side} px", both(two_ways, *parts)


def dropout_case():
    norm, x = torch.nn.GroupNorm(4, 64).to(DEVICE), randn(2, 64, 32, 32)
    with patch.object(kernels, "usable", lambda x: True):
        torch.manual_seed(1)
        y = ops.norm_silu(x, norm, dropout=0.3)
        found = torch.autograd.grad(y.sum(), x)
        torch.manual_seed(2)
        assert not torch.equal(ops.norm_silu(x, norm, dropout=0.3) == 0, y == 0)
    kept = (y != 0).float()
    assert abs(float(kept.mean()) - 0.7) < 0.01
    yield "dropout", error([y.detach(), *found], [
        (F.silu(F.group_norm(x, 4)) * kept / 0.7).detach(),
        *torch.autograd.grad((F.silu(F.group_norm(x, 4)) * kept / 0.7).sum(), x)])


def network_cases():
    x, t = randn(2, 3, 16, 16), torch.tensor([7, 800], device=DEVICE)
    # with one channel a group, gradients of biases would be rounding noise
    config = replace(tiny.UNET, base=64, image_size=16)
    net = ops.channels_last(tiny.filled(UNet(config)).to(DEVICE)).eval()
    z = randn(2, tiny.WIDTH, seed=2)
    yield "UNet", both(lambda x, z, *p: net(x, net.modulation(t, z)), x, z, *net.parameters())
    encoder = tiny.filled(SemanticEncoder(config, (1, 2, 2)).to(DEVICE)).eval()
    yield "encoder", both(encoder, x)
    for timed in (True, False):
        spn = tiny.filled(SPN(SPNConfig(timed, 64, 128, 32, 32)).to(DEVICE))
        yield f"SPN, timed {timed}", both(lambda x, *p, spn=spn: spn(x, 3), x, *spn.parameters())
    discriminator = ops.channels_last(Discriminator(StyleGAN2Config((24, 16, 8), 8)).to(DEVICE))
    weights = [p for name, p in discriminator.named_parameters() if name.endswith("weight")]
    faces = randn(4, 3, 16, 16, seed=3)
    yield "discriminator", both(lambda x, *p: discriminator(x), faces, *weights)
    yield "its penalty", both(lambda *p: gradient_penalty(discriminator, faces)[None], *weights)


def graph_cases():
    """On a GPU only: a fine-tune and sampling with graphs beside the same without."""
    if DEVICE != "cuda":
        return
    net, clip = tiny.diffae().to(DEVICE), tiny.clip().to(DEVICE)
    nets = FrozenNetworks(net, clip, EncoderDistance(net.encoder))
    twin, style_image = tiny.pictures(2).to(DEVICE).split(1)
    config = OSASISConfig(iterations=4, batch=2, lr=1e-3, forward_steps=4, reverse_steps=4, latent_steps=2,
                          generate_steps=2, precision="float32")

    def tuned():
        style, _ = tune_style(nets, twin, style_image, config)
        return [value.float() for value in style.unet.values()]
    with patch.object(Graphs, "enabled", lambda self, device: False):
        plain = tuned()
    yield "a fine-tune as graphs", error(tuned(), plain)
    x, z = tiny.pictures(2).to(DEVICE), torch.randn(2, tiny.WIDTH, device=DEVICE)
    fast = accelerated(net, torch.device(DEVICE), "float32")
    with torch.no_grad():
        yield "encoding as graphs", max(error([fast.structural_code(x, z, 10)], [net.structural_code(x, z, 10)])
                                        for _ in range(2))


def training_cases():
    """On a GPU only: steps of the GAN trainings as graphs beside the same without; a case fails if no graph was made.
    Adam's first steps follow the sign of a gradient, so the weights are compared where the rate is 0."""
    if DEVICE != "cuda":
        return
    for name in tiny_stages.STAGES:
        for given in ({}, {"ada_target": 0.6, "ada_kimg": 1}, {"precision": "bfloat16"}):
            def losses(given=given, name=name):
                t = tiny_stages.make(name, mapper=tiny_stages.CALM, device=torch.device(DEVICE), lr=0.0, **given)
                with t.stage.graphs:
                    found = [torch.stack([v.float() for v in values.values()])
                             for values in tiny_stages.run_steps(t.stage, 6)]
                    gradients = [p.grad.clone() for p in t.net.parameters() if p.grad is not None]
                    return [torch.cat(found), *gradients], len(t.stage.graphs.graphs.captured)
            with patch.object(Graphs, "enabled", lambda self, device: False):
                plain, _ = losses()
            replayed, count = losses()
            assert count == (2 if name in ("stylegan2", "mmfs-stage2") else 1), (name, count)
            yield f"{name} as graphs, {given}", error(replayed, plain)


def pretraining_cases():
    """On a GPU only: weights after four steps, their change. The third and the fourth are replayed."""
    if DEVICE != "cuda":
        return
    for name, make, loss, labelled in (("DDPM", lambda: UNet(PRETRAINED.unet), pretraining.noise_loss, True),
                                       ("DiffAE", lambda: DiffAE(PRETRAINED), pretraining.diffae_loss, False)):
        def trained(make=make, loss=loss, labelled=labelled):
            config = PretrainingConfig(steps=4, batch=4, lr=1e-3, ema_decay=0.9, warmup=1,
                                       augmentations=Augmentations(colour=0.5), augmentation_labels=labelled)
            net = ops.channels_last(tiny.filled(make()).to(DEVICE))
            labels = pretraining.label_embedding(tiny.WIDTH).to(DEVICE) if labelled else None
            before = [p.detach().clone() for p in net.parameters()]
            pictures = ((tiny.pictures(6) + 1) * 127.5).byte().to(DEVICE)
            dataset = ImageDataset(pictures, torch.zeros(6, device=DEVICE).long(), torch.ones(6, device=DEVICE))
            run = pretraining.start(net, config, labels)
            objective = pretraining.picture_objective(loss, dataset, config, labels=labels)
            with Graphs() as graphs, torch.backends.cudnn.flags(enabled=True, benchmark=True):  # as the command line
                train(run, pretraining.stepper(run, objective, config, graphs), config.loop(), torch.device(DEVICE))
                assert not graphs.failed
                replayed = len(graphs.captured)
            ends = [p.detach() for part in run.nets.values() for p in part.parameters()]
            begins = before + [torch.zeros_like(p) for p in ends[len(before):]]
            losses = torch.tensor(run.loss_history["loss"])
            return replayed, [losses, torch.cat([(b - a).flatten() for a, b in zip(begins, ends, strict=True)])]
        with patch.object(Graphs, "enabled", lambda self, device: False):
            none, plain = trained()
        one, found = trained()
        assert (none, one) == (0, 1)
        # Adam makes a step of lr of any gradient, also of one that is rounding alone: weights are compared as a whole
        yield f"{name} pretraining as graphs, losses", error(found[:1], plain[:1])
        yield f"{name} pretraining as graphs, weights", float((found[1] - plain[1]).norm() / plain[1].norm())


def main() -> None:
    found = {}
    for cases in (norm_cases, map_cases, dropout_case, network_cases, graph_cases, training_cases, pretraining_cases):
        found |= dict(cases())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
