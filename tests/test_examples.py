"""The example workflows' pictures in ComfyUI's input folder."""
import logging

import pytest


@pytest.fixture
def examples(nodes):
    """The module under test."""
    return nodes.host.examples


@pytest.fixture
def folders(tmp_path):
    """(inputs, user, examples) with two examples, one of them in a sub-folder."""
    inputs, user, shipped = (tmp_path / name for name in ("input", "user", "shipped"))
    for folder in (inputs, user, shipped / "sub"):
        folder.mkdir(parents=True)
    (shipped / "one.png").write_bytes(b"one")
    (shipped / "sub" / "two.png").write_bytes(b"two")
    return inputs, user, shipped


def test_examples_are_put_once_and_what_the_user_deletes_stays_away(examples, folders):
    inputs, user, shipped = folders
    assert examples.put_examples(*folders) == ["one.png", "sub/two.png"]
    assert (inputs / "sub" / "two.png").read_bytes() == b"two"
    assert {path.name for path in inputs.rglob("*")} == {"one.png", "sub", "two.png"}, "and nothing half written"
    (inputs / "one.png").unlink()
    assert examples.put_examples(*folders) == [] and not (inputs / "one.png").exists()
    (shipped / "three.png").write_bytes(b"three")
    assert examples.put_examples(*folders) == ["three.png"], "what a later version ships comes along"


def test_a_file_of_the_user_is_left_as_it_is(examples, folders):
    inputs, *_ = folders
    (inputs / "one.png").write_bytes(b"mine")
    assert examples.put_examples(*folders) == ["sub/two.png"]
    assert (inputs / "one.png").read_bytes() == b"mine"


def test_a_folder_that_cannot_be_written_is_logged_and_tried_again(examples, folders, caplog):
    inputs, user, shipped = folders
    inputs.rmdir()
    inputs.write_bytes(b"a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert examples.put_examples(*folders) == []
    assert f"Copy them there from {shipped}" in caplog.text and not (user / examples.MARK).exists()
    inputs.unlink()
    assert examples.put_examples(*folders) == ["one.png", "sub/two.png"]


def test_what_ships_is_small(examples):
    assert sum(path.stat().st_size for path in examples.EXAMPLES.rglob("*") if path.is_file()) < 1_500_000
