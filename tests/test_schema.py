"""What the page and saved workflows see of every node: ids, inputs, defaults, tooltips, help pages.

golden_nodes.json guards the ids, inputs, their order and defaults: saved workflows depend on them. After a change that
is meant: ATELIER_WRITE_GOLDEN=1 pytest tests/test_schema.py, and look at the difference. Append inputs, never insert.
"""
from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from oneshot_atelier.tests import in_comfy

pytestmark = pytest.mark.server
GOLDEN = Path(__file__).with_name("golden_nodes.json")
FROM_FOLDERS = {"model", "file", "photos_folder", "art_folder", "results_folder", "styles_folder", "alexnet", "arcface",
                "inception", "art_inception"}  # combos whose choices are the user's files
SECTIONS = {"en": ["When to use it", "Inputs", "Outputs", "In the paper", "Notes", "Common mistakes"],
            "zh": ["何时使用", "输入", "输出", "论文中", "说明", "常见错误"]}  # of help pages


@pytest.fixture(scope="module")
def infos(tmp_path_factory):
    """/object_info of every node of the pack, by id."""
    _, found = in_comfy.nodes(tmp_path_factory.mktemp("comfy_base"))
    return {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in found}


def inputs_of(info):
    """(id, type or choices, options, optional) of every input, in order."""
    for part in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(part, {}).items():
            yield name, kind, rest[0] if rest else {}, part == "optional"


def described(info):
    rows = []
    for name, kind, options, optional in inputs_of(info):
        row = {"id": name, "type": kind} | {k: options[k] for k in ("default", "min", "max", "step") if k in options}
        if isinstance(kind, list) or kind == "COMBO":
            choices = options.get("options", kind)
            row["type"] = "COMBO"
            if name not in FROM_FOLDERS:
                row["choices"] = choices
            elif name == "file":
                del row["default"]  # the user's first file
        rows.append(row | ({"optional": True} if optional else {}))
    return {"display_name": info["display_name"], "category": info["category"], "inputs": rows,
            "outputs": [list(pair) for pair in zip(info["output"], info["output_name"])]}


def test_nothing_that_saved_workflows_depend_on_has_changed(infos):
    now = json.loads(json.dumps({name: described(info) for name, info in infos.items()}))
    if os.environ.get("ATELIER_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(now, indent=1) + "\n")
    expected = json.loads(GOLDEN.read_text())
    assert now.keys() == expected.keys()
    for name in expected:
        assert now[name] == expected[name], name


def test_graphs_of_0_2_still_run(infos):
    """A node asks for nothing that it did not ask for in 0.2.0: graphs that were saved then name no later input."""
    wanted = json.loads(GOLDEN.with_name("golden_required.json").read_text())
    assert wanted.keys() <= infos.keys()
    for name, required in wanted.items():
        assert [id_ for id_, _, _, optional in inputs_of(infos[name]) if not optional] == required, name


def test_ids_names_and_categories(infos):
    for name, info in infos.items():
        assert re.fullmatch(r"Atelier[A-Z]\w+", name)
        assert re.fullmatch(r"Atelier/[a-z]+", info["category"]), name
        assert info["display_name"] and not info["display_name"].startswith("Atelier"), name
    assert len({info["display_name"] for info in infos.values()}) == len(infos)


def test_everything_is_explained(infos):
    for name, info in infos.items():
        assert len(info["description"]) > 40, name
        for field, _, options, _ in inputs_of(info):
            assert len(options.get("tooltip") or "") > 10, f"{name}.{field} has no tooltip"
        assert len(info["output_tooltips"]) == len(info["output"])
        for output, tooltip in zip(info["output_name"], info["output_tooltips"]):
            assert len(tooltip or "") > 10, f"{name}: output {output} has no tooltip"


@pytest.fixture(scope="module")
def pages(root):
    """{(node, language): help page}: web/docs/NODE.md is English, web/docs/NODE/zh.md Chinese."""
    docs = root / "web" / "docs"
    return {(page.stem, "en"): page.read_text(encoding="utf-8") for page in docs.glob("*.md")} | {
        (page.parent.name, page.stem): page.read_text(encoding="utf-8") for page in docs.glob("*/*.md")}


def test_every_node_has_a_help_page(infos, pages):
    assert {node for node, language in pages if language == "en"} == infos.keys()
    assert {language for _, language in pages} <= SECTIONS.keys()
    assert {node for node, _ in pages} == infos.keys()


def test_help_pages_name_all_parts_of_their_nodes(infos, pages):
    for (node, language), page in pages.items():
        info = infos[node]
        parts = [field for field, *_ in inputs_of(info)] + list(info["output_name"])
        assert [part for part in parts if f"`{part}`" not in page] == [], (node, language)
        rows = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
        assert [row for row in rows if row in parts] == parts, f"{node}, {language}: the tables lack or repeat parts"
        assert info["display_name"] in page.splitlines()[0] and len(page) > 700 / (1 + (language == "zh")), node


def test_help_pages_say_what_when_how_and_what_goes_wrong(pages):
    for (node, language), page in pages.items():
        found = re.findall(r"^## (.+)$", page, re.MULTILINE)
        assert [title for title in found if title in SECTIONS[language]] == SECTIONS[language], (node, language)
        for title, text in zip(found, re.split(r"^## .+$", page, flags=re.MULTILINE)[1:]):
            assert len(text.strip()) > 20, f"{node}, {language}: {title} says nothing"


def test_help_pages_lead_to_the_papers_as_implemented(pages, root):
    for (node, language), page in pages.items():
        (cited,) = re.findall(r"^(?:As implemented: |实现见 )(`docs/.+`)[.。]$", page, re.MULTILINE)
        for name, sections in re.findall(r"`docs/(\w+)\.md([^`]*)`", cited):
            document = (root / "docs" / f"{name}.md").read_text()
            for section in filter(None, (part.strip() for part in sections.split(","))):
                assert re.search(rf"^#+ {section}\b", document, re.MULTILINE), f"{node}, {language}: {name} {section}"


def test_pictures_in_help_pages_are_results_of_workflows_with_the_node(pages, root):
    shown = {}
    for (node, language), page in pages.items():
        for target in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", page):
            name = re.fullmatch(r"/api/workflow_templates/oneshot-atelier/(\w+)\.jpg", target)[1]
            assert (root / "workflows" / f"{name}.jpg").is_file() and f"`{name}`" in page, (node, language)
            graph = json.loads((root / "workflows" / "api" / f"{name}.json").read_text())
            assert node in {entry["class_type"] for entry in graph.values()}, (node, name)
            shown.setdefault(node, set()).add(name)
    assert len(shown) >= 20


def test_defaults_in_the_help_pages_are_the_real_ones(infos, pages):
    for (node, language), page in pages.items():
        for field, _, options, _ in inputs_of(infos[node]):
            row = next(line for line in page.splitlines() if line.startswith(f"| `{field}` |"))
            default = options.get("default")
            if default not in (None, "") and field not in FROM_FOLDERS:
                assert f"| {plain(default)} |" in row, f"{node}.{field}, {language}: {default} is not in {row}"


def plain(value) -> str:
    """A default as the help pages write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.10f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def test_the_pack_serves_its_help_pages():
    import oneshot_atelier
    assert oneshot_atelier.WEB_DIRECTORY == "./web"
