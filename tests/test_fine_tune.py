"""One-shot fine-tuning: determinism, exact resume, micro-batches, what is trained and what is left alone."""

import math
from dataclasses import asdict, replace

import pytest
import torch

from oneshot_atelier.models.checkpoints import store
from oneshot_atelier.models.features.encoder import EncoderDistance
from oneshot_atelier.models.loading import load_style, save_style
from oneshot_atelier.models.style import check_osasis_style, fingerprint
from oneshot_atelier.tests import tiny
from oneshot_atelier.train import content as content_module
from oneshot_atelier.train import losses, osasis
from oneshot_atelier.train.content import content_source, prepare_content
from oneshot_atelier.train.data import to_bytes
from oneshot_atelier.train.loop import Hooks, restore, snapshot
from oneshot_atelier.train.osasis import FrozenNetworks, OSASISConfig

CONFIG = OSASISConfig(iterations=4, batch=2, lr=1e-3, lr_spn=1e-3, forward_steps=4, reverse_steps=4, latent_steps=2,
                      generate_steps=2, seed=3)
UPDATES = 2  # optimiser steps an iteration: half of reverse_steps


class Stop(Exception):
    """Raised by a hook, as a cancelled prompt does."""


def trainer(config=CONFIG, photos=None, content=None):
    """Everything frozen, built anew: two calls share nothing."""
    frozen = tiny.diffae()
    twin, style_image = tiny.pictures(1, 1), tiny.pictures(1, 2)
    content = content or content_source(frozen, config, photos)
    nets = FrozenNetworks(frozen, tiny.clip(), EncoderDistance(frozen.encoder), fingerprint(frozen))
    aim = osasis.References.of(nets, prepare_content(frozen, twin, config), style_image, config)
    return osasis.Trainer(nets, aim, config, content)


def tuned(config=CONFIG, photos=None, **options):
    t = trainer(config, photos)
    return osasis.fine_tune(t, osasis.start(t.nets.diffae, config), **options)


def state(run):
    """Everything that changes, as flat tensors."""
    return snapshot(run)[0]


# --- determinism and resume --------------------------------------------------------------------------------------
def test_a_seed_gives_the_same_weights_again_whatever_the_global_generator_does():
    config = replace(CONFIG, iterations=2)
    first, t = tuned(config), trainer(config)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = osasis.fine_tune(t, osasis.start(t.nets.diffae, config))
    assert torch.equal(before, torch.get_rng_state())
    assert tiny.same(state(first), state(second)) and first.loss_history == second.loss_history
    other = tuned(replace(config, iterations=1, seed=4))
    assert not torch.equal(other.nets["unet"].out[2].weight, first.nets["unet"].out[2].weight)
    assert not torch.equal(other.nets["spn"].out_layer[0].weight, first.nets["spn"].out_layer[0].weight)


def test_dropout_is_what_makes_the_seed_matter_to_the_weights():
    config = replace(CONFIG, iterations=1, spn="none")
    photos = tiny.pictures(2, 5)
    on, off = (tuned(replace(config, dropout=d), photos) for d in (True, False))
    assert not torch.equal(on.nets["unet"].out[2].weight, off.nets["unet"].out[2].weight)
    assert on.nets["unet"].training and not off.nets["unet"].training


@pytest.mark.parametrize("spn", osasis.SPNS)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, spn):
    config = replace(CONFIG, spn=spn, cached_content=3, iterations=3)
    path = tmp_path / "a.snapshot"
    whole = tuned(config)

    def save(run):
        tensors, meta = snapshot(run)
        store.save(path, tensors, "snapshot", asdict(config), meta, dtype=None)

    def stop_in_the_third_iteration(result):
        if result.iteration == 2:
            raise Stop

    with pytest.raises(Stop):
        tuned(config, save_every=1, save=save, hooks=Hooks(on_step=stop_in_the_third_iteration))
    torch.manual_seed(99)
    t = trainer(config)
    run = osasis.start(t.nets.diffae, config)
    stored = store.load(path, "snapshot")
    restore(run, stored.tensors, stored.meta)
    assert run.step == 2 and int(run.partial["done"]) == 1
    assert stored.config == asdict(config) and len(run.loss_history["loss"]) == 2
    osasis.fine_tune(t, run)
    assert tiny.same(state(run), state(whole)) and run.loss_history == whole.loss_history and run.step == 3
    assert set(run.nets) == ({"unet"} if spn == "none" else {"unet", "spn"})


