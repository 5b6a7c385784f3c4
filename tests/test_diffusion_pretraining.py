"""Diffusion pretraining: targets, rates, exact resume, and that nothing but the seed decides."""

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from oneshot_atelier.models.checkpoints import CheckpointError, store
from oneshot_atelier.models.diffusion import add_noise, constant_alpha_bar, linear_alpha_bar
from oneshot_atelier.models.graphs import Graphs
from oneshot_atelier.models.loading import load_clip, load_ddpm, load_diffae
from oneshot_atelier.models.unet import UNet
from oneshot_atelier.tests import tiny
from oneshot_atelier.tools import clip_words
from oneshot_atelier.train import diffusion_pretraining as pretraining
from oneshot_atelier.train import labels, session
from oneshot_atelier.train.data import LABELS, Augmentations, ImageDataset, read_pictures, split
from oneshot_atelier.train.diffusion_pretraining import Objective, PretrainingConfig
from oneshot_atelier.train.distributed import SINGLE_PROCESS, Distributed
from oneshot_atelier.train.gan import GANConfig
from oneshot_atelier.train.loop import Hooks, LoopConfig, restore, snapshot, train
from oneshot_atelier.train.recipes import diffusion, mmfs
from oneshot_atelier.train.recipes.config import Folders, RecipeConfig, measured

CPU = torch.device("cpu")
CONFIG = PretrainingConfig(steps=6, batch=2, lr=1e-3, ema_decay=0.9, seed=3, augmentations=Augmentations())


def a_dataset(count=6):
    pictures = ((tiny.pictures(count) + 1) * 127.5).round().byte()
    return ImageDataset(pictures, torch.zeros(count, dtype=torch.long), torch.ones(count))


def trained(config=CONFIG, steps=None, state=None):
    state = state or pretraining.start(tiny.filled(UNet(tiny.DDPM)), config)
    objective = pretraining.picture_objective(pretraining.noise_loss, a_dataset(), config)
    step = pretraining.stepper(state, objective, config, Graphs())
    return train(state, step, LoopConfig(steps or config.steps, config.seed, ema_decay=config.ema_decay), CPU)


# --- targets -----------------------------------------------------------------------------------------------------
class Constant(torch.nn.Module):
    """A UNet whose output is a given tensor; it notes what it is called with."""

    def __init__(self, eps, prediction="eps"):
        super().__init__()
        self.eps, self.config = eps, replace(tiny.UNET, prediction=prediction)

    def modulation(self, t, z=None, more=None):
        self.z, self.more = z, more

    def forward(self, x, modulation):
        self.x = x
        return self.eps


def test_the_loss_of_eps_is_its_mean_squared_error_at_the_noised_picture():
    x0, noise, t = tiny.pictures(2), torch.randn(2, 3, 32, 32), torch.tensor([10, 900])
    net = Constant(noise + torch.tensor([0.5, -1.0])[:, None, None, None])
    assert pretraining.noise_loss(net, x0, t, noise).item() == pytest.approx((0.25 + 1) / 2, rel=1e-4)
    a = linear_alpha_bar()[t].float()[:, None, None, None]
    assert torch.allclose(net.x, add_noise(x0, noise, a)) and net.z is None


def test_the_loss_of_v_is_the_mean_squared_error_of_v():
    """v = sqrt(abar) eps - sqrt(1 - abar) x0."""
    x0, noise, t = tiny.pictures(2), torch.randn(2, 3, 32, 32), torch.tensor([10, 900])
    a = linear_alpha_bar()[t].float()[:, None, None, None]
    net = Constant(a.sqrt() * noise - (1 - a).sqrt() * x0 + 0.3, "v")
    assert pretraining.noise_loss(net, x0, t, noise).item() == pytest.approx(0.09, rel=1e-3)
    assert torch.allclose(net.x, add_noise(x0, noise, a))


def test_the_learned_variance_is_no_part_of_the_loss():
    noise = torch.randn(1, 3, 32, 32)
    net = Constant(torch.cat([noise, torch.full_like(noise, 9.0)], dim=1))
    assert pretraining.noise_loss(net, tiny.pictures(1), torch.tensor([5]), noise).item() < 1e-10


