"""A pickle machine that executes nothing: it knows the stack operations and a handful of calls, all of them ours.

`pickletools.genops` decodes the opcodes; this file runs them. A global is only a name (records.Global), a call of
an unknown one is only a record (records.OpaqueObject). Work and memory are bounded by the number of opcodes, which is
bounded by `MAX_WORK`, and by what they would take in memory.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from ..errors import CheckpointError, short
from .records import AGAIN, Global, OpaqueObject, Storage, TensorRef, broken, rebuild_tensor, unsupported

MAX_WORK = 4_000_000
FREE_BYTES, BYTES_PER_BYTE = 64 << 20, 16  # memory that the values may take: so much, and so much a byte of the file
MAX_KEY_NODES, MAX_KEY_LENGTH, MAX_KEY_BITS, MAX_TUPLE_KEYS = 64, 4096, 64, 1024
MAX_NUMBER_KEYS = 20_000  # several times those of an optimiser, which numbers its parameters
_ATOMS = (str, int, float, bool, bytes, type(None), Global, OpaqueObject)
_REFUSED = {"PERSID": "a text persistent id", "EXT1": "an extension code", "EXT2": "an extension code",
            "EXT4": "an extension code", "NEXT_BUFFER": "an out-of-band buffer"}
_ADVICE = "the file is damaged, or not an ordinary checkpoint; do not use it"
# bytes that an opcode's value takes in memory, its argument not counted
_COSTS = {"EMPTY_SET": 232, "EMPTY_DICT": 80, "EMPTY_LIST": 72, "EMPTY_TUPLE": 8, "MARK": 80, "GLOBAL": 240,
          "INST": 720, "STACK_GLOBAL": 240, "REDUCE": 640, "NEWOBJ": 640, "NEWOBJ_EX": 640, "OBJ": 640,
          "PUT": 120, "BINPUT": 120, "LONG_BINPUT": 120, "MEMOIZE": 120,
          "FROZENSET": 232, "DICT": 80, "SETITEM": 200, "BINPERSID": 240}
_COST = 64


@dataclass
class Budget:
    """What the pickles of one file, nested ones included, may still take: steps, bytes of memory, tuples and numbers
    as keys."""

    left: int = MAX_WORK
    bytes: int = FREE_BYTES
    tuple_keys: int = MAX_TUPLE_KEYS
    number_keys: int = MAX_NUMBER_KEYS

    @classmethod
    def of_file(cls, size: int) -> Budget:
        return cls(bytes=FREE_BYTES + BYTES_PER_BYTE * size)

    def spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise CheckpointError(f"the pickles inside take more than {MAX_WORK} steps; {_ADVICE}")

    def charge(self, size: int) -> None:
        self.bytes -= size
        if self.bytes < 0:
            raise CheckpointError(f"the pickles inside would take many times the file's size in memory; {_ADVICE}")

    def check_key(self, key: object) -> object:
        """Return `key` if it can be hashed and compared in bounded time: nested tuples can take exponential time, and
        many of one hash quadratic time (hashes of texts are salted, those of numbers and tuples of them are not)."""
        left, todo = MAX_KEY_NODES, [key]
        while todo:
            item = todo.pop()
            left -= 1
            big = (isinstance(item, int) and item.bit_length() > MAX_KEY_BITS
                   or isinstance(item, (str, bytes)) and len(item) > MAX_KEY_LENGTH)
            if big or left < 0 or not isinstance(item, (*_ATOMS, tuple)):
                raise CheckpointError(f"a value that cannot be a key is used as one; {_ADVICE}")
            if isinstance(item, tuple):
                todo.extend(item[:MAX_KEY_NODES])
                left -= max(0, len(item) - MAX_KEY_NODES)
        if isinstance(key, tuple):
            self.tuple_keys -= 1
            if self.tuple_keys < 0:
                raise CheckpointError(f"more than {MAX_TUPLE_KEYS} tuples are used as keys; {_ADVICE}")
        if isinstance(key, (int, float)):
            self.number_keys -= 1
            if self.number_keys < 0:
                raise CheckpointError(f"more than {MAX_NUMBER_KEYS} numbers are used as keys; {_ADVICE}")
        return key


class PickleVM:
    """Runs one pickle. `persistent(pid)` answers persistent ids; `load_bytes(data)` reads a storage that is a file of
    its own inside the pickle (NVIDIA files). Both may be absent: then such an entry is an error."""

    def __init__(self, budget: Budget, persistent: Callable[[Any], Any] | None = None,
                 load_bytes: Callable[[bytes], Storage] | None = None) -> None:
        self.budget, self.spend, self.charge = budget, budget.spend, budget.charge
        self.check_key, self.persistent, self.load_bytes = budget.check_key, persistent, load_bytes
        self.globals: dict[tuple[str, str], Global] = {}
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        """Read one pickle from `stream`, which is left behind its STOP; returns the value. Raises CheckpointError."""
        try:
            for opcode, arg, _ in pickletools.genops(stream):
                self.spend(1)
                self.charge(_COSTS.get(opcode.name, _COST) + (len(arg) if isinstance(arg, (str, bytes)) else 0))
                self.step(opcode.name, arg)
        except CheckpointError:
            raise
        except (ValueError, OverflowError) as error:  # truncated or malformed opcode arguments
            raise CheckpointError(f"the pickle inside stops making sense ({short(error, 200)}); "
                                  "download the file again") from error
        return self.pop()

    def step(self, name: str, arg: Any) -> None:
        if name in _PUSH_ARGUMENT:
            self.stack.append(arg)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _STEPS:
            _STEPS[name](self, arg)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise CheckpointError(f"the pickle inside uses {_REFUSED.get(name, name)}; {_ADVICE}")

    # --- stack -------------------------------------------------------------------------------------------------
    def pop(self) -> Any:
        if not self.stack:
            raise CheckpointError(f"the pickle inside takes a value that is not there; {_ADVICE}")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise CheckpointError(f"the pickle inside uses a value that is not there; {_ADVICE}")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise CheckpointError(f"the pickle inside closes a list that was not opened; {_ADVICE}")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_any(self, _: Any) -> None:
        self.pop() if self.stack else self.pop_mark()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise CheckpointError(f"the pickle inside recalls a value that it did not store; {_ADVICE}")
        self.stack.append(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def tuple_from_mark(self, _: Any) -> None:
        items = tuple(self.pop_mark())
        self.stack.append(items)

    def list_from_mark(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    # --- containers --------------------------------------------------------------------------------------------
    def append(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, OpaqueObject):
            target.items.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise CheckpointError(f"the pickle inside appends to {_what(target)}; {_ADVICE}")

    def set_items(self, flat: list[Any]) -> None:
        target = self.top()
        entries = target.entries if isinstance(target, OpaqueObject) else target
        if not isinstance(entries, dict) or len(flat) % 2:
            raise CheckpointError(f"the pickle inside sets an item of {_what(target)}; {_ADVICE}")
        for key, value in zip(flat[::2], flat[1::2]):
            entries[self.check_key(key)] = value

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def new_dict(self, _: Any) -> None:
        flat = self.pop_mark()
        self.stack.append({})
        self.set_items(flat)

    def add_items(self, _: Any) -> None:
        items, target = self.pop_mark(), self.top()
        if not isinstance(target, (set, OpaqueObject)):
            raise CheckpointError(f"the pickle inside adds to {_what(target)}; {_ADVICE}")
        add = target.items.append if isinstance(target, OpaqueObject) else target.add
        for item in items:
            add(self.check_key(item))

    def frozen_set(self, _: Any) -> None:
        self.stack.append(frozenset(self.check_key(item) for item in self.pop_mark()))

    # --- names, calls, state -----------------------------------------------------------------------------------
    def name(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self.stack.append(self.known_global(module, name))

    def known_global(self, module: str, name: str) -> Global:
        return self.globals.setdefault((module, name), Global(module, name))

    def stack_name(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise CheckpointError(f"the pickle inside names a class by something else than text; {_ADVICE}")
        self.stack.append(self.known_global(module, name))

    def reduce(self, _: Any) -> None:
        args, target = self.pop(), self.pop()
        self.stack.append(self.call(target, args))

    def new_object_ex(self, _: Any) -> None:
        kwargs, args, target = self.pop(), self.pop(), self.pop()
        made = self.call(target, args)
        if isinstance(made, OpaqueObject) and isinstance(kwargs, dict):
            made.kwargs = kwargs
        self.stack.append(made)

    def instance(self, arg: str) -> None:
        args = tuple(self.pop_mark())
        module, _, name = arg.partition(" ")
        self.stack.append(self.call(self.known_global(module, name), args))

    def object_of(self, _: Any) -> None:
        items = self.pop_mark()
        if not items:
            raise CheckpointError(f"the pickle inside builds an object of no class; {_ADVICE}")
        self.stack.append(self.call(items[0], tuple(items[1:])))

    def build(self, _: Any) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, OpaqueObject):
            target.state = state
        elif not isinstance(target, (dict, TensorRef, set)):  # e.g. `_metadata` of a state dict: not needed
            raise CheckpointError(f"the pickle inside sets the state of {_what(target)}; {_ADVICE}")

    def call(self, target: Any, args: Any) -> Any:
        """The result of target(*args) if it is one of the few known data constructors, an OpaqueObject otherwise."""
        if not isinstance(args, tuple) or not isinstance(target, (Global, OpaqueObject)):
            raise CheckpointError(f"the pickle inside calls {_what(target)}; {_ADVICE}")
        known = _CALLS.get((target.module, target.name)) if isinstance(target, Global) else None
        return known(self, args) if known else OpaqueObject(target, args)

    def persistent_id(self, _: Any) -> None:
        pid = self.pop()
        if self.persistent is None:
            raise CheckpointError(f"the pickle inside refers to data outside of it; {_ADVICE}")
        self.stack.append(self.persistent(pid))


def _what(value: Any) -> str:
    """A value of the pickle in words."""
    words = {TensorRef: "a tensor", Storage: "a storage", OpaqueObject: "an object", Global: "a class"}
    return words.get(type(value), f"a {type(value).__name__}")


# --- the calls that mean data ----------------------------------------------------------------------------------
def _first(vm: PickleVM, args: tuple) -> list[Any]:
    """The items of an optional single list/tuple/set argument, charged to the VM's budget."""
    if len(args) > 1 or (args and not isinstance(args[0], (list, tuple, set, frozenset))):
        raise CheckpointError(f"a list, set or dictionary is built from something else; {_ADVICE}")
    if not args:
        return []
    vm.spend(len(args[0]))
    return list(args[0])


