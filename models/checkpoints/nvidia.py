"""StyleGAN2 as NVIDIA's stylegan2-ada-pytorch and stylegan3 programs store it: `.pkl` (MMFS spec A.5 to A.7)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from .errors import CheckpointError
from .foreign import Foreign, is_tensor
from .names import Row, count, inside, linear, read
from .records import Global, Inert, TensorRef
from .stylegan2 import complete, joined

PERSISTENT = Global("torch_utils.persistence", "_reconstruct_persistent_obj")
MAX_MODULES, MAX_DEPTH = 2000, 16
WHOLE_BATCH = 1 << 16  # a group that no batch reaches
_STYLEGAN3 = re.compile(r"synthesis\.L\d+_")
_ADVICE = ("pick an unconditional StyleGAN2 of stylegan2-ada-pytorch or stylegan3, such as "
           "ffhq-res512-mirror-stylegan2-noaug.pkl")

STYLED = (Row("weight", "weight"), Row("affine.weight", "affine.weight"), Row("affine.bias", "affine.bias"),
          Row("noise_strength", "noise_strength"), Row("bias", "bias"))
TO_RGB = (Row("weight", "weight"), Row("affine.weight", "affine.weight"), Row("affine.bias", "affine.bias"),
          Row("bias", "bias"))


def generator_rows(blocks: int, mapping_layers: int) -> list[Row]:
    """Our names beside those of `G_ema`, for resolutions 4 .. 2^(blocks + 1) px."""
    rows = linear((f"mapping.layers.{k}", f"mapping.fc{k}") for k in range(mapping_layers))
    rows += [Row("w_avg", "mapping.w_avg", optional=True), Row("const", "synthesis.b4.const")]
    for k in range(blocks):
        ours, theirs = f"synthesis.blocks.{k}.", f"synthesis.b{4 << k}."
        if k:
            rows += inside(STYLED, f"{ours}conv0.", f"{theirs}conv0.")
            rows.append(Row(f"noise_{2 * k - 1}", f"{theirs}conv0.noise_const", optional=True))
        rows += inside(STYLED, f"{ours}conv1.", f"{theirs}conv1.")
        rows.append(Row(f"noise_{2 * k}", f"{theirs}conv1.noise_const", optional=True))
        rows += inside(TO_RGB, f"{ours}rgb.", f"{theirs}torgb.")
    return rows


def discriminator_rows(blocks: int) -> list[Row]:
    """Our names beside those of `D`, for `blocks` halvings down to 4 px."""
    rows = linear([("from_rgb", f"b{4 << blocks}.fromrgb")])
    for k in range(blocks):
        theirs = f"b{4 << (blocks - k)}."
        rows += linear((f"blocks.{k}.conv{i}", f"{theirs}conv{i}") for i in (0, 1))
        rows.append(Row(f"blocks.{k}.skip.weight", f"{theirs}skip.weight"))
    return rows + linear((name, f"b4.{name}") for name in ("conv", "fc", "out"))


def rows_of_generator(names: Collection[str]) -> list[Row]:
    """The table that fits the tensors of `G_ema`."""
    return generator_rows(_blocks(names, "synthesis.b"), count(names, "mapping.fc"))


def rows_of_discriminator(names: Collection[str]) -> list[Row]:
    """The table that fits the tensors of `D`."""
    return discriminator_rows(_blocks(names, "b") - 1)


def _blocks(names: Collection[str], prefix: str) -> int:
    """Resolutions from 4 px up: they stand in the names (b4, b8, ..)."""
    blocks = 0
    while any(name.startswith(f"{prefix}{4 << blocks}.") for name in names):
        blocks += 1
    return blocks


# --- the pickle: persistent records of modules, walked without running anything of them ------------------------------
def matches(root: Any) -> bool:
    """True if `root` (a pickle's object) seems to be a network snapshot of NVIDIA's, of whichever generation."""
    return isinstance(root, (tuple, list)) or "G_ema" in root_entries(root)


def parse(root: Any) -> Foreign:
    """Kind "stylegan2": `g.*` from `G_ema` and, unless the file lacks it, `d.*` from `D`; meta has D's group.

    Raises CheckpointError for StyleGAN 1 and 3, class-conditional and TensorFlow files, and records without tensors.
    """
    if isinstance(root, (tuple, list)):
        raise CheckpointError(f"this is a pickle of {len(root)} objects, as the TensorFlow programs of StyleGAN and "
                              f"StyleGAN2 write; {_ADVICE}")
    entries = root_entries(root)
    state = tensors_of(entries["G_ema"], "G_ema")
    _check_generation(state)
    generator = complete(read(state, rows_of_generator(state)))
    if entries.get("D") is None:
        return Foreign(joined(generator, None), "stylegan2", {"format": "nvidia", "group": 4})
    state = tensors_of(entries["D"], "D")
    if any(name.startswith(("mapping.", "b4.cmap")) for name in state):
        raise CheckpointError(f"its discriminator is class-conditional; {_ADVICE}")
    group = _group(entries["D"])
    return Foreign(joined(generator, read(state, rows_of_discriminator(state))), "stylegan2",
                   {"format": "nvidia", "group": group})


def root_entries(root: Any) -> dict[Any, Any]:
    """The entries of a dict or of a record of one (EasyDict)."""
    found = root.entries if isinstance(root, Inert) else root
    return found if isinstance(found, dict) else {}


def tensors_of(record: Any, name: str) -> dict[str, TensorRef]:
    """{name: tensor} of a module's record and of all modules in it. Raises CheckpointError if there are none."""
    found: dict[str, TensorRef] = {}
    todo, modules = [("", record, 0)], 0
    while todo:
        prefix, module, depth = todo.pop()
        modules += 1
        if modules > MAX_MODULES or depth > MAX_DEPTH:
            raise CheckpointError(f"its entry '{name}' holds more than {MAX_MODULES} modules or {MAX_DEPTH} levels of "
                                  "them; the file is damaged or hostile, do not use it")
        state = attributes(module, prefix or name)
        for kind in ("_parameters", "_buffers"):
            found |= {f"{prefix}{key}": value for key, value in _text_entries(state, kind) if is_tensor(value)}
        todo += [(f"{prefix}{key}.", value, depth + 1) for key, value in _text_entries(state, "_modules")
                 if value is not None]
    if not found:
        raise CheckpointError(f"its entry '{name}' holds no tensors; the file is damaged or hostile, do not use it")
    return found


def attributes(record: Any, name: str) -> dict[Any, Any]:
    """What the module `record` stands for has in its __dict__; its source code, which NVIDIA's own loader runs, is
    never looked at."""
    state = record.state if isinstance(record, Inert) else None
    if isinstance(record, Inert) and record.origin == PERSISTENT:
        meta = root_entries(record.args[0]) if record.args else {}
        state = meta.get("state") if meta.get("type") == "class" else None
    state = root_entries(state)
    if not state:
        raise CheckpointError(f"its '{name}' is not a module with tensors; {_ADVICE}")
    return state


def _text_entries(state: dict[Any, Any], kind: str) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in root_entries(state.get(kind)).items() if isinstance(key, str)]


def _check_generation(names: Collection[str]) -> None:
    if any(name.startswith("synthesis.input.") or _STYLEGAN3.match(name) for name in names):
        raise CheckpointError(f"this is a StyleGAN3 generator, which is another network; {_ADVICE}")
    if any(name.startswith("mapping.embed.") for name in names):
        raise CheckpointError(f"this StyleGAN2 is class-conditional (mapping.embed), which is not supported; {_ADVICE}")
    if "synthesis.b4.const" not in names:
        raise CheckpointError(f"its generator has no 'synthesis.b4.const': it is no StyleGAN2; {_ADVICE}")


def _group(record: Any) -> int:
    """Samples that D's minibatch deviation compares; None in the file means the whole batch."""
    record_b4 = root_entries(attributes(record, "D").get("_modules")).get("b4")
    deviation = root_entries(attributes(record_b4, "D.b4").get("_modules")).get("mbstd")
    group = attributes(deviation, "D.b4.mbstd").get("group_size")
    if group is None:
        return WHOLE_BATCH
    if type(group) is not int or not 1 <= group <= WHOLE_BATCH:
        raise CheckpointError(f"its discriminator compares groups of {str(group)[:40]} samples, which is no number of "
                              "samples; the file is damaged, download it again")
    return group
