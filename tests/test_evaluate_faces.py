"""Everyone's face: what is read in results, how far landmarks move, and groups of photos by their labels."""

import argparse
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from oneshot_atelier.cli import evaluate as command
from oneshot_atelier.cli import main
from oneshot_atelier.evaluate import faces, tables
from oneshot_atelier.evaluate.evaluator import Comparison, Evaluator
from oneshot_atelier.evaluate.registry import FACES, grouped, means, measure, preservation
from oneshot_atelier.models.faces.networks import load_faces
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import tiny, tiny_models
from oneshot_atelier.tests.test_evaluate import TINY, save_pictures
from oneshot_atelier.train import labels


@pytest.fixture(scope="module")
def photos():
    """Three aligned faces (3, 3, 128, 128) in [-1, 1]."""
    arrays = load_file(golden.PUBLIC / "faces.safetensors")
    aligned = torch.stack([arrays[f"{name}.aligned"] for name in ("group", "tilted", "turned")])
    return aligned.permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator(tiny.clip(), tiny.diffae(), faces=load_faces())


def shifted(pictures, px):
    return F.pad(pictures, (px, 0, 0, 0), mode="replicate")[..., :pictures.shape[-1]]


def test_photos_keep_their_own_faces(evaluator, photos):
    assert means(Comparison.of(evaluator, photos, photos), FACES) == {"face_read": 1, "landmark_shift": 0}


def test_a_result_without_a_face_is_not_read_and_moves_nothing(evaluator, photos):
    results = photos.clone()
    results[0], results[1] = 0, tiny.pictures(1, px=128)[0]
    found = measure(Comparison.of(evaluator, photos, results), FACES)
    assert found["face_read"].tolist() == [0, 0, 1]
    assert found["landmark_shift"].isnan().tolist() == [True, True, False] and found["landmark_shift"][2] == 0
    assert means(Comparison.of(evaluator, photos[:2], results[:2]), FACES) == {"face_read": 0}


def test_the_shift_is_the_distance_in_shares_of_the_eyes(evaluator, photos):
    moved = measure(Comparison.of(evaluator, photos, shifted(photos, 4)), FACES)
    reading = Comparison.of(evaluator, photos, photos).photos.faces
    wanted = 4 / 128 / reading.eye_distance
    assert moved["face_read"].sum() == 3 and torch.allclose(moved["landmark_shift"], wanted, rtol=0.15)
    assert (0.25 < reading.eye_distance).all() and (reading.eye_distance < 0.45).all()


def test_a_face_somewhere_else_is_not_the_photos(evaluator, photos):
    small = F.pad(F.interpolate(photos, (40, 40), mode="bilinear", antialias=True), (88, 0, 88, 0), value=0.0)
    assert means(Comparison.of(evaluator, photos, small), FACES)["face_read"] == 0


def test_faces_are_read_alike_at_every_size_and_of_8_bit_pictures(evaluator, photos):
    large = F.interpolate(photos, (384, 384), mode="bicubic").clamp(-1, 1)
    stored = Comparison.of(evaluator, ((photos + 1) * 127.5).round().byte(), large)
    found = measure(stored, FACES)
    assert found["face_read"].sum() == 3 and found["landmark_shift"].max() < 0.01
    assert evaluator.faces is not None
    assert faces.enlarged(photos[:, :, :64]).shape[2:] == (192, 384)


def test_without_face_networks_content_is_measured_by_the_rest(photos):
    bare = Evaluator(tiny.clip(), tiny.diffae())
    comparison = Comparison.of(bare, photos, photos)
    assert not set(preservation(bare)) & set(FACES) and grouped(comparison, {"hats": (0,)}) == {}
    with pytest.raises(ValueError, match="no face networks"):
        measure(comparison, FACES)


# --- groups --------------------------------------------------------------------------------------------------------
def test_labels_give_groups_of_photos(tmp_path):
    folder = save_pictures(tmp_path / "photos", 3)
    (folder / labels.NAME).write_text("file,labels\n00.png,hats: fedora; hats: cap; glasses: round\n"
                                      "02.png,hats: beanie\n09.png,expression: sad\n")
    assert faces.label_groups(sorted(folder.glob("*.png"))) == {"glasses": (0,), "hats": (0, 2)}
    assert faces.label_groups(sorted(save_pictures(tmp_path / "bare", 2).iterdir())) == {}


