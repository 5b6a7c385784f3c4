"""Sweep and Sweep Grid: what values become, how a sweep of one and of two axes runs, and what its grid shows."""
from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageFont

from oneshot_atelier.train.plots import labelled_grid, shortened

pytestmark = pytest.mark.server
ONE = {"name": "t0", "name_2": "", "values_2": ""}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tmp_path_factory.mktemp("no_models")


@pytest.fixture
def parsed(nodes):
    def values(text):
        return nodes.Sweep.execute(values=text, **ONE)[0]
    return values


def coloured(*levels, side=16):
    """An IMAGE of a picture of one grey each."""
    return torch.stack([torch.full((side, side, 3), level) for level in levels])


# --- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "values"), [
    ("0.3, 0.5,0.70", [0.3, 0.5, 0.7]), ("16, 32", [16, 32]), ("on, off, yes, No", [True, False, True, False]),
    ('"1", ddim', ["1", "ddim"]), ("a face, old\na hat\n", ["a face, old", "a hat"]), ("-1", [-1]), ("1e-4", [1e-4])])
def test_words_are_what_they_look_like(parsed, text, values):
    found = parsed(text)
    assert found == values and [type(x) for x in found] == [type(x) for x in values]


def test_two_axes_give_every_pair_row_by_row(nodes):
    first, second, sweep = nodes.Sweep.execute(name="from", values="64, 32, 16", name_2="swapped",
                                               values_2="off, on").args
    assert list(zip(first, second)) == [(64, False), (32, False), (16, False), (64, True), (32, True), (16, True)]
    assert sweep.columns == ("from 64", "from 32", "from 16") and sweep.rows == ("swapped off", "swapped on")


def test_the_second_output_of_one_axis_is_blocked(nodes):
    (second,) = nodes.Sweep.execute(values="1, 2", **ONE)[1]
    assert "write values into values_2" in second.message


@pytest.mark.parametrize(("values", "words"), [(" ,\n", "values is empty"), (",".join("123456789" * 8), "64 together")])
def test_no_values_and_too_many_are_refused(nodes, values, words):
    assert words in nodes.Sweep.validate_inputs(values, "")
    with pytest.raises(ValueError, match=words):
        nodes.Sweep.execute(values=values, **ONE)
    assert nodes.Sweep.validate_inputs(None, None) is True


def test_the_values_fit_what_they_are_connected_to(nodes):
    """ComfyUI's own check of types, on the outputs as it sees them."""
    from comfy_execution.validation import validate_node_input
    received = nodes.Sweep.RETURN_TYPES[0]
    assert all(validate_node_input(received, wanted) for wanted in ("FLOAT", "INT", "BOOLEAN", "STRING", "COMBO"))
    assert not validate_node_input(received, "IMAGE") and nodes.Sweep.OUTPUT_IS_LIST == [True, True, False]


# --- grids ------------------------------------------------------------------------------------------------------------
def cell(grid, row, column, side=16, gap=4, left=4):
    """The middle of a cell of a grid IMAGE."""
    head = grid.shape[1] - (side + gap) * ((grid.shape[1] - 20) // (side + gap))
    return float(grid[0, head + row * (side + gap) + side // 2, left + column * (side + gap) + side // 2].mean())


def test_one_axis_has_a_column_for_each_value_and_a_row_for_each_picture(nodes):
    sweep = nodes.Sweep.execute(values="1, 2, 3", **ONE)[2]
    runs = [coloured(0.1, 0.2), coloured(0.3, 0.4), coloured(0.5, 0.6)]
    grid = nodes.SweepGrid.execute(images=runs, labels=[""], side=[0], sweep=[sweep])[0]
    found = [[round(cell(grid, row, column), 2) for column in range(3)] for row in range(2)]
    assert found == [[0.1, 0.3, 0.5], [0.2, 0.4, 0.6]] and grid.shape[2] == 4 + 3 * 20


def test_two_axes_have_a_row_for_each_value_of_the_second(nodes):
    sweep = nodes.Sweep.execute(name="", values="1, 2", name_2="", values_2="on, off")[2]
    runs = [coloured(level, level + 0.1) for level in (0.1, 0.3, 0.5, 0.7)]
    grid = nodes.SweepGrid.execute(images=runs, labels=[""], side=[0], sweep=[sweep])[0]
    left = grid.shape[2] - 2 * (2 * 16 + 4)
    flat = [[float(grid[0, grid.shape[1] - (2 - row) * 20 + 8, left + 36 * column + 16 * half + 8].mean())
             for column in range(2) for half in range(2)] for row in range(2)]
    assert torch.allclose(torch.tensor(flat), torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]), atol=0.01)


def test_labels_stand_for_a_sweep(nodes):
    grid = nodes.SweepGrid.execute(images=coloured(0.1, 0.2, 0.3, 0.4), labels="a, b", side=0)[0]
    assert [[round(cell(grid, row, column), 2) for column in range(2)] for row in range(2)] == [[0.1, 0.3], [0.2, 0.4]]
    assert nodes.SweepGrid.execute(images=coloured(0.1, 0.2, side=32), labels="a, b", side=16)[0].shape[2] == 4 + 2 * 20


@pytest.mark.parametrize(("count", "labels", "swept", "words"), [
    (3, "a, b", False, "3 pictures cannot be shared out among 2 values"), (2, "", False, "connect the sweep, or write"),
    (2, "a, b", True, "take one of them")])
def test_what_does_not_fit_is_refused(nodes, count, labels, swept, words):
    sweep = nodes.Sweep.execute(values="1, 2", **ONE)[2] if swept else None
    with pytest.raises(ValueError, match=words):
        nodes.SweepGrid.execute(images=coloured(*[0.5] * count), labels=labels, side=0, sweep=sweep)


def test_the_labels_are_drawn_and_cut_where_they_are_too_long():
    pictures = [[torch.zeros(3, 64, 64)] * 2]
    drawn, other = (labelled_grid(pictures, labels) for labels in (("t0 0.3", "t0 0.5"), ("t0 0.3", "t0 0.7")))
    head = drawn.height - 68
    assert drawn.crop((0, 0, 70, head)).tobytes() == other.crop((0, 0, 70, head)).tobytes()
    assert drawn.tobytes() != other.tobytes()
    assert isinstance(drawn, Image.Image) and drawn.crop((0, 0, 136, head)).convert("L").getextrema()[0] < 100
    font = ImageFont.load_default(size=11)
    assert shortened("short", font, 64) == "short" and font.getlength(shortened("x" * 90, font, 64)) <= 64
    assert shortened("x" * 90, font, 64).endswith("x..")
    with pytest.raises(ValueError, match=r"\[2\] pictures do not fit 1 columns"):
        labelled_grid(pictures, ("a",))
