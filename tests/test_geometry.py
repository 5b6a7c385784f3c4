"""The geometry of faces: what a reference's landmarks say, in closed form, and what the mesh reads in bent pictures."""
from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file

from oneshot_atelier.models import loading, warp
from oneshot_atelier.models.checkpoints import CheckpointError, store
from oneshot_atelier.models.faces import geometry, matching
from oneshot_atelier.models.faces.geometry import FaceGeometry, geometry_of, similarity
from oneshot_atelier.models.faces.networks import load_faces
from oneshot_atelier.train.data import read_whole, to_unit


@pytest.fixture(scope="module")
def nets():
    return load_faces()


@pytest.fixture(scope="module")
def portrait(root):
    return to_unit(read_whole(root / "workflows" / "inputs" / "face_4.png"))


@pytest.fixture(scope="module")
def found(nets, portrait):
    return geometry.landmarks(nets, portrait)


@pytest.fixture(scope="module")
def mean():
    return geometry.mean_face()


def long_face(points: torch.Tensor, much: float = 0.2) -> torch.Tensor:
    """A longer and narrower face, with a larger jaw."""
    x, y = points.unbind(1)
    return torch.stack([x * (1 - much / 2) + much * x * torch.sigmoid(4 * y), y * (1 + much)], 1)


def moved(points: torch.Tensor, degrees: float, scale: float) -> torch.Tensor:
    turn = torch.polar(torch.tensor(scale).double(), torch.tensor(math.radians(degrees)).double())
    return geometry.Similarity(turn, torch.tensor(40 - 7j, dtype=torch.complex128))(points)


# --- similarities -----------------------------------------------------------------------------------------------------
def test_a_similarity_is_found_exactly(mean):
    away = similarity(mean, moved(mean, 30, 50.0))
    assert away.scale == pytest.approx(50, rel=1e-6)
    assert torch.allclose(away(mean), moved(mean, 30, 50.0), atol=1e-4)
    assert torch.allclose(away.vectors(mean), away(mean) - away(torch.zeros_like(mean)), atol=1e-4)
    with pytest.raises(ValueError, match="all in one place"):
        similarity(torch.ones(5, 2), mean[:5])


def test_a_similarity_is_the_best_one(mean):
    target = long_face(mean)
    best = similarity(mean, target)
    error = (best(mean) - target).square().sum()
    for turn, move in ((1.01, 0), (1 / 1.01, 0), (1 + 0.01j, 0), (1, 0.01), (1, 0.01j)):
        other = geometry.Similarity(best.turn * turn, best.move + move)
        assert (other(mean) - target).square().sum() > error


def test_a_face_in_its_own_frame_is_level_in_the_middle_and_of_size_1(mean):
    points = geometry.to_own_frame(moved(mean, -25, 80.0))(moved(mean, -25, 80.0))
    assert torch.allclose(points, mean, atol=1e-5)
    assert torch.allclose(points.mean(0), torch.zeros(2), atol=1e-5)
    assert points.square().sum(1).mean() == pytest.approx(1)
    assert points[geometry.LEFT_CORNER, 1] == pytest.approx(float(points[geometry.RIGHT_CORNER, 1]), abs=1e-5)


# --- geometries -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("degrees, scale", [(0, 1.0), (30, 50.0), (-120, 0.1)])
def test_place_size_and_turn_of_both_faces_have_no_part(mean, degrees, scale):
    mean = mean.double()
    known = geometry_of(mean, long_face(mean))
    assert known.size > 0.03
    for plain, deformed in ((mean, moved(long_face(mean), degrees, scale)),
                            (moved(mean, degrees, scale), long_face(mean))):
        found = geometry_of(plain, deformed)
        assert torch.allclose(found.points, known.points, atol=1e-5)
        assert torch.allclose(found.shift, known.shift, atol=1e-5)


def test_the_same_face_has_no_geometry(mean):
    assert geometry_of(mean, moved(mean, 20, 3.0)).size < 1e-6


def test_targets_are_the_strength_times_the_shift_in_the_face_s_frame(mean):
    known, face = geometry_of(mean, long_face(mean)), moved(mean, 30, 50.0)
    assert torch.equal(known.targets(face, 0.0), face)
    whole = moved(mean + known.shift, 30, 50.0)
    assert torch.allclose(known.targets(face, 1.0), whole, atol=1e-3)
    assert torch.allclose(known.targets(face, 0.5), (face + whole) / 2, atol=1e-3)
    assert torch.allclose(known.targets(face, 2.0), 2 * whole - face, atol=1e-3)


