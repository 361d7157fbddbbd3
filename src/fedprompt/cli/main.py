"""The `fedprompt` command. Exit codes: 0 success, 1 no result or only a part of it, 2 user error, 130 Ctrl-C."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import fedprompt
from fedprompt.cli.check import check
from fedprompt.cli.compare import compare
from fedprompt.cli.config import RecipeName, Settings, exit_without_results, load, recipes
from fedprompt.cli.data import data, reproduce
from fedprompt.cli.deploy import mount, resume_over_sites, run_over_sites
from fedprompt.cli.describe import describe
from fedprompt.cli.program import Program
from fedprompt.errors import UserError, plural
from fedprompt.text_files import json_text

if TYPE_CHECKING:
    from fedprompt.experiments.predict import Prediction


app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated prompt tuning of CLIP-like models.",
)
app.add_typer(recipes, name="config")
app.command()(check)
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
    # Idle threads sleep rather than spin: beside one busy process, spinning threads make training several times slower.
    # torch reads the variable when it is imported, and child processes inherit it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
        Literal["single", "multi-label", "multilabel"],
        typer.Option(metavar="single|multi-label", help="One label per image (FedMVP), or several (FedMPT)."),
    ] = "single",
    out: Out = None,
    settings: Settings = None,
    quiet: Quiet = False,
) -> None:
    """Train on embedded images with an embedded CLIP, beside baselines; needs no network and no GPU."""
    run("demo" if task == "single" else "multilabel", settings, out, quiet)


@app.command()
def run(recipe: RecipeName, settings: Settings = None, out: Out = None, quiet: Quiet = False, on: On = None) -> None:
    """Train and evaluate the methods of a recipe; write records, adapters and a report to a folder."""
    from fedprompt.experiments import run as runs

    plan = load(recipe, settings)
    folder = out or runs.free_folder((on or Path()) / "runs" / plan.recipe.name)
    with _with_callbacks(folder, quiet=quiet) as callbacks:
        if on is None:
            runs.start(plan, folder, callbacks=callbacks)
        else:
            run_over_sites(plan.recipe, on, folder, callbacks=callbacks)
    _print_results(folder, quiet=quiet)
    exit_without_results([folder])


@app.command()
def resume(run: RunPath, quiet: Quiet = False, accept_changes: AcceptChanges = False) -> None:
    """Continue a run that was stopped; its results are those of a run that never stopped."""
    from fedprompt.experiments import run as runs

    with _with_callbacks(run, quiet=quiet) as callbacks:
        if not resume_over_sites(run, callbacks=callbacks, accept_changes=accept_changes):
            runs.resume(run, callbacks=callbacks, accept_changes=accept_changes)
    _print_results(run, quiet=quiet)
    exit_without_results([run])


@contextmanager
def _with_callbacks(folder: Path, *, quiet: bool) -> Iterator[Any]:
    from fedprompt.api.progress import console_callbacks, plain_console

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
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import legend_table, run_tables
    from fedprompt.report import read_run
    from fedprompt.report.legend import one_seed_note
    from fedprompt.report.verdict import verdict

    if quiet:
        return
    finished, console = read_run(folder), plain_console()
    for table in run_tables(finished):
        console.print(table)
    console.print(legend_table(finished))
    found = verdict(finished)
    console.print(" ".join(found.sentences))
    for step in found.steps:
        console.print(f"Next: {step}")
    if note := one_seed_note(finished):
        console.print(note)
    typer.echo(f"Report: {folder / 'report.html'}\nAdapters: {folder / 'adapters'}")


@app.command()
def report(run: RunPath) -> None:
    """Write a run's report.html again, also while the run goes on, and print its results."""
    from fedprompt.report import render

    render(run)
    _print_results(run, quiet=False)
    exit_without_results([run])


