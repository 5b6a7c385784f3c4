"""`atelier run`: a workflow in a ComfyUI, without its web page."""
from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import tempfile
import urllib.error
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ..models.whole_files import whole_file
from .client import Client, Result, RunError
from .graph_values import Graph, file_node, set_value, upload_name
from .page_format import is_page_format, to_api
from .schemas import Schemas
from .server import ROOT, ComfyServer, Host, HostMissing, WholeComfyServer, users_host
from .stopping import Stopped, StopSignals
from .terminal import ProgressLines, show, titles_of

log = logging.getLogger(__name__)
FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')  # in names of files, by some system
SAVING_SECONDS = 600.0  # that a cancelled training may take to save


def add_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("workflow", type=Path, help="JSON file: as the page saves it, or exported as API format")
    p.add_argument("--input", action="append", default=[], metavar="NAME=FILE",
                   help="file for the node of this title, id, type or file name, or for the only one that loads files")
    p.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE",
                   help="value of an input; NODE is an id, a title or a node type that is there once")
    p.add_argument("--out", type=Path, default=Path("output"), help="folder for all files that are saved (%(default)s)")
    p.add_argument("--server", help="a running ComfyUI, such as http://127.0.0.1:8188; without it one is started and "
                   "ended")
    p.add_argument("--comfyui", type=Path, help="the ComfyUI to start (default: COMFYUI_PATH, or the one that this "
                   "pack lies in)")
    p.add_argument("--base", type=Path, help="start it with this pack alone, and with its folders here, in place of "
                   "its own")
    p.add_argument("--timeout", type=float, help="seconds after which the run is cancelled; a training still "
                   "saves (default: none)")
    p.set_defaults(run=run)


def run(options: argparse.Namespace, signals: StopSignals) -> None:
    workflow = read_workflow(options.workflow)
    with comfyui(options) as client:
        schemas = object_info(client)
        graph = to_api(workflow, schemas) if is_page_format(workflow) else checked(workflow, schemas)
        give_files(client, graph, schemas, options.input)
        for assignment in options.set:
            set_value(graph, schemas, assignment)
        result = run_graph(client, graph, options.timeout)
        written, refused = save_outputs(client, result, options.out)
    for path in written:
        show(path)
    if refused:
        raise refused[0]
    if not written:
        log.warning("no node saved a file; add Save Image or the like to the workflow")


def read_workflow(path: Path) -> dict[str, Any]:
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(workflow, dict) or not workflow:
        raise ValueError(f"{path} holds no workflow; save one from the page")
    return workflow


def checked(graph: Graph, schemas: Schemas) -> Graph:
    """A graph in API format. ValueError for what is none, and for nodes that the server does not have."""
    wrong = [node for node, entry in graph.items()
             if not isinstance(entry, dict) or "class_type" not in entry or not isinstance(entry.get("inputs"), dict)]
    if wrong:
        raise ValueError(f"{wrong[0][:40]!r} is no node: the file is no workflow; save one from the page")
    unknown = {entry["class_type"] for entry in graph.values()} - set(schemas)
    if unknown:
        raise ValueError(f"the server has no node {', '.join(sorted(unknown))}. Install its pack")
    return graph


# --- the ComfyUI ------------------------------------------------------------------------------------------------------
@contextmanager
def comfyui(options: argparse.Namespace) -> Iterator[Client]:
    """A client of the server that is named, or of one that is started for this run."""
    if options.server:
        yield Client(options.server if "//" in options.server else f"http://{options.server}")
        return
    host = host_of(options.comfyui)
    with tempfile.TemporaryDirectory(prefix="atelier-run-") as folder:
        server = ComfyServer(host, options.base) if options.base else WholeComfyServer(host, Path(folder))
        log.info("starting ComfyUI in %s", host.comfy)
        with server:
            yield server.client


def host_of(folder: Path | None) -> Host:
    inside = ROOT.parents[1]  # of custom_nodes
    named = folder or os.environ.get("COMFYUI_PATH") or (inside if (inside / "main.py").is_file() else None)
    if named is None:
        raise HostMissing("There is no ComfyUI: name a running one (--server URL), or a folder (--comfyui, "
                          "COMFYUI_PATH)")
    return users_host(Path(named).expanduser().resolve())


def object_info(client: Client) -> Schemas:
    try:
        return client.get_json("/object_info")
    except (urllib.error.URLError, ValueError) as error:
        raise OSError(f"no ComfyUI answers at {client.url} ({error}). Start it, or leave out --server") from error


# --- the run ----------------------------------------------------------------------------------------------------------
def give_files(client: Client, graph: Graph, schemas: Schemas, inputs: list[str]) -> None:
    """Upload what --input names, and set the nodes that load it. All files are found before the first is sent."""
    given: dict[str, tuple[str, Path]] = {}
    for text in inputs:
        name, equals, path = text.partition("=")
        if not (name and equals and Path(path).is_file()):
            raise ValueError(f"--input {text[:200]}: write NAME=FILE, with a file that is there")
        node, field = file_node(graph, schemas, name)
        if node in given:
            raise ValueError(f"--input {name}: node {node} is given two files; give one")
        given[node] = field, Path(path)
    for node, (field, path) in given.items():
        data = path.read_bytes()
        graph[node]["inputs"][field] = client.upload(data, upload_name(path, data))


def run_graph(client: Client, graph: Graph, timeout: float | None) -> Result:
    """Run it to its end. A signal and a timeout cancel it on the server and wait until it has ended."""
    prompt = str(uuid.uuid4())
    try:
        return client.run(graph, ProgressLines(titles_of(graph), sys.stderr), timeout, prompt_id=prompt,
                          patience=SAVING_SECONDS)
    except Stopped as stopped:
        log.info("cancelling; stop once more to leave at once")
        try:
            ended = client.cancel(prompt, SAVING_SECONDS)
            stopped.saved = (f"The run was cancelled at {client.url}" if ended
                             else f"It has not ended at {client.url} yet")
        except OSError as error:
            stopped.saved = f"{client.url} does not answer any more ({error})"
        raise


def save_outputs(client: Client, result: Result, out: Path) -> tuple[list[Path], list[RunError]]:
    """Every file that the run's nodes saved, in the server's subfolders under `out`, and why some were not. A file of
    the name with other content is kept, and the new one is numbered."""
    refs = [ref for shown in result.outputs.values() for found in shown.values() if isinstance(found, list)
            for ref in found if isinstance(ref, dict) and ref.get("filename") and ref.get("type") == "output"]
    written: list[Path] = []
    refused: list[RunError] = []
    for ref in refs:
        try:
            written.append(save_file(client.fetch(ref), out, ref))
        except RunError as error:
            refused.append(error)
    return written, refused


def save_file(data: bytes, out: Path, ref: dict[str, str]) -> Path:
    """The file, under its name; what names of some system must not hold becomes _. RunError for one that does not lie
    under `out`."""
    where = PurePosixPath("/".join(filter(None, (ref.get("subfolder"), ref["filename"]))).replace("\\", "/"))
    if where.is_absolute() or ".." in where.parts:
        raise RunError(f"the server names a file outside its output folder: {str(where)[:100]!r}; it was not saved")
    first = out / FORBIDDEN.sub("_", str(where))
    for number in range(1, 1_000_000):
        path = first if number == 1 else first.with_name(f"{first.stem}_{number}{first.suffix}")
        if not path.exists() or path.read_bytes() == data:
            break
    with whole_file(path) as file:
        file.write_bytes(data)
    return path
