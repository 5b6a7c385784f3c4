"""Writes locales/en and locales/zh: what ComfyUI's page shows of every node, from the schemas and locales/zh.json; and
the tables of inputs and outputs in the Chinese help pages.

    python3 tools/launch.py tools.locales

The English is the schemas' own. locales/zh.json is written by hand: {section: {English: Chinese}}, sections as in
SECTIONS; a text that several nodes share stands there once. ComfyUI reads only the folders. Texts that are missing or
left over are listed, and nothing is written. The rest of a Chinese help page, web/docs/NODE/zh.md, is written by hand.
"""
from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .comfy import ROOT

LOCALES, PAGES = ROOT / "locales", ROOT / "web" / "docs"
SECTIONS = ("categories", "nodes", "names", "options", "texts")  # texts: descriptions and tooltips
CELLS = {"file": "文件", "folder": "文件夹", "text": "文本", "empty": "留空", "see below": "见下表"}  # of help pages
Words = Mapping[str, Mapping[str, str]]  # {section: {English: translated}}
Say = Callable[[str, str], str]  # (section, English) -> what the page shows


class LocaleError(RuntimeError):
    """Texts without a translation, or translations of texts that no node has."""


# --- ComfyUI's layout: nodeDefs.json and main.json of a language ------------------------------------------------------
def node_defs(schemas: Iterable[Any], say: Say) -> dict[str, Any]:
    """nodeDefs.json of nodes with these schemas (comfy_api's io.Schema)."""
    return {key(schema.node_id): {
        "display_name": say("nodes", schema.display_name), "description": say("texts", schema.description),
        "inputs": {key(field.id): input_def(field, say) for field in schema.inputs},
        "outputs": {str(k): {"name": say("names", field.display_name), "tooltip": say("texts", field.tooltip)}
                    for k, field in enumerate(schema.outputs)}} for schema in schemas}


def input_def(field: Any, say: Say) -> dict[str, Any]:
    texts: dict[str, Any] = {"name": say("names", field.display_name or field.id),
                             "tooltip": say("texts", field.tooltip)}
    options = getattr(field, "options", None)
    if options and not getattr(field, "files", False):  # the user's files keep their names
        texts["options"] = {key(option): say("options", option) for option in options}
    return texts


def main_texts(schemas: Iterable[Any], say: Say) -> dict[str, Any]:
    """main.json: the categories, whose parts ComfyUI translates one by one, for all packs together."""
    parts = dict.fromkeys(part for schema in schemas for part in schema.category.split("/"))
    return {"nodeCategories": {key(part): say("categories", part) for part in parts}}


def key(name: str) -> str:
    """A name as the page looks it up: a dot would end it."""
    return name.replace(".", "_")


def literal(text: str) -> str:
    """A text of which the page's vue-i18n takes no sign for its own."""
    return re.sub(r"[{}@|]", r"{'\g<0>'}", text)


# --- languages --------------------------------------------------------------------------------------------------------
def in_english(section: str, text: str) -> str:
    return literal(text)


def in_words(words: Words) -> Say:
    return lambda section, text: literal(words[section][text])


def asked(schemas: list[Any]) -> dict[str, set[str]]:
    """{section: every English text of it}."""
    found: dict[str, set[str]] = {section: set() for section in SECTIONS}

    def note(section: str, text: str) -> str:
        found[section].add(text)
        return text
    node_defs(schemas, note)
    main_texts(schemas, note)
    return found


def differences(schemas: list[Any], words: Words) -> list[str]:
    """A line for each text that is missing in `words`, has no translation there, or belongs to no node."""
    lines = []
    for section, texts in asked(schemas).items():
        there = words.get(section, {})
        lines += [f"missing in {section}: {text}" for text in sorted(texts) if not there.get(text, "").strip()]
        lines += [f"left over in {section}: {text}" for text in sorted(there.keys() - texts)]
    return lines + [f"unknown section: {section}" for section in words.keys() - set(SECTIONS)]


def read_words(language: str) -> Words:
    return json.loads((LOCALES / f"{language}.json").read_text(encoding="utf-8"))


def files(schemas: list[Any]) -> dict[Path, str]:
    """{file: its text} of both languages' folders and the Chinese help pages. Raises LocaleError."""
    words = read_words("zh")
    wrong = differences(schemas, words)
    if wrong:
        raise LocaleError("\n".join([*wrong, "Mend locales/zh.json and run this again."]))
    found = {}
    for language, say in (("en", in_english), ("zh", in_words(words))):
        found[LOCALES / language / "nodeDefs.json"] = written(node_defs(schemas, say))
        found[LOCALES / language / "main.json"] = written(main_texts(schemas, say))
    nodes = node_defs(schemas, lambda section, text: words[section][text])
    for path in sorted(PAGES.glob("*/zh.md")):
        english = (PAGES / f"{path.parent.name}.md").read_text(encoding="utf-8")
        found[path] = help_page(path.read_text(encoding="utf-8"), english, nodes[path.parent.name])
    return found


# --- Chinese help pages -----------------------------------------------------------------------------------------------
def help_page(page: str, english: str, node: Mapping[str, Any]) -> str:
    """A Chinese help page whose tables have the rows of the English one, with the Chinese of `node` (of node_defs)."""
    inputs = [f"| `{name}` | {cell(default)} | {cell(values)} | {meaning(node['inputs'][name])} |"
              for name, default, values, _ in table(english, "## Inputs")]
    outputs = [f"| `{name}` | {kind} | {meaning(part)} |"
               for (name, kind, _), part in zip(table(english, "## Outputs"), node["outputs"].values(), strict=True)]
    page = with_table(page, "## 输入", ["| 输入 | 默认值 | 范围或类型 | 含义 |", "|---|---|---|---|", *inputs])
    return with_table(page, "## 输出", ["| 输出 | 类型 | 含义 |", "|---|---|---|", *outputs])


def table(page: str, title: str) -> list[list[str]]:
    """The cells of the first table after a title, without its head; the first cell, a name, without its quotes."""
    _, _, *rows = found_table(page, title)[0].splitlines()
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
    return [[name.strip("`"), *others] for name, *others in cells]


def with_table(page: str, title: str, rows: list[str]) -> str:
    """The page with other rows in the first table after a title."""
    found = found_table(page, title)
    return page[:found.start()] + "\n".join(rows) + "\n" + page[found.end():]


def found_table(page: str, title: str) -> re.Match[str]:
    found = re.compile(r"(?:^\|.*\n)+", re.MULTILINE).search(page, page.index(f"\n{title}\n"))
    if found is None:
        raise LocaleError(f"a help page has no table after {title}")
    return found


def meaning(part: Mapping[str, str]) -> str:
    return f"*{part['name']}*：{part['tooltip']}"


def cell(text: str) -> str:
    """A default, a range or a type in Chinese."""
    text = re.sub(r"^(\S+) to (.+)$", r"\1 到 \2", text)
    return CELLS.get(text, text).replace(", optional", "，可选")


def written(texts: Mapping[str, Any]) -> str:
    return json.dumps(texts, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    from ..tests import in_comfy
    with tempfile.TemporaryDirectory(prefix="atelier-locales-") as base:
        _, nodes = in_comfy.nodes(Path(base))
        try:
            texts = files([node.GET_SCHEMA() for node in nodes])
        except LocaleError as error:
            print(error, file=sys.stderr)
            return 1
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0
