"""The palette loss: closed forms, its gradient, references, what a fine-tune makes of it."""

from dataclasses import replace

import pytest
import torch

from oneshot_atelier.evaluate import metrics
from oneshot_atelier.tests import tiny
from oneshot_atelier.tests.test_fewshot import CONFIG, TEXT, by_picture, state, trainer, tuned
from oneshot_atelier.train import fewshot
from oneshot_atelier.train.data import to_bytes, to_unit
from oneshot_atelier.train.loop import Checkpointing
from oneshot_atelier.train.palette import PX, Palette, directions
from oneshot_atelier.train.presets import MMFS_PRESETS

CPU = torch.device("cpu")


def picture(seed=2, px=64):
    """uint8 (3, px, px)."""
    return to_bytes(tiny.pictures(1, seed, px)[0])


def plain(*colour, px=32):
    return torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, px, px)


def palette(*pictures):
    return Palette.of(pictures, CPU)


# --- closed forms ----------------------------------------------------------------------------------------------------
def test_directions_are_unit_vectors_spread_evenly():
    found = directions()
    assert torch.allclose(found.norm(dim=1), torch.ones(len(found)))
    assert torch.allclose(found.T @ found / len(found), torch.eye(3) / 3, atol=0.012)


def test_a_picture_is_in_its_own_palette_and_so_is_it_in_another_order():
    own, found = to_unit(picture())[None], palette(picture())
    blocks = own.unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3)[:, :, torch.randperm(PX * PX)]  # 2 px: what is averaged
    shuffled = blocks.reshape(1, 3, PX, PX, 2, 2).permute(0, 1, 2, 4, 3, 5).reshape(own.shape)
    assert float(found.loss(own)) == 0 and not torch.equal(own, shuffled)
    assert float(found.loss(shuffled)) < 1e-10
    assert float(found.loss(to_unit(picture(9))[None])) > 0.01


def test_other_colours_everywhere_are_as_far_as_their_shift():
    shift = torch.tensor([0.1, -0.25, 0.2])
    moved = to_unit(picture())[None] + shift[None, :, None, None]
    loss = float(palette(picture()).loss(moved))
    assert loss == pytest.approx(float((directions() @ shift).square().mean()), rel=1e-4)
    assert loss == pytest.approx(float(shift.square().sum()) / 3, rel=0.02)


def test_a_batch_is_the_mean_of_its_pictures():
    found, batch = palette(picture()), tiny.pictures(3, 5, 64)
    assert float(found.loss(batch)) == pytest.approx(sum(float(found.loss(x[None])) for x in batch) / 3, rel=1e-5)


def test_several_references_weigh_the_same_whatever_their_sizes():
    mixed = palette(plain(0, 0, 0, px=32), plain(255, 255, 255, px=100))
    values = (mixed.quantiles[0] / directions().sum(1, keepdim=True).abs()).abs()
    assert torch.allclose(values, torch.ones_like(values), atol=1e-4)  # all are black or white
    black = (mixed.quantiles[0, 0] * directions()[0].sum() < 0).float().mean()
    assert float(black) == pytest.approx(0.5, abs=1 / PX ** 2)
    halves = torch.full((1, 3, 64, 64), -1.0)
    halves[:, :, :, 32:] = 1
    assert float(mixed.loss(halves)) < 1e-3 < float(mixed.loss(-torch.ones_like(halves)))


@pytest.mark.parametrize("shape", [(16, 16), (40, 72), (64, 64), (24, 160)])
def test_pictures_of_every_shape_are_compared(shape):
    found = palette(plain(255, 0, 0, px=50), plain(255, 0, 0, px=7))
    red = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand(1, 3, *shape)
    assert float(found.loss(red)) < 1e-10
    assert float(found.loss(-red)) == pytest.approx(4.0, rel=0.02)  # |2, 2, 2|^2 / 3


# --- the gradient ----------------------------------------------------------------------------------------------------
def test_the_gradient_is_the_derivative():
    found = palette(picture())
    exact = Palette(found.directions.double(), found.quantiles.double())
    x = tiny.pictures(1, 7, 4).double().requires_grad_(True)
    assert torch.autograd.gradcheck(exact.loss, x)


def test_pixels_that_follow_the_gradient_take_the_palette():
    found, x = palette(picture()), tiny.pictures(1, 9, 64)
    before = float(found.loss(x))
    for _ in range(60):
        x = x.detach().requires_grad_(True)
        gradient, = torch.autograd.grad(found.loss(x), x)
        x = x - 2 * PX * PX * gradient
    assert float(found.loss(x.detach())) < 0.01 * before


def test_no_number_is_read_back_and_no_shape_depends_on_one():
    """As a CUDA graph needs: on the meta device there are no numbers."""
    found = palette(picture())
    abstract = Palette(found.directions.to("meta"), found.quantiles.to("meta"))
    for shape in ((2, 3, 64, 64), (2, 3, 64, 96)):
        x = torch.empty(shape, device="meta", requires_grad=True)
        gradient, = torch.autograd.grad(abstract.loss(x), x)
        assert gradient.shape == shape


# --- the fine-tune ---------------------------------------------------------------------------------------------------
def test_without_a_weight_nothing_of_it_is_computed(monkeypatch):
    def never(*_):
        raise AssertionError("the palette loss was computed")
    monkeypatch.setattr(Palette, "loss", never)
    for config, target in ((CONFIG, by_picture()), (replace(CONFIG, palette_weight=3.0), TEXT)):
        t = trainer(target, config)
        values, _ = fewshot.update(t, fewshot.start(t.nets.mmfs, config), 0)
        assert "palette" not in values
    assert fewshot.FewShotConfig().palette_weight == 0
    assert [name for name, fields in MMFS_PRESETS.items() if fields.get("palette_weight")] == ["demo"]


def test_the_results_come_nearer_to_the_reference_s_colours():
    reference, found = by_picture(3), []
    for weight in (0.0, 20.0):
        config = replace(CONFIG, iterations=12, palette_weight=weight, mapper_dropout=False)
        shown = []
        tuned(reference, config, on_step=shown.append)
        style_image = to_unit(reference.pictures[0])[None]
        found.append(float(metrics.colour_distance(shown[-1].predictions, style_image, px=16).mean()))
    assert found[1] < 0.7 * found[0]


def test_a_resumed_run_with_a_palette_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    config = replace(CONFIG, palette_weight=5.0)
    whole, path = tuned(config=config)[1], tmp_path / "a.snapshot"
    tuned(config=replace(config, iterations=2), checkpointing=Checkpointing(path, 2))
    assert tiny.same(state(tuned(config=config, checkpointing=Checkpointing(path, 2))[1]), state(whole))


def test_a_weight_below_0_is_refused():
    with pytest.raises(ValueError, match="palette_weight is -1"):
        replace(CONFIG, palette_weight=-1.0)
