"""Seeds: one meaning everywhere, independent of how pictures are batched."""
import itertools
from dataclasses import replace

import pytest
import torch

from oneshot_atelier.models import rng
from oneshot_atelier.models.osasis import twin_noise
from oneshot_atelier.models.stylegan2 import random_z, seeded_noise
from oneshot_atelier.tests import tiny
from oneshot_atelier.train.content import content_source, generate_pictures
from oneshot_atelier.train.osasis import OSASISConfig

SEEDS = (0, 1, 2, 3, 7, 2 ** 32, 2 ** 32 + 1, 2 ** 63, 2 ** 64 - 1)
CONFIG = OSASISConfig(batch=2, forward_steps=2, reverse_steps=2, latent_steps=2, generate_steps=2, seed=3)


def rows_of(tensor):
    return [row.numpy().tobytes() for row in tensor]


# --- seeds, streams, items -------------------------------------------------------------------------------------------
def test_seeds_streams_and_items_never_share_a_number():
    given = list(itertools.product(SEEDS, ("x_T", "z", "x", "_T"), range(60))) + [(1, "x_T", k, k) for k in range(60)]
    draws = torch.stack([torch.randn(4, generator=rng.generator(*one)) for one in given])
    assert len(given) > 2000 and draws.flatten().unique().numel() > 0.999 * draws.numel()
    assert len(set(rows_of(draws))) == len({rng.stream_seed(*one) for one in given}) == len(given)


def test_neighbours_are_unrelated():
    given = itertools.product(range(4), ("a", "b"), range(32))
    rows = torch.stack([torch.randn(256, generator=rng.generator(*one)) for one in given])
    assert (torch.corrcoef(rows) - torch.eye(256)).abs().max() < 0.35  # 5.6 standard deviations
    bits = torch.tensor([[rng.stream_seed(s, "a", k) >> b & 1 for b in range(64)] for s in range(8) for k in range(64)])
    assert (bits.float().mean(0) - 0.5).abs().max() < 0.15


def test_names_and_numbers_cannot_be_confused():
    assert rng.stream_seed(1, "a", 2, 3) != rng.stream_seed(1, "a", 23) != rng.stream_seed(12, "a", 3)


@pytest.mark.parametrize("seed", [0, 1, 2 ** 63, rng.MAX_SEED])
def test_every_seed_of_comfyui_is_accepted(seed):
    assert torch.isfinite(rng.randn((2,), seed, "x")).all()
    with rng.seeded(seed, "x"):
        assert torch.rand(1) >= 0


@pytest.mark.parametrize("seed", [-1, rng.MAX_SEED + 1, -2 ** 63])
def test_other_seeds_are_refused(seed):
    for call in (rng.stream_seed, rng.generator, lambda *a: rng.randn((1,), *a)):
        with pytest.raises(ValueError, match=f"seed is {seed}; take a whole number from 0 to 18446744073709551615"):
            call(seed, "x")
    with pytest.raises(ValueError, match="seed is"), rng.seeded(seed, "x"):
        pass


def test_seeded_blocks_fix_torch_s_own_generator_and_leave_it_as_it_was():
    before = torch.get_rng_state()
    found = []
    for stream, item in (("a", 0), ("a", 0), ("a", 1), ("b", 0)):
        with rng.seeded(5, stream, item):
            found.append(torch.rand(3))
    assert torch.equal(found[0], found[1]) and len(set(rows_of(torch.stack(found)))) == 3
    assert torch.equal(before, torch.get_rng_state())


# --- the first of N equals the only one of 1 -------------------------------------------------------------------------
def test_rows_of_noise_depend_on_their_item_alone():
    whole = rng.randn((3, 4, 4), 9, "x", range(5))
    assert torch.equal(whole[3:4], rng.randn((3, 4, 4), 9, "x", [3]))
    assert torch.equal(whole[[4, 0]], rng.randn((3, 4, 4), 9, "x", [4, 0])) and len(set(rows_of(whole))) == 5


def test_z_and_noise_of_stylegan2_depend_on_seed_and_item_alone():
    z = random_z(5, 8, 3)
    assert torch.equal(z[:1], random_z(1, 8, 3)) and torch.equal(z[:3], random_z(3, 8, 3))
    assert not torch.equal(z, random_z(5, 8, 4)) and len(set(rows_of(z))) == 5
    shapes = [(4, 4), (8, 8)]
    whole = seeded_noise(shapes, 3, range(4))
    assert [n.shape for n in whole] == [(4, 1, 4, 4), (4, 1, 8, 8)]
    for k in range(4):
        assert all(torch.equal(a[k:k + 1], b) for a, b in zip(whole, seeded_noise(shapes, 3, [k]), strict=True))


def test_noise_of_photo_twins_depends_on_seed_and_candidate_alone():
    whole, third = twin_noise(3, range(4), (3, 4, 4)), twin_noise(3, [2], (3, 4, 4))
    calls = [whole() for _ in range(3)]
    assert all(torch.equal(x[2:3], third()) for x in calls)
    assert len(set(rows_of(torch.cat(calls)))) == 12


def test_generated_pictures_depend_on_seed_stream_and_item_alone():
    frozen = tiny.diffae()
    whole = generate_pictures(frozen, range(3), "content", CONFIG)
    for k in range(3):
        assert torch.allclose(whole[k:k + 1], generate_pictures(frozen, [k], "content", CONFIG), atol=1e-4)
    for other in (generate_pictures(frozen, [0], "other", CONFIG),
                  generate_pictures(frozen, [0], "content", replace(CONFIG, seed=4))):
        assert not torch.allclose(whole[:1], other, atol=1e-2)
    assert not torch.allclose(whole[0], whole[1], atol=1e-2)


@pytest.mark.parametrize("cached", [0, 4])
def test_content_depends_on_the_seed_and_not_on_the_batch(cached):
    frozen = tiny.diffae()
    pairs, single = (content_source(frozen, replace(CONFIG, batch=batch, cached_content=cached)) for batch in (2, 1))
    if cached:
        found, others = pairs(0), single(0)
        assert torch.allclose(found.picture[:1], others.picture, atol=1e-4)
    else:
        assert torch.allclose(pairs(1).picture, torch.cat([single(2).picture, single(3).picture]), atol=1e-4)
        assert torch.allclose(pairs(1).x, torch.cat([single(2).x, single(3).x]), atol=1e-3)
