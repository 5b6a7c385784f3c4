"""Load Metric Networks and Compare Pictures, executed as ComfyUI does it, with small files and golden ones."""

from dataclasses import asdict

import pytest
import torch
from PIL import Image

from oneshot_atelier.evaluate.public import PUBLIC
from oneshot_atelier.models.checkpoints import store
from oneshot_atelier.models.kinds import KINDS
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import parity_losses, tiny_models
from oneshot_atelier.tests import tiny as tiny_networks
from oneshot_atelier.tests.node_tools import picture

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("comfy")]
NOTHING = dict.fromkeys(("alexnet", "arcface", "inception", "art_inception"), "none")
MEASURE_OF = {"lpips_alex": "lpips_alex", "lpips_vgg": "lpips_vgg", "arcface": "identity_similarity",
              "dino": "dino_structure", "public_clip": "public_clip_direction", "inception": "fid",
              "art_inception": "fid_art"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_models.write(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def load(nodes, comfy):
    """load(folder=tensors, ..., **sockets) -> MetricNetworks of files that hold these tensors."""
    import folder_paths

    def run(**given):
        chosen, sockets = dict(NOTHING), {}
        for name, value in given.items():
            if name in chosen:
                golden.save_torch(comfy / "models" / name / f"{name}.pth", value)
                chosen[name] = f"{name}.pth"
            else:
                sockets[name] = value
        folder_paths.filename_list_cache.clear()
        assert nodes.LoadMetricNetworks.validate_inputs(**chosen) is True
        return nodes.LoadMetricNetworks.execute(**chosen, **sockets)[0]
    return run


def as_image(x):
    """(B, 3, H, W) in [-1, 1] -> IMAGE."""
    return ((x + 1) / 2).permute(0, 2, 3, 1)


# --- values -----------------------------------------------------------------------------------------------------------
def test_lpips_of_a_file_is_golden(nodes, comfy, load):
    case = golden.load_case("alexnet_lpips")
    pair = {"photos": as_image(case.inputs["a"]), "results": as_image(case.inputs["b"])}
    golden.save_torch(comfy / "models" / "lpips" / "vgg16.pth", golden.weights(case.name, "vgg16."))
    vgg = nodes.LoadPerceptual.execute("vgg16.pth")[0]
    networks = load(alexnet=golden.weights(case.name, "alexnet."), perceptual=vgg)
    for name, short, file in (("lpips_alex", "alex", "alexnet/alexnet.pth"), ("lpips_vgg", "vgg", "lpips/vgg16.pth")):
        value, report = nodes.ComparePictures.execute(name, networks=networks, **pair).args
        wanted = case.values[f"{short}_package"]
        assert value == pytest.approx(sum(wanted) / 2, abs=case.tolerances[f"{short}_package"])
        digits = store.sha256(comfy / "models" / file)[:8]
        assert f"{file.partition('/')[2]}, sha256 {digits}" in report
        assert "2 photos of 64 x 72 px, 2 results of 64 x 72 px (own size)" in report


def test_dino_of_a_file_is_golden(nodes, comfy, load):
    case = golden.load_case("losses")
    net = parity_losses.dino(case)
    path = comfy / "models" / "dino" / "dino.safetensors"
    store.save(path, net.net.state_dict(), "dino", asdict(net.config), dtype=None)
    networks = load(structure_net=nodes.LoadStructureNet.execute("dino.safetensors")[0])
    pair = [as_image(case.inputs[name]) for name in ("big_out", "big_in")]
    value, report = nodes.ComparePictures.execute("dino_structure", *pair, networks=networks).args
    assert value == pytest.approx(case.values["structure_noaa"], abs=case.tolerances["structure_noaa"])
    assert "dino.safetensors, sha256 " in report and "shorter side 224 px, bilinear without antialias" in report


def test_fid_of_a_file_is_that_of_the_golden_features(nodes, load):
    """Of two pictures against one of them, twice: means d / 2 apart, covariances d d^T / 2 and 0."""
    case = golden.load_case("inception_fid")
    networks = load(inception=golden.weights(case.name))
    two = as_image(case.inputs["pics"])
    for resize in ("clean", "ptfid", "tf"):
        first, second = case.outputs[f"pool3_{resize}_small"].double()
        wanted = 0.75 * float((first - second).square().sum())
        value, report = nodes.ComparePictures.execute("fid", two, style_images=two[:1].repeat(2, 1, 1, 1),
                                                      networks=networks, fid_resize=resize).args
        assert value == pytest.approx(wanted, rel=1e-3) and wanted > 0.01
        assert f"resize {resize} to 299 x 299 px" in report and "2 results of 64 x 64 px, 2 style images" in report


def test_art_fid_of_files(nodes, load):
    heads = {f"AuxLogits{k}.conv0.conv.weight": torch.ones(2, 2, 1, 1) for k in (1, 2)}
    trunk = {key: value for key, value in golden.weights("inception_fid").items() if not key.startswith("fc.")}
    networks = load(alexnet=tiny_networks.alexnet_trunk(), art_inception=trunk | heads)
    photos, results, art = (picture(seed, 2, 80) for seed in range(3))

    def value(name, **given):
        return nodes.ComparePictures.execute(name, results, networks=networks, **given)[0]
    found = value("art_fid", photos=photos, style_images=art)
    parts = value("lpips_alex", photos=photos), value("fid_art", style_images=art)
    assert found == pytest.approx((1 + parts[0]) * (1 + parts[1])) and min(parts) > 1e-4
    assert value("art_fid", photos=results, style_images=results) == pytest.approx(1, abs=1e-4)


def test_identity_and_faces_of_a_photo(nodes, load, root):
    face = nodes.images.from_pil(Image.open(root / "workflows" / "inputs" / "face_1.png"))
    networks = load(arcface=tiny_networks.arcface().net.state_dict())
    value, report = nodes.ComparePictures.execute("identity_similarity", face, face, networks=networks).args
    assert value == pytest.approx(1) and "A face is read in 1 of 1 photos." in report
    assert "IR-SE12 (arcface.pth, sha256 " in report and "rows 35:223 and columns 32:220" in report
    assert nodes.ComparePictures.execute("face_read", face, face)[0] == 1  # needs no file
    with pytest.raises(ValueError, match="no face is read in the photos"):
        nodes.ComparePictures.execute("identity_similarity", picture(1), picture(1), networks=networks)


def test_clip_of_a_file_and_a_side(nodes, comfy, tiny, load):
    import folder_paths
    (comfy / "models" / "open_clip" / "mine.safetensors").write_bytes((tiny / "clip.safetensors").read_bytes())
    folder_paths.filename_list_cache.clear()
    networks = load(clip=nodes.LoadCLIP.execute("mine.safetensors", "auto")[0])
    photos, results, art = picture(1, 2, 40), picture(2, 2, 56), picture(3, 3, 48)
    with pytest.raises(ValueError, match="2 photos of 40 x 40 px but 2 results of 56 x 56 px"):
        nodes.ComparePictures.execute("public_clip_direction", results, photos, art, networks=networks)
    value, report = nodes.ComparePictures.execute("public_clip_direction", results, photos, art, networks=networks,
                                                  side=32).args
    assert -1 <= value <= 1 and value != 0 and "mine.safetensors, sha256 " in report
    assert "3 style images of 32 x 32 px (middle squares resized to 32 px, bilinear with antialias)" in report


def test_without_files_measures_without_networks_are_made(nodes):
    photos = picture(1, 3)
    assert nodes.ComparePictures.execute("edge_agreement", photos, photos)[0] == pytest.approx(1)
    value, report = nodes.ComparePictures.execute("psnr", (photos + 0.1).clamp(0, 1), photos).args
    error = ((photos + 0.1).clamp(0, 1) - photos).square().mean((1, 2, 3))
    assert value == pytest.approx(float((10 * torch.log10(1 / error)).mean()), rel=1e-4) and "no network" in report


# --- refusals ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PUBLIC)
def test_a_missing_file_is_named_with_its_folder_and_page(nodes, comfy, name):
    kind = PUBLIC[name].kind
    folder = {"vgg16": "lpips", "clip": "open_clip"}.get(kind, kind)
    given = {field: picture(seed, 2) for seed, field in enumerate(("results", "photos", "style_images", "others"))}
    with pytest.raises(ValueError) as caught:
        nodes.ComparePictures.execute(MEASURE_OF[name], **given)
    text = str(caught.value)
    assert "is missing: put its file into" in text and str(comfy / "models" / folder) in text
    assert KINDS[kind].page in text and "http" in text and "Load Metric Networks" in text


def test_substitutes_are_refused(nodes):
    diffae = nodes.LoadDiffAE.execute("demo")[0]
    for field, model, loader in (
            ("clip", nodes.LoadCLIP.execute("demo", "auto")[0], "Load CLIP"),
            ("structure_net", nodes.LoadStructureNet.execute("demo")[0], "Load Structure Network"),
            ("perceptual", nodes.LoadPerceptual.execute("encoder of the DiffAE", diffae)[0], "Load Perceptual")):
        with pytest.raises(ValueError, match=f"is no public network.*{loader}.*http"):
            nodes.LoadMetricNetworks.execute(**NOTHING, **{field: model})


def test_a_file_that_is_not_there_or_of_another_kind(nodes, load):
    answer = nodes.LoadMetricNetworks.validate_inputs(**NOTHING | {"arcface": "mine.pth"})
    assert "there is no file 'mine.pth'" in answer and "github.com/TreB1eN" in answer
    assert nodes.LoadMetricNetworks.validate_inputs(**dict.fromkeys(NOTHING)) is True  # linked inputs
    with pytest.raises(ValueError, match="alexnet.pth.*AlexNet"):
        load(alexnet=tiny_networks.arcface().net.state_dict())


def test_the_loader_runs_again_when_a_file_changes(nodes, comfy):
    import folder_paths
    path, chosen = comfy / "models" / "arcface" / "mine.pth", NOTHING | {"arcface": "mine.pth"}
    tokens = [nodes.LoadMetricNetworks.fingerprint_inputs(**chosen)]
    for seed in (0, 1):
        golden.save_torch(path, {"a": torch.ones(seed + 1)})
        folder_paths.filename_list_cache.clear()
        tokens.append(nodes.LoadMetricNetworks.fingerprint_inputs(**chosen, clip=None))
    assert tokens[0] != tokens[1] != tokens[2]


def test_the_user_stops_a_comparison(nodes):
    import comfy.model_management as mm
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        nodes.ComparePictures.execute("face_read", picture(1), picture(1))
    diffae, clip = nodes.LoadDiffAE.execute("demo")[0], nodes.LoadCLIP.execute("demo", "auto")[0]
    embedded = []
    clip.net.embed = lambda *_: embedded.append(1) or mm.interrupt_current_processing() or torch.zeros(1, 4)
    with pytest.raises(mm.InterruptProcessingException):
        nodes.Measure.execute(diffae, clip, *(picture(n) for n in range(4)))
    assert len(embedded) == 1, "that of the twin"


def test_memory_is_told(nodes, load):
    networks = load(arcface=tiny_networks.arcface().net.state_dict())
    assert networks.get_ram_usage() == nodes.host.bytes_of(networks.models["arcface"].patched.net) > 0
