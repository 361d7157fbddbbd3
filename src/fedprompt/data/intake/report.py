"""What a reader understood of its files, for `check` and the start of a run, and mistakes collected together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from html import escape
from typing import NoReturn, TypeVar

from fedprompt.errors import UserError, first_names

SHOWN_MISTAKES = 20
PARTS = ("train", "val", "test")
ONE_PER_IMAGE = "one per image"

Read = TypeVar("Read")


@dataclass(frozen=True)
class Intake:
    """What a reader says about a data set besides its rows.

    `labels` says in words what the labels of an image are. `origins` has a phrase ("the folders Training and Testing")
    per piece: "images", "classes", "labels", "domains", "splits". `left_out` counts files by reason. `warnings` are
    whole sentences. `parts` are the reports of data sets that were joined.
    """

    labels: str = ONE_PER_IMAGE
    origins: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    parts: Mapping[str, IntakeReport] = field(default_factory=dict)


@dataclass(frozen=True)
class IntakeReport:
    """What was found, where each piece of it comes from, and what was left out and why; see `Intake`."""

    images: int
    classes: tuple[str, ...]
    splits: Mapping[str, int]
    domains: Mapping[str, int] = field(default_factory=dict)
    labels: str = ONE_PER_IMAGE
    origins: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    parts: Mapping[str, IntakeReport] = field(default_factory=dict)

    def table(self) -> list[tuple[str, str, str, str]]:
        """Rows for printing: what, found, from where, left out; a row for each part that was joined."""
        found = {
            "images": f"{self.images:,}",
            "classes": _some(self.classes),
            "labels": self.labels,
            "domains": _some(tuple(self.domains)) if self.domains else "",
            "splits": f"{'/'.join(self._parts())} {self._shares()}",
        }
        rows = [
            (what, text, self.origins.get(what, ""), listed_counts(self.left_out) if what == "images" else "")
            for what, text in found.items()
            if text
        ]
        parts = [
            (f"part {name}", part.sentence(classes=False), "", listed_counts(part.left_out))
            for name, part in self.parts.items()
        ]
        return [("what", "found", "from where", "left out"), *rows, *parts]

    def sentence(self, *, classes: bool = True) -> str:
        """One line for the start of a run; without `classes`, their names are left out."""
        if not self.images:
            return f"No image is on this machine; the classes are {_some(self.classes)}."
        origin = f" (split: {self.origins['splits']})" if self.origins.get("splits") else ""
        parts = [
            f"{self.images:,} image{'s' * (self.images != 1)}",
            f"{len(self.classes):,} class{'es' * (len(self.classes) != 1)}"
            + (f" ({first_names(self.classes)})" if classes else ""),
            *([f"{len(self.domains):,} domains ({first_names(tuple(self.domains))})"] if len(self.domains) > 1 else []),
            f"{'/'.join(self._parts())} {self._shares()}{origin}",
        ]
        if not self.splits.get("test"):
            parts.append("nothing to test with")
        if self.left_out:
            parts.append(f"{sum(self.left_out.values()):,} left out ({listed_counts(self.left_out)})")
        return ", ".join(parts) + "."

    def all_warnings(self) -> tuple[str, ...]:
        """The warnings of the reader, and those of the data set as a whole."""
        found = list(self.warnings)
        if len(self.classes) == 1 and self.labels == ONE_PER_IMAGE:
            found.append(f"There is one class only, {self.classes[0]!r}, so every prediction is right.")
        if self.images and not self.splits.get("test"):
            found.append("There is no image to test with.")
        return tuple(found)

    def to_json(self) -> Mapping[str, object]:
        """Everything, as JSON values."""
        return {**asdict(self), "warnings": self.all_warnings()}

    def _parts(self) -> tuple[str, ...]:
        return (*PARTS, *(part for part in self.splits if part not in PARTS))

    def _shares(self) -> str:
        return "/".join(f"{self.splits.get(part, 0):,}" for part in self._parts())


def _some(names: Sequence[str]) -> str:
    return f"{len(names):,}: {first_names(names)}"


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first with the headings, as a notebook shows them."""
    heading, *others = ("".join(f"<{{0}}>{escape(cell)}</{{0}}>" for cell in row) for row in rows)
    lines = [heading.format("th"), *(row.format("td") for row in others)]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def listed_counts(counts: Mapping[str, int]) -> str:
    """Counts by reason, in words: "2 .txt, 1 hidden"."""
    return ", ".join(f"{count:,} {_singular(reason) if count == 1 else reason}" for reason, count in counts.items())


