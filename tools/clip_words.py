"""Measures a small CLIP's words on pictures that it was not trained on: zero-shot accuracy, choices, recall.

    python3 tools/launch.py tools.clip_words FILE --photos ../shared/data/inputs_rare
    python3 tools/launch.py tools.clip_words FILE --photos ../shared/data/faces --art runs/demo_models/art --holdout 10
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ..models.features.clip import WordTokenizer
from ..models.loading import load_clip
from ..train import captions, retrieval
from ..train.recipes.config import Folders
from ..train.recipes.diffusion import clip_classes


def main(arguments: Sequence[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="clip_words", description=__doc__.splitlines()[0])
    p.add_argument("file", type=Path)
    p.add_argument("--photos", type=Path, required=True, help="folder of photos, with labels.csv beside them")
    p.add_argument("--art", type=Path, help="folder with a folder of drawings for each class")
    p.add_argument("--holdout", type=int, default=1, help="every N-th picture is measured (%(default)s: all)")
    options = p.parse_args(arguments)
    net = load_clip(options.file).to("cuda" if torch.cuda.is_available() else "cpu")
    folders = Folders(options.photos, options.art, holdout=options.holdout)
    classes, class_of = (("photo",), lambda path: 0) if options.art is None else clip_classes(folders)
    texts = captions.all_captions(classes, WordTokenizer(net.config.words, net.config.context))
    print(json.dumps(retrieval.measure(net, folders.groups(1, 0.5), texts, class_of), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
