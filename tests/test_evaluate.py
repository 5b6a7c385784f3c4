"""The evaluation and the command line, on tiny random networks."""

import json

import pytest
import torch
from PIL import Image

from oneshot_atelier.models.diffae import mix_codes
from oneshot_atelier.models.perceptual import EncoderDistance
from oneshot_atelier.models.unet import UNet
from oneshot_atelier.tests import tiny, tiny_models
from oneshot_atelier.train import cli, evaluate, report
from oneshot_atelier.train.osasis import OsasisConfig

CONFIG = OsasisConfig(iterations=1, batch=2, bank=2, forward_steps=4, reverse_steps=4, latent_steps=2,
                      generate_steps=2, lr=1e-3)
SETTINGS = evaluate.Settings(CONFIG, candidates=3, twin_steps=4, encode_steps=4, decode_steps=4, change_point=32)
TINY = "iterations=1,batch=2,bank=2,forward_steps=4,reverse_steps=4,latent_steps=2,generate_steps=2"


@pytest.fixture
def models():
    diffae = tiny.diffae()
    ddpm = tiny.filled(UNet(tiny.DDPM), 1).eval().requires_grad_(False)
    return evaluate.Models(diffae, ddpm, tiny.clip(), EncoderDistance(diffae.encoder))


def save_pictures(folder, count, seed=0):
    folder.mkdir(parents=True)
    for i, picture in enumerate(tiny.pictures(count, seed)):
        array = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{i:02}.png")
    return folder


def test_every_style_gets_every_variant_and_every_figure(models, tmp_path):
    styles = sorted(save_pictures(tmp_path / "styles", 2, seed=5).iterdir())
    results = evaluate.evaluate(models, tiny.pictures(2), styles, SETTINGS, tmp_path / "out", tell=lambda text: None)
    assert len(results["styles"]) == 2 and len(list((tmp_path / "out").glob("*.png"))) == 2
    for rows in [*results["styles"].values(), results["mean"]]:
        assert set(rows) == {"photos", *evaluate.VARIANTS}
        assert all(torch.isfinite(torch.tensor(list(values.values()))).all() for values in rows.values())
        assert rows["photos"]["edges"] == pytest.approx(1) and rows["photos"]["structure"] == pytest.approx(0, abs=1e-6)
    one, two = results["styles"].values()
    name = "codes swapped, SPN"
    assert results["mean"][name]["colour"] == pytest.approx((one[name]["colour"] + two[name]["colour"]) / 2)


def test_the_variants_are_really_different(models):
    photos = tiny.pictures(2)
    rows, pictures = evaluate.evaluate_style(models, photos, tiny.pictures(1, seed=7), SETTINGS, tell=lambda text: None)
    shown = dict(zip(evaluate.VARIANTS, pictures[1:]))
    for a in shown:
        for b in shown:
            assert a == b or not torch.equal(shown[a][1:], shown[b][1:]), (a, b)


def test_the_codes_of_a_variant_are_what_its_name_says():
    model, content, style = tiny.diffae(), torch.zeros(2, tiny.WIDTH), torch.ones(1, tiny.WIDTH)

    def levels(how):
        return [float(code.mean()) for code in evaluate.codes_for(how, model, content, style, change_point=32)]
    assert levels("mix") == [1, 0, 0] and levels("swap") == [0, 1, 1]
    assert levels("content") == [0, 0, 0] and levels("style") == [1, 1, 1]
    assert len(mix_codes(content, style, (1, 0, 0))) == 3


def test_the_twin_is_the_best_of_the_candidates(models):
    style = tiny.pictures(1, seed=7)
    with torch.no_grad():
        twin, scores = evaluate.twin_of(models, style, SETTINGS)
    best = 10 * (twin - style).abs().mean() + models.perceptual(twin, style)[0]
    assert scores.tolist() == sorted(scores.tolist()) and float(scores[0]) == pytest.approx(float(best), rel=1e-5)


def test_one_style_is_taken_of_each_class_folder(tmp_path):
    paths = [tmp_path / "oil" / "a.png", tmp_path / "oil" / "b.png", tmp_path / "ink" / "c.png"]
    assert evaluate.first_of_each(tmp_path, paths) == [paths[0], paths[2]]
    flat = [tmp_path / "a.png", tmp_path / "b.png"]
    assert evaluate.first_of_each(tmp_path, flat) == flat


def test_z_against_noise_counts_who_decides(models):
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
    numbers, _ = report.who_decides(ByCode(), x, seeds=3)
    assert numbers["right z"] == 1 and numbers["same z, other x_T"] < 1e-6 < numbers["other z, same x_T"]
    numbers, _ = report.who_decides(ByNoise(), x, seeds=3)
    assert numbers["right x_T"] == 1 and numbers["other z, same x_T"] < 1e-6 < numbers["same z, other x_T"]


# --- the command line ----------------------------------------------------------------------------------------------
def test_evaluate_from_the_command_line(tmp_path, capsys):
    files = tiny_models.write(tmp_path)
    photos, styles = save_pictures(tmp_path / "photos", 2), save_pictures(tmp_path / "styles" / "oil", 3, 4).parent
    models = [f"--{name}={files / name}.safetensors" for name in ("diffae", "ddpm", "clip")]
    status = cli.main(["evaluate", f"--photos={photos}", f"--styles={styles}", f"--out={tmp_path / 'out'}", *models,
                       "--device=cpu", "--candidates=2", "--encode-steps=4", "--decode-steps=4", f"--set={TINY}"])
    out = capsys.readouterr().out
    assert status == 0 and "| mixed codes, SPN |" in out and "reconstruction" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["styles"]) == ["oil_00"] and (tmp_path / "out" / "oil_00.png").exists()


@pytest.mark.parametrize("arguments, said", [
    (["--set=iteration=3"], "has no setting 'iteration'"), (["--preset=fast"], "no preset 'fast'"),
    (["--set=spn=some"], "spn is 'some'"), (["--photos=/nowhere"], "no picture"),
    (["--diffae=/nowhere.safetensors"], "no such file")])
def test_mistakes_on_the_command_line_are_one_line(tmp_path, caplog, arguments, said):
    files, folder = tiny_models.write(tmp_path), save_pictures(tmp_path / "photos", 1)
    models = [f"--{name}={files / name}.safetensors" for name in ("diffae", "ddpm", "clip")]
    status = cli.main(["evaluate", f"--photos={folder}", f"--styles={folder}", *models, "--device=cpu", *arguments])
    assert status == 1 and said in caplog.text and "Traceback" not in caplog.text


def test_training_from_the_command_line_goes_on_where_it_stopped(tmp_path, caplog):
    caplog.set_level("INFO")
    photos, out = save_pictures(tmp_path / "photos" / "set", 4).parent, tmp_path / "ddpm.safetensors"
    arguments = ["train", "ddpm", f"--photos={photos}", f"--out={out}", "--size=64", "--batch=1", "--device=cpu",
                 "--precision=float32", "--log-every=1"]
    assert cli.main([*arguments, "--steps=1"]) == 0 and out.exists()
    assert cli.main([*arguments, "--steps=2"]) == 0
    assert "goes on from step 1" in caplog.text
