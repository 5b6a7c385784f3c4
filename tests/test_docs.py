"""docs/osasis.md and docs/mmfs.md: the sections that the code cites are there, and the code that they name is there."""
from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[1]
DOCS = ("osasis", "mmfs")
CITING = ("models", "train", "evaluate", "nodes", "cli")
SECTION = r"[A-G](?:\.\d{1,2}| \d{1,2})?"
CITED = re.compile(rf"docs/(osasis|mmfs)\.md((?:(?:,| to| and)? {SECTION}\b)*)")
BARE = re.compile(r"\b(?:[A-G]\.\d{1,2}|D \d{1,2})\b|(?<=\()[A-G](?=\))")
NAMED = re.compile(r"`([\w/]+\.py): ([^`]+)`")


@cache
def document(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


@cache
def sections(name: str) -> frozenset[str]:
    return frozenset(re.findall(rf"^#{{2,3}} ({SECTION})\b", document(name), re.MULTILINE))


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def texts(path: Path) -> Iterator[str]:
    """The docstrings of a file, the module's first (or ""), and its comments, lines of one comment joined."""
    source = path.read_text()
    tree = ast.parse(source)
    yield ast.get_docstring(tree) or ""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield ast.get_docstring(node) or ""
    lines, last = [], -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1:
                yield " ".join(lines)
                lines = []
            lines.append(token.string.lstrip("# "))
            last = token.start[0]
    yield " ".join(lines)


def named_documents(text: str) -> set[str]:
    return {match[1] for match in CITED.finditer(text)}


def wrong_citations(path: Path) -> list[str]:
    """Citations of a file that lead nowhere."""
    found, whole_file = [], set()
    for k, text in enumerate(texts(path)):
        text = " ".join(text.split())
        for match in CITED.finditer(text):
            found += [match[0] for section in re.findall(rf"\b{SECTION}\b", match[2])
                      if section not in sections(match[1])]
        names = named_documents(text)
        whole_file |= names if k == 0 else set()
        for section in BARE.findall(CITED.sub("", text)):
            if not any(section in sections(name) for name in names | whole_file):
                found.append(f"{section}, of {' or '.join(sorted(names | whole_file)) or 'no document'}")
    return found


def test_every_cited_section_is_there():
    wrong = {str(path.relative_to(ROOT)): wrong_citations(path) for path in python_files(*CITING)}
    assert {path: citations for path, citations in wrong.items() if citations} == {}


def test_citations_are_found_and_checked(tmp_path):
    file = tmp_path / "file.py"
    file.write_text('"""Of docs/osasis.md A.4 to A.6, and docs/mmfs.md Z (A.77; B)."""\n'
                    'x = 1  # (D 2), (E), (B, E), D 99\n\n# docs/mmfs.md\n# B.41\n')
    assert wrong_citations(file) == ["A.77, of mmfs or osasis", "D 99, of mmfs or osasis", "docs/mmfs.md B.41"]
    file.write_text('"""None."""\n\n\ndef f():\n    """Of nothing (A.4)."""\n')
    assert wrong_citations(file) == ["A.4, of no document"]


@pytest.mark.parametrize("name", DOCS)
def test_sections_of_one_document_are_distinct_and_in_order(name):
    found = re.findall(rf"^#{{2,3}} ({SECTION})\b", document(name), re.MULTILINE)
    order = [(section[0], int(section[2:] or 0)) for section in found]
    assert order == sorted(set(order))
    assert {"A", "B", "C", "D", "E"} <= set(found)


# --- what the documents name ------------------------------------------------------------------------------------------
@cache
def defined(path: Path) -> frozenset[str]:
    """Names that a file defines, those inside its classes as Class.name."""
    return frozenset(definitions(ast.parse(path.read_text()).body))


def definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from definitions(node.body, f"{prefix}{node.name}.")
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for part in (part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)):
                yield prefix + part.id


