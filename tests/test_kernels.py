"""Triton's kernels are what plain torch computes: run by Triton's interpreter, in a process of its own."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from oneshot_atelier.models import ops

CHECKS = Path(__file__).with_name("kernel_checks.py")


@pytest.fixture(scope="module")
def errors():
    done = subprocess.run([sys.executable, str(CHECKS)], env=os.environ | {"TRITON_INTERPRET": "1"},
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_forward_and_backward_are_those_of_plain_torch(errors):
    assert len(errors) >= 17
    assert not {name: value for name, value in errors.items() if value > 2e-5}


def test_a_cpu_runs_plain_torch_and_triton_is_not_imported():
    """In a process of its own: torch's compiler, which other tests load, imports Triton, too."""
    code = ("import pathlib, runpy, sys\n"
            "root = pathlib.Path(sys.argv[1])\n"
            "runpy.run_path(str(root / 'cli' / '__main__.py'))['load_checkout'](root)\n"
            "import torch\n"
            "from oneshot_atelier.models import kernels, ops\n"
            "ops.norm_silu(torch.zeros(1, 4, 2, 2), torch.nn.GroupNorm(2, 4))\n"
            "assert not kernels.usable(torch.zeros(1)) and 'triton' not in sys.modules")
    subprocess.run([sys.executable, "-c", code, str(CHECKS.parents[1])], check=True)


def test_modules_of_another_kind_are_named():
    with pytest.raises(TypeError, match="a GroupNorm is needed here, not Conv2d"):
        ops.norm_silu(torch.zeros(1, 4, 2, 2), torch.nn.Conv2d(4, 4, 1))
    with pytest.raises(TypeError, match="a Conv2d is needed here, not GroupNorm"):
        ops.convolution(torch.zeros(1, 4, 2, 2), torch.nn.GroupNorm(2, 4))
