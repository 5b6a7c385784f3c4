"""The evaluation of OSASIS, what both methods are measured by, and the command line, on tiny random networks."""

import argparse
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from oneshot_atelier.cli import main
from oneshot_atelier.cli.evaluate import style_paths
from oneshot_atelier.evaluate import intervals, osasis, papers, report, tables
from oneshot_atelier.evaluate.evaluator import Comparison, Evaluator, PictureFeatures
from oneshot_atelier.evaluate.registry import CONTENT_PRESERVATION, STYLE_SIMILARITY, means
from oneshot_atelier.models.diffae import DiffAE, mix_codes
from oneshot_atelier.models.features.encoder import EncoderDistance
from oneshot_atelier.models.unet import UNet
from oneshot_atelier.tests import tiny, tiny_models
from oneshot_atelier.train.data import read_picture, to_unit
from oneshot_atelier.train.osasis import OSASISConfig

CONFIG = OSASISConfig(iterations=1, batch=2, cached_content=2, forward_steps=4, reverse_steps=4, latent_steps=2,
                      generate_steps=2, lr=1e-3)
SETTINGS = osasis.Settings(CONFIG, candidates=3, twin_steps=4, encode_steps=4, decode_steps=4, change_point=32)
TINY = "iterations=1,batch=2,cached_content=2,forward_steps=4,reverse_steps=4,latent_steps=2,generate_steps=2"


@pytest.fixture
def models():
    diffae = tiny.diffae()
    ddpm = tiny.filled(UNet(tiny.DDPM), 1).eval().requires_grad_(False)
    return osasis.Models(ddpm, Evaluator(tiny.clip(), diffae, EncoderDistance(diffae.encoder)))


def save_pictures(folder, count, seed=0):
    folder.mkdir(parents=True)
    for i, picture in enumerate(tiny.pictures(count, seed)):
        array = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{i:02}.png")
    return folder


def test_every_style_gets_every_variant_and_every_figure(models, tmp_path):
    styles = sorted(save_pictures(tmp_path / "styles", 2, seed=5).iterdir())
    results = osasis.evaluate(models, tiny.pictures(2), styles, SETTINGS, tmp_path / "out")
    assert len(results["styles"]) == 2 and len(list((tmp_path / "out").glob("*.png"))) == 2
    assert {path.stem for path in (tmp_path / "out" / "twins").iterdir()} == set(results["twins"])
    assert set(results["twins"]) == set(results["styles"])
    twin = read_picture(tmp_path / "out" / "twins" / "styles_00.png", tiny.PX)
    apart = (to_unit(twin) - to_unit(read_picture(styles[0], tiny.PX))).abs().mean()
    assert results["twins"]["styles_00"]["difference"] == pytest.approx(float(apart), abs=0.005)
    for rows in [*results["styles"].values(), results["mean"]]:
        assert set(rows) == {"photos", *osasis.VARIANTS}
        assert all(torch.isfinite(torch.tensor(list(values.values()))).all() for values in rows.values())
        assert rows["photos"]["edge_agreement"] == pytest.approx(1)
        assert rows["photos"]["structure_distance"] == pytest.approx(0, abs=1e-6)
    one, two = results["styles"].values()
    mean, one, two = (r["codes swapped, SPN"]["colour_distance"] for r in (results["mean"], one, two))
    assert mean == pytest.approx((one + two) / 2)


def test_the_variants_are_really_different(models):
    photos = tiny.pictures(2)
    style = tiny.pictures(1, seed=7)
    measured = osasis.evaluate_style(models, photos, style, SETTINGS)
    rows, pictures = measured.rows, measured.sheet
    for name, figures in measured.structure.items():
        assert {figure: float(column.mean()) for figure, column in figures.items()} == pytest.approx(
            {figure: rows[name][figure] for figure in osasis.STRUCTURE})
    shown = dict(zip(osasis.VARIANTS, pictures[1:]))
    for a in shown:
        for b in shown:
            assert a == b or not torch.equal(shown[a][1:], shown[b][1:]), (a, b)


