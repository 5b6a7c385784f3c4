"""Content of an OSASIS fine-tune on disk: it changes nothing but the time, whatever happens to the files."""
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oneshot_atelier.models.checkpoints import CheckpointError, store
from oneshot_atelier.models.diffae import DiffAE, DiffAEConfig, LatentConfig
from oneshot_atelier.models.features.encoder import EncoderDistance
from oneshot_atelier.models.unet import UNetConfig
from oneshot_atelier.tests import tiny
from oneshot_atelier.train import content as content_module
from oneshot_atelier.train import content_files, osasis
from oneshot_atelier.train.content import BLOCK, GeneratedContent, content_source
from oneshot_atelier.train.content_files import ContentFolder
from oneshot_atelier.train.loop import Checkpointing, Hooks, snapshot
from oneshot_atelier.train.osasis import FrozenNetworks, OSASISConfig, tune_style

PX = 16
SMALL = DiffAEConfig(UNetConfig(PX, 16, (1,), blocks=1, embed=16, cond=16), (1, 1), LatentConfig(16, 24, 2, 16))
CONFIG = OSASISConfig(iterations=2, batch=6, lr=1e-3, lr_spn=1e-3, forward_steps=4, reverse_steps=4, latent_steps=2,
                      generate_steps=2, seed=3)  # 12 items: two blocks
REUSED = replace(CONFIG, cached_content=11)
MODES = pytest.mark.parametrize("config", [CONFIG, REUSED], ids=["fresh", "reused"])


class Stop(Exception):
    """Raised by a hook, as a cancelled prompt does."""


class Said(list):
    """What a training says: its hooks put it here."""

    def hooks(self, **others):
        return Hooks(warn=lambda text: self.append(f"warning: {text}"), tell=self.append, **others)

    @property
    def warnings(self):
        return [text for text in self if text.startswith("warning: ")]


@pytest.fixture(autouse=True)
def made(monkeypatch):
    """The blocks that were made, as their first items."""
    found, plain = [], content_module.generate_pictures

    def counted(*arguments):
        found.append(arguments[1][0])
        return plain(*arguments)
    monkeypatch.setattr(content_module, "generate_pictures", counted)
    return found


@pytest.fixture
def folder(tmp_path):
    return ContentFolder(tmp_path / "content")


def tuned(config=CONFIG, folder=None, hooks=Hooks(), style=2, checkpointing=Checkpointing(), seed=0, leaves=False):
    """Every number of a run after its end, with networks of its own."""
    frozen = tiny.diffae(seed, SMALL)
    nets = FrozenNetworks(frozen, tiny.clip(), EncoderDistance(tiny.diffae(seed, SMALL).encoder), "model", leaves)
    made_style, run = tune_style(nets, tiny.pictures(1, 1, PX), tiny.pictures(1, style, PX), config, None,
                                 checkpointing, hooks, folder)
    return snapshot(run)[0] | {"z_style": made_style.z_style}


def files_in(folder):
    return sorted(path for path in folder.path.rglob("*") if path.is_file())


# --- the same result -------------------------------------------------------------------------------------------------
@MODES
def test_a_style_is_the_same_bit_for_bit_without_a_store_and_with_it_empty_half_full_and_full(config, folder, made):
    plain, said = tuned(config), Said()
    assert made == [0, 8]
    made.clear()
    assert tiny.same(tuned(config, folder, said.hooks()), plain) and made == [0, 8]
    assert tiny.same(tuned(config, folder, said.hooks()), plain) and made == [0, 8], "nothing is made again"
    os.remove(files_in(folder)[0])
    assert tiny.same(tuned(config, folder, said.hooks()), plain) and made == [0, 8, 0]
    assert len(files_in(folder)) == 2 and not said.warnings
    needed = config.cached_content or 12
    starts = [text.split(" from disk")[0] for text in said if "from disk" in text]
    assert starts == [f"content: {n} of {needed} pictures" for n in (0, needed, needed - BLOCK)]
    told = [text for text in said if text.startswith("content: ")]
    assert all(text.endswith(f" GB of at most 4 GB in {folder.path}") for text in told) and len(told) == len(said)


