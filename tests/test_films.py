"""Stylized films are steadied along their input's flow: less flicker, no blur, no ghosts, no borders of chunks."""
import itertools

import pytest
import torch
import torch.nn.functional as F

from oneshot_atelier.evaluate.flicker import flicker
from oneshot_atelier.models import films
from oneshot_atelier.models.films import reach_of, steadied_film
from oneshot_atelier.train.data import read_whole, to_unit

SIDE = 96
STEP = 1 / 255 * 2  # of a grey level


@pytest.fixture(scope="module")
def photo(root):
    return to_unit(read_whole(root / "workflows" / "inputs" / "astronaut.png"))


def moving(photo, count, x=0.02, start=0.0):
    """Frames (count, 3, SIDE, SIDE) of a camera that pans over a photo."""
    views = torch.tensor([[[0.5, 0, start + x * k], [0, 0.5, 0.0]] for k in range(count)])
    grid = F.affine_grid(views, [count, 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(photo.expand(count, -1, -1, -1), grid, mode="bicubic", padding_mode="reflection",
                         align_corners=False).clamp(-1, 1)


def stylized(frames, seed=0):
    """As a network does: what moves along, and grain that stands still."""
    grain = torch.randn(frames.shape[1:], generator=torch.Generator().manual_seed(seed)) * 0.1
    return (0.8 * frames.flip(1) + grain).clamp(-1, 1)


def steadied(frames, results, sigma):
    return torch.stack([made[0] for made in steadied_film(({0: part} for part in zip(frames, results)), sigma)])


def edges(pictures):
    return float((pictures[..., 1:] - pictures[..., :-1]).abs().mean())


def test_0_is_the_result_itself(photo):
    frames = moving(photo, 3)
    results = stylized(frames)
    assert torch.equal(steadied(frames, results, 0), results)


def test_a_film_that_stands_still_stays_what_it_is(photo):
    frames = moving(photo, 1).expand(6, -1, -1, -1)
    results = stylized(frames[:1]).expand(6, -1, -1, -1)
    assert (steadied(frames, results, 1.5) - results).abs().max() < STEP / 2


def test_a_moving_film_flickers_less_and_stays_as_sharp(photo):
    frames = moving(photo, 8)
    results = stylized(frames)
    before, own = flicker(results, frames)
    errors = [flicker(steadied(frames, results, sigma), frames)[0] for sigma in (0.5, 1.0, 2.0)]
    assert before > 3 * own and before > errors[0] > errors[1] > errors[2] and errors[2] < 0.5 * before
    assert edges(steadied(frames, results, 2.0)) > edges(0.8 * frames)  # without the grain


def test_what_moves_along_is_not_blurred(photo):
    """Nothing flickers here, so nothing may be lost."""
    frames = moving(photo, 7, x=0.013)
    found = steadied(frames, -frames, 2.0)
    inner = slice(12, -12)
    assert edges(found[:, :, inner, inner]) > 0.97 * edges(frames[:, :, inner, inner])
    assert (found + frames)[:, :, inner, inner].abs().mean() < 2 * STEP


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_a_cut_leaves_no_ghost(photo, sigma):
    """Both scenes are what they are without the other, to the bit."""
    scenes = moving(photo, 5), moving(photo.flip(2), 5, start=-0.9)
    results = [stylized(scene, seed) for seed, scene in enumerate(scenes)]
    found = steadied(torch.cat(scenes), torch.cat(results), sigma)
    alone = [steadied(scene, result, sigma) for scene, result in zip(scenes, results)]
    assert torch.equal(found, torch.cat(alone))


def test_cuts_are_found_and_motion_and_flashes_are_none(photo):
    scenes = [moving(photo, 3), moving(photo.flip(0, 1), 3), moving(photo, 3, x=-0.1)]
    scenes[2][1] = 1.0
    continuity = films.Continuity()
    steps_back = [continuity(frame) for frame in torch.cat(scenes)]
    assert steps_back == [0, 1, 1, 0, 1, 1, 0, 0, 2]
    assert films.shot_starts(steps_back) == [0, 3, 6]
    assert films.Continuity([scenes[0][0]])(F.interpolate(scenes[0][1:2], (90, 60))[0]) == 0  # of another size


def test_what_is_uncovered_has_no_ghost_of_what_covered_it(photo):
    """A bright square moves over a dark picture: where it was, its result is not to be seen."""
    ground = moving(photo, 1)[0] * 0.2 - 0.6
    frames = ground.repeat(7, 1, 1, 1)
    for k in range(7):
        frames[k, :, 30:60, 10 + 6 * k:34 + 6 * k] = 0.9
    found = steadied(frames, -frames, 1.5)
    assert (found + frames).abs().mean() < 4 * STEP
    for k in range(1, 7):  # just behind it
        behind = found[k, :, 34:56, 10 + 6 * (k - 1):10 + 6 * k - 2]
        assert (behind + frames[k, :, 34:56, 10 + 6 * (k - 1):10 + 6 * k - 2]).abs().max() < 0.15


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5])
def test_chunks_make_no_difference(photo, sigma):
    """With `reach` frames before and after, a part of a film has the same results, to the bit."""
    frames = moving(photo, 12)
    results, reach = stylized(frames), reach_of(sigma)
    whole = steadied(frames, results, sigma)
    for first, last in ((0, 5), (5, 8), (8, 12)):
        rows = slice(max(0, first - reach), min(12, last + reach))
        part = steadied(frames[rows], results[rows], sigma)[first - rows.start:][:last - first]
        assert torch.equal(part, whole[first:last])


def test_a_window_of_frames_is_in_memory_and_frames_come_in_order():
    taken = []

    def film():
        for k in range(30):
            taken.append(k)
            yield {0: (torch.full((3, 32, 32), k / 60), torch.full((3, 32, 32), k / 60))}
    made = steadied_film(film(), 1.5)
    for k, _ in enumerate(itertools.islice(made, 20)):
        assert taken[-1] == k + reach_of(1.5)
    assert len(list(made)) == 10


def test_faces_come_and_go_under_their_numbers(photo):
    """A face that is gone for a frame is not followed through the gap; another one is not mixed with it."""
    frames = moving(photo, 6)
    one, other = stylized(frames, 1), stylized(frames.flip(3), 2)
    film = [{0: (frames[k], one[k])} | ({3: (frames[k].flip(2), other[k])} if k != 3 else {}) for k in range(6)]
    found = list(steadied_film(film, 1.0))
    assert [list(row) for row in found] == [[0, 3], [0, 3], [0, 3], [0], [0, 3], [0, 3]]
    alone = steadied(frames, one, 1.0)
    assert torch.equal(torch.stack([row[0] for row in found]), alone)
    before = steadied(frames[:3].flip(3), other[:3], 1.0)
    assert torch.equal(torch.stack([row[3] for row in found[:3]]), before)


def test_large_frames_are_compared_at_a_smaller_size(photo, monkeypatch):
    frames = moving(photo, 4)
    results = stylized(frames)
    before = flicker(results, frames)[0]
    monkeypatch.setattr(films, "MOST_SIDE", 48)
    found = steadied(frames, results, 1.0)
    assert found.shape == results.shape and flicker(found, frames)[0] < 0.7 * before
