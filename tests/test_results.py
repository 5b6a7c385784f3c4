"""`make results`: its commands, its claims, and its page, on numbers that are given."""
from __future__ import annotations

import json

import pytest
from PIL import Image

from oneshot_atelier.evaluate import mmfs, osasis
from oneshot_atelier.evaluate.registry import metric
from oneshot_atelier.evaluate.tables import LABEL
from oneshot_atelier.tests.test_evaluate import save_pictures
from oneshot_atelier.tools import results

FIGURES = {*results.SHOWN, *(claim.metric for claim in results.CLAIMS), *results.BETWEEN, "patch_similarity",
           "clip_direction", "prompt_accuracy", "diversity"}


def rows_of(names, value):
    """Rows in which every figure is `value`, or -value where lower is better: a larger value is better in all."""
    signs = {figure: 1 if metric(figure).better == "higher" else -1 for figure in FIGURES}
    return {name: {figure: sign * value(name.partition(LABEL)[0]) for figure, sign in signs.items()} for name in names}


@pytest.fixture
def out(tmp_path):
    """Results in which OURS and the fine-tuned MMFS are better by 0.5 in every style, MMFS by 0.25 than OSASIS."""
    def osasis_value(name):
        return 1.0 if name == osasis.OURS else 0.5

    def mmfs_value(name):
        return {mmfs.AFTER: 1.25, mmfs.BEFORE: 0.75}.get(name, 0.5)
    styles = ("a", "b", "c")
    group = ", label hats"
    report = {"seeds": 3, "reconstruction": {"t0 0.5": [31.2, 0.9]},
              "styles": {style: rows_of(("photos", *osasis.VARIANTS), osasis_value) for style in styles},
              "twins": {style: {"difference": d, "score": 1.0} for style, d in zip(styles, (0.1, 0.34, 0.36))},
              "mean": rows_of(("photos", *osasis.VARIANTS, osasis.OURS + group), osasis_value),
              "gains": {name: {part: {figure: [0.1, -0.1, 0.3] for figure in osasis.STRUCTURE}
                               for part in ("all photos", *results.PARTS)}
                         for name in (results.SPN_OFF, results.SPN_NONE)}}
    learned = ("photos", mmfs.BEFORE, mmfs.WITHOUT, mmfs.AFTER)
    one_shot = {style: rows_of(learned, mmfs_value) for style in styles}
    found = {"random": rows_of(("photos", mmfs.RANDOM), mmfs_value), "one_shot": one_shot, "zero_shot": one_shot,
             "one_shot_mean": rows_of((*learned, mmfs.AFTER + group), mmfs_value), "zero_shot_mean": one_shot["a"]}
    for name, numbers in (("osasis/results", report), ("mmfs/mmfs", found),
                          ("edits/edits", {"text old": rows_of(("not edited",), mmfs_value)})):
        path = tmp_path / "out" / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(numbers))
    for part in results.PARTS:
        save_pictures(tmp_path / "out" / "photos" / part, 2)
    (tmp_path / "out" / "rank").mkdir()
    (tmp_path / "out" / "rank" / "ranked.csv").write_text(
        "rank,file,distance,density\n1,inputs_rare/00.png,4.0,low\n2,inputs/00.png,3.0,\n3,inputs_rare/01.png,2.0,\n"
        "4,inputs/01.png,1.0,high\n")
    return tmp_path / "out"


