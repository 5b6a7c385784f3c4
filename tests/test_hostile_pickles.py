"""Hostile network pickles (NVIDIA's .pkl) and trainer files (.pt, .pth): code of every form at every place of a real
file. Each sample is first shown to run under plain pickle by a marker file that it leaves; ours must leave none."""

import copyreg
import functools
import os
import pickle
import random
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from oneshot_atelier.models import checkpoints, loading
from oneshot_atelier.models.checkpoints import CheckpointError
from oneshot_atelier.tests import golden_cases as golden
from oneshot_atelier.tests import mmfs_files as small
from oneshot_atelier.tests import nvidia_files
from oneshot_atelier.tests.hostile_files import (
    PLACE,
    Call,
    OnAppend,
    OnHash,
    OnNew,
    OnState,
    Pid,
    dumps,
    fragment,
    spliced,
    spliced_zip,
    write,
)
from oneshot_atelier.tests.tiny import same

EXTENSION = 0xF0


def program(command):
    return f"import os; os.system({command!r})"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def persistent(command):
    with nvidia_files.their_modules():
        return fragment(nvidia_files.Persistent(program(command) + "\n" + nvidia_files.SOURCE))


def file_beside(command):
    """A second pickle in a file of its own, to be fetched by torch.load."""
    path = command.split(" ", 1)[1] + ".more"
    with open(path, "wb") as file:
        file.write(pickle.dumps(Call(exec, program(command))))
    return path


CODE = {
    "REDUCE of exec": lambda c: fragment(Call(exec, program(c))),
    "GLOBAL os.system": lambda c: b"cposix\nsystem\n(" + text(c) + b"tR",
    "STACK_GLOBAL": lambda c: b"\x8c\x05posix\x8c\x06system\x93" + text(c) + b"\x85R",
    "INST": lambda c: b"(" + text(c) + b"iposix\nsystem\n",
    "OBJ": lambda c: b"(cposix\nsystem\n" + text(c) + b"o",
    "extension code": lambda c: b"\x82" + bytes([EXTENSION]) + text(c) + b"\x85R",
    "extension code of two bytes": lambda c: b"\x83" + struct.pack("<H", EXTENSION) + text(c) + b"\x85R",
    "extension code of four bytes": lambda c: b"\x84" + struct.pack("<i", EXTENSION) + text(c) + b"\x85R",
    "BUILD with __setstate__": lambda c: fragment(OnState(c)),
    "NEWOBJ": lambda c: fragment(OnNew(c)),
    "NEWOBJ_EX": lambda c: fragment(OnNew(c, "x"), 4),
    "APPENDS": lambda c: fragment(OnAppend(items=[c])),
    "SETITEMS": lambda c: fragment(OnAppend(entries={"a": c})),
    "hash of a key": lambda c: fragment({OnHash(c): 1}),
    "getattr chain": lambda c: (b"cbuiltins\ngetattr\ncbuiltins\n__import__\n" + text("os") + b"\x85R" + text("system")
                                + b"\x86R" + text(c) + b"\x85R"),
    "partial of torch.load": lambda c: fragment(Call(functools.partial(torch.load, weights_only=False),
                                                     file_beside(c))),
    "nested storage with a pickle": lambda c: fragment(Call(
        torch.storage._load_from_bytes, pickle.dumps(Call(exec, program(c))))),
    "program of a module": persistent,
    "numpy array of objects": lambda c: fragment(np.array([Call(exec, program(c)), 1], dtype=object)),
    "inside a tensor's arguments": lambda c: fragment(Call(
        torch._utils._rebuild_parameter, Call(exec, program(c)), True, {})),
    "a list in a dict in a tuple": lambda c: fragment(({"a": [1, Call(exec, program(c))]},)),
}
# not only harmless but refused wherever it stands
ALWAYS_REFUSED = {"extension code", "extension code of two bytes", "extension code of four bytes"}


