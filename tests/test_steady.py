"""Faces followed over the frames of a film, and their squares smoothed."""
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from oneshot_atelier.models.faces import find, steady
from oneshot_atelier.models.faces.align import side_of, square_quad
from oneshot_atelier.models.faces.crops import Choice, FaceSquare, squares_found
from oneshot_atelier.models.faces.networks import load_faces
from oneshot_atelier.train.data import read_whole, to_unit


def square(x, y, side=100.0, degrees=0.0):
    turn = math.radians(degrees)
    quad = square_quad(torch.tensor([x, y]), side / 2 * torch.tensor([math.cos(turn), math.sin(turn)]))
    return FaceSquare(quad, "found", points=quad.mean(0) + torch.zeros(468, 2))


def places(film):
    """Centres (T, 2) of the only square of every frame."""
    assert all(len(frame) == 1 for frame in film)
    return torch.stack([frame[0][1].quad.mean(0) for frame in film])


# --- the filter -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("frames", [1, 2, 3, 40])
def test_accelerated_motion_stays_what_it_is_at_both_ends_too(sigma, frames):
    film = [[square(200 + 3.0 * t + 0.2 * t * t, 300 - 2.0 * t, 100 + t)] for t in range(frames)]
    for frame, wanted in zip(steady.steadied(film, Choice(), sigma), film, strict=True):
        assert torch.allclose(frame[0][1].quad, wanted[0].quad, atol=1e-2)
        assert torch.allclose(frame[0][1].points, wanted[0].points, atol=1e-2)


def test_jitter_becomes_less_as_the_filter_says():
    """White noise of deviation 1 under a parabola with Gaussian weights of sigma s: sqrt(27 / (32 s sqrt(pi)))."""
    noise = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    film = [[square(500 + float(noise[0, t]), 500 + float(noise[1, t]))] for t in range(400)]
    left = places(steady.steadied(film, Choice(), 3.0))[20:-20].std(0)
    assert torch.allclose(left, noise.std(1) * math.sqrt(27 / (32 * 3 * math.sqrt(math.pi))), rtol=0.2)


def test_the_filter_has_no_delay():
    """A bow stays in its place: its highest frame is the same one, with no shift to either side."""
    film = [[square(500.0, 500 - 40 * math.exp(-((t - 30) / 8) ** 2))] for t in range(61)]
    found = places(steady.steadied(film, Choice(), 2.0))[:, 1]
    assert int(found.argmin()) == 30 and torch.allclose(found, found.flip(0), atol=1e-2)


def test_none_is_no_filter():
    film = [[square(500.0 + t % 2, 500)] for t in range(3)]
    assert torch.equal(places(steady.steadied(film, Choice(), 0)), torch.stack([row[0].quad.mean(0) for row in film]))


# --- frames without a face, and several faces -------------------------------------------------------------------------
def test_a_frame_without_a_face_takes_the_place_in_between():
    film = [[square(200 + 4.0 * t, 300, degrees=t)] if t not in (0, 5, 6, 7, 19) else [] for t in range(20)]
    found = steady.steadied(film, Choice(), 0)
    assert torch.allclose(places(found)[1:19, 0], 200 + 4.0 * torch.arange(1, 19), atol=1e-3)
    assert found[6][0][1].origin == "between frames 4 and 8"
    assert [found[t][0][1].origin for t in (0, 19)] == ["as in frame 1", "as in frame 18"]
    assert side_of(found[6][0][1].quad) == pytest.approx(100, rel=1e-2)


def test_a_face_that_is_gone_for_long_leaves_its_frames_out():
    film = [[square(200, 300)] if t < 5 else [] for t in range(5 + steady.HELD + 3)]
    assert [len(frame) for frame in steady.steadied(film, Choice(), 1.0)] == [1] * (5 + steady.HELD) + [0] * 3
    assert steady.steadied([[], []], Choice(), 1.0) == [[], []]


def crossing():
    """Two faces that pass each other; the left one is the larger for most of the time, and found second at first."""
    rows = [[square(100 + 20.0 * t, 200, 110 if t > 3 else 95), square(500 - 20.0 * t, 330, 100)] for t in range(21)]
    return [sorted(row, key=lambda one: -side_of(one.quad)) for row in rows]


def test_faces_that_cross_stay_themselves():
    film = steady.steadied(crossing(), Choice("all"), 0)
    assert all([number for number, _ in frame] == [0, 1] for frame in film)
    first, second = (torch.stack([frame[k][1].quad.mean(0) for frame in film]) for k in (0, 1))
    assert torch.allclose(first[:, 0], 100 + 20.0 * torch.arange(21))
    assert torch.allclose(second[:, 0], 500 - 20.0 * torch.arange(21))


@pytest.mark.parametrize("choice, y", [
    (Choice(), 200), (Choice("by index", 1), 330), (Choice("nearest point", point=torch.tensor([490.0, 340.0])), 330),
    (Choice("nearest point", point=torch.tensor([90.0, 210.0])), 200)])
def test_one_face_is_the_same_one_in_every_frame(choice, y):
    assert torch.allclose(places(steady.steadied(crossing(), choice, 0))[:, 1], torch.tensor(float(y)))


def test_after_a_cut_of_the_film_another_face_takes_its_place():
    film = [[square(200, 300)] for _ in range(10)] + [[square(800, 500, 300)] for _ in range(20)]
    found = places(steady.steadied(film, Choice(), 3.0))
    assert torch.allclose(found[:10], torch.tensor([200.0, 300.0])) and torch.allclose(
        found[10:], torch.tensor([800.0, 500.0]))


