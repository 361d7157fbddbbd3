"""Make what comes from the code: deviations, methods, data sets, experiments, the README's map (`--check` compares)."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from fedprompt.cli.data import PICTURES
from fedprompt.data.published.catalog import CatalogEntry, catalog, layout_options
from fedprompt.studies import published

sys.path.insert(0, str(Path(__file__).resolve().parent))

import method_pages as pages_of  # beside this file

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "fedprompt"

DEVIATIONS = """# Where we differ, and why

Every place where this code does something else than a paper or its released code carries a `# differs:` comment.
This page is made from those comments by `python -m tools.collect`; edit the comments, not the page.
"""

METHODS = """# Methods

Each has a page with its equation, what is implemented and what differs, its parameters and options (made by
`python -m tools.collect` from its file). How they are compared is in [protocols.md](protocols.md), where they differ
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


def overview() -> str:
    """A row a data set: what it is, how large, and on which terms."""
    lines = ["| name | data set | classes | train / val / test | on disk | licence |", "|---|---|---|---|---|---|"]
    for name, row in catalog().items():
        kind = ", many labels" * (row.kind == "multi")
        cells = (f"[`{name}`](#{name})", row.title, f"{row.classes:,}{kind}", numbers(row), row.size, row.licence)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def numbers(row: CatalogEntry) -> str:
    """Pictures by split, or by domain where no split was published."""
    if row.counts and set(row.counts) <= {"train", "val", "test"}:
        return " / ".join(f"{row.counts[word]:,}" if word in row.counts else "-" for word in ("train", "val", "test"))
    parts = row.counts or row.domains
    said = ", ".join(f"{word} {count:,}" for word, count in parts.items() if word)
    return said or (f"{sum(parts.values()):,}" if parts else "not published")


def datasets() -> str:
    """A section a data set: where it is from, how it lies on disk, how it is asked about, and what to mind."""
    return "\n".join(section(name, row) for name, row in catalog().items())


def section(name: str, row: CatalogEntry) -> str:
    """One data set's row of the table, in words."""
    spoken = f"Prompt: `{row.template}`"
    spoken += "".join(f"; {domain}: `{text}`" for domain, text in row.templates.items())
    spoken += "".join(f"; for {key} `{text}`" for key, text in row.prompts.items())
    own = [option for option in layout_options(row) if option not in row.options]
    lines = [
        f"### {name}\n\n{row.title}, {row.size}. Get it: {row.origin}. Licence: {row.licence}.\n",
        f"```\n{row.tree.rstrip()}\n```\n",
        *(f"- {trap}" for trap in row.traps),
        *([f"- On the Hub: `{row.hub.id}`. {row.hub.caution}"] if row.hub else []),
        f"\n{spoken}{'.' * (not spoken.endswith('`'))} Options: {', '.join(f'`{one}`' for one in own) or 'none'}.",
        f"{row.sources}\n",
    ]
    return "\n".join(lines)


def experiments() -> str:
    """A row an experiment: its command, its size and time, and what it is to reach."""
    lines = [
        f"| experiment | runs | pictures at most | hours at {PICTURES:g}/s | to reach | mind |",
        "|---|---|---|---|---|---|",
    ]
    for name, about in published.experiments().items():
        runs, each = len(about.variants) * len(about.seeds), published.pictures(about) * len(about.seeds)
        goals = "<br>".join(published.targets(about)) or "no figure was recovered"
        lines.append(f"| `{name}` | {runs} | {each:,.0f} | {each / PICTURES / 3600:,.1f} | {goals} | {about.remark} |")
    return "\n".join(lines) + "\n"


def compared(first: str, columns: Sequence[str]) -> str:
    """Some columns of the table on the page of the comparison whose second column is `first`."""
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    lines = re.search(rf"^\| method \| {first} .*?(?=\n\n)", page, re.DOTALL | re.MULTILINE)
    assert lines is not None, f"docs/comparison.md has no table of {first}"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[0].splitlines()]
    places = [rows[0].index(column) for column in columns]
    return "".join(f"| {' | '.join(row[place] for place in places)} |\n" for row in rows)


COSTS = ("parameters", "sent", "seconds")
ONE = ("method", "Local", "Base", "New", "HM", "Unseen", *COSTS)
MANY = ("method", "Natural mAP", "Natural CF1", "Natural OF1", "Broken mAP", "Gap", *COSTS)
PARTS = {
    ("README.md", "map"): tree,
    ("README.md", "one label"): lambda: compared("Local", ONE),
    ("README.md", "many labels"): lambda: compared("Natural mAP", MANY),
    ("docs/datasets.md", "overview"): overview,
    ("docs/datasets.md", "data sets"): datasets,
    ("docs/reproducing.md", "experiments"): experiments,
}


def pages() -> dict[Path, str]:
    """Every generated page with the text it should have; of some only the parts between marks come from here."""
    found = {ROOT / "docs" / "deviations.md": deviations(), ROOT / "docs" / "methods.md": methods()}
    for (name, part), make in PARTS.items():
        page = ROOT / name
        text = found.get(page) or page.read_text(encoding="utf-8")
        marks = re.compile(rf"(<!-- {part} -->\n).*?(<!-- end of {part} -->)", re.DOTALL)
        found[page] = marks.sub(lambda old, make=make: old[1] + make() + old[2], text)
    return found | method_pages()


def stale() -> list[str]:
    """Names of generated pages that are not what the code says."""
    found = pages().items()
    return [path.name for path, text in found if not path.exists() or path.read_text(encoding="utf-8") != text]


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(f"Stale: {', '.join(stale())}; run `python -m tools.collect`." if stale() else 0)
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
