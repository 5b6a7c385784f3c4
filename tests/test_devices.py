"""GPUs that are neither NVIDIA's nor AMD's, so Apple's and Intel's: float64 is computed beside them, and nodes run on a
device that refuses what they refuse (faraway.py)."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from oneshot_atelier.evaluate import metrics
from oneshot_atelier.models import precision, rng
from oneshot_atelier.models.diffusion import linear_alpha_bar
from oneshot_atelier.train import osasis

ROOT = Path(__file__).resolve().parents[1]
NARROW = [torch.device("mps", 0), torch.device("xpu", 0)]
RUN = {"nodes": ("from_style_image_to_stylized_batch", "decode_and_sample"),
       "nodes_mmfs": ("a_fine_tune_to_a_picture",), "nodes_stages": ("from_stylegan2_to_a_stylization_by_text",),
       "nodes_metrics": ("art_fid_of_files", "identity_and_faces_of_a_photo"),
       "blend": ("a_style_at_a_strength_lies_in_main_memory",),
       "nodes_faces": ("the_matrix_takes_the_picture_to_the_crop",)}


@pytest.mark.parametrize("device", NARROW, ids=str)
def test_schedules_of_a_device_without_float64_are_made_on_the_cpu(device: torch.device) -> None:
    """The devices are not here: a tensor on one of them would be an error."""
    made = linear_alpha_bar(device=device)
    assert made.dtype == torch.float64 and made.device == rng.CPU and torch.equal(made, linear_alpha_bar())
    config = osasis.OSASISConfig(reverse_steps=4)
    assert torch.equal(osasis.levels_of(config, device), osasis.levels_of(config, rng.CPU))


def test_where_float64_is_computed() -> None:
    assert [precision.float64_device(device) for device in NARROW] == [rng.CPU, rng.CPU]
    cuda = torch.device("cuda", 1)  # also the type of AMD's GPUs
    assert precision.float64_device(cuda) == cuda and precision.float64_device(rng.CPU) == rng.CPU


@pytest.mark.parametrize("device", NARROW, ids=str)
def test_16_bit_is_computed_there(device: torch.device) -> None:
    assert precision.has_autocast(device) and precision.dtype_of(device, precision.AUTO) == torch.float16


@pytest.mark.parametrize("device", [*NARROW, torch.device("cuda", 0)], ids=str)
def test_a_devices_own_generator_is_put_back(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[str, object]] = []
    module = torch.get_device_module(device.type)
    monkeypatch.setattr(module, "get_rng_state", lambda place: kept.append(("saved", place)) or "state")
    monkeypatch.setattr(module, "set_rng_state", lambda state, place: kept.append((state, place)))
    with rng.seeded(1, "dropout", device=device):
        assert kept == [("saved", device)]
    assert kept[1:] == [("state", device)]


def test_distances_of_sets_are_computed_beside_such_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(2, 40, 6, generator=rng.generator(0, "a"))
    wanted = [metrics.frechet_distance(a, b), metrics.kernel_distance(a, b), *metrics.precision_recall(a, b)]
    monkeypatch.setattr(precision, "FLOAT64", ())
    found = [metrics.frechet_distance(a, b), metrics.kernel_distance(a, b), *metrics.precision_recall(a, b)]
    assert found == wanted and {x.dtype for x in found} == {torch.float64}


@pytest.mark.server
@pytest.mark.skipif(not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
                    reason="this torch has no devices made in Python")
def test_nodes_run_on_a_device_without_float64_and_pinned_memory() -> None:
    tests = [f"tests/test_{file}.py::test_{name}" for file, names in RUN.items() for name in names]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], cwd=ROOT, text=True,
                          capture_output=True, timeout=900,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "ATELIER_TEST_DEVICE": "faraway"})
    assert done.returncode == 0, done.stdout[-5000:]
    assert "skipped" not in done.stdout and "passed" in done.stdout


@pytest.mark.skipif(not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
                    reason="this torch has no devices made in Python")
def test_the_device_refuses_what_it_should() -> None:
    code = ("import runpy, torch; runpy.run_path('cli/__main__.py')['load_checkout'](__import__('pathlib').Path('.'))\n"
            "from oneshot_atelier.tests import faraway\n"
            "faraway.make_device(); there = torch.device(faraway.NAME, 0)\n"
            "refused = [lambda: torch.zeros(2, dtype=torch.float64, device=there), lambda: x.double(),\n"
            "           lambda: x + torch.ones(2), lambda: torch.randn(2, device=there, generator=torch.Generator()),\n"
            "           lambda: x.numpy(), lambda: torch.ones(2, device=there, pin_memory=True)]\n"
            "with faraway.Machine():\n"
            "    x = torch.ones(2).to(there)\n"
            "    assert x.device == there and float((x + x).sum()) == 4\n"
            "    for attempt in refused:\n"
            "        try:\n            attempt()\n"
            "        except (RuntimeError, TypeError):\n            continue\n"
            "        raise SystemExit(f'attempt {refused.index(attempt)} worked')\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
