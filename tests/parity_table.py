"""The errors reached on every golden output and value, as a Markdown table.

    python tools/launch.py tests.parity_table [--out docs/parity.md]      (ATELIER_GOLDEN=FOLDER: of another set)
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import parity

HEAD = """# Parity with the official programs

What this pack's networks, samplers, losses and gradients give for the golden cases of {salt}: random weights and
inputs, expected values by the official programs' mathematics in float32. The same comparisons are tests
(`tests/test_parity.py`). Error: the largest absolute difference of all entries.

Made by `python tools/launch.py tests.parity_table --out docs/parity.md` on {machine}.
"""
KINK = f"""
`{golden.KINKED}` hangs on the side of a leaky ReLU's kink that one pre-activation of about -1e-7 falls on; convolutions
with AVX-512 may put it on the other. Of its entries less than 0.1 % may be further off than the tolerance, and the rms
error must be below 0.2 % of the rms value.
"""


@dataclass(frozen=True)
class Line:
    """One comparison. size: how many numbers. ok: what the test says."""
    case: str
    name: str
    size: int
    error: float
    tolerance: float
    ok: bool

    @property
    def ratio(self) -> float:
        """Error over tolerance; exact values have the tolerance 0."""
        return self.error / self.tolerance if self.tolerance else 0.0 if self.error == 0 else float("inf")

    @property
    def verdict(self) -> str:
        return "**off**" if not self.ok else "ok" if self.error <= self.tolerance else "ok, see above"


def compare(case: golden.Case, name: str) -> Line:
    found = parity.results(case.name)
    size = case.outputs[name].numel() if name in case.outputs else torch.tensor(case.values[name]).numel()
    error, ok = float("inf"), True
    try:
        error = case.error(name, found[name])  # refuses another shape
        case.check(name, found[name])
    except (AssertionError, KeyError):
        ok = False
    return Line(case.name, name, size, error, case.tolerances[name], ok)


def summary(lines: Sequence[Line]) -> list[str]:
    """Rows of the table that has one line a case."""
    rows = ["| case | compared | largest error / tolerance | where | ok |", "|---|---|---|---|---|"]
    for case in dict.fromkeys(line.case for line in lines):
        own = [line for line in lines if line.case == case]
        worst = max(own, key=lambda line: line.ratio)
        rows.append(f"| {case} | {len(own)} | {worst.ratio:.2g} | `{worst.name}` | {sum(line.ok for line in own)} |")
    return rows


def details(lines: Sequence[Line]) -> list[str]:
    rows = ["| output or value | numbers | error | tolerance | error / tolerance | |", "|---|---|---|---|---|---|"]
    return rows + [f"| `{line.name}` | {line.size} | {line.error:.2g} | {line.tolerance:.2g} | {line.ratio:.2g} | "
                   f"{line.verdict} |" for line in lines]


def page(lines: Sequence[Line], *salts: str) -> str:
    sets = " and ".join(f"set `{salt}`" for salt in salts)
    machine = (f"{os.cpu_count()} CPU cores ({torch.backends.cpu.get_cpu_capability()}, "
               f"{torch.get_num_threads()} used), torch {torch.__version__}")
    parts = [HEAD.format(salt=sets, machine=machine), "\n".join(summary(lines)) + "\n", KINK]
    for case in dict.fromkeys(line.case for line in lines):
        parts.append(f"\n## {case}\n\n" + "\n".join(details([line for line in lines if line.case == case])) + "\n")
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def main() -> int:
    """1 if something is further off than allowed."""
    parser = argparse.ArgumentParser(prog="parity_table", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file to write; without it the table goes to the terminal")
    out, lines = parser.parse_args().out, []
    cases = golden.present(parity.CASES)
    if not cases:
        sys.exit(f"{golden.FOLDER} has none of the golden cases: {', '.join(parity.CASES)}")
    for name in cases:
        print(name, file=sys.stderr, flush=True)
        lines += [compare(golden.load_case(name), output) for output in golden.load_case(name).names]
    text = page(lines, *dict.fromkeys(golden.description(name)["salt"] for name in cases))
    if out is None:
        print(text, end="")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    return int(not all(line.ok for line in lines))
