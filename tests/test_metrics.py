"""Measures of pictures against closed forms."""

import math

import pytest
import torch

from oneshot_atelier.evaluate import metrics as M
from oneshot_atelier.models import rng
from oneshot_atelier.tests import tiny
from oneshot_atelier.train.losses import self_similarity

x = tiny.pictures(3, px=64)
y = tiny.pictures(3, seed=1, px=64)


def structure_distance(a, b):
    """Of feature maps (B, C, h, w), every position a key."""
    return M.structure_distance(*(features.flatten(2).transpose(1, 2) for features in (a, b)))


def test_identical_pictures_are_perfect():
    assert M.psnr(x, x).min() > 100
    assert torch.allclose(M.ssim(x, x), torch.ones(3), atol=1e-5)
    assert torch.allclose(M.edge_agreement(x, x), torch.ones(3), atol=1e-5)
    for distance in (structure_distance, M.colour_distance, M.texture_distance):
        assert distance(x, x).abs().max() < 1e-6


def test_every_measure_gives_one_number_a_picture_and_tells_pictures_apart():
    for distance in (structure_distance, M.colour_distance, M.texture_distance):
        assert distance(x, y).shape == (3,) and distance(x, y).min() > 1e-3
    for similarity in (M.ssim, M.edge_agreement):
        assert similarity(x, y).shape == (3,) and similarity(x, y).max() < 0.6
    assert M.psnr(x, y).shape == (3,) and M.psnr(x, y).max() < 20


@pytest.mark.parametrize("error", [0.02, 0.1, 0.5])
def test_psnr_of_a_constant_error(error):
    a = torch.full((2, 3, 8, 8), -0.25)
    assert M.psnr(a, a + error).tolist() == pytest.approx([20 * math.log10(2 / error)] * 2, rel=1e-4)
    assert M.psnr(torch.ones(1, 3, 8, 8), torch.full((1, 3, 8, 8), 7.0)).item() > 100  # both are clamped to white


def test_ssim_of_flat_pictures_has_its_closed_form():
    a, b = torch.full((1, 3, 16, 16), -0.5), torch.full((1, 3, 16, 16), 0.5)  # 0.25 and 0.75 in [0, 1]
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25 ** 2 + 0.75 ** 2 + 1e-4)
    assert M.ssim(a, b).item() == pytest.approx(expected, rel=1e-3)


def test_ssim_falls_with_noise():
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    values = [float(M.ssim(x, x + s * noise).mean()) for s in (0.0, 0.05, 0.2, 0.8)]
    assert values == sorted(values, reverse=True) and values[0] - values[3] > 0.5


def test_edges_see_structure_and_not_colour_or_contrast():
    assert M.edge_agreement(x, 0.4 * x + 0.3).min() > 0.999 and M.edge_agreement(x, -x).min() > 0.999
    assert M.edge_agreement(x, x.flip(3)).max() < 0.9
    assert M.edges(torch.zeros(1, 3, 64, 64)).abs().max() < 1e-6


def test_self_similarity_is_a_table_of_cosines():
    features = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]]).reshape(1, 2, 1, 3)
    half = math.sqrt(0.5)
    expected = torch.tensor([[1, 0, half], [0, 1, half], [half, half, 1]])
    assert torch.allclose(self_similarity(features.flatten(2).transpose(1, 2))[0], expected, atol=1e-6)
    turned = features.flip(1)  # a rotation of the feature space changes no cosine
    assert structure_distance(features, turned).item() < 1e-12
    other = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]).reshape(1, 2, 1, 3)
    expected = (2 * half ** 2 + 2 * (1 - half) ** 2) / 9
    assert structure_distance(features, other).item() == pytest.approx(expected, rel=1e-5)


def test_colour_distance_ignores_places_and_grows_with_a_shift():
    shuffled = x.flatten(2)[:, :, torch.randperm(64 * 64, generator=torch.Generator().manual_seed(0))].reshape(x.shape)
    assert M.colour_distance(x, shuffled).max() < 1e-6
    base = x.clamp(-0.5, 0.5)
    shifts = [float(M.colour_distance(base, base + s).mean()) for s in (0.1, 0.2, 0.4)]
    assert shifts[1] == pytest.approx(2 * shifts[0], rel=1e-3) and shifts[2] == pytest.approx(4 * shifts[0], rel=1e-3)


def test_the_distance_of_two_points_is_that_of_their_projections():
    a, b = torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)
    b[:, 0] = 1.0
    d = rng.randn((3,), 0, "slices", range(64))
    assert M.sliced_distance(a, b).item() == pytest.approx(float((d[:, 0] / d.norm(dim=1)).abs().mean()), rel=1e-5)


def test_texture_distance_sees_patterns_and_not_brightness():
    board = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).float().expand(1, 3, 64, 64) - 0.5
    stripes = (torch.arange(64).remainder(4) < 2).float().expand(1, 3, 64, 64) - 0.5
    assert M.texture_distance(board, board + 0.3).item() < 1e-5
    assert M.texture_distance(board, stripes).item() > 0.05
    assert M.texture_distance(x * 0, board).min() > 0.1


def test_one_reference_serves_a_batch():
    assert torch.allclose(M.colour_distance(x, y[:1]), M.colour_distance(x, y[:1].expand(3, -1, -1, -1)))
    assert torch.allclose(M.texture_distance(x, y[:1]), M.texture_distance(x, y[:1].expand(3, -1, -1, -1)))


def test_direction_similarity_is_the_cosine_of_two_changes():
    a, b = torch.randn(2, 8), torch.randn(2, 8)
    assert M.direction_similarity(a, a + 2 * (b - a), a[:1] * 0, (b - a)).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert M.direction_similarity(a, a - (b - a), a, b).tolist() == pytest.approx([-1, -1], abs=1e-5)


@pytest.mark.parametrize("counts", [(1, 3), (3, 1)])
def test_one_picture_is_no_set(counts):
    with pytest.raises(ValueError, match="at least two"):
        M.frechet_distance(*(torch.randn(n, 4) for n in counts))


def test_a_picture_is_recognised_by_the_nearest_photo_whatever_all_have_in_common():
    photos = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert M.retrieval_accuracy(photos + 100, photos).tolist() == [1] * 5  # the same change in every picture
    assert M.retrieval_accuracy(photos[[1, 0, 2, 3, 4]], photos).tolist() == [0, 0, 1, 1, 1]
    assert M.retrieval_accuracy(-photos, photos).sum() == 0


def test_the_projected_share_a_space_is_the_squared_cosine_to_it():
    onto_first = torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    angle = torch.tensor([0.0, math.pi / 6, math.pi / 2])
    tokens = 7 * torch.stack([angle.cos(), angle.sin(), angle * 0], 1)
    assert M.projected_share(tokens[None], onto_first).item() == pytest.approx((1 + 0.75 + 0) / 3)
    assert M.projected_share(tokens[:, None], onto_first).tolist() == pytest.approx([1, 0.75, 0], abs=1e-6)
    assert M.projected_share(tokens[None], torch.eye(3)).item() == pytest.approx(1)


def test_the_nearest_token_counts():
    reference = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 1.0]], [[-1.0, 0.0], [0.0, 5.0]]])
    assert M.nearest_similarity(tokens, reference).tolist() == pytest.approx([(1 + math.sqrt(0.5)) / 2, (0 + 1) / 2])