def test_several_seeds_are_averaged_and_variants_compared_on_parts(models, tmp_path):
    style, photos = save_pictures(tmp_path / "styles", 1, seed=5) / "00.png", tiny.pictures(3)
    image = read_picture(style, tiny.PX)
    settings = replace(SETTINGS, seeds=2, parts={"first": [0], "rest": [1, 2]})
    folder = tables.ResultFolder(tmp_path / "made", ("a", "b", "c"), "OSASIS")
    report = osasis.evaluate(models, photos, [style], settings, folder=folder)
    made = [tmp_path / "made" / tables.file_name(f"OSASIS {osasis.OURS}") / "styles" / "00" / f"seed_{k}" / "a.png"
            for k in range(2)]
    assert made[0].read_bytes() != made[1].read_bytes(), "no seed's results replace another's"
    ones = [osasis.evaluate_style(models, photos, to_unit(image)[None], replace(
        SETTINGS, seed=k, config=replace(CONFIG, seed=k))) for k in range(2)]
    ours, other, figure = osasis.OURS, "codes swapped, SPN", "structure_distance"
    assert report["mean"][other][figure] == pytest.approx(sum(one.rows[other][figure] for one in ones) / 2)
    assert ones[0].rows[other][figure] != ones[1].rows[other][figure]
    differences = sum(one.structure[other][figure] - one.structure[ours][figure] for one in ones) / 2  # lower is better
    gain = report["gains"][other]
    assert set(report["gains"]) == set(osasis.VARIANTS) - {ours} and set(gain) == {intervals.ALL, "first", "rest"}
    assert gain["first"][figure] == pytest.approx((float(differences[0]),) * 3, abs=1e-6)
    assert gain["rest"][figure][0] == pytest.approx(float(differences[1:].mean()), abs=1e-6)