def test_a_damaged_photo_moves_no_label_to_its_neighbour(tmp_path):
    """Its header is whole, so it is found; its pixels are not, so it is left out."""
    folder = save_pictures(tmp_path / "photos", 3)
    (folder / labels.NAME).write_text("file,labels\n01.png,glasses: round\n02.png,hats: beanie\n")
    whole = (folder / "01.png").read_bytes()
    (folder / "01.png").write_bytes(whole[:len(whole) // 2])
    paths, found = command.read_photos(argparse.Namespace(photos=folder, limit=0), 64, torch.device("cpu"))
    assert [path.name for path in paths] == ["00.png", "02.png"] and len(found) == 2
    assert faces.label_groups(paths) == {"hats": (1,)}


def test_each_group_has_its_own_figures(evaluator, photos):
    results = photos.clone()
    results[0] = 0
    found = grouped(Comparison.of(evaluator, photos, results), {"hats": (0, 1), "glasses": (0,), "scarf": (2,)})
    assert found == {"hats": {"face_read": 0.5, "landmark_shift": 0}, "glasses": {"face_read": 0},
                     "scarf": {"face_read": 1, "landmark_shift": 0}}


def test_the_gap_is_that_of_the_worst_group():
    rows = {"photos": {"face_read": 1.0, "landmark_shift": 0.0}, "made": {"face_read": 0.6, "landmark_shift": 0.05},
            **tables.group_rows("photos", {"hats": {"face_read": 1.0, "landmark_shift": 0.0}}),
            **tables.group_rows("made", {"hats": {"face_read": 0.5, "landmark_shift": 0.08},
                                         "glasses": {"face_read": 0.2}, "tie": {"face_read": 0.9,
                                                                                "landmark_shift": 0.01}})}
    found = tables.gaps(rows)
    assert found == {"made": {"face_read": ("glasses", pytest.approx(0.4)),
                              "landmark_shift": ("hats", pytest.approx(0.03))}}
    assert tables.gap_lines(rows) == ["made: face read of glasses is 0.400 worse than the mean",
                                      "made: landmark shift of hats is 0.030 worse than the mean"]
    assert list(tables.split_groups(rows)[0]) == ["photos", "made"] and len(tables.split_groups(rows)[1]) == 4
    both = tables.beside(rows, rows)
    assert "photos, label hats" in both and "OSASIS: photos, label hats" not in both
    assert both["MMFS: made, label tie"]["face_read"] == 0.9


def test_a_mean_over_styles_is_of_those_that_have_the_figure():
    one, two = {"made": {"face_read": 0.0}}, {"made": {"face_read": 1.0, "landmark_shift": 0.1}}
    assert tables.mean_rows({"a": one, "b": two}) == {"made": {"face_read": 0.5, "landmark_shift": 0.1}}


def test_the_command_reports_faces_by_labels(tmp_path, capsys, photos):
    files, folder = tiny_models.write(tmp_path), tmp_path / "photos"
    folder.mkdir()
    for k, photo in enumerate(photos[:2]):
        Image.fromarray(((photo + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(folder / f"{k}.png")
    (folder / labels.NAME).write_text("file,labels\n0.png,hats: fedora\n1.png,glasses: round\n")
    styles = save_pictures(tmp_path / "styles", 1)
    networks = [f"--{name}={files / name}.safetensors" for name in ("diffae", "ddpm", "clip")]
    assert main.main(["evaluate", "--method=osasis", f"--photos={folder}", f"--styles={styles}", *networks,
                      f"--out={tmp_path / 'out'}", "--device=cpu", "--candidates=2", "--encode-steps=4",
                      "--decode-steps=4", f"--set={TINY}"]) == 0
    out = capsys.readouterr().out
    assert "== OSASIS, by the labels of the photos" in out and "| photos, label glasses |" in out
    assert "- face read: " in out and "- landmark shift: " in out and "MediaPipe's detector and mesh" in out
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"photos, label hats", "photos, label glasses"} <= set(report["mean"]) and "gaps" in report
