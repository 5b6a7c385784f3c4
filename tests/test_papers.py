"""Evaluation tables: the papers' rows, folders, what is measured, and the three forms; the command and the node."""
from __future__ import annotations

import csv
import io

import pytest
import torch
from PIL import Image

from oneshot_atelier.cli import main
from oneshot_atelier.evaluate import papers
from oneshot_atelier.evaluate.evaluator import Comparison, Evaluator, PictureFeatures
from oneshot_atelier.evaluate.papers import PAPERS, EvaluationTable, Folders, Row
from oneshot_atelier.evaluate.registry import gather, lpips_diversity, means, metric, public_distances
from oneshot_atelier.evaluate.tables import ResultFolder
from oneshot_atelier.models import loading
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import tiny as tiny_networks
from oneshot_atelier.tests import tiny_models
from oneshot_atelier.train.data import find_pictures, read_pictures, to_bytes, to_unit
from oneshot_atelier.train.plots import text_table

SIDE = 32
METRICS = ("art_fid", "identity_similarity", "dino_structure", "fid", "lpips_diversity", "ssim")


def save(folder, count, seed, px=SIDE):
    folder.mkdir(parents=True)
    for i, x in enumerate(tiny_networks.pictures(count, seed, px)):
        Image.fromarray(to_bytes(x).permute(1, 2, 0).numpy()).save(folder / f"{i}.png")


@pytest.fixture
def folders(tmp_path):
    """Two methods, inputs low and high, style sets AAHQ and Mine; "theirs" has two results of each photo in AAHQ."""
    for k, inputs in enumerate(("low", "high")):
        save(tmp_path / "photos" / inputs, 3, k)
        save(tmp_path / "results" / "ours" / inputs / "AAHQ", 3, 10 + k)
        save(tmp_path / "results" / "ours" / inputs / "Mine", 3, 20 + k)
        for n in range(2):
            save(tmp_path / "results" / "theirs" / inputs / "AAHQ" / f"style_{n}", 3, 30 + 2 * k + n)
    for k, style in enumerate(("AAHQ", "Mine")):
        save(tmp_path / "styles" / style, 4, 40 + k)
    return Folders(tmp_path / "results", tmp_path / "photos", tmp_path / "styles")


@pytest.fixture
def evaluator():
    return Evaluator(public=tiny_networks.public(inception="inception.pth"))


def pictures_in(folder):
    return to_unit(read_pictures(find_pictures(folder), SIDE))


def own(table, method, inputs):
    (row,) = [row for row in table.rows if (row.method, row.inputs, row.published) == (method, inputs, False)]
    return row.values


# --- the papers' rows -------------------------------------------------------------------------------------------------
def test_the_published_rows_are_whole_and_of_the_registry():
    osasis, mmfs = PAPERS["osasis"], PAPERS["mmfs"]
    assert [len(rows) for rows in osasis.published.values()] == [7, 7] and len(mmfs.published[""]) == 4
    assert all(len(values) == 9 for rows in osasis.published.values() for values in rows.values())
    assert osasis.published["low"]["OSASIS"][("art_fid", "MetFaces")] == 43.20
    assert osasis.published["high"]["DiffuseIT"][("dino_structure", "AAHQ")] == 0.0254
    assert mmfs.published[""]["MMFS"] == {("fid", "AAHQ"): 10.39, ("arcface_distance", "AAHQ"): 0.507,
                                          ("lpips_diversity", "AAHQ"): 0.583}
    assert all(metric(name) for paper in PAPERS.values() for name in paper.metrics)


def test_what_the_paper_says_of_its_rows_is_in_them():
    """OSASIS has the best ArtFID on AAHQ and Prev at low density; DiffuseIT the best structure but on MetFaces."""
    low = PAPERS["osasis"].published["low"]
    for style, method in (("AAHQ", "OSASIS"), ("Prev", "OSASIS"), ("MetFaces", "MTG")):
        assert min(low, key=lambda name: low[name]["art_fid", style]) == method
    for style, method in (("AAHQ", "DiffuseIT"), ("MetFaces", "OSASIS"), ("Prev", "DiffuseIT")):
        assert min(low, key=lambda name: low[name]["dino_structure", style]) == method


