"""Make the pages that come from the code, or their generated parts: `python -m tools.collect` (`--check` compares)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fedprompt.cli.data import IMAGES_PER_SECOND
from fedprompt.data.published.catalog import CatalogEntry, catalog, layout_options
from fedprompt.methods import installed
from fedprompt.studies import published
from tools import (
    backbone_page,
    bundled_page,
    choosing_page,
    event_pages,
    findings_page,
    method_pages,
    recipe_reference,
)
from tools.markdown import ROOT, SOURCE, bullet, first_sentence, wrapped

DEVIATIONS = """# Where we differ, and why

Every place where this code does something else than a paper or its released code carries a `# differs:` comment.
This page is made from those comments by `python -m tools.collect`; edit the comments, not the page.
"""

METHODS = """# Methods

Each method has a page with its equation, what is implemented and what differs, its parameters and its options
(made by `python -m tools.collect` from its file). How methods are compared is in [protocols.md](protocols.md), where
they differ from papers and releases in [deviations.md](deviations.md), and how to add one in
[extending.md](extending.md).

| method | what it is | trained at ViT-B/16 |
| --- | --- | --- |
"""

SOURCE_MAP = """# Source map

Every file of `src/fedprompt` with the first line of its docstring (made by `python -m tools.collect`). How the parts
work together is in [design.md](design.md), the terms are in the [glossary](glossary.md).
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
            parts.append(f"\n## `{path.relative_to(ROOT).as_posix()}`\n\n" + "".join(bullet(text) for text in found))
    return "".join(parts)


def methods() -> str:
    """The text of docs/methods.md: a row per method."""
    rows = []
    for path in sorted((SOURCE / "methods").glob("*.py")):
        if path.stem in installed():
            count = f"{method_pages.parameters(path.stem):,}"
            rows.append(f"| [`{path.stem}`](methods/{path.stem}.md) | {first_sentence(path)} | {count} |\n")
    return METHODS + "".join(rows)


def pages_of_methods() -> dict[Path, str]:
    """docs/methods/: a page and a figure per method."""
    found = {}
    for name in installed():
        said = remarks((SOURCE / "methods" / f"{name}.py").read_text(encoding="utf-8"))
        found[method_pages.FOLDER / f"{name}.md"] = method_pages.page(name, said)
        found[method_pages.FOLDER / f"{name}.svg"] = method_pages.picture(name)
    return found


def source_map() -> str:
    """The text of docs/source_map.md: every source file, folder by folder."""
    parts = [SOURCE_MAP]
    for folder in sorted({path.parent for path in SOURCE.rglob("*.py")}):
        name = folder.relative_to(SOURCE.parent).as_posix()
        parts.append(f"\n## {name}/\n\n{wrapped(first_sentence(folder / '__init__.py'))}\n")
        files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        rows = [
            f"| [`{path.name}`](../{path.relative_to(ROOT).as_posix()}) | {first_sentence(path)} |\n" for path in files
        ]
        parts += ["\n| file | what it is |\n| --- | --- |\n", *rows] if rows else []
    return "".join(parts)


def overview() -> str:
    """A row per data set: what it is, how large, and on which terms."""
    lines = ["| name | data set | classes | train / val / test | on disk | licence |", "|---|---|---|---|---|---|"]
    for name, row in catalog().items():
        kind = ", many labels" * (row.kind == "multi")
        cells = (f"[`{name}`](#{name})", row.title, f"{row.classes:,}{kind}", numbers(row), row.size, row.licence)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def numbers(row: CatalogEntry) -> str:
    """Images by split, or by domain where no split was published."""
    if row.counts and set(row.counts) <= {"train", "val", "test"}:
        return " / ".join(f"{row.counts[word]:,}" if word in row.counts else "-" for word in ("train", "val", "test"))
    parts = row.counts or row.domains
    said = ", ".join(f"{word} {count:,}" for word, count in parts.items() if word)
    return said or (f"{sum(parts.values()):,}" if parts else "not published")


def datasets() -> str:
    """A section per data set: where it is from, how it lies on disk, how it is asked about, and what to mind."""
    return "\n".join(section(name, row) for name, row in catalog().items())


def section(name: str, row: CatalogEntry) -> str:
    """One data set's row of the table, in words."""
    spoken = f"Prompt: `{row.template}`"
    spoken += "".join(f"; {domain}: `{text}`" for domain, text in row.templates.items())
    spoken += "".join(f"; for {key} `{text}`" for key, text in row.prompts.items())
    own = [option for option in layout_options(row) if option not in row.options]
    options = ", ".join(f"`{one}`" for one in own) or "none"
    traps = [*row.traps, *([f"On the Hub: `{row.hub.id}`. {row.hub.caution}"] if row.hub else [])]
    return (
        f"### {name}\n\n"
        + wrapped(f"{row.title}, {row.size}. Get it: {row.origin}. Licence: {row.licence}.")
        + f"\n\n```\n{row.tree.rstrip()}\n```\n\n{''.join(map(bullet, traps))}\n"
        + wrapped(f"{spoken}{'.' * (not spoken.endswith('`'))} Options: {options}.")
        + f"\n{wrapped(row.sources)}\n"
    )


def experiments() -> str:
    """A row per experiment: its command, its size and time, and what it is to reach."""
    lines = [
        f"| experiment | runs | images at most | hours at {IMAGES_PER_SECOND:g}/s | to reach | mind |",
        "|---|---|---|---|---|---|",
    ]
    for name, about in published.experiments().items():
        runs, each = len(about.variants) * len(about.seeds), published.image_passes(about) * len(about.seeds)
        goals = "<br>".join(published.targets(about)) or "no figure was recovered"
        hours = each / IMAGES_PER_SECOND / 3600
        lines.append(f"| `{name}` | {runs} | {each:,.0f} | {hours:,.1f} | {goals} | {about.remark} |")
    return "\n".join(lines) + "\n"


PARTS = {
    ("docs/backbones.md", "conformance"): backbone_page.conformance,
    ("docs/bundled_descriptions.md", "quality"): bundled_page.rules_and_quality,
    ("docs/datasets.md", "overview"): overview,
    ("docs/datasets.md", "data sets"): datasets,
    ("docs/reproducing.md", "experiments"): experiments,
}


def pages() -> dict[Path, str]:
    """Every generated page with the text it should have; of some only the parts between marks come from here."""
    made = {
        "choosing": choosing_page.page,
        "deviations": deviations,
        "events": event_pages.page,
        "findings": findings_page.page,
        "methods": methods,
        "recipes": recipe_reference.page,
        "source_map": source_map,
    }
    found = {ROOT / "docs" / f"{name}.md": make() for name, make in made.items()}
    for (name, part), make in PARTS.items():
        page = ROOT / name
        text = found.get(page) or page.read_text(encoding="utf-8")
        before, mark, rest = text.partition(f"<!-- {part} -->\n")
        found[page] = before + mark + make() + rest[rest.index(f"<!-- end of {part} -->") :]
    return found | pages_of_methods()


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
