#!/usr/bin/env python3
"""Try the pack with other Pythons, and with other torch and numpy: installed into a venv that holds ComfyUI's packages,
which must all stay as they are (pip freeze before and after), then tested.

    python3 tools/host/pythons.py                3.10 with the oldest of everything, 3.12 with numpy 1.26, 3.13
    python3 tools/host/pythons.py 3.12           one of them
    python3 tools/host/pythons.py 3.12 --tests tests/test_losses.py    other tests than TESTS
    python3 tools/host/pythons.py --keep         leave the venvs; else each is removed once its tests have passed

Each takes about 6 GB, some minutes for torch and the tests' time. Pythons are found as python3.X or in pyenv. Prints a
table. Standard library only; `make host` comes first.
"""
from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    from . import setup
except ImportError:  # run as a program
    import setup

ROOT = setup.HERE.parents[1]
NEWEST = ("torch==2.14.1", "torchvision==0.29.1")
# the lower bounds of pyproject.toml, and the oldest torch with all that is called; ComfyUI's own bound of kornia
OLDEST = ("torch==2.4.1", "torchvision==0.19.1", "numpy==1.26.4", "einops==0.7", "kornia==0.7.1", "lpips==0.1.3",
          "open_clip_torch==2.32", "pillow==10.1", "safetensors==0.4.3", "timm==1.0.3", "tqdm==4.65")
PINS = {"3.10": OLDEST, "3.12": (*NEWEST, "numpy==1.26.4"), "3.13": NEWEST}
UNUSED = ("torchaudio", "comfyui-workflow-templates", "comfyui-embedded-docs")  # of ComfyUI's; large
TESTS = [f"tests/test_{name}.py" for name in (
    "networks", "losses", "unet", "diffusion", "fine_tune", "checkpoints", "checkpoints_mmfs", "loading", "store",
    "session", "schema", "cli", "metrics", "nodes_mmfs", "precision", "layers", "perceptual", "clip", "rng")]
IMPORT = ("import importlib, pathlib, oneshot_atelier as o; root = pathlib.Path(o.__file__).parent; "
          "names = ['.'.join(('oneshot_atelier', *f.relative_to(root).with_suffix('').parts)) for room in "
          "('models', 'train', 'evaluate', 'cli') for f in (root / room).rglob('*.py') if f.stem[:2] != '__']; "
          "assert len(names) > 100; [importlib.import_module(n) for n in names if '.kernels.' not in n]")


def find_python(version: str) -> str:
    in_path = shutil.which(f"python{version}")
    for python in [*([in_path] if in_path else []), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]:
        if not subprocess.run([python, "--version"], capture_output=True).returncode:  # pyenv's shims may lead nowhere
            return str(python)
    sys.exit(f"[pythons] there is no Python {version} here: install it (pyenv install {version}), or name others.")


def installed(python: Path) -> dict[str, str]:
    """Of pip freeze: name -> its line."""
    frozen = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    return {re.split(r"==| @ ", line)[0].lower(): line for line in frozen.splitlines() if line[:1] != "#"}


def comfyui_requirements() -> list[str]:
    text = (setup.comfy_dir(setup.host_dir()) / "requirements.txt").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.split("\n") if line.strip() and line[0] != "#"]
    return [line for line in lines if not line.startswith(UNUSED)]


def install_pack(folder: Path, run: setup.Commands) -> list[str]:
    """Both ways: as ComfyUI's Manager does, then as a package. Returns what moved, of what was there before."""
    python = folder / "bin" / "python"
    before = installed(python)
    run(python, "-m", "pip", "install", "--no-input", "-r", ROOT / "requirements.txt")
    with tempfile.TemporaryDirectory() as copy:
        tree = shutil.copytree(ROOT, Path(copy) / "pack", ignore=shutil.ignore_patterns(".git", "demo_output", "tests"))
        run(python, "-m", "pip", "install", "--no-input", tree)
    after = installed(python)
    return [f"{line} -> {after.get(name, 'gone')}" for name, line in before.items() if after.get(name) != line]


def tried(version: str, folder: Path, tests: list[str], run: setup.Commands) -> str:
    """A row of the table. SystemExit if something moved or failed."""
    run(find_python(version), "-m", "venv", folder)
    python, constraints = folder / "bin" / "python", folder / "constraints.txt"
    constraints.write_text("\n".join(PINS[version]), encoding="utf-8")
    run(python, "-m", "pip", "install", "--no-input", "-c", constraints, *comfyui_requirements())
    if moved := install_pack(folder, run):
        sys.exit(f"[pythons] installing the pack into Python {version} moved: {', '.join(moved)}")
    run(python, "-m", "pip", "install", "--no-input", "-c", constraints, "pytest", "accelerate", "tensorboard",
        *(pin for pin in PINS[version] if not pin.startswith("torch")))
    run(python, "-c", IMPORT)
    done = subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], cwd=ROOT, text=True,
                          capture_output=True, env=os.environ | {
                              "COMFYUI_PATH": str(setup.comfy_dir(setup.host_dir())), "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{done.stdout[-5000:]}\n[pythons] the tests failed with Python {version}")
    now = installed(python)
    shown = [now[name].partition("==")[2] for name in ("torch", "torchvision", "numpy", "transformers")]
    return f"| {version} | {' | '.join(shown)} | nothing | {done.stdout.strip().splitlines()[-1]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=list(PINS), help="of " + ", ".join(PINS))
    parser.add_argument("--tests", nargs="+", default=TESTS)
    parser.add_argument("--keep", action="store_true", help="leave the venvs")
    options = parser.parse_args()
    if unknown := set(options.versions) - set(PINS):
        sys.exit(f"[pythons] there is nothing to try with {', '.join(sorted(unknown))}; take some of {', '.join(PINS)}")
    rows = []
    for version in options.versions:
        folder = setup.home() / "pythons" / version
        shutil.rmtree(folder, ignore_errors=True)
        with setup.locked(setup.home() / "pythons.lock") as lock:
            folder.parent.mkdir(parents=True, exist_ok=True)
            rows.append(tried(version, folder, options.tests, setup.Commands(setup.home() / "pythons.log", lock)))
        if not options.keep:
            shutil.rmtree(folder)
        print(f"[pythons] {rows[-1]}", flush=True)
    columns = ("Python", "torch", "torchvision", "numpy", "transformers", "moved", "tests")
    print(f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|", *rows, sep="\n")


if __name__ == "__main__":
    main()
