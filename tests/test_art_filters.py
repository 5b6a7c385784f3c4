"""Filters that draw photos: what every one of them keeps, what each one is, folders of drawings with their labels."""

import pytest
import torch
from PIL import Image

from oneshot_atelier.cli import main
from oneshot_atelier.models import rng
from oneshot_atelier.tests import tiny
from oneshot_atelier.train import art_filters, art_folders, labels
from oneshot_atelier.train.art_filters import FILTERS, drawn, flattened, luma
from oneshot_atelier.train.data import read_picture, to_bytes
from oneshot_atelier.train.plots import to_picture

ALL = pytest.mark.parametrize("style", FILTERS)


def photo(seed=0):
    """A picture of soft blobs (3, 64, 64) in [0, 1]."""
    return ((art_filters.blur(tiny.pictures(1, px=64, seed=seed)[0], 0.05) * 2) / 2 + 0.5).clamp(0, 1)


def bands():
    """A dark, a middle and a light band, from left to right."""
    return torch.tensor([0.1, 0.5, 0.9]).repeat_interleave(24).expand(3, 72, 72).clone()


def drawing(style, x, seed=0):
    return drawn(x, style, rng.generator(seed, style))


@ALL
def test_a_drawing_has_the_photos_shape_and_range_and_follows_its_seed(style):
    x = photo()[:, :48]
    found = drawing(style, x)
    assert found.shape == x.shape and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1 and found.isfinite().all()
    assert torch.equal(found, drawing(style, x)) and not torch.equal(found, x)
    assert not torch.equal(found, drawing(style, photo(1)[:, :48]))


@ALL
def test_what_is_darker_in_the_photo_is_darker_in_the_drawing(style):
    dark, middle, light = (float(band.mean()) for band in luma(drawing(style, bands())).chunk(3, 2))
    assert dark < middle + 0.02 and middle < light + 0.02 and light - dark > 0.05


@ALL
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_flat_photo_is_drawn_too(style, level):
    assert drawing(style, torch.full((3, 32, 40), level)).isfinite().all()


def test_kuwaharas_filter_keeps_edges_and_smooths_the_rest():
    x = bands() + 0.02 * torch.randn(3, 72, 72, generator=torch.Generator().manual_seed(0))
    found = flattened(x, 0.06, 2)
    assert found[:, :, 2:20].std() < 0.3 * x[:, :, 2:20].std()
    assert (found[:, :, 25] - found[:, :, 22]).min() > 0.3  # still a step of 0.4 within three pixels
    assert torch.allclose(flattened(bands(), 0.06, 1), bands(), atol=1e-6)


def test_pop_art_has_the_colours_of_one_palette_only():
    found = FILTERS["popart"](photo(), rng.generator(3, "x"))
    colours = {tuple(c) for c in (found.flatten(1).T * 255).round().int().tolist()}
    assert len(colours) == 5 and any(colours == set(palette) for palette in art_filters.POP_PALETTES)


def test_ink_is_black_on_paper():
    y = luma(FILTERS["ink"](photo(), rng.generator(0, "x")))
    assert ((y < 0.25) | (y > 0.75)).float().mean() > 0.8 and y.min() < 0.1 and y.max() > 0.85


def test_lowpoly_has_flat_facets_along_edges():
    x = photo().repeat(1, 2, 2)
    found = (FILTERS["lowpoly"](x, rng.generator(0, "x")) * 255).round().int()
    assert len(found.flatten(1).T.unique(dim=0)) < 700
    assert (found[:, :, 1:] == found[:, :, :-1]).all(0).float().mean() > 0.7
    assert (found / 255 - x).abs().mean() < 0.08


def test_dots_of_a_flat_photo_differ_in_shade_and_each_is_of_one():
    found = FILTERS["pointillism"](torch.full((3, 200, 200), 0.5), rng.generator(0, "x"))
    index, distance, count = art_filters.cells(found, 0.022, rng.generator(0, "x"))
    inside = distance < 0.3
    spread = torch.stack([found[:, inside & (index == i)].std(1).max() for i in range(count)
                          if (inside & (index == i)).sum() > 3])
    assert spread.max() < 0.02 < 0.05 < found.std()


