"""Draws how trainings converged, from the measurements that MMFS files carry: their distance to the art over the steps.

    python3 tools/launch.py tools.curves OUT.png "two stages=s2.safetensors" "from scratch=scratch.safetensors"
"""
from __future__ import annotations

import sys
from pathlib import Path

from ..models.checkpoints import store
from ..train.plots import chart


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    out, curves = Path(arguments[0]), dict(argument.split("=", 1) for argument in arguments[1:])
    chart({label: measured(Path(path)) for label, path in curves.items()}, "steps of Stage II").save(out)
    return 0


def measured(path: Path) -> list[tuple[float, float]]:
    """(step, distance to the art) pairs of a Stage II file."""
    meta = store.peek(path).meta or {}
    return list(zip(meta.get("measured_at", []), meta.get("art_distance", [])))


if __name__ == "__main__":
    raise SystemExit(main())