def test_the_autoencoder_learns_unet_and_encoder_together_from_the_clean_picture():
    net = tiny.diffae().requires_grad_(True)
    net.latent_net.requires_grad_(False)
    x0, t = tiny.pictures(2), torch.tensor([100, 500])
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pretraining.diffae_loss(net, x0, t, noise).backward()
    assert all(p.grad is not None for part in (net.unet, net.encoder) for p in part.parameters())
    assert float(net.encoder.out[3].weight.grad.abs().sum()) > 0
    assert all(p.grad is None for p in net.latent_net.parameters())


def test_the_latent_loss_is_l1_of_eps_on_the_constant_schedule():
    z, seen = torch.randn(50, 8), []

    class Zero(torch.nn.Module):
        def forward(self, x, t):
            seen.append((x, t))
            return torch.zeros_like(x)

    objective = pretraining.latent_objective(z, replace(CONFIG, batch=4000))

    def loss(net, k):
        return objective.loss(net, *objective.batch(k))
    assert loss(Zero(), 0).item() == pytest.approx((2 / torch.pi) ** 0.5, rel=0.02)  # mean of |N(0, 1)|
    x, t = seen[0]
    assert {int(t.min()), int(t.max())} == {0, 999} or (t.min() < 5 and t.max() > 994)
    late = x[t > 900]
    assert float(constant_alpha_bar()[900]) < 1e-3 and abs(float(late.std()) - 1) < 0.03
    loss(Zero(), 0)
    assert torch.equal(seen[0][0], seen[1][0])
    loss(Zero(), 1)
    assert not torch.equal(seen[0][0], seen[2][0])


# --- steps -------------------------------------------------------------------------------------------------------
def test_the_rate_warms_up_stays_and_falls_to_zero():
    config = PretrainingConfig(steps=100, lr=1.0, warmup=9, decay_from=0.6)
    rates = [pretraining.rate_at(k, config) for k in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3]) and rates[9:60] == [1.0] * 51
    assert rates[60] == 1.0 and rates[80] == pytest.approx(0.5) and rates[99] == pytest.approx(1 / 40)
    assert {pretraining.rate_at(k, PretrainingConfig(steps=10, lr=0.5)) for k in range(10)} == {0.5}


def test_gradients_are_clipped_and_the_rate_is_set(monkeypatch):
    net = torch.nn.Linear(3, 1)
    config = PretrainingConfig(steps=10, lr=0.1, warmup=4, max_grad_norm=0.5)
    run = pretraining.start(net, config)
    norms = []

    def noted():
        norms.append(float(torch.stack([p.grad.norm() for p in net.parameters()]).norm()))

    monkeypatch.setattr(run.optimizers["net"], "step", noted)
    objective = Objective(lambda k: (torch.ones(1, 3),), lambda net, x: net(x).sum())
    steep = replace(objective, loss=lambda net, x: 1e4 * net(x).sum())
    step = pretraining.stepper(run, steep, config, Graphs())
    assert set(step(1, Hooks())) == {"loss"} and norms == pytest.approx([0.5], rel=1e-3)
    assert run.optimizers["net"].param_groups[0]["lr"] == pytest.approx(0.1 * 2 / 5)
    pretraining.stepper(run, objective, replace(config, max_grad_norm=0.0), Graphs())(1, Hooks())
    assert norms[1] == pytest.approx(2.0)  # three ones and the bias


def test_official_settings_are_the_defaults():
    config = PretrainingConfig(steps=1)
    assert (config.lr, config.weight_decay, config.max_grad_norm) == (1e-4, 0, 1.0)
    assert (config.ema_decay, config.beta2, config.ema_ramp) == (0.9999, 0.999, False)


def test_float16_is_refused_as_its_loss_is_not_scaled():
    with pytest.raises(ValueError, match="precision is 'float16'; take one of float32, bfloat16"):
        PretrainingConfig(steps=1, precision="float16")


