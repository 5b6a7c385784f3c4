"""The nodes that train MMFS itself, executed as ComfyUI does it (under inference mode), with tiny networks."""
from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from oneshot_atelier.models.loading import save_mmfs
from oneshot_atelier.models.mmfs import MMFS
from oneshot_atelier.tests import tiny_mmfs, tiny_models
from oneshot_atelier.tests.node_tools import interrupt_after, picture, same
from oneshot_atelier.train.loop import Progress

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("comfy")]
PX = tiny_mmfs.PX
WORK = {"steps": 2, "batch": 4, "lr": 1e-3, "seed": 3, "name": "stage", "save_every": 0, "resume": True,
        "preview_every": 1, "precision": "float32"}
FOLDERS = {"photos_folder": "none", "art_folder": "none"}
STYLIZE = {"strength": 1.0, "noise": "zero", "noise_seed": 0, "fit": "crop", "max_side": 1024, "batch": 8}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_mmfs.write(tiny_models.write(tmp_path_factory.mktemp("demo")))


@pytest.fixture
def loaded(nodes):
    return SimpleNamespace(
        stylegan2=nodes.LoadStyleGAN2.execute("demo")[0], mmfs=nodes.LoadMMFS.execute("demo")[0],
        clip=nodes.LoadCLIP.execute("demo", "auto")[0], structure_net=nodes.LoadStructureNet.execute("demo")[0])


@pytest.fixture
def bare(nodes, comfy):
    """An MMFS without CLIP mapping and discriminator."""
    save_mmfs(comfy / "models" / "mmfs" / "bare.safetensors", tiny_mmfs.mmfs(mapper=None), None, {"phase": 1})
    return nodes.LoadMMFS.execute("bare.safetensors")[0]


@pytest.fixture
def stage1(nodes, loaded):
    return lambda **changes: nodes.MMFSTrainStage1.execute(loaded.stylegan2, **WORK | changes)


@pytest.fixture
def stage2(nodes, loaded):
    def run(mmfs=None, **changes):
        settings = {"structure_weight": 0.5, "photos": picture(5, 6), "art": picture(6, 5)} | FOLDERS | WORK | changes
        return nodes.MMFSTrainStage2.execute(mmfs or loaded.mmfs, loaded.structure_net, **settings)
    return run


@pytest.fixture
def mapping(nodes, loaded):
    def run(mmfs=None, **changes):
        settings = {"photos": picture(5, 6), "photos_folder": "none", "hidden": 16} | WORK | changes
        return nodes.MMFSTrainMapping.execute(mmfs or loaded.mmfs, loaded.clip, **settings)
    return run


def weights(output):
    return output[0].net.state_dict()


def parts_that_moved(before, after):
    """The first words of all names whose tensors differ."""
    return {name.split(".")[0] for name, value in after.items() if not torch.equal(before[name], value)}


# --- the stages ----------------------------------------------------------------------------------------------------
def test_from_stylegan2_to_a_stylization_by_text(nodes, loaded, stage1, stage2, mapping):
    first = stage1(name="a", photos=picture(1, 6, side=50)).args
    assert first[0].phase == 1 and first[0].net.mapper is None and first[0].discriminator is not None
    assert first[1].shape[1:] == (PX, PX, 3) and len(first[3]["loss"]) == 2
    second = stage2(mmfs=first[0], name="b").args
    assert second[0].phase == 2 and len(second[3]["loss"]) == 2
    third = mapping(mmfs=second[0], name="c").args
    assert third[0].phase == 3 and third[0].net.config.mapper.hidden == 16
    code = nodes.MMFSStyleFromText.execute(third[0], loaded.clip, "drawing", 0.0)[0]
    result = nodes.MMFSStylize.execute(third[0], picture(2), w_plus=code, **STYLIZE)[0]
    assert result.shape == (1, PX, PX, 3) and torch.isfinite(result).all()


