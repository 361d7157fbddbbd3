"""The command `check`: what a reader understood of users' data, and the problems of their images."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.cli.config import Settings, TrustCode, backbone_side, load
from fedprompt.config.recipe import bundled_recipes, load_recipe
from fedprompt.errors import UserError, did_you_mean, plural, series
from fedprompt.file_system import is_file, is_folder
from fedprompt.text_files import data_setting, json_text

if TYPE_CHECKING:
    from fedprompt.data.dataset import Dataset
    from fedprompt.data.problems import Problem
    from fedprompt.data.quality import Pair, Ways
    from fedprompt.experiments.plan import Plan

TEMPLATE = "own_folder"  # the recipe whose [data] table is replaced for a folder or table that is given without one
MULTI = "own_table"  # the recipe for images with several labels
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Checked:
    """What was found of one recipe, folder or table: a data set with its problems, or why it is refused."""

    what: str
    source: str = ""
    dataset: Dataset | None = None
    problems: Sequence[Problem] = ()
    warnings: Sequence[str] = ()
    error: str = ""
    command: str = ""  # that trains on these data
    near_duplicates: Sequence[Pair] = ()

    @property
    def ok(self) -> bool:
        """Whether the data are usable as they are."""
        return not self.error and not self.problems

    def to_json(self) -> dict[str, object]:
        """Everything, as JSON values."""
        report = self.dataset.report if self.dataset is not None else None
        return {
            "what": self.what,
            "ok": self.ok,
            "source": self.source,
            "name": self.dataset.name if self.dataset is not None else "",
            "summary": report.sentence() if report else "",
            "intake": report.to_json() if report else None,
            "warnings": list(self.warnings),
            "problems": [{"kind": problem.kind, "message": problem.message} for problem in self.problems],
            "near_duplicates": [self._named(pair) for pair in self.near_duplicates],
            "command": self.command,
            "error": self.error,
        }

    def _named(self, pair: Pair) -> dict[str, str]:
        assert self.dataset is not None, "pairs are of its images"
        describe, split = self.dataset.source.describe, self.dataset.splits[pair.other]
        return {"train": describe(pair.train), "other": describe(pair.other), "split": split}


def check(
    data: Annotated[
        list[str], typer.Argument(metavar="RECIPE|FOLDER|TABLE...", help="Recipes, or folders and tables of images.")
    ],
    settings: Settings = None,
    trust_code: TrustCode = None,
    duplicates: Annotated[
        bool, typer.Option(help="Compare training images with others by perceptual hash, to find near-duplicates.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is understood of your data, open every image and list problems; exit code 2 if there are any.

    Of a folder or table that is given without a recipe, files and columns say which source reads it; --set
    data.KEY=VALUE sets options of that source.
    """
    found = []
    for what in data:
        one = _check(what, settings or [], trust_code, quiet=as_json, duplicates=duplicates)
        found.append(one)
        if not as_json:
            _print(one)
    ok = all(one.ok for one in found)
    if as_json:
        checked = {"ok": ok, "checked": [one.to_json() for one in found]}
        typer.echo(json_text(checked, indent=2, ascii_only=False))
    if not ok:
        raise typer.Exit(2)


def _check(what: str, settings: list[str], trust_code: list[str] | None, *, quiet: bool, duplicates: bool) -> Checked:
    source = ""
    try:
        _require_place(what)  # before torch is imported, which takes seconds
        plan = _plan(what, settings, trust_code)
        source = plan.source.name
        from rich.console import Console

        from fedprompt.api.progress import counting, plain_console
        from fedprompt.data.problems import find_problems, scan_images
        from fedprompt.data.quality import near_pairs, quality_warnings
        from fedprompt.experiments.unreadable import UNREADABLE

        console = Console(quiet=True) if quiet else plain_console()
        with counting(console, "listing") as on_step:
            dataset = plan.source(on_step=on_step)
        with counting(console, "opening images") as on_step:
            rows, workers = range(len(dataset.source)), plan.recipe.backbone.workers
            looked = scan_images(dataset.source, rows, workers=workers, perceptual=duplicates, on_step=on_step)
        with counting(console, "comparing images", after=2.0) as on_step:
            side = backbone_side(plan.recipe.backbone.path)
            pairs = near_pairs(dataset, looked, on_step=on_step)
            readable = dataset.without(looked.unreadable, reason=UNREADABLE)  # what a run has
            ways = _ways(what, settings, plan, dataset)
            remarks = quality_warnings(readable, looked, input_side=side, pairs=pairs, ways=ways)
    except UserError as error:
        return Checked(what, source, error=str(error))
    command = _command(what, source, dataset.space.kind, settings)
    problems = [*find_problems(dataset, looked), *_same_classes(plan, dataset)]
    warnings = tuple(one.message for one in remarks)
    return Checked(what, source, readable, problems, warnings, command=command, near_duplicates=pairs)


