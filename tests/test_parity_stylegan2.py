"""StyleGAN2 against the golden values, in rosinality's layout (.pt) and in NVIDIA's (.pkl): every output and value."""

import argparse

import pytest
import torch
import torch.nn.functional as F

from oneshot_atelier.models.checkpoints import names, nvidia, rosinality
from oneshot_atelier.models.loading import load_stylegan2
from oneshot_atelier.models.stylegan2 import (
    Discriminator,
    StyleGAN2,
    StyleGAN2Config,
    detect,
    detect_discriminator,
    mix_styles,
)
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import nvidia_files
from oneshot_atelier.tests.test_parity_diffae import names_of

CONFIG = StyleGAN2Config((512,) * 5)


@pytest.fixture(scope="module")
def rosinality_nets(tmp_path_factory):
    """From a file as the trainer writes it; the raw `g` in it is a decoy."""
    case, path = "sg2_rosinality", tmp_path_factory.mktemp("sg2") / "550000.pt"
    golden.save_torch(path, {
        "g": {"style.1.weight": torch.zeros(512, 512)}, "d": golden.weights(case, "d."), "g_optim": {"state": {}},
        "g_ema": golden.weights(case, "g_ema."), "latent_avg": golden.weights(case)["latent_avg"],
        "args": argparse.Namespace(size=64, batch=4), "ada_aug_p": 0.0})
    nets = load_stylegan2(path)
    path.unlink()
    return nets


@pytest.fixture(scope="module")
def nvidia_nets(tmp_path_factory):
    path = tmp_path_factory.mktemp("sg2") / "ffhq.pkl"
    nets = load_stylegan2(nvidia_files.write(path, golden.weights("sg2_nvidia", "G_ema."),
                                             golden.weights("sg2_nvidia", "D.")))
    path.unlink()
    return nets


def common(nets, case):
    """What both cases ask."""
    g, d = nets
    z, wplus, pictures = case.inputs["z"], case.inputs["wplus"][:1], case.inputs["d_img"]
    noise = g.constant_noise()
    return {"w": g.mapping(z), "img_const_t1": g(g.styles(z), noise), "img_const_t07": g(g.styles(z[:1], 0.7), noise),
            "img_wplus_const": g(wplus, noise), "img_wplus_nonoise": g(wplus), "score_b2": d(pictures[:2]),
            "score_b4": d(pictures), "score_b8": d(torch.cat([pictures, pictures.flip(3)]))}


def features(d, pictures, layers, labels):
    """Crops of D's feature maps, and mean and deviation of the whole ones."""
    maps = dict(zip(labels, d.features(pictures, layers), strict=True))
    return ({f"feat{k}": m[:, :8, :16, :16] for k, m in maps.items()}
            | {f"feat{k}_mean_std": [m.mean(), m.std(unbiased=False)] for k, m in maps.items()})


@pytest.fixture(scope="module")
def found_rosinality(rosinality_nets):
    case, (g, d) = golden.load_case("sg2_rosinality"), rosinality_nets
    given = [case.inputs[f"noise_{i}"] for i in range(9)]
    with torch.no_grad():
        found = common(rosinality_nets, case)
        found["img_wplus_given"] = g(case.inputs["wplus"][:1], given)
        first, second = g.styles(case.inputs["z"]).split(1)
        found["img_mix"] = g(mix_styles(first, second, case.config["inject_index"]), g.constant_noise())
        found |= features(d, case.inputs["d_img"][:2], range(5), range(5))
    pictures = case.inputs["d_img"][:2].clone().requires_grad_()
    weight = d.from_rgb.weight.requires_grad_()
    gradient, = torch.autograd.grad(d(pictures).sum(), pictures, create_graph=True)
    r1 = gradient.square().sum((1, 2, 3)).mean()
    second_order, = torch.autograd.grad(r1, weight)
    weight.requires_grad_(False)
    found |= {"r1": r1, "r1_grad_img": gradient, "r1_grad_convs0": second_order}
    w = found["w"].clone().requires_grad_()
    loss = F.softplus(-d(g(w[:, None].repeat(1, 10, 1), g.constant_noise()))).mean()
    return found | {"g_loss": loss, "g_grad_w": torch.autograd.grad(loss, w)[0]}


