"""Training pictures: reading of every sort of file, the split, data sets, random augmentations."""

import contextlib
import os
import signal
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, ImageOps

from oneshot_atelier.tests import tiny
from oneshot_atelier.train import data
from oneshot_atelier.train.data import (
    Augmentations,
    find_pictures,
    image_dataset,
    random_augment,
    read_picture,
    split,
    to_unit,
)

CPU = torch.device("cpu")


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


def gradient(width=40, height=40):
    row = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.stack([np.tile(row, (height, 1))] * 3, -1))


# --- files -------------------------------------------------------------------------------------------------------
def test_a_picture_comes_as_bytes_in_rgb(tmp_path):
    picture = Image.new("RGB", (20, 20), (10, 200, 90))
    found = read_picture(save(tmp_path / "a.png", picture), 8)
    assert found.dtype == torch.uint8 and found.shape == (3, 8, 8) and found[:, 4, 4].tolist() == [10, 200, 90]
    assert to_unit(found).min() >= -1 and float(to_unit(torch.tensor([0, 255], dtype=torch.uint8)).sum()) == 0


def test_transparent_pictures_lie_on_white(tmp_path):
    picture = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 8, 16))
    found = read_picture(save(tmp_path / "a.png", picture), 16)
    assert found[:, 8, 2].tolist() == [0, 0, 255] and found[:, 8, 13].tolist() == [255, 255, 255]
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9] * 256)
    assert read_picture(save(tmp_path / "p.png", palette, transparency=0), 4).min() == 255


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 77, 77), ("1", 1, 255), ("LA", (77, 255), 77),
                                                         ("I;16", 77 * 256 + 13, 77), ("I;16", 65535, 255)])
def test_grey_pictures_keep_their_brightness(tmp_path, mode, value, expected):
    if mode == "I;16":
        picture = Image.fromarray(np.full((6, 6), value, dtype=np.uint16))
    else:
        picture = Image.new(mode, (6, 6), value)
    assert set(read_picture(save(tmp_path / "a.png", picture), 6).flatten().tolist()) == {expected}


def test_cmyk_is_read_and_small_and_narrow_pictures_are_enlarged(tmp_path):
    assert read_picture(save(tmp_path / "c.jpg", Image.new("CMYK", (9, 9), (0, 255, 255, 0))), 4)[0].min() > 200
    one = save(tmp_path / "one.png", Image.new("RGB", (1, 1), (5, 6, 7)))
    assert read_picture(one, 32)[:, 31, 0].tolist() == [5, 6, 7]
    assert read_picture(save(tmp_path / "line.png", Image.new("RGB", (500, 1), (5, 6, 7))), 8).shape == (3, 8, 8)


def test_the_centre_square_is_taken_and_smoothed(tmp_path):
    picture = Image.new("RGB", (60, 20), "black")
    picture.paste((255, 255, 255), (20, 0, 40, 20))
    found = read_picture(save(tmp_path / "a.png", picture), 10)
    assert found.float().mean() > 245 and found[:, :, 2:8].min() > 245  # but for what the filter takes in at the rim
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    inner = read_picture(save(tmp_path / "b.png", board), 8)[:, 2:6, 2:6].float()
    assert (inner - 127.5).abs().max() < 12  # a checkerboard becomes grey, not one of its colours


def png_header(width, height):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 4) + b"IDAT" + b"\0" * 40


@pytest.mark.parametrize(("content", "words"), [
    (b"", "cannot be read as a picture"), (b"\x89PNG\r\n\x1a\n", "cannot be read"), (b"<html>", "cannot be read"),
    (png_header(9000, 9000), "9000 x 9000 pixels; make it smaller"), (png_header(60000, 60000), "decompression bomb"),
    (png_header(30, 30), "cannot be read")], ids=["empty", "cut off", "web page", "huge", "bomb", "damaged"])
