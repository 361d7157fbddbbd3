"""Compare methods: the runs of recipes under several seeds and settings, and the tables made from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedprompt.config.recipe import Recipe
from fedprompt.errors import UserError
from fedprompt.records.atomic_files import write_atomic
from fedprompt.report import Run, read_run
from fedprompt.report.comparison import Comparison, as_csv, comparison, latex, markdown, seconds, uploaded
from fedprompt.report.costs import cost_figure
from fedprompt.report.new_local import comparison_drawing
from fedprompt.report.style import size_text
from fedprompt.studies import vary
from fedprompt.studies.sweep import Job
from fedprompt.studies.vary import Study


def plan(recipes: Sequence[Recipe], seeds: Sequence[int], out: Path, *, groups: Sequence[str] = ()) -> dict[str, Study]:
    """Name of a table -> label of a setting -> its runs, for every recipe; UserError for two of the same name.

    A recipe that varies nothing is one setting without a label. `groups` are those of its [vary] to run, if not all.
    """
    names = [recipe.name for recipe in recipes]
    if len(set(names)) != len(names):
        raise UserError(f"Two of the recipes {', '.join(names)} have the same name; rename one of them.")
    return {
        name: study for recipe in recipes for name, study in vary.studies(recipe, seeds, out, chosen=groups).items()
    }


def jobs(studies: Mapping[str, Study]) -> list[Job]:
    """Every run of some studies once."""
    found = (job for study in studies.values() for own in study.values() for job in own)
    return list({job.folder: job for job in found}.values())


def finished_runs(studies: Mapping[str, Study]) -> dict[str, dict[str, Sequence[Run]]]:
    """The records of the runs, in the same order."""
    return {
        name: {setting: [read_run(job.folder) for job in own] for setting, own in study.items()}
        for name, study in studies.items()
    }


def write_tables(tables: Mapping[str, Mapping[str, Sequence[Run]]], out: Path) -> Iterator[Path]:
    """Write each table (Markdown, LaTeX, CSV) and its figures from finished runs; yields the files.

    Of a study of settings, Markdown and CSV.
    """
    for name, settings in tables.items():
        found = {setting: comparison(runs) for setting, runs in settings.items()}
        texts = _texts(found[""]) if "" in found else {".md": vary.markdown(found), ".csv": vary.csv(found)}
        for ending, text in texts.items():
            write_atomic(out / f"{name}{ending}", text)
            yield out / f"{name}{ending}"


def _texts(found: Comparison) -> dict[str, str]:
    against = comparison_drawing(found)
    return {
        ".md": markdown(found),
        ".tex": latex(found),
        ".csv": as_csv(found),
        "-bytes.svg": cost_figure(found, uploaded, "sent by a client in all rounds", format_cost=size_text),
        "-seconds.svg": cost_figure(found, seconds, "seconds of training", format_cost="{:g}".format),
        **({"-new-local.svg": against.svg} if against else {}),
    }
