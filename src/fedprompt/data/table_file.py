"""Reading of text tables (CSV, TSV, JSONL), with errors that name file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from fedprompt.errors import UserError


def read_table_text(path: Path, *, formats: str) -> str:
    """The text of a table, without a byte order mark; UserError naming the `formats` that can be read."""
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte order mark in front
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"The table {path} cannot be read ({reason}); give the path of a {formats} file.") from error


def json_lines(path: Path, text: str, *, example: str) -> Iterator[tuple[int, MutableMapping[str, Any]]]:
    """Line number and object of every non-empty line; UserError with an example for a line that is not an object."""
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except ValueError as error:
            raise UserError(f"{path}, line {line}: this is not JSON ({error}); correct the line.") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {line}: this is not an object; write {example}.")
        yield line, value


def read_lines(path: Path, *, what: str, hint: str) -> list[str]:
    """The non-empty lines of a text file, stripped; UserError that calls the file `what` and ends with `hint`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} cannot be read ({error}); {hint}.") from error
    return [line.strip() for line in lines if line.strip()]
