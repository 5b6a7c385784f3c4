"""MMFS against the golden values: every output and value of mmfs_mini and mmfs_full, from official-looking files."""

import pytest
import torch

from oneshot_atelier.models.checkpoints import mmfs as official
from oneshot_atelier.models.checkpoints import names
from oneshot_atelier.models.loading import load_mmfs
from oneshot_atelier.models.mmfs import MapperConfig, MMFSConfig, detect
from oneshot_atelier.models.stylegan2 import channel_table
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests.test_parity_diffae import names_of


def loaded(folder, case, with_discriminator):
    """Through a file as the official trainer writes it; the raw `G_model` in it is a decoy."""
    root = {"G_ema_model": golden.weights(case, "G_ema_model."), "G_model": {"encoder.0.0.weight": torch.zeros(1)},
            "optimizer_0": {"state": {}}, "scheduler_0": {}, "epoch": 3, "total_iters": 10_000, "metric": 0.0}
    if with_discriminator:
        root["D_model"] = golden.weights(case, "D_model.")
    path = golden.save_torch(folder / "phase3_pretrain_10000.pth", root)
    nets = load_mmfs(path)
    path.unlink()
    return nets


def given_noise(case):
    """In the order of the layers: decoder0, decoder1a, decoder1b, .."""
    order = ["decoder0"] + [f"decoder{k}{half}" for k in range(1, 5) for half in "ab"]
    return [case.inputs[f"noise_{name}"][:1] for name in order]


def mean_std(x):
    return [x.mean(), x.std(unbiased=False)]


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    case = golden.load_case("mmfs_mini")
    net, discriminator = loaded(tmp_path_factory.mktemp("mmfs"), "mmfs_mini", False)
    assert discriminator is None and net.config.encoder == (8, 8, 16, 32, 64)
    x, z, rect = case.inputs["x"], case.inputs["z"], case.inputs["x_rect"]
    with torch.no_grad():
        w, clip = net.styles(z), net.styles_of(case.inputs["clip_feature_raw"])
        return {"feature": net.encode(x), "styles_random": net.mapping(z), "styles_clip": clip.transpose(0, 1),
                "out_random_nonoise": net(x, w), "out_clip_nonoise": net(x[:1], clip[:1]),
                "out_random_noise": net(x[:1], w[:1], given_noise(case)),
                "rect_feature": net.encode(rect), "rect_out": net(rect, w[:1])}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    case = golden.load_case("mmfs_full")
    net, d = loaded(tmp_path_factory.mktemp("mmfs"), "mmfs_full", True)
    assert net.config == MMFSConfig(mapper=MapperConfig()) and d.config.channels == channel_table(512)
    x, crops = case.inputs["x"], case.config["crops"]
    with torch.no_grad():
        feature, w, clip = net.encode(x), net.styles(case.inputs["z"]), net.styles_of(case.inputs["clip_feature_raw"])
        pictures = {"random_nonoise": net.decode(feature, w), "clip_nonoise": net.decode(feature, clip),
                    "random_noise": net.decode(feature, w, given_noise(case))}
        maps = dict(zip((1, 3, 4, 5), d.features(x), strict=True))
        found = {"feature_crop": feature[:, :64, :12, :12], "feature_mean_std": mean_std(feature), "d_score": d(x),
                 "styles_random": net.mapping(case.inputs["z"]), "styles_clip": clip.transpose(0, 1)}
    for name, picture in pictures.items():
        found[f"out_{name}_mean8"] = torch.nn.functional.avg_pool2d(picture, 8)
        for corner, (row, column) in crops.items():
            if corner == "mid" or name != "clip_nonoise":
                found[f"out_{name}_{corner}"] = picture[:, :, row:row + 48, column:column + 48]
    for k, feature_map in maps.items():
        found |= {f"d_feat{k}": feature_map[:, :8, :16, :16], f"d_feat{k}_mean_std": mean_std(feature_map)}
    return found


@pytest.mark.parametrize("name", names_of("mmfs_mini"))
def test_mini(mini, name):
    golden.load_case("mmfs_mini").check(name, mini[name])


@pytest.mark.parametrize("name", names_of("mmfs_full"))
def test_full(full, name):
    golden.load_case("mmfs_full").check(name, full[name])


def test_nothing_golden_is_left_out(mini, full):
    assert set(mini) == set(names_of("mmfs_mini")) and len(mini) == 8
    assert set(full) == set(names_of("mmfs_full")) and len(full) == 18 + 5


# --- the name map ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", ["mmfs_mini", "mmfs_full"])
@pytest.mark.parametrize("phase", [2, 3])
def test_names_and_shapes_go_there_and_back(case, phase):
    state = {name: value for name, value in golden.weights(case, "G_ema_model.").items()
             if phase == 3 or not name.startswith("clip_mapper.")}
    ours = names.to_ours(state, official.rows_of(state))
    config = detect(ours)
    assert (config.mapper is not None) == (phase == 3)
    back = names.from_ours(ours, official.rows(4, 8, 4 if phase == 3 else 0))
    expected = {name: value for name, value in state.items() if not name.endswith("kernel")}
    assert back.keys() == expected.keys() and all(torch.equal(back[name], expected[name]) for name in back)


def test_the_parameters_are_as_many_as_published():
    """Spec A.4: encoder, mapping, convolutions and rgb layers of the decoder, CLIP mapper."""
    tensors = names.to_ours(state := golden.weights("mmfs_full", "G_ema_model."), official.rows_of(state))
    sizes = {part: sum(value.numel() for name, value in tensors.items() if name.startswith(part))
             for part in ("encoder.", "mapping.", "decoder.", "mapper.")}
    rgb = sum(value.numel() for name, value in tensors.items() if ".rgb." in name)
    assert sizes["encoder."] == 4_935_360 and sizes["mapping."] == 2_101_248
    assert (sizes["decoder."] - rgb, rgb) == (10_880_201, 759_567)
    assert round(sizes["mapper."] / 1e6, 2) == 12.61
