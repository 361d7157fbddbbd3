"""Make the pages that come from the code: deviations, methods, and the README's map (`--check` only compares)."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "fedprompt"
MAP = re.compile(r"(<!-- map -->\n).*?(<!-- end of map -->)", re.DOTALL)

DEVIATIONS = """# Where we differ, and why

Every place where this code does something else than a paper or its released code carries a `# differs:` comment.
This page is made from those comments by `python docs/collect.py`; edit the comments, not the page.
"""

METHODS = """# Methods

What each method is, its equation and its options, as its file says it (made by `python docs/collect.py`).
How they are compared is in [protocols.md](protocols.md), where they differ from papers and releases in
[deviations.md](deviations.md), how to add one in [adding_a_method.md](adding_a_method.md).
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
    """The text of docs/methods.md: module and class docstrings of every method file."""
    parts = [METHODS]
    for path in sorted((SOURCE / "methods").glob("*.py")):
        if path.stem in {"__init__", "base"}:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kind = next(node for node in tree.body if isinstance(node, ast.ClassDef) and ast.get_docstring(node))
        body = inspect.cleandoc(ast.get_docstring(kind) or "")
        named = "|".join(
            option.arg for node in kind.body if isinstance(node, ast.FunctionDef) for option in node.args.kwonlyargs
        )
        listed = re.sub(rf"^({named}): ", r"- `\1`: ", body, flags=re.MULTILINE) if named else body
        parts.append(f"\n## `{path.stem}`\n\n{first_sentence(path)}\n\n{listed}\n")
    return "".join(parts)


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
    return {ROOT / "docs" / "deviations.md": deviations(), ROOT / "docs" / "methods.md": methods(), readme: mapped}


def stale() -> list[str]:
    """Names of generated pages that are not what the code says."""
    found = pages().items()
    return [path.name for path, text in found if not path.exists() or path.read_text(encoding="utf-8") != text]


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(f"Stale: {', '.join(stale())}; run `python docs/collect.py`." if stale() else 0)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
