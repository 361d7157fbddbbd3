"""What the generators of pages share: where the repository is, first lines of docstrings, and wrapped prose."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "fedprompt"
WIDTH = 140  # of prose in generated pages


def first_sentence(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def wrapped(text: str, *, indent: str = "") -> str:
    """A paragraph in lines of at most `WIDTH` characters; words, links and code are never broken."""
    kept = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", "\0"), text)
    lines = textwrap.fill(kept, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def bullet(text: str) -> str:
    """A paragraph as an entry of a list, with the end of its line."""
    return wrapped(f"- {text}", indent="  ") + "\n"


def cell(text: str) -> str:
    """Text in a cell of a table: on one line, its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")
