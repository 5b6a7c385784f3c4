"""The nodes of edits, executed as ComfyUI does it (under inference mode), with tiny networks."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from oneshot_atelier.models import loading
from oneshot_atelier.models.attributes import AttributeClassifier
from oneshot_atelier.models.style import fingerprint
from oneshot_atelier.tests import tiny_models
from oneshot_atelier.tests.node_tools import interrupt_after, picture

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("comfy")]
PX = tiny_models.PX
TEXT = {"source": "photo", "targets": "drawing\nface", "strength": 1.0, "steps": 3, "lr": 0.1, "decode_steps": 10,
        "gradient": "one-step", "shared": False, "l2_weight": 0.1, "l1_weight": 0.0, "templates": "auto",
        "clip_preprocessing": "openai", "rows": 4, "precision": "float32"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """models/demo with an attribute classifier of its DiffAE."""
    folder = tiny_models.write(tmp_path_factory.mktemp("demo"))
    model = fingerprint(loading.load_diffae(folder / "diffae.safetensors"))
    weight = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    net = AttributeClassifier(weight, torch.zeros(2), torch.zeros(1, 16), torch.ones(1, 16), ("smiling", "old"))
    loading.save_attributes(folder / "attributes.safetensors", net, model, {})
    return folder


@pytest.fixture
def loaded(nodes):
    diffae, photos = nodes.LoadDiffAE.execute("demo")[0], picture(5, 2)
    semantic = nodes.SemanticEncode.execute(diffae, photos)[0]
    return SimpleNamespace(diffae=diffae, clip=nodes.LoadCLIP.execute("demo", "auto")[0], semantic=semantic,
                           structure=nodes.StructuralEncode.execute(diffae, photos, 10, 0.5, semantic)[0],
                           classifier=nodes.LoadAttributes.execute("demo")[0])


def by_text(nodes, loaded, **changes):
    return nodes.EditText.execute(loaded.diffae, loaded.clip, loaded.semantic, loaded.structure, **(TEXT | changes))


def test_an_edit_by_text_is_decoded_and_mixed(nodes, loaded):
    semantic, structure, direction, report = by_text(nodes, loaded).args
    assert semantic.z.shape == (4, 16) and structure.x.shape == (4, 3, PX, PX) and direction.names == ("drawing",
                                                                                                       "face")
    assert not torch.allclose(semantic.z[:2], loaded.semantic.z) and len(report.splitlines()) == 2
    assert nodes.Decode.execute(loaded.diffae, structure, semantic, 10)[0].shape == (4, PX, PX, 3)
    mix = nodes.MixCodes.execute(semantic, loaded.semantic.__class__(loaded.semantic.z[:1], semantic.fingerprint), 32,
                                 False, "")[0]
    assert mix.codes(structure)[-1].shape == (4, 16)


def test_another_strength_learns_nothing_again(nodes, loaded, monkeypatch):
    first = by_text(nodes, loaded)[0].z
    made, _ = interrupt_after(monkeypatch, nodes, calls=10**6)
    half, none = (by_text(nodes, loaded, strength=strength)[0].z for strength in (0.5, 0.0))
    z = loaded.semantic.z.repeat(2, 1)
    assert made == [] and torch.equal(none, z) and torch.allclose(half, (first + z) / 2, atol=1e-6)
    by_text(nodes, loaded, steps=2)
    assert len(made) == 2


def test_an_edit_by_text_can_be_cancelled(nodes, loaded, monkeypatch):
    made, cancelled = interrupt_after(monkeypatch, nodes, calls=2)
    with pytest.raises(cancelled):
        by_text(nodes, loaded, steps=50)
    assert len(made) == 2


@pytest.mark.parametrize(("changes", "words"), [
    ({"targets": " \n"}, "write 1 to 16, an edit each"), ({"source": ""}, "the prompt is empty"),
    ({"targets": "zebra"}, "does not know 'zebra'"), ({"decode_steps": 60}, "cannot be spaced evenly"),
    ({"gradient": "x"}, "take one of one-step, chain")])
def test_wrong_values_are_refused(nodes, loaded, changes, words):
    with pytest.raises(ValueError, match=words):
        by_text(nodes, loaded, **changes)


def test_an_edit_by_attribute(nodes, loaded):
    net, z = loaded.classifier.classifier, loaded.semantic.z
    semantic, structure, direction, report = nodes.EditAttribute.execute(
        loaded.classifier, loaded.semantic, "Smiling\nold", 0.3, loaded.structure).args
    assert torch.allclose(semantic.z, torch.cat([net.edited(z, 0, 0.3), net.edited(z, 1, 0.3)]), atol=1e-6)
    assert structure.x.shape[0] == 4 and report.startswith("smiling: probability ")
    with pytest.raises(ValueError, match="there is no attribute 'hat'; take one of smiling, old"):
        nodes.EditAttribute.execute(loaded.classifier, loaded.semantic, "hat", 0.3)


def test_a_direction_is_saved_loaded_and_applied_to_other_pictures(nodes, loaded, comfy):
    direction = by_text(nodes, loaded)[2]
    path = nodes.SaveDirection.execute(direction, "mine", False)[0]
    assert nodes.SaveDirection.execute(direction, "mine", False)[0] == path
    found, names = nodes.LoadDirection.execute("mine.safetensors").args
    assert torch.equal(found.z, direction.z) and names == "drawing\nface" and found.settings["source"] == "photo"
    other = nodes.SemanticEncode.execute(loaded.diffae, picture(8, 3))[0]
    semantic, blocked = nodes.ApplyDirection.execute(found, other, 2.0).args
    assert torch.allclose(semantic.z, torch.cat([other.z + 2 * row for row in found.z]), atol=1e-5)
    assert "structural code" in blocked.message
    with pytest.raises(ValueError, match="3 semantic codes but 2 structural codes"):
        nodes.ApplyDirection.execute(found, other, 2.0, loaded.structure)


def test_directions_and_classifiers_of_another_model_are_refused(nodes, loaded):
    other = loaded.semantic.__class__(loaded.semantic.z, "another")
    with pytest.raises(ValueError, match="the attribute classifier was made with another DiffAE"):
        nodes.EditAttribute.execute(loaded.classifier, other, "old", 0.3)
    direction = nodes.EditAttribute.execute(loaded.classifier, loaded.semantic, "old", 0.3)[2]
    with pytest.raises(ValueError, match="the direction was made with another DiffAE"):
        nodes.ApplyDirection.execute(direction, other, 1.0)