def test_every_style_of_a_model_uses_what_the_first_one_made(folder, made):
    tuned(CONFIG, folder)
    made.clear()
    others = replace(CONFIG, iterations=6, batch=2, lr=1e-2, spn="none", dropout=False, precision="bfloat16")
    tuned(others, folder, style=5)
    assert not made and len(files_in(folder)) == 2
    tuned(replace(CONFIG, iterations=3), folder)
    assert made == [16], "more iterations make what is new"


@pytest.mark.parametrize("changes", [{"seed": 4}, {"forward_steps": 5}, {"latent_steps": 4}, {"generate_steps": 4},
                                     {"t0": 0.75}, {"cached_content": 8}])
def test_what_decides_the_content_has_a_folder_of_its_own(changes, folder, made):
    tuned(CONFIG, folder)
    plain = tuned(replace(CONFIG, **changes))
    made.clear()
    assert tiny.same(tuned(replace(CONFIG, **changes), folder), plain)
    assert made and len({path.parent for path in files_in(folder)}) == 2


@pytest.mark.parametrize("name", ["unet.out.2.weight", "encoder.out.0.weight", "latent_net.layers.0.linear.weight",
                                  "conds_mean"])
def test_the_last_bit_of_any_weight_makes_another_model(name, folder):
    """A slim copy of 16 bit has the same fingerprint, and gives other content."""
    nets = [tiny.diffae(0, SMALL) for _ in range(3)]
    nets[1].state_dict()[name].view(-1)[0] += 1e-6
    keys = [GeneratedContent(net, "content", CONFIG, folder=folder).files.place for net in nets]
    assert keys[0] == keys[2] != keys[1]


def test_an_item_is_the_same_bit_for_bit_in_every_batch():
    frozen = tiny.diffae(0, SMALL)
    whole = GeneratedContent(frozen, "content", CONFIG).items(range(3, 19))
    assert whole.picture.shape == (16, 3, PX, PX) and whole.z.shape == (16, 16)
    for batch, k in ((1, 5), (4, 1), (6, 2)):  # items 5; 4 to 7; 12 to 17
        found, rows = content_source(frozen, replace(CONFIG, batch=batch))(k), slice(k * batch - 3, (k + 1) * batch - 3)
        assert all(torch.equal(getattr(found, name), getattr(whole, name)[rows]) for name in ("picture", "z", "x"))


def test_codes_are_sampled_for_many_blocks_at_once_and_depend_on_the_item_alone(monkeypatch):
    frozen, calls, plain = tiny.diffae(0, SMALL), [], DiffAE.sample_z
    monkeypatch.setattr(DiffAE, "sample_z", lambda self, *a: calls.append(len(a[0])) or plain(self, *a))
    source = GeneratedContent(frozen, "content", CONFIG)
    first = source.items(range(24))
    assert calls == [content_module.CODES]
    later = GeneratedContent(frozen, "content", CONFIG).items(range(17, 20))
    assert torch.equal(later.x, first.x[17:20]) and torch.equal(later.z, first.z[17:20])


@MODES
def test_16_bit_content_is_rounded_alike_with_and_without_a_store(config, folder, monkeypatch, made):
    exact = tuned(config)
    monkeypatch.setattr(content_module, "dtype_of", lambda *_: torch.float16)
    plain = tuned(config)
    assert not tiny.same(plain, exact)
    assert all(tiny.same(tuned(config, folder), plain) for _ in range(2))
    stored = store.load(files_in(folder)[0]).tensors
    assert {name: value.dtype for name, value in stored.items()} == {
        "picture": torch.float16, "x": torch.float16, "z": torch.float32}


@MODES
def test_a_stopped_run_is_resumed_to_the_same_style_from_a_full_an_empty_and_no_store(config, folder, tmp_path):
    whole, told = tuned(config), []

    def stop(result):
        told.append(result)
        if len(told) == 3:
            raise Stop
    for k, (before, after) in enumerate(((folder, None), (None, folder), (folder, folder))):
        told.clear()
        checkpointing = Checkpointing(tmp_path / f"{k}.snapshot")
        with pytest.raises(Stop):
            tuned(config, before, Hooks(on_step=stop), checkpointing=checkpointing)
        assert tiny.same(tuned(config, after, checkpointing=checkpointing), whole)


# --- files that cannot be used ---------------------------------------------------------------------------------------
def flipped(path, other):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def cut_off(path, other):
    path.write_bytes(path.read_bytes()[:-7])


def of_another_kind(path, other):
    store.save(path, {"w": torch.ones(3)}, "ddpm", {})