# --- measuring --------------------------------------------------------------------------------------------------------
def test_every_cell_is_measured_as_the_registry_does(folders, evaluator, monkeypatch):
    monkeypatch.setattr(papers, "BATCH", 2)
    table = papers.evaluation_table(evaluator, folders, "osasis", METRICS, SIDE)
    results = pictures_in(folders.results / "ours" / "low" / "AAHQ")
    photos, art = pictures_in(folders.photos / "low"), pictures_in(folders.styles / "AAHQ")
    names = ["identity_similarity", "dino_structure", "ssim", "lpips_alex"]
    expected = means(Comparison.of(evaluator, photos, results), names)
    features = [gather(PictureFeatures(evaluator, x)) for x in (results, art)]
    expected |= public_distances(evaluator.public, *features, expected["lpips_alex"])
    found = own(table, "ours", "low")
    for name in ("art_fid", "identity_similarity", "dino_structure", "fid", "ssim"):
        assert found[name, "AAHQ"] == pytest.approx(expected[name], rel=1e-4), name
    assert ("lpips_diversity", "AAHQ") not in found and ("lpips_alex", "AAHQ") not in found
    assert ("fid", "Mine") in found and ("fid", "Mine") not in own(table, "theirs", "low")


def test_several_results_of_a_photo_are_measured_together_and_their_diversity(folders, evaluator):
    table = papers.evaluation_table(evaluator, folders, "osasis", METRICS, SIDE)
    found = own(table, "theirs", "high")
    one, other = (PictureFeatures(evaluator, pictures_in(folders.results / "theirs" / "high" / "AAHQ" / f"style_{n}"))
                  for n in range(2))
    assert found["lpips_diversity", "AAHQ"] == pytest.approx(float(lpips_diversity(one, other)), rel=1e-4)
    both = torch.cat([one.pictures, other.pictures])
    twice = pictures_in(folders.photos / "high").repeat(2, 1, 1, 1)
    expected = means(Comparison.of(evaluator, twice, both), ["ssim"])["ssim"]
    assert found["ssim", "AAHQ"] == pytest.approx(expected, rel=1e-4)


def test_published_rows_stand_beside_and_are_never_best(folders, evaluator):
    table = papers.evaluation_table(evaluator, folders, "osasis", (), SIDE)
    assert table.inputs == ["low", "high"] and len(table.rows) == 14 + 4
    assert table.columns[:4] == tuple(("art_fid", style) for style in ("AAHQ", "MetFaces", "Prev", "Mine"))
    text = table.markdown()
    assert "| OSASIS (published) | 34.89 |" in text and "**34.89**" not in text
    best = min(own(table, method, "low")["art_fid", "AAHQ"] for method in ("ours", "theirs"))
    assert f"**{papers.number(best)}**" in text
    assert "- ArtFID: " in text and "published: OSASIS, tables 1 and 2. 100 photos" in text


def test_a_measure_without_its_network_has_no_column_and_a_note(folders):
    table = papers.evaluation_table(Evaluator(), folders, "osasis", ("art_fid", "ssim"), SIDE)
    assert own(table, "ours", "low").keys() == {("ssim", "AAHQ"), ("ssim", "Mine")}
    (note,) = [note for note in table.notes if note.startswith("ArtFID: ")]
    assert "not measured" in note and "alexnet-owt-7be5be79.pth" in note and "art_inception.pth" in note
    (note,) = [note for note in table.notes if note.startswith("SSIM: ")]
    assert "Structural similarity" in note and "3 results of 3 photos" in note


