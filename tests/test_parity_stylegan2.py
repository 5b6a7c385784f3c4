"""The name maps of StyleGAN2's two public layouts, on the golden cases' weights (parity: tests/test_parity.py)."""

import pytest
import torch

from oneshot_atelier.models.checkpoints.formats import names, nvidia, rosinality
from oneshot_atelier.models.stylegan2 import Discriminator, StyleGAN2, StyleGAN2Config, detect, detect_discriminator
from oneshot_atelier.tests import golden_cases as golden

LAYOUTS = {"rosinality": (rosinality, "sg2_rosinality", "g_ema.", "d."),
           "nvidia": (nvidia, "sg2_nvidia", "G_ema.", "D.")}


def without_kernels(state):
    return {name: value for name, value in state.items() if not name.endswith(("kernel", "resample_filter"))}


def sizes(case):
    """(resolutions, mapping layers) that a case tells."""
    config = golden.load_case(case).config
    return config["size"].bit_length() - 2, config.get("n_mlp", config.get("num_mapping_layers"))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_names_and_shapes_go_there_and_back(layout):
    module, case, generator, discriminator = LAYOUTS[layout]
    blocks, layers = sizes(case)
    for prefix, rows_of, rows_for in (
            (generator, module.rows_of_generator, module.generator_rows(blocks, layers)),
            (discriminator, module.rows_of_discriminator, module.discriminator_rows(blocks - 1))):
        state = golden.weights(case, prefix)
        ours = names.to_ours(state, rows_of(state))
        back = names.from_ours(ours, rows_for)
        expected = without_kernels(state)
        assert back.keys() == expected.keys() and all(torch.equal(back[name], expected[name]) for name in back)
    assert detect_discriminator(ours).resolution == golden.load_case(case).config["size"]


CHANGES = {"same": lambda t: t, "add0": lambda t: t[None], "add00": lambda t: t[None, None],
           "vec1": lambda t: t.reshape(1), "rgbbias": lambda t: t.reshape(1, 3, 1, 1)}


@pytest.mark.parametrize(("part", "prefix"), [("generator", "G_ema."), ("discriminator", "D.")])
def test_nvidia_becomes_rosinality_and_back_by_the_verified_map(part, prefix):
    state, (blocks, layers) = golden.weights("sg2_nvidia", prefix), sizes("sg2_nvidia")
    pairs = [pair for pair in golden.description("sg2_nvidia")["name_map"][part] if not pair[0].endswith("kernel")]
    theirs, others = ((nvidia.rows_of_generator, rosinality.generator_rows(blocks, layers)) if part == "generator"
                      else (nvidia.rows_of_discriminator, rosinality.discriminator_rows(blocks - 1)))
    ours = names.to_ours(state, theirs(state))
    moved = names.from_ours(ours, others)
    assert moved.keys() - {"latent_avg"} == {name for name, _, _ in pairs}
    assert all(torch.equal(moved[name], CHANGES[change](state[source])) for name, source, change in pairs)
    back = names.to_ours(moved, others)
    assert back.keys() == ours.keys() and all(torch.equal(back[name], ours[name]) for name in ours)


@pytest.mark.parametrize(("blocks", "layers"), [(2, 1), (7, 8), (8, 8), (9, 2)])
def test_the_maps_cover_every_tensor_of_every_size(blocks, layers):
    """Up to 1024 px; widths do not matter for names."""
    config = StyleGAN2Config((8,) * blocks, 16, layers)
    with torch.device("meta"):
        g, d = StyleGAN2(config).state_dict(), Discriminator(config).state_dict()
    assert detect(g) == config
    for module in (rosinality, nvidia):
        for ours, rows in ((g, module.generator_rows(blocks, layers)), (d, module.discriminator_rows(blocks - 1))):
            assert {row.ours for row in rows} == ours.keys() and len({row.theirs for row in rows}) == len(rows)
            moved = names.from_ours(ours, rows)
            assert {k: v.shape for k, v in names.to_ours(moved, rows).items()} == {k: v.shape for k, v in ours.items()}
        assert module.rows_of_generator(names.from_ours(g, module.generator_rows(blocks, layers))) == \
            module.generator_rows(blocks, layers)
