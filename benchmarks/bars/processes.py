"""Bars of real processes, from what `fedprompt deploy rehearse --full` has written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bars.rows import Bar, Row, verdict

RESULT = "rehearsal.json"


@dataclass(frozen=True)
class Promise:
    """A bar that a row of the rehearsal is held to: its words name it, its first figure must not pass `seconds`."""

    words: str
    bar: str
    seconds: float | None = None


PROMISES = (
    Promise("worker killed while it trains", "the round closes by its deadline, the run completes, the site is back"),
    Promise("site killed in a round", "the run completes"),
    Promise("longest round then", "no round exceeds its deadline by more than 5 s"),
    Promise("site back, with the same key", "same node, takes part again within 15 s of its start", 15.0),
    Promise("server killed, started, resumed", "goes on at the next round, the sites left alone"),
    Promise("longest round with a straggler", "no round exceeds its deadline by more than 5 s"),
)


def bars(folders: Sequence[Path]) -> Iterator[Bar]:
    """The promises first, as the first rehearsal that has one measured it, then whatever else was rehearsed."""
    rehearsals = [json.loads((folder / RESULT).read_text(encoding="utf-8")) for folder in folders]
    lines = [(line, place(one["about"])) for one in rehearsals for line in one["rows"]]
    for promise in PROMISES:
        found = next((pair for pair in lines if pair[0]["what"].startswith(promise.words)), None)
        yield _row(promise, *found) if found else Row(promise.words, promise.bar, "-", "not measured", "rehearsal")
    for line, where in lines:
        if not line["what"].startswith(tuple(promise.words for promise in PROMISES)):
            kept = "no bar" if line["bar"] == "none" else verdict(held=line["held"])
            yield Row(line["what"], line["bar"], line["measured"], kept, where)


def place(about: dict[str, object]) -> str:
    """Of what kind the rehearsal was."""
    return f"rehearsal, flwr {about.get('flwr', '?')}, {about.get('backbone', '?')}"


def _row(promise: Promise, line: dict[str, object], where: str) -> Row:
    measured = str(line["measured"])
    figure = re.search(r"\d+(\.\d+)?", measured)
    late = promise.seconds is not None and (figure is None or float(figure[0]) > promise.seconds)
    bar = promise.bar if promise.seconds is not None else str(line["bar"])
    return Row(str(line["what"]), bar, measured, verdict(held=bool(line["held"]) and not late), where)