def whole(place):
    """A network pickle of protocol 2 with PLACE at `place`."""
    g = nvidia_files.module(small.nvidia_state(small.generator()))
    d = nvidia_files.discriminator(small.nvidia_state(small.discriminator()))
    root = nvidia_files.snapshot(g, d)
    if place in root:
        root[place] = PLACE
    elif place == "the whole":
        root = PLACE
    elif place == "an attribute":
        g._init_args = PLACE
    elif place == "a parameter":
        g._modules["synthesis"]._modules["b4"]._parameters["const"] = PLACE
    elif place == "a buffer":
        g._modules["synthesis"]._modules["b4"]._modules["conv1"]._buffers["noise_const"] = PLACE
    elif place == "a module":
        g._modules["mapping"]._modules["fc0"] = PLACE
    elif place == "an unused module":
        g._modules["more"] = PLACE
    else:
        assert place == "a group of D"
        d._modules["b4"]._modules["mbstd"].group_size = PLACE
    return nvidia_files.dumps(root, 2)


NEEDED = ("the whole", "G_ema", "a parameter", "a module")
UNUSED = ("G", "augment_pipe", "training_set_kwargs", "an attribute", "an unused module", "a group of D", "D")


def runs_plainly(load, marker, monkeypatch):
    """Assert that `load` (by plain pickle) runs the code, and clean up."""
    monkeypatch.setenv("HOSTILE_FILES_ARMED", "1")
    copyreg.add_extension("posix", "system", EXTENSION)
    try:
        with nvidia_files.their_modules():
            load()
    except Exception as error:  # noqa: BLE001 - what the code returns may be unfit for the rest of the pickle
        assert marker.exists(), error
    finally:
        copyreg.remove_extension("posix", "system", EXTENSION)
        monkeypatch.delenv("HOSTILE_FILES_ARMED")
    assert marker.exists(), "this sample does not run under plain pickle: it proves nothing"
    marker.unlink()


def refused(path, marker, load=loading.load_stylegan2):
    """Assert that the file gives an error of ours, that nothing ran, and that no reader leaves anything behind."""
    before = sorted(os.listdir(path.parent))
    with pytest.raises(CheckpointError) as caught:
        load(path)
    for reader in (checkpoints.read, loading.convert, loading.load_mmfs, loading.load_mmfs_style):
        with pytest.raises(CheckpointError):
            reader(path)
    assert str(caught.value).startswith(f"{path.name}: ") and len(str(caught.value)) < 600
    assert not marker.exists() and sorted(os.listdir(path.parent)) == before
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(CODE))
def test_code_runs_under_plain_pickle_wherever_it_stands_and_never_under_ours(tmp_path, monkeypatch, name):
    marker = tmp_path / "ran"
    opcodes = CODE[name](f"touch {marker}")
    for place in (*NEEDED, *UNUSED):
        data = spliced(whole(place), opcodes)
        runs_plainly(functools.partial(pickle.loads, data), marker, monkeypatch)
        path = write(tmp_path / "ffhq.pkl", data)
        if place in NEEDED or name in ALWAYS_REFUSED:
            refused(path, marker)
        else:
            g, _ = loading.load_stylegan2(path)
            assert same(g.state_dict(), small.generator().state_dict()) and not marker.exists()


@pytest.mark.parametrize("name", sorted(CODE))
def test_code_in_trainer_files_never_runs(tmp_path, monkeypatch, name):
    """In both containers: torch.load without its restriction runs it."""
    marker = tmp_path / "ran"
    opcodes = CODE[name](f"touch {marker}")
    sound = {"550000.pt": (small.rosinality_root(), "args", "g_ema", loading.load_stylegan2),
             "phase3.pth": (small.mmfs_root(), "optimizer_0", "G_ema_model", loading.load_mmfs)}
    for file_name, (root, unused, needed, load) in sound.items():
        for entry in (unused, needed):
            path = golden.save_torch(tmp_path / file_name, {**root, entry: PLACE})
            spliced_zip(path, opcodes)
            runs_plainly(functools.partial(torch.load, path, weights_only=False), marker, monkeypatch)
            if entry == needed or name in ALWAYS_REFUSED:
                with pytest.raises(CheckpointError, match=f"^{file_name}: "):
                    load(path)
            else:
                assert load(path)[0] is not None
            assert not marker.exists()


# --- what is wrong without being code ------------------------------------------------------------------------------
def refused_root(tmp_path, root, protocol=4):
    return refused(write(tmp_path / "ffhq.pkl", nvidia_files.dumps(root, protocol)), tmp_path / "ran")


