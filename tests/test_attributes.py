"""The attribute classifier: DiffAE's file, ours, its training on labels, and edits with it."""
from __future__ import annotations

import csv

import pytest
import torch
from PIL import Image

from oneshot_atelier.cli.main import main
from oneshot_atelier.models import loading
from oneshot_atelier.models.attributes import CELEBA, AttributeClassifier
from oneshot_atelier.models.checkpoints import CheckpointError, store
from oneshot_atelier.models.edit import SemanticDirection
from oneshot_atelier.models.style import fingerprint
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import tiny, tiny_models
from oneshot_atelier.train import attributes
from oneshot_atelier.train.attributes import (
    ATTRIBUTES,
    AttributeConfig,
    check_known,
    cross_validated,
    encode_pictures,
    fit,
    ranking,
    targets,
)
from oneshot_atelier.train.data import to_bytes
from oneshot_atelier.train.labels import WORDS

WIDTH = 6
NAMES = tuple(ATTRIBUTES)


def classifier(seed=0, attributes=len(CELEBA), width=WIDTH, names=CELEBA):
    generator = torch.Generator().manual_seed(seed)
    weight, bias, mean = (torch.randn(*shape, generator=generator) for shape in (
        (attributes, width), (attributes,), (1, width)))
    return AttributeClassifier(weight, bias, mean, torch.rand(1, width, generator=generator) + 0.5, names)


def official(source):
    """What ffhq256_autoenc_cls/last.ckpt holds: the raw weights, their average, and the statistics of z."""
    state = {"classifier.weight": torch.zeros_like(source.weight), "classifier.bias": torch.zeros_like(source.bias),
             "ema_classifier.weight": source.weight, "ema_classifier.bias": source.bias,
             "conds_mean": source.mean, "conds_std": source.std}
    return {"epoch": 3, "global_step": 9375, "pytorch-lightning_version": "1.4.5", "state_dict": state,
            "callbacks": {}, "optimizer_states": [], "lr_schedulers": [], "hyper_parameters": {"net_beatgans": 1}}


def equal(a, b):
    return a.names == b.names and all(torch.equal(getattr(a, name), getattr(b, name))
                                      for name in ("weight", "bias", "mean", "std"))


# --- files ------------------------------------------------------------------------------------------------------------
def test_the_official_file_loads_with_its_averaged_weights(tmp_path):
    path = golden.save_torch(tmp_path / "last.ckpt", official(classifier()))
    found, model = loading.load_attributes(path)
    assert equal(found, classifier()) and model == "" and len(found.names) == 40
    slim = loading.convert(path, dtype=torch.float32)
    assert equal(loading.load_attributes(slim)[0], classifier())


def test_our_own_file_is_a_circle(tmp_path):
    ours = classifier(1, 2, names=("a", "b"))
    path = loading.save_attributes(tmp_path / "a.safetensors", ours, "f00", {"pictures": 3})
    found, model = loading.load_attributes(path)
    assert equal(found, ours) and model == "f00" and store.peek(path).meta["pictures"] == 3


def without(key):
    content = official(classifier())
    del content["state_dict"][key]
    return content


def changed(**tensors):
    content = official(classifier())
    content["state_dict"] |= {name.replace("__", "."): value for name, value in tensors.items()}
    return content


@pytest.mark.parametrize(("content", "words"), [
    (without("ema_classifier.bias"), "without its 'ema_classifier.bias'"), (without("conds_std"), "without its 'conds"),
    (changed(conds_mean=torch.zeros(2, WIDTH)), "not that of one code"),
    (changed(conds_mean=torch.zeros(1, 5)), "not those of one classifier"),
    (changed(ema_classifier__bias=torch.zeros(39)), "not those of one classifier"),
    (changed(conds_std=torch.zeros(1, WIDTH)), "no weights and deviations"),
    (changed(ema_classifier__weight=torch.zeros(40, WIDTH)), "no weights and deviations"),
    (changed(ema_classifier__weight=torch.full((40, WIDTH), float("nan"))), "NaN"),
    (official(classifier(attributes=39)), "39 rows of attributes, and their names do not fit")])
def test_damaged_classifiers_are_refused(tmp_path, content, words):
    path = golden.save_torch(tmp_path / "last.ckpt", content)
    with pytest.raises(CheckpointError, match=words):
        loading.load_attributes(path)


@pytest.mark.parametrize("names", ["a", ["a"], ["a", "a"], ["a", 1], ["a", ""]])
def test_names_that_do_not_fit_are_refused(tmp_path, names):
    tensors = {"weight": torch.ones(2, 3), "bias": torch.ones(2), "conds_mean": torch.ones(3),
               "conds_std": torch.ones(3)}
    path = store.save(tmp_path / "a.safetensors", tensors, "attributes", {}, {"names": names})
    with pytest.raises(CheckpointError, match="names do not fit"):
        loading.load_attributes(path)


