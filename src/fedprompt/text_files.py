"""Text files of any usual encoding, and strict JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import NoReturn

from fedprompt.errors import UserError
from fedprompt.file_system import read_bytes

DEEPEST = 64  # levels of lists and objects in JSON
LARGEST_INTEGER = 2**64 - 1
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?')
LINE_ENDS = re.compile("\r\n|\n|\r")  # `splitlines` cuts at form feeds and eight other characters too


def read_text(path: Path) -> tuple[str, str, tuple[str, ...]]:
    """A text file's content, its encoding in words, and remarks.

    Understood are UTF-8 and UTF-16, each with or without a byte order mark; what is neither is read as Windows-1252,
    and a remark shows a word of it. Raises UserError for a file that cannot be read or is not text.
    """
    content = read_bytes(path)
    encoding, name = _encoding(content, path)
    text = content.decode(encoding)
    if encoding != "cp1252":
        return text.removeprefix("\ufeff"), name, ()
    example = next(word for word in re.split(r'[\s,;|"]+', text) if not word.isascii())
    return (
        text,
        name,
        (f"{path} is not UTF-8 and is read as {name}: see that {example!r} is right, or save it as UTF-8.",),
    )


def read_unicode(path: Path) -> str:
    """A text file that must be Unicode, as recipes and descriptions must; UserError for one that is not."""
    text, _, remarks = read_text(path)
    if remarks:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.")
    return text


def _encoding(content: bytes, path: Path) -> tuple[str, str]:
    kinds = {b"PK\x03\x04": "an Excel workbook", b"\xd0\xcf\x11\xe0": "an old Excel workbook", b"PAR1": "Parquet"}
    for magic, kind in kinds.items():
        if content.startswith(magic):
            raise UserError(f"{path} is {kind}, not text; save it as CSV (UTF-8).")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _checked(content, ("utf-16", "UTF-16"), path)
    if b"\0" in content:
        for encoding, zeros in (("utf-16-le", content[1::2]), ("utf-16-be", content[::2])):
            if zeros.count(0) > len(content) // 4:
                return _checked(content, (encoding, "UTF-16"), path)
        raise UserError(f"{path} is not text; give a table or save it as CSV (UTF-8).")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return _checked(content, ("cp1252", "Windows-1252"), path)
    return "utf-8", "UTF-8"


def _checked(content: bytes, encoding: tuple[str, str], path: Path) -> tuple[str, str]:
    try:
        content.decode(encoding[0])
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is text in no encoding that is known here; save it as UTF-8.") from error
    return encoding


def json_text(value: object, *, indent: int | None = None, ascii_only: bool = True, sort_keys: bool = False) -> str:
    """Strict JSON, as every file and message is written: ValueError for NaN and infinity, which JSON does not have."""
    return json.dumps(value, indent=indent, ensure_ascii=ascii_only, sort_keys=sort_keys, allow_nan=False)


def load_json(text: str) -> object:
    """Strict JSON of limited depth and numbers of limited size.

    Raises ValueError also for more than `DEEPEST` levels, a key that stands twice in an object, NaN and infinity,
    numbers that a float cannot hold and integers of more than 64 bits.
    """
    levels = accumulate(1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)))
    if max(levels, default=0) > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    return json.loads(
        text,
        object_pairs_hook=_distinct_keys,
        parse_constant=_refuse_constant,
        parse_float=_finite,
        parse_int=_integer,
    )


def _finite(word: str) -> float:
    number = float(word)
    if math.isinf(number):
        raise ValueError(f"{word[:40]} is larger than any number; write null")
    return number


def _integer(word: str) -> int:
    if len(word) > 21 or abs(int(word)) > LARGEST_INTEGER:
        raise ValueError(f"the integer {word[:40]} has more than 64 bits")
    return int(word)


def _distinct_keys(pairs: list[tuple[str, object]]) -> Mapping[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number; write null")
