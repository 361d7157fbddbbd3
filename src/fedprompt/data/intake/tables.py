"""Tables as people export them: CSV with any delimiter and encoding, and JSON Lines, with true line numbers."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedprompt.data.intake.class_names import normal_name
from fedprompt.data.intake.report import Mistakes
from fedprompt.errors import UserError, did_you_mean
from fedprompt.text_files import LINE_ENDS, load_json, read_text

DELIMITERS: Mapping[str, str] = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson")
LINES_OF_JSON = (".jsonl", ".ndjson")
LARGEST_TABLE = 1 << 30  # bytes
MOST_COLUMNS = 100_000
MOST_CELLS = 50_000_000  # of a table, or keys of all JSON lines; a table of ImageNet's 14 million images has 42 million


@dataclass(frozen=True, eq=False)
class CsvCells(Mapping[str, object]):
    """The cells of one row by the names of their columns; all rows share `places`, the position of each column."""

    places: Mapping[str, int]
    cells: Sequence[str]

    def __getitem__(self, name: str) -> object:
        return self.cells[self.places[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Row:
    """One row; `line` is the first line of the file that it stands in, `cells` are text in CSV and values in JSON."""

    line: int
    cells: Mapping[str, object]


@dataclass(frozen=True)
class Table:
    """A table as it was read; `form` says how in words, `remarks` what is worth a look."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    form: str
    remarks: tuple[str, ...] = ()
    headings: Mapping[str, str] = field(default_factory=dict)  # our name -> that in the file, where they differ

    @property
    def lines(self) -> tuple[int, ...]:
        """The line of every row."""
        return tuple(row.line for row in self.rows)

    def without(self, names: Collection[str]) -> Table:
        """The table without some columns; UserError for one that it does not have."""
        mistakes = Mistakes(self.path)
        for name in names:
            if name not in self.columns:
                mistakes.add(f"`ignore` names {name!r}, and there is no such column{did_you_mean(name, self.columns)}")
        mistakes.check(fix="name columns of the table")
        if not names:
            return self
        rows = (
            replace(row, cells={own: cell for own, cell in row.cells.items() if own not in names}) for row in self.rows
        )
        return replace(self, columns=tuple(own for own in self.columns if own not in names), rows=tuple(rows))

    def column(self, name: str) -> list[object]:
        """The cells of a column, None where a JSON line has no such key."""
        return [row.cells.get(name) for row in self.rows]


def read_rows(path: Path, mistakes: Mistakes) -> Table:
    """The table with the names of the file for its columns; rows that cannot be read are noted and left out."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is none of {' '.join(SUFFIXES)}; give a table in one of these forms.")
    text, encoding, remarks = read_text(path, most=LARGEST_TABLE)
    if path.suffix.lower() in LINES_OF_JSON:
        rows = tuple(_json_rows(path, text, mistakes))
        names = dict.fromkeys(name for row in rows for name in row.cells)
        return Table(path, tuple(names), rows, f"JSON Lines in {encoding}", remarks)
    return _csv_table(path, text, (encoding, remarks), mistakes)


def is_table(path: Path) -> bool:
    """Whether a path is a file with the name of a table."""
    return path.is_file() and path.suffix.lower() in SUFFIXES


def column_names(path: Path) -> frozenset[str]:
    """The names of a table's columns in lower case, from its first line alone; empty for what is no table."""
    if not is_table(path):
        return frozenset()
    text = read_text(path, most=LARGEST_TABLE)[0].lstrip()
    head = LINE_ENDS.split(text)[int(text[:4].lower() == "sep=") :][:1]
    if path.suffix.lower() not in LINES_OF_JSON:
        return frozenset(cell.strip().lower() for line in head for cell in re.split('[,;\t|"]', line))
    try:
        value = load_json("".join(head))
    except ValueError:
        return frozenset()
    return frozenset(map(str.lower, value)) if isinstance(value, dict) else frozenset()


def _json_rows(path: Path, text: str, mistakes: Mistakes) -> Iterator[Row]:
    if text.lstrip().startswith("["):
        raise UserError(f"{path} is one JSON list; write one object per line, without brackets around them.")
    _check_cells(path, text.count(":"))
    # Not `splitlines`: U+2028 and U+0085 may stand inside a JSON text as they are.
    for line, content in enumerate(LINE_ENDS.split(text), start=1):
        if content.strip():
            try:
                value = load_json(content)
            except ValueError as error:
                mistakes.add(f"this is not JSON ({error})", line=line)
                continue
            if isinstance(value, dict):
                yield Row(line, value)
            else:
                mistakes.add('this is not an object; write {"image": "a.jpg", "label": "dog"}', line=line)


