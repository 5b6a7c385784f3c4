"""That parity of the DiffAE (tests/test_parity.py) means something: other weights would not pass."""

import pytest
import torch

from oneshot_atelier.models.diffae import DiffAE
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import parity_diffae


def test_the_raw_weights_would_not_pass():
    """The decoy `model.` weights of the official-looking file differ, so parity shows that `ema_model.` was read."""
    case = golden.load_case("diffae_tiny")
    decoy = {key.removeprefix("model.encoder."): value for key, value in golden.lightning_state(case.name).items()
             if key.startswith("model.encoder.")}
    net = DiffAE(parity_diffae.configured(case.config))
    net.encoder.load_state_dict(decoy)
    with torch.no_grad(), pytest.raises(AssertionError, match="off by"):
        case.check("z", net.eval().encode(case.inputs["img"]))
