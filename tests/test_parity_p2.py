"""The P2 DDPM beside its golden values (tests/test_parity.py): the photo twin's chain, and the heads."""

import pytest
import torch

from oneshot_atelier.models.diffae import denoiser
from oneshot_atelier.models.loading import load_ddpm
from oneshot_atelier.models.osasis import photo_twins
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import parity_p2


@pytest.fixture(scope="module")
def case():
    return golden.load_case("p2_tiny")


def test_the_photo_twin_takes_the_official_first_step(case, tmp_path):
    """photo_twins, stopped after its first step, is the golden step: noised to one index, denoised from the next."""
    table, top = parity_p2.table_of(case), parity_p2.top_of(case)
    draws = iter([case.inputs["noise"], case.inputs[f"noise_i{top}"]])

    class Enough(Exception):
        pass

    def first_only(i, x0, x):
        assert i == top
        case.check(f"x0_i{top}", x0)
        case.check(f"next_i{top}", x)
        raise Enough

    with torch.no_grad(), pytest.raises(Enough):
        photo_twins(parity_p2.load(case, tmp_path), case.inputs["img"], lambda: next(draws), steps=len(table),
                    t0=case.config["t_start_ratio"], hook=first_only)


def test_other_heads_would_not_pass(case, tmp_path):
    path = golden.random_official_checkpoint(tmp_path / "ffhq_p2.pt", case.name)
    assert load_ddpm(path).config.head_channels == 64  # the published ones
    top = parity_p2.top_of(case)
    other = load_ddpm(path, head_channels=case.config["num_head_channels"] // 2)
    with torch.no_grad(), pytest.raises(AssertionError, match="off by"):
        case.check(f"out_i{top}", denoiser(other)(case.outputs[f"x_i{top}"], parity_p2.table_of(case).times[top]))
