"""The golden faces against ours: networks, candidates, faces, crops and paste-back; tolerances stand in the file.

The pictures, passes and sizes are the file's (ATELIER_GOLDEN=FOLDER takes another set). A set without faces takes the
public ones. Its form is its own: docs/faces.md.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from oneshot_atelier.models.faces import align, detect, find
from oneshot_atelier.models.faces.networks import load_faces
from oneshot_atelier.tests import golden_cases as golden

FOLDER = golden.FOLDER if golden.present(["faces"]) else golden.PUBLIC
DATA = json.loads((FOLDER / "faces.json").read_text(encoding="utf-8"))
ARRAYS = load_file(FOLDER / "faces.safetensors")
TOLERANCES, PICTURES = DATA["tolerances"], DATA["pictures"]
FACES = [(name, k) for name, row in PICTURES.items() for k in range(len(row["faces"]))]
nets = load_faces()
found: dict[str, list[find.Face]] = {}


def picture(name):
    return find.prepared(ARRAYS[name].permute(2, 0, 1), nets.device)


def faces_of(name):
    """What our rules find with no more to say than whether turns are looked at."""
    if name not in found:
        turned = any(turn for _, turn in PICTURES[name]["passes"])
        found[name] = find.find_faces(nets, picture(f"{name}.picture"), find.FaceSettings(any_direction=turned))
    return found[name]


def off(ours, wanted):
    return (ours.double() - torch.as_tensor(wanted).double()).abs().max()


def test_the_networks_raw_outputs():
    scores, boxes = (out[0] for out in nets.detector(picture("detector.input")[None]))
    wanted = ARRAYS["detector.scores"]
    assert ((scores - wanted).abs() <= 1e-3 + 2e-5 * wanted.abs()).all()
    assert off(boxes, ARRAYS["detector.boxes"]) <= TOLERANCES["boxes_raw"]
    points, presence = nets.mesh(picture("landmark.input")[None])
    assert off(points[0], ARRAYS["landmark.points"]) <= TOLERANCES["points_raw"]
    assert off(presence, ARRAYS["landmark.presence"]) <= TOLERANCES["presence_raw_on_landmark_input"]


def test_anchors_and_decoding():
    size = len(ARRAYS["detector.input"])
    assert off(detect.anchors(size), ARRAYS["detector.anchors"]) <= TOLERANCES["anchors"]
    assert off(detect.decode(ARRAYS["detector.boxes"], size), ARRAYS["detector.decoded"]) <= TOLERANCES["decoded"]


def test_the_letterbox():
    told = DATA["detector_letterbox"]
    square, offset, scale = detect.letterbox(picture(f"{told['picture']}.picture"), told["size"])
    every = told["size"] // ARRAYS["detector.float_input_check"].shape[-1]
    ours = (square[:, ::every, ::every] + 1) * 127.5
    assert off(ours, ARRAYS["detector.float_input_check"]) <= TOLERANCES["letterbox"]
    assert offset.tolist() == [told["offset_x"], told["offset_y"]]
    assert scale.tolist() == pytest.approx([told["scale_x"], told["scale_y"]])


@pytest.mark.parametrize("name", PICTURES)
def test_candidates_of_every_pass(name):
    score = DATA["detector"]["score_threshold"]
    passes = [detect.Pass(size, turn, score) for size, turn in PICTURES[name]["passes"]]
    ours = detect.Candidates.of([detect.detect(nets.detector, picture(f"{name}.picture"), one) for one in passes])
    wanted = PICTURES[name]["candidates"]
    assert list(zip(ours.sizes.tolist(), ours.turns.tolist())) == [(row["size"], row["turn"]) for row in wanted]
    assert off(ours.scores, [row["score"] for row in wanted]) <= TOLERANCES["candidate_score"]
    assert off(ours.boxes, [row["box"] for row in wanted]) <= TOLERANCES["candidate_px"]
    assert off(ours.points, [row["keypoints"] for row in wanted]) <= TOLERANCES["candidate_px"]


@pytest.mark.parametrize("name", PICTURES)
def test_as_many_faces_are_believed(name):
    assert len(faces_of(name)) == len(PICTURES[name]["faces"])


@pytest.mark.parametrize(("name", "k"), FACES)
def test_faces(name, k):
    ours, wanted = faces_of(name)[k], PICTURES[name]["faces"][k]
    assert (ours.size, ours.turn) == (wanted["size"], wanted["turn"])
    assert abs(ours.score - wanted["score"]) <= TOLERANCES["candidate_score"]
    assert off(ours.presence, wanted["presence_raw"]) <= TOLERANCES["quality"]
    assert abs(ours.quality - wanted["quality"]) <= TOLERANCES["quality"]
    for roi, expected in ((ours.first_roi, wanted["roi1"]), (ours.roi, wanted["roi2"])):
        assert off(roi[:3], expected[:3]) <= TOLERANCES["roi_px"]
        assert off(roi[3], expected[3]) <= TOLERANCES["roi_angle"]
    assert off(ours.quad, wanted["quad"]) <= TOLERANCES["quad_px"]
    assert off(ours.points, ARRAYS[f"{name}.landmarks.{k}"]) <= TOLERANCES["landmarks_px"]


CROPS = [(name, key) for name, row in PICTURES.items() for key in ("aligned", "aligned32") if key in row]


@pytest.mark.parametrize(("name", "key"), CROPS)
def test_aligned_pictures(name, key):
    told, wanted = PICTURES[name][key], ARRAYS[f"{name}.{key}"].permute(2, 0, 1)
    quad, size = faces_of(name)[told["face"]].quad, told["output_size"]
    assert told["transform_size"] == align.OVERSAMPLING * size
    small, inner = align.shrunk(picture(f"{name}.picture"), quad, size)
    assert round(align.side_of(quad) / align.side_of(inner)) == told.get("shrink", 1)
    assert (align.padded(*align.cut(small, inner))[0].shape != align.cut(small, inner)[0].shape) == told["padded"]
    error = ((align.align(picture(f"{name}.picture"), quad, size) + 1) * 127.5 - wanted).abs()
    assert error.mean() <= TOLERANCES[f"{key}_mean_abs"]
    if key == "aligned":
        assert error.flatten().quantile(0.99) <= TOLERANCES["aligned_p99"]


def test_paste_back():
    told = DATA["paste"]
    name, face = told["picture"], faces_of(told["picture"])[told["face"]]
    assert told["source"] == f"255 - {name}.aligned"
    result = -picture(f"{name}.aligned")
    ours = align.paste_back(picture(f"{name}.picture"), result, face.quad, align.PasteSettings(told["feather"]))
    error = (ours + 1) * 127.5 - ARRAYS[f"{name}.pasted"].permute(2, 0, 1)
    assert error.abs().max() <= TOLERANCES["pasted"]
