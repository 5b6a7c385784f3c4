"""What number formats change in a fine-tune: float32, bfloat16, float16 without a loss scaler (official, the default)
and float16 with one, from the same seed on the same content.

    python3 tools/launch.py bench.precision [--iterations 200] [--set lr=1e-4] [--device cuda] [--out bench]

The demo model learns workflows/inputs/style_poster.png with the official settings, but for its content: 64 pictures are
prepared once, in float32. The scaler is here alone: a loss that is linear in its weights is scaled by scaling them.
float32 lets convolutions on a GPU take TF32, as PyTorch does by itself. On a CPU all formats are float32.
"""
from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..cli.options import changed
from ..evaluate.evaluator import Evaluator
from ..evaluate.osasis import Models, Settings, best_twin
from ..models import loading
from ..models.accelerated import accelerated
from ..models.features.encoder import EncoderDistance
from ..models.graphs import Graphs
from ..train import osasis
from ..train.content import content_source, prepare_content
from ..train.data import read_picture, to_unit
from ..train.loop import Hooks, Run, StepResult
from ..train.osasis import OSASISConfig, References, Trainer
from ..train.plots import chart

STYLE = Path(__file__).resolve().parents[1] / "workflows" / "inputs" / "style_poster.png"
VARIANTS = {"float32": ("float32", False), "bfloat16": ("bfloat16", False), "float16, official": ("float16", False),
            "float16, loss scaler": ("float16", True)}
CONFIG = OSASISConfig(cached_content=64)
WEIGHTS = tuple(f"{name}_weight" for name in ("cross", "in_domain", "clip", "l1", "perceptual"))
LAST = 20  # iterations that the losses at the end are means of
SMALLEST = 2.0 ** -14  # float16's smallest normal number
LOOKED_AT = 10  # every so many optimiser steps gradients are looked at


@dataclass
class Scaled:
    """Stands for the optimisers of a run: steps with a loss scaler or without, and looks at gradients before."""
    trainer: Trainer
    run: Run
    scaler: torch.amp.GradScaler
    history: list[Tensor] = field(default_factory=list)
    shares: list[Tensor] = field(default_factory=list)
    steps: int = 0
    skipped: int = 0

    def __post_init__(self) -> None:
        self.config, self.optimizers = self.trainer.config, list(self.run.optimizers.values())
        self.layers = layers_of(self.run)
        self.scaler.scale(torch.zeros((), device=self.trainer.device))  # makes the scale
        self.scale = 0.0
        self.follow()

    def follow(self) -> None:
        """The loss takes the scaler's scale; what was captured with another is dropped."""
        if self.scale == self.scaler.get_scale():
            return
        self.skipped += bool(self.scale > self.scaler.get_scale())
        self.scale = self.scaler.get_scale()
        weights = {name: getattr(self.config, name) * self.scale for name in WEIGHTS}
        self.trainer.config, self.trainer.graphs = replace(self.config, **weights), Graphs()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        if self.steps % LOOKED_AT == 0:
            self.shares.append(torch.stack([share for p in self.layers.values() for share in shares_of(p.grad)]))
        self.steps += 1
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()

    def on_step(self, result: StepResult) -> None:
        self.history.append(torch.stack(list(result.losses.values())) / self.scale)
        self.follow()


def shares_of(gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """The shares of a gradient that are zero, and that are not but too small for a normal float16."""
    if gradient is None:
        raise ValueError("a layer has no gradient")
    zero = gradient == 0
    return zero.float().mean(), (~zero & (gradient.abs() < SMALLEST)).float().mean()


def layers_of(run: Run) -> dict[str, Tensor]:
    """Some convolutions of the UNet, in their order."""
    unet = run.nets["unet"]
    names = ("input_blocks.0.0.weight", "input_blocks.1.0.in_layers.2.weight", "middle_block.0.in_layers.2.weight",
             "output_blocks.0.0.in_layers.2.weight", "out.2.weight")
    return {name: unet.get_parameter(name) for name in names}


@dataclass(frozen=True)
class Outcome:
    """losses: of every iteration, (iterations, terms and their sum). shares: (layers, 2) of `shares_of`, means.
    weights: of the trained UNet, one after the other. skipped: steps whose gradients overflowed."""
    losses: Tensor
    shares: Tensor
    weights: Tensor
    skipped: int
    seconds: float


def fine_tuned(trainer: Trainer, run: Run, scaled: bool) -> Outcome:
    """A whole fine-tune."""
    steps = Scaled(trainer, run, torch.amp.GradScaler(trainer.device.type, enabled=scaled))
    began, hooks, count = time.perf_counter(), Hooks(on_step=steps.on_step), trainer.config.iterations
    run.optimizers = {"all": steps}  # type: ignore[dict-item]
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for k in range(count):
            osasis.iteration(trainer, run, k, hooks)
            run.partial = {}
    losses = torch.stack(steps.history).unflatten(0, (count, -1)).mean(1).cpu()
    shares = torch.stack(steps.shares).mean(0).unflatten(0, (-1, 2)).cpu()
    return Outcome(losses, shares, flat_weights(run), steps.skipped, time.perf_counter() - began)


def flat_weights(run: Run) -> Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in run.nets["unet"].parameters()])