def test_broken_foreign_and_huge_files_are_named(tmp_path, content, words):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_picture(path, 8)
    assert "bad.png" in str(caught.value)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_picture_is_an_error_and_not_half_a_picture(tmp_path, share):
    rng = np.random.default_rng(0)
    path = save(tmp_path / "a.png", Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)))
    path.write_bytes(path.read_bytes()[:int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match="a.png cannot be read"):
        read_picture(path, 8)


def test_pictures_are_found_below_a_folder_in_order_and_none_is_an_error(tmp_path):
    for name in ("b/2.PNG", "b/1.jpg", "a/x.webp", "a/readme.txt"):
        save(tmp_path / name, gradient(4, 4), format="PNG")
    assert [p.name for p in find_pictures(tmp_path)] == ["x.webp", "1.jpg", "2.PNG"]
    with pytest.raises(FileNotFoundError, match="no picture .* under .*name a folder that holds some"):
        find_pictures(tmp_path / "nowhere")


# --- what else lies in folders of pictures -----------------------------------------------------------------------
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_as_pil_does_it(tmp_path, orientation):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[data.ORIENTATION] = orientation
    path = save(tmp_path / "a.png", picture, exif=exif)
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file)
    plain = save(tmp_path / "upright.png", upright, exif=Image.Exif())
    found, expected = read_picture(path, 24), read_picture(plain, 24)
    assert torch.equal(found, expected) and (orientation == 1) == torch.equal(found, read_picture(
        save(tmp_path / "b.png", picture), 24))


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"junk" * 20])
def test_exif_data_that_cannot_be_read_turn_nothing(tmp_path, exif):
    picture = gradient()
    found = read_picture(save(tmp_path / "a.jpg", picture, exif=exif, quality=95), 20)
    assert torch.equal(found, read_picture(save(tmp_path / "b.jpg", picture, quality=95), 20))


def test_a_gradient_of_sixteen_bit_grey_keeps_all_its_levels(tmp_path):
    levels = np.linspace(0, 65535, 64).astype(np.uint16)
    found = read_picture(save(tmp_path / "a.png", Image.fromarray(np.tile(levels, (64, 1)))), 64)
    assert found[0, 0].tolist() == (levels >> 8).tolist() and torch.equal(found[0], found[2])


def test_what_systems_and_tools_leave_beside_pictures_is_passed_over_without_a_word(tmp_path, caplog):
    for name in ("a.png", "._a.png", "__MACOSX/a.png", ".ipynb_checkpoints/a-checkpoint.png", "b/.thumbnails/a.png"):
        save(tmp_path / name, gradient(4, 4), format="PNG")
    assert find_pictures(tmp_path) == [tmp_path / "a.png"] and not caplog.text
    assert find_pictures(save(tmp_path / ".mine" / "c.png", gradient(4, 4)).parent), "the folder itself may be hidden"


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    elsewhere = save(tmp_path / "elsewhere" / "class" / "a.png", gradient(4, 4)).parent
    folder = tmp_path / "folder"
    folder.mkdir()
    try:
        (folder / "first").symlink_to(elsewhere, target_is_directory=True)
        (folder / "second").symlink_to(elsewhere, target_is_directory=True)
        (elsewhere / "back").symlink_to(folder, target_is_directory=True)
    except OSError:
        pytest.skip("this system has no links for everyone")
    assert find_pictures(folder) == [folder / "first" / "a.png", folder / "second" / "a.png"]



@contextlib.contextmanager
def at_most(seconds):
    """What would wait for ever inside the block fails."""
    def late(*_):
        raise AssertionError(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes in folders")
def test_pipes_dead_links_and_folders_are_left_out_and_named(tmp_path, caplog):
    save(tmp_path / "a.png", gradient(4, 4))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    with at_most(seconds=10):
        assert find_pictures(tmp_path) == [tmp_path / "a.png"]
    assert all(name in caplog.text for name in ("3 of 4", "pipe.png", "link.png", "folder.png"))


def test_postscript_that_calls_itself_a_png_is_left_out_and_never_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("it was run"))
    save(tmp_path / "a.png", gradient(4, 4))
    path = save(tmp_path / "drawing.png", gradient(4, 4), format="EPS")
    with Image.open(path) as file, pytest.raises(pytest.fail.Exception, match="it was run"):
        file.load()  # PIL alone would
    assert find_pictures(tmp_path) == [tmp_path / "a.png"] and "drawing.png" in caplog.text
    with pytest.raises(ValueError, match="drawing.png cannot be read as a picture"):
        read_picture(path, 4)


