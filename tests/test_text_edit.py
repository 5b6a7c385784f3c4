"""Edits of codes by text: the equation on a linear model with a known optimum, rows, texts, stopping."""
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oneshot_atelier.models.diffusion import ddim_schedule
from oneshot_atelier.models.edit import SemanticDirection, z_statistics
from oneshot_atelier.tests import tiny
from oneshot_atelier.train.loop import Hooks
from oneshot_atelier.train.losses import LEAST_CHANGE, direction_loss, text_edit_loss
from oneshot_atelier.train.text_edit import (
    Editor,
    Subject,
    TextEditConfig,
    edit_by_text,
    templates_of,
    text_directions,
)

E = 4  # numbers of a toy code, of a toy picture and of its embedding
T0, STEPS = 0.5, 10
QUICK = TextEditConfig(steps=3, decode_steps=10, clip_preprocessing="osasis")


class LinearUNet(nn.Module):
    """eps = W z, whatever x and t are: every picture of a chain is linear in z as long as nothing is clamped."""

    def __init__(self, w):
        super().__init__()
        self.register_buffer("w", w)
        self.config = SimpleNamespace(prediction="eps")

    def modulation(self, t, z):
        return z @ self.w.T

    def time_modulation(self, t):
        return torch.ones(1, len(t))

    def code_modulation(self, z):
        return z @ self.w.T

    def forward(self, x, modulation):
        return modulation.view_as(x)


class LinearClip:
    """E_I(x) = M x."""

    def __init__(self, m):
        self.m = m

    def embed(self, pictures, preprocessing):
        return pictures.flatten(1) @ self.m.T


def orthogonal(seed):
    return torch.linalg.qr(torch.randn(E, E, generator=torch.Generator().manual_seed(seed)))[0]


def decode(w, x, z):
    """The reverse chain with eps = W z, written down by itself, without a clamp."""
    schedule = ddim_schedule(STEPS)
    for i in reversed(range(int(STEPS * T0))):
        a, before = schedule.alpha_bar(i), schedule.alpha_bar(i - 1)
        eps = (z @ w.T).view_as(x)
        x = before ** 0.5 * (x - (1 - a) ** 0.5 * eps) / a ** 0.5 + (1 - before) ** 0.5 * eps
    return x


@pytest.fixture
def toy():
    """Networks, what is edited, and A of: E_I(G(x, z + std delta)) - E_I(G(x, z)) = A delta."""
    w, m, std = 0.02 * orthogonal(0), orthogonal(1), torch.tensor([0.3, 1.0, 2.0, 3.0])
    x, z = 0.1 * torch.randn(1, E, 1, 1, generator=torch.Generator().manual_seed(2)), torch.full((1, E), 0.1)
    slope = decode(w, torch.zeros(E, E, 1, 1), torch.eye(E)).flatten(1).T
    texts = F.normalize(torch.tensor([[1.0, 2.0, -1.0, 0.5]]), dim=1)
    return SimpleNamespace(net=SimpleNamespace(unet=LinearUNet(w)), clip=LinearClip(m), a=m @ slope @ std.diag(),
                           subject=Subject(z, std, x, T0, texts), unedited=m @ decode(w, x, z).flatten())


def edited(toy, **settings):
    config = TextEditConfig(**{"steps": 200, "lr": 0.02, "l2_weight": 0.0, "decode_steps": STEPS} | settings)
    return edit_by_text(toy.net, toy.clip, toy.subject, config)


@pytest.mark.parametrize("gradient", ["chain", "one-step"])
def test_the_optimum_on_a_linear_model_is_the_known_one(toy, gradient):
    """1 - cos(A delta, t) is 0 for delta along A^-1 t alone; every prediction of the chain is a multiple of A delta."""
    found = edited(toy, gradient=gradient)
    delta, best = (found.change[0, 0] / toy.subject.std), torch.linalg.solve(toy.a, toy.subject.texts[0])
    assert F.cosine_similarity(delta, best, dim=0) > 0.999
    assert found.agreement.item() > 0.999
    start = F.cosine_similarity(toy.a.T @ toy.subject.texts[0], best, dim=0)
    assert start < 0.9  # the first gradient does not point there


def test_with_a_regulariser_the_optimum_is_the_ridge_s(toy):
    """While the change is short: 1 - t A delta / L + l |delta|^2 / E, whose least is at delta = E A^T t / (2 l L)."""
    length, weight = LEAST_CHANGE * toy.unedited.norm(), 400.0
    best = E * toy.a.T @ toy.subject.texts[0] / (2 * weight * length)
    assert (toy.a @ best).norm() < length
    found = edited(toy, gradient="chain", l2_weight=weight, lr=0.002)
    assert torch.allclose(found.change[0, 0] / toy.subject.std, best, rtol=2e-3, atol=1e-4)