def test_training_is_a_function_of_the_seed():
    torch.manual_seed(1)
    first = trained()
    torch.manual_seed(2)
    again = trained()
    assert tiny.same(snapshot(first)[0], snapshot(again)[0]) and first.loss_history == again.loss_history
    assert not tiny.same(snapshot(first)[0], snapshot(trained(replace(CONFIG, seed=4)))[0])


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    whole, part = trained(), trained(steps=3)
    tensors, meta = snapshot(part)
    stored = store.load(store.save(tmp_path / "a", tensors, "snapshot", {}, meta, dtype=None))
    state = pretraining.start(tiny.filled(UNet(tiny.DDPM), seed=9), CONFIG)
    restore(state, stored.tensors, stored.meta)
    assert tiny.same(snapshot(trained(state=state))[0], snapshot(whole)[0])


def test_dropout_is_of_the_training_alone_and_resumes_exactly(tmp_path):
    config = replace(CONFIG, dropout=0.5)
    whole, plain, part = trained(config), trained(), trained(config, steps=3)
    assert whole.loss_history["loss"] != plain.loss_history["loss"]
    net, average = whole.net("net", UNet), whole.average("net", UNet)
    x, t = torch.zeros(1, 3, *[tiny.DDPM.image_size] * 2), torch.tensor([5])
    assert torch.equal(average(x, average.modulation(t)), average(x, average.modulation(t)))
    assert not torch.equal(net.train()(x, net.modulation(t)), net(x, net.modulation(t)))
    assert net.config.dropout == tiny.DDPM.dropout
    resumed = pretraining.start(tiny.filled(UNet(tiny.DDPM), seed=9), config)
    restore(resumed, *snapshot(part))
    assert tiny.same(snapshot(trained(config, state=resumed))[0], snapshot(whole)[0])


def test_training_lowers_the_loss():
    """On one picture at fixed noise and times, by the loop as it is."""
    config = replace(CONFIG, steps=25, lr=3e-3, ema_decay=0.0, augmentations=Augmentations(0, 0, 0, flip=False))
    state = pretraining.start(tiny.filled(UNet(tiny.DDPM)), config)
    objective = pretraining.picture_objective(pretraining.noise_loss, a_dataset(1), config)
    same = replace(objective, batch=lambda k: objective.batch(0))
    train(state, pretraining.stepper(state, same, config, Graphs()), LoopConfig(25), CPU)
    assert state.ema == {} and state.loss_history["loss"][-1] < 0.6 * state.loss_history["loss"][0]


class Kept(Graphs):
    """As on a GPU, but every call is made as it is: gradients stay where they are."""

    def __init__(self):
        super().__init__()
        self.keys = []

    def enabled(self, device):
        return True

    def __call__(self, key, function, *inputs):
        self.keys.append(key)
        return function(*(x.clone() for x in inputs))


@pytest.mark.parametrize("labelled", [False, True])
def test_gradients_that_stay_where_they_are_give_the_same(labelled):
    """What a graph needs: the step computes from its tensors alone and adds to the same gradients."""
    def run(graphs):
        config = replace(CONFIG, augmentation_labels=labelled)
        labels = pretraining.label_embedding(tiny.DDPM.embed) if labelled else None
        state = pretraining.start(tiny.filled(UNet(tiny.DDPM)), config, labels)
        objective = pretraining.picture_objective(pretraining.noise_loss, a_dataset(), config, labels=labels)
        places = []
        step = pretraining.stepper(state, objective, config, graphs)
        for k in range(3):
            step(k, Hooks())
            places.append([p.grad.data_ptr() for p in state.nets["net"].parameters()])
        return snapshot(state)[0], places
    kept = Kept()
    (plain, _), (found, places) = run(Graphs()), run(kept)
    assert tiny.same(plain, found) and places[0] == places[1] == places[2] and len(kept.keys) == 3
    assert not labelled or found["net/labels/weight"].abs().sum() > 0


def test_a_compiled_loss_is_no_graph(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda loss, dynamic: loss)
    config, kept = replace(CONFIG, compile=True), Kept()
    state = pretraining.start(tiny.filled(UNet(tiny.DDPM)), config)
    objective = pretraining.picture_objective(pretraining.noise_loss, a_dataset(), config)
    pretraining.stepper(state, objective, config, kept)(0, Hooks())
    assert not kept.keys


