"""The self-check's attempts at a real ComfyUI: killed, cancelled, without memory or room, many clients, a long film.

Every attempt ends with `Place.check`: ComfyUI answers a plain prompt rightly, nothing was executed, nothing outside its
folders has changed, no file is half written.
"""
from __future__ import annotations

import os
import subprocess
import threading
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ..client import Client, Graph, NodeFailed, PromptRejected
from . import graphs, rights
from .attempts import FAULT, LOADED, NOT_TRIED, REFUSED, Lost, Outcome, Wrong, chosen, complaint, dice, fault_of
from .comfyui import KINDS, MEMORY_PACK, TIMEOUT, TRAININGS, Pictures, Place, check_tidy, forget, prepared, steps_of
from .graphs import PHOTOS, TUNE

ROWS = {
    "killed": "ComfyUI is killed (SIGKILL) at a random moment of a fine-tune, a Stage I training or a film, and "
              "started again on its folders: what was saved is there, and the same prompt ends in the same result, bit "
              "for bit",
    "cancelled": "the prompt is cancelled at a random moment, then run again: it goes on, to the same result",
    "out of memory": "from a random moment on, ComfyUI may take no or little more memory (RLIMIT_AS), and is asked for "
                     "pictures that need more, or for a training; then the limit is lifted, and all is as before",
    "out of a GPU's memory": "a random convolution or linear layer of a prompt raises torch's OutOfMemoryError; the "
                             "same ComfyUI then ends the same prompt rightly",
    "disk full": "a file system with too little room for snapshots or styles (tmpfs); with more room, the training "
                 "goes on",
    "read-only folders": "ComfyUI, without root's rights, may not write into its output, its snapshots or its models; "
                         "when it may, the training goes on",
    "prompts of many clients": "8 clients at once, each with 25 prompts, good ones and bad ones: bad numbers, choices, "
                               "links, names and texts, hostile and cut-off files; every one is answered, and the "
                               "pictures of the good ones are those of a single client",
    "frames": "a film of 1000 frames, whose faces are cut out, stylized and put back in one batch, is the same as its "
              "parts of 100, and takes at most 160 MB beside its pictures",
}
BOX = "16 16 96 96"  # of a film's faces: finding them takes most of the time
SLACK = 160 << 20  # bytes that a film's nodes may take beside pictures
LIMITED = 0.5  # share of attempts at memory that ask for more pictures than there is room for
CALLS = 3.5  # powers of ten: where out of a GPU's memory happens, at most
Found = tuple[str, str]


@dataclass(frozen=True)
class Scale:
    """How many attempts of each row; the last two rows are one attempt each, of clients * prompts and of frames."""
    kills: int = 50
    cancels: int = 50
    others: int = 10
    clients: int = 8
    prompts: int = 25
    frames: int = 1000
    part: int = 100  # frames of a prompt that is compared

    @property
    def cases(self) -> list[tuple[str, str]]:
        counts = {"killed": self.kills, "cancelled": self.cancels, "out of memory": self.others,
                  "out of a GPU's memory": self.others, "disk full": self.others, "read-only folders": self.others,
                  "prompts of many clients": 1, "frames": 1}
        return [(row, str(k)) for row, most in counts.items() for k in range(most)]


CASE_LIST = Scale().cases
CASES = LEAST = len(CASE_LIST)  # attempts of a whole check: every case


@contextmanager
def asking(folder: Path, seed: int, comfyui: Path | None,
           scale: Scale = Scale()) -> Iterator[Callable[[int], list[Outcome]]]:
    """`ask(index)` makes an attempt at a ComfyUI that is started here; it gives an outcome for every prompt or frame
    of the last two rows, else one. RunError if there is no ComfyUI."""
    with prepared(folder, comfyui) as place:
        yield lambda index: attempt(place, seed, index, scale)


def attempt(place: Place, seed: int, index: int, scale: Scale) -> list[Outcome]:
    row, number = chosen(scale.cases, seed, "host", index)
    rolls, notes = dice(seed, "host", index), [number]
    try:
        if row in MANY:
            outcomes = MANY[row](place, rolls, scale)
        else:
            kind, text = ATTEMPTS[row](place, f"attempt {index}", rolls, notes)
            outcomes = [Outcome(row, kind, text if kind == NOT_TRIED else "; ".join([*notes, text]))]
        place.check()
        return outcomes
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever comes is what the check looks for
        place.restart()
        return [fault_of(row, error, notes)]


