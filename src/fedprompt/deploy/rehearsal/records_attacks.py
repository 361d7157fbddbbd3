"""Messages of types that fedprompt does not know, and records that are lost or edited while a site runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from fedprompt.deploy.audit import read_audit
from fedprompt.deploy.rehearsal.lying_server import T5, LyingServer, Outcome, new_run
from fedprompt.deploy.rehearsal.site_changes import edited_trail, lost_ledger
from fedprompt.runtimes.payload import DONE, HELLO, REFUSED, TRAIN

UNKNOWN = ("train.evil", "query.evil")  # types that Flower delivers and fedprompt never sends


def unknown_types(server: LyingServer, site: str) -> list[Outcome]:
    """Messages of types that fedprompt does not know; each is refused, and has one line in the trail."""
    found = []
    for kind in UNKNOWN:
        before = lines(server.folders[site])
        answer = server.ask(site, kind, new_run())
        new = lines(server.folders[site]) - before
        one = server.judge(f"a message of the unknown type {kind}", site, answer, ("request",))
        happened = f"{one.happened}; {new} line{'s' * (new != 1)} in its trail"
        found.append(Outcome(one.attack, one.threat, happened, one.held and new == 1))
    return found


def damaged_records(server: LyingServer, site: str) -> list[Outcome]:
    """A ledger that is lost, then an old line of the trail that is edited, while the site runs; each is restored."""
    lost = _damaged(server, site, "the ledger is lost while the site runs", lost_ledger)
    edited = _damaged(server, site, "an old line of the trail is edited while the site runs", edited_trail)
    server.sent[site] -= 1  # a damaged trail takes no line
    return [lost, edited]


def _damaged(
    server: LyingServer, site: str, what: str, damage: Callable[[Path], AbstractContextManager[None]]
) -> Outcome:
    trained = server.ask(site, TRAIN, new_run())  # both files have a line
    with damage(server.folders[site]):
        answer = server.ask(site, HELLO, new_run())
    restored = server.ask(site, HELLO, new_run())
    reason = str(answer.fields.get("reason", ""))
    refused = answer.kind == REFUSED and not answer.tensors and "(rule records)" in reason
    answers = restored.kind == DONE
    happened = f"refused by {site}, rule records" if refused else f"not refused: {answer.kind or 'no answer'} {reason}"
    happened += f"; {'answers' if answers else 'does not answer'} again after the file was restored"
    return Outcome(what, T5, happened[:160], trained.kind == DONE and refused and answers)


def lines(folder: Path) -> int:
    """The lines of a site's audit trail, which is verified; DamagedError for one that was changed."""
    return sum(1 for _ in read_audit(folder))
