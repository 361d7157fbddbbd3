"""What a site's audit trail and privacy ledger say, as a table and sentences for its administrator."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedprompt.deploy.audit import last_hashes, read_audit
from fedprompt.deploy.hash_chain import Entry
from fedprompt.deploy.ledger import SiteLedger
from fedprompt.deploy.settings import load_site

HEAD = ("message", "time", "server", "asked", "run", "round", "recipe", "rule", "answer", "bytes", "epsilon")


def audit_rows(folder: Path) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Names of columns, and a row per message; UserError naming a line that was changed."""
    load_site(folder)  # a folder that is not a site's is named as such
    return HEAD, [_row(entry) for entry in read_audit(folder)]


def _row(entry: Entry) -> tuple[str, ...]:
    fields = entry.fields
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(fields["time"]))
    short = (str(fields[name] or "")[:8] for name in ("server", "recipe"))
    server, recipe = short
    asked, run, number = (str(fields[name] if fields[name] is not None else "") for name in ("kind", "run", "round"))
    epsilon = "" if fields["epsilon"] is None else f"{fields['epsilon']:.4g}"
    left = str(fields["left"]["bytes"])
    return (
        str(entry.number),
        when,
        server,
        asked,
        run[:8],
        number,
        recipe,
        fields["rule"],
        fields["answer"],
        left,
        epsilon,
    )


def ledger_sentences(folder: Path) -> Iterator[str]:
    """What was spent of the privacy budget, and the newest hashes."""
    policy, ledger = load_site(folder).policy, SiteLedger(folder)
    budget = "no budget is set" if policy.epsilon is None else f"the budget is {policy.epsilon:g}"
    for line, epsilon in ledger.spent(policy.delta_for):
        delta = policy.delta_for(line.count)
        yield (
            f"Images {line.images[:8] or 'of unknown files'}: epsilon {epsilon:.4g} at delta {delta:.2g} over all runs "
            f"on any of them; {budget}."
        )
    if plain := sum(line.mechanism is None for line in ledger.lines()):
        yield f"{plain} trainings added no noise at the site; no epsilon covers them."
    hashes = ", ".join(f"{name} {found}" for name, found in last_hashes(folder).items())
    yield f"Newest hashes, by which a copy elsewhere shows later that no line was removed: {hashes}"
