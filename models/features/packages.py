"""Packages that only some networks need: imported when first used, with a message that says what to install."""
from __future__ import annotations

import importlib
import re
from importlib import metadata
from types import ModuleType

MINIMUM = {"open_clip_torch": "2.32", "timm": "1.0.3", "lpips": "0.1.3", "kornia": "0.7",
           "torchvision": "0.15"}


def package_module(module: str, package: str) -> ModuleType:
    """The module of a package of MINIMUM. ImportError if the package is missing, broken or too old."""
    found = installed_version(package)
    if found is not None and version_key(found) < version_key(MINIMUM[package]):
        raise ImportError(f"{package} {found} is too old. This pack needs {MINIMUM[package]} or newer. Run in "
                          f"ComfyUI's Python: pip install -U '{package}>={MINIMUM[package]}'")
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(f"{package} could not be imported ({error}). Run in ComfyUI's Python: pip install "
                          f"'{package}>={MINIMUM[package]}'. It needs a torchvision that fits your torch") from error


def installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def version_key(version: str) -> tuple[int, ...]:
    """The numbers of a version, to compare: "2.32.0.dev1" -> (2, 32, 0)."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()
