"""Write measured tables and figures into the pages, and tuned rates into the recipes: `python -m tools.measured`.

A page marks where a table by `fedprompt compare` belongs, with its file relative to the folder `runs`:

    <!-- measured: study/study.md -->
    <!-- end of measured -->

What has not been measured yet is left as it is and named.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from fedprompt.config.recipe import Recipe, load_recipe
from fedprompt.report import read_run
from fedprompt.report.figures import save_headline
from tools.markdown import ROOT, SOURCE

BLOCK = re.compile(r"(<!-- measured: (.+?) -->\n)(.*?)(<!-- end of measured -->)", re.DOTALL)
COMPARED = ("compare_single", "compare_multi")
RATES = {  # recipe with rates that a search found -> recipes that take them
    "compare_single": ("compare_single", "settings"),
    "compare_multi": ("compare_multi", "multilabel_settings"),
}


def fill(text: str, runs: Path) -> tuple[str, list[str]]:
    """A page with every table that is in the folder, and the names of those that are not."""
    missing: list[str] = []

    def content(block: re.Match[str]) -> str:
        path = runs / block[2]
        if not path.is_file():
            missing.append(block[2])
            return block[0]
        return f"{block[1]}\n{path.read_text(encoding='utf-8').strip()}\n\n{block[4]}"

    return BLOCK.sub(content, text), missing


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
    for name in (f"{recipe}-{cost}.svg" for recipe in COMPARED for cost in ("bytes", "seconds")):
        if (runs / "compare" / name).is_file():
            shutil.copyfile(runs / "compare" / name, docs / name)
        else:
            yield f"docs/{name}: compare/{name}"
    if (runs / "demo" / "run.jsonl").is_file():
        save_headline(read_run(runs / "demo"), docs / "demo.svg")
    else:
        yield "docs/demo.svg: demo"


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
    missing = [*figures(runs), *recipes(runs)]
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
