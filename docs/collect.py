"""Write docs/deviations.md from the `# differs:` comments of the source: `python docs/collect.py` (`--check` only compares)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "deviations.md"
HEAD = """# Where we differ, and why

Every place where this code does something else than a paper or its released code carries a `# differs:` comment.
This page is made from those comments by `python docs/collect.py`; edit the comments, not the page.
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


def page() -> str:
    """Return the text that docs/deviations.md should have."""
    parts = [HEAD]
    for path in sorted((ROOT / "src").rglob("*.py")):
        if found := remarks(path.read_text(encoding="utf-8")):
            parts.append(f"\n## `{path.relative_to(ROOT).as_posix()}`\n\n" + "".join(f"- {text}\n" for text in found))
    return "".join(parts)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text(encoding="utf-8") != page() and "docs/deviations.md is stale; run `python docs/collect.py`.")
    PAGE.write_text(page(), encoding="utf-8")