def compare(models: Models, style_image: Tensor, config: OSASISConfig) -> tuple[dict[str, Outcome], Tensor]:
    """The fine-tune in all formats, and the weights that they begin with. Twin and content are made in float32."""
    exact, nets, device = replace(config, precision="float32"), models.frozen(), style_image.device
    picture, _ = best_twin(models, style_image, Settings(exact, candidates=8, twin_t0=0.4))
    frozen = accelerated(models.diffae, device, "float32")
    twin, content = prepare_content(frozen, picture, exact), content_source(frozen, exact)
    found = {}
    for name, (precision, scaled) in VARIANTS.items():
        tuned = replace(config, precision=precision)
        trainer = Trainer(nets, References.of(nets, twin, style_image, tuned), tuned, content)
        found[name] = fine_tuned(trainer, osasis.start(models.diffae, tuned), scaled)
    return found, flat_weights(osasis.start(models.diffae, exact))


def tables(found: dict[str, Outcome], begin: Tensor, layers: list[str]) -> str:
    """Losses at the end, how far the weights are from float32's (as a share of what float32 changed), and gradients."""
    exact, count = found["float32"], min(LAST, len(found["float32"].losses))
    lines = [f"| number format | {' | '.join((*osasis.TERMS, 'loss'))} | apart from float32 | steps skipped | s |",
             "|---" * (len(osasis.TERMS) + 5) + "|"]
    for name, outcome in found.items():
        values = " | ".join(f"{value:.4f}" for value in outcome.losses[-count:].mean(0).tolist())
        apart = float((outcome.weights - exact.weights).norm() / (exact.weights - begin).norm())
        lines.append(f"| {name} | {values} | {apart:.3f} | {outcome.skipped} | {outcome.seconds:.0f} |")
    lines += ["", f"Losses are means of the last {count} iterations. Gradients of some layers, as the backward pass "
              "leaves them: share that is zero / below float16's smallest normal number.", "",
              f"| number format | {' | '.join(layers)} |", "|---" * (len(layers) + 1) + "|"]
    for name, outcome in found.items():
        shares = (f"{zero:.4f} / {small:.4f}" for zero, small in outcome.shares.tolist())
        lines.append(f"| {name} | {' | '.join(shares)} |")
    return "\n".join(lines)


def demo_models(device: torch.device) -> Models:
    diffae = loading.load_diffae(loading.DEMO / "diffae.safetensors").to(device)
    clip = loading.load_clip(loading.DEMO / "clip.safetensors").to(device)
    ddpm = loading.load_ddpm(loading.DEMO / "ddpm.safetensors").to(device)
    return Models(ddpm, Evaluator(clip, diffae, EncoderDistance(diffae.encoder)))


def report(models: Models, style_image: Tensor, config: OSASISConfig, out: Path) -> str:
    """Markdown; the curves go to OUT/precision.png."""
    found, begin = compare(models, style_image, config)
    curves = {name: list(enumerate(outcome.losses[:, -1].tolist(), 1)) for name, outcome in found.items()}
    chart(curves, "iterations", "loss", dots=False).save(out / "precision.png")
    layers = list(layers_of(osasis.start(models.diffae, config)))
    return f"{tables(found, begin, layers)}\n\n![loss](precision.png)\n"


def demo_report(config: OSASISConfig, device: torch.device, out: Path) -> str:
    models = demo_models(device)
    return report(models, to_unit(read_picture(STYLE, models.diffae.image_size))[None].to(device), config, out)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--iterations", type=int, default=CONFIG.iterations)
    p.add_argument("--set", default="", help="field=value,... of OSASISConfig")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of precision.md and precision.png")
    options = p.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    config = changed(replace(CONFIG, iterations=options.iterations), options.set)
    text = demo_report(config, torch.device(options.device), options.out)
    (options.out / "precision.md").write_text(text)
    print(text)
    return 0
