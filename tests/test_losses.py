"""The losses of MMFS: structure, directions, projections, prompts; DINO and the substitute for it."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from oneshot_atelier.models.features import dino as dino_module
from oneshot_atelier.models.features.clip import PREPROCESSINGS
from oneshot_atelier.models.features.dino import Dino, DinoConfig
from oneshot_atelier.models.features.encoder import EncoderKeys
from oneshot_atelier.tests import golden_cases, parity_losses, tiny
from oneshot_atelier.train import losses

SMALL = DinoConfig(image_size=32, patch=8, width=64, layers=3, heads=1)


def dino(config=SMALL):
    return tiny.filled(Dino(config)).eval().requires_grad_(False)


def golden_clip():
    return parity_losses.clip(golden_cases.load_case("losses"))


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- structure -------------------------------------------------------------------------------------------------------
def test_self_similarity_is_the_cosine_of_every_pair_and_valid_for_zeros():
    keys = normals(2, 5, 7)
    keys[0, 3] = 0
    found = losses.self_similarity(keys)
    assert torch.allclose(found[1], F.cosine_similarity(keys[1][:, None], keys[1][None], dim=2), atol=1e-6)
    assert torch.isfinite(found).all() and found[0, 3].abs().max() == 0
    assert torch.allclose(losses.self_similarity(3 * keys[1:]), found[1:], atol=1e-6)


def test_structure_losses_are_summed_over_the_batch_and_have_their_closed_forms():
    a, b = normals(3, 6, 4), normals(3, 6, 4, seed=1)
    difference = losses.self_similarity(a) - losses.self_similarity(b)
    assert float(losses.structure_loss(a, b)) == pytest.approx(float(difference.square().mean((1, 2)).sum()))
    norms = torch.linalg.matrix_norm(difference) / 6
    assert float(losses.structure_loss(a, b, "frobenius")) == pytest.approx(float(norms.sum()), rel=1e-4)
    assert float(losses.structure_loss(a, a)) == 0
    with pytest.raises(ValueError, match="structure_norm is 'l1'; take one of mse, frobenius"):
        losses.structure_loss(a, b, "l1")


@pytest.mark.parametrize("norm", losses.STRUCTURE_NORMS)
def test_the_gradient_of_a_structure_loss_is_finite_where_nothing_differs(norm):
    keys = normals(1, 4, 3).requires_grad_(True)
    losses.structure_loss(keys, keys.detach(), norm).backward()
    assert torch.isfinite(keys.grad).all()


# --- directions and projections --------------------------------------------------------------------------------------
def test_the_direction_loss_is_the_mean_of_one_minus_the_cosine():
    photos = torch.zeros(2, 2)
    results = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    anchor, reference = torch.zeros(1, 2), torch.tensor([[0.7, 0.7]])
    assert float(losses.clip_loss(photos, results, anchor, reference)) == pytest.approx(1 - math.sqrt(0.5))
    assert float(losses.clip_loss(photos, results, reference, anchor)) == pytest.approx(1 + math.sqrt(0.5))


def test_a_projector_keeps_what_the_reference_spans_and_loses_the_rest():
    tokens = normals(1, 5, 12)
    p = losses.projector(tokens)
    assert torch.allclose(p @ p, p, atol=1e-5) and torch.equal(p, p.t()) and float(p.trace()) == pytest.approx(5)
    inside = normals(2, 9, 5, seed=1) @ tokens[0]
    assert float(losses.projection_loss(p, inside)) < 1e-5 < float(losses.projection_loss(p, normals(2, 9, 12)))
    outside = normals(1, 4, 12, seed=3) @ (torch.eye(12) - p)
    unit = F.normalize(outside, dim=2)
    assert float(losses.projection_loss(p, outside)) == pytest.approx(float(unit.abs().mean()), rel=1e-4)


def test_tokens_that_repeat_themselves_span_less():
    row = normals(1, 1, 12)
    assert float(losses.projector(row.expand(1, 5, 12)).trace()) == pytest.approx(1)
    assert float(losses.projector(normals(1, 11, 12)).trace()) == pytest.approx(11)  # one reference: all is official
    assert float(losses.projector(normals(1, 12, 12)).trace()) == pytest.approx(6)  # as many tokens as numbers
    assert float(losses.projector(normals(1, 20, 12)).trace()) == pytest.approx(6)
    assert float(losses.projector(normals(2, 20, 12)).trace()) == pytest.approx(6)


def test_many_references_together_still_forbid_something():
    assert float(losses.projector(normals(2, 4, 12)).trace()) == pytest.approx(6)
    assert float(losses.projector(normals(9, 4, 12)).trace()) == pytest.approx(6)
    assert float(losses.projector(normals(9, 8, 12)).trace()) == pytest.approx(8)


def test_the_feature_loss_sums_the_layers():
    a, b = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 2, 2)], [torch.ones(1, 2, 4, 4), torch.full((1, 3, 2, 2), -2.0)]
    assert float(losses.feature_loss(a, b)) == pytest.approx(3)
    with pytest.raises(ValueError):
        losses.feature_loss(a, b[:1])


# --- CLIP ------------------------------------------------------------------------------------------------------------
def test_the_mmfs_preprocessing_is_bilinear_and_normalised():
    assert PREPROCESSINGS == ("osasis", "openai", "mmfs")
    net, x = tiny.clip(), tiny.pictures(2, px=48)
    small = F.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    assert torch.allclose(net.preprocess(x, "mmfs"), ((small + 1) / 2 - 0.5) / 0.25, atol=1e-5)


def test_one_pass_gives_the_embedding_and_the_tokens_of_the_block_or_the_last():
    net, x = golden_clip(), tiny.pictures(2)
    with torch.no_grad():
        prepared = net.preprocess(x, "mmfs")
        embeddings, tokens = net.encode_with_tokens(prepared, 3)
        assert torch.allclose(embeddings, net.embed(x, "mmfs"), atol=1e-5) and tokens.shape == (2, 49, 128)
        assert torch.equal(tokens, net.tokens(x)) and not torch.equal(tokens, net.tokens(x, 1))
        assert torch.equal(net.tokens(x, 9), net.tokens(x, 4))  # it has five blocks


def test_a_file_is_scaled_by_its_shorter_side_and_cropped_in_the_middle():
    net = tiny.clip()
    strip = torch.zeros(3, 32, 96, dtype=torch.uint8)
    strip[:, :, 32:64] = 255
    assert torch.allclose(net.preprocess_file(strip), torch.full((1, 3, 32, 32), 2.0))
    assert torch.allclose(net.preprocess_file(strip.transpose(1, 2).contiguous()), torch.full((1, 3, 32, 32), 2.0))
    assert net.preprocess_file(torch.zeros(3, 301, 7, dtype=torch.uint8)).shape == (1, 3, 32, 32)


def test_prompts_are_checked_by_clip_s_own_count():
    net = golden_clip()
    net.check_prompt("pop art")
    net.check_prompt("a " * 75)
    for text, message in (("", "prompt is empty"), (" \n", "prompt is empty"), ("a " * 76, "78 tokens .* at most 77")):
        with pytest.raises(ValueError, match=message):
            net.check_prompt(text)
    small = tiny.clip()
    small.check_prompt("The red face, an a")
    for text, message in (("watercolor", "does not know 'watercolor'; it knows: "), (" an", "does not know ' an'"),
                          ("Red oil of a moon, oil", "does not know 'oil', 'of', 'moon'; "),
                          ("red " * 7, "9 tokens .* at most 8")):
        with pytest.raises(ValueError, match=message):
            small.check_prompt(text)


# --- structure networks ----------------------------------------------------------------------------------------------
def test_dino_s_sizes_are_read_off_the_shapes():
    assert dino_module.detect(dino().net.state_dict()) == SMALL
    with torch.device("meta"):
        net = Dino(DinoConfig())
    assert sum(p.numel() for p in net.net.parameters()) == 85_807_872  # ViT-B/8 of Facebook
    assert dino_module.detect(net.net.state_dict()) == DinoConfig()
    assert dino_module.detect(net.net.state_dict(), heads=6).heads == 6
    with pytest.raises(ValueError, match="not a DINO ViT.*dino_vitbase8"):
        dino_module.detect({"conv1.weight": torch.zeros(4, 3, 7, 7)})
    with pytest.raises(ValueError, match="at least 2"):
        replace(SMALL, layers=1)


def test_dino_s_keys_are_the_middle_third_of_the_last_qkv():
    net, x, seen = dino(), tiny.pictures(2), []
    net.net.blocks[-1].attn.qkv.register_forward_hook(lambda *found: seen.append(found[2]))
    with torch.no_grad():
        net.net(net.preprocess(x))
        assert torch.allclose(net.keys(x), seen[0][..., 64:128], atol=1e-5)
    built = dino_module.build(SMALL, net.net.state_dict())
    assert torch.equal(built.keys(x), net.keys(x)) and not built.training


def test_dino_takes_pictures_that_are_not_square_and_antialiases_if_told():
    net = dino()
    assert net.preprocess(torch.zeros(1, 3, 64, 101)).shape == (1, 3, 32, 48)
    assert net.keys(torch.zeros(1, 3, 101, 64)).shape == (1, 1 + 6 * 4, 64)
    board = (torch.arange(96)[:, None] + torch.arange(96)).remainder(2).float().expand(1, 3, 96, 96) * 2 - 1
    spread = [dino(replace(SMALL, antialias=on)).preprocess(board).std() for on in (False, True)]
    assert spread[0] > 5 * spread[1]


@pytest.mark.parametrize("make", [dino, lambda: EncoderKeys(tiny.diffae().encoder, image_size=32)])
def test_a_structure_network_tells_a_recoloured_picture_from_another_and_passes_gradients(make):
    net = make()
    before = tiny.copy_of(net)
    x, other = tiny.pictures(2, 1), tiny.pictures(2, 9)
    dimmed = (0.9 * x + 0.02).requires_grad_(True)
    near, far = (losses.structure_loss(net.keys(y), net.keys(x)) for y in (dimmed, other))
    assert float(near.detach()) < 0.2 * float(far)
    near.backward()
    assert dimmed.grad.abs().sum() > 0 and tiny.same(before, net.state_dict())
    assert all(p.grad is None for p in net.parameters())


def test_the_substitute_stops_at_its_level_and_refuses_an_encoder_without_it():
    encoder = tiny.diffae().encoder
    net = EncoderKeys(encoder, image_size=32)
    keys = net.keys(tiny.pictures(2, px=48))
    assert keys.shape[:2] == (2, 256) and keys.mean(1).abs().max() < 1e-5
    assert len(net.blocks) < len(encoder.input_blocks) and net.blocks[0] is encoder.input_blocks[0]
    with pytest.raises(ValueError, match="no map of 16 px for pictures of 8 px"):
        EncoderKeys(encoder, image_size=8)
