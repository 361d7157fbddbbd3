"""The page on users' files: every example is written to files and checked, and every test that it names exists."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from fedprompt.data.intake.image_files import has_image_name
from pages import ROOT
from test_cli import call
from test_cli_check import pixel

PAGE = ROOT / "docs" / "your_files.md"
EXAMPLE = re.compile(r"^```text\n(.*?)^```\n\n((?:> [^\n]*\n)+)", flags=re.DOTALL | re.MULTILINE)


def examples() -> list[tuple[str, str]]:
    """Every tree of files on the page, with what is said of it."""
    return [(tree, quote.replace("> ", "").strip()) for tree, quote in EXAMPLE.findall(PAGE.read_text("utf-8"))]


def write(root: Path, tree: str) -> Path:
    """Write a tree: a path per line, and the file's content in the indented lines below; the table, or the folder."""
    files: dict[str, list[str]] = {}
    for line in tree.splitlines():
        if line.startswith("    "):
            files[list(files)[-1]].append(line[4:])
        else:
            files[line] = []
    for name, lines in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name, lines))
    return next((root / name for name in files if name.endswith((".csv", ".jsonl"))), root)


def content(name: str, lines: list[str]) -> bytes:
    if has_image_name(name):
        return pixel(name)
    return archive(dict(members(lines))) if name.endswith(".tar") else "\n".join(lines).encode()


def members(lines: list[str]) -> Iterator[tuple[str, bytes]]:
    for line in lines:
        name, _, text = line.partition(" ")
        yield name, text.encode() or pixel(name)


def archive(files: Mapping[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as opened:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            opened.addfile(about, io.BytesIO(data))
    return written.getvalue()


def test_there_is_an_example_of_every_form() -> None:
    assert len(examples()) == PAGE.read_text("utf-8").count("```text") >= 11


@pytest.mark.parametrize(("tree", "said"), examples(), ids=[tree.split("\n")[0] for tree, _ in examples()])
def test_an_example_is_read_or_refused_as_the_page_says(tmp_path: Path, tree: str, said: str) -> None:
    place = write(tmp_path, tree)
    refused = said.startswith("Refused: ")
    # Labels may be in a folder that holds a table: the folder is what that example is about.
    place = tmp_path if "holds all its images" in said else place
    found = json.loads(call("check", place, "--json", code=2 if refused else 0))["checked"][0]
    if not refused:
        assert found["summary"] == said
        return
    error = re.sub(r"\s+", " ", found["error"].replace(f"{tmp_path}/", "").replace(str(tmp_path), "."))
    assert error.startswith(re.sub(r"\s+", " ", said.removeprefix("Refused: ")))


def test_every_test_that_the_page_names_exists() -> None:
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", tests, flags=re.MULTILINE))
    named = re.findall(r"`(test_\w+)`", PAGE.read_text("utf-8"))
    assert len(named) > 30 and sorted(set(named) - known) == []