def test_a_snapshot_of_another_run_does_not_fit():
    tensors, meta = snapshot(osasis.start(tiny.diffae(), CONFIG))
    with pytest.raises(RuntimeError, match="layers.0.weight"):
        restore(osasis.start(tiny.diffae(), replace(CONFIG, spn="untimed")), tensors, meta)


def test_a_run_can_start_from_a_style():
    t = trainer(replace(CONFIG, iterations=1))
    run = osasis.fine_tune(t, osasis.start(t.nets.diffae, CONFIG))
    style = osasis.finish(t.nets, run, t.aim.style_image, osasis.encode_style(t.nets, t.aim.style_image), {})
    again = osasis.start(t.nets.diffae, CONFIG, style)
    for name, weights in (("unet", style.unet), ("spn", style.spn)):
        assert tiny.same({k: v.half() for k, v in again.nets[name].state_dict().items()}, dict(weights))
    assert again.nets["unet"].out[2].weight.requires_grad


def test_content_is_encoded_with_the_solver_of_the_configuration():
    ddim, few = (content_source(tiny.diffae(), replace(CONFIG, solver=solver))(0) for solver in ("ddim", "dpmpp_2m"))
    assert not torch.allclose(few.x, ddim.x, atol=1e-3) and torch.equal(few.picture, ddim.picture)
    frozen = tiny.diffae()
    assert torch.allclose(few.x, frozen.structural_code(few.picture, few.z, 4, 0.5, solver="dpmpp_2m"), atol=1e-3)


# --- what is trained ---------------------------------------------------------------------------------------------
def test_frozen_networks_and_inputs_are_left_alone():
    photos = tiny.pictures(3, 5)
    kept = photos.clone()
    t = trainer(replace(CONFIG, iterations=1), photos)
    nets = (t.nets.diffae, t.nets.clip, t.perceptual)
    before = [tiny.copy_of(net) for net in nets]
    given = t.aim.style_image, t.aim.twin.picture, t.aim.twin.z, t.aim.twin.x
    before_too = [tensor.clone() for tensor in given]
    osasis.fine_tune(t, osasis.start(t.nets.diffae, CONFIG))
    assert all(tiny.same(b, net.state_dict()) for b, net in zip(before, nets))
    assert all(p.grad is None and not p.requires_grad for net in nets for p in net.parameters())
    assert not t.nets.diffae.training and torch.equal(photos, kept)
    assert all(torch.equal(a, b) for a, b in zip(before_too, given))


@pytest.mark.parametrize("spn", osasis.SPNS)
def test_gradients_reach_every_weight_of_b_and_of_the_spn(spn):
    config = replace(CONFIG, iterations=1, spn=spn)
    run = tuned(config)
    for net in run.nets.values():
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
        assert sum(float(p.grad.abs().sum()) > 0 for p in net.parameters()) > 0.9 * len(list(net.parameters()))
    frozen, moved = tiny.diffae().unet.state_dict(), run.nets["unet"].state_dict()
    changed = [key for key in moved if not torch.equal(moved[key], frozen[key])]
    assert len(changed) > 0.9 * len(moved)


def test_b_starts_as_a_copy_of_a_and_shares_no_memory():
    frozen = tiny.diffae()
    run = osasis.start(frozen, CONFIG)
    assert tiny.same(run.nets["unet"].state_dict(), frozen.unet.state_dict())
    assert not {p.data_ptr() for p in run.nets["unet"].parameters()} & {p.data_ptr() for p in frozen.parameters()}
    again, other = (osasis.start(frozen, replace(CONFIG, seed=s)).nets["spn"].state_dict() for s in (3, 4))
    assert tiny.same(run.nets["spn"].state_dict(), again) and not tiny.same(again, other)
    groups = {name: optimizer.param_groups[0] for name, optimizer in run.optimizers.items()}
    assert groups["unet"]["lr"] == CONFIG.lr and groups["spn"]["betas"] == (0.9, 0.999)


