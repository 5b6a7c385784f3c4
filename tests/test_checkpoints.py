"""Official-looking checkpoints: every format is read into our names, strictly, decided by content."""

import shutil
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from oneshot_atelier.models import checkpoints
from oneshot_atelier.models.checkpoints import CheckpointError, read, store
from oneshot_atelier.models.checkpoints.records import Inert, TensorRef
from oneshot_atelier.models.checkpoints.unpickle import read_torch
from oneshot_atelier.tests import golden_cases as golden

FILES = {"diffae": ("diffae_tiny", {}), "autoenc": ("diffae_tiny", {"latent": False}), "p2": ("p2_tiny", {}),
         "osasis": ("osasis_tiny", {}), "osasis_plain": ("osasis_tiny", {"spn": False})}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every official-looking file once, in the zip container."""
    folder = tmp_path_factory.mktemp("official")
    return {name: golden.random_official_checkpoint(folder / f"{name}.ckpt", case, **options)
            for name, (case, options) in FILES.items()}


@pytest.fixture(scope="module")
def diffae(files):
    return read(files["diffae"], "diffae")


def ema(key):
    return golden.weights("diffae_tiny", "ema_model.")[key]


# --- what is read ----------------------------------------------------------------------------------------------
def test_diffae_gives_the_averaged_weights_under_our_names(diffae):
    assert diffae.kind == "diffae" and diffae.config is None
    assert diffae.meta == {"format": "diffae-lightning", "global_step": 1563562, "epoch": 12}
    assert len(diffae.tensors) == 686 - 2 * 9 + 2  # without the second names of linear_emb, with the statistics
    assert {name.partition(".")[0] for name in diffae.tensors} == {"unet", "encoder", "latent_net", "conds_mean",
                                                                   "conds_std"}
    for ours, official in [("unet.time_embed.0.weight", "time_embed.time_embed.0.weight"),
                           ("unet.out.2.bias", "out.2.bias"), ("encoder.out.3.weight", "encoder.out.3.weight"),
                           ("unet.input_blocks.3.0.cond_emb_layers.1.weight",
                            "input_blocks.3.0.cond_emb_layers.1.weight"),
                           ("latent_net.layers.4.linear_emb.bias", "latent_net.layers.4.linear_emb.bias"),
                           ("latent_net.time_embed.0.weight", "latent_net.time_embed.0.weight")]:
        assert torch.equal(diffae.tensors[ours], ema(official)), ours


def test_statistics_become_vectors(diffae):
    assert diffae.tensors["conds_mean"].shape == diffae.tensors["conds_std"].shape == (48,)
    expected = golden.weights("diffae_tiny", "")
    assert torch.equal(diffae.tensors["conds_std"], expected["conds_std"][0])


def test_an_autoencoder_without_latent_network_has_no_statistics(files):
    tensors = read(files["autoenc"], "diffae").tensors
    assert "conds_mean" not in tensors and not any(name.startswith("latent_net.") for name in tensors)


def test_p2_keys_are_unchanged(files):
    found = read(files["p2"], "ddpm")
    expected = golden.weights("p2_tiny")
    assert found.kind == "ddpm" and found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)


def test_a_style_is_the_unet_of_b_and_the_spn(files):
    found = read(files["osasis"], "osasis_style")
    expected, spn = golden.weights("osasis_tiny", "diffae_B."), golden.weights("osasis_tiny", "model_map.")
    assert found.meta == {"format": "osasis", "spn": True, "iter": 200}
    assert {name.partition(".")[0] for name in found.tensors} == {"unet", "spn"}
    assert torch.equal(found.tensors["unet.out.2.weight"], expected["out.2.weight"])
    assert torch.equal(found.tensors["unet.time_embed.2.bias"], expected["time_embed.time_embed.2.bias"])
    assert {name[4:] for name in found.tensors if name.startswith("spn.")} == set(spn)
    assert torch.equal(found.tensors["spn.block1.pre_layer.2.weight"], spn["block1.pre_layer.2.weight"])


def test_a_style_may_lack_its_spn_encoder_and_latent_network(files, tmp_path):
    assert not any(name.startswith("spn.") for name in read(files["osasis_plain"]).tensors)
    unet = {k: v for k, v in golden.weights("osasis_tiny", "diffae_B.").items() if not k.startswith(("encoder",
                                                                                                     "latent"))}
    path = golden.save_torch(tmp_path / "iter_1.pt", {"diffae_B": unet})
    assert read(path).tensors.keys() == read(files["osasis_plain"]).tensors.keys()


def test_a_plain_ddim_configuration_is_a_bare_unet(tmp_path):
    state = {f"ema_model.{key}": tensor for key, tensor in golden.weights("p2_tiny").items()}
    path = golden.save_torch(tmp_path / "last.ckpt", {"state_dict": state, "global_step": 5})
    found = read(path, "ddpm")
    assert found.tensors.keys() == golden.weights("p2_tiny").keys() and found.meta["global_step"] == 5


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_legacy_container_reads_the_same(files, tmp_path, name):
    case, options = FILES[name]
    old = read(golden.random_official_checkpoint(tmp_path / "old.pt", case, zip_container=False, **options))
    new = read(files[name])
    assert old.tensors.keys() == new.tensors.keys() and old.meta == new.meta
    assert all(torch.equal(old.tensors[key], new.tensors[key]) for key in new.tensors)


def test_the_content_decides_and_not_the_name(files, tmp_path):
    for name, file_name in [("p2", "last.ckpt"), ("diffae", "ffhq_p2.pt"), ("osasis", "model.safetensors")]:
        path = shutil.copy(files[name], tmp_path / file_name)
        assert read(path).kind == read(files[name]).kind


def test_official_keys_in_a_safetensors_file_are_read_alike(files, tmp_path):
    state = {k: v.clone() for k, v in golden.lightning_state("diffae_tiny").items() if "cond_layers.1" not in k}
    save_file(state, tmp_path / "a.safetensors")
    save_file(golden.weights("p2_tiny"), tmp_path / "b.bin")
    assert read(tmp_path / "b.bin", "ddpm").tensors.keys() == golden.weights("p2_tiny").keys()
    found = read(tmp_path / "a.safetensors", "diffae")
    assert found.config is None and found.tensors.keys() == read(files["diffae"]).tensors.keys()


def test_lightning_classes_are_records_and_stay_apart(files):
    root = read_torch(files["diffae"])
    (key, value), = root["callbacks"].items()
    assert str(key) == "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert value["best_model_score"].read() == 1.5
    assert isinstance(root["hyper_parameters"], Inert) and root["hyper_parameters"].entries == {"seed": 0, "lr": 1e-4}


@pytest.mark.parametrize("zip_container", [True, False])
def test_every_number_type_view_and_parameter_is_read_as_torch_reads_it(tmp_path, zip_container):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    saved = {str(dtype): torch.arange(5).to(dtype) for dtype in
             (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
              torch.int8, torch.uint8, torch.bool)}
    saved |= {"base": base, "turned": base.T, "part": base[1:3, ::2], "scalar": torch.tensor(3.5),
              "none": torch.zeros(0, 2),
              "parameter": torch.nn.Parameter(base + 1), "size": base.shape}
    path = golden.save_torch(tmp_path / "a.pt", saved, zip_container)
    found = read_torch(path)
    assert found["size"] == (4, 6)
    for name, tensor in saved.items():
        if name != "size":
            value = found[name].read()
            assert isinstance(found[name], TensorRef) and value.is_contiguous()
            assert value.dtype == tensor.dtype and torch.equal(value, tensor.detach()), name


def test_modules_and_ordered_dicts_with_attributes_are_read(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = net.state_dict()
    found = read_torch(golden.save_torch(tmp_path / "a.pt", {"state": state, "set": {1, 2}, "list": [1, (2, 3)]}))
    assert list(found["state"]) == list(state) and found["set"] == {1, 2} and found["list"] == [1, (2, 3)]


# --- what is refused -------------------------------------------------------------------------------------------
def lightning(state):
    return {"state_dict": state}


def changed(**changes):
    """A small DiffAE state dict with some entries replaced (None: removed)."""
    state = {"ema_model." + key: tensor for key, tensor in golden.weights("diffae_tiny", "ema_model.").items()
             if key.startswith(("time_embed", "input_blocks.0", "encoder.input_blocks.0", "latent_net.layers.0",
                                "out."))}
    state |= {"conds_mean": torch.zeros(1, 48), "conds_std": torch.ones(1, 48)}
    for key, value in changes.items():
        key = key.replace("__", ".")
        state.pop(key, None)
        if value is not None:
            state[key] = value
    return lightning(state)


ALIAS = "ema_model__latent_net__layers__0__cond_layers__1__weight"
ORIGINAL = "ema_model__latent_net__layers__0__linear_emb__weight"
BIAS = "ema_model__out__2__bias"
REFUSED = {
    "alias differs": (changed(**{ALIAS: torch.ones(72, 48)}), "differ, but are one tensor"),
    "alias of nothing": (changed(**{ORIGINAL: None}), "second name of"),
    "mean without deviation": (changed(conds_std=None), "conds_mean alone"),
    "mean of another width": (changed(conds_mean=torch.zeros(1, 47)), r"shape \[1, 47\]"),
    "deviation of zero": (changed(conds_std=torch.zeros(1, 48)), "zero or negative"),
    "NaN": (changed(**{BIAS: torch.full((3,), float("nan"))}), "NaN or infinite"),
    "infinity": (changed(**{BIAS: torch.full((3,), float("inf"))}), "NaN or infinite"),
    "five dimensions": (changed(**{BIAS: torch.zeros(1, 1, 1, 1, 3)}), "5 dimensions"),
    "no dimension": (changed(**{BIAS: torch.tensor(1.0)}), "0 dimensions"),
    "integers": (changed(**{BIAS: torch.zeros(3, dtype=torch.int64)}), "int64"),
    "not a tensor": (changed(**{BIAS: "three"}), "not a named tensor"),
    "doubled prefix": (changed(ema_model__module__out__2__bias=torch.zeros(3)), "doubled prefix"),
    "two spellings": (changed(ema_model__time_embed__0__weight=torch.zeros(3, 3)), "twice"),
    "raw weights only": (lightning({"model.input_blocks.0.0.weight": torch.zeros(3, 3, 3, 3)}), "only raw ones"),
    "class conditional": ({**golden.weights("p2_tiny"), "label_emb.weight": torch.zeros(3, 3)}, "class-conditional"),
    "mixed P2": ({**golden.weights("p2_tiny"), "step": 3}, "not a tensor"),
    "style without network": ({"model_map": {"in_layer.0.weight": torch.zeros(1, 1)}}, "'diffae_B' is missing"),
    "style with empty network": ({"diffae_B": {}}, "'diffae_B' is missing or empty"),
    "style without UNet": ({"diffae_B": {"encoder.out.3.bias": torch.zeros(3)}}, "no UNet"),
    "style with odd SPN": ({"diffae_B": golden.weights("osasis_tiny", "diffae_B."), "model_map": [1]}, "'model_map'"),
    "empty StyleGAN2": ({"g_ema": {}, "latent_avg": torch.zeros(3)}, "'g_ema' is missing or empty"),
    "empty MMFS": ({"G_ema_model": {}, "D_model": {}}, "'G_ema_model' is missing or empty"),
    "MMFS without average": ({"G_model": {}}, "an MMFS checkpoint without its averaged network"),
    "StyleGAN1": ({"g_running": {}, "generator": {}}, "StyleGAN1"),
    "classifier": (lightning({"ema_classifier.weight": torch.zeros(40, 512)}), "attribute classifier"),
    "latent.pkl": ({"conds": torch.zeros(9, 4), "conds_mean": torch.zeros(4)}, "latent.pkl"),
    "something else": ({"fc.weight": torch.zeros(3, 3)}, "no known model .it begins with fc.weight"),
    "empty": ({}, "begins with nothing"),
    "a list": ([torch.zeros(3)], "torch file of a list"),
    "a tensor": (torch.zeros(3), "torch file of a TensorRef"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_foreign_and_broken_contents_are_refused_with_the_reason(tmp_path, name):
    content, reason = REFUSED[name]
    with pytest.raises(CheckpointError, match=reason) as caught:
        read(golden.save_torch(tmp_path / "broken.pt", content))
    assert str(caught.value).startswith("broken.pt: ")


def test_the_unbroken_small_state_dict_is_read(tmp_path):
    assert read(golden.save_torch(tmp_path / "a.pt", changed())).kind == "diffae"


@pytest.mark.parametrize(("name", "wanted", "words"), [
    ("p2", "diffae", ["a DDPM model", "Load DDPM", "phizaz/diffae"]),
    ("diffae", "ddpm", ["a DiffAE model", "Load DiffAE", "P2-weighting"]),
    ("osasis", "diffae", ["an OSASIS style", "Load OSASIS Style"]),
    ("diffae", "osasis_style", ["a DiffAE model", "hansam95/OSASIS"])])
def test_a_wrong_kind_is_named_with_the_node_and_the_public_page(files, name, wanted, words):
    with pytest.raises(CheckpointError) as caught:
        read(files[name], wanted)
    assert all(word in str(caught.value) for word in words)


def test_many_views_of_one_storage_cannot_multiply_memory(tmp_path):
    weights = golden.weights("p2_tiny")
    block = torch.zeros(1000)
    state = OrderedDict(weights, **{f"extra.{i}": block for i in range(5000)})
    with pytest.raises(CheckpointError, match="views of the same numbers"):
        read(golden.save_torch(tmp_path / "a.pt", state))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="not a file"):
        read(tmp_path)


# --- convert ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "kind"), [("diffae", "diffae"), ("autoenc", "diffae"), ("p2", "ddpm"),
                                            ("osasis", "osasis_style"), ("osasis_plain", "osasis_style")])
def test_convert_writes_a_slim_file_that_reads_back(files, tmp_path, name, kind):
    out = checkpoints.convert(files[name], tmp_path / "slim.safetensors")
    original, slim = read(files[name]), read(out, kind)
    assert out.stat().st_size < 0.55 * files[name].stat().st_size and slim.config
    assert slim.meta == {**original.meta, "source": files[name].name, "source_sha256": store.sha256(files[name])}
    assert slim.tensors.keys() == original.tensors.keys()
    full = ("conds_mean", "conds_std")  # these two stay in 32 bit
    assert all(torch.equal(value, original.tensors[key] if key in full else original.tensors[key].half())
               for key, value in slim.tensors.items())
    assert ("spn" in slim.config) == (name == "osasis")


def test_convert_writes_beside_and_does_not_overwrite_unasked(files, tmp_path):
    source = shutil.copy(files["p2"], tmp_path / "ffhq_p2.pt")
    out = checkpoints.convert(source)
    assert out == tmp_path / "ffhq_p2.safetensors"
    before = out.read_bytes()
    with pytest.raises(CheckpointError, match="already in"):
        checkpoints.convert(source)
    assert out.read_bytes() == before and checkpoints.convert(source, overwrite=True) == out
    with pytest.raises(CheckpointError, match="already a file of this pack"):
        checkpoints.convert(out)
    with pytest.raises(CheckpointError, match="cannot replace its source"):
        checkpoints.convert(source, source, overwrite=True)


def test_convert_names_the_file_when_the_network_is_incomplete(tmp_path):
    path = golden.save_torch(tmp_path / "half.pt", changed())
    with pytest.raises(CheckpointError, match="^half.pt: "):
        checkpoints.convert(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["half.pt"]


# --- the golden reader itself ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "prefix"), [("diffae_tiny", "ema_model."), ("osasis_tiny", "ema_model."),
                                              ("osasis_tiny", "model_map."), ("osasis_train", "clip."), ("p2_tiny",
                                                                                                         "")])
def test_golden_weights_have_their_checksums(name, prefix):
    assert golden.weights(name, prefix, check=40)


def test_golden_check_notices_a_difference():
    case = golden.load_case("diffae_tiny")
    z = case.outputs["z"]
    case.check("z", z)
    case.check("timesteps_T5", [0, 200, 400, 600, 800])
    with pytest.raises(AssertionError, match="off by"):
        case.check("z", z + 2 * case.tolerances["z"])
    with pytest.raises(AssertionError, match="shape"):
        case.check("z", z[:1])
