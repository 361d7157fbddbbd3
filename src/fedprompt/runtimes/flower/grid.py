"""The channel over Flower's grid: one message per site, replies matched by the message that they answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from flwr.app import Message
from flwr.serverapp import Grid

from fedprompt.errors import refusing
from fedprompt.runtimes.flower.records import from_records, to_records
from fedprompt.runtimes.payload import Payload

POLL = 0.2  # seconds between looks for replies; Flower's own loop waits 3
# Flower's error text is a stack trace, which may hold paths and labels of a site; only its code is passed on.
REASONS = {
    1: "could not load the client app; is fedprompt installed in the site's environment?",
    2: "the client app failed.",
    3: "the message expired before the site could work on it.",
    4: "the reply expired.",
    5: "is not connected.",
    8: "the client app stopped responding.",
}
_log = logging.getLogger(__name__)


class GridChannel:
    """Addresses sites by the names under which the server registered their keys; other nodes are not asked."""

    def __init__(self, grid: Grid, *, poll: float = POLL) -> None:
        self.grid = grid
        self.poll = poll
        # Called when the set of missing answers changes, with site names and the request's time in seconds since 1970.
        self.on_wait: Callable[[Sequence[str], float], None] = lambda names, since: None

    @property
    def simulated(self) -> bool:
        """Whether the nodes are the virtual ones of Flower's simulation."""
        return type(self.grid).__name__ == "InMemoryGrid"  # its module differs between Flower's versions

    def sites(self) -> dict[str, int]:
        """The node id of every connected site, by name; a name that two nodes have is left out with a warning."""
        found: dict[str, int] = {}
        for node in self.grid.get_nodes():
            if node.name in found:
                _log.warning("Two nodes have the name of the site %r; neither is asked.", node.name)
            found[node.name] = -1 if node.name in found else node.node_id
        return {name: node for name, node in found.items() if name and node != -1}

    def ask(self, payloads: Mapping[str, Payload], *, deadline: float) -> dict[str, Payload | str]:
        """One exchange; after `deadline` seconds the messages expire, so no site works on an outdated one."""
        end, asked = time.monotonic() + deadline, time.time()
        nodes = self.sites()
        names = {nodes[name]: name for name in payloads if name in nodes}
        replies = self._exchange(
            {node: payloads[name] for node, name in names.items()},
            deadline=max(end - time.monotonic(), 0.0),
            on_wait=lambda waiting: self.on_wait([names[node] for node in waiting], asked),
        )
        absent = {name: REASONS[5] for name in payloads if name not in nodes}
        return {names[node]: reply for node, reply in replies.items()} | absent

    def _exchange(
        self,
        payloads: Mapping[int, Payload],
        *,
        deadline: float,
        on_wait: Callable[[Iterable[int]], None] = lambda waiting: None,
    ) -> dict[int, Payload | str]:
        if deadline <= 0 or not payloads:
            return _late(payloads, 0.0)
        end = time.monotonic() + deadline
        messages = [
            Message(
                to_records(payload), node, payload.kind, ttl=deadline, group_id=str(payload.fields.get("round", ""))
            )
            for node, payload in payloads.items()
        ]
        ids = list(self.grid.push_messages(messages))
        sent = dict(zip(payloads, ids, strict=True))
        unsent = [node for node, message in sent.items() if not message]
        answers: dict[int, Payload | str] = dict.fromkeys(unsent, "the server could not send it the message.")
        owners = {message: node for node, message in sent.items() if message}
        known = -1  # the number of missing answers at the last call of on_wait
        while owners and time.monotonic() < end:
            if len(owners) != known:
                known = len(owners)
                on_wait(owners.values())
            for reply in self.grid.pull_messages(list(owners)):
                # An error raised by the server itself has another sender; only the message id identifies its node.
                node = owners.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    answers[node] = _read(reply)
            if owners:
                time.sleep(min(self.poll, max(end - time.monotonic(), 0.0)))
        on_wait(())
        return answers | _late(owners.values(), deadline)


def _late(nodes: Iterable[int], deadline: float) -> dict[int, Payload | str]:
    return dict.fromkeys(nodes, f"did not answer within {deadline:.0f} s.")


def _read(reply: Message) -> Payload | str:
    if reply.has_error():
        _log.debug("Flower error %s: %s", reply.error.code, reply.error.reason)
        return REASONS.get(reply.error.code, f"Flower error {reply.error.code}.")
    refused: dict[str, str] = {}
    with refusing(refused, "site"):
        return replace(from_records(reply.content), received=time.time())
    return refused["site"]
