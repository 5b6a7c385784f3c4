"""Measures of papers: their networks' files, preprocessing, closed forms, and what is said without a file."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from oneshot_atelier.cli import main
from oneshot_atelier.evaluate import metrics, registry, tables
from oneshot_atelier.evaluate.evaluator import Comparison, Evaluator, PictureFeatures
from oneshot_atelier.evaluate.public import PUBLIC, PublicNetworks
from oneshot_atelier.models import loading
from oneshot_atelier.models.checkpoints import CheckpointError
from oneshot_atelier.models.faces.networks import load_faces
from oneshot_atelier.models.features import arcface, inception
from oneshot_atelier.models.features.inception import Inception, InceptionConfig
from oneshot_atelier.models.kinds import KINDS
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import tiny, tiny_models
from oneshot_atelier.tests.test_evaluate import TINY, save_pictures

LOADERS = {"alexnet": loading.load_lpips_alex, "inception": loading.load_inception,
           "art_inception": loading.load_art_inception, "arcface": loading.load_arcface}
AUX = {f"AuxLogits{k}.conv0.conv.weight": torch.ones(2, 2, 1, 1) for k in (1, 2)}
IRESNET = replace(tiny.ARCFACE, layout=arcface.IRESNET, reduction=16)


@pytest.fixture(scope="module")
def trunk():
    net = tiny.filled(Inception(InceptionConfig()))
    return {name.removeprefix("net."): value for name, value in net.state_dict().items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory, trunk):
    folder = tmp_path_factory.mktemp("public")
    golden.save_torch(folder / "alexnet.pth", tiny.alexnet_trunk() | {"classifier.1.weight": torch.ones(4, 4)})
    golden.save_torch(folder / "inception.pth", trunk | {"fc.weight": torch.zeros(1008, 2048)} | {
        "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(7)})
    golden.save_torch(folder / "art_inception.pth", trunk | AUX)
    golden.save_torch(folder / "arcface.pth", bare(tiny.arcface()))
    return folder


def bare(net):
    return {name.removeprefix("net."): value for name, value in net.state_dict().items()}


# --- files ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", LOADERS)
def test_a_file_loads_frozen_converts_and_is_refused_by_the_others(files, tmp_path, kind):
    net = LOADERS[kind](files / f"{kind}.pth")
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    slim = LOADERS[kind](loading.convert(files / f"{kind}.pth", tmp_path / "slim.safetensors"))
    for name, value in net.state_dict().items():
        assert torch.allclose(slim.state_dict()[name], value, atol=2e-3, rtol=1e-3), name
    for other, load in LOADERS.items():
        if other != kind:
            with pytest.raises(CheckpointError) as caught:
                load(files / f"{kind}.pth")
            assert KINDS[kind].use in str(caught.value) and KINDS[other].page in str(caught.value)


def test_the_two_inceptions_differ_by_their_pools_alone(files):
    x = torch.rand(1, 3, 107, 107, generator=torch.Generator().manual_seed(0))
    fid, art = loading.load_inception(files / "inception.pth"), loading.load_art_inception(files / "art_inception.pth")
    assert tiny.same(fid.state_dict(), art.state_dict())
    with torch.no_grad():
        assert (fid.net(x) - art.net(x)).abs().max() > 1e-3
        block = fid.net.Mixed_5b
        seen = []
        block.branch_pool.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        block(torch.ones(1, 192, 5, 5))
    assert torch.equal(seen[-1], torch.ones(1, 192, 5, 5))  # a mean of real pixels, at the border too


@pytest.mark.parametrize("change, said", [
    ({"fc.weight": torch.zeros(1000, 2048)}, "torchvision's Inception of ImageNet.*pt_inception-2015"),
    ({"AuxLogits.fc.weight": torch.zeros(1000, 768)}, "torchvision's Inception"),
    ({}, "without its heads"),
    ({"fc.weight": torch.zeros(1008, 2048), "Mixed_7c.branch_pool.bn.bias": None}, "missing"),
    ({"fc.weight": torch.zeros(1008, 2048), "Mixed_7c.more.weight": torch.ones(3)}, "too many"),
    ({"fc.weight": torch.zeros(1008, 2048), "Mixed_7c.branch_pool.bn.bias": torch.ones(3)}, "another shape"),
    ({"fc.weight": torch.zeros(1008, 2048), "Mixed_7c.branch_pool.bn.bias": torch.full((192,), math.nan)}, "NaN")])
def test_another_inception_is_refused(tmp_path, trunk, change, said):
    state = {name: value for name, value in (trunk | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=f"x.pth: .*{said}"):
        loading.load_inception(golden.save_torch(tmp_path / "x.pth", state))


@pytest.mark.parametrize("config", [tiny.ARCFACE, IRESNET])
def test_an_arcface_network_is_built_from_its_shapes(tmp_path, config):
    net = tiny.arcface(config)
    found = loading.load_arcface(golden.save_torch(tmp_path / "a.pth", bare(net)))
    assert found.config == config and tiny.same(found.state_dict(), net.state_dict())
    inside = {f"facenet.{name}": value for name, value in bare(net).items()}
    if config.layout == arcface.IR_SE:
        golden.save_torch(tmp_path / "e4e.pt", {"state_dict": inside | {"decoder.w": torch.ones(2)}})
        assert loading.load_arcface(tmp_path / "e4e.pt").config == config


@pytest.mark.parametrize("name, value, said", [
    ("output_layer.0.bias", None, "missing"), ("body.0.res_layer.5.fc1.weight", None, "squeeze-and-excitation"),
    ("more.weight", torch.ones(2), "too many"), ("output_layer.0.bias", torch.ones(3), "another shape")])
def test_an_incomplete_arcface_network_is_refused(tmp_path, name, value, said):
    state = {key: v for key, v in (bare(tiny.arcface()) | {name: value}).items() if v is not None}
    with pytest.raises(CheckpointError, match=f"a.pth: .*{said}"):
        loading.load_arcface(golden.save_torch(tmp_path / "a.pth", state))


def test_an_incomplete_alexnet_is_refused(tmp_path):
    state = tiny.alexnet_trunk() | {"features.8.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match="features.8.bias.*alexnet-owt-7be5be79.pth"):
        loading.load_lpips_alex(golden.save_torch(tmp_path / "a.pth", state))


# --- preprocessing ----------------------------------------------------------------------------------------------------
def test_inceptions_see_8_bit_pictures():
    x = tiny.pictures(1, px=96)
    stored = ((x + 1) * 127.5).round() / 127.5 - 1
    for form in inception.FORMS:
        net = Inception(InceptionConfig(form))
        assert torch.equal(net.preprocess(x), net.preprocess(stored))
    assert torch.equal(Inception(InceptionConfig("art")).preprocess(stored), ((stored + 1) * 127.5).round() / 255)


@pytest.mark.parametrize("resize", inception.RESIZES)
def test_flat_pictures_stay_flat_under_every_resize(resize):
    net = Inception(InceptionConfig())
    found = net.preprocess(torch.full((1, 3, 40, 70), 0.5), resize)
    u = round(1.5 * 127.5)
    assert found.shape == (1, 3, 299, 299)
    assert torch.allclose(found, torch.tensor(u / 127.5 - 1 if resize == "ptfid" else (u - 128) / 128), atol=1e-5)


def test_tensorflows_resize_has_no_shift_by_half_a_pixel():
    ramp = torch.arange(598.0).expand(1, 1, 598, 598)
    assert torch.allclose(inception.tensorflow_bilinear(ramp)[0, 0, 0], torch.arange(299.0) * 2)
    assert torch.allclose(inception.bilinear(ramp)[0, 0, 0], torch.arange(299.0) * 2 + 0.5)


def test_unknown_resizes_and_small_pictures_are_refused():
    with pytest.raises(ValueError, match="resize 'best' is unknown; it is one of clean, ptfid"):
        Inception(InceptionConfig()).preprocess(tiny.pictures(1), "best")
    with pytest.raises(ValueError, match="needs 75 px a side; the pictures have 32 x 32"):
        Inception(InceptionConfig("art")).preprocess(tiny.pictures(1))


def test_arcface_sees_the_face_alone():
    net, x = tiny.arcface(), tiny.pictures(1, px=256)
    changed = x.clone()
    changed[:, :, :35], changed[:, :, 223:], changed[..., :32], changed[..., 220:] = 1, 1, 1, 1
    assert torch.equal(net.preprocess(x), net.preprocess(changed)) and net.preprocess(x).shape == (1, 3, 112, 112)
    inside = x.clone()
    inside[:, :, 35, 32] += 1
    assert not torch.equal(net.preprocess(x), net.preprocess(inside))
    assert torch.allclose(net.embed(x).norm(dim=1), torch.ones(1))


# --- closed forms -----------------------------------------------------------------------------------------------------
def test_the_frechet_distance_is_the_same_by_both_ways():
    a, b = (torch.randn(n, 6, generator=torch.Generator().manual_seed(n)).double() for n in (20, 30))
    moments = metrics.frechet_of_moments(a.mean(0), torch.cov(a.t()), b.mean(0), torch.cov(b.t()))
    assert float(metrics.frechet_distance(a, b)) == pytest.approx(float(moments), rel=1e-9)
    wide = [F.pad(x, (0, 40)) for x in (a, b)]  # fewer pictures than numbers: the other way
    assert float(metrics.frechet_distance(*wide)) == pytest.approx(float(moments), rel=1e-9)


def test_kid_of_two_points_by_hand():
    a, b = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[2.0, 0], [0, 2]])
    # off the diagonal x.y = 0: kernel 1; between: 2 / 2 + 1 cubed, twice, and 1, twice
    assert float(metrics.kernel_distance(a, b)) == pytest.approx(1 + 1 - 2 * (8 + 8 + 1 + 1) / 4)
    with pytest.raises(ValueError, match="1 and 2 pictures cannot be compared"):
        metrics.kernel_distance(a[:1], b)


def test_kid_is_near_0_for_one_distribution_however_few_pictures():
    draws = torch.randn(400, 2, 8, generator=torch.Generator().manual_seed(0))
    values = torch.stack([metrics.kernel_distance(draws[i:i + 4, 0], draws[i:i + 4, 1]) for i in range(0, 400, 4)])
    assert abs(values.mean()) < 3 * values.std() / 10


def test_art_fid_and_endless_fid():
    assert metrics.art_fid(0.5, 3.0) == 6 and metrics.art_fid(0.0, 0.0) == 1
    counts = torch.tensor([10.0, 20, 50])
    assert float(metrics.fid_infinity(4 + 30 / counts, counts)) == pytest.approx(4)


def test_precision_recall_density_and_coverage_by_hand():
    real, fake = torch.arange(4.0)[:, None], torch.tensor([[1.5], [100.0]])
    precision, recall = metrics.precision_recall(real, fake, 1)
    assert (float(precision), float(recall)) == (0.5, 1)  # the fakes' balls are of radius 98.5
    density, coverage = metrics.density_coverage(real, fake, 1)
    assert (float(density), float(coverage)) == (1, 0.5)  # 1.5 lies in the balls of 1 and 2
    with pytest.raises(ValueError, match="4 pictures have no 4-th neighbour"):
        metrics.density_coverage(real, fake, 4)


def test_clip_directions_take_every_embedding_at_length_1():
    before, after = torch.tensor([[1.0, 0], [5, 0]]), torch.tensor([[0.0, 9], [5, 0]])
    direction = metrics.text_direction(torch.tensor([[3.0, 0]]), torch.tensor([[0.0, 0.1]]))
    assert torch.allclose(direction, torch.tensor([[-1.0, 1]]) / 2 ** 0.5)
    assert torch.allclose(metrics.unit_direction_similarity(before, after, direction), torch.tensor([1.0, 0]))
    assert torch.equal(metrics.image_direction(before, after[:1]), direction)
    assert torch.allclose(metrics.mean_direction(torch.tensor([[7.0, 0], [0, 0.1]])), torch.full((1, 2), 0.5 ** 0.5))


# --- as reports have them ---------------------------------------------------------------------------------------------
def picture_means(comparison):
    names = registry.PUBLIC_PRESERVATION + registry.PUBLIC_STYLE
    return registry.means(comparison, registry.there(comparison.evaluator.public, names))


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator(tiny.clip(), tiny.diffae(), public=tiny.public(arcface="ir.pth, sha256 01234567"))


def test_photos_are_their_own_best_results(evaluator):
    photos = tiny.pictures(3, px=80)
    found = picture_means(Comparison.of(evaluator, photos, photos, photos[:1]))
    assert list(found) == [*registry.PUBLIC_PRESERVATION, *registry.PUBLIC_STYLE]
    assert found["identity_similarity"] == pytest.approx(1) and found["public_clip_direction"] == 0
    for name in ("lpips_alex", "lpips_vgg", "arcface_distance", "dino_structure"):
        assert found[name] == pytest.approx(0, abs=1e-6)
    other = picture_means(Comparison.of(evaluator, photos, photos.flip(3), photos[:1]))
    assert other["arcface_distance"] == pytest.approx(1 - other["identity_similarity"])
    assert min(other[name] for name in ("lpips_alex", "arcface_distance", "dino_structure")) > 1e-4


def test_a_table_has_the_measures_that_there_are_networks_for(evaluator):
    bare = replace(evaluator, public=replace(evaluator.public, arcface=None, public_clip=None))
    assert registry.preservation(bare) == (*registry.CONTENT_PRESERVATION, "lpips_alex", "lpips_vgg", "dino_structure")
    assert registry.style_similarity(bare) == registry.STYLE_SIMILARITY
    assert registry.style_similarity(evaluator) == (*registry.STYLE_SIMILARITY, *registry.PUBLIC_STYLE)
    assert registry.preservation(replace(evaluator, faces=load_faces()))[4:] == (
        *registry.FACES, *registry.PUBLIC_PRESERVATION)


def test_rows_of_labels_and_nan_means_stand_beside_those_of_sets(evaluator):
    """No face is read in noise: the landmark shift is NaN and stays out, LPIPS and ArtFID are there."""
    faces = replace(evaluator, faces=load_faces())
    seen, made = (PictureFeatures(faces, tiny.pictures(4, seed, px=80)) for seed in (1, 2))
    comparison, sets = Comparison(seen, made), tables.Sets(faces)
    values = registry.means(comparison, registry.preservation(faces))
    assert "landmark_shift" not in values and values["face_read"] == 0 and values["lpips_alex"] > 0
    rows = {"made": values} | tables.group_rows("made", registry.grouped(comparison, {"hats": (0, 2)}))
    mean = tables.mean_rows({"a": rows, "b": rows})
    sets.add("made", made)
    sets.add_art(seen)
    found = sets.rows(mean)
    assert set(found) == {"made", tables.HALVES}
    assert found["made"]["art_fid"] == pytest.approx((1 + values["lpips_alex"]) * (1 + found["made"]["fid_art"]))
    assert tables.split_groups(mean)[1] == {"made, label hats": {"face_read": 0.0}} and tables.gaps(mean) == {}


def test_dino_sees_the_pictures_at_their_own_size(evaluator):
    large = tiny.pictures(1, px=80)
    assert not torch.allclose(PictureFeatures(evaluator, large).dino_keys,
                              evaluator.public.dino.keys(evaluator.sized(large)), atol=1e-4)
    assert torch.equal(PictureFeatures(evaluator, large).dino_keys, evaluator.public.dino.keys(large))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_missing_network_is_a_reason_and_never_a_number(evaluator, name):
    public = replace(evaluator.public, **{name: None})
    bare_evaluator = replace(evaluator, public=public)
    pictures = PictureFeatures(bare_evaluator, tiny.pictures(2))
    kind = KINDS[PUBLIC[name].kind]
    for metric in registry.METRICS.values():
        if name in metric.networks and metric.scope != "numbers":
            with pytest.raises(ValueError) as caught:
                call = metric.function
                call(pictures, pictures) if metric.scope == "set" else call(Comparison(pictures, pictures, pictures))
            assert PUBLIC[name].option in str(caught.value) and kind.page in str(caught.value)
    found = picture_means(Comparison(pictures, pictures, pictures))
    lines = dict(line.split(": ", 1) for line in registry.public_notes(public, "2 photos"))
    for metric in map(registry.metric, registry.PUBLIC_NAMES):
        gone = name in metric.networks
        assert lines[metric.title].startswith("not measured") == gone and (kind.page in lines[metric.title]) >= gone
        assert not (gone and metric.name in found)


def test_a_line_names_network_file_crop_resize_and_numbers(evaluator):
    lines = dict(line.split(": ", 1) for line in registry.public_notes(evaluator.public, "2 photos"))
    assert lines["ID similarity"].startswith("IR-SE12 (ir.pth, sha256 01234567), rows 35:223 and columns 32:220")
    assert "resize clean to 299 x 299 px" in lines["FID"]
    assert all(line.endswith("; 2 photos") for line in lines.values())
    with pytest.raises(ValueError, match="resize 'best' is unknown"):
        PublicNetworks(resize="best")


def test_sets_of_all_styles_are_compared_at_once(evaluator):
    sets, art = tables.Sets(evaluator), tiny.pictures(4, 5)
    results = tiny.pictures(6, 1)
    for k in range(2):
        sets.add("made", PictureFeatures(evaluator, results[3 * k:3 * k + 3]))
        assert sets.rows({}) == {} or k
        sets.add_art(PictureFeatures(evaluator, art[2 * k:2 * k + 2]))
    rows = sets.rows({"made": {"lpips_alex": 0.25}})
    whole = [PictureFeatures(evaluator, pictures) for pictures in (results, art)]
    assert rows["made"]["fid"] == pytest.approx(float(registry.fid(*whole)), rel=1e-6)
    assert rows["made"]["art_fid"] == pytest.approx(1.25 * (1 + rows["made"]["fid_art"]))
    assert set(rows) == {"made", tables.HALVES} and "art_fid" not in rows[tables.HALVES]
    assert any("6 pictures of 'made', 4 style pictures" in line for line in sets.notes())


def test_one_style_picture_is_no_set(evaluator):
    sets = tables.Sets(evaluator)
    sets.add("made", PictureFeatures(evaluator, tiny.pictures(3)))
    sets.add_art(PictureFeatures(evaluator, tiny.pictures(1)))
    assert sets.rows({}) == {} and "two style pictures" in sets.notes()[-1]


def test_the_command_line_measures_with_the_files_that_are_given(files, tmp_path, capsys):
    models = tiny_models.write(tmp_path)
    photos, styles = save_pictures(tmp_path / "photos", 2), save_pictures(tmp_path / "styles", 2, 4)
    given = [f"--{name}={models / name}.safetensors" for name in ("diffae", "ddpm", "clip")]
    assert main.main(["evaluate", "--method=osasis", f"--photos={photos}", f"--styles={styles}", *given,
                      "--device=cpu", "--candidates=2", "--encode-steps=4", "--decode-steps=4", f"--set={TINY}",
                      f"--arcface={files / 'arcface.pth'}", f"--alexnet={files / 'alexnet.pth'}",
                      f"--inception={files / 'inception.pth'}", "--fid-resize=ptfid"]) == 0
    out = capsys.readouterr().out
    assert "| Arcface-Dist |" in out and "all results to all style pictures" in out and "| FID | KID |" in out
    assert "OSASIS: ArtFID: not measured; the Inception of ArtFID is missing: give its file with --art-inception" in out
    assert "inception.pth, sha256 " in out and "resize ptfid" in out and "LPIPS (VGG-16): not measured" in out
