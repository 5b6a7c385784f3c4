"""Damaged, foreign and dishonest containers: each is refused with a message that says what the file is."""

import gzip
import pickle
import random
import struct
import tarfile
import zipfile

import pytest
import torch

from oneshot_atelier.models.checkpoints import CheckpointError, read
from oneshot_atelier.models.checkpoints.safe_pickle import reader
from oneshot_atelier.models.checkpoints.safe_pickle.reader import read_torch
from oneshot_atelier.models.checkpoints.safe_pickle.records import TensorRef
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests.hostile_files import one_tensor, torch_zip, write


# --- the zip container -----------------------------------------------------------------------------------------
def good_pickle():
    return pickle.dumps({"a": 1}, 2)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "archive/../../evil", "other/data/0", "C:\\evil",
                                  "archive/data\\0",
                                  "archive//x", "evil", "archive/./../x"])
def test_names_outside_of_the_archive_are_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="zip archive"):
        read_torch(torch_zip(tmp_path / "a.pt", good_pickle(), [(name, b"x")]))


def test_duplicate_entries_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = torch_zip(tmp_path / "a.pt", good_pickle(), [("archive/data.pkl", pickle.dumps({"a": 2}))])
    with pytest.raises(CheckpointError, match="twice"):
        read_torch(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entries_are_refused_however_large_they_would_be(tmp_path, compression):
    path = torch_zip(tmp_path / "a.pt", good_pickle(), [("archive/data/0", b"\0" * 20_000_000)],
                     compression=compression)
    assert path.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch(path)


def patched_directory(tmp_path, offset, value, fmt, entry=2):
    """A sound archive with one field of the `entry`th central directory record overwritten."""
    path = one_tensor(tmp_path / "a.pt")
    data = bytearray(path.read_bytes())
    at = -1
    for _ in range(entry + 1):
        at = data.index(b"PK\x01\x02", at + 1)
    struct.pack_into(fmt, data, at + offset, value)
    return write(path, bytes(data))


@pytest.mark.parametrize(("offset", "value", "fmt"), [
    (42, 0, "<I"), (42, 10, "<I"), (42, 2**31, "<I"), (24, 2**31, "<I"), (20, 2**31, "<I"), (10, 8, "<H"), (10, 99,
                                                                                                            "<H"),
    (8, 1, "<H"), (28, 0, "<H"), (24, 15, "<I")])
def test_lies_in_the_zip_directory_are_refused(tmp_path, offset, value, fmt):
    with pytest.raises(CheckpointError):
        read_torch(patched_directory(tmp_path, offset, value, fmt))


@pytest.mark.parametrize(("offset", "value", "fmt"), [(10, 65535, "<H"), (12, 2**32 - 2, "<I"), (16, 2**32 - 2, "<I")])
def test_lies_in_the_end_record_are_refused(tmp_path, offset, value, fmt):
    path = one_tensor(tmp_path / "a.pt")
    data = bytearray(path.read_bytes())
    struct.pack_into(fmt, data, data.rindex(b"PK\x05\x06") + offset, value)
    if (offset, fmt) == (10, "<H"):  # the count alone is not used: the entries that are there are read
        assert read_torch(write(path, bytes(data)))["w"].shape == (4,)
    else:
        with pytest.raises(CheckpointError):
            read_torch(write(path, bytes(data)))


def test_the_entries_that_are_there_are_bounded_whatever_the_end_record_claims(tmp_path, monkeypatch):
    path = torch_zip(tmp_path / "a.pt", good_pickle(), [(f"archive/data/{k}", b"") for k in range(10)])
    monkeypatch.setattr(reader, "MAX_ENTRIES", 5)
    data = bytearray(path.read_bytes())
    struct.pack_into("<HH", data, data.rindex(b"PK\x05\x06") + 8, 1, 1)
    with pytest.raises(CheckpointError, match="more than 5 entries"):
        read_torch(write(path, bytes(data)))


def test_a_directory_is_bounded_that_only_the_record_in_front_of_the_locator_tells_of(tmp_path, monkeypatch):
    path = one_tensor(tmp_path / "a.pt")
    data = path.read_bytes()
    at = data.rindex(b"PK\x05\x06")
    size, offset = struct.unpack_from("<II", data, at + 12)
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, offset)
    decoy = struct.pack("<4sI4s4sI", b"PK\x06\x07", 0, b"PK\x06\x06", bytes(4), 1)
    monkeypatch.setattr(reader, "MAX_DIRECTORY_BYTES", size - 1)
    end = bytearray(data[at:])
    struct.pack_into("<I", end, 12, 0)
    with pytest.raises(CheckpointError, match="directory"):
        read_torch(write(path, data[:at] + record + decoy + bytes(end)))


