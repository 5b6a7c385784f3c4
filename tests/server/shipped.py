"""The workflows that ship, and the same graphs with less work in them for the tests."""
from __future__ import annotations

import copy
import json
from pathlib import Path

from oneshot_atelier.cli.client import Client, Graph, Result

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "workflows"
INPUTS = FOLDER / "inputs"
NAMES = sorted(path.stem for path in (FOLDER / "api").glob("*.json"))
MAIN = "osasis_demo"

# What the tests lower in the shipped graphs, by node type; everything else runs as it ships. Ten steps at t0 0.5
# are five UNet calls. "as set below" makes the finer settings of the fine-tune count, which the preset would replace.
LOWERED = {
    "AtelierPhotoTwin": {"candidates": 2, "steps": 10},
    "AtelierOSASISFineTuneOptions": {"preset": "as set below", "forward_steps": 10, "reverse_steps": 10,
                                     "latent_steps": 10, "generate_steps": 10, "cached_content": 1},
    "AtelierOSASISFineTune": {"iterations": 2, "save_every": 1, "batch": 1},
    "AtelierOSASISFineTuneText": {"iterations": 2, "save_every": 1, "batch": 1},
    "AtelierChooseOSASISSnapshot": {"steps": 10},
    "AtelierStructuralEncode": {"steps": 10},
    "AtelierOSASISStylize": {"steps": 10},
    "AtelierDecode": {"steps": 10},
    "AtelierSampleDiffAE": {"count": 2, "steps": 10, "latent_steps": 10},
    "AtelierRankByDensity": {"encode_steps": 10, "decode_steps": 10},
    "AtelierEditText": {"steps": 2, "decode_steps": 10},
    "AtelierMMFSFineTuneOptions": {"preset": "as set below", "cached_content": 4},
    "AtelierMMFSFineTune": {"iterations": 2, "batch": 2},
    "AtelierMMFSFineTuneText": {"iterations": 2, "batch": 2},
    "AtelierMMFSTrainStage1": {"steps": 2},
    "AtelierMMFSTrainStage2": {"steps": 2},
    "AtelierMMFSTrainMapping": {"steps": 2}}


def shipped(name: str) -> dict:
    """workflows/api/NAME.json as it ships."""
    return json.loads((FOLDER / "api" / f"{name}.json").read_text())


def reduced(graph: Graph) -> dict:
    """The graph with exactly the inputs in LOWERED changed."""
    graph = copy.deepcopy(dict(graph))
    for node in graph.values():
        lowered = LOWERED.get(node["class_type"], {})
        assert lowered.keys() <= node["inputs"].keys(), f"{node['class_type']} has no input of these: {lowered}"
        node["inputs"] |= lowered
    return graph


class Reducing(Client):
    """Runs every graph with the tests' numbers."""

    def run(self, graph: Graph, *args: object, **options: object) -> Result:
        return super().run(reduced(graph), *args, **options)
