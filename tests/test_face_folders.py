"""`atelier align`: the faces of a folder, their names and labels, and what is said of pictures that are left out."""

import pytest
import torch
from PIL import Image

from oneshot_atelier.cli import main
from oneshot_atelier.models.faces import find
from oneshot_atelier.models.faces.crops import Choice
from oneshot_atelier.models.faces.networks import load_faces
from oneshot_atelier.train import face_folders, labels
from oneshot_atelier.train.data import read_whole, to_unit


@pytest.fixture
def photos(tmp_path, root):
    """A picture of five faces in a folder of its own, a portrait, a grey picture, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "party").mkdir(parents=True)
    for source, target in (("wall", "party/wall"), ("face_1", "one")):
        with Image.open(root / "workflows" / "inputs" / f"{source}.png") as stored:
            stored.save(folder / f"{target}.png")
    Image.new("RGB", (90, 60), (128, 128, 128)).save(folder / "grey.png")
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n")
    labels.write(folder, {"one.png": ("adult",)})
    return folder


def test_the_largest_face_of_every_picture(photos, tmp_path, capsys, caplog):
    out = tmp_path / "out"
    with caplog.at_level("INFO"):
        assert main.main(["align", str(photos), "--out", str(out), "--size", "96", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"2 faces written to {out}; pictures left out: 1\n"
    assert sorted(path.name for path in out.iterdir()) == ["labels.csv", "one.png", "party_wall.png"]
    assert labels.of_pictures([out / "one.png"]) == {out / "one.png": ("adult",)}
    assert "left out: No face found in picture grey.png." in caplog.text
    assert "cannot be read and are left out: torn.png" in caplog.text
    faces = [to_unit(read_whole(path)) for path in sorted(out.glob("*.png"))]
    assert all(face.shape == (3, 96, 96) and abs(find.find_faces(load_faces(), face)[0].angle) < 0.1 for face in faces)


def test_all_faces_have_numbers_and_one_can_be_asked_for(photos, tmp_path, caplog):
    nets, every, second = load_faces(), tmp_path / "every", tmp_path / "second"
    search = find.FaceSettings(any_direction=True, settled=True)
    config = face_folders.AlignConfig(64, Choice("all"), search=search)
    assert face_folders.align_folder(photos / "party", every, nets, config) == (5, 0)
    assert sorted(path.name for path in every.iterdir()) == [f"wall_{k}.png" for k in range(5)]
    config = face_folders.AlignConfig(64, Choice("by index", 1), search=search)
    assert face_folders.align_folder(photos, second, nets, config) == (1, 2)
    assert torch.equal(read_whole(second / "party_wall.png"), read_whole(every / "wall_1.png"))
    assert "Picture one.png has 1 face (number 0); number 1 was asked for" in caplog.text


def test_wrong_options_are_refused(photos, tmp_path, caplog):
    for option, words in (("--size=8", "--size is 8; take 16 to 2048"), ("--index=-1", "--index is -1"),
                          ("--threshold=2", "threshold must be between 0 and 1")):
        caplog.clear()
        assert main.main(["align", str(photos), "--out", str(tmp_path / "out"), option]) == 1
        assert words in caplog.text


def test_whole_pictures_are_read_upright_and_on_white(tmp_path):
    picture = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    picture.save(tmp_path / "clear.png")
    assert (read_whole(tmp_path / "clear.png") == 255).all() and read_whole(tmp_path / "clear.png").shape == (3, 4, 6)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "lying.jpg", exif=exif)
    assert read_whole(tmp_path / "lying.jpg").shape == (3, 6, 4)


def test_the_face_nearest_to_a_point(photos, tmp_path, caplog, capsys):
    align = ["align", str(photos / "party"), "--size", "64", "--device", "cpu", "--faces"]
    assert main.main([*align, "all", "--out", str(tmp_path / "all")]) == 0
    picture = to_unit(read_whole(photos / "party" / "wall.png"))
    faces = find.find_faces(load_faces(), picture, find.FaceSettings(settled=True))
    assert len(faces) > 2
    for point in ("0,0", "640,400"):
        x, y = map(float, point.split(","))
        apart = [float((face.quad.mean(0) - torch.tensor([x, y])).norm()) for face in faces]
        out = tmp_path / point
        assert main.main([*align, "nearest point", "--point", point, "--out", str(out)]) == 0
        wanted = tmp_path / "all" / f"wall_{apart.index(min(apart))}.png"
        assert (out / "wall.png").read_bytes() == wanted.read_bytes()
    for more, words in ((["largest", "--point", "1,2"], "need each other"), (["nearest point"], "need each other"),
                        (["nearest point", "--point", "1"], "write X,Y")):
        caplog.clear()
        assert main.main([*align, *more, "--out", str(tmp_path / "none")]) == 1 and words in caplog.text


def test_what_the_command_advises_it_can_do(photos, tmp_path, caplog):
    assert main.main(["align", str(photos), "--out", str(tmp_path / "out"), "--size", "64", "--device", "cpu"]) == 0
    (said,) = [line for line in caplog.messages if "grey.png" in line]
    assert "Give --any-direction for rotated pictures, --threshold 0.3 for drawings, or use Detect & Align" in said
