"""Criteria for real processes, from the results of `fedprompt deploy rehearse --full`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.acceptance.criteria import Criterion, Row, verdict

RESULT = "rehearsal.json"


# The criteria that the table shows even without a rehearsal, by the beginning of their names.
PROMISES = {
    "worker killed while it trains": "the run completes, the site rejoins",
    "site killed in a round": "the run completes",
    "longest round after a site was killed": "no round exceeds its deadline by more than 5 s",
    "site rejoins with the same key": "within 15 s",
    "server killed, restarted, resumed": "continues with the next round",
    "longest round with a straggler": "no round exceeds its deadline by more than 5 s",
}


def criteria(folders: Sequence[Path]) -> Iterator[Criterion]:
    """The promises first, from the first rehearsal with a result, then everything else that was measured."""
    rehearsals = [json.loads((folder / RESULT).read_text(encoding="utf-8")) for folder in folders]
    lines = [(line, place(one["about"])) for one in rehearsals for line in one["results"]]
    for what, criterion in PROMISES.items():
        found = next((pair for pair in lines if pair[0]["what"].startswith(what)), None)
        yield _row(*found) if found else Row(what, criterion, "-", "not measured", "rehearsal")
    yield from (_row(line, where) for line, where in lines if not line["what"].startswith(tuple(PROMISES)))


def place(about: dict[str, object]) -> str:
    """A description of a rehearsal."""
    method, backbone, flower = (about.get(key, "?") for key in ("method", "backbone", "flwr"))
    return f"rehearsal: {method}, CLIP {backbone}, Flower {flower}"


def _row(line: dict[str, Any], where: str) -> Row:
    kept = "no criterion" if line["criterion"] == "none" else verdict(met=line["met"])
    return Row(line["what"], line["criterion"], line["measured"], kept, where)