def test_what_is_symmetric_stays_and_the_rest_goes(nets, mean):
    mirror = nets.mesh.mirror
    crooked = FaceGeometry(mean, torch.randn(468, 2, generator=torch.Generator().manual_seed(0)))
    once = geometry.symmetric(crooked, mirror)
    assert torch.allclose(geometry.mirrored(once.shift, mirror), once.shift, atol=1e-6)
    assert torch.allclose(geometry.symmetric(once, mirror).shift, once.shift, atol=1e-6)
    known = geometry_of(mean, long_face(mean))
    assert torch.allclose(geometry.symmetric(known, mirror).shift, known.shift, atol=1e-5)


def test_the_opening_of_the_mouth_is_taken_out(mean):
    open_mouth = mean + 0.3 * geometry.of_mean_face("opening")
    whole = geometry_of(mean, open_mouth)
    assert geometry.opened(whole.shift) == pytest.approx(0.3, abs=0.03)
    shut = geometry.without_opening(whole)
    assert abs(float(geometry.opened(shut.shift))) < 1e-4 and shut.size < 0.15 * whole.size
    stretched = torch.stack([torch.zeros(468), 0.1 * mean[:, 0].abs()], 1)
    assert geometry.without_opening(FaceGeometry(mean, stretched)).shift[10] == pytest.approx(stretched[10], abs=2e-2)


def test_the_mean_face_is_symmetric_upright_and_closed(nets, mean):
    assert mean.shape == (468, 2) and torch.allclose(geometry.mirrored(mean, nets.mesh.mirror), mean, atol=1e-5)
    assert mean[10, 1] < mean[geometry.UPPER_LIP, 1] < mean[152, 1], "forehead, mouth, chin"
    opening = geometry.of_mean_face("opening")
    assert geometry.opened(opening) == pytest.approx(1, abs=1e-4) and opening[152, 1] > 0.2, "the chin goes down, too"


# --- pictures ---------------------------------------------------------------------------------------------------------
def test_a_picture_that_follows_is_read_with_the_strength_times_the_geometry(nets, portrait, found, mean):
    """The mesh reads 0.6 to 0.9 of a deformation when it is straightened, and less than that at once."""
    known = geometry_of(mean, long_face(mean))
    gains = {}
    for strength in (0.5, 1.0):
        bent = warp.bent(portrait, geometry.following(portrait, found.points, known, strength))
        first = geometry.landmarks_in(nets, bent, found.square)
        wanted = geometry_of(found.points, known.targets(found.points, strength)).shift
        read = [geometry_of(found.points, one.points).shift for one in
                (first, geometry.straightened(nets, bent, first, found.points))]
        gains[strength] = [float((shift * wanted).sum() / wanted.square().sum()) for shift in read]
        assert first.sure
    for first, again in gains.values():
        assert 0.1 < first < again and 0.55 < again < 1.15, gains


def test_a_turned_and_scaled_reference_gives_the_same_geometry(nets, portrait, found, mean):
    """Read anew in a picture that was turned by a quarter, and in one of twice the size."""
    reference = warp.bent(portrait, geometry.following(portrait, found.points, geometry_of(mean, long_face(mean)), 1.0))
    large = torch.nn.functional.interpolate(reference[None], scale_factor=2, mode="bicubic").clamp(-1, 1)[0]
    known, *others = (geometry_of(mean, geometry.landmarks(nets, picture).points)
                      for picture in (reference, reference.rot90(1, (1, 2)), large))
    for other in others:
        assert (other.shift - known.shift).norm(dim=1).mean() < 0.25 * known.size


def test_a_small_face_that_the_mesh_is_not_sure_of_is_none(nets, portrait):
    blank = torch.zeros(3, 128, 128)
    assert geometry.landmarks(nets, blank) is None
    assert geometry.landmarks(nets, portrait).sure


def test_landmarks_are_in_pixels_of_the_picture_itself(nets, portrait, found):
    small = torch.nn.functional.interpolate(portrait[None], scale_factor=0.5, mode="area")[0]
    assert (geometry.landmarks(nets, small).points * 2 - found.points).norm(dim=1).mean() < 2, "px of 256"
    again = geometry.landmarks_in(nets, portrait, found.square)
    assert again.sure and (again.points - found.points).norm(dim=1).mean() < 2


