"""Official-looking checkpoints: every format is read into our names, strictly, decided by content."""

import shutil
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from oneshot_atelier.models import loading
from oneshot_atelier.models.checkpoints import CheckpointError, read, store
from oneshot_atelier.models.checkpoints.formats.weights import module_tensors
from oneshot_atelier.models.checkpoints.safe_pickle.reader import read_torch
from oneshot_atelier.models.checkpoints.safe_pickle.records import Global, OpaqueObject, TensorRef
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import tiny

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
    kept = [key for key in golden.weights("diffae_tiny", "ema_model.") if "cond_layers.1" not in key]
    assert len(diffae.tensors) == len(kept) + 2  # without the second names of linear_emb, with the statistics
    assert {name.partition(".")[0] for name in diffae.tensors} == {"unet", "encoder", "latent_net", "conds_mean",
                                                                   "conds_std"}
    for ours, official in [("unet.time_embed.0.weight", "time_embed.time_embed.0.weight"),
                           ("unet.out.2.bias", "out.2.bias"), ("encoder.out.3.weight", "encoder.out.3.weight"),
                           ("unet.input_blocks.3.0.cond_emb_layers.1.weight",
                            "input_blocks.3.0.cond_emb_layers.1.weight"),
                           ("latent_net.layers.1.linear_emb.bias", "latent_net.layers.1.linear_emb.bias"),
                           ("latent_net.time_embed.0.weight", "latent_net.time_embed.0.weight")]:
        assert torch.equal(diffae.tensors[ours], ema(official)), ours


def test_statistics_become_vectors(diffae):
    expected = golden.weights("diffae_tiny", "")
    for name in ("conds_mean", "conds_std"):
        assert torch.equal(diffae.tensors[name], expected[name][0]) and diffae.tensors[name].ndim == 1


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
    settings = root["hyper_parameters"]
    assert isinstance(settings, OpaqueObject) and settings.entries == {"seed": 0, "lr": 1e-4}


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


def test_whole_modules_of_the_legacy_container_are_read_without_their_classes(tmp_path):
    with warnings.catch_warnings():  # torch's note on sources that it cannot find
        warnings.simplefilter("ignore")
        path = golden.save_torch(tmp_path / "a.pt", torch.nn.Sequential(torch.nn.Linear(3, 2)), zip_container=False)
    found = read_torch(path)
    assert isinstance(found, OpaqueObject) and found.origin == Global("torch.nn.modules.container", "Sequential")
    assert {name: ref.shape for name, ref in module_tensors(found).items()} == {"0.weight": (2, 3), "0.bias": (2,)}
    assert b"class Linear" in path.read_bytes() and "class Linear" not in repr(found)


# --- what is refused -------------------------------------------------------------------------------------------
def lightning(state):
    return {"state_dict": state}


WIDTH = golden.load_case("diffae_tiny").config["z_channels"]


