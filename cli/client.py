"""A client of a running ComfyUI: upload, queue a graph, follow it live, fetch its pictures, interrupt.

Plain HTTP goes through urllib; the live events need a websocket, for which aiohttp is taken (ComfyUI brings it).
"""
from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BINARY_KINDS = {1: "preview", 3: "text", 4: "preview_with_metadata"}
ENDINGS = ("execution_success", "execution_error", "execution_interrupted")

Graph = Mapping[str, Mapping[str, Any]]  # API format: node id -> {"class_type", "inputs"}


def title_of(entry: Mapping[str, Any]) -> str:
    """A node's title, or its type."""
    return entry.get("_meta", {}).get("title") or entry["class_type"]


class RunError(RuntimeError):
    """A graph did not run to its end; `result` holds the events until then, once it was queued."""

    result: Result | None = None


class PromptRejected(RunError):
    """ComfyUI refused the graph before running any of it. node_errors: by node id, as ComfyUI sent them."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.body, self.node_errors = body, body.get("node_errors") or {}
        super().__init__("\n".join(self._lines()))

    def _lines(self) -> list[str]:
        error = self.body.get("error")
        lines = [error.get("message", str(error)) if isinstance(error, Mapping) else str(error or self.body)]
        for node, report in self.node_errors.items():
            for problem in report.get("errors", ()):
                where, what = f"node {node} ({report.get('class_type')})", problem.get("message")
                lines.append(f"{where}: {what}: {problem.get('details')}")
        return lines


class NodeFailed(RunError):
    """A node raised an exception; `message` is its text, as the user's dialog shows it."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self.node_id, self.node_type = report.get("node_id"), report.get("node_type")
        self.exception_type, self.message = report.get("exception_type"), report.get("exception_message", "").strip()
        self.traceback = "".join(report.get("traceback") or ())
        super().__init__(f"node {self.node_id} ({self.node_type}): {self.exception_type}: {self.message}")


