"""A workflow as the page saves it, with everything that the page resolves when it is run: a reroute, a bypassed and a
muted node, a primitive, a note, a subgraph with a widget of its own; and what it is in API format."""
from __future__ import annotations

from typing import Any

SUBGRAPH = "0b1c6a3e-0000-4000-8000-000000000001"


def node(number: int, kind: str, inputs: list[dict], outputs: list[tuple[str, list[int]]], values: Any = None,
         mode: int = 0) -> dict[str, Any]:
    return {"id": number, "type": kind, "pos": [100 * number, 100], "size": [200, 100], "flags": {}, "order": number,
            "mode": mode, "inputs": inputs, "properties": {},
            "outputs": [{"name": name, "type": name, "links": links} for name, links in outputs],
            **({"widgets_values": values} if values is not None else {})}


def slot(name: str, kind: str, link: int | None, widget: bool = False) -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link} | ({"widget": {"name": name}} if widget else {})


def page_workflow() -> dict[str, Any]:
    nodes = [
        node(1, "LoadImage", [], [("IMAGE", [1]), ("MASK", [])], ["face_1.png", "image"]),
        node(2, "Reroute", [slot("", "*", 1)], [("IMAGE", [2])]),
        node(3, "ImageInvert", [slot("image", "IMAGE", 2)], [("IMAGE", [3, 8])], mode=4),
        node(4, "ImageScale", [slot("image", "IMAGE", 3), slot("width", "INT", 5, widget=True)], [("IMAGE", [4])],
             ["lanczos", 32, 48, "disabled"]),
        node(5, "PrimitiveNode", [], [("INT", [5])], [64, "fixed"]),
        node(6, SUBGRAPH, [slot("image", "IMAGE", 4)], [("IMAGE", [6])], []),
        node(7, "SaveImage", [slot("images", "IMAGE", 6)], [], ["headless/result"]),
        node(8, "ImageInvert", [slot("image", "IMAGE", 8)], [("IMAGE", [9])], mode=2),
        node(9, "PreviewImage", [slot("images", "IMAGE", 9)], []),
        node(10, "Note", [], [], ["a note"])]
    links = [[1, 1, 0, 2, 0, "*"], [2, 2, 0, 3, 0, "IMAGE"], [3, 3, 0, 4, 0, "IMAGE"], [4, 4, 0, 6, 0, "IMAGE"],
             [5, 5, 0, 4, 1, "INT"], [6, 6, 0, 7, 0, "IMAGE"], [8, 3, 0, 8, 0, "IMAGE"], [9, 8, 0, 9, 0, "IMAGE"]]
    return {"last_node_id": 10, "last_link_id": 9, "nodes": nodes, "links": links, "groups": [], "config": {},
            "extra": {}, "version": 0.4, "definitions": {"subgraphs": [subgraph()]}}


def subgraph() -> dict[str, Any]:
    def link(number: int, origin: int, target: int) -> dict[str, Any]:
        return {"id": number, "origin_id": origin, "origin_slot": 0, "target_id": target, "target_slot": 0,
                "type": "IMAGE"}
    nodes = [node(1, "ImageInvert", [slot("image", "IMAGE", 1)], [("IMAGE", [2])]),
             node(2, "ImageBlur", [slot("image", "IMAGE", 2)], [("IMAGE", [3])], [2, 1.5])]
    ends = {"inputs": [{"id": "a", "name": "image", "type": "IMAGE", "linkIds": [1]}],
            "outputs": [{"id": "b", "name": "IMAGE", "type": "IMAGE", "linkIds": [3]}]}
    return {"id": SUBGRAPH, "version": 1, "revision": 0, "name": "inside", "config": {}, "widgets": [], "groups": [],
            "state": {"lastGroupId": 0, "lastNodeId": 2, "lastLinkId": 3, "lastRerouteId": 0},
            "inputNode": {"id": -10, "bounding": [0, 0, 120, 60]},
            "outputNode": {"id": -20, "bounding": [900, 0, 120, 60]},
            **ends, "nodes": nodes, "links": [link(1, -10, 1), link(2, 1, 2), link(3, 2, -20)]}


API = {
    "1": ("LoadImage", {"image": "face_1.png"}),
    "4": ("ImageScale", {"image": ["1", 0], "upscale_method": "lanczos", "width": 64, "height": 48,
                         "crop": "disabled"}),
    "6:1": ("ImageInvert", {"image": ["4", 0]}),
    "6:2": ("ImageBlur", {"image": ["6:1", 0], "blur_radius": 2, "sigma": 1.5}),
    "7": ("SaveImage", {"images": ["6:2", 0], "filename_prefix": "headless/result"}),
    "9": ("PreviewImage", {})}


def without_titles(graph: dict[str, Any]) -> dict[str, tuple[str, dict]]:
    return {key: (entry["class_type"], entry["inputs"]) for key, entry in graph.items()}
