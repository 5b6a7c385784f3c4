"""Faces: loading, the rules for whole pictures, crops and paste-back, on the golden pictures and closed forms."""

import math

import numpy as np
import pytest
import tomllib
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from oneshot_atelier.models.checkpoints import CheckpointError
from oneshot_atelier.models.checkpoints.store import sha256
from oneshot_atelier.models.faces import align, detect, find, mesh
from oneshot_atelier.models.faces.networks import DETECTOR, MESH, SHA256, WEIGHTS, load_faces
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import tiny


@pytest.fixture(scope="module")
def nets():
    return load_faces()


@pytest.fixture(scope="module")
def group():
    """Three faces, (3, 240, 320) uint8."""
    return load_file(golden.PUBLIC / "faces.safetensors")["group.picture"].permute(2, 0, 1)


@pytest.fixture(scope="module")
def faces(nets, group):
    return find.find_faces(nets, group)


# --- the files -----------------------------------------------------------------------------------------------------
def test_the_weights_ship_with_their_licence(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {path for pattern in project["package-data"]["oneshot_atelier"] for path in root.glob(pattern)}
    assert {WEIGHTS / name for name in (DETECTOR, MESH, "LICENSE", "NOTICE")} <= shipped
    assert {name: sha256(WEIGHTS / name) for name in SHA256} == SHA256
    assert "Apache License" in (WEIGHTS / "LICENSE").read_text()
    assert "The MediaPipe Authors" in (WEIGHTS / "NOTICE").read_text()
    packages = {path.parent.relative_to(root) for room in ("models", "train", "evaluate", "nodes", "cli")
                for path in (root / room).rglob("__init__.py")}
    assert {".".join(("oneshot_atelier", *path.parts)) for path in packages} <= set(project["packages"])


@pytest.mark.parametrize("change", ["missing", "superfluous", "misshapen", "swapped", "damaged", "absent"])
def test_other_weights_are_refused_with_what_to_do(tmp_path, change):
    for name in (DETECTOR, MESH):
        tensors = load_file(WEIGHTS / name)
        if name == MESH:
            if change == "missing":
                del tensors["presence_head.out.bias"]
            if change == "superfluous":
                tensors["x"] = torch.zeros(1)
            if change == "misshapen":
                tensors["stem.conv.weight"] = torch.zeros(16, 3, 5, 5)
            if change == "swapped":
                tensors = load_file(WEIGHTS / DETECTOR)
        save_file(tensors, tmp_path / name)
    if change == "damaged":
        (tmp_path / MESH).write_bytes((tmp_path / MESH).read_bytes()[:9000])
    if change == "absent":
        (tmp_path / MESH).unlink()
    with pytest.raises(CheckpointError, match=f"^{MESH}: .* sha256 {SHA256[MESH]}, in .*models/faces/weights"):
        load_faces(tmp_path)


# --- whole pictures --------------------------------------------------------------------------------------------------
def test_faces_come_the_largest_first(faces):
    areas = [float(detect.area(face.box)) for face in faces]
    assert len(faces) == 3 and areas == sorted(areas, reverse=True) and areas[0] > 2 * areas[2]
    assert all(face.quality > 19 for face in faces)


@pytest.mark.parametrize("picture", [torch.zeros(3, 90, 60), torch.zeros(3, 1, 1), tiny.pictures(1, px=96)[0]])
def test_no_face_is_an_empty_list(nets, picture):
    assert find.find_faces(nets, picture) == []


def test_what_is_no_picture_is_refused(nets):
    for shape in ((1, 8, 8), (3, 0, 8), (1, 3, 8, 8)):
        with pytest.raises(ValueError, match="must be .3, H, W. and not empty"):
            find.find_faces(nets, torch.zeros(shape))
    for threshold in (0.0, 1.0):
        with pytest.raises(ValueError, match="threshold"):
            find.FaceSettings(threshold)


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_picture_that_lies_on_its_side_gives_the_same_faces(nets, group, faces, turn):
    """A quarter turn leaves the pixels as they are, so the points do turn with the picture."""
    height, width = group.shape[1:]
    turned = find.find_faces(nets, torch.rot90(group, turn, (1, 2)), find.FaceSettings(any_direction=True))
    assert len(turned) == 3
    for upright, face in zip(faces, turned):
        eyes = (upright.points[33] - upright.points[263]).norm()
        back = detect.unturn(face.points, turn, height, width)
        assert (back - upright.points).norm(dim=1).mean() < 0.03 * eyes
        apart = (face.angle - upright.angle + turn * math.pi / 2 + math.pi) % (2 * math.pi) - math.pi
        assert abs(apart) < 0.05


def test_an_upside_down_face_alone_is_found_without_being_asked_for(nets, group, faces):
    """Read the wrong way up its quality is low, so the second stage turns the picture."""
    turned = find.find_faces(nets, torch.rot90(group, 2, (1, 2)))
    assert len(turned) == 3 and all(abs(abs(face.angle) - math.pi) < 0.5 for face in turned)


def test_a_face_that_is_read_once_more_is_read_better(nets, root):
    """A square that was off by its detector's box; the truth is what the upright picture says."""
    with Image.open(root / "workflows" / "inputs" / "face_2.png") as stored:
        canvas = Image.new("RGB", (512, 512), (120, 130, 90))
        canvas.paste(stored.convert("RGB"), (128, 128))
    upright, turned = (torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in (canvas, canvas.rotate(-135)))
    truth = find.find_faces(nets, upright, find.FaceSettings(settled=True))[0].points - 256
    angle = math.radians(135)
    wanted = truth @ torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) + 256
    once, again = (find.find_faces(nets, turned, find.FaceSettings(settled=settled))[0] for settled in (False, True))
    errors = [float((face.points - wanted).norm(dim=1).mean() / (wanted[33] - wanted[263]).norm())
              for face in (once, again)]
    assert errors[1] < 0.02 and errors[1] < errors[0]
    assert find.read_again(nets, find.prepared(upright, nets.device), []) == []


