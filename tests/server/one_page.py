"""What is asked of ComfyUI's page in one Chromium (the fixture `told`), by several test files."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from oneshot_atelier.tests.server import shipped

FIXED = ["AtelierOSASISFineTune", "AtelierOSASISFineTuneText", "AtelierPhotoTwin", "AtelierMMFSFineTune",
         "AtelierMMFSFineTuneText", "AtelierMMFSTrainStage1", "AtelierMMFSTrainStage2", "AtelierMMFSTrainMapping",
         "AtelierMMFSStylize"]
CHANGING = ["AtelierSampleDiffAE", "AtelierSampleStyleGAN2", "AtelierMMFSRandomStyle"]
SHOWN_NODE = "AtelierMMFSStylize"
ASKED = [["controls", *FIXED, *CHANGING], ["shown", "zh", SHOWN_NODE]]
BLUEPRINTS = json.loads((shipped.ROOT / "tools" / "blueprints.json").read_text())


@dataclass(frozen=True)
class Told:
    """folder: what the page would queue of each workflow, of the one with reroutes, and of each blueprint."""
    folder: Path
    printed: str

    def lines(self, command: str) -> list:
        """What was printed by a command, each time that it was asked for."""
        return [json.loads(line.removeprefix(f"{command} ")) for line in self.printed.splitlines()
                if line.startswith(f"{command} ")]

    def queued(self, name: str) -> dict:
        return json.loads((self.folder / f"{name}.json").read_text())
