"""Studies of settings: a recipe with one of several settings at a time, and a table per figure with a row for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tomli_w

from fedprompt.config.recipe import Recipe, parse_recipe
from fedprompt.config.recipe_tables import Toml
from fedprompt.errors import UserError, did_you_mean
from fedprompt.report.comparison import Comparison, as_csv, figure_cells
from fedprompt.report.published import as_markdown
from fedprompt.studies.sweep import Job

Study = Mapping[str, Sequence[Job]]  # label of a setting -> its runs, one per seed


def studies(recipe: Recipe, seeds: Sequence[int], out: Path, *, chosen: Sequence[str] = ()) -> dict[str, Study]:
    """Name -> study, of the groups in the recipe's [vary], or those chosen; of a recipe without, itself alone.

    Equal settings of several groups share their runs. Raises UserError for an unknown group or key.
    """

    def runs(own: Recipe) -> list[Job]:
        return [Job(own.model_copy(update={"seed": seed}), out / f"{own.name}-{seed}") for seed in seeds]

    for name in chosen:
        if name not in recipe.vary:
            known = ", ".join(recipe.vary) or "nothing"
            raise UserError(f"{recipe.name} varies no {name!r}{did_you_mean(name, recipe.vary)} (it varies {known}).")
    if not recipe.vary:
        return {recipe.name: {"": runs(recipe)}}
    return {
        f"{recipe.name}-{name}": {label(setting): runs(with_setting(recipe, setting)) for setting in settings}
        for name, settings in recipe.vary.items()
        if name in chosen or not chosen
    }


def label(setting: Toml) -> str:
    """A setting in a table: "heterogeneity = 0.2"."""
    return ", ".join(f"{key.rpartition('.')[2]} = {value}" for key, value in setting.items())


def with_setting(recipe: Recipe, setting: Toml) -> Recipe:
    """The recipe with a setting; its name says which values are not those that the recipe has already."""
    plain = recipe.model_copy(update={"vary": {}})
    text = plain.to_toml(defaults=False)
    said = {key: f"{key}={tomli_w.dumps({'value': value}).partition('=')[2].strip()}" for key, value in setting.items()}

    def changed(*settings: str) -> Recipe:
        return parse_recipe(text, settings, origin=recipe.name)

    new = [key for key in said if changed(said[key]).model_dump() != plain.model_dump()]
    name = "-".join([recipe.name, *(f"{key.rpartition('.')[2]}-{setting[key]}" for key in new)])
    return changed(*said.values()).model_copy(update={"name": name})


def markdown(study: Mapping[str, Comparison]) -> str:
    """A table per figure with a row per setting and a column per method, the best method of a setting in bold."""
    first = next(iter(study.values()))
    head = ["setting", *(trial.label for trial in first.trials)]
    parts = []
    for column in (column for column in first.runs[0].columns if ":" not in column):
        cells = {setting: figure_cells(compared, column) for setting, compared in study.items()}
        rows = [[setting, *(f"**{c.text}**" if c.best else c.text for c in own)] for setting, own in cells.items()]
        parts.append(f"{first.runs[0].title(column)}:\n\n{as_markdown(head, rows)}")
    return "\n".join(parts)


def csv(study: Mapping[str, Comparison]) -> str:
    """All values behind the tables: setting, seed, method, column, value."""
    lines = ["setting,seed,method,column,value"]
    for setting, compared in study.items():
        lines += [f'"{setting}",{line}' for line in as_csv(compared).splitlines()[1:]]
    return "\n".join(lines) + "\n"