def test_a_reading_that_is_lost_again_changes_nothing(nets, group, faces):
    blank = torch.zeros(3, *group.shape[1:])
    assert find.read_again(nets, blank, faces) == list(faces)


def face_at(x, y, side, presence=(20.0, 20.0, 20.0), angle=0.0):
    points = torch.tensor([[x, y], [x + side, y + side]]).float()
    return find.Face(points, torch.tensor(presence), torch.zeros(4), torch.tensor([0, 0, side, angle]), 0.9, 256, 0)


def test_one_face_is_kept_of_readings_of_the_same():
    good, bad, part, other = (face_at(0, 0, 10, (30, 31, 32)), face_at(1, 1, 10), face_at(2, 2, 3), face_at(9, 9, 10))
    assert find.distinct([bad, part, other, good]) == [good, other]


def test_turned_readings_must_be_sure_and_every_logit_counts():
    ones = torch.ones(5)
    candidates = detect.Candidates(ones, torch.zeros(5, 4), torch.zeros(5, 6, 2), ones, ones)
    presence = torch.tensor([[9.0, 9, 9], [9, 9, 9], [20, 20, 20], [20, -1, 20], [20, 20, 14]])
    second = torch.tensor([[0, 0, 1, math.radians(a)] for a in (40, 60, -170, 0, 60)])
    reading = mesh.Reading(torch.arange(5.0)[:, None, None].expand(5, 468, 2), presence, second, second)
    assert [int(face.points[0, 0]) for face in find.believed(candidates, reading)] == [0, 2]


def test_weighted_suppression_takes_the_mean_of_each_group():
    rows = torch.zeros(3, 16)
    rows[:, :4] = torch.tensor([[0, 0, 10, 10], [50, 50, 60, 60], [2, 0, 12, 10]])
    scores, means = detect.suppress(torch.tensor([0.6, 0.7, 0.9]), rows)
    assert scores.tolist() == pytest.approx([0.9, 0.7])
    assert means[:, :4].tolist() == [pytest.approx([1.2, 0, 11.2, 10]), [50, 50, 60, 60]]


@pytest.mark.parametrize("turn", range(4))
def test_points_go_back_from_a_turned_picture(turn):
    picture = torch.zeros(5, 7)
    picture[1, 4] = 1
    y, x = torch.rot90(picture, turn).nonzero()[0].tolist()
    assert detect.unturn(torch.tensor([x + 0.5, y + 0.5]), turn, 5, 7).tolist() == [4.5, 1.5]


def test_a_large_square_is_read_without_aliasing():
    """A checkerboard of single pixels, reduced by 8, is grey; a ramp keeps its places."""
    checks = torch.arange(512) % 2 * 2.0 - 1
    board = (checks[:, None] * checks[None]).expand(3, -1, -1)
    assert mesh.crop(board, torch.tensor([256.0, 256, 512, 0]), 64).abs().max() < 0.05
    ramp = torch.linspace(-1, 1, 512).expand(3, 512, -1)
    seen = mesh.crop(ramp, torch.tensor([256.0, 256, 256, 0]), 32)
    assert torch.allclose(seen[0, 0], torch.linspace(-1, 1, 512)[[131 + 8 * k for k in range(32)]] + 1 / 511, atol=2e-3)