def of_other_shapes(path, other):
    stored = store.load(path)
    tensors = {name: value[:4] for name, value in stored.tensors.items()}
    store.save(path, tensors, stored.kind, stored.config, stored.meta, None)


def of_another_block(path, other):
    shutil.copy(other, path)


def a_text(path, other):
    path.write_text("no content")


def empty(path, other):
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [flipped, cut_off, of_another_kind, of_other_shapes, of_another_block, a_text, empty])
def test_a_file_that_cannot_be_used_is_warned_of_and_made_anew(spoil, folder, made):
    plain, said = tuned(CONFIG, folder), Said()
    first, second = files_in(folder)
    good = first.read_bytes()
    spoil(first, second)
    made.clear()
    assert tiny.same(tuned(CONFIG, folder, said.hooks()), plain) and made == [0]
    assert len(said.warnings) == 1 and "made anew" in said.warnings[0] and first.name in said.warnings[0]
    assert first.read_bytes() == good, "the same key gives the same bytes"


def test_what_a_killed_process_left_is_no_content_and_goes_with_the_next_write(folder):
    plain = tuned(CONFIG, folder)
    first = files_in(folder)[0]
    half = first.with_name(f".{first.name}.abcd1234.tmp")
    half.write_bytes(first.read_bytes()[:100])
    first.unlink()
    assert tiny.same(tuned(CONFIG, folder), plain)
    assert first.exists() and not half.exists()


def test_a_huge_foreign_file_is_refused_by_its_header(folder, made, monkeypatch):
    plain = tuned(CONFIG, folder)
    first = files_in(folder)[0]
    store.save(first, {"w": torch.zeros(1 << 20)}, "osasis_content", {})
    plain_load = store.load
    monkeypatch.setattr(store, "load", lambda path, *k: pytest.fail("read") if path == first else plain_load(path, *k))
    made.clear()
    assert tiny.same(tuned(CONFIG, folder, Said().hooks()), plain) and made == [0]


# --- where nothing can be written ------------------------------------------------------------------------------------
def no_room(monkeypatch, folder):
    def save(path, *_, **__):
        raise CheckpointError("no space left on device")
    monkeypatch.setattr(content_files.store, "save", save)


def a_file_in_the_way(monkeypatch, folder):
    folder.path.write_text("no folder")


def an_unreadable_disk(monkeypatch, folder):
    def disk_usage(path):
        raise OSError("input/output error")
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)


@pytest.mark.parametrize("hinder", [no_room, a_file_in_the_way, an_unreadable_disk])
def test_a_disk_that_takes_nothing_is_warned_of_once_and_the_training_goes_on(hinder, folder, monkeypatch):
    plain, said = tuned(), Said()
    hinder(monkeypatch, folder)
    assert tiny.same(tuned(CONFIG, folder, said.hooks()), plain)
    assert len(said.warnings) == 1 and "cannot be kept on disk" in said.warnings[0]


def test_the_last_gigabytes_of_a_disk_are_left_for_snapshots(folder, monkeypatch):
    said = Said()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 1 << 40, 2 << 30))
    tuned(CONFIG, folder, said.hooks())
    assert not files_in(folder) and not said.warnings and any("no more room" in text for text in said)


# --- the size of the folder ------------------------------------------------------------------------------------------
def size(folder):
    return sum(path.stat().st_size for path in files_in(folder))


def bytes_of_block():
    return GeneratedContent(tiny.diffae(0, SMALL), "content", CONFIG, folder=ContentFolder(Path())).files.bytes


def used_long_ago(folder, key, seconds):
    os.utime(key, (1e9 - seconds,) * 2)


