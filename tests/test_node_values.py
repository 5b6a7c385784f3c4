"""AtelierNode refuses what a node's schema does not allow, before anything else; and what importing the nodes costs."""
from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from oneshot_atelier.tests import in_comfy

pytestmark = pytest.mark.server
GOLDEN = json.loads(Path(__file__).with_name("golden_nodes.json").read_text())  # test_schema.py: it is the schemas
NEVER = ("open_clip", "lpips", "timm", "kornia", "torchvision")
IMPORT = """
import runpy, sys
from pathlib import Path
root, base = Path(sys.argv[1]), Path(sys.argv[2])
runpy.run_path(str(root / "cli" / "__main__.py"))["load_checkout"](root)
from oneshot_atelier.tests import in_comfy
in_comfy.load(base)
import comfy.model_management, comfy.model_patcher, comfy.utils, comfy_api.latest, folder_paths
for name in sys.argv[3:]:  # ComfyUI may have imported some of them: from now on nobody can
    for loaded in [key for key in sys.modules if key.split(".")[0] == name]:
        del sys.modules[loaded]
    sys.modules[name] = None
import oneshot_atelier.nodes
print(len(oneshot_atelier.nodes.NODES), "nodes")
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


def inputs_of(*kinds: str) -> list:
    """(node, input) of all inputs of these kinds; a choice among the user's files is checked where it is opened."""
    return [pytest.param(node, field, id=f"{node.removeprefix('Atelier')}-{field['id']}")
            for node, about in GOLDEN.items() for field in about["inputs"]
            if field["type"] in kinds and (field["type"] != "COMBO" or "choices" in field)]


def refused(nodes, node: str, field: dict, value: object) -> None:
    execute = getattr(nodes, node.removeprefix("Atelier")).execute
    with pytest.raises(ValueError, match=rf"^{field['id']} is .*; take "):
        execute(**{field["id"]: value})


@pytest.mark.parametrize(("node", "field"), inputs_of("INT", "FLOAT"))
def test_numbers_that_the_schema_does_not_allow(nodes, node, field):
    whole = field["type"] == "INT"
    lists = getattr(nodes, node.removeprefix("Atelier")).GET_SCHEMA().is_input_list
    for value in (field["min"] - 1, field["max"] + 1, field["min"] - 1e-6, field["max"] * (1 + 1e-9) + 1e-9,
                  float("nan"), float("inf"), -float("inf"), "1", True, *([1.5] if whole else [])):
        refused(nodes, node, field, [value] if lists else value)
    refused(nodes, node, field, [[field["min"]]] if lists else [field["min"]])


@pytest.mark.parametrize(("node", "field"), inputs_of("INT", "FLOAT", "COMBO"))
def test_what_the_schema_allows_passes(nodes, node, field):
    schema = getattr(nodes, node.removeprefix("Atelier")).GET_SCHEMA()
    for value in field.get("choices") or (field["min"], field["max"], field["default"]):
        nodes.base.check_values(schema, {field["id"]: value})


@pytest.mark.parametrize(("node", "field"), inputs_of("COMBO"))
def test_choices_that_the_schema_does_not_offer(nodes, node, field):
    for value in ("", "best", f"{field['choices'][0]} ", 0, True):
        refused(nodes, node, field, value)


@pytest.mark.parametrize("node", GOLDEN)
def test_comfyui_runs_a_locked_copy_of_the_node(nodes, node):
    """As its executor does; what the copy executes is checked all the same, and once."""
    from comfy_api.internal import make_locked_method_func
    original = getattr(nodes, node.removeprefix("Atelier"))
    execute = make_locked_method_func(original, "EXECUTE_NORMALIZED", original.PREPARE_CLASS_CLONE({}))
    with pytest.raises(TypeError, match="missing|unexpected"):
        execute(nonsense=1)
    for field in (f for f in GOLDEN[node]["inputs"] if "min" in f):
        with pytest.raises(ValueError, match=f"^{field['id']} is"):
            execute(**{field["id"]: field["min"] - 1})


def test_trainings_rankings_and_grids_join_lists_of_pictures_and_no_other_node_takes_lists(nodes):
    found = {name: getattr(nodes, name.removeprefix("Atelier")) for name in GOLDEN}
    assert {name: node.JOINED for name, node in found.items() if node.INPUT_IS_LIST} == {
        "AtelierOSASISFineTune": ("twin", "style_image", "contents"), "AtelierOSASISFineTuneText": ("contents",),
        "AtelierMMFSFineTune": ("references", "photos"),
        "AtelierMMFSFineTuneText": ("photos",), "AtelierMMFSTrainStage1": ("photos",),
        "AtelierMMFSTrainStage2": ("photos", "art"), "AtelierMMFSTrainMapping": ("photos",),
        "AtelierRankByDensity": ("image",), "AtelierSweepGrid": ("images",)}
    for name, node in found.items():
        pictures = {field["id"] for field in GOLDEN[name]["inputs"] if field["type"] == "IMAGE"}
        assert set(node.JOINED) <= pictures and bool(node.JOINED) == node.INPUT_IS_LIST


def test_a_switch_stands_for_the_choice_of_its_name(nodes):
    def given(**values):
        return nodes.base.switched(nodes.MMFSStylize.GET_SCHEMA(), values)
    assert given(face_scale=False, batch=8, fit="crop") == {"face_scale": "off", "batch": 8, "fit": "crop"}
    assert given(fit=False, batch=False) == {"fit": False, "batch": False}, "there is no such choice"
    with pytest.raises(ValueError, match="face_scale is 'True'; take one of off"):
        nodes.MMFSStylize.execute(face_scale=True)