def test_the_loss_is_the_paper_s_wherever_there_is_a_change():
    """Eq. 28-30: 1 - cos(E_I(edited) - E_I(unedited), E_T(target) - E_T(source))."""
    before, after, source, target = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(text_edit_loss(before, after, target - source),
                          direction_loss(before, after, source, target), atol=1e-6)
    start = before.clone().requires_grad_()
    loss = text_edit_loss(before, start, target - source)
    loss.sum().backward()
    assert torch.equal(loss, torch.ones(6))  # no change, no agreement; and the gradient is along the texts
    along = -F.normalize(target - source, dim=1) / (LEAST_CHANGE * before.norm(dim=1, keepdim=True))
    assert torch.allclose(start.grad, along, rtol=1e-5)


# --- real networks, tiny ----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def nets():
    return SimpleNamespace(diffae=tiny.diffae(), clip=tiny.clip())


@pytest.fixture(scope="module")
def subject(nets):
    photos = tiny.pictures(2)
    with torch.no_grad():
        z = nets.diffae.encode(photos)
        x = nets.diffae.structural_code(photos, z, 10, T0)
    return Subject(z, z_statistics(nets.diffae)[1], x, T0, text_directions(nets.clip, "face", ["red", "cartoon"]))


def with_rows(subject, pictures, texts):
    return Subject(subject.z[pictures], subject.std, subject.x[pictures], subject.t0, subject.texts[texts])


@pytest.mark.parametrize("gradient", ["chain", "one-step"])
def test_an_edit_lowers_the_loss_and_changes_nothing_else(nets, subject, gradient):
    before, x, history = tiny.copy_of(nets.diffae), subject.x.clone(), []
    config = TextEditConfig(steps=20, lr=0.5, decode_steps=10, gradient=gradient, l2_weight=0.0)
    found = edit_by_text(nets.diffae, nets.clip, subject, config,
                         Hooks(on_step=lambda step: history.append(step)))
    assert len(history) == 20 and history[0].predictions.shape == (4, 3, tiny.PX, tiny.PX)
    assert abs(history[0].losses["direction"] - 1) < 1e-3 and history[-1].losses["direction"] < 0.9
    assert found.change.shape == (2, 2, tiny.WIDTH) and (found.agreement > 0).all()
    assert tiny.same(before, nets.diffae.state_dict()) and torch.equal(x, subject.x)
    assert all(p.grad is None for net in (nets.diffae, nets.clip) for p in net.parameters())


@pytest.mark.parametrize("gradient", ["chain", "one-step"])
def test_the_agreement_is_that_of_decoded_pictures(nets, subject, gradient):
    found = edit_by_text(nets.diffae, nets.clip, subject, TextEditConfig(steps=5, decode_steps=10, gradient=gradient))
    with torch.no_grad():
        edited = nets.diffae.decode(subject.x.repeat(2, 1, 1, 1), found.edited(subject.z, 1.0), 10, T0)
        unedited = nets.diffae.decode(subject.x, subject.z, 10, T0)
        embed = lambda pictures: nets.clip.embed(pictures, "openai")  # noqa: E731
        change = embed(edited) - embed(unedited).repeat(2, 1)
    cos = F.cosine_similarity(change, subject.texts.repeat_interleave(2, 0), dim=1)
    assert torch.allclose(cos.view(2, 2), found.agreement, atol=1e-4)


def test_each_picture_and_text_is_an_edit_of_its_own(nets, subject):
    """All together, in parts, and alone: the same up to the rounding of batches."""
    together = edit_by_text(nets.diffae, nets.clip, subject, QUICK).change
    parts = edit_by_text(nets.diffae, nets.clip, subject, replace(QUICK, rows=3)).change
    alone = edit_by_text(nets.diffae, nets.clip, with_rows(subject, [1], [0]), QUICK).change
    assert torch.allclose(together, parts, rtol=1e-2, atol=1e-5)
    assert torch.allclose(together[0, 1], alone[0, 0], rtol=1e-2, atol=1e-5)
    assert not torch.allclose(together[0, 0], together[0, 1], rtol=1e-1, atol=1e-5)


def test_no_more_rows_than_asked_for_are_computed_at_a_time(nets, subject):
    seen, three = [], with_rows(subject, [0, 1, 1], [0])
    config, whole = replace(QUICK, rows=2), Editor.of(nets.diffae, nets.clip, three, replace(QUICK, rows=3))
    parts = Editor.of(nets.diffae, nets.clip, three, config)
    for name in ("embeddings", "pictures", "x"):
        assert torch.allclose(getattr(parts, name), getattr(whole, name), atol=1e-5), name
    hook = nets.diffae.unet.register_forward_hook(lambda net, inputs, output: seen.append(len(inputs[0])))
    edit_by_text(nets.diffae, nets.clip, three, config)
    hook.remove()
    assert set(seen) == {1, 2}


