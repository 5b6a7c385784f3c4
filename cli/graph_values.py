"""Values and files that the command line puts into a graph: --set NODE.INPUT=VALUE, --input NAME=FILE."""
from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .client import title_of
from .schemas import Schemas, inputs_of, read_value, upload_input

Graph = dict[str, dict[str, Any]]  # API format


def set_value(graph: Graph, schemas: Schemas, assignment: str) -> None:
    """NODE.INPUT=VALUE; NODE is an id, a title or a node type. ValueError says what is wrong with it."""
    where, equals, text = assignment.partition("=")
    name, dot, field = where.rpartition(".")
    if not (equals and dot and name and field):
        raise ValueError(f"--set {assignment[:60]!r} has another form; write NODE.INPUT=VALUE")
    entry = graph[node_called(graph, name)]
    found = {key: (kind, options) for key, kind, options in inputs_of(schemas.get(entry["class_type"], {}))}
    if field not in found:
        raise ValueError(f"{name} has no input {field[:60]!r}; it has {', '.join(found) or 'none'}")
    kind, options = found[field]
    if isinstance(entry["inputs"].get(field), list) and kind not in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
        raise ValueError(f"{where} takes a connection ({kind}), no value; change the workflow")
    try:
        entry["inputs"][field] = read_value(text, kind, options)
    except ValueError as error:
        raise ValueError(f"--set {where}: {error}") from error


def file_node(graph: Graph, schemas: Schemas, name: str) -> tuple[str, str]:
    """(node id, input) of the node that --input NAME means: by id, title, type or the file that it loads, else the only
    one that loads files."""
    loaders = {node: field for node, entry in graph.items()
               if (field := upload_input(schemas.get(entry["class_type"])))}
    if not loaders:
        raise ValueError("the workflow has no node that loads a file; leave out --input")
    loading = {node: graph[node] for node in loaders}
    by_file = [node for node, field in loaders.items()
               if name in (file := Path(str(loading[node]["inputs"].get(field))), str(file), file.stem)]
    named = matching(loading, name) or by_file or (list(loaders) if len(loaders) == 1 else [])
    return (node := the_only(graph, name, named, loaders)), loaders[node]


def node_called(graph: Graph, name: str) -> str:
    """The node of this id, title or type. ValueError for none and for several."""
    return the_only(graph, name, matching(graph, name), graph)


def matching(graph: Graph, name: str) -> list[str]:
    """Nodes of this id, else of this title, else of this type."""
    if name in graph:
        return [name]
    titled = [node for node, entry in graph.items() if title_of(entry).lower() == name.lower()]
    return titled or [node for node, entry in graph.items() if entry["class_type"] == name]


def the_only(graph: Graph, name: str, found: list[str], possible: Iterable[str]) -> str:
    if len(found) == 1:
        return found[0]
    nodes = ", ".join(f"{node} ({title_of(graph[node])})" for node in found or possible)
    raise ValueError(f"{len(found) or 'no'} nodes are called {name[:60]!r}; take one of {nodes}")


def upload_name(path: Path, data: bytes) -> str:
    """The file's name on the server: by its content, so that it replaces no other file there."""
    stem = re.sub(r"[^\w-]+", "_", path.stem)[:80]
    return f"{stem}_{hashlib.sha256(data).hexdigest()[:12]}{path.suffix.lower()}"
