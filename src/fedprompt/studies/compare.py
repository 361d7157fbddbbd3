"""Compare methods: the runs of recipes under several seeds, and the tables made from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedprompt.config.recipe import Recipe
from fedprompt.errors import UserError
from fedprompt.records.run_folder import write_atomic
from fedprompt.report import Run
from fedprompt.report.comparison import as_csv, comparison, latex, markdown, seconds, uploaded
from fedprompt.report.costs import cost_figure
from fedprompt.report.style import size_text
from fedprompt.studies.sweep import Job


def jobs(recipes: Sequence[Recipe], seeds: Sequence[int], out: Path) -> list[Job]:
    """Every recipe under every seed; UserError for two recipes with the same name."""
    names = [recipe.name for recipe in recipes]
    if len(set(names)) != len(names):
        raise UserError(f"Two of the recipes {', '.join(names)} have the same name; rename one of them.")
    return [
        Job(recipe.model_copy(update={"seed": seed}), out / f"{recipe.name}-{seed}")
        for recipe in recipes
        for seed in seeds
    ]


def write_tables(tables: Mapping[str, Sequence[Run]], out: Path) -> Iterator[Path]:
    """Write each table (Markdown, LaTeX, CSV) and its figures from finished runs; yields the files."""
    for name, finished in tables.items():
        found = comparison(finished)
        for ending, text in {
            ".md": markdown(found),
            ".tex": latex(found),
            ".csv": as_csv(found),
            "-bytes.svg": cost_figure(found, uploaded, "sent by a client in all rounds", format_cost=size_text),
            "-seconds.svg": cost_figure(found, seconds, "seconds of training", format_cost="{:g}".format),
        }.items():
            write_atomic(out / f"{name}{ending}", text)
            yield out / f"{name}{ending}"
