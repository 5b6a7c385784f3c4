"""The pack's own store: round trips, atomic writing, refusals."""

import contextlib
import hashlib
import json
import os
import stat
import struct
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from oneshot_atelier.models.checkpoints import CheckpointError, WrongKindError, facts, read, store
from oneshot_atelier.models.kinds import KINDS
from oneshot_atelier.models.loading import read_kind
from oneshot_atelier.models.whole_files import whole_file

CONFIG = {"base": 32, "mult": [1, 2], "dropout": 0.1, "spn": None}
META = {"seed": 7, "losses": [0.5, 0.25], "note": "é \"quoted\""}


def some_tensors():
    generator = torch.Generator().manual_seed(0)
    return {"w": torch.randn(4, 3, 2, 2, generator=generator), "b": torch.randn(5, generator=generator),
            "count": torch.tensor([1, 2**40]), "bytes": torch.arange(256, dtype=torch.uint8), "empty": torch.zeros(0,
                                                                                                                   3),
            "scalar": torch.tensor(2.5), "flag": torch.tensor([True, False])}


def write_safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_what_is_saved_is_loaded_with_floats_in_the_asked_type_and_integers_untouched(tmp_path, dtype):
    tensors = some_tensors()
    path = store.save(tmp_path / "new" / "a.safetensors", tensors, "osasis_style", CONFIG, META, dtype=dtype)
    found = store.load(path, "osasis_style")
    assert (found.kind, found.config, found.meta) == ("osasis_style", CONFIG, META)
    assert list(sorted(found.tensors)) == sorted(tensors)
    for name, tensor in tensors.items():
        wanted = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        assert found.tensors[name].dtype == wanted.dtype and torch.equal(found.tensors[name], wanted), name


def test_the_public_library_reads_what_is_saved(tmp_path):
    tensors = some_tensors() | {"b16": torch.ones(3).bfloat16(), "f64": torch.ones(2).double()}
    path = store.save(tmp_path / "a.safetensors", tensors, "ddpm", CONFIG, META, dtype=None)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found)


def test_the_default_is_sixteen_bit(tmp_path):
    path = store.save(tmp_path / "a.safetensors", {"w": torch.ones(1000)}, "ddpm", {})
    assert path.stat().st_size < 2600 and store.load(path).tensors["w"].dtype == torch.float16


def test_views_transposed_and_shared_tensors_are_saved_by_value(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"t": base.T, "row": base[1], "same": base, "again": base, "wide": torch.ones(1, 3).expand(5, 3)}
    found = store.load(store.save(tmp_path / "a.safetensors", tensors, "ddpm", {}, dtype=None)).tensors
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_peek_reads_the_description_and_shapes_only(tmp_path):
    path = store.save(tmp_path / "a.safetensors", some_tensors(), "diffae", CONFIG, META)
    header = store.peek(path)
    assert (header.kind, header.config, header.meta) == ("diffae", CONFIG, META)
    assert header.shapes["w"] == ("F16", (4, 3, 2, 2)) and header.shapes["count"] == ("I64", (2,))


def test_loaded_tensors_do_not_hang_on_the_file(tmp_path):
    path = store.save(tmp_path / "a.safetensors", {"w": torch.ones(64)}, "ddpm", {})
    loaded = store.load(path).tensors["w"]
    data = path.read_bytes()
    with open(path, "rb+") as file:
        file.write(b"\0" * len(data))
    assert torch.equal(loaded, torch.ones(64, dtype=torch.float16))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused_and_nothing_is_written(tmp_path, bad):
    with pytest.raises(CheckpointError, match="'w' holds NaN or infinite"):
        store.save(tmp_path / "a.safetensors", {"w": torch.tensor([1.0, bad])}, "ddpm", {})
    assert os.listdir(tmp_path) == []


