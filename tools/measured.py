"""Write measured tables and figures into the pages, and tuned rates into the recipes: `python -m tools.measured`.

A page marks where a table by `fedprompt compare` belongs, with its file relative to the folder `runs`:

    <!-- measured: study/study.md -->
    <!-- end of measured -->

What has not been measured yet is left as it is and named. The values behind docs/findings.md are kept in
docs/findings.csv, from which `python -m tools.collect` makes the page.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from fedprompt.config.recipe import Recipe, load_recipe
from fedprompt.report import read_run
from fedprompt.report.figures import save_headline
from fedprompt.report.new_local import LOCAL, NEW, Dot, new_local_drawing
from fedprompt.studies.published import experiments
from fedprompt.studies.published_tables import table
from tools import findings_page
from tools.findings_page import TRAINED, Values, read_csv, values
from tools.markdown import ROOT, SOURCE

BLOCK = re.compile(r"(<!-- measured: (.+?) -->\n)(.*?)(<!-- end of measured -->)", re.DOTALL)
COMPARED = ("compare_single", "compare_multi")
COSTS = ("bytes",)  # seconds are of machines with other work, see the page
RATES = {  # recipe with rates that a search found -> recipes that take them
    "compare_single": ("compare_single", "settings"),
    "compare_multi": ("compare_multi", "multilabel_settings"),
}
NEW_LOCAL = "compare/compare_single.csv"  # what the README's figure is drawn from
MAIN, REFERENCE = "fedmvp", "zeroshot"
PUBLISHED = "base-to-new"  # the published table beside it


def fill(text: str, runs: Path) -> tuple[str, list[str]]:
    """A page with every table that is in the folder, and the names of those that are not."""
    missing: list[str] = []

    def content(block: re.Match[str]) -> str:
        path = runs / block[2]
        if not path.is_file():
            missing.append(block[2])
            return block[0]
        parts = [block[1].strip(), path.read_text(encoding="utf-8").strip(), *_drawn(path.stem), block[4]]
        return "\n\n".join(parts)

    return BLOCK.sub(content, text), missing


def _drawn(name: str) -> list[str]:
    """Lines that show the figures of a comparison against its costs, if they are among the pages."""
    costs = [cost for cost in COSTS if (ROOT / "docs" / f"{name}-{cost}.svg").is_file()]
    return ["\n".join(f"![Accuracy against {cost}]({name}-{cost}.svg)" for cost in costs)] if costs else []


def with_rates(text: str, tuned: Recipe) -> str:
    """A recipe's text with the learning rates of a tuned recipe; each method of `compare` stands on a line."""
    rates = {method.title: method.train.get("lr") for method in (*tuned.compare, tuned.method)}
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if name := re.match(r'  \{ name = "(\w+)"(?:, label = "([\w-]+)")?', line):
            title = name[2] or name[1]
        elif re.match(r"train = \{", line):  # of the table [method]
            title = tuned.method.title
        else:
            continue
        lines[number] = re.sub(r"\blr = [\d.e-]+", f"lr = {rates[title]}", line)
    return "".join(lines)


def figures(runs: Path) -> Iterator[str]:
    """Write the figures of the README and of the comparison; yields what is missing."""
    docs = ROOT / "docs"
    for name in (f"{recipe}-{cost}.svg" for recipe in COMPARED for cost in COSTS):
        if (runs / "compare" / name).is_file():
            shutil.copyfile(runs / "compare" / name, docs / name)
        else:
            yield f"docs/{name}: compare/{name}"
    if (runs / NEW_LOCAL).is_file():
        drawing = new_local_drawing(panels(values(read_csv(runs / NEW_LOCAL, NEW_LOCAL))))
        (docs / "new_local.svg").write_text(drawing.svg, encoding="utf-8")
    else:
        yield f"docs/new_local.svg: {NEW_LOCAL}"
    if (runs / "demo" / "run.jsonl").is_file():
        save_headline(read_run(runs / "demo"), docs / "demo.svg")
    else:
        yield "docs/demo.svg: demo"


def panels(known: Values) -> dict[str, list[Dot]]:
    """The README's figure: one dot per method (variants have a hyphen in their names), published dots beside it."""
    methods = [method for _, method, column in known if column == LOCAL and "-" not in method]
    measured = [
        _dot(
            method,
            *(tuple(100 * one for one in known[NEW_LOCAL, method, column].values()) for column in (LOCAL, NEW)),
            trains=any(known.get((NEW_LOCAL, method, TRAINED), {}).values()),
        )
        for method in methods
        if (NEW_LOCAL, method, NEW) in known
    ]
    return {"Embedded images: mean over seeds": measured, "Published: mean over nine data sets": published(methods)}


def published(methods: Collection[str]) -> list[Dot]:
    """The published figures of methods as dots; what is only recalled is left out."""
    matches = [one for about in experiments().values() for one in about.matches if one.table == PUBLISHED]
    rows = {trial: row for one in matches for trial, row in one.rows.items() if trial in methods}
    cells = {(one.row, one.column): one.value for one in table(PUBLISHED) if one.certainty != "recalled"}
    return [
        _dot(method, (cells[row, LOCAL],), (cells[row, NEW],), trains=method != REFERENCE)
        for method, row in rows.items()
        if {(row, LOCAL), (row, NEW)} <= set(cells)
    ]


def _dot(method: str, local: tuple[float, ...], new: tuple[float, ...], *, trains: bool) -> Dot:
    reference = method == REFERENCE
    label = "zero-shot CLIP" if reference else method
    return Dot(label, local, new, main=method == MAIN, trains=trains, reference=reference)


def findings(runs: Path) -> Iterator[str]:
    """Write docs/findings.csv and the page made from it; yields what is missing."""
    text, missing = findings_page.collected(findings_page.VALUES.read_text(encoding="utf-8"), runs)
    findings_page.VALUES.write_text(text, encoding="utf-8")
    findings_page.PAGE.write_text(findings_page.page(), encoding="utf-8")
    yield from (f"docs/findings.md: {source}" for source in missing)


def recipes(runs: Path) -> Iterator[str]:
    """Write the tuned rates into the bundled recipes; yields what is missing."""
    for name, takers in RATES.items():
        tuned = runs / "compare" / f"{name}.toml"
        if not tuned.is_file():
            yield f"recipes {' and '.join(takers)}: compare/{name}.toml"
            continue
        for path in (SOURCE / "recipes" / f"{taker}.toml" for taker in takers):
            path.write_text(with_rates(path.read_text(encoding="utf-8"), load_recipe(tuned)), encoding="utf-8")


def main() -> None:
    """Fill what the folder `runs` (or the one given) has results for; exit code 1 if something is missing."""
    runs = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")
    missing = [*figures(runs), *recipes(runs), *findings(runs)]
    for page in sorted(ROOT.glob("docs/*.md")):
        text = page.read_text(encoding="utf-8")
        filled, left = fill(text, runs)
        missing += [f"docs/{page.name}: {source}" for source in left]
        if filled != text:
            page.write_text(filled, encoding="utf-8")
    print("\n".join(f"not measured: {line}" for line in missing) or "Every table is measured.")
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