# --- killed and cancelled ---------------------------------------------------------------------------------------------
def run_until(place: Place, graph: Graph, act: Callable[[], object], seconds: float) -> tuple[int, bool]:
    """Run a graph, and act after these seconds. Returns the last step that was seen, and whether it came to its end."""
    events, acted = [], threading.Event()

    def now() -> None:
        acted.set()
        act()
    timer = threading.Timer(seconds, now)
    timer.start()
    ended = True
    try:
        place.run(graph, events.append)
    except Exception:  # a server that is killed answers in many ways, also while a graph is queued
        if not acted.is_set():
            raise
        ended = False
    finally:
        timer.join()
    return steps_of(events), ended


def resumed(place: Place, label: str, name: str, steps: int = 0) -> None:
    """Run a prompt again that was broken off when `steps` were seen: nothing that was done before is done again, the
    result is right, and the folders are tidy."""
    kind = KINDS[label]
    least = max(0, steps - 1) // kind.per  # the iteration of the last step may not have been saved
    found = place.run(kind.graph(name))
    if kind.iterations and least and TUNE not in found.cached:
        texts = [event.data["text"] for event in found.of_kind("text") if event.data["node"] == TUNE]
        taken = next((int(text.split()[3]) for text in texts if text.startswith("resumed at iteration ")), 0)
        if taken < least:
            raise Lost(f"iteration {least} was reached, and the training goes on at {taken}")
    place.check_result(name, label, found)
    check_tidy(place.base)
    forget(place, label, name)


def broken_off(place: Place, name: str, rolls: Random, notes: list[str], act: Callable[[], object]) -> tuple[str, int]:
    """Act at a random moment of a prompt of a random kind. Returns the kind, and the last step that was seen."""
    label = rolls.choice(list(KINDS))
    seconds = rolls.random() * place.whole(label).seconds
    steps, ended = run_until(place, KINDS[label].graph(name), act, seconds)
    notes.append(f"{label} at {seconds:.2f} s, after step {steps}{' (it had ended)' * ended}")
    return label, steps


def killed(place: Place, name: str, rolls: Random, notes: list[str]) -> Found:
    label, steps = broken_off(place, name, rolls, notes, lambda: place.server.kill())
    place.restart()
    resumed(place, label, name, steps)
    return LOADED, ""


def cancelled(place: Place, name: str, rolls: Random, notes: list[str]) -> Found:
    label, steps = broken_off(place, name, rolls, notes, lambda: place.client.interrupt())
    check_tidy(place.base)
    resumed(place, label, name, steps)
    return LOADED, ""


# --- out of memory ----------------------------------------------------------------------------------------------------
def failed(place: Place, graph: Graph, wrong: Callable[[str], str] = complaint) -> str:
    """What ComfyUI says of a graph that fails; "" if it does not."""
    try:
        place.run(graph)
    except NodeFailed as error:
        if reason := wrong(error.message):
            raise Wrong(f"{error.node_type}: {reason}: {error}") from error
        return error.message
    return ""


def outcome_of(message: str) -> Found:
    """The outcome of an attempt that ended rightly, with what `failed` gave."""
    return (REFUSED, message[:200]) if message else (LOADED, "")


def of_memory(message: str) -> str:
    """What is wrong with the message of a node that has no memory, or ""."""
    return "" if "memory" in message.lower() else "the message does not speak of memory"


