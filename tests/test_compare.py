"""One metric of batches of pictures: against golden values and closed forms, and what stands beside the number."""

from dataclasses import replace

import pytest
import torch

from oneshot_atelier.evaluate import registry
from oneshot_atelier.evaluate.compare import FEW, MEASURES, compare
from oneshot_atelier.evaluate.evaluator import Evaluator, PictureFeatures
from oneshot_atelier.evaluate.public import PUBLIC, PublicNetworks
from oneshot_atelier.evaluate.registry import METRICS
from oneshot_atelier.models.faces.networks import load_faces
from oneshot_atelier.models.features import arcface
from oneshot_atelier.models.features.lpips import LpipsAlex, LpipsVGG
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import parity_losses, tiny
from oneshot_atelier.train.data import read_picture, to_unit

PX = 80


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator(public=tiny.public(arcface="ir.pth, sha256 01234567"), faces=load_faces())


@pytest.fixture(scope="module")
def face(root):
    return to_unit(read_picture(root / "workflows" / "inputs" / "face_1.png", 256))[None]


def batches(count=3, **changes):
    return {name: tiny.pictures(count, seed, px=PX) for seed, name in enumerate(registry.BATCHES)} | changes


def alone(name, given):
    """The batches with one style image where the metric takes one."""
    several = METRICS[name].scope != "picture" or "public_clip" in METRICS[name].networks
    return given if several else given | {"style_images": given["style_images"][:1]}


# --- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, network, short", [("lpips_alex", LpipsAlex, "alex"), ("lpips_vgg", LpipsVGG, "vgg")])
def test_lpips_is_golden(name, network, short):
    case = golden.load_case("alexnet_lpips")
    prefix = {"alex": "alexnet.", "vgg": "vgg16."}[short]
    bare = Evaluator(public=PublicNetworks(**{name: network(golden.weights(case.name, prefix))}))
    found = compare(bare, name, {"photos": case.inputs["a"], "results": case.inputs["b"]})
    wanted, tolerance = case.values[f"{short}_package"], case.tolerances[f"{short}_package"]
    assert found.each == pytest.approx(wanted, abs=tolerance)
    assert found.value == pytest.approx(sum(wanted) / 2, abs=tolerance)
    if name == "lpips_alex":  # the same number, of the same photo in two styles
        pair = {"results": case.inputs["a"], "others": case.inputs["b"]}
        assert compare(bare, "lpips_diversity", pair).value == pytest.approx(sum(wanted) / 2, abs=tolerance)


def test_identity_is_golden():
    case = golden.load_case("arcface_irse50")
    tensors = golden.weights(case.name, "iresnet50.")
    net = arcface.build(arcface.detect(tensors), tensors)
    faces = case.inputs["faces"]
    bare = Evaluator(public=PublicNetworks(arcface=net))  # without face networks: these faces are made up
    found = compare(bare, "identity_similarity", {"photos": faces[:1], "results": faces[1:]})
    assert found.value == pytest.approx(case.values["iresnet_cosine"], abs=case.tolerances["iresnet_cosine"])
    assert "rows 35:223 and columns 32:220" in found.report and "iResNet-50" in found.report


def test_structure_distance_is_golden():
    case = golden.load_case("losses")
    bare = Evaluator(public=PublicNetworks(dino=parity_losses.dino(case)))
    pair = {"photos": case.inputs["big_in"], "results": case.inputs["big_out"]}
    found = compare(bare, "dino_structure", pair)
    assert found.value == pytest.approx(case.values["structure_noaa"], abs=case.tolerances["structure_noaa"])


def test_clip_direction_is_that_of_the_golden_formula(evaluator):
    """The metric's own embeddings through the golden definition (metrics.json: n of every embedding first)."""
    given = batches()
    e = {name: torch.nn.functional.normalize(evaluator.public.public_clip.embed(x, "openai"), dim=1)
         for name, x in given.items()}
    direction = e["style_images"].mean(0) - e["photos"].mean(0)
    cosines = torch.cosine_similarity(e["results"] - e["photos"], direction[None])
    assert compare(evaluator, "public_clip_direction", given).each == pytest.approx(cosines.tolist(), abs=1e-5)
    style = e["style_images"].mean(0)
    similarity = torch.cosine_similarity(e["results"], style[None])
    assert compare(evaluator, "public_clip_similarity", given).each == pytest.approx(similarity.tolist(), abs=1e-5)


def test_distances_of_sets_in_closed_form(evaluator):
    """Of features that are a picture's means: one set is the other one shifted, so FID is the shift's square."""
    art = tiny.pictures(6, px=PX) / 4
    moved = {"results": art + 0.5, "style_images": art, "photos": art + 0.5}
    shift = 12 * 0.5 ** 2  # 12 features, tiny.Colours
    for name in ("fid", "fid_art"):
        assert compare(evaluator, name, moved).value == pytest.approx(shift, rel=1e-4)
    assert compare(evaluator, "art_fid", moved).value == pytest.approx(1 + shift, rel=1e-4)  # LPIPS 0: results = photos
    same = {name: art for name in ("results", "style_images", "photos")}
    assert compare(evaluator, "art_fid", same).value == pytest.approx(1, abs=1e-4)
    x, y = (x.double().reshape(6, 3, 2, 40, 2, 40).mean((3, 5)).flatten(1) for x in (art + 0.5, art))

    def kernel(a, b):
        return (a @ b.t() / 12 + 1) ** 3
    off = ~torch.eye(6, dtype=torch.bool)
    wanted = kernel(x, x)[off].mean() + kernel(y, y)[off].mean() - 2 * kernel(x, y).mean()
    assert compare(evaluator, "kid", moved).value == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("name", MEASURES)
