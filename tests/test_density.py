"""`atelier rank` and the node: the order, the two ends, resuming, damaged pictures, and what is refused."""
from __future__ import annotations

import csv
import json
import logging
import os
import re
import signal
import sys

import pytest
import torch
from PIL import Image

from oneshot_atelier.cli import main
from oneshot_atelier.evaluate import density
from oneshot_atelier.evaluate.density import Ranking, RankSettings, Scorer
from oneshot_atelier.evaluate.evaluator import Evaluator
from oneshot_atelier.models import loading
from oneshot_atelier.models.features.encoder import EncoderDistance
from oneshot_atelier.models.features.lpips import LpipsAlex
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import tiny as tiny_networks
from oneshot_atelier.tests import tiny_models
from oneshot_atelier.tests.node_tools import picture
from oneshot_atelier.train.data import to_bytes, to_unit
from oneshot_atelier.train.plots import binned, histogram

SETTINGS = RankSettings("encoder_distance", 4, 4, 0.5, batch=2)
OPTIONS = ("--distance=encoder_distance", "--encode-steps=4", "--decode-steps=4", "--t0=0.5", "--batch=2",
           "--device=cpu")
STRENGTHS = (0.9, 0.1, 0.5, 0.7, 0.3, 0.6)  # of the checkers of the pictures: the order is known


