"""A Flower grid in memory: messages go to real ClientApps and their replies wait to be pulled, in reverse order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

Fault = Callable[[str, Message], Message | None]  # (site, reply) -> what arrives instead


class Clock:
    """Stands in for the module `time`: the clock only goes on while somebody sleeps, however long work takes."""

    time = staticmethod(time.time)

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Seconds slept so far."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let so many seconds pass at once."""
        self.now += seconds


class MemoryGrid(Grid):
    """Nodes by name; `fault` may lose or change replies, and a system error comes from node 1 as Flower's do."""

    def __init__(self, app: ClientApp, folders: dict[str, Path], fault: Fault = lambda _, reply: reply) -> None:
        self.app, self.folders, self.fault = app, folders, fault
        self.nodes = {7919 * (number + 3) % 1009: name for number, name in enumerate(sorted(folders, reverse=True))}
        self.replies: dict[str, Message] = {}
        self.sent: list[Message] = []
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1

    def set_run(self, run: object) -> None: ...

    def run(self) -> None: ...

    def create_message(self, *_: object) -> None: ...

    def send_and_receive(self, *_: object, **__: object) -> None: ...

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, name=name) for node, name in self.nodes.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            name = self.nodes[message.metadata.dst_node_id]
            ids.append(f"message {len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent.append(message)
            context = Context(1, 1, {"home": str(self.folders[name])}, RecordDict(), {})
            reply = self.fault(name, self.app(message, context))
            if reply is not None:
                self.replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(message) for message in reversed(list(message_ids)) if message in self.replies]


def system_error(reply: Message, code: int) -> Message:
    """What Flower's server makes up when a node is gone: the sender is not the node."""
    made = Message(Error(code, "Traceback: /secret/path"), reply_to=_instruction(reply))
    made.metadata.__dict__["_src_node_id"] = 1
    return made


def _instruction(reply: Message) -> Message:
    instruction = Message(RecordDict(), reply.metadata.src_node_id, reply.metadata.message_type)
    instruction.metadata.__dict__["_message_id"] = reply.metadata.reply_to_message_id
    return instruction
