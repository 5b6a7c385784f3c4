"""Every golden output and value against ours, in all cases of the set (ATELIER_GOLDEN=FOLDER takes another set)."""

import pytest

from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import parity

CASES = golden.present(parity.CASES)


def test_the_set_has_cases():
    assert CASES and (golden.FOLDER != golden.PUBLIC or CASES == list(parity.CASES))


@pytest.mark.parametrize(("case", "name"), [(case, name) for case in CASES for name in golden.load_case(case).names])
def test_golden(case, name):
    golden.load_case(case).check(name, parity.results(case)[name])


@pytest.mark.parametrize("case", CASES)
def test_nothing_golden_is_left_out(case):
    described = golden.description(case)
    names = {name for name, row in described["tensors"].items() if row["role"] == "output"} | set(described["values"])
    assert names == set(golden.load_case(case).names) and names <= parity.results(case).keys()
