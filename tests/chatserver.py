"""A chat-completion server on the loopback interface whose faults a script chooses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """The response to one request."""

    text: str | None = None
    status: int = 200
    body: str | None = None  # instead of a completion
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    trickle: float = 0.0  # seconds between bytes
    hang_up: bool = False


Script = Callable[[dict[str, Any], int], Reply]  # (question, how many came before it) -> reply


@dataclass
class Chat:
    """A running server: its URL, and every question with its headers."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def chat_server(script: Script) -> Iterator[Chat]:
    """Serve until the block ends."""
    guard, running = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with guard:
                number = len(chat.asked)
                chat.asked.append({**question, "path": self.path})
                chat.headers.append(dict(self.headers))
                running[0] += 1
                chat.most_at_once = max(chat.most_at_once, running[0])
            try:
                reply = script(question, number)
                time.sleep(reply.delay)
            finally:
                with guard:  # before the answer: its reader may ask again before this thread goes on
                    running[0] -= 1
            with suppress(OSError):  # the caller is gone
                self.reply(reply)

        def reply(self, reply: Reply) -> None:
            if reply.hang_up:
                self.connection.close()
                return
            usage = {"prompt_tokens": 11, "completion_tokens": 7}
            completion = {"choices": [{"message": {"role": "assistant", "content": reply.text}}], "usage": usage}
            content = (json.dumps(completion) if reply.body is None else reply.body).encode()
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            step = 1 if reply.trickle else len(content) or 1
            for start in range(0, len(content), step):
                self.wfile.write(content[start : start + step])
                self.wfile.flush()
                time.sleep(reply.trickle)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    chat = Chat(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()


def asked_class(question: dict[str, Any]) -> str:
    """The class that a question is about."""
    line = next(line for line in question["messages"][3]["content"].splitlines() if "class" in line)
    return str(json.loads(line.split("the class ")[1].rstrip(".")))


def listed(key: str, *items: str) -> str:
    """A good answer."""
    return json.dumps({"reasoning": "because", key: items})
