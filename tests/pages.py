"""The repository's Markdown pages in parts: fenced blocks with their marks, prose lines, and commands in both."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = tuple(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))
PAGES += tuple(sorted((ROOT / "docs").rglob("*.md")))
MARK = re.compile(r"<!-- (not run|not checked): (.+?) -->")
SHELL = ("", "sh", "bash", "console")


@dataclass(frozen=True)
class Block:
    """A fenced block; `mark` is what the comment just above it says, e.g. ("not run", "needs a GPU")."""

    page: Path
    line: int
    language: str
    text: str
    mark: tuple[str, str] = ("", "")

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command line of a page; `whole` if it can be typed as it stands, false for a mention in prose."""

    place: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.place}: {' '.join(self.words)}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page; raises AssertionError if one is not closed."""
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    text: list[str] = []
    mark = ("", "")
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            if opened is None:
                opened, text = (number, line[3:].strip()), []
            else:
                found.append(Block(page, *opened, "\n".join(text) + "\n", mark))
                opened, mark = None, ("", "")
        elif opened is not None:
            text.append(line)
        elif line.strip():
            said = MARK.fullmatch(line.strip())
            mark = (said[1], said[2]) if said else ("", "")
    assert opened is None, f"{page.name}: the block of line {opened and opened[0]} is not closed"
    return found


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) outside fenced blocks and tables."""
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            inside = not inside
        elif not inside and not line.startswith("|"):
            yield number, line


def text_outside_blocks(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names by which links reach a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text_outside_blocks(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> Iterator[Command]:
    """Every command line of a page: those in shell blocks, and mentions in `code` that begin with a program we know."""
    for block in blocks(page):
        if block.language in SHELL and block.mark[0] != "not checked":
            for offset, line in enumerate(_logical_lines(block.text), start=1):
                yield from _split(f"{block.page.relative_to(ROOT).as_posix()}:{block.line + offset}", line, whole=True)
    name = page.relative_to(ROOT).as_posix()
    for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text_outside_blocks(page)):
        yield from _split(name, " ".join(code.split()), whole=False)


def _logical_lines(text: str) -> list[str]:
    return text.replace("\\\n", " ").splitlines()


def _split(place: str, line: str, *, whole: bool) -> Iterator[Command]:
    """The simple commands of a shell line; what is no shell (a tree of files, a table) gives none."""
    for part in re.split(r"&&|;", line):
        part = re.sub(r"^\s*(\$ |do )?\s*", "", part)
        part = part.removeprefix(".venv/bin/")
        if not re.match(r"(fedprompt|python3?|pip|pytest|ruff|mypy)( |$)", part):
            continue
        words = shlex.split(re.sub(r"\$seed\b", "1", part), comments=True)
        yield Command(place, tuple(words), whole)