def test_the_least_recently_used_settings_leave_first_and_others_files_stay(tmp_path):
    folder = ContentFolder(tmp_path / "content", int(5.5 * bytes_of_block()))
    keys = []
    for seed in range(2):
        tuned(replace(CONFIG, seed=seed), folder)
        keys += [path for path in folder.path.iterdir() if path not in keys]
    foreign = [folder.path / "mine.safetensors", keys[1] / "notes.txt", folder.path / ("a" * 32),
               folder.path / "pictures" / "000000.content"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(files_in(ContentFolder(keys[0]))[0], elsewhere / "000000.content")
    (folder.path / ("b" * 32)).symlink_to(elsewhere)
    for path, age in ((keys[0], 10), (keys[1], 20)):
        used_long_ago(folder, path, age)
    tuned(CONFIG, folder)
    assert keys[0].exists() and not list(keys[1].glob("*.content")), "the one that was used last stays"
    assert all(path.read_text() == "mine" for path in foreign) and (elsewhere / "000000.content").exists()
    assert sum(folder.sizes().values()) <= folder.limit


def test_reading_counts_as_use(folder):
    tuned(CONFIG, folder)
    key = files_in(folder)[0].parent
    used_long_ago(folder, key, 0)
    tuned(CONFIG, folder)
    assert content_files.last_use(key) > 1.1e9


@pytest.mark.parametrize(("blocks", "kept"), [(0.5, 0), (1.5, 1)])
def test_a_run_that_needs_more_than_the_limit_keeps_its_first_blocks(blocks, kept, tmp_path, made):
    folder, said = ContentFolder(tmp_path / "content", int(blocks * bytes_of_block())), Said()
    plain = tuned()
    assert tiny.same(tuned(CONFIG, folder, said.hooks()), plain)
    assert [path.name for path in files_in(folder)] == ["000000.content", "000001.content"][:kept]
    assert len([text for text in said if "no more room" in text]) == 1 and not said.warnings
    assert tiny.same(tuned(CONFIG, folder), plain)


def test_zero_is_off_and_less_is_refused(tmp_path):
    assert ContentFolder.of(tmp_path, 0) is None and ContentFolder.of(tmp_path, 1.5).limit == 1_500_000_000
    with pytest.raises(ValueError, match="the limit of the content folder is -1"):
        ContentFolder(tmp_path, -1)


# --- several processes -----------------------------------------------------------------------------------------------
def test_a_key_that_another_process_removes_is_made_again(folder, made):
    plain, removed = tuned(), []

    def remove(result):
        if not removed:
            removed.append([content_files.remove_files(path) for path in folder.path.iterdir()])
    made.clear()
    said = Said()
    assert tiny.same(tuned(CONFIG, folder, said.hooks(on_step=remove)), plain)
    assert removed and [path.name for path in files_in(folder)] == ["000001.content"] and not said.warnings


def test_a_file_that_goes_between_looking_and_reading_is_made(folder, monkeypatch, made):
    plain = tuned(CONFIG, folder)
    monkeypatch.setattr(content_files.ContentFiles, "has", lambda self, number: True)
    shutil.rmtree(files_in(folder)[0].parent)
    said = Said()
    made.clear()
    assert tiny.same(tuned(CONFIG, folder, said.hooks()), plain) and made == [0, 8] and not said.warnings


# --- the networks ----------------------------------------------------------------------------------------------------
@pytest.fixture
def moves(monkeypatch):
    """What A does: it is asked for where a block is made, and leaves."""
    found, plain = [], DiffAE.to
    monkeypatch.setattr(DiffAE, "to", lambda self, place: found.append("leaves" if place == "cpu" else "is used")
                        or plain(self, place))
    return found


def test_a_leaves_before_the_first_step_if_all_content_is_there(moves, folder):
    def moved(config, folder, leaves):
        moves.clear()
        tuned(config, folder, Hooks(on_step=lambda result: moves.append("step")), leaves=leaves)
        return list(moves)
    steps = ["step"] * 4
    assert torch.device("cpu") != "cpu", "the two kinds of move can be told apart"
    assert moved(REUSED, None, True) == ["is used", "is used", "leaves", *steps]
    assert moved(REUSED, None, False) == ["is used", "is used", *steps], "it is somebody else's"
    half = ["is used", "step", "step", "is used", "step", "step"]
    assert moved(CONFIG, folder, True) == half, "it makes new content until the end"
    assert moved(CONFIG, folder, True) == ["leaves", *steps], "all of it is on disk"
    flipped(files_in(folder)[1], None)
    assert moved(CONFIG, folder, True) == ["leaves", "step", "step", "is used", "step", "step"], "it comes back"


def test_what_is_trained_has_neither_encoder_nor_latent_ddim():
    run = osasis.start(tiny.diffae(0, SMALL), CONFIG)
    names = [name for net in run.nets.values() for name, _ in net.named_parameters()]
    assert set(run.nets) == {"unet", "spn"} and not any("latent" in n or "encoder" in n for n in names)
