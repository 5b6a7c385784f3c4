"""All golden cases and what our networks make of them: computed in one place, for the tests and for the table."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from oneshot_atelier.tests import (
    golden_cases,
    parity_diffae,
    parity_losses,
    parity_metrics,
    parity_mmfs,
    parity_osasis,
    parity_p2,
    parity_stylegan2,
)

CASES = {name: compute for module in (parity_diffae, parity_osasis, parity_p2, parity_stylegan2, parity_mmfs,
                                      parity_losses, parity_metrics) for name, compute in module.CASES.items()}


@cache
def results(name):
    """{name of an output or value of the case: ours}, and maybe more of the same."""
    with TemporaryDirectory() as folder:
        return CASES[name](golden_cases.load_case(name), Path(folder))
