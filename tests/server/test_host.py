"""The pack in a real ComfyUI: it loads, and the plumbing the other tests rely on works."""
import io

import pytest
from PIL import Image

from oneshot_atelier.cli.client import Client, PromptRejected
from oneshot_atelier.tools.comfy import PACK_NAME, ComfyServer
from oneshot_atelier.tools.graphs import INPUTS


def test_pack_loads(server: ComfyServer) -> None:
    assert server.failed_imports() == [], server.log_tail()


def test_every_node_id_has_the_prefix(server: ComfyServer) -> None:
    module = f"custom_nodes.{PACK_NAME}"
    ours = {node for node, info in server.object_info().items() if info["python_module"] == module}
    assert ours, server.log_tail()
    assert {node for node in ours if not node.startswith("Atelier")} == set()


def test_the_example_workflows_pictures_are_there_without_an_upload(server: ComfyServer) -> None:
    offered = server.object_info()["LoadImage"]["input"]["required"]["image"][0]
    assert {path.name for path in INPUTS.glob("*.png")} <= set(offered)
    kept = {path.relative_to(INPUTS) for path in INPUTS.rglob("*") if path.is_file()}
    assert {name for name in kept if not (server.base / "input" / name).is_file()} == set()


def picture(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()


def invert_graph(name: str) -> dict:
    return {"1": {"class_type": "LoadImage", "inputs": {"image": name}},
            "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
            "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "host/inverted"}}}


def test_a_core_graph_runs_and_its_second_run_is_cached(client: Client) -> None:
    graph = invert_graph(client.upload(picture((200, 30, 10)), "host_test.png"))
    first, second = client.run(graph, timeout=120), client.run(graph, timeout=120)
    assert first.ran == ["1", "2", "3"]
    assert second.ran == [] and second.cached == {"1", "2", "3"}
    pixel = Image.open(io.BytesIO(client.images(first, "3")[0])).getpixel((5, 5))
    assert pixel == pytest.approx((55, 225, 245), abs=1)


def test_a_graph_with_an_unknown_node_is_refused(client: Client) -> None:
    graph = invert_graph(client.upload(picture((1, 2, 3)), "host_test_2.png"))
    graph["2"]["class_type"] = "NoSuchNode"
    with pytest.raises(PromptRejected, match="NoSuchNode"):
        client.run(graph, timeout=120)