def test_each_process_takes_its_rows_of_one_batch():
    config = replace(CONFIG, batch=6, augmentations=Augmentations(colour=0.5), augmentation_labels=True)
    labels = pretraining.label_embedding(tiny.DDPM.embed)

    def batch(distributed):
        return pretraining.picture_objective(pretraining.noise_loss, a_dataset(), config, distributed, labels).batch(4)
    parts = [batch(Distributed(rank, 3)) for rank in range(3)]
    for whole, *mine in zip(batch(SINGLE_PROCESS), *parts, strict=True):
        assert torch.equal(torch.cat(mine), whole)
    z, told = torch.randn(9, 8), torch.randn(9, LABELS)

    def codes(distributed):
        return pretraining.latent_objective(z, config, distributed, (told, labels)).batch(4)
    parts = [codes(Distributed(rank, 2)) for rank in range(2)]
    for whole, *mine in zip(codes(SINGLE_PROCESS), *parts, strict=True):
        assert torch.equal(torch.cat(mine), whole)


def test_a_network_is_told_of_augmentations_in_training_alone():
    """Labels begin without effect, are learned, and a picture without them is one of zeros."""
    config = replace(CONFIG, augmentation_labels=True)
    net, labels = tiny.filled(UNet(tiny.DDPM)), pretraining.label_embedding(tiny.DDPM.embed)
    objective = pretraining.picture_objective(pretraining.noise_loss, a_dataset(), config, labels=labels)
    *batch, told = objective.batch(0)
    assert told.shape == (2, LABELS) and torch.equal(objective.loss(net, *batch), objective.loss(net, *batch, told))
    torch.nn.init.normal_(labels.weight)
    plain = objective.loss(net, *batch)
    assert not torch.equal(plain, objective.loss(net, *batch, told))
    assert torch.equal(plain, objective.loss(net, *batch, torch.zeros_like(told)))
    state = pretraining.start(net, config, labels)
    assert "labels" not in state.ema and len(state.optimizers["net"].param_groups[0]["params"]) == len(
        list(net.parameters())) + 1


def test_the_latent_ddim_is_told_of_augmentations_too():
    net, labels = tiny.diffae().latent_net, pretraining.label_embedding(tiny.WIDTH)
    torch.nn.init.normal_(labels.weight)
    z, told = torch.randn(9, tiny.WIDTH), torch.randn(9, LABELS)

    def loss(told, labelled=True):
        objective = pretraining.latent_objective(z, CONFIG, labelled=(told, labels) if labelled else None)
        return objective.loss(net, *objective.batch(0))
    plain = loss(told, labelled=False)
    assert torch.equal(plain, loss(torch.zeros_like(told))) and not torch.equal(plain, loss(told))


def test_the_measured_loss_is_that_of_fixed_noises_at_times_spread_over_all():
    seen = []

    def loss(net, x0, t, noise):
        seen.append((x0, t, noise))
        return t.float().mean()
    pictures = a_dataset(5).pictures
    found = pretraining.fixed_loss(torch.nn.Identity(), loss, pictures, rounds=4, batch=8)
    x0, t, noise = (torch.cat(part) for part in zip(*seen))
    assert found == pytest.approx(float(t.float().mean())) and sorted(t.tolist()) == list(range(0, 1000, 50))
    assert torch.equal(x0, (pictures.float() / 127.5 - 1).repeat(4, 1, 1, 1)) and abs(float(noise.std()) - 1) < 0.02
    assert pretraining.fixed_loss(torch.nn.Identity(), loss, pictures, rounds=4, batch=8) == found
    assert torch.equal(noise, torch.cat([n for _, _, n in seen[3:]]))


# --- codes -------------------------------------------------------------------------------------------------------
def test_statistics_normalise_the_codes_and_stay_in_the_model():
    net, dataset = tiny.diffae(), a_dataset()
    z, told = pretraining.encode_dataset(net, dataset, Augmentations(), rounds=3, seed=1, batch=4)
    assert z.shape == (18, tiny.WIDTH) and told.shape == (18, LABELS) and told[:, :4].ne(0).all()
    assert torch.equal(z, pretraining.encode_dataset(net, dataset, Augmentations(), 3, 1, 4)[0])
    assert not torch.equal(z[:6], z[6:12])
    normal = pretraining.set_statistics(net, z)
    assert normal.mean(0).abs().max() < 1e-4 and torch.allclose(normal.std(0), torch.ones(tiny.WIDTH), atol=1e-3)
    assert torch.allclose(net.conds_mean, z.mean(0)) and torch.allclose(net.conds_std, z.std(0))
    still, _ = pretraining.encode_dataset(net, dataset, Augmentations(0, 0, 0, flip=False), 1, 0)
    assert torch.allclose(still, net.encode(dataset.pictures.float() / 127.5 - 1), atol=1e-3)


