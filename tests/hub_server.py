"""A server on the loopback interface that answers as the Hugging Face Hub does, for the files of one model.

It takes uploads too, and checks the metadata of a model card as far as the Hub's documentation states its rules.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, COMMIT = "somebody/small-clip", "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A running server: its URL, the paths that were asked for, and files that break off in the middle."""

    url: str
    asked: list[str] = field(default_factory=list)
    torn: set[str] = field(default_factory=set)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    private: bool | None = None  # as the repository was made


def _answer(files: Mapping[str, bytes], path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content for a path."""
    api, resolve = f"/api/models/{NAME}", f"/{NAME}/resolve/{COMMIT}/"
    name = path.removeprefix(resolve)
    if path.startswith(resolve) and name in files:
        tag = hashlib.sha256(files[name]).hexdigest()
        return 200, {"ETag": f'"{tag}"'}, files[name]
    if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
        about = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        return 200, {}, json.dumps(about).encode()
    if path.startswith(f"{api}/tree/{COMMIT}"):
        listed = [{"type": "file", "path": name, "size": len(own), "oid": "0"} for name, own in files.items()]
        return 200, {}, json.dumps(listed).encode()
    lacking = "RevisionNotFound" if path.startswith(f"{api}/revision/") else "RepoNotFound"
    return 404, {"X-Error-Code": lacking}, b"{}"


REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def _take(hub: Hub, path: str, body: bytes) -> tuple[int, Mapping[str, object]]:
    """Status and JSON for what a client sends."""
    if path == "/api/repos/create":
        asked = json.loads(body)
        hub.private = asked.get("visibility") == "private" or asked.get("private", False)
        return 200, {"url": f"{hub.url}/{asked.get('organization', 'me')}/{asked['name']}"}
    if path == "/api/validate-yaml":
        errors = card_errors(json.loads(body)["content"])
        return 200 if not errors else 400, {"errors": [{"message": one} for one in errors], "warnings": []}
    if "/preupload/" in path:
        names = [file["path"] for file in json.loads(body)["files"]]
        return 200, {"files": [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in names]}
    if "/commit/" in path:
        for line in body.decode().splitlines():
            one = json.loads(line)
            if one["key"] == "file":
                hub.uploaded[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
        return 200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.url}/{NAME}/commit/{COMMIT}"}
    return 404, {}


def card_errors(text: str) -> list[str]:
    """What is wrong with a model card's metadata."""
    import yaml

    found = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
    data = yaml.safe_load(found[1]) if found else None
    if not isinstance(data, dict):
        return ["no metadata"]
    errors = []
    base = data.get("base_model")
    if base is not None and not REPO_ID.fullmatch(str(base)):
        errors.append(f"base_model {base!r} is no repository")
    if not {"license", "library_name", "tags"} <= set(data):
        errors.append("keys are missing")
    for model in data.get("model-index", ()):
        for result in model["results"]:
            complete = result["task"]["type"] and {"type", "name"} <= set(result["dataset"])
            if not complete or not all(isinstance(one["value"], int | float) for one in result["metrics"]):
                errors.append(f"an incomplete result: {result}")
    return errors


@contextmanager
def hub_server(files: Mapping[str, bytes]) -> Iterator[Hub]:
    """Serve the files as `NAME` at `COMMIT`, which the revision main is, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._send(body=False)

        def do_GET(self) -> None:
            self._send(body=True)

        def do_POST(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(f"POST {path}")
            status, answer = _take(hub, path, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _send(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(f"{self.command} {path}")
            status, headers, content = _answer(files, path)
            self.send_response(status)
            for key, value in {"X-Repo-Commit": COMMIT, **headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                torn = path.rpartition("/")[2] in hub.torn
                self.wfile.write(content[: len(content) // 2] if torn else content)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
