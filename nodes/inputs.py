"""Widgets that several nodes share, so that a node file reads like a list of its inputs."""
from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from comfy_api.latest import io

from ..models.diffusion import SOLVERS, TRAIN_STEPS, ddim_times
from ..models.precision import AUTO, PRECISIONS
from ..models.rng import MAX_SEED
from ..train.session import plain_name
from .base import first

FROM_STYLE = "from style"
UNSET = -1.0  # of a number: take the style's
SNAPSHOT_ADVICE = "0: only at the end and when the run is stopped."


def advanced(field: Any) -> Any:
    """The input is folded away until the user asks for all settings."""
    field.extra_dict = {**(field.extra_dict or {}), "advanced": True}
    return field


def image(name: str, tooltip: str, optional: bool = False) -> io.Image.Input:
    return io.Image.Input(name, tooltip=tooltip, optional=optional)


def choice(name: str, options: Iterable[str], default: str, tooltip: str, optional: bool = False) -> io.Combo.Input:
    return io.Combo.Input(name, options=list(options), default=default, optional=optional, tooltip=tooltip)


def file_choice(name: str, options: Iterable[str], default: str, tooltip: str) -> io.Combo.Input:
    """A choice among the user's files or folders; whoever opens them says if one is missing."""
    field = choice(name, options, default, tooltip)
    field.files = True
    return field


def seed(tooltip: str, name: str = "seed") -> io.Int.Input:
    """A seed that the page may change after each run."""
    return io.Int.Input(name, default=0, min=0, max=MAX_SEED, control_after_generate=True, tooltip=tooltip)


def fixed_seed(tooltip: str, name: str = "seed") -> io.Int.Input:
    """A seed whose control starts at "fixed": long work hangs on it (web/fixed_seeds.js)."""
    field = seed(tooltip, name)
    field.extra_dict = {**(field.extra_dict or {}), "atelier_fixed_seed": True}
    return field


def steps(default: int, tooltip: str, name: str = "steps") -> io.Int.Input:
    more = " Divisors of 1000 are valid: 10, 20, 25, 40, 50, 100, 125, 200, 250, 500, ..."
    return io.Int.Input(name, default=default, min=2, max=TRAIN_STEPS, tooltip=tooltip + more)


def precision(tooltip: str = "Number format of the networks on a GPU. auto is float16, as the official program. A CPU "
                             "always computes in float32.", optional: bool = False) -> io.Combo.Input:
    return advanced(choice("precision", (AUTO, *PRECISIONS), AUTO, tooltip, optional))


def solver(default: str, tooltip: str = "") -> io.Combo.Input:
    """How the steps of the chain are made. default: FROM_STYLE is offered where it is that."""
    choices = SOLVERS if default in SOLVERS else (default, *SOLVERS)
    return advanced(choice(
        "solver", choices, default, "ddim: the official solver. dpmpp_2m: DPM-Solver++(2M), which needs far fewer "
        f"steps: 20 are good. {tooltip}".rstrip(), optional=True))  # graphs of 0.2 do not have it


def batch(tooltip: str, default: int = 8, most: int = 64, optional: bool = False) -> io.Int.Input:
    """Pictures a network call."""
    return advanced(io.Int.Input("batch", default=default, min=1, max=most, optional=optional,
                                 tooltip=f"{tooltip} More is faster and takes more memory."))


# --- values that the schema alone cannot judge ------------------------------------------------------------------------
def valid_steps(*counts: int | None) -> bool | str:
    """For validate_inputs: True, or what is wrong. None stands for a linked input."""
    for count in counts:
        if count is not None and not 2 <= count <= TRAIN_STEPS:
            return f"{count} steps: take 2 to {TRAIN_STEPS}"
        try:
            ddim_times(count or 10)
        except ValueError as error:
            return str(error)
    return True


def valid_name(name: str | None) -> bool | str:
    """For validate_inputs: True, or why this cannot be a file's name. None stands for a linked input."""
    name = first(name)
    try:
        plain_name(name if name is not None else "linked")
    except ValueError as error:
        return str(error)
    return True


def require(answer: bool | str) -> None:
    """Turns what a validation says into an error: linked inputs are only known when the node runs."""
    if answer is not True:
        raise ValueError(answer)


def parse_levels(text: str) -> tuple[tuple[int | str, float], ...]:
    """'128:1, 64:0.5, middle:0' -> ((128, 1.0), (64, 0.5), ("middle", 0.0)). ValueError for anything else."""
    parsed: list[tuple[int | str, float]] = []
    for entry in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        found = re.fullmatch(r"(\d{1,4}|middle)\s*[:=]\s*([01](?:\.\d*)?|\.\d+)", entry.lower())
        if not found or float(found[2]) > 1:
            raise ValueError(f"levels: {entry[:80]!r} cannot be read. Write 'side in px:weight of the style', "
                             "for example 128:1, 64:0.5, middle:0")
        parsed.append((found[1] if found[1] == "middle" else int(found[1]), float(found[2])))
    return tuple(parsed)


# --- trainings and saving ---------------------------------------------------------------------------------------------
def session_inputs(name: str, save_every: int, most: int, unit: str) -> list:
    """The inputs of a training that can be resumed. unit: "iterations" or "steps"."""
    return [
        io.String.Input("name", default=name,
                        tooltip="Name of the snapshot in output/atelier/snapshots. Letters, digits, space, _ - and ."),
        io.Int.Input("save_every", default=save_every, min=0, max=most,
                     tooltip=f"Save a snapshot every N {unit}. {SNAPSHOT_ADVICE}"),
        io.Boolean.Input("resume", default=True,
                         tooltip="Resume the snapshot of this name. The result equals that of an uninterrupted run. "
                                 "Off: start again and replace the snapshot.")]


def changed_pictures() -> io.Boolean.Input:
    """The switch to resume a training whose folders of pictures have changed."""
    return advanced(io.Boolean.Input("changed_pictures", default=False, optional=True,
                                     tooltip="Resume although the photos or the art have changed since the snapshot. "
                                             "Off: such a snapshot is refused."))


def keep() -> io.Int.Input:
    """How many snapshots of a training are kept; the last input of a training."""
    return advanced(io.Int.Input("keep", default=1, min=1, max=20, optional=True,
                                 tooltip="Snapshots to keep: the newest, and earlier ones spread over the training. "
                                         "With more than 1, fewer iterations can be asked for later. Each takes as "
                                         "much disk space as the newest."))


def file_name(default: str) -> io.String.Input:
    """Name of a file that a node saves; ask `valid_name` of it."""
    return io.String.Input("name", default=default,
                           tooltip="The file's name without its ending. Letters, digits, space, _ - and .")


def overwrite(what: str) -> io.Boolean.Input:
    return io.Boolean.Input("overwrite", default=False,
                            tooltip=f"Replace a file of that name. Off: another {what} of that name is kept, and the "
                                    "new one gets the next free number.")


def saved_path() -> list:
    return [io.String.Output("path", display_name="path", tooltip="Path of the file.")]