def test_a_metric_sees_the_batches_it_names_and_no_other(evaluator, face, name):
    """Each batch replaced: the value changes where the metric says that it sees it. The others may be left out."""
    given = alone(name, batches(2))
    if {"faces", "arcface"} & set(METRICS[name].networks):
        given |= {"photos": face, "results": face}
    value = compare(evaluator, name, given).value
    for batch in registry.BATCHES:
        if batch not in METRICS[name].sees:
            rest = {other: x for other, x in given.items() if other != batch}
            assert compare(evaluator, name, rest).value == value
        elif name not in ("face_read", "landmark_shift"):
            other = given[batch].flip(2) * 0.3 + 0.2
            assert compare(evaluator, name, given | {batch: other}).value != pytest.approx(value, abs=1e-5), batch
        else:
            with pytest.raises(ValueError, match=batch):
                compare(evaluator, name, {other: x for other, x in given.items() if other != batch})


def test_faces_of_the_same_photo(evaluator, face):
    pair = {"photos": face, "results": face}
    assert compare(evaluator, "face_read", pair).value == 1
    assert compare(evaluator, "landmark_shift", pair).value == pytest.approx(0, abs=1e-6)
    found = compare(evaluator, "identity_similarity", pair)
    assert found.value == pytest.approx(1) and "A face is read in 1 of 1 photos." in found.report


# --- refusals ---------------------------------------------------------------------------------------------------------
def test_no_identity_without_a_face(evaluator):
    with pytest.raises(ValueError, match="no face is read in the photos"):
        compare(evaluator, "arcface_distance", batches())
    with pytest.raises(ValueError, match="landmark shift: there is no picture that can be compared"):
        compare(evaluator, "landmark_shift", batches())


@pytest.mark.parametrize("name", [name for name in MEASURES if set(METRICS[name].networks) & set(PUBLIC)])
def test_a_missing_network_is_named_with_its_file_and_page(evaluator, name):
    with pytest.raises(ValueError, match="https://.*") as caught:
        compare(replace(evaluator, public=PublicNetworks(advice=dict.fromkeys(PUBLIC, "put it there"))), name, {})
    assert "is missing: put it there (" in str(caught.value)


def test_batches_that_do_not_fit_are_named(evaluator):
    for name, changes, message in (
            ("lpips_alex", {"results": tiny.pictures(2, px=PX)}, "3 photos of 80 x 80 px but 2 results of 80 x 80 px"),
            ("ssim", {"results": tiny.pictures(3, px=96)}, "3 photos of 80 x 80 px but 3 results of 96 x 96 px"),
            ("lpips_diversity", {"others": tiny.pictures(1, px=PX)}, "1 others of 80 x 80 px"),
            ("colour_distance", {}, "colour distance takes one style image, not 3"),
            ("fid", {"style_images": tiny.pictures(1, px=PX)}, "at least two of each"),
            ("structure_distance", {}, "needs models of this pack; take one of edge_agreement"),
            ("sharpness", {}, "no metric 'sharpness'")):
        with pytest.raises(ValueError, match=message):
            compare(evaluator, name, batches(**changes))
    with pytest.raises(ValueError, match="ArtFID compares photos, results, style_images; photos are missing"):
        compare(evaluator, "art_fid", {name: x for name, x in batches().items() if name != "photos"})


def test_the_user_stops_it_between_two_parts(evaluator):
    class Stopped(Exception):
        pass

    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 3:
            raise Stopped
    large = tiny.pictures(4, px=1024)  # one picture a call
    with pytest.raises(Stopped):
        compare(replace(evaluator, check_interrupt=stop), "fid", {"results": large, "style_images": large})
    assert len(calls) == 3


# --- beside the number ------------------------------------------------------------------------------------------------
def test_the_report_says_what_was_measured(evaluator):
    lines = compare(evaluator, "art_fid", batches(4), "middle squares resized to 80 px").report.splitlines()
    assert lines[0].startswith("ArtFID: ") and lines[0].endswith("(lower is better; product)")
    assert "LPIPS 0.1 with AlexNet" in lines[1] and "the Inception of ArtFID (file unknown), 8 bits, [0, 1]" in lines[2]
    assert lines[3] == ("4 photos of 80 x 80 px, 4 results of 80 x 80 px, 4 style images of 80 x 80 px "
                        "(middle squares resized to 80 px)")
    assert lines[4].startswith("of LPIPS (AlexNet) ") and lines[5] == FEW and len(lines) == 6
    assert FEW in compare(evaluator, "fid", batches()).report and FEW not in compare(evaluator, "kid", batches()).report
    found = compare(evaluator, "psnr", batches(40))
    assert found.report.splitlines()[1] == "no network" and found.report.endswith(", ..") and len(found.each) == 40
    assert found.value == pytest.approx(sum(found.each) / 40)


def test_one_photo_stands_for_all_results(evaluator):
    given = batches()
    found = compare(evaluator, "lpips_alex", given | {"photos": given["photos"][:1]})
    three = given | {"photos": given["photos"][:1].repeat(3, 1, 1, 1)}
    assert found.each == pytest.approx(compare(evaluator, "lpips_alex", three).each)
    assert "1 photos of 80 x 80 px, 3 results" in found.report


def test_pictures_keep_their_size_without_an_autoencoder(evaluator):
    pictures = tiny.pictures(1, px=96)
    assert torch.equal(PictureFeatures(evaluator, pictures).sized, pictures)
    for network in (evaluator.clip_network, evaluator.autoencoder):
        with pytest.raises(ValueError, match="to measure with; give one to the evaluator"):
            network()
