"""Labels of a table with several per image: one column per class, or one column of names, vectors or objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fedprompt.data.intake.class_names import ClassNames, class_number, is_measure, normal_name
from fedprompt.data.intake.label_cells import UNKNOWN, is_missing, read_label_column, truth, truth_columns
from fedprompt.data.intake.report import Mistakes
from fedprompt.data.intake.tables import LINES_OF_JSON, Table
from fedprompt.errors import did_you_mean, plural, series, wording
from fedprompt.text_files import data_setting, source_setting

LABELS = ("label", "class", "classes", "category", "categories", "target", "targets", "tag", "tags")  # or its headings
MARKS = 3  # different texts that a column of marks may hold, such as "yes", "no" and "maybe"
OWN_COLUMNS = ("image", "split", "domain", "labels")  # columns that are not classes


@dataclass(frozen=True)
class Labels:
    """Class names and, per row, their values 1, 0 or -1 (unknown); `form` says in words how cells were read."""

    names: tuple[str, ...]
    values: Sequence[Sequence[int]]
    form: str
    remarks: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()  # columns that hold no labels


def read_label_columns(
    table: Table, listed: ClassNames | None, mistakes: Mistakes, *, separator: str, threshold: float | None
) -> Labels:
    """The labels in whichever of the forms the table has."""
    is_json = table.path.suffix.lower() in LINES_OF_JSON
    others = [name for name in table.columns if name not in OWN_COLUMNS]
    if "labels" not in table.columns and not is_json:
        return _class_columns(table, others, listed, mistakes, threshold)
    unread = tuple(_unread(table, others, mistakes))
    if threshold is not None:
        mistakes.add("`threshold` is for tables with one column per class, and this one has a column 'labels'")
    if separator and is_json and not any(isinstance(cell, str) for cell in table.column("labels")):
        mistakes.add("`separator` is for labels in one text, and here they are lists")
    return replace(_label_cells(table, listed, mistakes, separator=separator), unread=unread)


def _unread(table: Table, names: Sequence[str], mistakes: Mistakes) -> Iterator[str]:
    """The columns beside `labels` that hold something else; one that may be labels too is noted."""
    is_json = table.path.suffix.lower() in LINES_OF_JSON
    for name in names:
        cells = [cell for cell in table.column(name) if not is_missing(cell) and cell != ""]
        drop = f"leave the column out with {data_setting('ignore', [name])}"
        if is_json and (hint := did_you_mean(name, OWN_COLUMNS)):
            line = next(row.line for row in table.rows if name in row.cells)
            mistakes.add(f"there is no such key{hint}", line=line, column=name, fix=drop)
        elif cells and all(truth(cell) is not None for cell in cells):
            what = f"beside 'labels' there is the column {name!r}, which looks like a class of its own with 1 and 0"
            mistakes.add(what, fix=f"keep one of the two forms, or {drop}")
        else:
            yield name


def _of_one_label(column: str) -> str:
    """How a table with one label per image is read; a recipe for several has other defaults, so its name is given."""
    named = "" if column == "label" else f" {data_setting('columns.label', column)}"
    recipe = "" if wording() == "keywords" else "run the recipe own_folder "
    return f"{recipe}with {source_setting('source=class_table')}{named}"


def _class_columns(
    table: Table, names: Sequence[str], listed: ClassNames | None, mistakes: Mistakes, threshold: float | None
) -> Labels:
    """One column per class, in the order of the list of classes or of the columns."""
    known = listed.names if listed else ()
    unread = [name for name in names if name not in known and _is_prose(table.column(name))]
    names = [name for name in names if name not in unread]
    if names and (one := next((name for name in unread if name.casefold() in LABELS), "")):
        mistakes.refuse(
            f"the column {one!r} looks like the labels, and {series(map(repr, names[:3]))} like classes of their own "
            f"with 1 and 0; read the labels with {data_setting('columns.labels', one)} and leave the other columns out "
            f"with {data_setting('ignore', names)}, or leave this one out with {data_setting('ignore', [one])}"
        )
    one_each = [] if listed else [name for name in names if name == "label" or len(names) == 1]
    one_each = [name for name in one_each if _is_text(table.column(name))]
    if not names or one_each:
        columns = ", ".join(map(repr, table.columns))
        one = next(iter((*one_each, *unread)), "COLUMN")
        mistakes.refuse(
            f"there are no labels, neither a column 'labels' nor one per class (found {columns}); if a column of "
            f"another name holds them, say so with {data_setting('columns.labels', one)}, or, with one label per "
            f"image, {_of_one_label(one)}"
        )
    names = _without_odd(table, names, known, mistakes, threshold)
    if listed:
        _match(table, names, listed.names, mistakes)
        names = [name for name in listed.names if name in names]
    rows = [row.cells for row in table.rows]
    values = truth_columns(rows, names, mistakes=mistakes, lines=table.lines, threshold=threshold)
    form = "one column per class" + ("" if threshold is None else f", present from {threshold:g} on")
    return Labels(tuple(names), values, form, unread=tuple(unread))


def _is_prose(cells: Sequence[object]) -> bool:
    """Whether a column holds texts of so many kinds that they are no labels: captions, notes, names."""
    return _is_text(cells) and len({cell for cell in cells if isinstance(cell, str) and not is_missing(cell)}) > MARKS


def _is_text(cells: Sequence[object]) -> bool:
    """Whether a column holds texts, of which none is a number or says that something is there or not."""
    texts = [cell for cell in cells if isinstance(cell, str) and cell and not is_missing(cell)]
    return bool(texts) and not any(
        truth(text) is not None or is_measure(text) or class_number(text) is not None for text in texts
    )


def _without_odd(
    table: Table, names: Sequence[str], known: Sequence[str], mistakes: Mistakes, threshold: float | None
) -> list[str]:
    """The columns without those that are no truth values in any cell; each of these is noted once, not by cell."""
    kept = []
    for name in names:
        cells = [cell for cell in table.column(name) if not is_missing(cell) and cell != ""]
        wrong = [cell for cell in cells if truth(cell, threshold=threshold) is None]
        scores = any(is_measure(str(cell)) for cell in wrong)
        counts = len(set(map(str, cells))) == len(cells) and all(class_number(cell) is not None for cell in cells)
        if name in known or scores or len(wrong) < 2 or not (counts or len(wrong) == len(cells)):
            kept.append(name)
            continue
        some = ", ".join(repr(cell) for cell in dict.fromkeys(wrong[:3]))
        mistakes.add(
            f"the column {name!r} holds {some}, which are neither 1, 0, -1 nor blank",
            fix=f"write these, or leave the column out with {data_setting('ignore', [name])}",
        )
    return kept


def _match(table: Table, names: Sequence[str], listed: Sequence[str], mistakes: Mistakes) -> None:
    for name in names:
        if name not in listed:
            mistakes.add(f"the list of classes has no {name!r}{did_you_mean(name, listed)}", column=name)
    for name in listed:
        if name not in names:
            mistakes.add(f"there is no column for the class {name!r}{did_you_mean(name, names)}")


def _label_cells(table: Table, listed: ClassNames | None, mistakes: Mistakes, *, separator: str) -> Labels:
    """A column of names; classes are those of the list, or those with marks in order and then all others, sorted."""
    known = listed.names if listed else ()
    cells = table.column("labels")
    for one in table.rows:
        if "labels" not in one.cells:
            mistakes.add("it is missing; write [] for none, null for unknown", line=one.line, column="labels")
    marks = {row: _marks(cell, table.lines[row], mistakes) for row, cell in enumerate(cells) if isinstance(cell, dict)}
    rest = [row for row in range(len(cells)) if row not in marks]
    column = read_label_column(
        [cells[row] for row in rest],
        mistakes=mistakes,
        lines=[table.lines[row] for row in rest],
        separator=separator,
        names=known,
    )
    if column.vectors and not marks:
        return Labels(known, column.vectors, column.form)
    if column.vectors:
        mistakes.refuse("some labels are vectors and others are objects; use one form")
    named = dict(zip(rest, column.labels, strict=True))
    ordered = dict.fromkeys(name for own in marks.values() for name in own)
    texts = sorted({name for own in named.values() for name in own or ()} - ordered.keys())
    names = known or (*ordered, *texts)
    _refuse_numbers(names, mistakes)
    values = []
    for row, line in enumerate(table.lines):
        own = marks[row] if row in marks else dict.fromkeys(named[row] or (), 1)
        for name in own:
            if name not in names:
                mistakes.add(f"there is no class {name!r}{did_you_mean(name, names)}", line=line, column="labels")
        rest_value = UNKNOWN if row in marks or named[row] is None else 0
        values.append([own.get(name, rest_value) for name in names])
    form = "objects of names with 1, 0 or null" if len(marks) == len(cells) else column.form
    return Labels(tuple(names), values, form, (*column.remarks, *_empty_cells(table)))


def _empty_cells(table: Table) -> Iterator[str]:
    """How many cells are empty, which may be images that nobody has labelled yet."""
    cells = table.column("labels")
    empty = [line for cell, line in zip(cells, table.lines, strict=True) if isinstance(cell, str) and not cell.strip()]
    if empty:
        images = plural(len(cells), "image")
        has = f"{images} has" if len(empty) == 1 else f"{images} have"
        yield (
            f"{table.path}: {len(empty):,} of {has} an empty cell in 'labels' (the first in line {empty[0]}): every "
            "class counts as absent there, in training and in scores. Leave out the rows of images that are not "
            "labelled yet."
        )


def _marks(cell: Mapping[str, object], line: int, mistakes: Mistakes) -> dict[str, int]:
    """The labels of a JSON object: names with 1, 0 or null for unknown."""
    found: dict[str, int] = {}
    for spelling, value in cell.items():
        name, mark = normal_name(spelling), truth(value)
        if not name or name in found or mark is None:
            what = "a class has an empty name" if not name else f"{value!r} of {name!r} is neither 1, 0 nor null"
            mistakes.add(f"{name!r} stands twice" if name in found else what, line=line, column="labels")
        else:
            found[name] = mark
    return found


def _refuse_numbers(names: Sequence[str], mistakes: Mistakes) -> None:
    if names and all(class_number(name) is not None for name in names):
        mistakes.add(
            f"the labels are numbers, {names[0]!r} for one; list the names of the classes, from 0 on, in a classes.txt "
            "beside the table, and write names or vectors of 0 and 1",
            column="labels",
        )