@pytest.fixture(scope="module")
def found_nvidia(nvidia_nets):
    case, (g, d) = golden.load_case("sg2_nvidia"), nvidia_nets
    with torch.no_grad():
        found = common(nvidia_nets, case)
        found["img_const_t07_cut4"] = g(g.styles(case.inputs["z"][:1], 0.7, cutoff=4), g.constant_noise())
        return found | features(d, case.inputs["d_img"][:2], range(1, 5), ["_b64", "_b32", "_b16", "_b8"])


def check_up_to_a_kink(case, name, actual):
    """One pre-activation of this case is -1.3e-7 in float64: the golden value was computed on the other side of the
    leaky ReLU's kink, and so is ours with AVX2 convolutions (then all are within 2e-9), but not with AVX-512 ones.
    Its 3 x 3 windows may differ, by little; everything else may not."""
    error = (actual - case.outputs[name]).abs()
    assert (error > case.tolerances[name]).float().mean() < 1e-3
    assert error.square().mean().sqrt() < 2e-3 * case.outputs[name].square().mean().sqrt()


@pytest.mark.parametrize("name", names_of("sg2_rosinality"))
def test_rosinality(found_rosinality, name):
    case = golden.load_case("sg2_rosinality")
    if name == "r1_grad_img":
        check_up_to_a_kink(case, name, found_rosinality[name])
    else:
        case.check(name, found_rosinality[name])


@pytest.mark.parametrize("name", names_of("sg2_nvidia"))
def test_nvidia(found_nvidia, name):
    golden.load_case("sg2_nvidia").check(name, found_nvidia[name])


def test_nothing_golden_is_left_out(found_rosinality, found_nvidia):
    assert set(found_rosinality) == set(names_of("sg2_rosinality")) and len(found_rosinality) == 18 + 7
    assert set(found_nvidia) == set(names_of("sg2_nvidia")) and len(found_nvidia) == 13 + 4


def test_the_networks_come_frozen_in_the_plain_layout(rosinality_nets, nvidia_nets):
    for net in (*rosinality_nets, *nvidia_nets):
        assert net.config == CONFIG and not net.training and not any(p.requires_grad for p in net.parameters())
        assert all(p.is_contiguous() and p.dtype == torch.float32 for p in net.parameters())


# --- the name maps -----------------------------------------------------------------------------------------------
LAYOUTS = {"rosinality": (rosinality, "sg2_rosinality", "g_ema.", "d."),
           "nvidia": (nvidia, "sg2_nvidia", "G_ema.", "D.")}


def without_kernels(state):
    return {name: value for name, value in state.items() if not name.endswith(("kernel", "resample_filter"))}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_names_and_shapes_go_there_and_back(layout):
    module, case, generator, discriminator = LAYOUTS[layout]
    for prefix, rows_of, rows_for in (
            (generator, module.rows_of_generator, module.generator_rows(5, 8)),
            (discriminator, module.rows_of_discriminator, module.discriminator_rows(4))):
        state = golden.weights(case, prefix)
        ours = names.to_ours(state, rows_of(state))
        back = names.from_ours(ours, rows_for)
        expected = without_kernels(state)
        assert back.keys() == expected.keys() and all(torch.equal(back[name], expected[name]) for name in back)
    assert detect_discriminator(ours) == CONFIG


CHANGES = {"same": lambda t: t, "add0": lambda t: t[None], "add00": lambda t: t[None, None],
           "vec1": lambda t: t.reshape(1), "rgbbias": lambda t: t.reshape(1, 3, 1, 1)}


@pytest.mark.parametrize(("part", "prefix", "theirs", "others"), [
    ("generator", "G_ema.", nvidia.rows_of_generator, rosinality.generator_rows(5, 8)),
    ("discriminator", "D.", nvidia.rows_of_discriminator, rosinality.discriminator_rows(4))])
def test_nvidia_becomes_rosinality_and_back_by_the_verified_map(part, prefix, theirs, others):
    state = golden.weights("sg2_nvidia", prefix)
    pairs = [pair for pair in golden.description("sg2_nvidia")["name_map"][part] if not pair[0].endswith("kernel")]
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