def test_a_shared_change_is_one_for_all_pictures(nets, subject):
    found = edit_by_text(nets.diffae, nets.clip, subject, replace(QUICK, shared=True))
    assert found.change.shape == (2, 1, tiny.WIDTH) and found.agreement.shape == (2, 2)
    code = found.edited(subject.z, 2.0)
    assert code.shape == (4, tiny.WIDTH)
    assert torch.allclose(code[:2] - subject.z, (2 * found.change[0]).expand(2, -1), atol=1e-6)
    assert torch.equal(found.edited(subject.z, 0.0), subject.z.repeat(2, 1))


def test_the_regularisers_keep_the_picture_near(nets, subject):
    def length(**weights):
        config = TextEditConfig(steps=10, lr=0.2, decode_steps=10, **{"l2_weight": 0.0} | weights)
        return edit_by_text(nets.diffae, nets.clip, subject, config).change.norm()
    free = length()
    assert length(l2_weight=50.0) < 0.8 * free and length(l1_weight=50.0) < 0.8 * free


def test_it_stops_when_it_is_told(nets, subject):
    class Stop(Exception):
        pass
    steps = []

    def on_step(result):
        steps.append(result)
        if len(steps) == 2:
            raise Stop
    with pytest.raises(Stop):
        edit_by_text(nets.diffae, nets.clip, subject, QUICK, Hooks(on_step=on_step))
    assert len(steps) == 2

    def check():
        raise Stop
    with pytest.raises(Stop):
        edit_by_text(nets.diffae, nets.clip, subject, QUICK, Hooks(check_interrupt=check))


# --- texts, settings --------------------------------------------------------------------------------------------------
def test_directions_of_texts(nets):
    found = text_directions(nets.clip, "face", ["red", "cartoon"], "none")
    embedded = F.normalize(nets.clip.embed_text(["face", "red", "cartoon"]), dim=1)
    assert torch.allclose(found, F.normalize(embedded[1:] - embedded[:1], dim=1), atol=1e-6)
    averaged = text_directions(nets.clip, "face", ["red"], "imagenet")
    assert not torch.allclose(averaged, found[:1], atol=1e-3) and abs(averaged.norm() - 1) < 1e-5


def test_templates(nets):
    assert templates_of(nets.clip, "auto") == ["{}"] == templates_of(nets.clip, "none")
    sentences = templates_of(nets.clip, "imagenet")
    assert len(sentences) == 80 and "a bad photo of a {}." in sentences
    with_byte_pairs = SimpleNamespace(config=SimpleNamespace(words=()))
    assert templates_of(with_byte_pairs, "auto") == sentences


@pytest.mark.parametrize(("source", "target", "words"), [
    ("face", "", "the prompt is empty"), ("", "red", "the prompt is empty"), ("face", "zebra", "does not know 'zebra'"),
    ("red", "red", "is the same as the source"), ("face", "The face!", "is the same as the source")])
def test_texts_that_say_nothing_are_refused(nets, source, target, words):
    with pytest.raises(ValueError, match=words):
        text_directions(nets.clip, source, [target])


@pytest.mark.parametrize(("settings", "words"), [
    ({"gradient": "two-step"}, "take one of one-step, chain"), ({"templates": "x"}, "take one of auto"),
    ({"steps": 0}, "at least 1"), ({"lr": float("nan")}, "finite"), ({"precision": "int8"}, "take one of float32"),
    ({"clip_preprocessing": "raw"}, "take one of osasis")])
def test_settings_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        TextEditConfig(**settings)


def test_a_chain_without_a_step_is_refused():
    with pytest.raises(ValueError, match="t0 x decode_steps < 1"):
        TextEditConfig(decode_steps=10).indices(0.05)


def test_directions_are_applied_to_all_pictures_in_turn():
    direction = SemanticDirection(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), ("a", "b"))
    z = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    assert direction.edited(z, 0.5).tolist() == [[1.5, 1.0], [2.5, 2.0], [1.0, 2.0], [2.0, 3.0]]
    with pytest.raises(ValueError, match="is for codes of 2 numbers, not of 3"):
        direction.edited(torch.zeros(1, 3), 1.0)
    with pytest.raises(ValueError, match="do not fit 1 names"):
        SemanticDirection(torch.zeros(2, 2), ("a",))


def test_a_diffae_without_statistics_is_refused():
    with pytest.raises(ValueError, match="autoenc_latent"):
        z_statistics(tiny.diffae(config=replace(tiny.DIFFAE, latent=None)))
