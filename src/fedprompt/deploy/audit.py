"""A site's audit trail: who asked what, which rule allowed or refused it, and what left; imports nothing heavy.

`audit.jsonl` is a hash chain with one line per message, written before the answer leaves. It holds no file name and no
label, and of the server's texts only short names and hashes.
"""

from __future__ import annotations

import hashlib
import re
import ssl
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedprompt.deploy.hash_chain import START, ChainReader, DamagedError, Entry, HashChain, read_chain
from fedprompt.runtimes.payload import Payload

AUDIT, LEDGER = "audit.jsonl", "ledger.jsonl"  # in a site's folder
AUTHORITY = "ca.crt"  # in a site's folder: the certificate that authenticates the server
ALLOWED = "allowed"  # the rule of a message that was answered
PLAIN = re.compile(r"[A-Za-z0-9._+=-]{1,64}")


@dataclass
class LedgerState:
    """The hashes of the ledger's lines, and the number of lines that the trail had when the last was written."""

    hashes: set[str] = field(default_factory=set)
    trail: int = 0

    def add(self, entry: Entry) -> None:
        """Take in a line of the ledger."""
        self.hashes.add(entry.hash)
        self.trail = max(self.trail, entry.fields["trail"])


@dataclass(frozen=True)
class Verdict:
    """How a site decided on a message: the rule, and for a training its epsilon and line of the ledger.

    `newest` is the newest line of the ledger at that time, "" where it was not read. Lines are named by their hashes.
    """

    rule: str = ALLOWED
    epsilon: float | None = None
    ledger: str = ""
    newest: str = ""


class ChargedLines:
    """The lines of the ledger that lines of the trail name, until they are found in the ledger."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._missing: dict[str, int] = {}  # hash -> the first line of the trail that names it

    def add(self, entry: Entry) -> None:
        """Remember what a line of the trail names."""
        for name in filter(None, (entry.fields["ledger"], entry.fields["newest"])):
            self._missing.setdefault(name, entry.number)

    def check(self, found: Collection[str]) -> None:
        """Raise DamagedError if the ledger, whose hashes were found, lacks a line that the trail names."""
        for name, number in self._missing.items():
            if name not in found:
                raise DamagedError(
                    f"{self._folder / LEDGER} lacks the training of line {number} of {AUDIT}, or it is gone: what was "
                    "spent of the privacy budget is not known. Restore the newest copy; the page on deploying says "
                    "what to do without one."
                )
        self._missing.clear()


def server_key(folder: Path) -> str:
    """The SHA-256 fingerprint of the certificate that authenticates the server, or "none" without TLS."""
    path = folder / AUTHORITY
    if not path.is_file():
        return "none"
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(path.read_text(encoding="ascii"))).hexdigest()
    except ValueError:
        return "unreadable"


def recipe_hash(request: Payload) -> str:
    """The SHA-256 hash of the recipe's text; "" for a request without one."""
    text = request.fields.get("recipe")
    return text_hash(text) if isinstance(text, str) else ""


def text_hash(text: str) -> str:
    """The SHA-256 hash of a text as UTF-8, as of a file with it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class AuditTrail:
    """The trail in a site's folder; several processes may append to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._chain = HashChain(folder / AUDIT)
        self._charged = ChargedLines(folder)

    @property
    def lines(self) -> int:
        """The number of lines that were read or appended."""
        return self._chain.last.number

    def check(self, ledger: Callable[[], LedgerState]) -> None:
        """Verify the trail, and that the ledger fits it; DamagedError naming what was changed or is missing.

        Unless a file was touched, this costs the same however long it is.
        """
        self._read(self._chain.new())
        state = ledger()  # read after the trail, which never names a line that is not yet there
        self._charged.check(state.hashes)
        self._read(self._chain.new())
        _check_length(self.folder, self.lines, state.trail)

    def record(self, request: Payload, answer: Payload, verdict: Verdict) -> None:
        """Append the line of a message; DamagedError if a line before was changed."""
        fields = request.fields
        asked = {name: _shown(fields.get(name)) for name in ("run", "trial", "round", "client", "serial")}
        line = {
            "time": time.time(),
            "server": server_key(self.folder),
            "kind": _shown(request.kind),
            **asked,
            "recipe": recipe_hash(request),
            "rule": verdict.rule,
            "answer": answer.kind,
            "left": _left(answer),
            "epsilon": verdict.epsilon,
            "ledger": verdict.ledger,
            "newest": verdict.newest,
        }
        with self._chain.locked() as new:
            self._read(new)
            self._chain.append(line)

    def _read(self, new: Iterable[Entry]) -> None:
        for entry in new:
            self._charged.add(entry)


def read_audit(folder: Path) -> Iterator[Entry]:
    """Yield the lines of a site's trail and verify both chains; DamagedError naming what was changed or is missing."""
    charged, ledger, last = ChargedLines(folder), LedgerState(), 0
    for entry in read_chain(folder / LEDGER):
        ledger.add(entry)
    for entry in read_chain(folder / AUDIT):
        charged.add(entry)
        charged.check(ledger.hashes)
        last = entry.number
        yield entry
    _check_length(folder, last, ledger.trail)


class RecordsCheck:
    """Says again and again whether a site's trail and ledger are whole; untouched files cost the same at any length.

    It knows what it has read before, as the site's worker does, so it finds records that were replaced, too.
    """

    def __init__(self, folder: Path) -> None:
        self._trail, self._ledger = AuditTrail(folder), ChainReader(folder / LEDGER)
        self._state = LedgerState()

    def damage(self) -> str:
        """What is damaged or missing, and how to mend it; "" if they are whole."""
        try:
            self._trail.check(self._read_ledger)
        except DamagedError as error:
            return f"{error} Until then the site answers nothing."
        except OSError as error:
            return f"{error.filename} cannot be read ({error.strerror}). Until then the site answers nothing."
        return ""

    def _read_ledger(self) -> LedgerState:
        for entry in self._ledger.new():
            self._state.add(entry)
        return self._state


def _check_length(folder: Path, lines: int, named: int) -> None:
    """Raise DamagedError if the trail has fewer lines than the ledger says."""
    if lines < named:
        raise DamagedError(
            f"{folder / AUDIT} has {lines} lines, and had {named} when {LEDGER} was last written; restore the newest "
            "copy."
        )


def last_hashes(folder: Path) -> Mapping[str, str]:
    """The newest hash of trail and ledger; kept elsewhere, they prove later that no line was removed."""
    found = {}
    for name in (AUDIT, LEDGER):
        found[name] = START
        for entry in read_chain(folder / name):
            found[name] = entry.hash
    return found


def _left(answer: Payload) -> Mapping[str, object]:
    content = answer.to_bytes()
    return {
        "fields": sorted(answer.fields),
        "tensors": list(answer.tensors),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _shown(value: object) -> object:
    """A number, a pair of numbers or a short name as it came; of anything else, which the server chose, a hash."""
    if isinstance(value, list):
        return value if len(value) <= 2 and all(map(_is_number, value)) else "a list"
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) else "sha256:" + text_hash(value)[:16]
    return value if value is None or _is_number(value) else f"a {type(value).__name__}"


def _is_number(value: object) -> bool:
    return type(value) is int and abs(value) < 2**53
