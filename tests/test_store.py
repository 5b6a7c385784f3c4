"""The pack's own store: round trips, atomic writing, refusals."""

import hashlib
import json
import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from oneshot_atelier.models.checkpoints import CheckpointError, store
from oneshot_atelier.models.checkpoints.errors import KINDS

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


def test_numbers_too_large_for_sixteen_bit_are_refused_and_fit_in_thirty_two(tmp_path):
    with pytest.raises(CheckpointError, match="dtype=None"):
        store.save(tmp_path / "a.safetensors", {"w": torch.tensor([1e6])}, "ddpm", {})
    assert store.load(store.save(tmp_path / "a.safetensors", {"w": torch.tensor([1e6])}, "ddpm", {}, dtype=None))


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = store.save(tmp_path / "a.safetensors", {"w": torch.ones(3)}, "ddpm", {})
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(store.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        store.save(path, {"w": torch.zeros(3)}, "ddpm", {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]


def test_an_existing_file_is_replaced_whole(tmp_path):
    path = store.save(tmp_path / "a.safetensors", {"w": torch.ones(300)}, "ddpm", {})
    store.save(path, {"v": torch.zeros(3)}, "ddpm", {"new": 1})
    assert list(store.load(path).tensors) == ["v"] and os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_file_of_another_kind_is_named_with_what_loads_it(tmp_path, kind):
    path = store.save(tmp_path / "a.safetensors", {"w": torch.ones(1)}, kind, {})
    assert store.load(path, kind).kind == kind
    other = "ddpm" if kind != "ddpm" else "diffae"
    with pytest.raises(CheckpointError) as caught:
        store.load(path, other)
    text = str(caught.value)
    assert all(words in text for words in ("a.safetensors", KINDS[kind].what, KINDS[kind].use, KINDS[other].what))


def test_an_unknown_kind_and_unfit_meta_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="unknown kind"):
        store.save(tmp_path / "a.safetensors", {}, "loras", {})
    with pytest.raises(ValueError):
        store.save(tmp_path / "a.safetensors", {}, "ddpm", {"x": float("nan")})
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
