"""Who is asked: any server that speaks OpenAI's chat completions (a cloud, vLLM, Ollama, llama.cpp), and what is said.

httpx is imported here and nowhere else; a key comes from the environment and goes into one header.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol
from urllib.parse import urlsplit

from pydantic import JsonValue

from fedprompt.errors import UserError

LARGEST_ANSWER = 1 << 20  # bytes read of one answer, whatever the server sends
TRANSIENT = frozenset({408, 409, 425, 429})
REFUSING = frozenset({400, 422})  # of a parameter, perhaps
MISSING = "Asking a server needs the package httpx; install it with: pip install 'fedprompt[llm]'."


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Request:
    """One question. `listed` names the list of strings that the answer's JSON object must have."""

    messages: tuple[Message, ...]
    listed: str
    temperature: float = 0.3
    max_tokens: int = 400
    seed: int = 0

    def key(self, model: str) -> str:
        """What an answer is kept under: the same question to the same model costs nothing the second time."""
        return hashlib.sha256(json.dumps([model, asdict(self)]).encode()).hexdigest()[:32]

    @property
    def schema(self) -> JsonValue:
        """The JSON schema of the answer, for servers that can hold a model to one."""
        strings: JsonValue = {"type": "array", "items": {"type": "string"}}
        properties: dict[str, JsonValue] = {"reasoning": {"type": "string"}, self.listed: strings}
        return {
            "type": "object",
            "properties": properties,
            "required": ["reasoning", self.listed],
            "additionalProperties": False,
        }


@dataclass(frozen=True)
class Answer:
    """What came back: text as it is, never trusted; `sent` are the parameters that went with the question."""

    text: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    sent: Mapping[str, JsonValue] = field(default_factory=dict)


class Passing(Exception):  # noqa: N818  (a condition that passes, not an error)
    """The question may be asked again; after `wait` seconds if the server named a time."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Endpoint(Protocol):
    """Someone who answers."""

    @property
    def model(self) -> str:
        """Which model: answers are kept by it, wherever it runs."""

    @property
    def name(self) -> str:
        """Which model and where, for people and records, without any secret."""

    @property
    def parallel(self) -> int:
        """How many questions it takes at once."""

    def ask(self, request: Request) -> Answer:
        """Answer, or raise Passing if asking again may help, or UserError if it cannot."""


@dataclass(frozen=True)
class _Reply:
    """What a server sent back; `wait` are the seconds that it asks to wait."""

    status: int
    body: str
    wait: float | None


class ChatServer:
    """A server at `url` (".../v1") that speaks chat completions; `key_env` names the variable with its key, if any."""

    parallel = 64

    def __init__(self, url: str, model: str, *, key_env: str = "OPENAI_API_KEY", timeout: float = 60.0) -> None:
        try:
            import httpx
        except ImportError as error:
            raise UserError(MISSING) from error
        self._httpx = httpx
        self._key = os.environ.get(key_env, "")
        self._url = checked_url(url, secret=bool(self._key))
        self.model, self.timeout, self.key_env = model, timeout, key_env
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx.Client(headers=headers, timeout=timeout, follow_redirects=False)
        self._refused: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The model and the host."""
        return f"{self.model} at {urlsplit(self._url).netloc}"

    def ask(self, request: Request) -> Answer:
        """Ask once; parameters without which the server does answer are left out from then on."""
        refused = self._refused
        while True:
            sent = _optional(request, refused)
            reply = self._post({"model": self.model, "messages": _turns(request), **sent})
            if reply.status not in REFUSING or not sent:
                break
            refused |= {name for name in sent if name in reply.body} or frozenset(sent)
        self._check(reply)
        self._refused |= refused
        return _answer(reply.body, sent)

    def _post(self, question: Mapping[str, JsonValue]) -> _Reply:
        deadline = time.monotonic() + self.timeout
        try:
            with self._client.stream("POST", f"{self._url}/chat/completions", json=question) as response:
                body = _collect(response.iter_bytes(), deadline)
        except self._httpx.TimeoutException as error:
            raise Passing(f"no answer within {self.timeout:g} s") from error
        except self._httpx.HTTPError as error:
            raise Passing(f"{type(error).__name__}: {error}") from error
        wait = _seconds(response.headers.get("retry-after"))
        return _Reply(response.status_code, body.decode(errors="replace"), wait)

    def _check(self, reply: _Reply) -> None:
        """Passing or UserError unless there is an answer, with what the server says about it."""
        if reply.status == 200:
            return
        said = " ".join(reply.body[:200].split())
        if self._key:
            said = said.replace(self._key, "***")
        if reply.status in TRANSIENT or reply.status >= 500:
            raise Passing(f"status {reply.status} ({said})", reply.wait)
        cure = {
            401: f"set {self.key_env} to a valid key",
            403: f"set {self.key_env} to a key that may use the model",
            404: "check the model's name and that the URL ends in /v1",
        }.get(reply.status, "check the URL and the model")
        raise UserError(f"{self.name} refuses the question with status {reply.status} ({said}); {cure}.")


def _turns(request: Request) -> JsonValue:
    return [{"role": message.role, "content": message.text} for message in request.messages]


def _optional(request: Request, refused: frozenset[str]) -> dict[str, JsonValue]:
    """The parameters that a server may refuse to be told, without those that it did."""
    schema: JsonValue = {"name": "answer", "strict": True, "schema": request.schema}
    wanted: dict[str, JsonValue] = {
        "response_format": {"type": "json_schema", "json_schema": schema},
        "temperature": request.temperature,
        "seed": request.seed,
        "max_tokens": request.max_tokens,
    }
    if "max_tokens" in refused:  # newer models have another word for it
        wanted["max_completion_tokens"] = request.max_tokens
    return {name: value for name, value in wanted.items() if name not in refused}


def _answer(body: str, sent: Mapping[str, JsonValue]) -> Answer:
    try:
        found = json.loads(body)
        message = found["choices"][0]["message"]
        text = message.get("content") or message.get("refusal") or ""
        usage = found.get("usage") or {}
        counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Passing("a body that is not a chat completion") from error
    if not isinstance(text, str):
        raise Passing("a completion without text")
    tokens_in, tokens_out = (count if isinstance(count, int) else None for count in counts)
    return Answer(text, tokens_in, tokens_out, sent)


def _collect(pieces: Iterable[bytes], deadline: float) -> bytes:
    """All pieces, if they end in time: httpx counts from the last byte, and a server may trickle."""
    body = b""
    for piece in pieces:
        body += piece
        if len(body) > LARGEST_ANSWER:
            raise Passing(f"an answer of more than {LARGEST_ANSWER >> 20} MiB")
        if time.monotonic() > deadline:
            raise Passing("no whole answer in time")
    return body


def checked_url(url: str, *, secret: bool) -> str:
    """The URL without a slash at its end; UserError if it is none, or if a key would travel in clear."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
        raise UserError(f"{url!r} is not the address of a server; write e.g. http://localhost:8000/v1, without a key.")
    if secret and parts.scheme == "http" and not _near(host):
        raise UserError(f"A key would travel unencrypted to {host}; use https, or unset the variable with the key.")
    return url.rstrip("/")


def _near(host: str) -> bool:
    """Whether a host is this machine or on a private network."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text or ""))
    except ValueError:
        return None  # a date, or nothing: our own backoff serves
