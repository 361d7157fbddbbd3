"""Labels as typed values, of Parquet, JSON and numpy files: numbers, names, truth values, lists of them, and nulls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedprompt.data.intake.class_names import class_number, labels_of, normal_name, understand_names
from fedprompt.data.intake.label_cells import (
    UNKNOWN,
    is_missing,
    looks_like_several,
    read_label_column,
    truth,
)
from fedprompt.data.intake.report import Mistakes
from fedprompt.errors import did_you_mean
from fedprompt.text_files import data_setting

# What numbers in a list are: class numbers, values per class, or whichever of the two fits all rows.
ListForm = Literal["numbers", "vectors", "either"]
OBJECT_KEYS = ("category", "categories", "label", "labels", "category_id")


@dataclass(frozen=True)
class TypedLabels:
    """Class names and targets: a class per row, or per row the values 1, 0 and -1 of all classes if `multi`."""

    names: tuple[str, ...]
    targets: Sequence[int] | Sequence[Sequence[int]]
    form: str
    remarks: tuple[str, ...] = ()

    @property
    def multi(self) -> bool:
        """Whether an image may have several labels."""
        return bool(self.targets) and not isinstance(self.targets[0], int)

    @property
    def values(self) -> Sequence[Sequence[int]]:
        """The values of all classes per row; empty unless `multi`."""
        return [own for own in self.targets if not isinstance(own, int)]


@dataclass(frozen=True)
class Dialect:
    """How the user says that labels are to be read, and whether numbers are positions in the names."""

    lists: ListForm = "either"
    positions: bool = False  # single numbers are positions in the names, even if names are numbers themselves
    separator: str = ""
    threshold: float | None = None


def read_typed_labels(
    values: Sequence[object], names: Sequence[str], *, dialect: Dialect, mistakes: Mistakes
) -> TypedLabels:
    """Understand a column of labels; `names` are the classes in label order, () if they are not known.

    What is wrong is noted in `mistakes`, by row; raises UserError if nothing can be understood.
    """
    values = [_plain(value, mistakes) for value in values]
    known = tuple(map(normal_name, names))
    texts = [value for value in values if isinstance(value, str) and (value in known or not is_missing(value))]
    listed = any(isinstance(value, list) for value in values)
    if listed or (dialect.separator and dialect.separator != "none") or (texts and all(map(_is_list_text, texts))):
        return _many(values, known, dialect, mistakes)
    return _one(values, known, dialect, mistakes)


def _plain(value: object, mistakes: Mistakes) -> object:
    """Objects of an image, as `{"category": [...]}` or a list of such, as the list of their classes."""
    if isinstance(value, Mapping):
        key = next((key for key in OBJECT_KEYS if key in value), None)
        if key is None:
            mistakes.refuse(f"objects have none of the keys {', '.join(OBJECT_KEYS)} (found {', '.join(value)})")
        return _plain(value[key], mistakes)
    if isinstance(value, list | tuple):
        return [_plain(item, mistakes) if isinstance(item, Mapping) else item for item in value]
    return value


def _is_list_text(text: str) -> bool:
    return text.strip().startswith(("[", "(")) and text.strip().endswith(("]", ")"))


def _one(values: Sequence[object], names: Sequence[str], dialect: Dialect, mistakes: Mistakes) -> TypedLabels:
    gone = [row for row, value in enumerate(values) if _has_no_label(value, names)]
    if gone:
        mistakes.refuse(
            f"{len(gone):,} of {len(values):,} rows have no label, row {gone[0]} with {values[gone[0]]!r} for one; "
            "remove them, or leave their split out with `splits`"
        )
    remarks: tuple[str, ...] = ()
    if not names:
        if not all(isinstance(value, str) and class_number(normal_name(value)) is None for value in values):
            _refuse_nameless(values, mistakes)
        texts = [str(value) for value in values]
        if several := "" if dialect.separator == "none" else looks_like_several(texts):
            mistakes.refuse(
                f"{several!r} may be several labels; say what stands between them with `separator`, or give "
                f"{data_setting('separator', 'none')} if it is one"
            )
        found = understand_names(texts, place=mistakes.source)
        names, remarks = found.names, found.remarks
    if all(isinstance(value, bool) for value in values) and len(names) == 2:
        return TypedLabels(tuple(names), [int(bool(value)) for value in values], "truth values", remarks)
    if dialect.positions and all(class_number(value) is not None for value in values):
        labels = [_position(value, names, row, mistakes) for row, value in enumerate(values)]
    else:
        labels = labels_of(values, names, mistakes=mistakes, lines=range(len(values)))
    return TypedLabels(tuple(names), labels, "one per image", remarks)


def _has_no_label(value: object, names: Sequence[str]) -> bool:
    missing = is_missing(value) or value == "" or (isinstance(value, int | float) and value == UNKNOWN)
    return missing and not (isinstance(value, str) and normal_name(value) in names)


def _refuse_nameless(values: Sequence[object], mistakes: Mistakes) -> None:
    strange = next((value for value in values if not isinstance(value, str) and class_number(value) is None), None)
    if strange is None:
        mistakes.refuse("it has numbers for labels and no names for them; set `classes` in label order")
    mistakes.refuse(f"the label {strange!r} is neither a name nor a class number; correct it")


def _position(value: object, names: Sequence[str], row: int, mistakes: Mistakes) -> int:
    number = class_number(value)
    if number is None or number >= len(names):
        mistakes.add(f"the label {value!r} is none of the {len(names)} classes, which count from 0", line=row)
        return UNKNOWN
    return number


def _many(values: Sequence[object], names: Sequence[str], dialect: Dialect, mistakes: Mistakes) -> TypedLabels:
    lists = [value for value in values if isinstance(value, list)]
    items = [item for value in lists for item in value]
    if any(isinstance(value, str) for value in values) or all(isinstance(item, str) for item in items):
        return _names_in_lists(values, names, dialect, mistakes)
    if single := [row for row, value in enumerate(values) if not isinstance(value, list) and not is_missing(value)]:
        mistakes.refuse(f"row {single[0]} has one label, {values[single[0]]!r}, and others have lists; use one form")
    if any(isinstance(item, str) for item in items):
        mistakes.refuse("lists hold names and numbers; use one of the two")
    if not names:
        mistakes.refuse("it has numbers for labels and no names for them; set `classes` in label order")
    if _reads_both_ways(lists, len(names), dialect):
        mistakes.refuse(
            "every list may be class numbers, and may be 0 and 1 per class; write names, or give "
            f"{data_setting('threshold', 0.5)} if they are the latter"
        )
    if dialect.lists != "numbers" and (vectors := _vectors(values, len(names), dialect, mistakes)):
        return TypedLabels(tuple(names), vectors, "vectors of 0 and 1")
    return TypedLabels(tuple(names), _positions_in_lists(values, names, dialect, mistakes), "lists of numbers")


def _reads_both_ways(lists: Sequence[list[object]], classes: int, dialect: Dialect) -> bool:
    """Whether lists are [0, 1] and [1, 0] of two classes, or [0] of one."""
    whole = all(isinstance(item, int) and not isinstance(item, bool) for value in lists for item in value)
    either = dialect.lists == "either" and dialect.threshold is None
    every = set(range(classes))
    return either and whole and classes <= 2 and all(len(value) == classes and set(value) == every for value in lists)


def _names_in_lists(
    values: Sequence[object], names: Sequence[str], dialect: Dialect, mistakes: Mistakes
) -> TypedLabels:
    rows = range(len(values))
    column = read_label_column(values, mistakes=mistakes, lines=rows, separator=dialect.separator, names=names)
    if column.vectors:
        return TypedLabels(tuple(names), column.vectors, column.form)
    found = tuple(names) or tuple(sorted({name for own in column.labels for name in own or ()}))
    if not found:
        mistakes.refuse("it has no labels; add some")
    if not names and all(class_number(name) is not None for name in found):
        mistakes.refuse("it has numbers for labels and no names for them; set `classes` in label order")
    for row, own in enumerate(column.labels):
        for name in own or ():
            if name not in found:
                mistakes.add(f"there is no class {name!r}{did_you_mean(name, found)}", line=row)
    targets = [[UNKNOWN] * len(found) if own is None else [int(name in own) for name in found] for own in column.labels]
    return TypedLabels(found, targets, column.form, column.remarks)


def _vectors(values: Sequence[object], classes: int, dialect: Dialect, mistakes: Mistakes) -> list[list[int]]:
    """Values per class, or [] if lists are class numbers; lists that can be neither are noted."""
    rows: list[list[int]] = []
    wrong: list[tuple[int, str]] = []
    for row, value in enumerate(values):
        items = value if isinstance(value, list) else [None] * classes
        marks = [truth(item, threshold=dialect.threshold) for item in items]
        bad = next((item for item, mark in zip(items, marks, strict=True) if mark is None), None)
        if len(items) != classes:
            wrong.append((row, f"there are {len(items)} values, which does not fit {classes} classes"))
        elif bad is not None:
            fix = (
                "" if dialect.threshold is not None else f"; give {data_setting('threshold', 0.5)} if these are scores"
            )
            wrong.append((row, f"{bad!r} is neither 1, 0 nor -1{fix}"))
        rows.append([UNKNOWN if mark is None else mark for mark in marks])
    if not wrong:
        return rows
    # Lists of class numbers hold whole numbers, none of them twice.
    lists = [value for value in values if isinstance(value, list)]
    numbers = all(class_number(item) is not None for value in lists for item in value)
    if dialect.lists == "either" and numbers and all(len(set(value)) == len(value) for value in lists):
        return []
    for row, what in wrong:
        mistakes.add(what, line=row)
    return rows


def _positions_in_lists(
    values: Sequence[object], names: Sequence[str], dialect: Dialect, mistakes: Mistakes
) -> list[list[int]]:
    targets = []
    for row, value in enumerate(values):
        if not isinstance(value, list):
            targets.append([UNKNOWN] * len(names))
            continue
        present = {_position(item, names, row, mistakes) for item in value}
        targets.append([int(label in present) for label in range(len(names))])
    return targets
