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


@contextmanager
def hub_server(files: Mapping[str, bytes]) -> Iterator[Hub]:
    """Serve the files as `NAME` at `COMMIT`, which the revision main is, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(f"{self.command} {path}")
            headers, content = {"X-Repo-Commit": COMMIT}, b""
            prefix = f"/{NAME}/resolve/{COMMIT}/"
            if path.startswith(prefix) and (name := path.removeprefix(prefix)) in files:
                content = files[name]
                headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
                self._send(200, headers, content, body=body, torn=name in hub.torn)
            elif path in (f"/api/models/{NAME}/revision/main", f"/api/models/{NAME}/revision/{COMMIT}"):
                about = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                self._send(200, headers, json.dumps(about).encode(), body=body)
            elif path.startswith(f"/api/models/{NAME}/tree/{COMMIT}"):
                listed = [{"type": "file", "path": name, "size": len(own), "oid": "0"} for name, own in files.items()]
                self._send(200, headers, json.dumps(listed).encode(), body=body)
            elif path.startswith(f"/api/models/{NAME}/revision/"):
                self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"{}", body=body)
            else:
                self._send(404, {"X-Error-Code": "RepoNotFound"}, b"{}", body=body)

        def _send(
            self, status: int, headers: Mapping[str, str], content: bytes, *, body: bool, torn: bool = False
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
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
