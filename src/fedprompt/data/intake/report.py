"""What a reader understood of a user's files, for `check` and the start of a run, and mistakes collected together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NoReturn

from fedprompt.errors import UserError

SHOWN_CLASSES = 5
SHOWN_MISTAKES = 20
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class IntakeReport:
    """What was found, where each piece of it comes from, and what was left out and why.

    `origins` has a phrase ("the folders Training and Testing") per piece: "images", "classes", "labels", "domains",
    "splits". `left_out` counts files by reason. `warnings` are whole sentences.
    """

    images: int
    classes: tuple[str, ...]
    splits: Mapping[str, int]
    domains: Mapping[str, int] = field(default_factory=dict)
    labels: str = "one per image"
    origins: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def warned(self, sentences: Iterable[str]) -> IntakeReport:
        """The report with further warnings, each once."""
        return replace(self, warnings=tuple(dict.fromkeys((*self.warnings, *sentences))))

    def table(self) -> list[tuple[str, str, str, str]]:
        """Rows for printing: what, found, from where, left out."""
        shares = ", ".join(f"{part} {self.splits.get(part, 0):,}" for part in self._parts())
        found = {
            "images": f"{self.images:,}",
            "classes": f"{len(self.classes):,}: {shown(self.classes)}",
            "labels": self.labels,
            "domains": f"{len(self.domains):,}: {shown(tuple(self.domains))}" if self.domains else "",
            "splits": shares,
        }
        gone = self._gone()
        rows = [
            (what, text, self.origins.get(what, ""), gone if what == "images" else "")
            for what, text in found.items()
            if text
        ]
        return [("what", "found", "from where", "left out"), *rows]

    def sentence(self) -> str:
        """One line for the start of a run."""
        shares = ", ".join(f"{self.splits.get(part, 0):,} {part}" for part in self._parts())
        origin = f" ({self.origins['splits']})" if self.origins.get("splits") else ""
        gone = f"; left out: {self._gone()}" if self.left_out else ""
        untested = "" if self.splits.get("test") else "; nothing to test with"
        return (
            f"{self.images:,} images, {len(self.classes):,} classes ({shown(self.classes)}), {shares}{origin}"
            f"{untested}{gone}."
        )

    def to_json(self) -> Mapping[str, object]:
        """Everything, as JSON values."""
        return asdict(self)

    def _parts(self) -> tuple[str, ...]:
        return (*PARTS, *(part for part in self.splits if part not in PARTS))

    def _gone(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())


def shown(names: Sequence[str], *, most: int = SHOWN_CLASSES) -> str:
    """The first few of many names, and that there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def counted(words: Iterable[str]) -> dict[str, int]:
    """How often each word occurs, in order of appearance."""
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return found


class Mistakes:
    """The mistakes of one file, which are shown together: a user corrects them in one go, not in one attempt each."""

    def __init__(self, source: object) -> None:
        self.source = str(source)
        self._found: list[str] = []

    def __len__(self) -> int:
        return len(self._found)

    def add(self, what: str, *, line: int | None = None, column: str = "") -> None:
        """Note what is wrong, and where in the file."""
        place = ([f"line {line}"] if line is not None else []) + ([f"column {column!r}"] if column else [])
        self._found.append(f"{', '.join(place)}: {what}" if place else what)

    def refuse(self, what: str, *, line: int | None = None, column: str = "") -> NoReturn:
        """Note what is wrong and raise at once: nothing after it can be understood."""
        self.add(what, line=line, column=column)
        self.check()
        raise AssertionError("a mistake was noted")

    def check(self, *, fix: str = "correct that") -> None:
        """Raise UserError if there are mistakes: the one, or the first twenty of many."""
        if not self._found:
            return
        first = self._found[0]
        if len(self._found) == 1:
            joint = ", " if first.startswith(("line ", "column ")) else ": "
            end = "" if first.endswith((".", "?")) or ";" in first else f"; {fix}"
            raise UserError(f"{self.source}{joint}{first}{end}".rstrip(".") + ".")
        lines = "".join(f"\n  {text}" for text in self._found[:SHOWN_MISTAKES])
        more = len(self._found) - SHOWN_MISTAKES
        rest = f"\n  and {more:,} more" if more > 0 else ""
        raise UserError(f"{self.source} has {len(self._found):,} mistakes; {fix}:{lines}{rest}")
