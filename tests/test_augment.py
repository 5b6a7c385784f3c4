"""Differentiable augmentation: gradients pass, values stay bounded, the draws decide, and nothing is drawn at zero."""
import math

import pytest
import torch
import torch.nn.functional as F

from oneshot_atelier.tests import tiny
from oneshot_atelier.train.augment import (
    POLICIES,
    Adaptive,
    Augmentation,
    colour,
    cut_out,
    geometry,
    grid_of,
    policies,
    recolour,
    translate,
)
from oneshot_atelier.train.distributed import Distributed, Draws

PX = 16


def draws(batch=4, seed=0, rows=None):
    rows = torch.arange(batch) if rows is None else rows
    return Draws(torch.Generator().manual_seed(seed), batch, rows)


class Fixed(Draws):
    """Draws whose uniform numbers are all `value`."""

    def __init__(self, batch, value):
        super().__init__(torch.Generator(), batch, torch.arange(batch))
        object.__setattr__(self, "value", value)

    def uniform(self, *shape):
        return torch.full((self.batch, *shape), float(self.value))


def pictures(batch=4, dtype=torch.float32):
    return tiny.pictures(batch, px=PX).to(dtype)


def augment(x, names, taken):
    change = Augmentation(tuple(names))
    return change(x, change.numbers(taken))