# --- places that look alike -------------------------------------------------------------------------------------------
class Colours:
    """A structure network of 16 x 16 tokens, each its place's colour; `before` tokens stand before them."""

    def __init__(self, before: int = 0) -> None:
        self.before = before

    def state_dict(self):
        return {}

    def keys(self, pictures):
        tokens = torch.nn.functional.adaptive_avg_pool2d(pictures, 16).flatten(2).mT
        return torch.cat([tokens[:, :self.before], tokens], 1)


@pytest.mark.parametrize("before", [0, 1])
def test_places_are_found_again_where_they_went(before):
    picture = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0)).repeat_interleave(8, 1)
    picture = picture.repeat_interleave(8, 2)
    plain, away = matching.mutual_matches(Colours(before), picture, picture.roll((16, 8), (1, 2)))
    went = (away - plain + 64) % 128 - 64
    assert len(plain) > 200 and (went == torch.tensor([8.0, 16.0])).all(1).float().mean() > 0.99


def test_matches_that_do_not_fit_the_others_are_left_out(found):
    plain = found.points[::10]
    deformed = moved(plain, 10, 1.2)
    deformed[3] += 200
    kept, others = matching.consistent(plain, deformed, found.points)
    assert len(kept) == len(plain) - 1 and not (kept == plain[3]).all(1).any()
    with pytest.raises(ValueError, match="only 5 places"):
        matching.consistent(plain[:5], deformed[4:9], found.points)


def test_a_geometry_of_matches_is_that_of_the_landmarks(found, mean):
    known = geometry_of(found.points, geometry_of(mean, long_face(mean)).targets(found.points, 1.0))
    away = moved(known.targets(found.points, 1.0), 15, 0.8)
    made = matching.geometry_of_matches(found.points[::6], away[::6], found.points, 256, "by hand",
                                        geometry.STIFFNESS)
    assert made.origin == "by hand" and (made.shift - known.shift).norm(dim=1).mean() < 0.25 * known.size
    crossed = found.points[::6].flip(0)
    with pytest.raises(ValueError, match="by hand shift the landmarks by .* more than any face is deformed"):
        matching.geometry_of_matches(found.points[::6], crossed, found.points, 256, "by hand", geometry.STIFFNESS)
    with pytest.raises(ValueError, match="no square raster"):
        matching.token_places(200)


# --- files ------------------------------------------------------------------------------------------------------------
def test_a_geometry_is_saved_and_loaded(tmp_path, mean):
    known = geometry_of(mean, long_face(mean), "landmarks")
    again = loading.load_geometry(loading.save_geometry(tmp_path / "a.safetensors", known))
    assert torch.equal(again.points, known.points) and torch.equal(again.shift, known.shift)
    assert again.origin == "landmarks"


BAD = {"missing": ({"shift": None}, "not those of a geometry"),
       "misshapen": ({"shift": torch.zeros(467, 2)}, "not those"),
       "of 16 bit": ({"shift": torch.zeros(468, 2).half()}, "not those"),
       "superfluous": ({"more": torch.zeros(1)}, "not those"),
       "far": ({"shift": torch.full((468, 2), 1e6)}, "not finite, or farther"),
       "in one place": ({"points": torch.zeros(468, 2)}, "all in one place")}


@pytest.mark.parametrize("case", BAD)
def test_damaged_geometries_are_refused(tmp_path, mean, case):
    change, words = BAD[case]
    tensors = {"points": mean, "shift": mean * 0.1, **change}
    path = store.save(tmp_path / "a.safetensors", {k: v for k, v in tensors.items() if v is not None}, "face_geometry",
                      {}, {"origin": ""}, None)
    with pytest.raises(CheckpointError, match=words):
        loading.load_geometry(path)


def test_files_of_other_kinds_and_damaged_words_are_refused(tmp_path, mean):
    tensors = {"points": mean, "shift": mean * 0.1}
    path = store.save(tmp_path / "a.safetensors", tensors, "face_geometry", {}, {"origin": ["x"]}, None)
    with pytest.raises(CheckpointError, match="description is damaged"):
        loading.load_geometry(path)
    other = store.save(tmp_path / "b.safetensors", {"z": torch.ones(1, 4)}, "direction", {}, {"names": ["a"]}, None)
    with pytest.raises(CheckpointError, match="a direction of semantic codes; load it with the Load Direction node"):
        loading.load_geometry(other)
    foreign = tmp_path / "c.safetensors"
    save_file(tensors, foreign)
    with pytest.raises(CheckpointError):
        loading.load_geometry(foreign)
