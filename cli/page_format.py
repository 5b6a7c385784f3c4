"""Workflows as ComfyUI's web page saves them, turned into the API format as the page's Run button does.

The server's own description of its nodes (/object_info) says which values a node has, and in which order.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .schemas import UPLOADS, Schema, Schemas, fits, inputs_of

MUTED, BYPASSED = 2, 4
NOTES = ("Note", "MarkdownNote")
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "MARKDOWN", "TEXTAREA")
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
VIRTUAL = (*NOTES, REROUTE, PRIMITIVE)  # of the page alone
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = "-10", "-20"
ADVICE = "Export it from the page as API format (Workflow > Export (API)), which runs as it is"
REWRITTEN = re.compile(r"[{}]|//|/\*")  # in texts with choices and comments
REPLACED = re.compile(r"%date:|%[^%]+\.[^%]+%")  # in names of files

Node = Mapping[str, Any]


class Link(NamedTuple):
    """From an output of a node, as its ends are named on one level."""
    origin: str
    origin_slot: int
    target: str
    target_slot: int
    type: str


class Output(NamedTuple):
    """Where an input's value comes from: an output of a node by its id in the API format."""
    node: str
    slot: int


class Value(NamedTuple):
    """A value that a primitive node gives to an input."""
    value: Any


@dataclass(frozen=True)
class Level:
    """The nodes and links of the workflow, or of a subgraph inside it. prefix: of its ids in the API format. instance:
    the subgraph's node and the level that holds it. input_names: of the subgraph."""
    nodes: dict[str, Node]
    links: dict[int, Link]
    prefix: str = ""
    instance: tuple[Level, Node] | None = None
    input_names: tuple[str, ...] = ()

    def id_of(self, node: Node) -> str:
        return f"{self.prefix}{node['id']}"


def is_page_format(workflow: Mapping[str, Any]) -> bool:
    return isinstance(workflow.get("nodes"), list)


def to_api(workflow: Mapping[str, Any], schemas: Schemas) -> dict[str, dict[str, Any]]:
    """The graph in API format, {node id: {"inputs", "class_type", "_meta"}}. Notes, muted and bypassed nodes, reroutes,
    primitives and subgraphs are resolved. ValueError for what cannot be, with the node and what to do."""
    definitions = {part["id"]: part for part in (workflow.get("definitions") or {}).get("subgraphs", ())}
    converter = Converter(schemas, definitions)
    try:
        graph = dict(converter.converted(level_of(workflow)))
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the workflow is damaged or of an unknown form ({type(error).__name__}: {error}). "
                         f"{ADVICE}") from error
    for entry in graph.values():
        entry["inputs"] = {name: value for name, value in entry["inputs"].items()
                           if not isinstance(value, list) or value[0] in graph}
    return graph


def level_of(graph: Mapping[str, Any], prefix: str = "", instance: tuple[Level, Node] | None = None) -> Level:
    return Level({str(node["id"]): node for node in graph["nodes"]}, dict(links_of(graph)), prefix, instance,
                 tuple(slot["name"] for slot in graph.get("inputs") or ()))


