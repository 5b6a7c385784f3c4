"""`atelier train osasis --text`: a style from words, from a folder of photos."""

from pathlib import Path

import pytest
from PIL import Image

from oneshot_atelier.cli import main, train_osasis
from oneshot_atelier.models.loading import load_diffae, load_style
from oneshot_atelier.models.style import check_osasis_style, fingerprint
from oneshot_atelier.tests import tiny, tiny_models
from oneshot_atelier.train.data import read_pictures, to_bytes
from oneshot_atelier.train.recipes import osasis as recipe

QUICK = "forward_steps=10,reverse_steps=10"


@pytest.fixture
def train(tmp_path):
    models, photos = tiny_models.write(tmp_path), tmp_path / "photos"
    photos.mkdir()
    for i, x in enumerate(tiny.pictures(3)):
        Image.fromarray(to_bytes(x).permute(1, 2, 0).numpy()).save(photos / f"{i}.png")
    return lambda *more: main.main([
        "train", "osasis", "--photos", str(photos), "--holdout", "0", "--source", str(models / "diffae.safetensors"),
        "--clip", str(models / "clip.safetensors"), "--device", "cpu", "--out", str(tmp_path / "made" / "words.st"),
        "--steps", "2", "--batch", "1", "--set", QUICK, *more])


def test_words_become_a_style_file_that_more_steps_go_on_from(train, tmp_path):
    assert train("--text", "drawing", "--photo-weight", "0.5") == 0
    out = tmp_path / "made" / "words.st"
    style, net = load_style(out), load_diffae(tmp_path / "diffae.safetensors")
    check_osasis_style(style, net.config.unet, fingerprint(net))
    assert {name: style.settings[name] for name in ("source", "target", "photo_weight", "iterations")} == {
        "source": "photo", "target": "drawing", "photo_weight": 0.5, "iterations": 2}
    assert out.with_suffix(".snapshot").is_file()
    assert train("--text", "drawing", "--photo-weight", "0.5", "--steps", "3") == 0
    assert load_style(out).settings["iterations"] == 3


@pytest.mark.parametrize(("given", "wanted"), [((), 25), (("--save-every", "7"), 7)])
def test_it_is_saved_before_its_official_200_iterations_are_over(train, monkeypatch, given, wanted):
    seen = []
    monkeypatch.setattr(train_osasis.recipes, "words", lambda *given: seen.append(given[-1].save_every))
    assert train("--text", "drawing", *given) == 0 and seen == [wanted]


@pytest.mark.parametrize(("more", "message"), [
    ((), "name the style with --text"), (("--text", "dog"), "does not know 'dog'"),
    (("--text", "drawing", "--preset", "best"), "there is no preset 'best'"),
    (("--text", "drawing", "--accelerate"), "train osasis is for one process"),
    (("--text", "drawing", "--minutes", "1"), "train osasis has no time limit: leave --minutes out"),
    (("--text", "drawing", "--text-source", "drawing"), "is the same as the source")])
def test_what_cannot_be_learned_is_one_line(train, caplog, more, message):
    assert train(*more) == 1
    assert message in caplog.text


def test_of_many_photos_those_that_the_seed_chooses_are_read(train, monkeypatch):
    paths = [Path(f"{k:03}") for k in range(200)]
    few, others = recipe.chosen(paths, 3, 20), recipe.chosen(paths, 4, 20)
    assert len(few) == len(set(few)) == 20 and few == sorted(few) and few != others
    assert recipe.chosen(paths, 3, 200) == paths and recipe.chosen(paths, 3, 20) == few
    read = []
    monkeypatch.setattr(recipe, "read_pictures", lambda paths, px: read.append(paths) or read_pictures(paths, px))
    monkeypatch.setattr(recipe.chosen, "__defaults__", (2,))
    assert train("--text", "drawing") == 0 and train("--text", "drawing", "--steps", "3") == 0
    assert [len(paths) for paths in read] == [2, 2] and read[0] == read[1]
