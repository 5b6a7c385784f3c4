"""`make demo-domain`: its commands and its figures; and a whole domain at a tiny scale, from rendering to stylizing."""

import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from oneshot_atelier.cli import main as command
from oneshot_atelier.cli.main import parser
from oneshot_atelier.models import loading
from oneshot_atelier.tests import tiny_models
from oneshot_atelier.tools import demo_domain, scenes
from oneshot_atelier.tools.demo_domain import JOBS, TRIALS
from oneshot_atelier.tools.jobs import planned

TINY = "iterations=1,batch=1,cached_content=1,forward_steps=4,reverse_steps=4,latent_steps=2,generate_steps=2"


def commands(tmp_path, capsys, *more):
    assert demo_domain.main([f"--out={tmp_path / 'o ut'}", "--list", *more]) == 0
    return [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]


def test_every_command_is_one_that_atelier_takes(tmp_path, capsys):
    lines = commands(tmp_path, capsys, "--scale=0.01", "--more=--precision float32", "--more-trials=--limit 3")
    assert len(lines) == len(JOBS) and not (tmp_path / "o ut").exists()
    taken = [parser(words[0]).parse_args(words) for words in lines]
    trained = {options.model: options for options in taken if options.command == "train"}
    assert trained["ddpm"].steps == 32 and trained["ddpm"].precision == "float32"
    assert trained["diffae"].init == loading.DEMO / "diffae.safetensors" and trained["latent"].init is None
    tried = [options for options in taken if options.command == "evaluate"]
    assert len(tried) == len(TRIALS) and {options.limit for options in tried} == {3}
    learned = {trained["diffae"].photos, trained["diffae"].art}
    for options in tried:
        assert options.no_faces == (options.photos.name == "unseen")
        assert not any(folder in (options.out, *options.out.parents) for folder in learned | {options.photos}), (
            "no result lies among the pictures of a training")


def test_nothing_begins_before_what_it_reads():
    order = [job.name for job in planned(JOBS)]
    for job in JOBS:
        assert all(order.index(name) < order.index(job.name) for name in job.after), job.name
    assert order.index("latent") < min(order.index(f"try-{name}") for name in TRIALS)


def test_a_style_of_each_pair_of_trials_differs_in_the_ddpm_alone(tmp_path, capsys):
    by_out = {words[words.index("--out") + 1].rpartition("/")[2]: words for words in commands(tmp_path, capsys)
              if words[0] == "evaluate"}
    for name in ("faces-scene", "scenes-face"):
        matched, other = ([word for word in by_out[trial] if not word.endswith((trial, "/ddpm.safetensors"))]
                          for trial in (name, f"{name}-unmatched"))
        assert [word for word in matched if word != "--ddpm"] == [word for word in other if word != "--ddpm"]
    assert "--ddpm" in by_out["faces-scene"] and "--ddpm" not in by_out["faces-scene-unmatched"]
    assert "--ddpm" not in by_out["scenes-face"] and "--ddpm" in by_out["scenes-face-unmatched"]


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def test_a_twin_is_compared_with_the_photo_that_the_style_was_drawn_from(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_domain, "PX", 8)
    for name, value in (("art/npr_oil/scene_1_00009.jpg", 255), ("drawn/scene_1_00009.png", 0),
                        ("drawn/scene_1_00008.png", 90), ("portrait_art/npr_oil/a_face.jpg", 0),
                        ("portraits/a/face.png", 1), ("portraits/a_face.png", 255), ("twin.png", 51)):
        save(tmp_path / name, value)
    twins = tmp_path / "trials" / "faces-scene" / "twins"
    save(twins / "npr_oil_scene_1_00009.png", 51)
    rows = {"photos": {"edge_agreement": 1.0}}
    results = {"twins": {"npr_oil_scene_1_00009": {"difference": 1.6, "score": 3.0}}, "styles": {}, "mean": rows,
               "reconstruction": {"t0 0.5": [30.0, 0.9]}}
    (twins.parent / "results.json").write_text(json.dumps(results))
    grid = np.arange(9, dtype=np.uint8).reshape(3, 3).repeat(8, 0).repeat(8, 1)  # rows of a trial's picture sheet
    Image.fromarray(grid).convert("RGB").save(twins.parent / "npr_oil_scene_1_00009.png")
    cells = demo_domain.shown(twins.parent / "npr_oil_scene_1_00009.png")
    assert [int(np.asarray(cell).max()) for cell in cells] == [0, 3, 1, 4, 7, 2, 5, 8]  # style, twin, then two photos
    demo_domain.write_figures(tmp_path)
    assert Image.open(tmp_path / "sheet.png").width > 8 * 8
    found = json.loads((tmp_path / "numbers.json").read_text())
    twin = found["faces-scene"]["twins"]["npr_oil_scene_1_00009"]
    assert twin["style_to_photo"] == pytest.approx(2) and twin["twin_to_photo"] == pytest.approx(51 / 127.5)
    assert "| faces-scene | photos |  |  |  | 1.000 |  |" in (tmp_path / "numbers.md").read_text()
    assert demo_domain.counterpart(tmp_path, "npr_oil_a_face")[1] == tmp_path / "portraits" / "a_face.png"
    with pytest.raises(FileNotFoundError, match="no drawing npr_ink_x"):
        demo_domain.counterpart(tmp_path, "npr_ink_x")


def test_a_domain_from_rendering_to_stylizing(tmp_path):
    """Rendered, drawn, a DDPM and a DiffAE of 64 px trained; then a style of the domain, its twin made by that DDPM,
    on a prior of another domain and of another picture size."""
    def run(text):
        assert command.main(shlex.split(text.format(out=tmp_path))) == 0, text
    scenes.render_folder(tmp_path / "scenes", 10, size=64)
    scenes.render_folder(tmp_path / "unseen", 1, seed=2, size=64)
    train = "--photos {out}/scenes --size 64 --batch 2 --device cpu --precision float32 --preview-every 0"
    run("render-art --photos {out}/unseen --out {out}/art --styles oil --size 64")
    run(f"train ddpm {train} --steps 2 --out {{out}}/ddpm.safetensors")
    run(f"train diffae {train} --art {{out}}/art --holdout 0 --steps 2 --out {{out}}/diffae.safetensors")
    run("train latent --photos {out}/scenes --batch 4 --device cpu --precision float32 --preview-every 0 --steps 2 "
        "--out {out}/diffae.safetensors")
    assert loading.load_ddpm(tmp_path / "ddpm.safetensors").config.image_size == 64
    tiny_models.write(tmp_path / "other")
    trial = ("evaluate --method osasis --no-faces --photos {out}/unseen --styles {out}/art "
             f"--ddpm {{out}}/ddpm.safetensors --device cpu --set {TINY} --encode-steps 4 --decode-steps 4 "
             "--candidates 1 --twin-t0 0.1 ")
    run(trial + "--diffae {out}/diffae.safetensors --clip {out}/other/clip.safetensors --out {out}/own")
    run(trial + "--diffae {out}/other/diffae.safetensors --clip {out}/other/clip.safetensors --out {out}/across")
    for name, px in (("own", 64), ("across", tiny_models.PX)):
        results = json.loads((tmp_path / name / "results.json").read_text())
        rows, = results["styles"].values()
        values = [value for row in rows.values() for value in row.values()]
        assert torch.tensor(values).isfinite().all() and "face_read" not in rows["photos"]
        twin = Image.open(tmp_path / name / "twins" / "npr_oil_scene_2_00000.png")
        assert twin.size == (px, px) and 0 < results["twins"]["npr_oil_scene_2_00000"]["difference"] < 0.4
