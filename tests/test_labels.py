"""labels.csv: how it is read, what of it counts, what damaged and hostile ones do."""

import os

import pytest

from oneshot_atelier.train import labels

COLUMN = {word: i for i, (_, word) in enumerate(labels.WORDS)}


def table(folder, text):
    (folder / labels.NAME).write_bytes(text if isinstance(text, bytes) else text.encode())
    return labels.read(folder)


def test_values_of_a_files_labels_in_any_order_of_columns(tmp_path):
    assert labels.read(tmp_path) == {}
    assert table(tmp_path, "quality,labels,file\n9,hats: beanie; age: adult; hats: beanie,a.jpg\n8,,b.jpg\n") == {
        "a.jpg": ("beanie", "adult"), "b.jpg": ()}
    assert table(tmp_path, "\ufefffile,labels\na.jpg,\"x: y, z\"\n") == {"a.jpg": ("y, z",)}
    assert labels.of_pictures([tmp_path / "a.jpg", tmp_path / "c.jpg"]) == {tmp_path / "a.jpg": ("y, z",)}


def test_what_is_written_is_read(tmp_path):
    rows = {"b.jpg": ("beanie", "10 month old baby"), "a, \"b\".jpg": ("hat",)}
    labels.write(tmp_path, rows)
    assert labels.read(tmp_path) == rows


@pytest.mark.parametrize("text", ["", "name,labels\na,b\n", "file;labels\na;b\n", b"\xff\xfe\x00\x01"])
def test_a_table_without_its_columns_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match="labels.csv (lacks a column: it needs `file` and `labels`|cannot be read)"):
        table(tmp_path, text)


def test_hostile_tables_do_no_harm(tmp_path, monkeypatch):
    names = ["../../etc/passwd", "/root/x", "a\\b", "", "n" * 300]
    assert table(tmp_path, "file,labels\n" + "".join(f"{name},age: adult\n" for name in names)) == {}
    many = table(tmp_path, "file,labels\na.jpg," + ";".join(f"a: {i}" for i in range(5000)) + "\n")
    assert len(many["a.jpg"]) == labels.MAX_LABELS
    assert table(tmp_path, "file,labels\na.jpg\nb.jpg,a: b,c,d,e\n") == {"a.jpg": (), "b.jpg": ("b",)}
    assert len(table(tmp_path, f"file,labels\na.jpg,{'x' * 1000}\n")["a.jpg"][0]) == labels.MAX_NAME
    with pytest.raises(ValueError, match="cannot be read as a table: field larger"):
        table(tmp_path, f"file,labels\na.jpg,\"{'x' * 200_000}\n")
    monkeypatch.setattr(labels, "MAX_BYTES", 20)
    with pytest.raises(ValueError, match="larger than 20 bytes"):
        table(tmp_path, "file,labels\na.jpg,age: adult\n")


def test_what_is_no_file_is_no_table(tmp_path):
    os.mkfifo(tmp_path / labels.NAME)
    assert labels.read(tmp_path) == {}


# --- words --------------------------------------------------------------------------------------------------------
def known(*shown):
    true, untrue = labels.facts(shown)
    return {word for word, i in COLUMN.items() if true[i]}, {word for word, i in COLUMN.items() if untrue[i]}


def test_without_labels_nothing_is_known():
    assert known() == (set(), set())


def test_what_labels_say_and_what_they_rule_out():
    true, untrue = known("beanie")
    assert true == {"a hat", "a beanie"}
    assert {"a fedora", "a crown", "glasses", "sunglasses"} <= untrue
    assert not untrue & {"adult", "smiling", "green hair", "a beard", "a tie"}  # nothing was said of these
    true, untrue = known("purple or pink hair")
    assert true == {"purple hair", "pink hair"} and "green hair" in untrue and "a hat" in untrue
    assert known("sunglasses")[0] == {"sunglasses"}
    assert known("short red hair")[0] == {"red hair", "short hair"}
    true, untrue = known("'; drop table", "asian")
    assert not true and untrue == {"glasses", "sunglasses", "a hat", "a bandana", "headphones", "a crown"}


def test_no_word_stands_twice_and_every_word_has_a_value():
    assert len(COLUMN) == len(labels.WORDS) and all(group.words[word] for group, word in labels.WORDS)
