"""pyright over the rooms, as `make lint` runs it, and every function of theirs typed."""
from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
ROOMS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]["include"]


def run_pyright(*arguments: str) -> subprocess.CompletedProcess:
    """With the packages of this Python in sight: without torch, most of the errors would not be seen."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def errors_of(done: subprocess.CompletedProcess) -> list[str]:
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [f"{Path(d['file']).name}:{d['range']['start']['line'] + 1} {d['message']}" for d in found
            if d["severity"] == "error"]


def test_pyright_finds_nothing():
    done = run_pyright()
    assert not errors_of(done)
    assert done.returncode == 0, done.stderr


def test_pyright_sees_torch(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text("import torch\nx: str = torch.zeros(1)\n")
    done = run_pyright(str(file))
    assert done.returncode == 1 and "Tensor" in errors_of(done)[0]


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Triton's own language, whose arguments have no types of Python."""
    return any(ast.unparse(d).startswith("triton.jit") for d in function.decorator_list)


def untyped(source: str) -> list[str]:
    """Functions of a module that lack the type of a parameter or of what they return."""
    tree, found = ast.parse(source), []
    methods = {id(f) for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for f in c.body
               if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))
               and "staticmethod" not in map(ast.unparse, f.decorator_list)}
    for f in ast.walk(tree):
        if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) and not is_kernel(f):
            a = f.args
            parameters = [*a.posonlyargs, *a.args][id(f) in methods:]
            parameters += [*a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            if f.returns is None or any(p.annotation is None for p in parameters):
                found.append(f"{f.name}, line {f.lineno}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_every_function_is_typed(room):
    assert not {str(p.relative_to(ROOT)): names for p in sorted((ROOT / room).rglob("*.py"))
                if (names := untyped(p.read_text()))}


def test_untyped_functions_are_seen():
    source = ("class A:\n    def a(self, x: int) -> None: ...\n    async def b(self) -> int: ...\n"
              "    def d(self): ...\ndef c(x) -> int: ...\n")
    assert untyped(source) == ["c, line 5", "d, line 4"]
