"""Training pictures: reading of every sort of file, the split, pools, random views."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from oneshot_atelier.tests import tiny
from oneshot_atelier.train import data
from oneshot_atelier.train.data import Views, find_pictures, pool_of, random_views, read_picture, split, to_unit

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


# --- the split ---------------------------------------------------------------------------------------------------
def paths(tmp_path, count, folder):
    return [tmp_path / folder / f"{i:02}.png" for i in range(count)]


def test_every_so_many_th_picture_of_each_folder_is_held_out(tmp_path):
    both = paths(tmp_path, 7, "a") + paths(tmp_path, 4, "b")
    kept, held = split(both, 3)
    assert [f"{p.parent.name}{p.stem}" for p in held] == ["a02", "a05", "b02"]
    assert sorted(kept + held) == both and not set(kept) & set(held)
    assert split(both, 0) == (both, []) and split(both, 1) == ([], both)


def test_the_split_of_a_folder_does_not_depend_on_the_others(tmp_path):
    a, b = paths(tmp_path, 9, "a"), paths(tmp_path, 5, "b")
    assert split(a + b, 4)[1] == split(a, 4)[1] + split(b, 4)[1]


# --- pools -------------------------------------------------------------------------------------------------------
def test_a_pool_draws_its_groups_with_their_shares_and_its_labels(tmp_path):
    dark = [save(tmp_path / "dark" / f"{i}.png", Image.new("L", (4, 4), 0)) for i in range(9)]
    light = [save(tmp_path / "light" / "0.png", Image.new("L", (4, 4), 255))]
    groups = [(dark, 0.25), (light, 0.75), ([], 1.0), (dark, 0.0)]
    pool = pool_of(groups, 4, CPU, lambda path: int(path.parent.name == "light"))
    assert pool.pictures.shape == (10, 3, 4, 4) and pool.labels.tolist() == [0] * 9 + [1]
    x, labels = pool.draw(4000, torch.Generator().manual_seed(0))
    assert abs(float(labels.float().mean()) - 0.75) < 0.03 and torch.equal(x.mean((1, 2, 3)), labels * 2.0 - 1)
    again = pool.draw(4000, torch.Generator().manual_seed(0))[1]
    assert torch.equal(labels, again) and not torch.equal(labels, pool.draw(4000, torch.Generator().manual_seed(1))[1])


# --- views -------------------------------------------------------------------------------------------------------
def views_of(x, views, seed=0):
    return random_views(x, views, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("views", [Views(), Views(colour=0.5), Views(20, 0.3, 0.2, 1.0, False)])
def test_views_are_a_function_of_the_seed_and_leave_their_input_alone(views):
    x = tiny.pictures(6)
    kept = x.clone()
    first = views_of(x, views)
    assert torch.equal(first, views_of(x, views)) and not torch.equal(first, views_of(x, views, 1))
    assert torch.equal(x, kept) and first.shape == x.shape and first.abs().max() <= 1 + 1e-5
    assert len({v.numpy().tobytes() for v in views_of(x[:1].expand(6, -1, -1, -1), views)}) == 6


def test_no_view_is_the_picture_or_its_mirror_image():
    x = tiny.pictures(16)
    found = views_of(x, Views(0, 0, 0))
    mirrored = [torch.allclose(f, p.flip(2), atol=1e-4) for f, p in zip(found, x)]
    assert all(m or torch.allclose(f, p, atol=1e-4) for m, f, p in zip(mirrored, found, x)) and 2 < sum(mirrored) < 14
    assert torch.allclose(views_of(x, Views(0, 0, 0, flip=False)), x, atol=1e-4)


def test_a_rotated_view_keeps_the_middle_and_moves_the_rim():
    x = torch.zeros(1, 3, 33, 33)
    x[..., 16, 16], x[..., 16, 32] = 1, 1
    found = views_of(x, Views(45, 0, 0, flip=False), 3)
    assert found[0, 0, 16, 16] > 0.9 and found[0, 0, 16, 32] < 0.5


def test_the_share_of_recoloured_pictures_and_their_bounds():
    x = tiny.pictures(1).expand(400, -1, -1, -1) * 0.3
    changed = (views_of(x, Views(0, 0, 0, 0.25, False)) - x).abs().amax((1, 2, 3)) > 1e-3
    assert abs(float(changed.float().mean()) - 0.25) < 0.07
    uniform = torch.ones
    grey = torch.zeros(1, 3, 2, 2)
    assert torch.allclose(data.recolour(grey, 2.0, uniform), torch.full_like(grey, 0.36))  # brightness 0.2, tint 0.16
