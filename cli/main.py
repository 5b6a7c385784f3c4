"""The `atelier` command: run workflows, stylize folders, convert checkpoints, align faces, train models, draw photos,
report on a DiffAE, rank photos, evaluate stylization."""
from __future__ import annotations

import argparse
import importlib
import logging
import sys

from .client import RunError
from .stopping import Stopped, StopSignals
from .terminal import logging_set_up

log = logging.getLogger(__name__)
COMMANDS = {  # name: what it does
    "run": "run a workflow in a ComfyUI without its page, and fetch what it saves",
    "stylize": "stylize a folder of pictures, on all GPUs or on a Ray cluster",
    "convert": "turn an official checkpoint into a slim 16-bit safetensors file",
    "align": "cut the faces out of photos, upright and square, as FFHQ does",
    "train": "train a model from folders of pictures",
    "render-art": "make drawings of photos with filters",
    "report": "measure an autoencoder: reconstruction, what z holds, random pictures",
    "evaluate": "fine-tune styles and measure the stylized photos, OSASIS beside MMFS",
    "table": "measure results of any programs, in the tables of both papers",
    "rank": "sort photos by how well a DiffAE knows their like: rare ones first",
    "edits": "measure edits of faces by text and by attribute",
    "selfcheck": "try what an adversary or a clumsy user would: files, pictures, settings, trainings, a ComfyUI",
}
MODULES = {"selfcheck": ".selfcheck.command"}  # of commands that have a package; the others' are called like them


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 for bad input (one line on stderr), 128 + n for signal n."""
    arguments = sys.argv[1:] if arguments is None else arguments
    named = next((word for word in arguments if not word.startswith("-")), "")
    options = parser(named).parse_args(arguments)
    with logging_set_up(), StopSignals() as signals:
        try:
            options.run(options, signals)
        except Stopped as stopped:
            log.error("atelier %s: stopped. %s", options.command, stopped.saved)
            return stopped.status
        except (ValueError, OSError, RunError, ImportError) as error:
            log.error("atelier %s: %s", options.command, error)
            return 1
        except MemoryError:
            log.error("atelier %s: this computer has too little free memory for it. Close other programs, or ask for "
                      "less at once", options.command)
            return 1
    return 0


def parser(named: str | None = None) -> argparse.ArgumentParser:
    """The command line's parser. named: the command whose options are needed (None: of all); no other's module is
    imported."""
    top = argparse.ArgumentParser("atelier", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        if named in (None, name):
            importlib.import_module(MODULES.get(name, "." + name.replace("-", "_")), __package__).add_arguments(command)
    return top


if __name__ == "__main__":
    raise SystemExit(main())
