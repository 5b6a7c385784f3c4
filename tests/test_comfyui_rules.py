"""What ComfyUI does with nodes beside running them: it validates prompts, merges what runs over a list show, prints the
inputs of a node that fails, and asks for schemas again and again."""
from __future__ import annotations

import asyncio
import gc
import inspect
import json
import sys
import weakref
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from oneshot_atelier.tests import tiny_mmfs, tiny_models
from oneshot_atelier.tests.node_tools import picture

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("comfy")]
GOLDEN = json.loads(Path(__file__).with_name("golden_nodes.json").read_text(encoding="utf-8"))
ALIGN = {"size": 64, "faces": "largest", "index": 0, "any_direction": False, "threshold": 0.5, "pad": True,
         "fallback": False, "five_points": "20, 24, 44, 24, 32, 34, 24, 44, 40, 44", "box": "", "box_kind": "face"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_mmfs.write(tiny_models.write(tmp_path_factory.mktemp("demo")))


def node_of(nodes, node: str) -> type:
    return getattr(nodes, node.removeprefix("Atelier"))


# --- prompts ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("node", GOLDEN)
def test_inputs_that_are_linked_or_missing_are_left_to_comfyui(nodes, node):
    """It gives (None,) for a link, to nodes that take lists as it is; and leaves out what a prompt does not have."""
    from comfy_api.latest import io
    validate = node_of(nodes, node).validate_inputs
    if validate.__func__ is io.ComfyNode.validate_inputs.__func__:
        return
    names = inspect.getfullargspec(validate).args[1:]
    assert names and set(names) <= {field["id"] for field in GOLDEN[node]["inputs"]}
    linked = (None,) if node_of(nodes, node).INPUT_IS_LIST else None
    for values in ({}, dict.fromkeys(names, linked), *({name: linked} for name in names)):
        assert validate(**values) is True


@pytest.mark.parametrize("node", GOLDEN)
def test_switches_and_texts_that_a_sweep_gives(nodes, node):
    """A word would switch on whatever it says."""
    lists = node_of(nodes, node).INPUT_IS_LIST
    wrong = {"BOOLEAN": ("with", "without", 2, 0.5), "STRING": (3, 0.5, True)}
    words = {"BOOLEAN": "take on or off", "STRING": "take text.* quotes"}
    for field in GOLDEN[node]["inputs"]:
        for value in wrong.get(field["type"], ()):
            with pytest.raises(ValueError, match=f"^{field['id']} is .*{words[field['type']]}"):
                node_of(nodes, node).execute(**{field["id"]: [value] if lists else value})


def test_switches_and_texts_that_are_some(nodes):
    from comfy_api.latest import io
    for value in (True, False, 0, 1):
        nodes.base.check_value(io.Boolean.Input("switch"), value)
    nodes.base.check_value(io.String.Input("text"), "")


# --- what is shown ----------------------------------------------------------------------------------------------------
def merged(node: type, outputs: list) -> dict:
    """What the page gets of runs over a list."""
    from execution import get_output_from_returns
    return get_output_from_returns(outputs, node)[1]


def test_only_some_runs_over_a_list_warn(nodes):
    twin = nodes.photo_twin
    ranked = [twin.RankedTwins(torch.zeros(1, 3, 16, 16), torch.ones(1), torch.tensor([difference]))
              for difference in (0.9, 0.1)]
    for order in (ranked, ranked[::-1]):
        found = merged(nodes.PhotoTwin, [twin.output(one, 0, nodes.PhotoTwin) for one in order])
        assert len(found["images"]) == 2 and len(found["text"]) == 1


def test_only_some_runs_over_a_list_align(nodes):
    runs = [nodes.AlignFaces.execute(picture(1, side=64), align=align, **ALIGN) for align in (False, True)]
    for order in (runs, runs[::-1]):
        found = merged(nodes.AlignFaces, order)
        assert len(found["images"]) == 1 and len(found["text"]) == 2


def test_previews_are_shrunk_before_they_are_put_side_by_side(nodes):
    x = torch.linspace(-1, 1, 400).expand(3, 3, 100, 400)
    assert nodes.images.for_preview(x).shape == (3, 3, 64, 256)
    assert nodes.images.side_by_side(x).size == (768, 64)
    assert torch.equal(nodes.images.for_preview(x[..., :40]), x[..., :40])


def test_sockets_are_short_in_print(nodes):
    """ComfyUI prints all inputs of a node that fails, and sends them to the page."""
    mmfs, diffae = nodes.LoadMMFS.execute("demo")[0], nodes.LoadDiffAE.execute("demo")[0]
    w_plus = nodes.MMFSRandomStyle.execute(mmfs, seed=0, count=4, mix_seed=1, mix_from=0, truncation=1.0)[0]
    crops = nodes.AlignFaces.execute(picture(1, count=3, side=64), align=False, **ALIGN)[1]
    semantic = nodes.SemanticEncode.execute(diffae, picture(1, 2))[0]
    structure = nodes.StructuralEncode.execute(diffae, picture(1, 2), 10, 0.5, semantic)[0]
    mixed = nodes.sockets.MixedCodes(semantic, semantic, 8, False)
    networks = [nodes.LoadCLIP.execute("demo", "auto")[0], nodes.LoadDDPM.execute("demo")[0],
                nodes.LoadStyleGAN2.execute("demo")[0]]
    for value in (mmfs, diffae, w_plus, crops, semantic, structure, mixed, *networks, *styles(nodes, mmfs, diffae)):
        assert len(str(value)) < 1500, type(value)


def test_no_weights_of_a_socket_are_printed(nodes):
    from oneshot_atelier.models import edit, style
    from oneshot_atelier.models.faces import crops, geometry
    kinds = [*vars(nodes.sockets).values(), style.MMFSStyle, crops.FaceCrop, crops.FaceCrops, geometry.FaceGeometry,
             edit.SemanticDirection]
    printed = {(kind.__name__, field.name) for kind in kinds if isinstance(kind, type) and is_dataclass(kind)
               and kind is not nodes.sockets.AttributeClassifier  # Attributes does not print it
               for field in fields(kind) if field.repr and "CodeCache" not in field.type
               and any(word in field.type for word in ("Tensor", "FaceCrop", "Discriminator", "Classifier"))}
    assert not printed


def styles(nodes, mmfs, diffae) -> list:
    from oneshot_atelier.models.attributes import AttributeClassifier
    from oneshot_atelier.models.edit import SemanticDirection
    from oneshot_atelier.models.faces.geometry import FaceGeometry
    from oneshot_atelier.models.style import MMFSStyle, OSASISStyle
    z, seen = torch.rand(1, 512), torch.zeros(3, 64, 64, dtype=torch.uint8)
    weights = {f"weight {k}": torch.rand(64, 64) for k in range(20)}
    osasis = OSASISStyle(diffae.unet, diffae.net.unet.state_dict(), None, z, seen, "", {"t0": 0.5})
    return [osasis, nodes.sockets.LoadedStyle.of(osasis), SemanticDirection(z, ("a",)),
            MMFSStyle(mmfs.net.config, weights, torch.rand(1, 12, 512), seen),
            nodes.sockets.Attributes("a", AttributeClassifier(*(torch.rand(40, 512),) * 4), ""),
            FaceGeometry(torch.rand(468, 2), torch.rand(468, 2))]


# --- networks ---------------------------------------------------------------------------------------------------------
def test_all_of_a_network_is_on_the_device_without_vram(nodes, monkeypatch):
    """With --novram ComfyUI leaves plain modules where they are, even if they shall be loaded in full."""
    mm, meta = nodes.host.mm, torch.device("meta")
    monkeypatch.setattr(mm, "get_torch_device", lambda: meta)
    monkeypatch.setattr(mm, "get_free_memory", lambda *_, **__: 1 << 40)
    monkeypatch.setattr(mm, "free_memory", lambda *_, **__: [])
    monkeypatch.setattr(mm, "vram_state", mm.VRAMState.NO_VRAM)
    monkeypatch.setattr(mm, "current_loaded_models", [])
    module = nodes.host.PatchedModule(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))
    with nodes.host.running(module) as device:
        assert device == meta and {x.device for x in module.net.state_dict().values()} == {meta}