def _csv_table(path: Path, text: str, about: tuple[str, tuple[str, ...]], mistakes: Mistakes) -> Table:
    """The table in a text; `about` are its encoding in words, and remarks on it."""
    skipped = 0
    if hint := text.split("\n", 1)[0].strip() if text[:4].lower() == "sep=" else "":  # a line of Excel's own
        text, skipped = text.partition("\n")[2], 1
    delimiter = hint[4:] if len(hint) == 5 else _delimiter(path, text)
    records = list(csv_records(path, text, delimiter, skipped=skipped))
    if not records:
        raise UserError(f"The table {path} is empty; write a line of column names and a line per image.")
    (line, head), *others = records
    rest, wider = _fitting(others, len(head), mistakes)
    kept, left_out = _columns(path, head, [cells for _, cells in rest])
    if wider:
        left_out.append(f"{path}: empty cells after the last column are left out, in line {wider[0]} for one.")
    names = tuple(normal_name(head[place]) for place in kept)
    _check_head(path, line, names)
    places = dict(zip(names, kept, strict=True))  # one for all rows: a dictionary per row takes five times the memory
    rows = (Row(number, CsvCells(places, cells)) for number, cells in rest)
    form = f"a table with {DELIMITERS.get(delimiter, repr(delimiter))} in {about[0]}"
    return Table(path, names, tuple(rows), form, (*about[1], *left_out))


def _fitting(
    records: Sequence[tuple[int, list[str]]], width: int, mistakes: Mistakes
) -> tuple[list[tuple[int, list[str]]], list[int]]:
    """The records that have as many cells as there are columns, or empty ones beyond, and the lines of the latter."""
    fitting, wider = [], []
    for line, cells in records:
        if len(cells) < width or any(cells[width:]):
            last = next((cell for cell in reversed(cells) if cell), "")
            fix = "add or drop some, or put quotes around a cell with the delimiter in it"
            mistakes.add(f"there are {len(cells)} cells, not {width}, the last one {last!r}", line=line, fix=fix)
            continue
        fitting.append((line, cells if len(cells) == width else cells[:width]))
        wider += [line] * (len(cells) > width)
    return fitting, wider


def _delimiter(path: Path, text: str) -> str:
    """What cuts the first line into most cells, outside quotes; a comma if nothing does."""
    start = text.lstrip()
    cells = {sign: _width(start, sign) for sign in DELIMITERS}
    preferred = "\t" if path.suffix.lower() == ".tsv" else ","
    return max(cells, key=lambda sign: (cells[sign], sign == preferred))


def _width(text: str, delimiter: str) -> int:
    """The number of cells of the first record; 0 if it cannot be read."""
    try:
        return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []))
    except csv.Error:
        return 0


def csv_records(path: Path, text: str, delimiter: str, *, skipped: int = 0) -> Iterator[tuple[int, list[str]]]:
    """The line in which each record of a CSV text begins, and its cells; records without content are left out.

    `skipped` lines stand before the text. Raises UserError naming the line for what is not CSV or a cell of more than
    128 kB, and for more than `MOST_CELLS` cells.
    """
    _check_cells(path, text.count(delimiter))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield start + skipped, [cell.strip() for cell in cells]
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {start + skipped}: this is not CSV ({error}); correct the line.") from error


def _check_cells(path: Path, count: int) -> None:
    if count > MOST_CELLS:
        raise UserError(f"The table {path} has more than {MOST_CELLS:,} cells; divide it.")


def _columns(path: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[int], list[str]]:
    """Places of the columns that count, and remarks on those that do not."""
    own = [cells for cells in rows if len(cells) == len(head)]
    kept = list(range(len(head)))
    remarks = []
    while kept and not head[kept[-1]] and not any(cells[kept[-1]] for cells in own):
        kept.pop()
    if len(kept) < len(head):
        remarks.append(f"{path}: {len(head) - len(kept)} empty columns at the end are left out.")
    if kept and head[0] in ("", "Unnamed: 0") and [cells[0] for cells in own] == [str(row) for row in range(len(own))]:
        kept.pop(0)
        remarks.append(f"{path}: the first column only counts rows and is left out.")
    return kept, remarks


def _check_head(path: Path, line: int, names: Sequence[str]) -> None:
    if len(names) > MOST_COLUMNS:
        raise UserError(f"The table {path} has more than {MOST_COLUMNS:,} columns; divide it.")
    mistakes, counts, seen = Mistakes(path), Counter(names), set()
    for place, name in enumerate(names, start=1):
        if not name:
            mistakes.add(f"column {place} has no name", line=line)
        elif name in seen:
            mistakes.add(f"{name!r} stands {counts[name]} times", line=line)
        seen.add(name)
    mistakes.check(fix="give each column a name of its own")
