"""Systems other than Linux: what only POSIX has is asked for, and what is written can be written on Windows."""
from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oneshot_atelier.tests import as_windows

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "__init__.py", *(path for room in ("models", "train", "evaluate", "nodes", "cli")
                                 for path in sorted((ROOT / room).rglob("*.py")))]
NAMES = {module.__name__: names for module, names in ((os, as_windows.POSIX_NAMES_OF_OS),
                                                      (signal, as_windows.POSIX_NAMES_OF_SIGNAL))}
TEXT_FILES = ("read_text", "write_text")
ASKED = {  # where the code has asked whether the system has it
    "cli/selfcheck/attempts.py": {"os.killpg", "signal.SIGKILL", "os.sysconf"},
    "cli/selfcheck/pictures.py": {"os.mkfifo"},
    "cli/selfcheck/rights.py": {"signal.SIGKILL"}}


def posix_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in NAMES.get(node.value.id, ()):
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module in NAMES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name in NAMES[node.module])


def imports_at_once(tree: ast.Module) -> set[str]:
    """Modules that the file imports when it is imported itself, not in a function or a `try`."""
    lines = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return {name for node in lines for name in (
        [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])}


def unencoded(tree: ast.AST) -> Iterator[int]:
    """Lines that open a file as text in the system's own encoding, which on Windows is not UTF-8."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(key.arg in ("encoding", None) for key in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        mode = node.args[1] if name == "open" and len(node.args) > 1 else None
        binary = isinstance(mode, ast.Constant) and "b" in str(mode.value)
        opens = isinstance(node.func, ast.Name) and name == "open" and not binary
        if opens or name in TEXT_FILES and len(node.args) < 2:
            yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_needs_posix(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not imports_at_once(tree) & set(as_windows.ABSENT)
    assert set(posix_names(tree)) <= ASKED.get(path.relative_to(ROOT).as_posix(), set())
    assert not list(unencoded(tree))


@pytest.mark.parametrize("line", ["import fcntl", "from fcntl import flock", "os.fork()", "x = signal.SIGKILL",
                                  "from os import geteuid", "open('a')", "open('a', 'w')", "path.read_text()",
                                  "path.write_text('a')"])
def test_what_needs_posix_would_be_seen(line: str) -> None:
    tree = ast.parse(line)
    assert imports_at_once(tree) & set(as_windows.ABSENT) or list(posix_names(tree)) or list(unencoded(tree))


@pytest.mark.skipif(sys.platform != "linux", reason="the rules are kept up with Linux's /proc")
def test_everything_is_imported_and_saved_under_the_rules_of_windows(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, as_windows.__file__, str(tmp_path)], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.stdout.endswith("saved\n"), done.stderr[-3000:]


@pytest.mark.parametrize("name", ["a:b", "what?", "CON", "nul.txt", "com1.snapshot", "end.", "end ", "a\nb", "a|b"])
def test_the_rules_refuse_a_name_that_windows_does_not_know(name: str) -> None:
    with pytest.raises(OSError, match="Windows knows no such name"):
        as_windows.check_name(f"/tmp/{name}")


def test_the_rules_refuse_to_replace_a_file_that_is_open(tmp_path: Path) -> None:
    replace, new, old = as_windows.guarded(os.replace, 2), tmp_path / "new", tmp_path / "old"
    new.touch()
    with open(old, "w"), pytest.raises(PermissionError):
        replace(new, old)
    replace(new, old)
