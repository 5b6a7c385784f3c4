"""The driver of `make demo`: runs API workflows in a real ComfyUI and lays their pictures out on a contact sheet.

    python3 tools/launch.py tools.demo [GRAPH.json ...] [--out FOLDER]

Pictures are told apart by the filename_prefix of the SaveImage node they come from: atelier_demo/<column>.
"""
from __future__ import annotations

import argparse
import io
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from .client import Client, Event, Graph, Result, RunError
from .comfy import ROOT, ComfyServer, HostMissing, ServerDied, find_host
from .sheet import contact_sheet

GRAPHS = (ROOT / "workflows" / "api" / "osasis_demo.json",)
INPUTS = ROOT / "workflows" / "inputs"
PREFIX = "atelier_demo/"
COLUMNS = {"input": "input", "style": "style", "result": "result", "result_no_spn": "result without SPN"}
SECONDS_BETWEEN_LINES = 5.0

Pictures = dict[str, list[Image.Image]]  # column -> its pictures, in order


class ProgressLines:
    """Writes what runs, how far it is and how long it took; a live line on a terminal, else one every few seconds."""

    def __init__(self, titles: dict[str, str]) -> None:
        self.titles, self.live = titles, sys.stdout.isatty()
        self.node: str | None = None
        self.began = self.written = 0.0

    def __call__(self, event: Event) -> None:
        if event.kind == "executing":
            self._finish(event.at)
            self.node, self.began, self.written = event.data.get("node"), event.at, event.at
            if self.node:
                self._write(event.at, "...")
        elif event.kind == "progress" and event.data.get("node") == self.node:
            if event.at - self.written >= (0.2 if self.live else SECONDS_BETWEEN_LINES):
                self.written = event.at
                spent = event.at - self.began
                self._write(event.at, f"step {event.data['value']:.0f}/{event.data['max']:.0f}, {spent:.0f} s")
        elif event.kind in ("execution_success", "execution_error", "execution_interrupted"):
            self._finish(event.at)

    def _finish(self, at: float) -> None:
        if self.node and (self.live or at - self.began >= 1):
            self._write(at, f"done in {at - self.began:.1f} s", last=True)
        self.node = None

    def _write(self, at: float, text: str, last: bool = False) -> None:
        line = f"  {at:6.1f} s  {self.titles.get(self.node, self.node)}: {text}"
        if self.live:
            print(f"\r\x1b[2K{line}", end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)


def titles_of(graph: Graph) -> dict[str, str]:
    return {node: entry.get("_meta", {}).get("title") or entry["class_type"] for node, entry in graph.items()}


def upload_inputs(client: Client, graph: Graph, folder: Path) -> None:
    """Upload every picture that the graph's LoadImage nodes name from `folder`. Raises FileNotFoundError."""
    names = {entry["inputs"]["image"] for entry in graph.values() if entry["class_type"] == "LoadImage"}
    for name in sorted(names):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"the workflow loads {name}, which is not in {folder}")
        client.upload(folder / name)


def saved_pictures(client: Client, graph: Graph, result: Result) -> Pictures:
    """The pictures of all SaveImage nodes whose prefix is atelier_demo/<column>, by column."""
    pictures: Pictures = {}
    for node, entry in graph.items():
        prefix = str(entry["inputs"].get("filename_prefix", ""))
        if entry["class_type"] == "SaveImage" and prefix.startswith(PREFIX):
            found = [Image.open(io.BytesIO(data)) for data in client.images(result, node)]
            pictures.setdefault(prefix.removeprefix(PREFIX), []).extend(found)
    return pictures


def sheet_rows(pictures: Pictures) -> list[list[Image.Image | None]]:
    """A row for each input. A single picture (the style) stands in every row; missing ones leave their cell empty."""
    columns = [pictures.get(column, []) for column in COLUMNS]
    height = max(map(len, columns))

    def cell(column: list[Image.Image], line: int) -> Image.Image | None:
        if len(column) == 1:
            return column[0]
        return column[line] if line < len(column) else None

    return [[cell(column, line) for column in columns] for line in range(height)]


def save(pictures: Pictures, name: str, out: Path) -> None:
    for column, found in pictures.items():
        for number, picture in enumerate(found, 1):
            picture.save(out / f"{name}_{column}_{number:02d}.png")


def run_graphs(server: ComfyServer, graphs: list[Path], inputs: Path, out: Path) -> Path:
    """Run all graphs, write their pictures and one contact sheet into `out`; the sheet's path."""
    rows: list[list[Image.Image | None]] = []
    for path in graphs:
        graph = json.loads(path.read_text())
        upload_inputs(server.client, graph, inputs)
        print(f"Running {path.stem} ({len(graph)} nodes)", flush=True)
        result = server.client.run(graph, ProgressLines(titles_of(graph)), timeout=3600)
        pictures = saved_pictures(server.client, graph, result)
        if not any(pictures.get(column) for column in COLUMNS):
            raise ValueError(f"{path} saves no picture under {PREFIX}<{'|'.join(COLUMNS)}>")
        save(pictures, path.stem, out)
        rows += sheet_rows(pictures)
    sheet = out / "contact_sheet.png"
    contact_sheet(list(COLUMNS.values()), rows).save(sheet)
    return sheet


def demo(graphs: list[Path], inputs: Path, out: Path) -> None:
    start = time.monotonic()
    for path in graphs:
        if not path.is_file():
            raise FileNotFoundError(f"there is no workflow {path}")
    host = find_host()
    if not host.own:
        print(f"Using your ComfyUI in {host.comfy} with {host.python}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="atelier-") as base:
        server = ComfyServer(host, base=Path(base))
        print("Starting ComfyUI ...", flush=True)
        try:
            with server:
                check_pack(server)
                device = server.client.get_json("/system_stats")["devices"][0]["name"]
                print(f"ComfyUI is up after {server.seconds_to_start:.0f} s, on {device}", flush=True)
                sheet = run_graphs(server, graphs, inputs, out)
        finally:
            if server.log.exists():
                shutil.copy(server.log, out / "comfyui.log")
                print(f"ComfyUI's log:   {out / 'comfyui.log'}", flush=True)
    print(f"Done in {time.monotonic() - start:.0f} s.\nContact sheet:   {sheet}\nSingle pictures: {out}/", flush=True)


def check_pack(server: ComfyServer) -> None:
    if server.failed_imports():
        raise ServerDied(f"ComfyUI could not import this pack.\n{server.log_tail(80)}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    parser.add_argument("graphs", nargs="*", type=Path, default=list(GRAPHS), help="API workflows; default: the demo")
    parser.add_argument("--inputs", type=Path, default=INPUTS, help="folder of the pictures that the graphs load")
    parser.add_argument("--out", type=Path, default=ROOT / "demo_output", help="where the pictures go")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the server is stopped, too
    try:
        demo(options.graphs, options.inputs.resolve(), options.out.resolve())
    except (HostMissing, ServerDied, RunError, TimeoutError, FileNotFoundError, ValueError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0
