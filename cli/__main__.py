"""The `atelier` command of a plain checkout, uninstalled: python PATH/TO/oneshot-atelier/cli ARGUMENTS

It needs a Python with torch and the pack's requirements, such as ComfyUI's. Installed (`pip install .`), the command is
`atelier`, or `python -m oneshot_atelier.cli`.
"""
from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

PACKAGE = "oneshot_atelier"


def load_checkout(root: Path) -> ModuleType:
    """Import the folder `root` under the name oneshot_atelier, whatever it is called. sys.path stays as it is: the
    pack's `nodes` would hide ComfyUI's."""
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(PACKAGE, root / "__init__.py",
                                                      submodule_search_locations=[str(root)])
        if spec is None or spec.loader is None:
            raise ImportError(f"{root} cannot be imported: is it the checkout of {PACKAGE}?")
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = module
        spec.loader.exec_module(module)
    return sys.modules[PACKAGE]


if __name__ == "__main__":
    if not __package__:  # started by its path: sys.path[0] is this folder, whose modules must not pass for others
        here = Path(__file__).resolve().parent
        if Path(sys.path[0]).resolve() == here:
            del sys.path[0]
        load_checkout(here.parent)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see Makefile; read when torch is first imported
    sys.exit(importlib.import_module(f"{PACKAGE}.cli.main").main())
