"""Thin-plate splines and bent pictures: the closed forms, no change at strength 0, nothing folds."""
from __future__ import annotations

import math

import pytest
import torch

from oneshot_atelier.models import warp


def points(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the spline -------------------------------------------------------------------------------------------------------
def test_a_spline_goes_through_its_points_and_obeys_the_side_conditions():
    centres, values = points(30), points(30, 1)
    spline = warp.fit(centres, values)
    assert torch.allclose(spline(centres), values, atol=1e-9)
    assert torch.allclose(warp.with_one(centres).T @ spline.weights, torch.zeros(3, 2, dtype=torch.float64), atol=1e-8)
    assert not torch.allclose(warp.fit(centres, values, 0.1)(centres), values, atol=1e-2)


@pytest.mark.parametrize("stiffness", [0.0, 1e-3, 10.0])
def test_affine_maps_are_reproduced_exactly(stiffness):
    centres, places = points(20), points(50, 2) * 3 - 1
    matrix, move = torch.tensor([[1.2, -0.3], [0.5, 0.7]]).double(), torch.tensor([4.0, -2.0]).double()
    spline = warp.fit(centres, centres @ matrix + move, stiffness)
    assert torch.allclose(spline(places), places @ matrix + move, atol=1e-8)


def test_what_is_very_stiff_is_the_affine_least_squares_fit():
    centres, values = points(25), points(25, 1)
    line = torch.linalg.lstsq(warp.with_one(centres), values).solution
    assert torch.allclose(warp.fit(centres, values, 1e9)(centres), warp.with_one(centres) @ line, atol=1e-6)


def test_the_kernel_is_r_squared_log_r():
    found = warp.kernel(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0]]))
    assert found[:, 0].tolist() == pytest.approx([0, 25 * math.log(5)])


@pytest.mark.parametrize("centres", [points(2), torch.tensor([[0.0, 0], [1, 1], [2, 2], [5, 5]])])
def test_too_few_points_and_a_line_are_refused(centres):
    with pytest.raises(ValueError, match="three points that are not in a line"):
        warp.fit(centres, centres)


def test_two_points_in_one_place_are_refused_unless_they_may_be_missed():
    centres = torch.cat([points(5), points(5)[:1]])
    with pytest.raises(ValueError, match="in one place"):
        warp.fit(centres, points(6, 1))
    assert torch.isfinite(warp.fit(centres, points(6, 1), 1e-2)(centres)).all()


# --- pictures ---------------------------------------------------------------------------------------------------------
SIZE = (60, 90)
INNER = torch.tensor([[30.0, 20], [60, 20], [45, 30], [30, 40], [60, 40]])


def ramps(size: tuple[int, int]) -> torch.Tensor:
    """(2, H, W): each pixel's own x and y."""
    rows, columns = size
    return (warp.pixel_centres(rows, columns) * torch.tensor([columns, rows])).permute(2, 0, 1).float()


def test_no_displacement_is_the_picture_itself():
    picture = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    made = warp.bend(INNER, INNER, SIZE, 0.0)
    assert torch.allclose(warp.bent(picture, made), picture, atol=1e-5) and made.stiffness == 0


@pytest.mark.parametrize("size", [SIZE, (300, 450)])
def test_what_is_at_a_point_comes_to_its_target_and_the_border_stays(size):
    scale = size[0] / SIZE[0]
    targets = (INNER + torch.tensor([[3.0, 1], [-2, 2], [0, 4], [1, -2], [2, 0]])) * scale
    made = warp.bend(INNER * scale, targets, size, 0.0)
    assert torch.allclose(made.taken_from(targets), INNER * scale, atol=1e-3)
    moved = warp.bent(ramps(size), made, "bilinear")
    columns, rows = targets.floor().long().T
    seen = moved[:, rows, columns].T - (ramps(size)[:, rows, columns].T - targets)  # the pixel's centre is beside it
    assert torch.allclose(seen, INNER * scale, atol=0.12 * scale)
    assert (moved - ramps(size))[:, [0, -1]].abs().max() < 0.6 * scale, "half a pixel inside the border"
    fixed = warp.border(*size)
    assert torch.allclose(made.taken_from(fixed), fixed, atol=1e-3)


def test_a_large_picture_is_bent_as_a_small_one():
    """The map is computed on a lattice; what is interpolated between is off by little."""
    targets = INNER + torch.tensor([[3.0, 1], [-2, 2], [0, 4], [1, -2], [2, 0]])
    made = warp.bend(INNER * 6, targets * 6, (360, 540), 0.0)
    places = warp.pixel_centres(360, 540) * torch.tensor([540, 360])
    exact, found = made.taken_from(places), (made.grid()[0] + 1) / 2 * torch.tensor([540, 360])
    error = (exact - found).norm(dim=2)
    assert error.mean() < 0.05 and error.max() < 0.5, "px of 540"



def test_a_map_that_would_fold_is_made_stiffer():
    crossed = INNER[[1, 0, 2, 4, 3]]
    centres, values = (torch.cat([part, warp.border(*SIZE)]) / 90 for part in (crossed, INNER))
    soft = warp.Bend(warp.fit(centres, values), SIZE, 0.0)
    made = warp.bend(INNER, crossed, SIZE, 0.0)
    assert warp.least_area(soft.lattice[1]) < 0 < warp.FOLDED <= warp.least_area(made.lattice[1])
    assert made.stiffness > 0


def test_the_least_area_is_that_of_the_map():
    places = warp.pixel_centres(8, 8)
    assert warp.least_area(places) == pytest.approx(1)
    assert warp.least_area(places * torch.tensor([0.5, 0.4])) == pytest.approx(0.2)
    assert warp.least_area(places * torch.tensor([-1.0, 1])) == pytest.approx(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pictures_keep_dtype_shape_and_range(dtype):
    picture = (torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0)) > 0.5).to(dtype)
    found = warp.bent(picture, warp.bend(INNER, INNER + 2, SIZE, 0.0))
    assert found.dtype == dtype and found.shape == picture.shape and 0 <= found.min() and found.max() <= 1
    with pytest.raises(ValueError, match="does not fit one of 90 x 61 px"):
        warp.bent(torch.zeros(3, 61, 90), warp.bend(INNER, INNER, SIZE, 0.0))


def test_points_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        warp.bend(INNER, INNER * float("nan"), SIZE, 0.0)