def cut_off(path):
    """A JPEG whose header is whole, and nothing else."""
    save(path, Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)))
    path.write_bytes(path.read_bytes()[:2000])
    return path


def test_a_cut_off_jpeg_is_left_out_and_named_and_it_takes_all_of_them_to_fail(tmp_path, caplog):
    bad, good = cut_off(tmp_path / "cut.jpg"), save(tmp_path / "good.jpg", gradient())
    assert find_pictures(tmp_path) == [bad, good]
    assert torch.equal(data.read_pictures([bad, good], 8), read_picture(good, 8)[None])
    assert "left out: " in caplog.text and "cut.jpg" in caplog.text and "good.jpg" not in caplog.text
    with pytest.raises(ValueError, match="cut.jpg cannot be read as a picture"):
        data.read_pictures([bad, bad], 8)


def test_a_data_set_without_a_picture_that_cannot_be_read_keeps_labels_and_shares(tmp_path):
    bad = cut_off(tmp_path / "0.jpg")
    grey = [save(tmp_path / f"{level}.png", Image.new("L", (4, 4), level)) for level in (50, 100, 200)]
    dataset = image_dataset([([bad, *grey[:2]], 0.5), (grey[2:], 0.5)], 4, CPU, lambda path: int(path.stem))
    assert dataset.labels.tolist() == dataset.pictures[:, 0, 0, 0].tolist() == [50, 100, 200]
    assert dataset.weights.tolist() == [0.25, 0.25, 0.5]


def text_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("place", [33, -12], ids=["before the pixels", "behind them"])
def test_a_bomb_in_the_text_of_a_png_is_an_error_that_names_the_file(tmp_path, place):
    path = save(tmp_path / "bomb.png", gradient(8, 8))
    whole = path.read_bytes()
    bomb = text_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 200_000_000, 9))
    path.write_bytes(whole[:place] + bomb + whole[place:])
    with pytest.raises(ValueError, match="bomb.png cannot be read as a picture: Decompressed data too large"):
        read_picture(path, 8)


# --- the split ---------------------------------------------------------------------------------------------------
def paths(tmp_path, count, folder):
    return [tmp_path / folder / f"{i:02}.png" for i in range(count)]


def test_every_nth_picture_of_each_folder_is_held_out(tmp_path):
    both = paths(tmp_path, 7, "a") + paths(tmp_path, 4, "b")
    kept, held = split(both, 3)
    assert [f"{p.parent.name}{p.stem}" for p in held] == ["a02", "a05", "b02"]
    assert sorted(kept + held) == both and not set(kept) & set(held)
    assert split(both, 0) == (both, []) and split(both, 1) == ([], both)


def test_the_split_of_a_folder_does_not_depend_on_the_others(tmp_path):
    a, b = paths(tmp_path, 9, "a"), paths(tmp_path, 5, "b")
    assert split(a + b, 4)[1] == split(a, 4)[1] + split(b, 4)[1]


# --- data sets ---------------------------------------------------------------------------------------------------
def test_a_data_set_draws_its_groups_with_their_shares_and_its_labels(tmp_path):
    dark = [save(tmp_path / "dark" / f"{i}.png", Image.new("L", (4, 4), 0)) for i in range(9)]
    light = [save(tmp_path / "light" / "0.png", Image.new("L", (4, 4), 255))]
    groups = [(dark, 0.25), (light, 0.75), ([], 1.0), (dark, 0.0)]
    dataset = image_dataset(groups, 4, CPU, lambda path: int(path.parent.name == "light"))
    assert dataset.pictures.shape == (10, 3, 4, 4) and dataset.labels.tolist() == [0] * 9 + [1]
    x, labels = dataset.sample(4000, torch.Generator().manual_seed(0))
    assert abs(float(labels.float().mean()) - 0.75) < 0.03 and torch.equal(x.mean((1, 2, 3)), labels * 2.0 - 1)
    again = dataset.sample(4000, torch.Generator().manual_seed(0))[1]
    other = dataset.sample(4000, torch.Generator().manual_seed(1))[1]
    assert torch.equal(labels, again) and not torch.equal(labels, other)


