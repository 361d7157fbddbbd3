"""Make the pages that come from the code: deviations, methods, and the README's map (`--check` only compares)."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import method_pages as pages_of  # beside this file

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "fedprompt"
MAP = re.compile(r"(<!-- map -->\n).*?(<!-- end of map -->)", re.DOTALL)

DEVIATIONS = """# Where we differ, and why

Every place where this code does something else than a paper or its released code carries a `# differs:` comment.
This page is made from those comments by `python docs/collect.py`; edit the comments, not the page.
"""

METHODS = """# Methods

Each has a page with its equation, what is implemented and what differs, its parameters and options (made by
`python docs/collect.py` from its file). How they are compared is in [protocols.md](protocols.md), where they differ
from papers and releases in [deviations.md](deviations.md), how to add one in [adding_a_method.md](adding_a_method.md).

| method | what it is | trained at ViT-B/16 |
| --- | --- | --- |
"""


def remarks(source: str) -> list[str]:
    """Return the `# differs:` remarks of one file, continuation comment lines joined."""
    found: list[str] = []
    open_remark = False
    for line in source.splitlines():
        comment = re.search(r"#\s?(.*)$", line)
        if comment and comment[1].startswith("differs:"):
            found.append(comment[1].removeprefix("differs:").strip())
            open_remark = True
        elif open_remark and re.match(r"\s*#", line) and comment:
            found[-1] += " " + comment[1].strip()
        else:
            open_remark = False
    return found


def deviations() -> str:
    """The text of docs/deviations.md."""
    parts = [DEVIATIONS]
    for path in sorted(SOURCE.rglob("*.py")):
        if found := remarks(path.read_text(encoding="utf-8")):
            parts.append(f"\n## `{path.relative_to(ROOT).as_posix()}`\n\n" + "".join(f"- {text}\n" for text in found))
    return "".join(parts)


def first_sentence(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def methods() -> str:
    """The text of docs/methods.md: a row a method."""
    rows = []
    for path in sorted((SOURCE / "methods").glob("*.py")):
        if path.stem in pages_of.available():
            count = f"{pages_of.parameters(path.stem):,}"
            rows.append(f"| [`{path.stem}`](methods/{path.stem}.md) | {first_sentence(path)} | {count} |\n")
    return METHODS + "".join(rows)


def method_pages() -> dict[Path, str]:
    """docs/methods/: a page and a picture a method."""
    found = {}
    for name in pages_of.available():
        said = remarks((SOURCE / "methods" / f"{name}.py").read_text(encoding="utf-8"))
        found[pages_of.FOLDER / f"{name}.md"] = pages_of.page(name, said)
        found[pages_of.FOLDER / f"{name}.svg"] = pages_of.picture(name)
    return found


def tree() -> str:
    """The README's map: every source file with its docstring's first sentence, folder by folder."""
    lines = ["```\n"]
    for folder in sorted({path.parent for path in SOURCE.rglob("*.py")}):
        files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        package = folder / "__init__.py"
        lines.append(f"{folder.relative_to(ROOT).as_posix()}/  {first_sentence(package)}\n")
        lines += [f"    {path.name:<16} {first_sentence(path)}\n" for path in files]
    return "".join([*lines, "```\n"])


def pages() -> dict[Path, str]:
    """Every generated page with the text it should have."""
    readme = ROOT / "README.md"
    mapped = MAP.sub(lambda found: found[1] + tree() + found[2], readme.read_text(encoding="utf-8"))
    listed = {ROOT / "docs" / "deviations.md": deviations(), ROOT / "docs" / "methods.md": methods(), readme: mapped}
    return listed | method_pages()


def stale() -> list[str]:
    """Names of generated pages that are not what the code says."""
    found = pages().items()
    return [path.name for path, text in found if not path.exists() or path.read_text(encoding="utf-8") != text]


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(f"Stale: {', '.join(stale())}; run `python docs/collect.py`." if stale() else 0)
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