@pytest.mark.parametrize("style", ["pencil", "charcoal", "ink", "engraving"])
def test_drawings_without_colour_have_one_hue(style):
    found = drawing(style, photo())
    grey = found / luma(found).clamp(min=0.05)
    assert grey.flatten(1).std(1).max() < 0.12
    assert luma(drawing("pencil", photo())).mean() > 0.6


def test_engraved_lines_are_thicker_in_the_dark():
    x = torch.tensor([0.1, 0.4, 0.9]).repeat_interleave(128).expand(3, 384, 384)
    y = luma(FILTERS["engraving"](x, rng.generator(0, "x")))
    inked = [float((band < 0.6).float().mean()) for band in y[:, :, :].chunk(3, 2)]
    assert inked[0] > inked[1] + 0.1 > inked[2] + 0.2 and y.std() > 0.2


# --- folders ------------------------------------------------------------------------------------------------------
@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name, x in zip(("a.png", "b.png"), tiny.pictures(2), strict=True):
        folder.mkdir(exist_ok=True)
        Image.fromarray(to_bytes(x).movedim(0, -1).numpy()).save(folder / name)
    labels.write(folder, {"a.png": ("beanie", "adult")})
    return folder


def test_drawings_lie_in_a_folder_for_each_style_with_their_photos_labels(photos, tmp_path):
    out = tmp_path / "out"
    arguments = ["render-art", f"--photos={photos}", f"--out={out}", "--styles=ink,popart", "--size=32"]
    assert main.main(arguments) == 0
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.*")) == [
        "npr_ink/a.jpg", "npr_ink/b.jpg", "npr_ink/labels.csv",
        "npr_popart/a.jpg", "npr_popart/b.jpg", "npr_popart/labels.csv"]
    assert read_picture(out / "npr_ink" / "a.jpg", 32).float().std() > 30
    assert labels.of_pictures(sorted(out.rglob("*.jpg"))) == {
        out / f"npr_{style}" / "a.jpg": ("beanie", "adult") for style in ("ink", "popart")}


def test_what_is_drawn_stays_and_a_stop_leaves_whole_files_only(photos, tmp_path):
    out = tmp_path / "out"
    left = iter([None])

    def check_interrupt():
        next(left)

    with pytest.raises(StopIteration):
        art_folders.render(photos, out, ("ink",), 16, check_interrupt=check_interrupt)
    first = (out / "npr_ink" / "a.jpg").read_bytes()
    assert [p.name for p in out.rglob("*.jpg")] == ["a.jpg"]
    assert art_folders.render(photos, out, ("ink",), 16) == 1 and art_folders.render(photos, out, ("ink",), 16) == 0
    assert (out / "npr_ink" / "a.jpg").read_bytes() == first
    again = tmp_path / "again"
    art_folders.render(photos, again, ("popart", "ink"), 16)
    assert (again / "npr_ink" / "a.jpg").read_bytes() == first  # of photo, style and seed alone


def test_unknown_styles_and_photos_of_one_name_are_refused(photos, tmp_path):
    with pytest.raises(ValueError, match="no filter 'crayon'; there are oil, watercolor"):
        art_folders.render(photos, tmp_path / "out", ("crayon",))
    (photos / "a.jpg").write_bytes((photos / "a.png").read_bytes())
    with pytest.raises(ValueError, match="same name but for their ending"):
        art_folders.render(photos, tmp_path / "out", ("ink",))


def test_a_truncated_photo_is_left_out_and_named(photos, tmp_path, caplog):
    whole = sorted(photos.rglob("*.*"))
    broken = photos / "broken.jpg"
    to_picture(photo() * 2 - 1).save(broken)
    broken.write_bytes(broken.read_bytes()[:700])
    count = art_folders.render(photos, tmp_path / "out", ["ink", "oil"], 32)
    assert count and not list((tmp_path / "out").rglob("broken*")) and whole
    assert caplog.text.count("broken.jpg") == 1 and count == 2 * len(list((tmp_path / "out" / "npr_oil").glob("*.jpg")))