def test_a_tensor_with_numbers_too_large_for_sixteen_bit_stays_in_thirty_two(tmp_path):
    tensors = {"large": torch.tensor([70000.0, 1.0]), "small": torch.ones(2), "largest": torch.tensor([65504.0])}
    found = store.load(store.save(tmp_path / "a.safetensors", tensors, "ddpm", {})).tensors
    assert {name: value.dtype for name, value in found.items()} == {
        "large": torch.float32, "small": torch.float16, "largest": torch.float16}
    assert all(torch.equal(found[name].float(), value) for name, value in tensors.items())
    with pytest.raises(CheckpointError, match="'w' .*too large for 32 bit"):
        store.save(tmp_path / "b.safetensors", {"w": torch.tensor([1e300], dtype=torch.float64)}, "ddpm", {})


def test_nan_is_blamed_on_the_training_and_the_tensor_is_named_before_the_history(tmp_path):
    bad = float("nan")
    meta = {"history": {"loss": [0.5, bad]}}
    with pytest.raises(CheckpointError, match="^tensor 'w' holds NaN or infinite numbers; the training diverged"):
        store.save(tmp_path / "a", {"w": torch.tensor([bad])}, "snapshot", {}, meta)
    with pytest.raises(CheckpointError, match="^'meta.history.loss' holds nan, which is no number; the training d"):
        store.save(tmp_path / "a", {"w": torch.ones(1)}, "snapshot", {}, meta)
    with pytest.raises(CheckpointError, match="^'config.lr' holds inf"):
        store.save(tmp_path / "a", {"w": torch.ones(1)}, "snapshot", {"lr": float("inf")})
    assert os.listdir(tmp_path) == []


def test_what_a_killed_save_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    stale = [tmp_path / f".a.safetensors.{x}.tmp" for x in ("abcdef12", "x_y_z_12")]
    others = [tmp_path / name for name in (".a.safetensors.tmp", ".b.safetensors.abcdef12.tmp", ".a.safetensors.old")]
    for path in (*stale, *others):
        path.write_bytes(b"x")
    store.save(tmp_path / "a.safetensors", {"w": torch.ones(1)}, "ddpm", {})
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "a.safetensors"])


def test_a_save_under_way_in_another_process_is_left_alone(tmp_path, monkeypatch):
    path, ready, main_done, seen = tmp_path / "a.safetensors", threading.Event(), threading.Event(), []
    write = store._write

    def slow(*args):
        write(*args)
        if threading.current_thread() is not threading.main_thread():
            ready.set()
            seen.append(main_done.wait(20))

    monkeypatch.setattr(store, "_write", slow)
    other = threading.Thread(target=store.save, args=(path, {"w": torch.zeros(1)}, "ddpm", {}))
    other.start()
    assert ready.wait(20)
    store.save(path, {"w": torch.ones(1)}, "ddpm", {})
    assert len(os.listdir(tmp_path)) == 2, "the other one's temporary file is still there"
    main_done.set()
    other.join()
    assert seen == [True] and store.load(path).tensors["w"].item() == 0 and len(os.listdir(tmp_path)) == 1


def test_a_written_file_that_has_no_name_yet_is_left_alone_by_another_process_s_save(tmp_path, monkeypatch):
    path, real, others = tmp_path / "a.safetensors", store.replace, []

    def late(source, target):
        if not others:  # another process comes in between
            others.append(target)
            store.save(path, {"w": torch.ones(1)}, "ddpm", {})
        real(source, target)

    monkeypatch.setattr(store, "replace", late)
    store.save(path, {"w": torch.zeros(1)}, "ddpm", {})
    assert store.load(path).tensors["w"].item() == 0 and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("locks", [True, False])
def test_a_temporary_file_that_nobody_holds_yet_is_left_alone_for_a_minute(tmp_path, monkeypatch, locks):
    if not locks:
        monkeypatch.setitem(sys.modules, "fcntl", None)
    young, old = (tmp_path / f".a.safetensors.{x}.tmp" for x in ("abcdef12", "abcdef34"))
    for path in (young, old):
        path.write_bytes(b"" if locks else b"x")
    os.utime(old, (time.time() - 61,) * 2)
    store.save(tmp_path / "a.safetensors", {"w": torch.ones(1)}, "ddpm", {})
    assert young.exists() and not old.exists()


