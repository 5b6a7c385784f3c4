"""Geometry from Reference, Follow, Save and Load Geometry, executed as ComfyUI does it, on shipped pictures."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from oneshot_atelier.models import warp
from oneshot_atelier.models.faces import geometry
from oneshot_atelier.models.faces.networks import load_faces
from oneshot_atelier.tests.node_tools import picture

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("comfy")]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="session")
def shipped(root):
    """shipped(name) -> IMAGE (1, 256, 256, 3)."""
    def load(name):
        with Image.open(root / "workflows" / "inputs" / f"{name}.png") as stored:
            return torch.from_numpy(np.array(stored.convert("RGB"))).float()[None] / 255
    return load


@pytest.fixture(scope="session")
def caricature(shipped):
    return shipped("style_caricature")


@pytest.fixture
def read(nodes):
    """read(style_image, **changes) -> geometry, report."""
    return lambda style, **changes: nodes.GeometryFromReference.execute(
        style_image=style, **{"symmetric": True, "mouth": False, "pairs": ""} | changes).args


@pytest.fixture
def follow(nodes):
    return lambda image, made, strength, **more: nodes.FollowGeometry.execute(
        results=image, geometry=made, strength=strength, **more).args


@pytest.fixture
def said(nodes, monkeypatch):
    texts = []
    monkeypatch.setattr(nodes.host, "show_text", texts.append)
    return texts


@pytest.fixture(scope="module")
def known():
    mean = geometry.mean_face()
    x, y = mean.unbind(1)
    return geometry.geometry_of(mean, torch.stack([x * (0.9 + 0.3 * torch.sigmoid(4 * y)), y * 1.15], 1), "known")


# --- from a reference -------------------------------------------------------------------------------------------------
def test_a_drawn_caricature_has_a_wide_jaw(read, caricature, said):
    made, report = read(caricature)
    assert "against the mean face" in report and "% of the face's radius" in report and not said
    jaw, temple = made.shift[[172, 397], 0], made.shift[[54, 284], 0]  # left and right in the picture
    assert jaw[0] < -0.05 and jaw[1] > 0.05 and float((jaw[1] - jaw[0]) - (temple[1] - temple[0])) > 0.2
    assert torch.allclose(made.shift, geometry.mirrored(made.shift, load_faces().mesh.mirror), atol=1e-5)
    assert abs(float(geometry.opened(made.shift))) < 1e-4
    crooked, _ = read(caricature, symmetric=False, mouth=True)
    assert not torch.allclose(crooked.shift, made.shift, atol=1e-3)


def test_a_twin_is_compared_with(read, shipped, known):
    face = shipped("face_4")
    points = geometry.landmarks(load_faces(), face[0].permute(2, 0, 1) * 2 - 1).points
    style = warp.bent(face[0].permute(2, 0, 1), geometry.following(face[0].permute(2, 0, 1), points, known, 1.0))
    made, report = read(style.permute(1, 2, 0)[None], twin=face)
    assert "against the twin" in report
    gain = float((made.shift * known.shift).sum() / known.shift.square().sum())
    assert 0.5 < gain < 1.2, "the mesh reads less than there is"
    same, _ = read(face, twin=face)
    assert same.size < 0.25 * made.size


def test_pairs_by_hand_need_the_twin_and_are_read(read, shipped):
    face = shipped("face_4")
    pairs = "\n".join(f"{x} {y}, {x} {y * 1.2}" for x, y in ((60, 60), (200, 60), (130, 130), (90, 200), (170, 200)))
    made, report = read(face, twin=face, pairs=pairs)
    assert "5 pairs by hand" in report and made.size > 0.01
    x, y = made.shift.unbind(1)
    assert torch.corrcoef(torch.stack([y, made.points[:, 1]]))[0, 1] > 0.9, "longer: up above, down below"
    with pytest.raises(ValueError, match="Connect the twin, too"):
        read(face, pairs=pairs)


@pytest.mark.parametrize("pairs, words", [("1 2 3", "pairs takes four numbers"), ("1 2 3 4", "1 lines, 4 are needed"),
                                          ("a b c d", "cannot be read"), ("1 1 1 1\n" * 4, "not in a line")])
def test_wrong_pairs_are_refused(nodes, read, shipped, pairs, words):
    with pytest.raises(ValueError, match=words):
        read(shipped("face_4"), twin=shipped("face_4"), pairs=pairs)
    if "line" not in words or "lines" in words:
        assert words in nodes.GeometryFromReference.validate_inputs(pairs)


def test_a_style_image_without_a_face_is_refused_with_the_ways_that_are_left(read, shipped):
    blank = torch.ones(1, 128, 128, 3)
    with pytest.raises(ValueError, match="style_image: no face was found. Connect a structure network, write pairs"):
        read(blank)
    with pytest.raises(ValueError, match="twin: no face was found. Take another candidate"):
        read(shipped("face_4"), twin=blank)
    with pytest.raises(ValueError, match="style_image: one picture is needed, not 2"):
        read(torch.cat([blank, blank]))


def test_the_structure_network_is_asked_where_no_face_is_read(nodes, read, shipped):
    class Places(torch.nn.Module):
        """Each token's key is its place, seen 10 % larger in the second picture."""

        def keys(self, pictures):
            places = warp.pixel_centres(16, 16).reshape(-1, 2).float() * 2 - 1
            near = torch.stack([torch.cos(3 * places), torch.sin(3 * places)], 2).flatten(1)
            far = torch.stack([torch.cos(3 * places / 1.1), torch.sin(3 * places / 1.1)], 2).flatten(1)
            return torch.stack([near, far])
    net = nodes.sockets.StructureNetModel("test", nodes.host.PatchedModule(Places()), False)
    blank = torch.ones(1, 256, 256, 3)
    made, report = read(blank, twin=shipped("face_4"), structure_net=net)
    assert "found again in the style image" in report and made.size < 0.03, "larger as a whole is no deformation"
    with pytest.raises(ValueError, match="needs a photo to compare it with. Connect the twin"):
        read(blank, structure_net=net)


