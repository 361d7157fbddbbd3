"""Class names in one normal form, what that merged, and whether a column of labels holds names or numbers."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Literal

from fedprompt.data.intake.report import Mistakes
from fedprompt.errors import UserError, did_you_mean, series
from fedprompt.text_files import LINE_ENDS, read_text

LARGEST_LIST = 16 << 20  # bytes of a list of classes
BLANKS = re.compile("[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")  # of all widths; line ends are none of them
WIDTHLESS = re.compile("[\u200b\u2060\ufeff]")  # what editors and spreadsheets leave behind
NUMERAL = re.compile(r"[0-9]+(?:\.0+)?")  # `"²".isdigit()` is true, and int("²") is not
MEASURE = re.compile(r"[+-]?(?:[0-9]*\.[0-9]+|[0-9]+\.?)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|infinity)", re.IGNORECASE)
LONGEST_NUMBER = 100  # characters; the time to read a number grows with the square of its digits
INDEXED = re.compile(r"([0-9]+)(?:\s*[:,;\t]\s*|\s+)(\S.*)")


def normal_name(text: str) -> str:
    """The one form of a name: composed letters (Unicode NFC), no blanks around it and single ones inside."""
    return BLANKS.sub(" ", WIDTHLESS.sub("", unicodedata.normalize("NFC", text))).strip()


@dataclass(frozen=True)
class ClassNames:
    """Class names in label order; `remarks` are sentences on spellings that were merged and on names that look alike.

    `of` maps every spelling that was seen to its name.
    """

    names: tuple[str, ...]
    of: Mapping[str, str]
    remarks: tuple[str, ...] = ()


def understand_names(spellings: Iterable[str], *, place: str, what: Literal["class", "domain"] = "class") -> ClassNames:
    """The distinct names among spellings, sorted."""
    of = {spelling: normal_name(spelling) for spelling in spellings}
    names = tuple(sorted(set(of.values())))
    alike = (*look_alikes(names, place), *odd_numbers(names, place)) if what == "class" else ()
    return ClassNames(names, of, (*_merged(of, place, what), *alike))


def _merged(of: Mapping[str, str], place: str, what: str) -> list[str]:
    spelled = defaultdict(list)
    for spelling, name in of.items():
        spelled[name].append(spelling)
    several = {name: own for name, own in spelled.items() if len(own) > 1}
    return [f"{place}: {len(own)} spellings of {name!r} are one {what}: {_seen(own)}." for name, own in several.items()]


def _seen(spellings: Iterable[str]) -> str:
    return ", ".join(sorted(ascii(spelling) for spelling in spellings))  # two names that look the same look different


def look_alikes(names: Sequence[str], place: str) -> list[str]:
    """A warning for every group of names that differ in case, or in a blank and an underscore, alone."""
    groups = defaultdict(list)
    for name in names:
        groups[" ".join(name.casefold().replace("_", " ").split())].append(name)
    return [
        f"{place}: {series(map(repr, own))} are different classes, and a text tower may not tell them apart; "
        "rename one, or make them one."
        for own in groups.values()
        if len(own) > 1
    ]


def odd_numbers(names: Sequence[str], place: str) -> list[str]:
    """A warning where some names that nobody has listed are numbers and others are words: a label may be a slip."""
    numbers = [name for name in names if class_number(name) is not None or is_measure(name)]
    if not numbers or len(numbers) == len(names):
        return []
    return [f"{place}: {len(numbers):,} of {len(names):,} classes are called by numbers, {numbers[0]!r} for one."]


def read_class_list(text: str, *, path: Path) -> ClassNames:
    """The names of a list, one per line in label order; numbers in front (`1 cat`) are dropped if they only count.

    Raises UserError for an empty list and for a name that stands there twice.
    """
    lines = [(number, normal_name(line)) for number, line in enumerate(LINE_ENDS.split(text), start=1)]
    lines = [(number, name) for number, name in lines if name]
    counts = [found for _, name in lines if (found := INDEXED.fullmatch(name))]
    indices = [int(found[1]) for found in counts]
    counted = bool(lines) and indices in (list(range(len(lines))), list(range(1, len(lines) + 1)))
    if counted:
        lines = [(number, found[2]) for (number, _), found in zip(lines, counts, strict=True)]
    mistakes = Mistakes(path)
    first: dict[str, int] = {}
    for number, name in lines:
        if (before := first.setdefault(name, number)) != number:
            mistakes.add(f"the class {name!r} already stands in line {before}", line=number)
    mistakes.check(fix="give each class a name of its own")
    if not first:
        raise UserError(f"The list of classes {path} is empty; write one name per line in label order.")
    remarks = [f"{path}: the numbers in front of the names count lines and are not part of them."] if counted else []
    return ClassNames(tuple(first), {name: name for name in first}, (*remarks, *look_alikes(tuple(first), str(path))))


def read_class_file(path: Path) -> ClassNames:
    """`read_class_list` of a file."""
    text, _, remarks = read_text(path, most=LARGEST_LIST)
    found = read_class_list(text, path=path)
    return replace(found, remarks=(*remarks, *found.remarks))


def is_measure(text: str) -> bool:
    """Whether a text is a number that no class is called by: 0.9, -1, 1e5 or infinity, but not 7."""
    return bool(MEASURE.fullmatch(text)) and not NUMERAL.fullmatch(text)


def class_number(value: object) -> int | None:
    """The class number that a value is, 0 or more: 3, 3.0, "3" or "3.0"; None for all else, 0.9, NaN and True too."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return int(value.partition(".")[0]) if len(value) <= LONGEST_NUMBER and NUMERAL.fullmatch(value) else None
    if not isinstance(value, Real):  # which numpy's numbers are too
        return None
    number = float(value)
    return int(number) if number.is_integer() and number >= 0 else None


