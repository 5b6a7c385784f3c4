"""The real server runs every shipped workflow, reduced (see shipped.py), and says what is wrong with bad input."""
from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from oneshot_atelier.cli.client import Client, NodeFailed, PromptRejected, Result, RunError
from oneshot_atelier.models import loading
from oneshot_atelier.tests import tiny_models
from oneshot_atelier.tests.server import shipped
from oneshot_atelier.tests.server.one_page import Told
from oneshot_atelier.tests.server.shipped import MAIN, NAMES, reduced
from oneshot_atelier.tools import demo as make_demo
from oneshot_atelier.tools.comfy import ComfyServer
from oneshot_atelier.tools.graphs import node_of

PX, INPUT = (128, 128), (256, 256)
CURVE = (768, 384)
TABLE = (865, 113)
EXPECTED = {  # prefix of SaveImage -> how many pictures of which size
    "osasis_demo": {"atelier_demo/input": (4, INPUT), "atelier_demo/style": (1, INPUT), "atelier_demo/twin": (1, PX),
                    "atelier_demo/loss": (1, CURVE), "atelier_demo/result": (4, PX),
                    "atelier_demo/result_no_spn": (4, PX)},
    "osasis_levels": {f"atelier/levels_{mix}": (2, PX)
                      for mix in ("content_only", "from_32", "from_16", "style_only", "swapped")},
    "osasis_random_faces": {"atelier/random_face": (2, PX)},
    "osasis_reconstruct": {"atelier/reconstructed": (4, PX), "atelier/by_density": (4, INPUT),
                           "atelier/density": (1, (640, 360))},
    "osasis_stylize": {"atelier/stylized": (4, PX), "atelier/stylized_photos": (4, INPUT)},
    "osasis_sweeps": {"atelier/sweep_t0": (1, (400, 287)), "atelier/sweep_spn": (1, (532, 287)),
                      "atelier/sweep_codes": (1, (897, 294)), "atelier/sweep_style_strength": (1, (532, 287)),
                      "atelier/sweep_colours": (1, (532, 287))},
    "osasis_twins": {"atelier/twins": (1, (268, 155)), "atelier/twins_results": (1, (268, 287)),
                     "atelier/twins_blend": (1, (400, 287))},
    "geometry": {"atelier/geometry_osasis": (1, (532, 287)), "atelier/geometry_mmfs": (1, (532, 287)),
                 "atelier/geometry_twin": (1, (268, 287))},
    "osasis_words": {f"atelier/words_{what}": (1, (400, height)) for what, height in (
        ("snapshots", 287), ("levels", 287), ("between", 155))},
    "osasis_text_edit": {f"atelier/text_edit{part}": (1, (400, 551)) for part in ("", "_stylized")},
    "osasis_attribute_edit": {"atelier/attribute_edit": (1, (532, 551))},
    "mmfs_sweeps": {"atelier/sweep_strength": (1, (400, 287)), "atelier/sweep_projection": (1, (268, 287))},
    "mmfs_photo": {"atelier/mmfs_photo_faces": (5, PX), "atelier/mmfs_photo": (1, (640, 400))},
    "mmfs_video": {},  # a film, see below
    "mmfs_random": {"atelier/mmfs_styles": (4, PX)} | {
        f"atelier/mmfs_{what}": (3, PX) for what in ("a", "b", "between", "texture")},
    "mmfs_measure": {"atelier/measured": (3, PX)},
    "evaluation_table": {"atelier/evaluation_table": (1, TABLE)},
    **{f"mmfs_{kind}_shot": {f"atelier/mmfs_{kind}_shot_loss": (1, CURVE)} | {
        f"atelier/mmfs_{kind}_shot{part}": (3, PX) for part in ("_before", "_half", "")} for kind in ("one", "zero")},
    "mmfs_train_stages": {
        "atelier/mmfs_art": (16, PX), "atelier/mmfs_stage1": (16, PX), "atelier/mmfs_stage2": (16, PX),
        "atelier/mmfs_mapping": (12, PX)} | {f"atelier/mmfs_{stage}_loss": (1, CURVE)
                                             for stage in ("stage1", "stage2", "mapping")}}

