"""A server on the loopback interface that answers as the Hugging Face Hub does, for the files of one model."""

from __future__ import annotations

import hashlib
import json
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


def _answer(files: Mapping[str, bytes], path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content for a path."""
    api, resolve = f"/api/models/{NAME}", f"/{NAME}/resolve/{COMMIT}/"
    name = path.removeprefix(resolve)
    if path.startswith(resolve) and name in files:
        tag = hashlib.sha256(files[name]).hexdigest()
        return 200, {"ETag": f'"{tag}"'}, files[name]
    if path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
        about = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        return 200, {}, json.dumps(about).encode()
    if path.startswith(f"{api}/tree/{COMMIT}"):
        listed = [{"type": "file", "path": name, "size": len(own), "oid": "0"} for name, own in files.items()]
        return 200, {}, json.dumps(listed).encode()
    lacking = "RevisionNotFound" if path.startswith(f"{api}/revision/") else "RepoNotFound"
    return 404, {"X-Error-Code": lacking}, b"{}"


@contextmanager
def hub_server(files: Mapping[str, bytes]) -> Iterator[Hub]:
    """Serve the files as `NAME` at `COMMIT`, which the revision main is, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._send(body=False)

        def do_GET(self) -> None:
            self._send(body=True)

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
