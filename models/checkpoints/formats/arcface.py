"""ArcFace's networks: IR-SE50 (`model_ir_se50.pth`) and insightface's iResNet (`backbone.pth`), names unchanged."""

from __future__ import annotations

from .foreign import Foreign, read_all
from .weights import Weights

_INSIDE = "facenet."  # of names in checkpoints of trainings that use the network in a loss


def matches(weights: Weights) -> bool:
    """True for an IR network, alone or inside another training's names, and for an iResNet."""
    return any(name in weights.state for name in ("input_layer.0.weight", f"{_INSIDE}input_layer.0.weight",
                                                  "layer1.0.prelu.weight"))


def parse(weights: Weights) -> Foreign:
    """Kind "arcface". Raises CheckpointError."""
    inside = f"{_INSIDE}input_layer.0.weight" in weights.state
    state = {name.removeprefix(_INSIDE): value for name, value in weights.state.items()
             if not inside or name.startswith(_INSIDE)}
    names = {name: name for name in state if not name.endswith("num_batches_tracked")}
    return Foreign(read_all(state, names), "arcface", {"format": "arcface"})
