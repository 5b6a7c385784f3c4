"""What every node of the pack has in common: its values are checked against its own schema before it runs."""
from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from comfy_api.latest import io

from . import images

ONEDNN = "could not create a primitive"  # torch's words where oneDNN finds no memory


class AtelierNode(io.ComfyNode):
    """A node whose `execute` gets only values that its schema allows; the page's limits do not hold for linked ones.

    JOINED: IMAGE inputs that take lists (core's image-list nodes) as one batch; its schema says is_input_list. Without,
    ComfyUI runs a node once for every item of a list.
    """
    JOINED: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inner = cls.__dict__.get("execute")
        if inner is None or hasattr(inner.__func__, "__wrapped__"):
            return  # ComfyUI runs a locked copy of the class, which brings the checked execute along

        names = tuple(inspect.signature(inner.__func__).parameters)[1:]

        @functools.wraps(inner.__func__)
        def execute(node: type[AtelierNode], *args: Any, **values: Any) -> io.NodeOutput:
            schema, values = cls.GET_SCHEMA(), dict(zip(names, args)) | values
            if schema.is_input_list:
                values = joined(node, values)
            values = switched(schema, values)
            check_values(schema, values)
            with memory_named():
                return inner.__func__(node, **values)
        cls.execute = classmethod(execute)

    @classmethod
    def join(cls, name: str, pictures: Sequence[torch.Tensor], values: Mapping[str, Any]) -> Any:
        """What the node gets of a list of IMAGEs, possibly of several sizes. values: those that are no such lists."""
        return images.batch(pictures, name)


@contextlib.contextmanager
def memory_named() -> Iterator[None]:
    """A MemoryError of Python has no text, and oneDNN's says nothing of memory: one that says what there is none of,
    and what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and ONEDNN not in str(error):
            raise
        raise MemoryError(f"there is no main memory left{str(error) and f' ({error})'}. Close other programs, or take "
                          "fewer or smaller pictures at a time") from error


def joined(node: type[AtelierNode], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a node that gets a list of each: pictures joined as the node does, of all others the only item.
    ValueError for several."""
    lists = {name for name, value in values.items() if name in node.JOINED and isinstance(value, list)}
    single = {name: value if name in lists else only(name, value) for name, value in values.items()}
    others = {name: value for name, value in single.items() if name not in lists}
    return {name: node.join(name, [item for item in value if item is not None], others) if name in lists else value
            for name, value in single.items()}


def only(name: str, value: Any) -> Any:
    """The only item of a list. ValueError for several."""
    if not isinstance(value, list):
        return value
    if len(value) > 1:
        raise ValueError(f"{name}: one value is needed, not a list of {len(value)}. Pick one of the list")
    return value[0] if value else None


def first(value: Any) -> Any:
    """The value itself, of which nodes with lists get a list in validate_inputs and fingerprint_inputs, too; of a
    linked input (None,)."""
    return value[0] if isinstance(value, (list, tuple)) and value else value


def switched(schema: io.Schema, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values in which a switch stands for a choice of that name: Sweep takes the words on and off for switches."""
    choices = {field.id: list(field.options or []) for field in schema.inputs if isinstance(field, io.Combo.Input)}
    return {name: word if isinstance(value, bool) and (word := "on" if value else "off") in choices.get(name, [])
            else value for name, value in values.items()}


def check_values(schema: io.Schema, values: Mapping[str, Any]) -> None:
    """ValueError that names the first value that the node's schema does not allow."""
    for field in schema.inputs:
        if field.id in values and values[field.id] is not None:
            check_value(field, values[field.id])


def check_value(field: Any, value: Any) -> None:
    if isinstance(field, io.Combo.Input):
        options = list(field.options or [])
        if value not in options and not getattr(field, "files", False):
            raise ValueError(f"{field.id} is {str(value)[:80]!r}; take one of {', '.join(map(str, options))}")
    elif isinstance(field, (io.Int.Input, io.Float.Input)):
        check_number(field, value)
    elif isinstance(field, io.Boolean.Input) and not (isinstance(value, (bool, int)) and value in (0, 1)):
        raise ValueError(f"{field.id} is {str(value)[:80]!r}; take on or off")
    elif isinstance(field, io.String.Input) and not isinstance(value, str):
        raise ValueError(f"{field.id} is {str(value)[:80]}; take text. In the values of Sweep, put it in quotes")


def check_number(field: Any, value: Any) -> None:
    whole = isinstance(field, io.Int.Input)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ValueError(f"{field.id} is {str(value)[:80]!r}; take a {'whole number' if whole else 'number'}")
    if not math.isfinite(value):
        raise ValueError(f"{field.id} is {value}; take a finite number")
    if field.min is not None and value < field.min or field.max is not None and value > field.max:
        raise ValueError(f"{field.id} is {str(value)[:40]}; take {field.min} to {field.max}")