def test_official_defaults():
    c = OSASISConfig()
    assert (c.iterations, c.batch, c.lr, c.lr_spn) == (200, 8, 5e-6, 1e-4)
    assert (c.cross_weight, c.in_domain_weight, c.clip_weight, c.l1_weight, c.perceptual_weight) == (1, 0.5, 30, 10, 10)
    assert (c.forward_steps, c.reverse_steps, c.latent_steps, c.generate_steps, c.t0) == (50, 20, 200, 20, 0.5)
    assert (c.spn, c.spn_weight, c.style_spn_weight) == ("timed", 0.1, 1.0)
    assert (c.spn_time, c.noise_level) == ("index", "official")
    assert (c.clamp, c.clip_preprocessing, c.dropout, c.cached_content) == ("hard", "osasis", True, 0)


@pytest.mark.parametrize(("changes", "message"), [
    ({"spn": "yes"}, "spn is 'yes'; take one of timed"), ({"clamp": "soft"}, "clamp is 'soft'"),
    ({"noise_level": "x"}, "noise_level"), ({"spn_time": "x"}, "spn_time"), ({"clip_preprocessing": "x"}, "clip_prep"),
    ({"precision": "int8"}, "precision is 'int8'"), ({"iterations": 0}, "at least 1"), ({"batch": 0}, "at least 1"),
    ({"t0": 0.0}, "t0 above 0"), ({"t0": 1.5}, "t0 above 0"), ({"forward_steps": 300}, "300 steps cannot be spaced"),
    ({"reverse_steps": 1}, "t0 x reverse_steps < 1 .*increase t0 or steps")])
def test_settings_that_cannot_work_are_refused_before_anything_starts(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


# --- one optimiser step ------------------------------------------------------------------------------------------
def one_update(config, scale=1.0):
    """(trainer, run, losses) after one optimiser step from the start; scale: of the noisy pictures."""
    t = trainer(config, tiny.pictures(config.batch, 5))
    run = osasis.start(t.nets.diffae, config)
    content = t.content(0)
    streams = t.aim.streams(0, content, t.embed(content.picture), config)
    streams = replace(streams, x=streams.x * scale)
    values, predictions, further = osasis.update(t, run, streams, 1)
    return t, run, values, predictions, further


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_micro_batches_change_memory_and_nothing_else(rows):
    config = replace(CONFIG, batch=3, dropout=False)
    _, whole, values, predictions, further = one_update(config)
    _, parts, values_too, predictions_too, further_too = one_update(replace(config, micro_batch=rows))
    assert values.keys() == values_too.keys()
    assert all(torch.allclose(values[k], values_too[k], rtol=1e-4, atol=1e-6) for k in values)
    assert torch.allclose(predictions, predictions_too, atol=1e-4)
    assert torch.allclose(further.x, further_too.x, atol=1e-4)
    for name in whole.nets:
        gradients, others = ([p.grad for p in run.nets[name].parameters()] for run in (whole, parts))
        largest = max(float(g.abs().max()) for g in gradients)
        assert largest > 0.01
        assert all(torch.allclose(g, h, rtol=1e-3, atol=1e-5 * largest) for g, h in zip(gradients, others))


def test_the_total_is_the_sum_of_the_weighted_terms():
    config = replace(CONFIG, dropout=False)
    t, _, values, predictions, _ = one_update(config)
    assert set(values) == {"cross", "in", "clip", "l1", "perceptual", "loss"}
    assert float(values["loss"]) == pytest.approx(sum(float(v) for k, v in values.items() if k != "loss"), rel=1e-5)
    x0, embedded = predictions[:1], t.embed(predictions)
    assert float(values["l1"]) == pytest.approx(10 * float((x0 - t.aim.style_image).abs().mean()), rel=1e-4)
    assert float(values["perceptual"]) == pytest.approx(10 * float(t.perceptual(x0, t.aim.style_image)), rel=1e-4)
    style_a, style_b = t.aim.style_a, t.aim.style_b
    content = t.embed(t.content(0).picture)
    cross = losses.cross_domain_loss(style_a, style_b, content, embedded[1:]).mean()
    assert float(values["cross"]) == pytest.approx(float(cross), rel=1e-3)
    doubled = one_update(replace(config, cross_weight=2.0, in_domain_weight=0.0))[2]
    assert float(doubled["cross"]) == pytest.approx(2 * float(values["cross"]), rel=1e-4) and float(doubled["in"]) == 0


def test_the_style_stream_has_its_own_spn_weight_and_both_take_their_own_code():
    t = trainer(replace(CONFIG, spn_weight=0.3, style_spn_weight=0.7), tiny.pictures(2, 5))
    content = t.content(0)
    streams = t.aim.streams(0, content, t.embed(content.picture), t.config)
    assert streams.spn_weight.flatten().tolist() == pytest.approx([0.7, 0.3, 0.3])
    assert torch.equal(streams.z[0], t.aim.twin.z[0]) and torch.equal(streams.z[1:], content.z)
    assert [len(c.z) for c in streams.chunks(2)] == [2, 1] and [len(c.z) for c in streams.chunks(0)] == [3]


def test_the_straight_through_clamp_lets_the_gradient_pass():
    """Pictures far out of range: every x0 is clamped, so the official clamp leaves no gradient at all."""
    _, hard, _, at_the_rim, _ = one_update(replace(CONFIG, dropout=False), scale=1e3)
    _, through, _, too, _ = one_update(replace(CONFIG, dropout=False, clamp="straight-through"), scale=1e3)
    assert (at_the_rim.abs() == 1).float().mean() > 0.999 and torch.allclose(at_the_rim, too, atol=1e-3)
    norms = [sum(float(p.grad.abs().sum()) for p in run.nets["unet"].parameters()) for run in (hard, through)]
    assert norms[1] > 0 and norms[0] < 1e-2 * norms[1]


def test_both_clamps_agree_where_nothing_is_clamped():
    gradients = []
    for clamp in osasis.CLAMPS:
        t = trainer(replace(CONFIG, dropout=False, clamp=clamp), tiny.pictures(2, 5))
        run = osasis.start(t.nets.diffae, t.config)
        content = t.content(0)
        streams = t.aim.streams(0, content, t.embed(content.picture), t.config)
        part = replace(streams, x=streams.x * 0.05)
        for p in run.nets["unet"].out[2].parameters():
            p.data.zero_()
        x0, _ = osasis.predict(t, run.nets, replace(part, spn_weight=part.spn_weight * 0), t.levels[1])
        assert x0.abs().max() < 1
        x0.sum().backward()
        gradients.append(run.nets["unet"].out[2].weight.grad)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4) and gradients[0].abs().sum() > 0