# --- every policy ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", POLICIES)
def test_the_gradient_is_that_of_the_function(name):
    """Along random directions, by central differences; all policies are piecewise linear in the pictures."""
    x = pictures().requires_grad_(True)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    gradient, = torch.autograd.grad((weight * augment(x, (name,), draws())).sum(), x)
    assert gradient.flatten(1).norm(dim=1).min() > 1
    for seed in range(3):
        step = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(10 + seed))
        with torch.no_grad():
            above, below = (augment(x + sign * step, (name,), draws()) for sign in (1, -1))
        change = (weight.double() * (above.double() - below.double())).sum() / 2
        assert float((gradient * step).double().sum()) == pytest.approx(float(change), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", POLICIES)
def test_it_is_a_function_of_the_draws(name):
    x = pictures()
    once, again, other = (augment(x, (name,), draws(seed=s)) for s in (1, 1, 2))
    assert torch.equal(once, again) and not torch.allclose(once, other) and not torch.allclose(once, x)
    assert once.shape == x.shape and once.dtype == x.dtype
    assert not torch.allclose(once[0] - x[0], once[1] - x[1])  # each picture has its own change


@pytest.mark.parametrize("name", POLICIES)
def test_values_are_bounded_whatever_is_drawn(name):
    """The bound of colour: 1.5 after brightness, 3.5 after saturation, 7 after contrast."""
    corners = torch.tensor([-1.0, 1.0])[torch.randint(2, (64, 3, PX, PX), generator=torch.Generator().manual_seed(0))]
    for value in (-1, 1):
        assert augment(corners, (name,), Fixed(64, value)).abs().max() <= (7 if name == "colour" else 1) + 1e-5
    assert augment(corners, (name,), draws(64)).abs().max() <= (7 if name == "colour" else 1) + 1e-5


def test_policies_follow_each_other_and_none_leaves_pictures_alone():
    x, d = pictures(), draws()
    by_hand = colour(x, *(d.uniform(1, 1, 1) for _ in range(3)))
    by_hand = cut_out(translate(by_hand, d.uniform(2)), d.uniform(2))
    assert torch.equal(augment(x, POLICIES, draws()), by_hand)
    assert augment(x, (), draws()) is x


def test_processes_change_their_rows_as_one_process_would():
    x = pictures(8)
    whole = augment(x, POLICIES, draws(8))
    for rank in range(2):
        rows = Distributed(rank, 2).rows(8, 4)
        assert torch.allclose(augment(x[rows], POLICIES, draws(8, rows=rows)), whole[rows], atol=1e-6)


def test_names():
    assert policies(" colour, cutout ") == ("colour", "cutout") and policies("") == ()
    with pytest.raises(ValueError, match="no augmentation 'blur'; take some of colour, translation, cutout"):
        policies("colour,blur")


# --- each by itself ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["colour", "translation"])
def test_nothing_changes_at_zero(name):
    x = pictures()
    assert torch.allclose(augment(x, [name], Fixed(4, 0)), x, atol=1e-6)


def test_colour_moves_brightness_saturation_and_contrast():
    x = pictures()
    changed = augment(x, ["colour"], draws())
    d = draws()
    b, s, c = (d.uniform(1, 1, 1) for _ in range(3))
    grey = (x + 0.5 * b).mean(1, keepdim=True)
    assert torch.allclose(changed.mean((1, 2, 3)), (x + 0.5 * b).mean((1, 2, 3)), atol=1e-5)
    contrast = 1 + 0.5 * c
    assert torch.allclose(changed - changed.mean(1, keepdim=True), (x + 0.5 * b - grey) * (1 + s) * contrast, atol=1e-5)
    grey_now = changed.mean(1, keepdim=True)
    spread = grey - grey.mean((2, 3), keepdim=True)
    assert torch.allclose(grey_now - grey_now.mean((2, 3), keepdim=True), spread * contrast, atol=1e-5)


def test_translation_moves_whole_pixels_by_an_eighth_at_most_and_zeros_move_in():
    x = torch.rand(32, 3, PX, 2 * PX, generator=torch.Generator().manual_seed(3)) + 1
    moved, d = augment(x, ["translation"], draws(32)), draws(32)
    shift = (d.uniform(2) * torch.tensor([2 * PX / 8, PX / 8])).round().long()  # x, y
    assert shift[:, 0].abs().max() == 4 and shift[:, 1].abs().max() == 2
    for picture, result, (dx, dy) in zip(x, moved, shift.tolist()):
        wanted = torch.zeros_like(picture)
        rows, columns = slice(max(0, -dy), PX - max(0, dy)), slice(max(0, -dx), 2 * PX - max(0, dx))
        source = picture[:, max(0, dy):PX + min(0, dy), max(0, dx):2 * PX + min(0, dx)]
        wanted[:, rows, columns] = source
        assert torch.allclose(result, wanted, atol=1e-4)


def test_cut_out_clears_a_square_of_half_the_side():
    x = torch.ones(64, 3, PX, PX)
    cleared = augment(x, ["cutout"], draws(64))[:, 0] == 0
    heights, widths = cleared.any(2).sum(1), cleared.any(1).sum(1)
    assert torch.equal(cleared.sum((1, 2)), heights * widths)  # a rectangle
    assert heights.max() == widths.max() == PX // 2 and heights.min() >= PX // 4 - 1
    middle = cut_out(x[:1], torch.zeros(1, 2))[0, 0] == 0
    assert int(middle.sum()) in ((PX // 2) ** 2, (PX // 2 - 1) ** 2) and bool(middle[PX // 2, PX // 2])
    assert len({tuple(c.flatten().tolist()) for c in cleared}) > 30


# --- the adaptive pipeline ---------------------------------------------------------------------------------------
def adaptive(p=0.0, target=0.6, rate=0.1):
    made = Adaptive(target, rate)
    made.p.fill_(p)
    return made


def changed(x, p, seed=0):
    change = Augmentation((), adaptive(p))
    return change(x, change.numbers(draws(len(x), seed)))


def geometric(x, change, value):
    """One change alone, by its place among the seven, with all numbers that it takes at `value`."""
    on = torch.zeros(len(x), 7)
    on[:, change] = 1
    uniform, normal = torch.full((len(x), 5), float(value)), torch.full((len(x), 4), float(value))
    return F.grid_sample(x, grid_of(geometry(on, uniform, normal, x), x), padding_mode="reflection",
                         align_corners=False)


def recoloured(x, change, value):
    on = torch.zeros(len(x), 4)
    on[:, change] = 1
    return recolour(x, on, torch.full((len(x),), float(value)), torch.full((len(x), 3), float(value)))


def test_with_probability_zero_pictures_stay_as_they_are():
    x = pictures(8)
    for seed in range(3):
        assert torch.allclose(changed(x, 0.0, seed), x, atol=1e-5)
    assert not torch.allclose(changed(x, 0.5), x, atol=0.1)


def test_the_probability_follows_the_sign_of_the_discriminator():
    a, one = adaptive(rate=0.3), torch.ones(())
    for k in range(3):
        a.follow(k, one)
    assert a.p == 0  # it changes every fourth step
    a.follow(3, one)
    assert float(a.p) == pytest.approx(0.3) and a.seen == 0
    for k in range(4, 8):
        a.follow(k, 0.5 * one)  # below the target
    assert float(a.p) == 0
    for k in range(8, 12):
        a.follow(k, -one)
    assert float(a.p) == 0
    for k in range(12, 40):
        a.follow(k, 0.7 * one)
    assert float(a.p) == pytest.approx(0.8)  # and no further
    mixed = adaptive(0.5)
    for k, sign in enumerate((1.0, 1.0, 1.0, -0.7)):  # 0.575 on average
        mixed.follow(k, torch.tensor(sign))
    assert float(mixed.p) == pytest.approx(0.4)


def test_each_change_of_the_geometry_is_the_one_it_is_called():
    x = pictures(2)
    assert torch.allclose(geometric(x, 0, -1), x.flip(3), atol=1e-5) and torch.allclose(geometric(x, 0, 1), x)
    moved = geometric(x, 1, 1)  # an eighth of 16 px, both ways
    assert torch.allclose(moved[:, :, :-2, :-2], x[:, :, 2:, 2:], atol=1e-5)
    for k in (3, 5):
        assert torch.allclose(geometric(x, k, 0.5), torch.rot90(x, 1, (2, 3)), atol=1e-4)  # half of 180 degrees
        assert torch.allclose(geometric(x, k, 1), torch.rot90(x, 2, (2, 3)), atol=1e-4)
    shifted = geometric(x, 6, 1)
    assert torch.allclose(shifted[:, :, :-2, :-2], x[:, :, 2:, 2:], atol=1e-5)
    place = grid_of(torch.eye(3)[None, :2], x[:1])
    for k, powers in ((2, (1, 1)), (4, (1, -1))):
        on = torch.zeros(1, 7)
        on[:, k] = 1
        found = grid_of(geometry(on, torch.zeros(1, 5), torch.ones(1, 4), x), x[:1])
        factors = torch.tensor([2.0 ** (0.2 * power) for power in powers])
        assert torch.allclose(found, place * factors, atol=1e-6)


def test_pictures_that_are_no_squares_are_turned_without_being_stretched():
    x = torch.rand(1, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    turned = geometric(x, 3, 0.5)
    assert torch.allclose(turned[..., 4:12], torch.rot90(x[..., 4:12], 1, (2, 3)), atol=1e-4)


def test_each_change_of_the_colour_is_the_one_it_is_called():
    x = pictures(2)
    grey = x.mean(1, keepdim=True)
    assert torch.allclose(recoloured(x, 0, 1), x + 0.2, atol=1e-6)
    assert torch.allclose(recoloured(x, 1, 2), 2 * x, atol=1e-6)
    assert torch.allclose(recoloured(x, 2, 2 / 3), x.roll(1, 1), atol=1e-5)  # 120 degrees: red becomes green
    assert torch.allclose(recoloured(x, 3, 1), grey + 2 * (x - grey), atol=1e-5)


@pytest.mark.parametrize("p", [0.2, 0.8])
def test_every_change_comes_with_its_probability(p):
    """Of grey pictures colours change by brightness and contrast alone: 0.2 N(0, 1) and a factor."""
    count = 4000
    x = torch.full((count, 3, 2, 2), 0.5)
    y = changed(x, p)[:, :, 0, 0]
    assert torch.allclose(y, y[:, :1].expand(-1, 3), atol=1e-4)  # grey stays grey
    stayed = ((y[:, 0] - 0.5).abs() < 1e-5).float().mean()
    assert float(stayed) == pytest.approx((1 - p) ** 2, abs=0.035)  # neither of the two
    spread = math.exp((0.5 * math.log(2)) ** 2 / 2), math.exp(2 * (0.5 * math.log(2)) ** 2)  # E c, E c^2
    mean = 0.5 * (1 - p + p * spread[0])
    square = (0.25 + 0.04 * p) * (1 - p + p * spread[1])
    error = (square - mean ** 2) ** 0.5 / count ** 0.5
    assert float(y[:, 0].mean()) == pytest.approx(mean, abs=5 * error)
    assert float(y[:, 0].square().mean()) == pytest.approx(square, rel=0.1)


def test_one_of_two_rotations_comes_with_the_probability():
    twice = 1 - (1 - 0.6) ** 0.5
    assert 1 - (1 - twice) ** 2 == pytest.approx(0.6)
    x, numbers = torch.zeros(6000, 3, 4, 4), Augmentation((), adaptive(0.6)).numbers(draws(6000))
    x[:, 0, 0] = 1  # a red line on top, which a rotation moves out of the first row's middle
    alone = numbers[0].clone()
    alone[:, [0, 1, 2, 4, 6, 7, 8, 9, 10]] = 1.0  # chance 1: never made
    y = adaptive(0.6)(x, alone, *numbers[1:])
    turned = ((y - x).abs().amax((1, 2, 3)) > 0.02).float().mean()
    assert float(turned) == pytest.approx(0.6, abs=0.04)


def test_the_gradient_passes_the_adaptive_pipeline():
    x = pictures().requires_grad_(True)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    gradient, = torch.autograd.grad((weight * changed(x, 0.8)).sum(), x)
    step = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(10))
    with torch.no_grad():
        change = (weight.double() * (changed(x + step, 0.8).double() - changed(x - step, 0.8).double())).sum() / 2
    assert float((gradient * step).double().sum()) == pytest.approx(float(change), rel=1e-3)


def test_processes_make_the_adaptive_changes_of_their_rows():
    x, change = pictures(8), Augmentation(("cutout",), adaptive(0.8))
    whole = change(x, change.numbers(draws(8)))
    assert change.count == len(change.numbers(draws(8))) == 4
    rows = Distributed(1, 2).rows(8, 4)
    assert torch.allclose(change(x[rows], change.numbers(draws(8, rows=rows))), whole[rows], atol=1e-6)