def test_flat_folders_need_no_levels(tmp_path, evaluator):
    save(tmp_path / "photos", 2, 0)
    save(tmp_path / "styles", 2, 1)
    save(tmp_path / "results" / "ours", 2, 2)
    folders = Folders(tmp_path / "results", tmp_path / "photos", tmp_path / "styles")
    table = papers.evaluation_table(evaluator, folders, "mmfs", ("ssim", "fid"), SIDE)
    assert own(table, "ours", "").keys() == {("ssim", ""), ("fid", "")}
    assert [row.name for row in table.rows if row.published] == ["MUNIT (published)", "DRIT++ (published)",
                                                                 "BlendGAN (published)", "MMFS (published)"]


def test_results_of_photos_in_folders_and_of_nested_styles_are_what_a_table_takes(tmp_path):
    for folder in ("photos/low", "photos/high/deep", "photos/__MACOSX", "styles/AAHQ/oil", "styles/Mine"):
        save(tmp_path / folder, 2, 0)
    photos, styles = (find_pictures(tmp_path / name) for name in ("photos", "styles"))
    made = ResultFolder.of(tmp_path / "made", photos, tmp_path / "photos", tmp_path / "styles", "ours")
    for style in styles:
        made.save("mixed codes", style, tiny_networks.pictures(len(photos), 0))
    cells = papers.cells_of(Folders(tmp_path / "made", tmp_path / "photos", tmp_path / "styles"))
    assert {(cell.inputs, cell.style) for cell in cells} == {(inputs, style) for inputs in ("high", "low")
                                                             for style in ("AAHQ", "Mine")}
    assert all(len(cell.pairs) == 2 and len(made) == 2 for cell in cells for _, made in cell.pairs)


@pytest.mark.parametrize(("change", "words"), [
    (lambda f: (f.photos / "low" / "0.webp").write_bytes((f.photos / "low" / "0.png").read_bytes()),
     "two photos are called '0': .*0.png and .*0.webp"),
    (lambda f: (f.results / "ours" / "low" / "AAHQ" / "0.png").rename(f.results / "ours" / "low" / "AAHQ" / "x.png"),
     "there is no photo called 'x'"),
    (lambda f: [place.rename(place.with_name("other")) for place in f.photos.glob("*") if place.name == "low"]
     and [place.rename(place.with_name("another")) for place in f.photos.glob("high")],
     "lay them out as METHOD/INPUTS/STYLE/NAME.png, with the inputs another, other and the styles AAHQ, Mine")])
def test_folders_that_do_not_fit_are_refused(folders, change, words):
    change(folders)
    with pytest.raises(ValueError, match=words):
        papers.cells_of(folders)


@pytest.mark.parametrize("name", ["clip_direction", "retrieval_accuracy", "colour_distance", "attribute_probability"])
def test_metrics_that_folders_do_not_tell_are_refused(name):
    with pytest.raises(ValueError, match="cannot be in this table"):
        papers.check_metrics([name])
    with pytest.raises(ValueError, match="there is no metric 'x'"):
        papers.check_metrics(["x"])


# --- forms ------------------------------------------------------------------------------------------------------------
def a_table():
    rows = [Row("ours", "low", {("fid", "A"): 12.25, ("ssim", "A"): 0.5}), Row("theirs", "low", {("fid", "A"): 9.0}),
            Row("paper", "low", {("fid", "B"): 1.0}, True), Row("ours", "high", {("ssim", "A"): 0.25})]
    return EvaluationTable.of("title", ("fid", "ssim"), rows, ("a note",))


def test_the_csv_has_every_number_and_says_where_it_is_from():
    rows = list(csv.DictReader(io.StringIO(a_table().csv())))
    assert list(rows[0]) == ["inputs", "method", "source", "fid B", "fid A", "ssim A"]
    assert [(row["method"], row["inputs"], row["source"]) for row in rows] == [
        ("paper", "low", "published"), ("ours", "low", "measured"), ("theirs", "low", "measured"),
        ("ours", "high", "measured")]
    assert rows[1]["fid A"] == "12.25" and rows[2]["ssim A"] == ""