def labels_of(
    cells: Sequence[object],
    names: Sequence[str],
    *,
    mistakes: Mistakes,
    lines: Sequence[int] | None = None,
    others: bool = False,
) -> list[int]:
    """The class of every cell of a column: all cells are names, or all are numbers from 0 on, never some of each.

    What is neither is noted in `mistakes`, and stands as -1. So are labels that begin with 1 and end with the number of
    classes, and numbers where the classes are themselves called by numbers. With `others`, a name of another class is
    no mistake, and stands as -1 alone.
    """
    position = {name: label for label, name in enumerate(names)}
    texts = [normal_name(cell) if isinstance(cell, str) else cell for cell in cells]
    named = [position.get(text, -1) if isinstance(text, str) else -1 for text in texts]
    numbers = [class_number(text) for text in texts]
    by_name = any(label >= 0 for label in named)
    if all(number is not None for number in numbers) and not all(label >= 0 for label in named):
        found = [number for number in numbers if number is not None]
        if wrong := _other_numbers(found, names):
            mistakes.add(wrong)
            return [-1] * len(cells)
        return [_within(number, names, mistakes, _line(lines, row)) for row, number in enumerate(found)]
    for row, (text, label) in enumerate(zip(texts, named, strict=True)):
        if label < 0 and not (others and isinstance(text, str) and text and numbers[row] is None):
            mistakes.add(_stranger(text, names, by_name=by_name), line=_line(lines, row))
    return named


def _other_numbers(numbers: Sequence[int], names: Sequence[str]) -> str:
    """Why numbers are no positions from 0 on, if they are not."""
    called = [name for name in names if class_number(name) is not None]
    if called and [class_number(name) for name in names] != list(range(len(names))):
        return f"the labels are numbers, and so are names of classes ({called[0]!r}); give the classes names in words"
    if numbers and 0 not in numbers and max(numbers) == len(names):
        return (
            f"the labels run from {min(numbers)} to {max(numbers)} where the {len(names)} classes count from 0; "
            "write names, or numbers that begin with 0"
        )
    return ""


def _line(lines: Sequence[int] | None, row: int) -> int | None:
    return None if lines is None else lines[row]


def _within(number: int, names: Sequence[str], mistakes: Mistakes, line: int | None) -> int:
    if number < len(names):
        return number
    mistakes.add(f"there is no class {number}; the {len(names)} classes count from 0", line=line)
    return -1


def _stranger(text: object, names: Sequence[str], *, by_name: bool) -> str:
    if by_name and class_number(text) is not None:
        return f"the label is the number {text}, and other labels are names; use one of the two"
    hint = did_you_mean(text, names) if isinstance(text, str) else ""
    return f"there is no class {text!r}{hint}"