# --- recipes -----------------------------------------------------------------------------------------------------
@pytest.fixture
def folders(tmp_path):
    """Ten photos and two classes of drawings of five."""
    for i, x in enumerate(tiny.pictures(20)):
        folder = tmp_path / ("photos" if i < 10 else f"art/a_{'round' if i < 15 else 'square'}")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = ((x + 1) * 127.5).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return Folders(tmp_path / "photos", tmp_path / "art", holdout=5)


def test_held_out_pictures_and_excluded_classes_are_not_trained_on(folders):
    kept, held = folders.photo_paths()
    assert len(kept) == 8 and [p.stem for p in held] == ["04", "09"]
    assert len(folders.art_paths()[0]) == 8
    assert {p.parent.name for p in replace(folders, exclude=("a_round",)).art_paths()[0]} == {"a_square"}
    assert replace(folders, art=None).art_paths() == ([], [])
    classes, label = diffusion.clip_classes(folders)
    assert classes == ("photo", "round", "square")
    assert [label(folders.art / "a_square" / "x.png"), label(folders.photos / "x.png")] == [2, 0]


def test_every_class_of_art_has_the_same_share_however_many_pictures_and_folders(folders):
    more = folders.art / "ours" / "a_square"
    more.mkdir(parents=True)
    for path in (folders.art / "a_square").iterdir():
        shutil.copy(path, more)
    groups = folders.groups(0, 0.4)
    assert [(len(paths), share) for paths, share in groups] == [(8, 0.4), (4, 0.3), (8, 0.3)]
    assert [len(paths) for paths, _ in replace(folders, art=None).groups(1, 0.4)] == [2]
    paths = folders.art_paths()[0]
    recipe = RecipeConfig(folders.photos.parent / "x.safetensors", CPU)
    with mmfs.art_stream(folders, 32, GANConfig(batch=4), recipe, 4) as stream:  # MMFS's, too
        weights = {p: float(w) for p, w in zip(paths, stream.weights, strict=True)}
    total = {name: sum(w for p, w in weights.items() if p.parent.name == name) for name in ("a_round", "a_square")}
    assert total == {"a_round": pytest.approx(1), "a_square": pytest.approx(1)}


def test_a_recipe_stopped_by_its_time_resumes_to_the_same_model(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion, "small_ddpm", lambda px: replace(tiny.DDPM, out_channels=3, head_channels=0))

    def run(name, minutes=0.0):
        recipe = RecipeConfig(tmp_path / name, CPU, save_every=2, log_every=1, minutes=minutes)
        diffusion.ddpm(folders, 32, replace(CONFIG, steps=4), recipe)
        return load_ddpm(tmp_path / name)

    whole = run("whole.safetensors")
    run("part.safetensors", minutes=1e-9)  # one step
    assert store.peek(tmp_path / "part.snapshot").meta["step"] == 1
    again = run("part.safetensors")
    assert store.peek(tmp_path / "part.snapshot").meta["step"] == 4
    assert tiny.same(whole.state_dict(), again.state_dict()) and whole.config.image_size == 32


@pytest.mark.parametrize("holdout", [5, 0])
def test_a_recipe_measures_what_it_learns_and_what_is_held_out(folders, tmp_path, monkeypatch, holdout):
    monkeypatch.setattr(diffusion, "small_ddpm", lambda px: replace(tiny.DDPM, out_channels=3, head_channels=0))
    out = tmp_path / "ddpm.safetensors"
    recipe = RecipeConfig(out, CPU, log_every=1, preview_every=2)
    config = replace(CONFIG, steps=3, augmentation_labels=True)
    diffusion.ddpm(replace(folders, holdout=holdout), 32, config, recipe)
    meta = store.peek(out).meta
    assert meta["samples"] == 6 and meta["measured_at"] == [2.0, 3.0]
    assert len(meta["seen"]) == 2 and len(meta["held_out"]) == (2 if holdout else 0)
    assert meta["seen"] != meta["held_out"] and min(meta["seen"] + meta["held_out"]) > 0
    pictures = [path.name for path in (tmp_path / "ddpm_log").glob("*.jpg")]
    assert sorted(pictures) == ["ddpm_000002.jpg", "ddpm_000003.jpg"]
    assert not any("labels" in name for name in load_ddpm(out).state_dict())


