"""The driver of `make demo`: runs API workflows in a real ComfyUI and lays their pictures out on contact sheets.

    python3 tools/launch.py tools.demo [GRAPH.json ...] [--only osasis|mmfs] [--out FOLDER]

The first sheet is OSASIS's, or that of the graphs that are given; the second is MMFS's (see demo_mmfs.py). Pictures of
the first are told apart by the filename_prefix of the SaveImage node they come from: atelier_demo/<column>.
"""
from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

from PIL import Image

from ..cli.client import RunError
from .comfy import ROOT, ComfyServer, HostMissing, ServerDied, find_host
from .demo_mmfs import mmfs_sheet
from .graphs import INPUTS, run_shown, save, saved_pictures
from .sheet import contact_sheet, rows_of

OSASIS, MMFS = "osasis", "mmfs"
GRAPHS = (ROOT / "workflows" / "api" / "osasis_demo.json",)
PREFIX = "atelier_demo/"
COLUMNS = {"input": "input", "style": "style", "result": "result", "result_no_spn": "result without SPN"}


def run_graphs(server: ComfyServer, graphs: list[Path], inputs: Path, out: Path) -> Path:
    """Run all graphs, write their pictures and one contact sheet into `out`; the sheet's path."""
    rows: list[list[Image.Image | None]] = []
    for path in graphs:
        graph = json.loads(path.read_text())
        result = run_shown(server.client, graph, path.stem, inputs)
        pictures = saved_pictures(server.client, graph, result, PREFIX)
        if not any(pictures.get(column) for column in COLUMNS):
            raise ValueError(f"{path} saves no picture under {PREFIX}<{'|'.join(COLUMNS)}>")
        save(pictures, path.stem, out)
        rows += rows_of(pictures.get(column, []) for column in COLUMNS)
    sheet = out / "contact_sheet.png"
    contact_sheet(list(COLUMNS.values()), rows).save(sheet)
    return sheet


def demo(graphs: list[Path], sheets: Collection[str], inputs: Path, out: Path) -> None:
    """Make the `sheets` of OSASIS (of `graphs`) and MMFS."""
    start, made = time.monotonic(), []
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
                if OSASIS in sheets:
                    made.append(run_graphs(server, graphs, inputs, out))
                    print(f"Contact sheet after {time.monotonic() - start:.0f} s: {made[-1]}", flush=True)
                if MMFS in sheets:
                    made.append(mmfs_sheet(server.client, inputs, out))
        finally:
            if server.log.exists():
                shutil.copy(server.log, out / "comfyui.log")
                print(f"ComfyUI's log:   {out / 'comfyui.log'}", flush=True)
    print(f"Done in {time.monotonic() - start:.0f} s.", *(f"Contact sheet:   {sheet}" for sheet in made),
          f"Single pictures: {out}/", sep="\n", flush=True)


def check_pack(server: ComfyServer) -> None:
    if server.failed_imports():
        raise ServerDied(f"ComfyUI could not import this pack.\n{server.log_tail(80)}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    parser.add_argument("graphs", nargs="*", type=Path, help="API workflows to run instead of the demo")
    parser.add_argument("--only", choices=(OSASIS, MMFS), help="make a single one of the two sheets")
    parser.add_argument("--inputs", type=Path, default=INPUTS, help="folder of the pictures that the graphs load")
    parser.add_argument("--out", type=Path, default=ROOT / "demo_output", help="where the pictures go")
    options = parser.parse_args()
    if options.graphs and options.only == MMFS:
        parser.error("the graphs make the first sheet, and --only mmfs leaves it out; give one of the two")
    sheets = (options.only,) if options.only else (OSASIS,) if options.graphs else (OSASIS, MMFS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the server is stopped, too
    try:
        demo(options.graphs or list(GRAPHS), sheets, options.inputs.resolve(), options.out.resolve())
    except (HostMissing, ServerDied, RunError, TimeoutError, FileNotFoundError, ValueError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0
