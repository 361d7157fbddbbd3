"""What a site's audit trail and privacy ledger say: as a table for its administrator, as sentences, and as JSON."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedprompt.deploy.audit import ALLOWED, AUDIT, last_hashes, read_audit
from fedprompt.deploy.hash_chain import START, Entry
from fedprompt.deploy.ledger import SiteLedger
from fedprompt.deploy.settings import load_site
from fedprompt.errors import plural
from fedprompt.runtimes.payload import REFUSED

# Columns in the order in which they stand, and those that are left out, one by one, where the line is too short.
COLUMNS = ("line", "time (UTC)", "server", "run", "round", "asked", "recipe", "outcome", "sent", "epsilon")
LEAST = ("server", "recipe", "sent", "round", "epsilon")
GAP = 2  # blanks between two columns
SHORT = 6  # digits of a hash, or of a run's id
LONGEST_KIND = 17  # characters: "consistency_check"
UNITS = ("B", "kB", "MB", "GB")


@dataclass(frozen=True)
class SiteAudit:
    """The verified lines of a site's trail, with what was spent of its privacy budget and the newest hashes."""

    messages: Sequence[Entry]
    spent: Sequence[Spent]
    plain: int
    budget: float | None
    newest: Mapping[str, str]


@dataclass(frozen=True)
class Spent:
    """The epsilon of all trainings with noise on a set of images, which is named by a hash, "" for unknown files."""

    images: str
    epsilon: float
    delta: float


def site_audit(folder: Path) -> SiteAudit:
    """Read and verify a site's trail and ledger; UserError naming a line that was changed."""
    policy, ledger = load_site(folder).policy, SiteLedger(folder)  # a folder that is not a site's is named as such
    messages = list(read_audit(folder))
    spent = [
        Spent(line.images, epsilon, policy.delta_for(line.count)) for line, epsilon in ledger.spent(policy.delta_for)
    ]
    plain = sum(line.mechanism is None for line in ledger.lines())
    return SiteAudit(messages, spent, plain, policy.epsilon, last_hashes(folder))


def audit_json(audit: SiteAudit, *, last: int) -> dict[str, object]:
    """Everything that the trail says of the last messages, 0 for all, and what was spent."""
    return {
        "messages": [{**entry.fields, "hash": entry.hash} for entry in audit.messages[-last:]],
        "spent": [vars(one) for one in audit.spent],
        "trainings_without_noise": audit.plain,
        "budget": audit.budget,
        "newest": audit.newest,
    }


def audit_lines(messages: Sequence[Entry], *, width: int) -> Iterator[str]:
    """A table of messages in lines of at most `width` characters; columns that do not fit are left out and named."""
    rows = [COLUMNS, *map(_row, messages)]
    widths = {name: max(len(row[place]) for row in rows) for place, name in enumerate(COLUMNS)}
    for name in LEAST:
        if sum(widths.values()) + GAP * (len(widths) - 1) > width:
            del widths[name]
    for row in rows:
        cells = [row[COLUMNS.index(name)].ljust(wide) for name, wide in widths.items()]
        yield (" " * GAP).join(cells).rstrip()[:width]
    if left_out := [name for name in COLUMNS if name not in widths]:
        yield from _wrapped(f"(left out for width: {', '.join(left_out)}; --json has all)", width)


def _row(entry: Entry) -> tuple[str, ...]:
    fields = entry.fields
    asked = str(fields["kind"] or "")
    return (
        str(entry.number),
        time.strftime("%Y-%m-%d %H:%M", time.gmtime(fields["time"])),
        str(fields["server"])[:SHORT],
        str(fields["run"] or "").removeprefix("sha256:")[:SHORT],
        "" if fields["round"] is None else _cut(str(fields["round"]), SHORT),
        _cut(asked.rpartition(".")[2], LONGEST_KIND),
        str(fields["recipe"])[:SHORT],
        _outcome(fields["rule"], fields["answer"]),
        _size(fields["left"]["bytes"]),
        "" if fields["epsilon"] is None else f"{fields['epsilon']:.4g}",
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}\u2026"


def _outcome(rule: str, answer: str) -> str:
    if rule == ALLOWED:
        return rule
    return f"{answer}: {rule}" if answer == REFUSED else answer


def _size(count: int) -> str:
    """So many bytes in three digits: "512 B", "1.24 MB"."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {UNITS[unit]}"


def audit_summary(audit: SiteAudit, *, width: int) -> Iterator[str]:
    """What a verified trail and ledger say in all, in lines of at most `width` characters, but for whole hashes."""
    for sentence in _sentences(audit):
        yield from _wrapped(sentence, width)
    yield from (f"  {found}  {name}" for name, found in audit.newest.items() if found != START)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _sentences(audit: SiteAudit) -> Iterator[str]:
    if audit.messages:
        count = plural(len(audit.messages), "message")
        yield f"{count}; every line of the audit trail and of the ledger is as it was written."
    else:
        yield f"There is no audit trail: no message has come yet, or {AUDIT} was moved away."
    budget = "no budget is set" if audit.budget is None else f"the budget is {audit.budget:g}"
    for one in audit.spent:
        yield (
            f"Images {one.images[:SHORT] or 'of unknown files'}: epsilon {one.epsilon:.4g} at delta {one.delta:.2g} "
            f"over all runs on any of them; {budget}."
        )
    if audit.plain:
        them = "it" if audit.plain == 1 else "them"
        yield f"{plural(audit.plain, 'training')} added no noise at the site; no epsilon covers {them}."
    if any(found != START for found in audit.newest.values()):
        yield "Keep the newest hashes elsewhere: they show later that no line was removed."
