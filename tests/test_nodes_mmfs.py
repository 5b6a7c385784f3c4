"""The nodes of StyleGAN2 and MMFS, executed as ComfyUI does it (under inference mode), with tiny networks."""
from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from oneshot_atelier.evaluate.flicker import flicker
from oneshot_atelier.models.faces.align import side_of
from oneshot_atelier.models.faces.crops import FaceCrop, FaceCrops, scaled
from oneshot_atelier.models.faces.find import FaceSettings, find_faces
from oneshot_atelier.models.faces.networks import load_faces
from oneshot_atelier.models.loading import save_mmfs, save_mmfs_style, save_stylegan2
from oneshot_atelier.models.mmfs import MMFS
from oneshot_atelier.models.stylegan2 import seeded_noise
from oneshot_atelier.tests import golden_cases, mmfs_files, tiny_mmfs, tiny_models
from oneshot_atelier.tests.node_tools import interrupt_after, picture, same
from oneshot_atelier.train.data import read_whole, to_unit
from oneshot_atelier.train.source_faces import known_faces

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("comfy")]
PX = tiny_mmfs.PX
STYLIZE = {"strength": 1.0, "noise": "seeded", "noise_seed": 0, "fit": "crop", "max_side": 1024, "batch": 8}
RANDOM = {"seed": 0, "count": 1, "mix_seed": 1, "mix_from": 0, "truncation": 1.0}
SAMPLE = {"seed": 0, "count": 2, "truncation": 0.7, "cutoff": -1, "mix_seed": 1, "mix_from": 0, "noise": "seeded"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_mmfs.write(tiny_models.write(tmp_path_factory.mktemp("demo")))


@pytest.fixture
def loaded(nodes):
    """One of each network, as the loaders give them."""
    return SimpleNamespace(
        stylegan2=nodes.LoadStyleGAN2.execute("demo")[0], mmfs=nodes.LoadMMFS.execute("demo")[0],
        clip=nodes.LoadCLIP.execute("demo", "auto")[0], structure_net=nodes.LoadStructureNet.execute("demo")[0])


@pytest.fixture
def styles(nodes, loaded):
    """styles(**changes) -> random styles."""
    return lambda **changes: nodes.MMFSRandomStyle.execute(loaded.mmfs, **RANDOM | changes)[0]


@pytest.fixture
def stylized(nodes, loaded):
    """stylized(image, **changes) -> what Stylize makes of it."""
    return lambda image, **changes: nodes.MMFSStylize.execute(loaded.mmfs, image, **STYLIZE | changes)[0]


# --- loading -------------------------------------------------------------------------------------------------------
def test_loaders(loaded):
    assert loaded.stylegan2.discriminator is not None and loaded.mmfs.discriminator is not None
    structure_net = loaded.structure_net
    assert structure_net.substitute and structure_net.net.keys(torch.zeros(1, 3, PX, PX)).shape[:2] == (1, 256)
    assert len(loaded.mmfs.fingerprint) == 32


def test_a_model_without_discriminator(nodes, comfy):
    g, _ = tiny_mmfs.faces()
    save_stylegan2(comfy / "models" / "stylegan2" / "bare.safetensors", g, None, {})
    save_mmfs(comfy / "models" / "mmfs" / "bare.safetensors", tiny_mmfs.mmfs(mapper=None), None, {"phase": 2})
    assert nodes.LoadStyleGAN2.execute("bare.safetensors")[0].discriminator is None
    assert nodes.LoadMMFS.execute("bare.safetensors")[0].discriminator is None


def test_pickles_are_listed(nodes, comfy):
    (comfy / "models" / "stylegan2" / "ffhq.pkl").write_bytes(b"no pickle")
    assert nodes.host.model_choices("stylegan2") == ["demo", "ffhq.pkl"]
    with pytest.raises(ValueError, match="ffhq.pkl"):
        nodes.LoadStyleGAN2.execute("ffhq.pkl")


@pytest.mark.parametrize("kind, node, wrong", [
    ("mmfs", "LoadMMFS", "stylegan2"), ("stylegan2", "LoadStyleGAN2", "mmfs"), ("dino", "LoadStructureNet", "clip")])
def test_files_of_another_kind(nodes, comfy, tiny, kind, node, wrong):
    (comfy / "models" / kind / "mine.safetensors").write_bytes((tiny / f"{wrong}.safetensors").read_bytes())
    with pytest.raises(ValueError, match="mine.safetensors"):
        getattr(nodes, node).execute("mine.safetensors")
    with pytest.raises(ValueError, match="there is no file"):
        getattr(nodes, node).execute("../mine.safetensors")


def test_official_files(nodes, comfy, tmp_path):
    (tmp_path / "files").mkdir()
    loaders = {"stylegan2": nodes.LoadStyleGAN2, "mmfs": nodes.LoadMMFS, "dino": nodes.LoadStructureNet}
    found = {}
    for name, (kind, path) in mmfs_files.write_all(tmp_path / "files").items():
        path.rename(comfy / "models" / kind / name)
        found[name] = loaders[kind].execute(name)[0]
    assert nodes.SampleStyleGAN2.execute(found["ffhq.pkl"], **SAMPLE)[0].shape == (2, 32, 32, 3)
    assert (found["phase2.pth"].phase, found["phase3.pth"].phase) == (2, 3)
    assert found["phase2.pth"].discriminator is not None
    assert not found["dino.pth"].substitute and found["dino.pth"].net.keys(torch.zeros(1, 3, 64, 64)).shape[1] == 17


def test_an_official_fine_tuned_model_is_a_style_too(nodes, comfy):
    for kind, net in (("mmfs", mmfs_files.mmfs()), ("mmfs_styles", mmfs_files.mmfs(seed=9))):
        golden_cases.save_torch(comfy / "models" / kind / "pop_art.pth", mmfs_files.mmfs_root(net))
    base = nodes.LoadMMFS.execute("pop_art.pth")[0]
    style, code, _ = nodes.LoadMMFSStyle.execute("pop_art.pth").args
    assert "no w+ code" in code.message
    given = nodes.MMFSRandomStyle.execute(base, **RANDOM)[0]
    plain, tuned = (nodes.MMFSStylize.execute(base, picture(5), w_plus=given, style=one, **STYLIZE)[0]
                    for one in (None, style))
    assert plain.shape == tuned.shape == (1, 128, 128, 3) and not torch.equal(plain, tuned)


# --- StyleGAN2 -----------------------------------------------------------------------------------------------------
def sampled(nodes, loaded, **changes):
    return nodes.SampleStyleGAN2.execute(loaded.stylegan2, **SAMPLE | changes)[0]


def test_samples(nodes, loaded):
    first = sampled(nodes, loaded)
    assert first.shape == (2, PX, PX, 3) and 0 <= first.min() and first.max() <= 1 and first.std() > 0.01
    assert torch.equal(first, sampled(nodes, loaded))
    assert torch.allclose(first, sampled(nodes, loaded, count=9)[:2], atol=1e-5)
    for change in ({"seed": 5}, {"truncation": 1.0}, {"noise": "zero"}, {"noise": "constant"}, {"cutoff": 2},
                   {"mix_from": 3}):
        assert not torch.allclose(first, sampled(nodes, loaded, **change), atol=1e-4), change


def test_no_truncation_beyond_a_cutoff_of_nothing(nodes, loaded):
    assert torch.allclose(sampled(nodes, loaded, cutoff=0), sampled(nodes, loaded, truncation=1.0), atol=1e-6)


def test_layers_that_are_not_there(nodes, loaded, styles):
    with pytest.raises(ValueError, match="0 to 9. Lower it"):
        sampled(nodes, loaded, mix_from=10)
    with pytest.raises(ValueError, match="cutoff is 11, but this model has 10 layers. Lower it"):
        sampled(nodes, loaded, cutoff=11)
    assert sampled(nodes, loaded, cutoff=10, count=1).shape == (1, PX, PX, 3)
    with pytest.raises(ValueError, match="0 to 3. Lower it"):
        styles(mix_from=4)


# --- styles --------------------------------------------------------------------------------------------------------
def test_random_styles(loaded, styles):
    w = styles(count=3).w
    assert w.shape == (3, 4, 16) and torch.allclose(w[:1], styles().w, atol=1e-5)
    assert not torch.equal(styles(seed=77).w, w[:1])
    assert styles().fingerprint == loaded.mmfs.fingerprint


def test_mixing_of_two_seeds(styles):
    first, second, mixed = styles().w, styles(seed=9).w, styles(mix_seed=9, mix_from=1).w
    assert torch.equal(mixed[:, :1], first[:, :1]) and torch.equal(mixed[:, 1:], second[:, 1:])


def test_truncation(loaded, styles):
    mean = loaded.mmfs.mean_w
    assert loaded.mmfs.mean_w is mean  # computed once
    assert torch.allclose(styles(truncation=0.0).w, mean.expand(1, 4, -1), atol=1e-6)
    assert torch.allclose(styles(truncation=0.5).w, (styles().w + mean) / 2, atol=1e-5)


def test_styles_from_pictures(nodes, loaded):
    from_picture = nodes.MMFSStyleFromPicture.execute
    three = picture(4, 3, side=50)
    each, one = (from_picture(loaded.mmfs, loaded.clip, three, average)[0].w for average in (False, True))
    assert each.shape == (3, 4, 16) and one.shape == (1, 4, 16)
    assert torch.allclose(from_picture(loaded.mmfs, loaded.clip, three[:1], True)[0].w, each[:1], atol=1e-6)
    assert not torch.allclose(each[0], each[1])


def test_the_user_stops_the_embedding_of_pictures(nodes, loaded, monkeypatch):
    calls, stopped = interrupt_after(monkeypatch, nodes, 2)
    with pytest.raises(stopped):
        nodes.MMFSStyleFromPicture.execute(loaded.mmfs, loaded.clip, picture(3, 5), False)
    assert len(calls) == 2


def test_of_many_photos_as_many_as_are_looked_at_are_prepared(nodes, loaded, monkeypatch):
    prepared, to_square = [], nodes.images.to_square
    monkeypatch.setattr(nodes.images, "to_square", lambda x, *args: prepared.append(len(x)) or to_square(x, *args))
    many = picture(3, 70)
    codes = [nodes.MMFSStyleFromText.execute(loaded.mmfs, loaded.clip, "drawing", 1.0, photos)[0].w
             for photos in (many, many[:64])]
    assert prepared == [64, 64] and torch.equal(*codes)


def test_styles_from_words(nodes, loaded):
    from_text = nodes.MMFSStyleFromText.execute
    plain = from_text(loaded.mmfs, loaded.clip, "a drawing", 0.0)[0].w
    assert plain.shape == (1, 4, 16)
    half, whole = (from_text(loaded.mmfs, loaded.clip, "a drawing", gap, picture(3, 2))[0].w for gap in (0.5, 1.0))
    assert not torch.allclose(plain, whole, atol=1e-4) and not torch.allclose(half, whole, atol=1e-4)
    with pytest.raises(ValueError, match="needs photos"):
        from_text(loaded.mmfs, loaded.clip, "a drawing", 0.5)


@pytest.mark.parametrize("text, said", [("", "empty"), ("  \n", "empty"), ("drawing " * 20, "tokens"),
                                        ("watercolour", "it knows: drawing, face, photo")])
def test_unreadable_words(nodes, loaded, text, said):
    with pytest.raises(ValueError, match=said):
        nodes.MMFSStyleFromText.execute(loaded.mmfs, loaded.clip, text, 0.0)


def test_a_model_without_clip_mapping(nodes, loaded, comfy):
    save_mmfs(comfy / "models" / "mmfs" / "phase2.safetensors", tiny_mmfs.mmfs(mapper=None), None, {"phase": 2})
    mmfs = nodes.LoadMMFS.execute("phase2.safetensors")[0]
    with pytest.raises(ValueError, match="no CLIP mapping"):
        nodes.MMFSStyleFromText.execute(mmfs, loaded.clip, "drawing", 0.0)
    with pytest.raises(ValueError, match="no CLIP mapping"):
        nodes.MMFSStyleFromPicture.execute(mmfs, loaded.clip, picture(1), False)


def test_mixing_styles(nodes, styles):
    mix = nodes.MMFSMixStyles.execute
    a, b = styles(), styles(seed=9, count=3)
    assert torch.equal(mix(a, b, 0.0, 0, 17)[0].w, a.w.expand(3, -1, -1))
    assert torch.equal(mix(a, b, 1.0, 0, 17)[0].w, b.w)
    some = mix(b, a, 0.25, 1, 2)[0].w
    assert torch.equal(some[:, 0], b.w[:, 0]) and torch.equal(some[:, 3], b.w[:, 3])
    assert torch.allclose(some[:, 1:3], 0.75 * b.w[:, 1:3] + 0.25 * a.w[:, 1:3], atol=1e-6)
    for first, last in ((4, 9), (2, 1)):
        with pytest.raises(ValueError, match="holds no layer"):
            mix(a, a, 0.5, first, last)
    with pytest.raises(ValueError, match="2 codes a cannot be paired with 3 codes b"):
        mix(styles(count=2), b, 0.5, 0, 17)
    with pytest.raises(ValueError, match="another MMFS"):
        mix(a, replace(b, fingerprint="other"), 0.5, 0, 17)
    with pytest.raises(ValueError, match="different MMFS"):
        mix(a, replace(b, w=b.w[:, :2]), 0.5, 0, 17)


# --- stylizing -----------------------------------------------------------------------------------------------------
def test_stylize(stylized, styles):
    photos = picture(5, 3, side=80)
    result = stylized(photos, w_plus=styles())
    assert result.shape == (3, PX, PX, 3) and 0 <= result.min() and result.max() <= 1 and result.std() > 0.01
    assert torch.equal(result, stylized(photos, w_plus=styles()))
    assert torch.allclose(result, stylized(photos, w_plus=styles(), batch=1), atol=1e-5)
    assert not torch.allclose(result, stylized(photos, w_plus=styles(seed=9)), atol=1e-3)


def test_one_photo_in_several_styles_and_each_photo_in_its_own(stylized, styles):
    three = styles(count=3)
    alone, own = stylized(picture(5), w_plus=three, noise="zero"), stylized(picture(5, 3), w_plus=three, noise="zero")
    assert alone.shape == own.shape == (3, PX, PX, 3)
    assert torch.allclose(alone[:1], own[:1], atol=1e-5) and not torch.allclose(alone[1], alone[2], atol=1e-3)
    with pytest.raises(ValueError, match="2 pictures cannot be paired with 3 w. codes"):
        stylized(picture(5, 2), w_plus=three)


def test_noise(nodes, loaded, stylized, styles):
    for parameter in (p for name, p in loaded.mmfs.net.named_parameters() if "noise_strength" in name):
        assert parameter.abs() > 0  # else nothing is tested here
    two = picture(5).repeat(2, 1, 1, 1)
    images = {noise: stylized(two, w_plus=styles(), noise=noise) for noise in ("seeded", "constant", "zero")}
    assert not torch.allclose(images["seeded"][0], images["seeded"][1], atol=1e-4)
    assert torch.allclose(images["constant"][0], images["constant"][1], atol=1e-6)
    assert not torch.allclose(images["constant"], images["zero"], atol=1e-4)
    assert not torch.allclose(images["seeded"], stylized(two, w_plus=styles(), noise_seed=4), atol=1e-4)
    assert torch.equal(images["zero"], stylized(two, w_plus=styles(), noise="zero", noise_seed=4))
    with pytest.raises(ValueError, match="noise is 'white'"):
        stylized(two, w_plus=styles(), noise="white")


@pytest.mark.parametrize("height, width, most, expected", [
    (33, 71, 0, (33, 71)), (48, 96, 1024, (48, 96)), (50, 100, 64, (32, 64)), (65, 64, 1024, (65, 64))])
def test_whole_pictures(stylized, styles, height, width, most, expected):
    image = torch.rand(2, height, width, 3)
    assert stylized(image, w_plus=styles(), fit="whole picture", max_side=most).shape == (2, *expected, 3)


def test_the_whole_picture_is_the_crop_where_they_are_the_same(stylized, styles):
    image = picture(5, 2, side=PX)
    assert torch.equal(stylized(image, w_plus=styles(), fit="whole picture"), stylized(image, w_plus=styles()))


def test_a_long_batch_is_stylized_as_one_at_a_time(stylized, styles, monkeypatch, nodes):
    photos, w_plus = picture(5, 5, side=96), styles(count=5)
    whole = stylized(photos, w_plus=w_plus, fit="whole picture", noise="zero")
    monkeypatch.setattr(nodes.images, "CHUNK_PIXELS", 1)
    few = stylized(photos, w_plus=w_plus, fit="whole picture", noise="zero", batch=2)
    alone = [stylized(photos[n:n + 1], w_plus=replace(w_plus, w=w_plus.w[n:n + 1]), fit="whole picture", noise="zero")
             for n in range(5)]
    assert torch.allclose(few, whole, atol=1e-5) and torch.allclose(torch.cat(alone), whole, atol=1e-5)


MEMORY = """
import runpy, sys
from pathlib import Path
root, base, demo = map(Path, sys.argv[1:])
runpy.run_path(str(root / "cli" / "__main__.py"))["load_checkout"](root)
from oneshot_atelier.tests import in_comfy
package, found = in_comfy.nodes(base)
import torch
package.host.DEMO = demo
nodes = {node.GET_SCHEMA().node_id: node for node in found}

def peak():  # ru_maxrss would be that of the tests, which a new process inherits
    return next(int(x.split()[1]) * 1024 for x in open("/proc/self/status") if x.startswith("VmHWM"))

def added(work):
    before, out = peak(), work()
    print((peak() - before) / (out.numel() * out.element_size()))
    return out

def stylized(photos):
    return nodes["AtelierMMFSStylize"].execute(mmfs, photos, 1.0, "zero", 0, "whole picture", 1024, 8, w_plus=w)[0]

with torch.inference_mode():
    mmfs = nodes["AtelierLoadMMFS"].execute("demo")[0]
    w = nodes["AtelierMMFSRandomStyle"].execute(mmfs, 0, 1, 1, 0, 1.0)[0]
    film = torch.rand(200, 192, 256, 3)
    stylized(film[:8, :, :192])  # what a first call needs is not asked of the long one
    fitted = added(lambda: nodes["AtelierFitPicture"].execute(film, 256, "pad")[0])
    added(lambda: stylized(fitted))
"""


@pytest.fixture
def measured(root, tmp_path, tiny):
    """measured(program): the numbers that it prints, in a process of its own with the tiny models."""
    def measured(program):
        done = subprocess.run([sys.executable, "-c", program, str(root), str(tmp_path), str(tiny)], capture_output=True,
                              text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return [float(word) for word in done.stdout.split() if word[0].isdigit()]
    return measured


needs_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure memory")


@needs_linux
def test_a_film_needs_hardly_more_memory_than_its_result(measured):
    """200 frames of 256 px, padded and then stylized, in a process of their own."""
    fit, stylize = measured(MEMORY)[-2:]
    assert 0.9 < fit < 2 and 0.5 < stylize < 2


FILM = MEMORY[:MEMORY.index("def stylized")] + """
node = lambda name, *values, **named: nodes["Atelier" + name].execute(*values, **named).args

def aligned(film):
    return node("AlignFaces", film, 64, True, "largest", 0, False, 0.5, True, False, "", "10, 5, 70, 70", "crop",
                steady=2.0)

def stylized(crops):
    return node("MMFSStylize", mmfs, crops, 1.0, "constant", 0, "crop", 1024, 8, w_plus=w)[0]

def pasted(film, results, crops):
    return node("PasteFaces", film, results, crops, 0.1, "square", "none", 1.0)[0]

with torch.inference_mode():
    mmfs = node("LoadMMFS", "demo")[0]
    w = node("MMFSRandomStyle", mmfs, 0, 1, 1, 0, 1.0)[0]
    film = torch.rand(1, 96, 128, 3).repeat(1000, 1, 1, 1)
    crops, places, *_ = aligned(film[:9])
    pasted(film[:9], stylized(crops), places)
    found = []
    crops = added(lambda: found.append(aligned(film)) or found[0][0])
    results = added(lambda: stylized(crops))
    assert added(lambda: pasted(film, results, found[0][1])).shape == film.shape
"""


@needs_linux
def test_a_thousand_frames_need_what_comes_out_and_hardly_more(measured):
    """Aligned, stylized and put back. face_crop holds each crop once more, and there is the mask: 7/3 of the crops."""
    align, stylize, paste = measured(FILM)[-3:]
    assert 2 < align < 3.5 and 0.5 < stylize < 2 and 0.5 < paste < 1.6


FOLLOWED = FILM[:FILM.index("with torch.inference_mode")] + """
from oneshot_atelier.train.data import read_whole
portrait = read_whole(root / "workflows" / "inputs" / "face_1.png")[:, ::2, ::2].movedim(0, 2) / 255
film = portrait.repeat(90, 1, 1, 1)

def aligned(film):
    return node("AlignFaces", film, 64, True, "largest", 0, False, 0.5, True, False, "", "", "crop", steady=2.0)

with torch.inference_mode():
    for count in (30, 90):
        crops, places, masks, _ = aligned(film[:count])
        assert len(crops) == count
        print(peak() - 7 * masks.numel() * masks.element_size())  # what comes out: crops twice, and the mask
"""


@needs_linux
def test_a_followed_face_needs_no_more_memory_in_a_longer_film(measured):
    short, long = measured(FOLLOWED)[-2:]
    assert long - short < 12 * 2 ** 20


@pytest.mark.parametrize("noise", ["seeded", "constant", "zero"])
def test_chunks_that_overlap_in_time_give_what_the_network_gives(loaded, stylized, styles, noise):
    """Noise is drawn ahead, and a chunk is kept while the next one is made."""
    film, w, net = picture(5, 7, side=PX), styles(), loaded.mmfs.net
    found = stylized(film, w_plus=w, batch=3, noise=noise)
    for k, frame in enumerate(film):
        drawn = None if noise == "zero" else seeded_noise(net.noise_shapes(PX, PX), 0, [k if noise == "seeded" else 0])
        wanted = net(frame.movedim(2, 0)[None] * 2 - 1, w.w, drawn)[0].movedim(0, 2) / 2 + 0.5
        assert torch.allclose(found[k], wanted, atol=1e-5), k


def test_pictures_that_leave_float16_are_made_again_in_float32(nodes, stylized, styles, monkeypatch):
    """As FusedStylizer tells it: NaN."""
    mmfs_module, told = sys.modules[nodes.MMFSStylize.__module__], []
    film, w = picture(5, 7), styles()
    wanted = stylized(film, w_plus=w, batch=3, precision="float32")
    make = mmfs_module.stylizer

    def broken(net, precision):
        if precision == "float32":
            return make(net, precision)
        return lambda x, *rest: make(net, precision)(x, *rest).index_fill(0, torch.tensor([len(x) // 2]), float("nan"))

    monkeypatch.setattr(mmfs_module, "stylizer", broken)
    monkeypatch.setattr(nodes.host, "warn", told.append)
    assert torch.equal(stylized(film, w_plus=w, batch=3, precision="float16"), wanted)
    assert told == [f"Pictures {first} to {last} do not fit into float16. They were made in float32"
                    for first, last in ((1, 3), (4, 6), (7, 7))]


# --- films ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def film(root):
    """IMAGE (7, 72, 80, 3): a camera that pans over a photo."""
    photo = to_unit(read_whole(root / "workflows" / "inputs" / "astronaut.png"))
    small = F.interpolate(photo[None], (160, 160), mode="bilinear", antialias=True)[0]
    return torch.stack([small[:, 20:92, 2 * k:2 * k + 80] for k in range(7)]).movedim(1, 3) / 2 + 0.5


@pytest.mark.parametrize("fit", ["crop", "whole picture"])
def test_a_steadied_film_flickers_less_and_0_is_as_without(stylized, styles, film, fit):
    settings = {"w_plus": styles(), "noise": "constant", "fit": fit}
    plain, steady = stylized(film, **settings), stylized(film, **settings, steady=1.0)
    assert torch.equal(plain, stylized(film, **settings, steady=0.0)) and steady.shape == plain.shape
    frames = film if fit == "whole picture" else stylized_input(film)
    before, after = (flicker(x.movedim(3, 1) * 2 - 1, frames.movedim(3, 1) * 2 - 1)[0] for x in (plain, steady))
    assert after < 0.8 * before
    assert torch.allclose(stylized(film, **settings, steady=1.0, batch=2), steady, atol=1e-3)


def stylized_input(film):
    """What `crop` takes of 72 x 80 px."""
    square = film[:, :, 4:76].movedim(3, 1)
    return F.interpolate(square, (PX, PX), mode="bicubic", antialias=True).clamp(0, 1).movedim(1, 3)


def test_crops_of_several_faces_are_steadied_each_by_itself(nodes, stylized, styles, film, monkeypatch):
    told, settings = [], {"w_plus": styles(), "noise": "constant", "steady": 1.0}
    monkeypatch.setattr(nodes.host, "inform", told.append)
    faces = [film, film.flip(0, 3)]
    both, whole = torch.stack(faces, 1).flatten(0, 1), torch.zeros(4, 2)
    crop = FaceCrop(torch.zeros(3, 8, 8), whole, torch.ones(8, 8), 0, 0, (72, 80), "")
    places = FaceCrops(tuple(replace(crop, picture=k // 2, index=k % 2) for k in range(14)), 7)
    found = stylized(both, **settings, face_crop=places)
    for number, face in enumerate(faces):
        assert torch.allclose(found[number::2], stylized(face, **settings), atol=1e-3)
    assert told == []
    assert torch.allclose(stylized(both, **settings), stylized(both, **settings | {"steady": 0.0}), atol=1e-3)
    assert len(told) == 1 and told[0].startswith("steady changed nothing")
    with pytest.raises(ValueError, match="face_crop: 14 crops, but image holds 7 pictures"):
        stylized(film, **settings, face_crop=places)


def test_one_photo_in_several_styles_is_no_film(stylized, styles):
    settings = {"w_plus": styles(count=3), "noise": "constant"}
    assert torch.equal(stylized(picture(5), **settings, steady=2.0), stylized(picture(5), **settings))


# --- whole pictures -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("noise", ["seeded", "constant"])
def test_a_large_picture_in_tiles_is_the_same_picture(stylized, styles, noise):
    """Of 300 x 210 px, in tiles of 48 px (four times the reach of the tiny model)."""
    image, whole = torch.rand(2, 300, 210, 3), {"fit": "whole picture", "noise": noise, "batch": 4}
    assert torch.allclose(stylized(image, w_plus=styles(), tile=16, **whole),
                          stylized(image, w_plus=styles(), tile=0, **whole), atol=1e-5)


def test_tiles_bound_the_memory_that_is_asked_for(nodes, loaded, stylized, styles, monkeypatch):
    asked, running = [], nodes.host.running
    monkeypatch.setattr(nodes.host, "running", lambda *modules, memory=0: asked.append(memory) or running(
        *modules, memory=memory))
    w_plus = styles()
    asked.clear()
    for side in (96, 480):
        stylized(torch.rand(1, side, side, 3), w_plus=w_plus, fit="whole picture", tile=96, batch=1)
    noise = [sum(height * width for height, width in loaded.mmfs.net.noise_shapes(side, side)) for side in (96, 480)]
    whole = [2 * 4 * (2 * 3 * side ** 2 + n) for side, n in zip((96, 480), noise)]  # of two parts
    assert 0.5 * (asked[0] - whole[0]) < asked[1] - whole[1] <= asked[0] - whole[0]


def test_the_batch_counts_whole_pictures_however_small_their_tiles_are(nodes, loaded):
    from oneshot_atelier.nodes.whole_pictures import Part, part_memory, parts_of
    net, px = loaded.mmfs.net, loaded.mmfs.net.config.resolution
    large, small = [(4 * px, 4 * px)] * 4, [(px, px)] * 4
    assert [part.rows for part in parts_of(large, net.config, 16)] == [slice(k, k + 1) for k in range(4)]
    assert [part.rows for part in parts_of(small, net.config, 16)] == [slice(0, 4)]
    one, two = (part_memory(Part(slice(0, rows), large[0]), (px, px), net, large[0]) for rows in (1, 2))
    assert two == 2 * one > 2 * part_memory(Part(slice(0, 1), small[0]), (px, px), net, small[0])


@pytest.fixture
def portrait(root):
    """IMAGE (1, 240, 300, 3) with a face, and the side of the face's square in it."""
    shown = F.interpolate(to_unit(read_whole(root / "workflows" / "inputs" / "astronaut.png"))[None], (300, 300),
                          mode="bilinear", antialias=True)[:, :, :240]
    face = find_faces(load_faces(), shown[0], FaceSettings(settled=True))[0]
    return shown.movedim(1, 3) / 2 + 0.5, side_of(face.quad)


def test_whole_pictures_are_scaled_for_their_face_and_get_their_size_back(nodes, stylized, styles, portrait):
    """As if they had been scaled by hand."""
    image, side = portrait
    found = stylized(image, w_plus=styles(), fit="whole picture", noise="zero", face_scale="each picture")
    height, width = round(240 * PX / side), round(300 * PX / side)
    small = F.interpolate(image.movedim(3, 1), (height, width), mode="bilinear", antialias=True).movedim(1, 3)
    made = stylized(small, w_plus=styles(), fit="whole picture", noise="zero")
    wanted = scaled(made[0].movedim(2, 0) * 2 - 1, 240, 300).movedim(0, 2) / 2 + 0.5
    assert found.shape == image.shape and height < 200 and torch.allclose(found[0], wanted, atol=1e-4)
    assert not torch.allclose(found, stylized(image, w_plus=styles(), fit="whole picture", noise="zero"), atol=1e-2)


def test_each_picture_by_its_face_or_all_alike(nodes, loaded, portrait):
    module = sys.modules[nodes.MMFSStylize.__module__]
    image, side = portrait
    small = F.pad(F.interpolate(image.movedim(3, 1), (168, 210)), (45, 45, 36, 36), value=0.5).movedim(1, 3)
    batch, config = torch.cat([image, small, image]), loaded.mmfs.net.config
    each = module.sizes_for_faces(batch, (240, 300), config, "each picture")
    assert each[0] == each[2] == (round(240 * PX / side), round(300 * PX / side))
    assert each[1][0] == pytest.approx(each[0][0] / 0.7, rel=0.03)
    assert module.sizes_for_faces(batch, (240, 300), config, "whole batch") == [each[0]] * 3


def test_pictures_of_several_sizes_are_stylized_each_as_alone(stylized, styles, portrait, monkeypatch, nodes):
    module = sys.modules[nodes.MMFSStylize.__module__]
    batch, sizes = torch.cat([portrait[0]] * 4), [(60, 75), (60, 75), (120, 150), (60, 75)]
    settings = {"w_plus": styles(), "fit": "whole picture", "face_scale": "each picture", "noise": "constant"}
    monkeypatch.setattr(module, "sizes_for_faces", lambda *_: sizes)
    together = stylized(batch, **settings)
    for k in range(4):
        monkeypatch.setattr(module, "sizes_for_faces", lambda *_, k=k: [sizes[k]])
        assert torch.allclose(together[k:k + 1], stylized(batch[k:k + 1], **settings), atol=1e-5)


def test_without_a_face_the_picture_stays_at_its_size_and_that_is_said(nodes, stylized, styles, monkeypatch):
    told = []
    monkeypatch.setattr(nodes.host, "inform", told.append)
    image = torch.full((2, 70, 90, 3), 0.4)
    for scale in ("each picture", "whole batch"):
        found = stylized(image, w_plus=styles(), fit="whole picture", face_scale=scale)
        assert torch.equal(found, stylized(image, w_plus=styles(), fit="whole picture"))
    assert told == ["No face found in picture 0, 1. face_scale has no effect there"] * 2


def test_a_face_that_is_too_small_is_said(nodes, monkeypatch):
    told, module = [], sys.modules[nodes.MMFSStylize.__module__]
    monkeypatch.setattr(nodes.host, "inform", told.append)
    pictures = sys.modules[module.sizes_for_faces.__module__]
    assert pictures.scaled_size((1000, 500), 10.0, 16) == (4096, 2048)
    assert told and "10000 px" in told[0] and "4096 px" in told[0]
    assert pictures.scaled_size((1000, 500), 0.5, 16) == (500, 250)
    assert pictures.scaled_size((40, 20), 0.1, 16) == (32, 16)
    assert len(told) == 1


def test_a_picture_narrower_than_the_stride(nodes):
    with pytest.raises(ValueError, match="too narrow"):
        nodes.images.stride_size(torch.rand(1, 8, 40, 3), 16, 0)
    assert nodes.images.stride_size(torch.rand(1, 17, 40, 3), 16, 0) == (17, 40)
    x = nodes.images.to_strides(torch.rand(1, 17, 40, 3), 16, (17, 40))
    assert x.shape == (1, 3, 32, 48)
    assert torch.equal(x[:, :, 17], x[:, :, 15])  # reflected


def test_a_style_is_needed(stylized, styles):
    with pytest.raises(ValueError, match="there is no style"):
        stylized(picture(5))
    with pytest.raises(ValueError, match="fit is"):
        stylized(picture(5), w_plus=styles(), fit="squash")
    with pytest.raises(ValueError, match="another MMFS"):
        stylized(picture(5), w_plus=replace(styles(), fingerprint="other"))
    with pytest.raises(ValueError, match="2 layers of 16 numbers"):
        stylized(picture(5), w_plus=replace(styles(), w=styles().w[:, :2]))


# --- fine-tuning ---------------------------------------------------------------------------------------------------
TUNE = {"iterations": 2, "batch": 2, "lr": 1e-2, "seed": 3, "save_every": 0, "resume": True, "photos_folder": "none"}


@pytest.fixture
def tune(nodes, loaded):
    """tune(name, **changes) -> NodeOutput of the fine-tune to pictures; to words, if there is a prompt."""
    def run(name="style", mmfs=None, **changes):
        settings = {"name": name, "photos": picture(6, 3)} | TUNE | changes
        node = nodes.MMFSFineTuneText if "prompt" in settings else nodes.MMFSFineTune
        if "prompt" not in settings:
            settings = {"references": picture(2, side=40)} | settings
        return node.execute(mmfs or loaded.mmfs, loaded.clip, loaded.structure_net, **settings)
    return run


def decoder_of(output):
    return dict(output[0].decoder)


def test_a_fine_tune_to_a_picture(loaded, tune, stylized, styles):
    style, code, predictions, curve, losses = tune().args
    assert predictions.shape == (2, PX, PX, 3) and curve.ndim == 4 and len(losses["loss"]) == 2
    assert style.model == loaded.mmfs.fingerprint and style.style_image.shape == (3, 40, 40)
    assert code.w.shape == (1, 4, 16) and code.fingerprint == style.model
    photos = picture(5, 2)
    own, given, other = (stylized(photos, style=style, w_plus=w_plus) for w_plus in (None, code, styles()))
    assert torch.equal(own, given) and not torch.allclose(own, other, atol=1e-3)


def test_a_second_fine_tune_takes_the_faces_of_the_first(loaded, tune, monkeypatch):
    """And gives what it would have given alone."""
    alone, model = replace(loaded.mmfs, faces=known_faces()), replace(loaded.mmfs, faces=known_faces())
    words = {"prompt": "a drawing"}
    expected, weights = decoder_of(tune("alone", alone, **words)), model.get_ram_usage()
    tune("first", model)
    encoded = []
    encode = MMFS.encode
    monkeypatch.setattr(MMFS, "encode", lambda *given: encoded.append(0) or encode(*given))
    assert same(decoder_of(tune("second", model, **words)), expected) and not encoded
    assert model.get_ram_usage() == alone.get_ram_usage() > weights


def test_strength(nodes, loaded, tune, stylized, styles):
    style, photos = tune()[0], picture(5, 2)
    base, images = stylized(photos, w_plus=styles()), {}
    for strength in (0.0, 0.5, 1.0, 1.5):
        images[strength] = stylized(photos, w_plus=styles(), style=style, strength=strength)
    assert torch.equal(images[0.0], base)
    far = [(images[s] - base).abs().mean() for s in (0.0, 0.5, 1.0, 1.5)]
    assert far == sorted(far) and far[1] > 0
    with pytest.raises(ValueError, match="strength is 2.0; take 0.0 to 1.5"):
        stylized(photos, style=style, strength=2.0)


def test_a_fine_tune_to_words(tune, stylized):
    style, code, *_ = tune(prompt="a drawing").args
    assert style.prompt == "a drawing" and style.style_image is None and code.origin == "a drawing"
    assert stylized(picture(5), style=style).shape == (1, PX, PX, 3)


def test_references_and_photos_of_lists_are_one_batch_of_one_training(nodes, tune):
    assert nodes.MMFSFineTune.INPUT_IS_LIST is nodes.MMFSFineTuneText.INPUT_IS_LIST is True
    references, photos = [picture(n, side=40) for n in (2, 3)], [picture(6, 2), picture(7)]
    listed = decoder_of(tune("a", references=references, photos=photos, batch=[2]))
    assert same(listed, decoder_of(tune("b", references=torch.cat(references), photos=torch.cat(photos))))
    assert not same(listed, decoder_of(tune("c", references=references[0], photos=torch.cat(photos))))
    assert tune("d", prompt=["drawing"], photos=photos)[0].settings["source"] == "3 photos"
    tall = torch.cat([references[0], picture(8, side=40)], 1)
    style = tune("e", references=[tall, references[1]], photos=photos)[0]
    assert style.style_image.shape == (3, 80, 40), "references keep their sizes"


def test_words_cannot_be_learned_by_projection_alone(nodes, tune, comfy):
    options = nodes.sockets.TuneOptions({"structure_weight": 0.0, "clip_weight": 0.0, "projection_weight": 1.0})
    with pytest.raises(ValueError, match="projection loss alone cannot learn from text.* Set structure_weight or clip"):
        tune(prompt="drawing", options=options)
    assert not (comfy / "output" / "atelier").exists()
    tune(options=options)  # pictures can


def test_the_memory_of_networks_is_told_with_their_discriminators(loaded):
    for model in (loaded.stylegan2, loaded.mmfs):
        parameters, more = (sum(p.numel() * p.element_size() for p in net.parameters())
                            for net in (model.net, model.discriminator))
        assert model.get_ram_usage() >= parameters + more
        assert parameters <= replace(model, discriminator=None).get_ram_usage() <= model.get_ram_usage() - more


def test_inputs_stay_as_they_are(loaded, tune):
    nets = (loaded.mmfs.net, loaded.clip.patched.net, loaded.structure_net.net)
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets]
    changed = decoder_of(tune())
    assert not same(changed, {k: v.half() for k, v in loaded.mmfs.net.decoder.state_dict().items()})
    assert all(same(net.state_dict(), kept) for net, kept in zip(nets, before))
    assert not any(p.requires_grad for net in nets for p in net.parameters())


def test_training_works_after_nets_were_moved_under_inference_mode(loaded, tune):
    expected = decoder_of(tune("still"))
    for net in (loaded.mmfs.net, loaded.clip.patched.net, loaded.structure_net.net):
        net.to(torch.float64).to(torch.float32)  # as a move to the GPU and back: now inference tensors
    assert same(decoder_of(tune("moved")), expected)


def test_sources_of_faces(nodes, loaded, tune, comfy):
    folder = comfy / "input" / "faces" / "mine"
    folder.mkdir(parents=True)
    for number in range(3):
        nodes.images.to_pil(picture(number, side=70)).save(folder / f"{number}.png")
    outcomes = [decoder_of(tune(name, **source)) for name, source in (
        ("a", {}), ("b", {"photos": None, "photos_folder": "faces/mine"}), ("c", {"photos_folder": "faces/mine"}),
        ("d", {"photos": None, "stylegan2": loaded.stylegan2}))]
    assert not any(same(one, other) for i, one in enumerate(outcomes) for other in outcomes[:i])
    assert tune("e", photos=None, photos_folder="faces/mine")[0].settings["source"] == "3 photos"
    with pytest.raises(ValueError, match="no faces to train on"):
        tune(photos=None)
    with pytest.raises(ValueError, match="only one of them"):
        tune(stylegan2=loaded.stylegan2)


@pytest.mark.parametrize("folder", ["..", "../output", "/etc", "faces/../..", "absent", ".hidden"])
def test_folders_that_are_no_choices(nodes, tune, comfy, folder):
    (comfy / "input" / ".hidden").mkdir()
    with pytest.raises(ValueError, match="there is no folder"):
        tune(photos_folder=folder)
    assert nodes.host.folder_token(folder) == "missing"


def test_a_folder_is_read_again_when_it_changed(nodes, comfy):
    folder = comfy / "input" / "faces"
    folder.mkdir()
    assert nodes.host.input_folders() == ["faces"]
    before = nodes.MMFSFineTune.fingerprint_inputs(photos_folder="faces", name="x")
    nodes.images.to_pil(picture(1)).save(folder / "1.png")
    assert nodes.MMFSFineTune.fingerprint_inputs(photos_folder="faces", name="x") != before


def test_folders_beyond_the_choices_are_found_by_name(nodes, comfy, monkeypatch, caplog):
    monkeypatch.setattr(nodes.host, "MOST_FOLDERS", 2)
    nodes.host.say_cut.cache_clear()
    for name in ("a", "b", "c/d"):
        (comfy / "input" / name).mkdir(parents=True)
    assert nodes.host.input_folders() == nodes.host.input_folders() == ["a", "b"]
    assert sum("more than 2 sub-folders" in line for line in caplog.messages) == 1
    assert nodes.host.input_folder("c/d") == comfy / "input" / "c" / "d"
    (comfy / "elsewhere" / "e").mkdir(parents=True)
    (comfy / "input" / "link").symlink_to(comfy / "elsewhere")
    assert nodes.host.input_folder("link")  # as the walk offers it
    for name in ("link/e", "c/./d", "c//d", "/c", "c/..", "c/", ""):
        with pytest.raises(ValueError, match="there is no folder"):
            nodes.host.input_folder(name)


def test_of_a_large_folder_as_many_as_said_are_taken_evenly(nodes, monkeypatch):
    sources, told, paths = nodes.image_sources, [], [Path(str(k)) for k in range(1025)]
    taken = sources.spread(paths, told.append)
    assert len(set(taken)) == 1024 and taken[0] == paths[0] and taken[-1] == paths[-2]
    assert told == ["1,024 of 1,025 pictures of the folder are used, evenly spread over it"]
    assert sources.spread(paths[:1024], told.append) == paths[:1024] and len(told) == 1


def test_an_empty_folder(tune, comfy):
    (comfy / "input" / "empty").mkdir()
    with pytest.raises(ValueError, match="no picture"):
        tune(photos_folder="empty")


def test_a_model_without_mapping_starts_from_a_given_style(nodes, loaded, tune, comfy):
    save_mmfs(comfy / "models" / "mmfs" / "phase2.safetensors", tiny_mmfs.mmfs(mapper=None), None, {"phase": 2})
    mmfs = nodes.LoadMMFS.execute("phase2.safetensors")[0]
    with pytest.raises(ValueError, match="no CLIP mapping .* Connect a w. code"):
        tune(mmfs=mmfs)
    random = nodes.MMFSRandomStyle.execute(mmfs, **RANDOM | {"count": 2})[0]
    with pytest.raises(ValueError, match="one w. code is needed"):
        tune(mmfs=mmfs, w_plus=random)
    one = replace(random, w=random.w[:1])
    assert torch.equal(tune(mmfs=mmfs, w_plus=one)[1].w, one.w)


@pytest.mark.parametrize("changes, said", [
    ({"prompt": ""}, "empty"), ({"prompt": "drawing " * 20}, "tokens"), ({"prompt": "watercolour"}, "it knows"),
    ({"references": torch.full((1, 40, 40, 3), 0.4)}, "flat colour"), ({"name": "../up"}, "file's name")])
def test_what_cannot_be_learned_from(tune, changes, said):
    with pytest.raises(ValueError, match=said):
        tune(**changes)


def test_an_empty_prompt_is_refused_before_anything_runs(nodes):
    assert "empty" in nodes.MMFSFineTuneText.validate_inputs(name="a", prompt=" ")
    assert nodes.MMFSFineTuneText.validate_inputs(name="a", prompt=None) is True
    assert "file's name" in nodes.MMFSFineTune.validate_inputs(name="a/b")
    assert "file's name" in nodes.SaveMMFSStyle.validate_inputs(name="a/b")


def test_cancel_stops_within_a_step_and_resume_is_exact(nodes, tune, comfy, monkeypatch):
    whole = tune("whole", save_every=1, iterations=4)
    with monkeypatch.context() as patch:
        made, interrupted = interrupt_after(patch, nodes, 3)
        with pytest.raises(interrupted):
            tune("parts", save_every=1, iterations=4)
        assert len(made) == 3
    with monkeypatch.context() as patch:
        made, _ = interrupt_after(patch, nodes, 0)
        rest = tune("parts", save_every=1, iterations=4)
        assert len(made) == 1  # no step is made twice
    assert same(decoder_of(rest), decoder_of(whole)) and rest[4] == whole[4]


def test_cancel_before_the_first_step(nodes, tune):
    import comfy.model_management as mm
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        tune()


def test_a_finished_snapshot_gives_its_style_at_once(nodes, tune, monkeypatch):
    first = tune(save_every=2)
    made, _ = interrupt_after(monkeypatch, nodes, 0)
    again = tune(save_every=2)
    assert len(made) == 1 and same(decoder_of(first), decoder_of(again)) and first[4] == again[4]


def test_fewer_iterations_take_the_earlier_snapshot_that_is_kept(tune):
    short = tune("short", iterations=2)
    tune("kept", iterations=3, save_every=1, keep=3)
    assert same(decoder_of(tune("kept", iterations=2)), decoder_of(short))


@pytest.mark.parametrize("changes, said", [({"seed": 4}, "seed was 3"), ({"photos": picture(9, 3)}, "faces"),
                                           ({"references": picture(8, side=40)}, "another one")])
def test_a_snapshot_of_other_settings_is_not_gone_on_with(tune, changes, said):
    tune(save_every=1, iterations=1)
    with pytest.raises(ValueError, match=said):
        tune(save_every=1, iterations=1, **changes)
    tune(save_every=1, iterations=1, resume=False, **changes)


def test_options(nodes, tune):
    from oneshot_atelier.train.fewshot import FewShotConfig
    schema = nodes.MMFSFineTuneOptions.GET_SCHEMA()
    values = {field.id: field.default for field in schema.inputs}
    official = nodes.MMFSFineTuneOptions.execute(**values)[0]
    assert FewShotConfig(**official.fields) == FewShotConfig()
    paper = nodes.MMFSFineTuneOptions.execute(**values | {"preset": "paper", "clip_weight": 9.0})[0]
    assert paper.fields["beta1"] == 0.99 and paper.fields["structure_norm"] == "frobenius"
    assert "clip_weight" not in paper.fields
    demo = nodes.MMFSFineTuneOptions.execute(**values | {"preset": "demo"})[0]
    assert not demo.fields.keys() & {"iterations", "batch", "lr", "seed"}
    with pytest.raises(ValueError, match="preset"):
        nodes.MMFSFineTuneOptions.execute(**values | {"preset": "best"})
    with pytest.raises(ValueError, match="anchor|word"):
        tune(prompt="drawing", options=nodes.MMFSFineTuneOptions.execute(**values | {"anchor": "nothing known"})[0])
    plain = decoder_of(tune("plain"))
    assert not same(plain, decoder_of(tune("loose", options=nodes.MMFSFineTuneOptions.execute(
        **values | {"projection_weight": 0.0})[0])))


# --- a seed's pictures ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("noise", ["seeded", "constant", "zero"])
@pytest.mark.parametrize("count", [2, 3, 9])  # 9: a chunk of 8 and one of 1
def test_the_first_of_many_samples_is_the_only_one_of_one(nodes, loaded, count, noise):
    mixed = {"mix_from": 3, "noise": noise}
    many = sampled(nodes, loaded, count=count, **mixed)
    assert torch.allclose(many[:1], sampled(nodes, loaded, count=1, **mixed), atol=1e-5)
    assert len({image.numpy().tobytes() for image in many}) == count


@pytest.mark.parametrize("count", [2, 3, 9])
def test_the_first_of_many_random_styles_is_the_only_one_of_one(styles, count):
    for mix in ({}, {"mix_from": 1, "mix_seed": 9}):
        assert torch.allclose(styles(count=count, **mix).w[:1], styles(**mix).w, atol=1e-5)


def test_seeds_0_and_1_share_no_style(styles):
    first, second = styles(seed=0, count=64).w, styles(seed=1, count=64).w
    assert torch.cdist(first.flatten(1), second.flatten(1)).min() > 1e-3
    assert len({w.numpy().tobytes() for w in torch.cat((first, second))}) == 128


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_the_first_photo_s_noise_does_not_depend_on_the_others(stylized, styles, batch):
    photos = picture(5, 3)
    together = stylized(photos, w_plus=styles(), batch=batch)
    assert torch.allclose(together[:1], stylized(photos[:1], w_plus=styles()), atol=1e-5)


@pytest.mark.parametrize("seed", [0, 2 ** 64 - 1])
def test_every_seed_is_taken(nodes, loaded, stylized, styles, tune, seed):
    assert sampled(nodes, loaded, seed=seed, mix_seed=seed, mix_from=2, count=1).shape == (1, PX, PX, 3)
    code = styles(seed=seed, mix_seed=seed, mix_from=1)
    assert stylized(picture(5), w_plus=code, noise_seed=seed).shape == (1, PX, PX, 3)
    for target in ({}, {"prompt": "drawing"}):
        assert tune(f"to {len(target)}", seed=seed, iterations=1, **target)[0].settings["seed"] == seed

# --- styles as files -----------------------------------------------------------------------------------------------
def test_a_saved_style_is_the_same_style(nodes, tune, stylized):
    style, code, *_ = tune().args
    path = nodes.SaveMMFSStyle.execute(style, "first", False)[0]
    assert path.endswith("first.safetensors")
    again, its_code, its_picture = nodes.LoadMMFSStyle.execute("first.safetensors").args
    assert same({k: v.float() for k, v in style.decoder.items()}, dict(again.decoder))
    assert again.settings == style.settings and torch.allclose(its_code.w, code.w, atol=5e-3)
    assert torch.allclose(its_picture, picture(2, side=40), atol=1 / 200)
    photos = picture(5, 2)
    assert torch.equal(stylized(photos, w_plus=code, style=style), stylized(photos, w_plus=code, style=again))


def test_a_style_is_not_overwritten_by_another(nodes, tune):
    style, other = tune("a")[0], tune("b", seed=9)[0]
    saved = [nodes.SaveMMFSStyle.execute(one, "same", False)[0] for one in (style, style, other, other)]
    assert [path.rpartition("same")[2] for path in saved] == [".safetensors"] * 2 + [" 2.safetensors"] * 2
    assert nodes.LoadMMFSStyle.execute("same 2.safetensors")[0].settings["seed"] == 9
    nodes.SaveMMFSStyle.execute(other, "same", True)
    assert nodes.LoadMMFSStyle.execute("same.safetensors")[0].settings["seed"] == 9


def test_a_style_from_words_and_one_without_code(nodes, tune, comfy):
    style = tune(prompt="drawing")[0]
    nodes.SaveMMFSStyle.execute(style, "words", False)
    assert "without a reference picture" in nodes.LoadMMFSStyle.execute("words.safetensors")[2].message
    save_mmfs_style(comfy / "models" / "mmfs_styles" / "bare.safetensors", replace(style, w_plus=None))
    bare, code, _ = nodes.LoadMMFSStyle.execute("bare.safetensors").args
    assert "no w+ code" in code.message
    with pytest.raises(ValueError, match="no w. code of its own"):
        nodes.MMFSStylize.execute(nodes.LoadMMFS.execute("demo")[0], picture(5), style=bare, **STYLIZE)


def test_a_style_of_another_model(nodes, tune, comfy):
    style = tune()[0]
    (comfy / "other").mkdir()
    path = tiny_mmfs.write(comfy / "other", seed=5) / "mmfs.safetensors"
    path.rename(comfy / "models" / "mmfs" / "other.safetensors")
    with pytest.raises(ValueError, match="another MMFS"):
        nodes.MMFSStylize.execute(nodes.LoadMMFS.execute("other.safetensors")[0], picture(5), style=style, **STYLIZE)