def test_compared_photos_are_spread_over_all_folders(folders, monkeypatch):
    seen, held_out = diffusion.compared(folders, 16, CPU)
    assert len(seen) == len(held_out) == 2
    whole = read_pictures(folders.photo_paths()[0], 16)
    assert torch.equal(seen, whole[[0, 4]])
    monkeypatch.setattr(diffusion, "COMPARED", 1)
    assert [len(part) for part in diffusion.compared(folders, 16, CPU)] == [1, 1]
    seen, held_out = diffusion.compared(replace(folders, holdout=0), 16, CPU)
    assert held_out is None and len(seen) == 1


def test_a_snapshot_of_0_2_has_no_labels_and_may_be_compiled_or_not(tmp_path):
    settings = {"training": "diffusion pretraining", "iterations": 6, "compile": True, "augmentation_labels": False}
    before = {name: value for name, value in settings.items() if name not in ("compile", "augmentation_labels")}
    assert session.difference(before, settings) is None
    assert session.difference(before, settings | {"augmentation_labels": True}).startswith("augmentation_labels was")


def test_the_small_clip_is_for_one_process(folders, tmp_path):
    recipe = RecipeConfig(tmp_path / "clip.safetensors", CPU, Distributed(1, 2))
    with pytest.raises(ValueError, match="compares every picture of a batch.*start one process"):
        diffusion.clip(folders, 32, CONFIG, recipe)


@pytest.mark.parametrize(("names", "said"), [
    (("npr_oil", "vector_oil"), "'npr_oil' and 'vector_oil' would both be called 'oil'"),
    (("npr_photo",), "'photos' and 'npr_photo' would both be called 'photo'"),
    (("水墨",), "'水墨' has no word")])
def test_classes_that_captions_cannot_tell_apart_are_refused_before_training(folders, tmp_path, names, said):
    for name in names:
        shutil.copytree(folders.art / "a_round", folders.art / name)
    with pytest.raises(ValueError, match=said):
        diffusion.clip(folders, 32, CONFIG, RecipeConfig(tmp_path / "clip.safetensors", CPU))
    assert not (tmp_path / "clip.snapshot").exists()


def test_a_drawing_of_a_photo_in_a_folder_is_held_out_as_its_photo_is(folders, tmp_path):
    nested, drawings = tmp_path / "nested", tmp_path / "drawn" / "npr_oil"
    drawings.mkdir(parents=True)
    for i, path in enumerate(sorted(folders.photos.iterdir())):
        target = nested / ("a" if i < 3 else "b") / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        shutil.copy(path, drawings / f"{target.parent.name}_{path.name}")
    shutil.copy(path, drawings / "other.png")
    given = Folders(nested, tmp_path / "drawn", holdout=3)
    (photos, held), (drawn, drawn_held) = given.photo_paths(), given.art_paths()
    assert [f"{p.parent.name}_{p.name}" for p in held] == [p.name for p in drawn_held]
    assert [*(f"{p.parent.name}_{p.name}" for p in photos), "other.png"] == [p.name for p in drawn]
    assert folders.art_paths() == split(sorted(folders.art.rglob("*.png")), 5), "flat folders are counted as ever"


@pytest.mark.parametrize("changes", [{"exclude": ("a_rund",)}, {"weights": (("vector_*", 2.0),)}])
def test_names_that_no_class_of_art_has_are_refused(folders, changes):
    with pytest.raises(ValueError, match=r"no class of art is called '(a_rund|vector_\*)'; there are a_round, "):
        replace(folders, **changes).groups(0, 0.5)