def test_torchscript_big_endian_and_other_zips_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_torch(torch_zip(tmp_path / "a.pt", good_pickle(), [("archive/constants.pkl", b"")]))
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("ffhq256/last.ckpt", b"x")
    with pytest.raises(CheckpointError, match="unpack it"):
        read_torch(tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("a/data.pkl", good_pickle())
        archive.writestr("a/byteorder", "big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_torch(tmp_path / "c.pt")


# --- damage ----------------------------------------------------------------------------------------------------
def small(path, zip_container):
    return golden.save_torch(path, {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half(), "n": [1, "x"]},
                             zip_container).read_bytes()


@pytest.mark.parametrize("zip_container", [True, False])
def test_truncation_is_an_error_of_ours(tmp_path, zip_container):
    data = small(tmp_path / "a.pt", zip_container)
    path = tmp_path / "cut.pt"
    for length in sorted({*range(0, len(data), 5), *range(len(data) - 120, len(data))}):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"^cut\.pt: "):
            read_torch(path)


@pytest.mark.parametrize("zip_container", [True, False])
def test_random_damage_is_never_an_error_of_another_kind(tmp_path, zip_container):
    data = small(tmp_path / "a.pt", zip_container)
    dice, path, refused = random.Random(0), tmp_path / "damaged.pt", 0
    for _ in range(600):
        damaged = bytearray(data)
        for _ in range(dice.choice([1, 1, 3])):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            found = read_torch(path)
            for value in found.values() if isinstance(found, dict) else ():
                if isinstance(value, TensorRef):
                    value.read()
        except CheckpointError:
            refused += 1
    assert refused > 50


FOREIGN = {
    "empty": (b"", "empty file"), "zeros": (b"\0" * 4096, "zero bytes"), "png": (b"\x89PNG\r\n\x1a\n" + b"x" * 99,
                                                                                 "PNG picture"),
    "jpeg": (b"\xff\xd8\xff\xe0" + b"x" * 99, "JPEG picture"),
    "html": (b"\n<!DOCTYPE html><html><body>Google Drive can't scan this file", "web page"),
    "gzip": (gzip.compress(b"x" * 99), "gzip archive"), "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid",
                                                                    "git lfs pull"),
    "text": (b"hello, these are not weights", "no file that this pack knows"),
    "plain pickle": (pickle.dumps({"state": 1}), "no known model .it begins with state"),
    "safetensors cut": (struct.pack("<Q", 5000) + b'{"a":{"dtype"', "claims a header of 5000"),
}


@pytest.mark.parametrize("name", sorted(FOREIGN))
def test_renamed_and_foreign_files_are_named(tmp_path, name):
    data, words = FOREIGN[name]
    with pytest.raises(CheckpointError, match=words) as caught:
        read(write(tmp_path / "last.ckpt", data), "diffae")
    assert str(caught.value).startswith("last.ckpt: ")


def test_a_tar_archive_is_named(tmp_path):
    with tarfile.open(tmp_path / "last.ckpt", "w") as archive:
        archive.add(write(tmp_path / "x", b"x"), "x")
    with pytest.raises(CheckpointError, match="tar archive"):
        read(tmp_path / "last.ckpt")


def test_the_size_limit_comes_before_reading(tmp_path):
    path = one_tensor(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="more than the 100"):
        read_torch(path, max_bytes=100)
    with open(tmp_path / "sparse.pt", "wb") as file:
        file.truncate(17 << 30)
    with pytest.raises(CheckpointError, match="more than"):
        read(tmp_path / "sparse.pt")
