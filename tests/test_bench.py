"""bench/: its one command gives every row and figure, its counts are right, its loss scaler scales and nothing else."""
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

from oneshot_atelier.bench import all as table
from oneshot_atelier.bench import osasis, precision
from oneshot_atelier.bench.measure import call_flop, counted
from oneshot_atelier.bench.official import ARITHMETIC, OFFICIAL, PEAK_BANDWIDTH, cost
from oneshot_atelier.bench.osasis import SMALL, Networks, official
from oneshot_atelier.models import kernels
from oneshot_atelier.models.diffae import CONFIGS
from oneshot_atelier.models.unet import GroupNorm, UNet
from oneshot_atelier.tests import tiny
from oneshot_atelier.train.content import content_source, prepare_content
from oneshot_atelier.train.osasis import References, Trainer, start
from oneshot_atelier.train.plots import chart, ticks

CPU = torch.device("cpu")
ROWS = {"calls": 10, "memory": 2, "fine-tune": 6, "stylizing": 4, "scaling": 6, "photo twin": 1, "mmfs": 20,
        "number formats": 0}
PLOTS = {"fine-tune": 1, "stylizing": 1, "scaling": 3}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A bench, and the folder that it wrote all parts to."""
    bench = table.Bench(SMALL, CPU, 1, tmp_path_factory.mktemp("bench"))
    assert table.run(bench, [], 0) == {}
    return bench


def test_every_row_and_figure_is_there(results):
    parts = json.loads((results.out / "results.json").read_text())["parts"]
    assert {title: len(part["rows"]) for title, part in parts.items()} == ROWS
    rows = [row for part in parts.values() for row in part["rows"]]
    assert all(math.isfinite(row["seconds"]) and row["seconds"] > 0 for row in rows)
    assert all(row["bytes"] > 0 and row["flop"] > 0 for row in parts["calls"]["rows"])
    assert {row["gib"] for row in rows} == {None} == {row["official_seconds"] for row in rows}
    page = (results.out / "results.md").read_text()
    assert page.count("\n| ") >= len(rows) and "| nan" not in page and "Not measured" not in page
    assert all(f"| {row['what']} |" in page for row in rows)


def test_every_plot_is_there_and_drawn(results):
    parts = json.loads((results.out / "results.json").read_text())["parts"]
    assert {title: len(part["plots"]) for title, part in parts.items() if part["plots"]} == PLOTS
    files = [file for part in parts.values() for file in part["plots"].values()] + ["precision.png"]
    page = (results.out / "results.md").read_text()
    for file in files:
        assert f"]({file})" in page
        assert len(Image.open(results.out / file).getcolors(100000)) > 10


def test_parts_that_are_done_stay_and_failures_are_told(results, monkeypatch):
    before = json.loads((results.out / "results.json").read_text())["parts"]

    def fails(bench):
        raise RuntimeError("CUDA out of memory\nand more")
    monkeypatch.setattr(table, "PARTS", {title: fails for title in table.PARTS})
    assert table.run(results, [], 0) == {}
    assert table.run(results, ["memory"], 0) == {"memory": "failed: CUDA out of memory"}
    assert "- memory: failed: CUDA out of memory" in (results.out / "results.md").read_text()
    assert json.loads((results.out / "results.json").read_text())["parts"] == before
    anew = replace(results, out=results.out / "other")
    assert table.run(anew, [], 1e-9) == dict.fromkeys(table.PARTS, "no time was left")


def test_a_row_is_compared_with_official_figures_and_the_floor():
    known = cost("stylize 1", "ffhq256")
    row = table.Row("x", 0.338, 1.0, known.seconds, known.gib, 0.0338 * ARITHMETIC, 0.0169 * PEAK_BANDWIDTH)
    cells = [cell.strip() for cell in table.line(row, "NVIDIA H100").split("|")]
    assert cells[1:8] == ["x", "338 ms", "1.00", "3.38 s, 2.0 GiB", "0.1", "33.8 ms", "10"]
    assert cells[8].endswith("5 %") and "TFLOP/s, 8.1 %" in cells[8]
    assert cost("stylize 1", "small") == cost("stylize 1", "ffhq256", batch=4) == cost("nothing", "ffhq256")
    assert table.floor(replace(row, bytes=10 * PEAK_BANDWIDTH), "NVIDIA H100") == 10
    assert all(value.seconds or value.gib for value in OFFICIAL.values())


def test_counts_are_those_of_the_documents():
    assert call_flop(CONFIGS["ffhq256"].unet) == pytest.approx(554e9, rel=0.002)
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(official("ffhq256").ddpm).parameters()) == 93_563_910


def test_traffic_is_what_operators_read_and_write():
    x, y = torch.zeros(64, 32), torch.zeros(64, 32)
    assert counted(lambda: x + y).bytes == 3 * 8192
    assert counted(lambda: x.t().reshape(1, 32, 64)[:, 3:]).bytes == 0
    assert counted(lambda: torch.empty(10)).bytes == 0
    assert counted(lambda: x.fill_(1)).bytes == 8192
    assert counted(lambda: x.expand(5, 64, 32) + 1).bytes == 6 * 8192
    product = counted(lambda: x @ y.t())
    assert (product.flop, product.bytes) == (2 * 64 * 64 * 32, 2 * 8192 + 4 * 64 * 64)


def test_a_norm_that_is_cut_into_chunks_reads_its_maps_twice(monkeypatch):
    monkeypatch.setattr(kernels, "usable", lambda x: True)
    norm = GroupNorm(64).to("meta")
    for px, times in ((4, 2), (128, 3)):
        x = torch.empty(2, 64, px, px, device="meta").to(memory_format=torch.channels_last)
        size = 4 * x.numel()
        assert times * size < counted(partial(norm, x)).bytes < (times + 0.9) * size


def test_a_training_call_is_three_calls_of_arithmetic():
    work = osasis.training_call(Networks(SMALL, torch.device("meta")), 3)
    assert counted(work).flop == pytest.approx(3 * 3 * call_flop(SMALL.diffae.unet), rel=0.02)


def test_a_loss_scaler_changes_the_gradients_scale_alone():
    nets = Networks(SMALL, CPU)
    tiny.filled(nets.net, 1)
    config = replace(SMALL.tune, iterations=3, cached_content=2)
    twin = prepare_content(nets.net, tiny.pictures(1), config)
    content, outcomes, seen = content_source(nets.net, config), [], []
    for scaled in (False, True):
        aim = References.of(nets.frozen, twin, tiny.pictures(1, 2), config)
        trainer, run = Trainer(nets.frozen, aim, config, content), start(nets.net, config)
        outcomes.append(precision.fine_tuned(trainer, run, scaled))
        seen.append(trainer.config.l1_weight)
    plain, scaled = outcomes
    assert seen[1] == 65536 * seen[0] and scaled.skipped == 0
    assert torch.allclose(plain.losses, scaled.losses, rtol=1e-4)
    begin = precision.flat_weights(start(nets.net, config))
    changed = (plain.weights - begin).norm()
    assert changed > 0 and (plain.weights - scaled.weights).norm() < 0.05 * changed
    small = [outcome.shares[:, 1].mean() for outcome in outcomes]
    assert small[1] < small[0]  # fewer gradients lie below float16's normal numbers


def test_a_step_that_overflows_is_skipped_and_the_scale_halved():
    nets = Networks(SMALL, CPU)
    config = replace(SMALL.tune, cached_content=2)
    twin = prepare_content(nets.net, tiny.pictures(1), config)
    aim = References.of(nets.frozen, twin, twin.picture, config)
    trainer = Trainer(nets.frozen, aim, config, content_source(nets.net, config))
    run = start(nets.net, config)
    steps = precision.Scaled(trainer, run, torch.amp.GradScaler("cpu"))
    before = precision.flat_weights(run)
    for p in [p for net in run.nets.values() for p in net.parameters()]:
        p.grad = torch.full_like(p, math.inf)
    steps.step()
    steps.follow()
    assert torch.equal(before, precision.flat_weights(run))
    assert steps.skipped == 1 and trainer.config.clip_weight == 32768 * config.clip_weight


def test_a_chart_has_round_ticks_and_refuses_nothing():
    assert ticks(0.7) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8]) and ticks(32) == [0, 10, 20, 30, 40]
    assert ticks(6) == [0, 1, 2, 3, 4, 5, 6] and ticks(0) == [0, 1]
    with pytest.raises(ValueError, match="nothing to draw"):
        chart({"a": [(1, math.nan)], "b": []}, "x")
    picture = chart({"a": [(1, 2), (3, 4)], "b": [(2, math.inf), (2, 1)]}, "x", "y")
    assert picture.size == (640, 360) and (31, 95, 191) in {colour for _, colour in picture.getcolors(100000)}