def _ways(what: str, settings: Sequence[str], plan: Plan, dataset: Dataset) -> Ways:
    """The commands that list all near-duplicates, and that keep files of one name together where that is possible."""
    from fedprompt.data.quality import Ways
    from fedprompt.data.splits import is_drawn

    command = " ".join(["fedprompt check", shlex.quote(what), *_given(settings)])
    can = plan.source.options.get("names_together") is False and is_drawn(dataset.intake.origins)
    together = f"{command} {data_setting('names_together', True)}" if can else ""
    return Ways(f"{command} --json lists all pairs", together)


def _given(settings: Sequence[str]) -> list[str]:
    return [f"--set {shlex.quote(setting)}" for setting in settings]


def _same_classes(plan: Plan, dataset: Dataset) -> Iterator[Problem]:
    """That a run would refuse two classes with the same text; the backbone is opened if names look alike."""
    from fedprompt.data.intake.class_names import look_alikes
    from fedprompt.data.problems import Problem
    from fedprompt.experiments.class_descriptions import check_distinct_classes
    from fedprompt.experiments.experiment import load_backbone

    if not look_alikes(dataset.space.names, dataset.name):
        return
    try:
        clip = load_backbone(plan.recipe.backbone)
    except UserError:  # a warning names these classes, and a run says what the backbone lacks
        return
    try:
        check_distinct_classes(clip, dataset)
    except UserError as error:
        yield Problem("labels", (), str(error))


def _command(what: str, source: str, kind: str, settings: Sequence[str]) -> str:
    """The command that trains on what was checked."""
    given = _given(settings)
    if what in bundled_recipes() or what.endswith(".toml"):
        return " ".join(["fedprompt run", shlex.quote(what), *given])
    recipe = MULTI if kind == "multi" else TEMPLATE
    own = load_recipe(bundled_recipes()[recipe]).data.source
    reads = [] if source == own else [data_setting("source", source)]
    return " ".join(["fedprompt run", recipe, *reads, data_setting("path", what), *given])


def _require_place(what: str) -> None:
    """UserError for what is no recipe, no folder and no file."""
    path = Path(what).expanduser()
    if what not in bundled_recipes() and not what.endswith(".toml") and not (is_file(path) or is_folder(path)):
        close = did_you_mean(what, bundled_recipes())
        raise UserError(f"There is no recipe, folder or table {what!r}{close or '; correct the path.'}")


def _plan(what: str, settings: list[str], trust_code: list[str] | None) -> Plan:
    """The plan of a recipe, or one whose data are a folder or a table."""
    from fedprompt.config.registry import sources_of
    from fedprompt.data.intake.tables import SUFFIXES, is_table

    path = Path(what).expanduser()
    if what in bundled_recipes() or path.suffix == ".toml":
        return load(what, settings, trust_code, reads=True)
    if not is_folder(path) and not is_table(path):
        raise UserError(
            f"{what} is no recipe (.toml), table ({' '.join(SUFFIXES)}) or folder; give the folder it is in."
        )
    names = sources_of(path)
    place = f"path = {json_text(str(path), ascii_only=False)}"
    if len(names) != 1:
        some = f"may be read by {series(names)}" if names else "is in no form that a source recognises"
        raise UserError(
            f"{what} {some}; say which source is meant with "
            f"fedprompt check {TEMPLATE} --set 'data={{source = \"NAME\", {place}}}'."
        )
    return load(TEMPLATE, [f'data={{source = "{names[0]}", {place}}}', *settings], trust_code)


def _print(found: Checked) -> None:
    if found.dataset is None:
        typer.echo(f"{found.what} is refused.\n{found.error}", err=True)
        return
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import rows_table

    report = found.dataset.report
    head, *rows = report.table()
    plain_console().print(rows_table(head, rows, title=f"{found.dataset.name}, read by the source {found.source}"))
    for warning in (*report.all_warnings(), *found.warnings):
        typer.echo(f"Warning: {warning}")
    for problem in found.problems[:SHOWN_PROBLEMS]:
        typer.echo(problem.message, err=True)
    if (more := len(found.problems) - SHOWN_PROBLEMS) > 0:
        typer.echo(f"and {plural(more, 'more problem')}; --json lists all of them.", err=True)
    typer.echo(f"{found.dataset.name}: {plural(report.images, 'image')}, {plural(len(found.problems), 'problem')}.")
    typer.echo(f"Train on them: {found.command}")