def checkers(strength):
    """A picture that a reconstruction of one colour is the further from, the stronger it is."""
    x = torch.ones(3, tiny_networks.PX, tiny_networks.PX)
    x[:, ::2] *= -1
    return x * strength


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for i, strength in enumerate(STRENGTHS):
        array = to_bytes(checkers(strength)).permute(1, 2, 0).numpy()
        Image.fromarray(array).save(tmp_path / "photos" / ("more" if i % 2 else ".") / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def scorer():
    return Scorer(Evaluator(diffae=tiny_networks.diffae()), SETTINGS)


@pytest.fixture
def flat(monkeypatch):
    """Every reconstruction is grey; the calls are counted."""
    calls = []

    def chain(net, x, *steps):
        calls.append(len(x))
        return torch.zeros_like(x)
    monkeypatch.setattr(density, "chain", chain)
    monkeypatch.setattr(density, "distances", lambda evaluator, name, x, y: (x - y).abs().mean((1, 2, 3)))
    return calls


# --- scores and order -------------------------------------------------------------------------------------------------
def test_a_score_is_the_distance_of_picture_and_reconstruction():
    net, x = tiny_networks.diffae(), tiny_networks.pictures(3)
    z = net.encode(x)
    rebuilt = net.decode(net.structural_code(x, z, 4, 1.0), z, 5, 1.0).clamp(-1, 1)
    alex = LpipsAlex(tiny_networks.alexnet_trunk())
    public = tiny_networks.public(lpips_alex="alexnet.pth")
    found = Scorer(Evaluator(diffae=net, public=public), RankSettings("lpips_alex", 4, 5))(x)
    assert torch.allclose(found, alex(rebuilt, x), rtol=1e-5)
    found = Scorer(Evaluator(diffae=net), RankSettings("encoder_distance", 4, 5))(x)
    assert torch.allclose(found, EncoderDistance(net.encoder)(x, rebuilt), rtol=1e-5)


def test_the_worst_reconstructions_are_of_low_density(scorer, photos, tmp_path, flat):
    ranking = density.rank_folder(scorer, photos, tmp_path / "out", k=2)
    assert ranking.order == ["0.png", "more/3.png", "more/5.png", "2.png", "4.png", "more/1.png"]
    assert ranking.low == ["0.png", "more/3.png"] and ranking.high == ["more/1.png", "4.png"]
    with (tmp_path / "out" / "ranked.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["rank", "file", "distance", "density"] and len(rows) == 7
    assert rows[1][:2] == ["1", "0.png"] and float(rows[1][2]) == pytest.approx(0.9, abs=0.01)
    assert [row[3] for row in rows[1:]] == ["low", "low", "", "", "high", "high"]
    assert (tmp_path / "out" / "low.txt").read_text() == "0.png\nmore/3.png\n"
    assert (tmp_path / "out" / "high.txt").read_text() == "more/1.png\n4.png\n"
    with Image.open(tmp_path / "out" / "histogram.png") as drawn, Image.open(tmp_path / "out" / "ends.png") as ends:
        assert drawn.size == (640, 360) and ends.size == (2 * 32, 2 * 32)
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["distance of"].endswith("substitute for LPIPS")


def test_equal_distances_are_ordered_by_name_and_the_ends_do_not_overlap():
    ranking = Ranking({"b": 1.0, "c": 2.0, "a": 1.0}, 1)
    assert ranking.order == ["c", "a", "b"] and ranking.low == ["c"] and ranking.high == ["b"]
    with pytest.raises(ValueError, match="2 pictures of low and as many of high density cannot be taken from 3 .* 1 "):
        Ranking({"b": 1.0, "c": 2.0, "a": 1.0}, 2)


def test_a_sample_is_drawn_by_its_seed():
    names = [str(i) for i in range(50)]
    one, again, other = (density.drawn(names, 10, seed) for seed in (0, 0, 1))
    assert one == again != other and len(set(one)) == 10 and set(one) <= set(names)
    assert density.drawn(names, 0, 0) == density.drawn(names, 50, 3) == names


def test_the_histogram_counts_every_value_once():
    counts = binned([0.0, 0.4, 0.5, 0.9, 1.0], [(0.0, 0.4)], 0.25, 4)
    assert counts == [[1, 0], [1, 0], [0, 1], [0, 2]]
    drawn = histogram([0.1, 0.2, 0.9], "distance", {"low": (0.0, 0.15)})
    assert {(31, 95, 191), (90, 90, 90)} <= {colour for _, colour in drawn.getcolors(10**6)}
    with pytest.raises(ValueError, match="no value is finite"):
        histogram([float("nan")], "distance")


# --- batches, resuming, damaged pictures ------------------------------------------------------------------------------
class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_result(scorer, photos, tmp_path, monkeypatch):
    whole = density.rank_folder(scorer, photos, tmp_path / "whole", k=2)
    made, call = [], Scorer.__call__

    def counted(self, x, hook=None):
        if len(made) == 2:
            raise Killed
        made.append(len(x))
        return call(self, x, hook)
    monkeypatch.setattr(Scorer, "__call__", counted)
    with pytest.raises(Killed):
        density.rank_folder(scorer, photos, tmp_path / "out", k=2)
    assert made == [2, 2] and not (tmp_path / "out" / "ranked.csv").exists()
    made[:] = [0]
    resumed = density.rank_folder(scorer, photos, tmp_path / "out", k=2)
    assert made == [0, 2] and resumed.scores == whole.scores
    for name in ("ranked.csv", "low.txt", "high.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_only_what_changed_is_scored_again(scorer, photos, tmp_path, flat):
    density.rank_folder(scorer, photos, tmp_path / "out", k=1)
    assert flat == [2, 2, 2]
    Image.new("RGB", (40, 40), "white").save(photos / "0.png")
    ranking = density.rank_folder(scorer, photos, tmp_path / "out", k=1)
    assert flat == [2, 2, 2, 2] and ranking.scores["0.png"] == pytest.approx(1.0)
    density.rank_folder(Scorer(scorer.evaluator, RankSettings("encoder_distance", 5, 4, 0.5, batch=2)), photos,
                        tmp_path / "out", k=1)
    assert len(flat) == 7, "other settings, other scores"


def test_no_more_pictures_than_a_batch_are_held(scorer, photos, tmp_path, flat, monkeypatch):
    held, read = [], density.read_picture

    def counted(path, px):
        held.append(path)
        return read(path, px)
    monkeypatch.setattr(density, "read_picture", counted)
    scored = density.scored

    def one_batch(*args):
        held.clear()
        found = scored(*args)
        assert len(held) <= 2
        return found
    monkeypatch.setattr(density, "scored", one_batch)
    density.rank_folder(scorer, photos, tmp_path / "out", k=1)
    assert sum(flat) == 6 and max(flat) == 2


def test_damaged_pictures_are_reported(scorer, photos, tmp_path, flat):
    whole = (photos / "0.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[:len(whole) // 2])
    (photos / "none.jpg").write_bytes(b"no picture")
    ranking = density.rank_folder(scorer, photos, tmp_path / "out", k=1)
    assert sorted(ranking.damaged) == ["cut.png", "none.jpg"] and len(ranking.scores) == 6
    with (tmp_path / "out" / "damaged.csv").open() as file:
        rows = list(csv.reader(file))
    assert sorted(row[0] for row in rows[1:]) == ["cut.png", "none.jpg"]
    assert all("cannot be read as a picture" in reason for _, reason in rows[1:])
    assert density.rank_folder(scorer, photos, tmp_path / "out", k=1).damaged == ranking.damaged, "kept, too"


def test_a_reconstruction_that_is_not_finite_has_no_score(scorer, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(density, "distances", lambda e, n, x, y: torch.tensor([float("nan"), 1.0][:len(x)]))
    ranking = density.rank_folder(scorer, photos, tmp_path / "out", k=1)
    assert set(ranking.damaged.values()) == {"its reconstruction holds NaN or infinite values"}
    assert len(ranking.damaged) == len(ranking.scores) == 3


# --- the command ------------------------------------------------------------------------------------------------------
@pytest.fixture
def command(photos, tmp_path, monkeypatch):
    """The command's arguments, on a tiny model."""
    monkeypatch.setattr(loading, "DEMO", tiny_models.write(tmp_path / "demo"))
    return ["rank", str(photos), f"--out={tmp_path / 'out'}", "--k=2", *OPTIONS]


def test_the_command_says_what_it_found(command, tmp_path, capsys):
    assert main.main(command) == 0
    shown = capsys.readouterr().out
    assert "6 pictures ranked" in shown and "a substitute for LPIPS" in shown and "low density: 2 pictures" in shown
    low = (tmp_path / "out" / "low.txt").read_text().split()
    assert f"the rarest: {', '.join(low)}" in shown


@pytest.mark.parametrize(("options", "words"), [
    (["--distance=lpips_alex"], "give its file with --alexnet .*download.pytorch.org"),
    (["--distance=lpips_vgg"], "give its file with --lpips"), (["--k=4"], "cannot be taken from 6 .* take 1 to 3"),
    (["--batch=0"], "--batch is 0; take 1 or more"),
    (["--encode-steps=60"], "60 steps cannot be spaced evenly"), (["--t0=0.1"], "t0 0.1 of 4 steps is less than one"),
    (["--t0=1.5"], "t0 is 1.5; take more than 0, up to 1")])
def test_what_cannot_be_done_is_refused_before_the_work(command, options, words, caplog, tmp_path):
    assert main.main([*command, *options]) == 1
    assert re.search(words, caplog.text)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends the process at once")
def test_a_signal_keeps_whole_batches(command, tmp_path, caplog):
    caplog.set_level("INFO")

    class Sender(logging.Handler):
        def emit(self, record):
            if record.getMessage() == "2 of 6 pictures":
                os.kill(os.getpid(), signal.SIGTERM)
    sender = Sender()
    density.log.addHandler(sender)
    try:
        assert main.main(command) == 143
    finally:
        density.log.removeHandler(sender)
    assert "Whole batches are kept in" in caplog.text and len(list((tmp_path / "out" / "scores").iterdir())) == 1
    assert main.main(command) == 0 and (tmp_path / "out" / "ranked.csv").is_file()


# --- the node ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_models.write(tmp_path_factory.mktemp("demo"))


NODE = {"k": 1, "encode_steps": 4, "decode_steps": 4, "t0": 0.5}


@pytest.mark.server
def test_the_node_sorts_a_batch(nodes, comfy):
    diffae, pictures = nodes.LoadDiffAE.execute("demo")[0], [picture(1, 3), picture(2, 1)]
    ordered, low, high, scores, drawn = nodes.RankByDensity.execute(
        diffae=[diffae], image=pictures, distance=["encoder_distance"],
        **{name: [value] for name, value in NODE.items()}).args
    batch = torch.cat(pictures)
    x = to_unit(to_bytes(batch.permute(0, 3, 1, 2) * 2 - 1))
    values = Scorer(Evaluator(diffae=diffae.net), SETTINGS)(x)
    expected = values.argsort(descending=True)
    assert torch.equal(ordered, batch[expected]) and torch.equal(low, ordered[:1]) and torch.equal(high, ordered[-1:])
    assert scores.splitlines()[0].endswith("a substitute for LPIPS") and len(scores.splitlines()) == 5
    assert scores.splitlines()[1].startswith(f"1. picture {int(expected[0])}: ") and drawn.shape == (1, 360, 640, 3)


@pytest.mark.server
def test_the_node_takes_lpips_of_the_metric_networks(nodes, comfy):
    import folder_paths
    golden.save_torch(comfy / "models" / "alexnet" / "alex.pth", tiny_networks.alexnet_trunk())
    folder_paths.filename_list_cache.clear()
    networks = nodes.LoadMetricNetworks.execute("alex.pth", "none", "none", "none")[0]
    diffae = nodes.LoadDiffAE.execute("demo")[0]
    scores = nodes.RankByDensity.execute(diffae, picture(1, 2, side=64), "lpips_alex", **NODE, networks=networks)[3]
    assert scores.startswith("distance: LPIPS (AlexNet), ") and "alex.pth, sha256" in scores.splitlines()[0]


@pytest.mark.server
@pytest.mark.parametrize(("changes", "words"), [
    ({}, "is missing: put its file into .*alexnet.* connect networks .*alexnet-owt-7be5be79.pth"),
    ({"distance": "encoder_distance", "k": 2}, "cannot be taken from 3"),
    ({"distance": "encoder_distance", "encode_steps": 60}, "60 steps cannot be spaced evenly"),
    ({"distance": "encoder_distance", "t0": 0.2}, "t0 0.2 of 4 steps is less than one")])
def test_the_node_refuses_before_it_works(nodes, comfy, changes, words, monkeypatch):
    diffae = nodes.LoadDiffAE.execute("demo")[0]
    monkeypatch.setattr(nodes.host, "sampling", None)
    with pytest.raises(ValueError, match=words):
        nodes.RankByDensity.execute(diffae, picture(1, 3), **({"distance": "lpips_alex"} | NODE | changes))
