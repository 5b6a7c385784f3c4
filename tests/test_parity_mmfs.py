"""MMFS beside its golden values (tests/test_parity.py): the name map on their weights, and the published sizes."""

import pytest
import torch

from oneshot_atelier.models.checkpoints.formats import mmfs as official
from oneshot_atelier.models.checkpoints.formats import names
from oneshot_atelier.models.mmfs import MMFS, MapperConfig, MMFSConfig, detect
from oneshot_atelier.tests import golden_cases as golden


@pytest.mark.parametrize("case", golden.present(["mmfs_mini", "mmfs_full"]))
@pytest.mark.parametrize("phase", [2, 3])
def test_names_and_shapes_go_there_and_back(case, phase):
    state = {name: value for name, value in golden.weights(case, "G_ema_model.").items()
             if phase == 3 or not name.startswith("clip_mapper.")}
    ours = names.to_ours(state, official.rows_of(state))
    config = detect(ours)
    assert (config.mapper is not None) == (phase == 3)
    c = golden.load_case(case).config
    back = names.from_ours(ours, official.rows(c["blocks"], config.mapping_layers,
                                               c["clip_mapper"]["layers"] if phase == 3 else 0))
    expected = {name: value for name, value in state.items() if not name.endswith("kernel")}
    assert back.keys() == expected.keys() and all(torch.equal(back[name], expected[name]) for name in back)


def test_the_parameters_are_as_many_as_published():
    """docs/mmfs.md A.4: encoder, mapping, convolutions and rgb layers of the decoder, CLIP mapper."""
    with torch.device("meta"):
        tensors = MMFS(MMFSConfig(mapper=MapperConfig())).state_dict()
    sizes = {part: sum(value.numel() for name, value in tensors.items() if name.startswith(part))
             for part in ("encoder.", "mapping.", "decoder.", "mapper.")}
    rgb = sum(value.numel() for name, value in tensors.items() if ".rgb." in name)
    assert sizes["encoder."] == 4_935_360 and sizes["mapping."] == 2_101_248
    assert (sizes["decoder."] - rgb, rgb) == (10_880_201, 759_567)
    assert round(sizes["mapper."] / 1e6, 2) == 12.61