@pytest.mark.parametrize(("changes", "indices", "times"), [
    ({}, [1, 0], [1, 0]), ({"noise_level": "matched"}, [2, 1, 0], [2, 1, 0]),
    ({"spn_time": "timestep"}, [1, 0], [250, 0])])
def test_an_iteration_walks_the_chain_once_with_a_step_at_every_index(changes, indices, times, monkeypatch):
    config = replace(CONFIG, iterations=1, **changes)
    t, seen, told = trainer(config, tiny.pictures(2, 5)), [], []
    run = osasis.start(t.nets.diffae, config)
    spn = run.nets["spn"]
    plain = spn.forward
    monkeypatch.setattr(spn, "forward", lambda picture, time: seen.append(time) or plain(picture, time))
    osasis.fine_tune(t, run, hooks=Hooks(on_step=told.append))
    assert [u.index for u in told] == indices and seen == times
    assert {int(s["step"]) for s in run.optimizers["unet"].state.values()} == {len(indices)}
    assert told[0].predictions.shape == (3, 3, 32, 32) and not told[0].predictions.requires_grad
    mean = sum(float(u.losses["loss"]) for u in told) / len(told)
    assert run.loss_history["loss"] == pytest.approx([mean], rel=1e-5)


def test_an_on_step_that_raises_stops_within_one_optimiser_step():
    t = trainer()
    run = osasis.start(t.nets.diffae, CONFIG)
    weights, told = [], []

    def cancel(update):
        told.append(update)
        if len(told) == 3:
            weights.append(tiny.copy_of(run.nets["unet"]))
            raise Stop

    with pytest.raises(Stop):
        osasis.fine_tune(t, run, hooks=Hooks(on_step=cancel))
    assert len(told) == 3 and run.step == 1 and tiny.same(weights[0], run.nets["unet"].state_dict())
    assert {int(s["step"]) for s in run.optimizers["unet"].state.values()} == {3}


def test_training_lowers_the_loss():
    photos = tiny.pictures(2, 5)
    run = tuned(replace(CONFIG, iterations=8, dropout=False, lr=2e-3), photos)
    history = run.loss_history["loss"]
    assert len(history) == 8 and sum(history[-2:]) < 0.85 * sum(history[:2])