# --- crop and paste-back ---------------------------------------------------------------------------------------------
def quad_at(x, y, side, degrees=0.0):
    angle = math.radians(degrees)
    half = torch.tensor([math.cos(angle), math.sin(angle)]) * side / 2
    return align.square_quad(torch.tensor([float(x), float(y)]), half)


def smooth(height=120, width=160):
    """A picture without sharp edges, whose values are not clamped."""
    x, y = torch.linspace(0, 3, width)[None], torch.linspace(0, 2, height)[:, None]
    return torch.stack([0.7 * (x + k).sin() * (y - k).cos() for k in range(3)])


def test_the_quad_of_an_upright_face_is_upright_and_a_square(faces):
    for face in faces:
        sides = (face.quad.roll(-1, 0) - face.quad).norm(dim=1)
        assert (sides / sides[0] - 1).abs().max() < 1e-4
        assert face.quad[0, 0] < face.quad[3, 0] and face.quad[0, 1] < face.quad[1, 1]
        down = face.quad[1] - face.quad[0]
        assert (face.quad.mean(0) - face.points.mean(0)).norm() < 0.15 * sides[0] and down[1] > abs(down[0])


def test_a_crop_of_whole_pixels_is_those_pixels():
    picture = smooth()
    assert (align.align(picture, quad_at(80, 60, 64), 64) - picture[:, 28:92, 48:112]).abs().max() < 1 / 127.5


@pytest.mark.parametrize("place", [(80, 60, 64), (75, 58, 70, 25), (80, 60, 64, 90), (20, 20, 64, -10)])
@pytest.mark.parametrize("size", [64, 128, 300])
def test_an_unchanged_crop_pasted_back_changes_nothing(place, size):
    """The last one leaves the picture: without padding, since FFHQ's blur begins inside."""
    picture, quad = smooth(), quad_at(*place)
    pasted = align.paste_back(picture, align.align(picture, quad, size, pad=False), quad)
    assert (pasted - picture).abs().max() < 2 / 255
    shares = align.shares_of(align.centres(0, 0, 160, 120), quad)
    outside = ((shares <= 0) | (shares >= 1)).any(-1)
    assert torch.equal(pasted[:, outside], picture[:, outside])


def test_a_changed_crop_replaces_the_middle_and_fades_out():
    picture, quad = smooth(), quad_at(80, 60, 80, 15)
    white = torch.ones(3, 32, 32)
    pasted = align.paste_back(picture, white, quad)
    shares = align.shares_of(align.centres(0, 0, 160, 120), quad)
    depth = torch.minimum(shares, 1 - shares).amin(-1)
    assert pasted[:, depth >= 0.1].min() > 1 - 1e-6 and torch.equal(pasted[:, depth <= 0], picture[:, depth <= 0])
    edge = pasted[0, (depth > 0.01) & (depth < 0.09)]
    assert edge.max() <= 1 and not (edge == 1).all()


def test_a_quad_beside_the_picture_is_pasted_nowhere():
    picture = smooth()
    assert torch.equal(align.paste_back(picture, torch.ones(3, 8, 8), quad_at(400, 60, 50)), picture)


def test_the_face_alone_is_pasted_inside_its_outline(nets, group, faces):
    picture, face = find.prepared(group, nets.device), faces[0]
    mask = align.face_mask(face.points, face.quad, 64)
    pasted = align.paste_back(picture, torch.ones(3, 64, 64), face.quad, mask=mask)
    changed = (pasted - picture).abs().amax(0) > 0.02
    nose, corner = face.points[1].long(), face.quad.mean(0) * 0.2 + face.quad[0] * 0.8
    assert changed[nose[1], nose[0]] and not changed[int(corner[1]), int(corner[0])]


@pytest.mark.parametrize(("way", "left"), [("whole", 0.05), ("border", 0.5)])
def test_matched_colours_are_nearer_to_the_pictures(way, left):
    picture, quad = smooth(), quad_at(80, 60, 64)
    strange = align.align(picture, quad, 64) * 0.5 + 0.3
    plain, matched = (align.paste_back(picture, strange, quad, align.PasteSettings(match_colour=how))
                      for how in ("none", way))
    assert (matched - picture).abs().mean() < left * (plain - picture).abs().mean()


