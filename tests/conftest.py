"""Makes the checkout importable as `oneshot_atelier` (see tools/launch.py); sys.path is left alone."""
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

runpy.run_path(str(ROOT / "tools" / "launch.py"))["load_checkout"]()


@pytest.fixture(scope="session")
def root() -> Path:
    """Folder of the checkout."""
    return ROOT
