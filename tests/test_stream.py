"""Pictures streamed from folders: what a step gets depends on the seed and the step, memory and errors are bounded."""
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image

from oneshot_atelier.models import rng
from oneshot_atelier.train import stream
from oneshot_atelier.train.distributed import Distributed
from oneshot_atelier.train.gan import GANConfig
from oneshot_atelier.train.recipes import mmfs
from oneshot_atelier.train.recipes.config import Folders, RecipeConfig
from oneshot_atelier.train.stream import ImageStream, StreamConfig, hash_of_files

PX, COUNT = 8, 20
CPU = torch.device("cpu")


@pytest.fixture
def paths(tmp_path):
    """Pictures whose left half has a grey of their own, 10, 20, .., and whose right half is black."""
    return [grey_picture(tmp_path / f"{i:02}.png", 10 * (i + 1)) for i in range(COUNT)]


def grey_picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (PX, PX))
    picture.paste((level,) * 3, (0, 0, PX // 2, PX))
    picture.save(path)
    return path


def pictures(paths, batch, seed, rows=None, **options):
    return ImageStream(paths, StreamConfig(PX, batch, seed, **options), rows)


def levels(x):
    """Which picture each one is, from its brighter half."""
    bytes_ = ((x + 1) * 127.5).round()
    return (bytes_.amax((1, 2, 3)) / 10 - 1).long().tolist()


# --- what a step gets --------------------------------------------------------------------------------------------
def test_a_step_has_the_same_pictures_however_one_comes_to_it(paths):
    with pictures(paths, 6, 3, flip=True) as in_order, pictures(paths, 6, 3, flip=True) as later:
        walked = [in_order(k) for k in range(5)]
        assert torch.equal(later(4), walked[4]) and torch.equal(later(1), walked[1])  # as after a resume
        assert levels(walked[2]) == in_order.chosen(2)
    with pictures(paths, 6, 4, flip=True) as other:
        assert not torch.equal(other(4), walked[4])
    assert len({tuple(levels(x)) for x in walked}) == 5


def test_pictures_held_on_the_device_make_the_same_stream(paths, monkeypatch):
    """Each file is read once, in whatever order the steps come, and rows and unreadable files are as they were."""
    paths[3].write_text("no picture")
    read, real = Counter(), stream.read_picture
    rows = Distributed(1, 2).rows(8, 4)
    with pictures(paths, 8, 3, rows, flip=True) as streamed:
        wanted = [streamed(k) for k in range(6)]
    monkeypatch.setattr(stream, "read_picture", lambda path, px: read.update([path]) or real(path, px))
    with pictures(paths, 8, 3, rows, flip=True, at_once=True) as held:
        assert all(torch.equal(held(k), wanted[k]) for k in (5, 0, 1, 2, 3, 4))
        assert held.held.shape == (COUNT, 3, PX, PX) and held.held.dtype == torch.uint8 and not held.cache
    assert max(read[path] for path in paths if path not in paths[3:5]) == 1


def test_more_pictures_than_there_is_room_for_are_streamed(paths):
    with (pictures(paths, 8, 3, at_once=True, cache_bytes=3 * PX * PX * (COUNT - 1)) as small,
          pictures(paths, 8, 3) as streamed):
        assert torch.equal(small(0), streamed(0)) and small.held is None


def test_pictures_are_read_as_they_are(paths):
    with pictures(paths[4:5], 1, 0) as one:
        x = one(0)
    assert x.shape == (1, 3, PX, PX) and x.dtype == torch.float32
    assert torch.allclose(x[..., :4], torch.tensor(50 / 127.5 - 1)) and torch.all(x[..., 4:] == -1)


@pytest.mark.parametrize("group", [1, 4])
def test_the_rows_of_several_processes_make_up_the_whole_batch(paths, group):
    rows = [Distributed(rank, 2).rows(8, group) for rank in range(2)]
    with (pictures(paths, 8, 5, flip=True) as whole, pictures(paths, 8, 5, rows[0], flip=True) as first,
          pictures(paths, 8, 5, rows[1], flip=True) as second):
        for k in range(3):
            together = torch.empty(8, 3, PX, PX)
            together[rows[0]], together[rows[1]] = first(k), second(k)
            assert torch.equal(together, whole(k))


def test_half_of_the_pictures_are_mirrored_if_asked_for(paths):
    with pictures(paths, 400, 1, flip=True) as flipped, pictures(paths, 400, 1) as plain:
        x, y = flipped(0), plain(0)
    mirrored = (x != y).flatten(1).any(1)
    assert torch.equal(x[mirrored], y[mirrored].flip(3)) and 160 < int(mirrored.sum()) < 240


def test_whether_a_picture_is_mirrored_does_not_follow_from_what_it_is_beside(paths):
    """Mirrors are random apart from which pictures come, and from the step's noise."""
    with pictures(paths, 4000, 1, flip=True) as flipped:
        mirrored = (flipped(0)[:, 0, 0, 0] == -1).float()
        index = torch.tensor(flipped.chosen(0)).float()
    noise = torch.randn(4000, generator=rng.generator(1, "draws", 0))
    assert abs(float(torch.corrcoef(torch.stack([mirrored, index]))[0, 1])) < 0.08  # 5 standard deviations
    assert abs(float(torch.corrcoef(torch.stack([mirrored, noise]))[0, 1])) < 0.08


def test_weights_say_how_often_a_picture_comes(paths):
    with pictures(paths[:3], 3000, 0, weights=(1, 0, 3)) as weighted:
        counts = Counter(weighted.chosen(0))
    assert counts[1] == 0 and 650 < counts[0] < 850 and 2150 < counts[2] < 2350
    with pictures(paths[:3], 3000, 0) as alike:
        assert all(850 < n < 1150 for n in Counter(alike.chosen(0)).values())


def test_folders_of_art_come_equally_often(tmp_path):
    """However many pictures each of them holds."""
    paths = [grey_picture(tmp_path / folder / f"{i}.png", 10) for folder, n in (("a", 1), ("b", 9)) for i in range(n)]
    config, recipe = GANConfig(batch=2000), RecipeConfig(tmp_path / "x", CPU)
    folders = Folders(tmp_path, tmp_path, holdout=0)
    assert folders.art_paths()[0] == paths
    with mmfs.art_stream(folders, PX, config, recipe, 4) as art:
        assert 900 < art.chosen(0).count(0) < 1100
    with mmfs.art_stream(replace(folders, weights=(("b*", 3.0),)), PX, config, recipe, 4) as art:
        assert 420 < art.chosen(0).count(0) < 580
    with mmfs.photo_stream(folders, PX, config, recipe, 4) as photos:
        assert 140 < photos.chosen(0).count(0) < 260


# --- memory, threads, errors -------------------------------------------------------------------------------------
def test_no_more_pictures_are_kept_than_there_is_room_for(paths, monkeypatch):
    read, real = Counter(), stream.read_picture
    monkeypatch.setattr(stream, "read_picture", lambda path, px: read.update([path]) or real(path, px))
    with pictures(paths, 8, 0, cache_bytes=3 * PX * PX * 5) as small:
        for k in range(12):
            small(k)
        assert len(small.cache) == 5
        kept = {paths[i] for i in small.cache}
    assert max(n for path, n in read.items() if path not in kept) > 1
    read.clear()
    with pictures(paths, 4, 0, workers=1) as large:
        for k in range(20):
            large(k)
    assert max(read.values()) == 1


def test_the_next_step_is_being_read_while_this_one_is_worked_on(paths, monkeypatch):
    read, real = [], stream.read_picture
    monkeypatch.setattr(stream, "read_picture", lambda path, px: read.append(path) or real(path, px))
    with pictures(paths, 2, 0) as ahead:
        ahead(0)
        wanted = {paths[i] for k in (0, 1) for i in ahead.chosen(k)}
        deadline = time.monotonic() + 10
        while set(read) != wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(read) == wanted


def test_a_file_that_is_no_picture_is_named_when_its_turn_comes(tmp_path, paths):
    bad = tmp_path / "notes.png"
    bad.write_text("no picture")
    with pictures([*paths[:2], bad], 2, 0, weights=(1, 1, 0)) as never:
        never(0)
    with pictures([bad], 1, 0) as broken, pytest.raises(ValueError, match="notes.png cannot be read as a picture"):
        broken(0)


def test_a_picture_that_cannot_be_read_is_replaced_by_the_next_and_named_once(paths, caplog):
    paths[1].write_text("no picture")
    with pictures(paths[:3], 6, 0, weights=(0, 1, 0), workers=1, cache_bytes=0) as replaced:
        assert set(levels(replaced(0))) == {2} and set(levels(replaced(1))) == {2}
    assert caplog.text.count("01.png cannot be read") == 1


def test_it_takes_all_pictures_to_be_unreadable_to_fail(paths):
    for path in paths[:3]:
        path.write_text("no picture")
    with pictures(paths[:3], 1, 0) as broken, pytest.raises(ValueError, match="none of the 3 pictures can be read: .*"):
        broken(0)


def test_a_file_that_went_away_is_named(paths):
    with pictures(paths[:1], 1, 0) as gone:
        paths[0].unlink()
        with pytest.raises(ValueError, match="00.png"):
            gone(0)


def test_a_stream_of_nothing_is_refused_and_a_closed_one_reads_no_more(paths):
    with pytest.raises(ValueError, match="no picture to train on"):
        pictures([], 1, 0)
    with pictures(paths, 1, 0) as done:
        done(0)
    with pytest.raises(RuntimeError):
        done(7)


def test_the_hash_of_files_changes_with_names_sizes_and_number(tmp_path):
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    a.write_bytes(b"1")
    b.write_bytes(b"1")
    found = {hash_of_files([a]), hash_of_files([b]), hash_of_files([a, b])}
    a.write_bytes(b"12")
    assert len(found | {hash_of_files([a])}) == 4
