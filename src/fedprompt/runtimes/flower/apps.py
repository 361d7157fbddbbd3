"""Flower's ClientApp and ServerApp, made from plain functions: a site's answers and a server's run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedprompt.errors import UserError
from fedprompt.runtimes.flower.grid import GridChannel
from fedprompt.runtimes.flower.records import from_records, to_records
from fedprompt.runtimes.payload import EXPIRES, FAILED, MALFORMED, Payload

LOG = "flwr"  # Flower's logger, whose lines of a run `flwr log` shows
Settings = Mapping[str, str | int | float | bool]  # Flower's run or node configuration

# (request, the node's configuration) -> a site's answer
Answer = Callable[[Payload, Settings], Payload]
# (channel, the run's configuration) -> nothing; carries out a whole run
Serve = Callable[[GridChannel, Settings], None]


class OneFunction(ClientApp):  # type: ignore[misc]  # Flower's types are not read
    """A ClientApp that calls one function for messages of every type; Flower's own raises for unknown types."""

    def __init__(self, reply: Callable[[Message, Context], Message]) -> None:
        super().__init__()
        self._reply = reply

    def __call__(self, message: Message, context: Context) -> Message:
        """Reply to a message."""
        return self._reply(message, context)


def client_app(answer: Answer) -> ClientApp:
    """A ClientApp that answers every message; of an exception, only its type leaves the site."""

    def reply(message: Message, context: Context) -> Message:
        try:
            payload = answer(_request(message), dict(context.node_config))
        except UserError:
            payload = Payload(FAILED, {"reason": "the message could not be answered; see the site's log."})
        except Exception as error:  # a stack trace, which Flower would send, is data leaving the site
            payload = Payload(FAILED, {"reason": type(error).__name__})
        return Message(to_records(payload), reply_to=message)

    return OneFunction(reply)


def _request(message: Message) -> Payload:
    """The request in a message, with the time at which it expires here.

    One of the kind `MALFORMED`, which the site records, if it cannot be read, or has no such time.
    """
    try:
        request = from_records(message.content)
    except Exception:  # whatever the server sent, it is recorded
        return Payload(MALFORMED)
    expires = time.time() + message.metadata.ttl
    if request.kind != message.metadata.message_type or not math.isfinite(expires):
        return Payload(MALFORMED)
    return replace(request, fields={**request.fields, EXPIRES: expires})


def server_app(serve: Serve) -> ServerApp:
    """A ServerApp that carries out one run over the grid."""
    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        serve(GridChannel(grid), dict(context.run_config))

    app.main()(main)
    return app