def test_each_stage_trains_its_own_part(loaded, stage1, stage2, mapping):
    start = {k: v.clone() for k, v in loaded.mmfs.net.state_dict().items()}
    teacher = {k: v.clone() for k, v in loaded.stylegan2.net.state_dict().items()}
    made = weights(stage1(name="a"))
    assert same({k: v for k, v in teacher.items() if k.startswith("mapping.")},
                {k: v for k, v in made.items() if k.startswith("mapping.")})
    assert parts_that_moved(start, weights(stage2(name="b"))) == {"encoder", "mapping", "decoder"}
    assert parts_that_moved(start, weights(mapping(name="c"))) == {"mapper"}
    assert same(start, loaded.mmfs.net.state_dict()) and same(teacher, loaded.stylegan2.net.state_dict())


def test_the_discriminator_learns_in_stage_2_only(loaded, stage2, mapping):
    start = {k: v.clone() for k, v in loaded.mmfs.discriminator.state_dict().items()}
    assert same(start, mapping(name="a")[0].discriminator.state_dict())
    assert not same(start, stage2(name="b")[0].discriminator.state_dict())
    assert same(start, loaded.mmfs.discriminator.state_dict())


def test_stages_are_the_same_again(stage1, stage2):
    assert same(weights(stage1(name="a")), weights(stage1(name="b")))
    assert not same(weights(stage1(name="a")), weights(stage1(name="c", seed=4)))
    assert same(weights(stage2(name="d")), weights(stage2(name="e")))
    assert not same(weights(stage2(name="f")), weights(stage2(name="g", structure_weight=50.0)))


@pytest.mark.parametrize("stage", ["stage1", "stage2", "mapping"])
def test_cancel_stops_within_a_step_and_resume_is_exact(nodes, monkeypatch, request, stage):
    run = request.getfixturevalue(stage)
    whole = run(name="whole", save_every=1, steps=4)
    with monkeypatch.context() as patch:
        made, interrupted = interrupt_after(patch, nodes, 3)
        with pytest.raises(interrupted):
            run(name="parts", save_every=1, steps=4)
        assert len(made) == 3
    with monkeypatch.context() as patch:
        made, _ = interrupt_after(patch, nodes, 0)
        rest = run(name="parts", save_every=1, steps=4)
        assert len(made) == 1  # what was being shown had been saved already
    assert same(weights(rest), weights(whole)) and rest[3] == whole[3]
    assert same(rest[0].discriminator.state_dict(), whole[0].discriminator.state_dict())


def test_cancel_in_the_middle_of_a_step(stage2):
    import comfy.model_management as mm
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        stage2()


def test_a_finished_stage_gives_its_model_at_once_and_more_steps_go_on(nodes, stage1, monkeypatch):
    first = stage1(save_every=2)
    with monkeypatch.context() as patch:
        made, _ = interrupt_after(patch, nodes, 0)
        again = stage1(save_every=2)
        assert made == [] and same(weights(first), weights(again)) and torch.equal(first[1], again[1])
    assert same(weights(stage1(save_every=2, steps=3)), weights(stage1(name="long", steps=3)))


@pytest.mark.parametrize("stage", ["stage1", "stage2", "mapping"])
def test_fewer_steps_take_the_earlier_snapshot_that_is_kept(request, stage):
    run = request.getfixturevalue(stage)
    short = run(name="short", steps=1)
    run(name="kept", steps=3, save_every=1, keep=3)
    assert same(weights(run(name="kept", steps=1, keep=3)), weights(short))


@pytest.mark.parametrize("changes, said", [
    ({"lr": 0.05}, "lr was"), ({"structure_weight": 2.0}, "structure_weight was 0.5"),
    ({"art": picture(9, 5)}, "artistic set"),
    ({"photos": picture(9, 5)}, "faces")])
def test_a_snapshot_of_other_settings_is_not_gone_on_with(stage2, changes, said):
    stage2(save_every=1, steps=1)
    with pytest.raises(ValueError, match=said):
        stage2(save_every=1, steps=1, **changes)
    stage2(save_every=1, steps=1, resume=False, **changes)


@pytest.mark.parametrize("seed", [0, 2 ** 64 - 1])
@pytest.mark.parametrize("stage", ["stage1", "stage2", "mapping"])
def test_every_seed_is_taken(request, stage, seed):
    assert len(request.getfixturevalue(stage)(seed=seed, steps=1)[3]["loss"]) == 1

