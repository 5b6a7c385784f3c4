"""Detect & Align Faces and Paste Faces Back, executed as ComfyUI does it, on the shipped and the golden pictures."""
from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from oneshot_atelier.models.faces import crops, find
from oneshot_atelier.models.faces.align import align, ffhq_quad, shares_of, side_of, whole_quad
from oneshot_atelier.models.faces.networks import load_faces
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests.node_tools import picture

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("comfy")]
SIZE = 128
ALIGN = {"size": SIZE, "align": True, "faces": "largest", "index": 0, "any_direction": False, "threshold": 0.5,
         "pad": True, "fallback": False, "five_points": "", "box": "", "box_kind": "crop"}
PASTE = {"feather": 0.1, "area": "square", "match_colour": "none", "upscale": 1.0}
WALL_TURNS = (-8, 37, 180, -90, 90)  # of the faces of wall.png, clockwise, the largest first


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="session")
def group():
    """Three faces, IMAGE (1, 240, 320, 3)."""
    return load_file(golden.PUBLIC / "faces.safetensors")["group.picture"][None].float() / 255


@pytest.fixture(scope="session")
def wall(root):
    """Five faces in every direction, IMAGE (1, 400, 640, 3)."""
    with Image.open(root / "workflows" / "inputs" / "wall.png") as stored:
        return image_of(stored.convert("RGB"))


def image_of(stored):
    return torch.from_numpy(np.array(stored)).float()[None] / 255


@pytest.fixture(scope="session")
def searches():
    """What was found in a picture, by its pixels and the settings."""
    return {}


@pytest.fixture
def cut(nodes, searches, monkeypatch):
    """cut(image, **changes) -> crops, face_crop, mask, report. A picture is searched once for the same settings."""
    module, believed, search = sys.modules[nodes.AlignFaces.__module__], find.is_believed, find.search_faces

    def searched(networks, picture, settings):
        if find.is_believed is not believed:  # `unsure`
            return search(networks, picture, settings=settings)
        key = picture.shape, picture.cpu().numpy().tobytes(), settings
        if key not in searches:
            searches[key] = search(networks, picture, settings=settings)
        return searches[key]
    monkeypatch.setattr(module, "search_faces", searched)
    return lambda image, **changes: nodes.AlignFaces.execute(image=image, **ALIGN | changes).args


@pytest.fixture
def paste(nodes):
    return lambda image, results, face_crop, **changes: nodes.PasteFaces.execute(
        image=image, results=results, face_crop=face_crop, **PASTE | changes)[0]


@pytest.fixture
def said(nodes, monkeypatch):
    """What was said on the nodes."""
    texts = []
    monkeypatch.setattr(nodes.host, "show_text", texts.append)
    return texts


def outside(face_crop, shape):
    """(H, W) bool: pixels that lie outside all squares of a single picture."""
    y, x = torch.meshgrid(torch.arange(shape[1]) + 0.5, torch.arange(shape[2]) + 0.5, indexing="ij")
    pixels, out = torch.stack([x, y], -1), torch.ones(shape[1:3], dtype=torch.bool)
    for crop in face_crop.crops:
        shares = shares_of(pixels, crop.quad)
        out &= ((shares <= 0) | (shares >= 1)).any(-1)
    return out


# --- there and back -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("match", ["none", "border", "whole"])
def test_unchanged_crops_pasted_back_change_nothing(cut, paste, group, size, match):
    faces, face_crop, _, _ = cut(group, faces="all", size=size)
    assert faces.shape == (3, size, size, 3)
    assert torch.equal(paste(group, faces, face_crop, match_colour=match), group)
    stored = (faces * 255).round() / 255  # as Save Image and Load Image give them
    assert (paste(group, stored, face_crop, match_colour=match) - group).abs().max() <= 1 / 255


