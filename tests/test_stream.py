"""Pictures streamed from folders: what a step gets depends on the seed and the step, memory and errors are bounded."""
import time
from collections import Counter

import pytest
import torch
from PIL import Image

from oneshot_atelier.train import mmfs_recipes, stream
from oneshot_atelier.train.gan import GanConfig
from oneshot_atelier.train.mmfs_recipes import Work
from oneshot_atelier.train.stream import Stream, hash_of_files
from oneshot_atelier.train.team import Team

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


def levels(pictures):
    """Which picture each one is, from its brighter half."""
    bytes_ = ((pictures + 1) * 127.5).round()
    return (bytes_.amax((1, 2, 3)) / 10 - 1).long().tolist()


# --- what a step gets --------------------------------------------------------------------------------------------
def test_a_step_has_the_same_pictures_however_one_comes_to_it(paths):
    with Stream(paths, PX, 6, seed=3, flip=True) as in_order, Stream(paths, PX, 6, seed=3, flip=True) as later:
        walked = [in_order(k) for k in range(5)]
        assert torch.equal(later(4), walked[4]) and torch.equal(later(1), walked[1])  # as after a resume
        assert levels(walked[2]) == in_order.chosen(2)
    with Stream(paths, PX, 6, seed=4, flip=True) as other:
        assert not torch.equal(other(4), walked[4])
    assert len({tuple(levels(x)) for x in walked}) == 5


def test_pictures_are_read_as_they_are(paths):
    with Stream(paths[4:5], PX, 1, seed=0) as one:
        x = one(0)
    assert x.shape == (1, 3, PX, PX) and x.dtype == torch.float32
    assert torch.allclose(x[..., :4], torch.tensor(50 / 127.5 - 1)) and torch.all(x[..., 4:] == -1)


@pytest.mark.parametrize("group", [1, 4])
def test_the_rows_of_a_team_make_up_the_whole_batch(paths, group):
    rows = [Team(rank, 2).rows(8, group) for rank in range(2)]
    with (Stream(paths, PX, 8, 5, flip=True) as whole, Stream(paths, PX, 8, 5, flip=True, rows=rows[0]) as first,
          Stream(paths, PX, 8, 5, flip=True, rows=rows[1]) as second):
        for k in range(3):
            together = torch.empty(8, 3, PX, PX)
            together[rows[0]], together[rows[1]] = first(k), second(k)
            assert torch.equal(together, whole(k))


def test_half_of_the_pictures_are_mirrored_if_asked_for(paths):
    with Stream(paths, PX, 400, 1, flip=True) as flipped, Stream(paths, PX, 400, 1) as plain:
        x, y = flipped(0), plain(0)
    mirrored = (x != y).flatten(1).any(1)
    assert torch.equal(x[mirrored], y[mirrored].flip(3)) and 160 < int(mirrored.sum()) < 240


def test_whether_a_picture_is_mirrored_does_not_follow_from_what_it_is_beside(paths):
    """Mirrors are drawn apart from which pictures come, and from the step's noise (of seed + 1)."""
    with Stream(paths, PX, 4000, 1, flip=True) as flipped:
        mirrored = (flipped(0)[:, 0, 0, 0] == -1).float()
        index = torch.tensor(flipped.chosen(0)).float()
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(stream.step_seed(2, 0)))
    assert abs(float(torch.corrcoef(torch.stack([mirrored, index]))[0, 1])) < 0.08  # 5 standard deviations
    assert abs(float(torch.corrcoef(torch.stack([mirrored, noise]))[0, 1])) < 0.08


def test_weights_say_how_often_a_picture_comes(paths):
    with Stream(paths[:3], PX, 3000, 0, weights=[1, 0, 3]) as weighted:
        counts = Counter(weighted.chosen(0))
    assert counts[1] == 0 and 650 < counts[0] < 850 and 2150 < counts[2] < 2350
    with Stream(paths[:3], PX, 3000, 0) as alike:
        assert all(850 < n < 1150 for n in Counter(alike.chosen(0)).values())


def test_folders_of_art_come_equally_often(tmp_path):
    """However many pictures each of them holds."""
    paths = [grey_picture(tmp_path / folder / f"{i}.png", 10) for folder, n in (("a", 1), ("b", 9)) for i in range(n)]
    config, work = GanConfig(batch=2000), Work(tmp_path / "x", CPU)
    with mmfs_recipes.stream(paths, PX, config, work, 4, even=True) as art:
        assert 900 < art.chosen(0).count(0) < 1100
    with mmfs_recipes.stream(paths, PX, config, work, 4) as photos:
        assert 140 < photos.chosen(0).count(0) < 260


# --- memory, threads, errors -------------------------------------------------------------------------------------
def test_no_more_pictures_are_kept_than_there_is_room_for(paths, monkeypatch):
    read, real = Counter(), stream.read_picture
    monkeypatch.setattr(stream, "read_picture", lambda path, px: read.update([path]) or real(path, px))
    with Stream(paths, PX, 8, 0, cache_bytes=3 * PX * PX * 5) as small:
        for k in range(12):
            small(k)
        assert len(small.cache) == 5
        kept = {paths[i] for i in small.cache}
    assert max(n for path, n in read.items() if path not in kept) > 1
    read.clear()
    with Stream(paths, PX, 4, 0, workers=1) as large:
        for k in range(20):
            large(k)
    assert max(read.values()) == 1


def test_the_next_step_is_being_read_while_this_one_is_worked_on(paths, monkeypatch):
    read, real = [], stream.read_picture
    monkeypatch.setattr(stream, "read_picture", lambda path, px: read.append(path) or real(path, px))
    with Stream(paths, PX, 2, 0) as ahead:
        ahead(0)
        wanted = {paths[i] for k in (0, 1) for i in ahead.chosen(k)}
        deadline = time.monotonic() + 10
        while set(read) != wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(read) == wanted


def test_a_file_that_is_no_picture_is_named_when_its_turn_comes(tmp_path, paths):
    bad = tmp_path / "notes.png"
    bad.write_text("no picture")
    with Stream([*paths[:2], bad], PX, 2, 0, weights=[1, 1, 0]) as never:
        never(0)
    with Stream([bad], PX, 1, 0) as broken, pytest.raises(ValueError, match="notes.png cannot be read as a picture"):
        broken(0)


def test_a_file_that_went_away_is_named(paths):
    with Stream(paths[:1], PX, 1, 0) as gone:
        paths[0].unlink()
        with pytest.raises(ValueError, match="00.png"):
            gone(0)


def test_a_stream_of_nothing_is_refused_and_a_closed_one_reads_no_more(paths):
    with pytest.raises(ValueError, match="no picture to train on"):
        Stream([], PX, 1, 0)
    with Stream(paths, PX, 1, 0) as done:
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