# --- what goes in --------------------------------------------------------------------------------------------------
def test_pictures_from_folders(nodes, stage2, comfy):
    for name, count in (("faces", 3), ("art", 5)):
        (comfy / "input" / name).mkdir()
        for number in range(count):
            nodes.images.to_pil(picture(number, side=70)).save(comfy / "input" / name / f"{number}.png")
    whole = stage2(photos=None, art=None, photos_folder="faces", art_folder="art", save_every=1, steps=2)
    stage2(photos=None, art=None, photos_folder="faces", art_folder="art", save_every=1, steps=1, name="parts")
    assert same(weights(whole), weights(stage2(photos=None, art=None, photos_folder="faces", art_folder="art",
                                               save_every=1, steps=2, name="parts")))
    with pytest.raises(ValueError, match="photos: there are pictures on the socket and in a folder"):
        stage2(photos_folder="faces")
    with pytest.raises(ValueError, match="there is no folder"):
        stage2(photos=None, photos_folder="../output")


def test_what_is_missing(nodes, loaded, stage2, mapping, bare):
    with pytest.raises(ValueError, match="art: there are no pictures"):
        stage2(art=None)
    with pytest.raises(ValueError, match="holds no discriminator"):
        stage2(mmfs=bare)
    with pytest.raises(ValueError, match="holds no discriminator"):
        mapping(mmfs=bare)
    alone = replace(loaded.stylegan2, discriminator=None)
    with pytest.raises(ValueError, match="holds no discriminator"):
        nodes.MMFSTrainStage1.execute(alone, **WORK)
    assert stage2(mmfs=bare, stylegan2=loaded.stylegan2)[0].phase == 2


@pytest.mark.parametrize("changes, said", [({"name": "../up"}, "file's name"), ({"precision": "float8"}, "precision"),
                                           ({"batch": 6}, "multiple of 4")])
def test_settings_that_cannot_be(stage2, changes, said):
    with pytest.raises(ValueError, match=said):
        stage2(**changes)


def test_a_clip_of_another_width(nodes, mapping, loaded):
    wide = MMFS(replace(tiny_mmfs.mmfs(mapper=None).config, w_dim=24))
    with pytest.raises(ValueError, match="this CLIP gives 16"):
        mapping(mmfs=replace(loaded.mmfs, patched=nodes.host.PatchedModule(wide)))


# --- the CLIP of a mapping -----------------------------------------------------------------------------------------
@pytest.fixture
def texts(nodes, monkeypatch):
    """What is shown on nodes."""
    found = []
    monkeypatch.setattr(nodes.host, "show_text", found.append)
    return found


@pytest.fixture
def other_clip(nodes, comfy):
    (comfy / "other").mkdir()
    path = tiny_models.write(comfy / "other", seed=5) / "clip.safetensors"
    path.rename(comfy / "models" / "open_clip" / "other.safetensors")
    return nodes.LoadCLIP.execute("other.safetensors", "auto")[0]


def uses_of_the_mapping(nodes, loaded, mmfs, clip):
    """Each node that asks the mapping, as a function."""
    tune = {"iterations": 1, "batch": 2, "lr": 1e-3, "seed": 3, "save_every": 0, "resume": True, "name": "tuned",
            "photos_folder": "none", "photos": picture(6, 3)}
    return {
        "text": lambda: nodes.MMFSStyleFromText.execute(mmfs, clip, "drawing", 0.0),
        "picture": lambda: nodes.MMFSStyleFromPicture.execute(mmfs, clip, picture(2), False),
        "tune to text": lambda **more: nodes.MMFSFineTuneText.execute(mmfs, clip, loaded.structure_net,
                                                                      prompt="drawing", **tune | more),
        "tune to picture": lambda **more: nodes.MMFSFineTune.execute(mmfs, clip, loaded.structure_net,
                                                                     references=picture(2), **tune | more)}


