"""What a ComfyUI says of its nodes' inputs (/object_info), and values checked against it."""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]  # of one node: {"input": {"required": {name: [type, options]}, "optional": ..}, ..}
Schemas = Mapping[str, Schema]
UPLOADS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload")
TYPES = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def inputs_of(schema: Schema) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(name, type, options) of a node's inputs in their order. A list of choices is COMBO, with them as `options`."""
    for group in ("required", "optional"):
        found = (schema.get("input") or {}).get(group) or {}
        order = (schema.get("input_order") or {}).get(group) or list(found)
        for name in [*order, *(key for key in found if key not in order)]:
            kind, options = found[name][0], (found[name][1] if len(found[name]) > 1 else None) or {}
            if isinstance(kind, list):
                kind, options = "COMBO", {"options": kind, **options}
            yield name, kind, options


def fits(value: Any, kind: str) -> bool:
    """Is it of the input's type? True for a type that is not known here."""
    if kind in ("INT", "FLOAT") and isinstance(value, bool):
        return False
    return kind not in TYPES or isinstance(value, TYPES[kind]) or kind == "INT" and value == int_of(value)


def int_of(value: Any) -> int | None:
    return int(value) if isinstance(value, float) and value.is_integer() else None


def upload_input(schema: Schema | None) -> str | None:
    """The input that names an uploaded file, as LoadImage's `image`; None for a node without one."""
    return next((name for name, _, options in inputs_of(schema or {})
                 if any(options.get(key) for key in UPLOADS)), None)


def read_value(text: str, kind: str, options: Mapping[str, Any]) -> Any:
    """The value that an input takes of a word of the command line. ValueError says which are allowed."""
    value = parsed(text, kind)
    low, high = options.get("min"), options.get("max")
    if kind in ("INT", "FLOAT") and (low is not None and value < low or high is not None and value > high):
        raise ValueError(f"{text[:40]} is outside {low} to {high}")
    choices = options.get("options")
    if kind != "COMBO" or not choices:
        return value
    for choice in choices:
        if str(choice) == text:
            return choice
    some = ", ".join(str(choice)[:60] for choice in choices[:20])
    raise ValueError(f"{text[:60]!r} is no choice; take one of {some}{', ..' if len(choices) > 20 else ''}")


def parsed(text: str, kind: str) -> Any:
    if kind in ("STRING", "COMBO"):
        return text
    if kind == "BOOLEAN":
        if text.lower() not in WORDS:
            raise ValueError(f"{text[:40]!r} is no switch; take true or false")
        return WORDS[text.lower()]
    if kind in ("INT", "FLOAT"):
        try:
            number = float(text) if kind == "FLOAT" else int(text)
        except ValueError as error:
            raise ValueError(f"{text[:40]!r} is no number ({kind}); take one") from error
        if number != number:
            raise ValueError("nan is no number; take one")
        return number
    try:
        return json.loads(text)
    except ValueError:
        return text