def g_with(**changes):
    """The generator's record with some tensors replaced or (None) taken out."""
    state = small.nvidia_state(small.generator())
    for name, value in changes.items():
        name = name.replace("__", ".")
        state.pop(name, None)
        state |= {} if value is None else {name: value}
    return nvidia_files.snapshot(nvidia_files.module(state), None)


OTHER_GENERATIONS = {
    "StyleGAN3": (g_with(synthesis__input__weight=torch.zeros(4, 4), synthesis__b4__const=None), "StyleGAN3"),
    "StyleGAN3 by its layers": (g_with(synthesis__L0_36_512__weight=torch.zeros(4, 4)), "StyleGAN3"),
    "conditional": (g_with(mapping__embed__weight=torch.zeros(16, 4)), "class-conditional"),
    "StyleGAN1": (g_with(synthesis__b4__const=None), "no StyleGAN2"),
    "an odd layer": (g_with(synthesis__b4__conv1__more__weight=torch.zeros(3)), "conv1.more.weight' that"),
    "a missing layer": (g_with(synthesis__b8__conv0__weight=None), "'synthesis.b8.conv0.weight' is missing"),
    "another width": (g_with(synthesis__b4__const=torch.zeros(13, 4, 4)), "not those of the network"),
    "wide z": (g_with(mapping__fc0__weight=torch.zeros(16, 20), mapping__w_avg=None), "different widths"),
    "integers": (g_with(synthesis__b4__const=torch.zeros(12, 4, 4, dtype=torch.int32)), "int32"),
    "NaN": (g_with(synthesis__b4__const=torch.full((12, 4, 4), float("nan"))), "NaN or infinite"),
    "complex": (g_with(synthesis__b4__const=torch.zeros(12, 4, 4, dtype=torch.complex64)), "numbers are of type"),
    "no generator": ({"G_ema": None, "D": None}, "'G_ema' holds no tensors"),
    "a text": ({"G_ema": "here", "D": None}, "'G_ema' holds no tensors"),
    "a plain state dict": ({"G_ema": {"w": torch.zeros(3)}, "D": None}, "no known model"),
    "an empty module": (nvidia_files.snapshot(nvidia_files.Persistent(), None), "holds no tensors"),
    "something else": ({"weights": 1}, "no known model .it begins with weights"),
    "a number": (1, "a file of a single value"),
    "not square": (g_with(synthesis__b4__const=torch.zeros(12, 4, 6)), "constant of 4 x 6 px"),
}


@pytest.mark.parametrize("name", sorted(OTHER_GENERATIONS))
def test_other_networks_and_odd_records_are_refused_with_the_reason(tmp_path, name):
    root, reason = OTHER_GENERATIONS[name]
    path = write(tmp_path / "ffhq.pkl", nvidia_files.dumps(root))
    with pytest.raises(CheckpointError, match=reason):
        loading.load_stylegan2(path)
    assert os.listdir(tmp_path) == ["ffhq.pkl"]


FAULTY_CRITICS = {
    "conditional": (nvidia_files.module({"mapping.fc0.weight": torch.zeros(4, 4)}), "class-conditional"),
    "a group of text": (nvidia_files.discriminator(small.nvidia_state(small.discriminator()), "many"),
                        "no number of samples"),
    "a group of none": (nvidia_files.discriminator(small.nvidia_state(small.discriminator()), 0),
                        "no number of samples"),
    "no group": (nvidia_files.module(small.nvidia_state(small.discriminator())), "mbstd"),
}


@pytest.mark.parametrize("name", sorted(FAULTY_CRITICS))
def test_a_faulty_discriminator_is_left_out_with_the_reason(tmp_path, caplog, name):
    discriminator, reason = FAULTY_CRITICS[name]
    root = nvidia_files.snapshot(nvidia_files.module(small.nvidia_state(small.generator())), discriminator)
    g, d = loading.load_stylegan2(write(tmp_path / "ffhq.pkl", nvidia_files.dumps(root)))
    assert d is None and same(g.state_dict(), small.generator().state_dict())
    assert "discriminator is left out" in caplog.text and reason in caplog.text