def _ordered_dict(vm: PickleVM, args: tuple) -> dict:
    if len(args) == 1 and isinstance(args[0], dict):
        args = (list(args[0].items()),)
    pairs = _first(vm, args)
    if any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs):
        raise CheckpointError(f"a dictionary is built from something else than pairs; {_ADVICE}")
    return {vm.check_key(key): value for key, value in pairs}


def _set(vm: PickleVM, args: tuple) -> set:
    return {vm.check_key(item) for item in _first(vm, args)}


def _size(vm: PickleVM, args: tuple) -> tuple:
    return tuple(_first(vm, args))


def _latin1(vm: PickleVM, args: tuple) -> bytes:
    """Bytes as protocol 2 writes them: _codecs.encode(text, 'latin1')."""
    if len(args) != 2 or not isinstance(args[0], str) or args[1] not in ("latin1", "latin-1"):
        raise CheckpointError(f"text is encoded in an unknown way; {_ADVICE}")
    vm.charge(len(args[0]))
    try:
        return args[0].encode("latin-1")
    except UnicodeEncodeError as error:
        raise CheckpointError(f"text is encoded in an unknown way; {_ADVICE}") from error


def _tensor(vm: PickleVM, args: tuple) -> TensorRef:
    if len(args) < 4:
        return broken(f"it lacks its storage, size or stride; {AGAIN}")
    return rebuild_tensor(*args[:4])


