"""The server of the page: Starlette on uvicorn, for this machine alone unless a token protects it.

Gradio 6.31 was looked at first: its scripts load fonts and libraries from other hosts, it asks for its newest version,
and it requires 28 packages.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from fedprompt.errors import UserError
from fedprompt.report import app_page
from fedprompt.webapp.adapters import Adapters

MOST_BYTES = 20 << 20  # of an uploaded file
SHORTEST_TOKEN = 16  # letters
COOKIE = "fedprompt-token"
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Address:
    """Where the page is served; beyond this machine it needs a token."""

    host: str = "127.0.0.1"
    port: int = 8150
    token: str = ""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check(self) -> None:
        """Raise UserError for an address beyond this machine without a token, and for a token that is too short."""
        if not self.is_local and not self.token:
            raise UserError(
                f"The host {self.host} can be reached from other machines; protect the page with --token, or leave "
                "--host out."
            )
        if self.token and len(self.token) < SHORTEST_TOKEN:
            raise UserError(f"The token has less than {SHORTEST_TOKEN} letters; make one with: openssl rand -hex 16")

    def bind(self) -> socket.socket:
        """A socket that listens there; UserError if the port is in use or the host is not this machine's."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((self.host, self.port))
            bound.listen()
        except OSError as error:
            bound.close()
            reason = (error.strerror or str(error)).lower()
            raise UserError(
                f"The port {self.port} of {self.host} cannot be used ({reason}); choose another one with --port."
            ) from error
        return bound


def make_app(adapters: Adapters, address: Address) -> Starlette:
    """The application: the page, and the classification of one image per request."""

    async def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        names = [one.name for one in adapters.opened]
        return HTMLResponse(
            app_page(names, adapters.classes, about=adapters.about, nonce=nonce), headers=_headers(nonce)
        )

    async def classify(request: Request) -> Response:
        try:
            if request.headers.get("content-type") != "application/octet-stream":  # what no form of another page sends
                raise UserError("Send the bytes of one image as application/octet-stream.")
            content = await _read(request)
            named = unquote(request.headers.get("x-classes", "")).split(",")
            classes = [text.strip() for text in named if text.strip()]
            name = unquote(request.headers.get("x-name", "")) or "The image"
            return HTMLResponse(await run_in_threadpool(adapters.cards, content, name[:200], classes))
        except UserError as error:
            return PlainTextResponse(str(error), status_code=400)

    routes = [
        Route("/", _protected(page, address.token)),
        Route("/classify", _protected(classify, address.token), methods=["POST"]),
    ]
    app = Starlette(routes=routes)
    if address.is_local:  # another page of the browser may reach a local port under a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK_NAMES, "[::1]"], www_redirect=False)
    return app


def serve(adapters: Adapters, address: Address, bound: socket.socket) -> None:
    """Serve the page on a bound socket until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        make_app(adapters, address), log_level="warning", limit_concurrency=32, timeout_graceful_shutdown=5
    )
    uvicorn.Server(config).run(sockets=[bound])


def _protected(endpoint: Endpoint, token: str) -> Endpoint:
    """The endpoint for those who send the token: in the address once, then in a cookie that the page sets."""

    async def checked(request: Request) -> Response:
        if not token or secrets.compare_digest(request.cookies.get(COOKIE, "").encode(), token.encode()):
            return await endpoint(request)
        if secrets.compare_digest(request.query_params.get("token", "").encode(), token.encode()):
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return answer
        return PlainTextResponse("This page needs the token: open it as /?token=TOKEN.", status_code=401)

    return checked


def _headers(nonce: str) -> dict[str, str]:
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


async def _read(request: Request) -> bytes:
    """The body of a request; UserError, without reading further, if it is empty or too large."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise UserError(f"The file has more than {MOST_BYTES >> 20} MB; scale the image down.")
    if not content:
        raise UserError("The file is empty; choose an image.")
    return bytes(content)