def out_of_memory(place: Place, name: str, rolls: Random, notes: list[str]) -> Found:
    label = rolls.choice(TRAININGS)
    try:
        import resource
        limits = resource.prlimit(place.server.process.pid, resource.RLIMIT_AS)
    except (ImportError, AttributeError, OSError):
        return NOT_TRIED, "the memory of another process cannot be limited here"

    def limit(more: int) -> None:
        pages = Path(f"/proc/{place.server.process.pid}/statm").read_text(encoding="utf-8").split()[0]
        size = int(pages) * resource.getpagesize()
        resource.prlimit(place.server.process.pid, resource.RLIMIT_AS, (size + more, limits[1]))
    graph, more, seconds = KINDS[label].graph(name), rolls.randrange(1 << 20), 0.0
    if rolls.random() < LIMITED:
        side, more = 64 * rolls.randint(6, 12), rolls.randrange(300 << 20)
        graph = graphs.stylized(PHOTOS[0], 2, next(place.numbers), 256, fit="whole picture", batch=rolls.choice([1, 8]))
        graph = {**graph, "5": graphs.node("ImageScale", image=["2", 0], upscale_method="bilinear", width=side,
                                           height=side, crop="disabled")}
        graph = graphs.changed(graph, "4", image=["5", 0])
        notes.append(f"256 pictures of {side} px in {more >> 20} MB")
    else:
        seconds = rolls.random() * place.whole(label).seconds
        notes.append(f"{label}, {more >> 10} KB from {seconds:.2f} s on")
    timer = threading.Timer(seconds, limit, [more])
    timer.start()
    try:
        message = failed(place, graph, of_memory)
    finally:
        timer.join()
        resource.prlimit(place.server.process.pid, resource.RLIMIT_AS, limits)
    resumed(place, label, name)
    return outcome_of(message)


def out_of_gpu_memory(place: Place, name: str, rolls: Random, notes: list[str]) -> Found:
    label, calls = rolls.choice(list(KINDS)), int(10 ** (CALLS * rolls.random()))
    after = place.base / "custom_nodes" / MEMORY_PACK / "after.txt"
    after.write_text(str(calls), encoding="utf-8")
    notes.append(f"{label} at call {calls}")
    try:
        message = failed(place, KINDS[label].graph(name), of_memory)
    finally:
        after.unlink(missing_ok=True)
    check_tidy(place.base)
    resumed(place, label, name)
    return outcome_of(message)


# --- no room, no rights -----------------------------------------------------------------------------------------------
def disk_full(place: Place, name: str, rolls: Random, notes: list[str]) -> Found:
    label = rolls.choice(TRAININGS)
    whole, models = place.whole(label), place.folder_of(KINDS[label])
    target = rolls.choice([place.base / "output", models]) if KINDS[label].models != "mmfs" else place.base / "output"
    kib = rolls.randint(4, max(8, int(1.2 * whole.bytes / 1024)))
    notes.append(f"{label}, {target.name} of {kib} KB")
    target.mkdir(parents=True, exist_ok=True)
    if not mounted(target, f"size={kib}k"):
        return NOT_TRIED, "this user may not mount a small file system; see trainings, disk full"
    try:
        message = failed(place, KINDS[label].graph(name))
        mounted(target, "remount,size=1g")
        check_tidy(place.base)
        resumed(place, label, name)
    finally:
        unmount(target)
    return outcome_of(message)