@pytest.mark.parametrize("use", ["text", "picture", "tune to text", "tune to picture"])
def test_a_mapping_of_another_clip_is_told_on_the_node_and_in_the_log(nodes, loaded, mapping, other_clip, texts, caplog,
                                                                      use):
    nodes.SaveMMFS.execute(mapping()[0], "mapped", True, False)
    mmfs = nodes.LoadMMFS.execute("mapped.safetensors")[0]
    texts.clear()
    uses_of_the_mapping(nodes, loaded, mmfs, loaded.clip)[use]()
    assert not any("another CLIP" in text for text in [*texts, caplog.text])
    texts.clear()
    uses_of_the_mapping(nodes, loaded, mmfs, other_clip)[use](**{"name": "b"} if "tune" in use else {})
    assert "another CLIP" in texts[0] and "another CLIP" in texts[-1] and "another CLIP" in caplog.text


def test_the_clip_does_not_matter_where_a_fine_tune_starts_from_a_given_code(nodes, loaded, other_clip, texts):
    mmfs = replace(loaded.mmfs, clip=loaded.clip.fingerprint)
    random = nodes.MMFSRandomStyle.execute(mmfs, 0, 1, 1, 0, 1.0)[0]
    uses_of_the_mapping(nodes, loaded, mmfs, other_clip)["tune to picture"](w_plus=random)
    assert not any("another CLIP" in text for text in texts)


def test_a_model_that_does_not_know_its_clip_takes_any(nodes, loaded, other_clip, texts):
    assert loaded.mmfs.clip == ""
    uses_of_the_mapping(nodes, loaded, loaded.mmfs, other_clip)["text"]()
    assert texts == []


def test_the_clip_of_a_mapping_stays_known(nodes, loaded, bare, stage2, mapping, other_clip):
    mapped = mapping()[0]
    assert mapped.clip == loaded.clip.fingerprint != other_clip.fingerprint
    assert stage2(mmfs=mapped, name="further")[0].clip == mapped.clip
    path = nodes.SaveMMFS.execute(replace(mapped, clip=""), "unknown", False, False)[0]
    assert nodes.LoadMMFS.execute(path.rpartition("/")[2])[0].clip == "" == bare.clip


# --- saving --------------------------------------------------------------------------------------------------------
def test_saving(nodes, stage1, loaded):
    made = stage1()[0]
    path = nodes.SaveMMFS.execute(made, "mine", True, False)[0]
    assert path.endswith("mine.safetensors")
    again = nodes.LoadMMFS.execute("mine.safetensors")[0]
    assert again.phase == 1 and again.fingerprint == made.fingerprint
    assert all(torch.equal(v.half(), again.discriminator.state_dict()[k].half())
               for k, v in made.discriminator.state_dict().items())
    nodes.SaveMMFS.execute(made, "mine", True, False)  # the same one: nothing to do
    slim, other = (nodes.SaveMMFS.execute(*given, False)[0] for given in ((made, "mine", False),
                                                                          (loaded.mmfs, "mine", True)))
    assert slim.endswith("mine 2.safetensors") and other.endswith("mine 3.safetensors")
    assert nodes.LoadMMFS.execute("mine 2.safetensors")[0].discriminator is None
    assert nodes.LoadMMFS.execute("mine 3.safetensors")[0].fingerprint == loaded.mmfs.fingerprint
    nodes.SaveMMFS.execute(loaded.mmfs, "mine", False, True)
    last = nodes.LoadMMFS.execute("mine.safetensors")[0]
    assert last.discriminator is None and last.phase == 3 and last.fingerprint == loaded.mmfs.fingerprint


def test_names_that_are_no_names(nodes):
    for node in (nodes.SaveMMFS, nodes.MMFSTrainStage1, nodes.MMFSTrainStage2, nodes.MMFSTrainMapping):
        assert "file's name" in node.validate_inputs(name="../up")


def test_a_step_does_not_sum_all_losses_before_it(nodes, monkeypatch):
    module = sys.modules[nodes.host.__name__.replace(".host", ".monitor")]
    monitor = module.TrainingMonitor(3, names=("pixel", "feature"))
    monitor.loss_history = {"pixel": [1.0, 2.0], "feature": [0.5, 0.25, 9.0], "other": [7.0]}
    assert monitor.last_loss == monitor.losses[-1] == 2.25
    monkeypatch.setattr(module.TrainingMonitor, "losses", property(lambda self: pytest.fail("all losses are summed")))
    monitor.on_iteration(Progress(2, 3, {}))