def test_colours_matched_at_the_border_leave_the_middle():
    picture, quad = smooth(), quad_at(80, 60, 100)
    other = (align.align(picture, quad, 100) + 0.4).clamp(-1, 1)
    plain, matched = (align.paste_back(picture, other, quad, align.PasteSettings(match_colour=how))
                      for how in ("none", "border"))
    off, plain_off = ((x - picture).abs().mean(0) for x in (matched, plain))
    assert off[60, 33:38].max() < 0.5 * plain_off[60, 38] and off[60, 80] > 0.9 * plain_off[60, 80]


def noisy():
    return torch.rand(3, 120, 160, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("size", [32, 64, 300])
@pytest.mark.parametrize("way", align.COLOUR_MATCHES)
def test_an_unchanged_crop_of_any_picture_keeps_every_pixel(size, way):
    """Noise does not survive resampling; where the result is the crop, the picture's own pixels stay."""
    picture, quad = noisy(), quad_at(75, 58, 70, 25)
    crop = align.align(picture, quad, size)
    stored = ((crop + 1) * 127.5).round() / 127.5 - 1
    for result in (crop, stored):
        assert torch.equal(align.paste_back(picture, result, quad, align.PasteSettings(0.1, way), crop=crop), picture)


def test_only_what_was_changed_is_pasted():
    picture, quad = noisy(), quad_at(80, 60, 64)
    crop = align.align(picture, quad, 64)
    result = crop.clone()
    result[:, 20:30, 20:30] = 1
    pasted = align.paste_back(picture, result, quad, crop=crop)
    assert pasted[:, 50:56, 70:76].min() > 0.99
    assert torch.equal(pasted[:, 68:], picture[:, 68:]) and torch.equal(pasted[..., 88:], picture[..., 88:])


def test_outside_of_the_picture_is_its_reflection_and_ends_in_its_median():
    picture = smooth()
    quad = quad_at(0, 60, 100)
    aligned, bare = align.align(picture, quad, 100), align.align(picture, quad, 100, pad=False)
    assert (aligned[:, 30:70, 75:] - picture[:, 40:80, 25:50]).abs().max() < 2 / 127.5
    assert (bare[:, :, :45] - bare[:, :, :1]).abs().max() < 1e-4
    assert (aligned[:, :, 5] - aligned[:, :, 45]).abs().max() > 0.1
    striped = torch.full_like(picture, -0.5)
    striped[:, :, 45:75] = 1  # what is reflected to the outermost column
    assert (align.padded(striped, quad)[0][:, :, 0] + 0.5).abs().max() < 1e-4


def test_reflection_is_repeated_where_the_picture_is_small():
    line = torch.arange(4)
    assert line[align.mirrored(4, 3, 3)].tolist() == [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
    assert line[align.mirrored(4, 5, 0)].tolist() == [1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert line[align.mirrored(4, 5, 2, repeat_edge=True)].tolist() == [3, 3, 2, 1, 0, 0, 1, 2, 3, 3, 2]
    assert align.mirrored(1, 2, 2).tolist() == [0] * 5


@pytest.mark.parametrize("size", [1, 16])
def test_a_picture_of_one_pixel_can_be_aligned(size):
    assert align.align(torch.full((3, 1, 1), 0.5), quad_at(0, 0, 20), size).sub(0.5).abs().max() < 1e-3


def test_wrong_settings_are_refused():
    for feather in (0.0, 0.6):
        with pytest.raises(ValueError, match="feather"):
            align.PasteSettings(feather)
    with pytest.raises(ValueError, match="match_colour must be one of none, border, whole"):
        align.PasteSettings(match_colour="all")
    with pytest.raises(ValueError, match="size must be 1 pixel at least"):
        align.align(smooth(), quad_at(50, 50, 20), 0)


def test_share_outside():
    assert align.outside(quad_at(80, 60, 50), 120, 160) == 0
    assert align.outside(quad_at(0, 60, 50), 120, 160) == pytest.approx(0.5, abs=0.02)


def test_nothing_is_written_into_what_is_given(nets, group):
    before, picture = group.clone(), smooth()
    find.find_faces(nets, group)
    kept = picture.clone()
    align.paste_back(picture, torch.ones(3, 8, 8), quad_at(80, 60, 50))
    assert torch.equal(group, before) and torch.equal(picture, kept)
