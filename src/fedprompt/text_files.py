"""Text files of any usual encoding, strict JSON and TOML: the one reader of each, with limits on what it reads."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

from fedprompt.errors import UserError, wording
from fedprompt.file_system import LARGEST_FILE, read_bytes

DEEPEST = 64  # levels of lists and objects; code that recurses over values must not reach Python's own limit
MOST_KEYS = 100_000_000  # of all objects of a text, unless a reader states another limit
MOST_DIGITS = 300  # of an integer
LARGEST_NUMBER = 1e300  # the sum of larger ones, or a margin beside them in a figure, is more than a float holds
MOST_TABLES = 10_000  # of a TOML file; the library takes a second for so many
LARGEST_TOML = 1 << 20  # bytes; a recipe of a hundred trials needs a tenth of it
# A key of more parts than `DEEPEST`, for which `tomllib` takes time and memory by the square of their number. It is
# looked for at the beginning of words only, so that one long word is read once.
_HEADER = re.compile(r"^[ \t]*\[", re.MULTILINE)  # of a table, or a list on a line of its own
_LONG_KEY = re.compile(rf"""(?<![\w-])(?>(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{DEEPEST}}}""")
# Shapes of numbers that may be too large, after `_SHAPE` has made every digit a 0.
_LARGE_NUMBERS = (b"0" * MOST_DIGITS, b"0e000", b"0e+000")
_SHAPE = bytes.maketrans(b"123456789E", b"000000000e")
_STEPS = tuple((byte in b"[{") - (byte in b"]}") for byte in range(256))
_NO_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'"[]{}')
Tables = dict[str, Any]  # the content of a JSON object or of a TOML file
LINE_ENDS = re.compile("\r\n|\n|\r")  # `splitlines` cuts at form feeds and eight other characters too


def read_text(path: Path, *, most: int = LARGEST_FILE) -> tuple[str, str, tuple[str, ...]]:
    """A text file's content, its encoding in words, and remarks.

    Understood are UTF-8 and UTF-16, each with or without a byte order mark; what is neither is read as Windows-1252,
    and a remark shows a word of it. Raises UserError for a file that cannot be read, is not text or has more than
    `most` bytes.
    """
    content = read_bytes(path, most=most)
    encoding, name = _encoding(content, path)
    text = content.decode(encoding)
    if encoding != "cp1252":
        return text.removeprefix("\ufeff"), name, ()
    remark = f"{path} is not UTF-8 and is read as {name}: see that {_example(text)!r} is right, or save it as UTF-8."
    return text, name, (remark,)


def _example(text: str) -> str:
    """The first word that is not ASCII, at most 80 characters of it; a blank of another width if there is none."""
    found = re.search(r"[^\x00-\x7f\s]", text) or re.search(r"[^\x00-\x7f]", text)
    place = found.start() if found else 0
    end, parts = r'[\s,;|"]', (text[max(place - 40, 0) : place], text[place + 1 : place + 40])
    return re.split(end, parts[0])[-1] + text[place] + re.split(end, parts[1])[0]


def read_unicode(path: Path, *, most: int = LARGEST_FILE) -> str:
    """A text file that must be Unicode, as recipes and descriptions must; UserError as `read_text`."""
    text, _, remarks = read_text(path, most=most)
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


def load_json(text: str | bytes, *, most_keys: int = MOST_KEYS, deepest: int = DEEPEST) -> object:
    """Strict JSON of limited depth and numbers of limited size.

    Raises ValueError for what is not JSON, more than `deepest` levels or `most_keys` keys, a key that stands twice in
    an object, NaN and infinity, and numbers beyond `LARGEST_NUMBER`.
    """
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if content.count(b":") > most_keys:  # one follows every key
        raise ValueError(f"it has more than {most_keys:,} keys")
    if content.count(b"[") + content.count(b"{") > deepest and _depth(content) > deepest:
        raise ValueError(f"it is nested more than {deepest} levels deep")
    shape = content.translate(_SHAPE)
    checks: dict[str, Any] = {}
    if any(large in shape for large in _LARGE_NUMBERS):  # a call for every number would double the time
        checks = {"parse_float": _finite, "parse_int": _integer}
    try:
        return json.loads(text, object_pairs_hook=_distinct_keys, parse_constant=_refuse_constant, **checks)
    except RecursionError:  # of a caller that is deep in recursion itself; its traceback is as long
        raise ValueError("it is nested too deep") from None


def load_json_object(text: str | bytes, *, deepest: int = DEEPEST) -> Tables:
    """A JSON object; ValueError for any other value too, as `load_json`."""
    value = load_json(text, deepest=deepest)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _depth(content: bytes) -> int:
    """The levels of lists and objects in a JSON text, counted without parsing it."""
    quoted = content.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_STRUCTURE)
    # A pair of quotes without a bracket between them is a string, or lies between two; either way it may go.
    brackets = re.sub(rb'"[^"]*"?', b"", quoted.replace(b'""', b""))
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


def _distinct_keys(pairs: list[tuple[str, object]]) -> Mapping[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number; write null")


def _finite(word: str) -> float:
    number = float(word)
    if abs(number) > LARGEST_NUMBER:
        raise ValueError(f"{word[:40]} is larger than any number may be; write null")
    return number


def _integer(word: str) -> int:
    if len(word) > MOST_DIGITS:
        raise ValueError(f"{word[:40]} is larger than any number may be; write null")
    return int(word)


def load_toml(text: str) -> Tables:
    """TOML of limited size and depth; ValueError for what is not TOML or beyond the limits."""
    if len(text) > LARGEST_TOML:
        raise ValueError(f"it has more than {LARGEST_TOML:,} characters")
    if len(_HEADER.findall(text)) > MOST_TABLES:
        raise ValueError(f"it has more than {MOST_TABLES:,} tables")
    if _LONG_KEY.search(text):
        raise ValueError(f"it has a key of {DEEPEST} parts or more")
    try:
        tables = tomllib.loads(text)
    except RecursionError:  # its traceback has thousands of lines
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    level: list[object] = [tables]
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _values(value)]
    if level:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    return tables


def _values(value: object) -> Iterable[object]:
    """The values in a table or list."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def data_setting(key: str, value: str | float | Sequence[str]) -> str:
    """How an option of the data is given: "--set data.columns.image=path", in Python `columns={'image': 'path'}`."""
    *tables, last = key.split(".", 1)
    if wording() != "shell":
        if wording() == "settings":
            return f'`{{"data.{key}": {value!r}}}`'
        return f"`{tables[0]}={ {last: value}!r}`" if tables else f"`{key}={value!r}`"
    text = json_text(value, ascii_only=False)
    if tables and not re.fullmatch(r"[^\s.=\"']+", last):  # a dot or a blank in a name is no part of a dotted key
        return f"--set {shlex.quote(f'data.{tables[0]}={{{json_text(last, ascii_only=False)} = {text}}}')}"
    # A text without quotes is taken as it is, unless it reads as a TOML value.
    bare = isinstance(value, str) and re.fullmatch(r"|(?!(true|false|inf|nan)$)([^\W\d]|/|\./)[\w./,:-]*", value)
    return f"--set {shlex.quote(f'data.{key}={value if bare else text}')}"


def source_setting(choice: str) -> str:
    """How another source is named: "--set data.source=class_table", in Python "the source 'class_table'"."""
    return f"--set data.{choice}" if wording() == "shell" else f"the source {choice.partition('=')[2]!r}"