# --- several style images ------------------------------------------------------------------------------------------
def references(count):
    t = trainer()
    twin = prepare_content(t.nets.diffae, tiny.pictures(count, 1), CONFIG)
    return t, osasis.References.of(t.nets, twin, tiny.pictures(count, 2), CONFIG)


def test_several_style_images_take_turns_each_with_its_own_twin():
    t, aim = references(3)
    pairs = [aim.pair(k, CONFIG.seed) for k in range(12)]
    chosen = [rows_in(aim.style_image, pair.style_image)[0] for pair in pairs]
    assert all(sorted(chosen[start:start + 3]) == [0, 1, 2] for start in range(0, 12, 3))
    assert len({tuple(chosen[start:start + 3]) for start in range(0, 12, 3)}) > 1, "the order changes"
    assert chosen == [rows_in(aim.style_image, aim.pair(k, CONFIG.seed).style_image)[0] for k in range(12)]
    for row, pair in zip(chosen, pairs):
        assert torch.equal(pair.twin.picture[0], aim.twin.picture[row]) and torch.equal(pair.twin.x[0], aim.twin.x[row])
        assert torch.equal(pair.style_a[0], aim.style_a[row]) and torch.equal(pair.style_b[0], aim.style_b[row])
    content = t.content(0)
    streams = aim.streams(4, content, t.embed(content.picture), CONFIG)
    assert torch.equal(streams.picture[0], aim.twin.picture[chosen[4]]) and len(streams.z) == 3 and streams.styles == 1
    assert torch.equal(streams.wanted[0][0], aim.style_image[chosen[4]])


def test_a_single_style_image_is_the_pair_of_every_iteration_bit_for_bit():
    _, aim = references(1)
    for k in (0, 1, 7):
        pair = aim.pair(k, CONFIG.seed)
        assert all(torch.equal(a, b) for a, b in zip(
            (pair.style_image, pair.style_a, pair.style_b, pair.twin.picture, pair.twin.z, pair.twin.x),
            (aim.style_image, aim.style_a, aim.style_b, aim.twin.picture, aim.twin.z, aim.twin.x)))


def test_the_code_of_several_style_images_is_the_mean_of_theirs():
    nets, twin, image = trainer().nets, tiny.pictures(2, 1), tiny.pictures(2, 2)
    style, _ = osasis.tune_style(nets, twin, image, replace(CONFIG, iterations=2))
    assert torch.allclose(style.semantic_code(), nets.diffae.encode(image).mean(0, keepdim=True), atol=1e-5)
    assert torch.equal(style.style_image, to_bytes(image[0]))
    with pytest.raises(ValueError, match="2 style images and 1 twins; give each"):
        osasis.tune_style(nets, twin[:1], image, CONFIG)


# --- content -----------------------------------------------------------------------------------------------------
def test_generated_content_is_new_in_every_iteration_and_a_function_of_seed_and_iteration():
    frozen = tiny.diffae()
    source, again = (content_source(frozen, CONFIG) for _ in range(2))
    first = source(0)
    assert first.picture.shape == (2, 3, 32, 32) and first.z.shape == (2, 32) and first.x.shape == first.picture.shape
    again(5)
    assert torch.equal(first.x, again(0).x) and not torch.equal(first.x, source(1).x)
    assert not torch.equal(first.x, content_source(frozen, replace(CONFIG, seed=4))(0).x)
    assert torch.allclose(first.z, frozen.encode(first.picture)), "z is that of the generated picture"


def rows_in(pictures, picture):
    return [next(i for i, row in enumerate(pictures) if torch.equal(row, p)) for p in picture]


def test_photos_as_content_come_without_repetition_in_a_batch():
    photos, told = tiny.pictures(5, 9), []
    frozen = tiny.diffae()
    source = content_source(frozen, CONFIG, photos, Hooks(check_interrupt=lambda: told.append(1)))
    again = content_source(frozen, CONFIG, photos)
    chosen = [rows_in(photos, source(k).picture) for k in range(30)]
    assert all(len(set(rows)) == 2 for rows in chosen) and {i for rows in chosen for i in rows} == set(range(5))
    assert chosen == [rows_in(photos, again(k).picture) for k in range(30)]
    assert len(told) == 3 * 2  # batches, steps of each
    content = source(0)
    assert torch.allclose(content.z, frozen.encode(content.picture), atol=1e-5)
    assert torch.allclose(content.x, frozen.structural_code(content.picture, content.z, 4, 0.5), atol=1e-3)


