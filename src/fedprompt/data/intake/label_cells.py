"""Cells that hold labels, in the dialects people write: lists, separators, vectors of 0 and 1, truth values.

A column is understood as a whole, since one cell does not tell: `haze, primary` is two labels where `haze` stands alone
in another cell. What may be read in two ways is refused, with the option that settles it.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedprompt.data.intake.class_names import class_number, is_measure, normal_name
from fedprompt.data.intake.report import Mistakes
from fedprompt.errors import series
from fedprompt.text_files import data_setting

MISSING = frozenset({"nan", "NaN", "NAN", "None", "null", "NULL", "Null", "NaT", "<NA>", "N/A", "#N/A", "n/a"})
ALWAYS = re.compile("[;|]")  # no class name has them
OTHERS: Mapping[str, str] = {",": "commas", "/": "slashes", "#": "number signs", "&": "ampersands", " ": "blanks"}
UNKNOWN = -1
WORDS: Mapping[str, int] = {"": UNKNOWN, "true": 1, "false": 0}
WHOLE = re.compile(r"(-?[01])(?:\.0*)?")  # pandas writes 1.0 where a column has blanks

Labels = tuple[str, ...]


@dataclass(frozen=True)
class LabelColumn:
    """What a column of labels says: per row the names that are there, or None where nothing is known.

    `form` says in words how the cells were read, `remarks` are sentences on what might be read in another way.
    `vectors` are [rows][classes] values 1, 0 and -1 instead, if the cells are such vectors; `labels` are then empty.
    """

    labels: tuple[Labels | None, ...]
    form: str
    vectors: tuple[tuple[int, ...], ...] = ()
    remarks: tuple[str, ...] = ()


def is_missing(cell: object) -> bool:
    """Whether a cell says that nothing is known: None, NaN, or the words that pandas and databases write for them."""
    return (
        cell is None
        or (isinstance(cell, float) and math.isnan(cell))
        or (isinstance(cell, str) and cell.strip() in MISSING)
    )


def read_label_column(
    cells: Sequence[object],
    *,
    mistakes: Mistakes,
    lines: Sequence[int] | None = None,
    separator: str = "",
    names: Sequence[str] = (),
) -> LabelColumn:
    """Understand a column of many labels per cell; what is wrong is noted in `mistakes`.

    `separator` is what stands between labels, if the user says so ("none" for no separator at all). `names` are the
    classes, if they are known; cells of 0 and 1 alone are then vectors.
    """
    line: Callable[[int], int | None] = (lambda row: None) if lines is None else lines.__getitem__
    known = {normal_name(name) for name in names}
    missing = [is_missing(cell) and str(cell).strip() not in known for cell in cells]
    lists = [None if gone else _as_list(cell) for cell, gone in zip(cells, missing, strict=True)]
    if vectors := _vectors(cells, lists, missing, len(names)):
        return LabelColumn((), "vectors of 0 and 1", vectors)
    texts = [
        normal_name(cell)
        for cell, own, gone in zip(cells, lists, missing, strict=True)
        if isinstance(cell, str) and own is None and not gone
    ]
    between = separator or _separator(texts, mistakes, known)
    found: list[Labels | None] = []
    for row, (cell, own, gone) in enumerate(zip(cells, lists, missing, strict=True)):
        if gone:
            found.append(None)
        elif own is not None:
            found.append(_names_in(own, mistakes, line(row)))
        elif isinstance(cell, str) and normal_name(cell) in known:
            found.append((normal_name(cell),))
        elif isinstance(cell, str):
            found.append(_split(cell, between, mistakes, line(row)))
        else:
            mistakes.add(f"{cell!r} is not a label; write names", line=line(row), column="labels")
            found.append(())
    _refuse_measures(found, known, mistakes, line)
    listed = any(own is not None for own in lists)
    remarks = () if between else _blank_between(texts, known, mistakes.source)
    return LabelColumn(tuple(found), _form(between, listed=listed, texts=bool(texts)), remarks=remarks)


def _refuse_measures(
    found: Sequence[Labels | None], known: set[str], mistakes: Mistakes, line: Callable[[int], int | None]
) -> None:
    for row, name in [(row, name) for row, labels in enumerate(found) for name in labels or ()]:
        if is_measure(name) and name not in known:
            mistakes.add(f"{name!r} is a number and no class is called so", line=line(row), column="labels")


def _blank_between(texts: Sequence[str], known: set[str], place: str) -> tuple[str, ...]:
    """A remark on a name of two words, one of which is a name too: "fire truck" beside "truck", or two labels."""
    whole = {name for text in texts for name in map(normal_name, ALWAYS.split(text)) if name} - known
    found = min((name for name in whole if _may_be_two(name, whole, " ")), default="")
    part = next((part for part in _parts(found, " ") if part in whole), "")
    if not found:
        return ()
    fix = f"give {data_setting('separator', ' ')} if it is two labels"
    return (f"{place}: {found!r} is read as one class beside {part!r}; {fix}.",)


def _form(between: str, *, listed: bool, texts: bool) -> str:
    name = OTHERS.get(between, repr(between) if between not in ("", "none") else "")
    words = f"names between {name}" if name else "names between semicolons or bars"
    return series(part for part, there in (("lists", listed), (words, texts)) if there) or "no labels"


def _as_list(cell: object) -> list[object] | None:
    """The items of a list, or of a text that is one in JSON, Python's or numpy's form; None for any other text."""
    if isinstance(cell, list | tuple):
        return list(cell)
    text = cell.strip() if isinstance(cell, str) else ""
    if re.match(r"(np\.)?array\(\[", text):
        return [f"[{text}]"]  # what numpy prints: refused below
    if len(text) < 2 or (text[0], text[-1]) not in (("[", "]"), ("(", ")"), ("{", "}")):
        return None
    spaced = re.sub(r"(['\"])\s+(?=['\"])", r"\1, ", text)  # numpy writes no commas, and Python would join two texts
    for read, form in ((json.loads, text), (ast.literal_eval, spaced)):
        try:
            value = read(form)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(value, list | tuple | set):
            return sorted(value, key=str) if isinstance(value, set) else list(value)
    numbers = text[1:-1].split()
    if text[0] == "[" and numbers and all(class_number(one.rstrip(".")) is not None for one in numbers):
        return [class_number(one.rstrip(".")) for one in numbers]
    return [text]  # brackets that are no list: refused below, since no name is like that


def _names_in(items: Sequence[object], mistakes: Mistakes, line: int | None) -> Labels:
    names = []
    for item in items:
        if not isinstance(item, str) or is_missing(item) or re.fullmatch(r"[\[({].*[\])}]", item.strip()):
            what = (
                "is a list that cannot be read"
                if isinstance(item, str) and item.strip()[:1] in "[({"
                else "is not a class name"
            )
            mistakes.add(f"{item!r} {what}", line=line, column="labels")
        elif not normal_name(item):
            mistakes.add("a class has an empty name", line=line, column="labels")
        else:
            names.append(normal_name(item))
    return tuple(dict.fromkeys(names))


def _split(cell: str, between: str, mistakes: Mistakes, line: int | None) -> Labels:
    parts = [cell] if between == "none" else cell.split(between) if between else ALWAYS.split(cell)
    names = [name for part in parts if (name := normal_name(part))]
    for name in names:
        if is_missing(name):
            mistakes.add(f"{name!r} stands for a missing label beside others", line=line, column="labels")
    return tuple(dict.fromkeys(names))


def _separator(texts: Sequence[str], mistakes: Mistakes, known: set[str]) -> str:
    """The one sign, beside semicolon and bar, that stands between labels; "" for none."""
    whole = {name for text in texts for name in map(normal_name, ALWAYS.split(text)) if name} - known
    signs = [sign for sign in ";|" if any(sign in text for text in texts)]
    sure = bool(signs)
    if len(signs) > 1:
        mistakes.add('some have ";" and some "|" between them; say which it is with `separator`', column="labels")
    # Blanks stand beside other signs too, and count where there are no others.
    used = [] if sure else [sign for sign in OTHERS if sign != " " and _in_use(whole, sign)]
    used = used or ([] if sure or not _in_use(whole, " ") else [" "])
    sign = used[0] if len(used) == 1 else ""
    names = {part for text in whole for part in _parts(text, sign)} if sign else whole
    left = [other for other in OTHERS if other != sign and _in_use(names, other)]
    unsure = [other for other in OTHERS if other != " " and not (sign or sure)]
    left += [other for other in unsure if any(_may_be_two(name, names, other) for name in names)]
    if left or (not sign and not sure and any("," in text for text in whole)):
        _undecided(whole, left[0] if left else ",", mistakes)
    return sign


def _in_use(whole: set[str], sign: str) -> bool:
    """Whether parts of some texts stand alone elsewhere, or there are more combinations than parts."""
    several = [parts for text in whole if len(parts := _parts(text, sign)) > 1]
    alone = any(all(part in whole for part in parts) for parts in several)
    distinct = {part for parts in several for part in parts}
    return alone or (len(several) >= 3 and len(distinct) < len(several))


def _may_be_two(text: str, whole: set[str], sign: str) -> bool:
    """Whether some part of a text stands alone elsewhere, as it would if the text were two labels."""
    return len(parts := _parts(text, sign)) > 1 and any(part in whole for part in parts)


def _parts(text: str, sign: str) -> list[str]:
    return [part for part in map(normal_name, text.split(sign)) if part]


def _undecided(whole: set[str], sign: str, mistakes: Mistakes) -> None:
    example = min((text for text in whole if sign in text), key=lambda text: (len(text), text))
    mistakes.add(
        f"{example!r} may be one class or several; say which with {data_setting('separator', sign)}, or with "
        f"{data_setting('separator', 'none')}",
        column="labels",
    )


def looks_like_several(cells: Sequence[str], names: Sequence[str] = ()) -> str:
    """The first cell of a column of one label each that holds several, or "": a list, or parts that stand alone."""
    whole = {normal_name(cell) for cell in cells} - {normal_name(name) for name in names}
    for cell in cells:
        text = normal_name(cell)
        if text in whole and (
            _as_list(text) is not None or any(_stand_alone(text, sign, whole) for sign in (";", "|", *OTHERS))
        ):
            return cell
    for sign in (";", "|", *OTHERS):
        if _in_use(whole, sign):
            return min(text for text in whole if sign in text)
    return ""


def _stand_alone(text: str, sign: str, whole: set[str]) -> bool:
    parts = _parts(text, sign)
    return len(parts) > 1 and all(part in whole for part in parts)


def _vectors(
    cells: Sequence[object], lists: Sequence[list[object] | None], missing: Sequence[bool], classes: int
) -> tuple[tuple[int, ...], ...]:
    """[rows][classes] of 1, 0 and -1 (a whole row of -1 where nothing is known), or () if the cells are no vectors."""
    rows = []
    for cell, own, gone in zip(cells, lists, missing, strict=True):
        items = own if own is not None else re.findall(r"[^\s,;|]+", cell) if isinstance(cell, str) else []
        values = [UNKNOWN] * classes if gone else [truth(item) for item in items]
        if not classes or len(values) != classes or None in values or (not gone and classes == 1 and own is None):
            return ()
        rows.append(tuple(value for value in values if value is not None))
    return tuple(rows)


def truth(cell: object, *, threshold: float | None = None) -> int | None:
    """1, 0 or -1 (unknown) for a truth value, None for anything else: 0.9, 255, infinity.

    With a `threshold`, any finite number counts, as 1 from there on.
    """
    return UNKNOWN if is_missing(cell) else _truth_of_text(str(cell), threshold)


@functools.lru_cache(maxsize=1024)  # a table of many labels has millions of cells with few values
def _truth_of_text(cell: str, threshold: float | None) -> int | None:
    text = cell.strip().lower()
    if text in WORDS:
        return WORDS[text]
    if threshold is None:
        found = WHOLE.fullmatch(text)
        return None if found is None else int(found[1])
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number >= threshold) if math.isfinite(number) else None


def truth_columns(
    rows: Sequence[Mapping[str, object]],
    names: Sequence[str],
    *,
    mistakes: Mistakes,
    lines: Sequence[int],
    threshold: float | None = None,
) -> list[list[int]]:
    """[rows][classes] from one column per class; cells that are no truth values are noted in `mistakes`.

    Refused too are columns of 1 and -1 alone: -1 is unknown here, and others write it for absent.
    """
    table = []
    for row, line in zip(rows, lines, strict=True):
        marks = [truth(row[name], threshold=threshold) for name in names]
        for name, mark in zip(names, marks, strict=True):
            if mark is None:
                fix = "" if threshold is not None else f"; give {data_setting('threshold', 0.5)} if these are scores"
                mistakes.add(f"{row[name]!r} is neither 1, 0, -1 nor blank{fix}", line=line, column=name)
        table.append([UNKNOWN if mark is None else mark for mark in marks])
    cells = {str(row[name]) for row in rows for name in names}
    texts = {re.sub(r"\.0*$", "", cell.strip().lower()) for cell in cells}
    if threshold is None and {"1", "-1"} <= texts and not texts & {"0", "false"}:
        mistakes.add("values are 1 and -1 and never 0, and -1 says that a label is unknown; write 0 where it is absent")
    return table