def test_a_memory_error_says_what_to_do(nodes):
    for text, message in (("", r"there is no main memory left\. Close "), ("64 GB", r"left \(64 GB\)\. Close ")):
        with pytest.raises(MemoryError, match=message), nodes.base.memory_named():
            raise MemoryError(*[text][:len(text)])
    with pytest.raises(MemoryError, match="no main memory left"), nodes.base.memory_named():
        raise RuntimeError("could not create a primitive")
    with pytest.raises(RuntimeError, match="^another"), nodes.base.memory_named():
        raise RuntimeError("another")


def test_a_list_is_one_batch_or_its_only_item(nodes):
    one, two = torch.rand(1, 16, 16, 3), torch.rand(2, 16, 16, 3)

    def joined(name, value):
        return nodes.base.joined(nodes.RankByDensity, {name: value})[name]
    assert torch.equal(joined("image", [one, None, two]), torch.cat([one, two]))
    assert joined("image", [torch.rand(1, 9, 20, 4), two]).shape == (3, 9, 9, 3)
    assert joined("image", [None]) is joined("image", []) is joined("k", []) is None
    assert joined("k", [7]) == joined("k", 7) == 7
    with pytest.raises(ValueError, match="k: one value is needed, not a list of 2. Pick one"):
        joined("k", [7, 7])


def test_pictures_of_one_size_are_not_cropped_for_their_channels(nodes):
    rgb, rgba = torch.rand(1, 16, 24, 3), torch.rand(1, 16, 24, 4)
    made = nodes.images.batch([rgb, rgba], "image")
    assert torch.equal(made[:1], rgb) and torch.allclose(made[1], rgba[0, ..., :3] * rgba[0, ..., 3:]
                                                         + 1 - rgba[0, ..., 3:])
    assert nodes.images.batch([rgba, rgba], "image").shape == (2, 16, 24, 4), "what is alike stays as it is"


def test_pictures_of_a_list_are_prepared_each_as_alone(nodes):
    pictures = [torch.rand(1, 40, 20, 3), torch.rand(1, 24, 24, 3), torch.rand(1, 9, 100, 3)]
    osasis, mmfs = ({name: SimpleNamespace(net=SimpleNamespace(image_size=32, config=SimpleNamespace(resolution=32)))}
                    for name in ("diffae", "mmfs"))
    for node, names in ((nodes.OSASISFineTune, ("twin", "style_image", "contents")),
                        (nodes.OSASISFineTuneText, ("contents",))):
        for name in names:
            made = nodes.images.to_model(nodes.base.joined(node, {name: pictures} | osasis)[name], 32)
            assert torch.equal(made, torch.cat([nodes.images.to_model(one, 32) for one in pictures])), (node, name)
    for node in (nodes.MMFSFineTune, nodes.MMFSFineTuneText, nodes.MMFSTrainStage2, nodes.MMFSTrainMapping):
        made = nodes.images.to_square(nodes.base.joined(node, {"photos": pictures} | mmfs)["photos"], 32)
        assert torch.equal(made, torch.cat([nodes.images.to_square(one, 32) for one in pictures])), node
    assert nodes.base.joined(nodes.MMFSFineTune, {"references": pictures} | mmfs)["references"] == pictures


def linked_to(node, names) -> dict:
    """What ComfyUI gives before the run where every input is linked."""
    return dict.fromkeys(names, (None,) if node.INPUT_IS_LIST else None)


def overriding(nodes, method: str) -> list:
    """The nodes that have a method of their own."""
    base = getattr(nodes.base.io.ComfyNode, method).__func__
    found = [getattr(nodes, name.removeprefix("Atelier")) for name in GOLDEN]
    return [node for node in found if getattr(node, method).__func__ is not base]


def test_linked_choices_have_a_fingerprint_that_stays_and_changes_with_the_files(nodes, comfy):
    import folder_paths

    def fingerprints():
        folder_paths.filename_list_cache.clear()
        return {node: node.fingerprint_inputs(**linked_to(node, [field.id for field in node.GET_SCHEMA().inputs]))
                for node in overriding(nodes, "fingerprint_inputs")}
    before = fingerprints()
    assert len(before) > 15 and before == fingerprints()
    for folder in nodes.host.FILE_KINDS:
        (comfy / "models" / folder / "new.safetensors").write_bytes(b"new")
    (comfy / "input" / "faces").mkdir()
    (comfy / "input" / "faces" / "new.png").write_bytes(b"new")
    after = fingerprints()
    assert [node for node in before if before[node] == after[node]] == []


def test_linked_values_are_valid_before_the_run(nodes):
    for node in overriding(nodes, "validate_inputs"):
        answer = node.validate_inputs(**linked_to(node, inspect.signature(node.validate_inputs).parameters))
        assert answer is True, (node, answer)


def test_every_seed_reaches_all_64_bits():
    seeds = [field for about in GOLDEN.values() for field in about["inputs"] if field["id"].endswith("seed")]
    assert len(seeds) >= 13 and all((field["min"], field["max"]) == (0, 2 ** 64 - 1) for field in seeds)


def test_the_nodes_import_without_the_heavy_packages(root, tmp_path):
    """They are imported where they are used; ComfyUI's start does not wait for them."""
    try:
        in_comfy.find_host()
    except in_comfy.HostMissing as missing:
        pytest.skip(str(missing))
    done = subprocess.run([sys.executable, "-c", IMPORT, str(root), str(tmp_path), *NEVER], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{len(GOLDEN)} nodes\n")
