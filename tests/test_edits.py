"""`atelier edits`: what each row is made of, how it is measured, and the command, on tiny random networks."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from oneshot_atelier.cli import main
from oneshot_atelier.cli.edits import strengths_in
from oneshot_atelier.evaluate import edits
from oneshot_atelier.evaluate.edits import Photos, Settings
from oneshot_atelier.evaluate.evaluator import Evaluator
from oneshot_atelier.models import loading
from oneshot_atelier.models.attributes import AttributeClassifier
from oneshot_atelier.models.edit import z_statistics
from oneshot_atelier.models.features.encoder import EncoderDistance
from oneshot_atelier.models.style import fingerprint
from oneshot_atelier.tests import tiny, tiny_models
from oneshot_atelier.train.data import to_bytes
from oneshot_atelier.train.text_edit import Subject, TextEditConfig, edit_by_text, text_directions

CONFIG = TextEditConfig(steps=2, decode_steps=4, clip_preprocessing="osasis")
SETTINGS = Settings("photo", ("cartoon",), ("smiling",), (1.0, 2.0), 4, 4, 0.5, 2, CONFIG)


@pytest.fixture(scope="module")
def evaluator():
    diffae = tiny.diffae()
    return Evaluator(tiny.clip(), diffae, EncoderDistance(diffae.encoder))


@pytest.fixture(scope="module")
def photos(evaluator):
    return Photos.of(evaluator, tiny.pictures(3), SETTINGS)


def classifier(width=tiny.WIDTH, names=("smiling", "cartoon")):
    weight = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    return AttributeClassifier(weight, torch.zeros(2), torch.zeros(1, width), torch.full((1, width), 5.0), names)


def direction(evaluator):
    return text_directions(evaluator.clip_network(), "photo", ["cartoon"], "none")


# --- edits ------------------------------------------------------------------------------------------------------------
def test_a_text_s_rows_are_the_photo_s_own_change_and_the_mean_of_the_others(evaluator, photos):
    rows = dict(edits.text_edits(evaluator, photos, direction(evaluator), SETTINGS))
    assert list(rows) == ["edited, strength 1", "edited, strength 2", "change of the other photos, strength 1",
                          "change of the other photos, strength 2"]
    net = evaluator.autoencoder()
    subject = Subject(photos.z, z_statistics(net)[1], photos.x, 0.5, direction(evaluator))
    change = edit_by_text(net, evaluator.clip_network(), subject, CONFIG).change[0]
    assert change.abs().min() > 0
    assert torch.allclose(rows["edited, strength 2"], photos.z + 2 * change)
    others = torch.stack([change[[1, 2]].mean(0), change[[0, 2]].mean(0), change[[0, 1]].mean(0)])
    assert torch.allclose(rows["change of the other photos, strength 1"], photos.z + others, atol=1e-7)


def test_a_single_photo_has_no_others(evaluator):
    one = Photos.of(evaluator, tiny.pictures(1), SETTINGS)
    assert len(list(edits.text_edits(evaluator, one, direction(evaluator), SETTINGS))) == 2


def test_an_attribute_s_rows_are_multiples_of_diffae_s_step(photos):
    net = classifier()
    rows = dict(edits.attribute_edits(net, photos, 1, SETTINGS))
    assert list(rows) == ["edited, strength 0.3", "edited, strength 0.6"]
    assert torch.allclose(rows["edited, strength 0.6"], net.edited(photos.z, 1, 0.6))


def test_photos_are_encoded_and_decoded_in_batches_as_in_one(evaluator, photos):
    whole = Photos.of(evaluator, tiny.pictures(3), Settings(encode_steps=4, decode_steps=4, batch=3))
    assert torch.allclose(whole.x, photos.x, atol=1e-5) and torch.allclose(whole.z, photos.z, atol=1e-6)
    net = evaluator.autoencoder()
    expected = net.decode(photos.x, photos.z, 4, 0.5).clamp(-1, 1)
    assert torch.allclose(photos.decoded(evaluator, photos.z, SETTINGS), expected, atol=1e-5)


# --- numbers ----------------------------------------------------------------------------------------------------------
def test_the_change_is_measured_from_the_unedited_decoding(evaluator, photos):
    """Decoding alone changes nothing of the direction; a code that is not edited has a change of 0."""
    start = direction(evaluator)
    rows, pictures = edits.measured(evaluator, photos, iter([("none", photos.z), ("more", photos.z + 0.02)]), start,
                                    (classifier(), 0), SETTINGS)
    assert list(rows) == ["not edited", "none", "more"] and len(pictures) == 4
    assert "clip_direction" not in rows["not edited"] and rows["none"]["clip_direction"] == pytest.approx(0, abs=1e-5)
    assert abs(rows["more"]["clip_direction"]) > 1e-3
    for name in ("identity_distance", "attribute_probability"):
        assert rows["none"][name] == pytest.approx(rows["not edited"][name]) != rows["more"][name]
    seen = tiny.diffae().encode(photos.decoded(evaluator, photos.z + 0.02, SETTINGS))
    probability = float(classifier().probability(seen, 0).mean())
    assert rows["more"]["attribute_probability"] == pytest.approx(probability, abs=1e-4)


def test_a_text_that_names_an_attribute_is_measured_by_the_classifier_too(evaluator, tmp_path):
    report = edits.evaluate(evaluator, classifier(), tiny.pictures(2), SETTINGS, tmp_path)
    assert list(report) == ["text cartoon", "attribute smiling"]
    assert "attribute_probability" in report["text cartoon"]["not edited"]
    assert "clip_direction" not in report["attribute smiling"]["edited, strength 0.3"], "CLIP knows no 'smiling'"
    assert json.loads((tmp_path / "edits.json").read_text()) == report
    for name, rows in (("text_cartoon", 6), ("attribute_smiling", 4)):
        with Image.open(tmp_path / f"{name}.png") as sheet:
            assert sheet.size == (2 * tiny.PX, rows * tiny.PX)


def test_a_stopped_run_goes_on_behind_its_edits(evaluator, tmp_path, monkeypatch):
    whole = edits.evaluate(evaluator, classifier(), tiny.pictures(2), SETTINGS, tmp_path)
    monkeypatch.setattr(edits, "measured", lambda *_: pytest.fail("this was done before"))
    assert edits.evaluate(evaluator, classifier(), tiny.pictures(2), SETTINGS, tmp_path) == whole
    for pictures, known in ((tiny.pictures(2, 5), classifier()), (tiny.pictures(2), replace(
            classifier(), bias=classifier().bias + 1))):
        with pytest.raises(pytest.fail.Exception):
            edits.evaluate(evaluator, known, pictures, SETTINGS, tmp_path)


def test_without_a_classifier_a_text_is_measured_by_clip_alone(evaluator):
    report = edits.evaluate(evaluator, None, tiny.pictures(2), Settings("photo", ("cartoon",), config=CONFIG,
                                                                        encode_steps=4, decode_steps=4))
    assert "attribute_probability" not in report["text cartoon"]["not edited"]
    assert edits.attribute_of(None, "smiling") is None and edits.attribute_of(classifier(), "hat") is None


# --- the command ------------------------------------------------------------------------------------------------------
@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command's arguments, on tiny models with a classifier of their DiffAE and two photos."""
    folder = tiny_models.write(tmp_path / "demo")
    model = fingerprint(loading.load_diffae(folder / "diffae.safetensors"))
    loading.save_attributes(folder / "attributes.safetensors", classifier(16, ("smiling", "old")), model, {})
    monkeypatch.setattr(loading, "DEMO", folder)
    (tmp_path / "photos").mkdir()
    for i, x in enumerate(tiny.pictures(2)):
        Image.fromarray(to_bytes(x).permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{i}.png")
    return ["edits", f"--photos={tmp_path / 'photos'}", "--device=cpu", f"--out={tmp_path / 'out'}"]


def test_the_command_prints_a_table_for_each_edit(command, tmp_path, capsys):
    done = main.main([*command, "--texts=drawing", "--source=photo", "--attributes=smiling", "--strengths=1",
                      "--set=steps=2,decode_steps=10"])
    shown = capsys.readouterr().out
    assert done == 0 and "== text drawing, mean of 2 photos" in shown and "== attribute smiling, mean of 2" in shown
    assert "| edited, strength 0.3 |" in shown and "- attribute: How probable" in shown
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "attribute_smiling.png", "edits.json", "kept", "text_drawing.png"]


@pytest.mark.parametrize(("options", "words"), [
    ([], "name edits: --texts, --attributes or both"), (["--texts=zebra"], "does not know 'zebra'"),
    (["--attributes=hat"], "no attribute 'hat'; take one of smiling, old"),
    (["--texts=drawing", "--strengths="], "--strengths is empty"), (["--texts=drawing", "--strengths=a"], "separated"),
    (["--texts=drawing", "--set=colour=1"], "there is no setting 'colour'"),
    (["--attributes=smiling", "--classifier=none.safetensors"], "none.safetensors: no such file")])
def test_what_cannot_be_done_is_refused_before_the_first_picture(command, options, words, caplog, tmp_path):
    assert main.main([*command, *options]) == 1 and words in caplog.text
    assert not (tmp_path / "out").exists()


def test_strengths_are_numbers_each_once():
    assert strengths_in("1, 2,-0.5,2") == (1.0, 2.0, -0.5)
