"""Where faces are when the user or another node says so: five points, a box, core's boxes and landmarks."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.faces.align import box_quad
from ..models.faces.crops import FaceSquare, square_of_five, squares_of_landmarks

BOX_KINDS = ("crop", "face")
POINTS_ADVICE = "five_points takes ten numbers, x y of left eye, right eye, nose, left and right corner of the mouth"
POINT_ADVICE = "point takes two numbers: x, y in pixels"
BOX_ADVICE = "box takes four numbers: x, y of the upper left corner, width, height"


def numbers_of_lines(text: str, count: int, advice: str) -> list[list[float]]:
    """Lines of `count` numbers each; [] for an empty text. ValueError with the advice for anything else."""
    found = []
    for line in filter(None, (part.strip() for part in re.split(r"[\n;]", text))):
        words = [word for word in re.split(r"[\s,()\[\]]+", line) if word]
        try:
            row = [float(word) for word in words]
        except ValueError as error:
            raise ValueError(f"{line[:80]!r} cannot be read. {advice}") from error
        if len(row) != count or any(abs(value) > 1e6 or value != value for value in row):
            raise ValueError(f"{line[:80]!r} has {len(row)} numbers. {advice}")
        found.append(row)
    return found


def point_of(text: str, shape: tuple[int, int]) -> Tensor:
    """The point (2,) of a text, x and y in pixels; without any, the middle of pictures of this (height, width).
    ValueError."""
    rows = numbers_of_lines(text, 2, POINT_ADVICE)
    if len(rows) > 1:
        raise ValueError(f"point has {len(rows)} lines. {POINT_ADVICE}")
    return torch.tensor(rows[0] if rows else [shape[1] / 2, shape[0] / 2])


def each_picture(rows: list, count: int, what: str) -> list:
    """One row for each of `count` pictures: as many as there are, or a single one for all. ValueError otherwise."""
    if len(rows) not in (1, count):
        raise ValueError(f"{what} has {len(rows)} lines for {count} pictures. Write a line for each, or one for all")
    return rows if len(rows) == count else rows * count


def from_points(text: str, count: int) -> list[list[FaceSquare]]:
    """The squares in each of `count` pictures of a text of five points. ValueError."""
    rows = numbers_of_lines(text, 10, POINTS_ADVICE)
    return [[square_of_five(torch.tensor(row).reshape(5, 2))] for row in each_picture(rows, count, "five_points")]


def square_of_box(row: Sequence[float], kind: str) -> FaceSquare:
    """x, y, width, height. ValueError for an empty box."""
    x, y, width, height = (float(value) for value in row)
    if not (width >= 1 and height >= 1):
        raise ValueError(f"a box of {width:g} x {height:g} px is empty. {BOX_ADVICE}")
    return FaceSquare(box_quad(torch.tensor([x, y, x + width, y + height]), kind == "face"), f"box of the {kind}")


def from_box(text: str, kind: str, count: int) -> list[list[FaceSquare]]:
    """The squares in each of `count` pictures of a text of boxes. ValueError."""
    rows = numbers_of_lines(text, 4, BOX_ADVICE)
    return [[square_of_box(row, kind)] for row in each_picture(rows, count, "box")]


def from_core_boxes(boxes: Any, kind: str, count: int) -> list[list[FaceSquare]]:
    """The squares of core's BOUNDING_BOX in each of `count` pictures, the largest box first. ValueError.

    It is a box for all pictures, a list of one for each picture (or all of a single picture's), or a list for each.
    """
    if isinstance(boxes, Mapping):
        boxes = [[boxes]] * count
    rows = [[row] if isinstance(row, Mapping) else list(row) for row in boxes]
    if count == 1:
        rows = [[box for row in rows for box in row]]
    if len(rows) != count:
        raise ValueError(f"bounding_box has boxes for {len(rows)} pictures, there are {count}. Connect boxes of the "
                         "same batch, or one for all")
    return [[square_of_box([box[key] for key in ("x", "y", "width", "height")], kind)
             for box in sorted(row, key=lambda box: float(box["width"]) * float(box["height"]), reverse=True)]
            for row in rows]


def from_core_landmarks(landmarks: Any, size: tuple[int, int], count: int) -> list[list[FaceSquare]]:
    """The squares of core's FACE_LANDMARKS in each of `count` pictures of this (height, width). ValueError."""
    if not isinstance(landmarks, Mapping) or "frames" not in landmarks:
        raise ValueError("face_landmarks: these are none of core's MediaPipe Face Landmarker. Connect its output")
    frames = landmarks["frames"]
    if len(frames) != count:
        raise ValueError(f"face_landmarks are of {len(frames)} pictures, there are {count}. Connect landmarks of the "
                         "same batch")
    seen = tuple(landmarks.get("image_size") or size)
    if seen != size:
        raise ValueError(f"face_landmarks are of pictures of {seen[1]} x {seen[0]} px, these have {size[1]} x "
                         f"{size[0]}. Connect landmarks of the same pictures")
    return [squares_of_landmarks([points_of(face) for face in faces]) for faces in frames]


def points_of(face: Mapping) -> Tensor:
    return torch.as_tensor(face["landmarks_xy"]).detach().float().cpu()
