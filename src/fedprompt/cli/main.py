"""The `fedprompt` command. Exit codes: 0 success, 2 user error, 130 Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import fedprompt
from fedprompt.cli.compare import compare
from fedprompt.cli.config import RecipeName, Settings, load, recipes
from fedprompt.cli.data import data, reproduce
from fedprompt.cli.deploy import mount, resume_over_sites, run_over_sites
from fedprompt.cli.describe import describe
from fedprompt.errors import UserError


class ErrorGroup(typer.core.TyperGroup):
    """Command group that prints a UserError as one sentence with exit code 2; other exceptions keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=ErrorGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated prompt tuning of CLIP-like models.",
)
app.add_typer(recipes, name="config")
app.command()(compare)
app.add_typer(data, name="data")
app.add_typer(describe, name="describe")
app.command()(reproduce)
mount(app)

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run (default: runs/NAME).")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
On = Annotated[Path | None, typer.Option("--on", metavar="DEPLOYMENT", help="Train over the sites of a deployment.")]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Go on although recipe, versions or data have changed.")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]


def main() -> None:
    """Entry point of the `fedprompt` command."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedprompt {fedprompt.__version__}")
        raise typer.Exit


VERSION = typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")


@app.callback()
def _options(version: Annotated[bool, VERSION] = False) -> None: ...


@app.command()
def demo(
    task: Annotated[
        Literal["single", "multi-label"], typer.Option(help="One label per image (FedMVP) or several (FedMPT).")
    ] = "single",
    out: Out = None,
    settings: Settings = None,
    quiet: Quiet = False,
) -> None:
    """Train on embedded images with an embedded CLIP and compare with baselines, offline."""
    run("demo" if task == "single" else "multilabel", settings, out, quiet)


@app.command()
def run(recipe: RecipeName, settings: Settings = None, out: Out = None, quiet: Quiet = False, on: On = None) -> None:
    """Run a recipe: train, evaluate, and write records, adapters and a report to a folder."""
    from fedprompt.experiments import run as runs

    plan = load(recipe, settings)
    folder = out or runs.free_folder((on or Path()) / "runs" / plan.recipe.name)
    with _with_callbacks(folder, quiet=quiet) as callbacks:
        if on is None:
            runs.start(plan, folder, callbacks=callbacks)
        else:
            run_over_sites(plan.recipe, on, folder, callbacks=callbacks)
    _print_results(folder, quiet=quiet)


@app.command()
def resume(run: RunPath, quiet: Quiet = False, accept_changes: AcceptChanges = False) -> None:
    """Resume a stopped run; the result equals that of an uninterrupted run, bit for bit."""
    from fedprompt.experiments import run as runs

    with _with_callbacks(run, quiet=quiet) as callbacks:
        if not resume_over_sites(run, callbacks=callbacks, accept_changes=accept_changes):
            runs.resume(run, callbacks=callbacks, accept_changes=accept_changes)
    _print_results(run, quiet=quiet)


@contextmanager
def _with_callbacks(folder: Path, *, quiet: bool) -> Iterator[Any]:
    from fedprompt.cli.console import console_callbacks, plain_console

    try:
        with console_callbacks(plain_console(), quiet=quiet) as callbacks:
            yield callbacks
    except KeyboardInterrupt as error:
        if error.args:
            said = str(error)
        elif (folder / "run.jsonl").exists():
            said = f"Interrupted; continue with: fedprompt resume {folder}"
        else:
            said = "Interrupted before anything was written."
        typer.echo(said, err=True)
        raise typer.Exit(130) from error


def _print_results(folder: Path, *, quiet: bool) -> None:
    from fedprompt.cli.console import plain_console, run_tables
    from fedprompt.report import read_run

    if quiet:
        return
    finished, console = read_run(folder), plain_console()
    for table in run_tables(finished):
        console.print(table)
    for column in finished.columns:
        if column in finished.header.splits:
            console.print(f"  {finished.title(column)}: {finished.header.splits[column]}")
    typer.echo(f"Report: {folder / 'report.html'}\nAdapters: {folder / 'adapters'}")


@app.command()
def report(run: RunPath) -> None:
    """Write the report of a finished or running run again, from its records."""
    from fedprompt.report import render

    render(run)
    _print_results(run, quiet=False)


@app.command()
def partition(
    recipe: RecipeName,
    settings: Settings = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also write a figure to this SVG file.")] = None,
) -> None:
    """Show the partition of a recipe: images per client and class."""
    from fedprompt.cli.console import counting, plain_console, rows_table
    from fedprompt.data.partition.base import partition_table
    from fedprompt.experiments.events import partition_counts
    from fedprompt.records.run_folder import write_atomic
    from fedprompt.report import partition_figure

    plan = load(recipe, settings)
    with counting(plain_console(), "listing") as on_step:
        dataset = plan.source(on_step=on_step)
    shards = plan.partition(dataset)
    head, *rows = partition_table(shards, dataset)
    plain_console().print(
        rows_table(head, rows, title=f"{dataset.name}, {len(shards.shards)} clients by {plan.rule.name}")
    )
    if plot:
        counts = partition_counts(shards, dataset)
        write_atomic(plot, partition_figure(counts.counts, counts.clients, counts.classes))
        typer.echo(f"Written: {plot}")


@app.command()
def check(recipe: RecipeName, settings: Settings = None) -> None:
    """Open every image of a recipe's data and list problems; exit code 2 if there are any."""
    from fedprompt.cli.console import counting, plain_console
    from fedprompt.data.problems import find_problems, scan_images

    plan = load(recipe, settings)
    with counting(plain_console(), "listing") as on_step:
        dataset = plan.source(on_step=on_step)
    with counting(plain_console(), "opening images") as on_step:
        rows, workers = range(len(dataset.source)), plan.recipe.backbone.workers
        looked = scan_images(dataset.source, rows, workers=workers, on_step=on_step)
    problems = find_problems(dataset, looked)
    for problem in problems:
        typer.echo(problem.message, err=True)
    typer.echo(f"{dataset.name}: {len(dataset.source)} images, {len(problems)} problem(s).")
    if problems:
        raise typer.Exit(2)