Pictures = dict[str, list[np.ndarray]]


@pytest.fixture(scope="module")
def demo(client: Client) -> tuple[Result, Result]:
    """Two runs of the main workflow; the style it saves is what the others load.

    Its fine-tune has a seed and a name of its own: the page's test runs the same graph on this server, which would
    otherwise have it in its cache.
    """
    graph = reduced(shipped.shipped(MAIN))
    graph[node_of(graph, "AtelierOSASISFineTune")]["inputs"] |= {"seed": 7, "name": "demo_tested"}
    return run_twice(client, graph)


def run_twice(client: Client, graph: Mapping) -> tuple[Result, Result]:
    return client.run(graph, timeout=300), client.run(graph, timeout=60)


def saved(client: Client, graph: Mapping, result: Result) -> Pictures:
    """What every SaveImage node saved, by its prefix."""
    return {entry["inputs"]["filename_prefix"]:
            [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in client.images(result, node)]
            for node, entry in graph.items() if entry["class_type"] == "SaveImage"}


def check_pictures(name: str, pictures: Pictures) -> None:
    found = {prefix: (len(images), images[0].shape[1::-1]) for prefix, images in pictures.items()}
    assert found == EXPECTED[name]
    for prefix, images in pictures.items():
        assert len({image.shape for image in images}) == 1, prefix
        assert all(image.std() > 5 for image in images), f"{prefix}: a picture of one colour"
        assert len({image.tobytes() for image in images}) == len(images), f"{prefix}: the same picture twice"


def check_runs(name: str, client: Client, first: Result, second: Result) -> None:
    graph = reduced(shipped.shipped(name))
    assert set(first.ran) | first.cached == set(graph)
    check_pictures(name, saved(client, graph, first))
    assert second.ran == [] and second.cached == set(graph)


# --- the workflows run ---------------------------------------------------------------------------------------------
def test_the_main_workflow_runs_and_its_second_run_is_cached(client: Client, demo: tuple[Result, Result]) -> None:
    check_runs(MAIN, client, *demo)
    pictures = saved(client, reduced(shipped.shipped(MAIN)), demo[0])
    spn, without = pictures["atelier_demo/result"], pictures["atelier_demo/result_no_spn"]
    assert all((a != b).any() for a, b in zip(spn, without, strict=True))


def test_make_demo_lays_it_out(server: ComfyServer, demo: tuple[Result, Result], tmp_path: Path) -> None:
    """`make demo`'s first sheet, of the run that ComfyUI has cached."""
    make_demo.check_pack(server)
    reducing = SimpleNamespace(client=shipped.Reducing(server.url))
    sheet = make_demo.run_graphs(reducing, list(make_demo.GRAPHS), shipped.INPUTS, tmp_path)
    with Image.open(sheet) as drawn:
        assert drawn.width == 8 + 264 * len(make_demo.COLUMNS) and drawn.height > 4 * 264
    wanted = {prefix.removeprefix(make_demo.PREFIX): count for prefix, (count, _) in EXPECTED[MAIN].items()}
    assert {path.name for path in tmp_path.iterdir() if path != sheet} == {
        f"{MAIN}_{column}_{k:02d}.png" for column, count in wanted.items() for k in range(1, count + 1)}


def test_the_fine_tune_shows_itself(demo: tuple[Result, Result]) -> None:
    first, node = demo[0], node_of(shipped.shipped(MAIN), "AtelierOSASISFineTune")
    steps = [event.data["value"] for event in first.of_kind("progress") if event.data["node"] == node]
    assert steps == sorted(steps) and steps[-1] == 10  # two iterations of five steps
    assert any(event.data["node"] == node and "iteration 2 of 2" in event.data["text"]
               for event in first.of_kind("text"))
    assert first.of_kind("preview"), "no live preview"


def test_the_saved_style_is_on_disk_and_holds_its_settings(server: ComfyServer, demo: tuple[Result, Result]) -> None:
    path = server.base / "models" / "osasis" / "demo_poster.safetensors"
    style = loading.load_style(path)
    assert style.spn and style.z_style is not None and style.style_image.shape == (3, *PX)
    assert style.settings["iterations"] == 2 and style.settings["batch"] == 1
    node = node_of(shipped.shipped(MAIN), "AtelierSaveOSASISStyle")
    assert demo[0].outputs[node]["text"] == [str(path)]