def test_a_stopped_evaluation_goes_on_behind_its_styles(models, tmp_path, monkeypatch):
    """What is done is not done again, and the report is that of a run that was never stopped."""
    styles = sorted(save_pictures(tmp_path / "styles", 3, seed=5).iterdir())
    photos, out = tiny.pictures(2), tmp_path / "out"
    whole = osasis.evaluate(models, photos, styles, SETTINGS, tmp_path / "whole")
    osasis.evaluate(models, photos, styles[2:], SETTINGS, out)  # another process's share
    learned, evaluate_style = [], osasis.evaluate_style

    def stopped_at_the_second(*arguments):
        learned.append(1)
        if len(learned) == 2:
            raise KeyboardInterrupt
        return evaluate_style(*arguments)
    monkeypatch.setattr(osasis, "evaluate_style", stopped_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        osasis.evaluate(models, photos, styles, SETTINGS, out)
    assert osasis.evaluate(models, photos, styles, SETTINGS, out) == whole and len(learned) == 3
    assert {path.name for path in out.glob("*.png")} == {"styles_00.png", "styles_01.png", "styles_02.png"}
    for changed in (replace(SETTINGS, seed=1), replace(SETTINGS, config=replace(CONFIG, lr=1e-4))):
        osasis.evaluate(models, photos, styles[:1], changed, out)
    osasis.evaluate(models, photos.flip(0), styles[:1], SETTINGS, out)
    other = tiny.filled(UNet(tiny.DDPM), 2).eval().requires_grad_(False)
    osasis.evaluate(replace(models, ddpm=other), photos, styles[:1], SETTINGS, out)
    assert len(learned) == 7, "other settings, photos and networks are other results"


def test_an_interval_is_that_of_the_mean_for_further_styles_and_photos():
    """Additive effects: the variance of the mean is s^2 / S + p^2 / P."""
    generator = torch.Generator().manual_seed(0)
    standard = [(v - v.mean()) / v.std() for v in (torch.randn(n, generator=generator) for n in (40, 60))]
    differences = 0.5 + 0.3 * standard[0][:, None] + 0.2 * standard[1]
    mean, low, high = intervals.interval(differences)
    half = 1.96 * (0.3 ** 2 / 40 + 0.2 ** 2 / 60) ** 0.5
    assert mean == pytest.approx(0.5) and (mean - low, high - mean) == pytest.approx((half, half), rel=0.08)
    assert intervals.interval(torch.full((3, 4), 2.0)) == pytest.approx((2.0, 2.0, 2.0))


def test_the_codes_of_a_variant_are_what_its_name_says():
    model, content, style = tiny.diffae(), torch.zeros(2, tiny.WIDTH), torch.ones(1, tiny.WIDTH)

    def levels(how):
        return [float(code.mean()) for code in osasis.codes_for(how, model, content, style, change_point=32)]
    assert levels("mix") == [1, 0, 0] and levels("swap") == [0, 1, 1]
    assert levels("content") == [0, 0, 0] and levels("style") == [1, 1, 1]
    assert len(mix_codes(content, style, (1, 0, 0))) == 3


def test_the_twin_is_the_best_of_the_candidates(models):
    style = tiny.pictures(1, seed=7)
    twin, scores = osasis.best_twin(models, style, SETTINGS)
    best = 10 * (twin - style).abs().mean() + models.evaluator.perceptual(twin, style)[0]
    assert scores.tolist() == sorted(scores.tolist()) and float(scores[0]) == pytest.approx(float(best), rel=1e-5)


def test_a_ddpm_of_another_size_makes_twins_at_its_own(models):
    large = tiny.filled(UNet(replace(tiny.DDPM, image_size=2 * tiny.PX)), 1).eval().requires_grad_(False)
    seen = []
    large.register_forward_hook(lambda net, inputs, output: seen.append(tuple(inputs[0].shape[-2:])))
    style = tiny.pictures(1, seed=7)
    twin, scores = osasis.best_twin(replace(models, ddpm=large), style, SETTINGS)
    assert set(seen) == {(64, 64)} and twin.shape == style.shape and len(scores) == 3
    again = osasis.resized(osasis.resized(style, 64), 32)
    assert float((again - style).abs().mean()) < 0.01 and osasis.resized(style, tiny.PX) is style


def test_one_style_is_taken_of_each_class_folder(tmp_path):
    paths = [tmp_path / "oil" / "a.png", tmp_path / "oil" / "b.png", tmp_path / "ink" / "c.png"]
    assert tables.first_of_each(tmp_path, paths) == [paths[0], paths[2]]
    flat = [tmp_path / "a.png", tmp_path / "b.png"]
    assert tables.first_of_each(tmp_path, flat) == flat


@pytest.mark.parametrize("one, other", [("1.png", "1.jpg"), ("set1/oil/1.png", "set2/oil/1.png"),
                                        ("npr_oil/1.png", "npr/oil_1.png"), ("set1/Oil/1.png", "set2/oil/1.png")])
def test_two_styles_of_one_name_are_refused(tmp_path, one, other):
    for name in (one, other):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(ValueError, match="two style pictures are called") as refused:
        style_paths(argparse.Namespace(styles=tmp_path, only="", holdout=0))
    assert all(str(tmp_path / name) in str(refused.value) for name in (one, other))
    (tmp_path / other).rename((tmp_path / other).with_name("2.png"))
    assert len(style_paths(argparse.Namespace(styles=tmp_path, only="", holdout=0))) == 2


def test_all_photos_are_encoded_and_reconstructed_in_batches(models, monkeypatch):
    sizes, photos, settings = [], tiny.pictures(3), replace(SETTINGS, batch=2)
    structural_code = DiffAE.structural_code
    monkeypatch.setattr(DiffAE, "structural_code", lambda net, x, *given, **named: sizes.append(len(x)) or
                        structural_code(net, x, *given, **named))
    whole = report.reconstruction(models.diffae, photos, {"few": (4, 4, 0.5)})
    assert report.reconstruction(models.diffae, photos, {"few": (4, 4, 0.5)}, 2)["few"] == pytest.approx(whole["few"])
    osasis.rebuilt(models, photos, settings)
    osasis.evaluate_style(models, photos, tiny.pictures(1, seed=7), settings)
    assert sizes[0] == 3 and 3 not in sizes[1:]  # a fine-tune's own content comes in blocks of 8


def test_a_single_photo_is_reported_without_numbers_that_need_two(models, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "chain", lambda net, x, *_: x)
    monkeypatch.setattr(report, "random_pictures", lambda net, count: tiny.pictures(count))
    figures = report.write(models.diffae, tiny.pictures(1), tmp_path, "one")
    assert "z against x_T" not in figures and json.loads(json.dumps(figures, allow_nan=False))
    with pytest.raises(ValueError, match="at least two"):
        report.z_vs_xT_ablation(models.diffae, tiny.pictures(1))


def test_the_ablation_of_z_and_x_T_counts_which_of_them_decides(models):
    """A decoder that shows the code alone gives z everything; one that shows the noise alone gives it nothing."""
    class ByCode:
        image_size = tiny.PX

        def encode(self, x):
            return x.mean((2, 3))

        def decode(self, noise, z, steps, t0):
            return z[:, :, None, None].expand(-1, -1, tiny.PX, tiny.PX)

    class ByNoise(ByCode):
        def decode(self, noise, z, steps, t0):
            return noise

    x = torch.rand(4, 3, tiny.PX, tiny.PX) * torch.linspace(0.1, 1, 4)[:, None, None, None]
    numbers, _ = report.z_vs_xT_ablation(ByCode(), x, seeds=3)
    assert numbers["right z"] == 1 and numbers["same z, other x_T"] < 1e-6 < numbers["other z, same x_T"]
    numbers, _ = report.z_vs_xT_ablation(ByNoise(), x, seeds=3)
    assert numbers["right x_T"] == 1 and numbers["other z, same x_T"] < 1e-6 < numbers["same z, other x_T"]


# --- what both methods are measured by ------------------------------------------------------------------------------
def preservation(evaluator, photos, results):
    return means(Comparison.of(evaluator, photos, results), CONTENT_PRESERVATION)


def similarity(evaluator, photos, results, style, start):
    return means(Comparison.of(evaluator, photos, results, style, start), STYLE_SIMILARITY)


def test_a_photo_keeps_all_of_itself_and_the_style_picture_has_all_of_its_style(models):
    photos, evaluator = tiny.pictures(3), models.evaluator
    assert preservation(evaluator, photos, photos) == pytest.approx(
        {"edge_agreement": 1, "structure_distance": 0, "identity_distance": 0, "retrieval_accuracy": 1}, abs=1e-5)
    turned = preservation(evaluator, photos, photos.flip(0))
    assert turned["retrieval_accuracy"] == pytest.approx(1 / 3)  # the middle one
    style, start = photos[:1], evaluator.embed(photos[2:])
    found = similarity(evaluator, photos[1:2], style, style, start)
    perfect = {"clip_similarity": 1, "colour_distance": 0, "texture_distance": 0, "patch_projection": 1,
               "patch_similarity": 1}
    assert found == pytest.approx(found | perfect, abs=1e-5)
    other = similarity(evaluator, photos[1:2], photos[1:2], style, start)
    assert other["clip_direction"] == 0 and other["patch_projection"] < 0.99 and other["patch_similarity"] < 0.99
    assert other["colour_distance"] > 0.01


def test_the_direction_begins_where_it_is_said_to(models):
    (photo, style, start), evaluator = tiny.pictures(3).split(1), models.evaluator
    found = similarity(evaluator, start, style, style, evaluator.embed(start))
    assert found["clip_direction"] == pytest.approx(1, abs=1e-5)
    assert similarity(evaluator, photo, style, style, evaluator.embed(start))["clip_direction"] < 0.99


def test_pictures_of_any_size_are_compared_at_one(models):
    seen = []
    evaluator = Evaluator(models.evaluator.clip, models.diffae, lambda a, b: seen.append((a.shape, b.shape)))
    evaluator.perceptual_distance(tiny.pictures(2, px=128), tiny.pictures(2, px=64))
    assert seen == [((2, 3, tiny.PX, tiny.PX),) * 2]
    large = tiny.pictures(2, px=128)
    assert preservation(evaluator, large, evaluator.sized(large))["edge_agreement"] == pytest.approx(1, abs=1e-5)


def test_the_structure_network_tells_the_structure_where_there_is_one(models):
    class Keys(torch.nn.Module):
        def keys(self, x):  # the left half alone
            return x[..., :tiny.PX // 2].flatten(2).transpose(1, 2)

    photos, changed = tiny.pictures(2), tiny.pictures(2)
    changed[..., tiny.PX // 2:] = tiny.pictures(2, seed=3)[..., tiny.PX // 2:]
    plain = models.evaluator
    half = Evaluator(plain.clip, plain.diffae, plain.perceptual, Keys())
    assert preservation(plain, photos, changed)["structure_distance"] > 1e-4
    assert preservation(half, photos, changed)["structure_distance"] == 0
    assert preservation(half, photos, changed.flip(3))["structure_distance"] > 1e-4


def test_features_are_computed_once_in_chunks_and_of_8_bit_pictures_too(models, monkeypatch):
    calls, real = [], models.evaluator.clip.embed
    monkeypatch.setattr(models.evaluator.clip, "embed", lambda x, how: calls.append(len(x)) or real(x, how))
    photos = tiny.pictures(70)
    seen = PictureFeatures(models.evaluator, photos)
    first = Comparison(seen, seen, PictureFeatures(models.evaluator, photos[:1]), torch.zeros(1, 24))
    for _ in range(2):
        means(first, ("clip_direction", "clip_similarity"))
    assert sorted(calls) == [1, 6, 64]
    stored = PictureFeatures(models.evaluator, ((photos + 1) * 127.5).round().byte())
    assert torch.allclose(stored.embeddings, seen.embeddings, atol=0.05) and stored.sized.dtype == torch.float32


def test_unequal_batches_are_no_comparison(models):
    with pytest.raises(ValueError, match="3 photos but 2 results"):
        Comparison.of(models.evaluator, tiny.pictures(3), tiny.pictures(2))


def test_a_table_leaves_out_what_a_row_does_not_have():
    rows = {"photos": {"edge_agreement": 1.0}, "result": {"edge_agreement": 0.5, "diversity": 0.25}}
    assert tables.table(rows).splitlines() == [
        "| | edge agreement | diversity |", "|---|---|---|", "| photos | 1.000 |  |", "| result | 0.500 | 0.250 |"]


def test_both_methods_stand_in_one_table():
    osasis, mmfs = ({"photos": {"edge_agreement": e}, "made": {"edge_agreement": e}} for e in (0.25, 0.5))
    assert tables.beside(osasis, mmfs) == {
        "photos": {"edge_agreement": 0.5}, "OSASIS: made": {"edge_agreement": 0.25},
        "MMFS: made": {"edge_agreement": 0.5}}


# --- the command line ----------------------------------------------------------------------------------------------
def test_evaluate_from_the_command_line(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    files = tiny_models.write(tmp_path)
    photos, styles = save_pictures(tmp_path / "photos", 2), save_pictures(tmp_path / "styles" / "oil", 3, 4).parent
    models = [f"--{name}={files / name}.safetensors" for name in ("diffae", "ddpm", "clip")]
    status = main.main(["evaluate", "--method=osasis", f"--photos={photos}", f"--styles={styles}",
                       f"--out={tmp_path / 'out'}", *models, "--device=cpu", "--candidates=2", "--encode-steps=4",
                       "--decode-steps=4", f"--set={TINY}", f"--content={tmp_path / 'content'}", "--content-gb=0.5",
                       f"--pictures={tmp_path / 'made'}"])
    content = [record.message for record in caplog.records if record.message.startswith("content: ")]
    assert "content: 0 of 2" in content[0] and f"GB of at most 0.5 GB in {tmp_path / 'content'}" in content[0]
    assert "content: 2 of 2 pictures from disk" in content[2], "the fine-tune without SPN takes that of the one with it"
    assert list((tmp_path / "content").rglob("*.content"))
    out = capsys.readouterr().out
    assert status == 0 and "| mixed codes, SPN |" in out and "reconstruction" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["styles"]) == ["oil_00"] and (tmp_path / "out" / "oil_00.png").exists()
    made = {path.relative_to(tmp_path / "made").as_posix() for path in (tmp_path / "made").rglob("*.png")}
    assert made == {f"{tables.file_name(f'OSASIS {row}')}/oil/00/{name}.png"
                    for row in osasis.VARIANTS for name in ("00", "01")}
    folders = papers.Folders(tmp_path / "made", photos, styles)
    assert len(papers.cells_of(folders)) == len(osasis.VARIANTS), "what `atelier table` takes"
    (photos / "00.webp").write_bytes((photos / "00.png").read_bytes())
    assert main.main(["evaluate", "--method=osasis", f"--photos={photos}", f"--styles={styles}", *models,
                      "--device=cpu", f"--set={TINY}", f"--pictures={tmp_path / 'made'}"]) == 1
    assert "two photos are called '00'" in caplog.text


@pytest.mark.parametrize("arguments, said", [
    (["--set=iteration=3"], "no setting 'iteration'"), (["--preset=quickest"], "no preset 'quickest'"),
    (["--set=spn=some"], "spn is 'some'"), (["--photos=/nowhere"], "no picture"),
    (["--diffae=/nowhere.safetensors"], "no such file"), (["--only=gouache"], "leave no style")])
def test_mistakes_on_the_command_line_are_one_line(tmp_path, caplog, arguments, said):
    files, folder = tiny_models.write(tmp_path), save_pictures(tmp_path / "photos", 1)
    models = [f"--{name}={files / name}.safetensors" for name in ("diffae", "ddpm", "clip")]
    status = main.main(["evaluate", "--method=osasis", f"--photos={folder}", f"--styles={folder}", *models,
                       "--device=cpu", *arguments])
    assert status == 1 and said in caplog.text and "Traceback" not in caplog.text


def test_training_from_the_command_line_goes_on_where_it_stopped(tmp_path, caplog):
    caplog.set_level("INFO")
    photos, out = save_pictures(tmp_path / "photos" / "set", 4).parent, tmp_path / "ddpm.safetensors"
    arguments = ["train", "ddpm", f"--photos={photos}", f"--out={out}", "--size=64", "--batch=1", "--device=cpu",
                 "--precision=float32", "--log-every=1"]
    assert main.main([*arguments, "--steps=1"]) == 0 and out.exists()
    assert main.main([*arguments, "--steps=2"]) == 0
    assert "resumes at step 1" in caplog.text