def test_changed_crops_replace_the_faces_and_nothing_else(cut, paste, group):
    faces, face_crop, mask, _ = cut(group, faces="all")
    for changes in ({}, {"match_colour": "border"}, {"area": "face"}):
        pasted = paste(group, 1 - faces, face_crop, **changes)
        untouched = outside(face_crop, group.shape)
        assert torch.equal(pasted[0][untouched], group[0][untouched]) and 0.3 < untouched.float().mean() < 0.95
    assert (paste(group, 1 - faces, face_crop) - group).abs().mean() > 0.05
    for crop in face_crop.crops:
        again = align(paste(group, 1 - faces, face_crop)[0].permute(2, 0, 1) * 2 - 1, crop.quad, SIZE)
        middle = slice(SIZE // 4, 3 * SIZE // 4)
        assert (again + crop.crop)[:, middle, middle].abs().mean() < 0.06  # the negative, resampled once more
    assert mask.shape == (3, SIZE, SIZE) and mask[:, 70, 64].min() > 0.9 and mask[:, :5].max() < 0.01


def test_the_area_of_the_face_and_a_mask_of_ones_own(cut, paste, group):
    faces, face_crop, mask, _ = cut(group)
    face = paste(group, 1 - faces, face_crop, area="face")
    assert torch.equal(face, paste(group, 1 - faces, face_crop, mask=mask))
    square = paste(group, 1 - faces, face_crop)
    assert 0.1 < (face - group).abs().mean() / (square - group).abs().mean() < 0.7
    assert torch.equal(paste(group, 1 - faces, face_crop, mask=torch.zeros(SIZE, SIZE)), group)
    with pytest.raises(ValueError, match="mask: 3 masks for 1 crops"):
        paste(group, faces, face_crop, mask=torch.ones(3, 8, 8))


@pytest.mark.parametrize("size", [(64, 64), (300, 300)])
def test_results_of_any_size_are_taken(cut, paste, group, size):
    _, face_crop, _, _ = cut(group)
    pasted = paste(group, torch.ones(1, *size, 3), face_crop)
    x, y = face_crop.crops[0].quad.mean(0).long().tolist()
    assert pasted[0, y, x].min() > 0.99


def test_pictures_can_be_enlarged_before(cut, paste, group):
    faces, face_crop, _, _ = cut(group)
    large = torch.nn.functional.interpolate(group.permute(0, 3, 1, 2), scale_factor=2.0).permute(0, 2, 3, 1)
    x, y = (face_crop.crops[0].quad.mean(0) * 2).long().tolist()
    for pasted in (paste(group, 1 - faces, face_crop, upscale=2.0), paste(large, 1 - faces, face_crop)):
        assert pasted.shape == (1, 480, 640, 3)
        assert (pasted[0, y - 20:y + 20, x - 20:x + 20] - 1 + large[0, y - 20:y + 20, x - 20:x + 20]).abs().mean() < 0.1
    with pytest.raises(ValueError, match="was 320 x 240 px .* this one of 240 x 240 px has another shape"):
        paste(group[:, :, :240], faces, face_crop)


def test_inputs_are_left_as_they_are(cut, paste, group):
    before = group.clone()
    faces, face_crop, _, _ = cut(group)
    kept = faces.clone()
    paste(group, faces, face_crop, match_colour="border")
    assert torch.equal(group, before) and torch.equal(faces, kept)


def test_the_matrix_takes_the_picture_to_the_crop(cut, group):
    crop = cut(group, faces="by index", index=1)[1].crops[0]
    corners = torch.cat([crop.quad, torch.ones(4, 1)], 1) @ crop.matrix.T
    wanted = torch.tensor([[0, 0], [0, SIZE], [SIZE, SIZE], [SIZE, 0]]).float()
    assert torch.allclose(corners, wanted, atol=1e-2) and crop.index == 1 and crop.size == (240, 320)


# --- which faces ----------------------------------------------------------------------------------------------------
def test_faces_of_every_direction_come_upright_the_largest_first(cut, wall):
    faces, face_crop, _, report = cut(wall, faces="all", any_direction=True)
    assert len(faces) == 5 and [crop.index for crop in face_crop.crops] == [0, 1, 2, 3, 4]
    sides = [side_of(crop.quad) for crop in face_crop.crops]
    assert sides[0] == max(sides) and sides[4] == min(sides)  # by the box around the points, which grows with tilt
    for crop, wanted in zip(face_crop.crops, WALL_TURNS):
        along = crop.quad[3] - crop.quad[0]
        turned = math.degrees(math.atan2(float(along[1]), float(along[0])))
        assert abs((turned - wanted + 180) % 360 - 180) < 10, crop.index
    nets = load_faces()
    assert all(abs(find.find_faces(nets, crop.crop)[0].angle) < 0.1 for crop in face_crop.crops)
    assert report.count("was read with the face turned by") == 3


@pytest.fixture(scope="session")
def framed(root):
    """framed(degrees) -> face_1 on a grey canvas, turned clockwise, IMAGE (1, 400, 400, 3)."""
    with Image.open(root / "workflows" / "inputs" / "face_1.png") as stored:
        canvas = Image.new("RGB", (400, 400), (128, 128, 128))
        canvas.paste(stored.convert("RGB"), (72, 72))
    return lambda degrees: image_of(canvas.rotate(-degrees, Image.BICUBIC, fillcolor=(128, 128, 128)))


@pytest.mark.parametrize("degrees", [15, 45, 90, 135, 180, 225, 270, 315])
def test_a_face_at_any_angle_gives_the_same_crop(cut, framed, degrees):
    (plain, of_plain, *_), (turned, of_turned, *_) = cut(framed(0)), cut(framed(degrees))
    angle = torch.tensor(math.radians(degrees))
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    wanted = (of_plain.crops[0].quad - 200) @ rotation.T + 200
    apart = (of_turned.crops[0].quad - wanted).norm(dim=1)
    assert apart.mean() < 0.015 * side_of(wanted)
    middle = slice(24, 104)
    assert (plain - turned)[:, middle, middle].abs().mean() < 0.04


def test_largest_index_and_all(cut, said, group):
    every = cut(group, faces="all")[0]
    assert torch.equal(cut(group)[0], every[:1])
    assert torch.equal(cut(group, faces="by index", index=2)[0], every[2:])
    with pytest.raises(ValueError, match=r"Picture 0 has 3 faces \(largest first, 0 to 2\); number 3 was asked for"):
        cut(group, faces="by index", index=3)


# --- nothing found --------------------------------------------------------------------------------------------------
def test_no_face_says_what_to_do(cut):
    with pytest.raises(ValueError, match="No face found in picture 0. .* any_direction .* by hand"):
        cut(torch.full((1, 90, 60, 3), 0.5))


def test_a_batch_goes_on_without_a_picture(cut, paste, said, group):
    batch = torch.cat([group, torch.full_like(group, 0.5), group.flip(2)])
    faces, face_crop, _, report = cut(batch)
    assert len(faces) == 2 and [crop.picture for crop in face_crop.crops] == [0, 2] and face_crop.pictures == 3
    assert said == ["No face found in picture 1. Faces must be at least about 5 % of the longer side (12 pixels of 256)"
                    ". Turn on any_direction for rotated pictures, lower the threshold to 0.3 for drawings, or give "
                    "the five points or the square by hand"]
    assert report.splitlines()[-1] == f"left out: {said[0]}"
    pasted = paste(batch, 1 - faces, face_crop)
    assert torch.equal(pasted[1], batch[1]) and not torch.equal(pasted[2], batch[2])
    assert torch.equal(pasted[0], paste(group, 1 - faces[:1], cut(group)[1])[0])


@pytest.fixture
def unsure(monkeypatch):
    """The mesh believes nothing; the detector sees what it sees."""
    monkeypatch.setattr(find, "is_believed", lambda reading: torch.zeros(len(reading.quality), dtype=torch.bool))


def test_possible_faces_of_which_none_convinces(cut, unsure, group):
    with pytest.raises(ValueError, match=r"Picture 0: \d+ possible faces, none convincing \(best quality .* Lower the "
                                         "threshold, turn on the fallback, or give"):
        cut(group)


def test_the_fallback_takes_the_detectors_points(cut, unsure, group, monkeypatch):
    _, face_crop, mask, report = cut(group, fallback=True)
    monkeypatch.undo()
    assert "coarse points" in report and mask.min() == 1 and len(face_crop.crops) == 1
    sure = cut(group, faces="all")[1]
    apart = [float((crop.quad - face_crop.crops[0].quad).norm(dim=1).mean()) / side_of(crop.quad)
             for crop in sure.crops]
    assert min(apart) < 0.15


# --- remarks --------------------------------------------------------------------------------------------------------
def remarks(square, size=(200, 200)):
    return crops.remarks(square, size, SIZE, 4)


def test_what_a_user_should_know_of_a_square():
    plain = crops.FaceSquare(whole_quad(100, 100) + 30, "found")
    assert remarks(plain) == []
    assert remarks(crops.FaceSquare(plain.quad, "", width=20.4)) == [
        "The face is only 20 pixels wide; the aligned picture of 128 pixels will be soft"]
    assert remarks(crops.FaceSquare(whole_quad(100, 100) - 50, "")) == [
        "75 % of the aligned picture lies outside the photograph and is filled by reflection; results near the border "
        "are invented"]
    (unfilled,) = crops.remarks(crops.FaceSquare(whole_quad(100, 100) - 50, ""), (200, 200), SIZE, 4, pad=False)
    assert "is filled by its border" in unfilled
    assert remarks(crops.FaceSquare(plain.quad, "", turned=math.pi)) == [
        "Picture 4 was read with the face turned by 180 degrees"]
    assert remarks(crops.FaceSquare(whole_quad(198, 198) + 1, "")) == [
        "Picture 4 seems to be aligned already: the square is the picture itself within 2 %"]


def test_pictures_on_the_node_are_small_and_their_squares_where_the_faces_are(nodes, group):
    module = sys.modules[nodes.AlignFaces.__module__]
    large = torch.nn.functional.interpolate(group.permute(0, 3, 1, 2), (1800, 2400)).permute(0, 2, 3, 1)
    square = crops.FaceSquare(whole_quad(600, 600) + 300, "")
    (drawn,) = module.cut_all(large, lambda *_: module.Answer([square]), crops.Choice(), (64, True)).shown
    assert drawn.shape == (1, 768, 1024, 3)
    left = 300 * 1024 / 2400
    assert torch.allclose(drawn[0, 250, round(left)], torch.tensor([1.0, 64 / 255, 64 / 255]), atol=0.02)


# --- by hand --------------------------------------------------------------------------------------------------------
def test_five_points_by_hand_give_nearly_the_faces_square(cut, group):
    found = cut(group)[1].crops[0]
    points = find.find_faces(load_faces(), group[0].permute(2, 0, 1) * 2 - 1)[0].points
    five = [points[[33, 133]].mean(0), points[[362, 263]].mean(0), points[1], points[61], points[291]]
    text = ", ".join(f"{x:.1f} {y:.1f}" for x, y in (row.tolist() for row in five))
    crop = cut(group, five_points=text)[1].crops[0]
    assert (crop.quad - found.quad).norm(dim=1).max() < 0.06 * side_of(found.quad) and crop.mask.min() == 1


def test_a_box_by_hand_is_cut_out_as_it_is(cut, group):
    faces, face_crop, _, _ = cut(group, box="40, 30, 128, 128")
    assert (faces[0] - group[0, 30:158, 40:168]).abs().mean() < 0.01  # FFHQ's sampling is a little soft
    assert face_crop.crops[0].quad.tolist() == [[40, 30], [40, 158], [168, 158], [168, 30]]
    wide = cut(group, box="40, 30, 128, 64")[1].crops[0].quad
    assert wide.mean(0).tolist() == [104, 62] and side_of(wide) == 128


def test_a_box_of_a_face_gives_nearly_its_square(cut, group):
    found = find.find_faces(load_faces(), group[0].permute(2, 0, 1) * 2 - 1)
    upright = next(face for face in found if abs(face.angle) < 0.1)
    x0, y0, x1, y1 = upright.box.tolist()
    crop = cut(group, box=f"{x0} {y0} {x1 - x0} {y1 - y0}", box_kind="face")[1].crops[0]
    assert (crop.quad - upright.quad).norm(dim=1).max() < 0.1 * side_of(upright.quad)


@pytest.mark.parametrize("boxes", [
    {"x": 40, "y": 30, "width": 128, "height": 128}, [{"x": 40, "y": 30, "width": 128, "height": 128}],
    [[{"x": 0, "y": 0, "width": 20, "height": 20}, {"x": 40, "y": 30, "width": 128, "height": 128}]]])
def test_boxes_of_core(cut, group, boxes):
    assert torch.equal(cut(group, bounding_box=boxes)[0], cut(group, box="40 30 128 128")[0])


def test_the_largest_face_has_the_largest_box_whoever_found_it(cut, group):
    """As the search says: by area. A long narrow box has a larger square."""
    large, narrow = ({"x": 20, "y": 30, "width": 90, "height": 90}, {"x": 200, "y": 30, "width": 20, "height": 100})
    crop = cut(group, bounding_box=[[narrow, large]], box_kind="face")[1].crops[0]
    assert crop.quad.mean(0)[0] < 120
    found = find.find_faces(load_faces(), group[0].permute(2, 0, 1) * 2 - 1)
    turned = [found[0].points, (found[0].points - 160) @ torch.tensor([[0.6, -0.6], [0.6, 0.6]]) + 160]
    squares = crops.squares_of_landmarks(turned)
    assert float(squares[0].points.amax(0).sub(squares[0].points.amin(0)).prod()) == max(
        float(points.amax(0).sub(points.amin(0)).prod()) for points in turned)


def test_boxes_for_each_picture_of_a_batch(cut, said, group):
    batch = torch.cat([group] * 3)
    box = {"x": 40, "y": 30, "width": 128, "height": 128}
    face_crop, report = (cut(batch, bounding_box=[[box], [], [box, box | {"width": 8, "height": 9}]],
                             faces="all")[k] for k in (1, 3))
    assert [(crop.picture, crop.index) for crop in face_crop.crops] == [(0, 0), (2, 0), (2, 1)]
    assert "left out: No face was given for picture 1" in report
    assert [crop.picture for crop in cut(batch, bounding_box=box)[1].crops] == [0, 1, 2]
    lines = cut(batch, box="0 0 64 64\n10 10 64 64\n20 20 64 64")[1].crops
    assert [crop.quad[0].tolist() for crop in lines] == [[0, 0], [10, 10], [20, 20]]
    with pytest.raises(ValueError, match="boxes for 2 pictures, there are 3"):
        cut(batch, bounding_box=[box, box])
    with pytest.raises(ValueError, match="box has 2 lines for 3 pictures"):
        cut(batch, box="0 0 64 64; 0 0 64 64")


def test_landmarks_of_core(cut, group):
    """Core's have ten more points, of the irises, and come in any order."""
    found = find.find_faces(load_faces(), group[0].permute(2, 0, 1) * 2 - 1,
                            find.FaceSettings(settled=True))
    frames = [[{"landmarks_xy": np.concatenate([face.points.numpy(), np.zeros((10, 2), np.float32)]), "score": 0.9}
               for face in found[::-1]]]
    theirs = {"frames": frames, "image_size": (240, 320), "connection_sets": {}}
    faces, face_crop, mask, _ = cut(group, face_landmarks=theirs, faces="all")
    ours = cut(group, faces="all")
    assert torch.allclose(faces, ours[0], atol=1e-5) and torch.allclose(mask, ours[2], atol=1e-5)
    assert torch.allclose(face_crop.crops[0].quad, ffhq_quad(found[0].points))
    for wrong, words in ((theirs | {"image_size": (64, 64)}, "of pictures of 64 x 64 px, these have 320 x 240"),
                         (theirs | {"frames": frames * 2}, "of 2 pictures, there are 1"),
                         ([], "none of core's MediaPipe Face Landmarker"),
                         (theirs | {"frames": [[{"landmarks_xy": np.zeros((5, 2))}]]}, "468 points or more")):
        with pytest.raises(ValueError, match=words):
            cut(group, face_landmarks=wrong)


@pytest.mark.parametrize(("changes", "words"), [
    ({"five_points": "1 2 3"}, "has 3 numbers. five_points takes ten numbers, x y of left eye"),
    ({"five_points": "a b"}, "'a b' cannot be read"), ({"box": "1 2 3 nan"}, "box takes four numbers"),
    ({"box": "1 1 0 5"}, "a box of 0 x 5 px is empty"), ({"five_points": "5 5 " * 5}, "do not span a face"),
    ({"box": "0 0 9 9", "five_points": "1 2 3 4 5 6 7 8 9 10"}, "five_points and box both say where faces are"),
    ({"size": 8}, "size is 8; take 16"), ({"faces": "none"}, "take one of largest, by index, all")])
def test_wrong_values_are_refused(cut, group, changes, words):
    with pytest.raises(ValueError, match=words):
        cut(group, **changes)


def test_texts_are_refused_before_the_run(nodes):
    assert nodes.AlignFaces.validate_inputs(five_points="", box="1 2 3 4\n5 6 7 8") is True
    assert "takes ten numbers" in nodes.AlignFaces.validate_inputs(five_points="1", box="")
    assert "takes four numbers" in nodes.AlignFaces.validate_inputs(five_points="", box="x")
    assert nodes.AlignFaces.validate_inputs(five_points=None, box=None) is True


# --- films and points -----------------------------------------------------------------------------------------------
@pytest.fixture
def film(wall):
    """Six frames that move over wall.png, the third of them grey."""
    frames = torch.cat([wall[:, 10:390, 3 * t:600 + 3 * t] for t in range(6)])
    frames[2] = 0.5
    return frames


def test_a_film_gives_a_crop_for_every_frame_of_one_face_and_steadily(cut, paste, film):
    crops, face_crop, mask, report = cut(film, steady=2.0)
    assert crops.shape == (6, SIZE, SIZE, 3) and mask.shape == (6, SIZE, SIZE) and len(face_crop.crops) == 6
    centres = torch.stack([crop.quad.mean(0) for crop in face_crop.crops])
    steps = centres[1:] - centres[:-1]
    assert torch.allclose(steps, torch.tensor([-3.0, 0.0]).expand(5, 2), atol=0.25)
    assert "picture 2, face 0: between frames 1 and 3" in report and "left out" not in report
    assert (crops[0] - crops[5]).abs().mean() < 0.02  # the same face in the same place
    assert torch.equal(paste(film, crops, face_crop), film)


def test_shots_of_a_film_are_steadied_each_by_itself(cut, root):
    """The second shot shows another face in nearly the same place, larger by a fifth."""
    with Image.open(root / "workflows" / "inputs" / "face_1.png") as one:
        first = image_of(one.convert("RGB").resize((160, 160)))
    with Image.open(root / "workflows" / "inputs" / "face_2.png") as other:
        second = image_of(other.convert("RGB").resize((200, 200)).crop((20, 20, 180, 180)))
    quads = [crop.quad for crop in cut(torch.cat([first, first, second, second, first]), steady=3.0)[1].crops]
    for quad, frame in zip(quads, (first, first, second, second, first), strict=True):
        assert torch.allclose(quad, cut(frame)[1].crops[0].quad, atol=1.0)


def test_without_steady_every_frame_is_a_picture_of_its_own(cut, said, film):
    _, face_crop, _, report = cut(film)
    assert [crop.picture for crop in face_crop.crops] == [0, 1, 3, 4, 5]
    assert "left out: No face found in picture 2" in report


def test_the_faces_of_a_film_have_their_own_numbers_on_the_node(nodes, cut, film, monkeypatch):
    drawn = []
    monkeypatch.setattr(nodes.faces.ImageDraw.ImageDraw, "text", lambda self, at, text, *_, **__: drawn.append(text))
    _, face_crop, _, _ = cut(film[:2], faces="by index", index=2, steady=2.0)
    assert [crop.index for crop in face_crop.crops] == [2, 2] and drawn == ["2", "2"]


def test_a_face_of_a_film_that_a_frame_does_not_show_is_said(cut):
    with pytest.raises(ValueError, match="^Face 1 of its shot is not seen in picture 0\n"):
        cut(picture(1, 3), faces="by index", index=1, steady=2.0, box="2 2 20 20")


def test_the_smaller_of_two_faces_lies_on_top_whatever_their_order(paste):
    quads = [torch.tensor([[a, a], [a, b], [b, b], [b, a]]) for a, b in ((20.0, 40.0), (4.0, 60.0))]
    image, colours = torch.zeros(1, 64, 64, 3), torch.tensor([1.0, 0.5])
    for order in ([0, 1], [1, 0]):
        made = [crops.FaceCrop(-torch.ones(3, 8, 8), quads[k], torch.ones(8, 8), 0, k, (64, 64), "") for k in order]
        results = colours[order][:, None, None, None].expand(-1, 8, 8, 3)
        pasted = paste(image, results, crops.FaceCrops(tuple(made), 1), match_colour="none")
        assert abs(float(pasted[0, 30, 30, 0]) - 1.0) < 0.01 and abs(float(pasted[0, 50, 50, 0]) - 0.5) < 0.01


def test_the_face_nearest_to_a_point(cut, wall):
    _, every, _, _ = cut(wall, faces="all")
    for crop in every.crops:
        x, y = (crop.quad.mean(0) + torch.tensor([9.0, -7.0])).tolist()
        _, found, _, report = cut(wall, faces="nearest point", point=f"{x:.0f}, {y:.0f}")
        assert len(found.crops) == 1 and found.crops[0].index == crop.index and f"face {crop.index}:" in report
        assert torch.equal(found.crops[0].quad, crop.quad)
    _, middle, _, _ = cut(wall, faces="nearest point")
    distances = [(crop.quad.mean(0) - torch.tensor([320.0, 200.0])).norm() for crop in every.crops]
    assert middle.crops[0].index == int(torch.stack(distances).argmin())


@pytest.mark.parametrize("point", ["3", "a, b", "1 2 3", "1 2; 3 4"])
def test_a_point_that_is_none_is_refused(nodes, cut, wall, point):
    assert "point" in nodes.AlignFaces.validate_inputs(five_points="", box="", point=point)
    with pytest.raises(ValueError, match="point takes two numbers"):
        cut(wall, faces="nearest point", point=point)


# --- alignment off --------------------------------------------------------------------------------------------------
def test_without_alignment_square_pictures_pass_through(cut, paste):
    square = picture(3, 2, SIZE)
    faces, face_crop, mask, _ = cut(square, align=False)
    assert torch.equal(faces, square) and mask.min() == 1
    assert torch.equal(paste(square, faces, face_crop), square)
    assert torch.allclose(paste(square, 1 - faces, face_crop), 1 - square, atol=1e-6)


def test_without_alignment_other_pictures_are_squashed_and_stretched_back(cut, paste, group):
    faces, face_crop, _, _ = cut(group, align=False, size=256)
    back = paste(group, faces, face_crop)
    assert faces.shape == (1, 256, 256, 3) and back.shape == group.shape and (back - group).abs().mean() < 0.02
    assert paste(group, torch.ones(1, 64, 64, 3), face_crop).min() > 1 - 1e-6


# --- pictures of all kinds ------------------------------------------------------------------------------------------
def test_grey_and_transparent_pictures(cut, paste, group):
    alpha = torch.cat([group, torch.ones_like(group[..., :1])], -1)
    assert torch.equal(cut(alpha)[0], cut(group)[0])
    grey = group.mean(-1, keepdim=True)
    faces, face_crop, _, _ = cut(grey)
    assert faces.shape == (1, SIZE, SIZE, 3) and torch.equal(paste(grey, faces, face_crop), grey.expand(-1, -1, -1, 3))
    assert torch.equal(cut(group * 3)[0], cut((group * 3).clamp(0, 1))[0])


@pytest.mark.parametrize(("shape", "words"), [((0, 9, 9, 3), "no picture"), ((1, 1, 1, 3), "1 x 1 px is too small"),
                                              ((1, 9, 9, 2), "2 channels")])
def test_unusable_pictures_are_refused(cut, shape, words):
    with pytest.raises(ValueError, match=f"image: .*{words}"):
        cut(torch.zeros(shape))


def test_batches_must_fit(cut, paste, group):
    faces, face_crop, _, _ = cut(group, faces="all")
    for image, results, words in ((torch.cat([group] * 2), faces, "2 pictures, but the faces were cut out of 1"),
                                  (group, faces[:2], "2 pictures for 3 crops"),
                                  (group, faces[:, :64], "128 x 64 px, but crops are square")):
        with pytest.raises(ValueError, match=words):
            paste(image, results, face_crop)


def test_the_user_can_cancel(nodes, cut, group, monkeypatch):
    import comfy.model_management as mm
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        cut(torch.cat([group] * 2))