def _singular(reason: str) -> str:
    """ "pipes" as "pipe", "broken links" as "broken link"; suffixes of files and other words as they are."""
    return re.sub(r"^((?:\w+ )??\w+)s\b", r"\1", reason)


def joined_intake(parts: Mapping[str, IntakeReport]) -> Intake:
    """The intake of data sets that are joined, by their names."""
    left_out: dict[str, int] = {}
    origins: dict[str, dict[str, None]] = {}
    for report in parts.values():
        for reason, count in report.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
        for what, origin in report.origins.items():
            origins.setdefault(what, {})[origin] = None
    return Intake(
        labels=next((report.labels for report in parts.values()), "none"),
        origins={what: next(iter(own)) if len(own) == 1 else "as each part says" for what, own in origins.items()},
        left_out=left_out,
        warnings=tuple(f"{name}: {warning}" for name, report in parts.items() for warning in report.warnings),
        parts=parts,
    )


def counted(words: Iterable[str]) -> dict[str, int]:
    """How often each word occurs, in order of appearance."""
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return found


class Mistakes:
    """The mistakes of one file, which are shown together: a user corrects them in one go, not in one attempt each.

    `place` says what a line is called, "line 3" by default, "row 3" in a file without lines.
    """

    def __init__(self, source: object, *, place: Callable[[int], str] = "line {}".format) -> None:
        self.source = str(source)
        self._place = place
        self._found: list[tuple[int, str, str, str]] = []
        self._headings: dict[str, str] = {}
        self._fixes: set[str] = set()

    def __len__(self) -> int:
        return len(self._found)

    def call_columns(self, headings: Mapping[str, str]) -> None:
        """What the file calls columns that are noted by our names, so that its user finds them."""
        self._headings.update(headings)

    def add(self, what: str, *, line: int | None = None, column: str = "", fix: str = "") -> None:
        """Note what is wrong, and where in the file; `fix` is what to do about this kind of mistake."""
        self._fixes.add(fix)
        place = [] if line is None else [self._place(line)]
        place += [f"column {self._headings.get(column, column)!r}"] if column else []
        self._found.append((-1 if line is None else line, ", ".join(place), what, fix))

    def refuse(self, what: str, *, line: int | None = None, column: str = "") -> NoReturn:
        """Note what is wrong and raise at once: nothing after it can be understood."""
        self.add(what, line=line, column=column)
        self.check()
        raise AssertionError("a mistake was noted")

    @contextmanager
    def before_others(self, *, fix: str) -> Iterator[None]:
        """Raise the mistakes, if there are any, in place of a UserError that may follow from them."""
        try:
            yield
        except UserError:
            self.check(fix=fix)
            raise

    def check(self, *, fix: str = "correct that") -> None:
        """Raise UserError if there are mistakes: the one, or the first twenty of many."""
        if not self._found:
            return
        several = len(self._fixes) > 1  # then each mistake has its own, and none stands above all
        fix = "" if several else next(iter(self._fixes)) or fix
        ordered = sorted(self._found, key=lambda mistake: mistake[0])
        found = [
            (f"{place}: {what}" if place else what) + (f"; {own}" if several and own else "")
            for _, place, what, own in ordered
        ]
        if len(found) == 1:
            first, place = found[0], ordered[0][1]
            end = "" if first.endswith((".", "?")) or ";" in first else f"; {fix}"
            raise UserError(f"{self.source}{', ' if place else ': '}{first}{end}".rstrip(".") + ".")
        fix = _for_several(fix)
        lines = "".join(f"\n  {text}" for text in found[:SHOWN_MISTAKES])
        more = len(found) - SHOWN_MISTAKES
        rest = f"\n  and {more:,} more" if more > 0 else ""
        raise UserError(f"{self.source} has {len(found):,} mistakes{fix and f'; {fix}'}:{lines}{rest}")


def _for_several(fix: str) -> str:
    """What to do about one place, said of several: "correct these cells" for "correct that cell"."""
    found = re.fullmatch(r"(\w+) that((?: \w+)*)", fix)
    things = found[2].split() if found else []
    return " ".join([found[1], "these", *(f"{word}s" if word != "or" else word for word in things)]) if found else fix


def read_all(readers: Iterable[Callable[[], Read]]) -> list[Read]:
    """Call every reader; UserError with the sentences of all that fail, not of the first alone."""
    found, errors = [], []
    for read in readers:
        try:
            found.append(read())
        except UserError as error:
            errors.append(str(error))
    if errors:
        raise UserError("\n".join(errors))
    return found
