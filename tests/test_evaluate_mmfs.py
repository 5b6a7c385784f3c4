"""The evaluation of MMFS, alone and beside OSASIS, on tiny random networks."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from oneshot_atelier.cli import main
from oneshot_atelier.evaluate import mmfs as E
from oneshot_atelier.evaluate.evaluator import Evaluator, PictureFeatures
from oneshot_atelier.evaluate.registry import METRICS, PUBLIC_NAMES
from oneshot_atelier.evaluate.tables import HALVES, ResultFolder, file_name
from oneshot_atelier.models.faces.networks import load_faces
from oneshot_atelier.models.features.encoder import EncoderDistance, EncoderKeys
from oneshot_atelier.models.loading import load_clip, load_diffae, save_mmfs
from oneshot_atelier.models.mmfs import clip_fingerprint
from oneshot_atelier.tests import tiny, tiny_mmfs, tiny_models
from oneshot_atelier.tests.test_evaluate import TINY, save_pictures
from oneshot_atelier.train.data import read_pictures, to_bytes
from oneshot_atelier.train.fewshot import FewShotConfig

PX = tiny_mmfs.PX
CONFIG = FewShotConfig(iterations=2, batch=2, lr=1e-2, ema_decay=0.0)
SETTINGS = E.Settings(CONFIG, styles=4, batch=2)
FINE_TUNED = (E.WITHOUT, E.AFTER)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tiny_mmfs.write(tiny_models.write(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="module")
def evaluator(files):
    diffae = load_diffae(files / "diffae.safetensors")
    return Evaluator(load_clip(files / "clip.safetensors"), diffae, EncoderDistance(diffae.encoder),
                     faces=load_faces())


@pytest.fixture
def models(evaluator):
    net = tiny_mmfs.mmfs().eval().requires_grad_(False)
    structure_net = EncoderKeys(evaluator.diffae.encoder, tiny_models.PX)
    return E.Models(net, structure_net, to_bytes(tiny.pictures(4, 9, PX)), evaluator)


@pytest.fixture
def styles(tmp_path):
    return sorted(save_pictures(tmp_path / "styles", 2, seed=5).iterdir())


photos = tiny.pictures(3, px=PX)


def task(models, **given):
    """The first of the tasks of `styles` or `prompts`."""
    tasks = E.read_tasks(models, photos, given.get("styles", ()), given.get("prompts", ()), CONFIG)
    return (tasks["one_shot"] + tasks["zero_shot"])[0]


# --- random styles -------------------------------------------------------------------------------------------------
def test_random_styles_are_of_the_seed_and_one_a_picture(models):
    drawn = E.random_styles(models, photos, SETTINGS)
    again = E.random_styles(models, photos, SETTINGS)
    assert len(drawn) == 4 and all(torch.equal(a, b) for a, b in zip(drawn, again))
    one = E.random_styles(models, photos[:1].expand(3, -1, -1, -1), SETTINGS)
    pictures = torch.cat(one).flatten(1)
    apart = torch.cdist(pictures, pictures)
    assert apart[~torch.eye(12, dtype=bool)].min() > 1e-3
    assert not torch.equal(E.random_styles(models, photos, replace(SETTINGS, seed=50))[0], drawn[0])


def test_batches_make_no_difference(models):
    codes = models.net.styles(torch.randn(3, models.net.config.w_dim))
    whole = E.stylize(models.net, photos, codes, replace(SETTINGS, batch=8))
    assert torch.allclose(E.stylize(models.net, photos, codes, replace(SETTINGS, batch=1)), whole, atol=1e-5)


class Same(nn.Module):
    def forward(self, z):
        return torch.ones_like(z)


def noiseless(net):
    for name, weight in net.named_parameters():
        if "noise" in name:
            weight.zero_()
    return net


def test_styles_that_make_no_difference_are_not_diverse(models):
    noiseless(models.net)
    assert E.evaluate_random(models, photos, [], SETTINGS)[0][E.RANDOM]["diversity"] > 1e-6
    models.net.mapping = Same()
    assert E.evaluate_random(models, photos, [], SETTINGS)[0][E.RANDOM]["diversity"] == 0


def test_every_random_style_has_noise_of_its_own(models):
    models.net.mapping = Same()
    one, other = E.random_styles(models, photos, replace(SETTINGS, styles=2))
    assert not torch.equal(one, other)
    one, other = E.random_styles(replace(models, net=noiseless(models.net)), photos, replace(SETTINGS, styles=2))
    assert torch.equal(one, other)


def test_the_art_is_nearer_to_itself_than_photos_are(models, tmp_path):
    art = sorted(save_pictures(tmp_path / "art", 40, seed=3).iterdir())
    rows = E.evaluate_random(models, tiny.pictures(20, 8, PX), art, SETTINGS)[0]
    found = {name: values["art_distance"] for name, values in rows.items()}
    assert set(found) == {"photos", E.RANDOM, HALVES} and 0 < found[HALVES] < min(found["photos"], found[E.RANDOM])
    same = E.art_distances(models.evaluator, {"same": tiny.pictures(40, 3)}, read_pictures(art, PX))["same"]
    assert same["art_distance"] < 0.05 * found["photos"]


# --- styles that are learned ---------------------------------------------------------------------------------------
def test_before_fine_tuning_the_mapping_alone_draws(models, styles):
    net, first = models.net, task(models, styles=styles)
    pictures = []
    E.evaluate_task(models, photos, replace(first, measure=lambda x: pictures.append(x.pictures) or {}), SETTINGS)
    seen = models.evaluator.clip.preprocess_file(first.reference.pictures[0])
    w = net.styles_of(models.evaluator.clip.encode_with_tokens(seen)[0])
    assert torch.allclose(pictures[1], E.stylize(net, photos, w, SETTINGS), atol=1e-6)
    assert torch.equal(pictures[0], photos)
    for a in range(4):
        for b in range(a):
            assert (pictures[a] - pictures[b]).abs().max() > 1e-4, (a, b)


def test_the_model_stays_as_it_is(models, styles):
    before = tiny.copy_of(models.net)
    E.evaluate_task(models, photos, task(models, styles=styles), SETTINGS)
    assert tiny.same(before, models.net.state_dict())


def test_projection_is_left_out_where_it_means_nothing(models, styles):
    pictures, words = task(models, styles=styles), task(models, prompts=["drawing"])
    assert [c.projection_weight for c in E.configs_of(pictures, CONFIG).values()] == [0, 100]
    assert list(E.configs_of(words, CONFIG)) == [E.AFTER]
    assert list(E.configs_of(pictures, replace(CONFIG, projection_weight=0.0))) == [E.AFTER]


def test_prompts_may_be_learned_otherwise(models, styles):
    settings = replace(SETTINGS, text_config=replace(CONFIG, structure_weight=9.0))
    pictures, words = task(models, styles=styles), task(models, prompts=["drawing"])
    assert settings.config_of(pictures.reference) == CONFIG == SETTINGS.config_of(words.reference)
    assert settings.config_of(words.reference).structure_weight == 9.0
    learned = [E.evaluate_task(models, photos, words, one)[0][E.AFTER] for one in (SETTINGS, settings)]
    assert learned[0] != learned[1]


def test_a_picture_whose_nearest_text_is_its_prompt_counts(models, monkeypatch):
    """With embeddings of pictures and texts given, every figure of texts is known."""
    words = {"drawing": [1.0, 0.0], "face": [0.0, 1.0], "photo": [-1.0, 0.0]}
    results = torch.zeros(2, 3, PX, PX)
    monkeypatch.setattr(models.evaluator.clip, "embed_text", lambda texts: torch.tensor([words[t] for t in texts]) * 3)
    first = E.text_tasks(models, photos[:2], ["drawing", "face"], "photo")[0]
    given = {photos[:2].data_ptr(): [[-2.0, 0.0], [-2.0, 0.0]], results.data_ptr(): [[3.0, 0.0], [0.0, 5.0]]}
    monkeypatch.setattr(models.evaluator.clip, "embed", lambda x, how: torch.tensor(given[x.data_ptr()]))
    monkeypatch.setattr(Evaluator, "sized", lambda self, x: x)
    monkeypatch.setattr(E, "preservation", lambda evaluator: ())
    assert first.measure(PictureFeatures(models.evaluator, results)) == pytest.approx(
        {"clip_direction": (1 + 0.5 ** 0.5) / 2, "prompt_similarity": 0.5, "prompt_accuracy": 0.5}, abs=1e-6)


def test_everything_is_measured_and_written(models, styles, tmp_path, caplog):
    caplog.set_level("INFO")
    out = tmp_path / "out"
    tasks = E.read_tasks(models, photos, styles, ["drawing", "face drawing"], CONFIG)
    made = ResultFolder(tmp_path / "made", [str(i) for i in range(len(photos))], "MMFS")
    report = E.evaluate(models, photos, tasks, styles * 2, SETTINGS, out, folder=made)
    assert {path.relative_to(tmp_path / "made").parent.as_posix() for path in (tmp_path / "made").rglob("*.png")} == {
        f"{file_name(f'MMFS {row}')}/styles/{style}" for row in (E.BEFORE, *FINE_TUNED) for style in ("00", "01")}
    assert json.loads((out / "mmfs.json").read_text()) == json.loads(json.dumps(report))
    assert {p.name for p in out.glob("*.png")} == {
        "mmfs_random.png", "mmfs_styles_00.png", "mmfs_styles_01.png", "mmfs_drawing.png", "mmfs_face_drawing.png"}
    assert Image.open(out / "mmfs_styles_00.png").size == (4 * PX, 4 * PX)
    assert Image.open(out / "mmfs_drawing.png").size == (3 * PX, 3 * PX)
    assert set(report["one_shot"]) == {"styles_00", "styles_01"} and set(report["zero_shot"]) == {"drawing",
                                                                                                   "face drawing"}
    for rows in (*report["one_shot"].values(), report["one_shot_mean"]):
        assert list(rows) == ["photos", E.BEFORE, *FINE_TUNED] and rows["photos"]["retrieval_accuracy"] == 1
    for rows in (*report["zero_shot"].values(), report["zero_shot_mean"]):
        assert list(rows) == ["photos", E.BEFORE, E.AFTER]
    tables = [report["random"], report["one_shot_mean"], report["zero_shot_mean"]]
    figures = [value for rows in tables for values in rows.values() for value in values.values()]
    assert torch.isfinite(torch.tensor(figures)).all()
    seen = {f for rows in tables for values in rows.values() for f in values}
    # no faces here to be shifted; an attribute's probability is a measure of edits
    assert seen == set(METRICS) - {"psnr", "ssim", "landmark_shift", "attribute_probability", "encoder_distance",
                                   *PUBLIC_NAMES}
    assert all(rows["photos"]["face_read"] == 0 for rows in tables)
    assert sum(text.startswith("fine-tuned, projection_weight") for text in caplog.messages) == 4
    assert sum(text.startswith("fine-tuned: loss") for text in caplog.messages) == 2


def test_a_stopped_evaluation_goes_on_behind_its_styles(models, styles, tmp_path, monkeypatch):
    tasks = E.read_tasks(models, photos, styles, ["drawing"], CONFIG)
    whole = E.evaluate(models, photos, tasks, styles * 2, SETTINGS, tmp_path / "out")
    for name in ("evaluate_random", "evaluate_task"):
        monkeypatch.setattr(E, name, lambda *_: pytest.fail("this was done before"))
    again = E.evaluate(models, photos, tasks, styles * 2, SETTINGS, tmp_path / "out")
    assert json.dumps(again) == json.dumps(whole)
    with pytest.raises(pytest.fail.Exception):
        E.evaluate(models, photos, tasks, styles * 2, replace(SETTINGS, seed=1), tmp_path / "out")


def test_what_is_kept_of_a_prompt_is_of_all_prompts_that_it_competes_with(models, tmp_path, monkeypatch):
    learned = []
    monkeypatch.setattr(E, "evaluate_random", lambda *_: ({"photos": {}}, []))
    monkeypatch.setattr(E, "evaluate_task", lambda models, photos, task, *_: learned.append(task.name) or ({}, []))
    for prompts in (["drawing"], ["drawing", "face"], ["drawing", "face"]):
        tasks = {"zero_shot": E.text_tasks(models, photos, prompts, "photo")}
        E.evaluate(models, photos, tasks, [], SETTINGS, tmp_path)
    tasks = {"zero_shot": E.text_tasks(models, photos, ["drawing", "face"], "face drawing")}
    E.evaluate(models, photos, tasks, [], SETTINGS, tmp_path)
    assert learned == ["drawing", "drawing", "face", "drawing", "face"]


def test_numbers_are_kept_before_a_sheet_fails_and_a_long_prompt_is_no_long_file_name(models, tmp_path, monkeypatch):
    prompt, learned = "drawing face " * 30, []
    monkeypatch.setattr(E, "evaluate_random", lambda *_: ({"photos": {}}, []))
    monkeypatch.setattr(E, "evaluate_task", lambda *_: learned.append(1) or ({}, [photos]))

    def full(*_):
        raise OSError("no space left")
    tasks = {"zero_shot": [E.StyleTask(prompt, E.Reference(prompt), lambda _: {})]}
    with monkeypatch.context() as failing:
        failing.setattr(E, "write_sheet", full)
        with pytest.raises(OSError):
            E.evaluate(models, photos, tasks, [], SETTINGS, tmp_path)
    E.evaluate(models, photos, tasks, [], SETTINGS, tmp_path)
    E.evaluate(models, photos, tasks, [], SETTINGS, tmp_path / "other")
    assert len(learned) == 2 and len(list((tmp_path / "other").glob("mmfs_drawing_face_*.png"))) == 1
    assert len({file_name(prompt), file_name(prompt + "x"), file_name("a b"), file_name("\u9ed1" * 300)}) == 4
    assert len(file_name("\u9ed1" * 300).encode()) <= 100


def test_a_seed_and_a_photo_decide_a_random_style(models):
    """Photo i of three has the w+ code of photo i of one more; styles, photos and seeds never share one."""
    three, four = (E.random_w(models.net, 1, count, seed=5) for count in (3, 4))
    assert torch.allclose(three, four[:3], atol=1e-5)
    codes = torch.cat([E.random_w(models.net, style, 3, seed) for style in (0, 1) for seed in (5, 6)])[:, 0]
    assert len(torch.unique(codes, dim=0)) == 12


def test_two_random_styles_are_needed():
    with pytest.raises(ValueError, match="2 at least"):
        E.Settings(CONFIG, styles=1)


# --- the command line ----------------------------------------------------------------------------------------------
def arguments(files, tmp_path, *more):
    """A quick evaluation of two photos and two styles with the tiny networks."""
    photo_folder = save_pictures(tmp_path / "photos", 2)
    styles = save_pictures(tmp_path / "styles" / "oil", 2, 4).parent
    networks = [f"--{name}={files / name}.safetensors" for name in ("diffae", "ddpm", "clip", "mmfs", "stylegan2")]
    return ["evaluate", f"--photos={photo_folder}", f"--styles={styles}", f"--out={tmp_path / 'out'}", *networks,
            "--device=cpu", "--mmfs-set=iterations=1,batch=2,cached_content=2", "--prompts=drawing, face,drawing,",
            "--random-styles=2", "--candidates=2", "--encode-steps=4", "--decode-steps=4", f"--set={TINY}", *more]


def test_both_methods_from_the_command_line(files, tmp_path, capsys):
    save_pictures(tmp_path / "art" / "ink", 5)
    save_pictures(tmp_path / "art" / "vector_a", 2)
    given = arguments(files, tmp_path, f"--art={tmp_path / 'art'}", "--exclude=vector_*,none")
    assert main.main(given) == 0
    out = capsys.readouterr().out
    beside = out[out.index("== OSASIS beside MMFS"):]
    assert "| OSASIS: mixed codes, SPN |" in beside and f"| MMFS: {E.AFTER} |" in beside and "(no LPIPS)" in beside
    report = json.loads((tmp_path / "out" / "mmfs.json").read_text())
    assert report["art"] == 5 and list(report["zero_shot"]) == ["drawing", "face"]
    assert (tmp_path / "out" / "results.json").exists() and (tmp_path / "out" / "oil_00.png").exists()


def test_mmfs_alone_on_given_faces_and_without_words(files, tmp_path, capsys):
    given = arguments(files, tmp_path, "--method=mmfs", f"--faces={tmp_path / 'photos'}", "--prompts=",
                      "--stylegan2=/nowhere", "--ddpm=/nowhere")
    assert main.main(given) == 0
    out = capsys.readouterr().out
    assert "OSASIS beside" not in out and "zero-shot" not in out and "art distance |" not in out
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("known", ["", "its own", "of another CLIP"])
def test_a_mapping_of_another_clip_is_told(files, tmp_path, caplog, known):
    clip = clip_fingerprint(load_clip(files / "clip.safetensors")) if known == "its own" else known
    save_mmfs(tmp_path / "mapped.safetensors", tiny_mmfs.mmfs(), None, {"phase": 3, "clip": clip})
    given = arguments(files, tmp_path, "--method=mmfs", f"--mmfs={tmp_path / 'mapped.safetensors'}")
    assert main.main([*given, "--faces=/nowhere"]) == 1 and "no picture" in caplog.text  # ends it early
    assert ("trained with another CLIP" in caplog.text) == (known == "of another CLIP")


@pytest.mark.parametrize("more, said", [
    (["--prompts=drawing,gouache"], "does not know 'gouache'"), (["--mmfs-preset=fast"], "no preset 'fast'"),
    (["--mmfs-set=steps=3"], "no setting 'steps'"), (["--random-styles=1"], "2 at least"),
    (["--mmfs=/nowhere.safetensors"], "no such file"), (["--dino=/nowhere.pth"], "no such file"),
    (["--faces=/nowhere"], "no picture"), (["--art=/nowhere"], "no picture"),
    (["--set=spn=some"], "spn is 'some'")])  # OSASIS comes second, and its mistakes are found first all the same
def test_mistakes_are_found_before_anything_long(files, tmp_path, caplog, monkeypatch, more, said):
    monkeypatch.setattr(E, "random_styles", None)
    assert main.main(arguments(files, tmp_path, *more)) == 1
    assert said in caplog.text and "Traceback" not in caplog.text and not (tmp_path / "out").exists()


def test_models_and_pictures_that_will_not_do(files, tmp_path, caplog):
    save_mmfs(tmp_path / "bare.safetensors", tiny_mmfs.mmfs(mapper=None), None, {"phase": 2})
    given = arguments(files, tmp_path, "--method=mmfs")
    assert main.main([*given, f"--mmfs={tmp_path / 'bare.safetensors'}"]) == 1 and "no CLIP mapping" in caplog.text
    Image.new("RGB", (PX, PX), "teal").save(tmp_path / "styles" / "oil" / "00.png")
    assert main.main(given) == 1 and "one flat colour" in caplog.text
    given = [*given, "--only=01", f"--art={tmp_path / 'styles'}"]
    assert main.main(given) == 1 and "2 photos and 4 drawings; there are 2 and 2" in caplog.text
    assert main.main([*given, "--exclude=o*"]) == 1 and "leaves no drawing" in caplog.text