def test_the_markdown_has_a_table_for_each_set_of_inputs():
    text = a_table().markdown()
    assert text.count("|---|---|---|---|") == 2 and "low:" in text and "high:" in text
    assert "|  | FID, B (down) | FID, A (down) | SSIM, A (up) |" in text
    assert "| ours |  | 12.25 | 0.5000 |" in text
    assert "| theirs |  | **9.0000** |  |" in text and "| paper (published) | 1.0000 |  |  |" in text
    assert text.endswith("- a note\n")


def test_the_picture_shows_published_rows_in_grey():
    lines = [["", "a"], ["b", "12"], ["c", "34"]]
    plain, faded = text_table([("t", lines)]), text_table([("t", lines)], lambda name: name == "c")
    assert plain.size == faded.size and plain.tobytes() != faded.tobytes()
    top = 8 + 3 * 21  # title, head and the first line are the same
    assert plain.crop((0, 0, plain.width, top)).tobytes() == faded.crop((0, 0, plain.width, top)).tobytes()
    assert a_table().picture().height == 8 + 21 * (4 + 2 + 2 * 2)


# --- the command and the node -----------------------------------------------------------------------------------------
def test_the_command_writes_all_three_forms(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "DEMO", tiny_models.write(tmp_path / "demo"))
    done = main.main(["table", f"--results={folders.results}", f"--photos={folders.photos}", f"--side={SIDE}",
                      f"--styles={folders.styles}", "--metrics=edge_agreement,identity_distance,art_fid",
                      "--device=cpu", f"--out={tmp_path / 'out'}"])
    shown = capsys.readouterr().out
    assert done == 0 and "| ours |" in shown and "identity distance, AAHQ (down)" in shown
    assert (tmp_path / "out" / "table.md").read_text().strip() == shown.strip()
    assert len(list(csv.reader((tmp_path / "out" / "table.csv").open()))) == 1 + 14 + 4
    with Image.open(tmp_path / "out" / "table.png") as drawn:
        assert drawn.width > 300


@pytest.mark.parametrize(("options", "words"), [
    (["--metrics=clip_direction"], "cannot be in this table"), (["--side=8"], "--side is 8"),
    (["--results=nowhere"], "there is no folder nowhere")])
def test_the_command_refuses_before_it_loads(folders, options, words, caplog):
    assert main.main(["table", f"--results={folders.results}", f"--photos={folders.photos}",
                      f"--styles={folders.styles}", "--device=cpu", *options]) == 1
    assert words in caplog.text


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_models.write(tmp_path_factory.mktemp("demo"))


@pytest.mark.server
def test_the_node_gives_picture_markdown_and_csv(nodes, comfy, folders, tmp_path):
    import folder_paths
    golden.save_torch(comfy / "models" / "alexnet" / "alex.pth", tiny_networks.alexnet_trunk())
    folder_paths.filename_list_cache.clear()
    networks = nodes.LoadMetricNetworks.execute("alex.pth", "none", "none", "none")[0]
    for name in ("results", "photos", "styles"):
        getattr(folders, name).rename(comfy / "input" / name)
    values = {"paper": "mmfs", "results_folder": "results", "photos_folder": "photos", "styles_folder": "styles",
              "metrics": "lpips_diversity, ssim", "side": SIDE}
    drawn, text, table = nodes.EvaluationTable.execute(**values, networks=networks).args
    assert drawn.shape[0] == 1 and drawn.shape[3] == 3 and "LPIPS diversity, AAHQ (up)" in text
    assert [row["source"] for row in csv.DictReader(io.StringIO(table))] == ["published"] * 4 + ["measured"] * 4
    before = nodes.EvaluationTable.fingerprint_inputs(**values)
    (comfy / "input" / "photos" / "low" / "0.png").unlink()
    assert nodes.EvaluationTable.fingerprint_inputs(**values) != before
    assert "cannot be in this table" in nodes.EvaluationTable.validate_inputs("prompt_accuracy")
    with pytest.raises(ValueError, match="photos_folder is none; put a folder"):
        nodes.EvaluationTable.execute(**values | {"photos_folder": "none"})