def test_a_network_that_samples_itself_leaves_with_its_cache_entry(nodes):
    module = nodes.host.PatchedModule(torch.nn.Linear(2, 2))
    assert module.accelerated("auto") is module
    gone = weakref.ref(module)
    gc.collect()
    gc.disable()
    try:
        del module
        assert gone() is None
    finally:
        gc.enable()


# --- files ------------------------------------------------------------------------------------------------------------
def test_a_link_that_leads_nowhere_is_named(nodes, comfy):
    link = comfy / "models" / "diffae" / "a.ckpt"
    link.symlink_to(comfy / "gone.ckpt")
    found = nodes.LoadDiffAE.validate_inputs("a.ckpt")
    assert "'a.ckpt'" in found and "a link that leads nowhere" in found and "gone.ckpt" in found


def test_input_folders_that_have_not_changed_are_listed_once(nodes, comfy, monkeypatch):
    listed, scandir = [], nodes.host.os.scandir
    monkeypatch.setattr(nodes.host.os, "scandir", lambda place: listed.append(place) or scandir(place))
    (comfy / "input" / "faces" / "young").mkdir(parents=True)
    (comfy / "input" / ".hidden" / "inside").mkdir(parents=True)
    (comfy / "input" / "link").symlink_to(comfy / "input" / "faces", target_is_directory=True)
    for _ in range(3):
        assert nodes.host.input_folders() == ["faces", "faces/young", "link"]
    assert len(listed) == 3
    (comfy / "input" / "faces" / "old").mkdir()
    assert "faces/old" in nodes.host.input_folders() and len(listed) == 5


