"""The measure of flicker: known motion is found, and what is left of the difference is what was added."""
import math

import pytest
import torch
import torch.nn.functional as F

from oneshot_atelier.evaluate import flicker
from oneshot_atelier.models.faces.align import centres
from oneshot_atelier.train.data import read_whole, to_unit

SIDE = 128


def camera(zoom=1.0, degrees=0.0, x=0.0, y=0.0):
    """(2, 3): shares of the photo, -1..1, of those of the frame."""
    turn = math.radians(degrees)
    return torch.tensor([[zoom * math.cos(turn), -zoom * math.sin(turn), x],
                         [zoom * math.sin(turn), zoom * math.cos(turn), y]])


@pytest.fixture(scope="module")
def photo(root):
    return to_unit(read_whole(root / "workflows" / "inputs" / "astronaut.png"))


def shot(photo, view):
    grid = F.affine_grid(view[None], [1, 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(photo[None], grid, mode="bicubic", padding_mode="reflection", align_corners=False)[0]


def known_flow(one, other):
    """Where the pixels of a shot are in the other one."""
    p = centres(0, 0, SIDE, SIDE) / SIDE * 2 - 1
    inverse = torch.linalg.inv(other[:, :2])
    q = (p @ one[:, :2].T + one[:, 2] - other[:, 2]) @ inverse.T
    return (q - p) * SIDE / 2


MOTIONS = {"still": camera(0.6), "pan": camera(0.6, x=0.04, y=-0.02), "zoom": camera(0.63), "turn": camera(0.6, 3.0),
           "all": camera(0.57, -2.0, 0.03, 0.03)}


@pytest.mark.parametrize("name", MOTIONS)
def test_known_motion_is_found(photo, name):
    views = camera(0.6), MOTIONS[name]
    one, other = (shot(photo, view) for view in views)
    there, back = flicker.optical_flow(one, other), flicker.optical_flow(other, one)
    seen = flicker.seen_in_both(there, back)
    wrong = (there - known_flow(*views)).norm(dim=-1)[seen]
    assert seen.float().mean() > 0.75 and wrong.median() < 0.15 and wrong.mean() < 0.4
    assert flicker.warp_error(one, other, there, seen) < 0.7 * max(0.5, float((one - other).abs().mean()) * 127.5)


def test_pixels_that_leave_the_frame_are_not_counted(photo):
    flow = torch.zeros(SIDE, SIDE, 2)
    flow[..., 0] = 10.0
    assert torch.equal(flicker.seen_in_both(flow, -flow).any(0), torch.arange(SIDE) < SIDE - 10)
    assert not flicker.seen_in_both(flow, flow).any()  # and back again is elsewhere


def test_the_error_is_what_was_added_to_a_film_that_stands_still(photo):
    frames = torch.stack([shot(photo, camera(0.6)).mul(0.5)] * 4)
    results = frames.clone()
    results[1::2] += 10 / 127.5
    made, own = flicker.flicker(results, frames)
    assert made == pytest.approx(10, rel=1e-3) and own == pytest.approx(0, abs=1e-3)


def test_a_result_that_moves_along_flickers_no_more_and_one_that_does_not_does(photo):
    views = [camera(0.6, x=0.03 * k) for k in range(3)]
    frames = torch.stack([shot(photo, view) for view in views])
    along, own = flicker.flicker(-frames, frames)
    stays, _ = flicker.flicker(torch.stack([frames[0]] * 3), frames)
    noise = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.05
    noisy, _ = flicker.flicker(frames + noise, frames)
    assert along == pytest.approx(own, rel=1e-4) and stays > 2 * own and noisy > 2 * own


def test_films_must_fit(photo):
    with pytest.raises(ValueError, match="two or more frames"):
        flicker.flicker(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="of one size"):
        flicker.flicker(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 9))