@pytest.fixture
def small_clip(monkeypatch):
    monkeypatch.setattr(diffusion.small_clip, "small_config",
                        lambda words, px, patch: replace(tiny.CLIP, vocabulary=len(words) + 3, words=words, context=24))


def test_a_clip_is_written_though_nothing_is_held_out(folders, tmp_path, small_clip, caplog):
    recipe = RecipeConfig(tmp_path / "clip.safetensors", CPU)
    net, accuracy = diffusion.clip(replace(folders, holdout=0), 32, replace(CONFIG, steps=1), recipe)
    assert accuracy == {} and "no picture is held out" in caplog.text
    assert load_clip(recipe.out).config == net.config and store.peek(recipe.out).meta == {}


def test_a_clip_is_written_before_it_is_measured(folders, tmp_path, small_clip, monkeypatch):
    monkeypatch.setattr(diffusion.retrieval, "measure", lambda *_: pytest.fail("no memory"))
    with pytest.raises(pytest.fail.Exception):
        diffusion.clip(folders, 32, replace(CONFIG, steps=1), RecipeConfig(tmp_path / "clip.safetensors", CPU))
    load_clip(tmp_path / "clip.safetensors")


def test_the_autoencoder_and_its_latent_ddim_are_stored_as_one_model(folders, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(diffusion, "small_diffae", lambda px: tiny.DIFFAE)
    out, config = tmp_path / "diffae.safetensors", replace(CONFIG, steps=2)
    recipe = RecipeConfig(out, CPU, log_every=1)
    with caplog.at_level(logging.INFO):
        diffusion.diffae(folders, 32, config, recipe)
    first = load_diffae(out)
    diffusion.latent(folders, config, recipe)
    found = load_diffae(out)
    assert found.config == tiny.DIFFAE and "diffae step 2 of 2" in caplog.text
    assert tiny.same(first.unet.state_dict(), found.unet.state_dict())
    assert first.conds_std.eq(1).all() and not found.conds_std.eq(1).any()
    assert not tiny.same(first.latent_net.state_dict(), found.latent_net.state_dict())


def test_the_small_clip_is_stored_with_its_words_and_how_well_it_knows_them(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(diffusion.small_clip, "small_config",
                        lambda words, px, patch: replace(tiny.CLIP, vocabulary=len(words) + 3, words=words, context=24))
    labels.write(folders.photos, {"04.png": ("beanie",), "09.png": ("fedora",), "00.png": ("beanie", "adult")})
    config = replace(CONFIG, steps=2)
    net, accuracy = diffusion.clip(folders, 32, config, RecipeConfig(tmp_path / "clip.safetensors", CPU))
    found = load_clip(tmp_path / "clip.safetensors")
    assert set(accuracy) == {"photo", "round", "square", "all"} and 0 <= accuracy["all"] <= 1
    assert found.config == net.config and {"square", "beanie"} <= set(found.config.words)
    measured = store.peek(tmp_path / "clip.safetensors").meta["retrieval"]
    assert set(measured) == {"words", "words of drawings", "recall"} and measured["recall"]["captions"] == 4
    assert measured["words"]["kind of hat"] in (0, 0.5, 1)
    assert clip_words.main([str(tmp_path / "clip.safetensors"), f"--photos={folders.photos}", f"--art={folders.art}",
                            "--holdout=5"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["recall"]["pictures"] == 4 and set(printed["zero-shot"]) == set(accuracy)
    with torch.no_grad():
        assert torch.allclose(found.embed_text(["a round face"]), net.embed_text(["a round face"]), atol=2e-2)


@pytest.fixture
def ddpm(folders, tmp_path, monkeypatch):
    """Trains the DDPM at one place, from other folders or weights."""
    monkeypatch.setattr(diffusion, "small_ddpm", lambda px: replace(tiny.DDPM, out_channels=3, head_channels=0))

    def run(init=None, out="ddpm.safetensors", **changes):
        recipe = RecipeConfig(tmp_path / out, CPU, log_every=1)
        return diffusion.ddpm(replace(folders, **changes), 32, replace(CONFIG, steps=2), recipe, init)
    return run


def test_a_snapshot_of_other_photos_or_weights_is_not_resumed(folders, tmp_path, ddpm):
    ddpm()
    before = (tmp_path / "ddpm.safetensors").read_bytes()
    shutil.copytree(folders.photos, tmp_path / "fewer", ignore=shutil.ignore_patterns("03.png"))
    for changes, what in (({"photos": tmp_path / "fewer"}, "the set of photos"), ({"holdout": 4}, "the set of photos"),
                          ({"init": tmp_path / "ddpm.safetensors"}, "the model it starts from")):
        with pytest.raises(CheckpointError, match=f"ddpm.snapshot .*: {what} was another one"):
            ddpm(**changes)
    assert (tmp_path / "ddpm.safetensors").read_bytes() == before
    ddpm(art=None)  # has no part in it


def test_a_snapshot_of_other_art_is_not_resumed(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion, "small_diffae", lambda px: tiny.DIFFAE)
    recipe, config = RecipeConfig(tmp_path / "a.safetensors", CPU, log_every=1), replace(CONFIG, steps=1)
    diffusion.diffae(folders, 32, config, recipe)
    with pytest.raises(CheckpointError, match="the artistic set was another one"):
        diffusion.diffae(replace(folders, exclude=("a_round",)), 32, config, recipe)
    with pytest.raises(CheckpointError, match="art_weights was ''"):
        diffusion.diffae(replace(folders, weights=(("a_round", 2.0),)), 32, config, recipe)


def test_snapshots_of_0_2_do_not_tell_of_pictures_and_are_resumed():
    now = {"training": "diffusion pretraining", "iterations": 6, "model": "new", "photo_files": "1", "art": "2",
           "art_weights": ""}
    before = {"training": "diffusion pretraining", "iterations": 6}
    assert session.difference(before, now) is None
    assert session.difference(before, now | {"art_weights": "a=2"}).startswith("art_weights was ''")
    assert "the autoencoder" in session.difference(before, now | {"autoencoder": "3"})


def test_the_latent_ddim_of_an_autoencoder_that_was_trained_on_is_not_taken(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion, "small_diffae", lambda px: tiny.DIFFAE)
    recipe = RecipeConfig(tmp_path / "a.safetensors", CPU, log_every=1)
    diffusion.diffae(folders, 32, replace(CONFIG, steps=1), recipe)
    diffusion.latent(folders, replace(CONFIG, steps=1), recipe)
    diffusion.latent(folders, replace(CONFIG, steps=2), recipe)  # of the file that now holds it
    diffusion.diffae(folders, 32, replace(CONFIG, steps=3), recipe)
    with pytest.raises(CheckpointError, match="a_latent.snapshot .*: the autoencoder whose codes it learns was anoth"):
        diffusion.latent(folders, replace(CONFIG, steps=2), recipe)
    assert load_diffae(recipe.out).conds_std.eq(1).all()


def test_weights_to_begin_with_that_do_not_fit_are_refused_with_what_to_do(tmp_path, ddpm, monkeypatch):
    ddpm(out="first.safetensors")
    ddpm(init=tmp_path / "first.safetensors", out="second.safetensors")
    monkeypatch.setattr(diffusion, "small_ddpm", lambda px: replace(tiny.DDPM, base=2 * tiny.DDPM.base))
    with pytest.raises(ValueError, match="first.safetensors do not fit .*same --size, or leave --init out"):
        ddpm(init=tmp_path / "first.safetensors", out="third.safetensors")
    store.save(tmp_path / "clip.safetensors", {"w": torch.ones(1)}, "clip", {})
    with pytest.raises(CheckpointError, match="clip.safetensors"):
        ddpm(init=tmp_path / "clip.safetensors", out="third.safetensors")


def test_of_many_measurements_a_model_s_file_tells_some_of_all_parts():
    run = pretraining.start(tiny.filled(UNet(tiny.DDPM)), CONFIG)
    run.loss_history = {"seen": [k / 2 for k in range(300_000)], "measured_at": [float(k) for k in range(300_000)]}
    found = measured(run, "seen", "held_out")
    assert len(found["seen"]) == len(found["measured_at"]) == 1000 and found["held_out"] == []
    assert found["measured_at"][::999] == [0, 299_999] and found["seen"] == [k / 2 for k in found["measured_at"]]
