"""Tables of the terminal: figures of runs, findings, options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import typer
from rich.table import Table

from fedprompt.api.progress import plain_console
from fedprompt.cli.doctor import Finding
from fedprompt.records.outcome import shown_name
from fedprompt.report import Run, TrialRecord, read_run
from fedprompt.report.legend import UPLOAD, legend, one_seed_note
from fedprompt.report.published import HEAD, Difference, difference_tables, differences
from fedprompt.report.tables import uploads
from fedprompt.report.verdict import verdict

NUMBER = re.compile(r"[-+]?\d[\d,.]*( ± [\d.]+)?")


def run_tables(run: Run) -> Iterator[Table]:
    """One row per trial: headline figures in percent, trained parameters and uploads; then the further metrics."""
    shown = [column for column in run.columns if ":" not in column]
    table = _figures_table(run, shown, title=run.header.title or None)
    for heading in ("parameters", UPLOAD):
        table.add_column(heading, justify="right")
    for trial in run.trials:
        sent, _ = uploads(trial)
        _add(table, run, trial, shown, f"{trial.about.trainable or 0:,}", sent)
    yield table
    if further := [column for column in run.columns if ":" in column]:
        table = _figures_table(run, further, title=f"Decisions at {run.threshold}")
        for trial in run.trials:
            _add(table, run, trial, further)
        yield table
    yield from published_tables(differences([run]))


def print_results(folder: Path) -> None:
    """Print the tables of a run, their legend, its verdict, and where its report and adapters are."""
    finished, console = read_run(folder), plain_console()
    for table in run_tables(finished):
        console.print(table)
    console.print(legend_table(finished))
    found = verdict(finished, str(folder))
    console.print(" ".join(found.sentences))
    for step in found.steps:
        console.print(f"Next: {step}", soft_wrap=True)  # commands stay whole lines
    if note := one_seed_note(finished):
        console.print(note)
    typer.echo(f"Report: {folder / 'report.html'}\nAdapters: {folder / 'adapters'}")


def legend_table(run: Run) -> Table:
    """The meaning of each column of `run_tables`."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, meaning in legend(run):
        table.add_row(f"  {name}", meaning)
    return table


def published_tables(found: Sequence[Difference]) -> Iterator[Table]:
    """Our figures beside each published table."""
    for title, rows in difference_tables(found):
        yield rows_table(HEAD, rows, title=title)


def _figures_table(run: Run, columns: Sequence[str], *, title: str | None) -> Table:
    table = Table("method", title=title)
    for column in columns:
        table.add_column(run.title(column), justify="right")
    return table


def _add(table: Table, run: Run, trial: TrialRecord, columns: Sequence[str], *words: str) -> None:
    figures = [f"{100 * trial.figures[column]:.1f}" if column in trial.figures else "-" for column in columns]
    table.add_row(shown_name(trial), *figures, *words, style="bold" if trial is run.main else None)


def rows_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """A plain table; columns of numbers are right-aligned."""
    table = Table(title=title)
    for place, name in enumerate(head):
        numeric = bool(rows) and all(NUMBER.fullmatch(row[place]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*row)
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """The findings of `fedprompt doctor`, each failure with its fix."""
    rows = [
        (
            "FAILED" if finding.failed else "WARNING" if finding.warning else "ok",
            finding.what,
            finding.found + (f" -> {finding.fix}" if finding.fix else ""),
        )
        for finding in findings
    ]
    return rows_table(("", "what", "found"), rows)


def option_rows(options: Mapping[str, inspect.Parameter], documentation: str) -> list[tuple[str, str, str]]:
    """Name, default and meaning of each option, from the `name: text` lines of the class's docstring."""
    meanings = dict(line.strip().split(": ", 1) for line in documentation.splitlines() if ": " in line)
    return [(name, repr(option.default), meanings.get(name, "")) for name, option in options.items()]
