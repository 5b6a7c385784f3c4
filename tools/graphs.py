"""What the demos do with a graph: give it its pictures, show how far it is, fetch its pictures."""
from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ..cli.client import Client, Graph, Result
from ..cli.terminal import ProgressLines, titles_of
from .comfy import ROOT

INPUTS = ROOT / "workflows" / "inputs"

Pictures = dict[str, list[Image.Image]]  # column -> its pictures, in order


def run_shown(client: Client, graph: Graph, title: str, inputs: Path) -> Result:
    """Run a graph, with the pictures of `inputs` that it loads, and write how far it is."""
    upload_inputs(client, graph, inputs)
    print(f"Running {title} ({len(graph)} nodes)", flush=True)
    return client.run(graph, ProgressLines(titles_of(graph)), timeout=3600)


def upload_inputs(client: Client, graph: Graph, folder: Path) -> None:
    """Upload every picture that the graph's LoadImage nodes name from `folder`. Raises FileNotFoundError."""
    names = {entry["inputs"]["image"] for entry in graph.values() if entry["class_type"] == "LoadImage"}
    for name in sorted(names):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"the workflow loads {name}, which is not in {folder}")
        client.upload(folder / name)


def saved_pictures(client: Client, graph: Graph, result: Result, prefix: str) -> Pictures:
    """The pictures of all SaveImage nodes whose filename_prefix is PREFIX<column>, by column."""
    pictures: Pictures = {}
    for node, entry in graph.items():
        name = str(entry["inputs"].get("filename_prefix", ""))
        if entry["class_type"] == "SaveImage" and name.startswith(prefix):
            found = [Image.open(io.BytesIO(data)) for data in client.images(result, node)]
            pictures.setdefault(name.removeprefix(prefix), []).extend(found)
    return pictures


def save(pictures: Pictures, name: str, out: Path) -> None:
    for column, found in pictures.items():
        for number, picture in enumerate(found, 1):
            picture.save(out / f"{name}_{column}_{number:02d}.png")


# --- parts of a graph ------------------------------------------------------------------------------------------------
def node_of(graph: Graph, kind: str) -> str:
    """The id of the first node of a type. Raises ValueError if there is none."""
    for node, entry in graph.items():
        if entry["class_type"] == kind:
            return node
    raise ValueError(f"the workflow has no {kind}")


def links(graph: Graph, node: str) -> list[str]:
    """The nodes that a node's inputs are connected to."""
    return [value[0] for value in graph[node]["inputs"].values() if isinstance(value, list)]


def needed(graph: Graph, nodes: list[str]) -> dict:
    """The part of a graph that these nodes hang on, with themselves, in the graph's order."""
    found, left = set(), list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += links(graph, node)
    return {node: entry for node, entry in graph.items() if node in found}


def loaded(graph: Graph, node: str) -> Iterator[str]:
    """Names of the pictures that are loaded for a node, in the order of its batch."""
    if graph[node]["class_type"] == "LoadImage":
        yield graph[node]["inputs"]["image"]
    for source in links(graph, node):
        yield from loaded(graph, source)