def test_other_kinds_are_told_what_they_are(tmp_path):
    path = golden.save_torch(tmp_path / "last.ckpt", official(classifier()))
    with pytest.raises(CheckpointError, match="attribute classifier of a DiffAE's codes; load it with the Load Attrib"):
        loading.load_diffae(path)
    with pytest.raises(CheckpointError, match="this is a DiffAE model"):
        loading.load_attributes(tiny_models.write(tmp_path) / "diffae.safetensors")


def test_directions_are_a_circle(tmp_path):
    direction = SemanticDirection(torch.randn(2, 5), ("smiling", "old"), "f00", {"source": "face", "lr": 0.05})
    found = loading.load_direction(loading.save_direction(tmp_path / "d.safetensors", direction))
    assert torch.equal(found.z, direction.z) and found.names == direction.names
    assert (found.model, found.settings) == (direction.model, direction.settings)


@pytest.mark.parametrize(("tensors", "meta", "words"), [
    ({}, {"names": []}, "no table"), ({"z": torch.zeros(3)}, {"names": ["a"]}, "no table"),
    ({"z": torch.zeros(1, 3), "y": torch.zeros(1)}, {"names": ["a"]}, "no table"),
    ({"z": torch.zeros(1, 3, dtype=torch.int64)}, {"names": ["a"]}, "no table"),
    ({"z": torch.zeros(1, 3)}, {}, "do not fit"), ({"z": torch.zeros(1, 3)}, {"names": ["a", "b"]}, "do not fit"),
    ({"z": torch.zeros(1, 3)}, {"names": ["a"], "model": 3}, "description is damaged"),
    ({"z": torch.zeros(1, 3)}, {"names": ["a"], "settings": []}, "description is damaged")])
def test_damaged_directions_are_refused(tmp_path, tensors, meta, words):
    path = store.save(tmp_path / "d.safetensors", tensors, "direction", {}, meta)
    with pytest.raises(CheckpointError, match=words):
        loading.load_direction(path)


# --- edits ------------------------------------------------------------------------------------------------------------
def test_an_edit_is_diffae_s_step():
    """z' = denorm(norm(z) + s sqrt(D) w / |w|)."""
    net, z = classifier(), torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(5))
    row = net.index("Smiling")
    w = net.weight[row]
    expected = ((z - net.mean) / net.std + 0.3 * WIDTH ** 0.5 * w / w.norm()) * net.std + net.mean
    assert torch.allclose(net.edited(z, row, 0.3), expected, atol=1e-6)
    more, less = (net.probability(net.edited(z, row, strength), row) for strength in (0.3, -0.3))
    assert (less < net.probability(z, row)).all() and (more > net.probability(z, row)).all()
    direction = SemanticDirection(net.direction(row)[None], ("smiling",))
    assert torch.allclose(direction.edited(z, 0.3), expected, atol=1e-6)


def test_attributes_by_name():
    net = classifier()
    assert net.names[net.index("Wearing_Hat")] == "wearing hat" and net.index(" YOUNG ") == 39 == len(CELEBA) - 1
    assert sorted(CELEBA) == list(CELEBA)
    with pytest.raises(ValueError, match="no attribute 'glasses'; take one of 5 o'clock shadow, arched"):
        net.index("glasses")


# --- training ---------------------------------------------------------------------------------------------------------
def test_what_labels_tell():
    found, not_found = targets([("reading glasses",), ("fedora", "smiling"), ("angry",), ("shaved face",),
                                ("child girl",), ("profile view",), ("smiling", "full beard"), ()])
    def told(name):
        k = NAMES.index(name)
        return [1 if a else 0 if b else None for a, b in zip(found[:, k].tolist(), not_found[:, k].tolist())]
    assert told("glasses") == [1, 0, 0, 0, 0, 0, 0, None] and told("sunglasses") == [0, 0, 0, 0, 0, 0, 0, None]
    assert told("smiling") == [None, 1, 0, None, None, None, 1, None]
    assert told("beard") == [None, None, None, 0, 0, None, 1, None]
    assert told("child") == [None, None, None, None, 1, None, None, None]
    assert told("head turned") == [0, 0, 0, 0, 0, 1, 0, None]
    assert all(word in {word for _, word in WORDS} for a in ATTRIBUTES.values() for word in (*a.words, *a.without))


def planted(count=300, width=8, seed=0):
    """Codes, and attributes that are the sign of one number of a code each; a third is unknown."""
    generator = torch.Generator().manual_seed(seed)
    z = 3 + 2 * torch.randn(count, width, generator=generator)
    scores = (z[:, torch.arange(len(ATTRIBUTES)) % width] - 3) / 2
    known = torch.rand(scores.shape, generator=generator) > 1 / 3
    return z, (scores > 0) & known, (scores <= 0) & known


def test_a_planted_attribute_is_found():
    z, found, not_found = planted()
    net = fit(z, found, not_found, AttributeConfig(weight_decay=1.0))
    assert net.names == NAMES
    for k in range(len(ATTRIBUTES)):
        direction = net.direction(k) / net.direction(k).norm()
        assert direction[k % 8] > 0.97
        assert ranking(net.logits(z)[:, k], found[:, k], not_found[:, k]) > 0.99
    again = fit(z, found, not_found, AttributeConfig(weight_decay=1.0))
    assert equal(net, again)