def _typed_tensor(vm: PickleVM, args: tuple) -> TensorRef:
    """A tensor whose type stands beside its storage of bytes, as that of the 8-bit floating point types does."""
    ref = broken(unsupported(str(args[6]) if len(args) > 6 and isinstance(args[6], Global) else "unknown"))
    return replace(ref, shape=args[2]) if len(args) > 2 and isinstance(args[2], tuple) else ref


def _parameter(vm: PickleVM, args: tuple) -> TensorRef:
    if not args or not isinstance(args[0], TensorRef):
        return broken(f"it is a parameter that is not made of a tensor; {AGAIN}")
    return args[0]


def _nested_storage(vm: PickleVM, args: tuple) -> Storage:
    if vm.load_bytes is None or len(args) != 1 or not isinstance(args[0], bytes):
        return Storage(None, 0, problem="its storage holds another file")
    return vm.load_bytes(args[0])


_CALLS: dict[tuple[str, str], Callable[[PickleVM, tuple], Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("_codecs", "encode"): _latin1,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch.storage", "_load_from_bytes"): _nested_storage,
}

_PUSH_ARGUMENT = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split())
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set,
}
_STEPS: dict[str, Callable[[PickleVM, Any], Any]] = {
    "MARK": PickleVM.mark, "POP": PickleVM.pop_any, "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.stack.append(m.top()),
    "GET": PickleVM.get, "BINGET": PickleVM.get, "LONG_BINGET": PickleVM.get,
    "PUT": PickleVM.put, "BINPUT": PickleVM.put, "LONG_BINPUT": PickleVM.put,
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "TUPLE": PickleVM.tuple_from_mark, "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2), "TUPLE3": lambda m, _: m.tuple_of(3),
    "LIST": PickleVM.list_from_mark, "DICT": PickleVM.new_dict,
    "APPEND": lambda m, _: m.append([m.pop()]), "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "SETITEM": PickleVM.set_item, "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "ADDITEMS": PickleVM.add_items, "FROZENSET": PickleVM.frozen_set,
    "GLOBAL": PickleVM.name, "STACK_GLOBAL": PickleVM.stack_name, "REDUCE": PickleVM.reduce,
    "NEWOBJ": PickleVM.reduce, "NEWOBJ_EX": PickleVM.new_object_ex, "INST": PickleVM.instance,
    "OBJ": PickleVM.object_of, "BUILD": PickleVM.build, "BINPERSID": PickleVM.persistent_id,
}