def mounted(folder: Path, options: str) -> bool:
    """A file system in memory at a folder, for this user's processes."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def unmount(folder: Path) -> None:
    """Also while ComfyUI has a file open there."""
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def read_only_folders(place: Place, name: str, rolls: Random, notes: list[str]) -> Found:
    if os.name != "posix" or rights.writes_everywhere(place.server.process.pid):
        return NOT_TRIED, "ComfyUI may write everywhere"
    label = rolls.choice(TRAININGS)
    target = rolls.choice([place.base / "output", place.snapshot(name).parent, place.folder_of(KINDS[label])])
    notes.append(f"{label}, {target.relative_to(place.base)}")
    target.mkdir(parents=True, exist_ok=True)
    target.chmod(0o555)
    try:
        message = failed(place, KINDS[label].graph(name))
    finally:
        target.chmod(0o755)
    if not message and target == place.folder_of(KINDS[label]):
        raise Wrong("a style was saved into a read-only folder")
    check_tidy(place.base)
    resumed(place, label, name)
    return outcome_of(message)


# --- many clients -----------------------------------------------------------------------------------------------------
def many_clients(place: Place, rolls: Random, scale: Scale) -> list[Outcome]:
    """An outcome for every prompt; Lost for one that has got no answer."""
    row, right = "prompts of many clients", {}
    for seed in range(4):
        for photo in PHOTOS:
            right[photo, seed] = place.pictures(place.run(graphs.stylized(photo, seed, next(place.numbers))))
    found: list[list[Outcome]] = [[] for _ in range(scale.clients)]

    def client(k: int) -> None:
        own, one = Random(rolls_of[k]), Client(place.server.url)
        for _ in range(scale.prompts):
            try:
                found[k].append(answered(place, one, own, right))
            except BaseException as error:  # noqa: BLE001 - whatever comes is what the check looks for
                found[k].append(fault_of(row, error))
    rolls_of = [rolls.random() for _ in range(scale.clients)]
    threads = [threading.Thread(target=client, args=(k,)) for k in range(scale.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcome for outcomes in found for outcome in outcomes]


def answered(place: Place, client: Client, rolls: Random, right: dict[tuple[str, int], Pictures]) -> Outcome:
    """A good prompt or a bad one, half of the time each."""
    row, number = "prompts of many clients", next(place.numbers)
    if rolls.random() < 0.5:
        photo, seed = rolls.choice(list(right))
        made = place.pictures(client.run(graphs.stylized(photo, seed, number), timeout=3 * TIMEOUT), client)
        if made != right[photo, seed]:
            raise Lost("a good prompt has another picture than for a single client")
        return Outcome(row, LOADED)
    what = rolls.choice(graphs.BAD)
    graph = graphs.bad(what, rolls, number)
    try:
        client.run(graph, timeout=3 * TIMEOUT)
    except PromptRejected as refused:
        return Outcome(row, REFUSED, str(refused))
    except NodeFailed as error:
        reason = complaint(error.message) if str(error.node_type).startswith("Atelier") else ""  # core's are its own
        return Outcome(row, FAULT if reason else REFUSED, f"{what}: {reason}: {error} {graph}"[:600])
    except urllib.error.HTTPError as error:
        return Outcome(row, FAULT, f"{what}: ComfyUI answers {error} {graph}"[:600])
    except TimeoutError as error:
        raise Lost(f"{what}: no answer") from error
    return Outcome(row, FAULT, f"{what}: it was not refused: {graph}"[:600])


# --- a long film ------------------------------------------------------------------------------------------------------
def frames(place: Place, rolls: Random, scale: Scale) -> list[Outcome]:
    """An outcome for every frame; Lost for one that is missing or another one than in a film of fewer."""
    row, parts = "frames", []
    graphs.write_film(place.base / "input" / "long.tiff", range(scale.frames))
    place.run(loading("long.tiff"))  # ComfyUI keeps what it has loaded
    before = peak_bytes(place, reset=True)
    result = place.run(graphs.film("long.tiff", 1, next(place.numbers), BOX))
    taken = peak_bytes(place) - before
    made = place.pictures(result)
    for start in range(0, scale.frames, scale.part):
        graphs.write_film(place.base / "input" / "part.tiff", range(start, min(scale.frames, start + scale.part)))
        parts += place.pictures(place.run(graphs.film("part.tiff", 1, next(place.numbers), BOX)))
    pictures = 4 * 3 * (graphs.FRAME_PX ** 2 + 2 * 64 ** 2) * scale.frames  # results, crops, stylized crops
    notes = f"{scale.frames} frames took {taken >> 20} MB, {pictures >> 20} MB of them for pictures"
    if before and taken > pictures + SLACK:
        raise Wrong(notes)
    for name in ("long.tiff", "part.tiff"):
        (place.base / "input" / name).unlink()
    return [Outcome(row, LOADED, notes) if k < len(made) and made[k] == parts[k]
            else fault_of(row, Lost(f"frame {k} is missing or another one")) for k in range(scale.frames)]


def loading(name: str) -> Graph:
    """Loads a film, and shows its first frame."""
    full = graphs.film(name, 1)
    return {"2": full["2"], graphs.SHOWN: graphs.node("PreviewImage", images=["7", 0]),
            "7": graphs.node("ImageFromBatch", image=["2", 0], batch_index=0, length=1)}


def peak_bytes(place: Place, reset: bool = False) -> int:
    """The most memory that ComfyUI has held; reset: from now on. 0 where it is not told (any but Linux)."""
    process = Path(f"/proc/{place.server.process.pid}")
    try:
        if reset:
            (process / "clear_refs").write_text("5", encoding="utf-8")
        lines = (process / "status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


ATTEMPTS: dict[str, Callable[[Place, str, Random, list[str]], Found]] = {
    "killed": killed, "cancelled": cancelled, "out of memory": out_of_memory,
    "out of a GPU's memory": out_of_gpu_memory, "disk full": disk_full, "read-only folders": read_only_folders}
MANY: dict[str, Callable[[Place, Random, Scale], list[Outcome]]] = {
    "prompts of many clients": many_clients, "frames": frames}
