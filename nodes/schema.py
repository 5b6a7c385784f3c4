"""Small words for the nodes' schemas, so that a node file reads like a list of its inputs."""
from __future__ import annotations

from comfy_api.latest import io

from ..models.diffusion import TRAIN_STEPS, stride_times
from ..train.session import plain_name


def advanced(field):
    """The input is folded away until the user asks for all settings."""
    field.extra_dict = {**(field.extra_dict or {}), "advanced": True}
    return field


def image(name: str, tooltip: str, optional: bool = False):
    return io.Image.Input(name, tooltip=tooltip, optional=optional)


def seed(tooltip: str, roll: bool | None = None, name: str = "seed"):
    """roll: the page may draw a new seed after each run; False where long work hangs on it. None leaves it to the page,
    which offers it for the names seed and noise_seed (nodes that saved workflows know with that offer keep it)."""
    return io.Int.Input(name, default=0, min=0, max=2 ** 63 - 1, control_after_generate=roll, tooltip=tooltip)


def steps(default: int, tooltip: str, name: str = "steps"):
    more = " Must space evenly over 1000: 10, 20, 25, 40, 50, 100, 125, 200, 250, 500, ..."
    return io.Int.Input(name, default=default, min=2, max=1000, tooltip=tooltip + more)


def steps_are_sound(*counts: int | None) -> bool | str:
    """For validate_inputs: True, or what is wrong. None stands for a linked input."""
    for count in counts:
        if count is not None and not 2 <= count <= TRAIN_STEPS:
            return f"{count} steps: take 2 to {TRAIN_STEPS}"
        try:
            stride_times(count or 10)
        except ValueError as error:
            return str(error)
    return True


def name_is_sound(name: str | None) -> bool | str:
    """For validate_inputs: True, or why this cannot be a file's name. None stands for a linked input."""
    try:
        plain_name(name if name is not None else "linked")
    except ValueError as error:
        return str(error)
    return True


def file_name(default: str):
    """Name of a file that a node saves; ask `name_is_sound` of it."""
    return io.String.Input("name", default=default, tooltip="The file's name without its ending: letters, digits, "
                                                            "space, _ - and .")


def overwrite(what: str):
    return io.Boolean.Input("overwrite", default=False,
                            tooltip=f"Replace a file of that name. Off: another {what} of that name is an error, "
                                    "the same one is left as it is.")


def saved_path() -> list:
    return [io.String.Output("path", display_name="path", tooltip="Where the file is.")]


def snapshots(name: str, save_every: int, most: int, when: str) -> list:
    """The inputs of a training that can be gone on with. when: what follows 'Save a snapshot every so many'."""
    return [
        io.String.Input("name", default=name, tooltip="Name of the snapshot in output/atelier/snapshots: letters, "
                                                      "digits, space, _ - and ."),
        io.Int.Input("save_every", default=save_every, min=0, max=most,
                     tooltip=f"Save a snapshot every so many {when}"),
        io.Boolean.Input("resume", default=True,
                         tooltip="Go on from the snapshot of this name, with exactly the result of a run without a "
                                 "break. Off: begin anew.")]


def require(answer: bool | str) -> None:
    """Turns what a validation says into an error: linked inputs are only known when the node runs."""
    if answer is not True:
        raise ValueError(answer)