def test_a_square_far_away_or_of_another_size_is_another_face():
    a = square(200, 300)
    assert steady.apart(a.quad, square(260, 300).quad) == pytest.approx(0.6)
    assert steady.apart(a.quad, square(200, 300, 201).quad) == math.inf
    assert len(steady.tracks([[a], [square(260, 300)], [square(255, 300)]], range(3))) == 2
    assert len(steady.tracks([[a], [], [square(290, 300)]], range(3))) == 1  # two frames later


def test_what_is_seen_between_two_cuts_keeps_its_own_square():
    a, b = [square(200, 300)], [square(230, 310, 120)]
    shown, wanted = [a] * 10 + [b] * 20 + [a] * 10, [[200.0, 300]] * 10 + [[230.0, 310]] * 20 + [[200.0, 300]] * 10
    for choice in (Choice(), Choice("all"), Choice("by index", 0)):
        assert torch.allclose(places(steady.steadied(shown, choice, 3.0, {10, 30})), torch.tensor(wanted))
    everyone = steady.steadied(shown, Choice("all"), 3.0, {10, 30})
    assert [everyone[time][0][0] for time in (0, 10, 30)] == [1, 0, 2]  # numbers tell shots apart


def test_a_shot_without_a_face_takes_none_of_its_neighbours():
    a = [square(200, 300)]
    for choice in (Choice(), Choice("all")):
        film = steady.steadied([a] * 5 + [[]] * 3 + [a] * 5, choice, 1.0, [5, 8])
        assert [len(frame) for frame in film] == [1] * 5 + [0] * 3 + [1] * 5


# --- following --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def film(root):
    """(8, 3, 360, 480) in [-1, 1]: a portrait that moves to the right and grows."""
    picture = to_unit(read_whole(root / "workflows" / "inputs" / "astronaut.png"))[None]
    moved = [F.affine_grid(torch.tensor([[[1.2 - 0.02 * t, 0, -0.02 * t], [0, 0.9 - 0.015 * t, 0]]]), [1, 3, 360, 480],
                           align_corners=False) for t in range(8)]
    return torch.cat([F.grid_sample(picture, grid, padding_mode="border", align_corners=False) for grid in moved])


def test_a_followed_face_is_where_the_search_finds_it_and_is_searched_once(film, monkeypatch):
    nets, searches = load_faces(), []
    settings = find.FaceSettings(settled=True)
    wanted = [find.find_faces(nets, picture, settings)[0].quad for picture in film[[0, 3, 7]]]
    search = steady.search_faces
    monkeypatch.setattr(steady, "search_faces", lambda *given: searches.append(1) or search(*given))
    follower = steady.Follower(nets, settings, lambda faces: faces[0] if faces else None)
    found = [squares_found(follower(picture))[0].quad for picture in film]
    assert len(searches) == 1
    for quad, other in zip([found[0], found[3], found[7]], wanted, strict=True):
        assert float((quad - other).norm(dim=1).amax()) < 0.02 * side_of(other)


def test_a_face_that_is_lost_is_searched_again(film):
    nets, blank = load_faces(), torch.zeros(3, 360, 480)
    follower = steady.Follower(nets, find.FaceSettings(settled=True), lambda faces: faces[0] if faces else None)
    found = [len(follower(picture).faces) for picture in (film[0], blank, film[7].flip(2), film[7])]
    assert found == [1, 0, 1, 1]


def test_a_face_that_jumps_is_not_followed(film):
    nets = load_faces()
    face = find.find_faces(nets, film[0], find.FaceSettings(settled=True))[0]
    assert steady.read_near(nets, film[0], face) is not None
    assert steady.read_near(nets, film[0], replace(face, points=face.points + torch.tensor([400.0, 0.0]))) is None


@pytest.fixture(scope="module")
def joined(film):
    """(7, 3, 360, 640): a small face; from the third frame on there is a large one, too."""
    small = F.interpolate(film[:1], (180, 240), mode="bilinear", antialias=True)[0]
    frames = torch.zeros(7, 3, 360, 640)
    frames[:, :, 90:270, 440:600] = small[:, :, 40:200]
    frames[2:, :, :, :400] = film[7, :, :, 40:440]
    return frames


def test_a_larger_face_that_comes_later_is_followed_from_the_next_search_on(joined, monkeypatch):
    nets, settings, searches, search = load_faces(), find.FaceSettings(settled=True), [], steady.search_faces
    large, small = find.find_faces(nets, joined[6], settings)
    monkeypatch.setattr(steady, "search_faces", lambda *given: searches.append(1) or search(*given))
    monkeypatch.setattr(steady, "SEARCH_EVERY", 3)
    follower = steady.Follower(nets, settings, lambda faces: faces[0] if faces else None)
    seen = [squares_found(follower(picture)) for picture in joined]
    assert [len(squares) for squares in seen] == [1, 1, 1, 2, 2, 2, 2] and len(searches) == 3
    found = places(steady.steadied(seen, Choice(), 0))
    assert (found[:3] - small.quad.mean(0)).norm(dim=1).max() < 0.05 * side_of(small.quad)
    assert (found[3:] - large.quad.mean(0)).norm(dim=1).max() < 0.05 * side_of(large.quad)


def test_at_a_cut_faces_are_searched(joined):
    nets, settings = load_faces(), find.FaceSettings(settled=True)
    follower = steady.Follower(nets, settings, lambda faces: faces[0] if faces else None, cuts={2})
    seen = [(len(follower(picture).faces), follower.searched) for picture in joined[:4]]
    assert seen == [(1, 0), (1, 0), (1, 2), (1, 2)]