def test_every_claim_has_its_number_and_its_verdict(out, tmp_path):
    results.write_page(out, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "+0.100 (-0.100 to +0.300) | **unclear**" in page, "of every photo"
    assert "than the style's code alone | edge agreement | +0.500 (+0.500 to +0.500) | **yes** |" in page
    assert "| OSASIS is better than a one-shot MMFS | edge agreement | -0.250 (-0.250 to -0.250) | **no** |" in page
    assert "less than 0.35 in 2 of 3" in page and "t0 0.5: 31.2, 0.900" in page
    assert "| hats | 1.00 |  | 1.25 |" in page and "## Edit by text: old" in page
    assert "4 portraits that no model was trained on (2 of inputs, 2 of inputs_rare)" in page
    assert "one, minus those the other way) | distance to the reconstruction | +0.500" in page
    assert sum(line.endswith(("**yes** |", "**no** |", "**unclear** |")) for line in page.splitlines()) == len(
        results.CLAIMS) + len(results.BETWEEN) + 1 + 2 * 2 * 2  # and both parts, two others, two figures


def test_what_is_not_finished_is_left_out(out, tmp_path):
    for name in ("osasis", "edits"):
        for path in (out / name).iterdir():
            path.unlink()
    results.write_page(out, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "## MMFS" in page and "## OSASIS" not in page and "Edit by" not in page and "![" not in page


def test_contact_sheets_show_style_and_results_of_every_class(out, tmp_path):
    """Sheets of 8 columns of one colour each, of which the row asked for is light."""
    for method, row, rows in (("osasis", 1, 7), ("mmfs", 3, 4)):
        for k, name in enumerate(("npr_ink_0", "npr_oil_0", "npr_pencil_0")):
            sheet = Image.new("RGB", (64, 8 * rows), (40, 0, 0))
            sheet.paste((200, 10 * k, 0), (0, 8 * row, 64, 8 * row + 8))
            sheet.paste((0, 0, 200), (0, 0, 8, 8))
            sheet.save(out / method / f"{'mmfs_' if method == 'mmfs' else ''}{name}.png")
    Image.new("RGB", (64, 24)).save(out / "mmfs" / "mmfs_low-poly.png")  # of a prompt, not of a class
    results.write_page(out, tmp_path / "page.md")
    assert "![OSASIS](page_osasis.jpg)" in (tmp_path / "page.md").read_text()
    seen = {(40, 120): (0, 0, 200), (120, 120): (200, 0, 0), (120, 200): (200, 10, 0), (530, 120): (200, 20, 0),
            (120, 40): (40, 0, 0), (530, 200): (255, 255, 255)}
    for method in ("osasis", "mmfs"):
        with Image.open(tmp_path / f"page_{method}.jpg") as made:
            assert made.size == (2 * 400 + 8, 3 * 80)
            for place, colour in seen.items():
                assert made.getpixel(place) == pytest.approx(colour, abs=8), (method, place)


def test_the_sheet_of_edits_shows_every_edit_of_two_photos_in_its_strengths(out, tmp_path):
    """A sheet of 7 photos, of which photo p in row r has the colour (30 p, 60 r, 0)."""
    sheet = Image.new("RGB", (7 * 80, 4 * 80))
    for p in range(7):
        for r in range(4):
            sheet.paste((30 * p, 60 * r, 0), (80 * p, 80 * r, 80 * p + 80, 80 * r + 80))
    sheet.save(out / "edits" / "text_old.png")
    results.write_page(out, tmp_path / "page.md")
    assert "![edits](page_edits.jpg)" in (tmp_path / "page.md").read_text()
    with Image.open(tmp_path / "page_edits.jpg") as made:
        column = [made.getpixel((48, y)) for y in range(made.height)]
    wanted = [(30 * p, 60 * r, 0) for p in results.EDITED for r in (1, 2, 3)]
    places = [min(range(len(column)), key=lambda y: sum(abs(a - b) for a, b in zip(column[y], colour)))
              for colour in wanted]
    assert places == sorted(places) and all(column[y] == pytest.approx(c, abs=8) for y, c in zip(places, wanted))


def test_gpus_share_the_styles_and_one_command_gathers_them(tmp_path, capsys):
    for part in results.PARTS:
        save_pictures(tmp_path / part, 1)
    for name in ("ink", "oil", "pencil"):
        save_pictures(tmp_path / "art" / name, 10)
    jobs = {job.name: job for job in results.jobs_of(results.classes_of(tmp_path / "art"), 2)}
    assert "--only ink,pencil" in jobs["osasis-0"].command and "--only oil" in jobs["mmfs-1"].command
    assert jobs["osasis"].after == ("osasis-0", "osasis-1") and "--only" not in jobs["osasis"].command
    assert results.main(["--data", str(tmp_path), "--list"]) == 0
    assert "atelier evaluate --method osasis" in capsys.readouterr().out
    assert results.main(["--data", str(tmp_path / "none")]) == 1