class Interrupted(RunError):
    """The run was cancelled; node_id names the node that was at work."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self.node_id, self.node_type = report.get("node_id"), report.get("node_type")
        super().__init__(f"interrupted in node {self.node_id} ({self.node_type})")


@dataclass(frozen=True)
class Event:
    """A message of the websocket.

    kind: ComfyUI's type (execution_start, executing, progress, executed, ...), or for binary ones preview, text,
    preview_with_metadata. data: the JSON object; {"node", "text"} for text; {"image": bytes} for pictures.
    """

    kind: str
    data: Mapping[str, Any]
    at: float  # seconds since the graph was queued


@dataclass
class Result:
    """A finished run. outputs: node id -> what the node showed; cached: nodes that did not have to run again."""

    prompt_id: str
    outputs: dict[str, dict] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    seconds: float = 0.0

    def of_kind(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    @property
    def cached(self) -> set[str]:
        return {node for event in self.of_kind("execution_cached") for node in event.data.get("nodes", ())}

    @property
    def ran(self) -> list[str]:
        """Nodes that were executed, in order."""
        return [event.data["node"] for event in self.of_kind("executing") if event.data.get("node")]

    def last_seen(self) -> str:
        """Where the run was, in words."""
        progress = [event.data for event in self.of_kind("progress")][-1:]
        steps = "".join(f", step {data['value']:.0f}/{data['max']:.0f}" for data in progress)
        return f"last node at work: {(self.ran or ['none'])[-1]}{steps}"

    def image_refs(self, node_id: str) -> list[dict]:
        return self.outputs.get(node_id, {}).get("images", [])


def decode_binary(message: bytes) -> tuple[str, dict]:
    """(kind, data) of a binary websocket message: a 4-byte kind, then what belongs to it."""
    kind, rest = BINARY_KINDS.get(struct.unpack(">I", message[:4])[0], "unknown"), message[4:]
    if kind == "preview":  # 4 bytes picture format, picture
        return kind, {"image": rest[4:]}
    if kind == "preview_with_metadata":  # 4 bytes length, JSON, picture
        end = 4 + struct.unpack(">I", rest[:4])[0]
        return kind, {**json.loads(rest[4:end]), "image": rest[end:]}
    if kind == "text":  # 4 bytes length, node id, text
        end = 4 + struct.unpack(">I", rest[:4])[0]
        return kind, {"node": rest[4:end].decode(), "text": rest[end:].decode(errors="replace")}
    return kind, {"bytes": rest}


class Client:
    """Talks to the ComfyUI at `url`. All methods block; `run` may be called while another thread uses the rest."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def _open(self, path: str, body: bytes | None = None, content_type: str = "application/json",
              timeout: float = 60) -> bytes:
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.read()

    def get_json(self, path: str) -> Any:
        return json.loads(self._open(path))

    def post_json(self, path: str, data: Any) -> Any:
        answer = self._open(path, json.dumps(data).encode())
        return json.loads(answer) if answer.strip() else None

    def upload(self, picture: bytes | Path, name: str | None = None) -> str:
        """Put a picture into ComfyUI's input folder (replacing one of that name); the name LoadImage knows it by."""
        if isinstance(picture, Path):
            picture, name = picture.read_bytes(), name or picture.name
        name, boundary = name or f"{uuid.uuid4().hex}.png", uuid.uuid4().hex
        parts = (f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
                 f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
                 "Content-Type: application/octet-stream\r\n\r\n").encode()
        body = parts + picture + f"\r\n--{boundary}--\r\n".encode()
        return json.loads(self._open("/upload/image", body, f"multipart/form-data; boundary={boundary}"))["name"]

    def fetch(self, ref: Mapping[str, str]) -> bytes:
        """The bytes of a picture that a node's output names ({"filename", "subfolder", "type"})."""
        query = urllib.parse.urlencode({key: ref[key] for key in ("filename", "subfolder", "type")})
        return self._open(f"/view?{query}")

    def images(self, result: Result, node_id: str) -> list[bytes]:
        return [self.fetch(ref) for ref in result.image_refs(node_id)]

    def interrupt(self) -> None:
        """Ask the running graph to stop; its run() then raises Interrupted."""
        self.post_json("/interrupt", {})

    def cancel(self, prompt_id: str, patience: float = 0) -> bool:
        """Take a graph out of the queue, or stop it if it runs, and no other one. patience: seconds to wait for its
        end, such as for a training that saves. Did it end?"""
        self.post_json("/queue", {"delete": [prompt_id]})
        asked, deadline = False, time.monotonic() + patience
        while prompt_id in self.running():
            if not asked:
                self.post_json("/interrupt", {"prompt_id": prompt_id})
            asked = True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
        return True

    def running(self) -> list[str]:
        """Prompt ids of the graphs that are at work."""
        return [entry[1] for entry in self.get_json("/queue")["queue_running"]]

    def queue(self, graph: Graph, client_id: str, prompt_id: str | None = None) -> str:
        """Put the graph into the queue; its prompt id, which may be chosen. Raises PromptRejected."""
        body = {"prompt": graph, "client_id": client_id} | ({"prompt_id": prompt_id} if prompt_id else {})
        try:
            return self.post_json("/prompt", body)["prompt_id"]
        except urllib.error.HTTPError as refused:
            if refused.code != 400:
                raise
            raise PromptRejected(json.loads(refused.read())) from None

    def run(self, graph: Graph, on_event: Callable[[Event], None] | None = None, timeout: float | None = 600,
            metadata_previews: bool = False, prompt_id: str = "", patience: float = 0) -> Result:
        """Queue the graph and follow it to its end.

        on_event: called with every message as it arrives; may call interrupt(). timeout: seconds for the whole run,
        after which it is cancelled and TimeoutError is raised; None: no limit. metadata_previews: previews name their
        node. prompt_id: to be known by, such as for `cancel`. patience: seconds that a cancelled run may take to end.
        Raises PromptRejected, NodeFailed, Interrupted.
        """
        result = Result(prompt_id)
        try:
            ending = asyncio.run(asyncio.wait_for(self._follow(graph, result, on_event, metadata_previews), timeout))
        except (TimeoutError, asyncio.TimeoutError):
            with contextlib.suppress(OSError):  # the server may be gone
                self.cancel(result.prompt_id, patience)
            raise TimeoutError(f"the graph was not done after {timeout} s; {result.last_seen()}") from None
        result.seconds = ending.at
        failure = {"execution_error": NodeFailed, "execution_interrupted": Interrupted}.get(ending.kind)
        if failure:
            error = failure(ending.data)
            error.result = result
            raise error
        result.outputs = self._history(result.prompt_id)["outputs"]
        return result

    async def _follow(self, graph: Graph, result: Result, on_event: Callable[[Event], None] | None,
                      metadata_previews: bool) -> Event:
        import aiohttp

        client_id = uuid.uuid4().hex
        async with aiohttp.ClientSession() as session, \
                session.ws_connect(f"{self.url}/ws?clientId={client_id}", max_msg_size=0) as socket:
            if metadata_previews:  # counts only as the first message
                await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            start = time.monotonic()
            result.prompt_id = self.queue(graph, client_id, result.prompt_id or None)
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    kind, data = decode_binary(message.data)
                else:
                    parsed = json.loads(message.data)
                    kind, data = parsed["type"], parsed.get("data") or {}
                event = Event(kind, data, time.monotonic() - start)
                result.events.append(event)
                if on_event:
                    on_event(event)
                if kind in ENDINGS and data.get("prompt_id") == result.prompt_id:
                    return event
        raise RunError("ComfyUI closed the connection while it ran the graph: it was stopped or has crashed; "
                       + result.last_seen())

    def _history(self, prompt_id: str, patience: float = 20) -> dict:
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:  # written just after the last message
            history = self.get_json(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.05)
        raise RunError(f"ComfyUI wrote no history of run {prompt_id}")
