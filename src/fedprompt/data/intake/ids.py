"""Ids of images, annotations and categories, compared as text in one form, and what joins to what."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fedprompt.data.intake.class_names import normal_name
from fedprompt.data.intake.report import Mistakes

EXACT = 2**53  # above it, floats skip whole numbers
WHOLE = re.compile(r"([+-]?)0*([0-9]+)(?:\.0+)?")

Record = TypeVar("Record")


def id_text(value: object) -> str | None:
    """An id as text: 7, 7.0 and "7" are "7"; None for null, NaN, truth values, lists and numbers that are not whole."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < EXACT else None
    if isinstance(value, int | str):
        return normal_name(str(value)) or None
    return None


def by_value(text: str) -> str:
    """The form in which numbers of different spelling are one: "000007" and "7.0" are "7"; other text is itself."""
    found = WHOLE.fullmatch(text)
    if not found:
        return text
    sign = "-" if found[1] == "-" and found[2] != "0" else ""
    return sign + found[2]


@dataclass(frozen=True)
class Ids:
    """The ids of a list of records, and the form in which they are compared.

    Numbers are compared by value ("000007" is 7), unless two ids of the list differ in their zeros alone; then text is.
    """

    rows: Mapping[str, int]  # id in the compared form -> the row of its record
    form: Callable[[str], str]

    def find(self, value: object) -> int | None:
        """The row of an id, None for one that is not there."""
        text = id_text(value)
        return None if text is None else self.rows.get(self.form(text))


def index_ids(
    records: Sequence[Record],
    *,
    key: Callable[[Record], object],
    content: Callable[[Record], Hashable],
    what: str,
    mistakes: Mistakes,
) -> Ids:
    """Index records by their id. Records that are repeated word for word count once.

    Ids that are none, and one id of records with other `content`, are noted in `mistakes`, each kind in one sentence.
    """
    texts = [id_text(key(record)) for record in records]
    if bad := [row for row, text in enumerate(texts) if text is None]:
        shown = key(records[bad[0]])
        mistakes.add(f"{_some(len(bad), len(records), what)} no id that can be used, {shown!r} for one")
    distinct = {text for text in texts if text is not None}
    form = by_value if len({by_value(text) for text in distinct}) == len(distinct) else str
    rows: dict[str, int] = {}
    clashes: list[str] = []
    for row, text in enumerate(texts):
        if text is not None and (first := rows.setdefault(form(text), row)) != row:
            clashes += [text] * (content(records[first]) != content(records[row]))
    if clashes:
        some = f"1 id of {what} is" if len(set(clashes)) == 1 else f"{len(set(clashes)):,} ids of {what} are"
        mistakes.add(f"{some} given to different ones, {clashes[0]!r} for one; if files were merged, give ids anew")
    return Ids(rows, form)


def _some(count: int, total: int, what: str) -> str:
    return f"{count:,} of {total:,} {what} {'has' if count == 1 else 'have'}"


def joined(values: Iterable[object], ids: Ids, *, what: str, to: str, mistakes: Mistakes) -> list[int]:
    """The rows that ids of others (an annotation's image) point to, -1 for those that point to nothing.

    Those are noted in `mistakes` in one sentence with their number: a label is never lost in silence.
    """
    pairs = [(value, ids.find(value)) for value in values]
    if lost := [value for value, row in pairs if row is None]:
        mistakes.add(
            f"{len(lost):,} of {len(pairs):,} {what} name {to} that are not in the file, {lost[0]!r} for one; "
            "remove them, or use the file that belongs to them"
        )
    return [-1 if row is None else row for _, row in pairs]


def repeated(values: Sequence[Hashable], *, what: str, mistakes: Mistakes) -> None:
    """Note values that occur more than once (a file that is listed twice) in one sentence."""
    seen: set[Hashable] = set()
    twice = [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]
    if twice:
        some = f"1 {what.removesuffix('s')} is" if len(set(twice)) == 1 else f"{len(set(twice)):,} {what} are"
        mistakes.add(f"{some} listed more than once, {twice[0]!r} for one; keep one of each")


def flag(value: object) -> bool | None:
    """A mark like COCO's `iscrowd`, also as text or missing; None for what is neither true nor false."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    text = str(value).strip().lower().removesuffix(".0")
    return {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}.get(text)