@pytest.mark.parametrize("name", [name for name in NAMES if name != MAIN])
def test_a_workflow_runs_and_its_second_run_is_cached(name: str, client: Client, demo: object) -> None:
    check_runs(name, client, *run_twice(client, reduced(shipped.shipped(name))))


def test_the_film_comes_back_as_a_film_with_another_face(client: Client) -> None:
    """Of core's nodes, all frames, in time and in size; the face is changed, the corner is not."""
    graph = reduced(shipped.shipped("mmfs_video"))
    result = client.run(graph, timeout=120)
    ref, = result.image_refs(node_of(graph, "SaveVideo"))
    films = [av.open(source) for source in (shipped.INPUTS / "astronaut.mp4", io.BytesIO(client.fetch(ref)))]
    before, after = (np.stack([frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]).astype(int)
                     for film in films)
    assert before.shape == after.shape == (24, 240, 320, 3)
    assert films[0].streams.video[0].average_rate == films[1].streams.video[0].average_rate == 12
    apart = np.abs(before - after).mean((0, 3))
    assert apart[80:160, 120:180].mean() > 15 and apart[:20, -20:].mean() < 4


def test_a_changed_setting_runs_only_what_hangs_on_it(client: Client, demo: object) -> None:
    graph = reduced(shipped.shipped("osasis_stylize"))
    first = client.run(graph, timeout=120)
    stylize, paste = node_of(graph, "AtelierOSASISStylize"), node_of(graph, "AtelierPasteFaces")
    graph[stylize]["inputs"]["spn_weight"] = 0.5
    second = client.run(graph, timeout=120)
    saves = {node for node, entry in graph.items() if entry["class_type"] == "SaveImage"}
    assert second.ran[0] == stylize and set(second.ran) == {stylize, paste} | saves
    images = [saved(client, graph, result)["atelier/stylized"] for result in (first, second)]
    assert all((a != b).any() for a, b in zip(*images, strict=True))


def test_a_measure_without_its_file_says_which_file_folder_and_page(server: ComfyServer, client: Client) -> None:
    with pytest.raises(NodeFailed) as failed:
        client.run(changed("mmfs_measure", "AtelierComparePictures", measure="lpips_alex"), timeout=120)
    text = str(failed.value)
    assert "alexnet-owt-7be5be79.pth, from https://download.pytorch.org" in text
    assert str(server.base / "models" / "alexnet") in text and "Load Metric Networks" in text


# --- both formats of a workflow are one ----------------------------------------------------------------------------
def test_every_workflow_ships_in_both_formats() -> None:
    assert sorted(EXPECTED) == NAMES == sorted(path.stem for path in shipped.FOLDER.glob("*.json"))


def test_the_page_queues_just_the_api_workflows(told: Told) -> None:
    for name in NAMES:
        queued = told.queued(name)
        for node in queued.values():
            if node["class_type"] == "LoadVideo":
                node["inputs"].pop("video-preview", None)  # the page's player, once it has loaded; no input of the node
        assert queued == shipped.shipped(name), \
            f"{name}: run `make page ARGS='convert workflows/api/{name}.json workflows/{name}.json'`"


def test_every_node_and_input_of_the_workflows_is_known(server: ComfyServer) -> None:
    info = server.object_info()
    for name in NAMES:
        for node, entry in shipped.shipped(name).items():
            known = info[entry["class_type"]]["input"]
            given = set(entry["inputs"])
            assert set(known.get("required", {})) <= given, f"{name}, node {node}"
            assert given <= {key for kind in known.values() for key in kind}, f"{name}, node {node}"


# --- faces of whole pictures ---------------------------------------------------------------------------------------
def faces_graph(**align: object) -> dict:
    """wall.png -> Detect & Align Faces -> (negative) -> Paste Faces Back -> Save Image, without a model."""
    graph = {node: entry for node, entry in shipped.shipped("mmfs_photo").items() if node in ("2", "3", "6", "8")}
    graph["3"]["inputs"] |= align
    graph["5"] = {"class_type": "ImageInvert", "inputs": {"image": ["3", 0]}}
    return graph


