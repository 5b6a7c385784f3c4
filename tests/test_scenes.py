"""The rendered domain: the same picture for the same seed, rays that meet what stands there, files that are kept."""

import numpy as np
import pytest
from PIL import Image

from oneshot_atelier.tools import scenes
from oneshot_atelier.tools.scenes import picture, render_folder
from oneshot_atelier.tools.scenes.solids import FAR, Ball, array, entered, gable, prism, reached


def pixels(seed, number, px=32):
    return np.asarray(picture(seed, number, px)).astype(float)


def rays(*directions):
    return [np.array(part, np.float32) for part in zip(*directions)]


def nothing(points, face):
    return points


PLACE = (array(1, 0, 5), 0.0)


def test_a_ray_meets_a_box_a_roof_and_a_ball_where_they_are():
    origin = [np.float32(v) for v in (1, 1, 0)]
    ahead = rays((0, 0, 1), (0, 1, 0), (1, 0, 0))
    box = prism(4, (2, .5), (0, 3), 1, PLACE, nothing)
    at, face = entered(box, origin, ahead)
    assert at.tolist() == [pytest.approx(4.5), FAR, FAR] and face[0] == 0
    back = entered(box, [np.float32(v) for v in (1, 1, 9)], rays((0, 0, -1)))
    assert back[0].tolist() == [pytest.approx(3.5)] and back[1][0] == 2
    ridge = gable(2, 1, (0, 2), PLACE, nothing)  # at y = 1 its slopes are half a unit from its middle
    assert entered(ridge, origin, ahead)[0][0] == pytest.approx(4.5)
    tip = prism(6, (1, 1), (0, 2), 0, PLACE, nothing)
    assert entered(tip, [np.float32(v) for v in (1, 1.9, 0)], ahead)[0][0] == pytest.approx(4.95, abs=0.01)
    ball = Ball(array(1, 1, 6), array(9, 9, 2), (.1, .2, .3))
    assert reached(ball, origin, ahead).tolist() == [pytest.approx(4), FAR, FAR]


def test_a_turned_box_is_as_far_as_its_corner():
    turned = prism(4, (1, 1), (0, 2), 1, (array(0, 0, 5), np.pi / 4), nothing)
    at, _ = entered(turned, [np.float32(v) for v in (0, 1, 0)], rays((0, 0, 1)))
    assert at[0] == pytest.approx(5 - 2 ** .5, abs=1e-4)


def test_a_picture_depends_on_seed_and_number_alone():
    assert np.array_equal(pixels(3, 5), pixels(3, 5))
    assert len({pixels(seed, number).tobytes() for seed in (0, 1) for number in (0, 1, 2)}) == 6
    large = Image.fromarray(pixels(3, 5, 64).astype(np.uint8)).resize((32, 32), Image.Resampling.BOX)
    assert np.abs(pixels(3, 5) - np.asarray(large).astype(float)).mean() < 12, "another size shows the same scene"


def test_the_domain_varies_and_shows_something_everywhere():
    made = np.stack([pixels(0, number) for number in range(24)])
    colours = made.mean((1, 2))
    assert (colours.std(0) > 18).all(), "seasons, weather and times of day"
    assert (made.std((1, 2, 3)) > 20).all(), "no picture is flat"
    assert (np.abs(made - made.mean(0)).mean((0, 3)) > 8).mean() > 0.95, "no part is the same in all"


def test_files_are_kept_and_the_missing_ones_made(tmp_path):
    assert render_folder(tmp_path, 3, seed=4, size=16) == 3
    first, kept = sorted(tmp_path.iterdir())[:2]
    whole = first.read_bytes()
    first.unlink()
    Image.new("RGB", (16, 16)).save(kept)
    other = kept.read_bytes()
    assert render_folder(tmp_path, 4, seed=4, size=16, processes=2) == 2
    assert first.read_bytes() == whole and kept.read_bytes() == other and len(list(tmp_path.iterdir())) == 4


def test_the_command_refuses_what_it_cannot_make(tmp_path, caplog):
    assert scenes.main([str(tmp_path / "out"), "--count", "2", "--size", "16", "--processes", "1"]) == 0
    assert len(list((tmp_path / "out").glob("scene_0_*.png"))) == 2
    assert scenes.main([str(tmp_path / "no"), "--size", "8"]) == 1 and "--size takes 16" in caplog.text
    assert not (tmp_path / "no").exists()