def test_bad_links_among_the_input_folders_are_left_out_until_they_lead_somewhere(nodes, comfy, tmp_path):
    places = comfy / "input", comfy / "input" / "faces"
    places[1].mkdir(parents=True)
    for place in places:
        (place / "circle").symlink_to(place / "circle")
        (place / "later").symlink_to(tmp_path / "mounted", target_is_directory=True)
    (places[1] / "more").symlink_to(tmp_path / "more", target_is_directory=True)
    (tmp_path / "more").mkdir()
    assert nodes.host.input_folders() == ["faces", "faces/more"]
    before = nodes.host.folder_token("faces")
    (tmp_path / "more" / "a.png").write_bytes(b"new")  # behind a link, where the nodes read, too
    assert nodes.host.folder_token("faces") != before
    (tmp_path / "mounted").mkdir()
    assert nodes.host.input_folders() == ["faces", "faces/later", "faces/more", "later"]


@pytest.mark.parametrize(("name", "status"), [("oneshot-atelier-main", 200), ("oneshot-atelier", 404)])
def test_pictures_of_help_pages_are_served_from_a_folder_of_another_name(nodes, tmp_path, monkeypatch, name, status):
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer
    picture, app = tmp_path / name / "workflows" / "a.jpg", web.Application()
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"jpg")
    monkeypatch.setattr(nodes.host, "__file__", str(tmp_path / name / "nodes" / "host.py"))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(
        instance=SimpleNamespace(app=app))))
    nodes.host.serve_help_pictures()

    async def asked() -> int:
        async with TestClient(TestServer(app)) as client:
            return (await client.get("/api/workflow_templates/oneshot-atelier/a.jpg")).status
    assert asyncio.run(asked()) == status