def test_figures_are_of_pictures_that_were_not_trained_on():
    z, found, not_found = planted(60)
    known = found | not_found
    coins = torch.rand(found.shape, generator=torch.Generator().manual_seed(1)) > 0.5
    rows = cross_validated(torch.stack([z, z]), coins & known, ~coins & known, AttributeConfig(weight_decay=0.0))
    by_chance = sum(row["ranking"] for row in rows.values()) / len(rows)
    assert abs(by_chance - 0.5) < 0.08  # trained on, they would be near 1
    rows = cross_validated(torch.stack([z, z]), found, not_found)
    assert all(row["ranking"] > 0.85 and row["with"] + row["without"] < 60 for row in rows.values())


def test_ranking():
    scores, found = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    assert ranking(scores, found, ~found) == (1 + 1 + 0 + 0.5) / 4
    assert ranking(scores, found & False, ~found) != ranking(scores, found & False, ~found)  # NaN


def test_an_attribute_without_examples_is_named():
    _, found, not_found = planted(30)
    found[:, NAMES.index("surprised")] = False
    with pytest.raises(ValueError, match="pictures with and of pictures without 'surprised'"):
        check_known(found, not_found)


VALUES = ("reading glasses", "sunglasses", "fedora", "black hair", "brown hair", "blonde hair", "red hair", "gray hair",
          "blue hair", "green hair", "pink hair", "long red hair", "short black hair", "smiling", "surprised", "angry",
          "goatee", "shaved face", "child girl", "adult male", "elderly male", "profile view")


@pytest.fixture
def labelled(tmp_path):
    """A folder with two pictures of each label."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "labels"))
        for i, x in enumerate(tiny.pictures(2 * len(VALUES))):
            Image.fromarray(to_bytes(x).movedim(0, -1).numpy()).save(folder / f"{i:03}.png")
            rows.writerow((f"{i:03}.png", f"group: {VALUES[i % len(VALUES)]}"))
    return folder


def test_the_command_trains_and_writes_a_classifier(labelled, tmp_path):
    source, out = tiny_models.write(tmp_path) / "diffae.safetensors", tmp_path / "new" / "attributes.safetensors"
    command = ["train", "attributes", f"--photos={labelled}", f"--source={source}", f"--out={out}", "--device=cpu",
               "--holdout=0", "--steps=20"]
    assert main(command) == 0
    net, model = loading.load_attributes(out)
    diffae = loading.load_diffae(source)
    assert model == fingerprint(diffae) and net.names == NAMES
    meta = store.peek(out).meta
    assert meta["pictures"] == 44 and meta["figures"]["hat"]["with"] == 2 and meta["figures"].keys() == set(NAMES)
    z, read = encode_pictures(diffae, sorted(labelled.glob("*.png")))
    assert len(read) == 44 and z.shape == (2, 44, 16)
    assert torch.allclose(net.mean[0], z.flatten(0, 1).mean(0), atol=1e-5)


def test_the_command_says_which_labels_are_missing(labelled, tmp_path, caplog):
    table = labelled / "labels.csv"
    table.write_text(table.read_text().replace("fedora", "something"))
    source = tiny_models.write(tmp_path) / "diffae.safetensors"
    assert main(["train", "attributes", f"--photos={labelled}", f"--source={source}", "--device=cpu",
                 f"--out={tmp_path / 'a.safetensors'}"]) == 1
    assert "without 'hat'" in caplog.text and not (tmp_path / "a.safetensors").exists()


@pytest.fixture
def command(labelled, tmp_path):
    source = tiny_models.write(tmp_path) / "diffae.safetensors"
    return ["train", "attributes", f"--photos={labelled}", f"--source={source}", "--device=cpu", "--holdout=0",
            "--steps=2", f"--out={tmp_path / 'a.safetensors'}"]


def test_pictures_that_cannot_be_read_are_left_out_with_their_labels(labelled, command, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(attributes, "CHUNK", 4)
    broken = [labelled / f"{i:03}.png" for i in (3, 4, 5, 6, 7)]  # of one kind one picture is left
    for path in broken:
        path.write_bytes(path.read_bytes()[:-60])  # its header is whole
    assert main(command) == 0 and "left out" in caplog.text
    meta = store.peek(tmp_path / "a.safetensors").meta
    assert meta["pictures"] == 39 and meta["figures"]["black hair"]["with"] == 3


def test_labels_of_pictures_that_cannot_be_read_do_not_count(labelled, command, caplog):
    for i in (2, 24):  # those with hats
        path = labelled / f"{i:03}.png"
        path.write_bytes(path.read_bytes()[:-60])
    assert main(command) == 1 and "without 'hat'" in caplog.text


def test_a_folder_without_labels_is_refused_with_what_to_give(labelled, command, caplog):
    (labelled / "labels.csv").unlink()
    assert main(command) == 1
    assert "the labels do not tell of pictures with and of pictures without 'glasses'" in caplog.text