def test_fewer_photos_than_the_batch_are_repeated():
    photos = tiny.pictures(2, 9)
    source = content_source(tiny.diffae(), replace(CONFIG, batch=5), photos)
    rows = rows_in(photos, source(0).picture)
    assert len(rows) == 5 and {rows.count(0), rows.count(1)} == {2, 3}


def test_cached_content_is_generated_once_and_used_again(monkeypatch):
    frozen, calls = tiny.diffae(), []
    plain = content_module.generate_pictures

    def counted(*arguments):
        calls.append(len(arguments[1]))
        return plain(*arguments)

    monkeypatch.setattr(content_module, "generate_pictures", counted)
    source = content_source(frozen, replace(CONFIG, cached_content=5))
    pictures = torch.cat([source(k).picture for k in range(20)])
    assert calls == [8] and len({p.numpy().tobytes() for p in pictures}) == 5


# --- losses ------------------------------------------------------------------------------------------------------
def test_direction_losses_have_their_closed_forms():
    origin, east, north = torch.zeros(1, 2), torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    assert float(losses.direction_loss(origin, east, origin, 7 * east)) == pytest.approx(0, abs=1e-6)
    assert float(losses.direction_loss(origin, east, origin, north)) == pytest.approx(1)
    assert float(losses.direction_loss(origin, east, east, origin)) == pytest.approx(2)
    diagonal = torch.tensor([[1.0, 1.0]])
    assert float(losses.direction_loss(origin, east, origin, diagonal)) == pytest.approx(1 - math.sqrt(0.5))


def test_the_two_domain_losses_compare_the_right_pairs():
    a, b, content = torch.randn(1, 8), torch.randn(1, 8), torch.randn(3, 8)
    parallel = content + 2 * (b - a)
    assert losses.cross_domain_loss(a, b, content, parallel).max() < 1e-5
    assert losses.in_domain_loss(a, b, content, b + 3 * (content - a)).max() < 1e-5
    assert losses.cross_domain_loss(a, b, content, content - (b - a)).tolist() == pytest.approx([2, 2, 2])
    assert losses.in_domain_loss(a, b, content, b - (content - a)).tolist() == pytest.approx([2, 2, 2])


def test_reconstruction_losses():
    v = torch.randn(2, 8)
    assert losses.clip_reconstruction_loss(3 * v, v).abs().max() < 1e-6
    assert losses.clip_reconstruction_loss(-v, v).tolist() == pytest.approx([2, 2])
    assert losses.pixel_loss(torch.full((2, 3, 4, 4), 0.25), torch.full((1, 3, 4, 4), -0.5)).tolist() == [0.75, 0.75]


# --- the style that comes out ------------------------------------------------------------------------------------
@pytest.mark.parametrize("spn", osasis.SPNS)
def test_a_style_is_saved_and_loaded_whole(tmp_path, spn):
    config = replace(CONFIG, iterations=1, spn=spn)
    t = trainer(config)
    run = osasis.fine_tune(t, osasis.start(t.nets.diffae, config))
    z_style = osasis.encode_style(t.nets, t.aim.style_image)
    style = osasis.finish(t.nets, run, t.aim.style_image, z_style, asdict(config) | {"twin": "seed 3"})
    found = load_style(save_style(tmp_path / "my style.safetensors", style))
    assert tiny.same(dict(found.unet), dict(style.unet)) and (found.config, found.model) == (style.config, style.model)
    assert (found.spn is None) == (spn == "none") and tiny.same(dict(found.spn or {}), dict(style.spn or {}))
    assert found.settings["spn"] == spn
    assert torch.equal(found.style_image, to_bytes(t.aim.style_image[0]))
    assert torch.allclose(found.z_style.float(), t.nets.diffae.encode(t.aim.style_image), atol=2e-3)
    check_osasis_style(found, t.nets.diffae.config.unet, fingerprint(t.nets.diffae))
    unet, net = found.networks()
    assert not unet.training and not any(p.requires_grad for p in unet.parameters())
    assert (net is None) == (spn == "none")
    assert torch.allclose(unet.out[2].weight, run.nets["unet"].out[2].weight, atol=1e-3)