@app.command()
def methods(backbone: Annotated[str, typer.Option(help="The CLIP on which parameters are counted.")] = "demo") -> None:
    """List the methods: description, number of trained parameters and options."""
    from fedprompt import methods as catalog
    from fedprompt.cli.console import option_rows, plain_console, rows_table
    from fedprompt.config.tables import BackboneTable
    from fedprompt.experiments.events import idea, parameters
    from fedprompt.experiments.experiment import load_backbone

    clip, console = load_backbone(BackboneTable(path=backbone)), plain_console()
    for name in catalog.names():
        kind = catalog.load(name)
        console.print(f"{name}: {idea(kind)}")
        if absent := catalog.missing(kind):
            console.print(f"  not installed: pip install 'fedprompt[{','.join(absent)}]'")
            continue
        console.print(f"  trains {parameters(kind(clip, generator=None)):,} parameters on the backbone {backbone!r}")
        if rows := option_rows(catalog.options(kind), kind.__doc__ or ""):
            console.print(rows_table(("option", "default", "meaning"), rows))


@app.command()
def predict(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER_OR_RUN", help="Folder of an adapter or of a run.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    classes: Annotated[
        str | None, typer.Option(help="Candidate classes, separated by commas (default: the adapter's).")
    ] = None,
    trial: Annotated[str | None, typer.Option(help="A trial of the run (default: the main method).")] = None,
    backbone: Annotated[str | None, typer.Option(help="The backbone, if it is not where the adapter says.")] = None,
    page: Annotated[
        Path | None, typer.Option(help="Also write maps of the regions that the method uses to this HTML file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Classify images with a trained adapter, among its classes or any others."""
    from fedprompt.experiments.predict import open_adapter, predict_files

    names = tuple(name.strip() for name in (classes or "").split(",") if name.strip())
    found = predict_files(open_adapter(adapter, trial=trial), images, classes=names, backbone=backbone, page=page)
    if as_json:
        tables = [{key: value for key, value in vars(one).items() if value is not None} for one in found]
        typer.echo(json.dumps(tables, indent=2, ensure_ascii=False))
        return
    for one in found:
        present = "" if one.present is None else f" -> {', '.join(one.present) or 'none'}"
        typer.echo(
            f"{one.picture}: "
            + ", ".join(f"{name} {100 * probability:.1f}%" for name, probability in one.top)
            + present
        )


@app.command()
def doctor(
    out: Annotated[Path, typer.Option(help="Folder for runs.")] = Path("runs"),
    backbone: Annotated[str, typer.Option(help="A CLIP to load.")] = "demo",
    deployment: Annotated[
        Path | None, typer.Option(help="Folder of a deployment or of a site: check its certificates and keys too.")
    ] = None,
) -> None:
    """Check that everything a run needs is available; exit code 2 if not."""
    from fedprompt.cli.console import findings_table, plain_console
    from fedprompt.cli.doctor import run_checks

    findings = run_checks(out, backbone, deployment)
    plain_console().print(findings_table(findings))
    if any(finding.fix for finding in findings):
        raise typer.Exit(2)


if __name__ == "__main__":
    main()
