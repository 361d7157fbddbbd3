"""The worker of a site that lies: `python -m fedprompt.deploy.rehearsal.lying_worker FOLDER LIE...`.

It trains like any other, and then sends in round n the n-th lie; an empty one is the truth.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedprompt.child_processes import end_with_parent
from fedprompt.deploy.site import Site
from fedprompt.deploy.worker_socket import listen, send
from fedprompt.runtimes.payload import DONE, HELLO, TRAIN, Payload

Lie = Callable[[Payload], Payload]
CLOCK = "clock"  # the lie of a hello message, whatever its place
SECONDS_AHEAD = 3600.0


def _nested(depth: int) -> list[object]:
    found: list[object] = []
    for _ in range(depth):
        found = [found]
    return found


def _with(answer: Payload, **fields: object) -> Payload:
    return replace(answer, fields={**answer.fields, **fields})


def _huge(answer: Payload) -> Payload:
    """Every number of the update is 1e30."""
    tensors = {
        name: replace(raw, data=np.full(len(raw.data) // 4, 1e30, "<f4").tobytes())
        for name, raw in answer.tensors.items()
    }
    return replace(answer, tensors=tensors)


LIES: Mapping[str, Lie] = {
    "": lambda answer: answer,
    "loss": lambda answer: _with(answer, loss=1e300),
    "update": _huge,
    "nested": lambda answer: _with(answer, loss=_nested(50)),
    "count": lambda answer: _with(answer, num_examples=10**18),
    "serial": lambda answer: _with(answer, serial=[1, 1]),
    CLOCK: lambda answer: _with(answer, time=float(answer.fields["time"]) + SECONDS_AHEAD),
}


def lied(request: Payload, answer: Payload, lies: Sequence[str]) -> Payload:
    """What the site sends instead of its answer, if it has one."""
    if answer.kind != DONE:
        return answer
    if request.kind == HELLO and CLOCK in lies:
        return LIES[CLOCK](answer)
    number = request.fields.get("round")
    if request.kind != TRAIN or type(number) is not int or not 1 <= number <= len(lies):
        return answer
    return LIES[lies[number - 1]](answer)


def serve(folder: Path, lies: Sequence[str]) -> None:
    """Answer requests one after another, for ever."""
    site = Site(folder)
    with listen(folder) as listener:
        while True:
            with listener.next_request() as (connection, request):
                send(connection, lied(request, site.answer(request), lies))


if __name__ == "__main__":
    end_with_parent()
    serve(Path(sys.argv[1]), sys.argv[2:])