def test_a_whole_file_whose_writing_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyError), whole_file(target) as partial:
        partial.write_text("half")
        raise KeyError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = store.save(tmp_path / "a.safetensors", {"w": torch.ones(3)}, "ddpm", {})
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(store.os, "fsync", fail)
    with pytest.raises(CheckpointError, match="a.safetensors could not be written to .*no space"):
        store.save(path, {"w": torch.zeros(3)}, "ddpm", {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]


def test_a_folder_that_cannot_be_synced_is_no_failed_write(tmp_path, monkeypatch):
    sync = os.fsync

    def of_files(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(store.os, "fsync", of_files)
    path = store.save(tmp_path / "a.safetensors", {"w": torch.ones(3)}, "ddpm", {})
    assert store.load(path).tensors["w"].tolist() == [1, 1, 1]


@contextlib.contextmanager
def largest_file(size):
    """No file may grow beyond `size` bytes inside the block: the system fails the write, as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_halfway_leaves_the_old_file_and_says_where_and_what_is_needed(tmp_path):
    path = store.save(tmp_path / "a.safetensors", {"w": torch.ones(3)}, "ddpm", {})
    before, large = path.read_bytes(), {"w": torch.zeros(3_000_000)}
    with largest_file(1 << 20), pytest.raises(CheckpointError) as caught:
        store.save(path, large, "ddpm", {}, dtype=None)
    for words in ("a.safetensors", str(tmp_path), "File too large", "12.0 MB", "free some space"):
        assert words in str(caught.value)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]
    assert store.load(store.save(path, large, "ddpm", {}, dtype=None)).tensors["w"].shape == (3_000_000,)


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CheckpointError, match="a.safetensors could not be written to .*out .*choose another one"):
        store.save(tmp_path / "out" / "a.safetensors", {"w": torch.ones(1)}, "ddpm", {})


def test_an_existing_file_is_replaced_whole(tmp_path):
    path = store.save(tmp_path / "a.safetensors", {"w": torch.ones(300)}, "ddpm", {})
    store.save(path, {"v": torch.zeros(3)}, "ddpm", {"new": 1})
    assert list(store.load(path).tensors) == ["v"] and os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_file_of_another_kind_is_named_with_what_loads_it(tmp_path, kind):
    path = store.save(tmp_path / "a.safetensors", {"w": torch.ones(1)}, kind, {})
    assert store.load(path, kind).kind == kind
    other = "ddpm" if kind != "ddpm" else "diffae"
    with pytest.raises(WrongKindError, match=f"of kind '{kind}'. Expected: {other}"):
        store.load(path, other)
    with pytest.raises(CheckpointError) as caught:
        read_kind(path, other)
    text = str(caught.value)
    assert all(words in text for words in ("a.safetensors", KINDS[kind].what, KINDS[kind].use, KINDS[other].what))


def test_the_store_takes_any_kind_and_loading_says_that_it_knows_it_not(tmp_path):
    path = store.save(tmp_path / "a.safetensors", {"w": torch.ones(1)}, "controlnet_2", {})
    assert store.load(path).kind == store.peek(path).kind == "controlnet_2"
    with pytest.raises(CheckpointError, match=r"a.safetensors: this is a file of kind 'controlnet_2', which this pack "
                                              "does not know; update the pack. Expected here: a DDPM model"):
        read_kind(path, "ddpm")


def test_an_unfit_kind_and_unfit_meta_cannot_be_saved(tmp_path):
    for kind in ("", "lo ras", "a/b", "x" * 65, "é"):
        with pytest.raises(ValueError, match="no name of a kind"):
            store.save(tmp_path / "a.safetensors", {}, kind, {})
    with pytest.raises(CheckpointError, match="keep long lists in tensors"):
        store.save(tmp_path / "a.safetensors", {}, "ddpm", {}, {"x": "y" * (5 << 20)})


def test_a_newer_version_asks_for_an_update(tmp_path):
    info = json.dumps({"kind": "ddpm", "version": 99, "config": {}, "meta": {}})
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors", {"atelier": info})
    with pytest.raises(CheckpointError, match="update the pack"):
        store.load(tmp_path / "a.safetensors")


def test_a_plain_safetensors_file_is_not_taken_for_ours(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors")
    assert store.peek(tmp_path / "a.safetensors").kind is None
    with pytest.raises(CheckpointError, match="atelier convert"):
        store.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("info", ["", "[]", "{", "[" * 100_000, '{"kind": 3, "version": 1, "config": {}, "meta": {}}',
                                  '{"kind": "ddpm", "version": 1, "config": [], "meta": {}}',
                                  '{"kind": "ddpm", "kind": "clip", "version": 1, "config": {}, "meta": {}}'])
def test_a_damaged_description_is_an_error_of_ours(tmp_path, info):
    save_file({"w": torch.ones(1)}, tmp_path / "a.safetensors", {"atelier": info})
    with pytest.raises(CheckpointError, match="damaged"):
        store.load(tmp_path / "a.safetensors")


def test_too_many_tensors_are_refused_in_little_time(tmp_path):
    for text in ({f"t{k}": row(0, 0, (0,)) for k in range(100_000)}, dict.fromkeys(map(str, range(1_000_000)), 1)):
        write_safetensors(tmp_path / "a.safetensors", text)
        started = time.process_time()
        with pytest.raises(CheckpointError, match="more than (the )?20000"):
            read(tmp_path / "a.safetensors")
        assert time.process_time() - started < 4
    with pytest.raises(CheckpointError, match="more than the 20000"):
        store.save(tmp_path / "b.safetensors", dict.fromkeys(map(str, range(20_001)), torch.zeros(1)), "ddpm", {})


def row(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


INFO = {"__metadata__": {"atelier": json.dumps({"kind": "ddpm", "version": 1, "config": {}, "meta": {}})}}


@pytest.mark.parametrize(("header", "data"), [
    ({"a": row(0, 8), "b": row(4, 12)}, b"\0" * 12),
    ({"a": row(0, 8), "b": row(0, 8)}, b"\0" * 8),
    ({"a": row(0, 8), "b": row(12, 20)}, b"\0" * 20),
    ({"a": row(0, 8)}, b"\0" * 4),
    ({"a": row(0, 8)}, b"\0" * 16),
    ({"a": row(8, 0)}, b"\0" * 8),
    ({"a": row(0, 8, (3,))}, b"\0" * 8),
    ({"a": row(0, 8, (2**62, 2**62))}, b"\0" * 8),
    ({"a": row(0, 8, (-2,))}, b"\0" * 8),
    ({"a": row(0, 8, (2,), "F4")}, b"\0" * 8),
    ({"a": row(-8, 0)}, b"\0" * 8),
    ({"a": 5}, b"\0" * 8),
], ids=["overlap", "same place", "hole", "short", "long", "backwards", "shape", "huge", "negative", "type", "before",
        "no row"])
def test_offsets_and_shapes_that_do_not_fit_are_refused(tmp_path, header, data):
    sound = write_safetensors(tmp_path / "ok.safetensors", {**INFO, "a": row(0, 8)}, b"\0" * 8)
    assert store.load(sound).tensors["a"].tolist() == [0, 0]
    with pytest.raises(CheckpointError, match="bad.safetensors"):
        store.load(write_safetensors(tmp_path / "bad.safetensors", {**INFO, **header}, data))


def test_shapes_of_many_or_impossible_dimensions_are_refused_in_little_time(tmp_path):
    shapes = {"many": [1] * 40_000, "huge": [2**62] * 40_000, "empty": [2**62, 2**62, 0]}
    for name, shape in shapes.items():
        file = write_safetensors(tmp_path / name, {**INFO, "a": row(0, 0 if 0 in shape else 4, shape)},
                                 b"" if 0 in shape else b"\0" * 4)
        began = time.process_time()
        with pytest.raises(CheckpointError, match=f"{name}: .*'a'"):
            store.load(file)
        assert time.process_time() - began < 2


@pytest.mark.parametrize("claim", [2**30, 2**40, 2**63, 2**64 - 1, 0, 1])
def test_a_header_claim_is_bounded_before_it_is_read(tmp_path, claim):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", claim) + b'{"a":' + b" " * 100)
    with pytest.raises(CheckpointError, match="claims a header"):
        store.load(path)


def test_a_really_long_header_is_refused(tmp_path):
    path = write_safetensors(tmp_path / "a.safetensors", b"{" + b" " * (store.MAX_HEADER_BYTES + 1) + b"}")
    with pytest.raises(CheckpointError, match="claims a header"):
        store.peek(path)


def test_a_name_given_twice_is_refused(tmp_path):
    one = json.dumps(row(0, 8))
    path = write_safetensors(tmp_path / "a.safetensors", f'{{"a": {one}, "a": {one}}}'.encode(), b"\0" * 8)
    with pytest.raises(CheckpointError, match="twice"):
        store.peek(path)


def test_every_truncation_is_an_error_of_ours(tmp_path):
    data = store.save(tmp_path / "a.safetensors", {"w": torch.ones(20), "b": torch.ones(3)}, "ddpm", {}).read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            store.load(path)


def test_nan_in_a_file_is_found_on_loading(tmp_path):
    path = write_safetensors(tmp_path / "a.safetensors", {**INFO, "a": row(0, 8)}, struct.pack("<2f", 1, float("nan")))
    with pytest.raises(CheckpointError, match="NaN"):
        store.load(path)


def test_hash_and_token_follow_the_content(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 3_000_000)
    assert store.sha256(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    token = store.file_token(path)
    os.utime(path, ns=(1, 1))
    assert store.file_token(path) != token


def test_a_file_that_is_replaced_between_header_and_numbers_gives_the_numbers_of_its_header(tmp_path, monkeypatch):
    path = store.save(tmp_path / "a", {"w": torch.ones(2), "b": torch.zeros(2)}, "ddpm", {})
    other = store.save(tmp_path / "b", {"w": torch.zeros(2), "b": torch.ones(2)}, "ddpm", {})
    refs = store._refs

    def replaced(*arguments):
        os.replace(other, path)
        return refs(*arguments)

    monkeypatch.setattr(store, "_refs", replaced)
    assert store.load(path).tensors["w"].tolist() == [1, 1]
    assert store.peek(path).kind == "ddpm" and not other.exists()


@pytest.mark.parametrize("reader", [store.load, store.peek, store.tensor_refs, read, facts])
def test_a_file_that_may_not_be_read_is_an_error_of_ours(tmp_path, monkeypatch, reader):
    path = store.save(tmp_path / "a.safetensors", {"w": torch.ones(1)}, "ddpm", {})
    unpatched = open

    def locked(file, *arguments, **options):
        if file == path:
            raise PermissionError(13, "Permission denied")
        return unpatched(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", locked)
    with pytest.raises(CheckpointError, match="a.safetensors: it cannot be read .Permission denied.; close the"):
        reader(path)


def test_the_facts_of_our_own_file_are_told_by_its_content(tmp_path):
    assert facts(store.save(tmp_path / "a.pt", {"w": torch.ones(1)}, "mmfs", {}, {"phase": 2})) == {"phase": 2}
    torch.save({"w": torch.ones(1)}, tmp_path / "b.safetensors")
    save_file({"w": torch.ones(1)}, tmp_path / "c.safetensors")
    assert facts(tmp_path / "b.safetensors") == facts(tmp_path / "c.safetensors") == {}