def test_tensorflow_pickles_are_named_with_the_file_to_take_instead(tmp_path):
    with golden.passing_class("dnnlib.tflib.network", "Network") as network:
        networks = [network() for _ in range(3)]
        for made in networks:
            made.__dict__.update(version=4, variables=[("4x4/Const/const", np.zeros((1, 4, 4, 4), np.float32))])
        data = pickle.dumps(tuple(networks), 4)
    message = refused(write(tmp_path / "ffhq.pkl", data), tmp_path / "ran")
    assert "TensorFlow" in message and "ffhq-res512-mirror-stylegan2-noaug.pkl" in message


def test_modules_that_nest_deeply_or_contain_their_file_are_walked_in_bounded_time(tmp_path):
    deep = nvidia_files.Persistent()
    for _ in range(60):
        outer = nvidia_files.Persistent()
        outer.add_module("a", deep)
        deep = outer
    g = nvidia_files.module(small.nvidia_state(small.generator()))
    g.add_module("deep", deep)
    deep_file = nvidia_files.dumps(nvidia_files.snapshot(g, None))
    around = spliced(whole("an unused module"), b"h\x00")  # memo 0: the outer dict
    for data in (deep_file, around):
        found, _ = loading.load_stylegan2(write(tmp_path / "ffhq.pkl", data))
        assert same(found.state_dict(), small.generator().state_dict())


def test_a_cycle_of_records_is_refused(tmp_path):
    """{'type': .., 'state': {'_modules': {'a': the record itself}}}: possible with the memo alone."""
    record = (b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}(X\x04\x00\x00\x00typeX\x05\x00\x00\x00class"
              b"X\x05\x00\x00\x00state}q\x01u\x85Rq\x02"
              b"0h\x01X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00ah\x02ss0")
    data = b"\x80\x02" + record + b"}X\x05\x00\x00\x00G_emah\x02s."
    assert "holds no tensors" in refused(write(tmp_path / "ffhq.pkl", data), tmp_path / "ran")


def test_one_module_under_two_names_at_every_level_does_not_multiply(tmp_path):
    """2^12 paths over 12 records."""
    node = nvidia_files.module({"w": torch.zeros(1)})
    for _ in range(12):
        outer = nvidia_files.Persistent()
        outer._modules.update(a=node, b=node)
        node = outer
    assert "no known model" in refused_root(tmp_path, nvidia_files.snapshot(node, None))