def test_faces_are_found_changed_and_put_back(client: Client) -> None:
    with Image.open(shipped.INPUTS / "wall.png") as stored:
        before = np.asarray(stored.convert("RGB")).astype(int)
    graph = faces_graph()
    result = client.run(graph, timeout=120)
    after = saved(client, graph, result)["atelier/mmfs_photo"][0].astype(int)
    same = (before == after).all(-1)
    assert 0.3 < same.mean() < 0.8 and np.abs(before - after)[80:180, 80:160].mean() > 20
    assert result.outputs["3"]["text"][0].count("face ") >= 5 and len(result.outputs["3"]["images"]) == 1
    graph["6"]["inputs"]["results"] = ["3", 0]
    unchanged = saved(client, graph, client.run(graph, timeout=120))["atelier/mmfs_photo"][0]
    assert (unchanged == before).all()


def test_without_alignment_the_pair_passes_on(client: Client) -> None:
    graph = faces_graph(align=False)
    assert saved(client, graph, client.run(graph, timeout=60))["atelier/mmfs_photo"][0].shape == (400, 640, 3)


def test_a_face_by_hand_and_a_picture_without_one(client: Client) -> None:
    graph = faces_graph(box="40 40 160 160")
    client.run(graph, timeout=60)
    graph = faces_graph()
    graph["2"]["inputs"]["image"] = client.upload(encoded(Image.new("RGB", (300, 200), (90, 120, 60))), "no.png")
    with pytest.raises(NodeFailed, match="No face found in picture 0. .* give the five points or the square by hand"):
        client.run(graph, timeout=60)


# --- bad input: the client is told what is wrong -------------------------------------------------------------------
def changed(name: str, kind: str, **inputs: object) -> dict:
    """A reduced workflow with other inputs in its first node of a type."""
    graph = reduced(shipped.shipped(name))
    graph[node_of(graph, kind)]["inputs"] |= inputs
    return graph


@pytest.mark.parametrize(("kind", "inputs", "words"), [
    ("AtelierOSASISStylize", {"steps": 60}, "60 steps cannot be spaced evenly over 1000; take 10, 20, 50"),
    ("AtelierStructuralEncode", {"steps": 60}, "60 steps cannot be spaced evenly"),
    ("AtelierMixCodes", {"levels": "64 = a lot"}, "cannot be read. Write 'side in px:weight of the style'"),
    ("AtelierOSASISStylize", {"spn_weight": 9.0}, "spn_weight"),
    ("AtelierAlignFaces", {"five_points": "1 2 3"}, "five_points takes ten numbers"),
])
def test_bad_settings_are_refused_before_anything_runs(client: Client, kind: str, inputs: dict,
                                                       words: str) -> None:
    with pytest.raises(PromptRejected) as refused:
        client.run(changed("osasis_stylize", kind, **inputs), timeout=60)
    assert words in str(refused.value) and kind in str(refused.value)


def test_a_level_that_the_model_does_not_have(client: Client, demo: object) -> None:
    with pytest.raises(NodeFailed, match="levels names 512, .* its levels are 128, 64, 32, 16, 8, middle"):
        client.run(changed("osasis_stylize", "AtelierMixCodes", levels="512:1"), timeout=120)


