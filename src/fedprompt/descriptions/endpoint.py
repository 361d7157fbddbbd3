"""Chat-completion endpoints: OpenAI's protocol, which clouds, vLLM, Ollama and llama.cpp speak.

httpx is imported here and nowhere else; the API key comes from the environment and goes into one header.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol
from urllib.parse import urlsplit

from pydantic import JsonValue

from fedprompt.errors import UserError
from fedprompt.text_files import json_text, load_json_object

LARGEST_ANSWER = 1 << 20  # bytes read of one answer, whatever the server sends
TRANSIENT = frozenset({408, 409, 425, 429})
UNSUPPORTED = frozenset({400, 422})  # perhaps because the server does not know a parameter
MISSING = "A model on a server needs the package httpx; install it with: pip install 'fedprompt[llm]'."


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Request:
    """One chat-completion request. `listed` names the list of strings that the answer's JSON object must have."""

    messages: tuple[Message, ...]
    listed: str
    temperature: float = 0.3
    max_tokens: int = 400
    seed: int = 0

    def key(self, model: str) -> str:
        """The key under which an answer is kept: a repeated request to the same model costs nothing."""
        return hashlib.sha256(json_text([model, asdict(self)]).encode()).hexdigest()[:32]

    @property
    def schema(self) -> JsonValue:
        """The JSON schema of the answer, for servers that support structured output."""
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
    """A completion: its text as received, which is never trusted; `sent` are the parameters of the request."""

    text: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    sent: Mapping[str, JsonValue] = field(default_factory=dict)


class TransientError(Exception):
    """The request may be retried; after `wait` seconds if the server named a time."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Endpoint(Protocol):
    """A language model that answers requests."""

    @property
    def model(self) -> str:
        """The model's name; kept answers belong to it, wherever it runs."""

    @property
    def name(self) -> str:
        """The model and where it runs, for messages and records, without any secret."""

    @property
    def parallel(self) -> int:
        """How many requests it takes at once."""

    def ask(self, request: Request) -> Answer:
        """The answer. Raises TransientError if a retry may help, UserError if it cannot."""


@dataclass(frozen=True)
class _Reply:
    """A server's HTTP response; `wait` is its Retry-After in seconds."""

    status: int
    body: str
    wait: float | None


class ChatServer:
    """A server at `url` (".../v1") with chat completions; `key_env` names the environment variable with its API key."""

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
        self._unsupported: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The model and the host."""
        return f"{self.model} at {urlsplit(self._url).netloc}"

    def ask(self, request: Request) -> Answer:
        """Send the request; parameters that the server turns out not to support are left out from then on."""
        unsupported = self._unsupported
        while True:
            sent = _optional(request, unsupported)
            reply = self._post({"model": self.model, "messages": _turns(request), **sent})
            if reply.status not in UNSUPPORTED or not sent:
                break
            unsupported |= {name for name in sent if name in reply.body} or frozenset(sent)
        self._check(reply)
        self._unsupported |= unsupported
        return _answer(reply.body, sent)

    def _post(self, body: Mapping[str, JsonValue]) -> _Reply:
        deadline = time.monotonic() + self.timeout
        try:
            with self._client.stream("POST", f"{self._url}/chat/completions", json=body) as response:
                content = _read(response.iter_bytes(), deadline)
        except self._httpx.TimeoutException as error:
            raise TransientError(f"no answer within {self.timeout:g} s") from error
        except self._httpx.HTTPError as error:
            raise TransientError(f"{type(error).__name__}: {error}") from error
        wait = _seconds(response.headers.get("retry-after"))
        return _Reply(response.status_code, content.decode(errors="replace"), wait)

    def _check(self, reply: _Reply) -> None:
        """Raise TransientError or UserError, with the server's message, unless the status is 200."""
        if reply.status == 200:
            return
        said = " ".join(reply.body[:200].split())
        if self._key:
            said = said.replace(self._key, "***")
        if reply.status in TRANSIENT or reply.status >= 500:
            raise TransientError(f"status {reply.status} ({said})", reply.wait)
        fix = {
            401: f"set {self.key_env} to a valid key",
            403: f"set {self.key_env} to a key that may use the model",
            404: "check the model's name and that the URL ends in /v1",
        }.get(reply.status, "check the URL and the model")
        raise UserError(f"{self.name} refuses the request with status {reply.status} ({said}); {fix}.")


def _turns(request: Request) -> JsonValue:
    return [{"role": message.role, "content": message.text} for message in request.messages]


def _optional(request: Request, unsupported: frozenset[str]) -> dict[str, JsonValue]:
    """The optional parameters of a request, without those that the server does not support."""
    schema: JsonValue = {"name": "answer", "strict": True, "schema": request.schema}
    wanted: dict[str, JsonValue] = {
        "response_format": {"type": "json_schema", "json_schema": schema},
        "temperature": request.temperature,
        "seed": request.seed,
        "max_tokens": request.max_tokens,
    }
    if "max_tokens" in unsupported:  # newer models have another name for it
        wanted["max_completion_tokens"] = request.max_tokens
    return {name: value for name, value in wanted.items() if name not in unsupported}


def _answer(body: str, sent: Mapping[str, JsonValue]) -> Answer:
    try:
        found = load_json_object(body)
        message = found["choices"][0]["message"]
        text = message.get("content") or message.get("refusal") or ""
        usage = found.get("usage") or {}
        counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TransientError("a body that is not a chat completion") from error
    if not isinstance(text, str):
        raise TransientError("a completion without text")
    tokens_in, tokens_out = (count if isinstance(count, int) else None for count in counts)
    return Answer(text, tokens_in, tokens_out, sent)


def _read(pieces: Iterable[bytes], deadline: float) -> bytes:
    """The whole body, if it arrives in time: httpx's timeout starts anew with every byte."""
    body = b""
    for piece in pieces:
        body += piece
        if len(body) > LARGEST_ANSWER:
            raise TransientError(f"an answer of more than {LARGEST_ANSWER >> 20} MiB")
        if time.monotonic() > deadline:
            raise TransientError("no complete answer in time")
    return body


def checked_url(url: str, *, secret: bool) -> str:
    """The URL without a trailing slash; UserError if it is invalid, or if a key would be sent unencrypted."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
        raise UserError(f"{url!r} is not the address of a server; write e.g. http://localhost:8000/v1, without a key.")
    if secret and parts.scheme == "http" and not _is_private(host):
        raise UserError(f"A key would travel unencrypted to {host}; use https, or unset the variable with the key.")
    return url.rstrip("/")


def _is_private(host: str) -> bool:
    """Whether a host is this machine or on a private network."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text or ""))
    except ValueError:
        return None  # a date, or nothing: our own backoff applies
