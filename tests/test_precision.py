"""Number formats: the names, and that a CPU always computes in float32."""
import pytest
import torch

from oneshot_atelier.models import precision
from oneshot_atelier.models.precision import AUTO, PRECISIONS, autocast, full_precision

CPU = torch.device("cpu")


def product(dtype=torch.float32):
    return (torch.ones(2, 2, dtype=dtype) @ torch.ones(2, 2, dtype=dtype)).dtype


def test_the_names():
    assert PRECISIONS == ("float32", "bfloat16", "float16") and AUTO not in PRECISIONS


@pytest.mark.parametrize("name", [*PRECISIONS, AUTO])
def test_a_cpu_computes_in_float32(name):
    for device in (CPU, torch.device("meta")):
        with autocast(device, name):
            assert not torch.is_autocast_enabled("cpu") and product() == torch.float32


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16),
                                             (AUTO, torch.float16), ("float32", torch.float32)])
def test_elsewhere_the_name_decides(name, dtype, monkeypatch):
    monkeypatch.setattr(precision, "NO_HALF", ())
    with autocast(CPU, name):
        assert product() == dtype
        with full_precision(CPU):
            assert product() == torch.float32
        assert product() == dtype
    assert product() == torch.float32


@pytest.mark.parametrize("name", ["half", "", "int8", "Float32"])
def test_an_unknown_name_is_refused_on_every_device(name):
    with pytest.raises(ValueError, match=f"precision is '{name}'; take one of float32, bfloat16, float16"):
        autocast(CPU, name)
