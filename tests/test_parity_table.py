"""The table of parity: a row for everything that is compared, and what is off is said to be."""

from dataclasses import replace

from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import parity_table


def test_a_page_has_a_row_for_every_output_and_value():
    case = golden.load_case("p2_tiny")
    lines = [parity_table.compare(case, name) for name in case.names]
    page = parity_table.page(lines, "some salt")
    assert all(line.ok and line.error <= line.tolerance for line in lines) and "off**" not in page
    assert all(page.count(f"\n| `{name}` |") == 1 for name in case.names) and "`some salt`" in page


def test_what_is_off_or_missing_is_said_to_be():
    case = golden.load_case("p2_tiny")
    name = next(iter(case.outputs))
    other = replace(case, outputs={name: case.outputs[name] + 1}, values={"unknown": 1.0},
                    tolerances=case.tolerances | {"unknown": 0.5})
    lines = [parity_table.compare(other, n) for n in other.names]
    assert [line.ok for line in lines] == [False, False] and lines[1].ratio == float("inf")
    assert parity_table.page(lines, "x").count("**off**") == 2