@app.command()
def partition(
    recipe: RecipeName,
    settings: Settings = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also write a figure to this file: .svg or .png.")] = None,
) -> None:
    """Show the partition of a recipe: images per client and class."""
    from fedprompt.api.progress import counting, plain_console
    from fedprompt.cli.console import rows_table
    from fedprompt.data.partition.base import partition_table
    from fedprompt.experiments.clients import partition_counts
    from fedprompt.report import save_partition

    if plot and plot.suffix.lower() not in (".svg", ".png"):
        raise UserError(f"--plot {plot} is no figure that can be written; give a file name that ends in .svg or .png.")
    plan = load(recipe, settings)
    with counting(plain_console(), "listing") as on_step:
        dataset = plan.source(on_step=on_step)
    shards = plan.partition(dataset)
    for warning in shards.warnings:
        typer.echo(f"Warning: {warning}", err=True)
    head, *rows = partition_table(shards, dataset)
    plain_console().print(
        rows_table(head, rows, title=f"{dataset.name}, {plural(len(shards.shards), 'client')} by {plan.rule.name}")
    )
    if plot:
        save_partition(partition_counts(shards, dataset), plot)
        typer.echo(f"Written: {plot}")


@app.command()
def methods(backbone: Annotated[str, typer.Option(help="The CLIP on which parameters are counted.")] = "demo") -> None:
    """List the methods: description, number of trained parameters and options."""
    from fedprompt import methods as catalog
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import option_rows, rows_table
    from fedprompt.config.recipe_tables import BackboneTable
    from fedprompt.experiments.events import parameters
    from fedprompt.experiments.experiment import load_backbone

    clip, console = load_backbone(BackboneTable(path=backbone)), plain_console()
    for name in catalog.names():
        kind = catalog.load(name)
        console.print(f"{name}: {catalog.method_summary(kind)}")
        if absent := catalog.missing(kind):
            console.print(f"  not installed: pip install 'fedprompt[{','.join(absent)}]'")
            continue
        console.print(f"  trains {parameters(kind(clip, generator=None)):,} parameters on the backbone {backbone!r}")
        if rows := option_rows(catalog.options(kind), kind.__doc__ or ""):
            console.print(rows_table(("option", "default", "meaning"), rows))


@app.command()
def predict(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER_OR_RUN", help="Folder of an adapter or of a run.")],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Image files, folders of them, or patterns ('*.jpg').")
    ],
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
    """Classify images with a trained adapter, among its classes or any others; exit code 1 if some cannot be read."""
    from fedprompt.api.progress import counting, plain_console
    from fedprompt.experiments.predict import open_adapter, predict_files

    names = tuple(name.strip() for name in (classes or "").split(",") if name.strip())
    opened = open_adapter(adapter, trial=trial)
    with counting(plain_console(stderr=True), "Classifying images", after=2.0) as on_step:
        found = predict_files(opened, images, classes=names, backbone=backbone, page=page, on_step=on_step)
    if as_json:
        tables = [{key: value for key, value in vars(one).items() if value is not None} for one in found.images]
        typer.echo(json_text(tables, indent=2, ascii_only=False))
    else:
        typer.echo("\n".join(map(_prediction_line, found.images)))
    if found.left_out:
        typer.echo(f"Left out: {', '.join(f'{count:,} {why}' for why, count in found.left_out.items())}.", err=True)
    if found.unreadable:
        total = len(found.images) + len(found.unreadable)
        typer.echo(f"{len(found.unreadable):,} of {total:,} cannot be read:", err=True)
        typer.echo("\n".join(f"  {reason}" for reason in found.unreadable), err=True)
        raise typer.Exit(1)


def _prediction_line(found: Prediction) -> str:
    present = "" if found.present is None else f" -> {', '.join(found.present) or 'none'}"
    top = ", ".join(f"{name} {100 * probability:.1f}%" for name, probability in found.top)
    return f"{found.picture}: {top}{present}"


@app.command()
def doctor(
    out: Annotated[Path, typer.Option(help="Folder for runs.")] = Path("runs"),
    backbone: Annotated[str, typer.Option(help="A CLIP to load.")] = "demo",
    deployment: Annotated[
        Path | None, typer.Option(help="Folder of a deployment or of a site: check its certificates and keys too.")
    ] = None,
) -> None:
    """Check that everything a run needs is available; exit code 2 if not."""
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import findings_table
    from fedprompt.cli.doctor import run_checks

    findings = run_checks(out, backbone, deployment)
    plain_console().print(findings_table(findings))
    if any(finding.fix for finding in findings):
        raise typer.Exit(2)


if __name__ == "__main__":
    main()