@pytest.fixture(scope="module")
def other_model(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """osasis_stylize with a DiffAE of 32 px that the style was not made from."""
    path = server.base / "models" / "diffae" / "tiny.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((tiny_models.write(tmp_path_factory.mktemp("tiny")) / "diffae.safetensors").read_bytes())
    return changed("osasis_stylize", "AtelierLoadDiffAE", model=path.name)


def test_a_style_code_of_another_model(client: Client, demo: object, other_model: dict) -> None:
    with pytest.raises(NodeFailed, match="the style code was made with another DiffAE than the rest"):
        client.run(other_model, timeout=120)


def test_a_style_of_another_model(client: Client, demo: object, other_model: dict) -> None:
    mix = other_model[node_of(other_model, "AtelierMixCodes")]["inputs"]
    mix["z_style"] = mix["z_content"]
    with pytest.raises(NodeFailed, match="this style was made for a DiffAE of 128 px .* not for this one of 32 px"):
        client.run(other_model, timeout=120)


@pytest.mark.parametrize("style", ["(no style saved yet)", "gone.safetensors", "../../../input/face_1.png"])
def test_a_style_that_is_not_there(client: Client, style: str) -> None:
    with pytest.raises(RunError) as failed:
        client.run(changed("osasis_stylize", "AtelierLoadOSASISStyle", file=style), timeout=60)
    assert style in str(failed.value)


def test_a_truncated_model_file(server: ComfyServer, client: Client) -> None:
    path = server.base / "models" / "diffae" / "half.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((loading.DEMO / "diffae.safetensors").read_bytes()[:100_000])
    with pytest.raises(NodeFailed, match="half.safetensors"):
        client.run(changed("osasis_random_faces", "AtelierLoadDiffAE", model="half.safetensors"), timeout=60)


# --- pictures of all kinds -----------------------------------------------------------------------------------------
def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def fitted(name: str, with_alpha: bool = False) -> dict:
    """LoadImage -> (the picture's alpha put back, as RGBA) -> Fit Picture -> SaveImage."""
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": name}},
             "2": {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["1", 0], "alpha": ["1", 1]}},
             "3": {"class_type": "AtelierFitPicture",
                   "inputs": {"image": ["2" if with_alpha else "1", 0], "size": 64, "mode": "crop"}},
             "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "pictures/fitted"}}}
    return graph if with_alpha else {node: entry for node, entry in graph.items() if node != "2"}


@pytest.fixture
def fit(client: Client) -> Callable[..., np.ndarray]:
    """fit(image, with_alpha=False) -> what Fit Picture makes of it, (64, 64, 3)."""
    def run(image: Image.Image, with_alpha: bool = False) -> np.ndarray:
        graph = fitted(client.upload(encoded(image), "any.png"), with_alpha)
        (picture,) = saved(client, graph, client.run(graph, timeout=60))["pictures/fitted"]
        return picture
    return run


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "I;16"])
def test_pictures_of_every_mode_are_taken(fit: Callable[..., np.ndarray], mode: str) -> None:
    image = Image.new(mode, (300, 100), 1 if mode == "1" else None if mode == "P" else 0)
    assert fit(image).shape == (64, 64, 3)


def test_alpha_is_laid_on_white(fit: Callable[..., np.ndarray]) -> None:
    picture = fit(Image.new("RGBA", (80, 80), (200, 0, 0, 0)), with_alpha=True)
    assert picture.min() >= 254


def test_a_picture_of_one_pixel(client: Client) -> None:
    graph = fitted(client.upload(encoded(Image.new("RGB", (1, 1))), "one.png"))
    with pytest.raises(NodeFailed, match="1 x 1 px is too small. Take one of at least 8 px"):
        client.run(graph, timeout=60)


def test_a_useless_style_image_stops_the_main_workflow_before_anything_long(client: Client) -> None:
    graph = reduced(shipped.shipped(MAIN))
    twin = node_of(graph, "AtelierPhotoTwin")
    graph[graph[twin]["inputs"]["style_image"][0]]["inputs"]["image"] = \
        client.upload(encoded(Image.new("RGB", (1, 1))), "one.png")
    with pytest.raises(NodeFailed, match="style_image: a picture of 1 x 1 px") as failed:
        client.run(graph, timeout=60)
    assert failed.value.node_id == twin
    assert "AtelierOSASISFineTune" not in {graph[node]["class_type"] for node in failed.value.result.ran}


def test_two_style_images(client: Client) -> None:
    graph = reduced(shipped.shipped(MAIN))
    batch = node_of(graph, "ImageBatch")
    graph[node_of(graph, "AtelierPhotoTwin")]["inputs"]["style_image"] = [batch, 0]
    with pytest.raises(NodeFailed, match="style_image: one picture is needed, not 2"):
        client.run(graph, timeout=60)