# --- augmentations ----------------------------------------------------------------------------------------------------
def augmented(x, augmentations, seed=0):
    return random_augment(x, augmentations, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("augmentations", [Augmentations(), Augmentations(colour=0.5),
                                           Augmentations(20, 0.3, 0.2, 1.0, False)])
def test_augmentations_are_a_function_of_the_seed_and_leave_their_input_alone(augmentations):
    x = tiny.pictures(6)
    kept = x.clone()
    first = augmented(x, augmentations)
    assert torch.equal(first, augmented(x, augmentations)) and not torch.equal(first, augmented(x, augmentations, 1))
    assert torch.equal(x, kept) and first.shape == x.shape and first.abs().max() <= 1 + 1e-5
    assert len({v.numpy().tobytes() for v in augmented(x[:1].expand(6, -1, -1, -1), augmentations)}) == 6


def test_without_augmentation_a_picture_comes_as_it_is_or_mirrored():
    x = tiny.pictures(16)
    found = augmented(x, Augmentations(0, 0, 0))
    mirrored = [torch.allclose(f, p.flip(2), atol=1e-4) for f, p in zip(found, x)]
    assert all(m or torch.allclose(f, p, atol=1e-4) for m, f, p in zip(mirrored, found, x)) and 2 < sum(mirrored) < 14
    assert torch.allclose(augmented(x, Augmentations(0, 0, 0, flip=False)), x, atol=1e-4)


def test_a_rotated_picture_keeps_the_middle_and_moves_the_rim():
    x = torch.zeros(1, 3, 33, 33)
    x[..., 16, 16], x[..., 16, 32] = 1, 1
    found = augmented(x, Augmentations(45, 0, 0, flip=False), 3)
    assert found[0, 0, 16, 16] > 0.9 and found[0, 0, 16, 32] < 0.5


def test_the_share_of_recoloured_pictures_and_their_bounds():
    x = tiny.pictures(1).expand(400, -1, -1, -1) * 0.3
    changed = (augmented(x, Augmentations(0, 0, 0, 0.25, False)) - x).abs().amax((1, 2, 3)) > 1e-3
    assert abs(float(changed.float().mean()) - 0.25) < 0.07
    grey = torch.zeros(1, 3, 2, 2)
    found = data.recolour(grey, torch.ones(1, 6))
    assert torch.allclose(found, torch.full_like(grey, 0.36))  # brightness 0.2, tint 0.16


def test_labels_tell_the_whole_augmentation_but_for_the_mirror():
    """0 where nothing was changed; a part of the rows is augmented as in the whole batch."""
    x, augmentations = tiny.pictures(8), Augmentations(20, 0.3, 0.2, 0.5)
    draws = data.augmentation_draws(8, augmentations, torch.Generator().manual_seed(2))
    labels, rows = draws.labels(), torch.tensor([5, 2])
    assert labels.shape == (8, data.LABELS) and labels.abs().max() <= 1 and 0 < int(draws.recoloured.sum()) < 8
    assert labels[~draws.recoloured, 4:].eq(0).all() and labels[draws.recoloured, 4:].ne(0).all()
    assert torch.equal(data.augment(x, augmentations, draws), augmented(x, augmentations, 2))
    assert torch.equal(data.augment(x[rows], augmentations, draws.of(rows)), augmented(x, augmentations, 2)[rows])
    plain = data.AugmentationDraws(torch.zeros(8, 4), torch.ones(8), torch.zeros(8, 6), draws.recoloured)
    assert plain.labels().eq(0).all() and torch.allclose(data.augment(x, augmentations, plain), x, atol=1e-4)
    colourless = data.augmentation_draws(8, Augmentations(), torch.Generator().manual_seed(2))
    assert colourless.labels()[:, 4:].eq(0).all() and colourless.labels()[:, :4].ne(0).all()


def test_a_link_in_a_circle_hides_no_picture(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in ("b.png", "c"):
        (tmp_path / name).symlink_to(tmp_path / name)
    assert [path.name for path in data.find_pictures(tmp_path)] == ["a.png"]
