"""The `fedprompt` command. Exit codes: 0 success, 1 no or partial results, 2 user error, 130 Ctrl-C, 143 SIGTERM."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

import fedprompt
from fedprompt.cli.app import app as serve_page
from fedprompt.cli.backbone import backbone
from fedprompt.cli.check import check
from fedprompt.cli.compare import compare
from fedprompt.cli.config import (
    RecipeName,
    Runtime,
    Settings,
    TrustCode,
    deployment_of,
    exit_without_results,
    finite,
    load,
    recipes,
    require_runtime,
    typed_command,
    with_runtime,
)
from fedprompt.cli.data import data, reproduce
from fedprompt.cli.deploy import mount, resume_over_sites, run_over_sites
from fedprompt.cli.describe import describe
from fedprompt.cli.predict import predict
from fedprompt.cli.program import Program, interrupt_code
from fedprompt.cli.push import push
from fedprompt.cli.tune import tune
from fedprompt.errors import UserError, plural
from fedprompt.file_system import require_folder
from fedprompt.text_files import json_text

app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated prompt tuning of CLIP-like models.",
)
app.add_typer(backbone, name="backbone")
app.add_typer(recipes, name="config")
app.command("app")(serve_page)
app.command()(check)
app.command()(compare)
app.add_typer(data, name="data")
app.add_typer(describe, name="describe")
app.command()(predict)
app.command()(push)
app.command()(reproduce)
app.command()(tune)
mount(app)

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run (default: runs/NAME).")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
On = Annotated[
    str | None,
    typer.Option("--on", metavar="ray|DEPLOYMENT", help="Train on Ray, or over the sites of a deployment: its folder."),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes", min=0.01, callback=finite, help="Train as many rounds as fit into this time, train.rounds at most."
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="TRACKER", help="Send losses and scores to tensorboard, wandb, mlflow or another."),
]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Go on although recipe, versions or data have changed.")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]


def main() -> None:
    """Entry point of the `fedprompt` command."""
    try:
        app()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or error.filename is not None:
            raise
        _give_up_output(error)


def _give_up_output(error: OSError) -> NoReturn:
    """End the program where its output cannot be written: files are written with a name, the output has none."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in the buffer would fail again at the end
    with suppress(OSError):  # where both go to one full device
        typer.echo(f"The output cannot be written ({error.strerror}); send it to another place.", err=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.exit(2)


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
    run("demo" if task == "single" else "multilabel", settings, out=out, quiet=quiet)


@app.command()
def run(
    recipe: RecipeName,
    settings: Settings = None,
    minutes: Minutes = None,
    out: Out = None,
    quiet: Quiet = False,
    on: On = None,
    track: Track = None,
    trust_code: TrustCode = None,
) -> None:
    """Train and evaluate the methods of a recipe; write records, adapters and a report to a folder."""
    from fedprompt.records.output_folder import require_output_folder

    if out is not None:
        require_output_folder(out)
    limits = [] if minutes is None else [f"minutes={minutes}"]
    deployment = deployment_of(on)
    wanted = with_runtime(settings, on if deployment is None else None)
    changes = [*wanted, *limits, *([f"track={json_text(track)}"] if track else [])]
    plan = load(recipe, changes, trust_code, opens=deployment is None)
    from fedprompt.experiments import run as runs

    folder = out or runs.free_folder((deployment or Path()) / "runs" / plan.recipe.name)
    with _with_callbacks(folder, quiet=quiet) as callbacks:
        if deployment is None:
            command = typed_command("run", recipe, wanted, folder, minutes=minutes)
            runs.start(plan, folder, callbacks=callbacks, command=command)
        else:
            run_over_sites(plan.recipe, deployment, folder, callbacks=callbacks)
    if not quiet:
        _print_results(folder)
    exit_without_results([folder])


@app.command()
def resume(
    run: RunPath,
    quiet: Quiet = False,
    accept_changes: AcceptChanges = False,
    on: Runtime = None,
    trust_code: TrustCode = None,
) -> None:
    """Continue a run that was stopped; its results are those of a run that never stopped."""
    require_folder(run, "give the folder of a run")  # before torch is imported, which takes seconds
    from fedprompt.experiments import run as runs

    runtime = None if on is None else runs.changed_runtime(run, {"name": require_runtime(on)})
    with _with_callbacks(run, quiet=quiet) as callbacks:
        runs.require_trusted_recipe(run, trust_code or ())
        if not resume_over_sites(run, callbacks=callbacks, accept_changes=accept_changes):
            trusted = trust_code or ()
            runs.resume(run, callbacks=callbacks, accept_changes=accept_changes, trusted=trusted, runtime=runtime)
    if not quiet:
        _print_results(run)
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
        raise typer.Exit(interrupt_code()) from error


def _print_results(folder: Path) -> None:
    from fedprompt.cli.console import print_results

    print_results(folder)


@app.command()
def report(run: RunPath) -> None:
    """Write a run's report.html again, also while the run goes on, and print its results."""
    require_folder(run, "give the folder of a run")
    from fedprompt.report import render

    render(run)
    _print_results(run)
    exit_without_results([run])


@app.command()
def partition(
    recipe: RecipeName,
    settings: Settings = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also write a figure to this file: .svg or .png.")] = None,
    trust_code: TrustCode = None,
) -> None:
    """Show the partition of a recipe: images per client and class."""
    if plot and plot.suffix.lower() not in (".svg", ".png"):
        raise UserError(f"--plot {plot} is no figure that can be written; give a file name that ends in .svg or .png.")
    plan = load(recipe, settings, trust_code, reads=True)  # before the imports, which take seconds
    from fedprompt.api.progress import counting, plain_console
    from fedprompt.cli.console import rows_table
    from fedprompt.data.partition.base import partition_table
    from fedprompt.experiments.clients import partition_counts
    from fedprompt.report import save_partition

    with counting(plain_console(), "listing") as on_step:
        dataset = plan.source(on_step=on_step)
    shards = plan.partition(dataset)
    for warning in shards.warnings:
        typer.echo(f"Warning: {warning}", err=True)
    head, *rows = partition_table(shards, dataset)
    plain_console().print(
        rows_table(head, rows, title=f"{dataset.name}, {plural(len(shards.shards), 'client')} by {plan.rule.name}")
    )
    typer.echo("No image was opened: a run leaves out those that cannot be read, which fedprompt check lists.")
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
def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe: check its data, backbone and output folder.")
    ] = None,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Folder for runs.")] = Path("runs"),
    backbone: Annotated[str, typer.Option(help="A CLIP to load, without a recipe.")] = "demo",
    deployment: Annotated[
        Path | None, typer.Option(help="Folder of a deployment or of a site: check its certificates and keys too.")
    ] = None,
) -> None:
    """Check that everything a run needs is available, of a recipe if one is named; exit code 2 if not."""
    from fedprompt.api.progress import plain_console
    from fedprompt.cli.console import findings_table
    from fedprompt.cli.doctor import run_checks

    read = None if recipe is None else partial(load, recipe, settings)
    findings = run_checks(out, backbone, deployment, recipe=read)
    plain_console().print(findings_table(findings))
    if any(finding.failed for finding in findings):
        raise typer.Exit(2)


if __name__ == "__main__":
    main()
