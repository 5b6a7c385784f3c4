"""locales/: both languages say everything that the nodes say, and nothing else (tools/locales.py)."""
from __future__ import annotations

import json
import re

import pytest

from oneshot_atelier.tests import in_comfy
from oneshot_atelier.tools import locales

pytestmark = pytest.mark.server
OF_COMFYUI = {"加载图像"}  # names of ComfyUI's own nodes, as its Chinese has them


@pytest.fixture(scope="module")
def schemas(tmp_path_factory):
    _, found = in_comfy.nodes(tmp_path_factory.mktemp("comfy_base"))
    return [node.GET_SCHEMA() for node in found]


@pytest.fixture(scope="module")
def words():
    return locales.read_words("zh")


def test_the_files_are_what_the_tool_makes(schemas):
    """`python3 tools/launch.py tools.locales` writes them; it lists what locales/zh.json lacks or has too much."""
    made = locales.files(schemas)
    there = {*locales.LOCALES.glob("*/*"), *locales.PAGES.glob("*/*")}
    assert there == made.keys()
    for path, text in made.items():
        assert path.read_text(encoding="utf-8").splitlines() == text.splitlines(), path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_text_of_a_node_is_missing_or_left_over(schemas, language):
    """Told from the schemas anew, without the tool's functions."""
    folder = locales.LOCALES / language
    nodes = json.loads((folder / "nodeDefs.json").read_text(encoding="utf-8"))
    assert nodes.keys() == {schema.node_id for schema in schemas}
    for schema in schemas:
        node = nodes[schema.node_id]
        assert node.keys() == {"display_name", "description", "inputs", "outputs"}
        assert list(node["inputs"]) == [field.id for field in schema.inputs]
        assert list(node["outputs"]) == [str(k) for k in range(len(schema.outputs))]
        for field in schema.inputs:
            options = node["inputs"][field.id].get("options", {})
            fixed = [] if getattr(field, "files", False) else getattr(field, "options", None) or []
            assert list(options) == list(fixed), f"{schema.node_id}.{field.id}"
        parts = [*node["inputs"].values(), *node["outputs"].values()]
        assert all(part["name"] and part["tooltip"] and all(part.get("options", {"": "-"}).values()) for part in parts)
    categories = json.loads((folder / "main.json").read_text(encoding="utf-8"))["nodeCategories"]
    assert categories.keys() == {part for schema in schemas for part in schema.category.split("/")}


def test_the_english_is_the_schemas_own(schemas):
    nodes = json.loads((locales.LOCALES / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    for schema in schemas:
        node = nodes[schema.node_id]
        assert (node["display_name"], node["description"]) == (schema.display_name, schema.description)
        for field in schema.inputs:
            assert node["inputs"][field.id]["tooltip"] == field.tooltip
            assert node["inputs"][field.id]["name"] == (field.display_name or field.id)
        assert [output["tooltip"] for output in node["outputs"].values()] == [out.tooltip for out in schema.outputs]


def test_a_text_that_is_missing_empty_or_left_over_is_named(schemas, words):
    some = next(iter(words["texts"]))
    short = {**words, "texts": {text: chinese for text, chinese in words["texts"].items() if text != some}}
    assert locales.differences(schemas, short) == [f"missing in texts: {some}"]
    assert locales.differences(schemas, {**words, "texts": {**words["texts"], some: " "}}) == \
        [f"missing in texts: {some}"]
    assert locales.differences(schemas, {**words, "names": {**words["names"], "gone": "无"}}) == \
        ["left over in names: gone"]
    assert locales.differences(schemas, {**words, "notes": {}}) == ["unknown section: notes"]
    assert locales.differences(schemas, words) == []


def test_signs_of_the_pages_message_syntax_are_quoted():
    assert locales.literal("a{b}@c|d") == "a{'{'}b{'}'}{'@'}c{'|'}d"
    assert locales.key("v1.5") == "v1_5"


def test_tables_of_a_chinese_help_page_follow_the_english_one():
    english = ("# A\n\n## Inputs\n\n| Input | Default | Range or type | Meaning |\n|---|---|---|---|\n"
               "| `a` | 1 | 0 to 2, optional | Old. |\n| `file` | empty | file | New. |\n\n"
               "## Outputs\n\n| Output | Type | Meaning |\n|---|---|---|\n| `out put` | IMAGE | It. |\n")
    chinese = "# 甲\n\n## 输入\n\n| 输入 |\n| `gone` |\n\n| 另表 |\n\n## 输出\n\n| 输出 |\n\n## 说明\n\n手写\n"
    node = {"inputs": {"a": {"name": "甲", "tooltip": "旧。"}, "file": {"name": "文件", "tooltip": "新。"}},
            "outputs": {"0": {"name": "出", "tooltip": "它。"}}}
    page = locales.help_page(chinese, english, node)
    assert page == (
        "# 甲\n\n## 输入\n\n| 输入 | 默认值 | 范围或类型 | 含义 |\n|---|---|---|---|\n"
        "| `a` | 1 | 0 到 2，可选 | *甲*：旧。 |\n| `file` | 留空 | 文件 | *文件*：新。 |\n\n| 另表 |\n\n"
        "## 输出\n\n| 输出 | 类型 | 含义 |\n|---|---|---|\n| `out put` | IMAGE | *出*：它。 |\n\n## 说明\n\n手写\n")
    assert locales.help_page(page, english, node) == page


# --- the Chinese ------------------------------------------------------------------------------------------------------
def test_descriptions_and_tooltips_are_chinese(words):
    latin = [text for text, chinese in words["texts"].items() if not re.search(r"[\u4e00-\u9fff]", chinese)]
    assert latin == []
    half_width = [chinese for chinese in words["texts"].values() if re.search(r"[\u4e00-\u9fff][,;:?!]", chinese)]
    assert half_width == []


def test_numbers_of_a_text_stand_in_its_translation(words):
    for text, chinese in words["texts"].items():
        lost = set(re.findall(r"\d+(?:\.\d+)?", text)) - set(re.findall(r"\d+(?:\.\d+)?", chinese))
        assert not lost, f"{lost} of {text!r} are not in {chinese!r}"


def test_help_pages_call_nodes_by_their_chinese_names(words):
    for path in locales.PAGES.glob("*/zh.md"):
        named = set(re.findall("「(.+?)」", path.read_text(encoding="utf-8")))
        assert named <= set(words["nodes"].values()) | OF_COMFYUI, path


def test_nodes_are_called_by_their_chinese_names(words):
    nodes = words["nodes"]
    assert len(set(nodes.values())) == len(nodes)
    longest_first = sorted((name for name in nodes if " " in name), key=len, reverse=True)
    english_name = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in longest_first))
    for text, chinese in words["texts"].items():
        named = set(re.findall("「(.+?)」", chinese))
        assert named <= set(nodes.values()) | OF_COMFYUI, chinese
        assert {nodes[name] for name in english_name.findall(text)} <= named, f"{text!r} names more than {chinese!r}"
