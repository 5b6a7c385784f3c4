"""StyleGAN2's kernels beside plain torch, on the CPU through Triton's interpreter (bench/stylegan2_kernels.py)."""
import os
import subprocess
import sys


def test_kernels_equal_plain_torch_in_value_and_derivative(root):
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "ATELIER_LAUNCHED": "1"}
    done = subprocess.run([sys.executable, str(root / "tools" / "launch.py"), "bench.stylegan2_kernels"],
                          env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.rstrip().endswith("all equal") and "picture, float16" in done.stdout
