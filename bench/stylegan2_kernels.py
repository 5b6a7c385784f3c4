"""StyleGAN2's kernels beside plain torch: values, first derivatives, and whole pictures.

    python3 tools/launch.py bench.stylegan2_kernels                           on a GPU
    TRITON_INTERPRET=1 python3 tools/launch.py bench.stylegan2_kernels        on a CPU, small shapes

A line for each case with its largest error, relative to the largest number; the exit status is 1 if any is too large.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ..models import kernels
from ..models.mmfs import MMFS, MMFSConfig
from ..models.stylegan2 import GAIN, Fir, activate, seeded_noise
from ..models.stylizer import FusedStylizer
from .mmfs import plain_torch

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SMALL = ((2, 24, 6, 10), (1, 136, 18, 4))
LARGE = (*SMALL, (2, 3, 16, 8), (1, 7, 4, 4), (2, 512, 64, 64), (3, 64, 512, 512), (1, 128, 256, 96))
Case = tuple[str, float, float]


def normal(*shape: int, seed: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def error(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().float(), wanted.detach().float()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))


def errors(work: Callable[..., Tensor], plain: Callable[..., Tensor], leaves: Sequence[Tensor]) -> float:
    """The largest error of the value and of the derivatives by all leaves. Plain torch computes in float32."""
    ours = [leaf.detach().clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves]
    theirs = [leaf.detach().float().contiguous().requires_grad_() for leaf in leaves]
    y = work(*ours)
    g = normal(*y.shape, seed=9, device=y.device).to(y.dtype)
    with plain_torch():
        z = plain(*theirs)
        wanted = torch.autograd.grad(z, theirs, g.float())
    gradients = torch.autograd.grad(y, ours, g), wanted
    return max(error(y, z), *(error(a, b) for a, b in zip(*gradients)))


def fused_styled(noise: Tensor | None, up: bool, t: Tensor, d: Tensor, bias: Tensor, strength: Tensor) -> Tensor:
    drawn = None if noise is None else (strength, noise)
    return kernels.of("stylegan2").styled(t, d, drawn, bias, up) + 0 * strength


def plain_styled(noise: Tensor | None, up: bool, t: Tensor, d: Tensor, bias: Tensor, strength: Tensor) -> Tensor:
    t = (Fir(gain=4.0).to(t.device)(t, padding=1) if up else t) * d[:, :, None, None]
    return activate(t if noise is None else t + strength * noise, bias) + 0 * strength


def operators(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Those with derivatives."""
    batch, channels, height, width = shape
    bias = normal(channels, seed=1, device=device)
    coefficient, strength = normal(batch, channels, seed=2, device=device).abs() + 0.2, bias.new_tensor(0.7)
    for up in (False, True):
        t = normal(batch, channels, height + up, width + up, seed=3, device=device, dtype=dtype)
        for count in sorted({0, 1, batch}):
            noise = normal(count, 1, height, width, seed=4, device=device).contiguous() if count else None
            yield (f"styled{', up' if up else ''}, {count} noises",
                   errors(partial(fused_styled, noise, up), partial(plain_styled, noise, up),
                          (t, coefficient, bias, strength)), TOLERANCE[dtype])
    x, weight = normal(*shape, seed=5, device=device, dtype=dtype), normal(batch, 3, channels, seed=6, device=device)

    def rgb(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bchw,bkc->bkhw", x, w) + b[:, None, None]
    leaves = (x, weight, bias.new_tensor([0.1, -0.2, 0.3]))
    yield "to_rgb", errors(kernels.of("stylegan2").to_rgb, rgb, leaves), TOLERANCE[dtype]


def layers(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Those with second derivatives, which the discriminator's penalty needs: beside themselves in plain torch."""
    batch, channels, height, width = shape
    bias, x = normal(channels, seed=1, device=device), normal(*shape, seed=3, device=device, dtype=dtype)

    def filtered(padding: int, stride: int, x: Tensor) -> Tensor:
        return Fir(gain=4.0).to(x.device)(x, padding, stride)

    def slope(work: Callable[..., Tensor], *leaves: Tensor) -> Tensor:
        """Not linear in x, as the square of a discriminator's gradient is not."""
        return torch.autograd.grad(work(*leaves).pow(3).mean(), leaves[0], create_graph=True)[0]
    works: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        f"fir, padding {p}, stride {s}": (partial(filtered, p, s), (x,)) for p, s in ((1, 1), (2, 1), (1, 2), (2, 2))}
    works["fir of odd sides"] = partial(filtered, 1, 2), (x[:, :, 1:, 1:],)
    works["fir up"] = lambda x: Fir(gain=4.0).to(x.device).up(x), (x,)
    works["activate"] = activate, (x, bias)
    for name, (work, leaves) in works.items():
        yield name, errors(work, work, leaves), TOLERANCE[dtype]
        yield f"{name}, derived", errors(partial(slope, work), partial(slope, work), leaves), 4 * TOLERANCE[dtype]


@torch.no_grad()
def passes(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Those without."""
    fused = kernels.of("stylegan2")
    batch, channels, height, width = shape
    fir, bias = Fir().to(device), normal(channels, seed=1, device=device)
    x = normal(*shape, seed=3, device=device, dtype=dtype)
    wide, tolerance = x.float().contiguous(), TOLERANCE[dtype]
    with plain_torch():
        active, blurred, halved = activate(wide, bias), fir(activate(wide, bias), padding=2), fir(wide, 1, 2)
    yield "activated_blur", error(fused.activated_blur(x, bias), blurred), tolerance
    yield "fir_down", error(fused.fir_down(x), halved), tolerance
    combined = fused.finish(x, fused.Finish(bias, other=x, gain=1.0))
    yield "finish with a residual", error(combined, active / GAIN + wide), tolerance
    coefficient, scale = (normal(batch, channels, seed=k, device=device) for k in (2, 7))
    noise, strength = normal(batch, 1, height, width, seed=4, device=device).contiguous(), bias.new_tensor(0.7)
    weight, skip = (normal(batch, 3, *size, seed=6, device=device).contiguous()
                    for size in ((channels, 1), (height // 2, width // 2)))
    ends = fused.Finish(bias, coefficient, noise, strength, scale)
    with plain_torch():
        styled = activate(wide * coefficient[:, :, None, None] + strength * noise, bias)
        doubled = Fir(gain=4.0).to(device).up(skip)
    layer = fused.RGB(weight[..., 0].contiguous(), bias.new_tensor([0.1, -0.2, 0.3]), skip)
    y, picture = fused.finish_picture(x, ends, layer)
    wanted = torch.einsum("bchw,bkc->bkhw", styled, layer.weight) + layer.bias[:, None, None]
    wanted = wanted + doubled
    yield "finish_picture", error(picture, wanted), TOLERANCE[torch.float32]
    yield "its scaled map", 1.0 if y is None else error(y, styled * scale[:, :, None, None]), tolerance
    clamped = fused.finish_picture(x, ends, layer._replace(clamp=True))[1]
    yield "clamped", error(clamped, wanted.clamp(-1, 1)), TOLERANCE[torch.float32]
    overflown = fused.finish_picture(x.index_fill(2, torch.tensor([0], device=device), float("inf")), ends,
                                     layer._replace(clamp=True))[1]
    yield "NaN where it overflows", float(torch.isfinite(overflown[:, :, 0]).any()), 0.0


@torch.no_grad()
def pictures(config: MMFSConfig, size: tuple[int, int], device: torch.device) -> Iterator[Case]:
    """The stylizer beside the network in float32 and plain torch: differences of pixels, of 1."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = MMFS(config).eval()
        for name, parameter in net.named_parameters():
            if name.endswith(("bias", "strength")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    photo = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)) / 2
    w, noise = net.styles(torch.randn(2, config.w_dim)), seeded_noise(net.noise_shapes(*size), 0, range(2))
    with plain_torch():
        wanted = net.to(device)(photo.to(device), w.to(device), [n.to(device) for n in noise]).cpu()
    for precision, most in (("float32", 1e-4), ("float16", 1 / 255), ("bfloat16", 8 / 255)):
        found = FusedStylizer(net, precision)(photo.to(device), w.to(device), *(n.to(device) for n in noise))
        yield f"picture, {precision}", float((found.cpu() - wanted).abs().max()) / 2, most


def cases(device: torch.device) -> Iterator[Case]:
    on_gpu = device.type == "cuda"
    for shape in LARGE if on_gpu else SMALL:
        for dtype in TOLERANCE if on_gpu else (torch.float32, torch.float16):
            for part in (operators, layers, passes):
                for name, found, most in part(shape, dtype, device):
                    yield f"{name} {tuple(shape)} {str(dtype)[6:]}", found, most
    config = MMFSConfig() if on_gpu else MMFSConfig((8, 16, 24), (24, 16, 8), 24, 2)
    yield from pictures(config, (512, 512) if on_gpu else (16, 24), device)


def main() -> int:
    """Prints every case; 1 if one is wrong."""
    device = torch.device("cpu" if kernels.interpreted() else "cuda")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        wrong = [name for name, found, most in cases(device)
                 if print(f"{found:.2e} of {most:.0e}  {name}", flush=True) or not found <= most]
    print(f"{len(wrong)} wrong: {', '.join(wrong)}" if wrong else "all equal")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
