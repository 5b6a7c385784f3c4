"""What the parts of the house need: public functions take few parameters, MMFS's training nothing of OSASIS's.

test_layers.py has the order of the imports.
"""
import ast
from pathlib import Path

import pytest

from oneshot_atelier.tests.test_layers import imports

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("models", "train", "evaluate")
MAX_PARAMETERS = 8
MMFS_TRAINING = ("mmfs", "fewshot", "source_faces", "gan", "stages")
OF_OSASIS = {"train.osasis", "train.content", "models.osasis", "models.diffae", "models.spn"}


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def modules_of(path):
    """Modules of the pack that a file imports, whether as a module or something of it."""
    return {name for module, part in imports(path) for name in (module, f"{module}.{part}")}


@pytest.mark.parametrize("name", MMFS_TRAINING)
def test_the_training_of_mmfs_needs_nothing_of_osasis(name):
    assert not modules_of(ROOT / "train" / f"{name}.py") & OF_OSASIS


def public_functions(path):
    """(name, its parameters without self or cls) of functions and methods without a leading underscore."""
    def visit(body, prefix, inside):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from visit(node.body, f"{prefix}{node.name}.", True)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if node.name.startswith("_") and node.name != "__init__":
                    continue
                a = node.args
                names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg)))]
                yield f"{prefix}{node.name}", names[1:] if inside and names[:1] in (["self"], ["cls"]) else names
    yield from visit(ast.parse(path.read_text(encoding="utf-8")).body, f"{path.relative_to(ROOT)}: ", False)


@pytest.mark.parametrize("folder", FOLDERS)
def test_public_functions_take_at_most_eight_parameters(folder):
    many = [f"{name}({', '.join(names)})" for path in sources(folder) for name, names in public_functions(path)
            if len(names) > MAX_PARAMETERS]
    assert not many


def test_the_rules_can_fail():
    assert {"models.osasis", "models.diffae", "train.content"} <= modules_of(ROOT / "train" / "osasis.py")
    found = dict(public_functions(ROOT / "train" / "loop.py"))
    names = [name.split(": ")[1] for name in found]
    assert "train" in names and "Hooks.sampler" in names and not any("_Saver" in name for name in names)
    assert len(found["train/loop.py: train"]) == 8
