#!/usr/bin/env python3
"""Run a module of this checkout as part of the package `oneshot_atelier`, whatever the folder is called.

    python3 tools/launch.py cli.main report FILE ...      the `atelier` command (as `python cli`, but finds a Python)
    python3 tools/launch.py tools.demo                    the driver of `make demo`

The module's main() is called. The Python that does it: that of COMFYUI_PATH if set, else this one if it has torch,
else that of the host which `make host` sets up.
"""
from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "oneshot_atelier"
load_checkout = runpy.run_path(str(ROOT / "cli" / "__main__.py"))["load_checkout"]


def best_python() -> str:
    comfy = importlib.import_module(f"{PACKAGE}.tools.comfy")
    if not os.environ.get("COMFYUI_PATH") and importlib.util.find_spec("torch"):
        return sys.executable
    try:
        host = comfy.find_host()
        if not host.own:
            comfy.check_requirements(host)
        return host.python
    except comfy.HostMissing as missing:
        sys.exit(str(missing))


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if Path(sys.path[0]).resolve() == ROOT / "tools":
        del sys.path[0]  # the script's folder: tools/comfy.py must not pass for ComfyUI's package
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see Makefile; read when torch is first imported
    load_checkout(ROOT)
    python = best_python()
    if python != sys.executable and not os.environ.get("ATELIER_LAUNCHED"):
        os.environ["ATELIER_LAUNCHED"] = "1"
        os.execv(python, [python, __file__, *sys.argv[1:]])
    os.environ.pop("ATELIER_LAUNCHED", None)
    module = sys.argv.pop(1)
    sys.exit(importlib.import_module(f"{PACKAGE}.{module}").main())


if __name__ == "__main__":
    main()