def nested_storage(numel, data=b"\0" * 16, kind=torch.FloatStorage, key="0"):
    """The legacy torch file of one storage, as it stands inside these pickles."""
    heads = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {
        "protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}})]
    return b"".join([*heads, dumps(Pid("storage", kind, key, "cpu", numel, None)), pickle.dumps([key], 2),
                     struct.pack("<q", numel), data])


def one_parameter(storage, size=(4,), stride=(1,), offset=0):
    tensor = Call(torch._utils._rebuild_tensor_v2, Call(torch.storage._load_from_bytes, storage), offset, size, stride,
                  False, {})
    return spliced(whole("a parameter"), fragment(tensor))


def test_the_sound_nested_storage_is_read_as_far_as_its_shape(tmp_path):
    data = one_parameter(nested_storage(4), (1, 2, 2), (4, 2, 1))
    assert "not those of the network" in refusal(tmp_path, data)


def refusal(tmp_path, data):
    with pytest.raises(CheckpointError) as caught:
        loading.load_stylegan2(write(tmp_path / "ffhq.pkl", data))
    return str(caught.value)


HUGE = {
    "storage of 2^40 numbers": lambda: one_parameter(nested_storage(2**40)),
    "storage of 2^62 numbers": lambda: one_parameter(nested_storage(2**62)),
    "negative storage": lambda: one_parameter(nested_storage(-1)),
    "tensor longer than its storage": lambda: one_parameter(nested_storage(4), (2**40,), (0,)),
    "tensor of 2^70 numbers": lambda: one_parameter(nested_storage(4), (2**70,), (1,)),
    "tensor of many dimensions": lambda: one_parameter(nested_storage(4), (1,) * 60, (1,) * 60),
    "offset beyond": lambda: one_parameter(nested_storage(4), offset=2**50),
    "storage cut short": lambda: one_parameter(nested_storage(4, b"\0" * 15)),
    "storage of objects": lambda: one_parameter(nested_storage(4, kind=np.ndarray)),
    "storage of complex numbers": lambda: one_parameter(nested_storage(2, kind=torch.ComplexFloatStorage)),
    "storage within a storage": lambda: one_parameter(pickle.dumps(
        Call(torch.storage._load_from_bytes, nested_storage(4)))),
    "empty storage": lambda: one_parameter(b""),
    "bytes of 1 TB": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "text of 4 GB": lambda: b"\x80\x02X\xff\xff\xff\xffx.",
    "memo index of 4e9": lambda: b"\x80\x02Nr\xff\xff\xff\xff.",
    "persistent id": lambda: spliced(whole("a parameter"),
                                     dumps(Pid("storage", torch.FloatStorage, "0", "cpu", 4))[2:-1]),
    "text persistent id": lambda: spliced(whole("G"), b"Pstorage\n"),
    "protocol 5 buffer": lambda: spliced(whole("G"), b"\x97"),
    "wide tuple in the memo": lambda: b"\x80\x02)" + b"2\x86" * 60 + b"}h\x00Ns.",
}


@pytest.mark.parametrize("name", sorted(HUGE))
def test_claims_of_size_and_references_outwards_cost_nothing_and_are_refused(tmp_path, name):
    data = HUGE[name]()
    tracemalloc.start()
    message = refusal(tmp_path, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message.startswith("ffhq.pkl: ") and peak < 20 * len(data) + 4_000_000


@pytest.mark.parametrize("opcodes", [b"(" * 200_000, b"]" * 200_000 + b"a" * 199_999, b")" + b"\x85" * 200_000,
                                     b"}" + b"}X\x01\x00\x00\x00a" * 100_000, b"N" * 200_000,
                                     b"(" * 100_000 + b"l" * 100_000])
def test_deep_nesting_does_not_break_the_reader(tmp_path, opcodes):
    assert refusal(tmp_path, b"\x80\x02" + opcodes + b".").startswith("ffhq.pkl: ")
    path = write(tmp_path / "ffhq.pkl", spliced(whole("G"), b"(" + opcodes + b"1N"))
    try:
        loading.load_stylegan2(path)
    except CheckpointError:
        pass


def test_lists_that_double_through_the_memo_stay_small(tmp_path):
    """A billion laughs: each list holds the one before it ten times."""
    bomb = b"](NNe" + b"".join(b"q%c](" % bytes([k]) + b"h%c" % bytes([k]) * 10 + b"e" for k in range(40, 70))
    tracemalloc.start()
    g, _ = loading.load_stylegan2(write(tmp_path / "ffhq.pkl", spliced(whole("augment_pipe"), b"(" + bomb + b"1N")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert same(g.state_dict(), small.generator().state_dict()) and peak < 30_000_000


# --- damage ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def sound():
    return nvidia_files.dumps(nvidia_files.snapshot(
        nvidia_files.module(small.nvidia_state(small.generator())),
        nvidia_files.discriminator(small.nvidia_state(small.discriminator()))))


def test_a_truncated_pickle_is_an_error_of_ours(tmp_path, sound):
    path = tmp_path / "ffhq.pkl"
    for length in {*range(0, 60), *range(60, len(sound), len(sound) // 40), *range(len(sound) - 20, len(sound))}:
        path.write_bytes(sound[:length])
        with pytest.raises(CheckpointError, match=r"^ffhq\.pkl: "):
            loading.load_stylegan2(path)


def test_random_damage_is_never_an_error_of_another_kind(tmp_path, sound):
    dice, path, errors = random.Random(0), tmp_path / "ffhq.pkl", 0
    structure = [at for at in range(len(sound)) if sound[at:at + 1].isalpha() or sound[at] > 127]
    for _ in range(250):
        damaged = bytearray(sound)
        for _ in range(dice.choice([1, 1, 3])):
            damaged[dice.choice(structure)] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            checkpoints.read(path)
        except CheckpointError:
            errors += 1
    assert errors > 20
