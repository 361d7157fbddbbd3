"""Bars of real processes, from what `fedprompt deploy rehearse --full` has written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bars.rows import Bar, Row, verdict

RESULT = "rehearsal.json"


# The bars that the table must show even when no rehearsal is at hand, by how their rows begin.
PROMISES = {
    "worker killed while it trains": "the run completes, the site is back",
    "site killed in a round": "the run completes",
    "longest round then": "no round exceeds its deadline by more than 5 s",
    "site back, with the same key": "within 15 s",
    "server killed, started, resumed": "goes on at the next round",
    "longest round with a straggler": "no round exceeds its deadline by more than 5 s",
}


def bars(folders: Sequence[Path]) -> Iterator[Bar]:
    """The promises first, as the first rehearsal that has one measured it, then whatever else was rehearsed."""
    rehearsals = [json.loads((folder / RESULT).read_text(encoding="utf-8")) for folder in folders]
    lines = [(line, place(one["about"])) for one in rehearsals for line in one["rows"]]
    for what, bar in PROMISES.items():
        found = next((pair for pair in lines if pair[0]["what"].startswith(what)), None)
        yield _row(*found) if found else Row(what, bar, "-", "not measured", "rehearsal")
    yield from (_row(line, where) for line, where in lines if not line["what"].startswith(tuple(PROMISES)))


def place(about: dict[str, object]) -> str:
    """Of what kind the rehearsal was."""
    method, backbone, flower = (about.get(key, "?") for key in ("method", "backbone", "flwr"))
    return f"rehearsal: {method}, CLIP {backbone}, Flower {flower}"


def _row(line: dict[str, Any], where: str) -> Row:
    kept = "no criterion" if line["bar"] == "none" else verdict(held=line["held"])
    return Row(line["what"], line["bar"], line["measured"], kept, where)