@pytest.mark.parametrize("name", DOCS)
def test_every_function_that_a_document_names_is_there(name):
    found = NAMED.findall(document(name))
    assert len(found) > 40
    for file, names in found:
        assert (ROOT / file).is_file(), file
        missing = {part.strip() for part in names.split(",")} - defined(ROOT / file)
        assert not missing, f"{file}: {missing}"


@pytest.mark.parametrize("path", [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


# --- settings ---------------------------------------------------------------------------------------------------------
def tables(name: str) -> dict[str, list[dict[str, str]]]:
    """{class: its rows} of the tables of settings in a document."""
    found: dict[str, list[dict[str, str]]] = {}
    for block in re.findall(r"^\| field of .*\n(?:\|.*\n)+", document(name), re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines())
        found[head[0].split("`")[1]] = [dict(zip(["field", *head[1:]], row, strict=True)) for row in rows]
    return found


def cell(value) -> str:
    return str(value) or "none"


def test_the_settings_in_the_documents_are_the_real_ones():
    from dataclasses import asdict

    from oneshot_atelier.train.fewshot import FewShotConfig
    from oneshot_atelier.train.mmfs import MAPPING, STAGE1, STAGE2
    from oneshot_atelier.train.osasis import OSASISConfig
    from oneshot_atelier.train.presets import MMFS_PRESETS, OSASIS_PRESETS
    found = tables("osasis") | tables("mmfs")
    base = asdict(STAGE2)
    stages = {name: {k: v for k, v in asdict(config).items() if v != base[k]}
              for name, config in (("Stage I", STAGE1), ("CLIP mapping", MAPPING))}
    for name, first, values, columns in (("OSASISConfig", "default", asdict(OSASISConfig()), OSASIS_PRESETS),
                                         ("FewShotConfig", "default", asdict(FewShotConfig()), MMFS_PRESETS),
                                         ("GANConfig", "Stage II", base, stages)):
        rows = {row.pop("field").strip("`"): row for row in found[name]}
        assert rows.keys() == values.keys(), name
        for field, row in rows.items():
            assert row.pop(first) == cell(values[field]), f"{name}.{field}"
            for column, written in row.items():
                changed = columns[column]
                assert written == (cell(changed[field]) if field in changed else ""), f"{name}.{field}, {column}"


# --- the README and the registry's page -------------------------------------------------------------------------------
def test_messages_in_the_readme_are_those_of_the_code():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("## When something goes wrong"):readme.index("## From the command line")]
    messages = re.findall(r"^\| `([^|]+)` \|", table, re.MULTILINE)
    assert len(messages) > 4
    said = {node.value for path in python_files("nodes", "models", "train") for node in ast.walk(ast.parse(
        path.read_text())) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    for message in messages:
        for part in filter(str.strip, re.split(r"\.\.\.|`, `", message)):
            assert any(part.strip("'/ ") in text for text in said), part


def test_the_registry_finds_icon_banner_and_the_oldest_comfyui():
    from oneshot_atelier.tests.server.test_older_host import VERSION
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    comfy, repository = project["tool"]["comfy"], project["project"]["urls"]["Repository"]
    raw = repository.replace("github.com", "raw.githubusercontent.com") + "/main/"
    for name, size in (("Icon", (400, 400)), ("Banner", (2100, 900))):  # at most 400 x 400, and 21:9
        file = ROOT / comfy[name].removeprefix(raw)
        assert file.stat().st_size <= 100_000
        root = ElementTree.fromstring(file.read_text())
        assert (int(root.get("width")), int(root.get("height"))) == size
    assert comfy["requires-comfyui"] == f">={VERSION}"


# --- no document but these --------------------------------------------------------------------------------------------
def pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "web").rglob("*.md"),
            *(ROOT / "models").rglob("*.md")]


def test_nothing_mentions_documents_that_are_not_in_the_repository():
    for path in [*python_files(*CITING, "bench", "tools", "tests"), *pages()]:
        whole = path.read_text()
        assert "/work/" + "shared" not in whole, path
        words = " ".join(texts(path)) if path.suffix == ".py" else whole
        assert not re.search(r"\bspecs?\b", words, re.IGNORECASE), path