def changed(**changes):
    """A small DiffAE state dict with some entries replaced (None: removed)."""
    state = {"ema_model." + key: tensor for key, tensor in golden.weights("diffae_tiny", "ema_model.").items()
             if key.startswith(("time_embed", "input_blocks.0", "encoder.input_blocks.0", "latent_net.layers.0",
                                "out."))}
    state |= {"conds_mean": torch.zeros(1, WIDTH), "conds_std": torch.ones(1, WIDTH)}
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
    "mean of another width": (changed(conds_mean=torch.zeros(1, 5)), r"shape \[1, 5\]"),
    "deviation of zero": (changed(conds_std=torch.zeros(1, WIDTH)), "zero or negative"),
    "NaN": (changed(**{BIAS: torch.full((3,), float("nan"))}), "NaN or infinite"),
    "infinity": (changed(**{BIAS: torch.full((3,), float("inf"))}), "NaN or infinite"),
    "five dimensions": (changed(**{BIAS: torch.zeros(1, 1, 1, 1, 3)}), "5 dimensions"),
    "no dimension": (changed(**{BIAS: torch.tensor(1.0)}), "0 dimensions"),
    "integers": (changed(**{BIAS: torch.zeros(3, dtype=torch.int64)}), "int64"),
    "two spellings": (changed(ema_model__time_embed__0__weight=torch.zeros(3, 3)), "twice"),
    "class conditional": ({**golden.weights("p2_tiny"), "label_emb.weight": torch.zeros(3, 3)}, "class-conditional"),
    "style without network": ({"model_map": {"in_layer.0.weight": torch.zeros(1, 1)}}, "without its network"),
    "style with empty network": ({"diffae_B": {}}, "'diffae_B' holds no tensors"),
    "style without UNet": ({"diffae_B": {"encoder.out.3.bias": torch.zeros(3)}}, "no UNet"),
    "style with odd SPN": ({"diffae_B": golden.weights("osasis_tiny", "diffae_B."), "model_map": [1]}, "'model_map'"),
    "empty StyleGAN2": ({"g_ema": {}, "latent_avg": torch.zeros(3)}, "'g_ema' holds no tensors"),
    "empty MMFS": ({"G_ema_model": {}, "D_model": {}}, "'G_ema_model' holds no tensors"),
    "StyleGAN1": ({"g_running": {}, "generator": {}}, "StyleGAN1"),
    "classifier": (lightning({"ema_classifier.weight": torch.zeros(40, 512)}), "attribute classifier"),
    "latent.pkl": ({"conds": torch.zeros(9, 4), "conds_mean": torch.zeros(4)}, "latent.pkl"),
    "something else": ({"fc.weight": torch.zeros(3, 3)}, "no known model .it begins with fc.weight"),
    "empty": ({}, "begins with nothing"),
    "a list": ([torch.zeros(3)], "a file of a list of 1 objects"),
    "a tensor": (torch.zeros(3), "a file of a single tensor"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_foreign_and_broken_contents_are_refused_with_the_reason(tmp_path, name):
    content, reason = REFUSED[name]
    with pytest.raises(CheckpointError, match=reason) as caught:
        read(golden.save_torch(tmp_path / "broken.pt", content))
    assert str(caught.value).startswith("broken.pt: ")


def test_what_nobody_needs_is_innocent(tmp_path):
    """Counters, arrays, complex and sparse tensors, lists and objects beside the weights, and wrappers around them."""
    weights = golden.weights("p2_tiny")
    beside = {"step": 3, "array": np.arange(100_000.0), "complex": torch.zeros(3, dtype=torch.complex64), "more": [{}],
              "sparse": torch.eye(3).to_sparse(), "names": np.array(["a"], dtype=object), "quantised": None,
              "fp8": torch.zeros(2).to(torch.float8_e4m3fn), "unsigned": torch.zeros(2, dtype=torch.uint16)}
    if torch.uint16 not in torch.storage._dtype_to_storage_type_map():  # torch 2.4 cannot save it
        del beside["unsigned"]
    for zip_container in (True, False):
        taken = beside if zip_container else {k: v for k, v in beside.items() if k not in ("fp8", "unsigned")}
        path = golden.save_torch(tmp_path / "a.pt", {**weights, **taken}, zip_container)
        assert tiny.same(dict(read(path, "ddpm").tensors), dict(weights))


@pytest.mark.parametrize(("make", "words"), [
    (lambda t: t.to(torch.float8_e4m3fn), r"'out.2.bias' cannot be used: it is stored in fp8 \(torch.float8_e4m3fn\)"),
    (lambda t: t.to(torch.complex64), "'out.2.bias' cannot be used: its numbers are of type torch.ComplexFlo")])
def test_a_weight_of_an_unfit_type_is_named(tmp_path, make, words):
    weights = golden.weights("p2_tiny")
    path = golden.save_torch(tmp_path / "a.pt", {**weights, "out.2.bias": make(weights["out.2.bias"])})
    with pytest.raises(CheckpointError, match=f"^a.pt: its tensor {words}"):
        read(path)


def test_fp8_in_safetensors_is_named(tmp_path):
    weights = dict(golden.weights("p2_tiny"))
    save_file({**weights, "out.2.bias": weights["out.2.bias"].to(torch.float8_e5m2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="'out.2.bias' cannot be used: it is stored in fp8 .F8_E5M2."):
        read(tmp_path / "a.safetensors")


WRAPPERS = [("state_dict",), ("model",), ("ema",), ("params_ema",), ("ema_model",), ("state_dict", "module"),
            ("model", "_orig_mod"), ("state_dict", "model", "module"), ("backbone",), ("generator",)]


@pytest.mark.parametrize("wrappers", WRAPPERS, ids=".".join)
@pytest.mark.parametrize("flat", [False, True, "safetensors"])
def test_wrappers_of_every_program_are_taken_off(tmp_path, wrappers, flat):
    weights = golden.weights("p2_tiny")
    if flat:
        root = {".".join((*wrappers, name)): value for name, value in weights.items()}
    else:
        root = weights
        for wrapper in reversed(wrappers):
            root = {wrapper: root, "epoch": 3}
    path = tmp_path / "a.pt"
    save_file(root, path) if flat == "safetensors" else golden.save_torch(path, root)
    assert tiny.same(dict(read(path, "ddpm").tensors), dict(weights))


def test_averaged_weights_come_before_raw_ones_and_raw_ones_with_a_warning(tmp_path, caplog):
    state = {key: value for key, value in golden.lightning_state("diffae_tiny").items()}
    raw = {key.replace("ema_model.", "model.", 1): value for key, value in state.items() if "conds" not in key}
    both = read(golden.save_torch(tmp_path / "a.ckpt", {"state_dict": raw | {k: v + 1 for k, v in state.items()}}))
    assert not caplog.records and torch.equal(both.tensors["unet.out.2.bias"], ema("out.2.bias") + 1)
    alone = read(golden.save_torch(tmp_path / "a.ckpt", {"state_dict": raw}))
    assert "no averaged weights" in caplog.text and torch.equal(alone.tensors["unet.out.2.bias"], ema("out.2.bias"))


def test_a_bare_diffae_state_dict_is_read(tmp_path, diffae):
    state = golden.weights("diffae_tiny", "ema_model.") | {
        key: value for key, value in golden.weights("diffae_tiny", "").items() if key.startswith("conds")}
    for path in (golden.save_torch(tmp_path / "a.pt", state), tmp_path / "a.safetensors"):
        if path.suffix == ".safetensors":
            save_file({key: value.clone() for key, value in state.items()}, path)
        assert tiny.same(dict(read(path, "diffae").tensors), dict(diffae.tensors))


def test_the_unbroken_small_state_dict_is_read(tmp_path):
    assert read(golden.save_torch(tmp_path / "a.pt", changed())).kind == "diffae"


@pytest.mark.parametrize(("name", "wanted", "words"), [
    ("p2", "diffae", ["a DDPM model", "Load DDPM", "phizaz/diffae"]),
    ("diffae", "ddpm", ["a DiffAE model", "Load DiffAE", "P2-weighting"]),
    ("osasis", "diffae", ["an OSASIS style", "Load OSASIS Style"]),
    ("diffae", "osasis_style", ["a DiffAE model", "hansam95/OSASIS"])])
def test_a_wrong_kind_is_named_with_the_node_and_the_public_page(files, name, wanted, words):
    with pytest.raises(CheckpointError) as caught:
        loading.read_kind(files[name], wanted)
    assert all(word in str(caught.value) for word in words)


def test_many_views_of_one_storage_cannot_multiply_memory(tmp_path):
    weights = golden.weights("p2_tiny")
    block = torch.zeros(30_000)
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
    out = loading.convert(files[name], tmp_path / "slim.safetensors")
    original, slim = read(files[name]), read(out, kind)
    assert out.stat().st_size < 0.55 * files[name].stat().st_size and slim.config
    assert slim.meta == {**original.meta, "source": files[name].name, "source_sha256": store.sha256(files[name])}
    assert slim.tensors.keys() == original.tensors.keys()
    full = ("conds_mean", "conds_std")  # these two stay in 32 bit
    assert all(torch.equal(value, original.tensors[key] if key in full else original.tensors[key].half())
               for key, value in slim.tensors.items())
    assert ("spn" in slim.config) == (name == "osasis")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_convert_writes_the_asked_type_also_from_the_command_line(files, tmp_path, dtype):
    from oneshot_atelier.cli import main as cli
    wanted, out = getattr(torch, dtype), tmp_path / "a.safetensors"
    assert cli.main(["convert", str(files["p2"]), "--out", str(out), "--dtype", dtype]) == 0
    assert {value.dtype for value in read(out, "ddpm").tensors.values()} == {wanted}
    assert loading.load_ddpm(loading.convert(files["p2"], out, True, wanted)).config == loading.load_ddpm(out).config


@pytest.mark.parametrize("damage", ["missing", "another shape"])
def test_convert_writes_nothing_that_would_not_load(tmp_path, damage):
    weights = dict(golden.weights("p2_tiny"))
    name = "output_blocks.1.0.out_layers.3.bias"
    value = weights.pop(name)
    path = golden.save_torch(tmp_path / "a.pt", weights | ({} if damage == "missing" else {name: value[:-1].clone()}))
    with pytest.raises(CheckpointError, match=f"^a.pt: its tensors are not those .*{name}"):
        loading.convert(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]


def test_convert_writes_beside_and_does_not_overwrite_unasked(files, tmp_path):
    source = shutil.copy(files["p2"], tmp_path / "ffhq_p2.pt")
    out = loading.convert(source)
    assert out == tmp_path / "ffhq_p2.safetensors"
    before = out.read_bytes()
    with pytest.raises(CheckpointError, match="already in"):
        loading.convert(source)
    assert out.read_bytes() == before and loading.convert(source, overwrite=True) == out
    with pytest.raises(CheckpointError, match="already a file of this pack"):
        loading.convert(out)
    with pytest.raises(CheckpointError, match="cannot replace its source"):
        loading.convert(source, source, overwrite=True)


def test_convert_names_the_file_when_the_network_is_incomplete(tmp_path):
    path = golden.save_torch(tmp_path / "half.pt", changed())
    with pytest.raises(CheckpointError, match="^half.pt: "):
        loading.convert(path)
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
    case.check(name := next(iter(case.values)), case.values[name])
    with pytest.raises(AssertionError, match="off by"):
        case.check("z", z + 2 * case.tolerances["z"])
    with pytest.raises(AssertionError, match="shape"):
        case.check("z", z[:1])