def links_of(graph: Mapping[str, Any]) -> Iterator[tuple[int, Link]]:
    for link in graph.get("links") or ():
        if isinstance(link, Mapping):
            link = [link[key] for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")]
        number, origin, origin_slot, target, target_slot, kind = link[:6]
        yield number, Link(str(origin), int(origin_slot), str(target), int(target_slot), str(kind))


class Converter:
    """Follows links through what only the page knows. definitions: of subgraphs, by id."""

    def __init__(self, schemas: Schemas, definitions: Mapping[str, Mapping[str, Any]]) -> None:
        self.schemas, self.definitions = schemas, definitions
        self.used: set[str] = set()

    def converted(self, level: Level) -> Iterator[tuple[str, dict[str, Any]]]:
        for node in level.nodes.values():
            kind = node["type"]
            if kind in VIRTUAL or node.get("mode") in (MUTED, BYPASSED):
                continue
            if kind in self.definitions:
                self._check_instance(node)
                yield from self.converted(self._inside(level, node))
            else:
                yield level.id_of(node), self._entry(level, node)

    def _entry(self, level: Level, node: Node) -> dict[str, Any]:
        kind = node["type"]
        if kind not in self.schemas:
            raise ValueError(f"the server has no node {kind}. Install its pack, or take it out of the workflow")
        schema = self.schemas[kind]
        inputs = dict(widget_values(node, schema))
        for slot, entry in enumerate(node.get("inputs") or ()):
            found = self._source(level, node, slot)
            if isinstance(found, Value):
                inputs[entry["name"]] = wrapped(found.value)
            elif found:
                inputs[entry["name"]] = [found.node, found.slot]
        title = node.get("title") or schema.get("display_name") or kind
        return {"inputs": inputs, "class_type": kind, "_meta": {"title": title}}

    def _inside(self, level: Level, node: Node) -> Level:
        return level_of(self.definitions[node["type"]], f"{level.id_of(node)}:", (level, node))

    def _check_instance(self, node: Node) -> None:
        """The values of a subgraph lie in its own nodes; a second node of it could show others."""
        kind = node["type"]
        if kind in self.used and (node.get("widgets_values") or (node.get("properties") or {}).get("proxyWidgets")):
            raise ValueError(f"{called(node)} is one of several nodes of one subgraph that have values of their own. "
                             f"{ADVICE}")
        self.used.add(kind)

    def _source(self, level: Level, node: Node, slot: int) -> Output | Value | None:
        number = node["inputs"][slot].get("link")
        if number is None:
            return None
        link = level.links[number]
        if link.origin != SUBGRAPH_INPUT:
            return self._output(level, level.nodes[link.origin], link.origin_slot, link.type)
        if level.instance is None:
            raise ValueError(f"{called(node)} is linked to a subgraph that is not there. {ADVICE}")
        outer, instance = level.instance
        names = [entry["name"] for entry in instance.get("inputs") or ()]
        name = level.input_names[link.origin_slot]
        return self._source(outer, instance, names.index(name)) if name in names else None

    def _output(self, level: Level, node: Node, slot: int, kind: str) -> Output | Value | None:
        if node.get("mode") == BYPASSED:
            passed = bypass_slot(node, slot, kind)
            return None if passed is None else self._source(level, node, passed)
        if node["type"] == REROUTE:
            return self._source(level, node, 0)
        if node["type"] == PRIMITIVE:
            return Value(node["widgets_values"][0])
        if node["type"] in self.definitions and node.get("mode") != MUTED:
            inside = self._inside(level, node)
            ends = [link for link in inside.links.values()
                    if link.target == SUBGRAPH_OUTPUT and link.target_slot == slot]
            if not ends or ends[0].origin == SUBGRAPH_INPUT:
                raise ValueError(f"output {slot} of {called(node)} leads to no node of its subgraph. {ADVICE}")
            return self._output(inside, inside.nodes[ends[0].origin], ends[0].origin_slot, kind)
        return Output(level.id_of(node), slot)


def bypass_slot(node: Node, slot: int, kind: str) -> int | None:
    """The input that a bypassed node passes on as an output: that of the same place if its type fits, else the first
    of the type."""
    types = [entry["type"] for entry in node.get("inputs") or ()]
    if kind in ("*", ""):
        return (slot if slot < len(types) else 0) if types else None
    if slot < len(types) and connects(types[slot], kind) and connects(types[slot], node["outputs"][slot]["type"]):
        return slot
    exact = [k for k, other in enumerate(types) if other == kind]
    return next(iter(exact or [k for k, other in enumerate(types) if connects(other, kind)]), None)


def connects(one: str, other: str) -> bool:
    return "*" in (one, other) or bool({*one.upper().split(",")} & {*other.upper().split(",")})


# --- the values of one node -------------------------------------------------------------------------------------------
def widget_values(node: Node, schema: Schema) -> Iterator[tuple[str, Any]]:
    """(input, value) of what is set on a node itself. What the file does not have yet has its default."""
    saved = node.get("widgets_values") or []
    linked = {entry["name"] for entry in node.get("inputs") or () if entry.get("link") is not None}
    with_widget = {entry["name"] for entry in node.get("inputs") or () if entry.get("widget")}
    widgets = list(widgets_of(schema, with_widget))
    by_name = saved if isinstance(saved, Mapping) else dict(zip((key for key, _ in widgets), saved))
    uploads = any(key.startswith("upload") for key, _ in widgets)
    if len(saved) > len(widgets) and not isinstance(saved, Mapping) and not uploads:
        raise ValueError(f"{called(node)} was saved with {len(saved)} values, and the server's takes {len(widgets)}: "
                         f"they are of different versions. {ADVICE}")
    for name, _, options in inputs_of(schema):
        if name not in {key for key, _ in widgets}:
            continue
        if name in by_name:
            value = by_name[name]
            if name not in linked:
                check_value(node, schema, name, value)
            yield name, wrapped(value)
        elif "default" in options:
            yield name, wrapped(options["default"])


def widgets_of(schema: Schema, with_widget: set[str]) -> Iterator[tuple[str, bool]]:
    """(name, is it an input) of a node's values, in the order in which the page saves them. with_widget: the inputs
    that the file says have one. Controls of seeds and upload buttons are values that no input takes."""
    uploads, required = [], schema.get("input", {}).get("required") or {}
    for name, kind, options in inputs_of(schema):
        if uploads and name not in required:
            yield from ((key, False) for key in uploads)
            uploads = []
        if options.get("forceInput") or not (options.get("widgetType", kind) in WIDGETS or name in with_widget):
            continue
        yield name, True
        control = options.get("control_after_generate")
        if control or control is None and kind == "INT" and name in ("seed", "noise_seed"):
            yield f"control of {name}", False
            if kind == "COMBO":
                yield f"filter of {name}", False
        uploads += [f"upload of {name}" for option in UPLOADS if options.get(option)]
    yield from ((key, False) for key in uploads)


def check_value(node: Node, schema: Schema, name: str, value: Any) -> None:
    """ValueError for a value of the wrong type, and for a text that the page would rewrite."""
    kind, options = next((kind, options) for key, kind, options in inputs_of(schema) if key == name)
    if not fits(value, kind):
        raise ValueError(f"{called(node)} has {str(value)[:40]!r} for {name}, which takes {kind}: it was saved for "
                         f"another version of the node. {ADVICE}")
    if isinstance(value, str) and (options.get("dynamicPrompts") and REWRITTEN.search(value)
                                   or name == "filename_prefix" and REPLACED.search(value)):
        raise ValueError(f"the page would rewrite {name} of {called(node)}: {value[:60]!r}. Write it without choices, "
                         "comments and %placeholders%")


def wrapped(value: Any) -> Any:
    """A list would pass for a link."""
    return {"__value__": value} if isinstance(value, list) else value


def called(node: Node) -> str:
    """A node in a message."""
    return f"node {node['id']} ({node.get('title') or node['type']})"
