"""Long fields of events, in Parquet files beside `run.jsonl`: scores per class, values per client, counts of labels.

A field with more than `LONG` entries, or with a row of more, is not in its line: the line's `vectors` names the files
in the folder `vectors` that hold such fields, one column each. A table takes two columns, its keys in `key of FIELD`;
a field of a nested record is called `RECORD/FIELD`; fields of equal length share a file. A file's name ends in a hash
of its content, so equal fields give equal files, whether a run was resumed or not.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import JsonValue

from fedprompt.errors import UserError

FOLDER = "vectors"
LONG = 256  # entries of a field that are written into the line
KEY = "key of "  # prefix of the column with the keys of a table
NAME = re.compile(r"[a-z_]{1,40}-[0-9a-f]{16}\.parquet")
# Limits for files that may come from elsewhere.
LARGEST_FILE = 1 << 28  # bytes, as stored and without compression
MOST_VALUES = 1 << 26

Columns = dict[str, pa.Array]


def split_long(fields: Mapping[str, object]) -> tuple[dict[str, object], dict[str, bytes]]:
    """(the fields of a line, the Parquet files by name): long fields are in the files, which `vectors` names."""
    tables: dict[int, Columns] = {}
    short = _without_long(fields, "", tables)
    files: dict[str, bytes] = {}
    for columns in tables.values():
        content = _parquet(pa.table(columns))
        files[f"{fields['event']}-{_digest(content)}.parquet"] = content
    return (short | {"vectors": list(files)} if files else short), files


def _without_long(fields: Mapping[str, object], place: str, tables: dict[int, Columns]) -> dict[str, object]:
    """The fields without the long ones, which are added to `tables`, the columns by their length."""
    short: dict[str, object] = {}
    for key, value in fields.items():
        name = place + key
        if _is_record(value):
            short[key] = _without_long(value, f"{name}/", tables)  # type: ignore[arg-type]
        elif (columns := _columns(name, value)) is None:
            short[key] = value
        else:
            tables.setdefault(len(columns[name]), {}).update(columns)
    return short


def _is_record(value: object) -> bool:
    """Whether a value is a table with lists or tables in it, whose keys can be parts of a column's name."""
    return (
        isinstance(value, dict)
        and any(isinstance(inner, list | tuple | dict) for inner in value.values())
        and all(isinstance(key, str) and "/" not in key and not key.startswith(KEY) for key in value)
    )


def _columns(name: str, value: object) -> Columns | None:
    """The columns of a long field; None if it is short, or if Parquet would change a value."""
    if not _is_long(value):
        return None
    found: dict[str, object] = {name: _plain(value)}
    if isinstance(value, dict):
        found = {KEY + name: list(value), name: _plain(list(value.values()))}
    try:
        columns = {column: pa.array(values) for column, values in found.items()}
    except (pa.ArrowException, OverflowError):  # values of several types, or too large ones
        return None
    # The texts tell 1 from 1.0 and from True.
    same = all(repr(columns[column].to_pylist()) == repr(values) for column, values in found.items())
    return columns if same else None


def _is_long(value: object) -> bool:
    if isinstance(value, dict):
        return len(value) > LONG
    if isinstance(value, list | tuple):
        return len(value) > LONG or any(isinstance(row, list | tuple) and len(row) > LONG for row in value)
    return False


def _plain(value: object) -> object:
    """The value with lists for tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_statistics=False, store_schema=False)
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def join_long(fields: Mapping[str, JsonValue], read: Callable[[str], bytes]) -> Mapping[str, JsonValue]:
    """The fields of a line with the long ones, whose files `read` returns by name.

    Raises UserError for names that no file of this folder has, and for a file that is damaged or too large.
    """
    joined = dict(fields)
    for name in vector_files(fields):
        for column, value in _read_columns(name, read(name)):
            *records, field = column.split("/")
            target = joined
            for record in records:
                target = _record(target, record, name)
            target[field] = value
    return joined


def _record(fields: dict[str, JsonValue], key: str, name: str) -> dict[str, JsonValue]:
    inner = fields.setdefault(key, {})
    if not isinstance(inner, dict):
        raise UserError(f"The file {name} belongs to another line; restore it from a copy.")
    return inner


def vector_files(fields: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """The names of the files of a line; UserError if one could be the name of a file elsewhere."""
    named = fields.get("vectors", [])
    names = named if isinstance(named, list) else [named]
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(
                f"run.jsonl names the file {str(name)[:80]!r}, which no run writes; restore it from a copy."
            )
    return tuple(map(str, names))


def _read_columns(name: str, content: bytes) -> Iterator[tuple[str, JsonValue]]:
    """(field, its value) of all fields in a file."""
    if _digest(content) not in name:
        raise UserError(f"The file {name} has changed since it was written; restore it from a copy.")
    try:
        file = _open_parquet(content)
        chunks = [
            file.metadata.row_group(group).column(column)
            for group in range(file.metadata.num_row_groups)
            for column in range(file.metadata.num_columns)
        ]
        values = sum(chunk.num_values for chunk in chunks)
        if values > MOST_VALUES or sum(chunk.total_uncompressed_size for chunk in chunks) > LARGEST_FILE:
            raise UserError(f"The file {name} holds more than any run writes; restore it from a copy.")
        texts = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
        table = _open_parquet(content, read_dictionary=texts).read(use_threads=False)
        columns = {column: _values(table[column].combine_chunks()) for column in table.column_names}
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"The file {name} cannot be read as Parquet ({error}); restore it from a copy.") from error
    for column, found in columns.items():
        if column.startswith(KEY):
            continue
        keys = columns.get(KEY + column)
        yield column, found if keys is None else dict(zip(keys, found, strict=True))  # type: ignore[arg-type]


def _open_parquet(content: bytes, **options: Sequence[str]) -> pq.ParquetFile:
    """A Parquet file in memory, read by the calling thread alone.

    Arrow's threads may let go of a Python buffer while the interpreter ends, which aborts the process.
    """
    return pq.ParquetFile(pa.BufferReader(content), pre_buffer=False, **options)


def _values(column: pa.Array) -> list[JsonValue]:
    if not pa.types.is_dictionary(column.type):
        return list(column.to_pylist())
    # Equal texts are one object, so that class names of many events take the memory of one.
    texts: Sequence[str] = [sys.intern(text) for text in column.dictionary.to_pylist()]
    return [None if place is None else texts[place] for place in column.indices.to_pylist()]
