"""Where the weights lie in a file: the one unwrapping step before all formats.

Programs wrap a network's tensors in entries (`{"state_dict": {"module.conv.weight": ..}}`), in prefixes of flat names
(`g_ema.convs.0...` in safetensors), or in pickled modules. `found_in` descends through all of them alike and offers
every set of named tensors that it meets, averaged ones first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..safe_pickle.records import Global, OpaqueObject, TensorRef

AVERAGED = ("diffae_B", "params_ema", "ema_model", "model_ema", "ema", "g_ema", "G_ema", "G_ema_model", "teacher")
NEUTRAL = ("state_dict", "model_state_dict", "model", "module", "_orig_mod", "backbone", "params", "generator", "net")
RAW = ("g", "G", "G_model")  # a generator in training, beside which an average is usual
CRITICS = ("d", "D", "D_model", "discriminator")
MAX_DEPTH, MAX_PLACES = 6, 50
MAX_ENTRIES = 100_000  # of a place, or of all modules inside one
PERSISTENT = Global("torch_utils.persistence", "_reconstruct_persistent_obj")

Node = Mapping[str, Any]


@dataclass(frozen=True)
class Weights:
    """A set of named tensors in a file. path: the entries and prefixes that led to it. around: the nodes on the way,
    the innermost (which holds the tensors) first."""

    state: dict[str, TensorRef]
    path: tuple[str, ...] = ()
    around: tuple[Node, ...] = ()

    @property
    def averaged(self) -> bool:
        return not any(key in RAW for key in self.path)

    def beside(self, name: str) -> TensorRef | None:
        """The tensor of this name in the nearest node around."""
        return next((node[name] for node in self.around if isinstance(node.get(name), TensorRef)), None)

    def fact(self, name: str) -> int | None:
        """The counter of this name in the nearest node around: an int of 0..2^53."""
        found = (node.get(name) for node in self.around)
        return next((value for value in found if type(value) is int and 0 <= value <= 2**53), None)

    def other(self, keys: Sequence[str], signs: Sequence[str]) -> tuple[Any, dict[str, TensorRef]]:
        """Another network of the file: (raw entry, its tensors) of the first of these entries in the nearest node
        around, unwrapped until one of the names `signs` is met. (None, {}) if there is none."""
        for node in self.around:
            for key in keys:
                inner = child(node, key)
                if inner:
                    found = list(found_in(inner))
                    fitting = [w.state for w in found if any(sign in w.state for sign in signs)]
                    return node.get(key), next(iter(fitting or [w.state for w in found]), {})
        return None, {}


def found_in(root: Any) -> Iterator[Weights]:
    """Every set of named tensors in the file, the likeliest first."""
    for count, weights in enumerate(_descend(entries_of(root), (), ())):
        if count > MAX_PLACES:
            return
        if weights.state:
            yield weights


def _descend(node: Node, path: tuple[str, ...], around: tuple[Node, ...]) -> Iterator[Weights]:
    if len(node) > MAX_ENTRIES:
        return
    around = (node, *around)
    inner = {key for name in node for key in (name, name.partition(".")[0])} if len(path) < MAX_DEPTH else set()
    for keys in (AVERAGED, None, NEUTRAL, RAW):
        if keys is None:
            yield Weights({name: value for name, value in node.items() if isinstance(value, TensorRef)}, path, around)
        else:
            for key in keys:
                below = child(node, key) if key in inner else {}
                if below:
                    yield from _descend(below, (*path, key), around)


def child(node: Node, key: str) -> Node:
    """What an entry holds, or what stands in flat names behind `key` and a dot; {} if neither."""
    if key in node and not isinstance(node[key], TensorRef):
        return entries_of(node[key])
    start = f"{key}."
    return {name[len(start):]: value for name, value in node.items() if name.startswith(start)}


def entries_of(value: Any) -> Node:
    """The named entries of a dict, of a record of one (EasyDict), or the tensors of a pickled module."""
    if isinstance(value, OpaqueObject) and not value.entries:
        return module_tensors(value)
    found = value.entries if isinstance(value, OpaqueObject) else value
    return {key: item for key, item in found.items() if isinstance(key, str)} if isinstance(found, dict) else {}


# --- pickled modules, walked without running anything of them ----------------------------------------------------
def module_tensors(record: OpaqueObject) -> dict[str, TensorRef]:
    """{name: tensor} of a module's record and of the modules in it, at most MAX_ENTRIES (records may be cyclic)."""
    found: dict[str, TensorRef] = {}
    todo, left = [("", record)], MAX_ENTRIES
    while todo and left > 0:
        prefix, module = todo.pop()
        state = attributes(module)
        left -= 50 + sum(len(_table(state, kind)) for kind in ("_parameters", "_buffers", "_modules"))
        for kind in ("_parameters", "_buffers"):
            found |= {f"{prefix}{name}": value for name, value in _table(state, kind).items()
                      if isinstance(value, TensorRef)}
        todo += [(f"{prefix}{name}.", value) for name, value in _table(state, "_modules").items()
                 if isinstance(value, OpaqueObject) and len(prefix) < 1000]
    return found


def attributes(record: Any) -> Node:
    """What the module that `record` stands for has in its __dict__, {} if it is none; its source code, which NVIDIA's
    own loader runs, is never looked at."""
    state = record.state if isinstance(record, OpaqueObject) else None
    if isinstance(record, OpaqueObject) and record.origin == PERSISTENT:
        meta = _dict(record.args[0]) if record.args else {}
        state = meta.get("state") if meta.get("type") == "class" else None
    return _dict(state)


def _dict(value: Any) -> dict[Any, Any]:
    found = value.entries if isinstance(value, OpaqueObject) else value
    return found if isinstance(found, dict) else {}


def _table(state: Node, kind: str) -> dict[str, Any]:
    return {name: value for name, value in _dict(state.get(kind)).items() if isinstance(name, str)}
