"""The parity tests on a golden set that is not the public one: nothing of the public one may stand in them."""

import os
import subprocess
import sys

from oneshot_atelier.tests import private_set


def test_the_parity_tests_pass_on_another_set(root, tmp_path):
    private_set.write(tmp_path)
    files = sorted(str(path) for path in (root / "tests").glob("test_parity*.py"))
    result = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files], cwd=root,
                            env=os.environ | {"ATELIER_GOLDEN": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert " passed" in result.stdout and "skipped" not in result.stdout