# --- following --------------------------------------------------------------------------------------------------------
def test_strength_0_is_the_picture_to_the_bit(follow, known, shipped):
    rgba = picture(3, 2, side=40, channels=4)
    assert follow(rgba, known, 0.0)[0] is rgba, "no face is looked for, either"


def test_faces_move_by_the_strength(follow, known, shipped):
    face, nets = shipped("face_4"), load_faces()
    before = geometry.landmarks(nets, face[0].permute(2, 0, 1) * 2 - 1)
    moved = {}
    for strength in (0.5, 1.0):
        image, _, report = follow(face, known, strength)
        assert image.shape == face.shape and image.dtype == face.dtype and 0 <= image.min() and image.max() <= 1
        assert "picture 0: landmarks moved by" in report
        after = geometry.landmarks_in(nets, image[0].permute(2, 0, 1) * 2 - 1, before.square)
        shift = geometry.geometry_of(before.points, after.points).shift
        moved[strength] = float((shift * known.shift).sum() / known.shift.square().sum())
    assert 0.1 < moved[0.5] < moved[1.0] < 1.1, moved


def test_a_batch_is_as_its_pictures_alone_and_masks_follow(follow, known, shipped):
    faces = torch.cat([shipped("face_4"), shipped("face_2")])
    masks = (torch.rand(2, 256, 256, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    image, mask, report = follow(faces, known, 1.0, masks=masks)
    for k in range(2):
        alone, own, _ = follow(faces[k:k + 1], known, 1.0, masks=masks[k])
        assert torch.equal(alone[0], image[k]) and torch.equal(own[0], mask[k])
    assert report.count("landmarks moved") == 2 and not torch.equal(mask, masks) and mask.max() <= 1
    as_mask = follow(faces, known, 1.0, masks=faces[..., 0])[1]
    assert (as_mask - image[..., 0]).abs().mean() < 0.01
    with pytest.raises(ValueError, match="masks: .3, 256, 256. does not fit"):
        follow(faces, known, 1.0, masks=torch.zeros(3, 256, 256))


def test_what_the_result_does_not_show_is_read_in_its_photo(follow, known, shipped, said):
    face = shipped("face_4")
    lines = torch.linspace(0, 1, 128)[:, None, None].expand(128, 128, 3)[None]  # no face, half the size
    with pytest.raises(ValueError, match="^picture 0: no face was found. Connect the photos that were stylized$"):
        follow(lines, known, 1.0)
    with pytest.raises(ValueError, match="^picture 0: no face was found in it or in its photo. Connect pictures that"):
        follow(lines, known, 1.0, photos=lines)
    image, _, report = follow(lines, known, 1.0, photos=face)
    assert (image - lines).abs().max() > 0.01 and image.shape == lines.shape and "moved" in report
    both, _, report = follow(torch.cat([lines, lines]), known, 1.0, photos=torch.cat([face, torch.ones_like(face)]))
    assert torch.equal(both[0], image[0]) and torch.equal(both[1], lines[0])
    assert "picture 1: no face was found in it or in its photo, so it stays as it is. Connect" in said[0]
    assert said[0] in report
    for count, photos in ((2, 3), (1, 2)):
        with pytest.raises(ValueError, match=f"{count} results cannot be paired with {photos} photos"):
            follow(torch.cat([lines] * count), known, 1.0, photos=torch.cat([face] * photos))


def test_a_result_is_read_alone_where_its_photo_shows_no_face(follow, known, shipped):
    face = shipped("face_4")
    image, _, _ = follow(face, known, 1.0, photos=torch.ones_like(face))
    assert torch.equal(image, follow(face, known, 1.0)[0])


def test_a_strength_out_of_range_is_refused(follow, known, shipped):
    with pytest.raises(ValueError, match="strength is 2.5; take 0"):
        follow(shipped("face_4"), known, 2.5)


# --- files ------------------------------------------------------------------------------------------------------------
def test_a_geometry_is_kept_once_and_loaded(nodes, known):
    path = nodes.SaveGeometry.execute(known, "my_geometry", False)[0]
    assert nodes.SaveGeometry.execute(known, "my_geometry", False)[0] == path
    other = geometry.FaceGeometry(known.points, known.shift * 0.5, "other")
    assert nodes.SaveGeometry.execute(other, "my_geometry", False)[0] != path
    found, origin = nodes.LoadGeometry.execute("my_geometry.safetensors").args
    assert torch.equal(found.shift, known.shift) and origin == "known"
