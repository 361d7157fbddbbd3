"""The commands `data` and `reproduce`: published data sets and experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprompt.cli.config import RAY, Spread, exit_without_results, finite, parse_seeds, with_runtime
from fedprompt.cli.program import interrupt_code
from fedprompt.cli.spread import spread_jobs
from fedprompt.errors import UserError, plural
from fedprompt.records.output_folder import require_study_folder

if TYPE_CHECKING:
    from fedprompt.studies.sweep import Job

data = typer.Typer(no_args_is_help=True, help="List, describe and check published data sets.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="A data set of: fedprompt data list")]
Root = Annotated[Path, typer.Option("--root", help="Folder with one folder per data set.")]
Override = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key, e.g. backbone.path=DIR.")
]
IMAGES_PER_SECOND = 300.0  # with gradients, on a GPU of some years ago; run.jsonl has the rate of a machine


@data.command("list")
def list_(
    root: Annotated[Path | None, typer.Option("--root", help="Also show which of them are in this folder.")] = None,
) -> None:
    """List the published data sets with their sizes and licences."""
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import rows_table
    from fedprompt.data.published.catalog import catalog, folder_of

    head = ["name", "title", "classes", "size", "licence"] + ["where"] * (root is not None)
    lines = [[name, about.title, f"{about.classes}", about.size, about.licence] for name, about in catalog().items()]
    for line in lines if root else []:
        line.append(str(folder_of(line[0], root) or "not there"))  # type: ignore[arg-type]
    plain_console().print(rows_table(head, lines))


@data.command()
def info(name: Name) -> None:
    """Describe a data set: source, folders and files, options and pitfalls."""
    from fedprompt.data.published.catalog import descriptions_of, entry, layout_options

    about = entry(name)
    typer.echo(f"{about.title}: {about.classes} classes, {about.size}. Licence: {about.licence}.")
    typer.echo(f"Get it: {about.origin}\nTree:\n{about.tree.rstrip()}")
    if about.hub:
        typer.echo(f"On the Hub: {about.hub.id} ({about.hub.caution})")
    typer.echo(f"Bundled descriptions: {', '.join(descriptions_of(name))}")
    own = [option for option in layout_options(about) if option not in about.options]
    typer.echo(f"Options (data.options): {', '.join(own) or 'none'}\nNotes:")
    for trap in about.traps:
        typer.echo(f"  - {trap}")
    typer.echo(f"Sources: {about.sources}")


@data.command()
def check(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Data sets, or experiments for all their data sets.")
    ],
    root: Root,
) -> None:
    """Check that copies are complete and as published, without opening images; exit code 2 if not."""
    from fedprompt.studies.published import experiment, sets

    wanted = dict.fromkeys(one for name in names for one in (sets(experiment(name)) if "/" in name else (name,)))
    wrong = [name for name in wanted if not _is_right(name, root)]
    if wrong:
        raise typer.Exit(2)


def _is_right(name: str, root: Path) -> bool:
    from fedprompt.api.progress import counting, plain_console
    from fedprompt.data.published.verify import verify

    try:
        with counting(plain_console(), f"listing {name}") as on_step:
            found = verify(name, root, on_step=on_step)
    except UserError as error:
        typer.echo(str(error), err=True)
        return False
    typer.echo(f"{name} in {found.folder}: {found.classes} classes")
    for words in (found.splits, found.domains):
        if words:
            typer.echo("  " + ", ".join(f"{word} {count:,}" for word, count in words.items()))
    for remark in found.remarks:
        typer.echo(f"Remark: {remark}")
    for problem in found.problems:
        typer.echo(f"Problem: {problem}", err=True)
    if not found.problems:
        typer.echo("Complete and as published.")
    return not found.problems


def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="An experiment, e.g. fedmvp/base-to-new.")] = None,
    root: Annotated[Path | None, typer.Option("--root", help="Folder with one folder per data set.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output folder (default: runs/reproduce/NAME).")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas (default: the experiment's).")] = "",
    rate: Annotated[
        float, typer.Option(callback=finite, min=0.001, help="Training images per second, for estimates of time.")
    ] = IMAGES_PER_SECOND,
    settings: Override = None,
    every: Annotated[
        bool, typer.Option("--list", help="List the experiments: command, cost, published figures.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the comparison only.")] = False,
    on: Spread = None,
) -> None:
    """Run a published experiment, or resume it, and compare our figures with the published ones."""
    if every or name is None:
        _list_experiments(rate)
        return
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import published_tables
    from fedprompt.studies import reproduce as published
    from fedprompt.studies.published import experiment

    about = experiment(name)
    if root is None:
        raise UserError(f"Name the folder of the data sets: {about.command}")
    published.require_root(root)
    folder = out or Path("runs") / "reproduce" / name
    require_study_folder(folder)
    changes = with_runtime(settings, on)
    todo = published.jobs(about, root=root, out=folder, seeds=parse_seeds(seeds) if seeds else (), settings=changes)
    for caution in published.cautions(about, settings or ()):
        typer.echo(f"Note: {caution}")
    if on == RAY:
        spread_jobs(todo)
    else:
        _run_with_estimate(todo, quiet=quiet)
    found = published.differences(about, todo)
    for table in published_tables(found):
        plain_console().print(table)
    if found:
        typer.echo(f"Written: {published.write(about, found, folder, settings=settings or ())}")
    else:
        typer.echo("No published figure belongs to this experiment; each run's report is in its folder.")
    exit_without_results(job.folder for job in todo)


def _run_with_estimate(todo: list[Job], *, quiet: bool) -> None:
    from fedprompt.api.progress import console_callbacks, plain_console
    from fedprompt.studies.sweep import run_all

    try:
        with console_callbacks(plain_console(), quiet=quiet) as callbacks:
            for done, left in run_all(todo, callbacks=callbacks):
                after = "" if left is None or done == len(todo) else f", about {_duration(left)} left"
                callbacks.on_message(f"{done} of {plural(len(todo), 'run')} done{after}.")
    except KeyboardInterrupt as error:
        typer.echo("Interrupted; the same command continues from here.", err=True)
        raise typer.Exit(interrupt_code()) from error


def _list_experiments(rate: float) -> None:
    from fedprompt.studies.published import HARDWARE, experiments, image_passes, source, targets

    typer.echo(f"Hardware: {HARDWARE}.\nTimes are estimates at {rate:g} images per second; set --rate to yours.\n")
    for name, about in experiments().items():
        count = image_passes(about) * len(about.seeds)
        number = len(about.variants) * len(about.seeds)
        typer.echo(f"{name}: {plural(number, 'run')}, at most {count:,.0f} images, {_duration(count / rate)}")
        typer.echo(f"  {about.command}\n  settings: {source(about)}")
        for sentence in targets(about):
            typer.echo(f"  published: {sentence}")
        if about.remark:
            typer.echo(f"  note: {about.remark}")


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
