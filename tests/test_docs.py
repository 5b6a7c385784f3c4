"""What pages say of each other and of the code: cited sections, links, anchors, functions, settings, figures."""
from __future__ import annotations

import ast
import io
import json
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
SECTION = r"[A-H](?:\.\d{1,2}| \d{1,2})?"
CITED = re.compile(rf"docs/(osasis|mmfs)\.md((?:(?:,| to| and)? {SECTION}\b)*)")
BARE = re.compile(r"\b(?:[A-H]\.\d{1,2}|D \d{1,2})\b|(?<=\()[A-H](?=\))")
TITLED = re.compile(r"docs/(\w+)\.md`?, ([A-Z][a-z]\w+)")  # a section by its title, as in "docs/faces.md, Films"
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


@pytest.mark.parametrize("name", [*DOCS, "faces"])
def test_every_function_that_a_document_names_is_there(name):
    found = NAMED.findall(document(name))
    assert len(found) > (40 if name in DOCS else 15)
    for file, names in found:
        assert (ROOT / file).is_file(), file
        missing = {part.strip() for part in names.split(",")} - defined(ROOT / file)
        assert not missing, f"{file}: {missing}"


def pages() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "web").rglob("*.md"),
            *(ROOT / "models").rglob("*.md"), *(ROOT / "tests").rglob("*.md"), *(ROOT / "bench").rglob("*.md")]


def titles(path: Path) -> list[str]:
    fenced = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    return re.findall(r"^#{1,6} (.+)$", fenced.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)


@cache
def anchors(path: Path) -> frozenset[str]:
    """The anchors that GitHub gives to the titles of a page."""
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles(path))


def lost_links(path: Path) -> list[str]:
    """Links of a page to files or anchors that are not there. Those from the root of a server are left out."""
    found = []
    for target in re.findall(r"\]\((?!https?:|/)([^)\s]+)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if not there.exists() or anchor and anchor not in anchors(there):
            found.append(target)
    return found


@pytest.mark.parametrize("path", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(path):
    assert lost_links(path) == []


def test_lost_links_are_found(tmp_path):
    (tmp_path / "other.md").write_text("# One title: `code`, more\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("## Here\n[a](other.md) [b](other.md#one-title-code-more) [c](#here) [d](https://x.y/z)\n"
                    "[e](/api/f) [f](none.md) [g](other.md#two) [h](#there)\n", encoding="utf-8")
    assert lost_links(page) == ["none.md", "other.md#two", "#there"]


def lost_names(text: str) -> list[str]:
    """Documents, sections and titles of documents that a text names and that are not there."""
    text = " ".join(text.split())
    named = set(re.findall(r"(?<![\w/])docs/(\w+)\.md", text))
    found = sorted(f"docs/{name}.md" for name in named if not (ROOT / "docs" / f"{name}.md").is_file())
    found += [match[0] for match in CITED.finditer(text) for section in re.findall(rf"\b{SECTION}\b", match[2])
              if section not in sections(match[1])]
    return found + [f"docs/{name}.md, {title}" for name, title in TITLED.findall(text)
                    if not any(title in each.split() for each in titles(ROOT / "docs" / f"{name}.md"))]


def test_documents_that_are_named_are_there_with_what_is_named_of_them():
    said = {path: path.read_text(encoding="utf-8") for path in pages()}
    said |= {path: "\n\n".join(texts(path)) for path in python_files(*CITING, "bench", "tools")}
    lost = {str(path.relative_to(ROOT)): lost_names(text) for path, text in said.items()}
    assert {path: names for path, names in lost.items() if names} == {}


def test_lost_names_are_found():
    text = ("docs/osasis.md H.1 and `docs/faces.md`, Films. web/docs/ID.md, docs/none.md; docs/mmfs.md H, "
            "(docs/faces.md, Sound)")
    assert lost_names(text) == ["docs/none.md", "docs/mmfs.md H", "docs/faces.md, Sound"]


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


def rows_of(page: str) -> Iterator[tuple[str, str, str]]:
    """(row, column, cell) of all tables of a page; "(up)" and "(down)" of a column left out."""
    for block in re.findall(r"^\|.*\n\|[-|]+\n(?:\|.*\n)+", page, re.MULTILINE):
        head, _, *rows = ([part.strip() for part in line.strip()[1:-1].split("|")] for line in block.splitlines())
        for row in rows:
            yield from ((row[0], re.sub(r" \((?:up|down)\)$", "", column), part)
                        for column, part in zip(head[1:], row[1:], strict=True))


def claims_of(page: str) -> set[tuple[str, ...]]:
    """(claim, measure, difference with its interval, verdict) of a page's tables."""
    lines = ([part.strip() for part in line.strip("|").split("|")] for line in page.splitlines())
    return {tuple(line[-4:]) for line in lines if line[-1] in ("**yes**", "**no**", "**unclear**")}


def test_figures_of_the_readme_are_those_of_the_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    measured = readme[readme.index("## Measured"):readme.index("### Time")]
    found: dict[tuple[str, str], set[str]] = {}
    for row, column, part in rows_of((ROOT / "docs" / "results.md").read_text(encoding="utf-8")):
        found.setdefault((row, column), set()).add(part)
    compared = [(row, column, part) for row, column, part in rows_of(measured) if (row, column) in found]
    assert len(compared) > 60
    assert [each for each in compared if each[2] not in found[each[:2]]] == []
    claims = claims_of(measured)
    assert len(claims) > 8 and claims <= claims_of((ROOT / "docs" / "results.md").read_text(encoding="utf-8"))


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


def test_the_readme_tells_how_many_words_the_demo_clip_knows():
    from oneshot_atelier.models.loading import DEMO, load_clip
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = {int(number) for number in re.findall(r"(\d+) words", readme)}
    assert told == {len(load_clip(DEMO / "clip.safetensors").tokenizer().ids)}


def test_notes_of_workflows_are_those_of_their_layouts():
    layouts = json.loads((ROOT / "tools" / "layouts.json").read_text(encoding="utf-8"))
    for name, layout in layouts.items():
        workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        notes = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "Note"]
        assert notes == [layout["note"]], name


# --- no document but these --------------------------------------------------------------------------------------------
def test_nothing_mentions_documents_that_are_not_in_the_repository():
    for path in [*python_files(*CITING, "bench", "tools", "tests"), *pages()]:
        whole = path.read_text()
        assert "/work/" + "shared" not in whole, path
        words = " ".join(texts(path)) if path.suffix == ".py" else whole
        assert not re.search(r"\bspecs?\b", words, re.IGNORECASE), path
